"""What a store knows of batches, and does when it has not heard of their members."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import redis

from pyramid_jobstate import Batch, JobStateMiddleware, JobStore
from pyramid_jobstate.embedded import EmbeddedServer
from pyramid_jobstate.job.changes import End, Member, NewBatch, NewJob, Update
from pyramid_jobstate.job.record import (
    BATCH,
    CANCELLED,
    MEMBERS_CANCELLED,
    NOT_SENT,
    JobError,
    JobInfo,
    Record,
)
from pyramid_jobstate.store import batches, connection, reading, scripts, trouble
from pyramid_jobstate.store.scripts import Reply
from pyramid_jobstate.store.told import Change
from pyramid_jobstate.testing import pass_time
from tests.jobs import messages, new_id
from tests.support import load_job, wait_for

INFO = JobInfo("Batch", "", 0, '"alice"', "{}", batch=BATCH)


class Bed:
    """A batch, with members whose messages the broker has accepted.

    Attributes:
      uuids: Its members.
    """

    def __init__(
        self, store: JobStore, count: int = 3, *, delay: float = 0.0, sent: bool = True
    ) -> None:
        self.store = store
        self.client: Any = store.client
        self.uuid = new_id()
        self.info = JobInfo("JobState", "a", 0, '"alice"', "{}", batch=self.uuid)
        self.jobs = [
            NewJob(new_id(), self.info, delay, sender="s") for _ in range(count)
        ]
        self.uuids = [job.uuid for job in self.jobs]
        self.new = NewBatch(
            self.uuid, INFO, {}, "s", [Member(job, 1000) for job in self.jobs]
        )
        store.batches.open(self.new)
        # As a request does: the batch knows already that they are being sent.
        store.create_new(*self.jobs, tells=False)
        if sent:
            store.confirm_members(self.jobs)

    def key(self, name: str = "") -> str:
        key = f"jobstate:{self.uuid}"
        return f"{{{key}}}:{name}" if name else key

    def load(self) -> Batch:
        """Return the batch as a poll does."""
        batch = self.store.load(self.uuid)
        assert isinstance(batch, Batch)
        return batch

    def counts(self) -> dict[str, int]:
        return {status: n for status, n in self.load().counts.items() if n}

    def run(self, place: int, end: End | None = None, token: str = "") -> Reply:
        """Have a worker run a member, and perhaps end it."""
        token = token or new_id()[:12]
        update = Update(self.uuids[place], token, 1, self.info, begins=True, end=end)
        (reply,) = self.store.write([update])
        assert isinstance(reply, Reply)
        return reply

    def end(self, place: int, status: str = "success") -> None:
        error = None if status == "success" else JobError("E", "x")
        assert self.run(place, End(status, error)) == Reply.OK

    def change(self, place: int, **fields: Any) -> None:
        """Change the record of a member without its batch's knowledge."""
        rev = int(self.client.hget(f"jobstate:{self.uuids[place]}", "rev"))
        key = f"jobstate:{self.uuids[place]}"
        self.client.hset(key, mapping={"rev": rev + 1, **fields})

    def grow_old(self, seconds: float = 20) -> None:
        """Let the batch be silent for a while."""
        self.client.hincrby(self.key(), "updated", -int(seconds * 1000))
        self.client.hdel(self.key(), "looked")

    def ttls(self) -> list[int]:
        keys = [self.key(name) for name in ("", "members", "order")]
        return [self.client.ttl(key) for key in keys]


@pytest.fixture
def bed(store: JobStore) -> Bed:
    return Bed(store)


#: How a member comes to be in a state, by the letter of the state.
BECOMES: dict[str, Callable[[Bed, int], object]] = {
    "n": lambda bed, place: None,
    "q": lambda bed, place: bed.store.confirm_members([bed.jobs[place]]),
    "w": lambda bed, place: bed.run(place),
    # It is due at once, and overdue when it has been silent.
    "r": lambda bed, place: bed.run(place, End("retrying", JobError("E", "x"), 0.0)),
    "d": lambda bed, place: bed.run(place, End("retrying", JobError("E", "x"), 60.0)),
    "s": lambda bed, place: bed.end(place),
    "e": lambda bed, place: bed.end(place, "error"),
    "c": lambda bed, place: bed.end(place, "cancelled"),
}


@pytest.mark.parametrize(
    ("members", "fresh", "silent"),
    [
        *[(letters, "queued", "queued") for letters in ("q", "qq")],
        *[(letters, "queued", "stalled") for letters in ("n", "nq")],
        *[(letters, "working", "queued") for letters in ("qs", "qe", "qc", "qsec")],
        *[(letters, "working", "retrying") for letters in ("r", "d", "rq", "dqs")],
        *[(letters, "working", "stalled") for letters in ("w", "wq", "wr", "wds")],
        *[(letters, "working", "stalled") for letters in ("ns", "nr", "nwq")],
    ],
)
def test_silent_batch(store: JobStore, members: str, fresh: str, silent: str) -> None:
    """It is stalled if a member runs or was never confirmed sent, else retrying if one
    is to be tried again, else queued.
    """
    bed = Bed(store, len(members), sent=False)
    for place, letter in enumerate(members):
        BECOMES[letter](bed, place)
    assert bed.load().status == fresh
    pass_time(store, 14)
    assert bed.load().status == fresh
    pass_time(store, 2)
    assert bed.load().status == silent
    # What it knows was right, and the look at its members has changed nothing.
    assert bed.load().status == silent


def test_batch_that_is_heard_of_again(bed: Bed) -> None:
    """What it reads when it is silent follows its members."""
    found = []
    for letter in "wrwss":
        BECOMES[letter](bed, 1 if letter == "s" and "queued" in found else 0)
        assert bed.load().status == "working"
        pass_time(bed.store, 16)
        found.append(bed.load().status)
    assert found == ["stalled", "retrying", "stalled", "queued", "queued"]


