"""A store that is away, in the application's own views."""

import logging
import time
from collections.abc import Iterator
from typing import Any

import pytest
import redis
import transaction
from pyramid.config import Configurator
from pyramid.events import ContextFound
from pyramid.request import Request
from pyramid.response import Response
from webtest import TestApp

from pyramid_jobstate import JobState, StoreUnavailable
from pyramid_jobstate.embedded import EmbeddedServer
from pyramid_jobstate.resources import JobStates
from pyramid_jobstate.web import unavailable
from tests.jobs import RunMarathon, messages
from tests.support import UUID
from tests.webapp import (
    ADMIN,
    NOWHERE,
    Policy,
    Root,
    ask,
    get,
    make_broker,
    make_config,
    mounted_root,
    put_job,
    take_steps,
)


def find(context: Any, request: Request) -> Response:
    return Response(str(request.job_states.find(UUID)))


def list_all(context: Any, request: Request) -> Response:
    return Response(str(request.job_states.list()))


def cancel_one(context: Any, request: Request) -> Response:
    return Response(str(request.job_states[UUID]))


VIEWS = {"find": find, "list": list_all, "getitem": cancel_one}
PATHS = ["/find", "/list", "/getitem", "/routed/1"]


def add_views(config: Configurator) -> None:
    for name, view in VIEWS.items():
        config.add_view(view, name=name)
    config.add_route("routed", "/routed/{x}")
    config.add_view(find, route_name="routed")


@pytest.fixture
def app_without_store() -> TestApp:
    config = make_config(NOWHERE, root_factory=mounted_root)
    add_views(config)
    config.include("pyramid_jobstate")
    return TestApp(config.make_wsgi_app())


@pytest.mark.parametrize("path", PATHS)
def test_store_that_is_away_is_a_503_in_the_applications_views(
    app_without_store: TestApp, path: str
) -> None:
    """A view that asks a store that is away is a 503 with a Retry-After."""
    response = get(app_without_store, path, "alice")

    assert response.status_code == 503
    assert response.headers["Retry-After"] == "5"


@pytest.mark.parametrize(
    ("accept", "content_type"),
    [
        ("text/html", "text/html"),
        ("application/json", "application/json"),
        ("text/plain", "text/plain"),
    ],
)
def test_answer_is_of_the_accepted_type(
    app_without_store: TestApp, accept: str, content_type: str
) -> None:
    """The application's 503 is a page, or JSON for clients that prefer it."""
    response = get(app_without_store, "/find", "alice", Accept=accept)

    assert response.status_code == 503
    assert response.content_type == content_type
    assert "does not answer" in response.text


@pytest.mark.parametrize("path", [f"/job_state/{UUID}", f"/jobs/{UUID}", "/jobs"])
def test_our_answer_stays_json(app_without_store: TestApp, path: str) -> None:
    """Below our path, the 503 is JSON whatever the browser accepts."""
    response = get(app_without_store, path, "alice", Accept="text/html")

    assert response.status_code == 503
    assert response.json == {"error": "The job state store does not answer."}


def own_view(exc: StoreUnavailable, request: Request) -> Response:
    return Response("app 503", 503)


def included_view(config: Configurator) -> None:
    config.add_exception_view(own_view, context=StoreUnavailable)


ORDERS = [
    "own include make",
    "include own make",
    "own commit include make",
    "include commit own make",
    "nested include make",
    "include nested make",
    "nested commit include make",
    "include commit nested make",
]


@pytest.mark.parametrize("steps", ORDERS)
def test_view_of_the_application_wins(steps: str) -> None:
    """The application's own exception view is used, whenever it was added."""
    config = make_config(NOWHERE, root_factory=mounted_root)
    add_views(config)
    app = take_steps(
        config,
        steps,
        own=lambda: included_view(config),
        nested=lambda: config.include(included_view),
    )

    for path in PATHS:
        assert get(app, path, "alice").text == "app 503"
    for path in f"/job_state/{UUID}", f"/jobs/{UUID}":
        assert get(app, path, "alice").content_type == "application/json"


