"""Unique jobs: one of a key is under way, and everybody who asks for one gets it."""

import logging
import os
import threading
from collections.abc import Callable, Iterator
from typing import Any

import dramatiq
import pytest
import redis
import transaction
from dramatiq import Broker, group
from pyramid.authorization import Allow, Authenticated
from pyramid.request import Request

from pyramid_jobstate import (
    JobState,
    JobStateMiddleware,
    JobStore,
    StoreUnavailable,
)
from pyramid_jobstate.errors import ActorError
from pyramid_jobstate.job.changes import End, Failure, Update
from pyramid_jobstate.job.record import NOT_SENT, JobError, Record
from pyramid_jobstate.store import claims
from pyramid_jobstate.store.scripts import read_scripts
from pyramid_jobstate.testing import outbox, run_jobs
from tests.faulty import FaultyProxy, faulty
from tests.jobs import working
from tests.support import wait_for
from tests.web.databases import Manager, fail
from tests.web.desks import Desk, make_desk
from tests.web.operating import OPERATOR, act
from tests.webapp import (
    EXPLICIT,
    ask,
    get,
    make_app,
    make_broker,
    make_request,
    make_tm_config,
    queued,
)


class Nightly(JobState):
    """A job that everybody with a login may see and cancel."""

    def __acl__(self) -> list[Any]:
        return [*super().__acl__(), (Allow, Authenticated, ("view_job", "cancel_job"))]


class UniqueDesk(Desk):
    """An application whose users press a button twice."""

    def press(
        self,
        request: Request | None = None,
        key: Any = "nightly",
        miles: int = 26,
        **options: Any,
    ) -> JobState:
        """Send a unique job, in a request that commits unless one is given."""
        own = request is None
        request = request or self.begin()
        actor = options.pop("actor", self.actor)
        job_state = request.job_states.send_with_options(
            actor, (miles,), unique=key, **options
        )
        if own:
            request.tm.commit()
        assert isinstance(job_state, JobState)
        return job_state

    def record(self, job_state: JobState) -> Record:
        """Return what the store holds of a job."""
        record = self.store.record(job_state.uuid)
        assert record is not None
        return record

    def sent(self) -> list[str]:
        """Return the uuids of the messages in the queue."""
        return [message.message_id for message in queued(self.client)]

    def end(self, job_state: JobState, status: str = "success") -> None:
        """Have a worker end a job."""
        record = self.record(job_state)
        error = None if status == "success" else JobError("ValueError", "x")
        begins = Update(record.uuid, "0" * 12, 1, record.info, begins=True)
        failure = Failure("", "", "a traceback") if status == "error" else None
        begins.end = End(status, error, failure=failure)
        (reply,) = self.store.write([begins])
        assert reply == 1

    def state(self, job_state: JobState, user: str = "alice") -> Any:
        """Return the state of a job as a user sees it."""
        return get(self.app, f"/job_state/{job_state.uuid}", user).json


@pytest.fixture
def desk(redis_url: str, client: redis.Redis, global_broker: Broker) -> UniqueDesk:
    return make_desk(UniqueDesk, redis_url, client, global_broker)


@pytest.fixture
def proxy(redis_url: str) -> Iterator[FaultyProxy]:
    with faulty(redis_url) as proxy:
        yield proxy


@pytest.fixture
def far(
    redis_url: str,
    client: redis.Redis,
    proxy: FaultyProxy,
    monkeypatch: pytest.MonkeyPatch,
) -> UniqueDesk:
    """An application whose store is behind a network that fails."""
    broker = make_broker(redis_url, JobStateMiddleware(url=proxy.url))
    monkeypatch.setattr(dramatiq.broker, "global_broker", broker)
    return make_desk(UniqueDesk, proxy.url, client, broker)


@pytest.fixture
def crash(global_broker: Broker) -> Any:
    """An actor that fails, without being tried again."""

    @dramatiq.actor(broker=global_broker, job_state=True, max_retries=0)
    def crash(miles: int) -> None:
        raise ZeroDivisionError

    return crash


@pytest.fixture
def nightly(global_broker: Broker) -> Any:
    """An actor whose jobs everybody with a login may see."""

    @dramatiq.actor(broker=global_broker, job_state=Nightly)
    def report(month: int) -> None:
        pass

    return report


# One is under way.


def test_the_job_under_way_is_returned(desk: UniqueDesk) -> None:
    """Other arguments change nothing. Nothing is sent or written."""
    first = desk.press()
    keys = set(desk.client.keys())
    second = desk.press(miles=5)
    assert second.uuid == first.uuid
    assert second.job_params["miles"] == 26
    assert desk.sent() == [first.uuid]
    assert set(desk.client.keys()) == keys


