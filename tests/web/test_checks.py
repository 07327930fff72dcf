"""Configuration mistakes that stop an application's start or cause a warning."""

from collections.abc import Callable
from typing import Any

import pytest
import redis
from dramatiq.brokers.redis import RedisBroker
from dramatiq.brokers.stub import StubBroker
from pyramid.config import Configurator
from pyramid.exceptions import ConfigurationError, ConfigurationExecutionError
from pyramid.response import Response
from redis.sentinel import Sentinel
from webtest import TestApp

from pyramid_jobstate import JobStateMiddleware, JobStore
from tests.jobs import messages
from tests.webapp import NOWHERE, get, make_broker, make_config, put_job

HOST = "redis://:hush@localhost:7000"


def start(
    url: str | None = None, store: JobStore | None = None, **settings: Any
) -> Any:
    named = {f"jobstate.{name}": value for name, value in settings.items()}
    config = make_config(url, settings=named)
    config.include("pyramid_jobstate")
    if store is not None:
        config.set_job_store(store)
    return config.make_wsgi_app()


def refusal(*args: Any, **settings: Any) -> str:
    """Return the message of the error that stops the start."""
    with pytest.raises(ConfigurationExecutionError) as caught:
        start(*args, **settings)
    assert caught.value.etype is ConfigurationError
    assert "hush" not in str(caught.value)
    return str(caught.value.evalue)


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    found = messages(caplog, "pyramid_jobstate")
    assert "hush" not in "".join(found)
    return found


def broker_at(url: str, **options: Any) -> RedisBroker:
    return make_broker(NOWHERE, JobStateMiddleware(url=url, **options))


# The stores of the web side and of the middleware.


def test_other_namespace_stops_the_start(set_broker: Callable[[Any], None]) -> None:
    """A middleware with another namespace is an error: every job would be unknown."""
    set_broker(broker_at(f"{HOST}/0", namespace="shop"))

    error = refusal(f"{HOST}/0", namespace="store")

    assert "jobstate.namespace" in error
    assert "'shop'" in error and "'store'" in error


def test_namespace_of_the_setting_alone_stops_the_start(
    set_broker: Callable[[Any], None],
) -> None:
    """A namespace that nobody writes is an error without a redis_url, too."""
    set_broker(make_broker(f"{HOST}/0"))

    assert "jobstate.namespace" in refusal(namespace="shop")


def test_other_namespace_is_certain_on_unknown_servers(
    set_broker: Callable[[Any], None],
) -> None:
    """Different namespaces are an error whatever the servers are."""
    set_broker(broker_at("redis://a/0", namespace="shop"))

    assert "jobstate.namespace" in refusal("redis://b/0")


@pytest.mark.parametrize(
    ("ours", "theirs", "word"),
    [
        (f"{HOST}/0", f"{HOST}/1", "database"),
        (HOST, f"{HOST}/1", "database"),
        (f"{HOST}/2", HOST, "database"),
        (f"{HOST}?db=2", f"{HOST}/1", "database"),
        (f"{HOST}/1", "redis://127.0.0.1:7000/0", "database"),
        ("redis://[::1]:7000/1", f"{HOST}/0", "database"),
        ("redis://db.example/1", "redis://DB.example/0", "database"),
        ("redis://localhost/1", "redis://localhost:6379/2", "database"),
        ("redis://", "redis://localhost/1", "database"),
        (f"{HOST}/0", "redis://localhost:7001/0", "port"),
        ("redis://localhost", f"{HOST}/0", "port"),
        ("redis://127.0.0.1:7001/1", f"{HOST}/0", "port"),
        ("rediss://localhost:7001", "rediss://localhost:7000", "port"),
        ("unix:///tmp/a.sock?db=1", "unix:///tmp/a.sock?db=2", "database"),
    ],
)
def test_other_place_stops_the_start(
    set_broker: Callable[[Any], None], ours: str, theirs: str, word: str
) -> None:
    """Another database on the same server, or another port on the same host, is an
    error that shows both stores.
    """
    set_broker(broker_at(theirs))

    error = refusal(ours)

    assert word in error
    assert "jobstate.redis_url" in error and "set_job_store" in error
    assert repr(JobStore(ours)) in error and repr(JobStore(theirs)) in error


def test_place_of_a_redis_broker_counts(set_broker: Callable[[Any], None]) -> None:
    """A middleware without a URL writes to its broker's server."""
    set_broker(make_broker(f"{HOST}/1"))

    assert "database" in refusal(f"{HOST}/0")


