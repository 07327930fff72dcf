"""`pjobs … watch`: bars on a terminal, lines elsewhere."""

import re
import signal
import time
from collections.abc import Sequence
from typing import Any

import pytest
import redis

from pyramid_jobstate import JobError, JobState, JobStore, Progress
from pyramid_jobstate.cli import watching
from pyramid_jobstate.cli.stores import INTERVAL
from pyramid_jobstate.cli.watching import Given, Running
from pyramid_jobstate.embedded import EmbeddedServer
from tests.listed import create
from tests.operated import HARMLESS, HOSTILE, Operator, Start, end, finished, put
from tests.support import UUID, busy, frozen, key_of
from tests.terminal import terminal


def test_running_jobs_are_bars_that_move(
    redis_url: str, store: JobStore, client: redis.Redis
) -> None:
    """Each running job has a bar, also one that starts later; texts are harmless and
    markup is text; an ended job stays for a moment. Ctrl-C restores the terminal, with
    the last state below, and ends with 130.
    """
    job = put(store, progress=Progress(1, 4, "rows"), message=HOSTILE)
    put(store, "success")
    create(store, 3)
    with terminal("--url", redis_url, "watch", columns=150) as shown:
        text = shown.wait_for("working 1 *\n")
        assert shown.screen.alternate and not shown.screen.has_cursor
        head, row = text.splitlines()
        assert re.fullmatch(r"\d\d:\d\d:\d\d   working 1", head)
        bar = "━━━━━╺━━━━━━━━━━━━━━"
        assert row.startswith(f"{job.uuid[:8]}  RunMarathon  {bar}  working  25% 1 of ")
        assert HARMLESS[:40] in row
        key = key_of(store, job.uuid)
        client.hset(key, "message", '"[b]Reading[/b] :smile:"')
        client.hset(key, "progress", '[3, 4, "rows", 65]')
        shown.wait_for(r"1 min 5 s left, 75% 3 of 4 rows: \[b\]Reading\[/b\] :smile:")
        other = put(store)
        assert other.uuid[:8] in shown.wait_for("working 2").splitlines()[2]
        end(store, other, "error")
        shown.wait_for(r"error +after [\d.]+ s: ValueError: wrong")
        shown.type("\x03")
        assert shown.end() == 130
        assert not shown.screen.alternate and shown.screen.has_cursor
        assert "75% 3 of 4 rows" in shown.text()
    for character in "\x07\x9b\x7f\u202e\u2028":
        assert character not in shown.output


def test_nothing_runs(redis_url: str, store: JobStore) -> None:
    """Without running jobs the screen says so."""
    put(store, "success")
    arguments = ("--url", redis_url, "watch")
    # Variables that tell rich otherwise do not count.
    with terminal(*arguments, TTY_COMPATIBLE="0", TTY_INTERACTIVE="0") as shown:
        shown.wait_for(r"^\d\d:\d\d:\d\d   No job is running\.$")