def test_it_is_found_after_a_reload_and_after_its_end(desk: UniqueDesk) -> None:
    request = make_request(desk.config, "alice")
    find = request.job_states.find_unique
    assert find(desk.actor, "nightly") is None
    first = desk.press()
    assert find(desk.actor, "nightly").uuid == first.uuid
    desk.end(first)
    found = find(desk.actor, "nightly")
    assert (found.uuid, found.status) == (first.uuid, "success")
    assert request.resource_url(found).endswith(f"/job_state/{first.uuid}/")


@pytest.mark.parametrize("status", ["success", "error", "cancelled"])
def test_the_next_one_is_sent_when_it_is_over(desk: UniqueDesk, status: str) -> None:
    first = desk.press()
    if status == "cancelled":
        assert desk.store.cancel(first.uuid, desk.record(first).info)
    else:
        desk.end(first, status)
    second = desk.press()
    assert second.uuid != first.uuid
    assert desk.sent() == [first.uuid, second.uuid]
    find = make_request(desk.config, "alice").job_states.find_unique
    assert find(desk.actor, "nightly").uuid == second.uuid


def test_a_deleted_or_lost_job_does_not_keep_its_key(desk: UniqueDesk) -> None:
    first = desk.press()
    desk.end(first)
    assert desk.store.delete(first.uuid)
    second = desk.press()
    desk.client.delete(f"jobstate:{second.uuid}")
    third = desk.press()
    assert len({first.uuid, second.uuid, third.uuid}) == 3
    assert desk.press().uuid == third.uuid


def test_keys_actors_and_owners_are_told_apart(desk: UniqueDesk, nightly: Any) -> None:
    """Also owners of different types, and a key that looks like an identity."""
    jobs = [
        desk.press(),
        desk.press(key="hourly"),
        desk.press(actor=nightly),
        desk.press(owner="bob"),
        desk.press(owner=1),
        desk.press(owner="1"),
        desk.press(key='nightly","alice'),
    ]
    assert len({job.uuid for job in jobs}) == len(jobs)
    assert desk.press(owner=1).uuid == jobs[4].uuid


def test_a_shared_job_belongs_to_everybody(desk: UniqueDesk, nightly: Any) -> None:
    """Whoever sent it owns it. The ACL of its class lets the others in."""
    first = desk.press(desk.begin("alice"), actor=nightly, shared=True)
    first.__parent__.request.tm.commit()
    second = desk.press(desk.begin("bob"), actor=nightly, shared=True)
    third = desk.press(desk.begin(None), actor=nightly, shared=True)
    assert first.uuid == second.uuid == third.uuid
    assert second.owner == "alice"
    assert desk.state(second, "bob")["job"]["cancellable"]
    request = make_request(desk.config, None)
    found = request.job_states.find_unique(nightly, "nightly", shared=True)
    assert found.uuid == first.uuid
    assert request.job_states.find_unique(nightly, "nightly") is None
    with pytest.raises(TypeError, match="owner"):
        request.job_states.find_unique(nightly, "nightly", owner=[])
    with pytest.raises(TypeError, match="must be a string"):
        request.job_states.find_unique(nightly, 7)


def test_a_delayed_job_is_under_way(desk: UniqueDesk) -> None:
    """Even if it is due after a record of another job would have expired."""
    day = 24 * 3600 * 1000
    first = desk.press(delay=30 * day)
    assert desk.press().uuid == first.uuid
    (claim,) = desk.client.keys("jobstate:unique:*")
    assert desk.client.pttl(claim) > desk.client.pttl(f"jobstate:{first.uuid}")


# Bad input.


@pytest.mark.parametrize(
    ("key", "error", "says"),
    [
        (7, TypeError, "must be a string, not 7"),
        (b"x", TypeError, "must be a string, not b'x'"),
        ("", ValueError, "1 to 200 characters, not 0"),
        ("x" * 201, ValueError, "1 to 200 characters, not 201"),
        ("\ud800", ValueError, "valid Unicode"),
    ],
)
def test_a_key_must_be_a_short_string(
    desk: UniqueDesk, key: Any, error: type[Exception], says: str
) -> None:
    request = desk.begin()
    with pytest.raises(error, match=says):
        desk.press(request, key)
    with pytest.raises(error, match=says):
        request.job_states.find_unique(desk.actor, key)
    request.tm.commit()
    assert desk.client.keys() == []


def test_the_longest_key_is_accepted(desk: UniqueDesk) -> None:
    assert desk.press(key="é" * 200).uuid == desk.press(key="é" * 200).uuid


