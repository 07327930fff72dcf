"""The header with the store's time."""

from __future__ import annotations

from typing import Any

import pytest
import redis
from pyramid.events import NewResponse
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
    which the store was not asked, does not.
    """
    job, ended = put(store), put(store, status="success")
    monkeypatch.setattr("time.time", lambda: 1_000_000.0)
    monkeypatch.setattr("time.time_ns", lambda: 10**15)
    place = f"/job_state/{job}"
    etag = get(timed, place, "alice").headers["ETag"]
    asking = {"X_Requested_With": "x"}
    for status, method, path, user, headers in (
        (304, "GET", place, "alice", {"If_None_Match": etag}),
        (200, "GET", f"/jobs/{job}", "alice", {}),
        (200, "GET", f"/site/jobs?uuid={job}&uuid={UUID}", "alice", {}),
        (200, "GET", "/job_state", "alice", {}),
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


def test_time_is_not_part_of_the_state(timed: TestApp, store: JobStore) -> None:
    """A state that has not changed keeps its ETag, however late it is."""
    path = f"/job_state/{put(store)}"
    answers = [get(timed, path, "alice") for _ in range(20)]
    assert len({(answer.headers["ETag"], answer.body) for answer in answers}) == 1
    times = [int(answer.headers[TIME]) for answer in answers]
    assert times == sorted(times)
    assert times[-1] > times[0]


def test_scripts_of_other_origins_may_read_it(redis_url: str, store: JobStore) -> None:
    """The header is exposed beside those that the application exposes. A request
    without Origin exposes nothing more.
    """

    def expose(event: Any) -> None:
        event.response.headers[EXPOSED] = "ETag, Retry-After"

    config = make_config(redis_url)
    config.add_subscriber(expose, NewResponse)
    app = make_app(config)
    path = f"/job_state/{put(store)}"
    etag = get(app, path, "alice").headers["ETag"]
    for headers in {}, {"If_None_Match": etag}:
        response = get(app, path, "alice", Origin=SHOP, **headers)
        assert response.headers.getall(EXPOSED) == ["ETag, Retry-After", TIME]
    assert get(app, path, "alice").headers.getall(EXPOSED) == ["ETag, Retry-After"]
