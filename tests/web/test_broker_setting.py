"""The setting jobstate.broker, as the include reads it."""

import importlib
import logging
import sys
from collections.abc import Callable
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

from pyramid_jobstate import JobStateMiddleware, RequestMiddleware, testing
from pyramid_jobstate.errors import ActorError
from pyramid_jobstate.testing import release_broker
from pyramid_jobstate.web.interfaces import IBaseUrl, IJobStore
from pyramid_jobstate.worker import middleware_of
from tests.jobs import RunMarathon, wait_until, working
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


def store_of(config: Configurator) -> Any:
    """Return the store of the web side."""
    return config.registry.getUtility(IJobStore)


def declare_run() -> Any:
    """Declare a tracked actor on the global broker."""

    @dramatiq.actor
    def run(miles: int, *, job_state: RunMarathon) -> None:
        job_state.set_progress_metric("miles_run", miles)

    return run


# What the include does.


@pytest.mark.parametrize(
    ("value", "settings"),
    [
        (NOWHERE, {}),
        (f"  {NOWHERE}\n", {}),
        ("amqp://127.0.0.1:1", {"redis_url": NOWHERE}),
        ("stub", {}),
        (" stub ", {}),
        ("stub", {"redis_url": NOWHERE}),
        (f"{__name__}.make", {}),
        (f" {__name__}:make ", {}),
        (f"{__name__}.maker", {}),
        (make, {}),
        (maker, {}),
    ],
)
def test_include_makes_the_broker(value: Any, settings: dict[str, str]) -> None:
    """The broker is there at once, with Dramatiq's middleware and both of ours, and
    nothing has been connected to.
    """
    config = configured(value, **settings)
    config.include("pyramid_jobstate")
    broker = dramatiq.broker.global_broker
    assert broker is not None
    assert [type(m) for m in broker.middleware] == [
        *default_middleware,
        JobStateMiddleware,
        RequestMiddleware,
    ]
    TestApp(config.make_wsgi_app())
    assert dramatiq.broker.global_broker is broker
    assert store_of(config) is middleware_of(broker).store_for(broker)


@pytest.mark.parametrize("value", [f"{__name__}.own", own])
def test_broker_may_be_an_object(value: Any) -> None:
    """A dotted name may name a Broker, and so may the setting itself."""
    config = made(value, namespace="shop")
    assert dramatiq.get_broker() is own
    assert store_of(config) is middleware_of(own).store_for(own)
    assert store_of(config).namespace == "shop"


def test_settings_are_those_of_the_middlewares_store() -> None:
    """The namespace and the durations reach both sides, and the web side's store is
    the very store of the middleware.
    """
    config = made(
        namespace="shop", expire_in="1h", active_expire_in="2h", stalled_after="3s"
    )
    broker = dramatiq.get_broker()
    store = middleware_of(broker).store_for(broker)
    assert store_of(config) is store
    assert store.namespace == "shop"
    assert (store.expire_in, store.active_expire_in) == (3600, 7200)
    assert store.stalled_after == 3


@pytest.mark.parametrize("value", [NOWHERE, "stub", "amqp://127.0.0.1:1"])
def test_redis_url_keeps_the_states(value: str) -> None:
    """With jobstate.redis_url both sides keep the states there."""
    config = made(value, redis_url="redis://127.0.0.1:2/3")
    broker = dramatiq.get_broker()
    for store in (store_of(config), middleware_of(broker).store_for(broker)):
        assert repr(store) == "<JobStore 'jobstate' at 127.0.0.1:2/3>"


def test_broker_with_a_middleware_of_its_own_is_compared() -> None:
    """The settings do not reach a JobStateMiddleware that the broker brings along, so
    the sides are compared as without the setting.
    """
    broker = RedisBroker(url=NOWHERE)
    broker.add_middleware(JobStateMiddleware(namespace="own"))
    assert store_of(made(broker)).namespace == "own"
    release_broker()
    with pytest.raises(ConfigurationError, match="in another namespace"):
        made(broker, namespace="shop")
    release_broker()
    with pytest.raises(ConfigurationError, match="in another database"):
        made(broker, namespace="own", redis_url="redis://127.0.0.1:1/9")


