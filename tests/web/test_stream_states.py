"""The events of a stream: states, which are rendered without a request, and others."""

from __future__ import annotations

import contextlib
import itertools
import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis
from pyramid.authorization import Allow, Everyone
from pyramid.i18n import TranslationStringFactory
from pyramid.interfaces import ILocalizer
from pyramid.request import Request
from pyramid.threadlocal import get_current_registry, get_current_request

from pyramid_jobstate import Batch, JobState, JobStore, NotRepeatable
from pyramid_jobstate.testing import away, pass_time, put_batch
from tests.asgi import Event, Server, pushing
from tests.catalogs import write_catalog
from tests.jobs import messages
from tests.running import Runs
from tests.support import UUID, load_job, wait_for
from tests.web.streaming import HINT, batch, one, put, wait_until
from tests.webapp import Policy, make_config, make_request

_ = TranslationStringFactory("marathons")
_numbers = itertools.count()


def make_kind(**attributes: Any) -> type[JobState]:
    """Return a new kind of job, whose troubles were not logged yet."""
    return type(f"Asking{next(_numbers)}", (JobState,), attributes)


def said_of(caplog: pytest.LogCaptureFixture, kind: type[JobState]) -> list[str]:
    """Return what was logged about a kind."""
    found = messages(caplog, "pyramid_jobstate", logging.INFO)
    return [message for message in found if kind.kind in message]


# What a class may ask


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


@pytest.mark.parametrize("hides", [False, True], ids=["raises", "hides"])
def test_title_that_asks_its_request(
    pushed: Server, store: JobStore, caplog: pytest.LogCaptureFixture, hides: bool
) -> None:
    """A job streams nothing once its class asks for more than a stream has, even if it
    hides what is raised, as careful code does. Other jobs do.
    """
    caplog.set_level(logging.INFO)
    other, hidden = put(store), [Exception] if hides else []
    for name, question in QUESTIONS.items():

        def title(self: JobState, ask: Callable[[JobState], object] = question) -> str:
            with contextlib.suppress(*hidden):
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
        (line,) = said_of(caplog, kind)
        start = f"Jobs of kind {kind.kind!r} are polled: a stream has no request"
        assert line.startswith(start), name


def test_error_that_asks_its_request(
    pushed: Server, runs: Runs, caplog: pytest.LogCaptureFixture
) -> None:
    """A job whose error asks for more is streamed until then: its page polls for it.
    The others in its stream go on.
    """
    caplog.set_level(logging.INFO)

    def public_error(self: JobState, exception_type: str, message: str) -> str:
        return f"It failed on {request_of(self).host}"

    kind = make_kind(public_error=public_error)
    run, other = runs.start(kind), runs.start()
    stream = pushed.open(batch(run.uuid, other.uuid))
    stream.at(1)
    run.fail(ValueError("x"))
    gone = stream.at(2)
    assert gone[:2] == ("gone", run.uuid)
    assert b"It failed on example.com" in pushed.poll(one(run.uuid)).body
    assert len(said_of(caplog, kind)) == 1
    # The id is that of those that are left.
    again = pushed.open(batch(run.uuid, other.uuid), last_event_id=gone.id)
    assert again.opening
    other.report(n=1)
    for each, number in (stream, 3), (again, 0):
        assert each.at(number).state["job"]["uuid"] == other.uuid


def test_success_with_a_result_is_polled(
    pushed: Server, runs: Runs, caplog: pytest.LogCaptureFixture
) -> None:
    """A job that may have a result streams until it succeeds. Its page then polls for
    the link, which needs a request.
    """
    caplog.set_level(logging.INFO)

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
    assert said_of(caplog, kind) == []


def test_class_that_begins_to_raise(
    pushed: Server, runs: Runs, caplog: pytest.LogCaptureFixture
) -> None:
    """The page of a job whose class begins to raise, in its title or when it is made,
    is to ask by a poll.
    """
    broken: list[str] = []

    def title(self: JobState) -> str:
        return f"{1 / (1 - len(broken))}"

    class Fragile(JobState):
        kind = f"Fragile{next(_numbers)}"

        def __init__(self, *args: Any) -> None:
            if broken:
                raise LookupError
            super().__init__(*args)

    for kind in make_kind(title=property(title)), Fragile:
        run = runs.start(kind)
        stream = pushed.open(one(run.uuid))
        stream.at(0)
        broken.append(kind.kind)
        run.report(n=1)
        assert stream.at(1)[:2] == ("gone", run.uuid)
        stream.wait()
        broken.clear()
    assert "ZeroDivisionError" in caplog.text