@pytest.mark.parametrize("namespace", ["jobstate", "shop"])
def test_set_job_store_counts_as_a_setting(
    set_broker: Callable[[Any], None], namespace: str
) -> None:
    """A store from set_job_store is compared like one from the settings."""
    set_broker(broker_at(f"{HOST}/1"))

    error = refusal(store=JobStore(f"{HOST}/0", namespace=namespace))

    assert ("namespace" if namespace == "shop" else "database") in error


def test_set_job_store_counts_under_autocommit(
    set_broker: Callable[[Any], None],
) -> None:
    """With autocommit, set_job_store compares the store at once."""
    set_broker(broker_at(f"{HOST}/1"))
    config = make_config(f"{HOST}/1", autocommit=True)
    config.include("pyramid_jobstate")

    with pytest.raises(ConfigurationError, match="database"):
        config.set_job_store(JobStore(f"{HOST}/0"))


def test_replaced_store_is_compared(set_broker: Callable[[Any], None]) -> None:
    """A store made by replace() is at the place of the original."""
    set_broker(broker_at(f"{HOST}/1"))

    assert "database" in refusal(store=JobStore(f"{HOST}/0").replace(expire_in=5))


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (f"{HOST}/0", f"{HOST}/0"),
        (f"{HOST}/0", "redis://127.0.0.1:7000"),
        ("redis://[::1]:7000/0", "redis://bob:other@localhost:7000/0"),
        ("redis://DB.example/1", "redis://db.example:6379/1"),
        ("unix:///tmp/a.sock?db=1", "unix:///tmp/a.sock?db=1"),
        (f"rediss{HOST[5:]}/0", f"{HOST}/0"),
    ],
)
def test_same_place_is_quiet(
    set_broker: Callable[[Any], None],
    caplog: pytest.LogCaptureFixture,
    ours: str,
    theirs: str,
) -> None:
    """Different spellings of one place cause no warning."""
    set_broker(broker_at(theirs))

    start(ours)

    assert warnings(caplog) == []


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("redis://a.example/0", "redis://b.example/0"),
        ("redis://a.example/0", "redis://b.example/1"),
        ("redis://a.example:1/0", "redis://b.example:2/1"),
        ("unix:///tmp/a.sock", f"{HOST}/0"),
        ("unix:///tmp/a.sock", "unix:///tmp/b.sock"),
        (f"{HOST}/0", "rediss://localhost:7001/0"),
    ],
)
def test_other_place_that_may_be_the_same_is_warned_of(
    set_broker: Callable[[Any], None],
    caplog: pytest.LogCaptureFixture,
    ours: str,
    theirs: str,
) -> None:
    """Two names may stand for one server: one warning shows both stores."""
    set_broker(broker_at(theirs))

    start(ours)

    (warning,) = warnings(caplog)
    assert repr(JobStore(ours)) in warning and repr(JobStore(theirs)) in warning


def sentinel_store() -> JobStore:
    sentinel = Sentinel([("127.0.0.1", 1)], sentinel_kwargs={"password": "hush"})
    return JobStore(sentinel.master_for("jobs", password="hush", db=1))


def custom_pool_store() -> JobStore:
    class Pool(redis.ConnectionPool):
        pass

    pool = Pool(host="localhost", port=7000, db=1, password="hush")
    return JobStore(redis.Redis(connection_pool=pool))


def custom_connection_store() -> JobStore:
    class Connection(redis.Connection):
        pass

    pool = redis.ConnectionPool(Connection, host="localhost", port=7000, db=1)
    return JobStore(redis.Redis(connection_pool=pool))


@pytest.mark.parametrize(
    "client",
    [
        redis.Redis("localhost", 7000, db=1, password="hush"),
        redis.Redis.from_url(f"{HOST}/1"),
        redis.Redis(connection_pool=redis.BlockingConnectionPool(port=7000, db="1")),
        redis.Redis("127.0.0.1", 7000, db=1, ssl=True),
    ],
)
@pytest.mark.parametrize("is_ours", [True, False])
def test_place_of_a_plain_client_counts(
    set_broker: Callable[[Any], None], client: redis.Redis, is_ours: bool
) -> None:
    """A plain client of the application is compared by its address."""
    store, other = JobStore(client), JobStore(f"{HOST}/0")
    read, written = (store, other) if is_ours else (other, store)
    set_broker(make_broker(NOWHERE, JobStateMiddleware(written)))

    error = refusal(store=read)

    assert "database" in error
    assert repr(read) in error and repr(written) in error


