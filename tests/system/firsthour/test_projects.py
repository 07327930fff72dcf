"""The projects pass their own tests before anything is added to them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import ROOT, unmeasured
from tests.system.firsthour import projects
from tests.system.firsthour.conftest import MakeProject
from tests.system.firsthour.projects import Unavailable

#: How many tests each project comes with.
OWN_TESTS = {"sqlalchemy": 5, "zodb": 4, "wiki2": 27, "wiki": 25}

#: Lets pip find nothing: nobody listens at this address.
NO_INDEX = {
    "PIP_INDEX_URL": "http://127.0.0.1:9/simple",
    "PIP_FIND_LINKS": "",
    "PIP_CONFIG_FILE": os.devnull,
}


@pytest.mark.parametrize(
    "name",
    [
        "sqlalchemy",
        *(pytest.param(x, marks=pytest.mark.long) for x in ("zodb", "wiki2", "wiki")),
    ],
)
def test_projects_pass_their_own_tests(make_project: MakeProject, name: str) -> None:
    """Every project passes its tests as it is, and git sees nothing added."""
    project = make_project(name)

    assert project.run_tests() == OWN_TESTS[name]

    assert project.added() == []


def test_added_lines_are_those_of_git(make_project: MakeProject) -> None:
    """The added lines are the new and changed ones, in old and new files, except blank
    lines.
    """
    project = make_project("zodb")
    routes = project.folder / "tutorial/routes.py"
    routes.write_text(routes.read_text().replace("3600", "60") + "\n\n# end\n")
    (project.folder / "tutorial/jobs.py").write_text("import time\n\n++x\n")

    assert project.added() == [
        ("tutorial/jobs.py", "import time"),
        ("tutorial/jobs.py", "++x"),
        (
            "tutorial/routes.py",
            "    config.add_static_view('static', 'static', cache_max_age=60)",
        ),
        ("tutorial/routes.py", "# end"),
    ]


def test_failed_test_of_a_project_is_told(make_project: MakeProject) -> None:
    """A project whose own test fails does not count as passed."""
    project = make_project("zodb")
    (project.folder / "tests/test_broken.py").write_text("def test(): assert 0\n")

    with pytest.raises(AssertionError, match="1 failed, 4 passed"):
        project.run_tests()


def test_several_processes_download_once(pyramid_sdist: Path, tmp_path: Path) -> None:
    """Of several processes that need the sdist at the same time, one downloads it."""
    program = """
import pathlib, shutil, sys, time
from tests.system.firsthour import projects
found, folder = map(pathlib.Path, sys.argv[1:])
def download(requirement, wanted):
    print("downloading", flush=True)
    time.sleep(0.5)
    shutil.copy(found, wanted)
projects.download = download
assert projects.sdist(folder).read_bytes() == found.read_bytes()
"""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program, pyramid_sdist, tmp_path],
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    printed = [process.communicate(timeout=60)[0] for process in processes]

    assert [process.returncode for process in processes] == [0, 0, 0]
    assert "".join(printed) == "downloading\n"


def test_without_network_the_error_gives_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a network, the error names what was to be downloaded, and nothing that
    looks like the sdist is left.
    """
    for name, value in NO_INDEX.items():
        monkeypatch.setenv(name, value)

    with pytest.raises(Unavailable, match="the sdist of pyramid=="):
        projects.sdist(tmp_path)

    assert [path.name for path in tmp_path.iterdir()] == ["lock"]


@pytest.mark.parametrize(("ci", "outcome"), [("", "1 skipped"), ("true", "1 error")])
def test_without_network_the_tests_skip(tmp_path: Path, ci: str, outcome: str) -> None:
    """Without a network the tests of the projects skip, and fail where CI=true."""
    name = "test_projects_pass_their_own_tests[zodb]"
    cache = ["-o", f"cache_dir={tmp_path}"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-rs", *cache, f"{__file__}::{name}"],
        cwd=ROOT,
        env={**unmeasured(), **NO_INDEX, "CI": ci},
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert outcome in done.stdout.splitlines()[-1]
    assert "pip could not download the sdist of pyramid==" in done.stdout
