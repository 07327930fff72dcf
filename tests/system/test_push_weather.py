"""Streams in bad weather: ends at any moment, a server that fails or refuses."""

from __future__ import annotations

import logging
import os
import random
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import redis

from pyramid_jobstate import JobStore
from pyramid_jobstate.embedded import EmbeddedServer
from tests.asgi import Server, pushing
from tests.jobs import messages
from tests.running import Runs, running
from tests.support import wait_for
from tests.web.streaming import PublicRun, flagged, one, put, report, told
from tests.webapp import make_config


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


def test_streams_outlive_an_outage(
    tmp_path: Path, redis_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Streams hear once that the store is away, and get its states when it is back."""
    caplog.set_level(logging.INFO, "pyramid_jobstate")
    arguments = ["--appendonly", "yes", "--appendfsync", "always"]
    with (
        EmbeddedServer(directory=str(tmp_path), arguments=arguments) as durable,
        running(durable.url) as runs,
        pushing(make_config(durable.url)) as server,
    ):
        run = runs.start(n=0)
        stream = server.open(one(run.uuid))
        report(run, 1, stream)
        begun = time.monotonic()
        os.kill(durable.pid, signal.SIGKILL)
        stream.until(lambda event: event.name == "away")
        assert time.monotonic() - begun > 1.9
        run.report(n=2)
        durable.stop()
        durable.start()
        wait_for(lambda: told(stream)[-1] == 2)
        names = [event.name for event in stream.events]
        assert (names.count("away"), names.count("gone")) == (1, 0)
        said = messages(caplog, "pyramid_jobstate", logging.INFO)
        assert sum("tells of changes is lost. Streams wait" in s for s in said) == 1
        wait_for(lambda: "The job state store tells of changes again." in caplog.text)
        run.succeed()
        assert stream.wait().events[-1].state["job_state"] == "success"


def test_user_who_may_not_hear_of_changes_polls(server: EmbeddedServer) -> None:
    """Where an ACL of the server forbids it, pages poll, and no connection is left."""
    with redis.Redis.from_url(server.url) as client:
        rights = "on nopass allkeys allcommands -client|tracking"
        client.execute_command("ACL SETUSER", "jobs", *rights.split())
        url = server.url.replace("redis://", "redis://jobs:x@")
        path = one(put(JobStore(client)))
        with pushing(make_config(url)) as push:
            push.open(path).wait()
            assert not push.ask(path).is_stream
            assert not flagged(client)
