"""Batches that requests send: many jobs with one bar, joined to the transaction."""

import math
import secrets
from collections.abc import Callable, Iterator
from typing import Any

import dramatiq
import pytest
import redis
from dramatiq import Broker, Message, group
from pyramid.httpexceptions import HTTPForbidden
from pyramid.request import Request
from pyramid.scripting import prepare

from pyramid_jobstate import (
    Batch,
    JobState,
    JobStateMiddleware,
    JobStore,
    RequestMiddleware,
    StoreUnavailable,
)
from pyramid_jobstate.errors import ActorError
from pyramid_jobstate.job import record_of
from pyramid_jobstate.job.changes import End, Update
from pyramid_jobstate.job.record import NOT_SENT, JobError, Record
from pyramid_jobstate.job.values import dumps
from pyramid_jobstate.store import connection, reading
from pyramid_jobstate.store.connection import text
from pyramid_jobstate.testing import outbox, run_jobs
from pyramid_jobstate.web.joburls import JobStatesURL
from pyramid_jobstate.web.transaction import JobDataManager
from pyramid_jobstate.worker import batching
from tests.batched import put_batch
from tests.faulty import FaultyProxy, faulty
from tests.jobs import job_actor, new_id, working
from tests.support import wait_for
from tests.web.databases import Manager, fail
from tests.web.desks import Desk, make_desk
from tests.web.operating import OPERATOR, act
from tests.webapp import (
    Policy,
    get,
    make_app,
    make_broker,
    make_config,
    make_request,
    make_tm_config,
    put_job,
    queued,
)


class ImportAll(Batch):
    """A kind of batch with a title of its own."""

    title = "Import"


class TitledBatch(Batch):
    """A kind of batch that makes its title."""

    @property
    def title(self) -> str:
        return f"{self.size} files"


class Vetoed(Exception):
    """Raised by a database that refuses to commit."""


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

    def members(self, batch: JobState, query: str = "", user: str = "alice") -> Any:
        """Return the answer to a request for the members of a batch."""
        return get(self.app, f"/job_state?batch={batch.uuid}{query}", user)

    def records(self, batch: JobState) -> list[Record]:
        """Return the records of the members of a batch."""
        found = self.client.lrange(f"{{jobstate:{batch.uuid}}}:order", 0, -1)
        uuids = [text(uuid) for uuid in found]
        return [r for r in map(self.store.record, uuids) if r is not None]

    def run(self, record: Record, end: End | None = None, token: str = "") -> None:
        """Have a worker run a member, and perhaps end it."""
        token = token or secrets.token_hex(6)
        update = Update(record.uuid, token, 1, record.info, begins=True, end=end)
        (reply,) = self.store.write([update])
        assert reply in (1, 2), reply

    def end(self, record: Record, status: str = "success") -> None:
        error = None if status == "success" else JobError("ValueError", "x")
        self.run(record, End(status, error))

    def sent(self) -> list[Message[Any]]:
        return queued(self.client)

    def keys(self) -> set[str]:
        """Return the keys of jobs and of batches."""
        found = self.client.scan_iter("*jobstate:*-*-*-*")
        return {key.decode() for key in found}


@pytest.fixture
def desk(redis_url: str, client: redis.Redis, global_broker: Broker) -> BatchDesk:
    return make_desk(BatchDesk, redis_url, client, global_broker)


@pytest.fixture
def proxy(redis_url: str) -> Iterator[FaultyProxy]:
    with faulty(redis_url) as proxy:
        yield proxy


def test_batch_is_sent_when_the_transaction_commits(desk: BatchDesk) -> None:
    request = desk.begin()
    with request.job_states.batch(ImportAll) as batch:
        jobs = [batch.send(desk.actor, n) for n in range(3)]
        assert desk.sent() == []
    assert desk.keys() == set()
    # Its page can show it before.
    state = batch.__json__(request)["job"]
    assert (state["status"], state["progress"]["total"]) == ("queued", 3)
    assert state["counts"]["queued"] == 3
    request.tm.commit()
    assert [m.message_id for m in desk.sent()] == [job.uuid for job in jobs]
    assert [m.args for m in desk.sent()] == [(0,), (1,), (2,)]
    state = desk.state(batch)
    assert state["status"] == "queued"
    assert state["kind"] == "ImportAll"
    assert state["title"] == "Import"
    assert state["progress"] == {
        "done": 0,
        "total": 3,
        "unit": "jobs",
        "eta": None,
        "fraction": 0.0,
    }
    assert state["members"] == f"http://localhost/job_state/?batch={batch.uuid}"
    assert {r.status for r in desk.records(batch)} == {"queued"}
    assert all(r.owner == "alice" for r in desk.records(batch))


