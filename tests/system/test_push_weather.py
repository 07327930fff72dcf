"""Streams in bad weather: ends at any moment, and a server that fails."""

from __future__ import annotations

import contextlib
import logging
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pyramid_jobstate import JobStore
from pyramid_jobstate.embedded import EmbeddedServer
from tests.asgi import Exchange, Server, pushing
from tests.jobs import messages
from tests.running import Runs, running
from tests.support import ROOT, frozen, wait_for
from tests.web.streaming import PublicRun, batch, one, put
from tests.webapp import make_config


def told(stream: Exchange) -> list[int]:
    """Return the metrics n of the states of a stream."""
    return [event.state["n"] for event in stream.events if event.name == "message"]


def end_one(seed: int, server: Server, runs: Runs) -> None:
    """End a job from 30 ms before to 60 ms after its stream is asked for."""
    delay = random.Random(seed).uniform(-0.03, 0.06)
    run = runs.start(PublicRun, n=0)

    def end() -> None:
        time.sleep(max(0.0, delay))
        run.report(n=1)
        run.do(lambda job_state: job_state.set_progress_metric("n", 2))
        run.succeed()
        wait_for(lambda: run.is_over)

    thread = threading.Thread(target=end)
    thread.start()
    time.sleep(max(0.0, -delay))
    stream = server.open(one(run.uuid), None)
    thread.join()
    written = time.monotonic()
    stream.wait()
    # A wide bound, since the machine may be busy.
    assert time.monotonic() - written < 5
    assert told(stream)[-1] == 2


@pytest.mark.parametrize(
    "count", [40, pytest.param(500, marks=pytest.mark.long)], ids=str
)
@pytest.mark.timeout(600)
def test_no_end_is_missed(redis_url: str, count: int) -> None:
    """A job that ends at any moment around the request is seen to end."""
    with (
        running(redis_url) as runs,
        pushing(make_config(redis_url), rooms=10) as server,
        ThreadPoolExecutor(8) as pool,
    ):
        ends = [pool.submit(end_one, seed, server, runs) for seed in range(count)]
        for seed, end in enumerate(ends):
            assert end.exception() is None, seed


# A server that fails


@contextlib.contextmanager
def dead(server: EmbeddedServer) -> Iterator[None]:
    """Kill the server. It comes back with what is on its disk."""
    os.kill(server.pid, signal.SIGKILL)
    server.stop()
    yield
    server.start()


Weather = Callable[[EmbeddedServer], contextlib.AbstractContextManager[None]]


@pytest.mark.parametrize(
    ("weather", "latest"),
    [
        (dead, 4.5),
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