def test_look_is_no_sign_of_life(bed: Bed) -> None:
    """What it finds of a member is as old as the member's own last sign of life."""
    bed.run(0)
    bed.run(1)
    bed.change(0, status="success")
    bed.change(1)
    pass_time(bed.store, 20)
    assert bed.load().status == "stalled"
    assert bed.counts() == {"queued": 1, "working": 1, "success": 1}


def test_look_finds_a_sign_of_life(bed: Bed) -> None:
    """Its worker has died or the store had failed before the batch was told of it."""
    token = "a" * 12
    bed.run(0, token=token)
    pass_time(bed.store, 20)
    bed.store._run(
        [bed.store._calls.report(Update(bed.uuids[0], token, 2, bed.info, tells=True))]
    )
    assert bed.load().status == "working"


def test_bar_does_not_go_back(store: JobStore) -> None:
    """A member that is tried again, or starts again, takes work back: the bar waits
    until it is done again, also if the change is told twice or late.
    """
    bed = Bed(store, 2)
    bed.client.hset(bed.key("members"), bed.uuids[0], "q 1 0 4000 1")
    bed.client.hset(bed.key(), "weight", 5000)
    told: list[Change] = []

    def tell(place: int, status: str, millionths: int | None = None) -> float | None:
        told.append(
            Change(
                bed.uuid,
                bed.uuids[place],
                str(5 * 10**15 + len(told)),
                status,
                millionths,
            )
        )
        store._run(map(store.batches.tell, (told[-1], *told)))
        return bed.load().progress.fraction

    assert tell(0, "working", 0) == 0
    assert tell(0, "working", 750_000) == 0.6
    assert tell(0, "retrying") == 0.6
    assert tell(0, "working", 250_000) == 0.6
    assert tell(1, "success") == 0.6
    assert tell(0, "working", 750_000) == 0.8
    assert tell(0, "working", 0) == 0.8
    assert tell(1, "queued") == 0.8
    assert tell(0, "success") == 0.8
    assert tell(1, "working", 500_000) == 0.9
    assert bed.client.hget(bed.key(), "sum") == b"4500000000"
    assert tell(1, "success") == 1


def test_bar_starts_anew(store: JobStore) -> None:
    """With new members, and when a member runs again after the end."""
    bed = Bed(store, 2)
    bed.end(0, "error")
    bed.run(0)
    assert bed.load().progress.fraction == 0.5
    job = NewJob(new_id(), bed.info, sender="s")
    assert bed.store.batches.add(bed.uuid, [Member(job, 1000)], bed.uuids[0]) == [1]
    assert bed.load().progress.fraction == 0
    bed.uuids.append(job.uuid)
    bed.end(0)
    bed.end(1)
    bed.run(1)
    # The same member again, which the batch has already.
    assert bed.store.batches.add(bed.uuid, [Member(job, 1000)]) == [2]
    assert bed.load().progress.fraction == 2 / 3
    bed.end(1)
    bed.end(2)
    assert bed.load().progress.fraction == 1
    bed.run(2)
    assert bed.load().progress.fraction == 2 / 3


def test_time_left_is_that_of_the_work(store: JobStore) -> None:
    """Also while the bar waits for it."""
    bed = Bed(store, 4)
    for place in range(3):
        bed.end(place)
    bed.client.hincrby(bed.key(), "started", -30_000)
    assert bed.load().progress.eta == pytest.approx(10, abs=0.2)
    bed.run(0)
    bed.run(1)
    assert bed.load().progress.fraction == 0.75
    assert bed.load().progress.eta == pytest.approx(90, abs=0.5)


def test_batch_whose_sender_died(store: JobStore) -> None:
    """Between any two of its members: it is stalled until somebody cancels it. Those
    that were sent run.
    """
    bed = Bed(store, sent=False)
    store.confirm_members(bed.jobs[:1])
    store.client.delete(f"jobstate:{bed.uuids[2]}")
    bed.end(0)
    bed.grow_old()
    assert bed.load().status == "stalled"
    assert bed.counts() == {"queued": 2, "success": 1}
    assert bed.load().cancel()
    assert bed.load().status == "cancelled"
    assert bed.counts() == {"success": 1, "cancelled": 2}


def test_look_finds_what_was_not_told(bed: Bed) -> None:
    """A worker died between the two writes of an end."""
    bed.run(0)
    bed.change(0, status="success")
    assert bed.counts() == {"queued": 2, "working": 1}
    bed.grow_old()
    assert bed.counts() == {"queued": 2, "success": 1}
    assert bed.load().progress.fraction == 1 / 3


def test_look_finds_that_messages_were_sent(store: JobStore) -> None:
    bed = Bed(store, sent=False)
    for uuid in bed.uuids:
        store.confirm(uuid, "JobState")
        store.client.hincrby(f"jobstate:{uuid}", "rev", 1)
    bed.grow_old()
    bed.load()
    bed.grow_old()
    assert bed.load().status == "queued"


def test_look_finds_members_that_could_not_be_sent(store: JobStore) -> None:
    bed = Bed(store, sent=False)
    bed.change(0, status="error", error=f'[null,"{NOT_SENT.message}"]')
    bed.grow_old()
    assert bed.counts() == {"queued": 2, "error": 1}
    # It may be sent again, by its key.
    assert list(store.batches.add(bed.uuid, bed.new.members)) == [2, 2, 2]


