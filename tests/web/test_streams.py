"""Streams of states: what a request gets."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
import redis
from pyramid.response import Response
from webtest import TestApp

from pyramid_jobstate import JobState
from pyramid_jobstate.asgi import asgi_app
from tests.asgi import Exchange, Server, pushing
from tests.jobs import messages
from tests.streams import StreamClient
from tests.streams import serving as serving_with_uvicorn
from tests.support import UUID
from tests.webapp import (
    NOWHERE,
    PLACES,
    get,
    make_alias,
    make_config,
    mounted_root,
    put_job,
)

#: Says to a page that polls that it could have a stream.
HINT = "jobstate-stream"
TIME = "jobstate-time"


class Handmade(JobState):
    """A kind that makes its own JSON."""

    def __json__(self, request: Any) -> dict[str, Any]:
        return {**super().__json__(request), "host": request.host}


@pytest.fixture
def server(redis_url: str) -> Iterator[Server]:
    """A server of an application whose jobs are at three places."""
    with pushing(make_config(redis_url, root_factory=mounted_root)) as server:
        yield server


def batch(*uuids: str, place: str = "/job_state") -> str:
    """Return the path of several jobs."""
    return f"{place}?{'&'.join(f'uuid={uuid}' for uuid in uuids)}"


def assert_same_answer(stream: Exchange, poll: Exchange) -> None:
    """Assert that a request for a stream got the answer to a poll."""
    assert (stream.wait().status, stream.body) == (poll.status, poll.body)
    mine, theirs = (
        [header for header in answer.header_list if header[0] not in (HINT, TIME)]
        for answer in (stream, poll)
    )
    assert mine == theirs


def test_stream_tells_of_each_change(redis_url: str, client: redis.Redis) -> None:
    """A stream begins with the state and goes on with each new one until the end."""
    config = make_config(redis_url)
    config.include("pyramid_jobstate")
    uuid = put_job(client, **{"m:miles_run": 1})
    with (
        serving_with_uvicorn(asgi_app(config.make_wsgi_app())) as port,
        StreamClient(port, f"/job_state/{uuid}") as stream,
    ):
        assert stream.status == 200
        assert stream.next().state["miles_run"] == 1
        client.hset(f"jobstate:{uuid}", "m:miles_run", 2)
        assert stream.next().state["miles_run"] == 2
        client.hset(f"jobstate:{uuid}", "status", "success")
        assert stream.next().state["job_state"] == "success"
        assert stream.rest() == []


def test_stream_shows_names_that_decode_to_the_same_text(
    server: Server, client: redis.Redis
) -> None:
    """No value gets the name of another, whatever bytes the names hold."""
    uuid = put_job(client)
    for name, value in (b"m:\xff", b"1"), (b"m:a", b"2"), (b"m:\xfe", b"3"):
        client.hset(f"jobstate:{uuid}", name, value)
    state = server.open(f"/job_state/{uuid}").at(0).state
    assert (state["a"], state["\ufffd"]) == (2, 3)


def test_poll_answers_while_the_store_refuses_to_tell_of_changes(
    server: Server, job: str
) -> None:
    """A request for a stream gets the answer to a poll, which offers none."""
    server.streams.hub._refused_until = float("inf")
    poll = server.poll(f"/job_state/{job}")
    assert HINT not in poll.headers
    assert_same_answer(server.open(f"/job_state/{job}"), poll)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("slash", ["", "/"])
def test_job_streams_at_each_place(
    server: Server, client: redis.Redis, job: str, place: str, slash: str
) -> None:
    """A job streams wherever it can be polled, as the poll's very JSON."""
    path = f"{place}/{job}{slash}"
    poll = server.poll(path)
    stream = server.open(path)
    assert stream.status == 200
    assert stream.at(0).data.encode() == poll.body
    client.hset(f"jobstate:{job}", "status", "success")
    assert stream.at(1).data.encode() == server.poll(path).body
    stream.wait()


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("slash", ["", "/"])
def test_jobs_stream_at_each_place(
    server: Server, client: redis.Redis, place: str, slash: str
) -> None:
    """Several jobs stream in one response, each as the poll's very JSON."""
    uuids = [put_job(client), put_job(client)]
    path = batch(*uuids, place=f"{place}{slash}")
    poll = server.poll(path)
    stream = server.open(path)
    states = f'"{uuids[0]}":{stream.at(0).data},"{uuids[1]}":{stream.at(1).data}'
    assert f'{{"jobs":{{{states}}}}}'.encode() == poll.body
    client.hset(f"jobstate:{uuids[1]}", "status", "success")
    assert stream.at(2).state["job"]["uuid"] == uuids[1]
    client.hset(f"jobstate:{uuids[0]}", "status", "success")
    assert stream.at(3).state["job"]["uuid"] == uuids[0]
    stream.wait()


