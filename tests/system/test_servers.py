"""Streams under each ASGI server, in processes of their own."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import h2.connection
import h2.events
import pytest
import redis

from tests.rabbitmq import free_ports
from tests.streams import StreamClient
from tests.support import ROOT, unmeasured, wait_for
from tests.webapp import put_job

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
    "uvicorn with workers": (
        "uvicorn --port {port} --workers 2 --timeout-graceful-shutdown 5",
        4,
    ),
    "hypercorn": ("hypercorn --bind 127.0.0.1:{port} --graceful-timeout 2", 5),
    "hypercorn with workers": (
        "hypercorn --bind 127.0.0.1:{port} --graceful-timeout 2 --workers 2",
        6,
    ),
    "granian": (
        "granian --interface asgi --port {port} --workers-kill-timeout 2",
        5,
    ),
    "granian with workers": (
        "granian --interface asgi --port {port} --workers-kill-timeout 2 --workers 2",
        5,
    ),
}

#: Those that differ most from each other.
SOME = [
    "uvicorn",
    pytest.param("hypercorn", marks=pytest.mark.long),
    pytest.param("granian", marks=pytest.mark.long),
]

#: What the log of a server must not have.
FAULTS = "Traceback|ERROR|Exception|never awaited|was destroyed"

#: What a cancelled connection of hypercorn's leaves in the log, whatever it serves:
#: Python's asyncio asks the task for its exception.
NOISE = (
    r"Exception in callback StreamReaderProtocol.connection_made(?s:.*?)\n"
    r"asyncio.exceptions.CancelledError\n"
)

OWNERS = [f"owner{number}" for number in range(5)]


class Process:
    """A server that runs.

    Attributes:
      port: Where it listens.
    """

    def __init__(
        self, process: subprocess.Popen[bytes], port: int, log_path: Path
    ) -> None:
        self._process = process
        self._log_path = log_path
        self.port = port
        self.pid = process.pid

    @property
    def log(self) -> str:
        return self._log_path.read_text("utf-8", "replace")

    def stop(self, timeout: float = 20) -> float:
        """Stop it as service managers do, and return how long it took."""
        begun = time.monotonic()
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(timeout)
        return time.monotonic() - begun

    def get(self, path: str, user: str | None = None) -> http.client.HTTPResponse:
        """Return the answer to a request."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        connection.request("GET", path, headers={"X-User": user} if user else {})
        response = connection.getresponse()
        response.read()
        connection.close()
        return response

    @property
    def is_up(self) -> bool:
        assert self._process.poll() is None, self.log
        with contextlib.suppress(OSError, http.client.HTTPException):
            return self.get("/pid").status == 200
        return False


@contextlib.contextmanager
def running(
    command: str,
    redis_url: str,
    folder: Path,
    app: str = APP,
    limit: int | None = None,
    **environ: str,
) -> Iterator[Process]:
    """Run a server until the end of the block, and wait until it answers.

    Parameters:
      command: Its module, and its arguments without the application.
      limit: The number of descriptors that it may open.
      environ: More variables of its environment.
    """
    (port,) = free_ports(1)
    module, *arguments = command.format(port=port).split()
    log_path = folder / "server.log"
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments, app],
            cwd=ROOT,
            env={**unmeasured(), "STORE_URL": redis_url, **environ},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=None
            if limit is None
            else lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit)),
        )
    try:
        server = Process(process, port, log_path)
        wait_for(lambda: server.is_up)
        yield server
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def put_jobs(client: redis.Redis) -> dict[str, str]:
    """Write a job of each owner, and return their uuids."""
    return {owner: put_job(client, owner=json.dumps(owner)) for owner in OWNERS}


