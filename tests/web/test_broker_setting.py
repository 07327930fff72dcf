"""The setting jobstate.broker, as the include reads it, and jobstate.base_url."""

import importlib
import logging
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dramatiq
import dramatiq.broker
import pytest
from dramatiq import Broker
from dramatiq.brokers.redis import RedisBroker
from dramatiq.brokers.stub import StubBroker
from dramatiq.middleware import Middleware, default_middleware
from pyramid.config import Configurator
from pyramid.exceptions import ConfigurationError
from webtest import TestApp

from pyramid_jobstate import JobStateMiddleware, JobStore, RequestMiddleware, testing
from pyramid_jobstate.errors import ActorError
from pyramid_jobstate.testing import release_broker
from tests.jobs import RunMarathon, store_of, wait_until, working
from tests.webapp import NOWHERE, get, make_app, make_config, make_request, take_steps

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


class Maker:
    """An object that makes a broker when it is called."""

    def __call__(self, settings: dict[str, Any]) -> Broker:
        return make(settings)


maker = Maker()
number = 5


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


def declare_run() -> Any:
    """Declare a tracked actor on the global broker."""

    @dramatiq.actor
    def run(miles: int, *, job_state: RunMarathon) -> None:
        job_state.set_progress_metric("miles_run", miles)

    return run


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and those that it was raised from."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


# What the include does.


def test_include_makes_the_broker(subtests: pytest.Subtests) -> None:
    """The broker is there at once, with Dramatiq's middleware and both of ours, and
    nothing has been connected to. Both sides have one store.
    """
    cases: list[tuple[Any, dict[str, str]]] = [
        (f"  {NOWHERE}\n", {}),
        ("amqp://127.0.0.1:1", {"redis_url": NOWHERE}),
        (" stub ", {}),
        ("stub", {"redis_url": "redis://127.0.0.1:2/3"}),
        (f"{__name__}.make", {}),
        (f" {__name__}:make ", {}),
        (f"{__name__}.maker", {}),
        (make, {}),
        (maker, {}),
    ]
    for value, settings in cases:
        with subtests.test(msg=repr(value)):
            config = configured(value, **settings)
            config.include("pyramid_jobstate")
            broker = dramatiq.broker.global_broker
            assert broker is not None
            kinds = [*default_middleware, JobStateMiddleware, RequestMiddleware]
            assert [type(m) for m in broker.middleware] == kinds
            TestApp(config.make_wsgi_app())
            assert dramatiq.broker.global_broker is broker
            assert web_store(config) is store_of(broker)
            if "redis_url" in settings:
                place = settings["redis_url"].removeprefix("redis://")
                assert f"at {place}>" in repr(web_store(config))
            release_broker()


def test_settings_are_those_of_the_middlewares_store() -> None:
    """The namespace and the durations reach both sides, also if the setting names a
    Broker.
    """
    for value in (NOWHERE, f"{__name__}.own", own):
        config = made(
            value,
            namespace="shop",
            expire_in="1h",
            active_expire_in="2h",
            stalled_after="3s",
        )
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
    with pytest.raises(ConfigurationError, match="in another database"):
        made(broker, namespace="own", redis_url="redis://127.0.0.1:1/9")
    release_broker()
    config = configured("redis://127.0.0.1:1/9")
    config.include("pyramid_jobstate")
    config.set_job_store(store)
    with pytest.raises(ConfigurationError, match="on another port"):
        config.make_wsgi_app()


def test_actors_are_declared_after_the_include() -> None:
    """The options of our middleware, and of more that the application adds, are known
    when a scan declares the actors, and not before. Other brokers have their own.
    """

    class Priced(Middleware):
        @property
        def actor_options(self) -> set[str]:
            return {"price"}

    with pytest.raises(ValueError, match="actor options are undefined: job_state"):
        dramatiq.actor(job_state=RunMarathon)(lambda: None)
    further = StubBroker()
    config = configured()
    config.include("pyramid_jobstate")
    dramatiq.get_broker().add_middleware(Priced())
    options: Any = {"price": 5, "job_state": RunMarathon}
    actor: Any = dramatiq.actor(actor_name="priced", **options)(lambda: None)
    other: Any = dramatiq.actor(broker=further, actor_name="a")(lambda: None)
    TestApp(config.make_wsgi_app())
    assert actor.broker is dramatiq.get_broker()
    assert other.broker is further


