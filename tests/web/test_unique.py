"""Unique jobs: one of a key is under way, and everybody who asks for one gets it."""

import contextlib
import itertools
import logging
import threading
from collections.abc import Callable
from typing import Any
from unittest import mock

import dramatiq
import pytest
import redis
from dramatiq import Broker, Middleware, group
from pyramid.authorization import Allow, Authenticated
from pyramid.request import Request

from pyramid_jobstate import JobState, JobStateMiddleware, JobStore, StoreUnavailable
from pyramid_jobstate.errors import ActorError
from pyramid_jobstate.testing import away, outbox, pass_time, run_jobs
from tests.faulty import FaultyProxy, Moment
from tests.jobs import messages, working
from tests.lost import keys_without_end
from tests.support import load_job, wait_for
from tests.trips import counting_trips, met
from tests.web.databases import Manager, fail
from tests.web.operating import OPERATOR, act
from tests.web.visits import NOT_SENT, Desk, Refusing, make_desk
from tests.webapp import (
    get,
    make_app,
    make_broker,
    make_request,
    make_tm_config,
    queued,
)

DAY = 24 * 3600


class Nightly(JobState):
    def __acl__(self) -> list[Any]:
        return [*super().__acl__(), (Allow, Authenticated, ("view_job", "cancel_job"))]


class UniqueDesk(Desk):
    """An application whose users press a button twice."""

    def press(
        self, request: Request | None = None, key: Any = "nightly", **options: Any
    ) -> JobState:
        """Send a unique job. `meanwhile` is called before its key is taken."""
        own, meanwhile = request is None, options.pop("meanwhile", None)
        request = request or self.begin()
        actor, miles = options.pop("actor", self.actor), options.pop("miles", 26)
        options = {"args": (miles,), "unique": key, **options}
        job_state = request.job_states.send_with_options(actor, **options)
        assert isinstance(job_state, JobState)
        if meanwhile:
            manager = Manager("a", "tpc_finish", lambda: meanwhile(job_state))
            request.tm.get().join(manager)
        if own:
            request.tm.commit()
        return job_state

    def press_twice(self, **second: Any) -> tuple[JobState, JobState]:
        """Return the loser and the winner of two presses at once."""
        requests = [self.begin(), self.begin()]
        loser = self.press(requests[1])
        winner = self.press(requests[0], **second)
        for request in requests:
            request.tm.commit()
        return loser, winner

    def load(self, job: JobState) -> JobState:
        return load_job(self.store, job.uuid)

    def status(self, job: JobState) -> str:
        return self.load(job).status

    def is_not_sent(self, job: JobState, status: str) -> bool:
        """Return whether a job has a status because it was not sent."""
        found = self.load(job)
        error = found.error and found.error.message
        return (found.status, error) == (status, NOT_SENT)

    def state(self, job: JobState, user: str = "alice") -> Any:
        return get(self.app, f"/job_state/{job.uuid}", user).json

    def same(self, *jobs: JobState) -> bool:
        """Return whether the pages of jobs show one and the same."""
        states = [self.state(job) for job in jobs]
        for job, state in zip(jobs, states, strict=True):
            assert state["job"].pop("uuid") == job.uuid
            assert state["job"].pop("url") == f"http://localhost/job_state/{job.uuid}/"
        return all(state == states[0] for state in states)

    def find(
        self, actor: Any = None, user: str | None = "alice", **options: Any
    ) -> Any:
        """Return the last job with the key."""
        states = make_request(self.config, user).job_states
        return states.find_unique(actor or self.actor, "nightly", **options)

    def sent(self) -> list[str]:
        return [message.message_id for message in queued(self.client)]

    def end(self, job: JobState, status: str = "success") -> None:
        with working(self.actor.broker):
            wait_for(lambda: self.status(job) == status)

    def grow_old(self) -> None:
        """Let so much time pass that senders that have said nothing count as dead."""
        pass_time(self.store, self.store.stalled_after + 1)


def declare_crash(broker: Broker) -> Any:
    @dramatiq.actor(broker=broker, job_state=True, max_retries=0)
    def crash(miles: int) -> None:
        raise ZeroDivisionError

    return crash


@pytest.fixture
def crash(global_broker: Broker) -> Any:
    return declare_crash(global_broker)


@pytest.fixture
def desk(redis_url: str, client: redis.Redis, global_broker: Broker) -> UniqueDesk:
    return make_desk(UniqueDesk, redis_url, client, global_broker)


