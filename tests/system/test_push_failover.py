"""Streams of jobs whose server changes: failovers by Sentinel, and a Cluster."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import redis

from pyramid_jobstate import JobStore
from pyramid_jobstate.embedded import EmbeddedServer
from tests.asgi import Exchange, pushing
from tests.cluster import PRIMARIES, running_cluster
from tests.jobs import messages
from tests.running import Run, running
from tests.store.test_sentinel import sentinels
from tests.support import wait_for
from tests.webapp import make_config

OUTAGE = [
    "The connection on which the job state store tells of changes is lost",
    "The job state store tells of changes again",
]


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return what was logged of streams, without the reasons."""
    texts = messages(caplog, "pyramid_jobstate", logging.INFO)
    return [text.partition(".")[0] for text in texts if "tells of changes" in text]


def last(stream: Exchange, run: Run) -> int:
    """Return the metric n in the last state of a job that a stream has shown."""
    states = [event.state for event in stream.events if event.name == "message"]
    found = [s["n"] for s in states if s["job"]["uuid"] == run.uuid]
    return found[-1] if found else -1


def report(run: Run, n: int, stream: Exchange, timeout: float = 40) -> None:
    """Have a job report, and wait until a stream shows it. The store may be away."""
    run.report(n=n)
    wait_for(lambda: last(stream, run) == n, timeout)


def knows(sentinel: Any, port: int) -> bool:
    """Return whether a sentinel knows the others and the replica."""
    try:
        ports = [replica["port"] for replica in sentinel.sentinel_slaves("jobs")]
        others = sentinel.sentinel_master("jobs")["num-other-sentinels"]
    except redis.RedisError:
        return False
    return ports == [port] and others == 2


def test_stream_outlives_a_failover(
    redis_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """When a replica takes over because the primary has died, as three sentinels find,
    the stream goes on with the new primary.
    """
    caplog.set_level(logging.INFO, "pyramid_jobstate")
    with contextlib.ExitStack() as stack:
        at_once = ["--repl-diskless-sync-delay", "0"]
        primary = stack.enter_context(EmbeddedServer(arguments=at_once))
        follow = [*at_once, "--replicaof", f"127.0.0.1 {primary.port}"]
        replica = stack.enter_context(EmbeddedServer(arguments=follow))
        sentinel = stack.enter_context(sentinels(primary, tmp_path))
        wait_for(lambda: all(knows(one, replica.port) for one in sentinel.sentinels))
        store, other = (
            JobStore(sentinel.master_for("jobs", socket_timeout=0.5)) for _ in "ab"
        )
        runs = stack.enter_context(running(redis_url, store=other))
        server = stack.enter_context(pushing(make_config(None), store=store))
        new = stack.enter_context(redis.Redis.from_url(replica.url))
        run = runs.start(n=0)
        stream = server.open(f"/job_state/{run.uuid}")
        report(run, 1, stream)
        with redis.Redis.from_url(primary.url) as old:
            assert old.execute_command("WAIT", 1, 2000) == 1
        os.kill(primary.pid, signal.SIGKILL)
        report(run, 2, stream)
        report(run, 3, stream)
        # The new primary tells of changes.
        wait_for(lambda: [c for c in new.client_list() if "t" in c["flags"]])
        names = [event.name for event in stream.events]
        assert "gone" not in names
        assert names.count("away") <= 1
        wait_for(lambda: said(caplog)[-1:] == OUTAGE[1:])
        assert said(caplog) == OUTAGE * (len(said(caplog)) // 2)


@pytest.mark.cluster
@pytest.mark.parametrize(
    "how", [signal.SIGKILL, pytest.param(signal.SIGSTOP, marks=pytest.mark.long)]
)
def test_primary_may_die(
    redis_url: str, how: signal.Signals, caplog: pytest.LogCaptureFixture
) -> None:
    """One stream is told of jobs on all nodes of a Cluster. When a primary dies or
    hangs, the jobs of the others go on at once, and its own when its replica has taken
    over. The log says so once.
    """
    caplog.set_level(logging.INFO, "pyramid_jobstate")
    with (
        running_cluster() as cluster,
        contextlib.closing(JobStore(cluster.url).client) as client,
        running(redis_url, 20, JobStore(client)) as runs,
        pushing(make_config(cluster.url)) as server,
    ):
        found: dict[int, Run] = {}
        while len(found) < PRIMARIES:
            run = runs.start(n=0)
            place = cluster.owner_of(f"jobstate:{run.uuid}")
            if found.setdefault(place, run) is not run:
                run.succeed()
        doomed, *others = (found[place] for place in range(PRIMARIES))
        uuids = "&".join(f"uuid={run.uuid}" for run in (doomed, *others))
        stream = server.open(f"/job_state?{uuids}")
        for run in doomed, *others:
            report(run, 1, stream)
        os.kill(cluster.nodes[0].pid, how)
        for run in others:
            for n in range(2, 7):
                begun = time.monotonic()
                report(run, n, stream)
                # The machine may be busy.
                assert time.monotonic() - begun < 2
        report(doomed, 2, stream)
        report(doomed, 3, stream)
        wait_for(lambda: len(said(caplog)) >= 2)
        assert said(caplog) == OUTAGE
        names = [event.name for event in stream.events]
        assert "gone" not in names
        assert names.count("away") <= 1
