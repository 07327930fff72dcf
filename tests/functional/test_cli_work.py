"""`pjobs INI work`, started as its users start it."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import dramatiq
import pytest
from dramatiq.brokers.redis import RedisBroker

from pyramid_jobstate import JobState, JobStateMiddleware, JobStore
from pyramid_jobstate.cli.ini import VARIABLE
from tests.cliapp import PATIENCE, Folder, Pjobs, free_port
from tests.support import descendants, wait_for

SET_BROKER = "dramatiq.set_broker(broker)"

#: Lets Dramatiq make its default broker for the actors.
WITHOUT_BROKER = """
dramatiq.set_broker(None)
dramatiq.get_broker().actor_options.add("job_state")
"""


@pytest.fixture
def folder(tmp_path: Path, redis_url: str) -> Folder:
    """An application with the tests' shared Redis server."""
    return Folder(tmp_path, redis_url)


@pytest.fixture
def started(folder: Folder) -> Iterator[list[Pjobs]]:
    """The commands that a test has started: they are killed at its end."""
    commands: list[Pjobs] = []
    yield commands
    for command in commands:
        for pid in command.processes():
            os.kill(pid, signal.SIGKILL)
        command.process.wait()


def start(started: list[Pjobs], folder: Folder, *arguments: str) -> Pjobs:
    command = folder.start(str(folder.ini), "word=hello", *arguments)
    started.append(command)
    return command


def send(url: str, name: str, *args: object, queue: str = "default") -> str:
    """Send a message to an actor of the application, and return its job's uuid."""
    broker = RedisBroker(url=url)
    broker.add_middleware(JobStateMiddleware())
    actor = dramatiq.actor(
        broker=broker, actor_name=name, queue_name=queue, job_state=True
    )
    message = actor(lambda *_: None).send(*args)
    return message.message_id


def job(url: str, uuid: str) -> JobState:
    state = JobStore(url).load(uuid)
    assert state is not None
    return state


def test_jobs_run_with_the_application_of_the_ini(
    folder: Folder, started: list[Pjobs]
) -> None:
    """A job runs in a worker that has the ini's settings, variables, logging and flags,
    the command becomes Dramatiq's, and SIGTERM stops it with exit code 0.
    """
    folder.write_ini("processes = 1\nthreads = 2\nqueues = default other")
    flags = ["--threads", "1", "--log-file", "work.log"]
    command = start(started, folder, "work", *flags)
    skipped = send(folder.url, "mail", queue="mail")
    uuid = send(folder.url, "nap", 0)
    wait_for(lambda: job(folder.url, uuid).is_success, PATIENCE)

    metrics = job(folder.url, uuid).progress_metrics
    assert metrics["greeting"] == "hello"
    assert metrics["parent"] == command.pid
    arguments = command.processes()[command.pid]
    assert "pyramid_jobstate.cli.work:boot --threads 1 --log-file" in arguments
    assert "--threads 2" not in arguments
    assert "--queues default other" in arguments
    assert len(command.processes()) <= 3
    assert job(folder.url, skipped).status == "queued"
    assert command.stop() == 0
    log = (folder.path / "work.log").read_text()
    assert "from the ini: WARNING cliapp A nap begins." in log
    assert "[dramatiq.MainProcess] [INFO] Dramatiq" in log
    assert "Worker process is ready" not in log


def test_a_hangup_reloads_the_application(folder: Folder, started: list[Pjobs]) -> None:
    """SIGHUP restarts the workers with changed code in the same process, though the
    environment's scripts are not on PATH.
    """
    command = start(started, folder, "work", "--processes", "1", "--use-spawn")
    uuid = send(folder.url, "nap", 0)
    wait_for(lambda: job(folder.url, uuid).is_success, PATIENCE)
    before = job(folder.url, uuid).progress_metrics
    folder.write_app("two, which is longer")
    command.process.send_signal(signal.SIGHUP)
    wait_for(lambda: before["pid"] not in command.processes(), PATIENCE)
    uuid = send(folder.url, "nap", 0)
    wait_for(lambda: job(folder.url, uuid).is_success, PATIENCE)
    after = job(folder.url, uuid).progress_metrics
    assert (before["version"], after["version"]) == ("one", "two, which is longer")
    assert before["parent"] == after["parent"] == command.pid
    assert after["greeting"] == "hello"
    assert command.stop(signal.SIGINT) == 0


def test_watched_files_reload_the_application(
    folder: Folder, started: list[Pjobs]
) -> None:
    """With `watch` in the ini, a changed Python file reloads the workers."""
    folder.write_ini("processes = 1\nthreads = 1\nwatch = %(here)s")
    command = start(started, folder, "work")
    uuid = send(folder.url, "nap", 0)
    wait_for(lambda: job(folder.url, uuid).is_success, PATIENCE)
    assert "--watch-include=**/*.py" in command.processes()[command.pid]
    before = job(folder.url, uuid).progress_metrics["pid"]
    # Dramatiq reloads on each event, and a second one during a reload kills jobs.
    folder.replace_app("two")
    wait_for(lambda: before not in command.processes(), PATIENCE)
    uuid = send(folder.url, "nap", 0)
    wait_for(lambda: job(folder.url, uuid).is_success, PATIENCE)
    assert job(folder.url, uuid).progress_metrics["version"] == "two"
    assert command.stop() == 0


