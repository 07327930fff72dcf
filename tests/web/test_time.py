"""The header with the store's time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import redis
from pyramid.config import Configurator
from pyramid.events import NewResponse
from pyramid.request import Request
from pyramid.response import Response
from webtest import TestApp

from pyramid_jobstate.web.interfaces import IJobStore
from tests.support import UUID
from tests.webapp import ADMIN, ask, get, make_app, make_config, mounted_root, put_job

TIME = "JobState-Time"
EXPOSED = "Access-Control-Expose-Headers"
SHOP = "https://shop.example.com"


def millis(client: redis.Redis) -> int:
    """Return the time of the server."""
    seconds, micros = client.time()
    return int(seconds * 1000 + micros // 1000)


@pytest.fixture
def timed(redis_url: str) -> TestApp:
    """An application, of which no request has been made."""
    return make_app(make_config(redis_url, root_factory=mounted_root))


def test_every_answer_tells_the_time(timed: TestApp, client: redis.Redis) -> None:
    """States, batches, lists, acts, and answers without a body tell the store's time,
    wherever the jobs are.
    """
    job, ended = put_job(client), put_job(client, status="success")
    place = f"/job_state/{job}"
    etag = get(timed, place, "alice").headers["ETag"]
    asking = {"X_Requested_With": "x"}
    for status, method, path, user, headers in (
        (200, "GET", place, "alice", {}),
        (200, "HEAD", place, "alice", {}),
        (304, "GET", place, "alice", {"If_None_Match": etag}),
        (200, "GET", f"/jobs/{job}", "alice", {}),
        (200, "GET", f"/site/jobs?uuid={job}&uuid={UUID}", "alice", {}),
        (200, "GET", "/job_state", "alice", {}),
        (200, "GET", "/job_state?all=1", ADMIN, {}),
        (200, "GET", "/job_state/counts", ADMIN, {}),
        (202, "POST", f"{place}/cancel", "alice", asking),
        (409, "POST", f"/job_state/{ended}/cancel", "alice", asking),
    ):
        before = millis(client)
        response = ask(timed, method, path, user, **headers)
        assert response.status_code == status, path
        (time,) = response.headers.getall(TIME)
        assert before - 100 <= int(time) <= millis(client) + 100, path


def test_time_is_not_part_of_the_state(timed: TestApp, client: redis.Redis) -> None:
    """A state that has not changed keeps its ETag, however late it is."""
    path = f"/job_state/{put_job(client)}"
    store = timed.app.registry.getUtility(IJobStore)
    first = get(timed, path, "alice")
    store._reader.set_clock(millis(client) // 1000 + 5, 0)
    second = get(timed, path, "alice")
    assert second.headers["ETag"] == first.headers["ETag"]
    assert second.body == first.body
    assert int(second.headers[TIME]) - int(first.headers[TIME]) > 3000


def test_clock_is_that_of_the_store(timed: TestApp, client: redis.Redis) -> None:
    """What counts is the clock of the store, not that of the web process."""
    path = f"/job_state/{put_job(client)}"
    timed.app.registry.getUtility(IJobStore)._reader.set_clock(1_000_000, 500_000)
    time = int(get(timed, path, "alice").headers[TIME])
    assert 1_000_000_500 <= time < 1_000_060_000


def test_time_costs_no_round_trip(timed: TestApp, client: redis.Redis) -> None:
    """Polls do not ask for the time more often than the states need it."""
    path = f"/job_state/{put_job(client)}"

    def calls() -> int:
        statistics: Any = client.info("commandstats")
        return int(statistics["cmdstat_time"]["calls"])

    get(timed, path, "alice")
    before = calls()
    times = [int(get(timed, path, "alice").headers[TIME]) for _ in range(20)]
    assert calls() == before
    assert times == sorted(times)
    assert times[-1] > times[0]


def test_process_that_does_not_know_the_time_says_nothing(
    timed: TestApp, client: redis.Redis
) -> None:
    """A process that has read nothing from the store yet does not invent a time."""
    assert TIME not in get(timed, "/job_state").headers
    get(timed, f"/job_state/{put_job(client)}", "alice")
    assert TIME in get(timed, "/job_state").headers


@pytest.mark.parametrize(
    ("path", "status"),
    [(f"/job_state/{UUID}", 404), ("/job_state?owner=bob", 403)],
)
def test_refusals_tell_the_time(
    timed: TestApp, client: redis.Redis, path: str, status: int
) -> None:
    """An unknown job was looked for, too."""
    get(timed, f"/job_state/{put_job(client)}", "alice")
    response = get(timed, path, "alice")
    assert (response.status_code, TIME in response.headers) == (status, True)


def test_bad_queries_tell_no_time(timed: TestApp, client: redis.Redis) -> None:
    """Nothing was asked of the store."""
    get(timed, f"/job_state/{put_job(client)}", "alice")
    response = get(timed, "/job_state?limit=x", "alice")
    assert (response.status_code, TIME in response.headers) == (400, False)


# Other origins


def assigning(event: NewResponse) -> None:
    event.response.headers[EXPOSED] = "ETag, Retry-After"


def yielding(event: NewResponse) -> None:
    event.response.headers.setdefault(EXPOSED, "ETag, Retry-After")


def assigning_tween(handler: Callable[[Request], Response], registry: Any) -> Any:
    def tween(request: Request) -> Response:
        response = handler(request)
        response.headers[EXPOSED] = "ETag, Retry-After"
        return response

    return tween


def subscribe(subscriber: Callable[[NewResponse], None]) -> Any:
    return lambda config: config.add_subscriber(subscriber, NewResponse)


def add_tween(config: Configurator) -> None:
    config.add_tween("tests.web.test_time.assigning_tween")


@pytest.mark.parametrize(
    "extend", [subscribe(assigning), subscribe(yielding), add_tween]
)
def test_scripts_of_other_origins_may_read_it(
    redis_url: str, client: redis.Redis, extend: Any
) -> None:
    """The header is exposed beside those that the application exposes, however it does
    so.
    """
    config = make_config(redis_url)
    extend(config)
    app = make_app(config)
    path = f"/job_state/{put_job(client)}"
    etag = get(app, path, "alice").headers["ETag"]
    for headers in {}, {"If_None_Match": etag}:
        response = get(app, path, "alice", Origin=SHOP, **headers)
        assert response.headers.getall(EXPOSED) == ["ETag, Retry-After", TIME]


def test_scripts_of_its_own_origin_need_no_more(
    timed: TestApp, client: redis.Redis
) -> None:
    """A request without Origin, and an answer without the time, expose nothing."""
    assert EXPOSED not in get(timed, "/job_state", Origin=SHOP).headers
    assert EXPOSED not in get(timed, f"/job_state/{put_job(client)}", "alice").headers


def test_scripts_of_other_origins_may_read_it_from_a_subrequest(
    redis_url: str, client: redis.Redis
) -> None:
    """The application may pass on our answer to a request that names the origin."""
    path = f"/job_state/{put_job(client)}"

    def pass_on(request: Request) -> Response:
        inner = Request.blank(path, headers={"X-User": "alice"})
        return request.invoke_subrequest(inner)

    config = make_config(redis_url)
    config.add_route("pass_on", "/pass_on")
    config.add_view(pass_on, route_name="pass_on")
    app = make_app(config)

    response = get(app, "/pass_on", "alice", Origin=SHOP)

    assert response.headers.getall(EXPOSED) == [TIME]
