"""Sending from a request: each message comes with the record of its job."""

import datetime
import uuid
from typing import Any

import dramatiq.broker
import pytest
import redis
from dramatiq import Broker, actor
from dramatiq.brokers.stub import StubBroker
from dramatiq.errors import QueueNotFound
from pyramid.config import Configurator
from pyramid.request import Request

from pyramid_jobstate import JobState, JobStateMiddleware, StoreUnavailable
from pyramid_jobstate.worker.finding import middleware_of
from pyramid_jobstate.worker.options import check_owner
from tests.webapp import (
    NOWHERE,
    RunMarathon,
    get,
    made_config,
    make_app,
    make_broker,
    make_config,
    make_request,
    mounted_root,
    queued,
)


def nobody(request: Request) -> object:
    """A jobstate.owner whose result is not a principal."""
    return {"user": request.authenticated_userid}


# Sending.


def test_actor_is_sent_with_its_record(
    config: Configurator, global_broker: Broker, client: redis.Redis
) -> None:
    """The message in the queue and the job in the store have the same id."""
    request = make_request(config, "alice")

    job_state = request.job_states.send_immediately(
        global_broker.get_actor("run_marathon"), 26, shoes="blue"
    )

    (message,) = queued(client)
    assert message.message_id == job_state.uuid
    assert message.actor_name == "run_marathon"
    assert (message.args, dict(message.kwargs)) == ((26,), {"shoes": "blue"})
    stored = request.job_states.find(job_state.uuid)
    assert stored.status == "queued"
    assert stored.owner == "alice"
    assert stored.job_params == {"miles": 26, "shoes": "blue"}


def test_returned_job_is_what_the_store_holds(
    config: Configurator, global_broker: Broker
) -> None:
    """send_immediately returns the job as the store holds it, ready to be shown."""
    request = make_request(config, "alice")

    job_state = request.job_states.send_immediately(
        global_broker.get_actor("run_marathon"), 26
    )

    assert type(job_state) is RunMarathon
    assert uuid.UUID(job_state.uuid).version == 4
    assert job_state.__name__ == job_state.uuid
    assert job_state.__parent__ is request.job_states
    assert (job_state.status, job_state.attempt) == ("queued", 0)
    assert job_state.is_working
    assert job_state.queued_at is not None
    assert job_state.queued_at.tzinfo is datetime.UTC
    assert job_state.started_at is None
    shown, stored = (
        {**state.__json__(request)["job"], "queued_at": None, "updated_at": None}
        for state in (job_state, request.job_states.find(job_state.uuid))
    )
    assert shown == stored


def test_returned_job_can_be_cancelled(
    config: Configurator, global_broker: Broker
) -> None:
    """A job can be cancelled right after it is sent, without loading it."""
    request = make_request(config, "alice")
    job_state = request.job_states.send_immediately(
        global_broker.get_actor("run_marathon"), 26
    )

    assert job_state.cancel()

    assert request.job_states.find(job_state.uuid).status == "cancelled"


def test_returned_job_takes_no_reports(
    config: Configurator, global_broker: Broker
) -> None:
    """Only the running job can report."""
    job_state = make_request(config).job_states.send_immediately(
        global_broker.get_actor("run_marathon"), 26
    )

    with pytest.raises(RuntimeError, match="Only a running job can report"):
        job_state.set_progress_metric("miles_run", 1)


def test_message_is_sent_under_its_own_id(
    config: Configurator, global_broker: Broker, client: redis.Redis
) -> None:
    """A message made earlier is sent unchanged, through the global broker."""
    message = global_broker.get_actor("run_marathon").message(26)

    job_state = make_request(config, "alice").job_states.send_immediately(message)

    assert job_state.uuid == message.message_id
    assert [m.message_id for m in queued(client)] == [message.message_id]
    assert "job_owner" not in message.options


def test_message_goes_through_the_actors_broker(
    config: Configurator, monkeypatch: pytest.MonkeyPatch, redis_url: str
) -> None:
    """An actor is sent through its own broker, whatever the global one is."""
    monkeypatch.setattr(dramatiq.broker, "global_broker", None)
    broker = make_broker(redis_url)

    make_request(config).job_states.send_immediately(
        broker.get_actor("run_marathon"), 26
    )

    assert dramatiq.broker.global_broker is None


