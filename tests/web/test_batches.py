"""Batches that requests send, and what their viewers are told."""

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any

import dramatiq
import pytest
import redis
from dramatiq import Broker, group
from dramatiq.brokers.stub import StubBroker
from dramatiq.middleware import Middleware
from pyramid.authorization import Deny, Everyone
from pyramid.httpexceptions import HTTPForbidden
from pyramid.request import Request

from pyramid_jobstate import Batch, JobError, JobState, RequestMiddleware
from pyramid_jobstate.errors import ActorError
from pyramid_jobstate.testing import away, outbox, pass_time, put_batch, run_jobs
from tests.jobs import RunMarathon, job_actor, new_id, working
from tests.support import wait_for
from tests.web.databases import Manager, fail
from tests.web.operating import OPERATOR, act, operated_app, uuids_of
from tests.web.reading import NOT_FOUND
from tests.web.visits import NOT_SENT, Desk, Refusing, make_desk, sent
from tests.webapp import ADMIN, get, make_app, make_request, make_tm_config, queued

#: What is said of a batch that is sent elsewhere than in its block.
NOT_OPEN = "takes members only within its block"


class ImportAll(Batch):
    """A kind of batch with a title of its own, and a page elsewhere."""

    title = "Import"

    def __resource_url__(self, request: Request, info: Any) -> str:
        return f"{request.application_url}/elsewhere"


class Irrevocable(JobState):
    """Nobody may cancel it."""

    def __acl__(self) -> Any:
        return [(Deny, Everyone, "cancel_job"), *super().__acl__()]


class BatchDesk(Desk):
    """An application whose users send batches."""

    @contextlib.contextmanager
    def batch(self, user: str = "alice", **options: Any) -> Iterator[Batch]:
        """Yield a batch in its block, and commit."""
        request = self.begin(user)
        with request.job_states.batch(**options) as batch:
            yield batch
        request.tm.commit()

    def send(self, count: int = 3, **options: Any) -> Batch:
        """Send a batch of so many members, and commit."""
        with self.batch(**options) as batch:
            for n in range(count):
                batch.send(self.actor, n)
        return batch

    def state(self, batch: JobState) -> Any:
        """Return the `job` in the state of a batch as Alice sees it."""
        return get(self.app, f"/job_state/{batch.uuid}", "alice").json["job"]

    def counts(self, batch: JobState) -> dict[str, int]:
        """Return how many members a batch has of each status that any has."""
        counts = self.state(batch)["counts"]
        return {status: count for status, count in counts.items() if count}

    def listed(self, batch: JobState, query: str = "", user: str = "alice") -> Any:
        """Return the answer to a request for the members of a batch."""
        return get(self.app, f"/job_state?batch={batch.uuid}{query}", user)

    def uuids(self, batch: JobState, query: str = "", user: str = "alice") -> list[str]:
        """Return the uuids of the members that a user is shown."""
        return uuids_of(self.listed(batch, query, user).json["items"])

    def members(self, batch: JobState) -> list[JobState]:
        """Return the members of a batch."""
        return list(self.store.members(batch.uuid).items)

    def put(self, *members: Any) -> Batch:
        """Store a batch of Alice's with members in any status."""
        each = [{"status": m} if isinstance(m, str) else m for m in members]
        marathons = [{"job_state_class": RunMarathon, **m} for m in each]
        return put_batch(self.store, ImportAll, marathons, owner="alice")

    def is_empty(self) -> bool:
        """Return whether nothing is kept of any job or batch, nor was sent."""
        keys = self.client.scan_iter("*jobstate:*-*-*-*")
        return not [*keys, *sent(self.client)]


@pytest.fixture
def desk(redis_url: str, client: redis.Redis, global_broker: Broker) -> BatchDesk:
    return make_desk(BatchDesk, redis_url, client, global_broker)


