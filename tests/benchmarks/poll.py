"""What it costs to answer a poll."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import redis
from pyramid.authorization import ACLHelper, Allow, Authenticated, Everyone
from pyramid.config import Configurator
from pyramid.request import Request

from pyramid_jobstate import JobStore
from pyramid_jobstate.embedded import EmbeddedServer

from .jobs import OWNER, running_job, set_ten_metrics
from .timing import Row, Table, side_by_side

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


def poll(app: Application, path: str, count: int = 1) -> None:
    """Poll a job as its owner, `count` times."""

    def start_response(status: str, headers: object, exc_info: object = None) -> None:
        if status != "200 OK":
            raise RuntimeError(f"{path} gave {status}")

    for _ in range(count):
        environ = {
            "REQUEST_METHOD": "GET",
            "PATH_INFO": path,
            "SCRIPT_NAME": "",
            "QUERY_STRING": "",
            "HTTP_HOST": "localhost",
            "HTTP_ACCEPT": "application/json",
            "SERVER_NAME": "localhost",
            "SERVER_PORT": "80",
            "SERVER_PROTOCOL": "HTTP/1.1",
            "REMOTE_USER": OWNER,
            "wsgi.url_scheme": "http",
            "wsgi.input": io.BytesIO(),
        }
        b"".join(app(environ, start_response))


def measure(server: EmbeddedServer) -> Table:
    apps = [
        make_app(server),
        make_bare_app(server),
        make_bare_app(server, has_property=True),
    ]
    with running_job(JobStore(server.url)) as job_state:
        set_ten_metrics(job_state)
        job_state.flush()
        path, bare_path = f"/job_state/{job_state.uuid}", f"/{job_state.uuid}"
        ours, bare, common = side_by_side(
            (300, lambda count: poll(apps[0], path, count)),
            (300, lambda count: poll(apps[1], bare_path, count)),
            (300, lambda count: poll(apps[2], bare_path, count)),
        )
    what = "`GET /job_state/{uuid}` / a bare view with an ACL and one `HGETALL`"
    rows = [
        Row(what, ours.over(bare), at_most=1.5, note=f"{ours} / {bare}"),
        Row(
            f"{what}, in an application whose requests have a property, such as `tm`",
            ours.over(common),
            note=f"{ours} / {common}",
        ),
    ]
    return Table("A poll, ten metrics, in process", rows)