def test_messages_are_confirmed_together(
    desk: BatchDesk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not each in a round trip of its own."""
    confirmed: list[int] = []
    confirm = JobStore.confirm_members

    def count(store: JobStore, jobs: Any) -> None:
        confirmed.append(len(jobs))
        confirm(store, jobs)

    def refuse(*args: object) -> None:
        raise AssertionError("A member was confirmed alone.")

    monkeypatch.setattr(JobStore, "confirm_members", count)
    monkeypatch.setattr(JobStore, "confirm", refuse)
    monkeypatch.setattr(batching, "CONFIRMED", 4)
    batch = desk.send(10)
    assert confirmed == [4, 4, 2]
    assert {r.stored_status for r in desk.records(batch)} == {"queued"}


def test_abort_after_the_commit_takes_nothing_back(desk: BatchDesk) -> None:
    """The machinery of transactions may call it on those that have finished."""
    request = desk.begin()
    with request.job_states.batch() as batch:
        batch.send(desk.actor, 1)
    (data_manager,) = (
        each for each in request.tm.get()._resources if isinstance(each, JobDataManager)
    )
    request.tm.commit()
    data_manager.abort(None)
    assert batch.status == "queued"
    assert desk.counts(batch) == {"queued": 1}


def test_batch_follows_its_members(desk: BatchDesk) -> None:
    """The fraction counts what running members have done; a member that is over counts
    whole, however it ended.
    """
    batch = desk.send(4)
    first, second, third, fourth = desk.records(batch)
    unsaved = Update(first.uuid, "0" * 12, 1, first.info, begins=True, tells=True)
    unsaved.millionths = 500_000
    desk.store.write([unsaved])
    state = desk.state(batch)
    assert state["status"] == "working"
    assert state["progress"]["fraction"] == 0.125
    assert state["started_at"]
    desk.end(second, "error")
    desk.end(third)
    assert desk.counts(batch) == {"queued": 1, "working": 1, "success": 1, "error": 1}
    assert desk.state(batch)["progress"]["fraction"] == 0.625
    assert desk.state(batch)["progress"]["done"] == 2
    desk.run(fourth, End("retrying", JobError("E", "x"), 5.0))
    assert desk.counts(batch)["retrying"] == 1
    assert desk.state(batch)["status"] == "working"
    desk.end(fourth)
    desk.end(first)
    state = desk.state(batch)
    assert state["status"] == "error"
    assert state["error"] == {"message": "Some of its jobs failed."}
    assert state["progress"]["fraction"] == 1.0
    assert state["finished_at"]


@pytest.mark.parametrize(
    ("ends", "options", "status"),
    [
        ((), {}, "success"),
        (("success", "success"), {}, "success"),
        (("success", "error"), {}, "error"),
        (("cancelled", "success"), {}, "cancelled"),
        (("cancelled", "error"), {}, "error"),
        (("success", "error"), {"allow_failures": True}, "success"),
        (("cancelled", "error"), {"allow_failures": True}, "cancelled"),
    ],
)
def test_status_of_a_batch_that_is_over(
    desk: BatchDesk, ends: tuple[str, ...], options: dict[str, Any], status: str
) -> None:
    batch = desk.send(len(ends), **options)
    for record, end in zip(desk.records(batch), ends, strict=True):
        desk.end(record, end)
    state = desk.state(batch)
    assert state["status"] == status
    assert state["progress"]["done"] == state["progress"]["total"] == len(ends)
    loaded = desk.store.load(batch.uuid)
    assert isinstance(loaded, Batch)
    assert loaded.allow_failures == bool(options)
    listed = get(desk.app, f"/job_state?status={status}", "alice").json["items"]
    assert batch.uuid in [item["job"]["uuid"] for item in listed]


def test_weights(desk: BatchDesk) -> None:
    """A member of weight 10 counts as much as ten others."""
    request = desk.begin()
    with request.job_states.batch() as batch:
        batch.send_with_options(desk.actor, (1,), weight=10)
        for n in range(10):
            batch.send(desk.actor, n)
    request.tm.commit()
    desk.end(desk.records(batch)[0])
    assert desk.state(batch)["progress"]["fraction"] == 0.5
    assert desk.state(batch)["progress"]["done"] == 1


def test_pipelines_and_groups_are_members(desk: BatchDesk) -> None:
    """Each message of a pipeline or a group is a member. A step that waits for its
    turn is queued; the steps after one that fails are cancelled.
    """
    request = desk.begin()
    with request.job_states.batch() as batch:
        steps = batch.send_message(desk.actor.message(1) | desk.actor.message(2))
        parts = batch.send_message(group([desk.actor.message(n) for n in (3, 4)]))
        one = batch.send_message(desk.actor.message(5), weight=2)
    request.tm.commit()
    jobs = [*steps, *parts, one]
    assert [r.uuid for r in desk.records(batch)] == [job.uuid for job in jobs]
    assert desk.state(batch)["progress"]["total"] == 5
    assert desk.counts(batch) == {"queued": 5}
    assert len(desk.sent()) == 4
    record = desk.store.record(steps[1].uuid)
    assert record is not None
    assert record.stored_status == "waiting"


def test_pipeline_in_a_batch_runs(desk: BatchDesk, global_broker: Broker) -> None:
    """A worker runs the steps of a pipeline, each a member, and the batch ends."""

    @job_actor(broker=global_broker, job_state=True, max_retries=0)
    def step(n: int, before: Any = None) -> int:
        if n < 0:
            raise ValueError("negative")
        return n

    request = desk.begin()
    with request.job_states.batch() as batch:
        batch.send_message(step.message(1) | step.message(2))
        batch.send_message(step.message(-1) | step.message(2))
    request.tm.commit()
    with working(global_broker):
        wait_for(lambda: desk.state(batch)["finished_at"])
    assert desk.counts(batch) == {"success": 2, "error": 1, "cancelled": 1}
    assert desk.state(batch)["status"] == "error"


def test_abort_leaves_nothing(desk: BatchDesk) -> None:
    request = desk.begin()
    with request.job_states.batch() as batch:
        batch.send(desk.actor, 1)
    request.tm.abort()
    assert desk.keys() == set()
    assert desk.sent() == []
    with pytest.raises(RuntimeError, match="takes members only within its block"):
        batch.send(desk.actor, 2)
    # It never reads as if it had succeeded.
    assert batch.status == "cancelled"
    assert desk.begin().job_states.batch().status == "queued"


@pytest.mark.parametrize("count", [0, 3])
def test_veto_takes_the_batch_back(desk: BatchDesk, count: int) -> None:
    """Another database refuses to commit after the batch and its members were
    written.
    """
    request = desk.begin()
    request.tm.get().join(Manager("a", "tpc_vote", lambda: fail(Vetoed)))
    with request.job_states.batch() as batch:
        for n in range(count):
            batch.send(desk.actor, n)
    with pytest.raises(Vetoed):
        request.tm.commit()
    request.tm.abort()
    assert desk.keys() == set()
    assert desk.sent() == []
    assert desk.store.list().items == []
    assert desk.store.load(batch.uuid) is None


def veto(request: Request, actor: Any) -> None:
    """Send a batch, and raise an exception in its block."""
    with request.job_states.batch() as batch:
        batch.send(actor, 9)
        raise Vetoed


def test_exception_in_the_block_sends_nothing(desk: BatchDesk) -> None:
    """Even if the view goes on and commits."""
    request = desk.begin()
    with pytest.raises(Vetoed):
        veto(request, desk.actor)
    job_state = request.job_states.send(desk.actor, 2)
    request.tm.commit()
    assert [m.message_id for m in desk.sent()] == [job_state.uuid]
    assert desk.keys() == {f"jobstate:{job_state.uuid}"}


def test_savepoint_takes_members_back(desk: BatchDesk) -> None:
    """The rollback of a savepoint leaves the members before it, and their keys free
    those after it.
    """
    request = desk.begin()
    with request.job_states.batch() as batch:
        batch.send(desk.actor, 1, key="a")
        savepoint = request.tm.savepoint()
        batch.send(desk.actor, 2, key="b")
        savepoint.rollback()
        batch.send(desk.actor, 3, key="b")
    request.tm.commit()
    assert [m.args for m in desk.sent()] == [(1,), (3,)]
    assert desk.state(batch)["progress"]["total"] == 2
    assert len(desk.records(batch)) == 2


def test_savepoint_after_the_block_takes_nothing_back(desk: BatchDesk) -> None:
    request = desk.begin()
    with request.job_states.batch() as batch:
        batch.send(desk.actor, 1)
    request.tm.savepoint().rollback()
    request.tm.commit()
    assert len(desk.sent()) == 1
    assert desk.state(batch)["progress"]["total"] == 1


def test_savepoint_before_the_block_takes_the_batch_back(desk: BatchDesk) -> None:
    request = desk.begin()
    savepoint = request.tm.savepoint()
    with request.job_states.batch() as batch:
        batch.send(desk.actor, 1)
        savepoint.rollback()
        with pytest.raises(RuntimeError, match="takes members only within its block"):
            batch.send(desk.actor, 2)
    request.tm.commit()
    assert desk.keys() == set()
    assert desk.sent() == []


@pytest.fixture
def far_desk(
    redis_url: str,
    client: redis.Redis,
    proxy: FaultyProxy,
    monkeypatch: pytest.MonkeyPatch,
) -> BatchDesk:
    """An application that reaches its store through the proxy, and its broker not."""
    broker = make_broker(redis_url, JobStateMiddleware(url=proxy.url))
    monkeypatch.setattr(dramatiq.broker, "global_broker", broker)
    return make_desk(BatchDesk, proxy.url, client, broker)


def answers(request: bytes) -> str:
    """Let a request pass."""
    return "pass"


def test_store_that_is_away_vetoes_the_commit(
    proxy: FaultyProxy, far_desk: BatchDesk
) -> None:
    desk = far_desk
    request = desk.begin()
    with request.job_states.batch() as batch:
        batch.send(desk.actor, 1)
    proxy.swallow()
    with pytest.raises(StoreUnavailable):
        request.tm.commit()
    request.tm.abort()
    proxy.judge = answers
    assert desk.sent() == []
    assert desk.store.load(batch.uuid) is None


def test_broker_that_is_away_fails_the_rest(
    desk: BatchDesk, global_broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The members that the broker did not accept have failed. The others run."""
    enqueue = global_broker.enqueue

    def refuse(message: Message[Any], **options: Any) -> Message[Any]:
        if len(desk.sent()) == 2:
            raise ConnectionError("away")
        return enqueue(message, **options)

    monkeypatch.setattr(global_broker, "enqueue", refuse)
    batch = desk.send(5)
    assert desk.counts(batch) == {"queued": 2, "error": 3}
    assert [r.status for r in desk.records(batch)] == ["queued"] * 2 + ["error"] * 3
    assert desk.records(batch)[2].error == NOT_SENT
    for record in desk.records(batch)[:2]:
        desk.end(record)
    assert desk.state(batch)["status"] == "error"
    failed = desk.members(batch, "&status=error").json["items"]
    assert len(failed) == 3


def test_store_that_goes_away_while_members_are_sent(
    proxy: FaultyProxy, far_desk: BatchDesk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All messages leave. The batch learns of it when its members run."""
    monkeypatch.setattr(batching, "CONFIRMED", 2)
    desk = far_desk
    global_broker = desk.actor.broker
    enqueue = global_broker.enqueue

    def send(message: Message[Any], **options: Any) -> Message[Any]:
        proxy.swallow()
        return enqueue(message, **options)

    monkeypatch.setattr(global_broker, "enqueue", send)
    batch = desk.send(5)
    proxy.judge = answers
    assert len(desk.sent()) == 5
    assert {r.stored_status for r in desk.records(batch)} == {"sending"}
    assert desk.counts(batch) == {"queued": 5}
    for record in desk.records(batch):
        desk.end(record)
    assert desk.state(batch)["status"] == "success"


def test_members_are_not_in_the_list_of_their_owner(desk: BatchDesk) -> None:
    """There the batch stands for them. Operators find them by kind and by status."""
    batch = desk.send(3)
    own = get(desk.app, "/job_state", "alice").json["items"]
    assert [item["job"]["uuid"] for item in own] == [batch.uuid]
    everything = get(desk.app, "/job_state?all=1", OPERATOR).json["items"]
    assert len(everything) == 4
    marathons = desk.store.list(kind="RunMarathon").items
    assert len(marathons) == 3
    for record in desk.records(batch):
        desk.end(record, "error")
    own = get(desk.app, "/job_state", "alice").json["items"]
    assert [item["job"]["uuid"] for item in own] == [batch.uuid]
    assert len(desk.store.list(status="error").items) == 4


def test_members_are_listed_in_the_order_of_their_sending(desk: BatchDesk) -> None:
    batch = desk.send(5)
    uuids = [record.uuid for record in desk.records(batch)]
    found: list[str] = []
    query = "&limit=2"
    for size in (2, 2, 1):
        answer = desk.members(batch, query).json
        found += [item["job"]["uuid"] for item in answer["items"]]
        assert len(answer["items"]) == size
        query = f"&limit=2&cursor={answer['cursor']}"
    assert answer["cursor"] is None
    assert found == uuids
    desk.end(desk.records(batch)[3])
    ended = desk.members(batch, "&status=success").json
    assert [item["job"]["uuid"] for item in ended["items"]] == [uuids[3]]


def test_failed_members_are_found_at_once(desk: BatchDesk) -> None:
    """The list of those that failed does not go through the others."""
    batch = desk.send(30)
    records = desk.records(batch)
    for record in records[20:25]:
        desk.end(record, "error")
    first = desk.members(batch, "&status=error&limit=3").json
    rest = desk.members(batch, f"&status=error&limit=3&cursor={first['cursor']}").json
    found = [item["job"]["uuid"] for item in first["items"] + rest["items"]]
    assert found == [record.uuid for record in records[20:25]]
    assert rest["cursor"] is None


def test_member_whose_record_has_expired_is_left_out(desk: BatchDesk) -> None:
    """Its count stays."""
    batch = desk.send(2)
    first, second = desk.records(batch)
    desk.end(first)
    desk.end(second)
    desk.client.delete(f"jobstate:{first.uuid}")
    (item,) = desk.members(batch).json["items"]
    assert item["job"]["uuid"] == second.uuid
    assert desk.counts(batch) == {"success": 2}


def test_rights_of_members(desk: BatchDesk) -> None:
    """Who may see the batch sees its bar, and of its members only those that they may
    see. An unknown batch and a forbidden one look alike.
    """
    request = desk.begin()
    with request.job_states.batch() as batch:
        batch.send(desk.actor, 1)
        batch.send_with_options(desk.actor, (2,), job_owner="bob")
    request.tm.commit()
    (item,) = desk.members(batch).json["items"]
    assert item["job"]["params"] == {"miles": 1}
    assert desk.counts(batch) == {"queued": 2}
    assert len(desk.members(batch, user=OPERATOR).json["items"]) == 2
    unknown = get(desk.app, f"/job_state?batch={new_id()}", "bob")
    forbidden = desk.members(batch, user="bob")
    assert (unknown.status_int, unknown.text) == (404, forbidden.text)
    assert forbidden.status_int == 404
    assert get(desk.app, f"/job_state/{batch.uuid}", "bob").status_int == 403


def test_policy_that_raises_tells_nothing_of_a_batch(
    redis_url: str, store: JobStore
) -> None:
    """A batch that may not be seen looks like an unknown one then, too."""

    class Raising(Policy):
        def permits(self, request: Request, context: Any, permission: str) -> Any:
            raise HTTPForbidden

    app = make_app(make_config(redis_url, security_policy=Raising()))
    batch = put_batch(store, "success")
    answers = [
        get(app, f"/job_state?batch={uuid}", "alice") for uuid in (batch.uuid, new_id())
    ]
    assert [answer.status_int for answer in answers] == [404, 404]
    assert answers[0].text == answers[1].text


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ("batch=x", 404),
        ("batch=", 404),
        ("batch={job}", 404),
        ("batch={batch}&limit=0", 400),
        ("batch={batch}&limit=x", 400),
        ("batch={batch}&status=lost", 400),
        ("batch={batch}&cursor=e1.x", 400),
        ("batch={batch}&cursor=m-1", 400),
        ("batch={batch}&kind=RunMarathon", 400),
        ("batch={batch}&all=1", 400),
        ("batch={batch}&batch={batch}", 400),
        ("batch={batch}&cursor=m999", 200),
        ("batch={batch}&status=stalled", 200),
    ],
)
def test_bad_queries_for_members(desk: BatchDesk, query: str, status: int) -> None:
    batch = desk.send(1)
    job = put_job(desk.client)
    path = f"/job_state?{query.format(batch=batch.uuid, job=job)}"
    answer = get(desk.app, path, "alice")
    assert answer.status_int == status, answer.text
    if status == 200:
        assert answer.json == {"items": [], "cursor": None}
    else:
        assert answer.json["error"]


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


def test_owner_of_a_batch(desk: BatchDesk) -> None:
    batch = desk.send(1, user="bob", owner="alice")
    assert desk.state(batch)["status"] == "queued"
    assert [r.owner for r in desk.records(batch)] == ["alice"]
    nobodys = desk.send(1, owner=None)
    assert get(desk.app, f"/job_state/{nobodys.uuid}", "alice").status_int == 403
    assert [r.owner for r in desk.records(nobodys)] == [None]


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


def refuse(
    desk: BatchDesk, send: Callable[[Batch], object], error: type[Exception], match: str
) -> None:
    """Check that a send is refused, and that the rest of the batch is sent."""
    request = desk.begin()
    with request.job_states.batch() as batch:
        batch.send(desk.actor, 1, key="first")
        with pytest.raises(error, match=match):
            send(batch)
    request.tm.commit()
    assert [m.args for m in desk.sent()] == [(1,)]
    assert desk.state(batch)["progress"]["total"] == 1


@pytest.mark.parametrize(
    ("weight", "error"),
    [
        (0, ValueError),
        (-1, ValueError),
        (math.inf, ValueError),
        (math.nan, ValueError),
        (0.0001, ValueError),
        (10_001, ValueError),
        (True, TypeError),
        ("1", TypeError),
        (None, TypeError),
    ],
)
def test_bad_weights(desk: BatchDesk, weight: Any, error: type[Exception]) -> None:
    def send(batch: Batch) -> object:
        return batch.send_with_options(desk.actor, (2,), weight=weight)

    refuse(desk, send, error, "The weight of a member must be")


@pytest.mark.parametrize(
    ("key", "error", "match"),
    [
        ("first", ValueError, "The key 'first' was used before"),
        ("", ValueError, "1 to 200 characters"),
        (201 * "x", ValueError, "1 to 200 characters"),
        ("a\0b", ValueError, "NUL"),
        ("\ud800", ValueError, "valid Unicode"),
        (7, TypeError, "must be a string"),
    ],
)
def test_bad_keys(
    desk: BatchDesk, key: Any, error: type[Exception], match: str
) -> None:
    refuse(desk, lambda batch: batch.send(desk.actor, 2, key=key), error, match)


@pytest.mark.parametrize("option", ["unique", "shared", "owner"])
def test_options_that_members_cannot_have(desk: BatchDesk, option: str) -> None:
    def send(batch: Batch) -> object:
        options: dict[str, Any] = {option: "x"}
        return batch.send_with_options(desk.actor, (2,), **options)

    refuse(desk, send, TypeError, f"cannot take {option}=")


def test_what_cannot_be_a_member(desk: BatchDesk, global_broker: Broker) -> None:
    """An untracked actor, another batch, the same message twice, a member's message."""
    sweep = global_broker.get_actor("sweep")
    refuse(desk, lambda batch: batch.send(sweep), ActorError, "not tracked")
    desk.client.flushall()
    other = make_request(desk.config, "alice").job_states.batch()
    refuse(
        desk, lambda batch: batch.send_message(other), TypeError, "cannot be a member"
    )
    desk.client.flushall()
    message = desk.actor.message(2)

    def twice(batch: Batch) -> object:
        return batch.send_message(group([message, message]))

    refuse(desk, twice, ValueError, "is in the batch already")
    (member,) = desk.sent()
    with pytest.raises(ActorError, match="belongs to a member of a batch"):
        desk.begin().job_states.send_message(member)
    with pytest.raises(ActorError, match="belongs to a member of a batch"):
        desk.begin().job_states.send_with_options(desk.actor, (1,), job_batch=new_id())


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"batch_class": JobState}, "needs a subclass of Batch"),
        ({"batch_class": "Batch"}, "needs a subclass of Batch"),
        ({"title": 7}, "title of a batch must be a string"),
        ({"owner": ["alice"]}, "owner of a job must be"),
    ],
)
def test_bad_arguments_of_a_batch(
    desk: BatchDesk, options: dict[str, Any], match: str
) -> None:
    with pytest.raises(TypeError, match=match):
        desk.begin().job_states.batch(**options)


