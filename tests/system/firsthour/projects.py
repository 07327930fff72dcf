"""Pyramid's own projects, in which the tests do what the README says.

Pyramid's sdist holds what its cookiecutter generates, and the applications that its
tutorials make of that. Nothing of them is kept here: the tests download the sdist.
"""

import contextlib
import fcntl
import importlib.metadata
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from tests.support import ROOT, unmeasured

TUTORIALS = "docs/tutorials"

#: The folders of the projects in the sdist, below TUTORIALS.
FOLDERS = {
    "sqlalchemy": "wiki2/src/installation",  # generated: SQLAlchemy and Jinja2
    "zodb": "wiki/src/installation",  # generated: ZODB and Chameleon
    "wiki2": "wiki2/src/tests",  # a finished tutorial: users in a database
    "wiki": "wiki/src/tests",  # the other one: a resource tree, groups of users
}

#: The package in each of these projects.
PACKAGE = "tutorial"

#: What setuptools calls for `pip install -e`: it writes the metadata that make
#: `use = egg:tutorial` work, and does so in a fifth of a second.
EGG_INFO = "import setuptools; setuptools.setup()"

#: The seconds that a process may take to stop.
PATIENCE = 20

#: Runs pjobs with this interpreter, in case the script is not installed.
PJOBS = ("-c", "import sys; from pyramid_jobstate.cli import main; sys.exit(main())")


class Unavailable(Exception):
    """Pyramid's sdist cannot be downloaded."""


def sdist(folder: Path) -> Path:
    """Return the sdist of the Pyramid that is installed, kept in a folder.

    Several processes may ask at once: one downloads it, and the others wait.

    Raises:
      Unavailable: It could not be downloaded.
    """
    version = importlib.metadata.version("pyramid")
    wanted = folder / f"pyramid-{version}.tar.gz"
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not wanted.exists():
            download(f"pyramid=={version}", wanted)
    return wanted


