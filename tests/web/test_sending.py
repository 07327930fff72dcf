"""What a request can send: actors, messages, pipelines and groups, and whose they are.

Most of these tests send with the transaction. What becomes of that is tested in
test_transactions.py.
"""

import datetime
import re
import time
import uuid
from collections.abc import Sequence
from typing import Any, assert_type

import dramatiq.broker
import pytest
import redis
from dramatiq import Actor, Broker, Message, actor, group, pipeline
from dramatiq.brokers.redis import RedisBroker
from dramatiq.brokers.stub import StubBroker
from dramatiq.middleware import GroupCallbacks
from dramatiq.rate_limits.backends import StubBackend
from pyramid.authorization import Authenticated, Everyone

from pyramid_jobstate import JobState, JobStateMiddleware, JobStore, StoreUnavailable
from pyramid_jobstate.resources import JobStates
from pyramid_jobstate.testing import pass_time, put_job
from tests.jobs import RunMarathon
from tests.web.visits import (
    NOT_REACHED,
    NOT_SENT,
    Refusing,
    broker_that_is_away,
    committing,
    load,
    sent,
)
from tests.webapp import NOWHERE, made_config, make_broker, make_request, queued

MINUTE = datetime.timedelta(minutes=1)


@pytest.fixture
def run_marathon(global_broker: Broker) -> Any:
    """A tracked actor of the global broker."""
    return global_broker.get_actor("run_marathon")


# One job.


def test_message_and_record_have_one_id(job_states, run_marathon, client):
    """The job that a send returns is what the store holds and the message says."""
    request = job_states.request
    job_state = job_states.send_immediately(run_marathon, 26, shoes="blue")
    (message,) = queued(client)
    assert message.message_id == job_state.uuid == job_state.__name__
    assert uuid.UUID(job_state.uuid).version == 4
    assert (message.args, dict(message.kwargs)) == ((26,), {"shoes": "blue"})
    assert type(job_state) is RunMarathon and job_state.__parent__ is job_states
    assert job_state.job_params == {"miles": 26, "shoes": "blue"}
    assert job_state.queued_at and job_state.queued_at.tzinfo is datetime.UTC
    times = {"queued_at": None, "updated_at": None}
    shown, stored = (
        {**state.__json__(request)["job"], **times}
        for state in (job_state, job_states.find(job_state.uuid))
    )
    assert shown == stored


def test_send_returns_one_job_or_all(job_states: JobStates, run_marathon: Any) -> None:
    """A type checker knows which sends return one job and which several."""
    run: Actor[..., Any] = run_marathon
    assert_type(job_states.send_immediately(run, 26), JobState)
    for send in job_states.send_message, job_states.send_immediately:
        assert_type(send(run.message(26)), JobState)
        assert_type(send(run.message(1) | run.message(2)), Sequence[JobState])
        assert_type(send(group([run.message(3)])), Sequence[JobState])


def test_message_is_sent_as_it_is(job_states, run_marathon, client):
    """A message keeps its id, delay and next step, and gets the options of a send."""
    plain = run_marathon.message(1)
    late = run_marathon.message_with_options(args=(2,), delay=60_000)
    first, second = (run_marathon.message(3) | run_marathon.message(4)).messages
    jobs = [job_states.send_message(what) for what in (plain, late, first)]
    options: Any = {"max_retries": 5, "on_failure": "sweep"}
    job_states.send_with_options(run_marathon, kwargs={"miles": 26}, **options)
    job_states.request.tm.commit()
    ids = [message.message_id for message in (plain, late, first)]
    assert [job.uuid for job in jobs] == ids
    assert "job_owner" not in plain.options
    one, three, other = queued(client)
    assert (one.args, three.args, other.kwargs) == ((1,), (3,), {"miles": 26})
    assert three.options["pipe_target"]["message_id"] == second.message_id
    assert other.options.items() >= options.items()
    assert [m.args for m in queued(client, "default.DQ")] == [(2,)]
    job_state = job_states[late.message_id]
    assert job_state.due_at - job_state.queued_at == MINUTE


