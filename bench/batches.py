"""What batches cost: polls, flushes of members, sending, memory."""

from __future__ import annotations

import json
import time
import tracemalloc
import uuid
from collections.abc import Callable
from typing import Any

import dramatiq
import redis
from dramatiq.brokers.redis import RedisBroker

from pyramid_jobstate import Batch, JobStateMiddleware, JobStore
from pyramid_jobstate.embedded import EmbeddedServer
from pyramid_jobstate.job.record import BATCH_MARK, JobInfo, Member, NewBatch, NewJob
from pyramid_jobstate.job.run import Run
from pyramid_jobstate.store.jobstore import records_of
from pyramid_jobstate.worker.batches import OutgoingBatch
from pyramid_jobstate.worker.unsaved import Unsaved

from .jobs import OWNER, running_job, set_ten_metrics
from .poll import make_app, poll
from .timing import Row, Table, side_by_side

#: How many members the batches that are polled have.
SIZES = (10, 1_000, 10_000)

#: How many members one request sends.
SENT = 10_000

#: How many jobs are flushed together.
FLUSHED = 1_000


def measure(server: EmbeddedServer) -> Table:
    with redis.Redis.from_url(server.url) as client:
        client.flushall()
        rows = [*_polls(server), _flush(server), *_sending(server, client)]
        client.flushall()
    return Table("Batches", rows)


def put_batch(store: JobStore, size: int) -> tuple[str, list[NewJob]]:
    """Write a batch and its members, and return its uuid and them."""
    owner, batch = json.dumps(OWNER), str(uuid.uuid4())
    info = JobInfo("JobState", "a", 0, owner, "{}", batch=batch)
    jobs = [NewJob(str(uuid.uuid4()), info, sender="s") for _ in range(size)]
    own = JobInfo("Batch", "", 0, owner, "{}", batch=BATCH_MARK)
    members = [Member(job, 1000) for job in jobs]
    records_of(store).batches.open(NewBatch(batch, own, {}, "s", members))
    for i in range(0, size, FLUSHED):
        records_of(store).create_new(*jobs[i : i + FLUSHED], tells=False)
        records_of(store).confirm_members(jobs[i : i + FLUSHED])
    return batch, jobs


def _polls(server: EmbeddedServer) -> list[Row]:
    """Compare polls of batches with one of a lone job with ten metrics."""
    # None of the batches is silent for so long that a poll looks at its members.
    app, store = make_app(server, stalled_after="1h"), JobStore(server.url)
    paths = []
    for size in SIZES:
        batch, jobs = put_batch(store, size)
        run = Unsaved(jobs[0].uuid, Run(), jobs[0].info)
        records_of(store).write([run.take(time.monotonic())])
        paths.append(f"/job_state/{batch}")
    with running_job(store) as job_state:
        set_ten_metrics(job_state)
        job_state.flush()
        paths.append(f"/job_state/{job_state.uuid}")

        def of(path: str) -> tuple[int, Callable[[int], object]]:
            return 300, lambda count: poll(app, path, count)

        *batches, lone = side_by_side(*map(of, paths))
    return [
        Row(
            f"a poll of a batch of {size:,} / of a job with ten metrics",
            timing.over(lone),
            at_most=1.1,
            note=f"{timing} / {lone}",
        )
        for size, timing in zip(SIZES, batches, strict=True)
    ]


def _flush(server: EmbeddedServer) -> Row:
    """Compare a second of a thousand members that report ten times in it with one of
    as many lone jobs.
    """
    store = JobStore(server.url, namespace="flush")
    _, jobs = put_batch(store, FLUSHED)
    lone = JobInfo("JobState", "a", 0, json.dumps(OWNER), "{}")
    members = [Unsaved(job.uuid, Run(), job.info) for job in jobs]
    others = [Unsaved(str(uuid.uuid4()), Run(), lone) for _ in jobs]

    def report(runs: list[Unsaved]) -> Callable[[int], None]:
        done = 0

        def second(count: int) -> None:
            nonlocal done
            for _ in range(count):
                for unsaved in runs:
                    # The batch was told a second ago.
                    unsaved.tell_soon()
                for _ in range(10):
                    done += 1
                    for unsaved in runs:
                        unsaved.run.set_progress(done, 10**9, None, None)
                    now = time.monotonic()
                    records_of(store).write([unsaved.take(now) for unsaved in runs])
                    for unsaved in runs:
                        unsaved.mark_stored(now)

        return second

    ours, theirs = side_by_side((1, report(members)), (1, report(others)), rounds=5)
    return Row(
        "a second of 1,000 members that report ten times / of 1,000 lone jobs",
        ours.over(theirs),
        note=f"{ours} / {theirs}",
    )


def _sending(server: EmbeddedServer, client: redis.Redis) -> list[Row]:
    """Measure what a request does that sends a large batch. The ratio is to sending the
    same messages with Dramatiq alone.
    """
    make_broker: Any = RedisBroker
    broker = make_broker(url=server.url, namespace="sending")
    broker.add_middleware(JobStateMiddleware())

    @dramatiq.actor(broker=broker, job_state=True)
    def import_file(name: str) -> None:
        pass

    @dramatiq.actor(broker=broker)
    def plain(name: str) -> None:
        pass

    client.flushall()
    begun = time.perf_counter()
    for n in range(SENT):
        plain.send(f"{n}.csv")
    alone = time.perf_counter() - begun
    empty = _used(client)
    begun = time.perf_counter()
    outgoing, gathered = _gather(import_file)
    gathering = time.perf_counter() - begun
    outgoing.record(JobStore(server.url))
    recording = time.perf_counter() - begun - gathering
    outgoing.send()
    sending = time.perf_counter() - begun - gathering - recording
    total = gathering + recording + sending
    each = (_used(client) - empty) / SENT
    tracemalloc.start()
    _kept = _gather(import_file)
    memory = tracemalloc.get_traced_memory()[0] / SENT
    tracemalloc.stop()
    assert gathered == SENT
    return [
        Row(
            f"{SENT:,} members in one request / as many plain messages",
            total / alone,
            at_most=1.8,
            note=(
                f"{gathering:.2f} s to gather, {recording:.2f} s to record, "
                f"{sending:.2f} s to send / {alone:.2f} s"
            ),
        ),
        Row(
            "KiB of memory that a member takes in the request",
            memory / 1024,
            note=f"{memory * SENT / 1024**2:.0f} MiB for {SENT:,}",
        ),
        Row(
            "bytes that a member that waits takes in Redis, with its message",
            each,
            note="used_memory",
        ),
    ]


def _gather(actor: Any) -> tuple[OutgoingBatch, int]:
    """Return a batch with its members, as a request has it when its block ends."""

    def nothing(*arguments: object) -> None:
        pass

    outgoing = OutgoingBatch(
        Batch,
        None,
        OWNER,
        allow_failures=False,
        origin=dict,
        begin=nothing,
        end=nothing,
        check=nothing,
    )
    with outgoing.batch as batch:
        for n in range(SENT):
            batch.send(actor, f"{n}.csv")
    return outgoing, batch.size


def _used(client: redis.Redis) -> int:
    found: Any = client.info("memory")
    return int(found["used_memory"])