def test_plain_client_of_the_same_place_is_quiet(
    set_broker: Callable[[Any], None], caplog: pytest.LogCaptureFixture
) -> None:
    """A plain client of the middleware at the same place causes no warning."""
    client = redis.Redis("127.0.0.1", 7000)
    set_broker(make_broker(NOWHERE, JobStateMiddleware(client=client)))

    start(f"{HOST}/0")

    assert warnings(caplog) == []


@pytest.mark.parametrize(
    "make_store", [sentinel_store, custom_pool_store, custom_connection_store]
)
@pytest.mark.parametrize("is_ours", [True, False])
def test_client_that_only_the_application_knows_is_only_warned_of(
    set_broker: Callable[[Any], None],
    caplog: pytest.LogCaptureFixture,
    make_store: Callable[[], JobStore],
    is_ours: bool,
) -> None:
    """If only the application knows how to connect, there is only a warning."""
    store, other = make_store(), JobStore(f"{HOST}/0")
    read, written = (store, other) if is_ours else (other, store)
    set_broker(make_broker(NOWHERE, JobStateMiddleware(written)))

    start(store=read)

    (warning,) = warnings(caplog)
    assert repr(read) in warning and repr(written) in warning
    assert "?" not in warning


def test_client_that_both_share_is_quiet(
    set_broker: Callable[[Any], None], caplog: pytest.LogCaptureFixture
) -> None:
    """Two stores that share a client are at one place, wherever that is."""
    store = sentinel_store()
    set_broker(make_broker(NOWHERE, JobStateMiddleware(store)))

    start(store=store.replace(expire_in=5))

    assert warnings(caplog) == []


def test_start_without_a_broker_is_as_before(
    set_broker: Callable[[Any], None], caplog: pytest.LogCaptureFixture
) -> None:
    """A web process that imports no broker has nothing to compare."""
    start(NOWHERE)

    assert warnings(caplog) == []


@pytest.mark.parametrize("middleware", [None, JobStateMiddleware()])
def test_start_with_a_broker_that_writes_nowhere_is_as_before(
    set_broker: Callable[[Any], None],
    caplog: pytest.LogCaptureFixture,
    middleware: JobStateMiddleware | None,
) -> None:
    """A broker without the middleware, or whose middleware has no store, has no place
    to compare.
    """
    broker = StubBroker(middleware=[])
    if middleware is not None:
        broker.add_middleware(middleware)
    set_broker(broker)

    start(NOWHERE)

    assert warnings(caplog) == []


def test_tests_of_an_application_may_read_elsewhere(
    set_broker: Callable[[Any], None], caplog: pytest.LogCaptureFixture
) -> None:
    """With pyramid_jobstate.testing, nothing is written or compared."""
    set_broker(broker_at(f"{HOST}/1"))
    config = make_config(f"{HOST}/0")
    config.include("pyramid_jobstate")
    config.include("pyramid_jobstate.testing")

    config.make_wsgi_app()

    assert warnings(caplog) == []


# Routes.


def answer(context: Any, request: Any) -> Response:
    return Response("App")


def add_route(config: Configurator, pattern: str, **options: Any) -> None:
    config.add_route("everything", pattern, **options)
    config.add_view(answer, route_name="everything")


@pytest.mark.parametrize(
    "pattern",
    [
        "/*everything",
        "/{a}*rest",
        "/{a}/{b}",
        "/{a}/{b}/",
        "/{a}",
        "/job_state",
        "/job_state/",
        "/job_state/{id}",
        "/job_state/{id}/cancel",
        "/job_state/{id}/rerun",
        "/job_state/{id}/inspect",
        "/job_state/counts",
        "/job_state/clear",
        "/{path:.*}",
        "/:a/:b",
    ],
)
def test_earlier_route_that_swallows_our_path_stops_the_start(pattern: str) -> None:
    """An earlier route that matches our URLs is an error that names the route."""
    config = make_config(NOWHERE)
    add_route(config, pattern)
    config.include("pyramid_jobstate")

    with pytest.raises(ConfigurationExecutionError) as caught:
        config.make_wsgi_app()

    error = str(caught.value.evalue)
    assert caught.value.etype is ConfigurationError
    assert "'everything'" in error and pattern in error and "/job_state" in error
    assert 'config.include("pyramid_jobstate")' in error