def test_middleware_may_be_added_before_the_scan() -> None:
    """An application adds more middleware after the include; its options are known
    when a scan declares the actors.
    """

    class Priced(Middleware):
        @property
        def actor_options(self) -> set[str]:
            return {"price"}

    config = configured()
    config.include("pyramid_jobstate")
    dramatiq.get_broker().add_middleware(Priced())
    actor: Any = dramatiq.actor(price=5, actor_name="priced")(lambda: None)
    TestApp(config.make_wsgi_app())
    assert actor.broker is dramatiq.get_broker()


def test_jobs_run_with_a_stub_broker() -> None:
    """With `jobstate.broker = stub`, a job is sent, runs and is shown, although the
    application has no server.
    """
    run = declare_run()
    config = configured("stub")
    app = make_app(config)
    broker = dramatiq.get_broker()
    request = make_request(config, "alice")
    job_state = request.job_states.send_immediately(run, 26)
    with working(broker):
        wait_until(
            broker, dramatiq.Message("", "", (), {}, {}, job_state.uuid), "success"
        )
    shown = get(app, f"/job_state/{job_state.uuid}", "alice")
    assert shown.json["miles_run"] == 26
    assert shown.json["job"]["status"] == "success"


@pytest.mark.parametrize("order", [1, -1])
def test_actor_that_has_moved_is_handed_a_request_and_a_job_state(order: int) -> None:
    """An early actor gets both, and only its own parameters are those of the job,
    whatever the order of the middleware on a broker of the application's own.
    """

    @dramatiq.actor
    def run(miles: int, *, request: Any, job_state: RunMarathon) -> Any:
        return request, job_state.job_params

    fn = run.fn
    broker = RedisBroker(url=NOWHERE)
    for middleware in [JobStateMiddleware(), RequestMiddleware()][::order]:
        broker.add_middleware(middleware)
    for value in (NOWHERE, broker, NOWHERE):
        made(value)
        direct: Any = run
        assert direct(26, request="given") == ("given", {"miles": 26})
        release_broker()
        assert run.fn is fn


def test_actor_with_an_option_is_declared_after_the_include() -> None:
    """The options of our middleware are known after the include, and not before."""
    with pytest.raises(ValueError, match="actor options are undefined: job_state"):
        dramatiq.actor(job_state=RunMarathon)(lambda: None)
    configured().include("pyramid_jobstate")
    actor: Any = dramatiq.actor(job_state=RunMarathon, actor_name="a")(lambda: None)
    functions = middleware_of(dramatiq.get_broker()).functions
    assert functions["a"] is actor.fn


def test_unset_leaves_brokers_alone() -> None:
    """Without the setting the application sets a broker, as it always could."""
    mine = RedisBroker(url=NOWHERE)
    mine.add_middleware(JobStateMiddleware())
    dramatiq.set_broker(mine)
    config = make_config(None)
    make_app(config)
    assert dramatiq.get_broker() is mine
    assert store_of(config).client.connection_pool.connection_kwargs["port"] == 1


def test_unset_makes_no_broker() -> None:
    """An application that only reads jobs needs none."""
    make_app(make_config(NOWHERE))
    assert dramatiq.broker.global_broker is None


