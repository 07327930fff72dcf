"""The setting jobstate.broker: the broker is made, given its actors, and released."""

import concurrent.futures
import logging
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
from pyramid.config import Configurator
from pyramid.exceptions import ConfigurationError
from webtest import TestApp

from pyramid_jobstate import JobStateMiddleware, RequestMiddleware
from pyramid_jobstate.errors import ActorError
from pyramid_jobstate.testing import release_broker
from tests.jobs import RunMarathon, job_actor, load, store_of, wait_until, working
from tests.webapp import NOWHERE, made_config, make_config, make_request

pytestmark = pytest.mark.usefixtures("no_broker")

AMQP = "amqp://127.0.0.1:1/"

#: What the setting adds to a broker.
OURS = [JobStateMiddleware, RequestMiddleware]

#: A broker of an application's own. It has no middleware of ours.
own = RedisBroker(url=NOWHERE)


def make(settings: dict[str, Any]) -> Broker:
    """A function that makes the broker from the application's settings."""
    return RedisBroker(url=settings["queue.url"])


def included(broker: Any = NOWHERE, **settings: Any) -> Configurator:
    """Return the configurator of an application that has included the package."""
    given = {f"jobstate.{name}": value for name, value in settings.items()}
    given |= {"jobstate.broker": broker, "queue.url": NOWHERE}
    config = make_config(None, settings=given)
    config.include("pyramid_jobstate")
    return config


def made(broker: Any = NOWHERE, **settings: Any) -> Configurator:
    """Return the configurator of a finished application with the setting."""
    config = included(broker, **settings)
    config.make_wsgi_app()
    return config


def use(broker: Any, **settings: Any) -> Any:
    """Include the package with the setting, and return the broker of the process."""
    included(broker, **settings)
    return dramatiq.broker.global_broker


def refusal(broker: Any, **settings: Any) -> str:
    """Return the error of a setting that is refused."""
    with pytest.raises(ConfigurationError) as caught:
        use(broker, **settings)
    return str(caught.value)


def web_store(config: Configurator) -> Any:
    """Return the store of the web side."""
    return make_request(config).job_states.store


def declare(name: str = "run", **options: Any) -> Any:
    """Declare an actor, on the default broker if Dramatiq has none."""

    def run(miles: int, *, job_state: RunMarathon) -> Any:
        job_state.set_progress_metric("miles_run", miles)
        return type(job_state)

    return job_actor(actor_name=name, **options)(run)


def is_tracked(actor: Any) -> bool:
    """Return whether an actor is handed a RunMarathon."""
    return actor(1) is RunMarathon


def kinds(broker: Any) -> list[type[Middleware]]:
    return [type(each) for each in broker.middleware]


# What is made.


@pytest.mark.promise("broker-of-the-settings")
def test_setting_makes_a_global_broker():
    """The broker has Dramatiq's middleware and ours, one store and no connection."""
    b = {"redis_url": "redis://b:3/4"}
    cases: list[tuple[Any, dict[str, str], type[Broker], str]] = [
        ("  rediss://a:1/2\n", {}, RedisBroker, "a:1/2"),
        ("unix:///a.sock?db=2", {}, RedisBroker, "/a.sock?db=2"),
        ("redis://a:1/2", b, RedisBroker, "b:3/4"),
        ("amqps://user:pass%40word@a:1/%2f?heartbeat=5", b, RabbitmqBroker, "b:3/4"),
        ("stub", b, StubBroker, "b:3/4"),
        (f"{__name__}.make", {}, RedisBroker, "127.0.0.1:1/0"),
        (f" {__name__}:make ", {}, RedisBroker, "127.0.0.1:1/0"),
        (make, {}, RedisBroker, "127.0.0.1:1/0"),
    ]
    for value, settings, cls, place in cases:
        config = included(value, **settings)
        broker: Any = dramatiq.broker.global_broker
        assert type(broker) is cls, value
        assert kinds(broker) == [*default_middleware, *OURS], value
        TestApp(config.make_wsgi_app())
        assert dramatiq.broker.global_broker is broker
        assert web_store(config) is store_of(broker), value
        assert repr(web_store(config)) == f"<JobStore 'jobstate' at {place}>"
        assert not getattr(broker, "connections", None)
        assert web_store(config).active_expire_in == 8 * 24 * 3600, value
        release_broker()
    # Several URLs name the nodes of a cluster.
    broker = use("amqp://a:1/v;amqp://b:2/w", redis_url=NOWHERE)
    places = [(p.host, p.port, p.virtual_host) for p in broker.parameters]
    assert places == [("a", 1, "v"), ("b", 2, "w")]


