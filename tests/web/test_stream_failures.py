"""What a failure, a fork or the end of streams leaves behind."""

import contextlib
import gc
import os
import socket
import threading
import time
import tracemalloc
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
import redis

from pyramid_jobstate import JobStore
from pyramid_jobstate.asgi import asgi_app
from tests.asgi import FEEDS, LINKS, Server, pushing, serving
from tests.jobs import Gate
from tests.running import Runs
from tests.support import in_child, wait_for
from tests.web.streaming import (
    UntimedRun,
    flagged,
    follow,
    one,
    pooling,
    put,
    report,
    see_an_end,
    wait_until,
)
from tests.webapp import make_config


@pytest.fixture
def server(redis_url: str) -> Iterator[Server]:
    """An application that has logged nothing yet."""
    with pushing(make_config(redis_url)) as server:
        yield server


@contextlib.contextmanager
def failing(
    server: Server, number: int, error: BaseException
) -> Iterator[threading.Event]:
    """Have the thread that feeds the streams of a server fail when it looks at the
    clock for the `number`-th time. Give an event that is set then.
    """
    clock, left, failed = time.monotonic, [number], threading.Event()

    def fail() -> float:
        thread = threading.current_thread()
        if thread.name == FEEDS and thread not in server.others and not failed.is_set():
            left[0] -= 1
            if left[0] == 0:
                failed.set()
                raise error
        return clock()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "monotonic", fail)
        yield failed


def test_failure_ends_all_streams_and_the_next_is_served(
    server: Server, runs: Runs, caplog: pytest.LogCaptureFixture
) -> None:
    """A failure of the thread is logged once, ends all streams, and starts another."""
    run = runs.start(n=0)
    follow(server, run).go()
    for number in range(1, 12):
        caplog.clear()
        error = ZeroDivisionError(f"bug {number}")
        with failing(server, number, error) as failed:
            streams = [server.open(one(run.uuid)) for _ in range(2)]
            run.report(n=number)
            while not failed.wait(0.005):
                streams.append(server.open(one(run.uuid)))
                streams.pop(0).go()
        for stream in streams:
            # One that came after the failure goes on.
            wait_until(True, lambda s: s.is_done or s.events != [], stream)
            stream.go().wait()
        # The thread may not have come to its log yet.
        wait_until(True, lambda: any(r.exc_info for r in caplog.records))
        errors = [r for r in caplog.records if r.exc_info]
        ended = "The job streams of this process end. Clients reconnect."
        assert [r.getMessage() for r in errors] == [ended]
        assert errors[0].exc_info is not None
        assert errors[0].exc_info[1] is error
        report(run, -number, follow(server, run, number))
        server.close()


def test_connection_that_comes_after_a_failure(redis_url: str, runs: Runs) -> None:
    """A connection that comes after a failure is given back with the next stream."""
    run, gate = runs.start(UntimedRun, n=0), Gate()

    def wait(connection: Any, name: str) -> None:
        if name == LINKS:
            gate.wait()

    with pooling(redis_url, wait) as (server, pool):
        stream = server.open(one(run.uuid))
        gate.wait_for_job()
        (link,) = (t for t in server.threads if t.name == LINKS)
        with failing(server, 1, ZeroDivisionError("bug")):
            # Another stream wakes the thread.
            server.open(one(run.uuid)).go()
            stream.wait()
        gate.open()
        link.join()
        follow(server, run)
        assert pool.lent == 1


@pytest.mark.system
def test_streams_that_come_and_go_leave_nothing(
    server: Server, runs: Runs, store: JobStore
) -> None:
    """Memory does not grow with the number of jobs that were shown."""
    stream = follow(server, runs.start(n=0))

    def come_and_go() -> int:
        with serving(server.app) as other:
            for _ in range(40):
                other.watch(one(put(store))).go().wait()
        gc.collect()
        return tracemalloc.get_traced_memory()[0]

    come_and_go()
    tracemalloc.start()
    try:
        # Dictionaries grow with the most jobs at a time. A leak grows in each round.
        sizes = [come_and_go() for _ in range(5)]
    finally:
        tracemalloc.stop()
    # A job that is kept takes some thousand bytes.
    assert min(after - before for before, after in pairwise(sizes)) < 40 * 800
    assert not stream.is_done


# Forks


def addresses() -> set[str]:
    """Return the own addresses of the sockets of this process."""
    found = set()
    for number in os.listdir("/proc/self/fd"):
        with (
            contextlib.suppress(OSError, ValueError),
            socket.socket(fileno=os.dup(int(number))) as sock,
        ):
            host, port, *_ = sock.getsockname()
            found.add(f"{host}:{port}")
    return found


@pytest.mark.system
def test_forked_child_has_streams_of_its_own(
    redis_url: str, client: redis.Redis, runs: Runs
) -> None:
    """A child closes its copies of connections, and has streams of its own."""
    run, others = runs.start(n=0), flagged(client)
    with pushing(make_config(redis_url), rooms=2) as server:
        stream, other = follow(server, run), follow(server, run, 2)
        (link,) = flagged(client, *others)
        assert link["addr"] in addresses()

        def look() -> str:
            has_link = link["addr"] in addresses()
            app = asgi_app(server.config.make_wsgi_app())
            with serving(app) as own, redis.Redis.from_url(redis_url) as mine:
                first, second = (own.open(one(run.uuid)) for _ in range(2))
                began = first.at(0).state["n"], second.at(0).state["n"]
                wait_for(lambda: len(flagged(mine, *others)) == 2)
                first.go().wait()
                return f"{has_link} {began} {see_an_end(own, JobStore(redis_url))}"

        assert in_child(look) == "False (2, 2) ['queued', 'cancelled']"
        report(run, 5, stream, other)
        wait_for(lambda: len(flagged(client, *others)) == 1)
