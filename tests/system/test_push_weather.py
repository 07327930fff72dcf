"""Streams in bad weather: ends at any moment, and a server that fails."""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis

from pyramid_jobstate import JobStore
from pyramid_jobstate.embedded import EmbeddedServer
from tests.asgi import Exchange, Server, pushing
from tests.jobs import messages
from tests.running import Run, Runs, running
from tests.support import ROOT, frozen, wait_for
from tests.web.streaming import PublicRun, batch, one, put
from tests.webapp import make_config


def told(stream: Exchange) -> list[int]:
    """Return the metrics n of the states of a stream."""
    return [event.state["n"] for event in stream.events if event.name == "message"]


class Ends:
    """Ends jobs, and asks for their streams at random moments: the end comes from 30 ms
    before to 60 ms after the request.
    """

    def __init__(self, server: Server, runs: Runs) -> None:
        self._server = server
        self._runs = runs
        self.missed: list[int] = []
        self.late: list[float] = []

    def end(self, seed: int) -> None:
        """End a job."""
        dice = random.Random(seed)
        run = self._runs.start(PublicRun, n=0)
        delay = dice.uniform(-0.03, 0.06)
        thread = threading.Thread(target=self._end, args=(run, delay))
        thread.start()
        time.sleep(max(0.0, -delay))
        stream = self._server.open(one(run.uuid), None)
        thread.join()
        written = time.monotonic()
        with contextlib.suppress(TimeoutError):
            stream.wait()
        self.late.append(time.monotonic() - written)
        if not stream.is_done or told(stream)[-1:] != [2]:
            self.missed.append(seed)

    def _end(self, run: Run, delay: float) -> None:
        time.sleep(max(0.0, delay))
        run.report(n=1)
        run.do(lambda job_state: job_state.set_progress_metric("n", 2))
        run.succeed()
        wait_for(lambda: run.is_over)


@pytest.mark.parametrize(
    "count", [40, pytest.param(500, marks=pytest.mark.long)], ids=str
)
@pytest.mark.timeout(600)
def test_no_end_is_missed(redis_url: str, count: int) -> None:
    """A job that ends at any moment around the request is seen to end."""
    seeds: queue.SimpleQueue[int | None] = queue.SimpleQueue()
    for seed in [*range(count), *[None] * 8]:
        seeds.put(seed)
    with (
        running(redis_url) as runs,
        pushing(make_config(redis_url), rooms=10) as server,
    ):
        ends = Ends(server, runs)

        def act() -> None:
            for seed in iter(seeds.get, None):
                ends.end(seed)

        threads = [threading.Thread(target=act) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(ends.late) == count
    assert ends.missed == []
    # A wide bound, since the machine may be busy.
    assert max(ends.late) < 5


# A server that fails


@contextlib.contextmanager
def dead(server: EmbeddedServer) -> Iterator[None]:
    """Kill the server. It comes back with what is on its disk."""
    os.kill(server.pid, signal.SIGKILL)
    server.stop()
    yield
    server.start()


@contextlib.contextmanager
def stopped(server: EmbeddedServer) -> Iterator[None]:
    """Stop the server, which saves its data."""
    server.stop()
    yield
    server.start()


Weather = Callable[[EmbeddedServer], contextlib.AbstractContextManager[None]]


@pytest.mark.system
@pytest.mark.parametrize(
    ("weather", "latest"),
    [
        (dead, 4.5),
        pytest.param(stopped, 4.5, marks=pytest.mark.long),
        # A question each five seconds, and two ticks.
        (frozen, 10.0),
    ],
)
def test_streams_outlive_an_outage(
    tmp_path: Path,
    redis_url: str,
    weather: Weather,
    latest: float,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A store counts as away when it has not answered for two seconds, of which streams
    are told once, and its states are back two seconds after it is. The log says both.
    """
    caplog.set_level(logging.INFO, "pyramid_jobstate")
    arguments = ["--appendonly", "yes", "--appendfsync", "always"]
    with (
        EmbeddedServer(directory=str(tmp_path), arguments=arguments) as durable,
        running(durable.url, 3) as runs,
        pushing(make_config(durable.url)) as server,
    ):
        jobs = [runs.start(n=0) for _ in range(3)]
        alone = server.open(one(jobs[0].uuid))
        both = server.open(batch(*(run.uuid for run in jobs[1:])))
        for run in jobs:
            run.report(n=1)
        wait_for(lambda: told(alone)[-1:] == [1] and told(both).count(1) == 2)
        begun = time.monotonic()
        with weather(durable):
            alone.until(lambda event: event.name == "away")
            assert 1.9 < time.monotonic() - begun < latest
            both.until(lambda event: event.name == "away")
            for run in jobs:
                run.report(n=2)
        ended = time.monotonic()
        wait_for(lambda: told(alone)[-1] == 2 and told(both).count(2) == 2)
        assert time.monotonic() - ended < 5
        for stream in alone, both:
            names = [event.name for event in stream.events]
            assert (names.count("away"), names.count("gone")) == (1, 0)
        said = messages(caplog, "pyramid_jobstate", logging.INFO)
        assert sum("tells of changes is lost. Streams wait" in s for s in said) == 1
        wait_for(lambda: "The job state store tells of changes again." in caplog.text)
        for run in jobs:
            run.succeed()
        for stream in alone, both:
            assert stream.wait().events[-1].state["job_state"] == "success"


@pytest.mark.system
def test_store_that_comes_back_empty_is_written_again(
    server: EmbeddedServer, redis_url: str
) -> None:
    """After a restart without data, a job that its worker writes again goes on."""
    with (
        running(redis_url, 1, store=JobStore(server.url)) as runs,
        pushing(make_config(server.url)) as push,
    ):
        run = runs.start(n=0)
        stream = push.open(one(run.uuid))
        stream.at(0)
        with stopped(server):
            stream.until(lambda event: event.name == "away")
        run.report(n=1)
        wait_for(lambda: told(stream)[-1] == 1)
        run.succeed()
        assert "gone" not in [event.name for event in stream.wait().events]


# Servers that refuse


@pytest.mark.system
def test_user_who_may_not_hear_of_changes_polls(server: EmbeddedServer) -> None:
    """Where an ACL of the server forbids it, pages poll, and no connection is left."""
    with redis.Redis.from_url(server.url) as client:
        client.acl_setuser(
            "jobs", enabled=True, nopass=True, keys=["*"], commands=["+@all"]
        )
        client.execute_command("ACL", "SETUSER", "jobs", "-client|tracking")
        url = server.url.replace("redis://", "redis://jobs:x@")
        job = put(JobStore(client))
        with pushing(make_config(url)) as push:
            push.open(one(job)).wait()
            assert not push.ask(one(job)).is_stream
            assert not [c for c in client.client_list() if "t" in c["flags"]]


WITHOUT_PUSHES = """
import sys
import redis
import hiredis
del hiredis.PushNotification
from tests.asgi import pushing
from tests.webapp import make_config

with pushing(make_config(sys.argv[1])) as server:
    server.open(sys.argv[2]).wait()
    answer = server.ask(sys.argv[2])
    assert (answer.status, answer.is_stream) == (200, False)
"""


@pytest.mark.system
def test_old_hiredis_polls(redis_url: str, store: JobStore) -> None:
    """With a hiredis that cannot tell messages from replies, pages poll, and the log
    says why.
    """
    command = [sys.executable, "-c", WITHOUT_PUSHES, redis_url]
    done = subprocess.run(
        [*command, one(put(store))],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert "the installed hiredis is older than 3.0" in done.stderr
