"""Streams of states: what a request gets."""

import contextlib
import gc
import gzip
import itertools
import json
import random
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from pyramid.authorization import Allow, Deny, Everyone
from pyramid.config import Configurator
from pyramid.events import NewResponse
from pyramid.i18n import TranslationStringFactory
from pyramid.request import Request
from pyramid.response import Response
from pyramid.session import SignedCookieSessionFactory
from pyramid.threadlocal import get_current_registry, get_current_request

from pyramid_jobstate import Batch, JobState
from pyramid_jobstate.testing import pass_time, put_batch
from tests.asgi import FEEDS, LOOKS, Event, Exchange, Server, pushing
from tests.catalogs import write_catalog
from tests.jobs import Gate, RunMarathon, messages
from tests.support import UUID, load_job, wait_for
from tests.web.streaming import (
    HINT,
    TIME,
    OwnJson,
    PublicRun,
    batch,
    one,
    pooling,
    put,
    refusing_threads,
    report,
    see_an_end,
    statuses,
)
from tests.webapp import PLACES, Policy, get, make_alias, make_config, make_tm_config


def assert_same_answer(stream: Exchange, poll: Exchange) -> None:
    """Assert that a request for a stream got the answer to a poll."""
    assert (stream.wait().status, stream.body) == (poll.status, poll.body)
    mine, theirs = (
        [header for header in answer.header_list if header[0] not in (HINT, TIME)]
        for answer in (stream, poll)
    )
    assert mine == theirs


@pytest.mark.promise("asgi-finds-what-wsgi-finds")
def test_jobs_stream_wherever_they_are_polled(pushed, store):
    """One job or several stream at each place, each as the poll's very JSON."""
    for path in PLACES:
        uuids = [put(store, "queued"), put(store, "queued")]
        alone = f"{path}/{uuids[0]}"
        single, several = pushed.open(alone), pushed.open(batch(*uuids, place=path))
        assert single.at(0).data.encode() == pushed.poll(alone).body, path
        states = [f'"{uuids[n]}":{several.at(n).data}' for n in (0, 1)]
        polled = pushed.poll(batch(*uuids, place=path)).body
        assert f'{{"jobs":{{{",".join(states)}}}}}'.encode() == polled, path
        for number, uuid in enumerate(reversed(uuids)):
            load_job(store, uuid).cancel()
            assert several.at(2 + number).state["job"]["uuid"] == uuid, path
        assert single.at(1).data.encode() == pushed.poll(alone).body, path
        single.wait()
        several.wait()


# Aliases


def test_alias_streams_its_job(pushed, store):
    """An alias, also of an alias, shows the job that won, under its own uuid."""
    winner, second, first = (put(store, "queued") for _ in range(3))
    make_alias(store.client, f"jobstate:{second}", winner)
    make_alias(store.client, f"jobstate:{first}", second)
    stream = pushed.open(one(first))
    assert stream.at(0).data.encode() == pushed.poll(one(first)).body
    both = pushed.open(batch(second, winner))
    assert [both.at(i).state["job"]["uuid"] for i in (0, 1)] == [second, winner]
    load_job(store, winner).cancel()
    assert stream.at(1).state["job"]["status"] == "cancelled"
    stream.wait()
    both.wait()


def test_job_that_becomes_an_alias_is_gone(pushed, store):
    """Once a uuid leads to another job, perhaps of others, a poll decides anew."""
    loser, other = put(store, "queued"), put(store, "queued")
    winner = put(store, "queued", owner="bob")
    stream = pushed.watch(batch(loser, other), count=2)
    make_alias(store.client, f"jobstate:{loser}", winner)
    assert stream.at(2)[:2] == ("gone", loser)
    for uuid in winner, other:
        load_job(store, uuid).cancel()
    assert stream.at(3).state["job"]["uuid"] == other
    assert len(stream.wait().events) == 4
    assert pushed.poll(one(loser)).status == 403


# Requests


def test_accept_decides(pushed, store):
    """A request streams if its Accept begins with text/event-stream and allows it."""
    path = one(put(store))
    for accept in (
        "text/event-stream",
        "text/event-stream, */*",
        "Text/Event-Stream; charset=utf-8; q=0.1, application/json",
        "text/event-stream, application/json;q=0",
    ):
        assert pushed.open(path, accept=accept).is_stream, accept
    for other in (
        *(None, "*/*", "text/*", "text/event-streamer"),
        "application/json, text/event-stream",
        "TEXT/EVENT-STREAM ; charset=utf-8 ; Q=0.000, */*",
    ):
        answer = pushed.ask(path, accept=other)
        assert answer.headers["content-type"] == "application/json", other


