"""What a poll costs over HTTP, of our job and of celery-progress's."""

from __future__ import annotations

from collections.abc import Callable
from http.client import HTTPConnection

from pyramid_jobstate import JobStore
from pyramid_jobstate.embedded import EmbeddedServer

from .jobs import running_job
from .peers.web import make_apps
from .peers.workers import CeleryProgress, get, peers, web_server
from .poll import poll
from .timing import Row, Table, side_by_side

#: The number of polls timed at once.
COUNT = 100

#: What the others are compared with.
BARE = "a bare view"


def measure(server: EmbeddedServer) -> Table:
    """Poll a job that has reported its progress, as celery-progress's jobs have."""
    with (
        running_job(JobStore(server.url)) as job_state,
        peers(server, CeleryProgress) as (found, left_out),
        web_server(server) as connection,
    ):
        job_state.set_progress(12, 26)
        job_state.flush()
        paths = {
            BARE: f"/bare/{job_state.uuid}",
            "ours": f"/ours/job_state/{job_state.uuid}",
        }
        for peer in found:
            with peer.working():
                job = peer.send("take_steps", 26, 0.0)
                peer.wait(job)
                paths[peer.name] = peer.path(job)
        apps = make_apps(server.url)
        inside = {name: _inside(apps, path) for name, path in paths.items()}
        over = {
            name: _over(connection, path)
            for name, path in {"the floor": "/floor/", **paths}.items()
        }
        rows = [*_rows("in process", inside), *_rows("over HTTP", over)]
    notes = [
        "The bare view has an ACL and one `HGETALL`, the floor is a constant answer. "
        "celery-progress checks no rights, and its Django has no middleware."
    ]
    return Table(
        "A poll of a job that has reported its progress", rows, notes + left_out
    )


def _inside(apps: dict, path: str) -> Callable[[int], object]:
    _, name, rest = path.split("/", 2)
    return lambda count: poll(apps[name], f"/{rest}", count)


def _over(connection: HTTPConnection, path: str) -> Callable[[int], object]:
    return lambda count: [get(connection, path) for _ in range(count)]


def _rows(where: str, polls: dict[str, Callable[[int], object]]) -> list[Row]:
    timings = side_by_side(*((COUNT, do) for do in polls.values()))
    by_name = dict(zip(polls, timings, strict=True))
    base = by_name.pop(BARE)
    return [
        Row(
            f"{where}: {name} / {BARE}",
            timing.over(base),
            note=f"{timing} / {base}",
        )
        for name, timing in by_name.items()
    ]
