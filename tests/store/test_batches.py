"""What a store says of batches, and does when it has not heard of their members."""

import itertools
from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest

from pyramid_jobstate import (
    Batch,
    Counts,
    JobError,
    JobState,
    JobStore,
    Page,
    Progress,
    rerun,
)
from pyramid_jobstate.testing import pass_time, put_batch
from tests.jobs import messages
from tests.lost import keys_of, losing, take_over, turn_clock_back
from tests.store.bed import Bed, counts_of, loaded
from tests.store.jobs import pages, uuids_of
from tests.support import STATUSES, counted, key_of, load_job, wait_for
from tests.trips import counting_trips

MakeBed = Callable[..., Bed]

DAY = 86_400

#: What the reason of a cancelled batch says.
CANCELLED = JobError(None, "The job was cancelled.")
MEMBERS_CANCELLED = JobError(None, "Some of its jobs were cancelled.")
MEMBERS_FAILED = JobError(None, "Some of its jobs failed.")


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


def members_of(store: JobStore, uuid: str, **wanted: Any) -> list[str]:
    return uuids_of(store.members(uuid, **wanted).items)


def test_status_follows_from_the_members(store):
    """A batch that has ended has failed if a member has, unless it allows that, else it
    is cancelled if one was. Its reason says whose doing it was.
    """
    cases: list[tuple[str, bool, str, JobError | None]] = [
        ("", False, "success", None),
        ("ss", False, "success", None),
        ("sec", False, "error", MEMBERS_FAILED),
        ("sc", False, "cancelled", MEMBERS_CANCELLED),
        ("se", True, "success", None),
        ("sec", True, "cancelled", MEMBERS_CANCELLED),
        ("qe", False, "working", None),
        ("qq", False, "queued", None),
    ]
    for letters, allows, status, error in cases:
        batch = put(store, letters, allow_failures=allows)
        assert (batch.status, batch.error) == (status, error), letters
        assert (batch.size, batch.allow_failures) == (len(letters), allows)
        assert batch.is_finished == (batch.finished_at is not None)


def test_bar_follows_from_the_members(store):
    """The bar has the shares of its members by their weights, fractions as well. A
    member that is over counts whole, however it ended.
    """
    half = Progress(1, 2, None, None)
    cases: list[tuple[list[Any], int, float]] = [
        (["success", "queued", "error", "cancelled"], 3, 0.75),
        ([{"status": "success", "weight": 0.5}, "queued"], 1, 1 / 3),
        ([{"status": "success", "weight": 10_000}, "queued"], 1, 0.9999),
        (["success", {"status": "working", "progress": half}], 1, 0.75),
    ]
    for members, done, fraction in cases:
        progress = put_batch(store, Batch, members).progress
        assert counted(progress) == (done, len(members), "jobs")
        assert progress.fraction == pytest.approx(fraction, abs=1e-4), members


def test_members_are_listed_in_order(store):
    """The members of a batch are listed as they were sent, page by page, of all
    statuses or one. Those whose records are gone are left out.
    """
    batch = put(store, "qwqesqec")
    uuids = members_of(store, batch.uuid)
    assert len(uuids) == 8
    found = pages(lambda cursor: store.members(batch.uuid, limit=3, cursor=cursor))
    assert list(itertools.chain(*found)) == uuids
    first = store.members(batch.uuid, status="error", limit=1)
    rest = store.members(batch.uuid, status="error", cursor=first.cursor)
    assert uuids_of(first.items) + uuids_of(rest.items) == [uuids[3], uuids[6]]
    assert members_of(store, batch.uuid, status="cancelled") == uuids[7:]
    store.client.delete(key_of(store, uuids[0]))
    assert members_of(store, batch.uuid) == uuids[1:]
    assert store.members(uuids[0]) == Page([], None)


