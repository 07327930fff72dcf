"""What a store says of batches, and does when it has not heard of their members."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from pyramid_jobstate import (
    Batch,
    Counts,
    JobCancelled,
    JobError,
    JobState,
    JobStore,
    Progress,
    rerun,
)
from pyramid_jobstate.testing import pass_time, put_batch
from tests.jobs import RunMarathon, messages
from tests.listed import Diary, commands, uuids_of
from tests.lost import (
    counting_trips,
    dying_at,
    keys_of,
    losing_of,
    refusing_writes,
    take_over,
    turn_clock_back,
)
from tests.store.bed import Bed, check_sums, member_of
from tests.support import key_of, load_job, wait_for

MakeBed = Callable[..., Bed]

DAY = 86_400

#: What the reason of a cancelled batch says.
CANCELLED = JobError(None, "The job was cancelled.")
MEMBERS_CANCELLED = JobError(None, "Some of its jobs were cancelled.")
MEMBERS_FAILED = JobError(None, "Some of its jobs failed.")

HALF = Progress(1, 2, None, None)

LETTERS = {
    "q": "queued",
    "w": "working",
    "r": {"status": "retrying"},
    "d": {"status": "retrying", "delay": 60},
    "s": "success",
    "e": "error",
    "c": "cancelled",
}


def put(store: JobStore, letters: str, **options: Any) -> Batch:
    """Store a batch of Alice's, whose members are in the states of some letters."""
    members: Any = [LETTERS[letter] for letter in letters]
    return put_batch(store, Batch, members, owner="alice", **options)


def loaded(store: JobStore, uuid: str) -> Batch:
    batch = store.load(uuid)
    assert isinstance(batch, Batch)
    return batch


def counts_of(store: JobStore, uuid: str) -> dict[str, int]:
    return {status: n for status, n in loaded(store, uuid).counts.items() if n}


def members_of(store: JobStore, uuid: str, **wanted: Any) -> list[str]:
    return uuids_of(store.members(uuid, **wanted).items)


# What follows from its members.


def test_status_follows_from_the_members(store: JobStore) -> None:
    """A batch that has ended has failed if a member has, unless it allows that, else it
    is cancelled if one was. Its reason says whose doing it was.
    """
    cases: list[tuple[str, bool, str, JobError | None]] = [
        ("", False, "success", None),
        ("ss", False, "success", None),
        ("se", False, "error", MEMBERS_FAILED),
        ("sec", False, "error", MEMBERS_FAILED),
        ("sc", False, "cancelled", MEMBERS_CANCELLED),
        ("se", True, "success", None),
        ("sec", True, "cancelled", MEMBERS_CANCELLED),
        ("qe", False, "working", None),
        ("qq", False, "queued", None),
    ]
    for letters, allows, status, error in cases:
        batch = put(store, letters, allow_failures=allows, title="Import")
        assert (batch.status, batch.error) == (status, error), letters
        assert (batch.size, batch.allow_failures) == (len(letters), allows)
        assert batch.title == "Import"
        assert batch.is_finished == (batch.finished_at is not None)
    assert put(store, "q").title == "Batch"


def test_bar_follows_from_the_members(store: JobStore) -> None:
    """The bar has the shares of its members by their weights, fractions as well. A
    member that is over counts whole, however it ended.
    """
    cases: list[tuple[list[Any], int, float]] = [
        (["success", "queued", "error", "cancelled"], 3, 0.75),
        ([{"status": "success", "weight": 3}, "queued"], 1, 0.75),
        ([{"status": "success", "weight": 0.5}, "queued"], 1, 1 / 3),
        ([{"status": "success", "weight": 10_000}, {"status": "queued"}], 1, 0.9999),
        ([{"status": "success", "progress": HALF}, "queued"], 1, 0.5),
        (
            ["success", {"status": "working", "progress": HALF}],
            1,
            0.75,
        ),
    ]
    for members, done, fraction in cases:
        progress = put_batch(store, Batch, members).progress
        assert progress[:3] == (done, len(members), "jobs")
        assert progress.fraction == pytest.approx(fraction, abs=1e-4), members


