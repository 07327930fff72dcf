"""The start of an application: its settings, its store, its routes, and the mistakes
that stop it.
"""

import functools
import logging
import re
import subprocess
import sys
import traceback
from collections.abc import Callable
from typing import Any

import dramatiq.broker
import pytest
import redis
from dramatiq.brokers.redis import RedisBroker
from dramatiq.brokers.stub import StubBroker
from pyramid import testing
from pyramid.authorization import ACLAuthorizationPolicy
from pyramid.config import Configurator
from pyramid.events import ApplicationCreated, NewRequest
from pyramid.exceptions import (
    ConfigurationConflictError,
    ConfigurationError,
    ConfigurationExecutionError,
)
from pyramid.interfaces import IApplicationCreated, ISessionFactory
from pyramid.registry import Registry
from pyramid.request import Request
from pyramid.response import Response
from pyramid.session import SignedCookieSessionFactory
from webtest import TestApp
from zope.interface.registry import Components

import pyramid_jobstate
from pyramid_jobstate import JobStateMiddleware, JobStore
from tests.jobs import messages
from tests.support import PACKAGE, UUID
from tests.web.places import other_places, private_stores, same_places, unclear_places
from tests.webapp import (
    NOWHERE,
    Policy,
    get,
    made_config,
    make_app,
    make_broker,
    make_config,
    make_request,
    put_job,
    take_steps,
)

DAY = 24 * 3600
HOST = "redis://:hush@localhost:7000"
SetBroker = Callable[[Any], None]

#: For the tests that name a store or a function by its dotted name.
STORE = JobStore(NOWHERE)


def role_of(request: Request) -> str:
    return f"role:{request.authenticated_userid}"


class RoleOf:
    """A callable that is not a function."""

    def __call__(self, request: Request) -> str:
        return role_of(request)


ROLE_OF = RoleOf()


def configured(url: str | None = NOWHERE, **settings: Any) -> Configurator:
    """Return the configurator of an application that has included the package."""
    config = make_config(
        url, settings={f"jobstate.{k}": v for k, v in settings.items()}
    )
    config.include("pyramid_jobstate")
    return config


def start(config: Configurator) -> JobStore:
    """Make the application, and return its store."""
    config.make_wsgi_app()
    store = make_request(config).job_states.store
    assert isinstance(store, JobStore)
    return store


def refusal(config: Configurator) -> str:
    """Return the error that stops the start, which must show no password."""
    with pytest.raises(ConfigurationExecutionError) as caught:
        config.make_wsgi_app()
    error = caught.value
    assert error.etype is ConfigurationError
    assert "hush" not in "".join(traceback.format_exception(error)) + repr(error)
    return str(error.evalue)


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """Returns what the package has warned of since the last call, which must show no
    password.
    """

    def found() -> list[str]:
        lines = messages(caplog, "pyramid_jobstate")
        caplog.clear()
        assert "hush" not in "".join(lines)
        return lines

    return found


# The package.


@pytest.mark.system
def test_import_leaves_pyramid_alone() -> None:
    """Importing the package, as workers do, does not import Pyramid."""
    code = (
        "import sys, pyramid_jobstate; "
        "print([m for m in sys.modules if m.partition('.')[0] == 'pyramid'])"
    )
    output = subprocess.check_output([sys.executable, "-c", code], text=True)
    assert output.strip() == "[]"


def test_public_names_exist() -> None:
    """Every name in `__all__` exists."""
    assert all(hasattr(pyramid_jobstate, name) for name in pyramid_jobstate.__all__)


# The choice of the store.


def test_store_is_that_of_the_middleware_or_of_the_setting(
    redis_url: str, client: redis.Redis, set_broker: SetBroker
) -> None:
    """Jobs are read where the middleware writes them, or else where redis_url says."""
    for url, broker in (
        (None, make_broker(redis_url)),
        (redis_url, make_broker("redis://nowhere.invalid")),
    ):
        set_broker(broker)
        app = make_app(make_config(url))
        job = put_job(client)
        assert get(app, f"/job_state/{job}", "alice").status_code == 200


