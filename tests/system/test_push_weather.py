"""Streams in bad weather: ends at any moment, and a server that refuses."""

import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import redis

from pyramid_jobstate import JobStore
from tests.asgi import Server, pushing
from tests.running import Runs, running
from tests.support import wait_for
from tests.web.streaming import PublicRun, flagged, one, put, told
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


@pytest.mark.promise("stream-has-the-last-state")
@pytest.mark.parametrize(
    "count", [40, pytest.param(500, marks=pytest.mark.long)], ids=str
)
@pytest.mark.timeout(600)
def test_no_end_is_missed(redis_url, count):
    """A job that ends at any moment around the request is seen to end."""
    with (
        running(redis_url) as runs,
        pushing(make_config(redis_url), rooms=10) as server,
        ThreadPoolExecutor(8) as pool,
    ):
        ends = [pool.submit(end_one, seed, server, runs) for seed in range(count)]
        for seed, end in enumerate(ends):
            assert end.exception() is None, seed


def test_user_who_may_not_hear_of_changes_polls(server):
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
