"""Fails a test that leaves sockets or threads behind. A plugin of pytest."""

import gc
import os
import threading
import time
import warnings
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
from redis.connection import ConnectionPool

#: Seconds for which a thread may still end.
PATIENCE = 5.0

#: Seconds that a call of the store may take when its test is over.
CALL = 1.0

#: Threads that last as long as their process: that of the streams of an application,
#: that of a broker without a worker, and Dramatiq's for time limits.
HUB, RECORDER = "jobstate-hub", ".worker.recorder"
LIMITS = "_CtypesTimeoutManager"

#: The fixtures with servers for many tests, whose threads and sockets stay.
SHARED = frozenset({"ports", "shared_pushed"})

#: The tests that are not judged, by a marker or a folder: those that start processes
#: and servers, and a browser, which keeps its connections for as long as it likes.
APART = frozenset({"browser", "interop", "system"})

Open = set[str | threading.Thread]

#: What stood when the test began, and what fixtures that outlive it have made since.
_known: Open = set()

#: The pools of all stores and brokers. Nobody closes a store: it lasts as long as its
#: process.
_pools: weakref.WeakSet[ConnectionPool] = weakref.WeakSet()

_make = ConnectionPool.__init__


def _note(self: ConnectionPool, *args: Any, **options: Any) -> None:
    _make(self, *args, **options)
    _pools.add(self)


def alive() -> Open:
    """Return the threads and the names of the open sockets of this process."""
    found: Open = {*threading.enumerate()}
    for number in os.listdir("/proc/self/fd"):
        try:
            name = os.readlink(f"/proc/self/fd/{number}")
        except FileNotFoundError:
            continue
        if name.startswith("socket:"):
            found.add(name)
    return found


def news() -> Open:
    """Return what is alive, has come since the test began, and should not last. Close
    what stores have open.
    """
    for pool in [*_pools]:
        pool.disconnect(inuse_connections=False)
    found = alive() - _known
    threads = [each for each in found if isinstance(each, threading.Thread)]
    lasting = {t for t in threads if t.name.endswith((HUB, RECORDER))}
    lasting |= {t for t in threads if type(t).__name__ == LIMITS}
    if any(thread.name == HUB for thread in threads):
        # It has some sockets.
        found = {each for each in found if isinstance(each, threading.Thread)}
    return found - lasting


def left() -> list[str]:
    """Return what the test has left behind."""
    # A thread that is about to end gives back its connection, which can be closed then.
    if not after(CALL):
        return []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        gc.collect()
    return [*(str(each.message) for each in caught), *map(str, after(PATIENCE))]


def after(seconds: float) -> Open:
    """Return what is still there after some seconds, or nothing as soon as that is."""
    deadline = time.monotonic() + seconds
    while (found := news()) and time.monotonic() < deadline:
        time.sleep(0.01)
    return found


def pytest_configure(config: pytest.Config) -> None:
    """Know all pools."""
    patch = pytest.MonkeyPatch()
    patch.setattr(ConnectionPool, "__init__", _note)
    config.add_cleanup(patch.undo)


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(fixturedef: pytest.FixtureDef[Any]) -> Iterator[None]:
    """Know what a fixture has made that outlives the test."""
    if fixturedef.scope == "function":
        return (yield)
    before = alive()
    try:
        return (yield)
    finally:
        _known.update(alive() - before)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_setup() -> Iterator[None]:
    """Know what stood before."""
    _known.clear()
    _known.update(alive())
    return (yield)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_teardown(item: pytest.Function) -> Iterator[None]:
    """Fail if something is left."""
    result = yield
    # Otherwise pytest still has what the fixtures have given.
    item.funcargs.clear()
    kinds = {item.path.parent.name, *(marker.name for marker in item.iter_markers())}
    if APART & kinds or SHARED.intersection(item.fixturenames):
        return result
    if found := left():
        pytest.fail(f"The test leaves behind: {', '.join(found)}", pytrace=False)
    return result