def test_members_are_listed_in_order(store: JobStore) -> None:
    """The members of a batch are listed as they were sent, page by page, of all
    statuses or one. Those whose records are gone are left out.
    """
    batch = put(store, "qwqesqec")
    uuids = members_of(store, batch.uuid)
    assert len(uuids) == 8
    for limit in 1, 3, 8:
        found: list[str] = []
        cursor = None
        while True:
            page = store.members(batch.uuid, limit=limit, cursor=cursor)
            found += uuids_of(page.items)
            if (cursor := page.cursor) is None:
                break
        assert found == uuids
    failed = [uuids[3], uuids[6]]
    assert members_of(store, batch.uuid, status="error") == failed
    first = store.members(batch.uuid, status="error", limit=1)
    rest = store.members(batch.uuid, status="error", cursor=first.cursor)
    assert uuids_of(first.items) + uuids_of(rest.items) == failed
    assert members_of(store, batch.uuid, status="cancelled") == uuids[7:]
    store.client.delete(key_of(store, uuids[0]))
    assert members_of(store, batch.uuid) == uuids[1:]
    assert store.members(uuids[0]) == ([], None)
    with pytest.raises(ValueError, match="cursor was not issued by this list"):
        store.members(batch.uuid, cursor="x")


def test_members_are_not_among_their_owners_jobs(store: JobStore) -> None:
    """In the list of one's own jobs, a batch stands for its members. The others have
    both.
    """
    batch = put(store, "qe")
    members = members_of(store, batch.uuid)
    assert uuids_of(store.list(owner="alice").items) == [batch.uuid]
    assert {*uuids_of(store.list().items)} == {batch.uuid, *members}
    assert store.counts() == Counts(queued=1, working=1, error=1)
    assert store.kinds() == ["Batch", "JobState"]


def test_failed_member_runs_again(bed: Bed) -> None:
    """A member that runs again is no failed one any more, and its batch goes on, also
    after its end: it is at once listed so, and its bar starts anew.
    """
    for place in range(3):
        bed.end(place, "error")
    assert bed.store.counts("Batch", anew=True) == Counts(error=1)
    assert rerun(bed.store, bed.broker, bed.uuids[0])
    assert bed.load().status == "working" and bed.load().finished_at is None
    assert bed.store.counts("Batch", anew=True) == Counts(working=1)
    assert members_of(bed.store, bed.uuid, status="error") == bed.uuids[1:]
    assert bed.counts() == {"queued": 1, "error": 2}
    assert bed.fraction() == 2 / 3


def test_refused_rerun_leaves_the_failure(bed: Bed) -> None:
    """If the broker refuses the message of a member that is to run again, the batch has
    failed again.
    """
    for place in range(3):
        bed.end(place, "error")

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise ConnectionError

    bed.broker.enqueue = refuse  # type: ignore[method-assign]
    with pytest.raises(ConnectionError):
        rerun(bed.store, bed.broker, bed.uuids[0])
    assert bed.load().status == "error"
    assert bed.counts() == {"error": 3}


def test_bar_does_not_go_back(store: JobStore, make_bed: MakeBed) -> None:
    """A member that is tried again, or begins again, takes work back: the bar waits
    until that is done again. New members start it anew.
    """
    bed = make_bed(2)
    bed.end(0, "error")
    assert bed.fraction() == 0.5
    bed.run(0)
    assert (bed.fraction(), bed.counts()) == (0.5, {"queued": 1, "working": 1})
    bed.retry(0)
    assert bed.fraction() == 0.5
    bed.end(1)
    assert bed.fraction() == 0.5
    bed.run(0)
    bed.send(0, "more")
    assert bed.fraction() == pytest.approx(1 / 3)
    bed.end(0)
    assert bed.fraction() == pytest.approx(2 / 3)


def test_time_left_is_that_of_the_work(make_bed: MakeBed) -> None:
    """The time that is left is reckoned from the pace since the beginning, also while
    the bar waits.
    """
    bed = make_bed(4)
    bed.run(0)
    pass_time(bed.store, 30)
    for place in range(3):
        bed.end(place)
    assert bed.load().progress.eta == pytest.approx(10, abs=2)
    bed.run(0)
    bed.run(1)
    assert bed.fraction() == 0.75
    assert bed.load().progress.eta == pytest.approx(90, abs=8)


# Cancels.


