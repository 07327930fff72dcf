"""What a request can send: actors, messages, pipelines and groups, and whose they are.

Most of these tests send with the transaction. What becomes of that is tested in
test_transactions.py.
"""

import datetime
import re
import time
import uuid
from typing import Any

import dramatiq.broker
import pytest
import redis
from dramatiq import Broker, Message, actor, group, pipeline
from dramatiq.brokers.stub import StubBroker
from dramatiq.errors import QueueNotFound
from dramatiq.rate_limits.backends import StubBackend
from pyramid.authorization import Authenticated, Everyone
from pyramid.config import Configurator
from pyramid.request import Request

from pyramid_jobstate import JobState, JobStateMiddleware, StoreUnavailable
from pyramid_jobstate.testing import away, pass_time
from tests.jobs import RunMarathon, working
from tests.support import wait_for
from tests.web.visits import (
    NOT_REACHED,
    NOT_SENT,
    Refusing,
    broker_that_is_away,
    committing,
    load,
    sent,
)
from tests.webapp import (
    NOWHERE,
    get,
    made_config,
    make_app,
    make_broker,
    make_config,
    make_request,
    mounted_root,
    queued,
)

MINUTE = datetime.timedelta(minutes=1)


@pytest.fixture
def run_marathon(global_broker: Broker) -> Any:
    """A tracked actor of the global broker."""
    return global_broker.get_actor("run_marathon")


def nobody(request: Request) -> object:
    """A jobstate.owner whose result is not a principal."""
    return {"user": request.authenticated_userid}


# One job.


def test_message_and_record_have_one_id(
    job_states: Any, run_marathon: Any, client: redis.Redis
) -> None:
    """The job that a send returns is what the store holds, ready to be shown, and what
    the message says.
    """
    request = job_states.request
    job_state = job_states.send_immediately(run_marathon, 26, shoes="blue")
    (message,) = queued(client)
    assert message.message_id == job_state.uuid == job_state.__name__
    assert uuid.UUID(job_state.uuid).version == 4
    assert message.actor_name == "run_marathon"
    assert (message.args, dict(message.kwargs)) == ((26,), {"shoes": "blue"})
    assert message.options["job_owner"] == "alice"
    assert type(job_state) is RunMarathon and job_state.__parent__ is job_states
    assert job_state.job_params == {"miles": 26, "shoes": "blue"}
    assert job_state.queued_at and job_state.queued_at.tzinfo is datetime.UTC
    assert (job_state.attempt, job_state.started_at) == (0, None)
    times = {"queued_at": None, "updated_at": None}
    shown, stored = (
        {**state.__json__(request)["job"], **times}
        for state in (job_state, job_states.find(job_state.uuid))
    )
    assert shown == stored
    with pytest.raises(RuntimeError, match="Only a running job can report"):
        job_state.set_progress_metric("miles_run", 1)
    assert job_state.cancel()
    assert job_states.find(job_state.uuid).status == "cancelled"


def test_job_that_waits_never_stalls(job_states: Any, run_marathon: Any) -> None:
    """A job whose message was sent stays queued, however long it waits; so do the later
    steps of a pipeline, however long the first one takes.
    """
    steps = run_marathon.message(1) | run_marathon.message(2)
    jobs = [job_states.send(run_marathon, 0), *job_states.send_message(steps)]
    job_states.request.tm.commit()
    jobs.append(job_states.send_immediately(run_marathon, 3))
    pass_time(job_states.store, 3600)
    assert [job_states[job.uuid].status for job in jobs] == ["queued"] * 4


def test_message_is_sent_as_it_is(
    job_states: Any, run_marathon: Any, client: redis.Redis
) -> None:
    """A message that was made earlier keeps its id, its delay and the step to which it
    leads.
    """
    plain, now = run_marathon.message(1), run_marathon.message(2)
    late = run_marathon.message_with_options(args=(3,), delay=60_000)
    steps = pipeline([run_marathon.message(4), run_marathon.message(5)])
    jobs = [
        job_states.send_message(plain, owner="bob"),
        job_states.send_message(late),
        job_states.send_message(steps.messages[0]),
        job_states.send_immediately(now),
    ]
    job_states.request.tm.commit()
    given = [plain, late, steps.messages[0], now]
    assert [job.uuid for job in jobs] == [message.message_id for message in given]
    assert jobs[0].owner == "bob" and "job_owner" not in plain.options
    second, first, third = queued(client)
    assert [m.args for m in (first, second, third)] == [(1,), (2,), (4,)]
    assert third.options["pipe_target"]["message_id"] == steps.messages[1].message_id
    assert [m.args for m in queued(client, "default.DQ")] == [(3,)]
    job_state = job_states[late.message_id]
    assert job_state.due_at - job_state.queued_at == MINUTE