def test_batch_is_sent_when_the_transaction_commits(desk):
    """It can be shown before. One without members is a success at once."""
    request = desk.begin()
    with request.job_states.batch(ImportAll) as batch:
        jobs = [batch.send(desk.actor, n) for n in range(3)]
    assert desk.is_empty()
    state = batch.__json__(request)["job"]
    assert (state["status"], state["progress"]["total"]) == ("queued", 3)
    assert state["counts"]["queued"] == 3
    request.tm.commit()
    assert sent(desk.client) == [0, 1, 2]
    state = desk.state(batch)
    assert (state["status"], state["kind"]) == ("queued", "ImportAll")
    assert state["title"] == "Import"
    progress = {"done": 0, "total": 3, "unit": "jobs", "eta": None, "fraction": 0.0}
    assert state["progress"] == progress
    assert state["members"] == f"http://localhost/job_state/?batch={batch.uuid}"
    pass_time(desk.store, 60)
    members = [(job.uuid, job.owner, job.status) for job in desk.members(batch)]
    assert members == [(job.uuid, "alice", "queued") for job in jobs]
    assert desk.state(desk.send(0))["status"] == "success"


def test_weights_and_pipelines(desk, global_broker):
    """Each message of a pipeline or a group is a member, with its weight."""

    @job_actor(broker=global_broker, job_state=True, max_retries=0)
    def step(n: int, before: Any = None) -> int:
        if n < 0:
            raise ValueError("negative")
        return n

    with desk.batch() as batch:
        jobs = [
            *batch.send_message(step.message(1) | step.message(2)),
            *batch.send_message(step.message(-1) | step.message(2)),
            *batch.send_message(group([step.message(n) for n in (3, 4)]), weight=0.5),
            batch.send_with_options(desk.actor, (5,), delay=3_600_000, weight=10),
            batch.send_message(desk.actor.message_with_options(delay=3_600_000)),
        ]
    assert desk.uuids(batch) == [job.uuid for job in jobs]
    pass_time(desk.store, 60)
    assert desk.counts(batch) == {"queued": 8}
    with working(global_broker):
        wait_for(lambda: desk.state(batch)["progress"]["done"] == 6)
    over = {"success": 4, "error": 1, "cancelled": 1}
    assert desk.counts(batch) == {"queued": 2, **over}
    assert desk.state(batch)["progress"]["fraction"] == 5 / 16


def test_batch_that_is_not_committed_is_taken_back(desk):
    """After a veto, an abort, or an exception in its block that the view survives."""
    for count in 0, 3:
        request = desk.begin()
        request.tm.get().join(Manager("a", "tpc_vote", fail))
        with request.job_states.batch() as batch:
            for n in range(count):
                batch.send(desk.actor, n)
        with pytest.raises(ZeroDivisionError):
            request.tm.commit()
        request.tm.abort()
        assert desk.is_empty()
        assert desk.store.list().items == []
        assert desk.store.load(batch.uuid) is None

    request = desk.begin()
    with request.job_states.batch() as batch:
        batch.send(desk.actor, 1)
    request.tm.abort()
    assert desk.is_empty()
    assert batch.status == "cancelled"
    with pytest.raises(RuntimeError, match=NOT_OPEN):
        batch.send(desk.actor, 2)
    request = desk.begin()
    with contextlib.suppress(ZeroDivisionError), request.job_states.batch() as batch:
        batch.send(desk.actor, 1)
        fail()
    job_state = request.job_states.send(desk.actor, 2)
    request.tm.commit()
    assert sent(desk.client) == [2]
    assert [job.uuid for job in desk.store.list().items] == [job_state.uuid]


def test_savepoint_takes_back_what_came_after_it(desk):
    """It takes back later members, whose keys are free again, or the batch itself."""
    request = desk.begin()
    with request.job_states.batch() as batch:
        batch.send(desk.actor, 1, key="a")
        savepoint = request.tm.savepoint()
        batch.send(desk.actor, 2, key="b")
        savepoint.rollback()
        batch.send(desk.actor, 3, key="b")
    request.tm.savepoint().rollback()
    request.tm.commit()
    assert sent(desk.client) == [1, 3]
    assert desk.state(batch)["progress"]["total"] == len(desk.members(batch)) == 2
    desk.client.flushall()
    request.tm.begin()
    savepoint = request.tm.savepoint()
    with request.job_states.batch() as batch:
        batch.send(desk.actor, 1)
        savepoint.rollback()
        with pytest.raises(RuntimeError, match=NOT_OPEN):
            batch.send(desk.actor, 2)
    request.tm.commit()
    assert desk.is_empty()


