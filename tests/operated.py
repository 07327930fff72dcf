"""`pjobs` for operators, run in this process."""

import json
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import dramatiq.broker
import pytest
from pyramid.config import global_registries

from pyramid_jobstate import Batch, JobState, JobStore
from pyramid_jobstate.cli import main  # noqa: TID251, the command `pjobs`
from pyramid_jobstate.testing import put_job
from tests.cliapp import Folder
from tests.jobs import RunMarathon
from tests.terminal import Terminal, on_terminal

#: A text with what may act on a terminal, and how it is shown instead.
HOSTILE = "a\x1b[2J\x07\x9b1m\x7f\u202eb\n14:00:00 success\u2028[red]c[/red] :smile:"
HARMLESS = r"a\x1b[2J\x07\x9b1m\x7f\u202eb\n14:00:00 success\u2028[red]c[/red] :smile:"

#: The signals that end a command, and its exit codes.
SIGNALS = (signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)

#: What happens while a command runs: each time that it pauses, the next step.
Course = Iterator[object]

NOTHING: Course = iter(())

#: Returns what was logged since the last call.
Said = Callable[[], list[str]]


class Haul(Batch):
    """A kind of batch."""


class Ran(NamedTuple):
    """What a command has done: its exit code, and its lines."""

    code: int
    out: list[str]
    err: list[str]

    def printed(self) -> list[str]:
        """Return the output of a command that succeeds, and says nothing else."""
        assert (self.code, self.err) == (0, []), self
        return self.out

    def values(self) -> list[Any]:
        """Return the JSON of each line of such an output."""
        return [json.loads(line) for line in self.printed()]

    def error(self, code: int) -> str:
        """Return the line with which a command fails that prints nothing else."""
        assert (self.code, self.out, len(self.err)) == (code, [], 1), self
        assert self.err[0].startswith("pjobs: ")
        return self.err[0]


class Pauses:
    """The pauses of a command take no time, but the clock goes on as if they did."""

    def __init__(self, course: Course) -> None:
        #: The seconds by which the clock is ahead, and those of each pause.
        self.passed = 0.0
        self.slept: list[float] = []
        self.error: BaseException | None = None
        self._course = course
        self._is_inside = False
        self._sleep, self._monotonic = time.sleep, time.monotonic
        self._end = self._monotonic() + 30

    def monotonic(self) -> float:
        return self._monotonic() + self.passed

    def sleep(self, seconds: float) -> None:
        if self._is_inside or threading.current_thread() is not threading.main_thread():
            self._sleep(seconds)
            return
        self.passed += seconds
        self.slept.append(seconds)
        self._is_inside = True
        try:
            next(self._course, None)
            assert self._monotonic() < self._end, "The command does not end."
        except BaseException as e:
            self.error = e
            raise
        finally:
            self._is_inside = False


class Operator:
    """Runs commands on the store at a URL."""

    def __init__(
        self,
        url: str,
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        self.url = url
        self.pauses = Pauses(NOTHING)
        self._capsys = capsys
        self._monkeypatch = monkeypatch

    def __call__(self, *arguments: str, course: Course = NOTHING) -> Ran:
        return self.main("--url", self.url, *arguments, course=course)

    def main(self, *arguments: str, course: Course = NOTHING) -> Ran:
        self._capsys.readouterr()
        code = self._run(arguments, course)
        done = self._capsys.readouterr()
        return Ran(code, done.out.splitlines(), done.err.splitlines())

    def rerun(self, *arguments: str) -> Ran:
        """Run jobs again through the broker of the module `shop`."""
        return self("rerun", "--broker", "shop:broker", *arguments)

    def draw(
        self,
        *arguments: str,
        course: Callable[[Terminal], Course] = lambda shown: NOTHING,
        answer: Callable[[Terminal], None] | None = None,
        code: int = 0,
        rows: int = 24,
        columns: int = 100,
        **environ: str,
    ) -> Terminal:
        """Run a command on a terminal, where a person may answer when asked. It must
        end with an exit code.
        """
        shown = Terminal(rows, columns, answer)
        with self._monkeypatch.context() as patch:
            for name, value in {"TERM": "xterm-256color", **environ}.items():
                patch.setenv(name, value)
            for name in ("COLUMNS", "LINES"):
                patch.delenv(name, raising=False)
            with on_terminal(shown):
                given = ("--url", self.url, *arguments)
                found = self._run(given, course(shown))
        assert found == code, shown.text()
        return shown

    def pass_time(self, seconds: float) -> None:
        """Let time pass for the command that runs."""
        self.pauses.passed += seconds

    def _run(self, arguments: tuple[str, ...], course: Course) -> int:
        self.pauses = Pauses(course)
        with self._monkeypatch.context() as patch:
            patch.setattr(time, "sleep", self.pauses.sleep)
            patch.setattr(time, "monotonic", self.pauses.monotonic)
            try:
                code = main(arguments)
            except SystemExit as e:
                code = int(e.code or 0)
        if isinstance(self.pauses.error, AssertionError):
            raise self.pauses.error
        return code


def steps(*acts: Callable[[], object]) -> Course:
    """Do something each time that a command pauses."""
    return (act() for act in acts)


def put(store: JobStore, status: str = "working", **options: Any) -> JobState:
    """Store a marathon of Alice's."""
    options = {"owner": "alice", "actor": "run_marathon", **options}
    return put_job(store, options.pop("cls", RunMarathon), status, **options)


def with_ini(pjobs: Operator, folder: Folder, *arguments: str) -> Ran:
    """Run a command with an application of which this process knows nothing yet."""
    sys.modules.pop("cliapp", None)
    global_registries.empty()
    dramatiq.broker.global_broker = None
    return pjobs.main(str(folder.ini), "word=hi", *arguments)