def test_members_are_not_among_their_owners_jobs(store):
    """In the list of one's own jobs, a batch stands for its members. The others have
    both: members by their own kinds, and batches by theirs.
    """

    class Import(Batch):
        pass

    batch = put_batch(store, Import, ["queued", "error"], owner="alice")
    members = members_of(store, batch.uuid)
    assert uuids_of(store.list(owner="alice").items) == [batch.uuid]
    assert uuids_of(store.list().items) == [batch.uuid]
    assert {*uuids_of(store.list(members=True).items)} == {batch.uuid, *members}
    assert {*uuids_of(store.list("alice", members=True).items)} == {
        batch.uuid,
        *members,
    }
    assert isinstance(store.list(kind="Import").items[0], Import)
    assert store.list(kind="JobState").items == []
    found = store.list(kind="JobState", status="error", members=True).items
    assert uuids_of(found) == members[1:]
    assert store.counts() == store.counts("Import") == Counts(working=1)
    assert store.counts(members=True) == Counts(queued=1, working=1, error=1)
    assert store.counts("JobState", members=True) == Counts(queued=1, error=1)
    assert store.kinds() == ["class:Import", "class:JobState"]


def test_failed_member_runs_again(bed):
    """A member that runs again is no failed one any more, and its batch goes on, also
    after its end: it is at once listed so, and its bar starts anew. If the broker
    refuses the message, the batch has failed as before.
    """
    for place in range(3):
        bed.end(place, "error")
    assert bed.store.counts("Batch", anew=True) == Counts(error=1)
    away = mock.patch.object(bed.broker, "enqueue", side_effect=ConnectionError)
    with away, pytest.raises(ConnectionError):
        rerun(bed.store, bed.broker, bed.uuids[0])
    assert (bed.load().status, bed.counts()) == ("error", {"error": 3})
    assert bed.rerun(0)
    assert bed.load().status == "working" and bed.load().finished_at is None
    assert bed.store.counts("Batch", anew=True) == Counts(working=1)
    assert members_of(bed.store, bed.uuid, status="error") == bed.uuids[1:]
    assert bed.counts() == {"queued": 1, "error": 2}
    assert bed.fraction() == 2 / 3


def test_time_left_follows_from_the_pace(make_bed):
    """The rest of a batch is expected to take as long as what is done did."""
    bed = make_bed(4)
    bed.run(0)
    assert bed.load().progress.eta is None
    pass_time(bed.store, 1000)
    bed.end(0)
    assert bed.load().progress.eta == pytest.approx(3000, rel=0.05)


@pytest.mark.promise("batch-bar-does-not-go-back")
def test_bar_does_not_go_back(make_bed):
    """A member that is tried again, or begins again, takes work back: the bar waits
    until that is done again. New members start it anew.
    """
    bed = make_bed(2)
    bed.end(0, "error")
    assert bed.fraction() == 0.5
    bed.run(0)
    assert (bed.fraction(), bed.counts()) == (0.5, {"queued": 1, "working": 1})
    bed.end(0, "retrying")
    assert bed.fraction() == 0.5
    bed.end(1)
    assert bed.fraction() == 0.5
    bed.run(0)
    bed.send(0, "more")
    assert bed.fraction() == pytest.approx(1 / 3)


@pytest.mark.promise("batch-cancels-its-members")
def test_cancel_of_a_batch_that_waits(store):
    """A batch none of whose members runs is cancelled at once, with those that wait:
    they read so wherever they are read, and are not cancelled again.
    """
    batch = put(store, "qds")
    waiting, retrying, ended = members_of(store, batch.uuid)
    assert batch.cancel()
    batch = loaded(store, batch.uuid)
    assert (batch.status, batch.error) == ("cancelled", CANCELLED)
    assert counted(batch.progress) == (3, 3, "jobs") and batch.progress.fraction == 1
    assert not batch.cancel()
    for uuid in waiting, retrying:
        found = load_job(store, uuid)
        assert (found.status, found.error) == ("cancelled", CANCELLED)
        assert found.finished_at is not None
        assert not found.cancel()
    listed = store.list(kind="JobState", members=True).items
    expected = {waiting: "cancelled", retrying: "cancelled", ended: "success"}
    assert {job.uuid: job.status for job in listed} == expected
    assert members_of(store, batch.uuid, status="cancelled") == [waiting, retrying]
    assert counts_of(store, batch.uuid) == {"success": 1, "cancelled": 2}


