"""`pjobs … cancel` and `pjobs … clear` by filters."""

import json
import os
import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis

from pyramid_jobstate import BulkResult, JobState, JobStore
from pyramid_jobstate.cli import bulk
from pyramid_jobstate.store.counting import Counts
from pyramid_jobstate.store.scripts import read_scripts
from tests.faulty import faulty
from tests.listed import create, finish
from tests.operated import Operator, put
from tests.support import key_of, load_job
from tests.terminal import terminal


class Dash(JobState):
    """Another kind than a marathon."""


def statuses(store: JobStore, *jobs: JobState) -> list[str]:
    return [load_job(store, job.uuid).status for job in jobs]


def test_matching_jobs_are_cancelled(pjobs: Operator, store: JobStore) -> None:
    """Unfinished jobs that match are cancelled; the others stay as they are."""
    queued, working = put(store, "queued"), put(store)
    other, done = put(store, "queued", cls=Dash), put(store, "success")
    ran = pjobs("cancel", "--kind", "RunMarathon", "--yes")
    assert ran == (0, ["2 cancelled, 0 refused"], [])
    found = statuses(store, queued, working, other, done)
    assert found == ["cancelled", "cancelling", "queued", "success"]
    assert pjobs("cancel", "--status", "queued", "--yes").out[0][:11] == "1 cancelled"
    assert statuses(store, other) == ["cancelled"]


def test_owners_of_two_types_are_two(pjobs: Operator, store: JobStore) -> None:
    """An owner that is a number is not the text of its digits."""
    number, text = put(store, "queued", owner=7), put(store, "queued", owner="7")
    pjobs("cancel", "--owner", '"7"', "--yes")
    assert statuses(store, number, text) == ["queued", "cancelled"]


def test_ended_jobs_are_deleted(
    pjobs: Operator, store: JobStore, client: redis.Redis
) -> None:
    """Ended jobs that match are deleted, by status, by age, or all."""
    put(store, "queued")
    old, new = put(store, "error"), put(store, "error")
    put(store, "success")
    finished: Any = client.hget(key_of(store, old.uuid), "finished")
    client.hset(key_of(store, old.uuid), "finished", int(finished) - 3_600_000)
    ran = pjobs("clear", "--status", "error", "--older-than", "30m", "--yes")
    assert ran == (0, ["1 deleted, 0 refused"], [])
    assert store.load(old.uuid) is None
    assert statuses(store, new) == ["error"]
    assert pjobs("clear", "--older-than", "30m", "--yes").out[0][:9] == "0 deleted"
    assert pjobs("clear", "--everything", "--yes").out == ["2 deleted, 0 refused"]
    assert store.counts() == Counts(queued=1)


def test_a_dry_run_counts(pjobs: Operator, store: JobStore) -> None:
    """--dry-run prints how many jobs match, needs no --yes, and changes nothing."""
    jobs = [put(store, "success") for _ in range(3)]
    ran = pjobs("clear", "--kind", "RunMarathon", "--dry-run")
    assert ran == (0, ["3 would be deleted"], [])
    (line,) = pjobs("clear", "--everything", "--dry-run", "--limit=2", "--json").out
    assert json.loads(line) == {"matching": 2, "dry_run": True}
    assert statuses(store, *jobs) == ["success"] * 3


def test_cursors_are_followed_up_to_the_limit(
    pjobs: Operator, store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Calls go on until all are done, or --limit of them."""
    monkeypatch.setattr(bulk, "MOST", 3)
    finish(store, *create(store, 17))
    assert pjobs("clear", "--everything", "--dry-run").out == ["17 would be deleted"]
    ran = pjobs("clear", "--everything", "--yes", "--limit", "7")
    assert ran.out == ["7 deleted, 0 refused"]
    (line,) = pjobs("clear", "--everything", "--yes", "--json").out
    assert json.loads(line) == {
        "done": 10,
        "refused": 0,
        "dry_run": False,
        "complete": True,
    }


def test_refused_jobs_are_counted(
    pjobs: Operator, store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job that changed meanwhile is refused: exit code 1."""
    put(store, "queued")
    monkeypatch.setattr(JobStore, "cancel_all", lambda *_, **__: BulkResult(3, 2, None))
    ran = pjobs("cancel", "--everything", "--yes")
    assert ran == (1, ["3 cancelled, 2 refused"], [])


def test_bulk_is_logged(
    pjobs: Operator, store: JobStore, said: Callable[[], list[str]]
) -> None:
    """The log has who did what to which jobs: a line for each, and one for the filter
    whatever it holds.
    """
    pjobs("clear", "--kind", "a\nb", "--yes")
    assert said() == [
        "ops (pjobs): 0 deleted, 0 refused, of the jobs with {'kind': 'a\\nb'}."
    ]
    first, second = put(store, "queued"), put(store, "queued")
    pjobs("cancel", "--everything", "--dry-run")
    assert said() == []
    pjobs("cancel", "--everything", "--yes")
    assert said()[:-1] == [
        f"ops (pjobs) cancelled the job {second.uuid}.",
        f"ops (pjobs) cancelled the job {first.uuid}.",
    ]


def test_lost_reply_is_logged(
    redis_url: str,
    capsys: pytest.CaptureFixture[str],
    store: JobStore,
    said: Callable[[], list[str]],
) -> None:
    """If the store's reply is lost, the log has the jobs that may have been deleted."""
    job = put(store, "success")
    with faulty(redis_url) as proxy:
        proxy.lose_replies(read_scripts()["delete"].sha)
        ran = Operator(proxy.url, capsys)("clear", "--everything", "--yes")
    assert ran.code == 1
    assert ran.out == ["at least 0 deleted, 0 refused, then stopped"]
    assert said()[0] == (
        f"ops (pjobs) may have deleted the job {job.uuid}: the store did not answer."
    )


@pytest.mark.parametrize(
    ("signum", "code"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)],
)
def test_a_signal_waits_for_the_call(
    pjobs: Operator,
    store: JobStore,
    monkeypatch: pytest.MonkeyPatch,
    signum: int,
    code: int,
) -> None:
    """Ctrl-C, SIGTERM or SIGHUP during a call ends the command after it: what is
    printed was done, and nothing else.
    """
    monkeypatch.setattr(bulk, "MOST", 3)
    finish(store, *create(store, 7))
    delete = JobStore.delete_records

    def delete_and_stop(store: JobStore, records: Any) -> Iterator[Any]:
        os.kill(os.getpid(), signum)
        return delete(store, records)

    monkeypatch.setattr(JobStore, "delete_records", delete_and_stop)
    ran = pjobs("clear", "--everything", "--yes", "--json")
    assert ran.code == code
    assert ran.err == []
    assert json.loads(ran.out[0]) == {
        "done": 3,
        "refused": 0,
        "dry_run": False,
        "complete": False,
    }
    assert store.counts().success == 4