# Bad values.


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("", "= '' is empty"),
        ("  \n", "= '' is empty"),
        ("redis:/x", r"= 'redis:…' is invalid\. Use a URL that begins with redis://"),
        ("redis://localhost/abc", "is invalid.*not a database number"),
        ("redis://localhost:x", "is invalid.*port is invalid"),
        ("redis+cluster://localhost", "is invalid.*needs a single server"),
        ("http://localhost", "= 'http://localhost' is invalid"),
        ("amqp://localhost:x", "is invalid. 'amqp://localhost:…' is not"),
        ("amqp://localhost", r"needs jobstate\.redis_url"),
        ("localhost:6379/0", "= '…' is neither a URL, nor 'stub', nor a dotted name"),
        ("user:hunter2@localhost", "= '…' is neither a URL, nor 'stub'"),
        ("stub broker", "= 'stub broker' is neither a URL, nor 'stub', nor a dotted"),
        ("nowhere.broker", "= 'nowhere.broker' cannot be imported: No module named"),
        ("Stub", "= 'Stub' cannot be imported"),
        (f"{__name__}.nothing", "cannot be imported"),
        (f"{__name__}:nothing", "cannot be imported"),
        (".broker", "cannot be imported"),
        ("a..b", "cannot be imported"),
        (__name__, "is neither a broker nor a function"),
        (f"{__name__}.number", r"number' is neither a broker nor a function\. Name a"),
        (
            f"{__name__}.OwnBroker",
            "OwnBroker' is a class. Name a broker, or a function",
        ),
        ("dramatiq.brokers.redis.RedisBroker", "is a class. Name a broker, or a"),
        (f"{__name__}.make_later", "make_later' is async. Name a broker, or a"),
        (f"{__name__}.make_nothing", "must return a Dramatiq broker.*type NoneType"),
        (
            dict,
            "must return a Dramatiq broker, but returned an object of the type dict",
        ),
        (5, "= 'int' is neither a broker nor a function"),
        (b"redis://:hunter2@h", "= 'bytes' is neither a broker nor a function"),
        (["redis://:hunter2@h"], "= 'list' is neither a broker nor a function"),
        (make_later, "= 'function' is async"),
        (OwnBroker, "= 'type' is a class"),
    ],
)
def test_bad_value_stops_the_include(value: Any, text: str) -> None:
    """The error names the setting and what is wrong, and leaves no broker behind."""
    config = configured(value)
    with pytest.raises(ConfigurationError, match=text) as caught:
        config.include("pyramid_jobstate")
    assert "jobstate.broker" in str(caught.value)
    assert "hunter2" not in str(caught.value)
    assert dramatiq.broker.global_broker is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("namespace", ""),
        ("namespace", 5),
        ("expire_in", "soon"),
        ("active_expire_in", "0"),
        ("stalled_after", "-1"),
        ("redis_url", ""),
        ("redis_url", "redis://:hunter2@localhost/abc"),
        ("redis_url", "http://:hunter2@localhost"),
        ("redis_url", "redis://:hunter2@localhost?nope=1"),
        ("redis_url", "redis+cluster://:hunter2@127.0.0.1:1"),
    ],
)
@pytest.mark.parametrize("broker", [NOWHERE, "stub"])
def test_other_bad_value_stops_the_include(name: str, value: Any, broker: str) -> None:
    """The settings of the store are read with the broker's."""
    config = configured(broker, **{name: value})
    with pytest.raises(ConfigurationError) as caught:
        config.include("pyramid_jobstate")
    error: BaseException | None = caught.value
    assert f"The setting jobstate.{name}" in str(error)
    while error is not None:
        assert "hunter2" not in repr(error)
        error = error.__cause__ or error.__context__
    assert dramatiq.broker.global_broker is None


PASSWORDS = [
    "redis://user:hunter2@localhost:x/0",
    "redis://localhost/0?password=hunter2&nope=1",
    "redis://:hunter2#@localhost/0",
    "redis://:hunter2@@localhost/abc",
    "redis:/:hunter2@localhost",
    "amqp://user:hunter2#@localhost",
    "amqp://user:hunter2@localhost:x",
    "sqs://user:hunter2@localhost",
    "user:hunter2@localhost/0",
]


