"""`pjobs INI work`, started as its users start it."""

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pyramid_jobstate import JobState
from tests.cliapp import PATIENCE, Folder
from tests.processes import Process
from tests.support import descendants, is_alive, wait_for

#: Starts a command.
Start = Callable[..., Process]


@pytest.fixture
def folder(tmp_path: Path, redis_url: str) -> Folder:
    """An application with the tests' shared Redis server."""
    return Folder(tmp_path, redis_url)


@pytest.fixture
def start(folder: Folder) -> Iterator[Start]:
    """Starts commands, which are killed at the end of the test."""
    words = (str(folder.ini), "word=hello", "work")
    with contextlib.ExitStack() as stack:
        yield lambda *more: stack.enter_context(folder.start(*words, *more))


def nap(folder: Folder) -> JobState:
    """Return a job that a worker has run."""
    uuid = folder.send("nap", 0)
    wait_for(lambda: folder.load(uuid).is_success, PATIENCE)
    return folder.load(uuid)


def test_jobs_run_with_the_application_of_the_ini(folder, start):
    """A job runs with the ini's settings, variables, logging and flags."""
    folder.write_ini("processes = 1\nthreads = 2\nqueues = default other")
    command = start("--threads", "1", "--log-file", "work.log")
    skipped = folder.send("mail", queue="mail")
    metrics = nap(folder).progress_metrics
    assert metrics["greeting"] == "hello"
    assert metrics["parent"] == command.pid
    assert len(command.processes()) <= 3
    assert folder.load(skipped).status == "queued"
    assert command.stop() == 0
    log = (folder.path / "work.log").read_text()
    assert "from the ini: WARNING cliapp A nap begins." in log
    assert "[dramatiq.MainProcess] [INFO] Dramatiq" in log
    assert "Worker process is ready" not in log


def test_hangup_reloads_the_application(folder, start):
    """SIGHUP restarts the workers with changed code in the same process."""
    command = start("--processes", "1", "--use-spawn")
    before = nap(folder).progress_metrics
    folder.write_app("two, which is longer")
    command.send_signal(signal.SIGHUP)
    wait_for(lambda: not is_alive(before["pid"]), PATIENCE)
    after = nap(folder).progress_metrics
    assert (before["version"], after["version"]) == ("one", "two, which is longer")
    assert before["parent"] == after["parent"] == command.pid
    assert after["greeting"] == "hello"
    assert command.stop(signal.SIGINT) == 0


def test_watched_files_reload_the_application(folder, start):
    """With `watch` in the ini, a changed Python file reloads the workers."""
    folder.write_ini("processes = 1\nthreads = 1\nwatch = %(here)s")
    command = start()
    before = nap(folder).progress_metrics["pid"]
    # Dramatiq reloads on each event, and a second one during a reload kills jobs.
    folder.write_app("two, which is longer")
    wait_for(lambda: not is_alive(before), PATIENCE)
    # Python takes bytecode for that of a source that is as long, and as old in seconds.
    version = nap(folder).progress_metrics["version"]
    assert version == "two, which is longer", command.text()
    assert command.stop() == 0


def is_quiet(command: Process) -> bool:
    """Return whether a command has printed nothing for half a second."""
    before = command.text()
    time.sleep(0.5)
    return command.text() == before


def test_command_ends_with_its_workers(folder, start):
    """If a worker is killed or cannot start, the command ends, and says why."""
    command = start("-p", "1")
    pid = nap(folder).progress_metrics["pid"]
    # Dramatiq waits for the rest of a line that a killed worker was writing.
    wait_for(lambda: is_quiet(command), PATIENCE)
    os.kill(pid, signal.SIGKILL)
    assert command.end() == 1
    assert not descendants(command.pid)

    folder.module.write_text("import missing_one")
    command = start("-p", "1")
    assert command.end() == 2
    assert "cliapp.py, line 1: ModuleNotF" in command.text()