def test_cancel_of_a_batch_that_waits(store: JobStore) -> None:
    """A batch none of whose members runs is cancelled at once, with those that wait:
    they read so wherever they are read, and are not cancelled again.
    """
    batch = put(store, "qds")
    waiting, retrying, ended = store.members(batch.uuid).items
    assert batch.cancel()
    batch = loaded(store, batch.uuid)
    assert (batch.status, batch.error) == ("cancelled", CANCELLED)
    assert batch.progress[:2] == (3, 3) and batch.progress.fraction == 1
    assert not batch.cancel()
    for member in waiting, retrying:
        found = load_job(store, member.uuid)
        assert (found.status, found.error) == ("cancelled", CANCELLED)
        assert found.finished_at is not None
        assert not found.cancel()
    statuses = {job.uuid: job.status for job in store.list(kind="JobState").items}
    assert statuses == {
        waiting.uuid: "cancelled",
        retrying.uuid: "cancelled",
        ended.uuid: "success",
    }
    assert len(members_of(store, batch.uuid, status="cancelled")) == 2
    assert counts_of(store, batch.uuid) == {"success": 1, "cancelled": 2}


def test_cancel_of_a_batch_that_runs(bed: Bed) -> None:
    """A batch is being cancelled while members run, which hear of it; what waits never
    runs, however late its message comes.
    """
    bed.run(0)
    assert bed.load().cancel()
    batch = bed.load()
    assert (batch.status, batch.cancel_requested) == ("cancelling", True)
    assert batch.progress[:2] == (0, 3) and batch.progress.fraction == 0
    assert bed.counts() == {"working": 1, "cancelled": 2}
    with pytest.raises(JobCancelled):
        bed.act(0, hear)
    assert wait_until_ended(bed).status == "cancelled"
    assert bed.counts() == {"cancelled": 3}
    bed.deliver(1)
    bed.deliver(2)
    bed.settle()
    assert member_of(bed, 1).attempt == 0
    assert bed.store.counts("JobState", anew=True) == Counts(cancelled=3)


def hear(job_state: JobState) -> None:
    """Report until a cancel is raised."""
    for _ in range(200):
        job_state.set_progress(1, 2)
        job_state.flush()


def wait_until_ended(bed: Bed) -> Batch:
    wait_for(lambda: bed.load().is_finished)
    return bed.load()


def test_member_of_a_cancelled_batch_sends_no_more(bed: Bed) -> None:
    """A running member that sends into its cancelled batch is cancelled."""
    bed.run(0)
    assert bed.load().cancel()
    with pytest.raises(JobCancelled):
        bed.send(0, "more")
    assert wait_until_ended(bed).size == 3


def test_cancelled_member_counts(store: JobStore) -> None:
    """A member that is cancelled alone counts so, and may be the last to end."""
    batch = put(store, "qqs")
    first, second, _ = store.members(batch.uuid).items
    assert first.cancel()
    assert counts_of(store, batch.uuid) == {"queued": 1, "cancelled": 1, "success": 1}
    assert loaded(store, batch.uuid).progress.done == 2
    assert second.cancel()
    assert loaded(store, batch.uuid).error == MEMBERS_CANCELLED


def test_cancelled_batch_of_dead_workers_ends(store: JobStore) -> None:
    """A second cancel ends a batch whose running members are silent: those read
    cancelled, too.
    """
    batch = put(store, "wqs")
    assert batch.cancel()
    assert loaded(store, batch.uuid).status == "cancelling"
    pass_time(store, 16)
    assert loaded(store, batch.uuid).cancel()
    ended = loaded(store, batch.uuid)
    assert ended.status == "cancelled" and ended.progress[:2] == (3, 3)
    assert counts_of(store, batch.uuid) == {"success": 1, "cancelled": 2}
    statuses = [job.status for job in store.members(batch.uuid).items]
    assert statuses == ["cancelled", "cancelled", "success"]


def test_cancelled_batch_stays_cancelled(make_bed: MakeBed) -> None:
    """A cancelled batch that has ended stays so, whatever a run does that turns out to
    be alive: pages have acted on it.
    """
    for status in "success", "error":
        bed = make_bed(2)
        bed.run(0)
        pass_time(bed.store, 16)
        assert bed.load().cancel()
        finished_at = bed.load().finished_at
        assert finished_at is not None
        bed.tell(0, None if status == "success" else ValueError("x"))
        bed.settle()
        batch = bed.load()
        assert (batch.status, batch.finished_at) == ("cancelled", finished_at)
        check_sums(bed)


