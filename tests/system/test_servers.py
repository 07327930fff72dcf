"""Web servers in processes of their own: streams under ASGI, whole jobs under WSGI."""

import contextlib
import http.client
import json
import re
import socket
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import redis

from pyramid_jobstate import JobStore
from tests.processes import Process, fetch
from tests.streams import StreamClient
from tests.support import free_ports, wait_for
from tests.web.reading import put
from tests.workerprocess import PATIENCE

APP = "tests.asgiapp:app"

#: The commands of the servers, and the seconds in which each ends.
SERVERS = {
    "uvicorn": (
        "uvicorn --port {port} --http h11 --loop asyncio --timeout-graceful-shutdown 5",
        3,
    ),
    "uvicorn[standard]": (
        "uvicorn --port {port} --http httptools --loop uvloop "
        "--timeout-graceful-shutdown 5",
        3,
    ),
    "hypercorn": ("hypercorn --bind 127.0.0.1:{port} --graceful-timeout 2", 5),
    "granian": ("granian --interface asgi --port {port} --workers-kill-timeout 2", 5),
    "gunicorn with workers": (
        "gunicorn --bind 127.0.0.1:{port} --workers 2 --preload --graceful-timeout 5 "
        "--worker-class uvicorn.workers.UvicornWorker",
        6,
    ),
}

#: Where the commands are, and an application that sends jobs, with their actors.
BIN = Path(sys.executable).parent
APP_OF_JOBS = "bench.matrix.app"

#: What the log of a server must not have.
FAULTS = "Traceback|ERROR|Exception|never awaited|was destroyed"

#: What a cancelled connection of hypercorn's leaves in the log, whatever it serves:
#: Python's asyncio asks the task for its exception.
NOISE = (
    r"Exception in callback StreamReaderProtocol.connection_made(?s:.*?)\n"
    r"asyncio.exceptions.CancelledError\n"
)

OWNERS = [f"owner{number}" for number in range(5)]


class Server(Process):
    """A server that runs."""

    port: int

    def is_up(self) -> bool:
        with contextlib.suppress(OSError, http.client.HTTPException):
            return fetch(self.port, "/pid").status == 200
        return False


@contextlib.contextmanager
def running(
    name: str, redis_url: str, folder: Path, limit: int | None = None
) -> Iterator[Server]:
    """Run one of SERVERS until the end of the block, and wait until it answers.

    Parameters:
      limit: The number of descriptors that it may open.
    """
    (port,) = free_ports(1)
    words = SERVERS[name][0].format(port=port).split()
    command = [sys.executable, "-m", *words, APP]
    if limit is not None:
        command = ["sh", "-c", f'ulimit -n {limit}; exec "$0" "$@"', *command]
    log, environ = folder / "server.log", {"STORE_URL": redis_url}
    with Server(command, log, environ=environ) as server:
        server.port = port
        server.wait_until(server.is_up)
        yield server


def put_jobs(client: redis.Redis) -> dict[str, str]:
    """Write a job of each owner, and return their uuids."""
    return {owner: put(JobStore(client), owner=owner) for owner in OWNERS}


@contextlib.contextmanager
def open_streams(
    server: Server, jobs: dict[str, str], each: int
) -> Iterator[list[StreamClient]]:
    """Open streams of each owner's job, which have got their first state."""
    with contextlib.ExitStack() as stack:
        streams = [
            stack.enter_context(StreamClient(server.port, f"/job_state/{uuid}", owner))
            for owner, uuid in jobs.items()
            for _ in range(each)
        ]
        for stream in streams:
            assert stream.is_stream
            assert stream.next().state["job_state"] == "working"
        yield streams


@pytest.mark.parametrize("name", SERVERS)
def test_server_streams_polls_and_stops(name, redis_url, client, tmp_path):
    """Under each server, polls offer streams, which tell of changes and end with it."""
    jobs = put_jobs(client)
    with running(name, redis_url, tmp_path) as server:
        for owner, uuid in jobs.items():
            polled = fetch(server.port, f"/job_state/{uuid}", **{"X-User": owner})
            assert polled.headers["JobState-Stream"] == "1"
            assert polled.headers["Content-Type"] == "application/json"
        with open_streams(server, jobs, 10) as streams:
            # Each process has a connection of its own.
            tracking: Any = client.info("clients")["tracking_clients"]
            assert 1 <= tracking <= 1 + ("workers" in name)
            for uuid in jobs.values():
                client.hset(f"jobstate:{uuid}", "m:miles_run", 5)
            for stream in streams:
                assert stream.next().state["miles_run"] == 5
            begun = time.monotonic()
            server.stop()
            took = time.monotonic() - begun
            for stream in streams:
                assert stream.is_over.wait(5)
        assert took < SERVERS[name][1], server.text()
        log = re.sub(NOISE, "", server.text()) if "hypercorn" in name else server.text()
        assert not re.search(FAULTS, log), log