def test_answers_that_a_stream_has(pushed: Server, runs: Runs) -> None:
    """A title may ask for the job's URL, its cancel_job and the localizer."""

    def title(self: JobState) -> str:
        request = request_of(self)
        may = bool(self.__parent__.permits(self, "cancel_job"))
        name = request.localizer.locale_name
        return f"{request.resource_url(self)} {may} {name}"

    run = runs.start(make_kind(title=property(title)))
    stream = pushed.open(one(run.uuid))
    expected = f"http://example.com/job_state/{run.uuid}/ True en"
    assert stream.at(0).state["job"]["title"] == expected
    run.report(n=1)
    assert stream.at(1).state["job"]["title"] == expected


def test_kind_with_json_of_its_own(
    pushed: Server, store: JobStore, caplog: pytest.LogCaptureFixture
) -> None:
    """A kind that overrides __json__ is polled, which is logged once."""
    caplog.set_level(logging.INFO)
    kind = make_kind(__json__=lambda self, request: {"secret": request.host})
    handmade, other = put(store, kind=kind), put(store, "queued")
    for _ in range(2):
        answer = pushed.ask(one(handmade))
        assert answer.body == b'{"secret":"example.com"}'
        assert HINT not in answer.headers
    stream = pushed.open(batch(handmade, other))
    assert stream.at(0) == Event("gone", handmade, None)
    assert stream.at(1).state["job"]["uuid"] == other
    for uuid in handmade, other:
        load_job(store, uuid).cancel()
    stream.wait()
    assert len(stream.events) == 3
    assert b"secret" not in stream.body
    assert said_of(caplog, kind) == [
        f"Jobs of kind {kind.kind!r} are polled: a stream has no request for "
        f"{__name__}.{kind.kind}.__json__()."
    ]


# Viewers


class Translated(JobState):
    """A kind whose texts are translation strings."""

    public_params = ("miles",)

    @property
    def title(self) -> Any:
        return _("Marathon over ${miles} miles", mapping=self.job_params)

    def public_error(self, exception_type: str, message: str) -> Any:
        return _("The runner fell.")


GERMAN = {
    "": "Content-Type: text/plain; charset=UTF-8\n",
    "Marathon over ${miles} miles": "Marathon über ${miles} Meilen",
    "The runner fell.": "Der Läufer ist gestürzt.",
}


def test_viewers_in_two_languages(redis_url: str, runs: Runs, tmp_path: Path) -> None:
    """Each viewer of a job gets it in their own language, as in a poll. Those who name
    languages that the application does not have get the default.
    """
    write_catalog(tmp_path / "de" / "LC_MESSAGES" / "marathons.mo", GERMAN)
    config = make_config(redis_url)
    config.add_translation_dirs(str(tmp_path))
    run = runs.start(Translated)
    path = one(run.uuid)
    with pushing(config) as server:
        english, german = server.open(path), server.open(f"{path}?_LOCALE_=de")
        texts = [s.at(0).state["job"]["title"] for s in (english, german)]
        assert texts == ["Marathon over 26 miles", "Marathon über 26 Meilen"]
        for name in "%00", "xx", "..":
            other = server.open(f"{path}?_LOCALE_={name}")
            assert other.at(0) == english.at(0)
            other.go()
        names = {n for n, _ in config.registry.getUtilitiesFor(ILocalizer)}
        assert names == {"en", "de"}
        run.fail(ValueError("x"))
        errors = [s.at(1).state["job"]["error"] for s in (english, german)]
        assert errors == [
            {"message": "The runner fell."},
            {"message": "Der Läufer ist gestürzt."},
        ]
        assert german.at(1).data.encode() == server.poll(f"{path}?_LOCALE_=de").body


def test_localizer_that_cannot_be_compared(redis_url: str, store: JobStore) -> None:
    """A localizer of the application's that no viewers can share has jobs polled."""

    class Localizer(dict[str, Any]):
        translate = str

    config = make_config(redis_url)
    config.add_request_method(lambda request: Localizer(), "localizer", reify=True)
    with pushing(config) as server:
        answer = server.ask(one(put(store)))
        assert (answer.status, answer.is_stream) == (200, False)