@pytest.fixture
def far(
    redis_url: str,
    client: redis.Redis,
    proxy: FaultyProxy,
    monkeypatch: pytest.MonkeyPatch,
) -> UniqueDesk:
    """An application whose store is behind a network that fails."""
    broker = make_broker(redis_url, JobStateMiddleware(url=proxy.url))
    declare_crash(broker)
    monkeypatch.setattr(dramatiq.broker, "global_broker", broker)
    return make_desk(UniqueDesk, proxy.url, client, broker)


@pytest.fixture
def nightly(global_broker: Broker) -> Any:
    @dramatiq.actor(broker=global_broker, job_state=Nightly)
    def report(month: int) -> None:
        pass

    return report


@pytest.mark.promise("one-unique-job-at-a-time")
def test_the_job_under_way_is_returned(desk):
    """Nothing is sent or written, whatever the arguments and however late it is due."""
    first = desk.press()
    keys = set(desk.client.keys())
    second = desk.press(miles=5)
    assert second.uuid == first.uuid
    assert second.job_params["miles"] == 26
    assert desk.sent() == [first.uuid]
    assert set(desk.client.keys()) == keys
    late = desk.press(key="late", delay=30 * DAY * 1000)
    pass_time(desk.store, 29 * DAY)
    assert desk.press(key="late").uuid == late.uuid


@pytest.mark.promise("unique-key-is-freed")
def test_the_next_one_is_sent_when_it_is_over(desk):
    """The last one is found after a reload and after its end."""
    assert desk.find() is None
    first = desk.press()
    assert desk.find().uuid == first.uuid
    desk.end(first)
    found = desk.find()
    assert (found.uuid, found.status) == (first.uuid, "success")
    request = make_request(desk.config, "alice")
    assert request.resource_url(found).endswith(f"/job_state/{first.uuid}/")
    second = desk.press()
    assert second.uuid != first.uuid
    assert desk.sent() == [second.uuid]
    assert desk.find().uuid == second.uuid
    assert second.cancel()
    assert desk.press().uuid not in (first.uuid, second.uuid)


def test_claim_of_another_program(desk):
    """A key that another program took holds back no job, and stays as it was."""
    first = desk.press()
    (key,) = desk.client.scan_iter("*:unique*")
    desk.client.set(key, "x")
    second = desk.press()
    assert second.uuid != first.uuid
    for job in first, second:
        desk.end(job)
    assert desk.client.get(key) == b"x"


def test_keys_actors_and_owners_are_told_apart(desk, nightly):
    """Owners may differ in their type alone. A key may have 200 characters."""
    keys = [{"key": "é" * 200}, {"key": 'nightly","alice'}]
    owners = [{"owner": owner} for owner in ("bob", 1, "1")]
    options: list[Any] = [{}, {"actor": nightly}, *keys, *owners]
    jobs = [desk.press(**each).uuid for each in options]
    assert len({*jobs}) == len(jobs)
    assert [desk.press(**each).uuid for each in options] == jobs


def test_a_shared_job_belongs_to_everybody(desk, nightly):
    """Whoever sent it owns it. The ACL of its class lets the others in."""
    jobs = []
    for user in "alice", "bob", None:
        request = desk.begin(user)
        jobs.append(desk.press(request, actor=nightly, shared=True))
        request.tm.commit()
    assert len({job.uuid for job in jobs}) == 1
    assert jobs[1].owner == "alice"
    assert desk.state(jobs[1], "bob")["job"]["cancellable"]
    assert desk.find(nightly, None, shared=True).uuid == jobs[0].uuid
    assert desk.find(nightly, None) is None


def test_what_cannot_be_unique(desk, global_broker):
    """A job with a bad key, of nobody, that is not followed, or nobody commits."""
    for key, error, says in (
        (b"x", TypeError, "must be a string, not b'x'"),
        ("", ValueError, "1 to 200 characters, not 0"),
        ("x" * 201, ValueError, "1 to 200 characters, not 201"),
        ("\ud800", ValueError, "valid Unicode"),
    ):
        with pytest.raises(error, match=says):
            desk.press(key=key)
        with pytest.raises(error, match=says):
            desk.begin().job_states.find_unique(desk.actor, key)
    for press in lambda: desk.press(desk.begin(None)), lambda: desk.press(owner=None):
        with pytest.raises(ValueError, match="'nightly' has no owner"):
            press()
    with pytest.raises(ValueError, match="shared=True requires unique"):
        desk.press(key=None, shared=True)
    with pytest.raises(ActorError, match="'sweep' is not tracked"):
        desk.press(actor=global_broker.get_actor("sweep"))
    with pytest.raises(RuntimeError, match="No transaction has begun"):
        desk.press(make_request(desk.config, "alice"))
    assert desk.client.keys() == []
    first = desk.press()
    (message,) = queued(desk.client)
    states = desk.begin().job_states
    for again in message, group([message]):
        for send in states.send_message, states.send_immediately:
            with pytest.raises(ActorError, match="is that of a unique job"):
                send(again)
    assert desk.sent() == [first.uuid]