def test_settings_are_those_of_the_middlewares_store():
    """The namespace and the durations reach both sides, also with a given Broker."""
    durations = {"expire_in": "1h", "active_expire_in": "2h", "stalled_after": "3s"}
    for value in NOWHERE, f"{__name__}.own", own:
        config = made(value, namespace="shop", **durations)
        broker = dramatiq.get_broker()
        store = store_of(broker)
        assert value == NOWHERE or broker is own
        assert web_store(config) is store
        assert (store.namespace, store.stalled_after) == ("shop", 3)
        assert (store.expire_in, store.active_expire_in) == (3600, 7200)
        release_broker()


def test_broker_may_be_the_applications_own():
    """A Broker gets the middleware that it lacks, whether it is global or not."""
    for is_global in False, True:
        release_broker()
        own = RedisBroker(url=NOWHERE)
        early = declare(broker=own)
        if is_global:
            dramatiq.set_broker(own)
        assert use(own) is own
        assert is_tracked(early)
        assert kinds(own)[-2:] == OURS


def test_broker_may_have_middleware_of_its_own(caplog):
    """It keeps ours. No setting reaches its store, which is compared."""

    class Own(RequestMiddleware):
        """The application's own."""

    own = RedisBroker(url=NOWHERE)
    own.add_middleware(JobStateMiddleware(namespace="own"))
    own.add_middleware(Own())
    use(own, redis_url=NOWHERE, namespace="own")
    assert kinds(own)[-2:] == [JobStateMiddleware, Own]
    assert store_of(own).namespace == "own"
    assert not caplog.records
    release_broker()
    with pytest.raises(ConfigurationError, match="in another namespace"):
        made(own, namespace="shop")


def test_function_makes_the_broker():
    """The function may import actors, which move, and set the global broker."""
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


def test_function_that_goes_wrong_leaves_nothing_behind():
    """What it raises arrives as it is. It must set no broker but the one it returns."""
    early = declare()
    default = early.broker

    def fail(settings: Any) -> Broker:
        raise KeyError("redis.host")

    with pytest.raises(KeyError, match=r"redis\.host"):
        use(fail)
    assert dramatiq.broker.global_broker is default is early.broker

    def set_another(settings: Any) -> Broker:
        dramatiq.set_broker(StubBroker())
        return RedisBroker(url=NOWHERE)

    assert "has set a broker of its own" in refusal(set_another)


def test_application_without_the_setting_runs_no_jobs_of_others(redis_url):
    """The broker's jobs still belong to the application that has the setting."""
    registries = []

    @dramatiq.actor(max_retries=0)
    def run(*, request: Any, job_state: RunMarathon) -> None:
        registries.append(request.registry)

    config = made(redis_url)
    reading = made_config(redis_url)
    broker = dramatiq.get_broker()
    with working(broker):
        wait_until(broker, broker.get_actor("run").send(), "success")
    # Registries are dicts, and all equal.
    (found,) = registries
    assert found is config.registry is not reading.registry


# What is refused.