def test_beginning_of_a_stream(pushed, store):
    """Nobody stores, buffers or sniffs a stream. Its client comes again in 1 to 3 s."""
    stream = pushed.open(one(put(store)))
    assert stream.header_list == [
        ("content-type", "text/event-stream; charset=utf-8"),
        ("cache-control", "no-store"),
        ("x-accel-buffering", "no"),
        ("x-content-type-options", "nosniff"),
        ("vary", "Accept"),
    ]
    stream.at(0)
    name, _, millis = stream.body.decode().partition("\n")[0].partition(": ")
    assert name == "retry"
    assert 1000 <= int(millis) <= 3000


@pytest.mark.promise("asgi-finds-what-wsgi-finds")
def test_what_a_poll_refuses_a_stream_refuses(pushed, store):
    """The answer is that of a poll, also to HEAD. It depends on the header Accept."""
    job = put(store)
    etag = pushed.poll(one(job)).headers["etag"]
    for path, user, options, status in (
        (one(UUID), "alice", {}, 404),
        (one(job), "bob", {}, 403),
        ("/job_state?uuid=%FF", "alice", {}, 400),
        (one(job), "alice", {"method": "PUT"}, 405),
        (one(job), "alice", {"method": "HEAD"}, 200),
        (one(job), "alice", {"if_none_match": etag}, 304),
    ):
        given: Any = options
        stream = pushed.ask(path, user, **given)
        assert (stream.status, stream.headers["vary"]) == (status, "Accept"), path
        assert_same_answer(stream, pushed.poll(path, user, **given))
    for path in one(job), batch(UUID), "/job_state":
        assert pushed.poll(path).headers["vary"] == "Accept"


# Clients that come again


def test_id_stands_for_what_was_shown(pushed, runs):
    """It fits the state of one job, or of several in any order, and no others."""
    run = runs.start(n=1)
    first = pushed.open(one(run.uuid)).at(0).id
    assert first is not None and len(first) == 16
    again = pushed.open(one(run.uuid), last_event_id=first)
    assert again.opening
    run.report(n=2)
    second = again.at(0)
    assert second.state["n"] == 2
    assert second.id not in (None, first)
    # Who has an outdated state gets the new one at once.
    assert pushed.open(one(run.uuid), last_event_id=first).at(0) == second
    several = [runs.start() for _ in range(3)]
    uuids = [run.uuid for run in several]
    stream = pushed.open(batch(*uuids, UUID))
    ids = [stream.at(number).id for number in range(4)]
    assert ids[:3] == [None] * 3
    again = pushed.open(batch(UUID, *reversed(uuids)), last_event_id=ids[3])
    assert again.opening
    several[1].report(n=2)
    newer = stream.at(4).id
    assert again.at(0).id == newer
    current = pushed.open(batch(*uuids), last_event_id=newer)
    assert current.opening
    assert pushed.open(batch(*uuids[1:]), last_event_id=newer).at(0).name == "message"
    several[1].report(n=3)
    assert current.at(0).state["n"] == 3


def test_client_that_has_all_ends_is_told_to_come_no_more(pushed, store):
    """Who has the last states of all jobs, in any order, gets a 204."""
    over = put(store, "success")
    stream = pushed.ask(one(over))
    assert [event.state["job_state"] for event in stream.events] == ["success"]
    last = stream.events[0].id
    again = pushed.ask(one(over), last_event_id=last)
    assert (again.status, again.body) == (204, b"")
    assert again.header_list == [("cache-control", "no-store"), ("vary", "Accept")]
    # Rights are asked for first.
    assert pushed.ask(one(over), "bob", last_event_id=last).status == 403
    for other in "", "0" * 16, "é":
        assert pushed.ask(one(over), last_event_id=other).events == stream.events, other
    several = [over, put(store, "error"), put(store, owner="bob"), UUID]
    for uuids in several, [UUID, "x"]:
        stream = pushed.ask(batch(*uuids))
        assert len(stream.events) == len(uuids)
        last = stream.events[-1].id
        assert pushed.ask(batch(*reversed(uuids)), last_event_id=last).status == 204