def test_block_of_a_batch(desk: BatchDesk) -> None:
    """It is entered once, in a transaction, and not within that of another batch."""
    batch = make_request(desk.config, "alice").job_states.batch()
    with pytest.raises(RuntimeError, match="No transaction has begun"):
        batch.__enter__()
    request = desk.begin()
    batch = request.job_states.batch()
    with pytest.raises(RuntimeError, match="takes members only within its block"):
        batch.send(desk.actor, 1)
    with batch:
        inner = request.job_states.batch()
        with pytest.raises(RuntimeError, match="cannot be nested"):
            inner.__enter__()
        batch.send(desk.actor, 1)
    with pytest.raises(RuntimeError, match="only once"):
        batch.__enter__()
    with pytest.raises(RuntimeError, match="takes members only within its block"):
        batch.send(desk.actor, 2)
    # Another one may follow.
    with request.job_states.batch() as second:
        second.send(desk.actor, 3)
    request.tm.commit()
    assert [m.args for m in desk.sent()] == [(1,), (3,)]


def test_commit_within_the_block_is_refused(desk: BatchDesk) -> None:
    request = desk.begin()
    with request.job_states.batch() as batch:
        batch.send(desk.actor, 1)
        with pytest.raises(RuntimeError, match="committed inside the block"):
            request.tm.commit()
        request.tm.abort()
    assert desk.sent() == []
    assert desk.keys() == set()


