"""How long jobs of a kind run: JobStore.durations()."""

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from pyramid_jobstate import Batch, Durations, JobState, JobStore
from pyramid_jobstate.testing import pass_time, put_batch, put_job
from tests.durations import LIKE, TWO_MINUTES, put_runs
from tests.jobs import RunMarathon
from tests.lost import keys_of
from tests.store.jobs import Diary, put
from tests.store.test_hostile import litter
from tests.support import wait_for, write
from tests.trips import counting_trips, met
from tests.webapp import get, make_app, make_config

KIND = "class:RunMarathon"
KEY = "jobstate:{class:RunMarathon}:durations"
UNKNOWN = Durations()


def durations_anew(store: JobStore, kind: str = KIND) -> Durations:
    """Return the durations of a kind, even if the store knows what they were."""
    store.client.delete(KEY)
    return store.durations(kind)


def test_durations_are_those_of_the_newest_successes(store):
    """Whoever owns the jobs. Those that were cancelled or failed do not count."""
    put_runs(store, [5] * 100)
    put_runs(store, [120] * 50 + [*LIKE] * 2 + [120] * 8, owner="bob")
    for status in "error", "cancelled", "working", "queued":
        write(store, put(store, status), started=1, finished=2)
    found = store.durations(KIND)
    assert (found.p50, found.p95) == (120, 136)
    assert store.durations("RunMarathon") == found
    put_runs(store, cls=JobState, actor="stretch")
    assert store.durations("actor:stretch") == store.durations("stretch") == TWO_MINUTES
    assert store.durations("class:Diary") == UNKNOWN
    for kind in None, 26:
        with pytest.raises(TypeError, match="kind must be a str"):
            store.durations(kind)


def test_middle_half_has_two_digits(store):
    """More would mislead."""
    put_runs(store, [118.4, 121, 133.3, 166.6, 171.2] * 5)
    assert store.durations(KIND) == Durations(133.3, 171.2, 120, 170)
    put_runs(store, [0.0118, 0.021] * 60, every=1, cls=Diary)
    found = store.durations("class:Diary")
    assert (found.low, found.high) == (0.011, 0.021)


def test_durations_are_those_of_members_too(store):
    """The newest of both count."""
    put_runs(store, [5] * 100)
    member = {"job_state_class": RunMarathon, "status": "success"}
    made = put_batch(store, Batch, [member] * 100)
    later = time.time() * 1000 + 7_200_000
    for i, job in enumerate(store.members(made.uuid, limit=100).items):
        started = int(later + i * 60_000)
        write(store, job, started=started, finished=started + 120_000)
    assert store.durations(KIND) == Durations(120, 120, 120, 120)


def test_durations_wait_for_the_slow_jobs(store):
    """Of jobs that began together, the short ones end first. They tell nothing until
    jobs began over more than twice the longest duration.
    """
    crowd = [60 + i for i in range(400)]
    for ended in 20, 100, 200, 400:
        put_runs(store, crowd[ended // 2 : ended], every=0)
        assert durations_anew(store) == UNKNOWN


def test_durations_of_a_busy_kind_reach_further_back(store):
    """The newest hundred of many at once began too close to each other. Further ones
    count, as few of them as are needed.
    """
    put_runs(store, [*LIKE] * 20, every=1)
    found = store.durations(KIND)
    assert found.low is not None and found.high is not None
    assert 105 <= found.low < found.high <= 135


def test_durations_are_unknown_below_twenty(store):
    """Even if the jobs began far from each other, at more than twice the longest."""
    put_runs(store, LIKE[:19])
    assert store.durations(KIND) == UNKNOWN
    put_runs(store, LIKE[19:20])
    assert durations_anew(store).p50 == 120
    put_runs(store, [60] * 20, every=120 / 19, cls=Diary)
    assert store.durations("class:Diary") == UNKNOWN


def test_durations_that_differ_much_have_no_middle(store):
    """A kind may have small jobs and large ones."""
    put_runs(store, [10, 40] * 10)
    assert store.durations(KIND) == Durations(40, 40, 10, 40)
    put_runs(store, [10, 41] * 50)
    assert durations_anew(store) == Durations(41, 41)


def test_durations_are_kept_for_a_minute(store):
    """In the store, so that all processes say the same: a round trip then."""
    put_runs(store)
    with counting_trips() as trips:
        assert store.durations(KIND) == TWO_MINUTES
    assert len(trips) == 4
    put_runs(store, [10] * 100)
    pass_time(store, 55)
    other = store.replace()
    with counting_trips() as trips:
        assert other.durations(KIND) == TWO_MINUTES
    assert len(trips) == 1
    pass_time(store, 6)
    assert other.durations(KIND).p50 == 10


def test_durations_survive_what_others_write(store, client):
    """Nonsense in records, in lists and in the key of the durations is skipped."""
    uuids = put_runs(store, [*LIKE, 1, 2, 3, 4])
    for uuid, started, finished in zip(
        uuids[-4:], ("5", "x", "", "9" * 40), ("4", "9", "7", "1"), strict=True
    ):
        write(store, uuid, started=started, finished=finished)
    write(store, put(store, "success"), status="odd")
    litter(client)
    client.delete("jobstate:{class:RunMarathon}:members:success")
    client.set("jobstate:{class:RunMarathon}:members:success", "a text")
    for text in "", "[1,2,3]", "[1,2,3,-4]", '["a",1,2,3]', "[1,2,3,1e999]", b"\xff":
        client.set(KEY, text)
        assert store.durations(KIND) == TWO_MINUTES, text
    client.delete(KEY)
    client.hset(KEY, "a", "b")
    assert store.durations(KIND) == TWO_MINUTES


def test_durations_of_a_server_that_takes_nothing(store, client, redis_url):
    """They are reckoned at each call: a server may be read-only."""
    put_runs(store)
    client.acl_setuser(
        "reader", enabled=True, nopass=True, keys=["*"], commands=["+@read", "+time"]
    )
    reader = JobStore(redis_url.replace("//", "//reader:x@"))
    assert reader.durations(KIND) == TWO_MINUTES
    assert KEY not in keys_of(client, "string")
    client.acl_deluser("reader")


def test_kinds_without_durations_are_asked_for_once_a_minute(redis_url, store):
    """However many kinds there are whose jobs are polled."""
    app = make_app(make_config(redis_url))
    uuids = [put(store, "working"), put_job(store, Diary, owner="alice").uuid]
    asked: list[Any] = []

    def is_asking() -> bool:
        return threading.current_thread().name == "jobstate-usual"

    def meet(connection: Any, go: Callable[[], Any]) -> Any:
        asked.append(connection)
        return go()

    def is_over() -> bool:
        return "jobstate-usual" not in [t.name for t in threading.enumerate()]

    numbers = []
    with met(meet, is_asking):
        for uuid in uuids * 2:
            get(app, f"/job_state/{uuid}", "alice")
            wait_for(is_over)
            numbers.append(len(asked))
    assert 0 < numbers[0] < numbers[1] == numbers[2] == numbers[3]