def test_a_unique_job_needs_an_owner_unless_it_is_shared(desk: UniqueDesk) -> None:
    """Visitors without a login must not be handed each other's jobs."""
    with pytest.raises(ValueError, match="'nightly' has no owner"):
        desk.press(desk.begin(None))
    with pytest.raises(ValueError, match="'nightly' has no owner"):
        desk.press(owner=None)
    assert desk.client.keys() == []


def test_a_press_without_a_transaction_is_refused(desk: UniqueDesk) -> None:
    """Whether or not another job is under way."""
    for _ in range(2):
        with pytest.raises(RuntimeError, match="No transaction has begun"):
            desk.press(make_request(desk.config, "alice"))
        desk.press()


def test_shared_needs_a_key(desk: UniqueDesk) -> None:
    with pytest.raises(ValueError, match="shared=True requires unique"):
        desk.press(key=None, shared=True)


def test_an_actor_without_a_state_is_refused(
    desk: UniqueDesk, global_broker: Broker
) -> None:
    with pytest.raises(ActorError, match="'sweep' is not tracked"):
        desk.press(actor=global_broker.get_actor("sweep"))
    assert desk.client.keys() == []


def test_its_message_cannot_be_sent_otherwise(desk: UniqueDesk) -> None:
    """Neither again nor as a copy: no claim would be taken."""
    first = desk.press()
    (message,) = queued(desk.client)
    states = desk.begin().job_states
    copy = message.copy(message_id="0" * 8 + message.message_id[8:])
    for again in message, copy, group([message]):
        for send in states.send_message, states.send_immediately:
            with pytest.raises(ActorError, match="is that of a unique job"):
                send(again)
    assert desk.sent() == [first.uuid]


def test_applications_in_one_transaction_do_not_follow_each_other(
    redis_url: str, desk: UniqueDesk
) -> None:
    """Each has a store of its own."""
    other = make_broker(redis_url, JobStateMiddleware(url=redis_url, namespace="x"))
    config = make_tm_config(redis_url, {**EXPLICIT, "jobstate.namespace": "x"})
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(dramatiq.broker, "global_broker", other)
        make_app(config)
    request, second = desk.begin(), make_request(config, "alice")
    second.tm = request.tm
    jobs = [
        desk.press(request),
        desk.press(second, actor=other.get_actor("run_marathon")),
    ]
    request.tm.commit()
    assert sorted(desk.sent()) == sorted(job.uuid for job in jobs)
    assert second.job_states.find(jobs[1].uuid).status == "queued"


def test_a_long_commit_does_not_cost_the_sender_its_job(desk: UniqueDesk) -> None:
    """Votes took longer than `stalled_after`. Taking the claim is a sign of life."""
    request = desk.begin()
    first = desk.press(request)

    def age() -> None:
        desk.client.hincrby(f"jobstate:{first.uuid}", "updated", -20_000)

    request.tm.get().join(Manager("a", "tpc_finish", age))
    broker, found = desk.actor.broker, []

    class Press(dramatiq.Middleware):
        def before_enqueue(self, broker: Any, message: Any, delay: Any) -> None:
            if message.message_id == first.uuid:
                found.append(desk.press().uuid)

    broker.add_middleware(Press())
    request.tm.commit()
    assert found == [first.uuid]
    assert desk.record(first).status == "queued"


def test_a_store_that_is_away_refuses_the_press(
    far: UniqueDesk, proxy: FaultyProxy
) -> None:
    """Nobody can say whether another one is under way."""
    request = far.begin()
    proxy.swallow()
    with pytest.raises(StoreUnavailable):
        far.press(request)


# Two presses at once.


def test_a_double_click_shows_one_job_on_both_pages(desk: UniqueDesk) -> None:
    """Both have been answered with a job of their own before either commits."""
    requests = [desk.begin(), desk.begin()]
    jobs = [
        desk.press(request, miles=miles)
        for request, miles in zip(requests, (1, 2), strict=True)
    ]
    for request in reversed(requests):
        request.tm.commit()
    loser, winner = jobs
    assert desk.sent() == [winner.uuid]
    states = [desk.state(job) for job in jobs]
    for job, state in zip(jobs, states, strict=True):
        assert state["job"]["uuid"] == job.uuid
        assert state["job"]["url"] == f"http://localhost/job_state/{job.uuid}/"
        del state["job"]["uuid"], state["job"]["url"]
    assert states[0] == states[1]
    query = "&".join(f"uuid={job.uuid}" for job in jobs)
    batch = get(desk.app, f"/job_state?{query}", "alice").json["jobs"]
    assert batch[loser.uuid]["job"]["uuid"] == loser.uuid
    assert batch[loser.uuid]["job"]["params"] == batch[winner.uuid]["job"]["params"]
    # The loser's own object knows nothing yet.
    assert loser.status == "queued"
    desk.end(winner)
    assert desk.state(loser)["job_state"] == "success"