def test_look_takes_lost_members_for_failed(bed: Bed) -> None:
    """Those that had ended keep their count."""
    bed.end(0)
    bed.run(1)
    for uuid in bed.uuids:
        bed.client.delete(f"jobstate:{uuid}")
    bed.grow_old()
    assert bed.load().status == "error"
    assert bed.counts() == {"success": 1, "error": 2}
    # One runs after all.
    bed.end(2)
    assert bed.counts() == {"success": 2, "error": 1}


@pytest.mark.parametrize("status", ["working", "retrying", "queued"])
def test_look_leaves_unsent_members_to_their_sender(bed: Bed, status: str) -> None:
    """One without a record has failed if no member is left that could send it. It may
    still be sent, and counts once.
    """
    member = Member(NewJob(new_id(), bed.info, sender="s"), 1000)
    assert bed.store.batches.add(bed.uuid, [member], bed.uuids[0]) == [1]
    bed.end(1)
    bed.end(2)
    if status == "working":
        bed.run(0)
    elif status == "retrying":
        bed.run(0, End("retrying", JobError("E", "x"), 60.0))
    bed.grow_old()
    assert bed.counts() == {"queued": 1, "success": 2} | (
        {"queued": 2} if status == "queued" else {status: 1}
    )
    bed.end(0)
    bed.grow_old()
    assert bed.load().status == "error"
    assert bed.counts() == {"success": 3, "error": 1}
    # Its sender runs again.
    bed.run(0)
    assert bed.store.batches.add(bed.uuid, [member], bed.uuids[0]) == [2]
    bed.store.create(member.job)
    bed.end(0)
    assert bed.counts() == {"queued": 1, "success": 3}
    bed.uuids.append(member.job.uuid)
    bed.end(3)
    assert bed.load().status == "success"
    check_sums(bed)


def test_look_does_not_judge_by_some_of_the_unsent_members(bed: Bed) -> None:
    """Those that it does not see may be about to send the others."""
    members = [
        Member(NewJob(new_id(), bed.info, sender="s"), 1000)
        for _ in range(batches.LOOKED_AT + 1)
    ]
    bed.store.batches.add(bed.uuid, members, bed.uuids[0])
    for number in range(3):
        bed.end(number)
    bed.grow_old()
    assert bed.counts() == {"queued": len(members), "success": 3}


def test_look_at_an_unsent_member_of_a_cancelled_batch(bed: Bed) -> None:
    """It reads cancelled, and has not failed."""
    member = Member(NewJob(new_id(), bed.info, sender="s"), 1000)
    bed.store.batches.add(bed.uuid, [member], bed.uuids[0])
    bed.end(1)
    bed.end(2)
    bed.run(0, token="a" * 12)
    assert bed.load().cancel()
    bed.run(0, End("success"), token="a" * 12)
    bed.grow_old()
    assert bed.counts() == {"success": 3, "cancelled": 1}
    assert bed.load().status == "cancelled"


def test_look_at_a_member_that_was_deleted_before(store: JobStore) -> None:
    """Its message runs nothing: it counts as cancelled, and the batch ends."""
    bed = Bed(store, 2)
    job = NewJob(new_id(), bed.info._replace(batch=None), sender="s")
    store.create(job)
    assert store.cancel(job.uuid, job.info)
    assert store.delete(job.uuid)
    member = Member(job._replace(info=bed.info), 1000)
    store.batches.add(bed.uuid, [member], bed.uuids[0])
    store.create_new(member.job)
    store.confirm_members([member.job])
    bed.end(0)
    bed.end(1)
    bed.grow_old()
    assert bed.counts() == {"success": 2, "cancelled": 1}
    assert bed.load().status == "cancelled"


def test_look_goes_through_all_members_in_turn(store: JobStore) -> None:
    """At most 20 each time, and once a second at most."""
    bed = Bed(store, 50)
    for place in range(50):
        bed.change(place, status="success")
    for done in (20, 40):
        bed.grow_old()
        assert bed.counts() == {"queued": 50 - done, "success": done}
        bed.client.hincrby(bed.key(), "updated", -20_000)
        assert bed.counts()["success"] == done
    bed.grow_old()
    assert bed.load().status == "success"


def test_look_begins_again_at_the_end(store: JobStore) -> None:
    bed = Bed(store, 25)
    bed.grow_old()
    bed.load()
    bed.change(0, status="success")
    bed.grow_old()
    assert bed.counts() == {"queued": 25}
    bed.grow_old()
    assert bed.counts() == {"queued": 24, "success": 1}


def test_batch_that_hears_of_its_members_is_not_looked_at(
    bed: Bed, monkeypatch: pytest.MonkeyPatch
) -> None:
    bed.run(0)
    bed.change(0, status="success")
    assert bed.counts() == {"queued": 2, "working": 1}
    bed.end(1)
    bed.end(2)
    # Neither is one that is over.
    bed.client.hset(bed.key(), "status", "error")
    bed.grow_old()
    assert bed.counts() == {"working": 1, "success": 2}


def test_look_at_a_read_only_server() -> None:
    """What cannot be told is not shown, and no poll fails."""
    with EmbeddedServer() as primary, EmbeddedServer() as replica:
        bed = Bed(JobStore(primary.url))
        bed.run(0)
        bed.change(0, status="success")
        bed.grow_old()
        client = redis.Redis.from_url(replica.url)
        client.replicaof("127.0.0.1", str(primary.port))
        reader = JobStore(client)

        def counts() -> Any:
            batch = reader.load(bed.uuid)
            return isinstance(batch, Batch) and batch.counts

        found = wait_for(counts)
        assert (found["working"], found["queued"]) == (1, 2)
        assert len(reader.members(bed.uuid).items) == 3