def test_uuid_with_a_line_break_begins_no_event(pushed, store):
    """What cannot be a uuid is quoted in the event that says so."""
    job = put(store)
    forged = 'x%0A%0Aevent: message%0Adata: {"job_state": "success"}'
    stream = pushed.open(batch(job, forged).replace(" ", "%20"))
    assert stream.at(0).name == "gone"
    assert stream.at(1).state["job"]["uuid"] == job
    assert b'"success"' not in stream.body


# Polls


def test_polls_say_that_a_stream_could_be_had(pushed, store):
    """Under ASGI, a poll of jobs of which one is visible and could stream says so."""
    job, hidden = put(store), put(store, kind=OwnJson)
    for path in one(job), batch(job, UUID):
        poll = pushed.poll(path)
        assert poll.headers[HINT] == "1"
        etag = poll.headers["etag"]
        assert pushed.poll(path, if_none_match=etag).headers[HINT] == "1"
    for path in batch(put(store, owner="bob"), UUID), batch(hidden), "/job_state":
        assert HINT not in pushed.poll(path).headers


@pytest.mark.promise("refused-stream-falls-back")
def test_wsgi_never_streams(app, store):
    """Under WSGI, also in another bridge, all poll, and no poll speaks of streams."""
    path = one(put(store))
    headers = {"X-User": "alice", "Accept": "text/event-stream"}
    poll = get(app, path, "alice", asgi_scope="{}")
    for extra in {}, {"asgi.scope": {"type": "http"}}:
        answer = app.get(path, headers=headers, extra_environ=extra)
        assert HINT not in {*answer.headers, *poll.headers}
        assert (answer.status, answer.body) == (poll.status, poll.body)


def test_without_push(redis_url, store, caplog):
    """With max_streams = 0, or if the owner raises, all poll, and none is offered."""

    def owner(request: Request) -> str:
        raise LookupError("no session")

    path = one(put(store, kind=PublicRun))
    for name, value in ("max_streams", "0"), ("owner", owner):
        config = make_config(redis_url, settings={f"jobstate.{name}": value})
        with pushing(config) as server:
            poll = server.poll(path, None)
            assert (poll.status, HINT in poll.headers) == (200, False), name
            assert_same_answer(server.ask(path, None), poll)
        assert name == "owner" or messages(caplog, "pyramid_jobstate") == []


# Among tweens and subscribers, and in WSGI applications

Change = Callable[[Request, Response], Response | None]


def changing_tween(handler: Callable[[Request], Response], registry: Any) -> Any:
    """A tween that changes responses as the test says, or returns others."""

    def tween(request: Request) -> Response:
        response = handler(request)
        for change in registry["changes"]:
            response = change(request, response) or response
        return response

    return tween


def with_tween(config: Configurator, **where: Any) -> Configurator:
    config.registry["changes"] = []
    config.add_tween(f"{__name__}.changing_tween", **where)
    config.set_session_factory(SignedCookieSessionFactory("secret"))
    return config


@pytest.fixture
def server(redis_url: str) -> Iterator[Server]:
    """An application with a session, the subscriber and the tween."""
    config = with_tween(make_config(redis_url))
    config.add_subscriber(lambda e: e.response.headers.add("X-Mark", "1"), NewResponse)
    with pushing(config) as server:
        yield server


def test_headers_of_the_application_are_kept(server, store):
    """A stream and a 204 bear what the application adds. What describes a poll goes."""

    def decorate(request: Request, response: Response) -> None:
        request.session["seen"] = 1
        response.set_cookie("a", "1")
        response.set_cookie("b", "2")
        response.headers["Access-Control-Allow-Origin"] = "https://other.example"
        response.vary = ["Accept", "Origin"]
        response.etag = "other"
        request.add_response_callback(lambda _, r: r.headers.add("X-Callback", "1"))

    server.config.registry["changes"] = [decorate]
    path = one(put(store, "success"))
    stream = server.ask(path)
    over = server.ask(path, last_event_id=stream.at(0).id)
    assert (stream.status, over.status) == (200, 204)
    for answer in stream, over:
        headers = answer.headers
        cookies = [v for k, v in answer.header_list if k == "set-cookie"]
        assert sorted(cookie[:2] for cookie in cookies) == ["a=", "b=", "se"]
        assert headers["access-control-allow-origin"] == "https://other.example"
        assert headers["vary"] == "Accept, Origin"
        assert (headers["x-mark"], headers["x-callback"]) == ("1", "1")
        assert not {"etag", "content-length"} & headers.keys()