def test_batch_that_was_loaded_takes_no_members(desk: BatchDesk) -> None:
    batch = desk.store.load(desk.send(1).uuid)
    assert isinstance(batch, Batch)
    with pytest.raises(RuntimeError, match="takes members only from the request"):
        batch.send(desk.actor, 2)
    with (
        pytest.raises(RuntimeError, match="takes members only from the request"),
        batch,
    ):
        pass
    (record,) = desk.records(batch)
    member = desk.store.load(record.uuid)
    assert member is not None
    assert member.batch is not None
    assert repr(member.batch) == f"<OwnBatch {batch.uuid}>"
    with pytest.raises(RuntimeError, match="takes members only from the request"):
        member.batch.send(desk.actor, 2, key="a")
    assert batch.batch is None


def test_cancel_is_one_call(desk: BatchDesk) -> None:
    """Those that wait read cancelled at once, in every answer, and never run."""
    batch = desk.send(3)
    first, second, third = desk.records(batch)
    desk.run(first, token="0" * 12)
    assert act(desk.app, f"/job_state/{batch.uuid}/cancel", "alice").status_int == 202
    state = desk.state(batch)
    assert state["status"] == "cancelling"
    assert desk.counts(batch) == {"working": 1, "cancelled": 2}
    for uuid in (second.uuid, third.uuid):
        answer = get(desk.app, f"/job_state/{uuid}", "alice").json["job"]
        assert answer["status"] == "cancelled"
        assert answer["error"] == {"message": "The job was cancelled."}
        assert answer["finished_at"]
        assert not answer["cancellable"]
    several = get(
        desk.app, f"/job_state?uuid={first.uuid}&uuid={second.uuid}", "alice"
    ).json["jobs"]
    assert several[first.uuid]["job"]["status"] == "working"
    assert several[second.uuid]["job"]["status"] == "cancelled"
    listed = desk.members(batch, "&status=cancelled").json["items"]
    assert len(listed) == 2
    # The run that goes on is told with its next sign of life.
    (reply,) = desk.store.write(
        [Update(first.uuid, "0" * 12, 2, first.info, tells=True)]
    )
    assert reply == 2
    desk.run(first, End("cancelled", JobError(None, "x")), token="0" * 12)
    assert desk.state(batch)["status"] == "cancelled"
    # The messages of the others come.
    for record in (second, third):
        (reply,) = desk.store.write(
            [Update(record.uuid, "1" * 12, 1, record.info, begins=True)]
        )
        assert reply == -2
        assert desk.state(batch)["status"] == "cancelled"
    assert desk.counts(batch) == {"cancelled": 3}
    again = act(desk.app, f"/job_state/{batch.uuid}/cancel", "alice")
    assert again.status_int == 409


