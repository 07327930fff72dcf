"""What the tests of streams share: their jobs, paths and headers."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from pyramid.authorization import Allow, Everyone
from pyramid.config import Configurator

from pyramid_jobstate import JobState, JobStore
from pyramid_jobstate.asgi import asgi_app
from pyramid_jobstate.testing import put_job
from tests import asgi, streams
from tests.jobs import RunMarathon
from tests.support import wait_for

T = TypeVar("T")

#: Says to a page that polls that it could have a stream.
HINT = "jobstate-stream"

#: The store's time, in the answer to a poll.
TIME = "jobstate-time"


class PublicRun(JobState):
    """A kind that everybody may see."""

    public_params = ("miles",)

    def __acl__(self) -> list[tuple[str, Any, Any]]:
        return [(Allow, Everyone, "view_job")]


def put(
    store: JobStore,
    status: str = "working",
    kind: type[JobState] = RunMarathon,
    owner: Any = "alice",
    **options: Any,
) -> str:
    """Store a job, of Alice's unless the test says otherwise. Return its uuid."""
    options = {"params": {"miles": 26}, **options}
    return put_job(store, kind, status, owner=owner, **options).uuid


def batch(*uuids: str, place: str = "/job_state") -> str:
    """Return the path of several jobs."""
    return f"{place}?{'&'.join(f'uuid={uuid}' for uuid in uuids)}"


def one(uuid: str) -> str:
    """Return the path of a job."""
    return f"/job_state/{uuid}"


def wait_until(value: T, get: Callable[..., T], *arguments: Any) -> None:
    """Wait until a function returns a value."""
    wait_for(lambda: get(*arguments) == value)


@contextlib.contextmanager
def serving_sockets(
    config: Configurator, around: Callable[[Any], Any] = lambda app: app, **options: Any
) -> Iterator[int]:
    """Serve an application with uvicorn in a thread, and give its port.

    Parameters:
      around: Returns a WSGI application around it.
      options: Those of :func:`.asgi_app`.
    """
    config.include("pyramid_jobstate")
    app = asgi_app(around(config.make_wsgi_app()), **options)
    with streams.serving(app) as port:
        yield port
    with asgi.serving(app) as server:
        server.config = config
        asgi.end(server, 1)