def test_arguments_are_those_of_the_call(job_states, run_marathon, client):
    """Later changes have no effect. What cannot be encoded fails in the call."""
    miles, shoes = [1, 2], {"left": "red"}
    job_state = job_states.send(run_marathon, miles, shoes=shoes)
    for argument in object(), {1, 2}, b"x":
        for send in job_states.send, job_states.send_immediately:
            with pytest.raises(TypeError, match=r"run_marathon.* cannot be encoded"):
                send(run_marathon, argument)
    miles.append(3)
    shoes.clear()
    params = {"miles": [1, 2], "shoes": {"left": "red"}}
    assert job_state.job_params == params
    job_states.request.tm.commit()
    (message,) = queued(client)
    assert (message.args, message.kwargs) == (([1, 2],), {"shoes": {"left": "red"}})
    assert job_states[job_state.uuid].job_params == params


# The owner.


def test_owner_is_the_sender_unless_another_is_named(
    made_tm_config, run_marathon, client
):
    """The view may name another, or None. The message carries it to the worker."""
    cases: list[tuple[str | None, dict[str, Any], object]] = [
        ("alice", {}, "alice"),
        (None, {}, None),
        ("alice", {"owner": "bob"}, "bob"),
        ("alice", {"owner": ""}, ""),
        ("alice", {"owner": 1.5}, 1.5),
        ("alice", {"owner": None}, None),
        ("alice", {"job_owner": "carol"}, "carol"),
    ]
    for user, options, owner in cases:
        client.flushall()
        with committing(made_tm_config, user) as job_states:
            job = job_states.send_with_options(run_marathon, (1,), **options)
        assert load(made_tm_config, job.uuid).owner == job.owner == owner
        assert queued(client)[0].options.get("job_owner") == owner
    message = run_marathon.message_with_options(args=(1,), job_owner=7)
    assert job_states.send_immediately(message).owner == 7


def test_owner_that_cannot_be_one_is_refused(
    job_states, redis_url, run_marathon, client
):
    """It is a string, a finite number or None, and no principal of Pyramid's."""
    match = r"a string or a finite number, not .*jobstate\.owner"
    bad: list[tuple[Any, type[Exception], str]] = [
        *((owner, TypeError, match) for owner in (["a"], True, b"a", float("nan"))),
        (Everyone, ValueError, f"must be a single user, not '{Everyone}'"),
        (Authenticated, ValueError, f"must be a single user, not '{Authenticated}'"),
    ]
    for owner, error, text in bad:
        message = run_marathon.message_with_options(args=(26,), job_owner=owner)
        with pytest.raises(error, match=text):
            job_states.send_immediately(message)
        with pytest.raises(error, match=text):
            job_states.send_message(group([message]))
        with pytest.raises(error, match=text):
            job_states.send_with_options(run_marathon, (1,), owner=owner)
        with pytest.raises(error, match=text):
            job_states.batch(owner=owner)
    config = made_config(redis_url, settings={"jobstate.owner": lambda request: {}})
    with pytest.raises(TypeError, match="The owner of a job must be"):
        make_request(config).job_states.send_immediately(run_marathon, 26)
    job_states.request.tm.commit()
    assert client.keys() == []


def test_delay_counts_from_the_commit(made_tm_config, run_marathon, client):
    """The delay of the job and its message counts from the record being written."""
    for delay in 60_000, MINUTE:
        client.flushall()
        with committing(made_tm_config) as job_states:
            job = job_states.send_with_options(run_marathon, (26,), delay=delay)
            assert job.due_at - job.queued_at == MINUTE
            time.sleep(0.02)
        loaded = load(made_tm_config, job.uuid)
        assert loaded.due_at and loaded.queued_at
        assert loaded.due_at - loaded.queued_at == MINUTE
        assert loaded.queued_at > job.queued_at
        (message,) = queued(client, "default.DQ")
        assert 0 <= message.options["eta"] / 1000 - loaded.due_at.timestamp() < 5