def test_tween_that_replaces_the_answer(server, store):
    """What a tween makes of a poll's answer is sent as it is."""
    job = put(store)
    replacements: dict[str, Change] = {
        "copy": lambda request, response: response.copy(),
        "status": lambda request, response: setattr(response, "status", 500),
        "encoding": lambda request, response: response.encode_content("gzip"),
    }
    for name, replace in replacements.items():
        server.config.registry["changes"] = [replace]
        answer = server.ask(one(job))
        assert answer.status == (500 if name == "status" else 200), name
        body = answer.body
        body = gzip.decompress(body) if name == "encoding" else body
        assert json.loads(body)["job"]["uuid"] == job, name


def test_request_ends_before_its_stream(redis_url, store):
    """The transaction and the request end, and are freed, before their stream."""
    ended: list[str] = []
    kept: list[weakref.ref[Any]] = []

    def keep(request: Request, response: Response) -> None:
        request.tm.get().addAfterCommitHook(lambda ok: ended.append("transaction"))
        request.add_finished_callback(lambda request: ended.append("request"))
        kept.extend(map(weakref.ref, (request, response, request.context)))

    def is_free() -> bool:
        gc.collect()
        return [ref() for ref in kept] == [None] * 3

    config = with_tween(make_tm_config(redis_url), under="pyramid_tm.tm_tween_factory")
    with pushing(config) as server:
        config.registry["changes"] = [keep]
        stream = server.watch(one(put(store)))
        assert ended == ["transaction", "request"]
        # The thread that ran the view may be about to forget it.
        wait_for(is_free)
        assert not stream.is_done


def buffered(app: Any) -> Any:
    """Return a WSGI application that sends, compresses or drops whole answers."""

    def application(environ: Any, start_response: Any) -> Any:
        found: list[Any] = []
        body = b"".join(app(environ, lambda *start: found.extend(start)))
        status, headers = found
        if environ.get("HTTP_X_THEN") == "fail":
            raise LookupError("too late")
        if environ.get("HTTP_X_THEN") == "zip":
            headers = [*headers, ("Content-Encoding", "gzip")]
            body = gzip.compress(body)
        start_response(status, [*headers, ("Content-Length", str(len(body)))])
        return [body, b""]

    return application


def test_wsgi_application_around_pyramids(redis_url, store):
    """A stream passes one that buffers, or makes something else of it, or fails."""
    with pushing(make_config(redis_url), buffered, rooms=1) as server:
        job, other = put(store, "queued"), one(put(store))
        stream = server.open(one(job))
        assert stream.at(0).name == "message"
        assert "content-length" not in stream.headers
        load_job(store, job).cancel()
        assert statuses(stream.wait()) == ["queued", "cancelled"]
        with pytest.raises(LookupError, match="too late"):
            server.ask(other, x_then="fail")
        body = gzip.decompress(server.ask(other, x_then="zip").body)
        assert body.startswith(b"retry: ")
        assert b"\ndata: {" not in body
        assert server.open(other).is_stream


# Who gets which states: those who get them by a poll


class OpenJob(JobState):
    def __acl__(self) -> list[tuple[str, Any, Any]]:
        return [(Allow, "carol", "cancel_job"), (Allow, Everyone, "view_job")]


class ClosedJob(JobState):
    def __acl__(self) -> list[tuple[str, Any, Any]]:
        return [(Deny, Everyone, ("view_job", "cancel_job"))]


KINDS = [RunMarathon, OpenJob, ClosedJob, OwnJson]
USERS = ["alice", "bob", "carol", "admin", "1", None]
OWNERS = ["alice", "bob", "1", 1, 1.0, None]


def shown_by(stream: Exchange) -> dict[str, Any]:
    """Return the first states of a stream, with None for what has gone."""
    found: dict[str, Any] = {}
    for event in stream.events:
        if event.name == "gone":
            found[event.data] = None
        elif event.name == "message":
            found[event.state["job"]["uuid"]] = event.state
    return found


