"""Settings, the directive set_job_store, and the start of an application."""

import functools
import logging
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dramatiq.broker
import pytest
import redis
from dramatiq.brokers.redis import RedisBroker
from dramatiq.brokers.stub import StubBroker
from pyramid import testing
from pyramid.authorization import ACLAuthorizationPolicy
from pyramid.config import Configurator
from pyramid.exceptions import (
    ConfigurationConflictError,
    ConfigurationError,
    ConfigurationExecutionError,
)
from pyramid.request import Request

import pyramid_jobstate
from pyramid_jobstate import JobStateMiddleware, JobStore
from pyramid_jobstate.web.interfaces import IJobStore
from pyramid_jobstate.web.settings import SETTINGS
from tests.support import PACKAGE
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

STATIC = PACKAGE / "static"

#: For the tests that name a store or a function by its dotted name.
STORE = JobStore(NOWHERE)


def role_of(request: Request) -> str:
    return f"role:{request.authenticated_userid}"


def start(config: Configurator, include: bool = True) -> JobStore:
    """Make the application and return its store."""
    if include:
        config.include("pyramid_jobstate")
    config.make_wsgi_app()
    store = config.registry.getUtility(IJobStore)
    assert isinstance(store, JobStore)
    return store


@contextmanager
def refused(match: str) -> Iterator[pytest.ExceptionInfo[BaseException]]:
    """Expect a ConfigurationError of ours to stop the start, not another error that
    Pyramid has wrapped.
    """
    with pytest.raises(ConfigurationExecutionError, match=match) as caught:
        yield caught
    assert caught.value.etype is ConfigurationError


# The package.


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


def test_store_is_that_of_the_global_brokers_middleware(
    redis_url: str, client: redis.Redis, set_broker: Callable[[Any], None]
) -> None:
    """Without a redis_url, jobs are read where the middleware writes them."""
    set_broker(make_broker(redis_url))
    app = make_app(make_config(None))

    job = put_job(client)

    assert get(app, f"/job_state/{job}", "alice").status_code == 200


def test_settings_change_the_options_of_the_middlewares_store(
    set_broker: Callable[[Any], None],
) -> None:
    """A setting overrides only the middleware's option of the same name."""
    middleware = JobStateMiddleware(JobStore(NOWHERE, expire_in=5, stalled_after=6))
    set_broker(make_broker(NOWHERE, middleware))

    store = start(make_config(None, settings={"jobstate.stalled_after": "7"}))

    assert (store.expire_in, store.stalled_after) == (5, 7)


def test_redis_url_wins_over_the_middleware(
    redis_url: str, client: redis.Redis, set_broker: Callable[[Any], None]
) -> None:
    """A redis_url takes precedence over the middleware's store."""
    set_broker(make_broker("redis://nowhere.invalid"))
    app = make_app(make_config(redis_url))

    job = put_job(client)

    assert get(app, f"/job_state/{job}", "alice").status_code == 200


def test_no_broker_stops_the_start(set_broker: Callable[[Any], None]) -> None:
    """Without a redis_url or a broker, the error says what to do. No broker is made."""
    with refused(r"set_broker.*jobstate\.redis_url"):
        start(make_config(None))

    assert dramatiq.broker.global_broker is None


def test_broker_without_the_middleware_stops_the_start(
    set_broker: Callable[[Any], None],
) -> None:
    """A global broker without the middleware is an error that says what to add."""
    set_broker(RedisBroker(url=NOWHERE))

    with refused(r"add_middleware\(JobState"):
        start(make_config(None))


def test_middleware_without_a_place_stops_the_start(
    set_broker: Callable[[Any], None],
) -> None:
    """A middleware that cannot determine its store is a configuration error."""
    broker = StubBroker()
    broker.add_middleware(JobStateMiddleware())
    set_broker(broker)

    with refused("StubBroker"):
        start(make_config(None))


def test_set_job_store_replaces_the_store() -> None:
    """The directive takes precedence over redis_url."""
    store = JobStore(NOWHERE)
    config = make_config("redis://127.0.0.1:2/0")
    config.include("pyramid_jobstate")

    config.set_job_store(store)

    assert start(config, include=False) is store


