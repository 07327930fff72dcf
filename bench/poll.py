"""What it costs to answer a poll.

IN_BATCH and IN_LIST stand for goals of 28 and 32 µs. The version of 27 November 2026
was measured at 0.99 and 1.05 of these; on another machine, it took 2.95 and 3.56 times
as long as the reads and ACL checks, the medians of three runs. So the goals were 3.0
and 3.4 times that.
"""

from __future__ import annotations

import functools
import io
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import redis
from pyramid.authorization import ACLHelper, Allow, Authenticated, Everyone
from pyramid.config import Configurator
from pyramid.request import Request

from pyramid_jobstate import JobStore
from pyramid_jobstate.embedded import EmbeddedServer
from pyramid_jobstate.testing import put_job
from pyramid_jobstate.web import answers

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

#: What a job in a batch of polls, and in a list, may cost, in reads and ACL checks.
IN_BATCH, IN_LIST = 3.0, 3.4

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
    fast, rows = answers.fast, []
    what = "`GET /job_state/{uuid}` / a bare view with an ACL and one `HGETALL`"
    for encoder, with_what in (None, ""), (fast, ", with the extra `speed`"):
        if encoder is None and with_what:
            continue
        answers.fast = encoder
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
    """Compare what a job costs in a batch of polls, and in a list, with the least that
    it can cost: a pipeline of as many `HGETALL`, and an ACL check each.
    """
    jobs = [
        put_job(store, owner=OWNER, message="Running", metrics=METRICS).uuid
        for _ in range(100)
    ]
    uuids = "&".join(f"uuid={uuid}" for uuid in jobs)
    rows = []
    for what, count, query, at_most in (
        ("batch", 100, uuids, IN_BATCH),
        ("list", 50, "limit=50", IN_LIST),
    ):
        things = (
            (20, functools.partial(poll, app, "/job_state", query=query)),
            (20, functools.partial(_read, store.client, store.namespace, jobs[:count])),
        )
        ours, floor = side_by_side(*things)
        cpu, floor_cpu = side_by_side(*things, clock=time.thread_time)
        rows.append(
            Row(
                f"a job in a {what} of {count} / `HGETALL` in a pipeline and an ACL",
                ours.over(floor),
                at_most=at_most,
                note=f"{ours} / {floor} for {count}; of CPU {cpu.over(floor_cpu):.2f}",
            )
        )
    return rows


def _read(client: Any, namespace: str, jobs: Sequence[str], count: int) -> None:
    """Read the hashes of jobs with one pipeline, and check the ACL of each."""
    request = Request.blank("/", environ={"REMOTE_USER": OWNER})
    policy, jobs_of = Policy(), BareJobs(request)
    for _ in range(count):
        with client.pipeline(transaction=False) as pipe:
            for job in jobs:
                pipe.hgetall(f"{namespace}:{job}")
            found = pipe.execute()
        for job, fields in zip(jobs, found, strict=True):
            if not policy.permits(request, BareJob(jobs_of, job, fields), "view_job"):
                raise RuntimeError(f"{job} was refused")
