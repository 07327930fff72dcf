"""What a stream costs, beside polling the same server: uvicorn in a process of its own,
with a core of its own.
"""

from __future__ import annotations

import contextlib
import os
import resource
import selectors
import socket
import statistics
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator

from pyramid_jobstate import JobStore
from pyramid_jobstate.embedded import EmbeddedServer
from pyramid_jobstate.job.record import Update
from pyramid_jobstate.store.jobstore import records_of
from tests.support import ROOT, wait_for

from .jobs import OWNER, running_job
from .push_writer import INFO, TOKEN, begin, fields, owner_of
from .timing import Row, Table, side_by_side

#: The jobs of the table, the viewers of each, and how often it changes in a second.
JOBS, VIEWERS, RATE = 1000, 2, 10.0

#: Seconds for which they watch.
SECONDS = 4.0

#: The streams that are open beside other requests.
BESIDE = 500

#: What a core should bear, at one update a second for each viewer.
GOAL = 25_000


class Server:
    """A process that serves the application of push_app.

    Attributes:
      port: Its port.
    """

    def __init__(self, pid: int, port: int) -> None:
        self.port = port
        self._pid = pid

    def cpu(self) -> float:
        """Return the seconds of CPU time that it has used."""
        with open(f"/proc/{self._pid}/stat") as stat:
            words = stat.read().rpartition(")")[2].split()
        return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")

    def memory(self) -> int:
        """Return the bytes that it has in memory."""
        with open(f"/proc/{self._pid}/statm") as statm:
            return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class Viewers:
    """Clients of the server, read by one thread.

    Parameters:
      server: The server.
      owner: Who they are, by default the owner of each job.

    Attributes:
      events: How many states they have been told.
      ages: How old these were, in seconds.
    """

    def __init__(self, server: Server, owner: str | None = None) -> None:
        self._server = server
        self._owner = owner
        self._selector = selectors.DefaultSelector()
        self._started: set[socket.socket] = set()
        self._sockets: list[socket.socket] = []
        self.events = 0
        self.ages: list[float] = []

    def open(self, uuids: list[str], accept: str) -> None:
        """Open a connection for each uuid, and wait for the first state of each."""
        for uuid_ in uuids:
            sock = socket.create_connection(("127.0.0.1", self._server.port))
            self._sockets.append(sock)
            sock.setblocking(False)
            self._selector.register(sock, selectors.EVENT_READ, uuid_)
            self.ask(sock, uuid_, accept)
            # As browsers come, a few at a time.
            while len(self._sockets) - len(self._started) > 20:
                self.read(0.01)
        wait_for(lambda: self.read(0.01) and len(self._started) == len(self._sockets))
        self.events = 0
        self.ages.clear()

    def ask(self, sock: socket.socket, uuid_: str, accept: str) -> None:
        sock.sendall(
            f"GET /job_state/{uuid_} HTTP/1.1\r\nHost: localhost\r\n"
            f"X-User: {self._owner or owner_of(uuid_)}\r\n"
            f"Accept: {accept}\r\n\r\n".encode()
        )

    def read(self, timeout: float) -> bool:
        """Read what has arrived."""
        for key, _ in self._selector.select(timeout):
            sock = key.fileobj
            assert isinstance(sock, socket.socket)
            data = sock.recv(65536)
            now = time.time()
            for part in data.split(b'"told":')[1:]:
                self._started.add(sock)
                self.events += 1
                self.ages.append(now - float(part.partition(b",")[0]))
        return True

    def poll(self, seconds: float) -> None:
        """Have all of them poll in turn, as fast as the server answers."""
        waiting = list(self._selector.get_map().values())
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            for key in waiting[:20]:
                assert isinstance(key.fileobj, socket.socket)
                self.ask(key.fileobj, key.data, "application/json")
            wanted = self.events + len(waiting[:20])
            while self.events < wanted:
                self.read(0.1)
            waiting = waiting[20:] + waiting[:20]

    def close(self) -> None:
        for sock in self._sockets:
            sock.close()
        self._selector.close()


@contextlib.contextmanager
def serving(redis: EmbeddedServer) -> Iterator[Server]:
    """Serve the application on the first core, and everything else on the others."""
    cores = sorted(os.sched_getaffinity(0))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    # Its own loop and parser are those that uvicorn[standard] installs.
    process = subprocess.Popen(
        [
            *("taskset", "-c", str(cores[0]), sys.executable, "-m", "uvicorn"),
            *(f"--port={port}", "--no-access-log", "--log-level=warning"),
            *("--timeout-graceful-shutdown=1", "bench.push_app:app"),
        ],
        cwd=ROOT,
        env={**os.environ, "JOBSTATE_REDIS_URL": redis.url},
    )
    os.sched_setaffinity(0, cores[1:] or cores)
    os.sched_setaffinity(redis.pid, cores[1:] or cores)
    try:
        wait_for(lambda: _answers(port))
        yield Server(process.pid, port)
    finally:
        process.terminate()
        process.wait()
        os.sched_setaffinity(0, cores)
        os.sched_setaffinity(redis.pid, cores)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def _answers(port: int) -> bool:
    with contextlib.suppress(OSError):
        socket.create_connection(("127.0.0.1", port)).close()
        return True
    return False