def test_cancel_of_a_batch_is_one_command(store, client):
    """It touches none of the members, however many there are."""
    # The first one loads the script.
    put(store, "q").cancel()
    batch = put(store, "qw" * 100)
    client.config_resetstat()
    with counting_trips() as trips:
        assert batch.cancel()
    assert len(trips) == 1
    stats: Any = client.info("commandstats")
    assert stats["cmdstat_evalsha"]["calls"] == 1
    assert sum(each["calls"] for each in stats.values()) < 50


@pytest.mark.promise("batch-cancels-its-members")
def test_cancel_of_a_batch_that_runs(bed):
    """A batch is being cancelled while members run, which hear of it; what waits, or is
    over, never runs, however late its message comes.
    """

    def hear(job_state: JobState) -> None:
        for _ in range(200):
            job_state.set_progress(1, 2)
            job_state.flush()

    bed.run(0)
    bed.end(2)
    assert bed.load().cancel()
    batch = bed.load()
    assert (batch.status, batch.cancel_requested) == ("cancelling", True)
    assert counted(batch.progress) == (1, 3, "jobs")
    assert batch.progress.fraction == 1 / 3
    assert bed.counts() == {"working": 1, "cancelled": 1, "success": 1}
    bed.tell(0, hear)
    wait_for(lambda: bed.load().is_finished)
    assert bed.load().status == "cancelled"
    assert bed.counts() == {"cancelled": 2, "success": 1}
    bed.deliver(1)
    bed.deliver(2)
    assert bed.statuses() == ["cancelled", "cancelled", "success"]
    assert bed.member(1).attempt == 0
    counts = bed.store.counts(bed.member(0).kind, anew=True, members=True)
    assert counts == Counts(cancelled=2, success=1)


def test_cancelled_batch_of_dead_workers_ends(store):
    """A second cancel ends a batch whose running members are silent: those read
    cancelled, too.
    """
    batch = put(store, "wqs")
    assert batch.cancel()
    assert loaded(store, batch.uuid).status == "cancelling"
    pass_time(store, 16)
    assert loaded(store, batch.uuid).status == "stalled"
    assert loaded(store, batch.uuid).cancel()
    ended = loaded(store, batch.uuid)
    assert ended.status == "cancelled" and counted(ended.progress) == (3, 3, "jobs")
    assert not ended.cancel()
    assert counts_of(store, batch.uuid) == {"success": 1, "cancelled": 2}
    statuses = [job.status for job in store.members(batch.uuid).items]
    assert statuses == ["cancelled", "cancelled", "success"]


@pytest.mark.promise("batch-cancels-its-members")
def test_cancelled_batch_stays_cancelled(make_bed):
    """A cancelled batch that has ended stays so, whatever a run does that turns out to
    be alive: pages have acted on it.
    """
    bed = make_bed(2)
    bed.run(0)
    pass_time(bed.store, 16)
    assert bed.load().cancel()
    finished_at = bed.load().finished_at
    assert finished_at is not None
    bed.tell(0, ValueError("x"))
    bed.settle()
    batch = bed.load()
    assert (batch.status, batch.finished_at) == ("cancelled", finished_at)
    counts = batch.counts
    assert sum(getattr(counts, status) for status in STATUSES) == 2