@pytest.mark.parametrize(
    "count", [25, pytest.param(1000, marks=pytest.mark.long)], ids=str
)
@pytest.mark.timeout(600)
def test_streams_show_what_polls_show(pushed, store, count):
    """A stream shows the same states as a poll to whoever asks for them."""
    chance = random.Random(count)
    for _ in range(count):
        jobs = []
        for number in range(chance.randint(1, 4)):
            status, kind = chance.choice(["working", "success"]), chance.choice(KINDS)
            owner, message = chance.choice(OWNERS), f"secret of {number}"
            jobs.append(put(store, status, kind, owner, message=message))
        uuids = chance.sample([*jobs, UUID, "x"], chance.randint(1, len(jobs) + 2))
        user = chance.choice(USERS)
        polled = json.loads(pushed.poll(batch(*uuids), user).body)["jobs"]
        stream = pushed.open(batch(*uuids), user)
        if not stream.is_stream:
            # Nothing could be streamed of a single job.
            assert json.loads(stream.wait().body)["jobs"] == polled
            assert len(uuids) == 1
            continue
        stream.at(len(uuids) - 1)
        shown = shown_by(stream)
        assert sorted(shown) == sorted(uuids)
        for uuid, state in shown.items():
            if polled[uuid] is not None and "mine" not in polled[uuid]:
                assert state == polled[uuid]
            else:
                assert state is None
        stream.go()


def test_others_get_no_byte(pushed, store):
    """Nobody gets a byte of another's job, or learns whether there is one."""
    theirs = put(store, message="SECRET", metrics={"secret": "SECRET"})
    own = put(store, "queued", owner="bob")
    for user in "bob", None:
        alone = pushed.ask(one(theirs), user)
        assert (alone.status, b"SECRET" in alone.body) == (403, False)
    stream = pushed.watch(batch(own, theirs), "bob", count=2)
    for uuid in theirs, own:
        load_job(store, uuid).cancel()
    stream.wait()
    assert b"SECRET" not in stream.body
    assert shown_by(stream)[theirs] is None
    assert len(stream.events) == 3
    bodies = []
    for hidden in put(store, owner="carol"), UUID:
        stream = pushed.ask(batch(hidden, "x"))
        text = stream.body.decode().replace(hidden, "HIDDEN")
        bodies.append([stream.header_list, text.partition("\n\n")[2]])
    assert bodies[0] == bodies[1]


@pytest.mark.promise("stream-ends-in-time")
def test_streams_end_at_their_age(redis_url, store):
    """Streams end at 80 to 100 % of stream_max_age, 5 minutes, and not all at once."""
    path = one(put(store, "queued", PublicRun))
    with pushing(make_config(redis_url), rooms=21) as server:
        streams = [server.watch(path, None) for _ in range(20)]
        server.pass_time(235)
        server.pass_time(1)
        assert not any(stream.is_done for stream in streams)
        server.pass_time(34)
        server.pass_time(1)
        wait_for(lambda: any(stream.is_done for stream in streams))
        assert not all(stream.is_done for stream in streams)
        server.pass_time(30)
        for stream in streams:
            stream.wait()


class Revocable(Policy):
    may = True

    def permits(self, request: Request, context: Any, permission: str) -> Any:
        return self.may and super().permits(request, context, permission)


@pytest.mark.promise("lost-rights-last-for-a-stream")
def test_lost_rights_end_with_the_stream(redis_url, store):
    """Each poll asks for rights, and so does who comes again to a stream that ended."""
    policy, job = Revocable(), put(store, "queued", OpenJob)
    settings = {"jobstate.stream_max_age": "0.5s"}
    config = make_config(redis_url, settings=settings, security_policy=policy)
    with pushing(config) as server:
        stream = server.open(one(job), "carol")
        assert stream.at(0).state["job"]["cancellable"] is True
        policy.may = False
        assert server.poll(one(job), "carol").status == 403
        stream.wait(5)
        last = stream.events[-1].id
        assert {event.name for event in stream.events} == {"message"}
        assert server.ask(one(job), "carol", last_event_id=last).status == 403
        policy.may = True
        assert server.open(one(job), "carol", last_event_id=last).opening
        own = server.open(one(put(store)))
        last = own.at(0).id
        path = one(own.at(0).state["job"]["uuid"])
        assert server.ask(path, None, last_event_id=last).status == 403


# The events: states, which are rendered without a request, and others.


_ = TranslationStringFactory("marathons")
_numbers = itertools.count()

Lines = Callable[[], list[str]]


def make_kind(**attributes: Any) -> type[JobState]:
    """Return a new kind of job, whose troubles were not logged yet."""
    return type(f"Asking{next(_numbers)}", (JobState,), attributes)


