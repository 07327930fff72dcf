"""`pjobs wait`, `watch` and `log -f`: a line a change, and exit codes for scripts."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Iterator
from typing import Any

import pytest
import redis

from pyramid_jobstate import JobError, JobState, JobStore
from pyramid_jobstate.testing import put_batch
from tests.faulty import faulty
from tests.operated import HARMLESS, HOSTILE, Haul, Operator, Runner, put, write
from tests.support import UUID, key_of, load_job, wait_for

CLOCK = r"\d\d:\d\d:\d\d "


def states(lines: list[str]) -> list[str]:
    """Return lines without their times."""
    assert all(re.match(CLOCK, line) for line in lines), lines
    return [line[9:] for line in lines]


@pytest.fixture
def tired(store: JobStore) -> JobState:
    """A job that has stalled."""
    return put(store, "stalled")


# wait


def test_exit_code_is_the_outcome(pjobs: Operator, store: JobStore) -> None:
    """Success is 0, a failure 3, a cancelled job 4, each after one line."""
    error = JobError("ValueError", HOSTILE)
    for status, code, text in (
        ("success", 0, r"success after 0\.\d s"),
        ("error", 3, rf"error after 0\.\d s: ValueError: {re.escape(HARMLESS)}"),
        (
            "cancelled",
            4,
            rf"cancelled after 0\.\d s: ValueError: {re.escape(HARMLESS)}",
        ),
    ):
        job = put(store, status, error=None if code == 0 else error)
        ran = pjobs("wait", job.uuid)
        assert (ran.code, ran.err) == (code, [])
        (state,) = states(ran.out)
        assert re.fullmatch(text, state), status
        ran = pjobs("wait", job.uuid, "--json")
        value = json.loads(ran.out[0])
        assert (ran.code, value["uuid"], value["status"]) == (code, job.uuid, status)


def test_wait_has_a_line_a_change(pjobs: Operator, runner: Runner) -> None:
    """A script sees each change of a job as it happens, and its end."""
    live = runner.send()

    def course() -> Iterator[None]:
        live.do(lambda job: job.set_progress(2000, 20000, "rows"))
        yield
        live.do(lambda job: job.set_message(HOSTILE))
        yield
        yield
        live.end()
        yield

    ran = pjobs("wait", live.uuid[:13], course=course())
    assert (ran.code, ran.err) == (0, [])
    *told, last = states(ran.out)
    assert told == [
        "working",
        "working 10% 2,000 of 20,000 rows",
        f"working 10% 2,000 of 20,000 rows: {HARMLESS}",
    ]
    assert re.fullmatch(r"success after \d+(\.\d)? s", last)


def test_small_changes_are_told_every_ten_seconds(
    pjobs: Operator, runner: Runner
) -> None:
    """Progress within a percent, or without one, takes a line every ten seconds."""
    live = runner.send()

    def course() -> Iterator[None]:
        live.do(lambda job: job.set_progress(1, 1000))
        yield
        live.do(lambda job: job.set_progress(2, 1000))
        yield
        pjobs.pass_time(10)
        yield
        live.do(lambda job: job.set_progress(10, 1000))
        yield
        live.do(lambda job: job.set_progress(5))
        yield
        live.do(lambda job: job.set_progress(6))
        yield
        pjobs.pass_time(10)
        yield
        live.end()
        yield

    ran = pjobs("wait", live.uuid, course=course())
    assert states(ran.out)[:-1] == [
        "working",
        "working 0% 1 of 1,000",
        "working 0% 2 of 1,000",
        "working 1% 10 of 1,000",
        "working 5",
        "working 6",
    ]


def test_several_jobs_have_their_names_and_the_worst_code(
    pjobs: Operator, store: JobStore, tired: JobState
) -> None:
    """With several jobs, each line names its job, and failed is worse than cancelled,
    which is worse than stalled, which is worse than a success.
    """
    done, failed = put(store, "success"), put(store, "error")
    cancelled = put(store, "cancelled")
    everything = [done.uuid, failed.uuid, cancelled.uuid, tired.uuid]

    ran = pjobs("wait", *everything, "--stalled", "0.01", "--timeout", "9")
    assert ran.code == 3
    lines = sorted(states(ran.out))
    assert [line.split()[0] for line in lines] == sorted(u[:8] for u in everything)
    found = {line.split()[1] for line in lines}
    assert found == {"success", "error", "cancelled", "stalled"}
    assert pjobs("wait", done.uuid, cancelled.uuid, "--stalled=1").code == 4
    stale = ("wait", tired.uuid, done.uuid, tired.uuid, "--stalled=0.01")
    assert pjobs(*stale).code == 5
    assert pjobs(*stale, cancelled.uuid).code == 4


def test_names_are_as_long_as_they_must_be(
    pjobs: Operator, store: JobStore, client: redis.Redis
) -> None:
    """Ids are cut to eight characters, or to as many as tell them apart."""
    job = put(store, "success")
    alike = f"{job.uuid[:9]}{'0' if job.uuid[9] == 'f' else 'f'}{job.uuid[10:]}"
    record = client.dump(key_of(store, job.uuid))
    client.restore(key_of(store, alike), 0, record or b"")
    ran = pjobs("wait", job.uuid, alike)
    names = [line.split()[0] for line in states(ran.out)]
    assert names == [job.uuid[:10], alike[:10]]


def test_stalled_job_ends_the_wait(pjobs: Operator, tired: JobState) -> None:
    """A job that is stalled for longer than --stalled ends the wait: 5."""
    ran = pjobs("wait", tired.uuid, "--stalled", "0.3s")
    assert ran.code == 5
    assert states(ran.out) == ["stalled"]
    assert ran.err == [f"pjobs: {tired.uuid} has been stalled for 0.3 s."]
    ran = pjobs("wait", tired.uuid)
    assert (ran.code, 20 < sum(pjobs.pauses.slept) < 62) == (5, True)


def test_stalled_job_may_come_back(pjobs: Operator, store: JobStore) -> None:
    """A job may be stalled again and again, each time for less than --stalled."""
    job = put(store, "stalled")

    def course() -> Iterator[None]:
        for _ in range(2):
            # Twice this is longer than --stalled.
            pjobs.pass_time(40)
            yield
            write(store, job, seen=10**14)
            yield
            write(store, job, seen=1)
            yield
        write(store, job, status="success", seen=10**14)
        yield

    ran = pjobs("wait", job.uuid, "--stalled", "60s", course=course())
    assert ran.code == 0
    told = [line.split()[0] for line in states(ran.out)]
    assert told == ["stalled", "working"] * 2 + ["stalled", "success"]


def test_timeout_ends_the_wait(pjobs: Operator, store: JobStore) -> None:
    """--timeout ends the wait with 124, unless a job failed before. No job is
    cancelled.
    """
    job, failed = put(store), put(store, "error")
    ran = pjobs("wait", job.uuid, "--timeout", "0.7s")
    assert ran.code == 124
    assert 0 < sum(pjobs.pauses.slept) <= 0.7
    assert states(ran.out) == ["working"]
    assert ran.err == ["pjobs: Not all over after 0.7 s."]
    assert not load_job(store, job.uuid).cancel_requested
    assert pjobs("wait", job.uuid, failed.uuid, "--timeout=0.1").code == 3


def test_record_that_goes_ends_the_wait(pjobs: Operator, store: JobStore) -> None:
    """A job whose record expires meanwhile ends the wait with 1, once its worker has
    had the time to write it again.
    """
    for arguments, longest in (("--stalled=0.6",), 0.6), ((), store.stalled_after):
        job = put(store)

        def course(job: JobState = job) -> Iterator[None]:
            store.client.delete(key_of(store, job.uuid))
            yield

        ran = pjobs("wait", job.uuid, *arguments, course=course())
        assert ran.code == 1
        assert states(ran.out) == ["working"]
        gone_too = "so nobody can tell how the job ended."
        assert ran.err == [f"pjobs: The record of {job.uuid} is gone, {gone_too}"]
        assert longest / 3 < sum(pjobs.pauses.slept) < longest + 2


def test_record_may_come_back(
    pjobs: Operator, runner: Runner, client: redis.Redis
) -> None:
    """A store that comes back empty, to which a worker writes its job again, does not
    end the wait.
    """
    live = runner.send()

    def course() -> Iterator[None]:
        client.flushall()
        yield
        yield
        live.do(lambda job: job.set_message("Still here"))
        yield
        live.end()
        yield

    ran = pjobs("wait", live.uuid, course=course())
    assert (ran.code, ran.err) == (0, [])
    assert states(ran.out)[1] == "working: Still here"


def test_unknown_jobs_are_told_at_once(pjobs: Operator, store: JobStore) -> None:
    """If one of the jobs is unknown, nothing is waited for: 1."""
    ran = pjobs("wait", put(store).uuid, UUID)
    assert (ran.code, ran.out, pjobs.pauses.slept) == (1, [], [])
    assert ran.err == [f"pjobs: The job {UUID} is unknown, or has expired."]
    assert pjobs("watch", UUID).code == 1


@pytest.mark.parametrize(
    ("signum", "code"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)],
)
def test_signals_end_a_command_quietly(
    pjobs: Operator, store: JobStore, signum: int, code: int
) -> None:
    """Ctrl-C, SIGTERM and SIGHUP have their exit codes, print nothing, and cancel no
    job.
    """
    job = put(store)

    def course() -> Iterator[None]:
        pjobs.interrupt(signum)
        yield

    ran = pjobs("wait", job.uuid, course=course())
    assert (ran.code, states(ran.out), ran.err) == (code, ["working"], [])
    assert not load_job(store, job.uuid).cancel_requested


def test_nohup_is_respected(pjobs: Operator, store: JobStore) -> None:
    """Under nohup, a command outlives its terminal."""
    job = put(store, "queued")
    signal.signal(signal.SIGHUP, signal.SIG_IGN)

    def course() -> Iterator[None]:
        pjobs.interrupt(signal.SIGHUP)
        assert job.cancel()
        yield

    assert pjobs("wait", job.uuid, course=course()).code == 4


# A store that is away


def test_store_may_be_away_for_a_while(
    pjobs: Operator, store: JobStore, runner: Runner
) -> None:
    """A store that is away for less than --stalled, at the start or later, does not
    end the wait; stderr says when it goes and when it comes.
    """
    live = runner.send()

    with faulty(pjobs.url) as proxy:
        proxy.judge = lambda request: "refuse"

        def course() -> Iterator[None]:
            yield
            proxy.judge = lambda request: "pass"
            yield
            proxy.judge = lambda request: "refuse"
            yield
            yield
            proxy.judge = lambda request: "pass"
            live.end()
            yield

        ran = pjobs.main("--url", proxy.url, "wait", live.uuid, course=course())
    assert ran.code == 0
    gone, back, *again = ran.err
    assert re.fullmatch(
        r"pjobs: The store at \S+ does not answer: .*\. Asking again for 1 min\.", gone
    )
    assert back == again[1] == "pjobs: The store answers again."
    assert "does not answer" in again[0]
    assert [line.split()[0] for line in states(ran.out)] == ["working", "success"]


def test_store_that_stays_away_ends_the_wait(pjobs: Operator) -> None:
    """A store that is away for longer than --stalled ends the wait with 1, or with 124
    if --timeout comes first. Times are said in two units.
    """
    with faulty(pjobs.url) as proxy:
        proxy.judge = lambda request: "refuse"
        where = ("--url", proxy.url, "wait", UUID)
        ran = pjobs.main(*where, "--stalled", "0.7s")
        assert (ran.code, ran.out) == (1, [])
        first, last = ran.err
        assert first.endswith(" Asking again for 0.7 s.")
        assert re.search(r", for (0\.\d|1) s\.$", last)
        ran = pjobs.main(*where, "--timeout", "0.3s")
        assert ran.code == 124
        assert ran.err[-1] == "pjobs: Not all over after 0.3 s."


def test_busy_store_is_away(
    pjobs: Operator, store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store that refuses commands while somebody's script runs is away, too, for
    `wait` and for `watch`.
    """
    job = put(store, "queued")
    load = JobStore.load_many

    for command, code in ("wait", 4), ("watch", 0):
        job = put(store, "queued")

        def refuse(*_: Any) -> Any:
            raise redis.ResponseError("BUSY Redis is busy running a script.")

        def course(job: JobState = job) -> Iterator[None]:
            monkeypatch.setattr(JobStore, "load_many", refuse)
            yield
            yield
            monkeypatch.setattr(JobStore, "load_many", load)
            assert job.cancel()
            yield

        ran = pjobs(command, job.uuid, course=course())
        assert ran.code == code
        assert "refuses: BUSY" in ran.err[0]
        assert ran.err[1:] == ["pjobs: The store answers again."]