def test_settings_change_the_options_of_the_middlewares_store(
    set_broker: SetBroker,
) -> None:
    """A setting overrides only the middleware's option of the same name."""
    middleware = JobStateMiddleware(JobStore(NOWHERE, expire_in=5, stalled_after=6))
    set_broker(make_broker(NOWHERE, middleware))
    store = start(configured(None, stalled_after="7"))
    assert (store.expire_in, store.stalled_after) == (5, 7)


def test_application_without_a_store_does_not_start(set_broker: SetBroker) -> None:
    """The error says what to do, be it that there is no broker, no middleware or no
    place. No broker is made.
    """
    assert re.search(r"set_broker.*jobstate\.redis_url", refusal(configured(None)))
    assert dramatiq.broker.global_broker is None
    set_broker(RedisBroker(url=NOWHERE))
    assert "add_middleware(JobState" in refusal(configured(None))
    broker = StubBroker()
    broker.add_middleware(JobStateMiddleware())
    set_broker(broker)
    assert "StubBroker" in refusal(configured(None))


def test_set_job_store_replaces_the_store(set_broker: SetBroker) -> None:
    """The directive wins over redis_url, needs no broker, takes a dotted name, and
    survives a second include.
    """
    for url in ("redis://127.0.0.1:2/0", None):
        config = configured(url)
        config.set_job_store(f"{__name__}.STORE")
        config.commit()
        config.include("pyramid_jobstate")
        assert start(config) is STORE


def test_set_job_store_takes_one_job_store() -> None:
    """Anything else is refused at once, and two are Pyramid's usual conflict. The error
    for a URL says what to pass instead, and hides the password.
    """
    config = configured()
    for wrong in (None, JobStore, f"{__name__}.role_of"):
        with pytest.raises(ConfigurationError, match="set_job_store needs a JobStore"):
            config.set_job_store(wrong)
    with pytest.raises(ConfigurationError, match=r"JobStore\(url\)") as caught:
        config.set_job_store(HOST)
    assert "hush" not in "".join(traceback.format_exception(caught.value))
    config.set_job_store(JobStore(NOWHERE))
    config.set_job_store(JobStore(NOWHERE))
    with pytest.raises(ConfigurationConflictError):
        config.commit()


# Settings.


def test_durations_are_understood(subtests: pytest.Subtests) -> None:
    """A duration is a number of seconds, or a number with a unit."""
    for text, seconds in (
        ("90s", 90),
        ("15m", 900),
        ("8d", 8 * DAY),
        (" 2 h ", 7200),
        ("1.5m", 90),
        (90, 90),
        (0.5, 0.5),
    ):
        with subtests.test(msg=repr(text)):
            assert start(configured(expire_in=text)).expire_in == seconds


def test_each_option_of_the_store_has_its_setting() -> None:
    """Each duration and the namespace have a setting, and a documented default."""
    store = start(configured())
    assert (store.expire_in, store.active_expire_in) == (DAY, 8 * DAY)
    assert (store.stalled_after, store.namespace) == (15, "jobstate")
    store = start(
        configured(
            expire_in="1h", active_expire_in="2h", stalled_after="3s", namespace="races"
        )
    )
    assert (store.expire_in, store.active_expire_in) == (3600, 7200)
    assert (store.stalled_after, store.namespace) == (3, "races")


@pytest.mark.parametrize(
    "cases",
    [
        {
            "expire_in": ["", "0.0001", "-1", "soon", "1h30m", "٣h", "9" * 400, None],
            "active_expire_in": ["0s"],
            "stalled_after": ["nan"],
            "namespace": ["", "a}", 5],
        },
        {
            "owner": ["", "no.such.module", "os:no_such_name", "os.path", 5],
            "permits": ["no.such.module", "os.path", 5],
            "redis_url": ["", "localhost", 5],
            "base_url": [5],
        },
    ],
)
def test_bad_setting_stops_the_start(
    cases: dict[str, list[Any]], subtests: pytest.Subtests
) -> None:
    """An invalid setting is named in the error that stops the start."""
    for name, values in cases.items():
        for value in values:
            with subtests.test(msg=f"{name} = {value!r}"):
                error = refusal(configured(**{name: value}))
                assert f"setting jobstate.{name} " in error
                is_text = name in ("namespace", "redis_url", "base_url")
                assert value != 5 or not is_text or "= 5 is not a string" in error


