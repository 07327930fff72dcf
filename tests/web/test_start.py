"""The start of an application: its settings, store and routes, and what stops it."""

import re
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis
from dramatiq.brokers.redis import RedisBroker
from dramatiq.brokers.stub import StubBroker
from pyramid.config import Configurator
from pyramid.events import NewRequest
from pyramid.exceptions import (
    ConfigurationConflictError,
    ConfigurationError,
    ConfigurationExecutionError,
)
from pyramid.registry import Registry
from pyramid.request import Request
from pyramid.session import SignedCookieSessionFactory
from redis.sentinel import Sentinel
from webtest import TestApp
from zope.interface.registry import Components

from pyramid_jobstate import JobStateMiddleware, JobStore
from tests.jobs import messages
from tests.web.reading import put
from tests.web.streaming import OwnPool
from tests.webapp import (
    NOWHERE,
    get,
    made_config,
    make_app,
    make_broker,
    make_config,
    make_request,
)

DAY = 24 * 3600
HOST = "redis://:hush@localhost:7000"
SetBroker = Callable[[Any], None]

#: For the tests that name a store or a function by its dotted name.
STORE = JobStore(NOWHERE)


def role_of(request: Request) -> str:
    return f"role:{request.authenticated_userid}"


def configured(
    url: str | None = NOWHERE, prefix: str | None = None, **settings: Any
) -> Configurator:
    """Return the configurator of an application that has included the package."""
    given = {f"jobstate.{name}": value for name, value in settings.items()}
    config = make_config(url, settings=given)
    config.include("pyramid_jobstate", route_prefix=prefix)
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


def include_refusal(**settings: Any) -> str:
    """Return the error that stops the include, which Pyramid has not wrapped."""
    with pytest.raises(ConfigurationError) as caught:
        configured(**settings)
    assert caught.type is ConfigurationError
    return str(caught.value)


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """Returns what was warned of since the last call, which must show no password."""

    def found() -> list[str]:
        lines = messages(caplog, "pyramid_jobstate")
        caplog.clear()
        assert "hush" not in "".join(lines)
        return lines

    return found


# The choice of the store.


def test_store_is_that_of_the_middleware_or_of_the_setting(
    redis_url, store, set_broker
):
    """Jobs are read where the middleware writes them, or else where redis_url says."""
    for url, broker in (
        (None, make_broker(redis_url)),
        (redis_url, make_broker("redis://nowhere.invalid")),
        # Of other jobs, without our middleware.
        (redis_url, RedisBroker(url=NOWHERE)),
    ):
        set_broker(broker)
        app = make_app(make_config(url))
        assert get(app, f"/job_state/{put(store)}", "alice").status_code == 200


def test_application_without_a_store_does_not_start(set_broker):
    """The error says what is missing: a broker, a middleware or a place."""
    assert re.search(r"set_broker.*jobstate\.redis_url", refusal(configured(None)))
    set_broker(RedisBroker(url=NOWHERE))
    assert "add_middleware(JobState" in refusal(configured(None))
    broker = StubBroker()
    broker.add_middleware(JobStateMiddleware())
    set_broker(broker)
    assert "StubBroker" in refusal(configured(None))


def test_set_job_store_replaces_the_store():
    """It wins over redis_url, takes a store or its name, and shows no password."""
    config = configured("redis://127.0.0.1:2/0")
    config.set_job_store(f"{__name__}.STORE")
    config.commit()
    config.include("pyramid_jobstate")
    assert start(config) is STORE
    with pytest.raises(ConfigurationError, match=r"JobStore\(url\)") as caught:
        config.set_job_store(HOST)
    assert "hush" not in "".join(traceback.format_exception(caught.value))
    with pytest.raises(ConfigurationError, match=r"needs a JobStore, not <module"):
        config.set_job_store("logging")
    config = configured(None)
    for _ in range(2):
        config.set_job_store(JobStore(NOWHERE))
    with pytest.raises(ConfigurationConflictError):
        config.commit()


# Settings.


def test_durations_are_understood():
    """A duration is a number of seconds, or a number with a unit."""
    cases: dict[Any, float] = {"90": 90, "90s": 90, "15m": 900, " 2 h ": 7200}
    for text, seconds in {**cases, "8d": 8 * DAY, "1.5m": 90, 0.5: 0.5}.items():
        assert start(configured(expire_in=text)).expire_in == seconds, text