@contextlib.contextmanager
def open_streams(
    server: Process, jobs: dict[str, str], each: int
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


@pytest.mark.parametrize(
    "name",
    [
        # The test of HTTP/2 runs with hypercorn.
        pytest.param(name, marks=pytest.mark.long)
        if "workers" in name or name == "hypercorn"
        else name
        for name in SERVERS
    ],
)
def test_server_streams_polls_and_stops(
    name: str, redis_url: str, client: redis.Redis, tmp_path: Path
) -> None:
    """Under each server, a poll says that a stream could be had, 50 streams tell of a
    change, and end with the server within a few seconds. Its log has no error.
    """
    command, seconds = SERVERS[name]
    jobs = put_jobs(client)
    with running(command, redis_url, tmp_path) as server:
        for owner, uuid in jobs.items():
            polled = server.get(f"/job_state/{uuid}", owner)
            assert polled.headers["JobState-Stream"] == "1"
            assert polled.headers["Content-Type"] == "application/json"
        with open_streams(server, jobs, 10) as streams:
            for uuid in jobs.values():
                client.hset(f"jobstate:{uuid}", "m:miles_run", 5)
            for stream in streams:
                assert stream.next().state["miles_run"] == 5
            took = server.stop()
            for stream in streams:
                assert stream.is_over.wait(5)
        assert took < seconds, server.log
        log = re.sub(NOISE, "", server.log) if "hypercorn" in name else server.log
        assert not re.search(FAULTS, log), log


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(SERVERS["uvicorn with workers"][0], marks=pytest.mark.long),
        pytest.param(SERVERS["granian with workers"][0], marks=pytest.mark.long),
        "gunicorn --bind 127.0.0.1:{port} --workers 2 --preload --graceful-timeout 5 "
        "--worker-class uvicorn.workers.UvicornWorker",
    ],
    ids=["uvicorn", "granian", "gunicorn"],
)
def test_each_worker_process_streams(
    command: str, redis_url: str, client: redis.Redis, tmp_path: Path
) -> None:
    """With several worker processes, forked or not, each feeds its own streams, with a
    connection of its own.
    """
    jobs = put_jobs(client)
    with running(command, redis_url, tmp_path) as server:
        with contextlib.ExitStack() as stack:

            def feed_both() -> bool:
                streams = stack.enter_context(open_streams(server, jobs, 1))
                for owner, uuid in jobs.items():
                    server.get(f"/job_state/{uuid}", owner)
                assert all(stream.is_stream for stream in streams)
                return tracking(client) >= 2

            wait_for(feed_both)
            assert tracking(client) == 2
            assert server.stop() < 6, server.log
        assert not re.search(FAULTS, server.log), server.log


def tracking(client: redis.Redis) -> int:
    """Return how many connections of the store track what they have read."""
    found: int = client.info("clients")["tracking_clients"]
    return found


def test_killed_server_leaves_nothing_behind(
    redis_url: str, client: redis.Redis, tmp_path: Path
) -> None:
    """A server that is killed leaves no connection at the store, and its streams
    end.
    """
    jobs = put_jobs(client)
    before = len(client.client_list())
    with running(SERVERS["uvicorn"][0], redis_url, tmp_path) as server:
        with open_streams(server, jobs, 2) as streams:
            assert tracking(client) == 1
            assert len(client.client_list()) > before
            os.kill(server.pid, signal.SIGKILL)
            for stream in streams:
                assert stream.is_over.wait(5)
        wait_for(lambda: len(client.client_list()) == before)
        assert tracking(client) == 0


def test_stopping_server_waits_for_a_slow_view(
    redis_url: str, client: redis.Redis, tmp_path: Path
) -> None:
    """A request that is in its view when uvicorn is stopped gets its answer, while
    streams end.
    """
    jobs = put_jobs(client)
    with running(SERVERS["uvicorn"][0], redis_url, tmp_path) as server:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
        with open_streams(server, jobs, 1), contextlib.closing(connection):
            connection.request("GET", "/pid?sleep=2")
            time.sleep(0.2)
            assert server.stop() < 5
            assert connection.getresponse().read() == b"%d" % server.pid


@pytest.mark.parametrize("name", SOME)
def test_downloads_do_not_keep_a_server_from_stopping(
    name: str, redis_url: str, tmp_path: Path
) -> None:
    """A server ends in time though clients do not read their downloads."""
    command = SERVERS[name][0].replace("shutdown 5", "shutdown 1")
    with (
        running(command, redis_url, tmp_path) as server,
        contextlib.ExitStack() as stack,
    ):
        for _ in range(12):
            sock = socket.create_connection(("127.0.0.1", server.port), 20)
            stack.enter_context(sock)
            sock.sendall(b"GET /large HTTP/1.1\r\nHost: a\r\n\r\n")
        # By now each thread waits for its client.
        time.sleep(0.5)
        assert server.stop() < 6