def test_an_alias_is_in_no_list_and_no_count(desk: UniqueDesk) -> None:
    loser, winner = double_click(desk)
    items = get(desk.app, "/job_state", "alice").json["items"]
    assert [item["job"]["uuid"] for item in items] == [winner.uuid]
    assert desk.store.counts().queued == 1
    for index in desk.client.scan_iter("jobstate:active:*"):
        assert desk.client.zscore(index, loser.uuid) is None


def test_a_list_drops_an_alias_that_a_dead_sender_left_in_it(desk: UniqueDesk) -> None:
    loser, winner = double_click(desk)
    score: Any = desk.client.zscore("jobstate:active:all", winner.uuid)
    desk.client.zadd("jobstate:active:all", {loser.uuid: score})
    assert [job.uuid for job in desk.store.list().items] == [winner.uuid]
    assert desk.client.zscore("jobstate:active:all", loser.uuid) is None


def test_cancel_delete_and_rerun_reach_the_job_of_an_alias(
    desk: UniqueDesk, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "pyramid_jobstate")
    loser, winner = double_click(desk)
    path = f"/job_state/{loser.uuid}"
    header = {"X_Requested_With": "test"}
    response = ask(desk.app, "POST", f"{path}/cancel", "bob", **header)
    assert response.status_int == 403
    response = ask(desk.app, "POST", f"{path}/cancel", "alice", **header)
    assert (response.status_int, response.json["job"]["uuid"]) == (202, loser.uuid)
    assert desk.record(winner).status == "cancelled"
    assert f"'alice' cancelled the job {winner.uuid}." in caplog.text
    assert desk.store.delete(loser.uuid)
    assert get(desk.app, path, "alice").status_int == 404
    loser, winner = double_click(desk)
    loaded = desk.store.load(loser.uuid)
    assert loaded is not None
    assert loaded.cancel()
    assert loaded.delete()
    assert desk.store.load(winner.uuid) is None


def test_failures_of_an_alias_are_those_of_its_job(desk: UniqueDesk) -> None:
    loser, winner = double_click(desk)
    desk.end(winner, "error")
    failures = desk.store.failures(winner.uuid)
    assert [each.error for each in failures.tries] == [JobError("ValueError", "x")]
    assert desk.store.failures(loser.uuid) == failures


def test_what_the_loser_was_given_cancels_the_job(desk: UniqueDesk) -> None:
    """It was made before anybody knew that it would lose."""
    loser, winner = double_click(desk)
    assert desk.store.cancel(loser.uuid, desk.record(loser).info)
    assert desk.record(winner).status == "cancelled"
    assert not loser.cancel()
    loser, winner = double_click(desk)
    assert loser.cancel()
    assert desk.record(winner).status == "cancelled"


def test_an_alias_lives_as_long_as_its_job(redis_url: str, desk: UniqueDesk) -> None:
    """Reading renews it. It outlives a job that is due late."""
    desk.config.set_job_store(JobStore(redis_url, active_expire_in=2, expire_in=2))
    desk.config.commit()
    loser, winner = double_click(desk)
    key = f"jobstate:{loser.uuid}"
    assert 3000 < desk.client.pttl(key) <= 4000
    desk.client.pexpire(key, 1000)
    assert desk.store.load(loser.uuid) is not None
    assert desk.client.pttl(key) <= 1000
    desk.client.hincrby(key, "updated", -2100)
    assert desk.store.load(loser.uuid) is not None
    assert desk.client.pttl(key) > 3000
    # A renewal never shortens its life.
    desk.client.pexpire(key, 60_000)
    desk.client.hincrby(key, "updated", -2100)
    assert desk.store.load(loser.uuid) is not None
    assert desk.client.pttl(key) > 50_000
    desk.client.delete(f"jobstate:{winner.uuid}")
    assert desk.store.load(loser.uuid) is None
    requests = [desk.begin(), desk.begin()]
    loser = desk.press(requests[0], key="late")
    desk.press(requests[1], key="late", delay=60_000)
    requests[1].tm.commit()
    requests[0].tm.commit()
    assert desk.client.pttl(f"jobstate:{loser.uuid}") > 60_000


def double_click(desk: UniqueDesk) -> tuple[JobState, JobState]:
    """Return the loser and the winner of two presses at once."""
    requests = [desk.begin(), desk.begin()]
    winner, loser = (desk.press(request) for request in requests)
    for request in requests:
        request.tm.commit()
    return loser, winner