def test_ended_member_of_a_cancelled_batch_stays_as_it_is(desk: BatchDesk) -> None:
    """Its message comes again: it is skipped."""
    batch = desk.send(3)
    first, second, third = desk.records(batch)
    desk.end(first)
    desk.end(second, "error")
    assert act(desk.app, f"/job_state/{batch.uuid}/cancel", "alice").status_int == 202
    before = desk.state(batch)
    for record in (first, second, third):
        update = Update(record.uuid, "1" * 12, 1, record.info, begins=True)
        assert desk.store.write([update]) == [-2]
    assert [r.status for r in desk.records(batch)] == ["success", "error", "cancelled"]
    after = desk.state(batch)
    assert after["finished_at"] == before["finished_at"]
    assert desk.counts(batch) == {"success": 1, "error": 1, "cancelled": 1}
    cancelled = desk.store.list(kind="RunMarathon", status="cancelled").items
    assert [job.uuid for job in cancelled] == [third.uuid]


def test_waiting_member_of_a_cancelled_batch_can_be_deleted(desk: BatchDesk) -> None:
    """It reads cancelled, and lists of those that are queued leave it out."""
    batch = desk.send(2)
    first = desk.records(batch)[0]
    desk.store.cancel(batch.uuid, record_of(batch).info)
    assert desk.store.list(status="queued").items == []
    answer = act(desk.app, f"/job_state/{first.uuid}", method="DELETE")
    assert answer.status_int == 204
    assert desk.store.load(first.uuid) is None
    assert desk.counts(batch) == {"cancelled": 2}