# What a class may ask


def request_of(job_state: JobState) -> Any:
    return job_state.__parent__.request


#: What an application's code may ask the request of a job for.
QUESTIONS: dict[str, Callable[[JobState], object]] = {
    "attribute": lambda job: request_of(job).host,
    "registry": lambda job: request_of(job).registry.settings,
    "url": lambda job: request_of(job).resource_url(job.__parent__),
    "has_permission": lambda job: request_of(job).has_permission("edit", job),
    "edit": lambda job: job.__parent__.permits(job, "edit"),
    "other": lambda job: job.__parent__.permits(job.__parent__, "cancel_job"),
    "find": lambda job: job.__parent__.find(job.uuid),
    "rerun": lambda job: job.rerun(),
    "owner": lambda job: job.__parent__.current_owner,
    "acl": lambda job: job.__acl__(),
    "current request": lambda job: get_current_request().host,
    "current registry": lambda job: get_current_registry().settings,
}


def test_title_that_asks_its_request(pushed, store, said):
    """A job streams nothing once its class asks for more, and hides what is raised."""
    other = put(store)
    for name, question in QUESTIONS.items():

        def title(self: JobState, ask: Callable[[JobState], object] = question) -> str:
            with contextlib.suppress(Exception):
                ask(self)
            return "Asked"

        kind = make_kind(title=property(title))
        asking = put(store, kind=kind)
        # The poll is answered as ever.
        assert b'"Asked"' in pushed.poll(one(asking)).body, name
        stream = pushed.open(batch(asking, other))
        assert stream.at(0) == Event("gone", asking, None), name
        assert stream.at(1).state["job"]["uuid"] == other
        assert b"Asked" not in stream.body
        stream.go()
        (line,) = said()
        start = f"Jobs of kind {kind.kind!r} are polled: a stream has no request"
        assert line.startswith(start), name


def test_error_that_asks_its_request(pushed, runs, said, caplog):
    """A job is streamed until its class asks for more or raises, then polled."""

    def init(self: JobState, *arguments: Any) -> None:
        JobState.__init__(self, *arguments)
        if threading.current_thread().name == FEEDS:
            assert self.get_progress_metric("n") != 2

    def public_error(self: JobState, exception_type: str, message: str) -> str:
        return f"It failed on {request_of(self).host}"

    def broken(self: JobState, exception_type: str, message: str) -> str:
        return f"{1 / 0}"

    kind = make_kind(public_error=public_error)
    run, other = runs.start(kind), runs.start()
    failing = runs.start(make_kind(public_error=broken))
    raising = runs.start(make_kind(__init__=init), n=1)
    uuids = [each.uuid for each in (run, other, failing, raising)]
    stream = pushed.watch(batch(*uuids), count=4)
    raising.report(n=2)
    assert stream.at(4)[:2] == ("gone", raising.uuid)
    for number, each in (5, run), (6, failing):
        each.fail(ValueError("x"))
        assert stream.at(number)[:2] == ("gone", each.uuid)
    assert b"It failed on example.com" in pushed.poll(one(run.uuid)).body
    assert "ZeroDivisionError" in caplog.text
    assert [kind.kind in line for line in said()] == [False, True, False]
    other.report(n=1)
    assert stream.at(7).state["job"]["uuid"] == other.uuid


def test_success_with_a_result_is_polled(pushed, runs, said):
    """A job with a result streams until it succeeds. A poll then gives the link."""

    def result_url(self: JobState, request: Any) -> str:
        return f"{request.host_url}/reports/{self.attempt}"

    kind = make_kind(result_url=result_url)
    run, failing = runs.start(kind), runs.start(kind)
    stream = pushed.open(batch(run.uuid, failing.uuid))
    assert [stream.at(n).state["job"]["result"] for n in (0, 1)] == [None, None]
    run.report(n=1)
    assert stream.at(2).state["n"] == 1
    run.succeed()
    assert stream.at(3)[:2] == ("gone", run.uuid)
    failing.fail(ValueError("x"))
    assert stream.at(4).state["job"]["status"] == "error"
    stream.wait()
    assert b"/reports/1" in pushed.poll(one(run.uuid)).body
    assert said() == []