def test_jobs_run_with_a_stub_broker() -> None:
    """With `jobstate.broker = stub`, a job is sent, runs and is shown, although the
    application has no server and its actor was declared before the include.
    """
    run = declare_run()
    config = configured("stub")
    app = make_app(config)
    broker = dramatiq.get_broker()
    request = make_request(config, "alice")
    uuid = request.job_states.send_immediately(run, 26).uuid
    with working(broker):
        wait_until(broker, dramatiq.Message("", "", (), {}, {}, uuid), "success")
    shown = get(app, f"/job_state/{uuid}", "alice").json
    assert (shown["miles_run"], shown["job"]["status"]) == (26, "success")


def test_actor_that_has_moved_is_handed_a_request_and_a_job_state() -> None:
    """An early actor gets both, and only its own parameters are those of the job,
    whatever the order of the middleware on a broker of the application's own.
    """

    @dramatiq.actor
    def run(miles: int, *, request: Any, job_state: RunMarathon) -> Any:
        return request, job_state.job_params

    fn, direct = run.fn, run
    for order in (1, -1):
        broker = RedisBroker(url=NOWHERE)
        for middleware in [JobStateMiddleware(), RequestMiddleware()][::order]:
            broker.add_middleware(middleware)
        for value in (NOWHERE, broker, NOWHERE):
            made(value)
            called: Any = direct
            assert called(26, request="given") == ("given", {"miles": 26})
            release_broker()
            assert run.fn is fn


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


def test_module_of_a_dotted_name_may_declare_actors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Actors in the module that makes the broker move there like all others."""
    (tmp_path / "early_broker.py").write_text(
        "import dramatiq\n"
        "from dramatiq.brokers.redis import RedisBroker\n"
        "@dramatiq.actor\n"
        "def early(*, job_state): return job_state.status\n"
        f"def make(settings): return RedisBroker(url={NOWHERE!r})\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    made("early_broker.make")
    early = importlib.import_module("early_broker").early
    del sys.modules["early_broker"]
    assert early.broker is dramatiq.get_broker()
    assert early() == "working"


# Bad values.


def test_bad_value_stops_the_include(subtests: pytest.Subtests) -> None:
    """The error names the setting and what is wrong, and leaves no broker behind."""
    for value, text in (
        ("  \n", "= '' is empty"),
        ("redis:/x", r"= 'redis:…' is invalid\. Use a URL that begins with redis://"),
        ("redis://localhost/abc", "is invalid.*not a database number"),
        ("redis://localhost:x", "is invalid.*port is invalid"),
        ("redis+cluster://localhost", "is invalid.*needs a single server"),
        ("http://localhost", "= 'http://localhost' is invalid"),
        ("amqp://localhost:x", "is invalid. 'amqp://localhost:…' is not"),
        ("amqp://localhost", r"needs jobstate\.redis_url"),
        ("localhost:6379/0", "= '…' is neither a URL, nor 'stub', nor a dotted name"),
        ("stub broker", "= 'stub broker' is neither a URL, nor 'stub', nor a dotted"),
        ("nowhere.broker", "= 'nowhere.broker' cannot be imported: No module named"),
        ("Stub", "= 'Stub' cannot be imported"),
        (f"{__name__}.nothing", "cannot be imported"),
        (f"{__name__}:nothing", "cannot be imported"),
        (".broker", "cannot be imported"),
        ("a..b", "cannot be imported"),
        (__name__, "is neither a broker nor a function"),
        (f"{__name__}.number", r"number' is neither a broker nor a function\. Name a"),
        (f"{__name__}.OwnBroker", "OwnBroker' is a class. Name a broker, or a funct"),
        (f"{__name__}.make_later", "make_later' is async. Name a broker, or a"),
        (f"{__name__}.make_nothing", "must return a Dramatiq broker.*type NoneType"),
        (dict, "must return a Dramatiq broker, but returned an object of the type dic"),
        (5, "= 'int' is neither a broker nor a function"),
        (b"redis://:hush@h", "= 'bytes' is neither a broker nor a function"),
        (["redis://:hush@h"], "= 'list' is neither a broker nor a function"),
        (make_later, "= 'function' is async"),
        (OwnBroker, "= 'type' is a class"),
    ):
        with subtests.test(msg=repr(value)):
            with pytest.raises(ConfigurationError) as caught:
                configured(value).include("pyramid_jobstate")
            error = str(caught.value)
            assert re.search(text, error)
            assert "jobstate.broker" in error and "hush" not in error
            assert dramatiq.broker.global_broker is None
    autocommit = Configurator(settings={"jobstate.broker": "nope:"}, autocommit=True)
    with pytest.raises(ConfigurationError, match=r"jobstate\.broker = "):
        autocommit.include("pyramid_jobstate")
    # What the application's function raises has its own traceback.
    with pytest.raises(KeyError, match=r"queue\.url"):
        make_config(None, settings={"jobstate.broker": make}).include(
            "pyramid_jobstate"
        )
    assert dramatiq.broker.global_broker is None


def test_bad_setting_of_the_store_stops_the_include(subtests: pytest.Subtests) -> None:
    """The settings of the store are read with the broker's."""
    for broker in (NOWHERE, "stub"):
        for name, value in (
            ("namespace", ""),
            ("namespace", 5),
            ("expire_in", "soon"),
            ("active_expire_in", "0"),
            ("stalled_after", "-1"),
            ("redis_url", ""),
            ("redis_url", "redis://:hush@localhost/abc"),
            ("redis_url", "http://:hush@localhost"),
            ("redis_url", "redis://:hush@localhost?nope=1"),
            ("redis_url", "redis+cluster://:hush@127.0.0.1:1"),
        ):
            with subtests.test(msg=f"{broker} {name} = {value}"):
                with pytest.raises(ConfigurationError) as caught:
                    configured(broker, **{name: value}).include("pyramid_jobstate")
                assert f"The setting jobstate.{name}" in str(caught.value)
                assert "hush" not in "".join(map(repr, causes(caught.value)))
                assert dramatiq.broker.global_broker is None


