"""A store that is away: the answers of our views and of the application's, and the
log.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis
from pyramid.config import Configurator
from pyramid.events import ContextFound
from pyramid.request import Request
from pyramid.response import Response
from webtest import TestApp

from pyramid_jobstate import JobState, JobStateMiddleware, JobStore, StoreUnavailable
from pyramid_jobstate.resources import JobStates
from pyramid_jobstate.testing import away
from tests.faulty import faulty
from tests.jobs import RunMarathon, messages
from tests.support import UUID
from tests.web.reading import AWAY, put
from tests.webapp import (
    ADMIN,
    NOWHERE,
    Policy,
    Root,
    ask,
    get,
    make_app,
    make_broker,
    make_config,
    make_tm_config,
    mounted_root,
    take_steps,
)


def find(context: Any, request: Request) -> Response:
    return Response(str(request.job_states.find(UUID)))


def list_all(context: Any, request: Request) -> Response:
    return Response(str(request.job_states.list()))


def look_up(context: Any, request: Request) -> Response:
    return Response(str(request.job_states[UUID]))


VIEWS = {"find": find, "list": list_all, "getitem": look_up}
PATHS = ["/find", "/list", "/getitem", "/routed/1"]


def add_views(config: Configurator) -> None:
    for name, view in VIEWS.items():
        config.add_view(view, name=name)
    config.add_route("routed", "/routed/{x}")
    config.add_view(find, route_name="routed")


@contextlib.contextmanager
def narrow(client: redis.Redis, url: str, *commands: str) -> Iterator[str]:
    """Give the URL of a user who may do little on a server."""
    client.acl_setuser(
        "narrow",
        enabled=True,
        passwords=["+secret"],
        keys=["jobstate:*"],
        commands=["+time", "+client", "+hello", "+ping", *commands],
    )
    try:
        yield url.replace("//", "//narrow:secret@")
    finally:
        client.acl_deluser("narrow")


def is_503(response: Any) -> bool:
    return bool(response.status_code == 503 and response.headers["Retry-After"] == "5")


@pytest.fixture
def app_without_store() -> TestApp:
    """An application with views of its own, whose store is away."""
    config = make_config(NOWHERE, root_factory=mounted_root)
    add_views(config)
    return make_app(config)


# Answers


def test_answer_is_of_the_accepted_type(app_without_store: TestApp) -> None:
    """A view of the application that asks a store that is away is a 503 with a
    Retry-After: a page, or JSON for clients that prefer it. Below our path it is JSON
    whatever the browser accepts.
    """
    for path in PATHS:
        for accept in "text/html", "application/json", "text/plain":
            response = get(app_without_store, path, "alice", Accept=accept)
            assert is_503(response), path
            assert response.content_type == accept
            assert "does not answer" in response.text
    for path in f"/job_state/{UUID}", f"/jobs/{UUID}", "/jobs":
        response = get(app_without_store, path, "alice", Accept="text/html")
        assert is_503(response)
        assert response.json == AWAY


def own_view(exc: StoreUnavailable, request: Request) -> Response:
    return Response("app 503", 503)


def included_view(config: Configurator) -> None:
    config.add_exception_view(own_view, context=StoreUnavailable)


def test_view_of_the_application_wins() -> None:
    """The application's own exception view is used, whenever it was added, but not for
    our requests. One for a route is used for that route, and one for every Exception
    leaves the 503 alone.
    """
    for own in "own", "nested":
        for steps in (
            f"{own} include make",
            f"include {own} make",
            f"{own} commit include make",
            f"include commit {own} make",
        ):
            config = make_config(NOWHERE, root_factory=mounted_root)
            add_views(config)
            app = take_steps(
                config,
                steps,
                own=functools.partial(included_view, config),
                nested=functools.partial(config.include, included_view),
            )
            for path in PATHS:
                assert get(app, path, "alice").text == "app 503", steps
            for path in f"/job_state/{UUID}", f"/jobs/{UUID}":
                assert get(app, path, "alice").content_type == "application/json"
    config = make_config(NOWHERE, root_factory=mounted_root)
    add_views(config)
    config.include("pyramid_jobstate")
    config.add_exception_view(own_view, context=StoreUnavailable, route_name="routed")
    config.add_exception_view(lambda e, r: Response("app 500", 500), context=Exception)
    app = TestApp(config.make_wsgi_app())
    assert get(app, "/routed/1", "alice").text == "app 503"
    for path in "/find", f"/job_state/{UUID}", f"/jobs/{UUID}":
        assert is_503(get(app, path, "alice"))


def test_view_on_a_job_may_meet_a_store_that_is_away(redis_url: str) -> None:
    """In an application's view on a job, the error belongs to the application."""
    store = JobStore(redis_url)

    def leave(context: JobState, request: Request) -> Response:
        with away(store):
            return Response(str(request.job_states.find(UUID)))

    config = make_config(redis_url, root_factory=mounted_root)
    config.add_view(leave, context=JobState, name="leave")
    config.add_exception_view(own_view, context=StoreUnavailable)
    config.include("pyramid_jobstate")
    config.set_job_store(store)
    app = make_app(config)
    uuid = put(store)
    assert get(app, f"/jobs/{uuid}/leave", "alice").text == "app 503"
    with away(store):
        for place in "/jobs", "/job_state":
            response = get(app, f"{place}/{uuid}", "alice")
            assert response.content_type == "application/json"


