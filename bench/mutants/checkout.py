"""Runs tests in a copy of the checkout, which child processes import, too."""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Self

from . import PACKAGE, ROOT, Mutant
from .places import places


class Ran(NamedTuple):
    """How a run of tests has ended.

    Attributes:
      how: "passed", "failed", "timeout", "crash", or "nothing" if no test ran.
      test: The test that failed.
      seconds: How long it took.
    """

    how: str
    test: str
    seconds: float


class Copy:
    """A copy of the files that git does not ignore."""

    def __enter__(self) -> Self:
        self.folder = Path(tempfile.mkdtemp(prefix="mutants-"))
        self.root = self.folder / "checkout"
        command = "git ls-files -z --cached --others --exclude-standard"
        listed = subprocess.check_output(command.split(), cwd=ROOT)
        for name in os.fsdecode(listed).split("\0")[:-1]:
            (self.root / name).parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileNotFoundError):
                shutil.copy2(ROOT / name, self.root / name)
        # Times that no file has had, so that nothing compiled is taken for current.
        self._times = itertools.count(1_000_000_000)
        return self

    def __exit__(self, *exception: object) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    @contextlib.contextmanager
    def mutated(self, mutant: Mutant) -> Iterator[None]:
        """Put a mutant into the copy for a while."""
        path = self.root / PACKAGE / mutant.file
        source = mutant.source(self.root)
        for text in (mutant.broken(self.root), source):
            path.write_text(text, "utf-8")
            seconds = next(self._times)
            os.utime(path, (seconds, seconds))
            if text != source:
                yield

    def test(
        self, *tests: str, patience: float = 600, without: Sequence[str] = ()
    ) -> Ran:
        """Run tests until the first one fails.

        Args:
          tests: Files of tests, or ids of tests.
          patience: The seconds that they may take.
          without: The ids of those that do not run.
        """
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-rfE", "--tb=no"]
        command += [f"--timeout={min(120, patience / 2):.0f}"]
        command += [f"--deselect={test}" for test in without]
        printed = self.folder / "printed"
        begun = time.monotonic()
        with printed.open("wb") as output:
            process = subprocess.Popen(
                [*command, *tests],
                cwd=self.root,
                # It precedes the checkout, which is installed, in children as well.
                env={**os.environ, "PYTHONPATH": str(self.root)},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        code = None
        try:
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = process.wait(patience)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        text = printed.read_text("utf-8", "replace")
        how = {None: "timeout", 0: "passed", 1: "failed", 5: "nothing"}.get(code)
        if how == "passed" and not re.search(r"^\d+ passed", text, re.MULTILINE):
            how = "nothing"
        failed = re.search(r"^(?:FAILED|ERROR) (\S+)", text, re.MULTILINE)
        seconds = time.monotonic() - begun
        return Ran(how or "crash", failed[1] if failed else "", seconds)


def touched(mutants: Sequence[Mutant], revision: str) -> list[Mutant]:
    """Return the mutants whose place has changed since a revision of the checkout."""
    command = ["git", "archive", revision, PACKAGE]
    archive = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
            tar.extractall(folder, filter="data")
        then = places(Path(folder) / PACKAGE)
    now = places(ROOT / PACKAGE)
    return [
        mutant
        for mutant in mutants
        if not {place.text for place in now[mutant.where]}
        <= {place.text for place in then.get(mutant.where, ())}
    ]