def test_a_pattern_of_ones_own_replaces_ours(
    folder: Folder, started: list[Pjobs]
) -> None:
    """With `--watch-include`, no pattern is added."""
    command = start(
        started, folder, "work", "-p1", "--watch", ".", "-i", "*.jinja2", "-v"
    )
    wait_for(lambda: "booting up" in command.text(), PATIENCE)
    assert "--watch-include=**/*.py" not in command.processes()[command.pid]
    assert command.stop() == 0


@pytest.mark.parametrize(
    ("code", "old", "new", "message"),
    [
        (2, "import logging", "import missing_one", "cliapp.py, line 2: ModuleNotF"),
        pytest.param(
            2, SET_BROKER, WITHOUT_BROKER, "has no broker", marks=pytest.mark.long
        ),
        (1, "greeting = None", "1 / 0", "ZeroDivisionError: division by zero"),
        (1, "greeting = None", "raise SystemExit(0)", "SystemExit: 0"),
        (7, "greeting = None", "raise SystemExit(7)", ""),
        pytest.param(
            1,
            "greeting = None",
            "greeting = (",
            "SyntaxError: '(' was never closed",
            marks=pytest.mark.long,
        ),
    ],
)
def test_a_worker_that_cannot_start(
    folder: Folder,
    started: list[Pjobs],
    code: int,
    old: str,
    new: str,
    message: str,
) -> None:
    """The exit code and a message on stderr tell why the workers cannot start."""
    text = folder.module.read_text()
    folder.module.write_text(text.replace(old, new))
    command = start(started, folder, "work", "-p", "1")
    assert command.end() == code
    assert message in command.text()
    assert ("Traceback" in command.text()) == (code == 1)
    assert ("pjobs: Traceback" in command.text()) == (code == 1)


def test_an_application_without_actors_and_broker(
    folder: Folder, started: list[Pjobs]
) -> None:
    """Without any broker the worker does not start: Dramatiq's default is not asked."""
    folder.module.write_text("def main(global_conf, **settings): return object()")
    command = start(started, folder, "work", "-p", "2")
    assert command.end() == 2
    assert "Set jobstate.broker in the ini" in command.text()


def test_an_application_that_misses_a_broker(
    folder: Folder, started: list[Pjobs]
) -> None:
    """If the include complains and no broker is set, that is the reason given."""
    folder.module.write_text(
        folder.module.read_text().replace(SET_BROKER, WITHOUT_BROKER)
    )
    folder.write_ini(**{"jobstate.redis_url": "redis_url"})
    command = start(started, folder, "work", "-p", "1")
    assert command.end() == 2
    assert "pjobs: The application has no broker. Set" in command.text()
    assert "does not know where job states are kept" in command.text()
    assert "Traceback" not in command.text()


def test_a_server_out_of_reach(tmp_path: Path, started: list[Pjobs]) -> None:
    """Without its Redis server, the worker does not start, and says why."""
    folder = Folder(tmp_path, f"redis://:secret@127.0.0.1:{free_port()}/0")
    command = start(started, folder, "work", "-p", "1")
    assert command.end() == 3
    assert "pjobs: The broker cannot be reached: Error" in command.text()
    assert "secret" not in command.text()


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({VARIABLE: '["/missing.ini", "/missing.ini", {}]'}, "/missing.ini"),
        ({}, "Start this with `pjobs INI work`."),
    ],
)
def test_a_worker_process_without_an_ini(environ: dict[str, str], message: str) -> None:
    """A worker process that cannot read the ini says so briefly."""
    done = subprocess.run(
        [sys.executable, "-c", "from pyramid_jobstate.cli.work import boot; boot()"],
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr.startswith(f"pjobs: {message}")
    assert "Traceback" not in done.stderr


def is_quiet(command: Pjobs) -> bool:
    """Return whether a command has printed nothing for half a second."""
    before = command.text()
    time.sleep(0.5)
    return command.text() == before


def test_a_killed_worker_process(folder: Folder, started: list[Pjobs]) -> None:
    """When a worker process is killed, Dramatiq's command ends with an error."""
    command = start(started, folder, "work", "-p", "1")
    uuid = send(folder.url, "nap", 0)
    wait_for(lambda: job(folder.url, uuid).is_success, PATIENCE)
    # Dramatiq waits for the rest of a line that a killed worker was writing.
    wait_for(lambda: is_quiet(command), PATIENCE)
    os.kill(job(folder.url, uuid).progress_metrics["pid"], signal.SIGKILL)
    assert command.end() == 1
    assert not descendants(command.pid)
    assert free_port()