@pytest.mark.parametrize(
    ("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_a_signal_restores_the_terminal(
    redis_url: str, store: JobStore, signum: int, code: int
) -> None:
    """SIGTERM and SIGHUP show the cursor and the former screen again."""
    with terminal("--url", redis_url, "watch") as shown:
        shown.wait_for("No job is running")
        assert shown.screen.alternate and not shown.screen.has_cursor
        shown.process.send_signal(signum)
        assert shown.end() == code
        assert not shown.screen.alternate and shown.screen.has_cursor


def test_many_jobs_on_a_small_terminal(redis_url: str, store: JobStore) -> None:
    """300 jobs fill a terminal of any size and never wrap, stalled ones come first, and
    the last line says how many are left out.
    """
    jobs = [put(store, progress=Progress(1, 4), message="x" * 200) for _ in range(300)]
    with terminal("--url", redis_url, "watch", rows=24, columns=100) as shown:
        shown.wait_for("and 278 more$")
        stalled = jobs.pop(0)
        store.client.hset(key_of(store, stalled.uuid), "seen", 1)
        text = shown.wait_for("stalled 1 ")
        lines = text.splitlines()
        assert len(lines) == 24
        assert lines[0].endswith("   stalled 1   working 299")
        assert lines[1].startswith(stalled.uuid[:8])
        ids = {job.uuid[:8] for job in jobs}
        assert all(line[:8] in ids for line in lines[2:23])
        for rows, columns, more in ((10, 60, 292), (3, 20, 299), (40, 200, 262)):
            shown.resize(rows, columns)
            text = shown.wait_for(f"and {more} more$")
            assert len(text.splitlines()) == rows
            assert text.splitlines()[0][2] == ":"
        shown.resize(1, 1)
        shown.resize(30, 100)
        shown.wait_for("and 272 more$")


def test_a_store_that_goes_and_comes_back(server: EmbeddedServer) -> None:
    """While the store is away, the last states stay with a line that says so; once it
    is back, the line is gone.
    """
    with redis.Redis.from_url(server.url) as client:
        store = JobStore(client)
        put(store, message="Reading")
        with terminal("--url", server.url, "watch", rows=5, columns=120) as shown:
            shown.wait_for("Reading")
            with frozen(server):
                text = shown.wait_for(
                    r"The store at \S+ does not answer: Timeout.*, for "
                )
                assert "Reading" in text
                shown.wait_for(r", for [1-9] s\.")
            shown.wait_for(r"Reading *\Z")
            client.config_set("requirepass", "other")
            client.client_kill_filter(_type="normal", skipme=True)
            assert shown.end() == 1
            assert shown.screen.has_cursor
            assert "rejects the user or the password" in shown.text()
            client.config_set("requirepass", "")


def test_given_jobs_are_watched_to_their_end(
    redis_url: str, store: JobStore, client: redis.Redis
) -> None:
    """`watch ID…` shows these jobs, whatever their status, and ends with 0 when they
    have ended, leaving their outcomes.
    """
    queued, working, other = put(store, "queued"), put(store), put(store)
    arguments = ("--url", redis_url, "watch", queued.uuid, working.uuid[:13])
    with terminal(*arguments) as shown:
        text = shown.wait_for("working +\n|working$")
        assert "queued" in text and other.uuid[:8] not in text
        assert queued.cancel()
        end(store, working)
        assert shown.end() == 0
        assert re.search(r"success +after \d", shown.text())
        assert "cancelled" in shown.text()


def test_without_a_terminal_each_change_is_a_line(
    start: Start, redis_url: str, store: JobStore, client: redis.Redis
) -> None:
    """Without a terminal, each change of a job is a line with its id."""
    job = put(store)
    process = start("--url", redis_url, "watch")
    assert process.stdout is not None
    clock = r"\d\d:\d\d:\d\d"
    line = process.stdout.readline()
    assert re.fullmatch(rf"{clock} {job.uuid} working\n", line)
    client.hset(key_of(store, job.uuid), "progress", "[1, 4, null, null]")
    assert process.stdout.readline().endswith(f" {job.uuid} working 25% 1 of 4\n")
    end(store, job, "error")
    assert " error after " in process.stdout.readline()
    process.send_signal(signal.SIGINT)
    assert finished(process) == (130, [], [])


def test_given_jobs_that_are_over(pjobs: Operator, store: JobStore) -> None:
    """Jobs that have ended have their line, or their object."""
    job = put(store, "error", error=JobError("ValueError", HOSTILE))
    ran = pjobs("watch", job.uuid)
    assert ran.code == 0
    assert ran.out[0].endswith(f"{job.uuid} error after 0.0 s: ValueError: {HARMLESS}")
    assert f'"uuid": "{job.uuid}"' in pjobs("watch", job.uuid, "--json").out[0]
    assert pjobs("watch", UUID).code == 1


@pytest.mark.parametrize(
    ("weather", "said"), [(frozen, "does not answer"), (busy, "refuses: BUSY")]
)
def test_an_outage_is_a_line_of_its_own(
    start: Start, server: EmbeddedServer, weather: Any, said: str
) -> None:
    """Without a terminal, an outage and its end are lines on stderr. `watch` keeps
    asking, also a store that refuses commands while a script runs.
    """
    with redis.Redis.from_url(server.url) as client:
        job = put(JobStore(client))
    process = start("--url", server.url, "watch", job.uuid)
    assert process.stdout is not None and process.stderr is not None
    assert process.stdout.readline().endswith("working\n")
    with weather(server):
        assert said in process.stderr.readline()
    assert process.stderr.readline() == "pjobs: The store answers again.\n"


def test_ended_jobs_linger(store: JobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job is shown for five seconds after its end, and not again unless it runs."""
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    job, queued = put(store), put(store, "retrying", delay=60)
    running = Running(store)
    assert {j.uuid for j in running.look()} == {job.uuid, queued.uuid}
    end(store, job)
    store.client.hset(key_of(store, queued.uuid), "status", "queued")
    (shown,) = running.look()
    assert (shown.uuid, shown.status) == (job.uuid, "success")
    now += watching.LINGER - 1
    assert len(running.look()) == 1
    now += 2
    assert running.look() == []
    assert running.look() == []


def test_a_slow_store_is_not_asked_all_the_time(
    store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a look that takes long, the next one waits as long."""
    now = 100.0
    slept = []

    class Slow(Given):
        def look(self) -> Sequence[JobState]:
            nonlocal now
            now += 3
            return super().look()

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 3:
            end(store, job)

    monkeypatch.setattr(time, "monotonic", lambda: now)
    monkeypatch.setattr(time, "sleep", sleep)
    job = put(store)
    slow = Slow(store, [job.uuid])
    assert watching.follow(store, slow, slow.look(), lambda jobs, notice: None) == 0
    assert slept == [INTERVAL, 3, 3]


def test_jobs_that_change_while_looked_for_stay(
    store: JobStore, client: redis.Redis
) -> None:
    """A job that no list has while it changes its status stays, one whose record is
    gone does not, and none jumps.
    """
    jobs = [put(store) for _ in range(3)]
    running = Running(store)
    order = [job.uuid for job in running.look()]
    assert client.zrem("{jobstate:active:all}:working", order[1])
    assert [job.uuid for job in running.look()] == order
    client.delete(key_of(store, order[1]))
    new = put(store)
    assert [job.uuid for job in running.look()] == [order[0], order[2], new.uuid]
    assert {job.uuid for job in jobs} == set(order)


def test_given_jobs_may_vanish(
    store: JobStore, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job without a record is shown as it last was until it counts as silent, since
    its worker may write it again.
    """
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    job = put(store)
    given = Given(store, [job.uuid])
    fields = client.dump(key_of(store, job.uuid))
    for _ in range(2):
        assert [j.uuid for j in given.look()] == [job.uuid]
        client.delete(key_of(store, job.uuid))
        assert len(given.look()) == 1
        now += store.stalled_after - 1
        client.restore(key_of(store, job.uuid), 0, fields or b"")
    assert len(given.look()) == 1
    client.delete(key_of(store, job.uuid))
    assert len(given.look()) == 1 and not given.is_over
    now += store.stalled_after + 1
    assert list(given.look()) == []
    assert given.is_over