def test_start_that_the_batch_did_not_hear_of(bed: Bed) -> None:
    """If the batch is cancelled before it hears of a start, it is over at once, and
    counts how the run ends.
    """
    with losing_of(bed.client, bed.uuid):
        bed.run(0)
    assert bed.load().cancel()
    assert bed.load().status == "cancelled"
    bed.end(0)
    assert bed.load().status == "cancelled"
    assert bed.counts() == {"success": 1, "cancelled": 2}


def test_bulk_cancel_takes_batches_and_members(store: JobStore) -> None:
    """An act on all jobs cancels batches, and their members alone."""
    batch = put(store, "qqw")
    assert store.cancel_all(everything=True).done == 4
    assert loaded(store, batch.uuid).status == "cancelling"
    assert counts_of(store, batch.uuid) == {"working": 1, "cancelled": 2}


def test_batch_that_is_gone_is_not_cancelled(store: JobStore) -> None:
    """The cancel of a batch whose record is gone does nothing."""
    batch = put(store, "q")
    store.client.delete(key_of(store, batch.uuid))
    assert not batch.cancel()
    assert [job.status for job in store.members(batch.uuid).items] == ["queued"]


# Deletes.


def test_deleted_batch_leaves_its_members(bed: Bed) -> None:
    """The members of a deleted batch stay, and one that runs again is a job of its
    own.
    """
    bed.end(0)
    bed.end(1, "error")
    assert not bed.store.delete(bed.uuid)
    bed.end(2)
    assert bed.store.delete(bed.uuid)
    assert bed.store.load(bed.uuid) is None
    assert members_of(bed.store, bed.uuid) == []
    assert bed.store.list(owner="alice").items == []
    assert bed.status(0) == "success"
    bed.run(1)
    (job,) = bed.store.list(owner="alice").items
    assert (job.uuid, job.status) == (bed.uuids[1], "working")


def test_deleted_batch_that_was_cancelled_stops_its_members(bed: Bed) -> None:
    """The members of a cancelled batch never run, even if it was deleted."""
    assert bed.load().cancel()
    assert bed.store.delete(bed.uuid)
    assert bed.status(0) == "cancelled"
    bed.deliver(0)
    bed.settle()
    assert member_of(bed, 0).attempt == 0
    assert bed.store.list(owner="alice").items == []


def test_deleted_members_keep_their_counts(store: JobStore) -> None:
    """A batch counts its members whose records were deleted as they had ended."""
    batch = put(store, "qse")
    assert store.clear(everything=True).done == 2
    assert counts_of(store, batch.uuid) == {"queued": 1, "success": 1, "error": 1}
    assert len(members_of(store, batch.uuid)) == 1
    # A waiting member of a cancelled batch reads cancelled, so it can be deleted.
    assert loaded(store, batch.uuid).cancel()
    (member,) = members_of(store, batch.uuid)
    assert store.delete(member)
    assert counts_of(store, batch.uuid) == {"success": 1, "error": 1, "cancelled": 1}


def test_lost_member_of_a_cancelled_batch_is_not_written_anew(bed: Bed) -> None:
    """What became of it is known to its batch alone."""
    bed.end(0)
    assert bed.load().cancel()
    bed.client.delete(key_of(bed.store, bed.uuids[0]))
    bed.deliver(0)
    bed.settle()
    assert bed.status(0) is None
    assert bed.counts() == {"success": 1, "cancelled": 2}


def test_batch_that_is_gone_does_not_come_back(bed: Bed) -> None:
    """A member whose batch's record was evicted runs, and does not write it anew."""
    bed.client.delete(key_of(bed.store, bed.uuid))
    bed.end(0)
    assert bed.store.load(bed.uuid) is None


# Silence, and looks at the members.


def test_silent_batch(store: JobStore) -> None:
    """A silent batch is stalled if a member runs, else retrying if one is to be tried
    again, else queued. What it knows was right, so a look changes nothing.
    """
    cases = [
        *[(letters, "queued", "queued") for letters in ("q", "qq")],
        *[(letters, "working", "queued") for letters in ("qs", "qe", "qc", "qsec")],
        *[(letters, "working", "retrying") for letters in ("r", "d", "rq", "dqs")],
        *[(letters, "working", "stalled") for letters in ("w", "wq", "wr", "wds")],
    ]
    for letters, fresh, silent in cases:
        batch = put(store, letters)
        before = counts_of(store, batch.uuid)
        found = [batch.status]
        for seconds in 5, 12, 2:
            pass_time(store, seconds)
            found.append(loaded(store, batch.uuid).status)
        assert found == [fresh, fresh, silent, silent], letters
        assert counts_of(store, batch.uuid) == before


