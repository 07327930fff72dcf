"""The hub: the thread that watches the jobs of a process and feeds its streams."""

from __future__ import annotations

import collections
import contextlib
import logging
import selectors
import signal
import socket
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ...store import tracker_of
from .feed import Feed
from .forks import watch_forks
from .watch import Watch

if TYPE_CHECKING:
    from ...store import JobStore
    from ...store.watch import TrackingRefused
    from .stream import Stream

log = logging.getLogger("pyramid_jobstate")

#: Seconds for which a process does without push after a server has refused to track.
REFUSED = 300.0


class Hub:
    """Feeds the streams of a store's jobs. Its thread begins with the first stream.

    If the thread raises an exception, all streams end, and the next one starts another.

    Parameters:
      store: The store of the jobs.
    """

    def __init__(self, store: JobStore) -> None:
        self._store = store
        self._is_refusal_said = False
        self._reset()
        watch_forks().add(self)

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        #: Functions for the thread to call, each with its argument.
        self._inbox: collections.deque[tuple[Callable[[Any], None], Any]]
        self._inbox = collections.deque()
        #: What wakes it, if it runs.
        self._wakers: tuple[socket.socket, socket.socket] | None = None
        self._is_woken = False
        self._refused_until = 0.0
        self._watch: Watch | None = None
        self._feed = Feed(self.later)
        self._flushes: dict[Callable[[], None], None] = {}

    # Any thread

    @property
    def is_refused(self) -> bool:
        """Whether the store does not tell of changes."""
        return time.monotonic() < self._refused_until

    def now(self) -> int:
        """Return the store's time in milliseconds."""
        return tracker_of(self._store).now()

    def start(self) -> None:
        """Have the thread run.

        Raises:
          OSError: The process may open no more descriptors, or start no more threads.
        """
        with self._lock:
            if self._thread is None:
                self._begin()

    def join(self, stream: Stream) -> None:
        """Feed a stream, whose carrier is set, until it ends or leaves.

        Raises:
          OSError: As for :meth:`start`.
        """
        with self._lock:
            if self._thread is None:
                self._begin()
            self._post(self._feed.admit, stream)

    def taken(self, stream: Stream) -> None:
        """Note that a carrier has sent what it was given."""
        self._inbox.append((self._feed.take, stream))
        if stream.missed:
            self._wake()

    def leave(self, stream: Stream) -> None:
        """Stop feeding a stream."""
        self._post(self._feed.drop, stream)

    def _post(self, act: Callable[[Any], None], argument: Any) -> None:
        self._inbox.append((act, argument))
        self._wake()

    def _post_call(self, act: Callable[[], None]) -> None:
        self._post(lambda _: act(), None)

    def _wake(self) -> None:
        wakers = self._wakers
        if wakers is not None and not self._is_woken:
            # Set first: the thread unsets it before it looks into the inbox.
            self._is_woken = True
            # The thread may have ended meanwhile.
            with contextlib.suppress(OSError):
                wakers[1].send(b"\0")

    def _begin(self) -> None:
        """Start the thread, with nothing of an earlier one."""
        self._clear_inbox()
        wakers = socket.socketpair()
        for waker in wakers:
            waker.setblocking(False)
        self._wakers, self._is_woken = wakers, False
        thread = threading.Thread(target=self._run, name="jobstate-hub", daemon=True)
        try:
            thread.start()
        except RuntimeError as e:
            self._close_wakers()
            raise OSError(str(e)) from e
        self._thread = thread

    def _clear_inbox(self) -> None:
        """Turn away who has come to a thread that has ended."""
        while self._inbox:
            act, argument = self._inbox.popleft()
            if argument is None:
                # A thread of a link's: what it has connected is closed.
                act(argument)
            elif act == self._feed.admit:
                argument.carrier.drop()

    def _close_wakers(self) -> None:
        for waker in self._wakers or ():
            waker.close()
        self._wakers = None

    # The hub's thread

    def later(self, flush: Callable[[], None]) -> None:
        """Call a function once at the end of this round. Until then, carriers gather
        what they are given.
        """
        self._flushes[flush] = None

    def _run(self) -> None:
        try:
            with selectors.DefaultSelector() as selector:
                self._loop(selector)
        except BaseException:
            # The application's code may raise SystemExit, for one.
            log.exception("The job streams of this process end. Clients reconnect.")
        with self._lock:
            # Nobody joins meanwhile.
            self._thread = None
            self._close_wakers()
            self._clear_inbox()
            self._feed.drop_all()
            self._flush()
            # What still comes from carriers of those streams finds none of them.
            self._feed = Feed(self.later)

    def _loop(self, selector: selectors.BaseSelector) -> None:
        assert self._wakers is not None
        waker, _ = self._wakers
        selector.register(waker, selectors.EVENT_READ)
        feed = self._feed
        tracker = tracker_of(self._store)
        watch = Watch(
            tracker,
            selector,
            self._post_call,
            report=feed.report,
            refuse=self._refuse,
        )
        self._watch = watch
        feed.begin(tracker, watch)
        next_tick = time.monotonic() + 1
        try:
            while not self.is_refused:
                now = time.monotonic()
                pause = min(next_tick, watch.wait_until()) - now
                if 0 < pause < next_tick - now and not watch.is_reading:
                    # What comes meanwhile is handled together.
                    time.sleep(pause)
                if self._inbox:
                    pause = 0
                for key, _ in selector.select(max(0, pause)):
                    if key.data is None:
                        waker.recv(4096)
                        self._is_woken = False
                    else:
                        watch.listen(key.data)
                while self._inbox:
                    act, argument = self._inbox.popleft()
                    act(argument)
                now = time.monotonic()
                watch.read(now)
                if now >= next_tick:
                    next_tick = now + 1
                    watch.tick(now)
                    feed.tick(now, is_server_closing())
                feed.send_news()
                self._flush()
        finally:
            watch.close()
            self._watch = None

    def _flush(self) -> None:
        flushes, self._flushes = self._flushes, {}
        for flush in flushes:
            flush()

    def _refuse(self, error: TrackingRefused) -> None:
        """Do without push for a while. The thread ends."""
        self._refused_until = time.monotonic() + REFUSED
        if not self._is_refusal_said:
            self._is_refusal_said = True
            log.warning(
                "Push is off for %.0f minutes, and pages poll: the job state store "
                "refused to tell of changes: %s",
                REFUSED / 60,
                error,
            )

    def abandon(self) -> None:
        """Start anew. Called in a forked child, where the thread does not run."""
        if self._watch is not None:
            self._watch.abandon()
        self._close_wakers()
        self._reset()


def is_server_closing() -> bool:
    """Return whether uvicorn is about to stop. It tells applications only after their
    open responses have ended, for which it waits.
    """
    server = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
    return getattr(server, "should_exit", False) is True