@pytest.mark.parametrize("url", PASSWORDS)
def test_password_stays_out_of_errors(
    url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """No error, none that it was raised from, and no log shows a password."""
    caplog.set_level(logging.DEBUG)
    with pytest.raises(ConfigurationError) as caught:
        configured(url).include("pyramid_jobstate")
    error: BaseException | None = caught.value
    while error is not None:
        assert "hunter2" not in str(error) + repr(error)
        error = error.__cause__ or error.__context__
    assert "hunter2" not in caplog.text


def test_password_stays_out_of_the_start(caplog: pytest.LogCaptureFixture) -> None:
    """A good URL is not logged either, and introspection does not show it."""
    caplog.set_level(logging.DEBUG)
    config = made("redis://:hunter2@127.0.0.1:1/0")
    introspected = config.introspector.categorized()
    assert "hunter2" not in caplog.text
    assert "hunter2" not in repr(
        [i for c in introspected if "job" in c[0] for i in c[1]]
    )


def test_error_of_the_function_arrives_as_it_is() -> None:
    """What the application's function raises has its own traceback."""
    config = make_config(None, settings={"jobstate.broker": make})
    with pytest.raises(KeyError, match=r"queue\.url"):
        config.include("pyramid_jobstate")
    assert dramatiq.broker.global_broker is None


def test_module_of_a_dotted_name_may_declare_actors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Actors in the module that makes the broker move there like all others."""
    (tmp_path / "early_broker.py").write_text(
        "import dramatiq\n"
        "from dramatiq.brokers.redis import RedisBroker\n"
        "@dramatiq.actor\n"
        "def early(*, job_state): ...\n"
        f"def make(settings): return RedisBroker(url={NOWHERE!r})\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    made("early_broker.make")
    early = importlib.import_module("early_broker").early
    del sys.modules["early_broker"]
    assert early.broker is dramatiq.get_broker()
    assert "early" in middleware_of(early.broker).functions


@pytest.mark.parametrize(
    ("fn", "text"),
    [
        (lambda request, miles: None, "cannot receive its request by keyword"),
        (lambda job_state, miles: None, "cannot receive its job_state by keyword"),
    ],
)
def test_wrong_actor_stops_the_include(fn: Callable[..., None], text: str) -> None:
    """An actor that was declared earlier is refused when it moves, and none moves."""
    run = declare_run()
    default = run.broker
    before = run.fn
    dramatiq.actor(actor_name="wrong")(fn)
    with pytest.raises(ActorError, match=text):
        configured().include("pyramid_jobstate")
    assert dramatiq.broker.global_broker is default is run.broker
    assert run.fn is before


def test_async_actor_with_a_request_stops_the_include() -> None:
    """An async actor with a request is refused on any broker."""

    async def wrong(*, request: Any) -> None: ...

    dramatiq.actor(wrong)
    with pytest.raises(ActorError, match="is async and cannot receive a request"):
        configured().include("pyramid_jobstate")
    broker = RedisBroker(url=NOWHERE)
    dramatiq.actor(broker=broker)(wrong)
    dramatiq.broker.global_broker = None
    with pytest.raises(ActorError, match="is async and cannot receive a request"):
        configured(broker).include("pyramid_jobstate")
    assert dramatiq.broker.global_broker is None


# Brokers of the application's own.


def test_broker_before_the_include_is_refused() -> None:
    """An application that uses the setting must not set a broker before the include."""
    mine = StubBroker()
    dramatiq.set_broker(mine)
    with pytest.raises(
        ConfigurationError, match=r"setting jobstate\.broker cannot be used.*of its own"
    ):
        configured().include("pyramid_jobstate")
    assert dramatiq.get_broker() is mine


@pytest.mark.parametrize("broker", [StubBroker(), None])
def test_broker_after_the_include_is_refused(broker: Any) -> None:
    """The broker must not be replaced before the configuration is committed."""
    config = configured()
    config.include("pyramid_jobstate")
    dramatiq.set_broker(broker)
    with pytest.raises(ConfigurationError, match=r"not the broker that was made for"):
        config.make_wsgi_app()


def test_broker_of_another_application_after_the_include_is_refused() -> None:
    """A broker that was made for a later application is refused as well."""
    config = configured()
    config.include("pyramid_jobstate")
    release_broker()
    made("redis://127.0.0.1:1/5")
    with pytest.raises(ConfigurationError, match=r"not the broker that was made for"):
        config.make_wsgi_app()


def test_further_brokers_are_the_applications_own_affair() -> None:
    """Only the global broker is the setting's."""
    further = StubBroker()
    config = configured()
    config.include("pyramid_jobstate")
    actor: Any = dramatiq.actor(broker=further, actor_name="a")(lambda: None)
    TestApp(config.make_wsgi_app())
    assert actor.broker is further


# Settings after the include.


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("broker", "stub"),
        ("broker", None),
        ("redis_url", "redis://127.0.0.1:2"),
        ("namespace", "shop"),
        ("expire_in", "1h"),
        ("active_expire_in", "1h"),
        ("stalled_after", "1h"),
    ],
)
def test_setting_that_changes_after_the_include_is_refused(
    name: str, value: Any
) -> None:
    """The broker is made at the include, with the settings as they were."""
    config = configured()
    config.include("pyramid_jobstate")
    config.registry.settings.pop(f"jobstate.{name}", None)
    if value is not None:
        config.registry.settings[f"jobstate.{name}"] = value
    with pytest.raises(ConfigurationError) as caught:
        config.make_wsgi_app()
    text = (
        f"The setting jobstate.{name} must be set before pyramid_jobstate is included"
    )
    assert text in str(caught.value)