def test_batch_whose_sender_died_is_stalled(make_bed: MakeBed) -> None:
    """A batch of which some members were never sent is stalled until somebody cancels
    it. Those that were sent run.
    """
    for sent in 0, 1, 2:
        bed = make_bed(3, sent=sent)
        assert bed.load().status == "queued"
        for place in range(sent):
            bed.end(place)
        for _ in range(3):
            pass_time(bed.store, 20)
            assert bed.load().status == "stalled"
            statuses = [bed.status(place) for place in range(3)]
            assert statuses == ["success"] * sent + ["stalled"] * (3 - sent)
        assert bed.counts().get("queued") == 3 - sent
        assert bed.load().cancel()
        assert bed.load().status == "cancelled"
        assert bed.status(2) == "cancelled"
        assert bed.counts().get("cancelled") == 3 - sent


def test_batch_whose_sender_died_at_any_time(make_bed: MakeBed) -> None:
    """Wherever its sender dies, a batch and its members are unknown, or agree: what
    was sent runs, and a look finds that messages were sent.
    """
    with counting_trips() as trips:
        make_bed(2)
    for number in range(1, len(trips) + 1):
        bed = make_bed(2, meanwhile=dying_at(number))
        if bed.store.load(bed.uuid) is None:
            assert bed.messages == {}
            continue
        for _ in range(2):
            pass_time(bed.store, 20)
            bed.load()
        check_sums(bed)
        assert bed.load().status in ("stalled", "queued", "success"), number
        if bed.load().size == 2:
            is_stalled = bed.load().status == "stalled"
            assert is_stalled or len(bed.messages) == 2
            for place, uuid in enumerate(bed.uuids):
                if uuid in bed.messages:
                    bed.end(place)
            check_sums(bed)
            assert bed.counts().get("success", 0) == len(bed.messages)
            assert bed.load().is_finished == (len(bed.messages) == 2)


def test_batch_that_is_heard_of_again(make_bed: MakeBed) -> None:
    """What a silent batch reads follows its members."""
    bed = make_bed(2)
    found = []
    steps: list[Callable[[], object]] = [
        lambda: bed.run(0),
        lambda: bed.retry(0),
        lambda: bed.run(0),
        lambda: bed.end(0),
    ]
    for step in steps:
        step()
        assert bed.load().status == "working"
        pass_time(bed.store, 16)
        found.append(bed.load().status)
    assert found == ["stalled", "retrying", "stalled", "queued"]


def test_look_finds_what_the_batch_was_not_told(bed: Bed) -> None:
    """A silent batch looks at its members, whose ends may not have reached it. What it
    finds is as old as they are.
    """
    bed.run(0)
    bed.run(1)
    with losing_of(bed.client, bed.uuid):
        bed.end(0)
    assert bed.counts() == {"queued": 1, "working": 2}
    pass_time(bed.store, 20)
    assert bed.counts() == {"queued": 1, "working": 1, "success": 1}
    assert bed.fraction() == 1 / 3
    assert bed.load().status == "stalled"


def test_look_finds_members_that_were_lost(bed: Bed) -> None:
    """A member without a record has failed, unless it had ended. If it runs after all,
    that counts.
    """
    bed.end(0)
    for uuid in bed.uuids:
        bed.client.delete(key_of(bed.store, uuid))
    pass_time(bed.store, 20)
    assert bed.load().status == "error"
    assert bed.counts() == {"success": 1, "error": 2}
    bed.end(2)
    assert bed.counts() == {"success": 2, "error": 1}


def test_look_finds_a_member_that_was_deleted(bed: Bed) -> None:
    """A member whose end the batch was not told, and that was deleted since, counts as
    it had ended.
    """
    with losing_of(bed.client, bed.uuid):
        bed.end(0)
        bed.end(1, "error")
    assert bed.store.delete(bed.uuids[0])
    assert bed.store.delete(bed.uuids[1])
    assert bed.counts() == {"queued": 3}
    pass_time(bed.store, 20)
    assert bed.counts() == {"queued": 1, "success": 1, "error": 1}