def test_delay_that_the_store_cannot_keep_is_refused(job_states, run_marathon):
    """The error names a wrong delay and its unit, wherever it stands."""
    first = run_marathon.message(1)
    batch = job_states.batch().__enter__()
    for delay in "soon", True, float("nan"), 10**14 + 1:
        error = TypeError if isinstance(delay, str | bool) else ValueError
        late = run_marathon.message_with_options(args=(1,), delay=delay)
        for what in late, late | first, first | late, group([late | first]):
            for send in job_states.send_message, job_states.send_immediately:
                with pytest.raises(error, match=r"^delay must be .* milliseconds"):
                    send(what)
        for each in job_states, batch:
            with pytest.raises(error, match=r"^delay must be .* milliseconds"):
                each.send_with_options(run_marathon, delay=delay)


# Pipelines and groups.


def test_pipeline_has_all_its_records_from_the_start(job_states, run_marathon, client):
    """Each step has a record, owner and id, and waits however long it takes."""
    what = pipeline([run_marathon.message(i) for i in range(3)])
    ids = [m.message_id for m in what.messages]
    before = what.messages[0].asdict()
    jobs = job_states.send_message(what)
    job_states.request.tm.commit()
    pass_time(job_states.store, 3600)
    assert [job_state.uuid for job_state in jobs] == ids
    assert what.messages[0].asdict() == before
    (message,) = queued(client)
    for i, each in enumerate(ids):
        assert message.message_id == each
        assert message.options["job_owner"] == "alice"
        job_state = job_states[each]
        assert (job_state.status, job_state.owner) == ("queued", "alice")
        assert job_state.job_params == {"miles": i}
        if i < 2:
            message = Message(**message.options["pipe_target"])
    assert "pipe_target" not in message.options


def test_group_that_left_in_part_is_shown_as_it_is(
    job_states, global_broker, run_marathon, client
):
    """What the broker took runs. The rest has failed or, sent at once, is unknown."""
    global_broker.add_middleware(Refusing(lambda message: message.args == (2,)))
    m = [run_marathon.message(i) for i in range(5)]
    jobs = job_states.send_message(group([m[0] | m[1], m[2] | m[3], m[4]]))
    job_states.request.tm.commit()
    loaded = [job_states[job_state.uuid] for job_state in jobs]
    found = [(job.status, job.error and job.error.message) for job in loaded]
    failed, skipped = ("error", NOT_SENT), ("cancelled", NOT_REACHED)
    assert found == [*[("queued", None)] * 2, failed, skipped, failed]
    assert sent(client) == [0]
    m = [run_marathon.message(i) for i in range(5)]
    with pytest.raises(dramatiq.middleware.MiddlewareError):
        job_states.send_immediately(group([m[0] | m[1], m[2] | m[3], m[4]]))
    found = job_states.find_many([message.message_id for message in m])
    assert [j and j.status for j in found] == ["queued", "queued", None, None, None]
    assert len(job_states.store.list(status="queued").items) == 4


# What cannot be sent.