def download(requirement: str, wanted: Path) -> None:
    """Download an sdist to a path, or raise Unavailable."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download"]
    options = ["--no-deps", "--no-binary", ":all:", "--retries", "1", "--timeout", "15"]
    with tempfile.TemporaryDirectory(dir=wanted.parent) as temporary:
        done = subprocess.run(
            [*pip, "--quiet", *options, "--dest", temporary, requirement],
            capture_output=True,
            text=True,
        )
        found = list(Path(temporary).iterdir())
        if done.returncode or len(found) != 1:
            raise Unavailable(
                f"pip could not download the sdist of {requirement}: "
                f"{done.stderr.strip()[-300:] or found}"
            )
        # Moved into place when complete, so that an interrupted run leaves nothing.
        found[0].replace(wanted)


class Line(NamedTuple):
    """A line that a project has gained since its first commit."""

    path: str
    text: str


class Running(NamedTuple):
    """A process that runs in a project, and the path of what it prints."""

    process: subprocess.Popen[bytes]
    log: Path


class Project:
    """A copy of one of the projects, as a newcomer has it after generating it.

    Attributes:
      name: Its name in FOLDERS.
      folder: Where it is.
    """

    def __init__(self, archive: Path, name: str, folder: Path) -> None:
        self.name = name
        self.folder = folder
        unpack(archive, f"{TUTORIALS}/{FOLDERS[name]}/", folder)
        self._git("init", "--quiet")
        self._git("add", "--all")
        self._git("commit", "--quiet", "--message", "As generated")
        self.python("-c", EGG_INFO, "--quiet", "egg_info")

    def environment(self, **variables: str) -> dict[str, str]:
        """Return the environment in which the project is installed."""
        # The project's tests are a run of their own.
        kept = {k: v for k, v in unmeasured().items() if not k.startswith("PYTEST_")}
        path = os.pathsep.join([str(self.folder), str(ROOT)])
        return {**kept, "PYTHONPATH": path, **variables}

    def python(
        self,
        *arguments: str,
        stdin: str = "",
        variables: Mapping[str, str] | None = None,
    ) -> str:
        """Run Python in the project, and return what it prints.

        Raises:
          AssertionError: It failed.
        """
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=self.folder,
            env=self.environment(**variables or {}),
            input=stdin,
            capture_output=True,
            text=True,
            timeout=90,
        )
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
        return done.stdout

    def script(
        self, name: str, *arguments: str, variables: Mapping[str, str] | None = None
    ) -> str:
        """Run one of the project's own console scripts."""
        (found,) = importlib.metadata.distributions(
            name=PACKAGE, path=[str(self.folder)]
        )
        (script,) = found.entry_points.select(group="console_scripts", name=name)
        call = f"import sys; from {script.module} import {script.attr} as script; "
        call += f"sys.argv[0] = {name!r}; sys.exit(script())"
        return self.python("-c", call, *arguments, variables=variables)

    def edit(self, path: str, old: str, new: str) -> None:
        """Replace a text that occurs exactly once in a file.

        Raises:
          AssertionError: It is missing, or occurs several times.
        """
        file = self.folder / path
        text = file.read_text("utf-8")
        assert text.count(old) == 1, f"{path} has {old!r} {text.count(old)} times"
        file.write_text(text.replace(old, new), "utf-8")

    def migrate(self, ini: str) -> None:
        """Create the tables of a project with SQLAlchemy, as its README says."""
        self.python("-m", "alembic", "-c", ini, "upgrade", "head")

    @contextlib.contextmanager
    def running(self, *arguments: str, **variables: str) -> Iterator[Running]:
        """Run Python in the project until the caller is done."""
        log = self.folder.with_name(f"{self.name}.log")
        environment = self.environment(dramatiq_worker_timeout="100", **variables)
        with log.open("a") as output:
            process = subprocess.Popen(
                [sys.executable, *arguments],
                cwd=self.folder,
                env=environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            yield Running(process, log)
        finally:
            # Gently if possible, so that it ends what it has started.
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(PATIENCE)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def run_tests(self, *, variables: Mapping[str, str] | None = None) -> int:
        """Run the project's own tests, and return how many passed.

        Raises:
          AssertionError: Not all of them passed.
        """
        printed = self.python(
            "-m", "pytest", "--quiet", "--color=no", variables=variables
        )
        last = printed.strip().splitlines()[-1]
        counts = re.findall(r"(\d+) (passed|skipped|deselected|xfailed|xpassed)", last)
        assert [kind for _, kind in counts] == ["passed"], printed
        return int(counts[0][0])

    def rows(self) -> list[tuple[str, int]]:
        """Return the names and values in the database: with SQLAlchemy alone."""
        path = self.folder / "tutorial.sqlite"
        with contextlib.closing(sqlite3.connect(path)) as database:
            return database.execute("SELECT name, value FROM models").fetchall()

    def added(self) -> list[Line]:
        """Return the lines that git sees as added, without the blank ones."""
        # Makes git show the new files, too.
        self._git("add", "--all", "--intent-to-add")
        # The lines alone, in a format that depends on no configuration.
        shown = self._git("diff", "--unified=0", "--no-color", "--no-ext-diff")
        path = ""
        lines = []
        for line in shown.splitlines():
            if line.startswith("+++ b/"):
                path = line.removeprefix("+++ b/")
            elif line.startswith("+") and line[1:].strip():
                lines.append(Line(path, line[1:]))
        return lines

    def _git(self, *arguments: str) -> str:
        author = ["-c", "user.name=newcomer", "-c", "user.email=newcomer@example.com"]
        # The user's settings may ask for hooks, signatures or other line ends.
        isolated = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}
        kept = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
        return subprocess.run(
            ["git", *author, *arguments],
            cwd=self.folder,
            env={**kept, **isolated},
            check=True,
            capture_output=True,
            text=True,
        ).stdout


def unpack(archive: Path, prefix: str, folder: Path) -> None:
    """Unpack one folder of an sdist.

    Raises:
      AssertionError: The sdist has no such folder.
    """
    with tarfile.open(archive) as tar, tempfile.TemporaryDirectory() as temporary:
        members = [m for m in tar if m.name.partition("/")[2].startswith(prefix)]
        assert members, f"{archive.name} has no {prefix}"
        tar.extractall(temporary, members, filter="data")
        root = members[0].name.partition("/")[0]
        shutil.copytree(Path(temporary, root, prefix), folder)