def test_deleted_batch_leaves_its_members(make_bed):
    """The members of a deleted batch stay, and one that runs again is a job of its
    own. Those of one that was cancelled never run.
    """
    bed = make_bed(2)
    bed.end(0, "error")
    assert not bed.store.delete(bed.uuid)
    bed.end(1)
    assert bed.store.delete(bed.uuid)
    assert bed.store.load(bed.uuid) is None
    assert members_of(bed.store, bed.uuid) == []
    assert bed.store.list(owner="alice").items == []
    bed.run(0)
    (job,) = bed.store.list(owner="alice").items
    assert (job.uuid, job.status) == (bed.uuids[0], "working")
    assert bed.statuses()[1] == "success"
    stopped = make_bed(1)
    assert stopped.load().cancel()
    assert stopped.store.delete(stopped.uuid)
    stopped.deliver(0)
    assert (stopped.member(0).status, stopped.member(0).attempt) == ("cancelled", 0)


def test_deleted_members_keep_their_counts(store):
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


def test_silent_batch(store):
    """A silent batch is stalled if a member runs, else retrying if one is to be tried
    again, else queued. What it knows was right, so a look changes nothing.
    """
    for letters, fresh, silent in (
        ("qq", "queued", "queued"),
        ("qsec", "working", "queued"),
        ("dqs", "working", "retrying"),
        ("wr", "working", "stalled"),
    ):
        batch = put(store, letters)
        before = counts_of(store, batch.uuid)
        found = [batch.status]
        for seconds in 5, 12, 2:
            pass_time(store, seconds)
            found.append(loaded(store, batch.uuid).status)
        assert found == [fresh, fresh, silent, silent], letters
        assert counts_of(store, batch.uuid) == before


def test_batch_whose_sender_died_is_stalled(make_bed):
    """A batch of which some members were never sent is stalled until somebody cancels
    it. Those that were sent run.
    """
    for sent in 0, 2:
        bed = make_bed(3, sent=sent)
        assert bed.load().status == "queued"
        for place in range(sent):
            bed.end(place)
        for _ in range(2):
            pass_time(bed.store, 20)
            assert bed.load().status == "stalled"
            assert bed.statuses() == ["success"] * sent + ["stalled"] * (3 - sent)
        assert bed.counts().get("queued") == 3 - sent
        assert bed.load().cancel()
        assert bed.load().status == bed.member(2).status == "cancelled"
        assert bed.counts().get("cancelled") == 3 - sent


@pytest.mark.promise("batch-counts-exactly")
def test_look_finds_what_the_batch_was_not_told(make_bed):
    """A silent batch looks at its members, whose ends may not have reached it, also if
    they were deleted since. What it finds is as old as they are.
    """
    bed = make_bed(4)
    bed.run(0)
    bed.run(1)
    with losing(bed.client, bed.uuid):
        bed.end(0)
        bed.end(2, "error")
    assert bed.store.delete(bed.uuids[2])
    assert bed.counts() == {"queued": 2, "working": 2}
    pass_time(bed.store, 20)
    assert bed.counts() == {"queued": 1, "working": 1, "success": 1, "error": 1}
    assert bed.load().status == "stalled"


def test_look_finds_members_that_were_lost(make_bed):
    """A member without a record, or with another program's, has failed, unless it had
    ended. If it runs after all, that counts.
    """
    bed = make_bed(4)
    bed.end(0)
    for uuid in bed.uuids[:3]:
        bed.client.delete(key_of(bed.store, uuid))
    take_over(bed.client, key_of(bed.store, bed.uuids[3]))
    pass_time(bed.store, 20)
    assert bed.load().status == "error"
    assert bed.counts() == {"success": 1, "error": 3}
    bed.end(2)
    assert bed.counts() == {"success": 2, "error": 2}


def test_look_leaves_unsent_members_to_their_sender(bed):
    """A member without a record that was never sent has failed once nobody is left who
    could send it. If its sender runs again, it is sent, and counts once.
    """
    bed.run(0)
    records = {*keys_of(bed.client, "hash")}
    with bed.dying():
        bed.send(0, "more")
    bed.client.delete(*{*keys_of(bed.client, "hash")} - records)
    bed.end(1)
    bed.end(2)
    pass_time(bed.store, 20)
    assert bed.counts() == {"queued": 1, "working": 1, "success": 2}
    bed.end(0, "retrying")
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