def test_password_stays_out_of_errors(
    caplog: pytest.LogCaptureFixture, subtests: pytest.Subtests
) -> None:
    """No error, none that it was raised from, and no log shows a password. That of a
    good URL is not shown either.
    """
    caplog.set_level(logging.DEBUG)
    for url in (
        "redis://user:hush@localhost:x/0",
        "redis://localhost/0?password=hush&nope=1",
        "redis://:hush#@localhost/0",
        "redis://:hush@@localhost/abc",
        "redis:/:hush@localhost",
        "amqp://user:hush#@localhost",
        "amqp://user:hush@localhost:x",
        "sqs://user:hush@localhost",
        "user:hush@localhost/0",
    ):
        with subtests.test(msg=url):
            with pytest.raises(ConfigurationError) as caught:
                configured(url).include("pyramid_jobstate")
            shown = [str(error) + repr(error) for error in causes(caught.value)]
            assert "hush" not in "".join(shown) + caplog.text
    config = made("redis://:hush@127.0.0.1:1/0")
    shown = [repr(items) for name, items in config.introspector.categorized()]
    assert "hush" not in "".join(shown) + caplog.text


def test_wrong_actor_stops_the_include(subtests: pytest.Subtests) -> None:
    """An actor that was declared earlier is refused when it moves, and none moves."""

    async def waits(*, request: Any) -> None: ...

    cases: list[tuple[Any, str]] = [
        (lambda request, miles: None, "cannot receive its request by keyword"),
        (lambda job_state, miles: None, "cannot receive its job_state by keyword"),
        (waits, "is async and cannot receive a request"),
    ]
    for fn, text in cases:
        with subtests.test(msg=text):
            dramatiq.broker.global_broker = None
            run = declare_run()
            default, before = run.broker, run.fn
            dramatiq.actor(actor_name="wrong")(fn)
            with pytest.raises(ActorError, match=text):
                configured().include("pyramid_jobstate")
            assert dramatiq.broker.global_broker is default is run.broker
            assert run.fn is before
    dramatiq.broker.global_broker = None
    broker = RedisBroker(url=NOWHERE)
    dramatiq.actor(broker=broker)(waits)
    with pytest.raises(ActorError, match="is async and cannot receive a request"):
        configured(broker).include("pyramid_jobstate")
    assert dramatiq.broker.global_broker is None