def test_late_and_double_changes_are_not_applied(bed: Bed) -> None:
    bed.run(0)
    key = f"jobstate:{bed.uuids[0]}"
    rev = int(bed.client.hget(key, "rev"))
    late = Change(bed.uuid, bed.uuids[0], str(rev - 1), "success")
    for change in (late, late._replace(rev=str(rev)), late._replace(uuid=new_id())):
        bed.store.batches.tell_all([change])
        assert bed.counts() == {"queued": 2, "working": 1}
    bed.store.batches.tell_all([late._replace(rev=str(rev + 1))])
    assert bed.counts() == {"queued": 2, "success": 1}


def test_record_that_is_behind_its_batch_catches_up(bed: Bed) -> None:
    """After a failover to a server that had not got its last changes, and whose clock
    is behind: what the record says is true.
    """
    bed.end(0, "error")
    key = f"jobstate:{bed.uuids[0]}"
    known = int(bed.client.hget(key, "rev"))
    # The server's clock is an hour ahead of what the record tells.
    entry = f"e {known + 3_600_000_000} 1000000 1000 1"
    bed.client.hset(bed.key("members"), bed.uuids[0], entry)
    bed.end(0)
    assert bed.counts() == {"queued": 2, "success": 1}
    assert int(bed.client.hget(key, "rev")) == known + 3_600_000_001
    bed.end(1)
    assert bed.counts() == {"queued": 1, "success": 2}


def test_record_that_vanishes_while_it_catches_up(bed: Bed) -> None:
    bed.end(0)
    rev = int(bed.client.hget(f"jobstate:{bed.uuids[0]}", "rev"))
    bed.client.delete(f"jobstate:{bed.uuids[0]}")
    old = Change(bed.uuid, bed.uuids[0], str(rev - 5), "working")
    bed.store.batches.tell_all([old])
    assert bed.counts() == {"queued": 2, "success": 1}


def test_batch_lives_as_long_as_its_members_may_wait(store: JobStore) -> None:
    """Whether it was cancelled or not; and a day after the end of the last one."""
    day = 86_400
    bed = Bed(store, 2, delay=20 * day)
    assert min(bed.ttls()) > 27 * day
    bed.end(0)
    assert min(bed.ttls()) > 27 * day
    assert bed.load().cancel()
    assert bed.load().status == "cancelled"
    assert min(bed.ttls()) > 27 * day
    bed.run(1, End("cancelled", JobError(None, "x")))
    assert max(bed.ttls()) <= day
    retried = Bed(store, 1)
    retried.run(0, End("retrying", JobError("E", "x"), 10.0 * day))
    assert min(retried.ttls()) > 17 * day


def test_cleared_batch_leaves_its_members(bed: Bed) -> None:
    bed.end(0)
    bed.end(1, "error")
    bed.end(2)
    assert bed.store.delete(bed.uuid)
    assert bed.store.load(bed.uuid) is None
    assert (
        bed.client.exists(bed.key("members"), bed.key("failed"), bed.key("order")) == 0
    )
    assert bed.store.members(bed.uuid).items == []
    assert bed.store.load(bed.uuids[0]) is not None
    assert bed.store.list(owner="alice").items == []
    # A member that runs again is a job of its own.
    assert bed.run(1) == Reply.OK
    (job,) = bed.store.list(owner="alice").items
    assert (job.uuid, job.status) == (bed.uuids[1], "working")


def test_cleared_batch_that_was_cancelled_stops_its_members(bed: Bed) -> None:
    assert bed.load().cancel()
    assert bed.store.delete(bed.uuid)
    record = bed.store.record(bed.uuids[0])
    assert record is not None
    assert record.status == "cancelled"
    assert bed.run(0) == Reply.CANCELLED
    assert bed.store.list(owner="alice").items == []


def test_cleared_members_keep_their_counts(bed: Bed) -> None:
    bed.end(0)
    bed.end(1, "error")
    assert bed.store.clear(everything=True).done == 2
    assert bed.counts() == {"queued": 1, "success": 1, "error": 1}
    assert [job.uuid for job in bed.store.members(bed.uuid).items] == [bed.uuids[2]]
    bed.end(2)
    assert bed.load().status == "error"


def test_member_that_was_cleared_before_its_batch_knew(bed: Bed) -> None:
    """A worker died between the two writes of an end."""
    bed.run(0)
    bed.change(0, status="success", finished=1)
    assert bed.store.delete(bed.uuids[0])
    assert bed.counts() == {"queued": 2, "working": 1}
    bed.grow_old()
    assert bed.counts() == {"queued": 2, "success": 1}


def test_bulk_cancel_takes_batches_and_members(bed: Bed) -> None:
    result = bed.store.cancel_all(everything=True)
    assert result.done == 4
    assert bed.load().status == "cancelled"
    assert bed.counts() == {"cancelled": 3}


def test_cancelled_member_counts(bed: Bed) -> None:
    member = bed.store.load(bed.uuids[0])
    assert member is not None
    assert member.cancel()
    assert bed.counts() == {"queued": 2, "cancelled": 1}
    assert bed.load().progress.done == 1


def test_members_of_a_cancelled_batch_in_lists(bed: Bed) -> None:
    """They read cancelled there, too, before their messages come."""
    bed.run(0)
    assert bed.load().cancel()
    found = {job.uuid: job.status for job in bed.store.list(kind="JobState").items}
    assert found == {
        bed.uuids[0]: "working",
        bed.uuids[1]: "cancelled",
        bed.uuids[2]: "cancelled",
    }


def test_batch_is_listed_anew_before_its_place_expires(store: JobStore) -> None:
    """Like the job of a run that goes on for longer than unfinished jobs are kept."""
    store = store.replace(active_expire_in=80)
    bed = Bed(store)
    for _ in range(20):
        bed.run(0)
        pass_time(store, 10)
        assert bed.uuid in [job.uuid for job in store.list(owner="alice").items]
        assert bed.uuid in [job.uuid for job in store.list(kind="Batch").items]


