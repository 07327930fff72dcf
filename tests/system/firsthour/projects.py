"""Pyramid's own projects, in which the tests do what the README says.

Pyramid's sdist holds what its cookiecutter generates, and the applications that its
tutorials make of that. Nothing of them is kept here: the tests download the sdist.
"""

import contextlib
import fcntl
import importlib.metadata
import os
import re
import sqlite3
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests.processes import Process, run_python
from tests.support import ROOT

#: The folders of the projects in the documentation of the sdist.
FOLDERS = {
    "sqlalchemy": "tutorials/wiki2/src/installation",  # generated: SQLAlchemy, Jinja2
    "zodb": "tutorials/wiki/src/installation",  # generated: ZODB and Chameleon
    "plain": "narr/myproject",  # generated: Jinja2, and no database
    "wiki2": "tutorials/wiki2/src/tests",  # a finished tutorial: users in a database
}

#: The package in each of these projects, and its name in one of them.
PACKAGE, OTHER_PACKAGE = "tutorial", "myproject"

#: What setuptools calls for `pip install -e`: it writes the metadata that make
#: `use = egg:tutorial` work, and does so in a fifth of a second.
EGG_INFO = "import setuptools; setuptools.setup()"

#: How many tests each project comes with.
OWN_TESTS = {"sqlalchemy": 5, "zodb": 4, "plain": 4, "wiki2": 27}

#: Runs pjobs with this interpreter, in case the script is not installed.
PJOBS = ("-c", "import sys; from pyramid_jobstate.cli import main; sys.exit(main())")


def sdist(folder: Path) -> Path | None:
    """Return the sdist of the Pyramid that is installed, kept in a folder, or None if
    it cannot be downloaded. Of several processes that ask at once, one downloads it.
    """
    version = importlib.metadata.version("pyramid")
    wanted = folder / f"pyramid-{version}.tar.gz"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "-q"]
    options = ["--no-deps", "--no-binary", ":all:", "--retries", "1", "--timeout", "15"]
    command = [*pip, *options, f"pyramid=={version}", "--dest"]
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not wanted.exists():
            with tempfile.TemporaryDirectory(dir=folder) as temporary:
                if subprocess.run([*command, temporary]).returncode:
                    return None
                # Moved into place when complete: an interrupted run leaves nothing.
                next(Path(temporary).iterdir()).replace(wanted)
    return wanted


class Project:
    """A copy of one of the projects, as a newcomer has it after generating it.

    Attributes:
      name: Its name in FOLDERS.
      folder: Where it is.
    """

    def __init__(self, archive: Path, name: str, folder: Path) -> None:
        self.name = name
        self.folder = folder
        self.environ = {"PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])}
        with tarfile.open(archive) as tar:
            root = tar.getnames()[0].partition("/")[0]
            prefix = f"{root}/docs/{FOLDERS[name]}/"
            members = [m for m in tar if m.name.startswith(prefix)]
            for member in members:
                member.name = member.name.removeprefix(prefix)
            tar.extractall(folder, members, filter="data")
        if (other := folder / OTHER_PACKAGE).exists():
            other.rename(folder / PACKAGE)
            for path in folder.rglob("*"):
                if path.suffix in (".py", ".ini", ".jinja2"):
                    text = path.read_text("utf-8")
                    path.write_text(text.replace(OTHER_PACKAGE, PACKAGE), "utf-8")
        is_old = (folder / "setup.py").exists()
        setup = ["setup.py"] if is_old else ["-c", EGG_INFO]
        self.python(*setup, "--quiet", "egg_info")

    def python(self, *arguments: str, stdin: str = "") -> str:
        """Run Python in the project, and return what it prints. It must not fail."""
        return run_python(
            *arguments,
            folder=self.folder,
            environ=self.environ,
            stdin=stdin,
            timeout=90,
        )

    def initialize(self, ini: str) -> None:
        """Create a database with SQLAlchemy, as the project's README says."""
        self.python("-m", "alembic", "-c", ini, "upgrade", "head")
        self.run_script(ini)

    def run_script(self, ini: str) -> None:
        call = "from tutorial.scripts.initialize_db import main; main(['', '{}'])"
        self.python("-c", call.format(ini))

    def edit(self, path: str, old: str, new: str) -> None:
        """Replace a text that occurs exactly once in a file."""
        file = self.folder / path
        text = file.read_text("utf-8")
        assert text.count(old) == 1, f"{path} has {old!r} {text.count(old)} times"
        file.write_text(text.replace(old, new), "utf-8")

    @contextlib.contextmanager
    def running(self, *arguments: str) -> Iterator[Process]:
        """Run Python in the project until the caller is done."""
        log = self.folder.with_name(f"{time.monotonic_ns()}.log")
        command = [sys.executable, *arguments]
        with Process(command, log, self.folder, self.environ, patience=60) as process:
            try:
                yield process
            finally:
                # Gently if possible, so that it ends what it has started.
                process.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(20)

    def run_tests(self) -> int:
        """Run the project's own tests, and return how many there are. All must pass."""
        printed = self.python("-m", "pytest", "--quiet", "--color=no")
        last = printed.strip().splitlines()[-1]
        counts = re.findall(r"(\d+) (passed|skipped|deselected|xfailed|xpassed)", last)
        assert [kind for _, kind in counts] == ["passed"], printed
        return int(counts[0][0])

    def rows(self) -> list[tuple[str, int]]:
        """Return the names and values in the database: with SQLAlchemy alone."""
        path = self.folder / "tutorial.sqlite"
        with contextlib.closing(sqlite3.connect(path)) as database:
            return database.execute("SELECT name, value FROM models").fetchall()
