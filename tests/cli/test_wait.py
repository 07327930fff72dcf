"""`pjobs … wait`: lines for a log, and exit codes for a script."""

import json
import re
import time
from collections.abc import Iterator
from typing import Any

import pytest
import redis
from redis.exceptions import NoPermissionError

from pyramid_jobstate import JobError, JobStore, Progress
from pyramid_jobstate.cli import following
from pyramid_jobstate.cli.stores import Patience
from pyramid_jobstate.embedded import EmbeddedServer
from tests.operated import HARMLESS, HOSTILE, Operator, Start, end, finished, put
from tests.support import UUID, busy, frozen, key_of, load_job, wait_for

CLOCK = r"\d\d:\d\d:\d\d "


def states(lines: list[str]) -> list[str]:
    """Return lines without their times."""
    assert all(re.match(CLOCK, line) for line in lines)
    return [line[9:] for line in lines]


@pytest.mark.parametrize(
    ("status", "code", "text"),
    [
        ("success", 0, "success after 0.0 s"),
        ("error", 3, f"error after 0.0 s: ValueError: {HARMLESS}"),
        ("cancelled", 4, f"cancelled after 0.0 s: ValueError: {HARMLESS}"),
    ],
)
def test_the_exit_code_is_the_outcome(
    pjobs: Operator, store: JobStore, status: str, code: int, text: str
) -> None:
    """Success is 0, a failure 3, a cancelled job 4, each after one line."""
    error = None if status == "success" else JobError("ValueError", HOSTILE)
    job = put(store, status, error=error)
    ran = pjobs("wait", job.uuid)
    assert (ran.code, ran.err) == (code, [])
    assert states(ran.out) == [text]


def test_a_line_a_change(
    start: Start, redis_url: str, store: JobStore, client: redis.Redis
) -> None:
    """A script sees each change of a job as it happens, and its end."""
    job = put(store, progress=Progress(2000, 20000, "rows"))
    key = key_of(store, job.uuid)
    process = start("--url", redis_url, "wait", job.uuid[:12])
    assert process.stdout is not None
    line = process.stdout.readline()
    assert re.fullmatch(CLOCK + "working 10% 2,000 of 20,000 rows\n", line)
    client.hset(key, "progress", '[4000, 20000, "rows", null]')
    assert process.stdout.readline().endswith(" working 20% 4,000 of 20,000 rows\n")
    client.hset(key, "message", json.dumps(HOSTILE))
    assert process.stdout.readline().endswith(f" 20,000 rows: {HARMLESS}\n")
    end(store, job)
    ran = finished(process)
    assert (ran.code, ran.err) == (0, [])
    assert re.fullmatch(CLOCK + r"success after \d+(\.\d)? s", ran.out[0])


