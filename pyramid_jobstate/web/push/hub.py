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
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from redis.exceptions import RedisError

from ...store.jobstore import records_of, tracker_of
from ...worker.recorder import watch_forks
from .stream import AWAY, Frame, Viewer, beat, is_streamable, render
from .watch import Watch

if TYPE_CHECKING:
    from ...job.record import Record
    from ...store.jobstore import JobStore
    from ...store.watch import Tracker, TrackingRefused
    from .stream import Stream

log = logging.getLogger("pyramid_jobstate")

#: How many batches are looked at at once. The others have their turn a second later.
MOST = 4

#: Seconds without an event after which a client gets a sign of life.
BEAT = 20.0

#: Seconds that a client may take to receive what it was sent.
PATIENCE = 60.0

#: The same while the server is waiting for its open responses to end.
CLOSING_PATIENCE = 2.0

#: The bytes that all clients together may have been sent and not received.
MAX_UNSENT = 64 * 1024 * 1024

#: Seconds that a record may be missing: after the store has come back empty, a running
#: worker writes its job again within a heartbeat.
GRACE = 6.0

NEVER = float("inf")

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
        self._feed = Feed()
        self._flushes: dict[Callable[[], None], None] = {}

    # Any thread

    @property
    def is_refused(self) -> bool:
        """Whether the store does not tell of changes."""
        return time.monotonic() < self._refused_until

    def now(self) -> int:
        """Return the store's time in milliseconds."""
        return records_of(self._store).reader.now()

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
            self._feed = Feed()

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


class Looks:
    """Looks at the members of silent batches: a store that does not answer must not
    keep the hub from feeding streams.

    Parameters:
      tracker: Knows the store.
    """

    def __init__(self, tracker: Tracker) -> None:
        self._tracker = tracker
        #: The batches that are being looked at.
        self._batches: set[str] = set()

    def look(self, record: Record) -> None:
        """Look at the members of a batch soon."""
        if record.uuid in self._batches or len(self._batches) >= MOST:
            return
        self._batches.add(record.uuid)
        name = "jobstate-look"
        thread = threading.Thread(
            target=self._look, args=(record,), name=name, daemon=True
        )
        try:
            thread.start()
        except RuntimeError:
            # The process may start no more threads.
            self._batches.discard(record.uuid)

    def _look(self, record: Record) -> None:
        try:
            self._tracker.look(record)
        except Exception:
            log.exception("The members of the batch %s cannot be read.", record.uuid)
        finally:
            self._batches.discard(record.uuid)


class Shown:
    """A job that streams show. It holds bytes and no JobState: many objects that live
    for long keep the garbage collector busy.

    Attributes:
      frames: The newest state for each distinct viewer, None where it cannot be shown.
      streams: The streams that get its states.
      joining: The streams that will, each from a certain reading on: what was read
        before may be older than what they have.
      is_gone: Whether its clients are to ask for it by a poll.
      is_over: Whether it will not change any more.
      look_at: When to read it again, though nobody may have written it.
      missing_since: Since when it has had no record.
    """

    __slots__ = (
        "frames",
        "is_gone",
        "is_over",
        "joining",
        "look_at",
        "missing_since",
        "streams",
    )

    def __init__(self) -> None:
        self.frames: dict[Viewer, Frame | None] = {}
        self.streams: set[Stream] = set()
        self.joining: dict[Stream, int] = {}
        self.is_gone = self.is_over = False
        self.look_at = NEVER
        self.missing_since: float | None = None