def test_set_job_store_spares_the_broker(set_broker: Callable[[Any], None]) -> None:
    """With a store of the application's own, no broker is needed, and a second include
    keeps the store.
    """
    config = make_config(None)
    config.include("pyramid_jobstate")
    config.set_job_store(STORE)
    config.commit()

    config.include("pyramid_jobstate")

    assert start(config, include=False) is STORE


def test_set_job_store_takes_a_dotted_name() -> None:
    """set_job_store accepts a dotted name."""
    config = make_config(None)
    config.include("pyramid_jobstate")

    config.set_job_store(f"{__name__}.STORE")

    assert start(config, include=False) is STORE


@pytest.mark.parametrize("wrong", [None, JobStore, f"{__name__}.role_of"])
def test_set_job_store_refuses_other_objects(wrong: Any) -> None:
    """set_job_store rejects anything but a JobStore at once."""
    config = make_config(NOWHERE)
    config.include("pyramid_jobstate")

    with pytest.raises(ConfigurationError, match="set_job_store needs a JobStore"):
        config.set_job_store(wrong)


def test_set_job_store_repeats_no_url() -> None:
    """The error for a URL says what to pass instead, and hides the password."""
    config = make_config(None)
    config.include("pyramid_jobstate")

    url = NOWHERE.replace("//", "//:s3cret@")
    with pytest.raises(ConfigurationError, match=r"JobStore\(url\)") as caught:
        config.set_job_store(url)

    assert "s3cret" not in "".join(traceback.format_exception(caught.value))


def test_set_job_store_twice_is_a_conflict() -> None:
    """Setting two stores is Pyramid's usual conflict."""
    config = make_config(NOWHERE)
    config.include("pyramid_jobstate")
    config.set_job_store(JobStore(NOWHERE))
    config.set_job_store(JobStore(NOWHERE))

    with pytest.raises(ConfigurationConflictError):
        config.commit()


# Settings.


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90),
        ("90s", 90),
        ("15m", 900),
        ("24h", DAY),
        ("8d", 8 * DAY),
        (" 2 h ", 7200),
        ("1.5m", 90),
        (90, 90),
        (0.5, 0.5),
    ],
)
def test_durations_are_understood(text: object, seconds: float) -> None:
    """A duration is a number of seconds, or a number with a unit."""
    store = start(make_config(NOWHERE, settings={"jobstate.expire_in": text}))

    assert store.expire_in == seconds


def test_each_duration_has_its_setting() -> None:
    """Each duration and the namespace have their own settings."""
    settings = {
        "jobstate.expire_in": "1h",
        "jobstate.active_expire_in": "2h",
        "jobstate.stalled_after": "3s",
        "jobstate.namespace": "races",
    }

    store = start(make_config(NOWHERE, settings=settings))

    assert store.expire_in == 3600
    assert store.active_expire_in == 7200
    assert store.stalled_after == 3
    assert store.namespace == "races"


def test_defaults() -> None:
    """Without settings, the durations and the namespace are the documented ones."""
    store = start(make_config(NOWHERE))

    assert store.expire_in == 24 * 3600
    assert store.active_expire_in == 8 * DAY
    assert store.stalled_after == 15
    assert store.namespace == "jobstate"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("expire_in", ""),
        ("expire_in", "0"),
        ("expire_in", "0.0001"),
        ("expire_in", "-1"),
        ("expire_in", "soon"),
        ("expire_in", "1w"),
        ("expire_in", "1h30m"),
        ("expire_in", "٣h"),
        ("expire_in", "9" * 400),
        ("expire_in", None),
        ("active_expire_in", "0s"),
        ("stalled_after", "nan"),
        ("namespace", ""),
        ("namespace", "a}"),
        ("namespace", 5),
        ("owner", ""),
        ("owner", "no.such.module"),
        ("owner", "os:no_such_name"),
        ("owner", "os.path"),
        ("owner", 5),
        ("permits", "no.such.module"),
        ("permits", "os.path"),
        ("permits", 5),
        ("redis_url", ""),
        ("redis_url", "localhost"),
        ("redis_url", "http://localhost"),
        ("redis_url", "redis://localhost?no_such_option=1"),
        ("redis_url", 5),
        ("polling_period", "500"),
        ("redis_urls", NOWHERE),
        ("", "x"),
    ],
)
def test_bad_setting_stops_the_start(name: str, value: object) -> None:
    """An unknown or invalid setting is named in the error that stops the start."""
    config = make_config(NOWHERE, settings={f"jobstate.{name}": value})
    config.include("pyramid_jobstate")

    with refused(rf"jobstate\.{name}\b"):
        config.make_wsgi_app()