def test_small_changes_are_told_every_ten_seconds(
    store: JobStore, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Progress within a percent, or without one, takes a line every ten seconds."""
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    job = put(store)
    changes = following.Changes()

    def text(done: int, total: int | None = None) -> str | None:
        progress = json.dumps([done, total, None, None])
        client.hset(key_of(store, job.uuid), "progress", progress)
        return changes.text(load_job(store, job.uuid))

    assert text(1, 1000) == "working 0% 1 of 1,000"
    assert text(2, 1000) is None
    now += following.QUIET
    assert text(2, 1000) == "working 0% 2 of 1,000"
    assert text(10, 1000) == "working 1% 10 of 1,000"
    assert text(5) == "working 5"
    assert text(6) is None
    now += following.QUIET
    assert text(6) == "working 6"
    assert text(6) is None


def test_several_jobs_have_their_names_and_the_worst_code(
    pjobs: Operator, store: JobStore
) -> None:
    """With several jobs, each line names its job, and failed is worse than cancelled,
    which is worse than stalled, which is worse than a success.
    """
    done, failed = put(store, "success"), put(store, "error")
    cancelled, stalled = put(store, "cancelled"), put(store, "stalled")
    everything = [done.uuid, failed.uuid, cancelled.uuid, stalled.uuid]

    ran = pjobs("wait", *everything, "--stalled", "0.01", "--timeout", "9")
    assert ran.code == 3
    lines = sorted(states(ran.out))
    assert [line.split()[0] for line in lines] == sorted(u[:8] for u in everything)
    assert {line.split()[1] for line in lines} == {
        "success",
        "error",
        "cancelled",
        "stalled",
    }
    assert pjobs("wait", done.uuid, cancelled.uuid, "--stalled=1").code == 4
    stale = ("wait", stalled.uuid, done.uuid, stalled.uuid, "--stalled=0.01")
    assert pjobs(*stale).code == 5
    assert pjobs(*stale, cancelled.uuid).code == 4


def test_a_stalled_job(pjobs: Operator, store: JobStore) -> None:
    """A job that is stalled for longer than --stalled ends the wait: 5."""
    job = put(store, "stalled")
    ran = pjobs("wait", job.uuid, "--stalled", "0.3s")
    assert ran.code == 5
    assert states(ran.out) == ["stalled"]
    assert ran.err == [f"pjobs: {job.uuid} has been stalled for 0.3 s."]


def test_a_stalled_job_that_comes_back(
    pjobs: Operator,
    store: JobStore,
    client: redis.Redis,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A job may be stalled again and again, each time for less than --stalled."""
    job = put(store, "stalled")
    key = key_of(store, job.uuid)
    now = 100.0

    def pass_time() -> Iterator[None]:
        nonlocal now
        for _ in range(2):
            # Twice this is longer than --stalled.
            now += 40
            yield
            client.hset(key, "seen", 10**14)
            yield
            client.hset(key, "seen", 1)
            yield
        client.hset(key, "seen", 10**14)
        end(store, job)
        yield

    pauses = pass_time()
    monkeypatch.setattr(time, "monotonic", lambda: now)
    monkeypatch.setattr(Patience, "sleep", lambda self: next(pauses))
    ran = pjobs("wait", job.uuid, "--stalled", "60s")
    assert ran.code == 0
    told = [line.split()[0] for line in states(ran.out)]
    assert told == ["stalled", "working"] * 2 + ["stalled", "success"]


def test_a_timeout(pjobs: Operator, store: JobStore) -> None:
    """--timeout ends the wait with 124, unless a job failed before."""
    job, failed = put(store), put(store, "error")
    began = time.monotonic()
    ran = pjobs("wait", job.uuid, "--timeout", "0.7s")
    assert ran.code == 124
    assert 0.6 < time.monotonic() - began < 5
    assert states(ran.out) == ["working"]
    assert ran.err == ["pjobs: Not all over after 0.7 s."]
    assert not load_job(store, job.uuid).cancel_requested
    assert pjobs("wait", job.uuid, failed.uuid, "--timeout=0.1").code == 3


def test_a_record_that_goes(
    pjobs: Operator,
    store: JobStore,
    client: redis.Redis,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A job whose record expires meanwhile ends the wait with 1."""
    job = put(store)
    sleep = Patience.sleep

    def sleep_without_it(patience: Patience) -> None:
        client.delete(key_of(store, job.uuid))
        sleep(patience)

    monkeypatch.setattr(Patience, "sleep", sleep_without_it)
    ran = pjobs("wait", job.uuid, "--stalled", "0.6")
    assert ran.code == 1
    assert states(ran.out) == ["working"]
    gone_too = "so nobody can tell how the job ended."
    assert ran.err == [f"pjobs: The record of {job.uuid} is gone, {gone_too}"]


def test_a_record_that_comes_back(
    start: Start, redis_url: str, store: JobStore, client: redis.Redis
) -> None:
    """A store that comes back empty, to which a worker writes its job again, does not
    end the wait.
    """
    job = put(store)
    key = key_of(store, job.uuid)
    fields: Any = client.hgetall(key)
    process = start("--url", redis_url, "wait", job.uuid)
    assert process.stdout is not None
    assert process.stdout.readline().endswith(" working\n")
    client.delete(key)

    def reads() -> int:
        stats: Any = client.info("commandstats")
        return int(stats["cmdstat_hgetall"]["calls"])

    # It looks twice a second.
    before = reads()
    wait_for(lambda: reads() > before + 1)
    client.hset(key, mapping=fields)
    end(store, job)
    assert finished(process).code == 0


def test_unknown_jobs_are_told_at_once(pjobs: Operator, store: JobStore) -> None:
    """If one of the jobs is unknown, nothing is waited for: 1."""
    ran = pjobs("wait", put(store).uuid, UUID)
    assert (ran.code, ran.out) == (1, [])
    assert ran.err == [f"pjobs: The job {UUID} is unknown, or has expired."]


def test_json_is_an_object_a_change(pjobs: Operator, store: JobStore) -> None:
    """With --json, each line is the whole job."""
    job = put(store, "error", error=JobError("ValueError", HOSTILE))
    ran = pjobs("wait", job.uuid, "--json")
    assert ran.code == 3
    value = json.loads(ran.out[0])
    assert (value["uuid"], value["status"]) == (job.uuid, "error")
    assert value["error"] == {"type": "ValueError", "message": HOSTILE}


def test_a_store_that_comes_back(start: Start, server: EmbeddedServer) -> None:
    """A store that is away for less than --stalled, at the start or later, does not
    end the wait; stderr says when it goes and when it comes.
    """
    with redis.Redis.from_url(server.url) as client:
        store = JobStore(client)
        job = put(store)
        with frozen(server):
            process = start("--url", server.url, "wait", job.uuid)
            assert process.stderr is not None and process.stdout is not None
            assert re.fullmatch(
                r"pjobs: The store at \S+ does not answer: Timeout.*\. "
                r"Asking again for 1 min\.\n",
                process.stderr.readline(),
            )
        assert process.stderr.readline() == "pjobs: The store answers again.\n"
        assert process.stdout.readline().endswith(" working\n")
        with frozen(server):
            assert "does not answer" in process.stderr.readline()
        assert "answers again" in process.stderr.readline()
        end(store, job)
        assert finished(process).code == 0


def test_a_store_that_stays_away(pjobs: Operator, server: EmbeddedServer) -> None:
    """A store that is away for longer than --stalled ends the wait with 1, or with 124
    if --timeout comes first.
    """
    with redis.Redis.from_url(server.url) as client:
        job = put(JobStore(client))
    server.stop()
    where = ("--url", server.url, "wait", job.uuid)
    ran = pjobs.main(*where, "--stalled", "0.7s")
    assert (ran.code, ran.out) == (1, [])
    first, last = ran.err
    assert first.endswith("Connection refused. Asking again for 0.7 s.")
    assert re.search(r"Connection refused, for (0\.\d|1) s\.$", last)
    ran = pjobs.main(*where, "--timeout", "0.3s")
    assert ran.code == 124
    assert ran.err[-1] == "pjobs: Not all over after 0.3 s."


def test_a_store_that_is_busy(start: Start, server: EmbeddedServer) -> None:
    """A store that refuses commands while somebody's script runs is away, too."""
    with redis.Redis.from_url(server.url) as client:
        store = JobStore(client)
        job = put(store)
        with busy(server):
            process = start("--url", server.url, "wait", job.uuid)
            assert process.stderr is not None
            assert re.fullmatch(
                r"pjobs: The store at \S+ refuses: BUSY .*\. "
                r"Asking again for 1 min\.\n",
                process.stderr.readline(),
            )
        assert process.stderr.readline() == "pjobs: The store answers again.\n"
        end(store, job)
        assert finished(process).code == 0


def test_patience_is_not_wasted(store: JobStore) -> None:
    """What asking again does not cure is raised at once."""

    def refuse() -> None:
        raise NoPermissionError("no")

    with pytest.raises(NoPermissionError):
        Patience(store, 60).ask(refuse)


def test_wait_is_quiet_for_a_reader_that_goes(
    start: Start, redis_url: str, store: JobStore
) -> None:
    """`wait | head -1` ends without a traceback at the next line."""
    job = put(store)
    process = start("--url", redis_url, "wait", job.uuid)
    assert process.stdout is not None and process.stderr is not None
    assert process.stdout.readline().endswith(" working\n")
    process.stdout.close()
    end(store, job)
    assert process.wait(20) == 141
    assert process.stderr.read() == ""
    process.stderr.close()