class Curious(Root):
    """A root whose traversal asks the store."""

    def __getitem__(self, name: str) -> Any:
        return self.request.job_states[name]


class Tree(Root):
    """A root whose traversal looks at a job."""

    def __getitem__(self, name: str) -> Any:
        if name == "jobs":
            return JobStates(self.request, parent=self, name=name)
        if name == "peek":
            return Root.fromkeys([self["jobs"][UUID].title])
        return super().__getitem__(name)


def test_pages_of_the_application_for_a_job_are_a_503() -> None:
    """While the store is away, pages of the application for a job of its tree are
    neither a 404 nor a 500, whatever their views ask for.
    """
    config = make_config(NOWHERE, root_factory=Tree)
    page = {"renderer": "string"}
    config.add_view(lambda c, r: c.title, name="watch", context=JobState, **page)
    config.add_view(lambda c, r: c.status, name="page", **page)
    config.add_view(lambda c, r: c.title, name="kind", context=RunMarathon, **page)
    config.add_route("routed", "/routed/{uuid}", traverse="/jobs/{uuid}")
    config.add_view(lambda c, r: c.status, route_name="routed", **page)
    config.add_route("kind", "/kind/{uuid}", traverse="/jobs/{uuid}")
    config.add_view(
        lambda c, r: c.title, route_name="kind", context=RunMarathon, **page
    )
    app = make_app(config)
    for path in (
        *(f"/jobs/{UUID}/{name}" for name in ("watch", "page", "kind")),
        *(f"/routed/{UUID}", f"/kind/{UUID}", "/peek"),
    ):
        assert is_503(get(app, path, "alice")), path
    app = make_app(make_config(NOWHERE, root_factory=Curious))
    assert is_503(get(app, f"/{UUID}", "alice", Accept="text/html"))


def test_container_raises_unless_it_is_traversed() -> None:
    """Code of the application that asks for a job gets a job or an exception, whatever
    the path.
    """
    raised: list[str] = []

    def ask_for(request: Request, where: str) -> None:
        try:
            JobStates(request, parent=Root(request), name="jobs")[UUID]
        except StoreUnavailable:
            raised.append(where)

    class Asking(Root):
        def __init__(self, request: Request) -> None:
            super().__init__(request)
            ask_for(request, "root factory")

    def look(context: Any, request: Request) -> Response:
        ask_for(request, "view")
        return Response()

    config = make_config(NOWHERE, root_factory=Asking)
    config.add_view(look, name="look")
    assert get(make_app(config), f"/look/{UUID}").status_code == 200
    assert raised == ["root factory", "view"]


class ByKind(Policy):
    """Decides by the kind of a job alone."""

    def permits(self, request: Request, context: Any, permission: str) -> Any:
        return isinstance(context, RunMarathon) or context.kind == "RunMarathon"


class OnlyMarathons(JobStates):
    """A container that hides every other kind of job."""

    def __getitem__(self, uuid: str) -> JobState:
        job_state = super().__getitem__(uuid)
        if not isinstance(job_state, RunMarathon):
            raise KeyError(uuid)
        return job_state


class Wrapped(Root):
    """A resource of the application that wraps a job."""

    def __init__(self, request: Request) -> None:
        super().__init__(request)
        self["jobs"] = JobStates(request, parent=self, name="jobs")
        self["marathons"] = OnlyMarathons(request, parent=self, name="marathons")

    def __getitem__(self, name: str) -> Any:
        if name in self:
            return super().__getitem__(name)
        page = Root(self.request)
        page["job"] = self["jobs"][name]
        return page


