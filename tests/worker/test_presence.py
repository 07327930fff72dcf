"""What the store knows of worker processes."""

import contextlib
import importlib.metadata
import os
import socket
from typing import Any

import dramatiq
import pytest
import redis

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


def test_worker_is_known_while_it_lives(redis_url: str, store: JobStore) -> None:
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


def test_workers_of_a_process_are_one(
    redis_url: str, store: JobStore, client: redis.Redis
) -> None:
    """Their threads and queues count together. The process is known until the last of
    them has shut down, and each of their jobs names it.
    """
    run_marathon, gate = make(redis_url)
    broker = run_marathon.broker
    broker.declare_queue("mails")
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
        assert client.hget(f"jobstate:{sent.message_id}", "worker") == known.id.encode()
        wait_for(lambda: the_worker(store).threads == 2)
        assert the_worker(store).id == known.id
        gate.open()
    assert store.workers() == []


def test_worker_without_tracked_actors_is_not_known(
    redis_url: str, store: JobStore
) -> None:
    """It would say that nobody is busy, whatever it runs."""
    broker = make_broker(redis_url, JobStateMiddleware(heartbeat=0.05))

    @dramatiq.actor(broker=broker)
    def sweep() -> None: ...

    with working(broker):
        sweep.send()
        broker.join("default")
        assert store.workers() == []


def test_store_forgets_the_dead(
    redis_url: str, store: JobStore, client: redis.Redis
) -> None:
    """Other processes take away what they have left, and it expires."""
    with contextlib.ExitStack() as stack:
        for number in (1, 2, 3):
            pass_time(store, 2000)
            run_marathon, _ = make(redis_url, heartbeat=3600)
            stack.enter_context(working(run_marathon.broker))
            wait_for(lambda: len(store.workers()) == min(number, 2))  # noqa: B023
        assert client.zcard("jobstate:workers") == 2
        keys = client.keys("*workers*")
        assert len(keys) == 3
        assert all(0 < client.pttl(key) <= 3_600_000 for key in keys)


def test_silent_worker_is_remembered_for_an_hour(
    redis_url: str, store: JobStore
) -> None:
    """One that has died could not say so."""
    run_marathon, _ = make(redis_url, heartbeat=3600)
    with working(run_marathon.broker):
        assert not the_worker(store).is_silent
        pass_time(store, 14)
        assert not the_worker(store).is_silent
        pass_time(store, 2)
        assert the_worker(store).is_silent
        pass_time(store, 3600)
        assert store.workers() == []


def test_version_may_be_unknown(
    redis_url: str, store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An application may be bundled without the metadata of its packages."""
    find = importlib.metadata.version

    def version(name: str) -> str:
        if name == "pyramid_jobstate":
            raise importlib.metadata.PackageNotFoundError(name)
        return find(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    run_marathon, _ = make(redis_url)
    with working(run_marathon.broker):
        assert set(the_worker(store).versions) == {"python", "dramatiq"}


def test_what_another_program_writes_is_skipped(
    redis_url: str, store: JobStore, client: redis.Redis
) -> None:
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


def test_run_names_its_worker(
    redis_url: str, store: JobStore, client: redis.Redis
) -> None:
    """A job that waits to run again has none. What viewers poll says nothing of it."""
    run_marathon, gate = make(redis_url)

    def worker_of(uuid: str) -> str | None:
        word: Any = client.hget(f"jobstate:{uuid}", "worker")
        return word and word.decode()

    with working(run_marathon.broker):
        sent = run_marathon.send()
        gate.wait_for_job()
        assert worker_of(sent.message_id) == the_worker(store).id
        gate.open()
        wait_until(run_marathon.broker, sent, "error")
    assert rerun(store, run_marathon.broker, sent.message_id)
    assert worker_of(sent.message_id) is None