def test_a_double_click_shows_one_job_on_both_pages(desk):
    """The job that is not sent leads to the other, and is in no list or count."""
    loser, winner = desk.press_twice(miles=1)
    assert loser.uuid != winner.uuid
    assert desk.sent() == [winner.uuid]
    assert desk.same(loser, winner)
    query = f"uuid={loser.uuid}&uuid={winner.uuid}"
    batch = get(desk.app, f"/job_state?{query}", "alice").json["jobs"]
    assert batch[loser.uuid]["job"]["uuid"] == loser.uuid
    assert batch[loser.uuid]["job"]["params"] == batch[winner.uuid]["job"]["params"]
    items = get(desk.app, "/job_state", "alice").json["items"]
    assert [item["job"]["uuid"] for item in items] == [winner.uuid]
    assert desk.store.counts().queued == 1
    # The loser's own object knows nothing yet.
    assert loser.status == "queued"
    desk.end(winner)
    assert desk.state(loser)["job_state"] == "success"


def test_acts_on_an_alias_reach_its_job(desk, said):
    """They need the rights to that job. The loser's own object cancels it, too."""
    loser, winner = desk.press_twice()
    path = f"/job_state/{loser.uuid}"
    assert act(desk.app, f"{path}/cancel", "bob").status_int == 403
    response = act(desk.app, f"{path}/cancel", "alice")
    assert (response.status_int, response.json["job"]["uuid"]) == (202, loser.uuid)
    assert desk.status(winner) == "cancelled"
    assert f"'alice' cancelled the job {winner.uuid}." in "".join(said())
    loser, winner = desk.press_twice()
    assert loser.cancel()
    assert desk.status(winner) == "cancelled"


def test_an_alias_lives_as_long_as_its_job(redis_url, desk):
    """Reading renews it. It outlives a job that is due late."""
    desk.config.set_job_store(JobStore(redis_url, active_expire_in=100, expire_in=2))
    desk.config.commit()
    loser, _ = desk.press_twice()
    pass_time(desk.store, 60)
    assert desk.store.load(loser.uuid) is not None
    assert desk.client.ttl(f"jobstate:{loser.uuid}") > 100
    pass_time(desk.store, 101)
    assert desk.store.load(loser.uuid) is None
    loser, winner = desk.press_twice(delay=3_600_000)
    pass_time(desk.store, 3600)
    assert desk.same(loser, winner)


def test_two_sends_of_a_transaction_become_one_job(desk):
    """The second follows the first, even an ended one, unless it was taken back."""

    class Quick(Middleware):
        def after_enqueue(self, broker: Any, message: Any, delay: Any) -> None:
            if message.message_id == first.uuid:
                desk.end(first)

    request = desk.begin()
    savepoint = request.tm.savepoint()
    gone = desk.press(request)
    savepoint.rollback()
    first, second = desk.press(request), desk.press(request, miles=5)
    other = desk.press(request, key="other")
    desk.actor.broker.add_middleware(Quick())
    request.tm.commit()
    assert first.uuid != second.uuid
    assert desk.sent() == [other.uuid]
    assert desk.same(first, second)
    assert desk.store.load(gone.uuid) is None


def test_what_is_taken_back_leaves_the_key_to_others(desk):
    """The key is taken when nothing can abort any more."""
    desk.press(request := desk.begin())
    request.tm.abort()
    request = desk.begin()
    vetoed = desk.press(request)
    request.tm.get().join(Manager("a", "tpc_vote", fail))
    with pytest.raises(ZeroDivisionError):
        request.tm.commit()
    request.tm.abort()
    assert desk.client.keys() == []
    assert desk.press().uuid != vetoed.uuid
    assert len(desk.sent()) == 1