def test_batch_in_which_nobody_runs_is_cancelled_at_once(desk: BatchDesk) -> None:
    batch = desk.send(2)
    desk.end(desk.records(batch)[0], "error")
    job_state = desk.store.load(batch.uuid)
    assert job_state is not None
    assert job_state.cancel()
    assert desk.state(batch)["status"] == "error"
    assert desk.counts(batch) == {"error": 1, "cancelled": 1}
    listed = desk.store.list(kind="Batch", status="error").items
    assert [job.uuid for job in listed] == [batch.uuid]


def test_failed_members_run_again(desk: BatchDesk, global_broker: Broker) -> None:
    """After the end of the batch, too: it goes on, and ends again."""
    fails = [True]

    @job_actor(broker=global_broker, job_state=True, max_retries=0)
    def flaky(n: int) -> None:
        if n and fails[0]:
            raise ValueError("x")

    request = desk.begin()
    with request.job_states.batch() as batch:
        for n in range(3):
            batch.send(flaky, n)
    request.tm.commit()
    with working(global_broker):
        wait_for(lambda: desk.state(batch)["finished_at"])
    assert desk.state(batch)["status"] == "error"
    lone = act(desk.app, f"/job_state/{batch.uuid}/rerun")
    assert lone.status_int == 410
    assert "Rerun its failed jobs" in lone.json["error"]
    other = desk.send(1)
    desk.end(desk.records(other)[0], "error")
    path = f"/job_state/rerun?all=1&batch={batch.uuid}"
    assert act(desk.app, path).json == {"done": 2, "refused": 0, "cursor": None}
    state = desk.state(batch)
    assert (state["status"], state["finished_at"]) == ("working", None)
    assert desk.counts(batch) == {"queued": 2, "success": 1}
    assert desk.client.ttl(f"jobstate:{batch.uuid}") > 7 * 86400
    assert desk.state(other)["status"] == "error"
    fails[0] = False
    with working(global_broker):
        wait_for(lambda: desk.state(batch)["finished_at"])
    assert desk.state(batch)["status"] == "success"
    assert desk.state(batch)["error"] is None
    assert desk.members(batch, "&status=error").json["items"] == []
    assert act(desk.app, "/job_state/rerun?all=1&batch=x").status_int == 400


