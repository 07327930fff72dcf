"""Sending through other brokers, whose workers may write to another store."""

from collections.abc import Callable
from typing import Any

import dramatiq.broker
import pytest
import redis
from dramatiq import Broker, Message, actor, group, pipeline
from dramatiq.brokers.redis import RedisBroker
from dramatiq.brokers.stub import StubBroker
from dramatiq.rate_limits.backends import StubBackend

from pyramid_jobstate import JobStateMiddleware, JobStore
from tests.webapp import NOWHERE, queued

pytestmark = pytest.mark.usefixtures("global_broker")


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


def test_actor_whose_states_are_elsewhere_is_refused(
    job_states: Any, redis_url: str, client: redis.Redis
) -> None:
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


def test_broker_without_the_middleware_is_refused(
    job_states: Any, set_broker: Callable[[Any], None], other: RedisBroker
) -> None:
    """Jobs need a broker with our middleware. The package does not make one up."""
    set_broker(StubBroker(middleware=[]))
    with pytest.raises(TypeError, match="has no JobStateMiddleware"):
        job_states.send_message(group([]))
    set_broker(None)
    with pytest.raises(TypeError, match=r"dramatiq\.set_broker"):
        job_states.send_message(label(other))
    assert dramatiq.broker.global_broker is None


def test_broker_can_be_named(
    job_states: Any, other: RedisBroker, client: redis.Redis
) -> None:
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


def test_actor_goes_through_its_own_broker(job_states: Any, other: RedisBroker) -> None:
    """An actor's own broker is used, and its argument `broker` is an ordinary one."""

    @actor(broker=other, job_state=True)
    def insure(*, broker: str) -> None:
        pass

    job_state = job_states.send_immediately(insure, broker="Lloyd's")
    assert job_state.job_params == {"broker": "Lloyd's"}
    assert [m.message_id for m in queued(other.client)] == [job_state.uuid]


def test_two_brokers_cannot_be_mixed(
    job_states: Any, global_broker: Broker, other: RedisBroker, client: redis.Redis
) -> None:
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
