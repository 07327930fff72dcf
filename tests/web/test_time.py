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

from pyramid_jobstate import JobStore
from tests.support import UUID
from tests.web.reading import put
from tests.webapp import ADMIN, ask, get, make_app, make_config, mounted_root

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


def test_every_answer_tells_the_time(
    timed: TestApp,
    client: redis.Redis,
    store: JobStore,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """States, batches, lists, acts, refusals and answers without a body tell the time
    of the store, not that of the web process, wherever the jobs are. A bad query, for
    which the store was not asked, and a process that has not read anything yet do not.
    """
    job, ended = put(store), put(store, status="success")
    monkeypatch.setattr("time.time", lambda: 1_000_000.0)
    monkeypatch.setattr("time.time_ns", lambda: 10**15)
    assert TIME not in get(timed, "/job_state").headers
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
        (404, "GET", f"/job_state/{UUID}", "alice", {}),
        (403, "GET", "/job_state?owner=bob", "alice", {}),
        (400, "GET", "/job_state?limit=x", "alice", {}),
    ):
        before = millis(client)
        response = ask(timed, method, path, user, **headers)
        assert response.status_code == status, path
        times = response.headers.getall(TIME)
        assert len(times) == (status != 400)
        for time in times:
            assert before - 100 <= int(time) <= millis(client) + 100, path


def test_time_is_not_part_of_the_state(
    timed: TestApp, client: redis.Redis, store: JobStore
) -> None:
    """A state that has not changed keeps its ETag, however late it is. Polls do not ask
    for the time more often than the states need it.
    """
    path = f"/job_state/{put(store)}"

    def calls() -> int:
        statistics: Any = client.info("commandstats")
        return int(statistics["cmdstat_time"]["calls"])

    first = get(timed, path, "alice")
    before = calls()
    answers = [get(timed, path, "alice") for _ in range(20)]
    assert calls() == before
    assert {(a.headers["ETag"], a.body) for a in answers} == {
        (first.headers["ETag"], first.body)
    }
    times = [int(answer.headers[TIME]) for answer in answers]
    assert times == sorted(times)
    assert times[-1] > times[0]


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


def add_tween(config: Configurator) -> None:
    config.add_tween("tests.web.test_time.assigning_tween")


@pytest.mark.parametrize("extend", [assigning, yielding, add_tween])
def test_scripts_of_other_origins_may_read_it(
    redis_url: str, store: JobStore, extend: Any
) -> None:
    """The header is exposed beside those that the application exposes, however it does
    so.
    """
    config = make_config(redis_url)
    if extend is add_tween:
        extend(config)
    else:
        config.add_subscriber(extend, NewResponse)
    app = make_app(config)
    path = f"/job_state/{put(store)}"
    etag = get(app, path, "alice").headers["ETag"]
    for headers in {}, {"If_None_Match": etag}:
        response = get(app, path, "alice", Origin=SHOP, **headers)
        assert response.headers.getall(EXPOSED) == ["ETag, Retry-After", TIME]


def test_scripts_of_its_own_origin_need_no_more(
    timed: TestApp, store: JobStore
) -> None:
    """A request without Origin, and an answer without the time, expose nothing."""
    assert EXPOSED not in get(timed, "/job_state", Origin=SHOP).headers
    assert EXPOSED not in get(timed, f"/job_state/{put(store)}", "alice").headers


def test_subrequest_of_another_origin(redis_url: str, store: JobStore) -> None:
    """The application may pass on our answer to a request that names the origin."""
    path = f"/job_state/{put(store)}"

    def pass_on(request: Request) -> Response:
        inner = Request.blank(path, headers={"X-User": "alice"})
        return request.invoke_subrequest(inner)

    config = make_config(redis_url)
    config.add_route("pass_on", "/pass_on")
    config.add_view(pass_on, route_name="pass_on")

    response = get(make_app(config), "/pass_on", "alice", Origin=SHOP)

    assert response.headers.getall(EXPOSED) == [TIME]