def test_outage_is_never_a_refusal() -> None:
    """Code that checks the kind or class of a job never sees an unread one. A page
    would stop polling after a 403 or 404.
    """
    config = make_config(NOWHERE, root_factory=Wrapped, security_policy=ByKind())
    config.add_view(lambda c, r: Response("page"), name="cancel", context=Root)
    app = make_app(config)
    for method, path in (
        ("GET", f"/marathons/{UUID}"),
        ("GET", f"/{UUID}/cancel"),
        *(
            (method, f"{place}/{UUID}{end}")
            for place in ("/job_state", "/jobs")
            for method, end in (
                ("GET", ""),
                ("DELETE", ""),
                ("POST", "/cancel"),
                ("POST", "/rerun"),
                ("GET", "/inspect"),
            )
        ),
    ):
        response = ask(app, method, path, "alice", X_Requested_With="x")
        assert is_503(response), (method, path)


def test_job_that_is_not_read() -> None:
    """Code that logs the context of a request can print an unread job. Any other use of
    it is a 503.
    """
    seen: list[str] = []
    uses: list[Callable[[Any], object]] = [
        lambda job: seen.append(repr(job)),
        JobState.cancel,
        JobState.__acl__,
    ]
    for use in uses:
        config = make_config(NOWHERE)
        config.add_subscriber(lambda e, u=use: u(e.request.context), ContextFound)
        assert is_503(get(make_app(config), f"/job_state/{UUID}", "alice"))
    assert seen == [f"<JobState {UUID} unread>"]


def test_store_that_refuses_is_a_503(
    redis_url: str, client: redis.Redis, store: JobStore
) -> None:
    """If a server refuses to say whether a job exists, the response is not a 404: a
    browser would stop asking.
    """
    for query in f"/{UUID}", f"?uuid={UUID}&uuid={UUID[::-1]}":
        with narrow(client, redis_url, "-hgetall") as url:
            app = make_app(make_config(url))
            assert get(app, f"/job_state{query}", "alice").status_code == 503


# Commits


def sending(url: str, broker_url: str, before: Callable[[], object]) -> TestApp:
    """Return an application whose /send sends a job in a transaction."""
    broker = make_broker(broker_url, JobStateMiddleware(url=url))

    def send(context: Any, request: Request) -> Response:
        request.job_states.send(broker.get_actor("run_marathon"), 26)
        before()
        return Response("sent")

    config = make_tm_config(url)
    config.add_view(send, name="send")
    return make_app(config)


