"""`pjobs wait`, `watch` and `log -f`: a line a change, and exit codes for scripts."""

import functools
import json
import logging
import operator
import re
import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis

from pyramid_jobstate import JobError, JobState, JobStore
from pyramid_jobstate.testing import put_batch
from tests.faulty import faulty
from tests.operated import HARMLESS, HOSTILE, SIGNALS, Haul, put, steps
from tests.support import UUID, key_of, load_job, write

CLOCK = r"\d\d:\d\d:\d\d "


def states(lines: list[str]) -> list[str]:
    """Return lines without their times."""
    assert all(re.match(CLOCK, line) for line in lines), lines
    return [line[9:] for line in lines]


@pytest.mark.promise("pjobs-reads-and-acts")
def test_exit_code_is_the_outcome(pjobs, store):
    """Success is 0, a failure 3, a cancelled job 4, each after one line."""
    error = JobError("ValueError", HOSTILE)
    failed = rf" after 0\.\d s: ValueError: {re.escape(HARMLESS)}"
    for status, code, text in (
        ("success", 0, r"success after 0\.\d s"),
        ("error", 3, f"error{failed}"),
        ("cancelled", 4, f"cancelled{failed}"),
    ):
        job = put(store, status, error=None if code == 0 else error)
        ran = pjobs("wait", job.uuid)
        assert (ran.code, ran.err) == (code, [])
        (state,) = states(ran.out)
        assert re.fullmatch(text, state), status
    value = json.loads(pjobs("wait", job.uuid, "--json").out[0])
    assert (value["uuid"], value["status"]) == (job.uuid, "cancelled")


def test_wait_has_a_line_a_change(pjobs, runs):
    """A script sees each change of a job as it happens, and its end. Progress within a
    percent, or without one, takes a line every ten seconds.
    """
    run = runs.start()

    def course() -> Iterator[None]:
        for done, total, seconds in (
            (1, 1000, 0),
            (2, 1000, 0),
            (2, 1000, 10),
            (10, 1000, 0),
            (5, None, 0),
            (6, None, 0),
            (6, None, 10),
        ):
            if seconds:
                pjobs.pass_time(seconds)
            else:
                run.do(operator.methodcaller("set_progress", done, total))
            yield
        run.do(lambda job: job.set_progress(2000, 20000, "rows"))
        yield
        run.do(lambda job: job.set_message(HOSTILE))
        yield
        run.end()

    *told, last = states(pjobs("wait", run.uuid[:13], course=course()).printed())
    assert told == [
        "working",
        "working 0% 1 of 1,000",
        "working 0% 2 of 1,000",
        "working 1% 10 of 1,000",
        "working 5",
        "working 6",
        "working 10% 2,000 of 20,000 rows",
        f"working 10% 2,000 of 20,000 rows: {HARMLESS}",
    ]
    assert re.fullmatch(r"success after \d+(\.\d)? s", last)


def test_several_jobs_have_the_worst_code(pjobs, store):
    """Each line names its job, by eight letters or as many as it takes, and the exit
    code is that of the worst outcome.
    """
    words = ("success", "error", "cancelled", "stalled")
    everything = [put(store, status).uuid for status in words]
    done, _, cancelled, tired = everything
    ran = pjobs("wait", *everything, "--stalled", "0.01", "--timeout", "9")
    assert ran.code == 3
    told = {tuple(line.split()[:2]) for line in states(ran.out)}
    assert told == {*zip([uuid[:8] for uuid in everything], words, strict=True)}
    assert pjobs("wait", done, cancelled).code == 4
    stale = ("wait", tired, done, tired, "--stalled=0.01")
    assert pjobs(*stale).code == 5
    assert pjobs(*stale, cancelled).code == 4
    names = [f"{UUID[:9]}{start}{UUID[13:]}" for start in ("1234", "1334")]
    for name in names:
        store.client.copy(key_of(store, done), key_of(store, name))
    told_apart = states(pjobs("wait", *names).out)
    assert [line.split()[0] for line in told_apart] == ["12345678-12", "12345678-13"]


