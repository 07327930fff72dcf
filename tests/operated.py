"""`pjobs` for operators, in this process or in one of its own."""

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest

from pyramid_jobstate import JobError, JobState, JobStore
from pyramid_jobstate.cli import main
from pyramid_jobstate.job import End, Update, record_of
from pyramid_jobstate.store.connection import text
from pyramid_jobstate.testing import put_job
from tests.cliapp import PATIENCE, PJOBS
from tests.jobs import RunMarathon
from tests.support import ROOT, key_of, load_job

#: A text with what may act on a terminal, and how it is shown instead.
HOSTILE = "a\x1b[2J\x07\x9b1m\x7f\u202eb\n14:00:00 success\u2028[red]c[/red] :smile:"
HARMLESS = r"a\x1b[2J\x07\x9b1m\x7f\u202eb\n14:00:00 success\u2028[red]c[/red] :smile:"


class Ran(NamedTuple):
    """What a command has done.

    Attributes:
      code: Its exit code.
      out: The lines on stdout.
      err: The lines on stderr.
    """

    code: int
    out: list[str]
    err: list[str]


class Operator:
    """Runs commands on the store at a URL in this process."""

    def __init__(self, url: str, capsys: pytest.CaptureFixture[str]) -> None:
        self.url = url
        self._capsys = capsys

    def __call__(self, *arguments: str) -> Ran:
        return self.main("--url", self.url, *arguments)

    def main(self, *arguments: str) -> Ran:
        """Run a command line."""
        self._capsys.readouterr()
        try:
            code = main(arguments)
        except SystemExit as e:
            code = int(e.code or 0)
        done = self._capsys.readouterr()
        return Ran(code, done.out.splitlines(), done.err.splitlines())


#: Starts a command that ends with the test.
Start = Callable[..., "subprocess.Popen[str]"]


def start(*arguments: str, code: str = PJOBS, **environ: str) -> subprocess.Popen[str]:
    """Start a command in a process of its own, with pipes for its output."""
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environ},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finished(process: subprocess.Popen[str]) -> Ran:
    """Wait for the end of a command."""
    out, err = process.communicate(timeout=PATIENCE)
    return Ran(process.returncode, out.splitlines(), err.splitlines())


def run(*arguments: str, code: str = PJOBS, **environ: str) -> Ran:
    """Run a command in a process of its own."""
    return finished(start(*arguments, code=code, **environ))


def put(store: JobStore, status: str = "working", **options: Any) -> JobState:
    """Store a marathon of Alice's that never stalls by itself."""
    options = {"owner": "alice", "actor": "run_marathon", **options}
    job = put_job(store, options.pop("cls", RunMarathon), status, **options)
    if status in ("working", "cancelling"):
        store.client.hset(key_of(store, job.uuid), "seen", 10**14)
    return job


def end(store: JobStore, job: JobState, status: str = "success") -> None:
    """End a job, as its worker would."""
    info = record_of(load_job(store, job.uuid)).info
    found: Any = store.client.hmget(key_of(store, job.uuid), "run", "seq")
    error = JobError("ValueError", "wrong") if status == "error" else None
    update = Update(job.uuid, text(found[0]), int(found[1]) + 1, info)
    update.end = End(status, error)
    store.write([update])