def test_job_is_confirmed_once_it_is_sent(
    config: Configurator, global_broker: Broker, client: redis.Redis
) -> None:
    """A sent job that waits in its queue for long stays queued and never stalls."""
    job_states = make_request(config).job_states
    job_state = job_states.send_immediately(global_broker.get_actor("run_marathon"), 26)

    client.hset(f"jobstate:{job_state.uuid}", "queued", "1")

    assert job_states.find(job_state.uuid).status == "queued"


def test_job_that_the_broker_did_not_take_leaves_nothing(
    config: Configurator, redis_url: str, client: redis.Redis
) -> None:
    """A broker's refusal is raised to the caller, and no record stays behind."""
    broker = StubBroker()
    broker.add_middleware(JobStateMiddleware(url=redis_url))

    @actor(broker=broker, job_state=True)
    def run() -> None:
        pass

    broker.queues.clear()

    with pytest.raises(QueueNotFound):
        make_request(config, "alice").job_states.send_immediately(run)

    assert client.keys() == []


# The owner.


def test_job_belongs_to_who_sent_it(
    config: Configurator, global_broker: Broker, client: redis.Redis
) -> None:
    """The sender owns the job. The message carries the owner to the worker."""
    run_marathon = global_broker.get_actor("run_marathon")

    job_state = make_request(config, "alice").job_states.send_immediately(
        run_marathon, 26
    )

    assert job_state.owner == "alice"
    assert [m.options["job_owner"] for m in queued(client)] == ["alice"]


def test_job_of_an_anonymous_request_has_no_owner(
    config: Configurator, global_broker: Broker, client: redis.Redis
) -> None:
    """Jobs of anonymous requests have no owner."""
    job_states = make_request(config).job_states

    job_state = job_states.send_immediately(global_broker.get_actor("run_marathon"), 26)

    assert job_state.owner is None
    assert job_states.find(job_state.uuid).owner is None
    assert ["job_owner" in m.options for m in queued(client)] == [False]


@pytest.mark.parametrize("owner", ["bob", 7, 1.5, None])
def test_message_may_name_another_owner(
    config: Configurator, global_broker: Broker, owner: object
) -> None:
    """The option job_owner overrides the sender, even if it is None."""
    message = global_broker.get_actor("run_marathon").message_with_options(
        args=(26,), job_owner=owner
    )
    job_states = make_request(config, "alice").job_states

    job_state = job_states.send_immediately(message)

    assert job_state.owner == owner
    assert job_states.find(job_state.uuid).owner == owner


@pytest.mark.parametrize("owner", [["alice"], True, False, b"alice", {"id": 1}])
def test_owner_that_json_would_change_is_refused(
    config: Configurator, global_broker: Broker, client: redis.Redis, owner: object
) -> None:
    """An owner that is not a string or number is refused, and nothing is sent."""
    message = global_broker.get_actor("run_marathon").message_with_options(
        args=(26,), job_owner=owner
    )

    with pytest.raises(
        TypeError,
        match=r"a string or a finite number, not .*jobstate\.owner",
    ):
        make_request(config).job_states.send_immediately(message)

    assert client.keys() == []


def test_owner_function_must_return_a_principal(
    redis_url: str, global_broker: Broker, client: redis.Redis
) -> None:
    """The function of jobstate.owner must return a string or a number."""
    settings = {"jobstate.owner": f"{__name__}.nobody"}
    config = made_config(redis_url, settings=settings)

    with pytest.raises(TypeError, match="The owner of a job must be"):
        make_request(config, "alice").job_states.send_immediately(
            global_broker.get_actor("run_marathon"), 26
        )

    assert client.keys() == []


@pytest.mark.parametrize("owner", ["alice", "", 5, 0, 1.5, None])
def test_check_owner_returns_the_owner(owner: Any) -> None:
    """Strings, numbers and None are valid owners."""
    assert check_owner(owner) is owner


