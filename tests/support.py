"""What several tests need."""

import contextlib
import faulthandler
import multiprocessing
import os
import random
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import pytest

import pyramid_jobstate
from pyramid_jobstate import JobState, JobStore, Progress, embedded
from pyramid_jobstate.embedded import EmbeddedServer

T = TypeVar("T")

#: The folder of the project, and that of the package, which may be installed elsewhere.
ROOT = Path(__file__).parent.parent
PACKAGE = Path(pyramid_jobstate.__file__).parent

#: A well-formed uuid.
UUID = "12345678-1234-4321-8765-1234567890ab"

#: Every status of a job.
UNFINISHED = ("queued", "working", "retrying", "stalled", "cancelling")
FINISHED = ("success", "error", "cancelled")
STATUSES = UNFINISHED + FINISHED


def key_of(store: JobStore, uuid: str) -> str:
    """Return the key of a job's hash."""
    return f"{store.namespace}:{uuid}"


def write(store: JobStore, job: JobState | str, **fields: str | bytes | int) -> None:
    """Write into a job's record what another program writes."""
    uuid = job if isinstance(job, str) else job.uuid
    mapping: Any = fields
    store.client.hset(key_of(store, uuid), mapping=mapping)


def load_job(store: JobStore, uuid: str) -> JobState:
    """Return the state of a job that has a record."""
    state = store.load(uuid)
    assert state is not None
    return state


def counted(progress: Progress | None) -> tuple[float, float | None, str | None] | None:
    """Return what a progress counts, without what is computed of it."""
    if progress is None:
        return None
    return progress.done, progress.total, progress.unit


def wait_for(condition: Callable[[], T | None], timeout: float = 20.0) -> T:
    """Wait until a condition holds, and return the true value that it gave."""
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        if time.monotonic() > deadline:
            name = getattr(condition, "__qualname__", repr(condition))
            # What each thread is doing tells more than the value.
            faulthandler.dump_traceback(file=2)
            raise AssertionError(f"{name} still gave {value!r} after {timeout} seconds")
        time.sleep(0.01)
    return value


@contextlib.contextmanager
def frozen_process(pid: int) -> Iterator[None]:
    """Stop a process for a while, with nothing it has open closed."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def frozen(server: EmbeddedServer) -> contextlib.AbstractContextManager[None]:
    """Freeze a server: it keeps its connections and answers nothing."""
    return frozen_process(server.pid)


@contextlib.contextmanager
def crowded(store: JobStore) -> Iterator[None]:
    """Keep all connections of a store's client in use."""
    client: Any = store.client
    pool = client.connection_pool
    taken = [pool.get_connection() for _ in range(pool.max_connections)]
    try:
        yield
    finally:
        for connection in taken:
            pool.release(connection)


def in_child(act: Callable[[], str]) -> str:
    """Return what a function returns in a forked child."""
    ours, theirs = multiprocessing.get_context("fork").Pipe(duplex=False)
    pid = os.fork()
    if pid == 0:
        try:
            said = act()
        except BaseException as e:
            said = f"{type(e).__name__}: {e}"
        theirs.send(said)
        os._exit(0)
    theirs.close()
    assert ours.poll(30)
    said = ours.recv()
    ours.close()
    os.waitpid(pid, 0)
    return str(said)


def lack(reason: str) -> NoReturn:
    """Skip a test for which the machine lacks something, or fail it in CI."""
    give_up: Any = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
    give_up(reason)
    raise AssertionError


def free_ports(number: int) -> list[int]:
    """Return ports of 127.0.0.1 at which nothing listens."""
    with contextlib.ExitStack() as stack:
        found: list[int] = []
        for port in random.sample(embedded.PORTS, len(embedded.PORTS)):
            with contextlib.suppress(OSError):
                stack.enter_context(socket.create_server(("127.0.0.1", port)))
                found.append(port)
            if len(found) == number:
                break
        return found


def listens(port: int) -> bool:
    """Return whether a server listens at a port of this host."""
    with contextlib.suppress(OSError):
        socket.create_connection(("localhost", port), timeout=1).close()
        return True
    return False


def is_alive(pid: int) -> bool:
    """Return whether a process runs. A zombie does not."""
    found = _status(pid)
    return found is not None and found[0] != "Z"


def descendants(pid: int) -> dict[int, str]:
    """Return the command lines of a process and of what it started, by their ids."""
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        found = _status(int(folder.name))
        if found is not None and found[0] != "Z":
            children.setdefault(int(found[1]), []).append(int(folder.name))
    living: dict[int, str] = {}
    ahead = [pid] if is_alive(pid) else []
    for number in ahead:
        ahead += children.get(number, [])
        with contextlib.suppress(OSError):
            words = Path(f"/proc/{number}/cmdline").read_bytes()
            living[number] = words.decode(errors="replace").replace("\0", " ").strip()
    return living


def _status(pid: int) -> list[str] | None:
    """Return the state of a process, its parent and more, or None if it is gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return None
    # The name stands in brackets, and may have some of its own.
    return text.rpartition(")")[2].split()


def unmeasured() -> dict[str, str]:
    """Return the environment for a process whose coverage is not measured, which takes
    half as long as what Python does: for what runs nothing but what other tests reach.
    It has no settings of the demo's.
    """
    left_out = ("COV", "JOBSTATE_")
    return {k: v for k, v in os.environ.items() if not k.startswith(left_out)}