@pytest.mark.parametrize("name", SOME)
def test_clients_that_go_leave_no_thread_behind(
    name: str, redis_url: str, tmp_path: Path
) -> None:
    """More clients than there are threads may leave amid their downloads."""
    with running(SERVERS[name][0], redis_url, tmp_path) as server:
        for _ in range(15):
            with socket.create_connection(("127.0.0.1", server.port), 20) as sock:
                sock.sendall(b"GET /large HTTP/1.1\r\nHost: a\r\n\r\n")
                assert sock.recv(100_000)
        for _ in range(10):
            assert server.get("/pid").status == 200
        server.stop()
        assert not re.search(FAULTS, server.log), server.log


@pytest.mark.long
def test_granian_needs_room_for_other_requests(
    redis_url: str, client: redis.Redis, tmp_path: Path
) -> None:
    """With a backpressure above max_streams, granian answers beside as many streams as
    may be open. (At its limit, it answers nobody.)
    """
    jobs = put_jobs(client)
    command = SERVERS["granian"][0] + " --backpressure 15"
    with (
        running(command, redis_url, tmp_path, MAX_STREAMS="10") as server,
        open_streams(server, jobs, 2),
    ):
        for owner, uuid in jobs.items():
            with StreamClient(server.port, f"/job_state/{uuid}", owner) as refused:
                assert (refused.status, refused.is_stream) == (200, False)
            assert server.get("/pid").status == 200


# HTTP/2


class Http2:
    """A connection that speaks HTTP/2 from its first byte, and one request on it."""

    def __init__(self, port: int, path: str, *headers: tuple[str, str]) -> None:
        self.sock = socket.create_connection(("127.0.0.1", port), 20)
        self.connection = h2.connection.H2Connection()
        self.connection.initiate_connection()
        first = [(":method", "GET"), (":path", path), (":scheme", "http")]
        first.append((":authority", "a.example"))
        self.connection.send_headers(1, [*first, *headers], end_stream=True)
        self.sock.sendall(self.connection.data_to_send())
        self.headers: dict[bytes, bytes] = {}
        self.body = b""
        self.is_over = False

    def read(self, wanted: bytes = b"") -> None:
        """Receive until the body has something in it, or to its end."""
        while not self.is_over and not (wanted and wanted in self.body):
            data = self.sock.recv(65536)
            self.is_over = not data
            for event in self.connection.receive_data(data):
                if isinstance(event, h2.events.ResponseReceived):
                    self.headers = dict(event.headers)
                elif isinstance(event, h2.events.DataReceived):
                    self.body += event.data
                elif isinstance(
                    event, (h2.events.StreamEnded, h2.events.ConnectionTerminated)
                ):
                    self.is_over = True
            with contextlib.suppress(OSError):
                self.sock.sendall(self.connection.data_to_send())


def test_http2_streams(redis_url: str, client: redis.Redis, tmp_path: Path) -> None:
    """Over HTTP/2, a poll offers a stream, and a stream brings each change and ends
    with its job.
    """
    uuid = put_job(client)
    path, user = f"/job_state/{uuid}", ("x-user", "alice")
    with running(SERVERS["hypercorn"][0], redis_url, tmp_path) as server:
        poll = Http2(server.port, path, user)
        poll.read()
        assert poll.headers[b"jobstate-stream"] == b"1"
        assert json.loads(poll.body)["job"]["uuid"] == uuid
        stream = Http2(server.port, path, user, ("accept", "text/event-stream"))
        stream.read(b"\ndata: {")
        assert stream.headers[b"content-type"].startswith(b"text/event-stream")
        client.hset(f"jobstate:{uuid}", "m:miles_run", 5)
        stream.read(b'"miles_run":5')
        assert not stream.is_over
        client.hset(f"jobstate:{uuid}", "status", "success")
        stream.read()
        assert b'"job_state":"success"' in stream.body
        for each in poll, stream:
            each.sock.close()
        assert server.stop() < 6
        assert not re.search(FAULTS, re.sub(NOISE, "", server.log)), server.log


# Descriptors


def test_half_of_the_descriptors_are_streams(
    redis_url: str, client: redis.Redis, tmp_path: Path
) -> None:
    """A server with 64 descriptors has 32 streams open. Further requests get the poll's
    answer, which the log says once.
    """
    jobs = put_jobs(client)
    command = SERVERS["uvicorn"][0]
    with running(command, redis_url, tmp_path, limit=64) as server:
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
        assert server.log.count("The limit of 32 streams") == 1
        server.stop()
        assert not re.search(FAULTS, server.log), server.log


