"""The events of a stream, which are rendered without a request."""

from __future__ import annotations

import contextlib
import itertools
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from pyramid.authorization import Allow, Everyone
from pyramid.interfaces import ILocalizer
from pyramid.request import Request
from pyramid.threadlocal import get_current_registry, get_current_request

from pyramid_jobstate import JobState, NotRepeatable
from tests.asgi import Event, Exchange, Server, pushing
from tests.jobs import messages
from tests.support import UUID, wait_for
from tests.web.test_streams import HINT, batch
from tests.web.test_translation import GERMAN, put_relay, write_catalog
from tests.webapp import Policy, make_config, put_job

_numbers = itertools.count()


@pytest.fixture
def server(redis_url: str) -> Iterator[Server]:
    """A server of an application."""
    with pushing(make_config(redis_url)) as server:
        yield server


def make_kind(**attributes: Any) -> str:
    """Return the name of a new kind of job, whose troubles were not logged yet."""
    name = f"Asking{next(_numbers)}"
    type(name, (JobState,), attributes)
    return name


def request_of(job_state: JobState) -> Any:
    return job_state.__parent__.request


def rerun(job_state: JobState) -> None:
    """Run a job again, in an application without a broker."""
    with contextlib.suppress(NotRepeatable):
        job_state.rerun()


#: What an application's code may ask the request of a job for.
QUESTIONS: dict[str, Callable[[JobState], object]] = {
    "attribute": lambda job: request_of(job).host,
    "default": lambda job: getattr(request_of(job), "no_such_attribute", None),
    "hasattr": lambda job: hasattr(request_of(job), "user"),
    "registry": lambda job: request_of(job).registry.settings,
    "session": lambda job: request_of(job).GET,
    "route": lambda job: request_of(job).route_url("pyramid_jobstate"),
    "url": lambda job: request_of(job).resource_url(job.__parent__),
    "url with more": lambda job: request_of(job).resource_url(job, "x"),
    "has_permission": lambda job: request_of(job).has_permission("edit", job),
    "edit": lambda job: job.__parent__.permits(job, "edit"),
    "view_job": lambda job: job.__parent__.permits(job, "view_job"),
    "other": lambda job: job.__parent__.permits(job.__parent__, "cancel_job"),
    "find": lambda job: job.__parent__.find(job.uuid),
    "rerun": rerun,
    "owner": lambda job: job.__parent__.current_owner,
    "lineage": lambda job: job.__parent__.__parent__,
    "acl": lambda job: job.__acl__(),
    "current request": lambda job: get_current_request().host,
    "current registry": lambda job: get_current_registry().settings,
}


def hiding(ask: Callable[[JobState], object]) -> Callable[[JobState], object]:
    """Ask, and hide what is raised, as careful code does."""

    def hide(job_state: JobState) -> object:
        try:
            return ask(job_state)
        except Exception:
            return None

    return hide


@pytest.mark.parametrize("hides", [False, True], ids=["raises", "hides"])
@pytest.mark.parametrize("question", QUESTIONS)
def test_title_that_asks_its_request(
    server: Server,
    client: redis.Redis,
    caplog: pytest.LogCaptureFixture,
    question: str,
    hides: bool,
) -> None:
    """A job streams nothing once its class asks for more than a stream has."""
    ask = hiding(QUESTIONS[question]) if hides else QUESTIONS[question]

    def title(self: JobState) -> str:
        if self.attempt > 1:
            ask(self)
        return f"Attempt {self.attempt}"

    kind = make_kind(title=property(title))
    asking = [put_job(client, kind=kind, attempt=n) for n in (1, 2)]
    other = put_job(client)
    caplog.set_level(logging.INFO)
    # The poll is answered as ever.
    path = f"/job_state/{asking[1]}"
    assert b'"Attempt 2"' in server.poll(path).body
    alone = server.ask(path)
    assert alone.at(0)[:2] == ("gone", asking[1])
    assert b"Attempt 2" not in alone.body
    stream = server.open(batch(*asking, other))
    assert stream.at(0) == Event("gone", asking[1], None)
    assert stream.at(1).state["job"]["title"] == "Attempt 1"
    assert stream.at(2).state["job"]["uuid"] == other
    client.hset(f"jobstate:{asking[0]}", "attempt", 2)
    assert stream.at(3)[:2] == ("gone", asking[0])
    client.hset(f"jobstate:{other}", "attempt", 2)
    assert stream.at(4).state["job"]["uuid"] == other
    assert b"Attempt 2" not in stream.body
    found = messages(caplog, "pyramid_jobstate", logging.INFO)
    (line,) = [message for message in found if kind in message]
    assert line.startswith(f"Jobs of kind {kind!r} are polled: a stream has no request")