def test_a_second_signal_does_not_wait(
    pjobs: Operator, store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second Ctrl-C breaks off a call, of which nobody knows what it did."""
    monkeypatch.setattr(bulk, "MOST", 3)
    finish(store, *create(store, 7))
    delete, calls = JobStore.delete_records, []

    def delete_once(store: JobStore, records: Any) -> Iterator[Any]:
        calls.append(1)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
        return delete(store, records)

    monkeypatch.setattr(JobStore, "delete_records", delete_once)
    ran = pjobs("clear", "--everything", "--yes")
    assert ran == (130, ["at least 3 deleted, 0 refused, then stopped"], [])
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_signal_that_is_ignored_stays_so(
    pjobs: Operator, store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the background of a script, where Ctrl-C is ignored, it stops nothing."""
    put(store, "queued")
    cancel = JobStore.cancel_all

    def interrupted(*args: Any, **options: Any) -> BulkResult:
        os.kill(os.getpid(), signal.SIGINT)
        return cancel(*args, **options)

    monkeypatch.setattr(JobStore, "cancel_all", interrupted)
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        ran = pjobs("cancel", "--everything", "--yes")
    finally:
        signal.signal(signal.SIGINT, before)
    assert ran == (0, ["1 cancelled, 0 refused"], [])


def test_a_store_that_goes_away(
    pjobs: Operator, store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the store stops to answer, what was done before is said, too."""
    monkeypatch.setattr(bulk, "MOST", 3)
    finish(store, *create(store, 7))
    clear = JobStore.clear

    def clear_once(
        store: JobStore, *, cursor: str | None, **options: Any
    ) -> BulkResult:
        if cursor is not None:
            raise redis.ConnectionError("gone")
        return clear(store, cursor=cursor, **options)

    monkeypatch.setattr(JobStore, "clear", clear_once)
    ran = pjobs("clear", "--everything", "--yes")
    assert ran.code == 1
    assert ran.out == ["at least 3 deleted, 0 refused, then stopped"]
    (line,) = ran.err
    assert line.endswith(" does not answer: gone.")


def test_a_person_is_asked(
    redis_url: str, store: JobStore, client: redis.Redis
) -> None:
    """On a terminal, the question says how many jobs match. A yes is about these: a
    job that is sent while it waits for the answer stays as it is.
    """
    jobs = [put(store, "queued") for _ in range(3)]
    client.hdel(key_of(store, jobs[0].uuid), "queued")
    arguments = ("--url", redis_url, "cancel", "--everything")
    with terminal(*arguments) as shown:
        shown.wait_for(r"Cancel 3 jobs\? \[y/N\]")
        later = put(store, "queued")
        client.hincrby(key_of(store, later.uuid), "queued", 1)
        shown.type("y\n")
        assert shown.end() == 0
        assert shown.lines()[-1] == "3 cancelled, 0 refused"
    assert statuses(store, *jobs, later) == ["cancelled"] * 3 + ["queued"]


@pytest.mark.parametrize(("keys", "code"), [("\n", 1), ("\x03", 130)])
def test_only_a_yes_goes_on(
    redis_url: str, store: JobStore, keys: str, code: int
) -> None:
    """Any other answer, and Ctrl-C, leave all jobs as they are."""
    jobs = [put(store, "queued") for _ in range(2)]
    arguments = ("--url", redis_url, "cancel", "--everything", "--limit=1")
    with terminal(*arguments) as shown:
        shown.wait_for(r"Cancel 1 job\? \[y/N\]")
        shown.type(keys)
        assert shown.end() == code
        assert (shown.lines()[-1] == "pjobs: Nothing was done.") == (code == 1)
    assert statuses(store, *jobs) == ["queued"] * 2


def test_nobody_is_asked_about_nothing(redis_url: str, store: JobStore) -> None:
    """A command that matches no jobs does not ask."""
    with terminal("--url", redis_url, "clear", "--everything") as shown:
        assert shown.end() == 0
        assert shown.lines() == ["0 deleted, 0 refused"]