def send_and_die(bed: Bed, place: int, key: str) -> None:
    """Have a running member die while it sends another: its batch has it, and it has no
    record.
    """

    def order(job_state: JobState) -> None:
        assert job_state.batch is not None

        for number in range(1, 20):
            size = bed.load().size
            with dying_at(number):
                job_state.batch.send(bed.part, 0, key=key)
                raise AssertionError
            if bed.load().size > size:
                return

    bed.act(place, order)


def test_look_leaves_unsent_members_to_their_sender(bed: Bed) -> None:
    """A member without a record that was never sent has failed once nobody is left who
    could send it. If its sender runs again, it is sent, and counts once.
    """
    bed.run(0)
    send_and_die(bed, 0, "more")
    bed.end(1)
    bed.end(2)
    pass_time(bed.store, 20)
    assert bed.counts() == {"queued": 1, "working": 1, "success": 2}
    bed.retry(0)
    pass_time(bed.store, 20)
    assert bed.counts() == {"queued": 1, "retrying": 1, "success": 2}
    bed.end(0)
    pass_time(bed.store, 20)
    assert bed.load().status == "error"
    assert bed.counts() == {"success": 3, "error": 1}
    bed.run(0)
    bed.uuids.append(bed.send(0, "more").uuid)
    bed.end(0)
    assert bed.counts() == {"queued": 1, "success": 3}
    bed.end(3)
    assert bed.load().status == "success"
    check_sums(bed)


def test_look_at_an_unsent_member_of_a_cancelled_batch(bed: Bed) -> None:
    """It reads cancelled, and has not failed."""
    bed.run(0)
    send_and_die(bed, 0, "more")
    bed.end(1)
    bed.end(2)
    assert bed.load().cancel()
    bed.end(0)
    pass_time(bed.store, 20)
    assert bed.counts() == {"success": 3, "cancelled": 1}
    assert bed.load().status == "cancelled"


def test_look_goes_through_all_members_in_turn(store: JobStore) -> None:
    """A look takes 20 members, at most once a second, and begins again at the end."""
    batch = put(store, "q" * 50)
    with losing_of(store.client, batch.uuid):
        store.cancel_all(kind="JobState")
    for done in 20, 40:
        pass_time(store, 20)
        assert counts_of(store, batch.uuid) == {"queued": 50 - done, "cancelled": done}
        assert counts_of(store, batch.uuid)["cancelled"] == done
    pass_time(store, 20)
    assert loaded(store, batch.uuid).status == "cancelled"
    batch = put(store, "q" * 25)
    pass_time(store, 20)
    assert loaded(store, batch.uuid).status == "queued"
    with losing_of(store.client, batch.uuid):
        assert store.members(batch.uuid).items[0].cancel()
    pass_time(store, 20)
    assert counts_of(store, batch.uuid) == {"queued": 25}
    pass_time(store, 20)
    assert counts_of(store, batch.uuid) == {"queued": 24, "cancelled": 1}


def test_several_silent_batches_are_looked_at_in_turn(store: JobStore) -> None:
    """A call looks at a few of them, and the next one at others."""
    batches = [put(store, "q").uuid for _ in range(5)]
    with losing_of(store.client, *batches):
        store.cancel_all(kind="JobState")
    pass_time(store, 20)

    def over() -> int:
        return sum(
            job is not None and job.is_finished for job in store.load_many(batches)
        )

    assert over() == 3
    assert over() == 5


def test_look_on_a_server_that_takes_no_writes(store: JobStore) -> None:
    """What cannot be told is not shown, and no poll fails."""
    batch = put(store, "qqw")
    with losing_of(store.client, batch.uuid):
        assert store.members(batch.uuid).items[0].cancel()
    pass_time(store, 20)
    with refusing_writes(store.client):
        assert counts_of(store, batch.uuid) == {"queued": 2, "working": 1}
        assert len(members_of(store, batch.uuid)) == 3
    assert counts_of(store, batch.uuid) == {"queued": 1, "working": 1, "cancelled": 1}


