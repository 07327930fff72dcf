"""What the store knows of worker processes."""

import importlib.metadata
import os
import socket
from typing import Any
from unittest import mock

import dramatiq
import pytest

from pyramid_jobstate import JobStateMiddleware, JobStore, WorkerInfo, rerun
from pyramid_jobstate.testing import pass_time
from tests.jobs import Gate, RunMarathon, job_actor, make_broker, wait_until, working
from tests.support import wait_for


def make(url: str, heartbeat: float = 0.05, **options: Any) -> Any:
    """Return an actor whose jobs wait for a gate and fail, and the gate."""
    broker = make_broker(url, JobStateMiddleware(heartbeat=heartbeat))
    gate = Gate()

    @job_actor(broker=broker, max_retries=0, **options)
    def run_marathon(*, job_state: RunMarathon) -> None:
        gate.wait()
        raise ValueError

    return run_marathon, gate


def the_worker(store: JobStore) -> WorkerInfo:
    (worker,) = wait_for(store.workers)
    return worker


@pytest.mark.promise("workers-are-listed")
def test_worker_is_known_while_it_lives(redis_url, store):
    """It tells its host, pid, threads and queues, how many tracked jobs it runs, its
    memory and its versions. It is forgotten as it shuts down.
    """
    run_marathon, gate = make(redis_url, queue_name="races")
    with working(run_marathon.broker, threads=3):
        worker = the_worker(store)
        assert (worker.host, worker.pid) == (socket.gethostname(), os.getpid())
        assert worker.name == f"{worker.host}:{worker.pid}"
        assert (worker.threads, worker.busy, worker.queues) == (3, 0, ("races",))
        assert worker.memory is not None and worker.memory > 1_000_000
        assert worker.versions["dramatiq"] == dramatiq.__version__
        run_marathon.send()
        gate.wait_for_job()
        wait_for(lambda: the_worker(store).busy == 1)
        later = the_worker(store)
        assert later.started_at == worker.started_at
        assert later.seen_at > worker.seen_at and not later.is_silent
        gate.open()
    assert store.workers() == []
    assert not store.client.keys("*workers*")


def test_workers_of_a_process_are_one(redis_url, store, client):
    """Their threads and queues count together. The process is known until the last of
    them has shut down, and each of their jobs names it, until it waits to run again.
    """
    run_marathon, gate = make(redis_url)
    broker = run_marathon.broker
    broker.declare_queue("mails")

    def worker_of(uuid: str) -> Any:
        return client.hget(f"jobstate:{uuid}", "worker")

    with working(broker, threads=2):
        known = the_worker(store)
        other = dramatiq.Worker(
            broker, queues={"mails"}, worker_timeout=20, worker_threads=3
        )
        other.start()
        wait_for(lambda: the_worker(store).threads == 5)
        both = the_worker(store)
        assert (both.id, both.queues) == (known.id, ("default", "mails"))
        other.stop()
        sent = run_marathon.send()
        gate.wait_for_job()
        assert worker_of(sent.message_id) == known.id.encode()
        wait_for(lambda: the_worker(store).threads == 2)
        assert the_worker(store).id == known.id
        gate.open()
        wait_until(broker, sent, "error")
    assert store.workers() == []
    assert rerun(store, broker, sent.message_id)
    assert worker_of(sent.message_id) is None


def test_worker_without_tracked_actors_is_not_known(redis_url, store):
    """It would say that nobody is busy, whatever it runs."""
    broker = make_broker(redis_url, JobStateMiddleware(heartbeat=0.05))

    @dramatiq.actor(broker=broker)
    def sweep() -> None: ...

    with working(broker):
        sweep.send()
        broker.join("default")
        assert store.workers() == []


def test_silent_worker_is_remembered_for_an_hour(redis_url, store, client):
    """One that has died could not say so. Another one takes away what it has left, and
    what that one leaves expires.
    """
    dead, live, other = (make(redis_url, 3600)[0].broker for _ in range(3))
    with working(dead):
        assert not the_worker(store).is_silent
        pass_time(store, 14)
        assert not the_worker(store).is_silent
        pass_time(store, 2)
        assert the_worker(store).is_silent
        with working(live):
            workers = wait_for(lambda: store.workers()[1:] and store.workers())
            assert sorted(worker.is_silent for worker in workers) == [False, True]
        pass_time(store, 3600)
        assert store.workers() == []
        with working(other):
            assert not the_worker(store).is_silent
            assert client.zcard("jobstate:workers") == 1
            keys = client.keys("*workers*")
            assert len(keys) == 2
            assert all(0 < client.pttl(key) <= 3_600_000 for key in keys)


def test_version_may_be_unknown(redis_url, store, monkeypatch):
    """An application may be bundled without the metadata of its packages."""
    missing = mock.Mock(side_effect=importlib.metadata.PackageNotFoundError("a"))
    monkeypatch.setattr(importlib.metadata, "version", missing)
    run_marathon, _ = make(redis_url)
    with working(run_marathon.broker):
        assert set(the_worker(store).versions) == {"python"}


def test_what_another_program_writes_is_skipped(redis_url, store, client):
    """It keeps no other worker from being known."""
    run_marathon, _ = make(redis_url, heartbeat=3600)
    with working(run_marathon.broker):
        own = the_worker(store)
        now = int(own.seen_at.timestamp() * 1e6)
        for token, says in (
            ("nonsense", b"{}"),
            ("a:1:b", b'{"threads": "many"}'),
            ("a:b:c", b"\xff"),
            (":::", b"[]"),
        ):
            client.zadd("jobstate:workers", {token: now})
            client.hset(f"{{jobstate:workers}}:{token}", "says", says)
        client.zadd("jobstate:workers", {"a:2:b": now, "a:3:b": now})
        client.set("{jobstate:workers}:a:2:b", "text")
        assert store.workers() == [own]
