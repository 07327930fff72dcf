"""What the tests of streams share: their jobs, paths and headers."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeVar
from unittest import mock

import redis
from pyramid.authorization import Allow, Everyone

from pyramid_jobstate import Batch, JobState, JobStore
from pyramid_jobstate.testing import put_batch, put_job
from tests.asgi import Exchange, Server, pushing
from tests.jobs import RunMarathon
from tests.running import Run
from tests.support import load_job, wait_for
from tests.webapp import make_config

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


class UntimedRun(JobState):
    """A kind for which no thread looks up what is usual, which takes a connection."""

    show_usual = False


class OwnJson(JobState):
    """A kind with JSON of its own, which no stream can make."""

    def __json__(self, request: Any) -> dict[str, Any]:
        return {"mine": self.uuid}


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


def put_members(store: JobStore, count: int, size: int = 2) -> tuple[Batch, list[str]]:
    """Store a batch of waiting jobs of a size to show. Return it and their uuids."""
    params = {"miles": "x" * size}
    member = {"status": "queued", "job_state_class": RunMarathon, "params": params}
    made = put_batch(store, Batch, [member] * count, owner="alice")
    return made, [job.uuid for job in store.members(made.uuid, limit=count).items]


def batch(*uuids: str, place: str = "/job_state") -> str:
    """Return the path of several jobs."""
    return f"{place}?{'&'.join(f'uuid={uuid}' for uuid in uuids)}"


def one(uuid: str) -> str:
    """Return the path of a job."""
    return f"/job_state/{uuid}"


def wait_until(value: T, get: Callable[..., T], *arguments: Any) -> None:
    """Wait until a function returns a value."""
    wait_for(lambda: get(*arguments) == value)


def told(stream: Exchange) -> list[int]:
    """Return the metrics n of the states that a stream has shown."""
    return [event.state["n"] for event in stream.events if event.name == "message"]


def statuses(stream: Exchange) -> list[str]:
    """Return the statuses of the states that a stream has shown."""
    states = [event.state for event in stream.events if event.name == "message"]
    return [state["job"]["status"] for state in states]


def see_an_end(server: Server, store: JobStore) -> list[str]:
    """Cancel a job that waits, and return the statuses that its stream shows."""
    job = put(store, "queued")
    stream = server.watch(one(job))
    load_job(store, job).cancel()
    return statuses(stream.wait())


def report(run: Run, n: int, *streams: Exchange) -> None:
    """Have a job report the metric n, and wait until streams show it."""
    run.report(n=n)
    for stream in streams:
        wait_until([n], lambda stream: told(stream)[-1:], stream)


def follow(server: Server, run: Run, n: int = 1) -> Exchange:
    """Open a stream of a job that has been told of a change."""
    stream = server.open(one(run.uuid))
    stream.at(0)
    report(run, n, stream)
    return stream


class OwnPool(redis.ConnectionPool):
    """A pool of the application's own, which calls a function with what it lends."""

    lent = 0
    lend: Callable[[Any, str], object]

    def get_connection(self, *args: Any, **kwargs: Any) -> Any:
        found = super().get_connection(*args, **kwargs)
        self.lend(found, threading.current_thread().name)
        self.lent += 1
        return found

    def release(self, connection: Any) -> None:
        self.lent -= 1
        super().release(connection)


@contextlib.contextmanager
def pooling(
    url: str, lend: Callable[[Any, str], object]
) -> Iterator[tuple[Server, OwnPool]]:
    """Serve an application with such a pool, which gets all its connections back."""
    pool: Any = OwnPool.from_url(url)
    pool.lend = lend
    store = JobStore(redis.Redis(connection_pool=pool))
    with pushing(make_config(None), store=store) as server:
        yield server, pool
    assert pool.lent == 0
    pool.disconnect()


@contextlib.contextmanager
def refusing_threads(name: str, times: int) -> Iterator[list[int]]:
    """Keep threads of a name from starting. Yield how many more times that happens."""
    start, left = threading.Thread.start, [times]

    def fail(thread: threading.Thread) -> None:
        if thread.name.startswith(name) and left[0]:
            left[0] -= 1
            raise RuntimeError("can't start new thread")
        start(thread)

    with mock.patch.object(threading.Thread, "start", fail):
        yield left


def flagged(client: redis.Redis, *others: dict[str, str]) -> list[dict[str, str]]:
    """Return the connections on which a server tells of changes, without others."""
    known = [c["id"] for c in others]
    found = client.client_list()
    return [c for c in found if "t" in c["flags"] and c["id"] not in known]
