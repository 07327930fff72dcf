"""Feeding: which streams show which jobs, and what each of them is sent when."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from redis.exceptions import RedisError

from ...job import BATCH
from .frames import Frame, Viewer, is_streamable, render
from .looks import Looks
from .stream import AWAY, beat

if TYPE_CHECKING:
    from ...store.watch import Tracker
    from .stream import Stream
    from .watch import Watch

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
    """The jobs and the streams of a hub. One thread uses it.

    Parameters:
      later: Has a function called at the end of a round.
    """

    def __init__(self, later: Callable[[Callable[[], None]], None]) -> None:
        self._later = later
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
        if record.silent_at is not None:
            job.look_at = now + (record.silent_at + 1 - self._tracker.now()) / 1000
        elif record.info.batch == BATCH and not job.is_over:
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