def test_view_of_a_route_wins() -> None:
    """An exception view for one route of the application is used for that route."""
    config = make_config(NOWHERE)
    add_views(config)
    config.include("pyramid_jobstate")
    config.add_exception_view(own_view, context=StoreUnavailable, route_name="routed")
    app = TestApp(config.make_wsgi_app())

    assert get(app, "/routed/1", "alice").text == "app 503"
    assert get(app, "/find", "alice").headers["Retry-After"] == "5"


def test_general_error_view_leaves_the_503_alone() -> None:
    """A view for every Exception is not used when the store is away."""
    config = make_config(NOWHERE)
    add_views(config)
    config.include("pyramid_jobstate")
    config.add_exception_view(lambda e, r: Response("app 500", 500), context=Exception)
    app = TestApp(config.make_wsgi_app())

    assert get(app, "/find", "alice").status_code == 503


def test_traversal_that_asks_the_store_is_a_503() -> None:
    """Traversal of the application's own tree that asks the store is a 503, too."""

    class Curious(Root):
        def __getitem__(self, name: str) -> Any:
            return self.request.job_states[name]

    config = make_config(NOWHERE, root_factory=Curious)
    config.include("pyramid_jobstate")
    app = TestApp(config.make_wsgi_app())

    response = get(app, f"/{UUID}", "alice", Accept="text/html")

    assert response.status_code == 503
    assert response.headers["Retry-After"] == "5"


@pytest.fixture
def stopped(server: EmbeddedServer) -> Iterator[EmbeddedServer]:
    yield server
    transaction.abort()


def test_commit_that_the_store_vetoes_is_a_503(stopped: EmbeddedServer) -> None:
    """A commit that the store vetoes is a 503 as well."""
    run_marathon = make_broker(stopped.url).get_actor("run_marathon")

    def send(context: Any, request: Request) -> Response:
        request.job_states.send(run_marathon, 26)
        stopped.stop()
        return Response("sent")

    settings = {"tm.manager_hook": "pyramid_tm.explicit_manager"}
    config = make_config(stopped.url, settings=settings)
    config.include("pyramid_tm")
    config.include("pyramid_jobstate")
    config.add_view(send, name="send")
    app = TestApp(config.make_wsgi_app())

    response = ask(app, "POST", "/send", "alice")

    assert response.status_code == 503
    assert response.headers["Retry-After"] == "5"


# Logging, and pages about a job.


def make_watched(redis_url: str) -> tuple[TestApp, list[str]]:
    """Return an application with a tween that notes exceptions, as pyramid_exclog does,
    and the list of their names.
    """
    config = make_config(redis_url, root_factory=mounted_root)
    seen: list[str] = []
    config.registry["seen"] = seen
    config.add_tween(f"{__name__}.watch")
    config.include("pyramid_jobstate")
    return TestApp(config.make_wsgi_app()), seen


def watch(handler: Any, registry: Any) -> Any:
    def tween(request: Request) -> Any:
        try:
            return handler(request)
        except BaseException as e:
            registry["seen"].append(type(e).__name__)
            raise

    return tween


def poll_all(app: TestApp) -> set[int]:
    """Return the statuses of requests of every kind."""
    statuses = set()
    for place in "/job_state", "/jobs":
        for path in f"/{UUID}", f"/{UUID}/", f"?uuid={UUID}", "", "?all=1":
            statuses.add(get(app, place + path, ADMIN).status_code)
        statuses.add(get(app, f"{place}/{UUID}/inspect", ADMIN).status_code)
        statuses.add(get(app, f"{place}/counts", ADMIN).status_code)
        for method, path in (
            ("POST", f"/{UUID}/cancel"),
            ("POST", f"/{UUID}/rerun"),
            ("DELETE", f"/{UUID}"),
            ("POST", "/clear?all=1&everything=1"),
            ("POST", "/cancel?all=1&everything=1"),
        ):
            response = ask(app, method, place + path, ADMIN, X_Requested_With="x")
            statuses.add(response.status_code)
        # Not allowed whether or not the job exists.
        assert ask(app, "PUT", f"{place}/{UUID}", ADMIN).status_code == 405
    return statuses


