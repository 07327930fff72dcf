"""Watching the store: jobs that are read once, and again when a server says that they
have changed.
"""

from __future__ import annotations

import selectors
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ...store.watch import (
    Answer,
    Changed,
    Question,
    Tracker,
    TrackingRefused,
    is_elsewhere,
)
from .links import AWAY_AFTER, Links, Server

#: Seconds between two rounds of reads. What changes meanwhile is read together.
GAP = 0.02


class Watched:
    """A job that is watched.

    Attributes:
      keys: The keys on which its state depends, as far as they are known.
      reading: The number of its newest reading.
      found: The replies of that reading.
      asked: The keys whose replies it awaits.
      servers: The servers that hold its keys, as was known at that reading.
    """

    __slots__ = ("asked", "found", "keys", "reading", "servers", "uuid")

    def __init__(self, uuid: str) -> None:
        self.uuid = uuid
        self.keys: frozenset[str] = frozenset()
        self.reading = 0
        self.found: dict[str, Any] = {}
        self.asked: set[str] = set()
        self.servers: set[Server] = set()


class Watch:
    """The jobs that a process watches. One thread uses it.

    Parameters:
      tracker: Reads the jobs.
      selector: Gets the links, with their servers as data: see :meth:`listen`.
      post: Has that thread call a function. Any thread may call it.
      report: Called with the uuid of a job that was read, the number of the reading and
        the replies to its keys.
      refuse: Called if a server does not tell of changes at all.
    """

    def __init__(
        self,
        tracker: Tracker,
        selector: selectors.BaseSelector,
        post: Callable[[Callable[[], None]], None],
        *,
        report: Callable[[str, int, Mapping[str, Any]], None],
        refuse: Callable[[TrackingRefused], None],
    ) -> None:
        self._tracker = tracker
        self._report = report
        self._links = Links(
            tracker,
            selector,
            post,
            note=self._note,
            renew=self._renew,
            look=self._look,
            refuse=refuse,
        )
        self.listen = self._links.listen
        self.abandon = self._links.abandon
        self.close = self._links.close
        self._jobs: dict[str, Watched] = {}
        #: The jobs that depend on each key.
        self._dependents: dict[str, set[Watched]] = {}
        #: The jobs to read in the next round.
        self._next: dict[str, None] = {}
        self._round_at = 0.0
        #: The jobs deferred from earlier rounds, by the server that they wait for.
        self._left: dict[Server, deque[str]] = {}
        #: The jobs that were not where they were looked for, and since when.
        self._astray: dict[str, float] = {}

    def add(self, uuid: str) -> int:
        """Watch a job, and read it. Return the number of the next reading, the first
        that sees all that has happened until now.
        """
        job = self._jobs.get(uuid)
        if job is None:
            job = self._jobs[uuid] = Watched(uuid)
            self._depend(job, self._tracker.keys_of(uuid, {}))
        self._next[uuid] = None
        return job.reading + 1

    def remove(self, uuid: str) -> None:
        """Stop watching a job."""
        self._depend(self._jobs.pop(uuid), frozenset())
        self._next.pop(uuid, None)
        self._astray.pop(uuid, None)

    def touch(self, uuids: Iterable[str]) -> None:
        """Read watched jobs again."""
        self._next.update(dict.fromkeys(uuids))

    def wait_until(self) -> float:
        """Return the time at which :meth:`read` has something to do."""
        # The replies on their way make room for what is left of earlier rounds.
        return self._round_at if self._next else float("inf")

    @property
    def is_reading(self) -> bool:
        """Whether replies are awaited."""
        return self._links.is_waiting

    def read(self, now: float) -> None:
        """Ask for the jobs whose turn it is."""
        uuids: list[str] = []
        for server, left in list(self._left.items()):
            uuids += [left.popleft() for _ in range(min(server.room, len(left)))]
            if not left:
                del self._left[server]
        if self._next and now >= self._round_at:
            uuids += self._next
            self._next = {}
            self._round_at = now + GAP
        questions: dict[Server, list[Question]] = {}
        for uuid in uuids:
            job = self._jobs.get(uuid)
            if job is None:
                continue
            if job.asked:
                # A reply on its way may be older than the reason to read again.
                self._next[uuid] = None
                continue
            job.servers = {self._links.find(key) for key in job.keys}
            if None in [server.link for server in job.servers]:
                # Its jobs are read once it has a link.
                continue
            full = [s for s in job.servers if len(questions.get(s, ())) >= s.room]
            if full:
                self._left.setdefault(full[0], deque()).append(uuid)
                continue
            job.reading += 1
            job.found = {}
            self._ask(job, job.keys, questions)
        for server, asked in questions.items():
            self._links.ask(server, asked)

    def tick(self, now: float) -> None:
        """Check the servers, once a second."""
        self._links.tick(now, self._dependents)

    def away(self, now: float) -> set[str]:
        """Return the jobs that could not be read for a while."""
        away = {u for u, since in self._astray.items() if now - since > AWAY_AFTER}
        names = self._links.away(now)
        if names:
            for key, jobs in self._dependents.items():
                if self._links.name_of(key) in names:
                    away.update(job.uuid for job in jobs)
        return away

    def _ask(
        self,
        job: Watched,
        keys: Iterable[str],
        questions: dict[Server, list[Question]],
    ) -> None:
        for key in keys:
            job.asked.add(key)
            server = self._links.find(key)
            job.servers.add(server)
            questions.setdefault(server, []).append(Question(key, (job, job.reading)))

    def _note(self, said: Answer | Changed) -> None:
        if isinstance(said, Answer):
            self._answer(said.question, said.reply)
        elif said.keys is None:
            self._next.update(dict.fromkeys(self._jobs))
        else:
            for key in said.keys:
                self.touch(job.uuid for job in self._dependents.get(key, ()))

    def _answer(self, question: Question, reply: Any) -> None:
        key = question.key
        job: Watched
        job, reading = question.cause
        if self._jobs.get(job.uuid) is not job or job.reading != reading:
            # The job has left, and may have come again, or is read anew.
            return
        job.asked.discard(key)
        job.found[key] = reply
        if job.asked:
            return
        if any(map(is_elsewhere, job.found.values())):
            self._astray.setdefault(job.uuid, time.monotonic())
            self._links.refresh()
            return
        if self._astray.pop(job.uuid, None) is not None and not self._astray:
            self._links.settle()
        keys = self._tracker.keys_of(job.uuid, job.found)
        if keys != job.keys:
            self._depend(job, keys)
        more = keys - job.found.keys()
        if more:
            questions: dict[Server, list[Question]] = {}
            self._ask(job, more, questions)
            for server, asked in questions.items():
                self._links.ask(server, asked)
            return
        found, job.found = job.found, {}
        self._report(job.uuid, reading, found)

    def _renew(self, server: Server) -> None:
        """Read the jobs of a server again. Replies on their way count no more."""
        self._left.pop(server, None)
        for job in self._jobs.values():
            if server in job.servers:
                job.asked.clear()
                job.reading += 1
                self._next[job.uuid] = None

    def _look(self) -> None:
        """Read the jobs again that were not where they were looked for."""
        self.touch(self._astray)

    def _depend(self, job: Watched, keys: frozenset[str]) -> None:
        for key in job.keys - keys:
            dependents = self._dependents[key]
            dependents.discard(job)
            if not dependents:
                del self._dependents[key]
        for key in keys - job.keys:
            self._dependents.setdefault(key, set()).add(job)
        job.keys = keys
