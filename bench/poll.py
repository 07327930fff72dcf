"""What it costs to answer a poll."""

from __future__ import annotations

import io
import math
import statistics
from collections.abc import Callable
from typing import Any

import redis
from pyramid.authorization import ACLHelper, Allow, Authenticated, Everyone
from pyramid.config import Configurator
from pyramid.request import Request

from pyramid_jobstate import JobStore
from pyramid_jobstate.embedded import EmbeddedServer
from pyramid_jobstate.testing import put_job
from pyramid_jobstate.web import encoding

from .jobs import OWNER, running_job, set_ten_metrics
from .timing import Row, Table, side_by_side

#: The metrics of each of several jobs.
METRICS = {
    **{f"count_{i}": 1000 * i + 7 for i in range(5)},
    "rate": 12.5,
    "share": 0.4615,
    "file": "marathon.csv",
    "place": "kilometre 12",
    "done": False,
}

Application = Callable[[dict[str, Any], Callable[..., Any]], Any]


class Policy:
    """Takes the user from REMOTE_USER, and decides by ACLs."""

    def __init__(self) -> None:
        self.acl = ACLHelper()

    def identity(self, request: Request) -> str | None:
        return request.environ.get("REMOTE_USER")

    authenticated_userid = identity

    def permits(self, request: Request, context: Any, permission: str) -> Any:
        user = self.identity(request)
        principals = [Everyone] if user is None else [Everyone, Authenticated, user]
        return self.acl.permits(context, principals, permission)


class BareJobs:
    """The container of the bare application."""

    __name__ = ""
    __parent__ = None

    def __init__(self, request: Request) -> None:
        self.request = request

    def __getitem__(self, name: str) -> BareJob:
        fields = self.request.registry.client.hgetall(f"jobstate:{name}")
        if not fields:
            raise KeyError(name)
        return BareJob(self, name, fields)


class BareJob:
    """A hash of the store, unchanged."""

    def __init__(self, parent: BareJobs, name: str, fields: dict[str, str]) -> None:
        self.__parent__ = parent
        self.__name__ = name
        self.fields = fields

    def __acl__(self) -> list[tuple[str, str, str]]:
        return [(Allow, OWNER, "view_job")]


def show_bare(context: BareJob, request: Request) -> dict[str, str]:
    return context.fields


def make_bare_app(server: EmbeddedServer, *, has_property: bool = False) -> Application:
    """Return an application that shows the hash, written as briefly as possible.

    Parameters:
      has_property: Whether its requests have a property, as pyramid_tm's do: Pyramid
        makes a class for each such request.
    """
    with Configurator(security_policy=Policy(), root_factory=BareJobs) as config:
        if has_property:
            config.add_request_method(lambda request: None, "tm", reify=True)
        config.registry.client = redis.Redis.from_url(server.url, decode_responses=True)
        config.add_view(
            show_bare, context=BareJob, permission="view_job", renderer="json"
        )
    return config.make_wsgi_app()


def make_app(server: EmbeddedServer, **settings: str) -> Application:
    """Return an application with pyramid_jobstate and nothing else.

    Parameters:
      settings: Its settings.
    """
    settings = {f"jobstate.{name}": value for name, value in settings.items()}
    settings["jobstate.redis_url"] = server.url
    with Configurator(settings=settings, security_policy=Policy()) as config:
        config.include("pyramid_jobstate")
    return config.make_wsgi_app()


def poll(
    app: Application, path: str, count: int = 1, *, query: str = "", tag: str = ""
) -> str:
    """Poll as the owner of a job, `count` times, and return the last tag.

    Parameters:
      tag: That of the answer before, which has not changed since.
    """
    expected = "304 Not Modified" if tag else "200 OK"
    headers: dict[str, str] = {}

    def start_response(
        status: str, headerlist: list[tuple[str, str]], exc_info: object = None
    ) -> None:
        if status != expected:
            raise RuntimeError(f"{path} gave {status}")
        headers.update(headerlist)

    for _ in range(count):
        environ = {
            "REQUEST_METHOD": "GET",
            "PATH_INFO": path,
            "SCRIPT_NAME": "",
            "QUERY_STRING": query,
            "HTTP_HOST": "localhost",
            "HTTP_ACCEPT": "application/json",
            "SERVER_NAME": "localhost",
            "SERVER_PORT": "80",
            "SERVER_PROTOCOL": "HTTP/1.1",
            "REMOTE_USER": OWNER,
            "wsgi.url_scheme": "http",
            "wsgi.input": io.BytesIO(),
        }
        if tag:
            environ["HTTP_IF_NONE_MATCH"] = tag
        b"".join(app(environ, start_response))
    return headers.get("ETag", "")


def measure(server: EmbeddedServer) -> Table:
    store = JobStore(server.url)
    app = make_app(server)
    bare = make_bare_app(server)
    common = make_bare_app(server, has_property=True)
    with running_job(store) as job_state:
        set_ten_metrics(job_state)
        job_state.flush()
        path, bare_path = f"/job_state/{job_state.uuid}", f"/{job_state.uuid}"
        rows = _polls(
            (lambda count: poll(app, path, count)),
            (lambda count: poll(bare, bare_path, count)),
            (lambda count: poll(common, bare_path, count)),
        )
        tag = poll(app, path)
        whole, unchanged = side_by_side(
            (300, lambda count: poll(app, path, count)),
            (300, lambda count: poll(app, path, count, tag=tag)),
        )
    rows.append(
        Row(
            "an unchanged poll, 304 / a poll with 200",
            unchanged.over(whole),
            at_most=1.2,
            note=f"{unchanged} / {whole}",
        )
    )
    rows += _several(app, store)
    return Table("A poll, ten metrics, in process", rows)


def _polls(*calls: Callable[[int], object]) -> list[Row]:
    """Compare polls with those of bare views: without the extra ``speed``, and with it,
    if it is installed.
    """
    fast, rows = encoding.fast, []
    what = "`GET /job_state/{uuid}` / a bare view with an ACL and one `HGETALL`"
    for encoder, with_what in (None, ""), (fast, ", with the extra `speed`"):
        if encoder is None and with_what:
            continue
        encoding.fast = encoder
        ours, bare, common = side_by_side(*((300, call) for call in calls))
        rows += [
            Row(
                f"{what}, in an application whose requests have a property, such as "
                f"`tm`{with_what}",
                ours.over(common),
                at_most=1.2 if with_what else math.inf,
                note=f"{ours} / {common}",
            ),
            Row(
                f"the same where they have none{with_what}",
                ours.over(bare),
                at_most=1.5,
                note=f"{ours} / {bare}",
            ),
        ]
    return rows


def _several(app: Application, store: JobStore) -> list[Row]:
    """Measure what a job costs in a batch of polls, and in a list."""
    jobs = [
        put_job(store, owner=OWNER, message="Running", metrics=METRICS).uuid
        for _ in range(100)
    ]
    query = "&".join(f"uuid={uuid}" for uuid in jobs)
    batch, page = side_by_side(
        (20, lambda count: poll(app, "/job_state", count, query=query)),
        (20, lambda count: poll(app, "/job_state", count, query="limit=50")),
    )
    return [
        Row(
            f"a job in {what} / {goal} µs",
            statistics.median(timing.rounds) / count * 1e6 / goal,
            at_most=1,
            note=f"{timing} for {count}",
        )
        for what, timing, count, goal in (
            ("a batch of 100", batch, 100, 28),
            ("a list of 50", page, 50, 32),
        )
    ]
