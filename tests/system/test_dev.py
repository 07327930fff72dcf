"""`pjobs INI dev`, started as its users start it."""

import contextlib
import os
import re
import signal
import socket
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cliapp import PATIENCE, Folder
from tests.processes import Process
from tests.support import descendants, free_ports, is_alive, wait_for

#: Starts a command as a shell starts those in the background of a script, with SIGINT
#: ignored, and here with SIGTERM ignored as well.
IGNORING = ["sh", "-c", 'trap "" INT TERM; exec "$0" "$@"']

READY = r"pjobs  \| The worker is ready\."


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    """An application at whose URL no server answers."""
    (tmp_path / "app").mkdir()
    (tmp_path / "temporary").mkdir()
    return Folder(tmp_path / "app", f"redis://localhost:{free_ports(1)[0]}/20")


@contextlib.contextmanager
def running(folder: Folder) -> Iterator[Process]:
    """Run a `pjobs dev`, which leaves nothing behind. It ends on SIGINT and SIGTERM
    although it inherits that they are ignored.
    """
    temporary = folder.path.parent / "temporary"
    words = (str(folder.ini), "word=hello", "dev")
    started = folder.start(*words, prefix=IGNORING, TMPDIR=str(temporary))
    with started as command:
        yield command
        everything = command.processes()
        command.stop()
        # Before the end of the block kills what is left.
        wait_for(lambda: not any(map(is_alive, everything)), PATIENCE)
        wait_for(lambda: not list(temporary.iterdir()), PATIENCE)


@pytest.fixture
def dev(folder: Folder) -> Iterator[Process]:
    """A `pjobs dev` that has started its worker and its web server."""
    with running(folder) as command:
        command.wait_for_line(READY)
        wait_for(lambda: get(folder, "/send?s=0"), PATIENCE)
        yield command


def get(folder: Folder, path: str) -> str:
    """Return what the web server answers, or nothing while it is away."""
    with contextlib.suppress(OSError):
        url = f"http://127.0.0.1:{folder.port}{path}"
        with urllib.request.urlopen(url, timeout=5) as answer:
            return str(answer.read().decode())
    return ""


def send(folder: Folder, seconds: float) -> tuple[str, str]:
    """Send a job, and return its uuid and the version of the code that sent it."""
    text = wait_for(lambda: get(folder, f"/send?s={seconds}"), PATIENCE)
    version, _, uuid = text.rpartition(" ")
    return uuid, version


def begin(folder: Folder, seconds: float) -> str:
    """Return the uuid of a job that a worker has begun."""
    uuid, _ = send(folder, seconds)
    wait_for(lambda: folder.load(uuid).get_progress_metric("pid"), PATIENCE)
    return uuid


def version_of(folder: Folder) -> str:
    """Return the version of the worker by a message that no web server sends, or
    nothing if no worker runs its job: one that ends may have taken it.
    """
    uuid = folder.send("nap", 0)
    deadline = time.monotonic() + 5
    while not folder.load(uuid).is_success:
        if time.monotonic() > deadline:
            return ""
        time.sleep(0.05)
    return str(folder.load(uuid).get_progress_metric("version"))