def test_batch_whose_members_are_due_late_stays_listed(store: JobStore) -> None:
    """As long as they do, even if they are sent or tried again later."""
    store = store.replace(active_expire_in=50)
    batches = [Bed(store, 1, delay=300), Bed(store, 2), Bed(store, 2)]
    late = NewJob(new_id(), batches[1].info, 300, sender="s")
    assert store.batches.add(batches[1].uuid, [Member(late, 1000)], "") == [1]
    batches[2].run(0, End("retrying", JobError("E", "x"), 300))
    pass_time(store, 120)
    other = Bed(store)
    found = {job.uuid for job in store.list(kind="Batch").items}
    assert found == {bed.uuid for bed in (*batches, other)}
    assert store.kinds() == ["Batch", "JobState"]


def test_update_of_a_fenced_run_tells_no_progress(bed: Bed) -> None:
    """It is another run that has begun anew."""
    bed.run(0, token="a" * 12)
    bed.run(0, token="b" * 12)
    late = Update(bed.uuids[0], "a" * 12, 2, bed.info, {"progress": "[9,10,null,0]"})
    late.tells, late.millionths = True, 900_000
    assert bed.store.write([late]) == [Reply.FENCED]
    assert bed.load().progress.fraction == 0


def test_batch_in_a_damaged_list_harms_no_other(bed: Bed) -> None:
    """One flush tells several batches: what is wrong with one concerns no other."""
    other = Bed(bed.store)
    bed.client.set('jobstate:ended:owner:"alice"', "another program's")
    updates = []
    for each in (bed, other):
        for place in range(3):
            end = End("success")
            token = new_id()[:12]
            updates.append(
                Update(each.uuids[place], token, 1, each.info, begins=True, end=end)
            )
    assert bed.store.write(updates) == [Reply.OK] * 6
    assert bed.load().status == other.load().status == "success"


def test_damaged_member_leaves_the_others_confirmed(store: JobStore) -> None:
    bed = Bed(store, 3, sent=False)
    bed.client.delete(f"jobstate:{bed.uuids[1]}")
    bed.client.set(f"jobstate:{bed.uuids[1]}", "x")
    store.confirm_members(bed.jobs)
    store.confirm_members([])
    counts = [int(bed.client.hget(bed.key(), f"n:{letter}")) for letter in "nq"]
    assert counts == [1, 2]


@pytest.mark.parametrize("namespace", ["a}b", "{}", "x{}y"])
def test_namespace_with_a_brace_that_is_no_tag(namespace: str) -> None:
    with pytest.raises(ValueError, match="not part of a hash tag"):
        JobStore("redis://localhost", namespace=namespace)


@pytest.mark.parametrize(
    ("namespace", "error"), [(5, TypeError), (None, TypeError), ("", ValueError)]
)
def test_namespace_is_text(namespace: Any, error: type[Exception]) -> None:
    """The error names it, also before the middleware knows the server."""
    with pytest.raises(error, match=r"(?i)namespace .*(must be|is empty)"):
        JobStore("redis://localhost", namespace=namespace)
    with pytest.raises(error, match=r"(?i)namespace .*(must be|is empty)"):
        JobStateMiddleware(namespace=namespace)