def test_member_of_a_cancelled_batch_does_not_run_again(
    desk: BatchDesk, global_broker: Broker
) -> None:
    @job_actor(broker=global_broker, job_state=True, max_retries=0)
    def failing() -> None:
        raise ValueError("x")

    request = desk.begin()
    with request.job_states.batch() as batch:
        member = batch.send(failing)
        batch.send_with_options(failing, delay=3_600_000)
    request.tm.commit()
    with working(global_broker):
        wait_for(lambda: desk.counts(batch).get("error"))
    assert act(desk.app, f"/job_state/{batch.uuid}/cancel", "alice").status_int == 202
    answer = act(desk.app, f"/job_state/{member.uuid}/rerun")
    assert answer.status_int == 409
    assert "Its batch was cancelled." in answer.json["error"]
    done = act(desk.app, f"/job_state/rerun?all=1&batch={batch.uuid}").json
    assert (done["done"], done["refused"]) == (0, 1)


def test_outbox_shows_what_a_batch_would_send(
    redis_url: str, client: redis.Redis, global_broker: Broker
) -> None:
    """No transaction is needed, and nothing is written or sent."""
    config = make_tm_config(redis_url)
    config.include("pyramid_jobstate.testing")
    make_app(config)
    actor = global_broker.get_actor("run_marathon")
    request = make_request(config, "alice")
    lone = request.job_states.send(actor, 7)
    with request.job_states.batch(ImportAll) as batch:
        jobs = [batch.send(actor, n) for n in range(2)]
    with pytest.raises(Vetoed):
        veto(request, actor)
    box = outbox(config.registry)
    assert box.batches == [batch]
    assert [sent.job_state for sent in box.members(batch)] == jobs
    assert [sent.message.args for sent in box] == [(7,), (0,), (1,)]
    assert [job.uuid for job in run_jobs(config.registry)] == [
        job.uuid for job in (lone, *jobs)
    ]
    assert client.keys("*") == []
    assert batch.size == 2
    assert dumps(batch.counts) == dumps(
        {
            "queued": 2,
            "working": 0,
            "retrying": 0,
            "success": 0,
            "error": 0,
            "cancelled": 0,
        }
    )


