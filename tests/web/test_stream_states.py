"""The events of a stream: states, which are rendered without a request, and others."""

import contextlib
import itertools
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis
from pyramid.authorization import Allow, Everyone
from pyramid.i18n import TranslationStringFactory
from pyramid.request import Request
from pyramid.threadlocal import get_current_registry, get_current_request

from pyramid_jobstate import Batch, JobState, JobStore
from pyramid_jobstate.testing import pass_time, put_batch
from tests.asgi import FEEDS, LOOKS, Event, Server, pushing
from tests.catalogs import write_catalog
from tests.jobs import Gate
from tests.running import Runs
from tests.support import wait_for
from tests.web.streaming import (
    HINT,
    batch,
    one,
    pooling,
    put,
    refusing_threads,
    report,
    see_an_end,
    statuses,
)
from tests.webapp import Policy, make_config

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


def test_title_that_asks_its_request(
    pushed: Server, store: JobStore, said: Lines
) -> None:
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


def test_error_that_asks_its_request(
    pushed: Server, runs: Runs, said: Lines, caplog: pytest.LogCaptureFixture
) -> None:
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


def test_success_with_a_result_is_polled(
    pushed: Server, runs: Runs, said: Lines
) -> None:
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


def test_kind_with_json_of_its_own(
    pushed: Server, store: JobStore, said: Lines
) -> None:
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


def test_viewers_in_two_languages(redis_url: str, runs: Runs, tmp_path: Path) -> None:
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


def test_policy_that_raises_for_cancel_job(redis_url: str, store: JobStore) -> None:
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


@pytest.mark.promise("stream-costs-no-thread-of-a-job")
def test_equal_viewers_share_a_rendering(pushed: Server, runs: Runs) -> None:
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


def test_beginning_is_rendered_once(pushed: Server, store: JobStore) -> None:
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


def test_beat(pushed: Server, client: redis.Redis, store: JobStore) -> None:
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


def test_job_that_vanishes_is_gone_after_a_while(
    pushed: Server, client: redis.Redis, store: JobStore
) -> None:
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


def test_job_that_its_worker_writes_again_goes_on(
    redis_url: str, client: redis.Redis, runs: Runs, store: JobStore
) -> None:
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


def test_silent_job_is_stalled(redis_url: str, runs: Runs) -> None:
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


def test_batch_streams_the_counts_of_its_members(
    pushed: Server, store: JobStore
) -> None:
    """A batch streams as the poll's very JSON, and ends with its last member."""
    made = put_batch(store, Batch, ["queued"] * 2, owner="alice")
    stream = pushed.open(one(made.uuid))
    assert stream.at(0).data.encode() == pushed.poll(one(made.uuid)).body
    for number, member in enumerate(store.members(made.uuid).items, start=1):
        member.cancel()
        assert stream.at(number).state["job"]["counts"]["cancelled"] == number
    assert stream.wait().events[-1].data.encode() == pushed.poll(one(made.uuid)).body


def test_waiting_member_hears_that_its_batch_was_cancelled(
    pushed: Server, store: JobStore
) -> None:
    """The stream of a member that waits tells of its batch's cancel."""
    made = put_batch(store, Batch, ["queued", "working"], owner="alice")
    uuids = [job.uuid for job in store.members(made.uuid).items]
    waiting, running = (pushed.watch(one(uuid)) for uuid in uuids)
    assert made.cancel()
    assert statuses(waiting.wait()) == ["queued", "cancelled"]
    assert not running.is_done


def test_stream_looks_at_the_members_of_a_silent_batch(
    redis_url: str,
    client: redis.Redis,
    store: JobStore,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It finds that a member was lost, if not at once then a moment later."""
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