WRONG: list[Any] = [None, b"redis://:hush@h/0", ["redis://:hush@h/0"], {"a": "hush"}]


@pytest.mark.parametrize("value", WRONG, ids=repr)
@pytest.mark.parametrize("name", sorted(SETTINGS))
def test_setting_of_a_wrong_type_stops_the_start(name: str, value: Any) -> None:
    """A setting that Python code has set to None, or to what no ini could give, is
    named in the error that stops the start, which shows no password.
    """
    config = make_config(NOWHERE, settings={f"jobstate.{name}": value})

    with pytest.raises(ConfigurationError, match=rf"setting jobstate\.{name} = ") as e:
        start(config)

    assert "hush" not in str(e.value)


@pytest.mark.parametrize("name", ["path", "namespace", "redis_url", "base_url"])
def test_number_is_no_string(name: str) -> None:
    """Where a setting takes text, a number is refused."""
    config = make_config(NOWHERE, settings={f"jobstate.{name}": 5})

    with pytest.raises(ConfigurationError, match=rf"{name} = 5 is not a string"):
        start(config)


def test_numbers_may_be_numbers() -> None:
    """Durations and limits may be numbers where Python code sets them."""
    settings = {"expire_in": 7, "stalled_after": 1.5, "max_uuids": 3, "max_streams": 0}
    config = make_config(
        NOWHERE, settings={f"jobstate.{k}": v for k, v in settings.items()}
    )

    store = start(config)

    assert (store.expire_in, store.stalled_after) == (7, 1.5)


def test_unknown_setting_is_told_the_known_ones() -> None:
    """The error for an unknown setting lists the known ones."""
    config = make_config(NOWHERE, settings={"jobstate.expires": "1h"})

    with refused(r"jobstate\.expire_in, .*redis_url"):
        start(config)


def test_settings_of_others_are_left_alone() -> None:
    """Only settings that begin with the prefix and a dot are ours."""
    start(make_config(NOWHERE, settings={"jobstate_x": "1", "expire_in": "soon"}))


@pytest.mark.parametrize(
    "url",
    [
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
    ],
)
def test_password_stays_out_of_errors(url: str) -> None:
    """Errors about a redis_url name the setting, and do not quote any part of it."""
    with refused(r"setting jobstate\.redis_url") as caught:
        start(make_config(url))

    error = caught.value
    assert "hush" not in "".join(traceback.format_exception(error)) + repr(error)


def test_password_stays_out_of_the_stores_repr() -> None:
    """The repr of a store shows its address without the password."""
    store = start(make_config("redis://:hush@127.0.0.1:1/0"))

    assert "127.0.0.1:1/0" in repr(store)
    assert "hush" not in repr(store)


def test_settings_may_follow_the_include() -> None:
    """Settings that are added after the include take effect."""
    config = make_config(None)
    config.include("pyramid_jobstate")

    config.add_settings({"jobstate.redis_url": NOWHERE, "jobstate.namespace": "late"})

    assert start(config, include=False).namespace == "late"


def test_path_must_not_follow_the_include() -> None:
    """A path that is set after the include is an error rather than ignored."""
    config = make_config(NOWHERE)
    config.include("pyramid_jobstate")

    config.add_settings({"jobstate.path": "late"})

    with refused(r"jobstate\.path must be set before"):
        config.make_wsgi_app()