@contextlib.contextmanager
def no_descriptors_left(server: Process) -> Iterator[None]:
    """Let a server open no more descriptors for a while."""
    usual = resource.prlimit(server.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (3, usual[1]))
    try:
        yield
    finally:
        resource.prlimit(server.pid, resource.RLIMIT_NOFILE, usual)


def test_poll_is_answered_without_descriptors(
    redis_url: str, client: redis.Redis, tmp_path: Path
) -> None:
    """The first request for a stream, when the process can open no more descriptors,
    gets the poll's answer. Later ones get a stream.
    """
    uuid = put_job(client)
    path = f"/job_state/{uuid}"
    with running(SERVERS["uvicorn"][0], redis_url, tmp_path) as server:
        # A list uses the store, and has nothing to do with streams.
        assert server.get("/job_state", "alice").status == 200
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
        with contextlib.closing(connection):
            connection.request("GET", "/pid")
            connection.getresponse().read()
            with no_descriptors_left(server):
                connection.request(
                    "GET",
                    path,
                    headers={"X-User": "alice", "Accept": "text/event-stream"},
                )
                response = connection.getresponse()
                assert response.status == 200
                assert response.headers["Content-Type"] == "application/json"
                response.read()

        def has_stream() -> bool:
            with StreamClient(server.port, path) as stream:
                return stream.is_stream and bool(stream.next().state)

        wait_for(has_stream)
        server.stop()


def test_store_that_cannot_be_reconnected_is_away(
    redis_url: str, client: redis.Redis, tmp_path: Path
) -> None:
    """A hub that can open no descriptor for a lost connection tries on, as in an
    outage: its stream stays open, and gets the newest state afterwards.
    """
    uuid = put_job(client)
    with (
        running(SERVERS["uvicorn"][0], redis_url, tmp_path) as server,
        StreamClient(server.port, f"/job_state/{uuid}") as stream,
    ):
        assert stream.next().state
        wait_for(lambda: tracking(client) == 1)
        with no_descriptors_left(server):
            client.client_kill_filter(_type="normal", skipme=True)
            stream.until(lambda event: event.name == "away", 10)
        client.hset(f"jobstate:{uuid}", "m:miles_run", 5)
        stream.until(
            lambda event: event.name == "message" and "miles_run" in event.state, 10
        )
        assert "The job streams of this process end" not in server.log


# Many


def see_all_end(count: int, burners: int, redis_url: str, folder: Path) -> None:
    """Open streams of as many jobs beside processes that use up the processor, and see
    that each gets the end of its job.
    """
    with contextlib.ExitStack() as stack:
        client = stack.enter_context(redis.Redis.from_url(redis_url))
        server = stack.enter_context(
            running(SERVERS["uvicorn[standard]"][0], redis_url, folder)
        )
        for _ in range(burners):
            burner = subprocess.Popen([sys.executable, "-c", "while True: pass"])
            stack.callback(burner.wait)
            stack.callback(burner.kill)
        streams = {}
        for number in range(count):
            owner = f"owner{number}"
            uuid = put_job(client, owner=json.dumps(owner))
            stream = StreamClient(server.port, f"/job_state/{uuid}", owner)
            streams[uuid] = stack.enter_context(stream)
            assert stream.is_stream
        for uuid in streams:
            client.hset(
                f"jobstate:{uuid}", mapping={"status": "success", "m:miles_run": 26}
            )
        for stream in streams.values():
            events = [e for e in stream.rest(60) if e.name == "message"]
            assert events[-1].state["job_state"] == "success"
            assert events[-1].state["miles_run"] == 26


def test_100_streams_get_their_ends_under_contention(
    redis_url: str, tmp_path: Path
) -> None:
    """With a busy processor, each of 100 streams gets the end of its job."""
    see_all_end(100, 1, redis_url, tmp_path)


@pytest.mark.long
@pytest.mark.timeout(600)
def test_2000_streams_get_their_ends_under_contention(
    redis_url: str, tmp_path: Path
) -> None:
    """With a busy processor, each of 2,000 streams gets the end of its job."""
    see_all_end(2000, os.cpu_count() or 1, redis_url, tmp_path)