#: What is wrong with a value.
WRONG: list[tuple[Any, str]] = [
    ("  \n", "= '' is empty"),
    # Redis
    ("redis://user:hunter2@host:port/0", "its host or its port is invalid"),
    ("redis://:hunter2@host:65536/0", "its host or its port is invalid"),
    ("redis://:hunter2@host:0/0", "Its port is 0."),
    ("redis://:hunter2@host/abc", "its path is not a database number"),
    ("redis://host/hunter2", "its path is not a database number"),
    ("redis://host?password=hunter2&nope=1", "an option after its ? is unknown"),
    ("redis://:hunter2@h/0?decode_responses=1", "Remove decode_responses from it"),
    ("redis://:12/hunter2@host/0", "a # or @ follows its host"),
    ("redis://:hunter2#@host/0", "a # or @ follows its host"),
    ("rediss://:[hunter2@host/0", "a [ or ] precedes its host"),
    ("unix://", "has no path to a socket"),
    ("unix://user:hunter2@host/x.sock?nope=1", "an option after its ? is unknown"),
    ("redis+cluster://:hunter2@host", "Name the Cluster in jobstate.redis_url"),
    # RabbitMQ
    ("amqp://host:x", "'amqp://host:…' is not a URL such as amqp://user:password@"),
    ("amqp://user:hunter2@host:x", "'amqp://…@host:…' is not a URL such as"),
    ("amqp://user:12?hunter2@host/", "'amqp:…' is not a URL such as"),
    ("amqp://:hunter2@a;b", "'amqp:…' is not a URL such as"),
    ("amqp://:hunter2@ho\nst/", "'amqp:…' is not a URL such as"),
    # Others
    ("redis:/:hunter2@h", "= 'redis:…' is invalid. Use a URL that begins with redis:"),
    ("1://host", "= '…' is invalid"),
    ("http://:hunter2@host:80/path?a=b", "'http://…@host:80/path?…'"),
    ("user:hunter2@host:/0", "'user:…' is invalid"),
    ("user:hunter2@host/0", "= '…' is neither a URL, nor 'stub', nor a dotted name"),
    # No URLs
    ("nowhere.broker", "= 'nowhere.broker' cannot be imported: No module named"),
    (f"{__name__}.nothing", "cannot be imported"),
    (__name__, "is neither a broker nor a function"),
    ("dramatiq.brokers.stub.StubBroker", "' is a class. Name a broker, or a function"),
    ("asyncio.sleep", "'asyncio.sleep' is async. Name a broker, or a"),
    (lambda settings: "redis://:hunter2@h", "must return a Dramatiq broker, but retur"),
    (lambda settings: "redis://:hunter2@h", "of the type str."),
    (["redis://:hunter2@h"], "= 'list' is neither a broker nor a function"),
]


def test_bad_value_stops_the_include(caplog, capfd):
    """The error says what is wrong; no part of a URL that may be a password shows."""
    caplog.set_level(logging.DEBUG)
    for value, text in WRONG:
        with pytest.raises(ConfigurationError) as caught:
            use(value, redis_url=NOWHERE)
        said = str(caught.value)
        assert "jobstate.broker" in said and text in said, value
        error: BaseException | None = caught.value
        while error is not None:
            assert "ter2" not in str(error) + repr(error), value
            error = error.__cause__ or error.__context__
        assert dramatiq.broker.global_broker is None
    config = made("redis://:hunter2@127.0.0.1:1/0")
    shown = [repr(items) for name, items in config.introspector.categorized()]
    assert "hunter2" not in "".join([*shown, caplog.text, *capfd.readouterr()])


def test_broker_without_a_redis_server_needs_redis_url():
    """Only a RedisBroker has a server that can keep the states."""
    for value in AMQP, lambda settings: StubBroker(), StubBroker():
        said = refusal(value)
        assert "needs jobstate.redis_url" in said and "does not keep them" in said
        assert dramatiq.broker.global_broker is None


def test_broker_of_the_applications_own_is_refused():
    """The setting is refused if the application sets a broker before or after."""
    makers: list[Callable[[], Broker]] = [
        StubBroker,
        lambda: RedisBroker(url=NOWHERE),
        lambda: RabbitmqBroker(host="other"),
        lambda: RabbitmqBroker(url="amqp://user:word@127.0.0.1"),
        lambda: RabbitmqBroker(host="127.0.0.1", middleware=[]),
    ]
    for maker in makers:
        mine = maker()
        dramatiq.set_broker(mine)
        said = refusal(NOWHERE)
        assert "setting jobstate.broker cannot be used" in said
        assert "has set a broker of its own" in said
        assert dramatiq.broker.global_broker is mine
    dramatiq.broker.global_broker = None
    config = included()
    made_broker = dramatiq.get_broker()
    dramatiq.set_broker(mine)
    with pytest.raises(ConfigurationError, match="not the broker that was made for"):
        config.make_wsgi_app()
    dramatiq.set_broker(made_broker)