def test_outage_raises_nothing_through_the_tweens(
    server: EmbeddedServer, caplog: pytest.LogCaptureFixture
) -> None:
    """During an outage, every request is answered without an exception. The log has one
    line for the outage and one for its end.
    """
    app, seen = make_watched(server.url)
    caplog.set_level(logging.INFO, "pyramid_jobstate")
    for _ in range(2):
        caplog.clear()
        server.stop()

        statuses = poll_all(app)
        for _ in range(20):
            statuses.add(get(app, f"/job_state/{UUID}", ADMIN).status_code)

        assert statuses == {503}
        assert seen == []
        (line,) = caplog.records
        assert line.levelno == logging.WARNING
        assert line.getMessage().startswith("The job state store does not answer.")
        assert line.exc_info is None

        server.start()
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


def test_store_that_refuses_is_logged_once_a_minute(
    redis_url: str,
    client: redis.Redis,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A server that refuses some commands does not flood the log."""
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    job = put_job(client)
    client.acl_setuser(
        "reader",
        enabled=True,
        passwords=["+secret"],
        keys=["jobstate:*"],
        commands=["+time", "+client", "+hello", "+ping", "+hgetall"],
    )
    app, seen = make_watched(redis_url.replace("//", "//reader:secret@"))
    caplog.set_level(logging.INFO, "pyramid_jobstate")
    caplog.clear()
    try:
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
            now[0] += unavailable.LOG_PAUSE
    finally:
        client.acl_deluser("reader")
    assert seen == []


class Tree(Root):
    """A root whose traversal looks at a job."""

    def __getitem__(self, name: str) -> Any:
        if name == "jobs":
            return JobStates(self.request, parent=self, name=name)
        if name == "peek":
            return Root.fromkeys([self["jobs"][UUID].title])
        return super().__getitem__(name)


PAGES = [
    "/jobs/{}/watch",
    "/jobs/{}/page",
    "/jobs/{}/kind",
    "/routed/{}",
    "/kind/{}",
    "/peek",
]


@pytest.mark.parametrize("path", PAGES)
def test_pages_of_the_application_for_a_job_of_its_tree_are_a_503(path: str) -> None:
    """While the store is away, pages of the application are neither a 404 nor a 500."""
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
    config.include("pyramid_jobstate")
    app = TestApp(config.make_wsgi_app())

    response = get(app, path.format(UUID), "alice")

    assert response.status_code == 503
    assert response.headers["Retry-After"] == "5"


@pytest.mark.parametrize("when", ["root factory", "view"])
def test_container_of_the_tree_raises_unless_it_is_traversed(when: str) -> None:
    """Code of the application that asks for a job gets a job or an exception, whatever
    the path.
    """
    raised: list[str] = []

    def ask_for(request: Request) -> None:
        try:
            JobStates(request, parent=Root(request), name="jobs")[UUID]
        except StoreUnavailable:
            raised.append(when)

    class Asking(Root):
        def __init__(self, request: Request) -> None:
            super().__init__(request)
            if when == "root factory":
                ask_for(request)

    def look(context: Any, request: Request) -> Response:
        ask_for(request)
        return Response()

    config = make_config(NOWHERE, root_factory=Asking)
    config.add_view(look, name="look")
    config.include("pyramid_jobstate")

    assert get(TestApp(config.make_wsgi_app()), f"/look/{UUID}").status_code == 200
    assert when in raised


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


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", f"/job_state/{UUID}"),
        ("POST", f"/job_state/{UUID}/cancel"),
        ("GET", f"/jobs/{UUID}"),
        ("POST", f"/jobs/{UUID}/cancel"),
        ("DELETE", f"/job_state/{UUID}"),
        ("POST", f"/job_state/{UUID}/rerun"),
        ("GET", f"/job_state/{UUID}/inspect"),
        ("DELETE", f"/jobs/{UUID}"),
        ("POST", f"/jobs/{UUID}/rerun"),
        ("GET", f"/jobs/{UUID}/inspect"),
        ("GET", f"/marathons/{UUID}"),
        ("GET", f"/{UUID}/cancel"),
    ],
)
def test_outage_is_never_a_refusal(method: str, path: str) -> None:
    """Code that checks the kind or class of a job never sees an unread one. A page
    would stop polling after a 403 or 404.
    """
    config = make_config(NOWHERE, root_factory=Wrapped, security_policy=ByKind())
    config.add_view(lambda c, r: Response("page"), name="cancel", context=Root)
    config.include("pyramid_jobstate")
    app = TestApp(config.make_wsgi_app())

    response = ask(app, method, path, "alice", X_Requested_With="x")

    assert response.status_code == 503
    assert response.headers["Retry-After"] == "5"


def test_job_that_is_not_read_can_be_printed() -> None:
    """Code that logs the context of a request can print an unread job."""
    seen = []
    config = make_config(NOWHERE)
    config.add_subscriber(lambda e: seen.append(repr(e.request.context)), ContextFound)
    config.include("pyramid_jobstate")

    get(TestApp(config.make_wsgi_app()), f"/job_state/{UUID}", "alice")

    assert seen == [f"<JobState {UUID} unread>"]


@pytest.mark.parametrize("ask_it", [JobState.cancel, JobState.__acl__])
def test_job_that_is_not_read_says_that_the_store_is_away(ask_it: Any) -> None:
    """Any other use of an unread job is a 503."""
    config = make_config(NOWHERE)
    config.add_subscriber(lambda event: ask_it(event.request.context), ContextFound)
    config.include("pyramid_jobstate")
    app = TestApp(config.make_wsgi_app())

    assert get(app, f"/job_state/{UUID}", "alice").status_code == 503


def test_commits_that_the_store_vetoes_are_logged_once(
    stopped: EmbeddedServer, caplog: pytest.LogCaptureFixture
) -> None:
    """The log has one line for the outage and none for jobs that were never written."""
    run_marathon = make_broker(stopped.url).get_actor("run_marathon")
    settings = {"tm.manager_hook": "pyramid_tm.explicit_manager"}
    config = make_config(stopped.url, settings=settings)
    config.include("pyramid_tm")
    config.include("pyramid_jobstate")
    config.add_view(
        lambda c, r: Response(repr(r.job_states.send(run_marathon, 26))), name="send"
    )
    app = TestApp(config.make_wsgi_app())
    stopped.stop()
    caplog.clear()

    for _ in range(3):
        assert ask(app, "POST", "/send", "alice").status_code == 503

    (line,) = messages(caplog, "pyramid_jobstate")
    assert line.startswith("The job state store does not answer.")


def test_question_that_asks_nothing_ends_no_outage(
    app_without_store: TestApp, caplog: pytest.LogCaptureFixture
) -> None:
    """Asking for an invalid uuid does not log that the store is back."""
    caplog.set_level(logging.INFO, "pyramid_jobstate")
    caplog.clear()

    for _ in range(3):
        assert get(app_without_store, f"/job_state/{UUID}", "alice").status_code == 503
        assert get(app_without_store, "/job_state?uuid=x", "alice").json == {
            "jobs": {"x": None}
        }

    assert len(messages(caplog, "pyramid_jobstate", logging.INFO)) == 1


def test_outage_of_a_part_floods_no_log(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If errors and replies alternate, as when one node of a Cluster is away, the log
    has only a few lines a minute.
    """
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    caplog.set_level(logging.INFO, "pyramid_jobstate")
    outage = unavailable.WebOutage()

    for minutes in 1, 2:
        for _ in range(100):
            outage.note(redis.exceptions.ConnectionError("no route"))
            outage.end()

        said = messages(caplog, "pyramid_jobstate", logging.INFO)
        assert len(said) == 2 * minutes * unavailable.MAX_OUTAGES
        now[0] += unavailable.LOG_PAUSE + 1