# Brokers and settings that change around the include.


def test_application_must_not_set_a_broker_too(subtests: pytest.Subtests) -> None:
    """A broker that it sets before the include, or after, is refused, and so is one
    that was made for a later application.
    """
    mine = StubBroker()
    dramatiq.set_broker(mine)
    match = r"setting jobstate\.broker cannot be used.*of its own"
    with pytest.raises(ConfigurationError, match=match):
        configured().include("pyramid_jobstate")
    assert dramatiq.get_broker() is mine
    dramatiq.broker.global_broker = None
    changes: list[Any] = [
        lambda: dramatiq.set_broker(mine),
        lambda: vars(dramatiq.broker).update(global_broker=None),
        lambda: made("redis://127.0.0.1:1/5"),
    ]
    for change in changes:
        config = configured()
        config.include("pyramid_jobstate")
        made_broker = dramatiq.get_broker()
        if change is changes[2]:
            release_broker()
        change()
        with pytest.raises(ConfigurationError, match="not the broker that was made fo"):
            config.make_wsgi_app()
        if change is not changes[2]:
            dramatiq.set_broker(made_broker)
            release_broker()


def test_setting_that_changes_after_the_include_is_refused(
    subtests: pytest.Subtests,
) -> None:
    """The broker is made at the include, with the settings as they were. The others are
    read at the commit, as ever.
    """
    for name, value in (
        ("broker", "stub"),
        ("broker", None),
        ("redis_url", "redis://127.0.0.1:2"),
        ("namespace", "shop"),
        ("expire_in", "1h"),
        ("active_expire_in", "1h"),
        ("stalled_after", "1h"),
    ):
        with subtests.test(msg=name):
            config = configured()
            config.include("pyramid_jobstate")
            config.registry.settings.pop(f"jobstate.{name}", None)
            if value is not None:
                config.registry.settings[f"jobstate.{name}"] = value
            text = rf"jobstate\.{name} must be set before pyramid_jobstate is included"
            with pytest.raises(ConfigurationError, match=text):
                config.make_wsgi_app()
    release_broker()
    config = make_config(NOWHERE)
    config.include("pyramid_jobstate")
    config.add_settings({"jobstate.broker": NOWHERE})
    with pytest.raises(ConfigurationError, match="broker must be set before"):
        config.make_wsgi_app()
    config = configured()
    config.include("pyramid_jobstate")
    config.add_settings({"jobstate.base_url": "https://example.com/shop/"})
    config.make_wsgi_app()


# Several applications.


def test_applications_of_one_setting_share_the_broker(
    subtests: pytest.Subtests,
) -> None:
    """They have one broker and one store, and it makes no difference whether a default
    is written out, or how.
    """
    defaults = {
        "namespace": "jobstate",
        "expire_in": "1d",
        "active_expire_in": "192h",
        "stalled_after": 15,
    }
    for value in (NOWHERE, "stub", f"{__name__}.make", f"{__name__}.own"):
        with subtests.test(msg=value):
            one = made(value)
            broker = dramatiq.get_broker()
            middleware = list(broker.middleware)
            two = made(value, **defaults)
            assert dramatiq.get_broker() is broker
            assert broker.middleware == middleware
            assert web_store(one) is web_store(two)
            release_broker()