def test_options_travel_with_the_message(
    job_states: Any, run_marathon: Any, client: redis.Redis
) -> None:
    """Further options become options of the message."""
    options: Any = {"max_retries": 5, "on_failure": "sweep"}
    job_states.send_with_options(run_marathon, kwargs={"miles": 26}, **options)
    job_states.request.tm.commit()
    (message,) = queued(client)
    assert message.kwargs == {"miles": 26}
    assert message.options.items() >= options.items()


def test_arguments_are_those_of_the_call(
    job_states: Any, run_marathon: Any, client: redis.Redis
) -> None:
    """Changes to an argument after the call do not affect the message. What cannot be
    encoded fails in the call, and the transaction goes on without it.
    """
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


def test_messages_leave_in_their_order(
    job_states: Any, run_marathon: Any, client: redis.Redis
) -> None:
    """The messages of a transaction are sent in the order of the calls."""
    for miles in range(12):
        job_states.send(run_marathon, miles)
    job_states.request.tm.commit()
    assert sent(client) == [*range(12)]
    assert len(job_states.list("alice").items) == 12


# The owner.


def test_owner_is_the_sender_unless_another_is_named(
    made_tm_config: Configurator, run_marathon: Any, client: redis.Redis
) -> None:
    """The owner of a job is the one that the view names, possibly None, or else the
    user of the request. The message carries it to the worker.
    """
    cases: list[tuple[str | None, dict[str, Any], object]] = [
        ("alice", {}, "alice"),
        (None, {}, None),
        ("alice", {"owner": "bob"}, "bob"),
        ("alice", {"owner": ""}, ""),
        ("alice", {"owner": 0}, 0),
        ("alice", {"owner": 1.5}, 1.5),
        ("alice", {"owner": None}, None),
        ("alice", {"job_owner": "carol"}, "carol"),
        ("alice", {"job_owner": None}, None),
    ]
    jobs = []
    for user, options, owner in cases:
        with committing(made_tm_config, user) as job_states:
            job = job_states.send_with_options(run_marathon, (1,), **options)
            assert job.owner == owner
            jobs.append(job)
    message = run_marathon.message_with_options(args=(1,), job_owner=7)
    jobs.append(make_request(made_tm_config).job_states.send_immediately(message))
    owners = [*(owner for *_, owner in cases), 7]
    assert [load(made_tm_config, job.uuid).owner for job in jobs] == owners
    assert [m.options.get("job_owner") for m in queued(client)] == owners


def test_owner_that_json_would_change_is_refused(
    job_states: Any, redis_url: str, run_marathon: Any, client: redis.Redis
) -> None:
    """An owner is a string, a finite number or None, also where jobstate.owner returns
    it. Otherwise nothing is sent.
    """
    match = r"a string or a finite number, not .*jobstate\.owner"
    for owner in ["alice"], ("alice", 1), True, b"alice", {"id": 1}, float("nan"):
        options: Any = {"args": (26,), "job_owner": owner}
        message = run_marathon.message_with_options(**options)
        with pytest.raises(TypeError, match=match):
            job_states.send_immediately(message)
        with pytest.raises(TypeError, match=match):
            job_states.send_with_options(run_marathon, (1,), owner=owner)
    settings = {"jobstate.owner": f"{__name__}.nobody"}
    request = make_request(made_config(redis_url, settings=settings), "alice")
    with pytest.raises(TypeError, match="The owner of a job must be"):
        request.job_states.send_immediately(run_marathon, 26)
    job_states.request.tm.commit()
    assert client.keys() == []


def test_owner_is_who_sent_the_job_and_nobody_like_them(
    redis_url: str, run_marathon: Any
) -> None:
    """A user of an equal id of another type does not own what was sent, and one who is
    named like everybody owns nothing.
    """
    owners = {"1": 1, "1.0": 1.0, "true": True, "all": Everyone, "any": Authenticated}

    def owner(request: Request) -> Any:
        return owners.get(request.headers.get("X-User"))

    config = make_config(redis_url, settings={"jobstate.owner": owner})
    app = make_app(config)

    def viewers(sender: str) -> list[str]:
        states = make_request(config, sender).job_states
        path = f"/job_state/{states.send_immediately(run_marathon, 26).uuid}"
        return [user for user in owners if get(app, path, user).status_code == 200]

    assert viewers("1") == ["1"]
    for name in "all", "any":
        assert viewers(name) == []
        assert get(app, "/job_state", name).json["items"] == []