def test_an_alias_streams_its_job(server: Server, client: redis.Redis) -> None:
    """A page that lost a double click follows the job that won, under its own uuid."""
    winner = put_job(client, **{"m:n": 1})
    loser = str(uuid.uuid4())
    make_alias(client, f"jobstate:{loser}", winner)
    path = f"/job_state/{loser}"
    stream = server.open(path)
    assert stream.at(0).data.encode() == server.poll(path).body
    assert stream.at(0).state["n"] == 1
    assert stream.at(0).state["job"]["uuid"] == loser
    client.hset(f"jobstate:{winner}", "m:n", 2)
    assert stream.at(1).state["n"] == 2
    both = server.open(batch(loser, winner))
    assert [both.at(i).state["job"]["uuid"] for i in (0, 1)] == [loser, winner]
    client.hset(f"jobstate:{winner}", "status", "success")
    assert stream.at(2).state["job_state"] == "success"
    stream.wait()
    both.wait()


@pytest.mark.parametrize("was", ["a job", "another alias"])
def test_job_that_becomes_an_alias_is_gone(
    server: Server, client: redis.Redis, was: str
) -> None:
    """A stream is authorised for the jobs that it began with. Once one of its uuids
    leads to another job, perhaps of somebody else's, a poll decides anew.
    """
    secret = put_job(client, owner='"bob"', message='"secret"')
    loser = put_job(client, status="sending", message='"mine"')
    if was == "another alias":
        make_alias(client, f"jobstate:{loser}", put_job(client, message='"mine"'))
    other = put_job(client)
    stream = server.open(batch(loser, other), "alice")
    assert stream.at(0).state["job"]["message"] == "mine"

    make_alias(client, f"jobstate:{loser}", secret)

    assert stream.at(2).name == "gone"
    assert stream.at(2).data == loser
    client.hset(f"jobstate:{secret}", "m:n", 1)
    client.hset(f"jobstate:{other}", "status", "success")
    assert stream.at(3).state["job"]["uuid"] == other
    stream.wait()
    assert len(stream.events) == 4
    assert server.poll(f"/job_state/{loser}", "alice").status == 403