def test_jobs_run_under_gevent(redis_url, tmp_path):
    """With gunicorn's workers and Dramatiq's command of gevent, a job is sent, polled
    to its end, and another one cancelled while it runs.
    """
    (port,) = free_ports(1)
    web = f"gunicorn --bind 127.0.0.1:{port} --worker-class gevent --workers 2"
    commands = (
        f"{web} {APP_OF_JOBS}:make_app()",
        f"dramatiq-gevent {APP_OF_JOBS} --processes 1",
    )
    environ = {"BROKER_URL": redis_url, "STORE_URL": redis_url}
    headers = {"X-User": "alice", "X-Requested-With": "a script"}

    def ask(path: str, method: str = "GET") -> Any:
        return fetch(port, path, method, **headers).json

    def is_up() -> bool:
        with contextlib.suppress(OSError):
            return ask("/job_state")["items"] == []
        return False

    server, worker = (
        Process([str(BIN / name), *options], tmp_path / f"{name}.log", environ=environ)
        for name, *options in map(str.split, commands)
    )
    with server, worker:
        server.wait_until(is_up)
        short, endless = (
            f"/job_state/{ask(f'/run?miles={miles}', 'POST')['job']['uuid']}"
            for miles in (3, 100_000)
        )
        wait_for(lambda: ask(short)["job_state"] == "success", PATIENCE)
        wait_for(lambda: ask(endless)["job_state"] == "working", PATIENCE)
        assert ask(f"{endless}/cancel", "POST")["job"]["status"] == "cancelling"
        wait_for(lambda: ask(endless)["job"]["status"] == "cancelled", PATIENCE)
        for process in server, worker:
            assert not re.search(FAULTS, process.text()), process.text()


def test_stopping_server_waits_for_views(redis_url, client, tmp_path):
    """A stopping server answers what is in a view, and waits for nobody else."""
    with (
        running("uvicorn", redis_url, tmp_path) as server,
        contextlib.ExitStack() as stack,
    ):
        stack.enter_context(open_streams(server, put_jobs(client), 1))
        for _ in range(3):
            sock = socket.create_connection(("127.0.0.1", server.port), 20)
            stack.enter_context(sock)
            sock.sendall(b"GET /large HTTP/1.1\r\nHost: a\r\n\r\n")
        pool = stack.enter_context(ThreadPoolExecutor(1))
        begun = tmp_path / "begun"
        answer = pool.submit(fetch, server.port, f"/pid?begun={begun}")
        wait_for(begun.exists)
        stopped = time.monotonic()
        server.stop()
        assert time.monotonic() - stopped < 9
        assert answer.result().status == 200


def test_half_of_the_descriptors_are_streams(redis_url, client, tmp_path):
    """A server with 64 descriptors has 32 streams open. More get the poll's answer."""
    jobs = put_jobs(client)
    with running("uvicorn", redis_url, tmp_path, limit=64) as server:
        with contextlib.ExitStack() as stack:
            streams = stack.enter_context(open_streams(server, jobs, 6))
            owner, uuid = next(iter(jobs.items()))
            path = f"/job_state/{uuid}"
            streams += [
                stack.enter_context(StreamClient(server.port, path, owner))
                for _ in range(2)
            ]
            assert all(stream.is_stream for stream in streams)
            for _ in range(20):
                with StreamClient(server.port, path, owner) as refused:
                    assert (refused.status, refused.is_stream) == (200, False)
                    assert json.loads(refused.body)["job_state"] == "working"
                    assert "JobState-Stream" not in refused.headers
            client.hset(f"jobstate:{uuid}", "status", "success")
            assert streams[0].next().state["job_state"] == "success"
        assert server.text().count("The limit of 32 streams") == 1
        server.stop()
        assert not re.search(FAULTS, server.text()), server.text()
