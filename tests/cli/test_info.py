"""`pjobs … info`."""

import json
from pathlib import Path

import pytest
import redis

from pyramid_jobstate import JobError, JobState, JobStore
from pyramid_jobstate.cli import info
from tests.cliapp import PJOBS, Folder
from tests.operated import HARMLESS, HOSTILE, Operator, put, run
from tests.support import key_of
from tests.terminal import terminal


class Stroll(JobState):
    """A kind that is busier than marathons."""


class Idle(JobState):
    """A kind that this process knows, and the store does not."""


class Strange(JobState):
    """A kind with a hostile name."""

    kind = HOSTILE


@pytest.fixture(autouse=True)
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the kinds that the tests define, one is known."""
    monkeypatch.setattr(info, "_known", lambda cls: ["Idle"])


def fill(store: JobStore, client: redis.Redis) -> None:
    """Store jobs of each status."""
    for _ in range(3):
        put(store, cls=Stroll)
    put(store)
    put(store, "cancelling")
    for status in ("queued", "queued", "retrying", "error", "success", "cancelled"):
        error = JobError("E", "x") if status in ("error", "retrying") else None
        put(store, status, error=error)
    stalled = put(store, "working", cls=Stroll)
    client.hset(key_of(store, stalled.uuid), "seen", 1)


def test_jobs_are_counted(
    pjobs: Operator, store: JobStore, client: redis.Redis
) -> None:
    """Without a command, a line has the totals, and one for each kind its own, the
    busiest first; the kinds that this process knows count, too.
    """
    fill(store, client)
    ran = pjobs()
    assert (ran.code, ran.err) == (0, [])
    assert ran.out == [
        "running 5   waiting 2   retrying 1   stalled 1   | 24 h: done 1  failed 1",
        "Stroll  3 running  0 waiting  0 failed  1 stalled",
        "RunMarathon  2 running  2 waiting  1 failed  1 retrying",
        "Idle  0 running  0 waiting  0 failed",
    ]
    assert pjobs("info").out == ran.out


def test_json_is_one_object(
    pjobs: Operator, store: JobStore, client: redis.Redis
) -> None:
    """With --json, one object has all counts, and those of each kind."""
    fill(store, client)
    (line,) = pjobs("--json").out
    found = json.loads(line)
    kinds = found.pop("kinds")
    assert found == {
        "queued": 2,
        "working": 4,
        "retrying": 1,
        "stalled": 1,
        "cancelling": 1,
        "success": 1,
        "error": 1,
        "cancelled": 1,
        "ended": {"seconds": 86400, "success": 1, "error": 1, "cancelled": 1},
    }
    assert list(kinds) == ["Stroll", "RunMarathon", "Idle"]
    assert kinds["Stroll"].keys() == found.keys()
    assert kinds["Stroll"]["working"] == 3


def test_kinds_are_harmless(pjobs: Operator, store: JobStore) -> None:
    """A kind acts on no terminal, and ends no line."""
    put(store, "queued", cls=Strange)
    assert pjobs().out[1] == f"{HARMLESS}  0 running  1 waiting  0 failed"


def test_a_terminal_shows_bars(
    redis_url: str, store: JobStore, client: redis.Redis
) -> None:
    """On a terminal, bars show which kinds run most, and numbers stand in columns."""
    fill(store, client)
    client.zadd("jobstate:kinds", {"K" * 40: 9 * 10**15})
    with terminal("--url", redis_url) as shown:
        assert shown.end() == 0
        lines = shown.lines()
    assert lines[0].startswith("running 5   waiting 2   ")
    assert lines[1] == (
        "Stroll                          ████████████████  "
        "3 running  0 waiting  0 failed  1 stalled"
    )
    assert lines[2] == (
        "RunMarathon                     ██████████▋       "
        "2 running  2 waiting  1 failed  1 retrying"
    )
    assert lines[3].startswith(f"{'K' * 29}…  ")


def test_a_terminal_without_jobs(redis_url: str, store: JobStore) -> None:
    """Without jobs, the totals remain, in several lines if the terminal is narrow."""
    with terminal("--url", redis_url, "info", columns=40) as shown:
        assert shown.end() == 0
        assert shown.lines() == [
            "running 0   waiting 0   retrying 0",
            "stalled 0   | 24 h: done 0  failed 0",
        ]


def test_kinds_of_the_application(
    tmp_path: Path, redis_url: str, store: JobStore
) -> None:
    """With an ini, kinds without a job are counted, and those of subclasses; what has
    ended counts for as long as the application keeps it.
    """
    folder = Folder(tmp_path, redis_url)
    more = "\nfrom pyramid_jobstate import JobState\n\n"
    more += "class Walk(JobState): pass\nclass Hike(Walk): pass\n"
    folder.module.write_text(folder.module.read_text() + more)
    folder.write_ini(**{"greeting =": "jobstate.expire_in = 2h\ngreeting ="})
    code = f"import os; os.chdir({str(tmp_path)!r}); {PJOBS}"
    ran = run(str(folder.ini), "word=hi", code=code)
    assert ran.code == 0
    assert ran.out[0].endswith("| 2 h: done 0  failed 0")
    assert [line.split()[0] for line in ran.out[1:]] == ["Hike", "Walk"]
    ran = run("--url", redis_url)
    assert len(ran.out) == 1