@pytest.mark.parametrize(
    ("path", "base"),
    [
        ("job_state", "/job_state"),
        ("/job_state/", "/job_state"),
        ("api/v1.2/my-jobs", "/api/v1.2/my-jobs"),
        (".well-known/jobs", "/.well-known/jobs"),
        ("~jobs", "/~jobs"),
    ],
)
def test_path_is_where_the_jobs_are(
    redis_url: str, client: redis.Redis, path: str, base: str
) -> None:
    """The jobs, their URLs and the script are below the path, and nowhere else."""
    config = make_config(redis_url, settings={"jobstate.path": path})
    app = make_app(config)
    job = put_job(client)

    response = get(app, f"{base}/{job}", "alice")

    assert response.json["job"]["url"] == f"http://localhost{base}/{job}/"
    assert get(app, f"{base}x/{job}", "alice").content_type == "text/plain"
    script = make_request(config).static_path("pyramid_jobstate:static/job-state.js")
    assert script == f"{base}/static/job-state.js"


@pytest.mark.parametrize(
    "path",
    ["", "/", "a//b", "a b", "{x}", "*x", "a/../b", "..", ".", "a:b", "ü", "a\n"],
)
def test_bad_path_stops_the_include(path: str) -> None:
    """An invalid path is an error that names the setting."""
    config = make_config(NOWHERE, settings={"jobstate.path": path})

    with pytest.raises(ConfigurationError, match=r"jobstate\.path"):
        config.include("pyramid_jobstate")


def test_owner_names_the_principal(redis_url: str) -> None:
    """The function that jobstate.owner names returns the owner of sent jobs."""
    settings = {"jobstate.owner": f"{__name__}.role_of"}
    config = made_config(redis_url, settings=settings)
    run_marathon = make_broker(redis_url).get_actor("run_marathon")

    request = make_request(config, "alice")
    job_state = request.job_states.send_immediately(run_marathon, 26)

    assert job_state.owner == "role:alice"


class RoleOf:
    """A callable that is not a function."""

    def __call__(self, request: Request) -> str:
        return role_of(request)


ROLE_OF = RoleOf()
ROLE_PARTIAL = functools.partial(role_of)


@pytest.mark.parametrize("owner", [f"{__name__}.ROLE_OF", ROLE_PARTIAL, role_of])
def test_owner_may_be_anything_that_can_be_called(redis_url: str, owner: Any) -> None:
    """The owner may be any callable that takes a request."""
    config = made_config(redis_url, settings={"jobstate.owner": owner})

    assert make_request(config, "alice").job_states.current_owner == "role:alice"


# Introspection and logging.


def introspected(config: Configurator) -> dict[str, Any]:
    """Return what the debug toolbar shows of us, by type."""
    found = config.introspector.get_category("job states") or []
    return {
        entry["introspectable"].type_name: entry["introspectable"] for entry in found
    }


def test_settings_can_be_introspected() -> None:
    """Introspection shows the effective values of settings, including defaults."""
    settings = {"jobstate.path": "jobs", "jobstate.max_uuids": "7"}
    config = make_config(NOWHERE, settings=settings)
    store = start(config)

    (shown,) = introspected(config).values()

    assert shown["path"] == "jobs"
    assert shown["store"] is store
    assert shown["max_uuids"] == 7
    assert shown["owner"].__name__ == "authenticated_userid"
    assert shown["permits"].__name__ == "policy_permits"