def test_broker_that_is_set_after_the_include_is_refused() -> None:
    """A setting that comes too late would otherwise do nothing."""
    config = make_config(NOWHERE)
    config.include("pyramid_jobstate")
    config.add_settings({"jobstate.broker": NOWHERE})
    with pytest.raises(
        ConfigurationError, match=r"jobstate\.broker must be set before"
    ):
        config.make_wsgi_app()


def test_settings_that_do_not_make_the_broker_may_follow() -> None:
    """The others are read at the commit, as ever."""
    config = configured()
    config.include("pyramid_jobstate")
    config.add_settings({"jobstate.base_url": "https://example.com/shop/"})
    config.make_wsgi_app()
    assert config.registry.getUtility(IBaseUrl) == "https://example.com/shop"


# Several applications.


@pytest.mark.parametrize(
    "value", [NOWHERE, "stub", f"{__name__}.make", f"{__name__}.own"]
)
def test_applications_of_one_setting_share_the_broker(value: str) -> None:
    """Applications with the same setting have one broker and one store."""
    one = made(value)
    broker = dramatiq.get_broker()
    middleware = list(broker.middleware)
    two = made(value)
    assert dramatiq.get_broker() is broker
    assert broker.middleware == middleware
    assert store_of(one) is store_of(two)


def test_default_that_is_written_out_is_the_same_setting() -> None:
    """It makes no difference whether a default is written out, or how."""
    made()
    made(
        namespace="jobstate", expire_in="1d", active_expire_in="192h", stalled_after=15
    )


@pytest.mark.parametrize(
    "other",
    [
        {"broker": "redis://127.0.0.1:1/5"},
        {"broker": "stub"},
        {"broker": f"{__name__}.make"},
        {"redis_url": NOWHERE},
        {"namespace": "shop"},
        {"expire_in": "1h"},
        {"active_expire_in": "1h"},
        {"stalled_after": "1h"},
    ],
    ids=repr,
)
def test_application_of_another_setting_is_refused(other: dict[str, str]) -> None:
    """An application with another setting is refused: it would send its jobs to the
    first one's server. A test suite releases the broker before.
    """
    made()
    broker = dramatiq.get_broker()
    with pytest.raises(ConfigurationError, match=r"testing\.release_broker\(\)"):
        configured(**other).include("pyramid_jobstate")
    assert dramatiq.get_broker() is broker
    release_broker()
    made(**other)
    assert dramatiq.get_broker() is not broker


def test_application_without_the_setting_keeps_its_own() -> None:
    """An application beside one with the setting is treated as without that one: its
    own settings hold.
    """
    made(namespace="shop")
    shop = make_config(None)
    make_app(shop)
    assert store_of(shop).namespace == "shop"
    with pytest.raises(ConfigurationError, match="in another namespace"):
        make_app(make_config(None, settings={"jobstate.namespace": "own"}))
    place = {"jobstate.namespace": "shop"}
    with pytest.raises(ConfigurationError, match="in another database"):
        make_app(make_config("redis://127.0.0.1:1/9", settings=place))