def test_kind_with_json_of_its_own(pushed, store, said):
    """A kind that overrides __json__ is polled, which is logged once."""
    kind = make_kind(__json__=lambda self, request: {"secret": request.host})
    handmade = put(store, kind=kind)
    for _ in range(2):
        answer = pushed.ask(one(handmade))
        assert answer.body == b'{"secret":"example.com"}'
        assert HINT not in answer.headers
    (line,) = said()
    start = f"Jobs of kind {kind.kind!r} are polled: a stream has no request"
    assert line == f"{start} for {__name__}.{kind.kind}.__json__()."


# Viewers


def test_viewers_in_two_languages(redis_url, runs, tmp_path):
    """Each viewer of a job gets it in their own language, as in a poll."""
    write_catalog(tmp_path, "marathons", "de", {"Marathon": "Lauf über 42 km"})
    config = make_config(redis_url)
    config.add_translation_dirs(str(tmp_path))
    run = runs.start(make_kind(title=property(lambda self: _("Marathon"))))
    english_url = one(run.uuid)
    german_url = f"{english_url}?_LOCALE_=de"
    with pushing(config) as server:
        english, german = server.open(english_url), server.open(german_url)
        for number in 0, 1:
            found = [s.at(number).state["job"]["title"] for s in (english, german)]
            assert found == ["Marathon", "Lauf über 42 km"]
            run.report(n=number)
        assert german.at(2).data.encode() == server.poll(german_url).body


def test_policy_that_raises_for_cancel_job(redis_url, store):
    """A policy that raises for what no poll asks fails no request for a stream."""

    class Raising(Policy):
        def permits(self, request: Request, context: Any, permission: str) -> Any:
            if permission == "cancel_job" and isinstance(context, kind):
                raise LookupError
            return super().permits(request, context, permission)

    kind = make_kind()
    over, other = (put(store, "success", kind) for _ in range(2))
    with pushing(make_config(redis_url, security_policy=Raising())) as server:
        poll, answer = server.poll(one(over)), server.ask(one(over))
        assert (poll.status, answer.status, answer.body) == (200, 200, poll.body)
        stream = server.ask(batch(over, other))
        assert [event.name for event in stream.events] == ["gone", "gone"]


@pytest.mark.promise("viewers-share-a-reading")
def test_equal_viewers_share_a_rendering(pushed, runs):
    """A change is rendered once for each distinct viewer, however many there are."""
    rendered: list[int] = []

    def title(self: JobState) -> str:
        rendered.append(self.get_progress_metric("n"))
        return "Title"

    public = [(Allow, Everyone, "view_job")]
    kind = make_kind(title=property(title), __acl__=lambda self: public)
    run = runs.start(kind, n=1)
    path = f"{one(run.uuid)}?_LOCALE_=x"
    streams = [pushed.watch(f"{path}{n}&y={n}", f"user{n}") for n in range(20)]
    # All have been read at least once since they joined.
    for n in 2, 3:
        report(run, n, *streams)
    assert rendered.count(3) == 1
    assert len({stream.events[-1] for stream in streams}) == 1


def test_beginning_is_rendered_once(pushed, store):
    """A request for a stream renders each state once, for the stream or for a poll."""
    rendered: list[str] = []

    def title(self: JobState) -> str:
        rendered.append(self.uuid)
        return "Title"

    kind = make_kind(title=property(title))
    ends = [put(store, "success", kind) for _ in range(2)]
    for path, uuids in (one(ends[0]), ends[:1]), (batch(*ends), ends):
        answer = pushed.ask(path)
        assert len(answer.events) == len(uuids)
        assert rendered == uuids
        rendered.clear()


# Other events


def test_beat(pushed, client, store):
    """A stream tells the store's time at first, and after 20 seconds of silence."""
    seconds, _ = client.time()
    path = one(put(store, "queued"))
    stream = pushed.open(path)
    for each in stream, pushed.open(path, last_event_id=stream.at(0).id):
        assert abs(each.opening / 1000 - seconds) < 10
    pushed.pass_time(19)
    assert len(stream.events) == 1
    for number in 1, 2:
        pushed.pass_time(21)
        beat = stream.at(number)
        assert (beat.name, beat.id) == ("beat", None)
        # This process believed that the store's clock goes on, too.
        assert abs(int(beat.data) / 1000 - seconds) < 60