def test_sender_sees_the_job_at_once(
    redis_url: str, global_broker: Broker, client: redis.Redis
) -> None:
    """A job sent through a mounted container is found below that container."""
    config = make_config(redis_url, root_factory=mounted_root)
    app = make_app(config)
    request = make_request(config, "alice")
    jobs = mounted_root(request)["jobs"]

    job_state = jobs.send_immediately(global_broker.get_actor("run_marathon"), 26)

    assert request.resource_path(job_state) == f"/jobs/{job_state.uuid}/"
    assert get(app, f"/jobs/{job_state.uuid}", "alice").status_code == 200
    assert get(app, f"/jobs/{job_state.uuid}", "bob").status_code == 403


# What cannot be sent.


def test_untracked_actor_is_refused(
    config: Configurator, global_broker: Broker, client: redis.Redis
) -> None:
    """An actor without a job state is refused; the error says what to declare."""
    job_states = make_request(config).job_states
    sweep = global_broker.get_actor("sweep")

    for what in sweep, sweep.message():
        with pytest.raises(TypeError, match=r"'sweep' is not tracked.*job_state=True"):
            job_states.send_immediately(what)

    assert client.keys() == []


@pytest.mark.parametrize("what", [None, "run_marathon", print, JobState])
def test_what_is_not_an_actor_is_refused(
    config: Configurator, global_broker: Broker, what: Any
) -> None:
    """Anything but an actor or a message is refused."""
    with pytest.raises(TypeError, match="not "):
        make_request(config).job_states.send_immediately(what)


def test_message_takes_no_arguments(
    config: Configurator, global_broker: Broker
) -> None:
    """A message already has its arguments, so none are accepted."""
    message = global_broker.get_actor("run_marathon").message(26)
    job_states = make_request(config).job_states

    with pytest.raises(TypeError):
        job_states.send_immediately(message, 27)
    with pytest.raises(TypeError):
        job_states.send_immediately(message, miles=27)


@pytest.mark.parametrize(
    "message_id", ["marathon-1", "", "6F1C2E7A-3B5D-4F60-8A9B-0C1D2E3F4A5B"]
)
def test_message_whose_id_is_not_a_uuid_is_refused(
    config: Configurator, global_broker: Broker, client: redis.Redis, message_id: str
) -> None:
    """A message whose id is not a uuid is refused: no worker would track it, and its
    job would wait forever.
    """
    message = (
        global_broker.get_actor("run_marathon").message(26).copy(message_id=message_id)
    )

    with pytest.raises(ValueError, match="whose id is not a uuid"):
        make_request(config).job_states.send_immediately(message)

    assert client.keys() == []


def test_broker_without_the_middleware_is_refused() -> None:
    """A broker without the middleware is refused: its jobs cannot be followed."""
    broker = StubBroker()

    with pytest.raises(TypeError, match="has no JobStateMiddleware"):
        middleware_of(broker)


def test_middleware_of_finds_it_among_others() -> None:
    """The middleware is found at any position."""
    broker = StubBroker()
    broker.add_middleware(middleware := JobStateMiddleware(url=NOWHERE))

    assert middleware_of(broker) is middleware


def test_nothing_is_sent_while_the_store_is_away(
    redis_url: str, client: redis.Redis
) -> None:
    """While the store is away, nothing is sent: nobody could follow the job."""
    config = made_config(NOWHERE)
    broker = make_broker(redis_url, JobStateMiddleware(url=NOWHERE))
    job_states = make_request(config).job_states

    with pytest.raises(StoreUnavailable) as caught:
        job_states.send_immediately(broker.get_actor("run_marathon"), 26)

    assert caught.value.container is job_states
    assert client.keys() == []


def test_arguments_that_cannot_be_encoded_fail_in_the_call(
    config: Configurator, global_broker: Broker, client: redis.Redis
) -> None:
    """Arguments that cannot be encoded raise an error in the call."""
    with pytest.raises(TypeError):
        make_request(config).job_states.send_immediately(
            global_broker.get_actor("run_marathon"), object()
        )

    assert queued(client) == []