@pytest.mark.timeout(240)
def test_everything_runs_and_follows_the_code(folder, dev):
    """An application runs with nothing but its ini. Changed code restarts the web
    server and the worker, whose running job begins again. After a syntax error, the
    next change restarts them, too. Ctrl-C ends everything.
    """
    assert f"Nothing answered at {folder.url}: started an empty server." in dev.text()
    # The server may answer before the command has looked at its report.
    dev.wait_for_line(rf"The web server starts at http://127.*:{folder.port}\.")
    assert version_of(folder) == "one"
    assert "worker | from the ini: WARNING cliapp A nap begins." in dev.text()

    uuid = begin(folder, 3)
    first = folder.load(uuid).get_progress_metric("pid")
    folder.write_app("two")
    wait_for(lambda: folder.load(uuid).status == "retrying", PATIENCE)
    dev.wait_for_line(READY, 2)
    wait_for(lambda: folder.load(uuid).is_success, PATIENCE)
    job = folder.load(uuid)
    assert job.get_progress_metric("version") == "two"
    assert job.get_progress_metric("pid") != first
    assert job.attempt == 2
    wait_for(lambda: send(folder, 0)[1] == "two", PATIENCE)

    folder.module.write_text("a = (")
    dev.wait_for_line(r"worker \| SyntaxError: '\(' was never closed")
    dev.wait_for_line(r"A changed file starts the worker part again\.")
    folder.write_app("three")
    dev.wait_for_line(READY, 3)
    wait_for(lambda: get(folder, "/send?s=0").startswith("three"), PATIENCE)
    assert version_of(folder) == "three"

    # A fix that is saved while a broken worker starts is seen, too.
    restarts = "has changed: the worker part restarts"
    count = dev.text().count(restarts)
    folder.module.write_text("import time; time.sleep(1); missing = 1 / 0")
    dev.wait_for_line(restarts, count + 1)
    folder.write_app("four")
    wait_for(lambda: version_of(folder) == "four", PATIENCE)
    begun = time.monotonic()
    assert dev.stop(signal.SIGINT) == 0
    # The parts have ended by themselves.
    assert time.monotonic() - begun < 15
    assert "Stopping. A second Ctrl-C" in dev.text()


SERVED = """
[pserve]
watch_files =
  *.yaml
ignore_files =
  */ignored.py
"""


@pytest.mark.timeout(240)
def test_what_counts_as_a_change(folder):
    """Modules, the ini and the files that [pserve] names are watched, and no others. A
    new link, new permissions or a deletion restarts nothing; replacing a file does,
    even with an older one.
    """
    text = f"{folder.ini.read_text()}{SERVED}"
    folder.ini.write_text(text)
    names = ("ignored.py", "gone.py", "other.py", "b.yaml")
    ignored, gone, other, yaml = (folder.path / name for name in names)
    for path in (ignored, gone, other, yaml):
        path.touch()
    source = folder.module.read_text()
    folder.module.write_text(f"import ignored, gone, other\n{source}")

    with running(folder) as command:
        command.wait_for_line(READY)
        (folder.path / "elsewhere").mkdir()
        os.link(folder.module, folder.path / "elsewhere" / "cliapp.py")
        folder.module.chmod(0o600)
        os.utime(ignored, (0, 0))
        gone.unlink()
        # A look at the imported modules, and at all files.
        time.sleep(2)
        assert "has changed" not in command.text()

        for count, path in enumerate((gone, other, yaml), 2):
            path.touch()
            os.utime(path, (0, 0))
            for part in "web", "worker":
                command.wait_for_line(rf"{path} has changed: the {part} part restarts")
            command.wait_for_line(READY, count)
        folder.ini.write_text("a = 1")
        for part in ("web   ", "worker"):
            command.wait_for_line(rf"{part} \| pjobs: \S+ line 1 stands before any")
        folder.ini.write_text(text)
        command.wait_for_line(READY, 5)


#: Makes the start fail as a service that is away would, where Pyramid wraps the error.
AWAY = """
from pyramid.config import Configurator


def fail():
    raise ConnectionError("The service is not up yet.")


def main(global_conf, **settings):
    config = Configurator(settings=settings)
    config.action(None, fail)
    config.commit()
"""


@pytest.mark.timeout(240)
def test_start_that_fails_is_tried_again(folder):
    """A part that cannot start for a reason outside the files is tried again by itself,
    after pauses that grow until a file changes, and the worker does not wait for a web
    server that has failed. After a mistake in the files, a change is awaited, also the
    appearance of a missing module.
    """
    folder.module.write_text(AWAY)
    with running(folder) as command:
        for seconds in 1, 2:
            for part in "web", "worker":
                again = f"The {part} part starts again in {seconds} s, or when a file"
                command.wait_for_line(again)
        assert "has changed" not in command.text()
        folder.module.write_text(f"{AWAY}#")
        command.wait_for_line("The web part starts again in 1 s, or", 2)

        folder.write_app("one")
        folder.module.write_text(f"import missing_part\n{folder.module.read_text()}")
        command.wait_for_line("No module named 'missing_part'")
        command.wait_for_line("A changed file starts the worker part again")
        (folder.path / "missing_part.py").touch()
        command.wait_for_line(READY)