class Feed:
    """The jobs and the streams of a hub. One thread uses it."""

    def __init__(self) -> None:
        self._streams: set[Stream] = set()
        #: Those that have something to send.
        self._news: dict[Stream, None] = {}
        self._jobs: dict[str, Shown] = {}
        self._unsent = 0
        self._tracker: Tracker
        self._watch: Watch
        self._looks: Looks

    def begin(self, tracker: Tracker, watch: Watch) -> None:
        """Begin with no jobs and no streams.

        Parameters:
          tracker: Makes jobs of what was read.
          watch: Reads the jobs, and calls :meth:`report`.
        """
        self._tracker = tracker
        self._watch = watch
        self._looks = Looks(tracker)

    def admit(self, stream: Stream) -> None:
        """Feed a stream."""
        self._streams.add(stream)
        for uuid in stream.viewers:
            job = self._jobs.setdefault(uuid, Shown())
            job.joining[stream] = self._watch.add(uuid)
        self._give(stream, stream.first, is_over=not stream.viewers)
        stream.first = b""

    def take(self, stream: Stream) -> None:
        """Note that the carrier of a stream is ready for more."""
        if stream in self._streams:
            self._unsent -= stream.unsent
            stream.unsent = 0
            stream.is_ready = True
            if stream.missed:
                self._news[stream] = None

    def drop(self, stream: Stream) -> None:
        """Stop feeding a stream, and end it if it has not ended."""
        if stream in self._streams:
            self._streams.discard(stream)
            self._unsent -= stream.unsent
            for uuid in stream.viewers:
                self._part(uuid, stream)
            stream.carrier.drop()

    def drop_all(self) -> None:
        """End all streams. The watch is of no more use."""
        streams, self._streams = self._streams, set()
        self._news.clear()
        self._jobs.clear()
        self._unsent = 0
        for stream in streams:
            stream.carrier.drop()

    def report(self, uuid: str, reading: int, found: Mapping[str, Any]) -> None:
        """Show a job that has been read. See :class:`.watch.Watch`."""
        job = self._jobs[uuid]
        joined = [s for s, first in job.joining.items() if first <= reading]
        for stream in joined:
            del job.joining[stream]
        job.streams.update(joined)
        if not self._update(job, uuid, found):
            return
        for stream in job.streams:
            frame = job.frames.get(stream.viewers[uuid])
            if frame is None or job.is_over or not stream.has(uuid, frame):
                stream.missed[uuid] = None
                self._news[stream] = None

    def send_news(self) -> None:
        """Send the streams what they have missed, if their carriers are ready."""
        news, self._news = self._news, {}
        for stream in news:
            if stream in self._streams and stream.is_ready:
                self._send(stream)

    def tick(self, now: float, is_closing: bool) -> None:
        """Do what is due each second.

        Parameters:
          is_closing: Whether the server waits for its open responses to end.
        """
        self._watch.touch(
            uuid for uuid, job in self._jobs.items() if job.look_at <= now
        )
        away: set[Stream] = set()
        for uuid in self._watch.away(now):
            job = self._jobs[uuid]
            away.update(job.streams, job.joining)
            # Its worker cannot write it again meanwhile.
            job.missing_since = None
        patience = CLOSING_PATIENCE if is_closing else PATIENCE
        for stream in list(self._streams):
            if not stream.is_ready:
                if now - stream.given_at > patience:
                    self.drop(stream)
            elif is_closing or now >= stream.ends_at:
                self._give(stream, b"", is_over=True)
            elif stream in away and not stream.is_away:
                stream.is_away = True
                stream.forget()
                self._give(stream, AWAY)
                # The jobs on other servers are shown again at once.
                self._watch.touch(uuid for uuid in stream.viewers if uuid in self._jobs)
            elif now - stream.given_at >= BEAT:
                self._give(stream, beat(self._tracker.now()))
            if stream not in away:
                stream.is_away = False

    def _update(self, job: Shown, uuid: str, found: Mapping[str, Any]) -> bool:
        """Take over what was read. Return whether there is something to show."""
        now = time.monotonic()
        job.look_at = NEVER
        try:
            record = self._tracker.record(uuid, found)
        except RedisError:
            # A poll says why it cannot be read.
            job.frames = {}
            return True
        if record is None:
            job.missing_since = job.missing_since or now
            if now - job.missing_since < GRACE:
                # Slow readers get the last state meanwhile.
                job.look_at = now + 1
                return False
            job.frames = {}
            return True
        job.missing_since = None
        job.frames = {}
        job_state = self._tracker.make(record)
        if job_state is None or not is_streamable(type(job_state)):
            return True
        job.is_over = record.is_finished
        changes = [t for t in (record.silent_at, record.quiet_at) if t is not None]
        if changes:
            job.look_at = now + (min(changes) + 1 - self._tracker.now()) / 1000
        elif record.is_batch and not job.is_over:
            # It is silent. What its members say then changes it.
            job.look_at = now + 1
            if self._tracker.may_look(record):
                self._looks.look(record)
        viewers = {stream.viewers[uuid] for stream in job.streams}
        job.frames = {viewer: render(job_state, viewer) for viewer in viewers}
        return True

    def _send(self, stream: Stream) -> None:
        """Give a stream what it has missed, or end it if its time is over."""
        if time.monotonic() >= stream.ends_at:
            self._give(stream, b"", is_over=True)
            return
        missed = list(stream.missed)
        data = stream.next_chunk(
            lambda uuid: self._jobs[uuid].frames.get(stream.viewers[uuid])
        )
        for uuid in missed:
            if uuid not in stream.missed:
                job = self._jobs[uuid]
                if job.is_over or job.frames.get(stream.viewers[uuid]) is None:
                    self._part(uuid, stream)
                    stream.left -= 1
        if data or not stream.left:
            self._give(stream, data, is_over=not stream.left)

    def _give(self, stream: Stream, data: bytes, is_over: bool = False) -> None:
        stream.is_ready = False
        stream.given_at = time.monotonic()
        stream.unsent = len(data)
        self._unsent += len(data)
        stream.carrier.give(data, is_over)
        while self._unsent > MAX_UNSENT:
            waiting = (stream for stream in self._streams if stream.unsent)
            self.drop(min(waiting, key=lambda stream: stream.given_at))

    def _part(self, uuid: str, stream: Stream) -> None:
        """Stop showing a job in a stream."""
        job = self._jobs.get(uuid)
        if job is None:
            return
        job.streams.discard(stream)
        job.joining.pop(stream, None)
        if not job.streams and not job.joining:
            del self._jobs[uuid]
            self._watch.remove(uuid)


def is_server_closing() -> bool:
    """Return whether uvicorn is about to stop. It tells applications only after their
    open responses have ended, for which it waits.
    """
    server = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
    return getattr(server, "should_exit", False) is True