def test_directive_can_be_introspected() -> None:
    """Introspection shows the store given to set_job_store, without the password."""
    config = make_config(NOWHERE)
    config.include("pyramid_jobstate")
    store = JobStore("redis://:hush@127.0.0.1:1/0")
    config.set_job_store(store)
    start(config, include=False)

    shown = introspected(config)

    assert shown["store"]["store"] is store
    assert shown["settings"]["store"] is store
    assert "hush" not in repr([dict(entry) for entry in shown.values()])
    assert "hush" not in repr([entry.title for entry in shown.values()])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, ["127.0.0.1:1/0", "/api/job_state", "authenticated_userid(request)"]),
        (
            {"jobstate.path": "jobs", "jobstate.namespace": "races"},
            ["'races'", "/api/jobs. "],
        ),
        ({"jobstate.owner": f"{__name__}.role_of"}, ["role_of(request)"]),
        ({"jobstate.owner": f"{__name__}.ROLE_OF"}, ["RoleOf"]),
    ],
)
def test_start_is_logged(
    caplog: pytest.LogCaptureFixture, settings: dict[str, Any], words: list[str]
) -> None:
    """One line says where the jobs are stored and shown, and who owns them, without a
    password.
    """
    caplog.set_level(logging.INFO, logger="pyramid_jobstate")
    config = make_config("redis://bob:hush@127.0.0.1:1/0", settings=settings)
    config.include("pyramid_jobstate", route_prefix="api")
    start(config, include=False)

    (record,) = caplog.records

    assert record.levelno == logging.INFO
    for word in words:
        assert word in record.getMessage()
    assert "hush" not in record.getMessage()


# Including.


def test_route_prefix_goes_before_the_path(redis_url: str, client: redis.Redis) -> None:
    """The route_prefix of the include precedes the path, in URLs as well."""
    config = make_config(redis_url)
    config.include("pyramid_jobstate", route_prefix="/api")
    app = make_app(config)
    job = put_job(client)

    response = get(app, f"/api/job_state/{job}", "alice")

    assert response.json["job"]["url"] == f"http://localhost/api/job_state/{job}/"
    script = make_request(config).static_path("pyramid_jobstate:static/job-state.js")
    assert script == "/api/job_state/static/job-state.js"
    assert get(app, script).status_code == 200


def test_include_may_be_repeated_after_a_commit(
    redis_url: str, client: redis.Redis
) -> None:
    """A second include changes nothing."""
    config = make_config(redis_url)
    config.include("pyramid_jobstate")
    config.commit()
    app = make_app(config)
    job = put_job(client)

    assert get(app, f"/job_state/{job}", "alice").json["job"]["uuid"] == job
    assert get(app, f"/job_state/{job}", "bob").status_code == 403
    assert get(app, "/job_state/nothing").status_code == 404


@pytest.mark.parametrize("name", sorted(p.name for p in STATIC.iterdir()))
def test_static_files_are_served(name: str) -> None:
    """Anybody may load the files for browsers."""
    config = make_config(NOWHERE)
    app = make_app(config)

    path = make_request(config).static_path(f"pyramid_jobstate:static/{name}")
    response = get(app, path)

    assert response.body == (STATIC / name).read_bytes()
    kinds = {
        ".js": {"text/javascript", "application/javascript"},
        ".css": {"text/css"},
    }
    suffix = Path(name).suffix
    assert suffix not in kinds or response.content_type in kinds[suffix]


# The security policy.


@pytest.mark.parametrize(
    "steps",
    [
        "policy include make",
        "include policy make",
        "policy commit include make",
        "policy include commit make",
        "include policy commit make",
        "include commit policy make",
        "include make",
    ],
)
def test_policy_may_be_set_before_and_after_the_include(steps: str) -> None:
    """The application starts with a policy, whenever it is set, and without one."""
    config = make_config(NOWHERE, security_policy=None)

    take_steps(config, steps, policy=lambda: config.set_security_policy(Policy()))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_policies_of_the_older_kind_will_do() -> None:
    """Separate authentication and authorization policies are accepted, too."""
    config = make_config(NOWHERE, security_policy=None)
    config.set_authorization_policy(ACLAuthorizationPolicy())
    config.set_authentication_policy(testing.DummySecurityPolicy("alice"))

    start(config)


def test_include_under_autocommit_has_its_store_at_once() -> None:
    """With autocommit, as in an application's unit tests, the store is set at once."""
    with testing.testConfig(settings={"jobstate.redis_url": NOWHERE}) as config:
        config.include("pyramid_jobstate")

        assert config.registry.getUtility(IJobStore).namespace == "jobstate"