def test_application_with_an_outbox_may_have_any_store() -> None:
    """With pyramid_jobstate.testing, stores are neither compared nor written."""
    config = configured("stub")
    config.include("pyramid_jobstate.testing")
    make_app(config)
    run = declare_run()
    make_request(config, "alice").job_states.send_immediately(run, 26)
    assert len(testing.outbox(config.registry)) == 1
    port = store_of(config).client.connection_pool.connection_kwargs["port"]
    assert port == 0, "the server has not started"


@pytest.mark.parametrize(
    "steps",
    [
        "include include make",
        "include commit include make",
        "include make include make",
    ],
)
def test_package_may_be_included_again(steps: str) -> None:
    """One application that includes the package twice has one broker."""
    config = configured()
    take_steps(config, steps)
    names = [type(m) for m in dramatiq.get_broker().middleware]
    assert len(names) == len(set(names))


def test_include_under_autocommit() -> None:
    """Under autocommit everything is there after the include."""
    settings = {"jobstate.broker": NOWHERE}
    config = Configurator(settings=settings, autocommit=True)
    config.include("pyramid_jobstate")
    broker = dramatiq.get_broker()
    assert store_of(config) is middleware_of(broker).store_for(broker)


def test_include_under_autocommit_stops_at_a_bad_value() -> None:
    """Under autocommit, the include refuses a bad value just as early."""
    config = Configurator(settings={"jobstate.broker": "nope://"}, autocommit=True)
    with pytest.raises(ConfigurationError, match="= 'nope://' is invalid"):
        config.include("pyramid_jobstate")


def test_set_job_store_is_compared_with_the_middleware(store: Any) -> None:
    """A store from the directive replaces the web side's. It must be the same place."""
    config = configured("redis://127.0.0.1:1/9")
    config.include("pyramid_jobstate")
    config.set_job_store(store)
    with pytest.raises(ConfigurationError, match="on another port"):
        config.make_wsgi_app()


# The base URL.


@pytest.mark.parametrize(
    ("value", "url"),
    [
        ("https://example.com", "https://example.com"),
        (" https://example.com/shop/ ", "https://example.com/shop"),
        ("http://localhost:6543", "http://localhost:6543"),
        ("http://[::1]:6543/a/b", "http://[::1]:6543/a/b"),
    ],
)
def test_base_url_is_registered(value: str, url: str) -> None:
    """jobstate.base_url is kept without a slash at its end."""
    assert made(base_url=value).registry.queryUtility(IBaseUrl) == url


@pytest.mark.parametrize(
    "value",
    [
        "",
        "  ",
        "/",
        "/shop",
        "example.com",
        "ftp://example.com",
        "https://",
        "https:///shop",
        "https://:80",
        "https://exa mple.com",
        "https://exämple.com",
        "https://example.com:x",
        "https://example.com:99999",
        "https://[::1",
        "https://user@example.com",
        "https://example.com/a b",
        "https://example.com/ä",
        "https://example.com?a=b",
        "https://example.com/#a",
        "https://example.com\n/",
    ],
)
def test_bad_base_url_stops_the_start(value: str) -> None:
    """Jobs could not make URLs with anything else."""
    with pytest.raises(
        ConfigurationError, match=r"jobstate\.base_url = .* is not a URL"
    ):
        made(base_url=value)


@pytest.mark.parametrize(
    "value", ["https://user:hunter2@example.com", "https://:hunter2@example.com/x?a"]
)
def test_base_url_does_not_show_a_password(value: str) -> None:
    """A login in jobstate.base_url is refused, and not repeated."""
    with pytest.raises(ConfigurationError, match=r"base_url") as caught:
        made(base_url=value)
    assert "hunter2" not in str(caught.value)
