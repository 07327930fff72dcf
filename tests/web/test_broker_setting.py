"""The setting jobstate.broker, as the include reads it, and jobstate.base_url."""

import logging
from collections.abc import Iterator
from typing import Any

import dramatiq
import dramatiq.broker
import pytest
from dramatiq import Broker
from dramatiq.brokers.redis import RedisBroker
from dramatiq.brokers.stub import StubBroker
from dramatiq.middleware import default_middleware
from pyramid.config import Configurator
from pyramid.exceptions import ConfigurationError
from webtest import TestApp

from pyramid_jobstate import JobStateMiddleware, JobStore, RequestMiddleware, testing
from pyramid_jobstate.testing import release_broker
from tests.jobs import RunMarathon, store_of, wait_until, working
from tests.webapp import NOWHERE, get, make_app, make_config, make_request

pytestmark = pytest.mark.usefixtures("no_broker")

#: A broker of an application's own. It has no middleware of ours.
own = RedisBroker(url=NOWHERE)


def make(settings: dict[str, Any]) -> Broker:
    """A function that makes the broker from the application's settings."""
    return RedisBroker(url=settings["queue.url"])


def make_nothing(settings: dict[str, Any]) -> None:
    """A function that makes no broker."""


async def make_later(settings: dict[str, Any]) -> Broker:
    """A function that cannot be used, since it is async."""
    return own


class OwnBroker(StubBroker):
    """A class of brokers."""


def configured(broker: Any = NOWHERE, **settings: Any) -> Configurator:
    """Return the configurator of an application with the setting."""
    given = {f"jobstate.{name}": value for name, value in settings.items()}
    given |= {"jobstate.broker": broker, "queue.url": NOWHERE}
    return make_config(None, settings=given)


def made(broker: Any = NOWHERE, **settings: Any) -> Configurator:
    """Return the configurator of a finished application with the setting."""
    config = configured(broker, **settings)
    make_app(config)
    return config


def web_store(config: Configurator) -> JobStore:
    """Return the store of the web side."""
    store: JobStore = make_request(config).job_states.store
    return store


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and those that it was raised from."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


# What the include does.


def test_include_makes_the_broker() -> None:
    """The broker is there at once, with Dramatiq's middleware and both of ours, and
    nothing has been connected to. Both sides have one store.
    """
    cases: list[tuple[Any, dict[str, str]]] = [
        (f"  {NOWHERE}\n", {}),
        ("amqp://127.0.0.1:1", {"redis_url": NOWHERE}),
        ("stub", {"redis_url": NOWHERE}),
        (f"{__name__}.make", {}),
        (f" {__name__}:make ", {}),
        (make, {}),
    ]
    for value, settings in cases:
        config = configured(value, **settings)
        config.include("pyramid_jobstate")
        broker = dramatiq.broker.global_broker
        assert broker is not None
        kinds = [*default_middleware, JobStateMiddleware, RequestMiddleware]
        assert [type(m) for m in broker.middleware] == kinds, value
        TestApp(config.make_wsgi_app())
        assert dramatiq.broker.global_broker is broker
        assert web_store(config) is store_of(broker), value
        assert "at 127.0.0.1:1/0>" in repr(web_store(config))
        assert web_store(config).active_expire_in == 8 * 24 * 3600, value
        release_broker()


def test_settings_are_those_of_the_middlewares_store() -> None:
    """The namespace and the durations reach both sides, also if the setting names a
    Broker.
    """
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


def test_broker_with_a_middleware_of_its_own_is_compared(store: JobStore) -> None:
    """The settings do not reach a JobStateMiddleware that the broker brings along, so
    the sides are compared as without the setting, and so is a store from the directive.
    """
    broker = RedisBroker(url=NOWHERE)
    broker.add_middleware(JobStateMiddleware(namespace="own"))
    assert web_store(made(broker)).namespace == "own"
    release_broker()
    with pytest.raises(ConfigurationError, match="in another namespace"):
        made(broker, namespace="shop")
    release_broker()
    config = configured("redis://127.0.0.1:1/9")
    config.include("pyramid_jobstate")
    config.set_job_store(store)
    with pytest.raises(ConfigurationError, match="on another port"):
        config.make_wsgi_app()


