"""`python -m tests` selects the tests, and says what they cost."""

import itertools
import re
import subprocess
import sys

from tests.__main__ import chosen
from tests.processes import run_python


def test_tests_are_selected_by_what_they_start() -> None:
    """Markers select the tests by what they start, and long ones only on request."""
    names = ("page_of_another", "broker_that_fails", "wrong[40]", "wrong[300]")
    files = ("browser/test_cors.py", "system/test_rabbitmq.py", "system/test_faults.py")
    for expression, expected in {
        "browser or rabbitmq": names[:2],
        "not browser": names[1:3],
        "not system": names[:1],
        "long": names[3:],
    }.items():
        paths = [f"tests/{file}" for file in files]
        found = run_python("-m", "pytest", "--co", "-q", "-m", expression, *paths)
        assert [name for name in names if name in found] == [*expected], expression


def test_marks_narrow_the_run() -> None:
    """An expression narrows the run. Files, and the long tests, run in one process."""
    for line, marks, is_parallel in (
        ("", ["(not system)"], True),
        ("--color=no --cov", ["(not system)"], True),
        ("-m browser", ["(not system) and (browser)"], True),
        ("--system -mbrowser", ["(system) and (browser)"], True),
        ("--long -m browser", ["(long) and (browser)"], False),
        ("-m browser tests/web", ["(browser)"], True),
        ("tests/web/test_acts.py::test_one", [], False),
        ("-k word", [], True),
        ("--lf", [], False),
    ):
        options, is_default = chosen(line.split())
        after = [b for a, b in itertools.pairwise(options) if a == "-m"]
        assert (after, "-n" in options) == (marks, is_parallel), line
        assert is_default == ("(not system)" in "".join(marks)), line


def test_a_file_passes_and_says_what_it_costs() -> None:
    """The command passes with one file of tests, and says what the run has cost."""
    printed = run_python("-m", "tests", "-q", "tests/system/test_mutants.py")
    assert "1 passed" in printed
    assert " s, of the CPU " in printed.splitlines()[-1]


def test_culprits_are_named() -> None:
    """A test that hangs in C fails, after the stacks of its process, and so does one
    that leaves a thread or a socket behind. The others run.
    """
    command = [sys.executable, "-m", "tests", "-n1", "tests/culprits.py"]
    found = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert "1 failed, 3 passed, 2 errors" in found.stdout
    assert "culprits.py::test_that_hangs" in found.stdout
    assert re.search(r"culprits\.py\", line \d+ in test_that_hangs", found.stderr)
    for what, name in ("thread", "abandoned"), ("socket", "unclosed"):
        heading = f"ERROR at teardown of test_that_leaves_a_{what} "
        _, _, after = found.stdout.partition(heading)
        assert re.search(f"leaves behind: .*{name}", after)