@pytest.mark.parametrize("steps", ["commit", "route commit", "commit route include"])
def test_catch_all_is_seen_after_a_commit(steps: str) -> None:
    """The order of the routes counts, not the order of the commits."""
    config = make_config(NOWHERE)
    if steps != "commit route include":
        add_route(config, "/*everything")
        config.commit()
    config.include("pyramid_jobstate")
    if steps == "commit route include":
        config.commit()
        add_route(config, "/*everything")
        config.commit()
        # Adds our route again, behind the other.
        config.include("pyramid_jobstate")

    with pytest.raises(ConfigurationExecutionError, match="'everything'"):
        config.make_wsgi_app()


def test_catch_all_under_a_prefix_is_seen() -> None:
    """Our path begins with the route_prefix of the include."""
    config = make_config(NOWHERE)
    add_route(config, "/api/*everything")
    config.include("pyramid_jobstate", route_prefix="api")

    with pytest.raises(ConfigurationExecutionError, match="/api/job_state"):
        config.make_wsgi_app()


@pytest.mark.parametrize(
    "pattern",
    [
        "/",
        "/{a}/{b}/{c}/{d}",
        "/job_states",
        "/job_state/{n:[0-9]+}",
        "/x/*rest",
        "/job",
    ],
)
def test_earlier_route_beside_our_path_is_quiet(
    redis_url: str, client: redis.Redis, caplog: pytest.LogCaptureFixture, pattern: str
) -> None:
    """An earlier route that matches none of our requests causes no warning."""
    config = make_config(redis_url)
    add_route(config, pattern)
    config.include("pyramid_jobstate")
    app = TestApp(config.make_wsgi_app())
    job = put_job(client)

    assert warnings(caplog) == []
    assert get(app, f"/job_state/{job}", "alice").json["job"]["uuid"] == job


def test_later_catch_all_is_quiet(caplog: pytest.LogCaptureFixture) -> None:
    """A catch-all behind our route causes no warning."""
    config = make_config(NOWHERE)
    config.include("pyramid_jobstate")
    add_route(config, "/*everything")
    config.make_wsgi_app()

    assert warnings(caplog) == []


@pytest.mark.parametrize(
    "options",
    [{"request_method": "OPTIONS"}, {"accept": "text/html"}, {"xhr": True}],
)
def test_catch_all_with_a_predicate_is_warned_of(
    caplog: pytest.LogCaptureFixture, options: dict[str, Any]
) -> None:
    """A catch-all with predicates may be intended: one warning names it."""
    config = make_config(NOWHERE)
    add_route(config, "/*everything", **options)
    config.include("pyramid_jobstate")
    config.make_wsgi_app()

    (warning,) = warnings(caplog)
    assert "'everything'" in warning and "/job_state" in warning


def test_static_catch_all_is_quiet(caplog: pytest.LogCaptureFixture) -> None:
    """A static route, which only makes URLs, causes no warning."""
    config = make_config(NOWHERE)
    config.add_route("cdn", "/*everything", static=True)
    config.include("pyramid_jobstate")
    config.make_wsgi_app()

    assert warnings(caplog) == []


@pytest.mark.parametrize(
    "prefix", ["{tenant}", "api/{tenant}", "/a/{b:[a-z]+}/", ":tenant", "a/:b/c", "a:b"]
)
def test_placeholder_in_the_prefix_stops_the_include(prefix: str) -> None:
    """A placeholder in the prefix is an error: URLs of jobs need a fixed path."""
    config = make_config(NOWHERE)

    with pytest.raises(ConfigurationError, match="route_prefix") as caught:
        config.include("pyramid_jobstate", route_prefix=prefix)

    assert prefix.strip("/") in str(caught.value)


def test_placeholder_in_an_outer_prefix_stops_the_include() -> None:
    """A placeholder in the prefix of an outer include is an error, too."""
    config = make_config(NOWHERE)

    def outer(config: Configurator) -> None:
        config.include("pyramid_jobstate", route_prefix="api")

    with pytest.raises(ConfigurationError, match=r"route_prefix.*\{tenant\}/api"):
        config.include(outer, route_prefix="{tenant}")


@pytest.mark.parametrize("prefix", ["api", "/api/v1.2/", "a:8", "~x", "a*b"])
def test_prefix_without_placeholder_is_accepted(prefix: str) -> None:
    """Prefixes that only resemble placeholders are accepted."""
    config = make_config(NOWHERE)
    config.include("pyramid_jobstate", route_prefix=prefix)

    config.make_wsgi_app()
