"""Streams of jobs whose server changes: failovers by Sentinel, and a Cluster."""

import contextlib
import logging
import os
import signal
import time

import pytest
import redis

from pyramid_jobstate import JobState, JobStore
from pyramid_jobstate.testing import put_job
from tests.asgi import Exchange, pushing
from tests.cluster import PRIMARIES, Cluster, running_cluster
from tests.jobs import Gate, RunMarathon, job_actor, messages, wait_until
from tests.running import Run, Runs, running
from tests.sentinels import replicated
from tests.support import frozen, load_job, wait_for, write
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


def report(run: Run, n: int, stream: Exchange) -> None:
    """Have a job report, and wait until a stream shows it. The store may be away."""
    run.report(n=n)
    wait_for(lambda: last(stream, run) == n, 40)


class Ending:
    """Jobs that report their last value, and end, when they may."""

    def __init__(self, runs: Runs, count: int) -> None:
        self.store = runs.store
        self.gate = Gate()

        @job_actor(broker=runs.broker)
        def end(*, job_state: JobState) -> None:
            job_state.set_progress_metric("before", 1)
            job_state.flush()
            self.gate.wait()
            job_state.set_progress_metric("after", 2)

        sent = [end.send() for _ in range(count)]
        for message in sent:
            wait_until(runs.broker, message, "working")
        self.uuids = [message.message_id for message in sent]

    def check(self) -> None:
        """Check that no end and no value is lost."""
        jobs = wait_for(self._ended)
        metrics = [job.progress_metrics for job in jobs]
        assert metrics == [{"before": 1, "after": 2}] * len(self.uuids)

    def _ended(self) -> list[JobState] | None:
        jobs = [load_job(self.store, uuid) for uuid in self.uuids]
        return jobs if all(job.is_success for job in jobs) else None


@pytest.mark.promise("every-server-works")
def test_stream_outlives_a_failover(redis_url, tmp_path, caplog):
    """When a replica takes over from a dead primary, the stream goes on with it, which
    has the end of a job that ended meanwhile.
    """
    caplog.set_level(logging.INFO, "pyramid_jobstate")
    with contextlib.ExitStack() as stack:
        primary, replica, sentinel = stack.enter_context(replicated(tmp_path))
        store, other = (
            JobStore(sentinel.master_for("jobs", socket_timeout=0.5)) for _ in "ab"
        )
        runs = stack.enter_context(running(redis_url, store=other))
        server = stack.enter_context(pushing(make_config(None), store=store))
        new = stack.enter_context(redis.Redis.from_url(replica.url))
        ending = Ending(runs, 1)
        run = runs.start(n=0)
        stream = server.open(f"/job_state/{run.uuid}")
        report(run, 1, stream)
        with redis.Redis.from_url(primary.url) as old:
            assert old.execute_command("WAIT", 1, 2000) == 1
        # Until then, the replica lists jobs and cannot mend its lists.
        listed = JobStore(replica.url).list().items
        assert [job.uuid for job in listed] == [run.uuid, *ending.uuids]
        os.kill(primary.pid, signal.SIGKILL)
        ending.gate.open()
        report(run, 2, stream)
        report(run, 3, stream)
        ending.check()
        # The new primary tells of changes.
        wait_for(lambda: [c for c in new.client_list() if "t" in c["flags"]])
        names = [event.name for event in stream.events]
        assert "gone" not in names
        assert names.count("away") <= 1
        wait_for(lambda: said(caplog)[-1:] == OUTAGE[1:])
        assert said(caplog) == OUTAGE * (len(said(caplog)) // 2)


def jobs_of(cluster: Cluster, runs: Runs) -> list[Run]:
    """Start a job on each primary."""
    found: dict[int, Run] = {}
    while len(found) < PRIMARIES:
        run = runs.start(n=0)
        place = cluster.owner_of(f"jobstate:{run.uuid}")
        if found.setdefault(place, run) is not run:
            run.succeed()
    return [found[place] for place in range(PRIMARIES)]


@pytest.mark.cluster
@pytest.mark.parametrize(
    "how", [signal.SIGKILL, pytest.param(signal.SIGSTOP, marks=pytest.mark.long)]
)
def test_primary_may_die(redis_url, how, caplog):
    """One stream is told of jobs on all nodes of a Cluster. When a primary dies or
    hangs, the jobs of the others go on at once, and its own when its replica has taken
    over: no end is lost. The log says so once.
    """
    caplog.set_level(logging.INFO, "pyramid_jobstate")
    with (
        running_cluster() as cluster,
        contextlib.closing(JobStore(cluster.url).client) as client,
        running(redis_url, 20, JobStore(client)) as runs,
        pushing(make_config(cluster.url)) as server,
    ):
        ending = Ending(runs, 8)
        victim = cluster.owner_of(f"jobstate:{ending.uuids[0]}")
        others = jobs_of(cluster, runs)
        doomed = others.pop(victim)
        uuids = "&".join(f"uuid={run.uuid}" for run in (doomed, *others))
        stream = server.open(f"/job_state?{uuids}")
        for run in doomed, *others:
            report(run, 1, stream)
        os.kill(cluster.nodes[victim].pid, how)
        for run in others:
            for n in range(2, 7):
                begun = time.monotonic()
                report(run, n, stream)
                # The machine may be busy.
                assert time.monotonic() - begun < 2
        ending.gate.open()
        report(doomed, 2, stream)
        report(doomed, 3, stream)
        ending.check()
        wait_for(lambda: len(said(caplog)) >= 2)
        assert said(caplog) == OUTAGE
        names = [event.name for event in stream.events]
        assert "gone" not in names
        assert names.count("away") <= 1


@pytest.mark.cluster
def test_jobs_of_other_nodes_are_shown_again():
    """Whoever is told that a node is away shows no job. Those of the other nodes come
    again at once, though they have not changed.
    """
    with (
        running_cluster() as cluster,
        contextlib.closing(JobStore(cluster.url).client) as client,
        pushing(make_config(cluster.url)) as server,
    ):
        jobs: dict[int, str] = {}
        while len(jobs) < PRIMARIES:
            uuid = put_job(JobStore(client), RunMarathon, "queued", owner="alice").uuid
            jobs[cluster.owner_of(f"jobstate:{uuid}")] = uuid
        for i in range(len(cluster.nodes)):
            with cluster.client(i) as node:
                node.config_set("cluster-require-full-coverage", "no")
                node.config_set("cluster-replica-no-failover", "yes")
        stream = server.open(
            f"/job_state?{'&'.join(f'uuid={u}' for u in jobs.values())}"
        )
        wait_for(lambda: len(stream.events) == PRIMARIES)
        for uuid in jobs.values():
            write(JobStore(client), uuid, **{"m:n": 1})
        # From then on, all are watched.
        wait_for(lambda: len(stream.events) == 2 * PRIMARIES)
        with frozen(cluster.nodes[0]):
            wait_for(lambda: len(stream.events) == 2 * PRIMARIES + 3)
        away, *again = stream.events[2 * PRIMARIES : 2 * PRIMARIES + 3]
        assert away.name == "away"
        del jobs[0]
        assert {event.state["job"]["uuid"] for event in again} == {*jobs.values()}
        wait_for(cluster.is_fine, 30)