def test_several_silent_batches_are_looked_at_in_turn(
    store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A call looks at a few of them, and the next one at others."""
    beds = [Bed(store, 1) for _ in range(5)]
    for bed in beds:
        bed.change(0, status="success")
        bed.grow_old()
    uuids = [bed.uuid for bed in beds]

    def over() -> int:
        return sum(
            job is not None and job.is_finished for job in store.load_many(uuids)
        )

    assert over() == 3
    assert over() == 5


def test_batch_that_was_not_sent_is_stalled_at_once(store: JobStore) -> None:
    """A look that finds nothing new does not show that the batch is alive."""
    bed = Bed(store, 100, sent=False)
    bed.grow_old()
    for _ in range(6):
        assert bed.load().status == "stalled"
        bed.client.hdel(bed.key(), "looked")
    assert bed.counts() == {"queued": 100}


@pytest.mark.parametrize("status", ["success", "error"])
def test_cancelled_batch_stays_cancelled(store: JobStore, status: str) -> None:
    """Whatever a run does that turns out to be alive: pages have acted on it."""
    bed = Bed(store, 2)
    bed.run(0, token="a" * 12)
    assert bed.load().cancel()
    bed.grow_old()
    assert bed.load().cancel()
    finished = bed.load().finished_at
    assert bed.load().status == "cancelled"
    beat = Update(bed.uuids[0], "a" * 12, 2, bed.info, tells=True)
    assert store.write([beat]) == [Reply.CANCELLING]
    assert bed.load().status == "cancelled"
    error = None if status == "success" else JobError("E", "x")
    bed.run(0, End(status, error), token="a" * 12)
    assert bed.load().status == "cancelled"
    assert bed.load().finished_at == finished
    assert bed.counts()[status] == 1


def test_start_that_is_told_after_a_cancel(bed: Bed) -> None:
    """The worker dies between the two writes of a start, and the batch is cancelled."""
    update = Update(bed.uuids[0], "a" * 12, 1, bed.info, begins=True)
    bed.store._change([update])
    assert bed.load().cancel()
    assert bed.load().status == "cancelled"
    bed.run(0, End("success"), token="a" * 12)
    assert bed.load().status == "cancelled"
    assert bed.counts() == {"success": 1, "cancelled": 2}


def test_batch_lives_for_members_that_are_queued_again_late(store: JobStore) -> None:
    """An ended one is put back with a delay, or the turn of a late step comes."""
    day = 86_400
    bed = Bed(store, 2)
    bed.end(0)
    store.create(NewJob(bed.uuids[0], bed.info, 20.0 * day, sender="s"))
    assert min(bed.ttls()) > 27 * day
    step = NewJob(new_id(), bed.info, waits=True, sender="s")
    other = Bed(store, 1)
    step = step._replace(info=other.info)
    store.batches.add(other.uuid, [Member(step, 1000)])
    store.create_new(step)
    store.create_new(step._replace(waits=False, delay=20.0 * day))
    assert min(other.ttls()) > 27 * day


def test_batch_that_is_gone_does_not_come_back(bed: Bed) -> None:
    """Its record was evicted, and the rest of it was not."""
    bed.client.delete(bed.key())
    assert bed.run(0) == Reply.OK
    assert bed.client.exists(bed.key()) == 0
    assert bed.store.load(bed.uuid) is None


def test_member_that_waits_for_its_next_try_of_a_cancelled_batch(bed: Bed) -> None:
    """It reads retrying until the batch is cancelled."""
    bed.run(0, End("retrying", JobError("E", "x"), 60))
    assert load_job(bed.store, bed.uuids[0]).status == "retrying"
    assert bed.load().cancel()
    assert load_job(bed.store, bed.uuids[0]).status == "cancelled"


def test_member_that_was_never_sent_of_a_cancelled_batch(store: JobStore) -> None:
    """It reads stalled until the batch is cancelled."""
    bed = Bed(store, sent=False)
    for uuid in bed.uuids:
        store.client.hincrby(f"jobstate:{uuid}", "updated", -20_000)
    assert [job and job.status for job in store.load_many(bed.uuids)] == ["stalled"] * 3

    assert bed.load().cancel()

    found = [job and job.status for job in store.load_many(bed.uuids)]
    assert found == ["cancelled"] * 3


def test_member_that_reads_cancelled_is_not_cancelled_again(bed: Bed) -> None:
    assert bed.load().cancel()
    member = bed.store.load(bed.uuids[0])
    assert member is not None
    assert not member.cancel()
    assert bed.counts() == {"cancelled": 3}


def test_done_and_fraction_agree_while_a_batch_is_cancelled(bed: Bed) -> None:
    bed.run(0)
    assert bed.load().cancel()
    assert bed.load().progress[:2] == (0, 3)
    assert bed.load().progress.fraction == 0
    bed.run(0, End("cancelled", JobError(None, "x")))
    assert bed.load().progress[:2] == (3, 3)
    assert bed.load().progress.fraction == 1


def test_batch_hears_though_a_list_is_damaged(bed: Bed) -> None:
    bed.client.delete("jobstate:ended:kind:JobState")
    bed.client.set("jobstate:ended:kind:JobState", "x")
    member = bed.store.load(bed.uuids[0])
    assert member is not None
    assert member.cancel()
    assert bed.counts() == {"queued": 2, "cancelled": 1}


def test_reason_why_a_batch_is_cancelled(store: JobStore) -> None:
    """Somebody has cancelled it, or one of its members."""
    bed = Bed(store, 1)
    member = store.load(bed.uuids[0])
    assert member is not None
    assert member.cancel()
    assert bed.load().error == MEMBERS_CANCELLED
    other = Bed(store, 1)
    assert other.load().cancel()
    assert other.load().error == CANCELLED
    assert Bed(store, 1).load().error is None


def test_batch_that_goes_on_is_listed_as_unfinished(store: JobStore) -> None:
    """At once, before a list finds it in a wrong place."""
    bed = Bed(store, 1)
    bed.end(0, "error")
    assert bed.client.zscore("jobstate:ended:kind:Batch", bed.uuid)
    assert bed.client.zscore("{jobstate:ended:all}:error", bed.uuid)
    bed.run(0)
    assert bed.client.zscore("jobstate:active:kind:Batch", bed.uuid)
    assert bed.client.zscore("{jobstate:active:all}:working", bed.uuid)
    assert not bed.client.zscore("jobstate:ended:kind:Batch", bed.uuid)


def test_large_weights_are_added_up(store: JobStore) -> None:
    """The sum stays exact, and can be read."""
    bed = Bed(store, 1)
    jobs = [NewJob(new_id(), bed.info, sender="s") for _ in range(3)]
    members = [Member(job, 10_000_000) for job in jobs]
    store.batches.add(bed.uuid, members)
    bed.client.hset(bed.key(), mapping={"sum": 10**18, "weight": 10**13})
    assert bed.load().progress.fraction == 0.1


@pytest.mark.parametrize("refuses", [False, True])
def test_store_that_refuses_to_say_which_batches_were_cancelled(
    bed: Bed, monkeypatch: pytest.MonkeyPatch, refuses: bool
) -> None:
    """Or whose batch another program uses: the job begins."""
    if refuses:

        def read_stops(batches: object) -> object:
            raise redis.ConnectionError("away")

        monkeypatch.setattr(bed.store._reader, "read_stops", read_stops)
    else:
        bed.client.delete(bed.key())
        bed.client.set(bed.key(), "x")
    assert bed.run(0) == Reply.OK


def test_list_of_members_while_the_store_is_away(
    bed: Bed, monkeypatch: pytest.MonkeyPatch
) -> None:
    bed.client.delete(bed.key("order"))
    bed.client.set(bed.key("order"), "x")
    assert bed.store.members(bed.uuid).items == []

    def execute(*args: object) -> list[object]:
        return [redis.ResponseError("LOADING")]

    monkeypatch.setattr(reading, "execute", execute)
    with pytest.raises(redis.ResponseError):
        bed.store.members(bed.uuid)
    with pytest.raises(redis.ResponseError):
        bed.store.is_stopped(bed.uuid)


@pytest.mark.parametrize("error", ["READONLY", "OOM"])
def test_tell_that_fails_for_now_is_told_again(
    bed: Bed, monkeypatch: pytest.MonkeyPatch, error: str
) -> None:
    """A server that takes no writes, or has no memory left, is another matter than a
    damaged batch.
    """
    real = connection.execute
    passing = redis.ReadOnlyError if error == "READONLY" else redis.OutOfMemoryError
    tell = bed.store._calls._scripts["tell_batch"].sha

    def execute(client: Any, commands: Any) -> list[Any]:
        replies = real(client, commands)
        for i, command in enumerate(commands):
            if command.args[1] == tell:
                replies[i] = passing(error)
        return replies

    monkeypatch.setattr(scripts, "execute", execute)
    update = Update(bed.uuids[0], "a" * 12, 1, bed.info, begins=True)
    (reply,) = bed.store.write([update])
    assert isinstance(reply, passing)
    with pytest.raises(passing):
        bed.store.confirm(bed.uuids[1], "JobState", None, bed.uuid)


def test_batch_that_is_opened_twice(bed: Bed) -> None:
    """Its reply was lost: nothing is counted twice."""
    bed.store.batches.open(bed.new)
    assert bed.load().size == 3
    assert bed.counts() == {"queued": 3}
    assert bed.client.llen(bed.key("order")) == 3


def test_batch_of_another_sender_stays(bed: Bed) -> None:
    bed.store.batches.forget(bed.new._replace(sender="t"))
    assert bed.counts() == {"queued": 3}
    bed.run(0)
    bed.store.batches.forget(bed.new)
    assert bed.counts() == {"queued": 2, "working": 1}


def test_restored_member(bed: Bed) -> None:
    """A rerun that the broker refused: the batch has failed again."""
    for place in range(3):
        bed.end(place, "error")
    record = bed.store.record(bed.uuids[0])
    assert record is not None
    bed.client.hset(f"{{jobstate:{record.uuid}}}:failure", "message", "{}")
    word = bed.store.requeue(record)
    assert word is not None
    assert bed.load().status == "working"
    assert bed.store.restore(record, word)
    assert bed.load().status == "error"
    assert bed.counts() == {"error": 3}


def replace(bed: Bed, name: str) -> None:
    """Have another program use a key of the batch."""
    bed.client.delete(bed.key(name))
    bed.client.set(bed.key(name), "x")


@pytest.mark.parametrize(
    "damage",
    [
        lambda bed: replace(bed, "members"),
        lambda bed: replace(bed, "failed"),
        lambda bed: replace(bed, "order"),
        lambda bed: bed.client.hset(bed.key(), "n:q", "x"),
        lambda bed: bed.client.hset(bed.key("members"), bed.uuids[0], "odd"),
    ],
    ids=["members", "failed", "order", "count", "member"],
)
def test_damaged_batch_does_not_harm_its_members(
    bed: Bed,
    damage: Any,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Another program wrote into it: its members run and end, and no poll fails."""
    caplog.set_level(logging.WARNING)
    monkeypatch.setattr(trouble, "_noted", set())
    damage(bed)
    bed.end(0, "error")
    bed.end(1)
    record = bed.store.record(bed.uuids[0])
    assert record is not None
    assert record.status == "error"
    bed.grow_old()
    bed.load()
    said = messages(caplog, "pyramid_jobstate")
    assert len(said) <= 1
    assert all("What cannot be read is skipped" in line for line in said)


@pytest.mark.parametrize(
    "damage",
    [
        lambda bed: replace(bed, "failed"),
        lambda bed: replace(bed, "order"),
        lambda bed: bed.client.hset(bed.key(), "n:s", "x"),
        lambda bed: bed.client.hset(bed.key(), "sum", "x"),
        lambda bed: bed.client.hset(bed.key(), "weight", "x"),
    ],
    ids=["failed", "order", "count", "sum", "weight"],
)
def test_damaged_batch_counts_no_change_twice(bed: Bed, damage: Any) -> None:
    """However often it is told, and looks at its members."""
    damage(bed)
    for place, status in enumerate(("error", "success", "success")):
        bed.end(place, status)
    for _ in range(3):
        bed.grow_old()
        bed.load()
    found = bed.client.hmget(bed.key(), "n:q", "n:w", "n:s", "n:e")
    assert [int(each or 0) for each in found] == [0, 0, 2, 1]
    late = NewJob(new_id(), bed.info, sender="s")
    bed.client.hset(bed.key(), "status", "working")
    assert bed.store.batches.add(bed.uuid, [Member(late, 1000)]) == [1]
    assert bed.load().size == 4


def test_cancel_of_a_member_of_a_damaged_batch(
    bed: Bed, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is cancelled all the same."""
    monkeypatch.setattr(trouble, "_noted", set())
    replace(bed, "members")
    member = bed.store.load(bed.uuids[0])
    assert member is not None
    assert member.cancel()
    record = bed.store.record(bed.uuids[0])
    assert record is not None
    assert record.status == "cancelled"
    (said,) = messages(caplog, "pyramid_jobstate")
    assert "What cannot be read is skipped" in said


def test_look_at_a_batch_that_was_cancelled(bed: Bed) -> None:
    """It has ended, and a member that waited has run after all."""
    assert bed.load().cancel()
    bed.change(0, status="success")
    bed.grow_old()
    assert bed.counts() == {"success": 1, "cancelled": 2}
    for place in (1, 2):
        bed.change(place, status="cancelled")
    bed.grow_old()
    assert bed.counts() == {"success": 1, "cancelled": 2}
    bed.grow_old()
    bed.load()
    assert not bed.client.hexists(bed.key(), "looked")


def test_look_past_a_damaged_member(bed: Bed) -> None:
    """The record of one is another program's, and that of another is gone."""
    for place in range(3):
        bed.run(place)
    for uuid in bed.uuids[:2]:
        bed.client.delete(f"jobstate:{uuid}")
    bed.client.set(f"jobstate:{bed.uuids[0]}", "x")
    bed.grow_old()
    assert bed.counts() == {"working": 1, "error": 2}
    # What a look finds does not show that the batch is alive.
    assert bed.load().status == "stalled"


def test_look_at_a_member_that_comes_back(
    bed: Bed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its message was delivered between the two readings of its record."""
    read = bed.store._reader.read

    def late(uuids: Any, *names: str) -> Any:
        found = list(read(uuids, *names))
        return [None] * len(found) if "rev" in names else found

    bed.run(0)
    bed.grow_old()
    monkeypatch.setattr(bed.store._reader, "read", late)
    assert bed.counts() == {"queued": 2, "working": 1}
    fields = bed.store._reader.fields

    def fail(*args: object) -> Any:
        raise redis.ConnectionError("away")

    monkeypatch.setattr(bed.store._reader, "fields", fail)
    bed.grow_old()
    assert bed.counts() == {"queued": 2, "working": 1}
    monkeypatch.setattr(bed.store._reader, "fields", fields)


def test_sender_that_the_batch_does_not_know(bed: Bed) -> None:
    """The store has lost the members, or the batch was deleted: the sender goes on."""
    new = [Member(NewJob(new_id(), bed.info, sender="s"), 1000)]
    assert bed.store.batches.add(bed.uuid, new, bed.uuids[0]) == [1]
    bed.client.delete(bed.key("members"))
    assert bed.store.batches.add(bed.uuid, new, bed.uuids[0]) == [-1]
    other = Bed(bed.store, 1)
    other.end(0)
    assert bed.store.delete(other.uuid)
    assert bed.store.batches.add(other.uuid, new, other.uuids[0]) == [-1]


def test_lost_member_of_a_cancelled_batch_is_not_written_anew(bed: Bed) -> None:
    """It had succeeded, and its message comes again."""
    bed.end(0)
    assert bed.load().cancel()
    bed.client.delete(f"jobstate:{bed.uuids[0]}")
    assert bed.run(0) == Reply.CANCELLED
    assert bed.store.record(bed.uuids[0]) is None
    assert bed.counts() == {"success": 1, "cancelled": 2}


def test_reopened_batch_is_listed_anew_in_time(store: JobStore) -> None:
    """Though its members had been due late."""
    store = store.replace(active_expire_in=80)
    bed = Bed(store, 1, delay=5000)
    bed.end(0, "error")
    for _ in range(20):
        bed.run(0)
        pass_time(store, 10)
        assert bed.uuid in [job.uuid for job in store.list(kind="Batch").items]


def test_stop_of_a_batch_that_is_gone(bed: Bed) -> None:
    batch = bed.load()
    bed.client.delete(bed.key())
    assert not batch.cancel()
    record = Record(bed.uuids[0], {"batch": bed.uuid, "status": "queued"}, "queued")
    batches.stop(record, None, None)
    assert record.status == "queued"


def test_repeated_cancel_of_a_batch_gets_the_same_reply(bed: Bed) -> None:
    call = bed.store.batches.stop(bed.uuid, "word".ljust(8))
    assert bed.store._run([call, call]) == [2, 2]
    running = Bed(bed.store)
    running.run(0)
    call = bed.store.batches.stop(running.uuid, "word".ljust(8))
    assert bed.store._run([call, call]) == [1, 1]


class Snapshot:
    """What a server had when its writes reached a replica for the last time."""

    def __init__(self, client: Any, *keys: str) -> None:
        self._client = client
        self._kept = {key: client.dump(key) for key in keys}

    def restore(self) -> None:
        """Take over from the server, whose later writes are lost."""
        for key, value in self._kept.items():
            self._client.delete(key)
            if value is not None:
                self._client.restore(key, 0, value)


def check_sums(bed: Bed) -> None:
    """Check that no count is negative, and that all of them make the total."""
    counts = bed.load().counts
    assert min(counts.values()) >= 0
    assert sum(counts.values()) == bed.load().size == len(bed.uuids)
    assert 0 <= (bed.load().progress.fraction or 0) <= 1


def test_failover_that_lost_what_the_batch_was_told(bed: Bed) -> None:
    """The batch looks at its members, and knows."""
    bed.run(0)
    keys = [bed.key(name) for name in ("", "members", "failed", "order")]
    before = Snapshot(bed.client, *keys)
    bed.end(0, "error")
    bed.end(1)
    bed.end(2)
    assert bed.load().status == "error"
    before.restore()
    check_sums(bed)
    assert bed.counts() == {"queued": 2, "working": 1}
    bed.grow_old()
    assert bed.counts() == {"success": 2, "error": 1}
    assert bed.load().status == "error"


def test_failover_that_lost_the_ends_of_members(bed: Bed) -> None:
    """Their runs that are delivered again put it right."""
    before = Snapshot(bed.client, *(f"jobstate:{uuid}" for uuid in bed.uuids))
    for place in range(3):
        bed.end(place, "error")
    before.restore()
    check_sums(bed)
    assert bed.load().status == "error"
    bed.end(0)
    check_sums(bed)
    assert bed.counts() == {"success": 1, "error": 2}
    bed.end(1)
    bed.end(2)
    assert bed.load().status == "success"
    assert bed.client.zcard(bed.key("failed")) == 0