def test_public_error_that_asks_its_request(
    server: Server, client: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    """Nor does a job whose error asks for more: its page polls for it."""
    caplog.set_level(logging.INFO)

    def public_error(self: JobState, exception_type: str, message: str) -> str:
        return f"It failed on {request_of(self).host}"

    kind = make_kind(public_error=public_error)
    uuid = put_job(client, kind=kind)
    stream = server.open(f"/job_state/{uuid}")
    stream.at(0)
    failed: Any = {"status": "failed", "error": '["ValueError", "x"]'}
    client.hset(f"jobstate:{uuid}", mapping=failed)
    assert stream.at(1) == Event("gone", uuid, None)
    stream.wait()
    assert b"It failed on example.com" in server.poll(f"/job_state/{uuid}").body
    found = messages(caplog, "pyramid_jobstate", logging.INFO)
    assert len([message for message in found if kind in message]) == 1


def test_success_with_a_result_is_polled(
    server: Server, client: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    """A job that may have a result streams until it succeeds. Its page then polls for
    the link, which needs a request.
    """
    caplog.set_level(logging.INFO)

    def result_url(self: JobState, request: Any) -> str:
        return f"{request.host_url}/reports/{self.attempt}"

    kind = make_kind(result_url=result_url)
    uuid, failing = put_job(client, kind=kind), put_job(client, kind=kind)
    stream = server.open(batch(uuid, failing))
    first = [stream.at(n).state["job"] for n in (0, 1)]
    assert [job["result"] for job in first] == [None, None]
    client.hset(f"jobstate:{uuid}", "attempt", 2)
    assert stream.at(2).state["job"]["attempt"] == 2
    client.hset(f"jobstate:{uuid}", "status", "success")
    assert stream.at(3)[:2] == ("gone", uuid)
    client.hset(f"jobstate:{failing}", "status", "error")
    assert stream.at(4).state["job"]["status"] == "error"
    stream.wait()
    assert b"/reports/2" in server.poll(f"/job_state/{uuid}").body
    assert kind not in caplog.text


def test_title_that_raises(
    server: Server, client: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    """A class that begins to raise has its page ask by a poll."""
    kind = make_kind(title=property(lambda self: 1 / (2 - self.attempt)))
    uuid = put_job(client, kind=kind)
    stream = server.open(f"/job_state/{uuid}")
    stream.at(0)
    client.hset(f"jobstate:{uuid}", "attempt", 2)
    assert stream.at(1) == Event("gone", uuid, None)
    assert "ZeroDivisionError" in caplog.text


def test_answers_that_a_stream_has(server: Server, client: redis.Redis) -> None:
    """A title may ask for the job's URL, its cancel_job and the localizer."""

    def title(self: JobState) -> str:
        request = request_of(self)
        may = bool(self.__parent__.permits(self, "cancel_job"))
        name = request.localizer.locale_name
        return f"{request.resource_url(self)} {may} {name}"

    kind = make_kind(title=property(title))
    uuid = put_job(client, kind=kind)
    stream = server.open(f"/job_state/{uuid}")
    expected = f"http://example.com/job_state/{uuid}/ True en"
    assert stream.at(0).state["job"]["title"] == expected
    client.hset(f"jobstate:{uuid}", "attempt", 2)
    assert stream.at(1).state["job"]["title"] == expected


def test_kind_with_json_of_its_own(
    server: Server, client: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    """A kind that overrides __json__ is polled, which is logged once."""
    caplog.set_level(logging.INFO)
    kind = make_kind(__json__=lambda self, request: {"secret": request.host})
    handmade, other = put_job(client, kind=kind), put_job(client)
    for _ in range(2):
        answer = server.ask(f"/job_state/{handmade}")
        assert answer.body == b'{"secret":"example.com"}'
        assert HINT not in answer.headers
    stream = server.open(batch(handmade, other))
    assert stream.at(0) == Event("gone", handmade, None)
    assert stream.at(1).state["job"]["uuid"] == other
    client.hset(f"jobstate:{handmade}", "attempt", 2)
    client.hset(f"jobstate:{other}", "attempt", 2)
    assert stream.at(2).state["job"]["uuid"] == other
    assert b"secret" not in stream.body
    (line,) = [
        m for m in messages(caplog, "pyramid_jobstate", logging.INFO) if kind in m
    ]
    assert line == (
        f"Jobs of kind {kind!r} are polled: a stream has no request for "
        f"{__name__}.{kind}.__json__()."
    )


def test_job_that_changes_its_kind(server: Server, client: redis.Redis) -> None:
    """A job that comes to have a kind with its own JSON streams no more."""
    kind = make_kind(__json__=lambda self, request: {"secret": request.host})
    uuid = put_job(client)
    stream = server.open(f"/job_state/{uuid}")
    stream.at(0)
    client.hset(f"jobstate:{uuid}", "kind", kind)
    assert stream.at(1) == Event("gone", uuid, None)
    stream.wait()


def test_class_that_cannot_be_made(server: Server, client: redis.Redis) -> None:
    """Nor does one whose class raises when it is made."""

    def init(self: JobState, record: Any) -> None:
        raise LookupError

    kind = make_kind(__init__=init)
    uuid = put_job(client)
    stream = server.open(f"/job_state/{uuid}")
    stream.at(0)
    client.hset(f"jobstate:{uuid}", "kind", kind)
    assert stream.at(1) == Event("gone", uuid, None)


def test_viewers_in_two_languages(
    redis_url: str, client: redis.Redis, tmp_path: Path
) -> None:
    """Each viewer of a job gets it in their own language, as in a poll."""
    write_catalog(tmp_path / "de" / "LC_MESSAGES" / "marathons.mo", GERMAN)
    config = make_config(redis_url)
    config.add_translation_dirs(str(tmp_path))
    uuid = put_relay(client)
    path = f"/job_state/{uuid}"
    with pushing(config) as server:
        english, german = server.open(path), server.open(f"{path}?_LOCALE_=de")
        for number in range(2):
            texts = [s.at(number).state["job"]["title"] for s in (english, german)]
            assert texts == ["Marathon over 26 miles", "Marathon über 26 Meilen"]
            failed: Any = {"status": "failed", "error": '["ValueError", "x"]'}
            client.hset(f"jobstate:{uuid}", mapping=failed)
        errors = [s.at(1).state["job"]["error"] for s in (english, german)]
        assert errors == [
            {"message": "The runner fell."},
            {"message": "Der Läufer ist gestürzt."},
        ]
        assert german.at(1).data.encode() == server.poll(f"{path}?_LOCALE_=de").body


def test_names_of_languages_do_not_pile_up(
    redis_url: str, client: redis.Redis, tmp_path: Path
) -> None:
    """Viewers who name languages that the application does not have get the default, in
    the same rendering.
    """
    write_catalog(tmp_path / "de" / "LC_MESSAGES" / "marathons.mo", GERMAN)
    config = make_config(redis_url)
    config.add_translation_dirs(str(tmp_path))
    path = f"/job_state/{put_relay(client)}"
    with pushing(config) as server:
        titles = [
            server.open(f"{path}?_LOCALE_={name}").at(0).state["job"]["title"]
            for name in ("%00", "xx", "x1", "..")
        ]
        assert titles == ["Marathon over 26 miles"] * 4
        names = {n for n, _ in config.registry.getUtilitiesFor(ILocalizer)}
        assert names == {"en"}


def test_localizer_that_cannot_be_compared(
    redis_url: str, client: redis.Redis, job: str
) -> None:
    """Nor does a localizer of the application's that no viewers can share."""

    class Localizer(dict[str, Any]):
        translate = str

    config = make_config(redis_url)
    config.add_request_method(lambda request: Localizer(), "localizer", reify=True)
    with pushing(config) as server:
        answer = server.ask(f"/job_state/{job}")
        assert (answer.status, answer.is_stream) == (200, False)


def test_viewers_with_and_without_cancel_job(
    redis_url: str, client: redis.Redis, job: str
) -> None:
    """Each viewer learns whether they themselves may cancel the job."""
    admin_kind = make_kind(
        __acl__=lambda self: [
            (Allow, "alice", ("view_job", "cancel_job")),
            (Allow, "bob", "view_job"),
        ]
    )
    uuid = put_job(client, kind=admin_kind)
    with pushing(make_config(redis_url)) as server:
        streams = [server.open(f"/job_state/{uuid}", user) for user in ("alice", "bob")]
        for number in range(2):
            found = [s.at(number).state["job"]["cancellable"] for s in streams]
            assert found == [True, False]
            client.hset(f"jobstate:{uuid}", "attempt", number + 2)


def test_policy_that_raises_for_cancel_job(redis_url: str, client: redis.Redis) -> None:
    """A policy that raises for what a poll does not ask does not fail a stream."""

    class Raising(Policy):
        def permits(self, request: Request, context: Any, permission: str) -> Any:
            if permission == "cancel_job":
                raise LookupError
            return super().permits(request, context, permission)

    kind = make_kind()
    uuid = put_job(client, kind=kind, status="success")
    with pushing(make_config(redis_url, security_policy=Raising())) as server:
        poll = server.poll(f"/job_state/{uuid}")
        answer = server.ask(f"/job_state/{uuid}")
        assert (poll.status, answer.status, answer.body) == (200, 200, poll.body)


def test_equal_viewers_share_a_rendering(server: Server, client: redis.Redis) -> None:
    """A change is rendered once for each distinct viewer, however many there are."""
    rendered: list[int] = []

    def title(self: JobState) -> str:
        rendered.append(self.attempt)
        return "Title"

    kind = make_kind(
        title=property(title), __acl__=lambda self: [(Allow, Everyone, "view_job")]
    )
    uuid = put_job(client, kind=kind)
    path = f"/job_state/{uuid}"
    streams = [server.open(path, f"user{n}") for n in range(20)]
    streams += [server.open(f"{path}?x={n}", f"user{n}") for n in range(20)]
    for stream in streams:
        stream.at(0)
    # All have been read at least once since they joined.
    client.hset(f"jobstate:{uuid}", "attempt", 2)
    for stream in streams:
        stream.until(lambda event: event.state["job"]["attempt"] == 2)
    assert rendered.count(2) <= 2
    client.hset(f"jobstate:{uuid}", "attempt", 3)
    for stream in streams:
        assert stream.until(lambda e: e.state["job"]["attempt"] == 3).id is not None
    assert rendered.count(3) == 1
    assert len({stream.events[-1] for stream in streams}) == 1


def test_id_of_one_job(server: Server, client: redis.Redis, job: str) -> None:
    """Every state of a single job has an id, equal for equal states."""
    stream = server.open(f"/job_state/{job}")
    first = stream.at(0).id
    client.hset(f"jobstate:{job}", "attempt", 2)
    second = stream.at(1).id
    client.hset(f"jobstate:{job}", "attempt", 1)
    assert first is not None and second is not None
    assert (len(first), stream.at(2).id) == (16, first)
    assert second != first


def test_current_id_repeats_nothing(
    server: Server, client: redis.Redis, job: str
) -> None:
    """A client that has the state of a job gets only what changes."""
    last = server.open(f"/job_state/{job}").at(0).id
    stream = server.open(f"/job_state/{job}", last_event_id=last)
    assert stream.opening
    client.hset(f"jobstate:{job}", "attempt", 2)
    assert stream.at(0).state["job"]["attempt"] == 2


def test_stale_id_repeats_the_state(
    server: Server, client: redis.Redis, job: str
) -> None:
    """A client with an outdated state gets the new one at once."""
    last = server.open(f"/job_state/{job}").at(0).id
    client.hset(f"jobstate:{job}", "attempt", 2)
    stream = server.open(f"/job_state/{job}", last_event_id=last)
    assert stream.at(0).state["job"]["attempt"] == 2


def test_ids_of_several_jobs(server: Server, client: redis.Redis) -> None:
    """The id after all states stands for all of them, in any order of the uuids."""
    uuids = [put_job(client) for _ in range(3)]
    stream = server.open(batch(*uuids, UUID))
    ids = [stream.at(number).id for number in range(4)]
    assert ids[:3] == [None] * 3
    again = server.open(batch(UUID, *reversed(uuids)), last_event_id=ids[3])
    assert again.opening
    client.hset(f"jobstate:{uuids[1]}", "attempt", 2)
    newer = stream.at(4).id
    assert again.at(0).id == newer
    current = server.open(batch(*uuids), last_event_id=newer)
    assert current.opening
    assert server.open(batch(*uuids), last_event_id=ids[3]).at(2).id == newer
    assert server.open(batch(*uuids[1:]), last_event_id=newer).at(0).name == "message"
    client.hset(f"jobstate:{uuids[1]}", "attempt", 3)
    assert current.at(0).state["job"]["attempt"] == 3


def test_id_after_a_job_has_gone(server: Server, client: redis.Redis) -> None:
    """The id of a client that lost a job is current for those that are left."""
    kind = make_kind(title=property(lambda self: 1 / (2 - self.attempt)))
    uuids = [put_job(client), put_job(client, kind=kind)]
    stream = server.open(batch(*uuids))
    stream.at(1)
    client.hset(f"jobstate:{uuids[1]}", "attempt", 2)
    gone = stream.at(2)
    assert gone[:2] == ("gone", uuids[1])
    again = server.open(batch(*uuids), last_event_id=gone.id)
    assert again.opening
    client.hset(f"jobstate:{uuids[0]}", "attempt", 2)
    assert again.at(0).state["job"]["uuid"] == uuids[0]


def test_beat(
    server: Server, client: redis.Redis, job: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stream tells the store's time at its beginning, and again once in a while."""
    monkeypatch.setattr("pyramid_jobstate.web.push.feed.BEAT", 0.3)
    seconds, _ = client.time()
    last = server.open(f"/job_state/{job}").at(0).id
    assert abs(server.open(f"/job_state/{job}").opening / 1000 - seconds) < 10
    resumed = server.open(f"/job_state/{job}", last_event_id=last)
    assert abs(resumed.opening / 1000 - seconds) < 10
    stream = server.open(f"/job_state/{job}")
    beat = stream.at(1)
    assert beat.name == "beat"
    assert beat.id is None
    assert abs(int(beat.data) / 1000 - seconds) < 10
    assert stream.at(2).name == "beat"


def gone_after(stream: Exchange, act: Callable[[], object]) -> Event:
    stream.at(0)
    act()
    return stream.until(lambda event: event.name == "gone")


@pytest.mark.parametrize("how", ["deleted", "expired"])
def test_job_that_vanishes(
    server: Server,
    client: redis.Redis,
    job: str,
    how: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A job without a record is gone after a while, and its stream ends."""
    monkeypatch.setattr("pyramid_jobstate.web.push.feed.GRACE", 0.5)
    key = f"jobstate:{job}"
    stream = server.open(f"/job_state/{job}")
    event = gone_after(
        stream,
        lambda: client.delete(key) if how == "deleted" else client.pexpire(key, 100),
    )
    assert event == Event("gone", job, None)
    stream.wait()
    assert len(stream.events) == 2


def test_job_that_comes_back(
    server: Server, client: redis.Redis, job: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job whose record is written again in time has never been away."""
    key = f"jobstate:{job}"
    record: Any = client.hgetall(key)
    stream = server.open(f"/job_state/{job}")
    stream.at(0)
    client.delete(key)
    hub = server.streams.hub
    shown = hub._feed._jobs[job]
    wait_for(lambda: shown.missing_since)
    client.hset(key, mapping={**record, b"attempt": b"2"})
    assert stream.at(1).state["job"]["attempt"] == 2


def test_unknown_and_forbidden_alike(server: Server, client: redis.Redis) -> None:
    """Nobody learns from a stream whether a job that they may not see exists."""
    forbidden = put_job(client, owner='"bob"')
    bodies = []
    for hidden in forbidden, UUID:
        stream = server.ask(batch(hidden, "x"))
        assert stream.is_stream
        text = stream.body.decode().replace(hidden, "HIDDEN")
        bodies.append([stream.header_list, text.partition("\n\n")[2]])
    assert bodies[0] == bodies[1]


def test_hidden_jobs_are_never_read(server: Server, client: redis.Redis) -> None:
    """A stream watches only what its client may see, so nothing tells the others."""
    forbidden, job = put_job(client, owner='"bob"'), put_job(client)
    stream = server.open(batch(forbidden, UUID, job))
    stream.at(2)
    wait_for(lambda: server.streams.hub._feed._jobs)
    assert set(server.streams.hub._feed._jobs) == {job}
    client.hset(f"jobstate:{forbidden}", "attempt", 2)
    put_job(client, uuid=UUID)
    client.hset(f"jobstate:{job}", "attempt", 2)
    assert stream.at(3).state["job"]["uuid"] == job