def measure(server: EmbeddedServer) -> Table:
    store = JobStore(server.url)
    uuids = [str(uuid.uuid4()) for _ in range(JOBS)]
    begin(store, uuids)
    with serving(server) as web:
        rows = [_unwatched(server, store, web)]
        polls = _polls_a_second(web, uuids[:200])
        rows += _streams(server, web, uuids, polls)
        rows += _beside(web, uuids[:BESIDE])
        rows += _freshness(store, web)
    notes = [
        "A poll counts as one viewer with a period of one second. Memory and CPU time "
        "are those of the server's process."
    ]
    return Table("A stream, under uvicorn", rows, notes)


def _polls_a_second(web: Server, uuids: list[str]) -> float:
    """Return how many polls a second a core answers."""
    viewers = Viewers(web)
    viewers.open(uuids, "application/json")
    before = web.cpu()
    viewers.poll(2.0)
    polls = viewers.events / (web.cpu() - before)
    viewers.close()
    return polls


def _streams(
    redis: EmbeddedServer, web: Server, uuids: list[str], polls: float
) -> list[Row]:
    viewers = Viewers(web)
    memory = web.memory()
    viewers.open(uuids * VIEWERS, "text/event-stream")
    count = len(uuids) * VIEWERS
    each = (web.memory() - memory) / count / 1024
    before = web.cpu()
    writer = subprocess.Popen(
        [sys.executable, "-m", "bench.push_writer", str(SECONDS), str(RATE)],
        cwd=ROOT,
        env={**os.environ, "JOBSTATE_REDIS_URL": redis.url},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert writer.stdin is not None
    writer.stdin.write("\n".join(uuids))
    writer.stdin.close()
    while writer.poll() is None:
        viewers.read(0.05)
    for _ in range(20):
        viewers.read(0.05)
    used = web.cpu() - before
    a_core = viewers.events / used
    micros = 1e6 * used / viewers.events
    viewers.close()
    return [
        Row(
            f"viewers a core, two a job, with an update a second / {GOAL:,}",
            a_core / GOAL,
            at_least=1.0,
            note=f"{a_core:,.0f} viewers, {micros:.0f} µs an event, "
            f"{viewers.events:,} events",
        ),
        Row(
            "viewers a core / clients a core that poll once a second",
            a_core / polls,
            at_least=10.0,
            note=f"{a_core:,.0f} / {polls:,.0f}",
        ),
        Row(
            "memory of a stream / 20 KiB",
            each / 20,
            at_most=1.0,
            note=f"{each:.1f} KiB each, {count:,} streams",
        ),
    ]


def _beside(web: Server, uuids: list[str]) -> list[Row]:
    """Time plain requests, without streams and beside many."""
    sock = socket.create_connection(("127.0.0.1", web.port))

    def plain(count: int) -> None:
        for _ in range(count):
            sock.sendall(b"GET /plain HTTP/1.1\r\nHost: localhost\r\n\r\n")
            answer = sock.recv(65536)
            while not answer.endswith(b"plain"):
                answer += sock.recv(65536)

    (alone,) = side_by_side((100, plain))
    viewers = Viewers(web)
    viewers.open(uuids, "text/event-stream")
    (beside,) = side_by_side((100, plain))
    viewers.close()
    sock.close()
    ratio = statistics.median(beside.rounds) / statistics.median(alone.rounds)
    return [
        Row(
            f"a plain request beside {BESIDE} open streams / without",
            ratio,
            at_most=1.15,
            note=f"{beside} / {alone}",
        )
    ]


def _freshness(store: JobStore, web: Server) -> list[Row]:
    """Measure from a worker's call to the event in a client."""
    with running_job(store) as job_state:
        job_state.set_progress_metric("told", time.time())
        job_state.flush()
        viewers = Viewers(web, OWNER)
        viewers.open([job_state.uuid], "text/event-stream")
        for i in range(100):
            # Not in step with the recorder's interval.
            end = time.monotonic() + 0.1 + i % 10 * 0.0137
            job_state.set_progress_metric("told", time.time())
            while (left := end - time.monotonic()) > 0:
                viewers.read(left)
        viewers.close()
    ages = sorted(viewers.ages)
    p50, p95 = ages[len(ages) // 2], ages[len(ages) * 95 // 100]
    return [
        Row(
            "age of an event at its client, median / 80 ms",
            p50 / 0.08,
            at_most=1.0,
            note=f"{1000 * p50:.0f} ms, {len(ages)} events",
        ),
        Row(
            "age of an event at its client, 95 % / 150 ms",
            p95 / 0.15,
            at_most=1.0,
            note=f"{1000 * p95:.0f} ms",
        ),
    ]


def _unwatched(redis: EmbeddedServer, store: JobStore, web: Server) -> Row:
    """Time the writes of jobs that nobody watches, without and beside a hub that
    watches others.
    """
    uuids = [str(uuid.uuid4()) for _ in range(100)]
    begin(store, uuids)
    seq = 1

    def write(count: int) -> None:
        nonlocal seq
        for _ in range(count):
            seq += 1
            records_of(store).write(
                [Update(u, TOKEN, seq, INFO, fields(seq)) for u in uuids]
            )

    (alone,) = side_by_side((20, write))
    viewers = Viewers(web)
    other = str(uuid.uuid4())
    begin(store, [other])
    viewers.open([other], "text/event-stream")
    (beside,) = side_by_side((20, write))
    viewers.close()
    ratio = statistics.median(beside.rounds) / statistics.median(alone.rounds)
    return Row(
        "a write of 100 jobs that nobody watches, beside a hub that watches another / "
        "without any",
        ratio,
        at_most=1.05,
        note=f"{beside} / {alone}",
    )