def test_sender_sees_the_job_at_once(redis_url: str, run_marathon: Any) -> None:
    """A job sent through a mounted container is found below that container."""
    config = make_config(redis_url, root_factory=mounted_root)
    app = make_app(config)
    request = make_request(config, "alice")
    jobs = mounted_root(request)["jobs"]
    job_state = jobs.send_immediately(run_marathon, 26)
    assert request.resource_path(job_state) == f"/jobs/{job_state.uuid}/"
    assert get(app, f"/jobs/{job_state.uuid}", "alice").status_code == 200
    assert get(app, f"/jobs/{job_state.uuid}", "bob").status_code == 403


# Delays.


def test_delay_counts_from_the_commit(
    made_tm_config: Configurator, run_marathon: Any, client: redis.Redis
) -> None:
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
        assert loaded.status == "queued"
        (message,) = queued(client, "default.DQ")
        assert 0 <= message.options["eta"] / 1000 - loaded.due_at.timestamp() < 5


def test_delay_that_the_store_cannot_keep_is_refused(
    job_states: Any, run_marathon: Any
) -> None:
    """The call names the delay and its unit, in a batch, too, and where it is among the
    options of a message or of any step of a pipeline.
    """
    first = run_marathon.message(1)
    cases: list[tuple[Any, type[Exception]]] = [
        ("soon", TypeError),
        (True, TypeError),
        (float("nan"), ValueError),
        (float("inf"), ValueError),
        (10**14 + 1, ValueError),
        (10**30, ValueError),
        (datetime.timedelta(days=1), TypeError),
    ]
    batch = job_states.batch().__enter__()
    for delay, error in cases:
        late = run_marathon.message_with_options(args=(1,), delay=delay)
        calls: list[Any] = [
            lambda what=what: job_states.send_message(what)
            for what in (late, late | first, first | late, group([late | first]))
        ]
        calls.append(lambda what=late: job_states.send_immediately(what))
        if not isinstance(delay, datetime.timedelta):
            for target in job_states, batch:
                calls.append(
                    lambda target=target, delay=delay: target.send_with_options(
                        run_marathon, (1,), delay=delay
                    )
                )
        for call in calls:
            with pytest.raises(error, match=r"^delay must be .* milliseconds, not "):
                call()


def test_delay_may_be_as_long_as_a_time_can_say(
    job_states: Any, global_broker: Broker, run_marathon: Any
) -> None:
    """A job may be due in a month or, at the latest, in some 3,000 years. One whose
    time has passed is due at once.
    """
    delays = [0, 30 * 86_400_000, 10**14]
    jobs = [
        job_states.send_with_options(run_marathon, (1,), delay=delay)
        for delay in delays
    ]
    past = [
        job_states.send_with_options(run_marathon, (1,), delay=delay)
        for delay in (-5, datetime.timedelta(days=-14))
    ]
    job_states.request.tm.commit()
    for job, delay in zip(jobs, delays, strict=True):
        loaded = job_states[job.uuid]
        due = loaded.due_at or loaded.queued_at
        late = due - loaded.queued_at - datetime.timedelta(milliseconds=delay)
        assert abs(late) < datetime.timedelta(milliseconds=1)
    assert [job_states[job.uuid].status for job in past] == ["queued"] * 2
    with working(global_broker):
        wait_for(lambda: all(job_states[job.uuid].is_success for job in past))


# Pipelines and groups.


def test_pipeline_has_all_its_records_from_the_start(
    job_states: Any, run_marathon: Any, client: redis.Redis
) -> None:
    """Each step has a record, owner and id. The first message leads to the others."""
    what = pipeline([run_marathon.message(i) for i in range(3)])
    ids = [m.message_id for m in what.messages]
    before = what.messages[0].asdict()
    jobs = job_states.send_message(what)
    job_states.request.tm.commit()
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
    assert {j.uuid for j in job_states.list("alice").items} == set(ids)


def test_delay_of_a_pipeline_is_that_of_its_first_step(
    job_states: Any, global_broker: Broker, run_marathon: Any, client: redis.Redis
) -> None:
    """A pipeline is delayed as in Dramatiq, by its first message. The delay of a later
    step counts from its turn.
    """
    first = run_marathon.message_with_options(args=(1,), delay=60_000)
    second = run_marathon.message_with_options(args=(2,), delay=30_000)
    jobs = job_states.send_message(first | second)
    job_states.request.tm.commit()
    assert jobs[0].due_at - jobs[0].queued_at == MINUTE
    one, two = (job_states[job_state.uuid] for job_state in jobs)
    assert one.due_at - one.queued_at == MINUTE
    assert two.due_at is None
    (message,) = queued(client, "default.DQ")
    assert message.message_id == one.uuid
    # Dramatiq does this when the first step has succeeded.
    global_broker.enqueue(Message(**message.options["pipe_target"]), delay=30_000)
    two = job_states[two.uuid]
    assert two.status == "queued"
    assert two.due_at - two.updated_at == MINUTE / 2
    assert client.pttl(f"jobstate:{two.uuid}") > (8 * 24 * 3600 + 29) * 1000