def test_two_sends_of_a_transaction_become_one_job(desk: UniqueDesk) -> None:
    """The second follows the first, even if that has ended by then."""
    request = desk.begin()
    first, second = desk.press(request), desk.press(request, miles=5)
    other = desk.press(request, key="other")
    assert len({first.uuid, second.uuid}) == 2
    end = desk.end

    class Quick(dramatiq.Middleware):
        def after_enqueue(self, broker: Any, message: Any, delay: Any) -> None:
            if message.message_id == first.uuid:
                end(first)

    desk.actor.broker.add_middleware(Quick())
    request.tm.commit()
    assert desk.sent() == [first.uuid, other.uuid]
    assert desk.state(second)["job"]["status"] == "success"


def test_a_savepoint_takes_a_unique_job_with_it(desk: UniqueDesk) -> None:
    """A later send of the same key is not its alias."""
    request = desk.begin()
    savepoint = request.tm.savepoint()
    first = desk.press(request)
    savepoint.rollback()
    second = desk.press(request)
    request.tm.commit()
    assert desk.sent() == [second.uuid]
    assert desk.store.load(first.uuid) is None


def test_an_abort_leaves_the_key_to_others(desk: UniqueDesk) -> None:
    request = desk.begin()
    desk.press(request)
    request.tm.abort()
    assert desk.client.keys() == []
    assert desk.press().uuid == desk.sent()[0]


def test_a_veto_neither_takes_nor_releases_a_claim(desk: UniqueDesk) -> None:
    """The claim is taken when nothing can abort any more: nobody is ever handed a job
    that will not be.
    """
    request = desk.begin()
    desk.press(request)
    request.tm.get().join(Manager("a", "tpc_vote", fail))
    with pytest.raises(ZeroDivisionError):
        request.tm.commit()
    request.tm.abort()
    assert desk.client.keys("jobstate:unique:*") == []
    assert desk.client.keys("jobstate:????????-*") == []
    first = desk.press()
    request = desk.begin()
    assert desk.press(request).uuid == first.uuid
    request.tm.get().join(Manager("a", "tpc_vote", fail))
    with pytest.raises(ZeroDivisionError):
        request.tm.commit()
    assert desk.press().uuid == first.uuid