def test_refusing_broker_fails_the_rest(desk, global_broker):
    """The members that the broker did not accept have failed. The others wait."""
    global_broker.add_middleware(Refusing(lambda message: message.args == (2,)))
    batch = desk.send(5)
    pass_time(desk.store, 60)
    members = desk.members(batch)
    assert [job.status for job in members] == ["queued"] * 2 + ["error"] * 3
    assert members[4].error and members[4].error.message == NOT_SENT
    assert desk.counts(batch) == {"queued": 2, "error": 3}


def test_members_are_confirmed_a_hundred_at_a_time(desk, global_broker):
    """If the store goes away amid a large batch, the rest is sent all the same."""
    seen: list[str] = []

    class Watch(Middleware):
        def before_enqueue(self, broker: Broker, message: Any, delay: Any) -> None:
            if message.args == (150,):
                pass_time(desk.store, 60)
                page = desk.store.members(batch.uuid, limit=200)
                seen.extend(job.status for job in page.items)
                gone.enter_context(away(desk.store))

    global_broker.add_middleware(Watch())
    with contextlib.ExitStack() as gone, desk.batch() as batch:
        for n in range(201):
            batch.send(desk.actor, n)
    assert seen == ["queued"] * 100 + ["stalled"] * 100
    assert sent(desk.client) == [*range(201)]


def test_keys_decide_the_ids_of_members(desk):
    """A key is one of its actor's in its batch: other batches have other members."""
    uuids = set()
    for _ in range(2):
        with desk.batch() as batch:
            uuids.add(batch.send(desk.actor, 1, key="a").uuid)
            uuids.add(batch.send_with_options(desk.actor, (1,), key="b").uuid)
            steps: Any = desk.actor.message(1) | desk.actor.message(2)
            uuids.update(job.uuid for job in batch.send_message(steps, key="c"))
    assert len(uuids) == 8


def test_owner_and_title_of_a_batch(desk):
    """Members may name another owner. A title replaces that of the class."""
    with desk.batch("bob", owner="alice") as batch:
        batch.send(desk.actor, 1)
        batch.send_with_options(desk.actor, (2,), job_owner="carol")
    assert desk.state(batch)["status"] == "queued"
    assert [job.owner for job in desk.members(batch)] == ["alice", "carol"]
    assert [job.owner for job in desk.members(desk.send(1, owner=None))] == [None]
    titles: tuple[tuple[type[Batch], str | None, str], ...] = (
        (ImportAll, None, "Import"),
        (ImportAll, "Import of 3 files", "Import of 3 files"),
        (Batch, "<img>" + 300 * "x", "<img>" + 195 * "x"),
        # Such as the name of a file that is not valid Unicode.
        (Batch, "a\0b\udcff", "a\0b?"),
    )
    for cls, given, shown in titles:
        batch = desk.send(1, batch_class=cls, title=given)
        assert batch.title == shown
        assert desk.state(batch)["title"] == shown


def test_what_cannot_be_a_member(desk, global_broker, subtests):
    """A wrong member is an error that says why; the rest of the batch is sent."""
    nothing: Any = dramatiq.actor(broker=StubBroker())(lambda: None)
    other = make_request(desk.config, "alice").job_states.batch()
    twice = group([desk.actor.message(2)] * 2)
    calls: list[tuple[Callable[[Batch], object], type[Exception], str]] = [
        (lambda b: b.send(global_broker.get_actor("sweep")), ActorError, "not tracked"),
        (lambda b: b.send(nothing), TypeError, "no JobStateMiddleware"),
        (lambda b: b.send_message(other), TypeError, "cannot be a member"),
        (lambda b: b.send_message(twice), ValueError, "is in the batch already"),
    ]
    options: list[tuple[str, Any, type[Exception], str]] = [
        *(("weight", w, ValueError, "weight of a member") for w in (0, math.nan, 1e5)),
        *(("weight", w, TypeError, "weight of a member") for w in ("1", None, True)),
        ("key", "first", ValueError, "The key 'first' was used before"),
        ("key", "", ValueError, "1 to 200 characters"),
        ("key", "a\0b", ValueError, "NUL"),
        ("key", "\ud800", ValueError, "valid Unicode"),
        ("key", 7, TypeError, "must be a string"),
        ("unique", "x", TypeError, "cannot take unique="),
        ("owner", "x", TypeError, "cannot take owner="),
    ]
    with desk.batch() as batch:
        batch.send(desk.actor, 1, key="first")
        for call, error, text in calls:
            with subtests.test(msg=text), pytest.raises(error, match=text):
                call(batch)
        for name, value, error, text in options:
            option = {name: value}
            with subtests.test(msg=str(option)), pytest.raises(error, match=text):
                batch.send_with_options(desk.actor, (2,), **option)
    (member,) = queued(desk.client)
    assert (member.args, desk.state(batch)["progress"]["total"]) == ((1,), 1)
    states = desk.begin().job_states
    with pytest.raises(ActorError, match="belongs to a member of a batch"):
        states.send_message(member)
    with pytest.raises(ActorError, match="belongs to a member of a batch"):
        states.send_with_options(desk.actor, (1,), job_batch=new_id())