def test_viewers_with_and_without_cancel_job(pushed: Server, runs: Runs) -> None:
    """Each viewer learns whether they themselves may cancel the job."""
    kind = make_kind(
        __acl__=lambda self: [
            (Allow, "alice", ("view_job", "cancel_job")),
            (Allow, "bob", "view_job"),
        ]
    )
    run = runs.start(kind)
    streams = [pushed.open(one(run.uuid), user) for user in ("alice", "bob")]
    for number in range(2):
        found = [s.at(number).state["job"]["cancellable"] for s in streams]
        assert found == [True, False]
        run.report(n=number)


def test_policy_that_raises_for_cancel_job(redis_url: str, store: JobStore) -> None:
    """A policy that raises for what a poll does not ask does not fail a stream."""

    class Raising(Policy):
        def permits(self, request: Request, context: Any, permission: str) -> Any:
            if permission == "cancel_job":
                raise LookupError
            return super().permits(request, context, permission)

    path = one(put(store, "success", make_kind()))
    with pushing(make_config(redis_url, security_policy=Raising())) as server:
        poll, answer = server.poll(path), server.ask(path)
        assert (poll.status, answer.status, answer.body) == (200, 200, poll.body)


def test_equal_viewers_share_a_rendering(pushed: Server, runs: Runs) -> None:
    """A change is rendered once for each distinct viewer, however many there are."""
    rendered: list[int] = []

    def title(self: JobState) -> str:
        rendered.append(self.get_progress_metric("n"))
        return "Title"

    kind = make_kind(
        title=property(title), __acl__=lambda self: [(Allow, Everyone, "view_job")]
    )
    run = runs.start(kind, n=1)
    streams = [
        pushed.open(f"{one(run.uuid)}?_LOCALE_=x{n}&y={n}", f"user{n}")
        for n in range(20)
    ]
    for stream in streams:
        stream.at(0)
    # All have been read at least once since they joined.
    for n in 2, 3:
        run.report(n=n)
        for stream in streams:
            wait_until(n, lambda stream: stream.events[-1].state["n"], stream)
    assert rendered.count(2) <= 2
    assert rendered.count(3) == 1
    assert len({stream.events[-1] for stream in streams}) == 1


# Other events


def test_beat(pushed: Server, client: redis.Redis, store: JobStore) -> None:
    """A stream tells the store's time at its beginning, and again when nothing has
    happened for 20 seconds.
    """
    seconds, _ = client.time()
    path = one(put(store, "queued"))
    stream = pushed.open(path)
    last = stream.at(0).id
    for each in stream, pushed.open(path, last_event_id=last):
        assert abs(each.opening / 1000 - seconds) < 10
    pushed.pass_time(17)
    assert len(stream.events) == 1
    for number in 1, 2:
        pushed.pass_time(21)
        beat = stream.at(number)
        assert (beat.name, beat.id) == ("beat", None)
        # This process believed that the store's clock goes on, too.
        assert abs(int(beat.data) / 1000 - seconds) < 60


def test_job_that_vanishes_is_gone_after_a_while(
    pushed: Server, client: redis.Redis, store: JobStore
) -> None:
    """A job without a record is gone after longer than a worker's heartbeat, 5 seconds.
    Its stream ends.
    """
    job = put(store)
    stream = pushed.open(one(job))
    stream.at(0)
    client.pexpire(f"jobstate:{job}", 1)
    wait_for(lambda: not client.exists(f"jobstate:{job}"))
    pushed.pass_time(1)
    pushed.pass_time(4)
    assert len(stream.events) == 1
    pushed.pass_time(2)
    assert stream.at(1) == Event("gone", job, None)
    stream.wait()
    assert len(stream.events) == 2


def test_job_that_its_worker_writes_again_goes_on(
    redis_url: str, client: redis.Redis, runs: Runs, store: JobStore
) -> None:
    """After the store was emptied, a job whose worker writes it again has never been
    away. Another one is gone.
    """
    run, lost = runs.start(n=1), put(store, "queued")
    # Nothing else has a job read again.
    settings = {"jobstate.stalled_after": "600"}
    with pushing(make_config(redis_url, settings=settings)) as server:
        stream = server.open(batch(run.uuid, lost))
        stream.at(1)
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


def test_key_of_another_program_is_gone(
    pushed: Server, client: redis.Redis, store: JobStore
) -> None:
    """A job into whose key another program has written is gone like one that has
    vanished.
    """
    job = put(store)
    stream = pushed.open(one(job))
    stream.at(0)
    client.set(f"jobstate:{job}", "x")
    pushed.pass_time(1)
    pushed.pass_time(7)
    assert stream.at(1) == Event("gone", job, None)
    stream.wait()