def test_application_of_another_setting_is_refused(subtests: pytest.Subtests) -> None:
    """It would send its jobs to the first one's server. A test suite releases the
    broker before.
    """
    others: list[dict[str, Any]] = [
        {"broker": "redis://127.0.0.1:1/5"},
        {"broker": "stub"},
        {"broker": f"{__name__}.make"},
        {"redis_url": NOWHERE},
        {"namespace": "shop"},
        {"expire_in": "1h"},
        {"active_expire_in": "1h"},
        {"stalled_after": "1h"},
    ]
    configured().include("pyramid_jobstate")
    broker = dramatiq.get_broker()
    for other in others:
        with subtests.test(msg=str(other)):
            with pytest.raises(ConfigurationError, match=r"testing\.release_broker"):
                configured(**other).include("pyramid_jobstate")
            assert dramatiq.get_broker() is broker
    release_broker()
    for other in others[:3]:
        made(**other)
        assert dramatiq.get_broker() is not broker
        release_broker()


def test_application_without_the_setting_keeps_its_own() -> None:
    """An application beside one with the setting is treated as without that one: its
    own settings hold.
    """
    made(namespace="shop")
    shop = make_config(None)
    make_app(shop)
    assert web_store(shop).namespace == "shop"
    with pytest.raises(ConfigurationError, match="in another namespace"):
        make_app(make_config(None, settings={"jobstate.namespace": "own"}))
    place = {"jobstate.namespace": "shop"}
    with pytest.raises(ConfigurationError, match="in another database"):
        make_app(make_config("redis://127.0.0.1:1/9", settings=place))


def test_application_with_an_outbox_needs_no_server() -> None:
    """With pyramid_jobstate.testing, stores are neither compared nor written: the
    server of a stub does not start.
    """
    config = configured("stub")
    config.include("pyramid_jobstate.testing")
    make_app(config)
    run = declare_run()
    make_request(config, "alice").job_states.send_immediately(run, 26)
    assert len(testing.outbox(config.registry)) == 1
    client: Any = web_store(config).client
    port = client.connection_pool.connection_kwargs["port"]
    assert port == 0, "the server has started"


def test_package_may_be_included_again(subtests: pytest.Subtests) -> None:
    """One application that includes the package twice has one broker, and under
    autocommit everything is there after the include.
    """
    for steps in ("include commit include make", "include make include make"):
        with subtests.test(msg=steps):
            take_steps(configured(), steps)
            kinds = [type(m) for m in dramatiq.get_broker().middleware]
            assert len(kinds) == len(set(kinds))
    config = Configurator(settings={"jobstate.broker": NOWHERE}, autocommit=True)
    config.include("pyramid_jobstate")
    assert web_store(config) is store_of(dramatiq.get_broker())


# The base URL.


def test_base_url_is_that_of_what_jobs_make(subtests: pytest.Subtests) -> None:
    """jobstate.base_url is kept without a slash at its end."""
    urls: list[str] = []

    @dramatiq.actor
    def visit(*, request: Any, job_state: RunMarathon) -> None:
        urls.append(request.application_url)

    for value, url in (
        (" https://example.com/shop/ ", "https://example.com/shop"),
        ("http://[::1]:6543/a/b", "http://[::1]:6543/a/b"),
    ):
        with subtests.test(msg=value):
            config = configured("stub", base_url=value)
            config.include("pyramid_jobstate.testing")
            make_app(config)
            make_request(config).job_states.send_immediately(visit)
            testing.run_jobs(config.registry)
            assert urls[-1] == url


def test_bad_base_url_stops_the_start(subtests: pytest.Subtests) -> None:
    """Jobs could not make URLs with anything else. A login is refused, and its password
    not repeated.
    """
    for value in (
        " ",
        "/shop",
        "example.com",
        "ftp://example.com",
        "https:///shop",
        "https://:80",
        "https://exa mple.com",
        "https://exämple.com",
        "https://example.com:99999",
        "https://[::1",
        "https://user:hush@example.com",
        "https://:hush@example.com/x?a",
        "https://example.com/ä",
        "https://example.com?a=b",
        "https://example.com/#a",
        "https://example.com\n/",
    ):
        with subtests.test(msg=repr(value)):
            match = r"jobstate\.base_url = .* is not a URL"
            with pytest.raises(ConfigurationError, match=match) as caught:
                made(base_url=value)
            assert "hush" not in str(caught.value)