def test_look_at_a_cancelled_batch(bed: Bed) -> None:
    """A cancelled batch that has ended counts a member that has run after all."""
    with losing_of(bed.client, bed.uuid):
        bed.run(0)
    assert bed.load().cancel()
    with losing_of(bed.client, bed.uuid):
        bed.end(0)
    pass_time(bed.store, 20)
    assert bed.counts() == {"success": 1, "cancelled": 2}
    assert bed.load().status == "cancelled"


# Failovers.


def test_failover_that_lost_what_the_batch_was_told(bed: Bed) -> None:
    """The batch looks at its members, and knows."""
    bed.run(0)
    with losing_of(bed.client, bed.uuid):
        bed.end(0, "error")
        bed.end(1)
        bed.end(2)
        assert bed.load().status == "error"
    check_sums(bed)
    assert bed.counts() == {"queued": 2, "working": 1}
    pass_time(bed.store, 20)
    assert bed.counts() == {"success": 2, "error": 1}
    assert bed.load().status == "error"


def test_failover_that_lost_the_ends_of_members(bed: Bed) -> None:
    """Their runs that are delivered again put it right."""
    with losing_of(bed.client, *bed.uuids):
        for place in range(3):
            bed.end(place, "error")
    check_sums(bed)
    assert bed.load().status == "error"
    bed.end(0)
    check_sums(bed)
    assert bed.counts() == {"success": 1, "error": 2}
    bed.end(1)
    bed.end(2)
    assert bed.load().status == "success"
    assert members_of(bed.store, bed.uuid, status="error") == []


def test_clock_that_goes_back(make_bed: MakeBed) -> None:
    """A batch hears at once of its members although the server's clock has gone back,
    with no more calls than before, or that of the server to which a member has failed
    over is behind.
    """
    bed = make_bed(4)
    calls = []
    for place in range(3):
        if place == 2:
            turn_clock_back(bed.client, 3600)
        bed.client.config_resetstat()
        bed.end(place, "error")
        calls.append(commands(bed.client)["evalsha"])
    assert bed.counts() == {"queued": 1, "error": 3}
    assert calls[2] == calls[1]
    with losing_of(bed.client, bed.uuids[2]):
        rerun(bed.store, bed.broker, bed.uuids[2])
    turn_clock_back(bed.client, 3600, bed.uuid)
    bed.run(2)
    assert bed.counts() == {"queued": 1, "working": 1, "error": 2}
    bed.end(2)
    assert bed.counts() == {"queued": 1, "success": 1, "error": 2}


# Lifetimes, and lists.


def test_batch_lives_as_long_as_its_members_may_wait(store: JobStore) -> None:
    """A batch is kept until after the last of its members is due, cancelled or not, and
    for as long as other ended jobs from its end.
    """
    soon: Any = "queued"
    late: Any = {"status": "queued", "delay": 20 * DAY}
    retried: Any = {"status": "retrying", "delay": 20 * DAY}
    for members in [late, soon], [soon, late], [retried, soon]:
        batches = [put_batch(store, Batch, members) for _ in range(2)]
        assert batches[1].cancel()
        pass_time(store, 27 * DAY)
        assert [loaded(store, batch.uuid).size for batch in batches] == [2, 2]
    for letters in "ss", "se":
        batch = put(store, letters)
        pass_time(store, DAY - 10)
        assert len(members_of(store, batch.uuid)) == 2
        pass_time(store, 20)
        assert store.load(batch.uuid) is None


def test_batch_lives_for_a_member_that_is_sent_late(make_bed: MakeBed) -> None:
    """A member that is sent by another, or put back, with a delay counts, too."""
    bed = make_bed(1)
    bed.run(0)

    def order(job_state: JobState) -> None:
        assert job_state.batch is not None
        job_state.batch.send_with_options(
            bed.part, (1,), key="late", delay=20 * DAY * 1000
        )

    bed.act(0, order)
    bed.end(0)
    pass_time(bed.store, 27 * DAY)
    assert bed.load().size == 2
    ended = make_bed(2)
    ended.end(0)
    message = ended.messages[ended.uuids[0]]
    ended.broker.enqueue(message, delay=20 * DAY * 1000)
    pass_time(ended.store, 27 * DAY)
    assert ended.load().size == 2