BAD_URLS = [" ", "example.com/shop", "ftp://example.com", "https:///shop"]
BAD_URLS += ["https://user:hush@a", "https://a:99999", "https://a/ä", "https://a?b=c"]
BAD_URLS.append("https://a\n/")

#: Invalid values of settings.
BAD: dict[str, list[Any]] = {
    "expire_in": ["", "0.0001", "-1", "soon", "1h30m", "9" * 400, None],
    "active_expire_in": ["0s"],
    "stalled_after": ["nan"],
    "namespace": ["", "a}", 5],
    "owner": ["", "no.such.module", "os:no_such_name", "os.path", 5],
    "permits": ["no.such.module", 5],
    "redis_url": ["", "localhost", 5, "redis+cluster://127.0.0.1:1"],
    "base_url": [5, *BAD_URLS],
    "max_streams": ["-1", "", "1.5", True, "٣", "1\n"],
    "stream_max_age": ["", "0", "-5", "5 minutes", None],
}


@pytest.mark.promise("mistakes-of-settings-stop-the-start")
@pytest.mark.parametrize("name", BAD)
def test_bad_setting_stops_the_start(name, subtests):
    """An invalid setting is named in the error that stops the start."""
    for value in BAD[name]:
        with subtests.test(msg=f"{name} = {value!r}"):
            error = refusal(configured(**{name: value}))
            # A URL may hold a password.
            value_shown = "" if name == "redis_url" else "= "
            assert f"setting jobstate.{name} {value_shown}" in error


@pytest.mark.promise("mistakes-of-settings-stop-the-start")
def test_unknown_setting_is_told_the_known_ones():
    """The error names the nearest, and lists all in one line, whenever it was set."""
    nearest = "is unknown. Did you mean jobstate.owner? Known settings: jobstate.active"
    for name in "ownr", "OWNER":
        error = include_refusal(**{name: "session"})
        assert error.startswith(f"The setting jobstate.{name} {nearest}")
        assert len(error.splitlines()) == 1
    assert "Did you mean" not in include_refusal(greeting="hi")
    assert "jobstate. is unknown" in include_refusal(**{"": "1h"})
    made_config(NOWHERE, settings={"jobstate_x": "1", "expire_in": "soon"})
    config = configured()
    config.add_settings({"jobstate.ownr": "session"})
    assert nearest in refusal(config)


@pytest.mark.parametrize("value", [None, ["redis://:hush@h/0"]])
def test_setting_of_a_wrong_type_stops_the_start(value):
    """A setting that no ini could give is named in an error without passwords."""
    known = include_refusal(x="").partition("Known settings:")[2]
    names = re.findall(r"jobstate\.(\w+)", known)
    assert len(names) > 10
    for name in names:
        match = rf"setting jobstate\.{name} = "
        with pytest.raises(ConfigurationError, match=match) as caught:
            made_config(NOWHERE, settings={f"jobstate.{name}": value})
        assert "hush" not in str(caught.value)


def test_settings_may_follow_the_include():
    """Settings may follow the include, but for the path: that is an error."""
    config = configured(None)
    config.add_settings({"jobstate.redis_url": NOWHERE, "jobstate.namespace": "late"})
    assert start(config).namespace == "late"
    config = configured()
    config.add_settings({"jobstate.path": "late"})
    assert "jobstate.path must be set before" in refusal(config)


def test_path_is_where_the_jobs_are(redis_url, store, subtests):
    """Jobs, their URLs and the script are below the prefix and the path alone."""
    for prefix, path, base in (
        (None, "/jobs/", "/jobs"),
        (None, ".well-known/v1.2/my-jobs", "/.well-known/v1.2/my-jobs"),
        ("/api", "job_state", "/api/job_state"),
    ):
        with subtests.test(msg=base):
            config = configured(redis_url, prefix, path=path)
            app = TestApp(config.make_wsgi_app())
            job = put(store)
            response = get(app, f"{base}/{job}", "alice")
            assert response.json["job"]["url"] == f"http://localhost{base}/{job}/"
            assert get(app, f"{base}x/{job}", "alice").content_type == "text/plain"
            script = "pyramid_jobstate:static/job-state.js"
            found = make_request(config).static_path(script)
            assert found == f"{base}/static/job-state.js"
            assert get(app, found).status_code == 200


