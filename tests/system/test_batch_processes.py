"""Batches whose workers are killed, again and again, as real processes."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import cast

import pytest
import redis

from pyramid_jobstate import Batch, JobState, JobStore
from tests.jobs import job_actor
from tests.support import wait_for
from tests.webapp import make_app, make_request, make_tm_config
from tests.workerprocess import STALLED_AFTER, make_broker, starting


def send(url: str, count: int) -> Batch:
    """Send a batch, as a request that commits does."""
    broker = make_broker(url)

    @job_actor(broker=broker)
    def part(number: int, *, job_state: JobState | None = None) -> None:
        raise AssertionError("This process only sends.")

    config = make_tm_config(None)
    config.include("pyramid_jobstate")
    config.set_job_store(JobStore(url, stalled_after=STALLED_AFTER))
    make_app(config)
    request = make_request(config, "alice")
    request.tm.begin()
    with request.job_states.batch() as batch:
        for number in range(1, count + 1):
            batch.send(part, number)
    request.tm.commit()
    return cast("Batch", batch)


@pytest.mark.parametrize(
    ("count", "kills"),
    [
        (80, 4),
        pytest.param(1500, 13, marks=[pytest.mark.long, pytest.mark.timeout(600)]),
    ],
)
def test_killed_workers_leave_no_wrong_count(
    redis_url: str, client: redis.Redis, tmp_path: Path, count: int, kills: int
) -> None:
    """Every member ends, and the batch counts what their records say."""
    store = JobStore(redis_url, stalled_after=STALLED_AFTER)
    batch = send(redis_url, count)

    def load() -> Batch:
        loaded = store.load(batch.uuid)
        assert isinstance(loaded, Batch)
        counts = loaded.counts
        assert min(counts.values()) >= 0
        assert sum(counts.values()) == loaded.size
        return loaded

    with starting({"REDIS_URL": redis_url}, tmp_path, "tests.batchapp", 8) as start:
        worker = start()
        for number in range(1, kills + 1):
            goal = count * number // (2 * kills)
            wait_for(lambda goal=goal: load().progress.done >= goal, 60)
            worker.kill()
            worker = start()
        wait_for(lambda: load().is_finished, 120)
    done = load()
    assert done.status == "error"
    assert done.size == count + count // 7
    statuses: Counter[str] = Counter()
    cursor = None
    while cursor is not None or not statuses:
        page = store.members(batch.uuid, limit=200, cursor=cursor)
        statuses.update(job.status for job in page.items)
        cursor = page.cursor
    assert {k: n for k, n in done.counts.items() if n} == statuses
    # All that fails is one number in eleven.
    failing = [n for n in range(1, count + 1) if n % 11 == 0]
    later = [n + 10_000 for n in range(7, count + 1, 7)]
    failing += [n for n in later if n % 11 == 0]
    assert statuses["error"] == len(failing)