def test_what_cannot_be_followed_is_refused(
    job_states, global_broker, run_marathon, client
):
    """What is untracked, has a foreign id, or could not be sent fails in the call."""
    sweep = global_broker.get_actor("sweep")
    members = [run_marathon.message(1), sweep.message()]
    match = r"'sweep' is not tracked.*job_state=True"
    for what in sweep.message(), pipeline(members), group([pipeline(members)]):
        for send in job_states.send_message, job_states.send_immediately:
            with pytest.raises(TypeError, match=match):
                send(what)
    for send in job_states.send, job_states.send_immediately:
        with pytest.raises(TypeError, match=match):
            send(sweep)
    for wrong in "marathon-1", "", "6F1C2E7A-3B5D-4F60-8A9B-0C1D2E3F4A5B":
        message = run_marathon.message(26).copy(message_id=wrong)
        with pytest.raises(ValueError, match="whose id is not a uuid"):
            job_states.send_immediately(message)
    with pytest.raises(ValueError, match="pipeline without messages"):
        job_states.send_message(group([pipeline([])]))
    what = group([group([run_marathon.message(1)])])
    what.add_completion_callback(run_marathon.message(2))
    with pytest.raises(TypeError, match="has no GroupCallbacks middleware"):
        job_states.send_message(what)
    global_broker.add_middleware(GroupCallbacks(StubBackend()))
    with pytest.raises(TypeError, match="cannot contain another group"):
        job_states.send_message(what)
    job_states.request.tm.commit()
    assert client.keys() == []
    # Only an actor is sent arguments.
    for other in None, "run_marathon", message:
        match = f"^actor must be a Dramatiq actor, not {re.escape(repr(other))}\\. Send"
        with pytest.raises(TypeError, match=match):
            job_states.send(other)
    with pytest.raises(TypeError, match="Only messages, pipelines and gro"):
        job_states.send_message(print)
    with pytest.raises(TypeError, match="Only an actor takes arguments"):
        job_states.send_immediately(message, 27)


# Sending immediately.


def test_send_immediately_that_fails_leaves_nothing(job_states, redis_url, client):
    """The caller gets the broker's error, and nothing is sent without the store. A job
    that had ended stays as it is.
    """
    broker = broker_that_is_away(redis_url)
    run_marathon = broker.get_actor("run_marathon")
    steps = pipeline([run_marathon.message(i) for i in range(3)], broker=broker)
    for what in run_marathon, steps, group([steps], broker=broker):
        with pytest.raises(redis.ConnectionError):
            job_states.send_immediately(what)
    assert client.keys() == []
    ended = put_job(job_states.store, RunMarathon, "success").uuid
    again = run_marathon.message(1).copy(message_id=ended)
    with pytest.raises(redis.ConnectionError):
        job_states.send_immediately(again, broker=broker)
    found = job_states[ended]
    assert (found.status, found.error) == ("success", None)
    client.flushall()
    broker = make_broker(redis_url, JobStateMiddleware(url=NOWHERE))
    job_states = make_request(made_config(NOWHERE)).job_states
    with pytest.raises(StoreUnavailable):
        job_states.send_immediately(broker.get_actor("run_marathon"), 26)
    assert client.keys() == []


# Through other brokers, whose workers may write to another store


def database(url: str, db: int) -> str:
    """Return the URL of another database on the server of a URL."""
    return f"redis://{url.partition('//')[2].partition('/')[0]}/{db}"


def second(url: str, middleware: JobStateMiddleware | None = None) -> RedisBroker:
    """Return another broker, with the actors print_label and, untracked, weigh."""
    broker = RedisBroker(url=url)
    broker.add_middleware(middleware or JobStateMiddleware())

    @actor(broker=broker, job_state=True)
    def print_label(*parcels: Any) -> None:
        pass

    @actor(broker=broker)
    def weigh() -> None:
        pass

    return broker


@pytest.fixture
def other(redis_url: str) -> RedisBroker:
    """Another broker in another database, which writes to the web side's store."""
    return second(database(redis_url, 1), JobStateMiddleware(url=redis_url))


def label(broker: Broker, *parcels: Any) -> Message[Any]:
    return broker.get_actor("print_label").message(*parcels)