def test_setting_that_changes_after_the_include_is_refused():
    """The broker is made at the include."""
    for name, value in (
        ("broker", "stub"),
        ("broker", None),
        ("redis_url", "redis://127.0.0.1:2"),
        ("expire_in", "1h"),
    ):
        config = included()
        config.registry.settings.pop(f"jobstate.{name}", None)
        if value is not None:
            config.registry.settings[f"jobstate.{name}"] = value
        text = rf"jobstate\.{name} must be set before pyramid_jobstate is included"
        with pytest.raises(ConfigurationError, match=text):
            config.make_wsgi_app()


# Actors that were declared before.


@pytest.mark.promise("broker-of-the-settings")
def test_actors_declared_earlier_move():
    """Earlier actors move to our broker, tracked, and their names are taken there."""
    early = [declare("a"), declare("b", queue_name="mail", max_retries=0)]
    default = dramatiq.get_broker()
    assert isinstance(default, RabbitmqBroker)
    broker = use(NOWHERE)
    for actor in early:
        assert actor.broker is broker
        assert broker.get_actor(actor.actor_name) is actor and is_tracked(actor)
    assert broker.get_declared_queues() == {"default", "mail"}
    assert not default.actors
    with pytest.raises(ValueError, match="already registered"):
        declare("a")
    declare("a", broker=default)


@pytest.mark.parametrize("own", [False, True])
def test_wrong_actor_keeps_all_from_moving(own):
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


def test_name_of_an_actor_on_both_brokers_is_refused():
    """An actor's name cannot be on both the application's and the default broker."""
    own = RedisBroker(url=NOWHERE)
    first, early = declare("first", broker=own), declare("first")
    assert "both have an actor named 'first'" in refusal(own)
    assert own.actors == {"first": first}
    assert early.broker is dramatiq.broker.global_broker is not own


def test_default_broker_without_pika_gives_its_actors(redis_url, monkeypatch):
    """Its actors move, too, unless it has connected: they may have sent messages."""
    monkeypatch.setitem(sys.modules, "dramatiq.brokers.rabbitmq", None)
    run = declare()
    default: Any = run.broker
    assert type(default) is RedisBroker
    assert "needs the package pika: pip install" in refusal(AMQP, redis_url=NOWHERE)
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


def test_release_lets_the_next_application_have_another_broker():
    """Earlier and later actors follow, and nothing stays around their functions."""
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
    two = use("stub", redis_url=NOWHERE)
    actors.append(declare("d"))
    assert [actor.broker for actor in actors] == [two] * 5
    assert all(map(is_tracked, actors))


def test_release_spares_a_broker_of_the_applications_own():
    """An application's own broker stays; a named one loses our middleware."""
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


# Several applications.


def test_applications_share_the_broker_of_one_setting():
    """They share the store, too, if defaults are written out. Others are refused."""
    defaults = {"namespace": "jobstate", "expire_in": "1d", "stalled_after": 15}
    for value in NOWHERE, "stub", f"{__name__}.make", f"{__name__}.own":
        one = made(value)
        broker = dramatiq.get_broker()
        middleware = list(broker.middleware)
        two = made(value, **defaults)
        assert dramatiq.get_broker() is broker
        assert broker.middleware == middleware
        assert web_store(one) is web_store(two)
        release_broker()
    others: list[dict[str, Any]] = [
        {"broker": "redis://127.0.0.1:1/5"},
        {"broker": f"{__name__}.make"},
        {"redis_url": NOWHERE},
        {"stalled_after": "1h"},
    ]
    broker = use(NOWHERE)
    for other in others:
        with pytest.raises(ConfigurationError, match=r"as asgi\.py.*release_broker"):
            included(**other)
        assert dramatiq.get_broker() is broker


def test_stub_starts_its_server_at_the_first_command():
    """Threads that send the first jobs share a server, which ends with the broker."""
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