def test_block_of_a_batch(desk):
    """A block is not nested or entered twice, and needs a transaction around it."""
    batch = make_request(desk.config, "alice").job_states.batch()
    with pytest.raises(RuntimeError, match="No transaction has begun"):
        batch.__enter__()
    request = desk.begin()
    batch = request.job_states.batch()
    with pytest.raises(RuntimeError, match=NOT_OPEN):
        batch.send(desk.actor, 1)
    with pytest.raises(TypeError, match="title of a batch must be a string, not 7"):
        request.job_states.batch(title=7)
    with batch:
        with pytest.raises(RuntimeError, match="cannot be nested"):
            request.job_states.batch().__enter__()
        batch.send(desk.actor, 1)
    with pytest.raises(RuntimeError, match="only once"):
        batch.__enter__()
    with pytest.raises(RuntimeError, match=NOT_OPEN):
        batch.send(desk.actor, 2)
    with request.job_states.batch() as second:
        second.send(desk.actor, 3)
    request.tm.commit()
    assert sent(desk.client) == [1, 3]
    loaded = desk.store.load(batch.uuid)
    assert isinstance(loaded, Batch)
    with pytest.raises(RuntimeError, match="only from the request that sends it"):
        loaded.send(desk.actor, 4)
    desk.client.flushall()
    request.tm.begin()
    with request.job_states.batch() as batch:
        batch.send(desk.actor, 1)
        with pytest.raises(RuntimeError, match="committed inside the block"):
            request.tm.commit()
        request.tm.abort()
    assert desk.is_empty()


def test_further_member_does_not_wait_for_the_commit(desk, global_broker):
    """It leaves although the transaction of its sender aborts."""
    global_broker.add_middleware(RequestMiddleware())

    @job_actor(broker=global_broker, max_retries=0, throws=ValueError)
    def start(*, request: Any, job_state: Any) -> None:
        request.job_states.send(desk.actor, 1)
        job_state.batch.send(desk.actor, 2, key="a")
        raise ValueError

    with desk.batch() as batch:
        batch.send(start)
    with working(global_broker):
        wait_for(lambda: desk.state(batch)["finished_at"])
    assert desk.counts(batch) == {"success": 1, "error": 1}
    ran = desk.store.list(status="success", members=True).items
    assert [job.job_params for job in ran] == [{"miles": 2}]
    assert len(desk.store.list(members=True).items) == 3


def test_outbox_shows_what_a_batch_would_send(redis_url, client, global_broker):
    """No transaction is needed. What a member sends follows, and uses a key once."""

    @job_actor(broker=global_broker, job_state=True)
    def folder(*, job_state: Any = None) -> None:
        job_state.batch.send(actor, 1, key="a")
        with pytest.raises(ValueError, match="was used before"):
            job_state.batch.send(actor, 2, key="a")

    config = make_tm_config(redis_url)
    config.include("pyramid_jobstate.testing")
    make_app(config)
    actor = global_broker.get_actor("run_marathon")
    with make_request(config, "alice").job_states.batch(ImportAll) as batch:
        jobs = [batch.send(actor, 0), batch.send(folder)]
    box = outbox(config.registry)
    assert box.batches == [batch]
    assert [sent.job_state for sent in box.members(batch)] == jobs
    assert batch.size == batch.counts.queued == 2
    ran = run_jobs(config.registry)
    assert [job.uuid for job in ran[:2]] == [job.uuid for job in jobs]
    assert [job.actor for job in ran[2:]] == ["run_marathon"]
    assert len(box.members(batch)) == 3
    assert client.keys("*") == []


