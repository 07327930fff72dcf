"""Batches that requests send, and what their viewers are told."""

import math
import sys
from collections.abc import Callable
from typing import Any

import dramatiq
import pytest
import redis
from dramatiq import Broker, Message, group
from dramatiq.brokers.stub import StubBroker
from pyramid.httpexceptions import HTTPForbidden
from pyramid.request import Request
from pyramid.scripting import prepare
from pyramid.traversal import ResourceURL

from pyramid_jobstate import (
    Batch,
    JobCancelled,
    JobState,
    JobStateMiddleware,
    Progress,
    RequestMiddleware,
    StoreUnavailable,
)
from pyramid_jobstate.errors import ActorError
from pyramid_jobstate.testing import away, outbox, pass_time, put_batch, run_jobs
from tests.faulty import faulty
from tests.jobs import RunMarathon, job_actor, new_id, working
from tests.support import wait_for
from tests.web.databases import Manager, fail
from tests.web.desks import Desk, make_desk
from tests.web.operating import OPERATOR, act
from tests.web.visits import NOT_SENT, Refusing
from tests.webapp import (
    Policy,
    get,
    make_app,
    make_broker,
    make_config,
    make_request,
    make_tm_config,
    queued,
)

#: What is said of a batch that is sent elsewhere than in its block.
NOT_OPEN = "takes members only within its block"


class ImportAll(Batch):
    """A kind of batch with a title of its own."""

    title = "Import"


class TitledBatch(Batch):
    """A kind of batch that makes its title."""

    @property
    def title(self) -> str:
        return f"{self.size} files"


class BatchDesk(Desk):
    """An application whose users send batches."""

    def send(self, count: int = 3, user: str | None = "alice", **options: Any) -> Batch:
        """Send a batch, and commit."""
        request = self.begin(user)
        with request.job_states.batch(**options) as batch:
            for n in range(count):
                batch.send(self.actor, n)
        request.tm.commit()
        assert isinstance(batch, Batch)
        return batch

    def state(self, batch: JobState, user: str = "alice") -> Any:
        """Return the `job` in the state of a batch as a user sees it."""
        return get(self.app, f"/job_state/{batch.uuid}", user).json["job"]

    def counts(self, batch: JobState) -> dict[str, int]:
        """Return how many members a batch has of each status that any has."""
        counts = self.state(batch)["counts"]
        return {status: count for status, count in counts.items() if count}

    def listed(self, batch: JobState, query: str = "", user: str = "alice") -> Any:
        """Return the answer to a request for the members of a batch."""
        return get(self.app, f"/job_state?batch={batch.uuid}{query}", user)

    def uuids(self, batch: JobState, query: str = "", user: str = "alice") -> list[str]:
        """Return the uuids of the members that a user is shown."""
        items = self.listed(batch, query, user).json["items"]
        return [item["job"]["uuid"] for item in items]

    def members(self, batch: JobState) -> list[JobState]:
        """Return the members of a batch."""
        return list(self.store.members(batch.uuid).items)

    def put(self, *members: Any, **options: Any) -> Batch:
        """Store a batch of Alice's with members in any status."""
        each = [{"status": m} if isinstance(m, str) else m for m in members]
        marathons = [{"job_state_class": RunMarathon, **m} for m in each]
        return put_batch(self.store, ImportAll, marathons, owner="alice", **options)

    def sent(self) -> list[Message[Any]]:
        return queued(self.client)

    def is_empty(self) -> bool:
        """Return whether nothing is kept of any job or batch."""
        return not [*self.client.scan_iter("*jobstate:*-*-*-*")]


@pytest.fixture
def desk(redis_url: str, client: redis.Redis, global_broker: Broker) -> BatchDesk:
    return make_desk(BatchDesk, redis_url, client, global_broker)


# Sending.


def test_batch_is_sent_when_the_transaction_commits(desk: BatchDesk) -> None:
    """Its page can show it before, and its members are its owner's."""
    request = desk.begin()
    with request.job_states.batch(ImportAll) as batch:
        jobs = [batch.send(desk.actor, n) for n in range(3)]
        assert desk.sent() == []
    assert desk.is_empty()
    state = batch.__json__(request)["job"]
    assert (state["status"], state["progress"]["total"]) == ("queued", 3)
    assert state["counts"]["queued"] == 3
    request.tm.commit()
    assert [m.message_id for m in desk.sent()] == [job.uuid for job in jobs]
    assert [m.args for m in desk.sent()] == [(0,), (1,), (2,)]
    state = desk.state(batch)
    assert (state["status"], state["kind"]) == ("queued", "ImportAll")
    assert state["title"] == "Import"
    progress = {"done": 0, "total": 3, "unit": "jobs", "eta": None, "fraction": 0.0}
    assert state["progress"] == progress
    assert state["members"] == f"http://localhost/job_state/?batch={batch.uuid}"
    assert {job.owner for job in desk.members(batch)} == {"alice"}
    pass_time(desk.store, 60)
    assert {job.status for job in desk.members(batch)} == {"queued"}
    assert desk.counts(batch) == {"queued": 3}