def test_many_threads_press_at_once(desk: UniqueDesk) -> None:
    """One message leaves, and every page shows its job."""
    count = 12
    barrier = threading.Barrier(count)
    jobs: list[JobState] = []

    def press() -> None:
        request = make_request(desk.config, "alice")
        manager = transaction.TransactionManager(explicit=True)
        request.tm = manager
        with manager:
            job = desk.press(request)
            barrier.wait()
        jobs.append(job)

    threads = [threading.Thread(target=press) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (sent,) = desk.sent()
    assert len({job.uuid for job in jobs}) == count
    for job in jobs:
        assert desk.record(job).uuid == sent
    assert [job.uuid for job in desk.store.list().items] == [sent]


# Trouble while the claim is taken.


def wait_for_error(desk: UniqueDesk, job: JobState) -> None:
    wait_for(lambda: desk.record(job).status == "error")


def test_a_store_that_goes_away_before_the_claim_leaves_an_error(
    far: UniqueDesk, proxy: FaultyProxy, caplog: pytest.LogCaptureFixture
) -> None:
    """It is written once the store is back. The key is free."""
    caplog.set_level(logging.ERROR)
    request = far.begin()
    jobs = [far.press(request), far.press(request)]
    proxy.lose_replies(read_scripts()["claim"].sha)
    request.tm.commit()
    assert "whether another job with its unique key is under way" in caplog.text
    proxy.judge = lambda request: "pass"
    for job in jobs:
        wait_for_error(far, job)
        assert far.record(job).error == NOT_SENT
    assert far.sent() == []
    third = far.press()
    assert far.sent() == [third.uuid]


def test_a_store_that_is_away_for_longer_gets_the_error_later(
    far: UniqueDesk, proxy: FaultyProxy
) -> None:
    request = far.begin()
    job = far.press(request)
    request.tm.get().join(Manager("a", "tpc_vote", proxy.swallow))
    request.tm.commit()
    proxy.judge = lambda request: "pass"
    wait_for_error(far, job)


@pytest.mark.parametrize("script", ["claim", "alias"])
def test_a_lost_reply_changes_no_answer(
    far: UniqueDesk, proxy: FaultyProxy, script: str
) -> None:
    """The client library repeats the call."""
    double_click(far)
    far.end(far.press())
    proxy.lose_reply(read_scripts()[script].sha)
    loser, winner = double_click(far)
    assert proxy.faults["lose"] == 1
    assert far.sent()[1:] == [winner.uuid]
    assert far.record(loser).uuid == winner.uuid


def test_a_broker_that_is_away_leaves_the_key_free(
    desk: UniqueDesk, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any, **options: Any) -> None:
        raise dramatiq.errors.ConnectionClosed("away")

    with monkeypatch.context() as patched:
        patched.setattr(desk.actor.broker, "enqueue", refuse)
        first = desk.press()
    assert desk.record(first).status == "error"
    second = desk.press()
    assert desk.sent() == [second.uuid]


def test_a_job_whose_sender_died_loses_its_key_when_it_is_stalled(
    desk: UniqueDesk, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is cancelled first, so that its message does nothing if it comes after all.
    Lists and counts show that.
    """
    caplog.set_level(logging.INFO, "pyramid_jobstate")
    with monkeypatch.context() as patched:
        patched.setattr(desk.actor.broker, "enqueue", lambda *args, **options: None)
        first = desk.press()
    assert desk.press().uuid == first.uuid
    desk.client.hincrby(f"jobstate:{first.uuid}", "updated", -20_000)
    assert desk.record(first).status == "stalled"
    second = desk.press()
    assert second.uuid != first.uuid
    assert desk.record(first).status == "cancelled"
    assert desk.record(first).is_cancel_requested
    assert desk.record(first).error == NOT_SENT
    assert desk.sent() == [second.uuid]
    counts = desk.store.counts(anew=True)
    assert (counts.queued, counts.cancelled) == (1, 1)
    assert f"Job {first.uuid} was never sent. Another has taken its place." in (
        caplog.text
    )


@pytest.fixture
def dying(desk: UniqueDesk) -> Callable[..., str]:
    """Have a process press the button that dies before it takes its claim."""

    def die(**options: Any) -> str:
        receive, send = os.pipe()
        pid = os.fork()
        if not pid:
            # Nothing of the test must run twice.
            try:
                request = desk.begin()
                job = desk.press(request, **options)
                os.write(send, job.uuid.encode())
                request.tm.get().join(Manager("a", "tpc_finish", lambda: os._exit(0)))
                request.tm.commit()
            finally:
                os._exit(1)
        assert os.waitpid(pid, 0)[1] == 0
        uuid = os.read(receive, 36).decode()
        os.close(receive)
        os.close(send)
        return uuid

    return die


def marks(desk: UniqueDesk) -> list[bytes]:
    """Return the fields of a claim that mark jobs which are being sent."""
    (claim,) = desk.client.keys("jobstate:unique:*")
    names: Any = desk.client.hkeys(claim)
    return [name for name in names if name.startswith(b"mark:")]


def grow_old(desk: UniqueDesk, uuid: str) -> None:
    """Have a sender stand still, or be dead, for longer than `stalled_after`."""
    (claim,) = desk.client.keys("jobstate:unique:*")
    desk.client.hincrby(claim, f"mark:{uuid}", -20_000)
    desk.client.hincrby(f"jobstate:{uuid}", "updated", -20_000)


def test_a_sender_that_dies_before_its_claim_leaves_nothing_behind(
    desk: UniqueDesk, dying: Callable[..., str]
) -> None:
    """The next press is a new job. It cancels the other once that reads stalled."""
    first = dying()
    grow_old(desk, first)
    assert desk.store.load(first).status == "stalled"  # type: ignore[union-attr]
    second = desk.press()
    assert second.uuid != first
    record = desk.store.record(first)
    assert record is not None
    assert (record.status, record.error) == ("cancelled", NOT_SENT)
    assert [job.uuid for job in desk.store.list(status="stalled").items] == []
    assert desk.sent() == [second.uuid]
    assert marks(desk) == []


def test_a_press_that_comes_sooner_cancels_it_when_its_job_ends(
    desk: UniqueDesk, dying: Callable[..., str]
) -> None:
    """At first nobody knows that the sender is dead. Each run looks at its claim."""
    first = dying()
    second = desk.press()
    record = desk.store.record(first)
    assert record is not None
    assert record.status == "queued"
    grow_old(desk, first)
    desk.end(second)
    record = desk.store.record(first)
    assert record is not None
    assert record.status == "cancelled"
    assert marks(desk) == []


def test_a_press_after_the_life_of_its_rival_cancels_it(
    desk: UniqueDesk, dying: Callable[..., str]
) -> None:
    """What names the dead sender's job outlives the other job, which ends at once."""
    first = dying()
    desk.end(desk.press())
    (claim,) = desk.client.keys("jobstate:unique:*")
    assert desk.client.ttl(claim) > desk.store.active_expire_in - 60
    grow_old(desk, first)
    desk.press()
    record = desk.store.record(first)
    assert record is not None
    assert record.status == "cancelled"


def test_a_sender_that_lives_keeps_its_job(desk: UniqueDesk) -> None:
    """Its commit takes long, but it has given a sign of life."""
    request = desk.begin()
    first = desk.press(request)

    def press() -> None:
        (claim,) = desk.client.keys("jobstate:unique:*")
        desk.client.hincrby(claim, f"mark:{first.uuid}", -20_000)
        found.append(desk.press())
        assert marks(desk) == [f"mark:{first.uuid}".encode()]

    found: list[JobState] = []
    request.tm.get().join(Manager("a", "tpc_finish", press))
    request.tm.commit()
    assert desk.record(first).uuid == found[0].uuid
    assert marks(desk) == []


def test_a_sender_that_was_taken_for_dead_leads_to_the_other_job(
    desk: UniqueDesk,
) -> None:
    """Its votes took longer than `stalled_after`, and somebody pressed meanwhile."""
    request = desk.begin()
    first = desk.press(request)
    found: list[JobState] = []

    def press() -> None:
        grow_old(desk, first.uuid)
        found.append(desk.press())
        assert desk.record(first).error == NOT_SENT

    request.tm.get().join(Manager("a", "tpc_finish", press))
    request.tm.commit()
    assert desk.record(first).uuid == found[0].uuid
    assert desk.sent() == [found[0].uuid]
    assert desk.store.counts().cancelled == 0


def test_a_mark_of_a_job_that_is_gone_is_removed(
    desk: UniqueDesk, dying: Callable[..., str]
) -> None:
    first = dying()
    grow_old(desk, first)
    desk.client.delete(f"jobstate:{first}")
    desk.press()
    assert marks(desk) == []


def test_a_sender_that_goes_on_while_it_is_given_up_keeps_its_mark(
    desk: UniqueDesk, dying: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its record was touched after it was read as that of a dead one."""
    first = dying()
    grow_old(desk, first)
    give_up = type(desk.store.claims)._give_up

    def late(self: Any, record: Record) -> bool:
        desk.client.hincrby(f"jobstate:{first}", "updated", 20_000)
        return give_up(self, record)

    monkeypatch.setattr(type(desk.store.claims), "_give_up", late)
    desk.press()
    assert marks(desk) == [f"mark:{first}".encode()]


def test_a_message_that_was_sent_after_all_is_not_cancelled(desk: UniqueDesk) -> None:
    """Between the look at a job and the cancel its sender may have gone on."""
    first = desk.press()
    word = "0" * 8
    calls = desk.store._calls
    call = calls.cancel_unsent(first.uuid, word)
    assert desk.store._run([call]) == [0]
    desk.client.hset(f"jobstate:{first.uuid}", "status", "sending")
    assert desk.store._run([call]) == [0]
    desk.client.hincrby(f"jobstate:{first.uuid}", "updated", -20_000)
    assert desk.store._run([call]) == [2]


def test_a_stalled_run_is_under_way(desk: UniqueDesk) -> None:
    """Dramatiq delivers its message again."""
    first = desk.press()
    record = desk.record(first)
    desk.store.write([Update(first.uuid, "0" * 12, 1, record.info, begins=True)])
    desk.client.hincrby(f"jobstate:{first.uuid}", "seen", -20_000)
    assert desk.record(first).status == "stalled"
    assert desk.press().uuid == first.uuid
    desk.client.hset(f"jobstate:{first.uuid}", "status", "cancelling")
    assert desk.press().uuid == first.uuid


# Running again.


def failed(desk: UniqueDesk, crash: Any) -> JobState:
    """Return a unique job that has failed in a worker."""
    job = desk.press(actor=crash)
    with working(crash.broker):
        wait_for_error(desk, job)
    return job


def test_a_job_runs_again_only_if_no_other_is_under_way(
    desk: UniqueDesk, crash: Any, client: redis.Redis
) -> None:
    """409, and the failure stays as it was. Then the claim is its own again."""
    first = failed(desk, crash)
    second = desk.press(actor=crash)
    path = f"/job_state/{first.uuid}"
    before = client.hgetall(f"jobstate:{first.uuid}")
    response = act(desk.app, f"{path}/rerun")
    refusal = f"The job {second.uuid} with the same unique key is under way."
    assert (response.status_int, response.json["error"]) == (409, refusal)
    assert client.hgetall(f"jobstate:{first.uuid}") == before
    assert get(desk.app, f"{path}/inspect", OPERATOR).json["reason"] == refusal
    response = act(desk.app, "/job_state/rerun", everything="1")
    assert response.json["done"] == 0
    desk.end(second)
    assert get(desk.app, f"{path}/inspect", OPERATOR).json["repeatable"]
    assert act(desk.app, f"{path}/rerun").status_int == 202
    assert desk.press(actor=crash).uuid == first.uuid
    assert desk.record(first).info.unique == '["crash","nightly","alice"]'
    (claim,) = client.keys("jobstate:unique:*")
    assert client.hget(claim, "held") == b"0"
    with working(crash.broker):
        wait_for_error(desk, first)
    assert desk.press(actor=crash).uuid != first.uuid


@pytest.mark.parametrize("runs", [True, False])
def test_a_press_waits_for_a_job_that_is_about_to_run_again(
    desk: UniqueDesk, crash: Any, runs: bool
) -> None:
    """It has the claim, but its record does not say yet that it will run. If it does
    not, because its operator has died, the press sends its own.
    """
    first = failed(desk, crash)
    request = desk.begin()
    second = desk.press(request, actor=crash)
    record = desk.record(first)
    thread = threading.Thread(target=request.tm.commit)
    with desk.store.claims.held(first.uuid, record.info) as hold:
        assert int(hold.deadline) > desk.store._reader.exact_clock()
        thread.start()
        wait_for(lambda: desk.client.exists(f"jobstate:{second.uuid}"))
        assert desk.sent() == []
        if runs:
            calls = desk.store._calls
            call = calls.requeue(first.uuid, record.info, "word", hold.deadline)
            assert desk.store._run([call]) == [1]
    thread.join()
    assert desk.record(second).uuid == (first if runs else second).uuid
    assert desk.sent() == ([] if runs else [second.uuid])


def test_a_rerun_that_comes_too_late_does_nothing(
    desk: UniqueDesk, crash: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process was frozen while it held the claim, and another job took it."""
    first = failed(desk, crash)
    monkeypatch.setattr(claims, "HOLD", 1)
    response = act(desk.app, f"/job_state/{first.uuid}/rerun")
    assert response.status_int == 410
    assert "could not be held for long enough" in response.json["error"]
    assert desk.record(first).status == "error"
    assert len(desk.sent()) == 0


def test_a_rerun_whose_message_is_refused_leaves_the_key_free(
    desk: UniqueDesk, crash: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = failed(desk, crash)

    def refuse(*args: Any, **options: Any) -> None:
        raise dramatiq.errors.ConnectionClosed("away")

    with monkeypatch.context() as patched:
        patched.setattr(crash.broker, "enqueue", refuse)
        assert act(desk.app, f"/job_state/{first.uuid}/rerun").status_int == 503
    assert desk.record(first).status == "error"
    assert desk.press(actor=crash).uuid != first.uuid


# Visitors, and tests of applications.


def test_the_outbox_holds_one_job_of_a_key(redis_url: str, crash: Any) -> None:
    """A test of an application needs no store. A job is under way until it has run."""
    config = make_tm_config(None, {**EXPLICIT, "jobstate.redis_url": redis_url})
    config.include("pyramid_jobstate.testing")
    app = make_app(config)
    request = make_request(config, "alice")
    request.tm.begin()
    states = request.job_states

    def send() -> JobState:
        job_state = states.send_with_options(crash, (1,), unique="nightly")
        assert isinstance(job_state, JobState)
        return job_state

    assert states.find_unique(crash, "nightly") is None
    first = send()
    assert send() is first
    assert len(outbox(app.app.registry)) == 1
    with pytest.raises(ZeroDivisionError):
        run_jobs(app.app.registry)
    found = states.find_unique(crash, "nightly")
    assert (found, found.status) == (first, "error")
    assert send() is not first


def test_the_outbox_knows_a_job_that_runs(redis_url: str, global_broker: Any) -> None:
    """A job that sends its own key gets itself, as in a worker."""
    sent = []

    @dramatiq.actor(broker=global_broker, job_state=True)
    def again() -> None:
        sent.append(send())

    config = make_tm_config(redis_url)
    config.include("pyramid_jobstate.testing")
    app = make_app(config)
    request = make_request(config, "alice")
    request.tm.begin()

    def send() -> JobState:
        states = request.job_states
        job_state: JobState = states.send_with_options(again, unique="nightly")
        return job_state

    first = send()
    assert len(run_jobs(app.app.registry)) == 1
    assert sent == [first]
    assert first.status == "success"
    assert send() is not first