def test_actor_whose_states_are_elsewhere_is_refused(job_states, redis_url, client):
    """The error names the actor and both stores, but no password."""
    url = database(redis_url, 1).replace("//", "//bob:hush@")
    stray = second(database(redis_url, 1), JobStateMiddleware(url=url))
    print_label = stray.get_actor("print_label")
    several = [label(stray, i) for i in range(2)]
    for send in (
        lambda: job_states.send(print_label, 1),
        lambda: job_states.send_message(label(stray), broker=stray),
        lambda: job_states.send_message(pipeline(several, broker=stray)),
        lambda: job_states.send_immediately(print_label, 1),
        lambda: job_states.send_immediately(group(several, broker=stray)),
    ):
        with pytest.raises(TypeError, match="in another database") as caught:
            send()
        for part in "'print_label'", repr(JobStore(redis_url)), repr(JobStore(url)):
            assert part in str(caught.value)
        assert "hush" not in str(caught.value)
    batch = job_states.batch()
    with batch, pytest.raises(TypeError, match="in another database"):
        batch.send(print_label)
    for broker, place in (
        (second(redis_url, JobStateMiddleware(namespace="shop")), "in another namesp"),
        (second(NOWHERE), "on another port"),
    ):
        with pytest.raises(TypeError, match=place):
            job_states.send(broker.get_actor("print_label"))
    job_states.request.tm.commit()
    assert batch.size == 0
    assert client.keys("dramatiq:*") == stray.client.keys() == []


def test_broker_without_the_middleware_is_refused(job_states, set_broker, other):
    """Jobs need a broker with our middleware. The package does not make one up."""
    set_broker(StubBroker(middleware=[]))
    with pytest.raises(TypeError, match="has no JobStateMiddleware"):
        job_states.send_message(group([]))
    set_broker(None)
    with pytest.raises(TypeError, match=r"dramatiq\.set_broker"):
        job_states.send_message(label(other))
    assert dramatiq.broker.global_broker is None


def test_broker_can_be_named(job_states, other, client):
    """All parts of a message go through the named broker, and none elsewhere."""
    for send in job_states.send_message, job_states.send_immediately:
        m = [label(other, i) for i in range(9)]
        nested: list[Any] = [m[5], m[6] | m[7], group([m[8]])]
        forms: list[Any] = [m[0], m[1] | m[2], group([m[3], m[4]]), group(nested)]
        found = [send(what, broker=other) for what in forms]
        jobs = [found[0], *found[1], *found[2], *found[3]]
        assert [job.uuid for job in jobs] == [message.message_id for message in m]
        assert send(group([]), broker=other) == []
    job_states.request.tm.commit()
    loaded = [job_states[job.uuid] for job in jobs]
    assert {(job.status, job.owner) for job in loaded} == {("queued", "alice")}
    assert client.keys("dramatiq:*") == []
    found = queued(other.client)
    assert [message.args[0] for message in found] == [0, 1, 3, 4, 5, 6, 8] * 2
    assert {message.options["job_owner"] for message in found} == {"alice"}

    # An actor's own is used, and its argument `broker` is an ordinary one.
    other.flush_all()

    @actor(broker=other, job_state=True)
    def insure(*, broker: str) -> None:
        pass

    job_state = job_states.send_immediately(insure, broker="Lloyd's")
    assert job_state.job_params == {"broker": "Lloyd's"}
    assert [m.message_id for m in queued(other.client)] == [job_state.uuid]


def test_two_brokers_cannot_be_mixed(job_states, global_broker, other, client):
    """No worker would run all parts. The error names both brokers."""
    m = [label(other, i) for i in range(2)]
    run_marathon = global_broker.get_actor("run_marathon").message(1)
    mixed: list[Any] = [
        group([run_marathon, pipeline(m, broker=other)]),
        # Easily written by mistake: the pipeline is the global broker's.
        group([m[0] | m[1]], broker=other),
    ]
    for what in mixed:
        with pytest.raises(TypeError, match=r"another broker.*broker=") as caught:
            job_states.send_message(what)
        assert repr(global_broker) in str(caught.value)
        assert repr(other) in str(caught.value)
    for broker, name in (None, "print_label"), (other, "run_marathon"):
        with pytest.raises(TypeError, match=f"does not know the actor '{name}'"):
            job_states.send_message(group([run_marathon, m[0]]), broker=broker)
    global_broker.add_middleware(dramatiq.middleware.GroupCallbacks(StubBackend()))
    what = group([run_marathon])
    what.add_completion_callback(other.get_actor("weigh").message())
    with pytest.raises(TypeError, match="does not know the actor 'weigh'"):
        job_states.send_message(what)
    job_states.request.tm.commit()
    assert client.keys() == []
