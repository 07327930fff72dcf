"""Which changes of files restart a worker."""

import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from pyramid.exceptions import ConfigurationExecutionError

from pyramid_jobstate.cli.faults import Refused
from pyramid_jobstate.cli.reloading import (
    Reporter,
    Reports,
    Watch,
    files_of,
    needs_change,
)
from tests.support import ROOT, wait_for


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "a.py"
    path.write_text("a = 1")
    # Its last change was before any worker started.
    watch = Watch([])

    def is_old() -> bool:
        watch.begin()
        watch.add([str(path)])
        return watch.changed() is None

    wait_for(is_old)
    return path


def test_changes_of_known_files_are_seen(file: Path) -> None:
    """A changed, replaced or touched file counts until the next start."""
    watch = Watch([str(file)])
    watch.begin()
    assert watch.changed() is None
    file.write_text("a = 22")
    assert watch.changed() == str(file)
    watch.begin()
    assert watch.changed() is None
    os.utime(file, (0, 0))
    assert watch.changed() == str(file)


def test_a_missing_file_is_awaited(tmp_path: Path, file: Path) -> None:
    """A deleted file is left alone, and a missing one counts when it appears."""
    missing = tmp_path / "b.py"
    watch = Watch([str(file)])
    watch.begin()
    watch.add([str(missing)])
    file.unlink()
    assert watch.changed() is None
    missing.touch()
    assert watch.changed() == str(missing)


def test_a_file_saved_before_it_was_reported_has_changed(
    tmp_path: Path, file: Path
) -> None:
    """A file saved after the worker's start may have been imported before: it counts,
    also if an editor moved it there with an old time. An old file does not.
    """
    watch = Watch([])
    watch.begin()
    watch.add([str(file)])
    assert watch.changed() is None
    wait_for(lambda: clock_has_moved(tmp_path, watch))
    other = tmp_path / "other"
    other.write_text("b = 1")
    os.utime(other, (0, 0))
    other.rename(tmp_path / "b.py")
    watch.add([str(tmp_path / "b.py")])
    assert watch.changed() == str(tmp_path / "b.py")
    watch.begin()
    assert watch.changed() is None


@pytest.mark.parametrize("change", [os.link, lambda path, _: path.chmod(0o600)])
def test_links_and_rights_are_no_changes(
    tmp_path: Path, file: Path, change: Callable[[Path, Path], None]
) -> None:
    """A file that gained another name elsewhere, as installers of packages give it, or
    other rights, has not changed, whenever it is reported.
    """
    (tmp_path / "elsewhere").mkdir()
    watch = Watch([])
    watch.begin()
    wait_for(lambda: clock_has_moved(tmp_path / "elsewhere", watch))
    change(file, tmp_path / "elsewhere" / "a.py")
    watch.add([str(file)])
    assert watch.changed() is None


def clock_has_moved(tmp_path: Path, watch: Watch) -> bool:
    """Return whether the file system's clock, which is coarse, is past the start."""
    probe = tmp_path / "probe"
    probe.write_text("x")
    return probe.stat().st_ctime_ns > watch._started


def test_a_worker_reports_what_it_imports(tmp_path: Path) -> None:
    """New modules are reported once, and then that the worker is ready."""
    reports = Reports()
    reporter = Reporter(reports.writer)
    reporter.start()
    found: set[str] = set()
    count = 0

    def arrived(path: str) -> bool:
        nonlocal count
        for each in reports.files():
            found.add(each)
            count += 1
        return path in found

    wait_for(lambda: arrived(os.path.abspath(__file__)))
    assert not reports.is_ready
    module = ModuleType("late")
    module.__file__ = str(tmp_path / "late.py")
    sys.modules["late"] = module
    try:
        wait_for(lambda: arrived(str(tmp_path / "late.py")))
    finally:
        del sys.modules["late"]
    reporter.report([str(tmp_path / "other.py")], is_ready=True)
    wait_for(lambda: arrived(str(tmp_path / "other.py")))
    assert reports.is_ready
    assert count == len(found)
    reports.close()
    # A parent that is gone is not an error.
    reporter.report(["/another"])
    assert threading.current_thread().is_alive()


def failure(source: str, path: Path) -> BaseException:
    """Return the error of importing a file with this source."""
    path.write_text(source)
    try:
        exec(compile(source, str(path), "exec"), {})
    except BaseException as e:
        return e
    raise AssertionError("It can be imported.")


def test_files_that_may_mend_an_error(tmp_path: Path) -> None:
    """An error may be mended in the files of its traceback and its causes, in that of a
    syntax error, and where a missing module may appear.
    """
    path = tmp_path / "a.py"
    assert str(path) in files_of(failure("a = (", path))
    assert str(path) in files_of(failure("1 / 0", path))
    chained = "try:\n    1 / 0\nexcept Exception:\n    raise SystemExit(1)"
    assert str(path) in files_of(failure(chained, path))
    found = set(files_of(failure("import missing_one", path)))
    assert {f"{place}/missing_one.py" for place in sys.path if place} <= found
    found = set(files_of(failure("import tests.missing_one", path)))
    tests = ROOT / "tests"
    assert f"{tests}/missing_one/__init__.py" in found
    assert f"{tmp_path}/missing_one.py" not in found
    found = set(files_of(failure("from tests.support import missing_one", path)))
    assert f"{tests}/support.py" in found
    assert not list(files_of(None))


def raised_after(error: BaseException, other: BaseException) -> BaseException:
    error.__context__ = other
    return error


def test_errors_that_only_a_changed_file_mends(tmp_path: Path) -> None:
    """Mistakes in the code or in the ini wait for a changed file, whatever caused them.
    Errors of a database or a service do not, wherever they are passed on.
    """
    path = tmp_path / "a.py"
    mistake = failure("import missing_one", path)
    service = ConnectionError("refused")
    passed_on = ConfigurationExecutionError(ConnectionError, service, "line 1")
    assert needs_change(failure("a = (", path))
    assert needs_change(raised_after(Refused("The ini is wrong."), service))
    assert needs_change(raised_after(SystemExit(1), mistake))
    assert not needs_change(service)
    assert not needs_change(raised_after(service, mistake))
    assert not needs_change(raised_after(passed_on, ConnectionError("refused")))
    assert not needs_change(SystemExit(1))