def test_what_else_ends_a_wait(pjobs, store):
    """A job that has stalled for longer than --stalled: 5. --timeout: 124, unless a job
    failed. No job is cancelled.
    """
    job = put(store, "stalled")
    ran = pjobs("wait", job.uuid, "--stalled", "0.3s")
    error = f"pjobs: {job.uuid} has been stalled for 0.3 s."
    assert (ran.code, states(ran.out), ran.err) == (5, ["stalled"], [error])
    ran = pjobs("wait", job.uuid)
    assert (ran.code, 20 < sum(pjobs.pauses.slept) < 62) == (5, True)
    job, failed = put(store), put(store, "error")
    ran = pjobs("wait", job.uuid, "--timeout", "0.7s")
    assert 0 < sum(pjobs.pauses.slept) <= 0.7
    error = "pjobs: Not all over after 0.7 s."
    assert (ran.code, states(ran.out), ran.err) == (124, ["working"], [error])
    assert not load_job(store, job.uuid).cancel_requested
    assert pjobs("wait", job.uuid, failed.uuid, "--timeout=0.1").code == 3


def test_record_that_is_gone(pjobs, store):
    """An unknown job is told at once. A record that its worker does not write again in
    time ends the wait. Both with 1.
    """
    error = f"pjobs: The job {UUID} is unknown, or has expired."
    assert pjobs("wait", put(store).uuid, UUID) == (1, [], [error])
    assert pjobs.pauses.slept == []
    assert pjobs("watch", UUID).code == 1
    for words, end in (
        (["wait"], " is gone, so nobody can tell how the job ended."),
        (["log", "-f"], " is gone."),
    ):
        job = put(store, log=["one"])
        lose = functools.partial(store.client.delete, key_of(store, job.uuid))
        ran = pjobs(*words, job.uuid, course=steps(lose))
        assert (ran.code, len(ran.out)) == (1, 1)
        assert ran.err == [f"pjobs: The record of {job.uuid}{end}"]
        assert 5 < sum(pjobs.pauses.slept) < store.stalled_after + 2


@pytest.mark.promise("pjobs-ends-quietly")
def test_signals_end_a_command_quietly(pjobs, store):
    """A signal ends a command quietly, and cancels no job. Under nohup, it goes on."""
    job = put(store, "queued")

    for signum, code in SIGNALS:
        interrupt = functools.partial(signal.raise_signal, signum)
        ran = pjobs("wait", job.uuid, course=steps(interrupt))
        assert (ran.code, states(ran.out), ran.err) == (code, ["queued"], [])
    assert load_job(store, job.uuid).status == "queued"
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    course = steps(lambda: signal.raise_signal(signal.SIGHUP), job.cancel)
    assert pjobs("wait", job.uuid, course=course).code == 4


def test_store_may_be_away_for_a_while(pjobs, store, monkeypatch):
    """A store that is away for less than --stalled does not end a command, nor a `wait`
    at its start; stderr says when it goes and when it comes. One that refuses commands
    while somebody's script runs is away, too.
    """
    load = JobStore.load_many

    def refuse(*_: Any) -> Any:
        raise redis.ResponseError("BUSY Redis is busy running a script.")

    for command, code, end in (
        ("wait", 4, r"\. Asking again for 1 min\."),
        ("watch", 0, r", for 0\.\d s\."),
    ):
        job = put(store, "queued")
        with faulty(pjobs.url) as proxy:
            if command == "wait":
                proxy.judge = lambda request: "refuse"

            def course(proxy: Any = proxy, job: JobState = job) -> Iterator[None]:
                proxy.judge = lambda request: "refuse"
                yield
                proxy.judge = lambda request: "pass"
                yield
                monkeypatch.setattr(JobStore, "load_many", refuse)
                yield
                yield
                monkeypatch.setattr(JobStore, "load_many", load)
                assert job.cancel()

            words = ("--url", proxy.url, command, job.uuid)
            ran = pjobs.main(*words, course=course())
        assert ran.code == code
        gone, back, busy, again = ran.err
        away = r"pjobs: The store at \S+ does not answer: .*"
        assert re.fullmatch(away + end, gone)
        assert "refuses: BUSY" in busy
        assert back == again == "pjobs: The store answers again."
        assert len(states(ran.out)) == 2