def test_group_has_all_its_records(
    job_states: Any, run_marathon: Any, client: redis.Redis
) -> None:
    """All members of a group are sent, and the sender owns each job. As in Dramatiq, a
    member's own delay is ignored, and an empty group sends nothing.
    """
    m = [run_marathon.message(i) for i in range(6)]
    late = run_marathon.message_with_options(args=(6,), delay=60_000)
    what = group([m[0], m[1] | m[2], group([m[3], m[4] | m[5]]), late])
    jobs = job_states.send_message(what)
    assert job_states.send_message(group([])) == []
    job_states.request.tm.commit()
    ids = [message.message_id for message in [*m, late]]
    assert [job_state.uuid for job_state in jobs] == ids
    loaded = [job_states[each] for each in ids]
    found = {(j.status, j.owner, j.due_at) for j in loaded}
    assert found == {("queued", "alice", None)}
    assert [x.message_id for x in queued(client)] == [ids[i] for i in (0, 1, 3, 4, 6)]
    assert {x.options["job_owner"] for x in queued(client)} == {"alice"}


def test_group_that_left_in_part_is_shown_as_it_is(
    job_states: Any, global_broker: Broker, run_marathon: Any, client: redis.Redis
) -> None:
    """If the broker goes away during a group, the messages that it took run, with their
    later steps. With the transaction the others read as failed; sent immediately, they
    leave no record.
    """
    global_broker.add_middleware(Refusing(lambda message: message.args == (2,)))
    m = [run_marathon.message(i) for i in range(10)]
    jobs = job_states.send_message(group([m[0] | m[1], m[2] | m[3], m[4]]))
    job_states.request.tm.commit()
    loaded = [job_states[job_state.uuid] for job_state in jobs]
    assert [(j.status, j.error and j.error.message) for j in loaded] == [
        ("queued", None),
        ("queued", None),
        ("error", NOT_SENT),
        ("cancelled", NOT_REACHED),
        ("error", NOT_SENT),
    ]
    assert [x.message_id for x in queued(client)] == [m[0].message_id]
    again = [m[5], m[6], run_marathon.message(2), m[8], m[9]]
    with pytest.raises(dramatiq.middleware.MiddlewareError):
        job_states.send_immediately(
            group([again[0] | again[1], again[2] | again[3], again[4]])
        )
    found = job_states.find_many([message.message_id for message in again])
    assert [j and j.status for j in found] == ["queued", "queued", None, None, None]
    assert len(job_states.store.list(status="queued").items) == 4


def test_completion_callbacks_are_the_senders(
    job_states: Any, global_broker: Broker, run_marathon: Any, client: redis.Redis
) -> None:
    """A completion callback belongs to the sender of the group, with its arguments at
    the time of the call. Its record is written when it is sent.
    """
    what = group(
        [run_marathon.message(1), run_marathon.message(2) | run_marathon.message(3)]
    )
    miles = [26]
    for callback in (
        run_marathon.message(miles),
        run_marathon.message_with_options(args=(27,), job_owner="bob"),
        global_broker.get_actor("sweep").message(),
    ):
        what.add_completion_callback(callback)
    with pytest.raises(TypeError, match="has no GroupCallbacks middleware"):
        job_states.send_message(what)
    global_broker.add_middleware(dramatiq.middleware.GroupCallbacks(StubBackend()))
    jobs = job_states.send_message(what)
    miles.append(27)
    job_states.request.tm.commit()
    assert len(jobs) == len(job_states.store.list().items) == 3
    first, second = queued(client)
    assert [first.message_id, second.message_id] == [jobs[0].uuid, jobs[1].uuid]
    last: Message[Any] = Message(**second.options["pipe_target"])
    assert last.message_id == jobs[2].uuid
    for message in (first, last):
        one, two, three = message.options["group_completion_callbacks"]
        assert one["args"] == [[26]]
        assert one["options"]["job_owner"] == "alice"
        assert two["options"]["job_owner"] == "bob"
        assert "job_owner" not in three["options"]
    what.add_completion_callback(run_marathon.message(object()))
    with pytest.raises(TypeError, match="cannot be encoded"):
        job_states.send_message(what)
    nested = group([group([run_marathon.message(1)])])
    nested.add_completion_callback(run_marathon.message(2))
    with pytest.raises(TypeError, match="cannot contain another group"):
        job_states.send_message(nested)