def test_unknown_setting_is_told_the_known_ones() -> None:
    """The error for an unknown setting names it, and lists the known ones. Settings of
    others are left alone.
    """
    for name in ("expires", "redis_urls", ""):
        error = refusal(configured(**{name: "1h"}))
        assert f"jobstate.{name} is unknown" in error
        assert re.search(r"jobstate\.expire_in, .*jobstate\.redis_url", error)
    start(make_app_config({"jobstate_x": "1", "expire_in": "soon"}))


def make_app_config(settings: dict[str, Any]) -> Configurator:
    config = make_config(NOWHERE, settings=settings)
    config.include("pyramid_jobstate")
    return config


@pytest.mark.parametrize("value", [None, ["redis://:hush@h/0"]], ids=repr)
def test_setting_of_a_wrong_type_stops_the_start(
    value: Any, subtests: pytest.Subtests
) -> None:
    """A setting that Python code has set to None, or to what no ini could give, is
    named in the error that stops the start, which shows no password.
    """
    known = refusal(configured(x="")).partition("Known settings:")[2]
    names = re.findall(r"jobstate\.(\w+)", known)
    assert len(names) > 10
    for name in names:
        with subtests.test(msg=name):
            config = make_config(NOWHERE, settings={f"jobstate.{name}": value})
            match = rf"setting jobstate\.{name} = "
            with pytest.raises(ConfigurationError, match=match) as caught:
                make_app(config)
            assert "hush" not in str(caught.value)


def test_limits_may_be_numbers() -> None:
    """Durations and limits may be numbers where Python code sets them."""
    store = start(
        configured(expire_in=7, stalled_after=1.5, max_uuids=3, max_streams=0)
    )
    assert (store.expire_in, store.stalled_after) == (7, 1.5)


def test_password_stays_out_of_errors(subtests: pytest.Subtests) -> None:
    """Errors about a redis_url name the setting, and do not quote any part of it."""
    for url in (
        "redis://:hush@localhost:port/0",
        "redis://:hush#hush@localhost/0",
        "redis://:hush/hush@localhost/0",
        "redis://:hush[hush@localhost/0",
        "redis://:hush℀@localhost/0",
        "http://:hush@localhost/0",
        "redis://:hush@localhost/0?db=x",
        "redis://:hush@localhost/0?no_such_option=1",
        "redis+cluster://:hush@localhost/5",
        "redis+cluster://:hush@localhost?db=5",
        # Nothing listens there.
        "rediss+cluster://:hush@127.0.0.1:1",
    ):
        with subtests.test(msg=url):
            assert "setting jobstate.redis_url" in refusal(configured(url))