def test_patience_is_not_wasted(
    pjobs: Operator, store: JobStore, client: redis.Redis
) -> None:
    """What asking again does not cure is said at once: a command that is forbidden, and
    a password that is wrong or missing.
    """
    job = put(store)
    client.acl_setuser("ann", enabled=True, nopass=True, categories=["+@all"])
    place = pjobs.url.removeprefix("redis://")
    try:
        for user, text in (
            ("ann:x", "refuses: "),
            ("me:secret", "rejects the user or the password, or wants one."),
        ):
            for command in "wait", "watch":
                url = f"redis://{user}@{place}"
                ran = pjobs.main("--url", url, command, job.uuid)
                assert (ran.code, pjobs.pauses.slept) == (1, [])
                (line,) = ran.err
                assert line.startswith(f"pjobs: The store at {place} {text}")
                assert "secret" not in line
    finally:
        client.acl_deluser("ann")


# watch


def test_watch_has_a_line_a_change(
    pjobs: Operator, runner: Runner, store: JobStore
) -> None:
    """Without a terminal, each change of a running job is a line with its id, also of
    one that starts later; a job that has ended is shown for five seconds.
    """
    live = runner.send()
    retrying = put(store, "retrying", delay=60)
    put(store, "success")
    later: list[str] = []

    def course() -> Iterator[None]:
        live.do(lambda job: job.set_progress(1, 4))
        yield
        later.append(put(store).uuid)
        yield
        live.fail()
        yield
        pjobs.interrupt()
        yield

    ran = pjobs("watch", course=course())
    assert (ran.code, ran.err) == (130, [])
    first, second, third, fourth, last = states(ran.out)
    assert {first, second.partition(",")[0]} == {
        f"{live.uuid} working",
        f"{retrying.uuid} retrying",
    }
    assert third == f"{live.uuid} working 25% 1 of 4"
    assert fourth == f"{later[0]} working"
    assert re.fullmatch(rf"{live.uuid} error after [\d.]+ s: ValueError: wrong", last)