def test_bad_path_stops_the_include():
    """An invalid path is an error that names the setting and the path."""
    for path in ("", "/", "/a//b/", "a b", "{x}", "*x", "a/../b", "a:b", "ü", "a\n"):
        shown = re.escape(f"The setting jobstate.path = {path!r} is not a path")
        with pytest.raises(ConfigurationError, match=shown):
            configured(path=path)


def test_owner_of_sessions_needs_a_session_factory():
    """The application is not made until it has one, which it may set last."""
    config = configured(owner="session")
    for _ in range(2):
        with pytest.raises(ConfigurationError, match="needs a session factory"):
            config.make_wsgi_app()
    config.set_session_factory(SignedCookieSessionFactory("secret"))
    config.commit()
    config.make_wsgi_app()


def test_listeners_of_another_registry_still_hear(redis_url):
    """An application may build on a registry that knows them, of Pyramid or of Zope."""
    base = Registry("base")
    base.registerHandler(lambda event: heard.append(event), (NewRequest,))
    child = Registry("child", bases=(base,))
    child.has_listeners = True
    for registry in child, Components("plain", bases=(base,)):
        heard: list[object] = []
        config = Configurator(registry=registry)
        config.setup_registry(settings={"jobstate.redis_url": redis_url})
        config.include("pyramid_jobstate")
        get(TestApp(config.make_wsgi_app()), "/job_state")
        assert len(heard) == 1


def test_start_is_logged(said):
    """One line says where the jobs are stored and shown, and who owns them."""
    given = {"path": "jobs", "namespace": "races", "owner": f"{__name__}.role_of"}
    start(config := configured(prefix="api", **given))
    (line,) = said()
    words = ["127.0.0.1:1/0", "'races'", "/api/jobs. ", "role_of(request)"]
    assert all(word in line for word in words), line
    assert make_request(config, "alice").job_states.current_owner == "role:alice"


# The stores of the web side and of the middleware.


def private_stores() -> Iterator[tuple[JobStore, JobStore]]:
    """Yield pairs of stores of which only the application knows how to connect."""
    other = JobStore(f"{HOST}/0")
    sentinel = Sentinel([("127.0.0.1", 1)], sentinel_kwargs={"password": "hush"})
    pool = OwnPool.from_url(f"{HOST}/1")
    found = sentinel.master_for("jobs", password="hush", db=1)
    for client in found, redis.Redis(connection_pool=pool):
        store = JobStore(client)
        yield store, other
        yield other, store


def reading(store: JobStore) -> Configurator:
    """Return the configurator of an application with a store of its own."""
    config = configured(None)
    config.set_job_store(store)
    return config


def test_other_place_stops_the_start(set_broker, subtests):
    """Another database, port of a host or namespace is an error that shows both."""
    pool = redis.BlockingConnectionPool(port=7000, db="1")
    places: list[tuple[Any, str, str]] = [
        (HOST, f"{HOST}/1", "database"),
        (f"{HOST}?db=2", f"{HOST}/1", "database"),
        (f"{HOST}/1", "redis://127.0.0.1:7000/0", "database"),
        ("redis://[::1]:7000/1", f"{HOST}/0", "database"),
        ("redis://db.example/1", "redis://DB.example/0", "database"),
        ("redis://localhost", f"{HOST}/0", "port"),
        ("rediss://localhost:7001", "rediss://localhost:7000", "port"),
        ("unix:///tmp/a.sock?db=1", "unix:///tmp/a.sock?db=2", "database"),
        (redis.Redis("localhost", 7000, 1, password="hush"), f"{HOST}/0", "database"),
        (redis.Redis(connection_pool=pool), f"{HOST}/0", "database"),
    ]
    for place, other, word in places:
        read, written = JobStore(place), JobStore(other)
        with subtests.test(msg=f"{read} {written}"):
            set_broker(make_broker(NOWHERE, JobStateMiddleware(written)))
            error = refusal(reading(read))
            assert word in error
            assert "jobstate.redis_url" in error and "set_job_store" in error
            assert repr(read) in error and repr(written) in error
    # A middleware without a URL writes to its broker's server.
    set_broker(make_broker(f"{HOST}/1"))
    assert "database" in refusal(configured(f"{HOST}/0"))
    middleware = JobStateMiddleware(url="redis://a/0", namespace="shop")
    set_broker(make_broker(NOWHERE, middleware))
    error = refusal(configured("redis://b/0", namespace="store"))
    assert "jobstate.namespace" in error
    assert "'shop'" in error and "'store'" in error