def test_jobs_run_with_a_stub_broker() -> None:
    """With `jobstate.broker = stub`, a job is sent, runs and is shown, although the
    application has no server and its actor was declared before the include.
    """

    @dramatiq.actor
    def run(miles: int, *, request: Any, job_state: RunMarathon) -> None:
        job_state.set_progress_metric("path", request.path)

    config = configured("stub")
    app = make_app(config)
    broker = dramatiq.get_broker()
    request = make_request(config, "alice")
    uuid = request.job_states.send_immediately(run, 26).uuid
    with working(broker):
        wait_until(broker, dramatiq.Message("", "", (), {}, {}, uuid), "success")
    shown = get(app, f"/job_state/{uuid}", "alice").json
    assert (shown["path"], shown["job"]["params"]) == ("/", {"miles": 26})


def test_without_the_setting_brokers_are_left_alone() -> None:
    """The application sets a broker, as it always could. One that only reads jobs needs
    none.
    """
    make_app(make_config(NOWHERE))
    assert dramatiq.broker.global_broker is None
    mine = RedisBroker(url=NOWHERE)
    mine.add_middleware(JobStateMiddleware())
    dramatiq.set_broker(mine)
    config = make_config(None)
    make_app(config)
    assert dramatiq.get_broker() is mine
    assert "127.0.0.1:1/0" in repr(web_store(config))


def test_application_without_the_setting_runs_no_jobs_of_another(
    redis_url: str,
) -> None:
    """Beside an application that has the setting, one without it only reads jobs: those
    of the broker still belong to the first one.
    """
    registries = []

    @dramatiq.actor(max_retries=0)
    def run(*, request: Any, job_state: RunMarathon) -> None:
        registries.append(request.registry)

    config = made(redis_url)
    reading = make_config(redis_url)
    make_app(reading)
    broker = dramatiq.get_broker()
    with working(broker):
        wait_until(broker, broker.get_actor("run").send(), "success")
    assert registries == [config.registry]


# Bad values.


def test_bad_value_stops_the_include() -> None:
    """The error names the setting and what is wrong, and leaves no broker behind."""
    for value, text in (
        ("  \n", "= '' is empty"),
        ("redis:/x", r"= 'redis:…' is invalid\. Use a URL that begins with redis://"),
        ("localhost:6379/0", "= '…' is neither a URL, nor 'stub', nor a dotted name"),
        ("nowhere.broker", "= 'nowhere.broker' cannot be imported: No module named"),
        (f"{__name__}.nothing", "cannot be imported"),
        (__name__, "is neither a broker nor a function"),
        (f"{__name__}.OwnBroker", "OwnBroker' is a class. Name a broker, or a funct"),
        (f"{__name__}.make_later", "make_later' is async. Name a broker, or a"),
        (f"{__name__}.make_nothing", "must return a Dramatiq broker.*type NoneType"),
        (["redis://:hush@h"], "= 'list' is neither a broker nor a function"),
    ):
        with pytest.raises(ConfigurationError, match=text) as caught:
            configured(value).include("pyramid_jobstate")
        error = str(caught.value)
        assert "jobstate.broker" in error and "hush" not in error
        assert dramatiq.broker.global_broker is None
    # What the application's function raises has its own traceback.
    with pytest.raises(KeyError, match=r"queue\.url"):
        make_config(None, settings={"jobstate.broker": make}).include(
            "pyramid_jobstate"
        )
    assert dramatiq.broker.global_broker is None


def test_password_stays_out_of_errors(caplog: pytest.LogCaptureFixture) -> None:
    """No error, none that it was raised from, and no log shows a password. That of a
    good URL is not shown either.
    """
    caplog.set_level(logging.DEBUG)
    for url in (
        "redis://user:hush@localhost:x/0",
        "redis://localhost/0?password=hush&nope=1",
        "redis://:hush#@localhost/0",
        "redis:/:hush@localhost",
        "amqp://user:hush@localhost:x",
        "sqs://user:hush@localhost",
        "user:hush@localhost/0",
    ):
        with pytest.raises(ConfigurationError) as caught:
            configured(url).include("pyramid_jobstate")
        shown = [str(error) + repr(error) for error in causes(caught.value)]
        assert "hush" not in "".join(shown) + caplog.text, url
    config = made("redis://:hush@127.0.0.1:1/0")
    shown = [repr(items) for name, items in config.introspector.categorized()]
    assert "hush" not in "".join(shown) + caplog.text