def test_a_store_that_goes_away_before_the_key_is_taken_leaves_an_error(desk, caplog):
    """It is written once the store is back. Before the commit, a press is refused."""
    with away(desk.store), pytest.raises(StoreUnavailable):
        desk.press(desk.begin())
    with contextlib.ExitStack() as stack:
        request = desk.begin()
        jobs = [desk.press(request), desk.press(request)]
        gone = away(desk.store)
        leave = Manager("a", "tpc_finish", lambda: stack.enter_context(gone))
        request.tm.get().join(leave)
        request.tm.commit()
    errors = " ".join(messages(caplog, "pyramid_jobstate", logging.ERROR))
    assert "whether another job with its unique key is under way" in errors
    wait_for(lambda: all(desk.is_not_sent(job, "error") for job in jobs))
    third = desk.press()
    assert desk.sent() == [third.uuid]


def test_a_broker_that_is_away_leaves_the_key_free(desk):
    """The job reads as not sent."""
    refuses = [True, False]
    desk.actor.broker.add_middleware(Refusing(lambda message: refuses.pop(0)))
    assert desk.is_not_sent(desk.press(), "error")
    second = desk.press()
    assert desk.sent() == [second.uuid]


@pytest.mark.promise("unique-key-is-freed")
def test_a_job_whose_sender_died_loses_its_key_when_it_is_stalled(desk, said):
    """It is cancelled first, so that its message does nothing if it comes after all."""
    with mock.patch.object(desk.actor.broker, "enqueue"):
        first = desk.press()
    assert desk.press().uuid == first.uuid
    desk.grow_old()
    assert desk.status(first) == "stalled"
    second = desk.press()
    assert desk.is_not_sent(first, "cancelled")
    assert desk.sent() == [second.uuid]
    assert f"Job {first.uuid} was never sent. Another has taken its place." in said()


def test_a_sender_that_dies_before_it_takes_the_key_leaves_nothing_behind(desk):
    """The next press is a new job, to which the other leads should its sender live."""

    def meanwhile(dead: JobState) -> None:
        assert keys_without_end(desk.client) == []
        desk.grow_old()
        assert desk.status(dead) == "stalled"
        found.append(desk.press())
        assert desk.is_not_sent(dead, "cancelled")
        assert desk.store.list(status="stalled").items == []
        assert desk.sent() == [found[0].uuid]

    found: list[JobState] = []
    dead = desk.press(meanwhile=meanwhile)
    assert found[0].uuid != dead.uuid
    assert desk.same(dead, found[0])
    assert desk.sent() == [found[0].uuid]
    assert desk.store.counts(anew=True).cancelled == 0


def test_a_job_of_a_dead_sender_is_cancelled_when_that_of_a_press_ends(desk):
    """At the press nobody knew that the sender was dead."""

    def meanwhile(dead: JobState) -> None:
        found = desk.press()
        assert desk.status(dead) == "queued"
        desk.grow_old()
        desk.end(found)
        assert desk.is_not_sent(dead, "cancelled")

    # Should its sender live, its message does nothing.
    dead = desk.press(meanwhile=meanwhile)
    assert desk.sent() == [dead.uuid]
    with working(desk.actor.broker):
        wait_for(lambda: not desk.sent())
    assert desk.is_not_sent(dead, "cancelled")


@pytest.mark.promise("one-unique-job-at-a-time")
def test_a_press_may_come_at_any_moment_of_a_long_commit(desk, far, proxy):
    """Only one that comes before the key is taken wins. One message leaves."""

    def grow_old(slow: JobState) -> None:
        desk.grow_old()
        proxy.judge = moment

    winners, undisturbed = set(), proxy.judge
    for number in itertools.count():
        desk.client.flushdb()
        moment = Moment(number, desk.press)
        slow = far.press(meanwhile=grow_old)
        proxy.judge = undisturbed
        if not moment.results:
            break
        (found,) = moment.results
        assert len(desk.sent()) == 1, number
        assert desk.same(slow, found), number
        assert desk.status(slow) == "queued", number
        winners.add(found.uuid == slow.uuid)
    assert winners == {False, True}