#: Makes a start fail that happens during another one, as an empty ZODB does.
ALONE = """
import os
os.mkdir("starting")
time.sleep(0.5)
os.rmdir("starting")
"""


def test_parts_start_one_after_the_other(folder):
    """The worker starts once the web server is ready, and finds what that created."""
    with folder.module.open("a") as module:
        module.write(ALONE)
    with running(folder) as command:
        command.wait_for_line(READY)
        assert "FileExistsError" not in command.text()


def test_worker_has_the_threads_and_queues_of_the_ini(folder):
    """Those of [pjobs]: with one thread, a job waits for the one before."""
    folder.write_ini("threads = 1\nqueues = default")
    with running(folder) as command:
        command.wait_for_line(READY)
        skipped = folder.send("mail", queue="mail")
        first, second = (folder.send("nap", seconds) for seconds in (1, 0))
        wait_for(lambda: folder.load(second).is_success, PATIENCE)
        assert folder.load(first).is_success
        assert folder.load(skipped).status == "queued"


def test_all_end_together(folder, dev):
    """When one part, or the command itself, is killed, all others end."""
    server = "valkey-server|redis-server"
    found = [pid for pid, text in dev.processes().items() if re.search(server, text)]
    os.kill(found[0], signal.SIGKILL)
    assert dev.end() == 1
    assert "server has ended" in dev.text()
    with running(folder) as other:
        other.wait_for_line(READY)
        begin(folder, 60)
        everything = other.processes()
        assert len(everything) == 5
        os.kill(other.pid, signal.SIGKILL)
        other.end()
        wait_for(lambda: not any(map(is_alive, everything)), PATIENCE)


def test_jobs_may_end_first(folder, dev):
    """A restart, or one Ctrl-C, waits for a job that ignores it. A second does not."""
    source = folder.module.read_text()
    folder.module.write_text(source.replace("notify_shutdown=True", ""))
    dev.wait_for_line(READY, 2)
    uuid = begin(folder, 2)
    os.utime(folder.module)
    dev.wait_for_line(READY, 3)
    job = folder.load(uuid)
    assert (job.status, job.attempt) == ("success", 1)

    begin(folder, 60)
    dev.send_signal(signal.SIGINT)
    dev.wait_for_line("Stopping.")
    wait_for(lambda: not get(folder, "/send?s=0"), PATIENCE)
    assert dev.poll() is None
    assert dev.stop(signal.SIGINT) == 0


def test_server_that_runs_is_used(folder, redis_url):
    """If a server answers at the URL, the command does not start another. It works on
    when nobody reads its output. A closed terminal ends everything.
    """
    folder.use(redis_url)
    reader, writer = os.openpty()
    os.close(reader)
    command = folder.start(str(folder.ini), "word=hello", "dev", output=writer)
    os.close(writer)
    wait_for(lambda: get(folder, "/send?s=0"), PATIENCE)
    wait_for(lambda: version_of(folder) == "one", PATIENCE)
    assert not [text for text in command.processes().values() if "--port" in text]
    assert command.stop(signal.SIGHUP) == 0
    assert not descendants(command.pid)


def test_what_cannot_be_started_is_told(folder, redis_url):
    """A server elsewhere, or with a password, is not replaced: without it, the command
    ends with exit code 3. It ends, too, if another program has the port of the web
    server.
    """
    folder.use(f"redis://:secret@localhost:{free_ports(1)[0]}/0")
    command = folder.start(str(folder.ini), "word=hello", "dev")
    assert command.end() == 3
    assert "worker | pjobs: The broker cannot be reached" in command.text()
    assert "secret" not in command.text()
    folder.use(redis_url)
    with socket.create_server(("127.0.0.1", folder.port)):
        command = folder.start(str(folder.ini), "word=hello", "dev")
        assert command.end() == 1
        assert "already in use" in command.text()