def test_password_stays_out_of_what_a_start_shows(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Neither the log nor introspection nor the repr of the store shows it."""
    caplog.set_level(logging.DEBUG)
    config = configured("redis://bob:hush@127.0.0.1:1/0")
    config.set_job_store(JobStore("redis://bob:hush@127.0.0.1:1/0"))
    store = start(config)
    shown = introspected(config)
    assert shown["store"]["store"] is shown["settings"]["store"] is store
    text = repr([(dict(each), each.title) for each in shown.values()])
    assert "127.0.0.1:1/0" in repr(store)
    assert "hush" not in text + repr(store) + caplog.text


def test_settings_may_follow_the_include() -> None:
    """They take effect, but for the path, whose routes have been added: that is an
    error rather than ignored.
    """
    config = configured(None)
    config.add_settings({"jobstate.redis_url": NOWHERE, "jobstate.namespace": "late"})
    assert start(config).namespace == "late"
    config = configured()
    config.add_settings({"jobstate.path": "late"})
    assert "jobstate.path must be set before" in refusal(config)


def test_path_is_where_the_jobs_are(
    redis_url: str, client: redis.Redis, subtests: pytest.Subtests
) -> None:
    """The jobs, their URLs and the script are below the path, behind the route_prefix
    of the include, and nowhere else.
    """
    for prefix, path, base in (
        (None, "/jobs/", "/jobs"),
        (None, "api/v1.2/my-jobs", "/api/v1.2/my-jobs"),
        (None, ".well-known/jobs", "/.well-known/jobs"),
        (None, "~jobs", "/~jobs"),
        ("/api", "job_state", "/api/job_state"),
    ):
        with subtests.test(msg=base):
            config = make_config(redis_url, settings={"jobstate.path": path})
            config.include("pyramid_jobstate", route_prefix=prefix)
            app = TestApp(config.make_wsgi_app())
            job = put_job(client)
            response = get(app, f"{base}/{job}", "alice")
            assert response.json["job"]["url"] == f"http://localhost{base}/{job}/"
            assert get(app, f"{base}x/{job}", "alice").content_type == "text/plain"
            script = "pyramid_jobstate:static/job-state.js"
            found = make_request(config).static_path(script)
            assert found == f"{base}/static/job-state.js"
            assert get(app, found).status_code == 200


def test_bad_path_stops_the_include(subtests: pytest.Subtests) -> None:
    """An invalid path is an error that names the setting."""
    for path in ("", "/", "a//b", "a b", "{x}", "*x", "a/../b", ".", "a:b", "ü", "a\n"):
        with (
            subtests.test(msg=repr(path)),
            pytest.raises(ConfigurationError, match=r"jobstate\.path"),
        ):
            configured(path=path)


def test_owner_may_be_anything_that_can_be_called(
    redis_url: str, subtests: pytest.Subtests
) -> None:
    """The owner of what a request sends is what jobstate.owner returns: a function, or
    any callable, or the dotted name of one.
    """
    run_marathon = make_broker(redis_url).get_actor("run_marathon")
    for owner in (
        f"{__name__}.role_of",
        f"{__name__}.ROLE_OF",
        role_of,
        functools.partial(role_of),
    ):
        with subtests.test(msg=repr(owner)):
            config = made_config(redis_url, settings={"jobstate.owner": owner})
            states = make_request(config, "alice").job_states
            assert states.current_owner == "role:alice"
            assert states.send_immediately(run_marathon, 26).owner == "role:alice"


# Introspection and logging.


def introspected(config: Configurator) -> dict[str, Any]:
    """Return what the debug toolbar shows of us, by type."""
    found = config.introspector.get_category("job states") or []
    return {
        entry["introspectable"].type_name: entry["introspectable"] for entry in found
    }


def test_settings_can_be_introspected() -> None:
    """Introspection shows the effective values of settings, including defaults."""
    config = configured(path="jobs", max_uuids="7")
    store = start(config)
    (shown,) = introspected(config).values()
    assert (shown["path"], shown["max_uuids"], shown["store"]) == ("jobs", 7, store)
    assert shown["owner"].__name__ == "authenticated_userid"
    assert callable(shown["permits"])


def test_start_is_logged(
    caplog: pytest.LogCaptureFixture, subtests: pytest.Subtests
) -> None:
    """One line says where the jobs are stored and shown, and who owns them."""
    caplog.set_level(logging.INFO, logger="pyramid_jobstate")
    cases: list[tuple[dict[str, Any], list[str]]] = [
        ({}, ["127.0.0.1:1/0", "/api/job_state", "authenticated_userid(request)"]),
        ({"path": "jobs", "namespace": "races"}, ["'races'", "/api/jobs. "]),
        ({"owner": f"{__name__}.role_of"}, ["role_of(request)"]),
        ({"owner": f"{__name__}.ROLE_OF"}, ["RoleOf"]),
    ]
    for given, words in cases:
        with subtests.test(msg=str(given)):
            caplog.clear()
            settings = {f"jobstate.{name}": value for name, value in given.items()}
            config = make_config(NOWHERE, settings=settings)
            config.include("pyramid_jobstate", route_prefix="api")
            start(config)
            (line,) = messages(caplog, "pyramid_jobstate", logging.INFO)
            assert all(word in line for word in words)


# Including.


def test_include_may_be_repeated_after_a_commit(
    redis_url: str, client: redis.Redis
) -> None:
    """A second include changes nothing."""
    config = configured(redis_url)
    config.commit()
    app = make_app(config)
    job = put_job(client)
    assert get(app, f"/job_state/{job}", "alice").json["job"]["uuid"] == job
    assert get(app, f"/job_state/{job}", "bob").status_code == 403
    assert get(app, "/job_state/nothing").status_code == 404


def test_static_files_are_served(app: TestApp, subtests: pytest.Subtests) -> None:
    """Anybody may load the files for browsers."""
    kinds = {".js": "/javascript", ".css": "text/css"}
    for file in (PACKAGE / "static").iterdir():
        with subtests.test(msg=file.name):
            response = get(app, f"/job_state/static/{file.name}")
            assert response.body == file.read_bytes()
            assert response.content_type.endswith(kinds.get(file.suffix, ""))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_policy_may_be_set_before_and_after_the_include(
    subtests: pytest.Subtests,
) -> None:
    """The application starts with a policy, whenever it is set, without one, and with
    separate authentication and authorization policies.
    """
    for steps in (
        "policy include make",
        "policy commit include make",
        "include policy commit make",
        "include commit policy make",
        "include make",
    ):
        with subtests.test(msg=steps):
            config = make_config(NOWHERE, security_policy=None)
            set_policy = functools.partial(config.set_security_policy, Policy())
            take_steps(config, steps, policy=set_policy)
    config = make_config(NOWHERE, security_policy=None)
    config.set_authorization_policy(ACLAuthorizationPolicy())
    config.set_authentication_policy(testing.DummySecurityPolicy("alice"))
    make_app(config)


def test_include_under_autocommit_has_its_store_at_once(set_broker: SetBroker) -> None:
    """With autocommit, as in an application's unit tests, the store is there at once,
    and set_job_store compares another one at once.
    """
    settings = {"jobstate.redis_url": f"{HOST}/1"}
    with testing.testConfig(settings=settings) as config:
        config.include("pyramid_jobstate")
        assert make_request(config).job_states.store.namespace == "jobstate"
        set_broker(broker_at(f"{HOST}/1"))
        with pytest.raises(ConfigurationError, match="database"):
            config.set_job_store(JobStore(f"{HOST}/0"))


# The creation of the application.


def test_requests_are_not_announced_to_nobody() -> None:
    """An application without subscribers does not pay for ours. Those that it adds
    hear of requests and of each application, also if they are added later.
    """
    config = configured()
    config.make_wsgi_app()
    assert config.registry.has_listeners is False
    assert not list(config.registry.registeredHandlers())
    heard: list[Any] = []
    config.add_subscriber(lambda event: heard.append("late"), NewRequest)
    config.commit()
    get(TestApp(config.make_wsgi_app()), f"/job_state/static/{UUID}")
    assert heard == ["late"]
    config = configured()
    config.add_subscriber(lambda event: heard.append("early"), NewRequest)
    config.add_subscriber(lambda event: heard.append("made"), ApplicationCreated)
    app = TestApp(config.make_wsgi_app())
    config.make_wsgi_app()
    config.add_subscriber(lambda event: heard.append("late"), NewRequest)
    config.commit()
    get(app, f"/job_state/static/{UUID}")
    assert heard[1:] == ["made", "made", "early", "late"]


def test_check_that_fails_is_repeated() -> None:
    """The application is not made until its checks pass, which come in the order in
    which it has added its own subscribers.
    """
    config = configured(owner="session")
    factory = SignedCookieSessionFactory("secret")
    with pytest.raises(ConfigurationError, match="needs a session factory"):
        config.make_wsgi_app()
    assert config.registry.has_listeners
    with pytest.raises(ConfigurationError, match="needs a session factory"):
        config.make_wsgi_app()
    config.registry.registerUtility(factory, ISessionFactory)
    config.make_wsgi_app()
    early = make_config(NOWHERE, settings={"jobstate.owner": "session"})
    early.add_subscriber(
        lambda event: early.registry.registerUtility(factory, ISessionFactory),
        IApplicationCreated,
    )
    make_app(early)


def test_application_may_have_any_registry() -> None:
    """A registry that builds on another may have listeners that it does not know, and
    any registry of zope.interface will do.
    """
    base = Registry("base")
    heard: list[object] = []
    base.registerHandler(heard.append, (IApplicationCreated,))
    for registry in (Registry("app", bases=(base,)), Components("plain")):
        config = Configurator(registry=registry)
        config.setup_registry(settings={"jobstate.redis_url": NOWHERE})
        config.include("pyramid_jobstate")
        for _ in range(2):
            config.make_wsgi_app()
        assert registry.has_listeners
    assert len(heard) == 2


# The stores of the web side and of the middleware.


def broker_at(url: str, **options: Any) -> RedisBroker:
    return make_broker(NOWHERE, JobStateMiddleware(url=url, **options))


def reading(store: JobStore) -> Configurator:
    """Return the configurator of an application with a store of its own."""
    config = configured(None)
    config.set_job_store(store)
    return config


def test_other_namespace_stops_the_start(set_broker: SetBroker) -> None:
    """A middleware with another namespace is an error, whatever the servers are: every
    job would be unknown.
    """
    set_broker(broker_at("redis://a/0", namespace="shop"))
    error = refusal(configured("redis://b/0", namespace="store"))
    assert "jobstate.namespace" in error
    assert "'shop'" in error and "'store'" in error
    set_broker(make_broker(f"{HOST}/0"))
    assert "jobstate.namespace" in refusal(configured(None, namespace="shop"))


def test_other_place_stops_the_start(
    set_broker: SetBroker, subtests: pytest.Subtests
) -> None:
    """Another database on the same server, or another port on the same host, is an
    error that shows both stores, whoever has made the client.
    """
    for read, written, word in other_places(HOST):
        with subtests.test(msg=f"{read} {written}"):
            set_broker(make_broker(NOWHERE, JobStateMiddleware(written)))
            error = refusal(reading(read))
            assert word in error
            assert "jobstate.redis_url" in error and "set_job_store" in error
            assert repr(read) in error and repr(written) in error


def test_place_of_a_redis_broker_counts(set_broker: SetBroker) -> None:
    """A middleware without a URL writes to its broker's server. The store of a setting
    is compared, and so is one from the directive.
    """
    set_broker(make_broker(f"{HOST}/1"))
    assert "database" in refusal(configured(f"{HOST}/0"))
    assert "database" in refusal(reading(JobStore(f"{HOST}/0").replace(expire_in=5)))


def test_same_place_is_quiet(
    set_broker: SetBroker, warnings: Callable[[], list[str]], subtests: pytest.Subtests
) -> None:
    """Different spellings of one place cause no warning, nor does one client in two
    stores, wherever it leads.
    """
    (private, _) = next(private_stores(HOST))
    pairs = [*same_places(HOST), (private, private.replace(expire_in=5))]
    for read, written in pairs:
        with subtests.test(msg=f"{read} {written}"):
            set_broker(make_broker(NOWHERE, JobStateMiddleware(written)))
            start(reading(read))
            assert warnings() == []


def test_other_place_that_may_be_the_same_is_warned_of(
    set_broker: SetBroker, warnings: Callable[[], list[str]], subtests: pytest.Subtests
) -> None:
    """Two names may stand for one server, and only the application may know how to
    connect: one warning shows both stores.
    """
    for read, written in [*unclear_places(HOST), *private_stores(HOST)]:
        with subtests.test(msg=f"{read} {written}"):
            set_broker(make_broker(NOWHERE, JobStateMiddleware(written)))
            start(reading(read))
            (warning,) = warnings()
            assert repr(read) in warning and repr(written) in warning
            assert "?" not in warning


def test_start_without_two_places_has_nothing_to_compare(
    set_broker: SetBroker, warnings: Callable[[], list[str]]
) -> None:
    """Without a broker, a middleware or its store there is nothing to compare, and an
    application's tests, which write nothing, may read elsewhere.
    """
    start(configured())
    broker = StubBroker(middleware=[])
    set_broker(broker)
    start(configured())
    broker.add_middleware(JobStateMiddleware())
    start(configured())
    set_broker(broker_at(f"{HOST}/1"))
    config = configured(f"{HOST}/0")
    config.include("pyramid_jobstate.testing")
    start(config)
    assert warnings() == []


# Routes.


def with_route(pattern: str, prefix: str | None = None, **options: Any) -> Configurator:
    """Return the configurator of an application with an earlier route."""
    config = make_config(NOWHERE)
    add_route(config, pattern, **options)
    config.include("pyramid_jobstate", route_prefix=prefix)
    return config


def add_route(config: Configurator, pattern: str, **options: Any) -> None:
    config.add_route("everything", pattern, **options)
    if "static" not in options:
        config.add_view(lambda c, r: Response("App"), route_name="everything")


def test_earlier_route_that_swallows_our_path_stops_the_start(
    subtests: pytest.Subtests,
) -> None:
    """An earlier route that matches our URLs is an error that names the route."""
    for pattern in (
        "/*everything",
        "/{a}/{b}",
        "/job_state/",
        "/job_state/{id}",
        "/job_state/{id}/cancel",
        "/job_state/{id}/inspect",
        "/job_state/counts",
        "/job_state/clear",
        "/{path:.*}",
        "/:a/:b",
    ):
        with subtests.test(msg=pattern):
            error = refusal(with_route(pattern))
            assert "'everything'" in error and pattern in error
            assert "/job_state" in error
            assert 'config.include("pyramid_jobstate")' in error
    assert "/api/job_state" in refusal(with_route("/api/*everything", "api"))


def test_order_of_the_routes_counts() -> None:
    """Neither the order of the commits nor that of the includes does: a second include
    adds our routes behind.
    """
    config = make_config(NOWHERE)
    add_route(config, "/*everything")
    config.commit()
    config.include("pyramid_jobstate")
    assert "'everything'" in refusal(config)
    config = configured()
    config.commit()
    add_route(config, "/*everything")
    config.commit()
    config.include("pyramid_jobstate")
    assert "'everything'" in refusal(config)


def test_route_beside_our_path_is_quiet(
    warnings: Callable[[], list[str]], subtests: pytest.Subtests
) -> None:
    """A route that matches none of our requests, that only makes URLs, or that comes
    later causes no warning.
    """
    for pattern in ("/", "/{a}/{b}/{c}/{d}", "/job_state/{n:[0-9]+}", "/job"):
        with subtests.test(msg=pattern):
            start(with_route(pattern))
    start(with_route("/*everything", static=True))
    config = configured()
    add_route(config, "/*everything")
    start(config)
    assert warnings() == []


def test_catch_all_with_a_predicate_is_warned_of(
    warnings: Callable[[], list[str]],
) -> None:
    """A catch-all with predicates may be intended: one warning names it."""
    for options in (
        {"request_method": "OPTIONS"},
        {"accept": "text/html"},
        {"xhr": True},
    ):
        start(with_route("/*everything", **options))
        (warning,) = warnings()
        assert "'everything'" in warning and "/job_state" in warning


def test_placeholder_in_the_prefix_stops_the_include(subtests: pytest.Subtests) -> None:
    """A placeholder in the prefix, or in that of an outer include, is an error: URLs of
    jobs need a fixed path. What only resembles one is accepted.
    """
    for prefix in ("{tenant}", "api/{tenant}", "/a/{b:[a-z]+}/", ":tenant", "a/:b/c"):
        with subtests.test(msg=prefix):
            config = make_config(NOWHERE)
            with pytest.raises(ConfigurationError, match="route_prefix") as caught:
                config.include("pyramid_jobstate", route_prefix=prefix)
            assert prefix.strip("/") in str(caught.value)
    with pytest.raises(ConfigurationError, match=r"route_prefix.*\{tenant\}/api"):
        make_config(NOWHERE).include(
            lambda config: config.include("pyramid_jobstate", route_prefix="api"),
            route_prefix="{tenant}",
        )
    for prefix in ("/api/v1.2/", "a:8", "~x", "a*b"):
        with subtests.test(msg=prefix):
            config = make_config(NOWHERE)
            config.include("pyramid_jobstate", route_prefix=prefix)
            config.make_wsgi_app()