# What cannot be sent.


def test_what_cannot_be_followed_is_refused(
    job_states: Any, global_broker: Broker, run_marathon: Any, client: redis.Redis
) -> None:
    """An untracked actor, also in a pipeline or a group, an id that is not a uuid, and
    a pipeline that could not be sent at the commit are refused in the call.
    """
    sweep = global_broker.get_actor("sweep")
    members = [run_marathon.message(1), sweep.message()]
    nested = group([pipeline(members)])
    match = r"'sweep' is not tracked.*job_state=True"
    for what in sweep.message(), pipeline(members), group(members), nested:
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
    for what in pipeline([]), group([pipeline([])]):
        with pytest.raises(ValueError, match="pipeline without messages"):
            job_states.send_message(what)
    job_states.request.tm.commit()
    assert client.keys() == []


def test_only_an_actor_is_sent_arguments(job_states: Any, run_marathon: Any) -> None:
    """The error says what was passed in place of an actor, in a batch, too. A message
    has its arguments already.
    """
    message = run_marathon.message(26)
    batch = job_states.batch().__enter__()
    for what in None, "run_marathon", print, JobState, message:
        match = f"^actor must be a Dramatiq actor, not {re.escape(repr(what))}\\. Send"
        for call in (
            lambda what=what: job_states.send(what),
            lambda what=what: job_states.send_with_options(what, (26,)),
            lambda what=what: job_states.find_unique(what, "x"),
            lambda what=what: batch.send(what),
        ):
            with pytest.raises(TypeError, match=match):
                call()
        if what is not message:
            for send in job_states.send_message, job_states.send_immediately:
                with pytest.raises(TypeError, match="Only messages, pipelines and gro"):
                    send(what)
    for arguments, options in ((27,), {}), ((), {"miles": 27}):
        with pytest.raises(TypeError, match="Only an actor takes arguments"):
            job_states.send_immediately(message, *arguments, **options)


# Sending immediately.


def test_send_immediately_that_the_broker_refuses_leaves_nothing(
    job_states: Any,
    redis_url: str,
    client: redis.Redis,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The caller gets the broker's error, and no record stays behind."""
    broker = broker_that_is_away(redis_url)
    run_marathon = broker.get_actor("run_marathon")
    m = [run_marathon.message(i) for i in range(3)]
    monkeypatch.setattr(dramatiq.broker, "global_broker", broker)
    for what in run_marathon, m[0], pipeline(m, broker=broker), group(m, broker=broker):
        with pytest.raises(redis.ConnectionError):
            job_states.send_immediately(what)
    stub = StubBroker()
    stub.add_middleware(JobStateMiddleware(url=redis_url))
    run: Any = actor(broker=stub, job_state=True, actor_name="run")(lambda: None)
    stub.queues.clear()
    with pytest.raises(QueueNotFound):
        job_states.send_immediately(run)
    assert client.keys() == []


def test_nothing_is_sent_while_the_store_is_away(
    redis_url: str, client: redis.Redis
) -> None:
    """Nobody could follow the job. If the store goes away before the record of a job
    that the broker refused is deleted, the broker's error is raised.
    """
    config = made_config(NOWHERE)
    broker = make_broker(redis_url, JobStateMiddleware(url=NOWHERE))
    job_states = make_request(config).job_states
    with pytest.raises(StoreUnavailable) as caught:
        job_states.send_immediately(broker.get_actor("run_marathon"), 26)
    assert caught.value.container is job_states
    assert client.keys() == []
    config = made_config(redis_url)
    job_states = make_request(config).job_states
    broker = make_broker(redis_url)
    gone = away(job_states.store)
    broker.add_middleware(Refusing(lambda message: gone.__enter__() is None))
    try:
        with pytest.raises(dramatiq.middleware.MiddlewareError):
            job_states.send_immediately(broker.get_actor("run_marathon"), 26)
    finally:
        gone.__exit__(None, None, None)
    assert len(job_states.store.list().items) == 1


def test_send_immediately_does_not_wait_for_the_transaction(
    job_states: Any, run_marathon: Any, client: redis.Redis
) -> None:
    """An abort of the transaction does not take back what was sent immediately."""
    job_state = job_states.send_immediately(run_marathon, 26)
    assert sent(client) == [26]
    job_states.request.tm.abort()
    assert job_states[job_state.uuid].status == "queued"
