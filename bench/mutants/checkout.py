"""Runs tests in a copy of the checkout, which child processes import, too."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

from . import PACKAGE, ROOT, Mutant


class Test(NamedTuple):
    """A test that passes without mutants, and the seconds that it takes."""

    nodeid: str
    seconds: float

    @property
    def file(self) -> str:
        return self.nodeid.partition("::")[0]


class Ran(NamedTuple):
    """How a run of tests has ended.

    Attributes:
      how: "passed", "failed", "timeout", "crash", or "nothing" if no test was found.
      nodeid: The test that failed, or during which the run ended.
      number: How many tests have begun.
    """

    how: str
    nodeid: str
    number: int


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

    def test(self, tests: Sequence[Test]) -> Ran:
        """Run tests until the first one fails."""
        wanted = self.folder / "tests"
        wanted.write_text(json.dumps([test.nodeid for test in tests]))
        # Ten times as slow as when the map was made: the machine may be busy.
        patience = 60 + 10 * max(test.seconds for test in tests)
        code, outcomes = self.run(
            ["-m", "pytest", f"--timeout={patience:.0f}", "-x"],
            list(dict.fromkeys(test.file for test in tests)),
            timeout=120 + 10 * sum(test.seconds for test in tests),
            MUTANTS_TESTS=str(wanted),
        )
        begun = [each["test"] for each in outcomes if each["outcome"] == "begun"]
        failed = [each for each in outcomes if each["outcome"] == "failed"]
        if failed:
            how = "timeout" if failed[0]["seconds"] >= patience else "failed"
            return Ran(how, failed[0]["test"], len(begun))
        how = {None: "timeout", 0: "passed", 5: "nothing"}.get(code, "crash")
        if how == "passed" and (not begun or len(outcomes) != 2 * len(begun)):
            how = "crash"
        return Ran(how, begun[-1] if begun else "", len(begun))

    def run(
        self,
        command: Sequence[str],
        files: Sequence[str],
        timeout: float | None = None,
        **environ: str,
    ) -> tuple[int | None, list[dict[str, Any]]]:
        """Run pytest on files.

        Returns:
          Its exit code, or None after the timeout, and what the plugin has noted.
        """
        noted = self.folder / "outcomes"
        noted.write_text("")
        # PYTHONPATH precedes the checkout, which is installed, in children as well.
        environ |= {"PYTHONPATH": str(self.root), "MUTANTS_OUTCOMES": str(noted)}
        plugin = ["-q", "-p", f"{__package__}.outcomes"]
        with (self.folder / "output").open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, *command, *plugin, *files],
                cwd=self.root,
                env={**os.environ, **environ},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        code = None
        try:
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = process.wait(timeout)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        return code, [json.loads(line) for line in noted.read_text().splitlines()]

    def output(self) -> str:
        """Return the end of what the last run has printed."""
        return (self.folder / "output").read_text("utf-8", "replace")[-3000:]