def test_an_alias_whose_job_is_gone_is_gone(
    server: Server, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pyramid_jobstate.web.push.feed.GRACE", 0.1)
    winner = put_job(client)
    loser = put_job(client, status="sending")
    stream = server.open(f"/job_state/{loser}")
    assert stream.at(0).state["job"]["status"] == "queued"
    client.delete(f"jobstate:{winner}")
    make_alias(client, f"jobstate:{loser}", winner)
    assert stream.at(1).name == "gone"
    stream.wait()


def test_stream_below_a_route_prefix(redis_url: str, job: str) -> None:
    """A job streams below the application's route_prefix."""
    config = make_config(redis_url, route_prefix="shop")
    with pushing(config) as server:
        url = server.open(f"/shop/job_state/{job}").at(0).state["job"]["url"]
    assert url == f"http://example.com/shop/job_state/{job}/"


@pytest.mark.parametrize(
    "accept",
    [
        "text/event-stream",
        "text/event-stream, */*",
        "text/event-stream;q=0.9",
        "Text/Event-Stream",
        "text/event-stream; charset=utf-8; q=0.1, application/json",
        "text/event-stream, application/json;q=0",
    ],
)
def test_accept_that_streams(server: Server, job: str, accept: str) -> None:
    """A request streams whose Accept begins with the type of an event stream."""
    assert server.open(f"/job_state/{job}", accept=accept).is_stream


@pytest.mark.parametrize(
    "accept",
    [
        *(None, "", "*/*", "text/*", "text/event", "text/event-streamer"),
        "application/json, text/event-stream",
        # What its sender does not accept.
        "text/event-stream;q=0",
        "TEXT/EVENT-STREAM ; charset=utf-8 ; Q=0.000, */*",
        "text/event-stream;q=0, text/html;q=0",
        "text/event-stream;q=high",
    ],
)
def test_accept_that_polls(server: Server, job: str, accept: str | None) -> None:
    """Any other Accept polls."""
    poll = server.ask(f"/job_state/{job}", accept=accept)
    assert json.loads(poll.body)["job"]["uuid"] == job
    assert poll.headers["content-type"] == "application/json"


def test_headers_of_a_stream(server: Server, job: str) -> None:
    """Nobody stores, buffers or sniffs a stream. Its length is unknown."""
    assert server.open(f"/job_state/{job}").header_list == [
        ("content-type", "text/event-stream; charset=utf-8"),
        ("cache-control", "no-store"),
        ("x-accel-buffering", "no"),
        ("x-content-type-options", "nosniff"),
        ("vary", "Accept"),
    ]


def test_retry(server: Server, job: str) -> None:
    """A stream says that the client comes again after 1 to 3 seconds."""
    stream = server.open(f"/job_state/{job}")
    stream.at(0)
    line, _, _ = stream.body.decode().partition("\n")
    name, _, millis = line.partition(": ")
    assert name == "retry"
    assert 1000 <= int(millis) <= 3000


def test_head_never_streams(server: Server, job: str) -> None:
    """A HEAD request gets the headers of the poll."""
    answer = server.ask(f"/job_state/{job}", method="HEAD")
    assert answer.body == b""
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers[HINT] == "1"


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH"])
def test_other_methods_do_not_stream(server: Server, job: str, method: str) -> None:
    """Other methods are refused as for a poll."""
    stream = server.ask(f"/job_state/{job}", method=method)
    assert stream.status == 405
    assert_same_answer(stream, server.poll(f"/job_state/{job}", method=method))


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("slash", ["", "/"])
@pytest.mark.parametrize(
    ("path", "user", "status"),
    [
        (f"/{UUID}", "alice", 404),
        ("/JOB", "bob", 403),
        ("/JOB", None, 403),
        ("?uuid=%FF", "alice", 400),
        ("/JOB?x=%FF", "alice", 400),
        (f"?{'&'.join(f'uuid={n}' for n in range(101))}", "alice", 400),
    ],
)
def test_refusal_as_for_a_poll(
    server: Server,
    job: str,
    place: str,
    slash: str,
    path: str,
    user: str | None,
    status: int,
) -> None:
    """What a poll refuses, a stream refuses in the same words."""
    head, mark, query = path.replace("JOB", job).partition("?")
    path = f"{place}{head}{slash}{mark}{query}"
    stream = server.ask(path, user)
    assert stream.status == status
    assert_same_answer(stream, server.poll(path, user))


@pytest.mark.parametrize("path", [f"/{UUID}", f"?uuid={UUID}"])
@pytest.mark.parametrize("place", PLACES)
def test_store_that_does_not_answer(place: str, path: str) -> None:
    """Without an answer of the store, a stream is refused as a poll is."""
    with pushing(make_config(NOWHERE, root_factory=mounted_root)) as server:
        stream = server.ask(f"{place}{path}")
        assert stream.status == 503
        assert stream.headers["retry-after"] == "5"
        assert_same_answer(stream, server.poll(f"{place}{path}"))


def test_query_that_is_not_ascii(server: Server, job: str) -> None:
    """A byte of a query that should have been escaped is refused as under WSGI."""
    assert server.ask(f"/job_state/{job}?x=\xff").status == 400
    assert server.poll(batch(job, "\xff")).status == 400
    stream = server.open(f"/job_state/{job}?x=\xc3\xa9")
    assert stream.at(0).state["job"]["uuid"] == job


def answers(server: Server, client: redis.Redis) -> Iterator[Exchange]:
    """Yield an answer of each sort."""
    path = f"/job_state/{put_job(client)}"
    over = f"/job_state/{put_job(client, status='success')}"
    yield server.poll(path)
    yield server.poll(path, if_none_match=server.poll(path).headers["etag"])
    yield server.poll(batch(UUID))
    yield server.poll("/job_state")
    yield server.poll("/job_state?limit=x")
    yield server.poll(path, "bob")
    yield server.poll(f"/job_state/{UUID}")
    yield server.poll("/job_state/no/such/path")
    yield server.poll(path, method="PUT")
    yield server.poll(f"{path}/cancel", method="POST")
    yield server.poll(f"{path}/cancel", method="POST", x_requested_with="x")
    yield server.poll(f"{over}/cancel", method="POST", x_requested_with="x")
    yield server.open(path)
    stream = server.open(over)
    yield stream
    yield server.ask(over, last_event_id=stream.at(0).id)


def test_vary(server: Server, client: redis.Redis) -> None:
    """Every answer says that it depends on the header Accept."""
    found = list(answers(server, client))
    assert {answer.status for answer in found} == {
        *(200, 202, 204, 304),
        *(400, 403, 404, 405, 409),
    }
    for answer in found:
        assert answer.headers["vary"] == "Accept", answer.status


def test_204_of_a_job_that_is_over(server: Server, client: redis.Redis) -> None:
    """A client that has the last state of a job is told to come no more."""
    uuid = put_job(client, status="success")
    stream = server.ask(f"/job_state/{uuid}")
    assert [event.state["job_state"] for event in stream.events] == ["success"]
    again = server.ask(f"/job_state/{uuid}", last_event_id=stream.events[0].id)
    assert (again.status, again.body) == (204, b"")
    assert again.header_list == [("cache-control", "no-store"), ("vary", "Accept")]


def test_204_of_jobs_that_are_over(server: Server, client: redis.Redis) -> None:
    """So is a client of several jobs, some of them hidden from it, in any order."""
    uuids = [put_job(client, status="success") for _ in range(3)]
    uuids += [put_job(client, owner='"bob"'), UUID]
    stream = server.ask(batch(*uuids))
    assert [event.name for event in stream.events] == ["gone"] * 2 + ["message"] * 3
    last = stream.events[-1].id
    again = server.ask(batch(*reversed(uuids)), last_event_id=last)
    assert (again.status, again.body) == (204, b"")


def test_204_where_all_jobs_are_hidden(server: Server) -> None:
    """A client that may see none of its jobs learns it once."""
    stream = server.ask(batch(UUID, "x"))
    assert [(event.name, event.data) for event in stream.events] == [
        ("gone", UUID),
        ("gone", "x"),
    ]
    last = stream.events[-1].id
    assert server.ask(batch(UUID, "x"), last_event_id=last).status == 204


@pytest.mark.parametrize("last", [None, "", "0", "0" * 16, "zzz", "é"])
def test_200_of_a_client_with_another_id(
    server: Server, client: redis.Redis, last: str | None
) -> None:
    """A client with any other id gets the states, even of jobs that are over."""
    uuid = put_job(client, status="success")
    headers = {} if last is None else {"last_event_id": last}
    stream = server.ask(f"/job_state/{uuid}", **headers)
    assert [event.state["job_state"] for event in stream.events] == ["success"]


def test_polls_say_that_a_stream_could_be_had(server: Server, job: str) -> None:
    """Under ASGI, a poll of one or several visible jobs says so."""
    for path in f"/job_state/{job}", batch(job, UUID):
        poll = server.poll(path)
        assert poll.headers[HINT] == "1"
        etag = poll.headers["etag"]
        assert server.poll(path, if_none_match=etag).headers[HINT] == "1"


def test_wsgi_never_streams(app: TestApp, job: str) -> None:
    """Under WSGI, a request for a stream is a poll, and no poll speaks of streams."""
    path = f"/job_state/{job}"
    poll = get(app, path, "alice")
    assert HINT not in poll.headers
    stream = get(app, path, "alice", Accept="text/event-stream")
    for answer in poll, stream:
        del answer.headers[TIME]
    assert (stream.status, stream.headers) == (poll.status, poll.headers)
    assert stream.body == poll.body


def test_offer_cannot_be_forged(app: TestApp, job: str) -> None:
    """A header cannot pass for the scope of an ASGI server."""
    poll = get(app, f"/job_state/{job}", "alice", asgi_scope="{}")
    assert poll.json["job"]["uuid"] == job


def test_other_asgi_bridges_poll(app: TestApp, job: str) -> None:
    """An application in another bridge between ASGI and WSGI polls."""
    poll = app.get(
        f"/job_state/{job}",
        headers={"X-User": "alice", "Accept": "text/event-stream"},
        extra_environ={"asgi.scope": {"type": "http"}},
    )
    assert poll.content_type == "application/json"


def test_nothing_visible_gets_no_hint(server: Server, client: redis.Redis) -> None:
    """A poll does not speak of streams where it shows nothing that could stream."""
    hidden = put_job(client, owner='"bob"')
    handmade = put_job(client, kind="Handmade")
    for path in batch(hidden, UUID), batch(handmade), f"/job_state/{handmade}":
        poll = server.poll(path)
        assert poll.status == 200
        assert HINT not in poll.headers
    assert HINT not in server.poll("/job_state").headers


@pytest.mark.parametrize("setting", ["0", 0])
def test_without_push(
    redis_url: str, job: str, setting: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """With max_streams = 0 all polls, none speaks of streams, and nothing is logged."""
    settings = {"jobstate.max_streams": setting}
    with pushing(make_config(redis_url, settings=settings)) as server:
        poll = server.poll(f"/job_state/{job}")
        assert HINT not in poll.headers
        assert_same_answer(server.ask(f"/job_state/{job}"), poll)
    assert messages(caplog, "pyramid_jobstate") == []


def test_known_version_is_no_stream(server: Server, job: str) -> None:
    """A request that names a known version gets 304, as a poll does."""
    etag = server.poll(f"/job_state/{job}").headers["etag"]
    assert server.ask(f"/job_state/{job}", if_none_match=etag).status == 304


def test_cancel_beside_a_stream(server: Server, client: redis.Redis, job: str) -> None:
    """A job is cancelled as ever, and its stream tells of it."""
    stream = server.open(f"/job_state/{job}")
    stream.at(0)
    answer = server.ask(f"/job_state/{job}/cancel", method="POST", x_requested_with="x")
    assert answer.status == 202
    assert answer.headers["content-type"] == "application/json"
    assert stream.at(1).state["job"]["status"] == "cancelling"


def test_websockets_are_refused(server: Server) -> None:
    """Only HTTP requests are served. a2wsgi closes websockets."""
    sent: list[Any] = []

    async def connect() -> None:
        async def receive() -> dict[str, Any]:
            return {"type": "websocket.connect"}

        async def send(message: Any) -> None:
            sent.append(message["type"])

        await server.app({"type": "websocket"}, receive, send)

    server.run(connect())
    assert sent == ["websocket.close"]


def ask_with_headers(
    server: Server, path: str, *headers: tuple[bytes, bytes]
) -> Exchange:
    """Make a request with headers as a server passes them."""
    answer = Exchange(server.loop)
    scope = {
        "type": "http",
        "http_version": "1.1",
        "method": "GET",
        "path": path,
        "query_string": b"",
        "headers": headers,
    }
    serve: Any = server.app(scope, answer.receive, answer.send)
    server.run(serve)
    return answer


def test_cookies_that_http2_has_split(redis_url: str, job: str) -> None:
    """The application gets all cookies of a request in one header."""
    config = make_config(redis_url)
    config.add_route("cookies", "/cookies")
    config.add_view(
        lambda request: Response(json=dict(request.cookies)), route_name="cookies"
    )
    with pushing(config) as server:
        answer = ask_with_headers(
            server,
            "/cookies",
            (b"cookie", b"a=1"),
            (b"accept", b"*/*"),
            (b"cookie", b"b=2"),
        )
    assert json.loads(answer.body) == {"a": "1", "b": "2"}


def test_underscores_cannot_pass_for_hyphens(server: Server, job: str) -> None:
    """A header with an underscore, which a proxy lets through, does not count."""
    path = f"/job_state/{job}"
    assert ask_with_headers(server, path, (b"x-user", b"alice")).status == 200
    assert ask_with_headers(server, path, (b"x_user", b"alice")).status == 403