def test_job_that_vanishes_is_gone_after_a_while(pushed, client, store):
    """A job without a record of ours is gone after more than a heartbeat, 5 seconds."""
    jobs = [put(store), put(store)]
    streams = [pushed.watch(one(job)) for job in jobs]
    client.pexpire(f"jobstate:{jobs[0]}", 1)
    client.set(f"jobstate:{jobs[1]}", "x")
    wait_for(lambda: not client.exists(f"jobstate:{jobs[0]}"))
    pushed.pass_time(1)
    pushed.pass_time(4)
    assert [len(stream.events) for stream in streams] == [1, 1]
    pushed.pass_time(2)
    for job, stream in zip(jobs, streams, strict=True):
        assert stream.at(1) == Event("gone", job, None)
        assert len(stream.wait().events) == 2


def test_job_that_its_worker_writes_again_goes_on(redis_url, client, runs, store):
    """A job that is written again after the store was emptied was never away."""
    run, lost = runs.start(n=1), put(store, "queued")
    # Nothing else has a job read again.
    settings = {"jobstate.stalled_after": "600"}
    with pushing(make_config(redis_url, settings=settings)) as server:
        stream = server.watch(batch(run.uuid, lost), count=2)
        run.report(n=2)
        # By now both are watched.
        assert stream.at(2).state["n"] == 2
        client.flushall()
        server.pass_time(1)
        run.report(n=3)
        assert stream.at(3).state["n"] == 3
        server.pass_time(7)
        assert stream.at(4)[:2] == ("gone", lost)
        run.succeed()
        stream.wait()
        assert stream.events[-1].state["job_state"] == "success"


def test_silent_job_is_stalled(redis_url, runs):
    """A job whose worker is silent becomes stalled, and works when it is heard of."""
    run = runs.start()
    settings = {"jobstate.stalled_after": "1"}
    with pushing(make_config(redis_url, settings=settings)) as server:
        run.report(n=1)
        stream = server.open(one(run.uuid))
        stream.until(lambda event: event.state["job"]["status"] == "stalled")
        run.report(n=2)
        back = stream.until(lambda event: event.state.get("n") == 2)
        assert back.state["job"]["status"] == "working"


# Batches


def test_batch_streams_the_counts_of_its_members(pushed, store):
    """A batch streams as the poll's very JSON, and ends with its last member."""
    made = put_batch(store, Batch, ["queued"] * 2, owner="alice")
    stream = pushed.open(one(made.uuid))
    assert stream.at(0).data.encode() == pushed.poll(one(made.uuid)).body
    for number, member in enumerate(store.members(made.uuid).items, start=1):
        member.cancel()
        assert stream.at(number).state["job"]["counts"]["cancelled"] == number
    assert stream.wait().events[-1].data.encode() == pushed.poll(one(made.uuid)).body


def test_waiting_member_hears_that_its_batch_was_cancelled(pushed, store):
    """The stream of a member that waits tells of its batch's cancel."""
    made = put_batch(store, Batch, ["queued", "working"], owner="alice")
    uuids = [job.uuid for job in store.members(made.uuid).items]
    waiting, running = (pushed.watch(one(uuid)) for uuid in uuids)
    assert made.cancel()
    assert statuses(waiting.wait()) == ["queued", "cancelled"]
    assert not running.is_done


def test_stream_looks_at_the_members_of_a_silent_batch(
    redis_url, client, store, caplog
):
    """The stream finds out that a member was lost, at once or a moment later."""
    made = put_batch(store, Batch, ["working"], owner="alice")
    (member,) = store.members(made.uuid).items
    gate = Gate()
    looks: list[str] = []

    def fail(connection: Any, name: str) -> None:
        if name == LOOKS:
            looks.append(name)
            if len(looks) == 1:
                raise KeyError("token")
            gate.wait()

    with refusing_threads(LOOKS, 1) as left, pooling(redis_url, fail) as (server, _):
        stream = server.open(one(made.uuid))
        assert stream.at(0).state["job"]["status"] == "working"
        pass_time(store, 20)
        wait_for(lambda: left == [0])
        server.pass_time(1)
        wait_for(lambda: f"members of the batch {made.uuid} cannot" in caplog.text)
        server.pass_time(1)
        gate.wait_for_job()
        for _ in range(3):
            server.pass_time(1)
        assert see_an_end(server, store) == ["queued", "cancelled"]
        # The second look goes on, so no third one has begun.
        assert len(looks) == 2
        gate.open()
        client.delete(f"jobstate:{member.uuid}")
        pass_time(store, 20)
        assert stream.wait().events[-1].state["job_state"] == "error"