def test_messages_are_confirmed_together(
    redis_url: str, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not each in a round trip of its own."""
    with faulty(redis_url) as proxy:
        broker = make_broker(redis_url, JobStateMiddleware(url=proxy.url))
        monkeypatch.setattr(dramatiq.broker, "global_broker", broker)
        desk = make_desk(BatchDesk, proxy.url, client, broker)
        desk.send(1)
        before = sum(proxy.faults.values())
        batch = desk.send(150)
        assert sum(proxy.faults.values()) - before < 40
        pass_time(desk.store, 60)
        assert desk.counts(batch) == {"queued": 150}


def test_weights_and_pipelines(desk: BatchDesk, global_broker: Broker) -> None:
    """Each message of a pipeline or a group is a member. A step that waits for its turn
    is queued; the steps after one that fails are cancelled. A member of weight 10
    counts as much as ten others.
    """

    @job_actor(broker=global_broker, job_state=True, max_retries=0)
    def step(n: int, before: Any = None) -> int:
        if n < 0:
            raise ValueError("negative")
        return n

    request = desk.begin()
    with request.job_states.batch() as batch:
        jobs = [
            *batch.send_message(step.message(1) | step.message(2)),
            *batch.send_message(step.message(-1) | step.message(2)),
            *batch.send_message(group([step.message(n) for n in (3, 4)]), weight=0.5),
            batch.send_with_options(desk.actor, (5,), delay=3_600_000, weight=10),
            batch.send_message(desk.actor.message_with_options(delay=3_600_000)),
        ]
    request.tm.commit()
    assert desk.uuids(batch) == [job.uuid for job in jobs]
    assert desk.counts(batch) == {"queued": 8}
    assert len(desk.sent()) == 4
    pass_time(desk.store, 60)
    assert desk.counts(batch) == {"queued": 8}
    with working(global_broker):
        wait_for(lambda: desk.state(batch)["progress"]["done"] == 6)
    over = {"success": 4, "error": 1, "cancelled": 1}
    assert desk.counts(batch) == {"queued": 2, **over}
    assert desk.state(batch)["progress"]["fraction"] == 5 / 16
    assert desk.state(batch)["status"] == "working"


def test_abort_leaves_nothing(desk: BatchDesk) -> None:
    """The batch of an aborted transaction never reads as if it had succeeded. One that
    has been committed stays as it is.
    """
    request = desk.begin()
    with request.job_states.batch() as batch:
        batch.send(desk.actor, 1)
    request.tm.abort()
    assert desk.is_empty() and desk.sent() == []
    with pytest.raises(RuntimeError, match=NOT_OPEN):
        batch.send(desk.actor, 2)
    assert batch.status == "cancelled"
    assert desk.begin().job_states.batch().status == "queued"
    request = desk.begin()
    with request.job_states.batch() as batch:
        batch.send(desk.actor, 1)
    # It aborts all managers, also those that have finished.
    last = f"{chr(sys.maxunicode)}~"
    request.tm.get().join(Manager(last, "tpc_finish", fail))
    with pytest.raises(ZeroDivisionError):
        request.tm.commit()
    assert batch.status == "queued"
    assert desk.counts(batch) == {"queued": 1}


@pytest.mark.parametrize("count", [0, 3])
def test_veto_takes_the_batch_back(desk: BatchDesk, count: int) -> None:
    """Another database refuses to commit after the batch and its members were
    written.
    """
    request = desk.begin()
    request.tm.get().join(Manager("a", "tpc_vote", fail))
    with request.job_states.batch() as batch:
        for n in range(count):
            batch.send(desk.actor, n)
    with pytest.raises(ZeroDivisionError):
        request.tm.commit()
    request.tm.abort()
    assert desk.is_empty() and desk.sent() == []
    assert desk.store.list().items == []
    assert desk.store.load(batch.uuid) is None


def give_up(request: Request, actor: Any) -> None:
    """Send a batch, and raise an exception in its block."""
    with request.job_states.batch() as batch:
        batch.send(actor, 9)
        fail()


def test_exception_in_the_block_sends_nothing(desk: BatchDesk) -> None:
    """Even if the view goes on and commits."""
    request = desk.begin()
    with pytest.raises(ZeroDivisionError):
        give_up(request, desk.actor)
    job_state = request.job_states.send(desk.actor, 2)
    request.tm.commit()
    assert [m.message_id for m in desk.sent()] == [job_state.uuid]
    assert [job.uuid for job in desk.store.list().items] == [job_state.uuid]


def test_savepoint_takes_back_what_came_after_it(desk: BatchDesk) -> None:
    """The members that a batch was sent since, whose keys are free again, or the batch
    itself, which then takes no more. After the block it takes nothing back.
    """
    request = desk.begin()
    with request.job_states.batch() as batch:
        batch.send(desk.actor, 1, key="a")
        savepoint = request.tm.savepoint()
        batch.send(desk.actor, 2, key="b")
        savepoint.rollback()
        batch.send(desk.actor, 3, key="b")
    request.tm.savepoint().rollback()
    request.tm.commit()
    assert [m.args for m in desk.sent()] == [(1,), (3,)]
    assert desk.state(batch)["progress"]["total"] == 2
    assert len(desk.members(batch)) == 2
    desk.client.flushall()
    request.tm.begin()
    savepoint = request.tm.savepoint()
    with request.job_states.batch() as batch:
        batch.send(desk.actor, 1)
        savepoint.rollback()
        with pytest.raises(RuntimeError, match=NOT_OPEN):
            batch.send(desk.actor, 2)
    request.tm.commit()
    assert desk.is_empty() and desk.sent() == []


def test_store_that_is_away_vetoes_the_commit(desk: BatchDesk) -> None:
    """Nobody could follow the batch. If it goes away while the messages leave, all of
    them do, and the batch learns of it when its members run.
    """
    request = desk.begin()
    with request.job_states.batch() as batch:
        batch.send(desk.actor, 1)
    with away(desk.store), pytest.raises(StoreUnavailable):
        request.tm.commit()
    request.tm.abort()
    assert desk.sent() == []
    assert desk.store.load(batch.uuid) is None
    request.tm.begin()
    gone = away(desk.store)
    with request.job_states.batch() as batch:
        for n in range(101):
            batch.send(desk.actor, n)
    request.tm.get().join(Manager("a", "tpc_finish", gone.__enter__))
    request.tm.commit()
    gone.__exit__(None, None, None)
    assert len(desk.sent()) == 101
    assert desk.counts(batch) == {"queued": 101}
    pass_time(desk.store, 60)
    assert {job.status for job in desk.members(batch)} == {"stalled"}
    with working(desk.actor.broker):
        wait_for(lambda: desk.state(batch)["status"] == "success")


def test_broker_that_is_away_fails_the_rest(
    desk: BatchDesk, global_broker: Broker
) -> None:
    """The members that the broker did not accept have failed. The others run."""
    global_broker.add_middleware(Refusing(lambda message: message.args == (2,)))
    batch = desk.send(5)
    assert desk.counts(batch) == {"queued": 2, "error": 3}
    pass_time(desk.store, 60)
    statuses = [(job.status, job.error) for job in desk.members(batch)]
    assert [status for status, _ in statuses] == ["queued"] * 2 + ["error"] * 3
    assert statuses[4][1] is not None and statuses[4][1].message == NOT_SENT
    with working(global_broker):
        wait_for(lambda: desk.state(batch)["finished_at"])
    assert desk.state(batch)["status"] == "error"
    assert len(desk.uuids(batch, "&status=error")) == 3


def test_keys_decide_the_ids_of_members(desk: BatchDesk) -> None:
    """A key is one of its actor's in its batch: other batches have other members."""
    uuids = set()
    for _ in range(2):
        request = desk.begin()
        with request.job_states.batch() as batch:
            uuids.add(batch.send(desk.actor, 1, key="a").uuid)
            uuids.add(batch.send_with_options(desk.actor, (1,), key="b").uuid)
            steps = desk.actor.message(1) | desk.actor.message(2)
            uuids.update(job.uuid for job in batch.send_message(steps, key="c"))
        request.tm.commit()
    assert len(uuids) == 8


def test_owner_of_a_batch(desk: BatchDesk) -> None:
    """It is the owner of the members, unless one names another."""
    batch = desk.send(1, user="bob", owner="alice")
    assert desk.state(batch)["status"] == "queued"
    assert [job.owner for job in desk.members(batch)] == ["alice"]
    nobodys = desk.send(1, owner=None)
    assert get(desk.app, f"/job_state/{nobodys.uuid}", "alice").status_int == 403
    assert [job.owner for job in desk.members(nobodys)] == [None]
    request = desk.begin()
    with request.job_states.batch() as mixed:
        mixed.send_with_options(desk.actor, (1,), job_owner="bob")
    request.tm.commit()
    assert [job.owner for job in desk.members(mixed)] == ["bob"]


def test_title_of_one_batch(desk: BatchDesk) -> None:
    """It replaces that of the class, unless the class makes it."""
    hostile = "<img onerror=x>" + 300 * "x"
    titles: tuple[tuple[type[Batch], str, str], ...] = (
        (ImportAll, "Import of 3 files", "Import of 3 files"),
        (Batch, hostile, hostile[:200]),
        # Such as the name of a file that is not valid Unicode.
        (Batch, "a\0b\udcff", "a\0b?"),
        (Batch, "3 fichiers\xa0: خانه‌ها", "3 fichiers\xa0: خانه‌ها"),
        (TitledBatch, "x", "1 files"),
    )
    for cls, given, shown in titles:
        batch = desk.send(1, batch_class=cls, title=given)
        assert batch.title == shown
        assert desk.state(batch)["title"] == shown
    assert desk.state(desk.send(0))["title"] == "Batch"


# What is refused.


def test_what_cannot_be_a_member(
    desk: BatchDesk, global_broker: Broker, subtests: pytest.Subtests
) -> None:
    """A bad weight or key, options that members cannot have, an actor that cannot be
    followed, another batch, or the same message twice. The rest of the batch is sent.
    """
    nothing: Any = dramatiq.actor(broker=StubBroker())(lambda: None)
    other = make_request(desk.config, "alice").job_states.batch()
    message = desk.actor.message(2)
    cases: list[tuple[Callable[[Batch], object], type[Exception], str]] = [
        (lambda b: b.send(global_broker.get_actor("sweep")), ActorError, "not tracked"),
        (lambda b: b.send(nothing), TypeError, "no JobStateMiddleware"),
        (lambda b: b.send_message(other), TypeError, "cannot be a member"),
        (
            lambda b: b.send_message(group([message, message])),
            ValueError,
            "is in the batch already",
        ),
    ]
    for weight, error in (
        *dict.fromkeys([0, -1, math.inf, math.nan, 0.0001, 10_001], ValueError).items(),
        ("1", TypeError),
        (None, TypeError),
    ):
        cases.append((weighed(desk, weight), error, "The weight of a member must be"))
    cases.append((weighed(desk, True), TypeError, "The weight of a member must be"))
    for key, error, text in (
        ("first", ValueError, "The key 'first' was used before"),
        ("", ValueError, "1 to 200 characters"),
        (201 * "x", ValueError, "1 to 200 characters"),
        ("a\0b", ValueError, "NUL"),
        ("\ud800", ValueError, "valid Unicode"),
        (7, TypeError, "must be a string"),
    ):
        cases.append((keyed(desk, key), error, text))
    for name in "unique", "shared", "owner":
        cases.append((with_option(desk, name), TypeError, f"cannot take {name}="))
    request = desk.begin()
    with request.job_states.batch() as batch:
        batch.send(desk.actor, 1, key="first")
        for send, error, text in cases:
            with subtests.test(msg=text), pytest.raises(error, match=text):
                send(batch)
    request.tm.commit()
    assert [m.args for m in desk.sent()] == [(1,)]
    assert desk.state(batch)["progress"]["total"] == 1


def weighed(desk: BatchDesk, weight: Any) -> Callable[[Batch], object]:
    return lambda batch: batch.send_with_options(desk.actor, (2,), weight=weight)


def keyed(desk: BatchDesk, key: Any) -> Callable[[Batch], object]:
    return lambda batch: batch.send(desk.actor, 2, key=key)


def with_option(desk: BatchDesk, name: str) -> Callable[[Batch], object]:
    options: dict[str, Any] = {name: "x"}
    return lambda batch: batch.send_with_options(desk.actor, (2,), **options)


def test_message_of_a_member_is_sent_in_its_batch_only(desk: BatchDesk) -> None:
    """Neither again nor with the option of another batch."""
    desk.send(1)
    (member,) = desk.sent()
    with pytest.raises(ActorError, match="belongs to a member of a batch"):
        desk.begin().job_states.send_message(member)
    with pytest.raises(ActorError, match="belongs to a member of a batch"):
        desk.begin().job_states.send_with_options(desk.actor, (1,), job_batch=new_id())


def test_bad_arguments_of_a_batch(desk: BatchDesk) -> None:
    """The call says which is wrong."""
    cases: list[tuple[dict[str, Any], str]] = [
        ({"batch_class": JobState}, "needs a subclass of Batch"),
        ({"batch_class": "Batch"}, "needs a subclass of Batch"),
        ({"title": 7}, "title of a batch must be a string"),
        ({"owner": ["alice"]}, "owner of a job must be"),
    ]
    for options, match in cases:
        with pytest.raises(TypeError, match=match):
            desk.begin().job_states.batch(**options)


def test_block_of_a_batch(desk: BatchDesk) -> None:
    """It is entered once, in a transaction, and not within that of another batch; and
    the transaction is not committed inside it.
    """
    batch = make_request(desk.config, "alice").job_states.batch()
    with pytest.raises(RuntimeError, match="No transaction has begun"):
        batch.__enter__()
    request = desk.begin()
    batch = request.job_states.batch()
    with pytest.raises(RuntimeError, match=NOT_OPEN):
        batch.send(desk.actor, 1)
    with batch:
        inner = request.job_states.batch()
        with pytest.raises(RuntimeError, match="cannot be nested"):
            inner.__enter__()
        batch.send(desk.actor, 1)
    with pytest.raises(RuntimeError, match="only once"):
        batch.__enter__()
    with pytest.raises(RuntimeError, match=NOT_OPEN):
        batch.send(desk.actor, 2)
    # Another one may follow.
    with request.job_states.batch() as second:
        second.send(desk.actor, 3)
    request.tm.commit()
    assert [m.args for m in desk.sent()] == [(1,), (3,)]
    desk.client.flushall()
    request.tm.begin()
    with request.job_states.batch() as batch:
        batch.send(desk.actor, 1)
        with pytest.raises(RuntimeError, match="committed inside the block"):
            request.tm.commit()
        request.tm.abort()
    assert desk.is_empty() and desk.sent() == []


def test_batch_that_was_loaded_takes_no_members(desk: BatchDesk) -> None:
    """Neither itself, nor as the batch of a member."""
    sent = desk.send(1)
    batch = desk.store.load(sent.uuid)
    assert isinstance(batch, Batch) and batch.batch is None
    (member,) = desk.members(batch)
    assert member.batch is not None
    assert batch.uuid in repr(member.batch)
    for call in (
        lambda: batch.send(desk.actor, 2),
        batch.__enter__,
        lambda: member.batch.send(desk.actor, 2, key="a"),
    ):
        with pytest.raises(RuntimeError, match="takes members only from the request"):
            call()


# Scripts, actors and tests.


def test_script_sends_a_batch(desk: BatchDesk) -> None:
    """In its own transaction."""
    with prepare(registry=desk.config.registry) as env:
        request = env["request"]
        with request.tm, request.job_states.batch(owner="alice") as batch:
            batch.send(desk.actor, 1)
    assert desk.state(batch)["progress"]["total"] == 1
    assert len(desk.sent()) == 1


def test_actor_sends_a_batch_from_its_request(
    redis_url: str, client: redis.Redis, global_broker: Broker
) -> None:
    """When its transaction commits, and for the owner of its job."""
    global_broker.add_middleware(RequestMiddleware())
    desk = make_desk(BatchDesk, redis_url, client, global_broker)
    batches: list[Batch] = []

    @job_actor(broker=global_broker, job_state=True)
    def start(request: Any = None) -> None:
        with request.job_states.batch() as batch:
            for n in range(3):
                batch.send(desk.actor, n)
        batches.append(batch)
        assert desk.sent() == []

    request = desk.begin()
    request.job_states.send(start)
    request.tm.commit()
    with working(global_broker):
        # Its transaction commits after the actor has returned.
        wait_for(lambda: batches and desk.store.load(batches[0].uuid))
        wait_for(lambda: desk.state(batches[0])["finished_at"])
    assert desk.counts(batches[0]) == {"success": 3}


def test_outbox_shows_what_a_batch_would_send(
    redis_url: str, client: redis.Redis, global_broker: Broker
) -> None:
    """No transaction is needed, and nothing is written or sent. What a member sends
    follows, and uses a key once.
    """

    @job_actor(broker=global_broker, job_state=True)
    def folder(*, job_state: Any = None) -> None:
        job_state.batch.send(actor, 1, key="a")
        with pytest.raises(ValueError, match="was used before"):
            job_state.batch.send(actor, 2, key="a")

    config = make_tm_config(redis_url)
    config.include("pyramid_jobstate.testing")
    make_app(config)
    actor = global_broker.get_actor("run_marathon")
    request = make_request(config, "alice")
    lone = request.job_states.send(actor, 7)
    with request.job_states.batch(ImportAll) as batch:
        jobs = [batch.send(actor, 0), batch.send(folder)]
    with pytest.raises(ZeroDivisionError):
        give_up(request, actor)
    box = outbox(config.registry)
    assert box.batches == [batch]
    assert [sent.job_state for sent in box.members(batch)] == jobs
    assert [sent.message.args for sent in box] == [(7,), (0,), ()]
    assert batch.size == batch.counts["queued"] == 2
    ran = run_jobs(config.registry)
    assert [job.uuid for job in ran[:3]] == [job.uuid for job in (lone, *jobs)]
    assert [job.actor for job in ran[3:]] == ["run_marathon"]
    assert len(box.members(batch)) == 3
    assert client.keys("*") == []


# What viewers are told.


def test_batch_follows_its_members(desk: BatchDesk) -> None:
    """The fraction counts what running members have done; a member that is over counts
    whole, however it ended.
    """
    half = {"status": "working", "progress": Progress(1, 2, None, None)}
    batch = desk.put("queued", half, "success", "error")
    state = desk.state(batch)
    assert state["status"] == "working" and state["started_at"]
    assert state["progress"]["fraction"] == 0.625
    assert state["progress"]["done"] == 2
    counts = {"queued": 1, "working": 1, "success": 1, "error": 1}
    assert desk.counts(batch) == counts
    state = desk.state(desk.put("retrying", "success"))
    assert (state["status"], state["counts"]["retrying"]) == ("working", 1)
    state = desk.state(desk.put("success", "error"))
    assert state["status"] == "error" and state["finished_at"]
    assert state["error"] == {"message": "Some of its jobs failed."}
    assert state["progress"]["fraction"] == 1.0
    state = desk.state(desk.put("success", "cancelled"))
    assert state["error"] == {"message": "Some of its jobs were cancelled."}
    heavy = desk.put({"status": "success", "weight": 10}, *["queued"] * 10)
    progress = desk.state(heavy)["progress"]
    assert (progress["fraction"], progress["done"]) == (0.5, 1)


def test_status_of_a_batch_that_is_over(
    desk: BatchDesk, subtests: pytest.Subtests
) -> None:
    """It follows from those of the members, and lists show it."""
    for members, allow_failures, status in (
        ((), False, "success"),
        (("success", "success"), False, "success"),
        (("success", "error"), False, "error"),
        (("cancelled", "success"), False, "cancelled"),
        (("cancelled", "error"), False, "error"),
        (("success", "error"), True, "success"),
        (("cancelled", "error"), True, "cancelled"),
    ):
        with subtests.test(msg=f"{members} {allow_failures}"):
            batch = desk.put(*members, allow_failures=allow_failures)
            state = desk.state(batch)
            assert state["status"] == status
            total = len(members)
            assert state["progress"]["done"] == state["progress"]["total"] == total
            assert batch.allow_failures == allow_failures
            listed = get(desk.app, f"/job_state?status={status}", "alice").json["items"]
            assert batch.uuid in [item["job"]["uuid"] for item in listed]


def test_members_are_not_in_the_list_of_their_owner(desk: BatchDesk) -> None:
    """There the batch stands for them. Operators find them by kind and by status."""
    batch = desk.put("queued", "error", "working")
    own = get(desk.app, "/job_state", "alice").json["items"]
    assert [item["job"]["uuid"] for item in own] == [batch.uuid]
    everything = get(desk.app, "/job_state?all=1", OPERATOR).json["items"]
    assert len(everything) == 4
    assert len(desk.store.list(kind="RunMarathon").items) == 3
    assert len(desk.store.list(status="error").items) == 1


def test_members_are_listed_in_the_order_of_their_sending(desk: BatchDesk) -> None:
    """Some at a time, and by their status. One whose record has expired is left out,
    but counts.
    """
    members = ["queued"] * 4 + ["success"] + ["error"] * 3 + ["queued"]
    batch = desk.put(*members)
    uuids = [job.uuid for job in desk.members(batch)]
    found: list[str] = []
    query = "&limit=4"
    while query:
        answer = desk.listed(batch, query).json
        found += [item["job"]["uuid"] for item in answer["items"]]
        cursor = answer["cursor"]
        query = f"&limit=4&cursor={cursor}" if cursor else ""
    assert found == uuids
    assert desk.uuids(batch, "&status=success") == uuids[4:5]
    first = desk.listed(batch, "&status=error&limit=2").json
    assert [item["job"]["uuid"] for item in first["items"]] == uuids[5:7]
    rest = desk.listed(batch, f"&status=error&limit=2&cursor={first['cursor']}").json
    assert [item["job"]["uuid"] for item in rest["items"]] == uuids[7:8]
    assert rest["cursor"] is None
    desk.client.delete(f"jobstate:{uuids[4]}")
    assert desk.uuids(batch) == uuids[:4] + uuids[5:]
    assert desk.counts(batch) == {"queued": 5, "success": 1, "error": 3}


def test_rights_of_members(desk: BatchDesk) -> None:
    """Who may see the batch sees its bar, and of its members only those that they may
    see. An unknown batch and a forbidden one look alike, also if the policy raises.
    """
    batch = desk.put({"params": {"miles": 1}}, {"owner": "bob"})
    (item,) = desk.listed(batch).json["items"]
    assert item["job"]["params"] == {"miles": 1}
    assert desk.counts(batch) == {"working": 2}
    assert len(desk.uuids(batch, user=OPERATOR)) == 2
    assert get(desk.app, f"/job_state/{batch.uuid}", "bob").status_int == 403

    class Raising(Policy):
        def permits(self, request: Request, context: Any, permission: str) -> Any:
            raise HTTPForbidden

    url = desk.config.registry.settings["jobstate.redis_url"]
    raising = make_app(make_config(url, security_policy=Raising()))
    for app in desk.app, raising:
        unknown = get(app, f"/job_state?batch={new_id()}", "bob")
        forbidden = get(app, f"/job_state?batch={batch.uuid}", "bob")
        assert unknown.status_int == forbidden.status_int == 404
        assert unknown.text == forbidden.text


def test_bad_queries_for_members(desk: BatchDesk, subtests: pytest.Subtests) -> None:
    """What is no batch is unknown; other mistakes are named."""
    batch = desk.put("queued")
    job = desk.members(batch)[0].uuid
    for query, status in (
        ("batch=x", 404),
        ("batch=", 404),
        (f"batch={job}", 404),
        ("batch={0}&limit=0", 400),
        ("batch={0}&limit=x", 400),
        ("batch={0}&status=lost", 400),
        ("batch={0}&cursor=e1.x", 400),
        ("batch={0}&cursor=m-1", 400),
        ("batch={0}&kind=RunMarathon", 400),
        ("batch={0}&all=1", 400),
        ("batch={0}&batch={0}", 400),
        ("batch={0}&cursor=m999", 200),
        ("batch={0}&status=stalled", 200),
    ):
        with subtests.test(msg=query):
            path = f"/job_state?{query.format(batch.uuid)}"
            answer = get(desk.app, path, "alice")
            assert answer.status_int == status, answer.text
            if status == 200:
                assert answer.json == {"items": [], "cursor": None}
            else:
                assert answer.json["error"]


def test_poll_of_a_batch_costs_what_a_lone_jobs_does(desk: BatchDesk) -> None:
    """It reads one record, however many members there are, and is answered 304 until
    the counts change.
    """
    batch = desk.put(*["queued"] * 50)
    desk.client.config_resetstat()
    desk.state(batch)
    stats: Any = desk.client.info("commandstats")
    assert set(stats) == {"cmdstat_hgetall", "cmdstat_config|resetstat"}
    assert stats["cmdstat_hgetall"]["calls"] == 1
    path = f"/job_state/{batch.uuid}"
    tag = get(desk.app, path, "alice").headers["ETag"]
    assert get(desk.app, path, "alice", If_None_Match=tag).status_int == 304
    assert desk.members(batch)[0].cancel()
    assert get(desk.app, path, "alice", If_None_Match=tag).status_int == 200


def test_members_of_a_batch_at_another_url(desk: BatchDesk) -> None:
    """The application's own adapter may give jobs any URL."""

    class Elsewhere(ResourceURL):
        def __init__(self, resource: Any, request: Request) -> None:
            self.physical_path = self.virtual_path = "/b"
            self.physical_path_tuple = self.virtual_path_tuple = ("", "b")

    batch = desk.put("queued")
    desk.config.add_resource_url_adapter(Elsewhere, Batch)
    desk.config.commit()
    state = desk.state(batch)
    assert state["url"] == "http://localhost/b"
    assert state["members"] == f"http://localhost/job_state/?batch={batch.uuid}"


def test_batch_of_an_unknown_kind_opens_nothing(desk: BatchDesk) -> None:
    """An operator sees its counts all the same."""
    batch = desk.put("queued", "queued")
    desk.client.hset(f"jobstate:{batch.uuid}", "kind", "Elsewhere")
    assert get(desk.app, f"/job_state/{batch.uuid}", "alice").status_int == 403
    state = desk.state(batch, OPERATOR)
    assert (state["kind"], state["counts"]["queued"]) == ("Elsewhere", 2)


def test_stored_garbage_never_makes_a_poll_fail(
    desk: BatchDesk, subtests: pytest.Subtests
) -> None:
    """Whatever another program has written into the record of a batch."""
    for field, value in (
        ("size", "x"),
        ("n:q", "-5"),
        ("weight", "0"),
        ("sum", "9" * 18),
        ("sum", "1e9"),
        ("title", "\xff\x00<b>"),
        ("started", "x"),
        ("status", "odd"),
    ):
        with subtests.test(msg=f"{field} = {value!r}"):
            batch = desk.put("queued", "working")
            desk.client.hset(f"jobstate:{batch.uuid}", field, value)
            state = desk.state(batch)
            assert 0 <= state["progress"]["fraction"] <= 1
            assert min(state["counts"].values()) >= 0


# Cancelling, and running again.


def test_cancel_is_one_call(desk: BatchDesk) -> None:
    """Those that wait read cancelled at once, in every answer, and never run. The run
    that goes on is told with its next sign of life.
    """
    gate: list[str] = []

    @job_actor(broker=desk.actor.broker, job_state=True)
    def run(n: int, *, job_state: Any = None) -> None:
        gate.append(job_state.uuid)
        try:
            wait_for(job_state.raise_if_cancelled)
        except JobCancelled:
            gate.append("told")
            raise

    request = desk.begin()
    with request.job_states.batch() as batch:
        for n in range(3):
            batch.send_with_options(run, (n,), delay=3_600_000 if n else None)
    request.tm.commit()
    first, second, third = desk.uuids(batch)
    with working(desk.actor.broker):
        wait_for(lambda: desk.counts(batch).get("working"))
        cancelled = act(desk.app, f"/job_state/{batch.uuid}/cancel", "alice")
        assert cancelled.status_int == 202
        for uuid in second, third:
            answer = get(desk.app, f"/job_state/{uuid}", "alice").json["job"]
            assert answer["status"] == "cancelled"
            assert answer["error"] == {"message": "The job was cancelled."}
            assert answer["finished_at"] and not answer["cancellable"]
        query = f"/job_state?uuid={first}&uuid={second}"
        several = get(desk.app, query, "alice").json["jobs"]
        assert several[second]["job"]["status"] == "cancelled"
        assert {second, third} <= {*desk.uuids(batch, "&status=cancelled")}
        wait_for(lambda: desk.state(batch)["status"] == "cancelled")
    assert desk.counts(batch) == {"cancelled": 3}
    assert gate == [first, "told"]
    again = act(desk.app, f"/job_state/{batch.uuid}/cancel", "alice")
    assert again.status_int == 409


def test_members_of_a_cancelled_batch_stay_as_they_are(desk: BatchDesk) -> None:
    """Whatever messages come: those that are over are skipped, and the others never
    run. Those that run are counted till they end.
    """
    batch = desk.put("success", "error", "queued", "working", "queued")
    uuids = desk.uuids(batch)
    assert act(desk.app, f"/job_state/{batch.uuid}/cancel", "alice").status_int == 202
    assert desk.state(batch)["status"] == "cancelling"
    counts = {"working": 1, "success": 1, "error": 1, "cancelled": 2}
    assert desk.counts(batch) == counts
    assert desk.store.list(status="queued").items == []
    # A member that reads cancelled can be deleted.
    answer = act(desk.app, f"/job_state/{uuids[4]}", method="DELETE")
    assert answer.status_int == 204
    assert desk.store.load(uuids[4]) is None
    broker = desk.actor.broker
    for uuid in uuids[:3]:
        message = desk.actor.message_with_options(args=(1,), job_batch=batch.uuid)
        broker.enqueue(message.copy(message_id=uuid))
    with working(broker):
        wait_for(lambda: not desk.client.exists("dramatiq:default.msgs"))
    statuses = [job.status for job in desk.members(batch)][:3]
    assert statuses == ["success", "error", "cancelled"]
    assert desk.counts(batch) == counts


def test_cancelled_batch_of_dead_workers_is_over(desk: BatchDesk) -> None:
    """A second cancel ends it, and all that had not ended counts as cancelled."""
    batch = desk.put("working", "queued", "success")
    path = f"/job_state/{batch.uuid}/cancel"
    assert act(desk.app, path, "alice").json["job"]["status"] == "cancelling"
    pass_time(desk.store, 60)
    assert act(desk.app, path, "alice").status_int == 202
    state = desk.state(batch)
    assert state["status"] == "cancelled" and state["finished_at"]
    assert state["error"] == {"message": "The job was cancelled."}
    assert (state["progress"]["done"], state["progress"]["total"]) == (3, 3)
    assert desk.counts(batch) == {"success": 1, "cancelled": 2}
    statuses = [job.status for job in desk.members(batch)]
    assert statuses == ["cancelled", "cancelled", "success"]


def test_batch_in_which_nobody_runs_is_cancelled_at_once(desk: BatchDesk) -> None:
    """Its status follows from its members, and lists show it."""
    batch = desk.put("queued", "error")
    assert batch.cancel()
    assert desk.state(batch)["status"] == "error"
    assert desk.counts(batch) == {"error": 1, "cancelled": 1}
    listed = desk.store.list(kind="ImportAll", status="error").items
    assert [job.uuid for job in listed] == [batch.uuid]


def test_failed_members_run_again(desk: BatchDesk, global_broker: Broker) -> None:
    """After the end of the batch, too: it goes on, and ends again. Those of a cancelled
    batch do not.
    """
    fails = [True]

    @job_actor(broker=global_broker, job_state=True, max_retries=0)
    def flaky(n: int) -> None:
        if n and fails[0]:
            raise ValueError("x")

    def send(*delays: int | None) -> Any:
        request = desk.begin()
        with request.job_states.batch() as batch:
            for n, delay in enumerate(delays):
                batch.send_with_options(flaky, (n,), delay=delay)
        request.tm.commit()
        return batch

    batch, other = send(None, None, None), send(None, None, 3_600_000)
    with working(global_broker):
        wait_for(lambda: desk.state(batch)["finished_at"])
        wait_for(lambda: desk.counts(other).get("error"))
    assert desk.state(batch)["status"] == "error"
    lone = act(desk.app, f"/job_state/{batch.uuid}/rerun")
    assert lone.status_int == 410
    assert "Rerun its failed jobs" in lone.json["error"]
    path = f"/job_state/rerun?all=1&batch={batch.uuid}"
    assert act(desk.app, path).json == {"done": 2, "refused": 0, "cursor": None}
    state = desk.state(batch)
    assert (state["status"], state["finished_at"]) == ("working", None)
    assert desk.counts(batch) == {"queued": 2, "success": 1}
    assert desk.client.ttl(f"jobstate:{batch.uuid}") > 7 * 86400
    assert desk.counts(other)["error"] == 1
    fails[0] = False
    with working(global_broker):
        wait_for(lambda: desk.state(batch)["finished_at"])
    assert desk.state(batch)["status"] == "success"
    assert desk.state(batch)["error"] is None
    assert desk.uuids(batch, "&status=error") == []
    assert act(desk.app, "/job_state/rerun?all=1&batch=x").status_int == 400
    failed = desk.uuids(other, "&status=error")[0]
    assert act(desk.app, f"/job_state/{other.uuid}/cancel", "alice").status_int == 202
    answer = act(desk.app, f"/job_state/{failed}/rerun")
    assert answer.status_int == 409
    assert "Its batch was cancelled." in answer.json["error"]
    done = act(desk.app, f"/job_state/rerun?all=1&batch={other.uuid}").json
    assert (done["done"], done["refused"]) == (0, 1)