def test_look_goes_through_all_members_in_turn(store):
    """A look takes 20 members that have not ended, and begins again at the end."""
    batch = put(store, "q" * 25)
    uuids = members_of(store, batch.uuid)
    pass_time(store, 20)
    assert loaded(store, batch.uuid).status == "queued"
    with losing(store.client, batch.uuid):
        for place in 0, 24:
            assert load_job(store, uuids[place]).cancel()
    for cancelled in 1, 2:
        pass_time(store, 20)
        assert counts_of(store, batch.uuid)["cancelled"] == cancelled


def test_clock_that_goes_back(make_bed):
    """A batch hears at once of its members although the server's clock has gone back,
    with no more calls than before, or that of the server to which a member has failed
    over is behind.
    """
    bed = make_bed(4)
    bed.end(0, "error")
    # Its worker announces itself beside the runs.
    wait_for(bed.store.workers)
    calls = []
    for place in 1, 2:
        if place == 2:
            turn_clock_back(bed.client, 3600)
        bed.client.config_resetstat()
        bed.end(place, "error")
        calls.append(bed.client.info("commandstats")["cmdstat_evalsha"]["calls"])
    assert bed.counts() == {"queued": 1, "error": 3}
    assert calls[1] == calls[0]
    with losing(bed.client, bed.uuids[2]):
        bed.rerun(2)
    turn_clock_back(bed.client, 3600, bed.uuid)
    bed.run(2)
    assert bed.counts() == {"queued": 1, "working": 1, "error": 2}
    bed.end(2)
    assert bed.counts() == {"queued": 1, "success": 1, "error": 2}


def test_batch_lives_as_long_as_its_members_may_wait(store):
    """A batch is kept until after the last of its members is due, cancelled or not, and
    for as long as other ended jobs from its end.
    """
    late = {"status": "queued", "delay": 20 * DAY}
    retried = {"status": "retrying", "delay": 20 * DAY}
    cases: list[list[Any]] = [[late, "queued"], ["queued", retried]]
    for members in cases:
        batches = [put_batch(store, Batch, members) for _ in range(2)]
        assert batches[1].cancel()
        pass_time(store, 27 * DAY)
        assert [loaded(store, batch.uuid).size for batch in batches] == [2, 2]
    batch = put(store, "se")
    pass_time(store, DAY - 10)
    assert len(members_of(store, batch.uuid)) == 2
    pass_time(store, 20)
    assert store.load(batch.uuid) is None


def test_batch_stays_listed_while_it_goes_on(make_bed, store):
    """A batch that goes on for longer than unfinished jobs are kept stays listed, also
    one that had ended.
    """
    store = store.replace(active_expire_in=40)
    bed = make_bed(2, store=store)
    bed.end(1, "error")
    for place in 0, 1:
        for _ in range(6):
            bed.end(place, "retrying", 10)
            pass_time(store, 10)
            assert bed.uuid in uuids_of(store.list(owner="alice").items)
            found = store.list(kind="Batch", status="working")
            assert bed.uuid in uuids_of(found.items)
        bed.end(place)


def test_damaged_batch_does_not_harm_its_members(make_bed, caplog):
    """If another program uses a key of a batch, or a list's, its members run and end,
    and no poll fails.
    """

    def own(bed: Bed) -> list[str]:
        return [key for key in keys_of(bed.client) if bed.uuid in key]

    for number in range(1 + len(own(make_bed()))):
        bed = make_bed()
        keys = [own(bed)[number - 1]] if number else keys_of(bed.client, "zset")
        take_over(bed.client, *keys)
        bed.end(0, "error")
        bed.end(1)
        assert bed.member(2).cancel()
        assert bed.statuses() == ["error", "success", "cancelled"]
        pass_time(bed.store, 20)
        bed.store.load(bed.uuid)
        for status in None, "error":
            bed.store.members(bed.uuid, status=status)
        bed.client.flushall()
    said = messages(caplog, "pyramid_jobstate")
    assert all("What cannot be read is skipped" in line for line in said)