def test_store_that_stays_away_ends_the_wait(pjobs, store):
    """A store that is away for longer than --stalled, or --timeout, ends the wait. What
    is known of other jobs by then decides.
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
        proxy.judge = lambda request: "pass"
        failed, job = put(store, "error"), put(store)

        def leave() -> None:
            proxy.judge = lambda request: "refuse"

        both = (*where[:3], failed.uuid, job.uuid)
        ran = pjobs.main(*both, "--stalled", "0.7s", course=steps(leave))
        assert ran.code == 3
        assert re.search(r"does not answer: .*, for (0\.\d|1) s\.$", ran.err[-1])


def test_patience_is_not_wasted(pjobs, store, client):
    """What asking again does not cure is said at once: a refusal, a wrong password."""
    job = put(store)
    client.acl_setuser("ann", enabled=True, nopass=True, categories=["+@all"])
    place = pjobs.url.removeprefix("redis://")
    try:
        for user, command, text in (
            ("ann:x", "wait", "refuses: "),
            ("me:secret", "wait", "rejects the user or the password, or wants one."),
            ("me:secret", "watch", "rejects the user or the password, or wants one."),
        ):
            url = f"redis://{user}@{place}"
            line = pjobs.main("--url", url, command, job.uuid).error(1)
            assert pjobs.pauses.slept == []
            assert line.startswith(f"pjobs: The store at {place} {text}")
            assert "secret" not in line
    finally:
        client.acl_deluser("ann")


def test_watch_tells_each_change(pjobs, runs, store):
    """Without a terminal, each change of a running job is a line with its id. One that
    waits again is not watched.
    """
    run = runs.start()
    put(store, "success")
    later: list[str] = []

    def course() -> Iterator[None]:
        run.do(lambda job: job.set_progress(1, 4))
        yield
        later.append(put(store).uuid)
        yield
        run.end(ValueError("wrong"))
        yield
        # Its worker has put it back.
        write(store, later[0], status="queued")
        yield
        signal.raise_signal(signal.SIGINT)

    ran = pjobs("watch", course=course())
    assert (ran.code, ran.err) == (130, [])
    *told, last = states(ran.out)
    assert told == [
        f"{run.uuid} working",
        f"{run.uuid} working 25% 1 of 4",
        f"{later[0]} working",
    ]
    assert re.fullmatch(rf"{run.uuid} error after [\d.]+ s: ValueError: wrong", last)


def test_given_jobs_are_watched_to_their_end(pjobs, store):
    """`watch ID…` watches these jobs, whatever their status, until they have ended."""
    done = put(store, "error", error=JobError("ValueError", HOSTILE))
    queued = put(store, "queued")
    put(store)
    ran = pjobs("watch", done.uuid, queued.uuid[:13], course=steps(queued.cancel))
    assert [re.split("[ :]", line)[:2] for line in states(ran.printed())] == [
        [done.uuid, "error"],
        [queued.uuid, "queued"],
        [queued.uuid, "cancelled"],
    ]
    assert ran.out[0].endswith(f" s: ValueError: {HARMLESS}")
    assert f'"uuid": "{done.uuid}"' in pjobs("watch", done.uuid, "--json").out[0]


def test_given_job_whose_record_is_gone(pjobs, store):
    """A job whose record is gone is given up, unless its worker writes it again. The
    time of an outage does not count. A job that ended and runs again is shown.
    """
    lost, back, again = put(store), put(store), put(store, "error")
    key = key_of(store, back.uuid)
    kept: Any = store.client.dump(key)
    with faulty(pjobs.url) as proxy:

        def course() -> Iterator[None]:
            write(store, again, status="working")
            store.client.delete(key)
            yield
            proxy.judge = lambda request: "refuse"
            yield
            pjobs.pass_time(store.stalled_after + 1)
            yield
            proxy.judge = lambda request: "pass"
            yield
            store.client.restore(key, 0, kept)
            yield
            store.client.delete(key, key_of(store, lost.uuid))
            pjobs.pass_time(2)
            yield
            pjobs.pass_time(store.stalled_after - 1)
            store.client.restore(key, 0, kept)
            yield
            pjobs.pass_time(2)
            write(store, back, status="success")
            write(store, again, status="success")

        uuids = (lost.uuid, back.uuid, again.uuid)
        ran = pjobs.main("--url", proxy.url, "watch", *uuids, course=course())
    assert ran.code == 0
    assert [tuple(line.split()[:2]) for line in states(ran.out)] == [
        (lost.uuid, "working"),
        (back.uuid, "working"),
        (again.uuid, "error"),
        (again.uuid, "working"),
        (back.uuid, "success"),
        (again.uuid, "success"),
    ]


def test_log_is_followed_to_the_end(pjobs, runs):
    """`log -f` prints the lines so far, each new one once, those of the next attempt
    too, even if they are the same, and ends with the job.
    """
    run = runs.start(options={"max_retries": 2, "min_backoff": 1, "max_backoff": 1})
    run.do(lambda job: job.append_log("one"))

    def course() -> Iterator[None]:
        for lines in (["one"], [HOSTILE, "end"], []):
            for line in lines:
                run.do(operator.methodcaller("append_log", line))
            run.report(lines=len(lines))
            yield
        for _ in range(2):
            run.fail(RuntimeError("wrong"))
            run.do(lambda job: job.append_log("one"))
            yield
        run.end(ValueError("wrong"))

    ran = pjobs("log", "-f", run.uuid, course=course())
    assert ran[:2] == (0, ["one", "one", HARMLESS, "end", "one", "one"])
    # That of the worker, which runs in this process.
    assert [line[-19:] for line in ran.err] == ["RuntimeError: wrong"] * 2
    assert pjobs("log", "--follow", run.uuid).out == ["one"]


def test_new_lines_of_a_log_are_the_fewest(pjobs, store):
    """If no line of a log is known any more, stderr says that some may be missing."""
    letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMN"
    for before, after, new, missed in (
        ("a", "aa", "a", False),
        # Only a full log drops its first line.
        ("ab", "bc", "bc", False),
        ("x" + "a" * 19, "a" * 20, "a", False),
        (letters[:20], letters[19:39], letters[20:39], False),
        (letters[:20], letters[20:], letters[20:], True),
    ):
        job = put(store, log=list(before))
        course = steps(
            functools.partial(write, store, job, log=json.dumps(list(after))),
            functools.partial(write, store, job, status="success"),
        )
        ran = pjobs("log", "-f", job.uuid, course=course)
        assert ran.out == [*before, *new], (before, after)
        error = [f"pjobs: Lines of {job.uuid} may be missing here."]
        assert ran.err == error * missed, (before, after)


def test_failures_of_a_batch_are_told_at_once(pjobs, store):
    """A failure or a cancel has a line, however little it moves the bar of a batch."""
    members: list[Any] = ["error", "queued", {"status": "queued", "weight": 9999}]
    batch = put_batch(store, Haul, members)
    _, small, large = store.members(batch.uuid).items
    ran = pjobs("wait", batch.uuid, course=steps(small.cancel, large.cancel))
    assert ran.code == 3
    *told, last = states(ran.out)
    assert told == [
        "working 0% 1 of 3 jobs, 1 error",
        "working 0% 2 of 3 jobs, 1 error, 1 cancelled",
    ]
    end = r"error after [\d.]+ s, 3 of 3 jobs, 1 error, 2 cancelled"
    assert re.fullmatch(end, last)


class Ledger(JobState):
    log_level = "WARNING"


def warn(text: str) -> Callable[[JobState], None]:
    """Return what a job does that logs a line."""
    return lambda job: logging.getLogger("tests.ledger").warning(text)


def without_times(lines: list[str]) -> list[str]:
    """Return the lines of a captured log without their times."""
    assert all(re.match(r"\d{4}-\d\d-\d\d \S+ ", line) for line in lines), lines
    return [line.split(" ", 2)[2] for line in lines]


def test_captured_log_is_followed_to_the_end(pjobs, runs):
    """`log -f` prints each line once as it comes, whatever the record says meanwhile,
    also after an outage. Where some were not kept, stderr says so.
    """
    run = runs.start(Ledger)
    run.do(warn("one"))
    with faulty(pjobs.url) as proxy:

        def course() -> Iterator[None]:
            run.do(warn(HOSTILE))
            yield
            run.do(lambda job: [warn(f"line {n}")(job) for n in range(50)])
            yield
            yield
            proxy.judge = lambda request: "refuse"
            run.do(lambda job: job.append_log("own"))
            run.do(warn("two"))
            yield
            proxy.judge = lambda request: "pass"
            yield
            for _ in range(3):
                run.do(lambda job: [warn("x" * 1000)(job) for _ in range(40)])
            yield
            run.end(ValueError("wrong"))

        follow = ("--url", proxy.url, "log", "-f", run.uuid)
        ran = pjobs.main(*follow, course=course())
        proxy.judge = lambda request: "refuse"
        assert pjobs.main(*follow, "--stalled", "2s").code == 1
        assert 0 < sum(pjobs.pauses.slept) <= 2
    logged = ["one", HARMLESS, *(f"line {n}" for n in range(50))]
    lines = [f"WARNING tests.ledger: {text}" for text in logged]
    lines += ["own", "WARNING tests.ledger: two"]
    found = without_times(ran.out)
    assert (ran.code, found[:54]) == (0, lines)
    assert 0 < len(found[54:]) < 70
    assert without_times(pjobs("log", run.uuid).printed()) == found[54:]
    gone, back, missing = ran.err
    assert "does not answer" in gone and back == "pjobs: The store answers again."
    assert missing == f"pjobs: Lines of {run.uuid} are missing here."


def test_lines_that_are_missing_between_two_are_told(pjobs, runs):
    """Also those between two lines that come at once."""
    unread = logging.Logger("tests.unread")
    unread.addHandler(logging.NullHandler())
    run = runs.start(Ledger)
    run.do(warn("one"))

    def log(job: JobState) -> None:
        warn("two")(job)
        # Nobody can read it.
        unread.warning("%d", "x")
        warn("three")(job)

    course = steps(functools.partial(run.do, log), run.end)
    ran = pjobs("log", "-f", run.uuid, course=course)
    assert ran.err == [f"pjobs: Lines of {run.uuid} are missing here."]
    found = [line.rpartition(" ")[2] for line in ran.out]
    assert found == ["one", "two", "three"]


def test_log_may_begin_at_a_level(pjobs, runs):
    """`--level` leaves out what was logged below it, and what was only appended. JSON
    has all that is known of a line.
    """
    run = runs.start(Ledger)
    run.do(warn("low"))
    run.do(lambda job: job.append_log("own"))
    run.do(lambda job: logging.getLogger("tests.ledger").error("high"))
    run.end()
    (line,) = without_times(pjobs("log", run.uuid, "--level", "error").printed())
    assert line == "ERROR tests.ledger: high"
    _, own, high = pjobs("log", run.uuid, "--json").values()
    assert (own["line"], own["level"], own["logger"]) == ("own", None, None)
    assert re.fullmatch(r"\d{4}-.*Z", high.pop("time"))
    assert high == {
        "uuid": run.uuid,
        "number": 3,
        "line": "high",
        "level": "ERROR",
        "logger": "tests.ledger",
        "attempt": 1,
    }
    plain = runs.start()
    plain.do(lambda job: job.append_log("own"))
    plain.end()
    ran = pjobs("log", plain.uuid, "--level", "INFO")
    assert (ran.code, ran.out) == (0, [])
    assert "sets no log_level" in ran.err[0]
    # An application may have levels of its own.
    assert without_times(pjobs("log", run.uuid, "--level", "40").printed()) == [line]
    assert not pjobs("log", run.uuid, "--level", "41").printed()
    refused = pjobs("log", run.uuid, "--level", "loud").error(2)
    assert "the level loud is unknown: choose from CRITICAL, " in refused