@pytest.mark.parametrize("has_key", [False, True])
def test_a_sender_may_go_on_at_any_moment_of_a_press(desk, has_key):
    """A press that finds a job stalled cancels it, unless its sender goes on before.
    Then it shows that job.
    """

    def stop() -> None:
        stands.set()
        assert goes_on.wait(20)

    def press() -> None:
        with counting_trips(number, stop):
            found.append(desk.press())

    def begin(uuid: str) -> None:
        desk.grow_old()
        other.start()
        wait_for(lambda: stands.is_set() or not other.is_alive())
        seen.append(load_job(desk.store, uuid).status)

    def go_on() -> None:
        goes_on.set()
        other.join()

    def meanwhile(job: JobState) -> None:
        if not has_key:
            begin(job.uuid)

    def leave(message: Any) -> None:
        if message.args == (5,):
            begin(message.message_id) if has_key else go_on()

    desk.actor.broker.add_middleware(Refusing(leave))
    found: list[JobState] = []
    seen: list[str] = []
    for number in itertools.count(1):
        desk.client.flushdb()
        stands, goes_on = threading.Event(), threading.Event()
        other = threading.Thread(target=press)
        assert desk.press().cancel()
        slow = desk.press(miles=5, meanwhile=meanwhile)
        go_on()
        if not stands.is_set():
            break
        if seen[-1] == "stalled":
            assert desk.sent()[1:] == [slow.uuid], number
            assert desk.same(slow, found[-1]), number
        assert desk.status(found[-1]) == "queued", number
    assert {*seen} == {"stalled", "cancelled"}


def failed(desk: UniqueDesk, crash: Any) -> JobState:
    """Return a unique job that has failed in a worker."""
    job = desk.press(actor=crash)
    desk.end(job, "error")
    return job


def test_a_job_runs_again_only_if_no_other_is_under_way(desk, crash):
    """409, and the failure stays as it was. Then the key is its own again."""
    first = failed(desk, crash)
    second = desk.press(actor=crash)
    path = f"/job_state/{first.uuid}"
    before = desk.state(first), desk.store.failures(first.uuid)
    response = act(desk.app, f"{path}/rerun")
    refusal = f"The job {second.uuid} with the same unique key is under way."
    assert (response.status_int, response.json["error"]) == (409, refusal)
    assert (desk.state(first), desk.store.failures(first.uuid)) == before
    assert get(desk.app, f"{path}/inspect", OPERATOR).json["reason"] == refusal
    desk.end(second, "error")
    assert act(desk.app, f"{path}/rerun").status_int == 202
    assert desk.press(actor=crash).uuid == first.uuid
    desk.end(first, "error")
    assert desk.press(actor=crash).uuid != first.uuid


def test_a_press_may_come_at_any_moment_of_a_rerun(desk, far, proxy, crash):
    """One message leaves, and the press shows its job, whichever comes first. A press
    that waits meanwhile may go on from any point.
    """

    def begin() -> None:
        press.start()
        press.join(0.1)
        waits.set()
        press.join(0.1)

    def meet(connection: Any, go: Callable[[], Any]) -> Any:
        if next(trips) % 2 == parity and waits.is_set():
            assert is_rerun.wait(20)
        return go()

    def is_press() -> bool:
        return threading.current_thread() is press

    answers, undisturbed = set(), proxy.judge
    for turn in itertools.count():
        number, parity = divmod(turn, 2)
        waits, is_rerun, trips = threading.Event(), threading.Event(), itertools.count()
        desk.client.flushdb()
        first = failed(desk, crash)
        request = desk.begin()
        second = desk.press(request, actor=crash)
        press = threading.Thread(target=request.tm.commit)
        proxy.judge = moment = Moment(number, begin)
        with met(meet, is_press):
            answer = act(far.app, f"/job_state/{first.uuid}/rerun").status_int
            proxy.judge = undisturbed
            is_rerun.set()
            if moment.asked <= number:
                request.tm.abort()
                break
            press.join()
        answers.add(answer)
        winner = first if answer == 202 else second
        assert desk.sent() == [winner.uuid], number
        assert desk.same(second, winner), number
        assert desk.status(first) == ("queued" if answer == 202 else "error"), number
    assert answers >= {202, 409}


def test_the_outbox_holds_one_job_of_a_key(redis_url, crash):
    """A test of an application needs no store. A job is under way until it has run."""
    config = make_tm_config(redis_url)
    config.include("pyramid_jobstate.testing")
    make_app(config)
    states = make_request(config, "alice").job_states

    def send() -> Any:
        return states.send_with_options(crash, (1,), unique="nightly")

    assert states.find_unique(crash, "nightly") is None
    first = send()
    assert send() is first
    assert len(outbox(config.registry)) == 1
    with pytest.raises(ZeroDivisionError):
        run_jobs(config.registry)
    found = states.find_unique(crash, "nightly")
    assert (found, found.status) == (first, "error")
    assert send() is not first