def test_silent_job_is_stalled(redis_url: str, runs: Runs) -> None:
    """A job whose worker is silent becomes stalled, though nobody writes that, and
    works again when the worker is heard of.
    """
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


def last(stream: Any) -> Any:
    """Return the `job` in the last state of a stream."""
    states = [event.state for event in stream.events if event.name == "message"]
    return states[-1]["job"] if states else {}


def test_batch_streams_the_counts_of_its_members(
    pushed: Server, store: JobStore
) -> None:
    """A batch streams as the poll's very JSON: its stream has no request, but knows the
    URL of its members. It ends with the last of them.
    """
    made = put_batch(store, Batch, ["queued"] * 3, owner="alice")
    stream = pushed.open(one(made.uuid))
    assert stream.at(0).data.encode() == pushed.poll(one(made.uuid)).body
    assert last(stream)["counts"]["queued"] == 3
    url = f"http://example.com/job_state/?batch={made.uuid}"
    assert last(stream)["members"] == url
    members = store.members(made.uuid).items
    for number, member in enumerate(members, start=1):
        member.cancel()
        wait_until(number, lambda: last(stream)["counts"]["cancelled"])
    assert stream.wait().events[-1].data.encode() == pushed.poll(one(made.uuid)).body
    assert stream.events[-1].state["job_state"] == "error"


def test_waiting_member_hears_that_its_batch_was_cancelled(
    pushed: Server, store: JobStore, client: redis.Redis
) -> None:
    """The stream of a member that waits tells of its batch's cancel, even if it is a
    silent run that was asked to stop. One whose batch has no record goes on.
    """
    made = put_batch(store, Batch, ["queued", "stalled", "working"], owner="alice")
    uuids = [job.uuid for job in store.members(made.uuid).items]
    waiting, dead, running = (pushed.open(one(uuid)) for uuid in uuids)
    orphan = put_batch(store, Batch, ["queued"], owner="alice")
    (child,) = store.members(orphan.uuid).items
    left = pushed.open(one(child.uuid))
    statuses = [last(s)["status"] for s in (waiting, dead, running, left) if s.at(0)]
    assert statuses == ["queued", "stalled", "working", "queued"]
    assert made.cancel()
    assert waiting.wait().events[-1].state["job"]["status"] == "cancelled"
    wait_for(lambda: last(dead)["status"] in ("stalled", "cancelled"))
    assert not running.is_done
    # Another program writes into the key of the batch.
    client.set(f"jobstate:{orphan.uuid}", "x")
    child.cancel()
    assert left.wait().events[-1].state["job"]["status"] == "cancelled"


def test_stream_looks_at_the_members_of_a_silent_batch(
    redis_url: str,
    client: redis.Redis,
    store: JobStore,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The record of a member was lost: nobody polls its batch, and a stream finds it.
    If it cannot look at once, because no thread can start or the store does not answer,
    it looks a moment later.
    """
    made = put_batch(store, Batch, ["working"], owner="alice")
    (member,) = store.members(made.uuid).items
    start = threading.Thread.start
    refused: list[str] = []

    def refuse(thread: threading.Thread) -> None:
        if thread.name == "jobstate-look" and not refused:
            refused.append(thread.name)
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    config = make_config(redis_url)
    with pushing(config) as server:
        stream = server.open(one(made.uuid))
        assert stream.at(0).state["job"]["status"] == "working"
        client.delete(f"jobstate:{member.uuid}")
        with away(make_request(config).job_states.store):
            pass_time(store, 20)
            wait_for(lambda: last(stream)["status"] == "stalled")
            wait_for(lambda: refused)
            server.pass_time(2)
        stream.wait()
        assert stream.events[-1].state["job_state"] == "error"


def test_hidden_jobs_are_never_shown(pushed: Server, store: JobStore) -> None:
    """Jobs that a client may not see are gone, and stay so."""
    forbidden, job = put(store, "queued", owner="bob"), put(store, "queued")
    stream = pushed.open(batch(forbidden, UUID, job))
    stream.at(2)
    for uuid in forbidden, job:
        load_job(store, uuid).cancel()
    assert stream.at(3).state["job"]["uuid"] == job
    stream.wait()
    assert len(stream.events) == 4