# Brokers and settings that change around the include.


def test_application_must_not_set_a_broker_too() -> None:
    """A broker that it sets before the include, or after, is refused."""
    mine = StubBroker()
    dramatiq.set_broker(mine)
    match = r"setting jobstate\.broker cannot be used.*of its own"
    with pytest.raises(ConfigurationError, match=match):
        configured().include("pyramid_jobstate")
    dramatiq.broker.global_broker = None
    config = configured()
    config.include("pyramid_jobstate")
    made_broker = dramatiq.get_broker()
    dramatiq.set_broker(mine)
    with pytest.raises(ConfigurationError, match="not the broker that was made for"):
        config.make_wsgi_app()
    dramatiq.set_broker(made_broker)


def test_setting_that_changes_after_the_include_is_refused() -> None:
    """The broker is made at the include, with the settings as they were. The others are
    read at the commit, as ever.
    """
    for name, value in (
        ("broker", "stub"),
        ("broker", None),
        ("redis_url", "redis://127.0.0.1:2"),
        ("expire_in", "1h"),
    ):
        config = configured()
        config.include("pyramid_jobstate")
        config.registry.settings.pop(f"jobstate.{name}", None)
        if value is not None:
            config.registry.settings[f"jobstate.{name}"] = value
        text = rf"jobstate\.{name} must be set before pyramid_jobstate is included"
        with pytest.raises(ConfigurationError, match=text):
            config.make_wsgi_app()
    config = configured()
    config.include("pyramid_jobstate")
    config.add_settings({"jobstate.base_url": "https://example.com/shop/"})
    config.make_wsgi_app()


# Several applications.


def test_applications_of_one_setting_share_the_broker() -> None:
    """They have one broker and one store, and it makes no difference whether a default
    is written out, or how.
    """
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


def test_application_of_another_setting_is_refused() -> None:
    """It would send its jobs to the first one's server. A test suite releases the
    broker before.
    """
    others: list[dict[str, Any]] = [
        {"broker": "redis://127.0.0.1:1/5"},
        {"broker": f"{__name__}.make"},
        {"redis_url": NOWHERE},
        {"stalled_after": "1h"},
    ]
    configured().include("pyramid_jobstate")
    broker = dramatiq.get_broker()
    for other in others:
        with pytest.raises(ConfigurationError, match=r"testing\.release_broker"):
            configured(**other).include("pyramid_jobstate")
        assert dramatiq.get_broker() is broker
    release_broker()
    made(**others[0])
    assert dramatiq.get_broker() is not broker


def test_application_with_an_outbox_needs_no_server() -> None:
    """With pyramid_jobstate.testing, stores are neither compared nor written: the
    server of a stub does not start.
    """

    @dramatiq.actor
    def run(miles: int, *, job_state: RunMarathon) -> None: ...

    config = configured("stub")
    config.include("pyramid_jobstate.testing")
    make_app(config)
    make_request(config, "alice").job_states.send_immediately(run, 26)
    assert len(testing.outbox(config.registry)) == 1
    client: Any = web_store(config).client
    port = client.connection_pool.connection_kwargs["port"]
    assert port == 0, "the server has started"


# The base URL.


def test_bad_base_url_stops_the_start() -> None:
    """Jobs could not make URLs with anything else. A login is refused, and its password
    not repeated.
    """
    for value in (
        " ",
        "example.com/shop",
        "ftp://example.com",
        "https:///shop",
        "https://example.com:99999",
        "https://user:hush@example.com",
        "https://example.com/ä",
        "https://example.com?a=b",
        "https://example.com\n/",
    ):
        match = r"jobstate\.base_url = .* is not a URL"
        with pytest.raises(ConfigurationError, match=match) as caught:
            made(base_url=value)
        assert "hush" not in str(caught.value)
