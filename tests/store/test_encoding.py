"""Bytes in the store that are not UTF-8, read by any client."""

from collections.abc import Iterator
from typing import Any

import dramatiq
import pytest
import redis
from webtest import TestApp

from pyramid_jobstate import JobStore
from pyramid_jobstate.job.changes import NewJob, Update
from tests.jobs import new_id
from tests.support import INFO
from tests.webapp import ADMIN, get, make_app, make_broker, make_config, put_job

CLIENTS: list[dict[str, Any]] = [
    {"decode_responses": decode, "protocol": protocol, **more}
    for decode in (True, False)
    for protocol in (2, 3)
    for more in (
        {},
        {"encoding": "latin-1"},
        {"encoding_errors": "ignore"},
        {"encoding_errors": "replace"},
        {"encoding": "latin-1", "encoding_errors": "replace"},
    )
]


@pytest.fixture(params=CLIENTS, ids=str)
def own(redis_url: str, request: pytest.FixtureRequest) -> Iterator[redis.Redis]:
    """A client of the application's own, with one connection."""
    with redis.Redis.from_url(
        redis_url, single_connection_client=True, **request.param
    ) as client:
        yield client


@pytest.fixture
def own_app(redis_url: str, own: redis.Redis) -> TestApp:
    config = make_config(None)
    config.include("pyramid_jobstate")
    config.set_job_store(JobStore(own))
    return TestApp(config.make_wsgi_app())


@pytest.mark.parametrize(
    ("field", "value"),
    [("m:x", b'"\xff"'), (b"m:\xff", b"1"), (b"\xff", b""), ("message", b'"\xe9"')],
)
def test_undecodable_bytes_do_not_fail_a_poll(
    own_app: TestApp, client: redis.Redis, field: str | bytes, value: bytes
) -> None:
    """A job is shown whatever bytes its hash contains, and so is the next one."""
    bad, good = put_job(client), put_job(client)
    client.hset(f"jobstate:{bad}", field, value)

    for _ in range(2):
        assert get(own_app, f"/job_state/{bad}", "alice").json["job"]["uuid"] == bad
        assert get(own_app, f"/job_state/{good}", "alice").json["job"]["uuid"] == good
    batch = get(own_app, f"/job_state?uuid={bad}&uuid={good}", "alice").json["jobs"]
    assert [state["job"]["uuid"] for state in batch.values()] == [bad, good]


def test_undecodable_bytes_read_as_replaced(
    own_app: TestApp, client: redis.Redis
) -> None:
    """Undecodable bytes read as the replacement character."""
    job = put_job(client, **{"m:x": b'"a\xffb"'})

    assert get(own_app, f"/job_state/{job}", "alice").json["x"] == "a\ufffdb"


def assert_reads(app: TestApp, client: redis.Redis) -> None:
    """Assert that a job reads right of which two names decode to the same text."""
    job = put_job(client)
    client.zadd("jobstate:active:all", {job: 1e15})
    # One by one, since their order matters.
    for name, value in (b"m:\xff", b"1"), (b"m:a", b"2"), (b"m:\xfe", b"3"):
        client.hset(f"jobstate:{job}", name, value)
    alone = get(app, f"/job_state/{job}", "alice").json
    batch = get(app, f"/job_state?uuid={job}&uuid={new_id()}", "alice").json
    page = get(app, "/job_state?all=1", ADMIN).json
    for state in alone, batch["jobs"][job], page["items"][0]:
        assert (state["job"]["uuid"], state["a"], state["\ufffd"]) == (job, 2, 3)


def test_names_may_decode_to_the_same_text(
    own_app: TestApp, client: redis.Redis
) -> None:
    """No value gets the name of another."""
    assert_reads(own_app, client)


@pytest.mark.parametrize("query", ["", "?protocol=3"])
def test_they_may_with_a_client_of_ours(
    redis_url: str, client: redis.Redis, query: str
) -> None:
    """The same holds for the client of a URL."""
    assert_reads(make_app(make_config(redis_url + query)), client)


def test_they_may_with_a_client_like_that_of_the_broker(
    redis_url: str, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same holds for the client that the middleware makes."""
    monkeypatch.setattr(dramatiq.broker, "global_broker", make_broker(redis_url))
    assert_reads(make_app(make_config(None)), client)


def test_bytes_in_an_index_do_not_fail_a_list(
    own_app: TestApp, client: redis.Redis
) -> None:
    """Entries of an index that are not text are skipped."""
    job = put_job(client)
    client.zadd("jobstate:active:all", {b"\xff\xfe": 2e15, job.encode(): 1e15})

    items = get(own_app, "/job_state?all=1", ADMIN).json["items"]

    assert [item["job"]["uuid"] for item in items] == [job]


def test_bytes_among_the_cancelled_do_not_fail_a_worker(
    own: redis.Redis, client: redis.Redis
) -> None:
    """A worker that asks for cancellations gets them, whatever bytes precede them."""
    store, job = JobStore(own), new_id()
    client.zadd("jobstate:cancels", {b"\xff": 1e15, job.encode(): 1e15 + 1})

    cancelled, since = store.cancels(0)

    assert job in cancelled
    assert since == 10**15 + 1


def test_text_is_utf_8_whatever_the_client_says(own: redis.Redis) -> None:
    """Text is written and read as UTF-8, even by a client with another encoding."""
    store, job = JobStore(own), new_id()
    store.create(NewJob(job, INFO))

    store.write([Update(job, "a" * 12, 1, INFO, {"m:Åsa": '"→"'}, begins=True)])

    job_state = store.load(job)
    assert job_state is not None
    assert job_state.progress_metrics == {"Åsa": "→"}
    assert [found.uuid for found in store.list("alice").items] == [job]


class OwnClient(redis.Redis):
    """A class of the application's, such as one that is traced."""


def test_client_may_be_of_a_class_of_the_applications(redis_url: str) -> None:
    """It is treated as its base."""
    with OwnClient.from_url(redis_url) as client:
        store, jobs = JobStore(client), [new_id(), new_id()]
        store.create(*(NewJob(job, INFO) for job in jobs))

        alone = store.load(jobs[0])
        both = store.load_many(jobs)

    assert alone is not None
    assert [job and job.uuid for job in both] == jobs


def test_bytes_in_a_token_do_not_fail_a_sending(
    own: redis.Redis, client: redis.Redis
) -> None:
    """A script's reply that is not text does not break the next reply."""
    store, other = JobStore(own), new_id()
    job = put_job(client, status="error", run=b"\xff")

    assert store.create(NewJob(job, INFO), NewJob(other, INFO)) == [False, True]
    assert [found and found.uuid for found in store.load_many([job, other])] == [
        job,
        other,
    ]