def test_members_that_a_member_sends_are_kept_in_the_outbox(
    redis_url: str, client: redis.Redis, global_broker: Broker
) -> None:
    """They run after it, and a key is used once."""

    @job_actor(broker=global_broker, job_state=True)
    def part(n: int) -> None:
        pass

    @dramatiq.actor(broker=global_broker)
    def folder(*, job_state: Any = None) -> None:
        job_state.batch.send(part, 1, key="a")
        with pytest.raises(ValueError, match="was used before"):
            job_state.batch.send(part, 2, key="a")

    config = make_tm_config(redis_url)
    config.include("pyramid_jobstate.testing")
    make_app(config)
    request = make_request(config, "alice")
    with request.job_states.batch() as batch:
        batch.send(folder)
    assert [job.actor for job in run_jobs(config.registry)] == ["folder", "part"]
    sent = outbox(config.registry).members(batch)
    assert [each.message.actor_name for each in sent] == ["folder", "part"]
    assert client.keys("*") == []


def test_script_sends_a_batch(desk: BatchDesk) -> None:
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
    def part(n: int) -> None:
        pass

    @job_actor(broker=global_broker, job_state=True)
    def start(request: Any = None) -> None:
        with request.job_states.batch() as batch:
            for n in range(3):
                batch.send(part, n)
        batches.append(batch)
        assert len(desk.sent()) == 0

    request = desk.begin()
    request.job_states.send(start)
    request.tm.commit()
    with working(global_broker):
        # Its transaction commits after the actor has returned.
        wait_for(lambda: batches and desk.store.load(batches[0].uuid))
        wait_for(lambda: desk.state(batches[0])["finished_at"])
    assert desk.counts(batches[0]) == {"success": 3}


def test_batch_of_an_unknown_kind_opens_nothing(desk: BatchDesk) -> None:
    """An operator sees its counts all the same."""
    batch = desk.send(2)
    desk.client.hset(f"jobstate:{batch.uuid}", "kind", "Elsewhere")
    assert get(desk.app, f"/job_state/{batch.uuid}", "alice").status_int == 403
    state = desk.state(batch, OPERATOR)
    assert state["kind"] == "Elsewhere"
    assert state["counts"]["queued"] == 2


def test_poll_of_a_batch_reads_its_record_alone(
    desk: BatchDesk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It costs what a lone job's does, however many members there are."""
    batch = desk.send(50)
    asked: list[Any] = []
    execute = connection.execute

    def note(client: Any, commands: Any) -> Any:
        asked.extend(commands)
        return execute(client, commands)

    monkeypatch.setattr(reading, "execute", note)
    desk.state(batch)
    assert [command.args[0] for command in asked] == ["HGETALL"]


def test_members_of_a_batch_at_another_url(desk: BatchDesk) -> None:
    """The application's own adapter may give jobs any URL."""

    class Elsewhere(JobStatesURL):
        def __init__(self, resource: Any, request: Request) -> None:
            super().__init__(resource, request)
            if isinstance(resource, Batch):
                self.physical_path = self.virtual_path = "/b"
                self.physical_path_tuple = self.virtual_path_tuple = ("", "b")

    batch = desk.send(1)
    request = make_request(desk.config, "alice")
    desk.config.add_resource_url_adapter(Elsewhere, Batch)
    desk.config.commit()
    state = request.job_states[batch.uuid].__json__(request)["job"]
    assert state["url"] == "http://localhost/b"
    assert state["members"] == f"http://localhost/job_state/?batch={batch.uuid}"


def test_etag_changes_with_the_counts(desk: BatchDesk) -> None:
    batch = desk.send(2)
    path = f"/job_state/{batch.uuid}"
    tag = get(desk.app, path, "alice").headers["ETag"]
    assert get(desk.app, path, "alice", If_None_Match=tag).status_int == 304
    desk.end(desk.records(batch)[0])
    assert get(desk.app, path, "alice", If_None_Match=tag).status_int == 200


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("size", "x"),
        ("n:q", "-5"),
        ("weight", "0"),
        ("sum", "9" * 18),
        ("sum", "1e9"),
        ("title", "\xff\x00<b>"),
        ("started", "x"),
        ("status", "odd"),
    ],
)
def test_stored_garbage_never_makes_a_poll_fail(
    desk: BatchDesk, field: str, value: str
) -> None:
    batch = desk.send(2)
    desk.run(desk.records(batch)[0])
    desk.client.hset(f"jobstate:{batch.uuid}", field, value)
    state = desk.state(batch)
    assert 0 <= state["progress"]["fraction"] <= 1
    assert min(state["counts"].values()) >= 0


@dramatiq.actor(broker=dramatiq.brokers.stub.StubBroker())
def nothing() -> None:
    """An actor of a broker without the middleware."""


def test_actor_of_another_broker_is_refused(desk: BatchDesk) -> None:
    refuse(desk, lambda batch: batch.send(nothing), TypeError, "no JobStateMiddleware")