def test_batch_cancels_members_that_refuse_it(desk):
    """Whoever may cancel a batch may cancel its members through it, in one command."""
    refusing = {"job_state_class": Irrevocable, "status": "queued", "owner": "alice"}
    batch = desk.put(refusing, {"status": "queued", "owner": "bob"})
    for member in desk.members(batch):
        act(desk.app, f"/job_state/{member.uuid}/cancel", "alice", status=403)
    act(desk.app, f"/job_state/{batch.uuid}/cancel", "alice")
    assert {member.status for member in desk.members(batch)} == {"cancelled"}


def test_members_come_in_pages(desk):
    """Also those of one status. Any other uuid is a 404."""
    batch = desk.put("queued", "success", "error", "error", "error")
    uuids = [job.uuid for job in desk.members(batch)]
    first = desk.listed(batch, "&limit=2&status=error").json
    rest = desk.listed(batch, f"&limit=2&status=error&cursor={first['cursor']}").json
    assert [uuids_of(page["items"]) for page in (first, rest)] == [
        uuids[2:4],
        uuids[4:],
    ]
    assert rest["cursor"] is None
    for query in "&status=lost", "&cursor=e1.x":
        assert desk.listed(batch, query).status_int == 400, query
    for none in uuids[0], "x":
        assert get(desk.app, f"/job_state?batch={none}", "alice").status_int == 404


@pytest.mark.promise("members-have-rights-of-their-own")
def test_rights_of_members(desk):
    """Viewers of a batch see its bar, and those members that they may see."""

    def fail(request: Request, context: Any, permission: str) -> None:
        if permission == "view_job":
            raise HTTPForbidden

    batch = desk.put("working", {"owner": "bob"})
    members = [job.uuid for job in desk.members(batch)]
    assert desk.uuids(batch) == members[:1]
    assert desk.counts(batch) == {"working": 2}
    for lister in OPERATOR, ADMIN:
        assert desk.uuids(batch, user=lister) == members
    assert get(desk.app, f"/job_state/{batch.uuid}", "bob").status_int == 403
    url = desk.config.registry.settings["jobstate.redis_url"]
    for app in desk.app, operated_app(url, fail):
        for user in "bob", None:
            for uuid in batch.uuid, members[0], new_id():
                hidden = get(app, f"/job_state?batch={uuid}", user)
                assert (hidden.status_int, hidden.json) == (404, NOT_FOUND)
        unknown = act(app, "/job_state/rerun", "bob", batch=new_id())
        forbidden = act(app, "/job_state/rerun", "bob", batch=batch.uuid)
        assert unknown.status_int == forbidden.status_int == 200
        assert unknown.text == forbidden.text


def test_failed_members_run_again(desk):
    """Failed members run again, but not those of a cancelled batch, nor a batch."""
    error = JobError("ValueError", "wrong")
    failed = {"status": "error", "error": error, "actor": "run_marathon"}
    batch = desk.put(failed, failed, "success")
    alone = act(desk.app, f"/job_state/{batch.uuid}/rerun")
    assert alone.status_int == 410
    assert "Rerun its failed jobs" in alone.json["error"]
    path = f"/job_state/rerun?all=1&batch={batch.uuid}"
    assert act(desk.app, path).json == {"done": 2, "refused": 0, "cursor": None}
    state = desk.state(batch)
    assert (state["status"], state["finished_at"]) == ("working", None)
    assert desk.counts(batch) == {"queued": 2, "success": 1}
    waiting = desk.put("error", "queued")
    assert act(desk.app, f"/job_state/{waiting.uuid}/cancel", "alice").status_int == 202
    assert desk.counts(waiting) == {"error": 1, "cancelled": 1}
    (member,) = desk.uuids(waiting, "&status=error")
    answer = act(desk.app, f"/job_state/{member}/rerun")
    assert answer.status_int == 409
    assert "Its batch was cancelled." in answer.json["error"]