def test_given_jobs_are_watched_to_their_end(pjobs: Operator, store: JobStore) -> None:
    """`watch ID…` is about these jobs, whatever their status, and ends with 0 when they
    have ended.
    """
    done = put(store, "error", error=JobError("ValueError", HOSTILE))
    queued = put(store, "queued")
    put(store)

    def course() -> Iterator[None]:
        assert queued.cancel()
        yield

    ran = pjobs("watch", done.uuid, queued.uuid[:13], course=course())
    assert (ran.code, ran.err) == (0, [])
    told = [re.split("[ :]", line)[:2] for line in states(ran.out)]
    assert told == [
        [done.uuid, "error"],
        [queued.uuid, "queued"],
        [queued.uuid, "cancelled"],
    ]
    assert ran.out[0].endswith(f" s: ValueError: {HARMLESS}")
    assert f'"uuid": "{done.uuid}"' in pjobs("watch", done.uuid, "--json").out[0]


def test_slow_store_is_not_asked_all_the_time(
    pjobs: Operator, store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a look that takes long, the next one waits as long."""
    job = put(store, "queued")
    load = JobStore.load_many

    def load_slowly(store: JobStore, uuids: Any) -> Any:
        pjobs.pass_time(3)
        return load(store, uuids)

    def course() -> Iterator[None]:
        monkeypatch.setattr(JobStore, "load_many", load_slowly)
        yield
        yield
        assert job.cancel()
        yield

    assert pjobs("watch", job.uuid, course=course()).code == 0
    short, *rest = pjobs.pauses.slept
    assert short < 3
    assert all(pause >= 3 for pause in rest[:2])


def test_watched_job_may_vanish(pjobs: Operator, store: JobStore) -> None:
    """A given job without a record stays until it counts as silent, since its worker
    may write it again.
    """
    job = put(store)
    client, key = store.client, key_of(store, job.uuid)
    record: Any = client.dump(key)

    def course() -> Iterator[None]:
        for _ in range(2):
            client.delete(key)
            yield
            pjobs.pass_time(store.stalled_after - 2)
            yield
            client.restore(key, 0, record)
            yield
        client.delete(key)
        yield
        pjobs.pass_time(store.stalled_after)
        yield

    course_ = course()
    ran = pjobs("watch", job.uuid, course=course_)
    assert ran.code == 0
    assert next(course_, "over") == "over"


# log -f


def test_log_is_followed_to_the_end(pjobs: Operator, runner: Runner) -> None:
    """`log -f` prints the lines so far, each new one once, and ends with the job."""
    live = runner.send()
    live.do(lambda job: job.append_log("one"))

    def course() -> Iterator[None]:
        for lines in (["one"], [HOSTILE, "end"], []):
            live.do(*(lambda job, text=text: job.append_log(text) for text in lines))
            yield
        live.fail()
        yield

    ran = pjobs("log", "-f", live.uuid, course=course())
    lines = ["one", "one", HARMLESS, "end"]
    assert ran == (0, lines, [])
    assert pjobs("log", "--follow", live.uuid).out == lines


def test_new_lines_are_the_fewest_that_explain_a_log(
    pjobs: Operator, store: JobStore
) -> None:
    """Of a log, 20 lines are kept. If none of the last lines is known, stderr says that
    some may be missing.
    """
    letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMN"
    for before, after, new, missed in (
        ("", "a", "a", False),
        ("a", "a", "", False),
        ("a", "aa", "a", False),
        ("a", "b", "b", False),
        # Only a full log drops its first line.
        ("ab", "bc", "bc", False),
        ("a" * 20, "a" * 20, "", False),
        ("x" + "a" * 19, "a" * 20, "a", False),
        ("ab" * 10, "b" + "ab" * 9 + "a", "a", False),
        (letters[:20], letters[19:39], letters[20:39], False),
        (letters[:20], letters[20:], letters[20:], True),
        ("", "a" * 20, "a" * 20, True),
    ):
        job = put(store, log=list(before))

        def course(job: JobState = job, after: str = after) -> Iterator[None]:
            write(store, job, log=json.dumps(list(after)))
            yield
            write(store, job, status="success")
            yield

        ran = pjobs("log", "-f", job.uuid, course=course())
        assert ran.out == [*before, *new], (before, after)
        error = [f"pjobs: Lines of {job.uuid} may be missing here."]
        assert ran.err == error * missed, (before, after)


def test_each_attempt_has_a_new_log(pjobs: Operator, store: JobStore) -> None:
    """The log of another attempt is new, even if it begins alike."""
    job = put(store, log=["one"])

    def course() -> Iterator[None]:
        write(store, job, attempt=2)
        yield
        store.client.delete(key_of(store, job.uuid))
        yield

    ran = pjobs("log", "-f", job.uuid, course=course())
    assert ran == (1, ["one", "one"], [f"pjobs: The record of {job.uuid} is gone."])


# Batches


def test_failures_of_a_batch_are_told_at_once(
    pjobs: Operator, runner: Runner, store: JobStore
) -> None:
    """A line follows on a failure or a cancel, but not on a success that moves no whole
    percent. The wait ends with the batch.
    """
    batch, members = runner.send_batch(9999, 1, 1, 1)
    large, failing, cancelled, small = members

    def has_told(status: str) -> bool:
        found = load_job(store, batch)
        assert isinstance(found, Haul)
        return found.counts[status] == 1

    def course() -> Iterator[None]:
        failing.fail()
        wait_for(lambda: has_told("error"))
        yield
        cancelled.cancel()
        wait_for(lambda: has_told("cancelled"))
        yield
        small.end()
        wait_for(lambda: has_told("success"))
        yield
        large.end()
        yield

    ran = pjobs("wait", batch, course=course())
    assert ran.code == 3
    *told, last = states(ran.out)
    assert told == [
        "working 0% 0 of 4 jobs",
        "working 0% 1 of 4 jobs, 1 failed",
        "working 0% 2 of 4 jobs, 1 failed, 1 cancelled",
    ]
    assert re.fullmatch(
        r"error after [\d.]+ s, 4 of 4 jobs, 1 failed, 1 cancelled", last
    )


def test_batch_may_have_failures(pjobs: Operator, store: JobStore) -> None:
    """A batch that succeeds even if jobs fail is a success that says so."""
    batch = put_batch(store, Haul, ["success", "error"], allow_failures=True)
    ran = pjobs("wait", batch.uuid)
    assert ran.code == 0
    (state,) = states(ran.out)
    assert re.fullmatch(r"success after [\d.]+ s, 2 of 2 jobs, 1 failed", state)