def test_commit_that_the_store_vetoes(
    redis_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A commit that the store vetoes is a 503 as well. The log has one line for the
    outage, and none for the transactions and for jobs that were never written.
    """
    app = sending(NOWHERE, redis_url, lambda: None)
    for _ in range(3):
        assert is_503(ask(app, "POST", "/send", "alice"))
    (line,) = messages(caplog, "")
    assert line.startswith("The job state store does not answer.")


def test_record_whose_reply_was_lost_is_taken_back(
    redis_url: str, client: redis.Redis, store: JobStore
) -> None:
    """A store that wrote the record, but whose replies were lost, vetoes the commit.
    The abort deletes the record.
    """
    # The server knows the scripts, so they run even if their replies are lost.
    put(store)
    with faulty(redis_url) as proxy:
        seen: list[Any] = []

        def lose_records(request: bytes) -> str:
            seen.extend(client.keys("jobstate:????????-*"))
            return "lose" if b"RunMarathon" in request else "pass"

        app = sending(
            proxy.url, redis_url, lambda: setattr(proxy, "judge", lose_records)
        )
        before = set(client.keys("jobstate:????????-*"))
        assert ask(app, "GET", "/send", "alice").status_code == 503
        assert proxy.faults["lose"] > 0
        assert set(seen) > before
    assert set(client.keys("jobstate:????????-*")) == before


# The log


def watch(handler: Any, registry: Any) -> Any:
    """Note exceptions, as pyramid_exclog does."""

    def tween(request: Request) -> Any:
        try:
            return handler(request)
        except BaseException as e:
            registry["seen"].append(type(e).__name__)
            raise

    return tween


def make_watched(store: JobStore) -> tuple[TestApp, list[str]]:
    """Return an application with a tween that notes exceptions, and the list of their
    names.
    """
    config = make_config(NOWHERE, root_factory=mounted_root)
    seen: list[str] = []
    config.registry["seen"] = seen
    config.add_tween(f"{__name__}.watch")
    config.include("pyramid_jobstate")
    config.set_job_store(store)
    return TestApp(config.make_wsgi_app()), seen


def poll_all(app: TestApp) -> set[int]:
    """Return the statuses of requests of every kind."""
    statuses = set()
    everything = "?all=1&everything=1"
    for place in "/job_state", "/jobs":
        for method, end in (
            *(("GET", e) for e in (f"/{UUID}", f"/{UUID}/", f"?uuid={UUID}")),
            *(("GET", e) for e in ("", "?all=1", f"/{UUID}/inspect", "/counts")),
            *(("POST", e) for e in (f"/{UUID}/cancel", f"/{UUID}/rerun")),
            *(("POST", e + everything) for e in ("/clear", "/cancel")),
            ("DELETE", f"/{UUID}"),
        ):
            response = ask(app, method, place + end, ADMIN, X_Requested_With="x")
            statuses.add(response.status_code)
        # Not allowed whether or not the job exists.
        assert ask(app, "PUT", f"{place}/{UUID}", ADMIN).status_code == 405
    return statuses


def test_outage_raises_nothing_through_the_tweens(
    redis_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """During an outage, every request is answered without an exception. The log has one
    line for the outage and one for its end, which a question that asks nothing does not
    bring about.
    """
    store = JobStore(redis_url)
    app, seen = make_watched(store)
    caplog.set_level(logging.INFO, "pyramid_jobstate")
    for _ in range(2):
        caplog.clear()
        with away(store):
            statuses = poll_all(app)
            for _ in range(5):
                statuses.add(get(app, f"/job_state/{UUID}", ADMIN).status_code)
                several = get(app, "/job_state?uuid=x", "alice").json
                assert several == {"jobs": {"x": None}}
        assert statuses == {503}
        assert seen == []
        (line,) = caplog.records
        assert line.levelno == logging.WARNING
        assert line.getMessage().startswith("The job state store does not answer.")
        assert line.exc_info is None
        caplog.clear()
        for _ in range(3):
            assert get(app, f"/job_state?uuid={UUID}", ADMIN).status_code == 200
        said = messages(caplog, "pyramid_jobstate", logging.INFO)
        assert said == ["The job state store answers again."]


def test_outage_in_views_of_the_application_is_logged_once(
    caplog: pytest.LogCaptureFixture, app_without_store: TestApp
) -> None:
    """An outage in the application's own code is also logged once."""
    for _ in range(3):
        for path in PATHS:
            get(app_without_store, path, "alice")

    assert len(messages(caplog, "pyramid_jobstate", logging.INFO)) == 1


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds by which the process's clock is ahead."""
    ahead = [0.0]
    monotonic = time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: monotonic() + ahead[0])
    return ahead


def test_store_that_refuses_is_logged_once_a_minute(
    redis_url: str,
    client: redis.Redis,
    store: JobStore,
    caplog: pytest.LogCaptureFixture,
    clock: list[float],
) -> None:
    """A server that refuses some commands does not flood the log."""
    job = put(store)
    caplog.set_level(logging.INFO, "pyramid_jobstate")
    with narrow(client, redis_url, "+hgetall") as url:
        app, seen = make_watched(JobStore(url))
        caplog.clear()
        for _ in range(2):
            for _ in range(5):
                assert get(app, f"/job_state/{job}", "alice").status_code == 200
                path = f"/job_state/{job}/cancel"
                response = ask(app, "POST", path, "alice", X_Requested_With="x")
                assert response.status_code == 503
            (line,) = messages(caplog, "pyramid_jobstate", logging.INFO)
            assert line.startswith("The job state store refused a request")
            assert "secret" not in line
            caplog.clear()
            clock[0] += 61
    assert seen == []


def test_outage_of_a_part_floods_no_log(
    redis_url: str, caplog: pytest.LogCaptureFixture, clock: list[float]
) -> None:
    """If errors and replies alternate, as when one node of a Cluster is away, the log
    has only a few lines a minute.
    """
    store = JobStore(redis_url)
    app, _ = make_watched(store)
    caplog.set_level(logging.INFO, "pyramid_jobstate")
    caplog.clear()
    for minutes in 1, 2:
        for _ in range(20):
            with away(store):
                assert is_503(get(app, f"/job_state/{UUID}", "alice"))
            get(app, f"/job_state/{UUID}", "alice")
        said = messages(caplog, "pyramid_jobstate", logging.INFO)
        assert len(said) == 10 * minutes
        clock[0] += 62