def test_other_place_that_may_be_the_same_is_warned_of(set_broker, warnings, subtests):
    """One warning shows both stores. Spellings of one place cause none."""
    private = list(private_stores())
    same: list[tuple[str, Any]] = [
        (f"{HOST}/0", "redis://127.0.0.1:7000"),
        ("redis://[::1]:7000/0", "redis://bob:other@localhost:7000/0"),
        ("redis://DB.example/1", "redis://db.example:6379/1"),
        (f"rediss{HOST[5:]}/0", f"{HOST}/0"),
        (f"{HOST}/0", redis.Redis("127.0.0.1", 7000)),
    ]
    unclear = [
        ("redis://a.example/0", "redis://b.example/0"),
        ("unix:///tmp/a.sock", f"{HOST}/0"),
        (f"{HOST}/0", "rediss://localhost:7001/0"),
    ]
    pairs = [(JobStore(place), JobStore(other)) for place, other in (*same, *unclear)]
    one = private[0][0], private[0][0].replace(expire_in=5)
    quiet = [*pairs[: len(same)], one]
    for read, written in *quiet, *pairs[len(same) :], *private:
        with subtests.test(msg=f"{read} {written}"):
            set_broker(make_broker(NOWHERE, JobStateMiddleware(written)))
            start(reading(read))
            said = warnings()
            assert len(said) == ((read, written) not in quiet)
            for warning in said:
                assert repr(read) in warning and repr(written) in warning
                assert "?" not in warning


# Routes.


def with_route(pattern: str, prefix: str | None = None, **options: Any) -> Configurator:
    """Return the configurator of an application with an earlier route."""
    config = make_config(NOWHERE)
    config.add_route("everything", pattern, **options)
    config.include("pyramid_jobstate", route_prefix=prefix)
    return config


def test_earlier_route_that_swallows_our_path_stops_the_start():
    """An earlier route that matches our URLs, also if it was committed, is an error."""
    alone = "/*everything /{a}/{b} /job_state/ /job_state/{id}/cancel /job_state/counts"
    cases = [*((pattern, None) for pattern in alone.split()), ("/*everything", "api")]
    for pattern, prefix in cases:
        error = refusal(with_route(pattern, prefix))
        assert "'everything'" in error and pattern in error
        assert f"{prefix or ''}/job_state" in error
        assert 'config.include("pyramid_jobstate")' in error
    config = make_config(NOWHERE)
    config.add_route("everything", "/*everything")
    config.commit()
    config.include("pyramid_jobstate")
    assert "'everything'" in refusal(config)


def test_route_that_may_be_meant_is_let_be(warnings):
    """Only a catch-all with predicates causes a warning, which names it."""
    for pattern in ("/", "/{a}/{b}/{c}/{d}", "/job_state/{n:[0-9]+}", "/job"):
        start(with_route(pattern))
    start(with_route("/*everything", static=True))
    config = configured()
    config.add_route("everything", "/*everything")
    start(config)
    assert warnings() == []
    start(with_route("/*everything", request_method="OPTIONS"))
    (warning,) = warnings()
    assert "'everything'" in warning and "/job_state" in warning


def test_placeholder_in_the_prefix_stops_the_include():
    """A placeholder, also of an outer include, is an error: URLs need a fixed path."""
    for prefix in ("{tenant}", "/a/{b:[a-z]+}/", ":tenant"):
        with pytest.raises(ConfigurationError, match="route_prefix") as caught:
            make_config(NOWHERE).include("pyramid_jobstate", route_prefix=prefix)
        assert prefix.strip("/") in str(caught.value)
    config = make_config(NOWHERE)
    with pytest.raises(ConfigurationError, match=r"route_prefix.*\{tenant\}/api"):
        config.include(lambda c: c.include("pyramid_jobstate", "api"), "{tenant}")
    for prefix in ("/api/v1.2/", "a:8", "~x"):
        make_config(NOWHERE).include("pyramid_jobstate", route_prefix=prefix)