def test_batch_stays_listed_while_it_goes_on(
    make_bed: MakeBed, store: JobStore
) -> None:
    """A batch that goes on for longer than unfinished jobs are kept stays listed, also
    one that had ended.
    """
    store = store.replace(active_expire_in=80)
    bed = make_bed(2, store=store)
    bed.end(1, "error")
    for _ in range(12):
        bed.retry(0, 20)
        pass_time(store, 10)
        assert bed.uuid in uuids_of(store.list(owner="alice").items)
        assert bed.uuid in uuids_of(store.list(kind="Batch").items)
    bed.end(0)
    for _ in range(12):
        bed.retry(1, 20)
        pass_time(store, 10)
        assert bed.uuid in uuids_of(store.list(kind="Batch", status="working").items)


def test_batch_whose_members_are_due_late_stays_listed(store: JobStore) -> None:
    """A batch is listed for as long as members wait that are due late."""
    store = store.replace(active_expire_in=50)
    late = [
        put_batch(store, Batch, ["queued", {"status": status, "delay": 300}]).uuid
        for status in ("queued", "retrying")
    ]
    pass_time(store, 120)
    other = put(store, "q").uuid
    assert {*uuids_of(store.list(kind="Batch").items)} == {*late, other}
    assert store.kinds() == ["Batch", "JobState"]


# Other programs.


def test_damaged_batch_does_not_harm_its_members(
    make_bed: MakeBed, caplog: pytest.LogCaptureFixture
) -> None:
    """If another program uses a key of a batch, or a list's, its members run and end,
    and no poll fails.
    """
    bed = make_bed()
    names = [key for key in keys_of(bed.client) if bed.uuid in key]
    for number in range(len(names)):
        bed = make_bed()
        keys = [key for key in keys_of(bed.client) if bed.uuid in key]
        take_over(bed.client, keys[number])
        bed.end(0, "error")
        bed.end(1)
        assert member_of(bed, 2).cancel()
        assert [bed.status(place) for place in range(3)] == [
            "error",
            "success",
            "cancelled",
        ]
        pass_time(bed.store, 20)
        bed.store.load(bed.uuid)
        bed.store.members(bed.uuid)
        bed.store.members(bed.uuid, status="error")
    bed, other = make_bed(), make_bed()
    take_over(bed.client, *keys_of(bed.client, "zset"))
    for place in range(3):
        bed.end(place)
        other.end(place)
    assert bed.load().status == other.load().status == "success"
    said = messages(caplog, "pyramid_jobstate")
    assert all("What cannot be read is skipped" in line for line in said)


@pytest.mark.system
def test_damaged_number_counts_no_change_twice(make_bed: MakeBed) -> None:
    """Whatever number of its record another program overwrites, a batch takes its
    members in, and each of their changes once.
    """
    bed = make_bed()
    fields = bed.client.hgetall(key_of(bed.store, bed.uuid))
    numbers = [name for name, value in fields.items() if value.isdigit()]
    for name in numbers:
        bed = make_bed()
        bed.client.hset(key_of(bed.store, bed.uuid), name, "x")
        for place, status in enumerate(("error", "success", "success")):
            bed.end(place, status)
        for _ in range(3):
            pass_time(bed.store, 20)
            found = bed.counts()
        assert (found["success"], found["error"]) == (2, 1), name
        assert [bed.status(place) for place in range(3)] == [
            "error",
            "success",
            "success",
        ]


def test_look_past_a_damaged_member(bed: Bed) -> None:
    """A member whose record is another program's, or gone, has failed. What a look
    finds does not show that the batch is alive.
    """
    for place in range(3):
        bed.run(place)
    take_over(bed.client, key_of(bed.store, bed.uuids[0]))
    bed.client.delete(key_of(bed.store, bed.uuids[1]))
    pass_time(bed.store, 20)
    assert bed.counts() == {"working": 1, "error": 2}
    assert bed.load().status == "stalled"


def test_kinds_of_members_and_batches(store: JobStore) -> None:
    """Members are listed by their own kinds, and batches by theirs."""

    class Import(Batch):
        pass

    members = [
        {"status": "error", "job_state_class": cls} for cls in (RunMarathon, Diary)
    ]
    batch = put_batch(store, Import, members, owner="alice")
    assert uuids_of(store.list(kind="Import").items) == [batch.uuid]
    assert isinstance(store.list(kind="Import").items[0], Import)
    assert len(store.list(kind="RunMarathon", status="error").items) == 1
    assert store.clear(kind="Import").done == 1
    assert store.kinds() == ["Diary", "Import", "RunMarathon"]
