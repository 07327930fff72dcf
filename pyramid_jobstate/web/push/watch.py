"""Watching the store: jobs are read once, and again when a server says that they have
changed. Links lead to the servers that hold them.
"""

from __future__ import annotations

import logging
import selectors
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

from redis.exceptions import RedisError

from ...store.watch import (
    Changed,
    KeyReply,
    Link,
    Question,
    Tracker,
    TrackingRefused,
    is_elsewhere,
)

log = logging.getLogger("pyramid_jobstate")

#: Seconds between two questions for a server's time, which show that it is there.
CHECK = 5.0

#: Seconds without an answer after which a server counts as away.
AWAY_AFTER = 2.0

#: The fewest and the most seconds between two tries.
MIN_PAUSE, MAX_PAUSE = 0.1, 1.0

#: The most replies that are awaited from one server.
MAX_ASKED = 500

#: Seconds between two rounds of reads. What changes meanwhile is read together.
GAP = 0.02


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
        self._links = Links(self, tracker, selector, post, refuse)
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

    def note(self, message: KeyReply | Changed) -> None:
        """Take an answer, or a notice of a change."""
        if isinstance(message, KeyReply):
            self._answer(message.question, message.reply)
        elif message.keys is None:
            self._next.update(dict.fromkeys(self._jobs))
        else:
            for key in message.keys:
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

    def renew(self, server: Server) -> None:
        """Read the jobs of a server again. Replies on their way count no more."""
        self._left.pop(server, None)
        for job in self._jobs.values():
            if server in job.servers:
                job.asked.clear()
                job.reading += 1
                self._next[job.uuid] = None

    def look(self) -> None:
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


class Server:
    """A server that holds watched jobs, and the link to it.

    Attributes:
      away_since: Since when it has not answered, or None.
      connect_at: When to connect; infinite while a thread is connecting.
    """

    __slots__ = ("away_since", "check_at", "connect_at", "failures", "link", "name")

    def __init__(self, name: str) -> None:
        self.name = name
        self.link: Link | None = None
        self.failures = 0
        self.away_since: float | None = None
        self.check_at = 0.0
        self.connect_at = 0.0

    @property
    def room(self) -> int:
        """How many questions may be asked now. 0 without a link."""
        return 0 if self.link is None else MAX_ASKED - self.link.waiting


class Links:
    """The links of a process. One thread uses them.

    Parameters:
      watch: The jobs that they are for.
      tracker: Connects to the servers.
      selector: Gets each link, with its Server as data.
      post: Has that thread call a function. Any thread may call it.
      refuse: Called if a server does not tell of changes at all.
    """

    def __init__(
        self,
        watch: Watch,
        tracker: Tracker,
        selector: selectors.BaseSelector,
        post: Callable[[Callable[[], None]], None],
        refuse: Callable[[TrackingRefused], None],
    ) -> None:
        self._watch = watch
        self._tracker = tracker
        self._selector = selector
        self._post = post
        self._refuse = refuse
        self._servers: dict[str, Server] = {}
        self._sweep_at = 0.0
        self._is_refreshing = False
        #: The seconds before jobs that were not found are looked for again.
        self._pause = MIN_PAUSE
        #: Whether an outage was logged whose end was not.
        self._is_out = False

    def name_of(self, key: str) -> str:
        """Return the name of the server that holds a key."""
        try:
            return self._tracker.server_of(key)
        except RedisError:
            # Connecting to a nameless node fails, and then refreshes what is known.
            return ""

    def find(self, key: str) -> Server:
        """Return the server that holds a key. If it is new, a link is being made."""
        name = self.name_of(key)
        server = self._servers.get(name)
        if server is None:
            server = self._servers[name] = Server(name)
            self._connect(server)
        return server

    @property
    def is_waiting(self) -> bool:
        """Whether replies are awaited."""
        return any(
            s.link is not None and s.link.waiting for s in self._servers.values()
        )

    def ask(self, server: Server, questions: Sequence[Question]) -> None:
        """Read keys. If the link is lost meanwhile, its jobs are read again later."""
        self._try(server, lambda link: link.read(questions))

    def listen(self, server: Server) -> None:
        """Take note of what a server has said."""
        self._try(server, self._receive)

    def tick(self, now: float, keys: Iterable[str]) -> None:
        """Check the servers and connect to those that are missing, once a second.

        Parameters:
          keys: All keys that are watched.
        """
        if now >= self._sweep_at:
            # Seldom, since a Cluster's client takes its time for each key.
            self._sweep_at = now + CHECK
            self._sweep(set(map(self.name_of, keys)))
        for server in list(self._servers.values()):
            link = server.link
            if link is None:
                if now >= server.connect_at:
                    self._connect(server)
            elif link.silence(now) > AWAY_AFTER:
                server.away_since = now - link.silence(now)
                self._lose(server, TimeoutError("It does not answer."))
            elif now >= server.check_at:
                server.check_at = now + CHECK
                self._try(server, lambda link: link.check())
        self._note_end()

    def _sweep(self, used: Collection[str]) -> None:
        """Close the links to servers that hold none of the jobs."""
        for server in list(self._servers.values()):
            if server.name not in used:
                self._close(server)
                del self._servers[server.name]
                # Another node may hold its jobs by now.
                self._watch.renew(server)

    def away(self, now: float) -> Collection[str]:
        """Return the names of the servers that have not answered for a while."""
        return {
            server.name
            for server in self._servers.values()
            if server.away_since is not None and now - server.away_since > AWAY_AFTER
        }

    def refresh(self) -> None:
        """Learn in a thread which server holds which keys, and then look for jobs that
        were not found, at growing intervals until :meth:`settle`.
        """
        if self._is_refreshing:
            return
        self._is_refreshing = True
        tracker, post, pause = self._tracker, self._post, self._pause
        self._pause = min(2 * pause, MAX_PAUSE)

        def refresh() -> None:
            try:
                tracker.refresh()
            except Exception as e:
                level = logging.WARNING if pause == MIN_PAUSE else logging.DEBUG
                log.log(level, "The Cluster does not say who holds a job: %s", e)
            # A slot that is on its way has no home for a while.
            time.sleep(pause)
            post(self._refreshed)

        try:
            _start(refresh)
        except RuntimeError:
            # The process can start no thread.
            self._refreshed()

    def settle(self) -> None:
        """Note that all jobs have been found."""
        self._pause = MIN_PAUSE

    def close(self) -> None:
        """Close all links."""
        for server in self._servers.values():
            self._close(server)
        self._servers.clear()

    def abandon(self) -> None:
        """Close the descriptors of a forked process."""
        for server in self._servers.values():
            if server.link is not None:
                server.link.abandon()
        self._selector.close()

    def _receive(self, link: Link) -> None:
        for message in link.receive():
            if isinstance(message, (KeyReply, Changed)):
                self._watch.note(message)
            else:
                self._tracker.set_clock(message.seconds, message.micros)

    def _connect(self, server: Server) -> None:
        """Connect in a thread: names, TLS and Sentinels may take long."""
        server.connect_at = float("inf")
        tracker, post, is_again = self._tracker, self._post, server.failures > 0

        def connect() -> None:
            try:
                if is_again:
                    tracker.refresh()
                link = tracker.connect(server.name)
            except Exception as e:
                # A pool of the application's may raise anything.
                error = e
                post(lambda: self._fail(server, error))
            else:
                post(lambda: self._admit(server, link))

        try:
            _start(connect)
        except RuntimeError as e:
            # The process can start no thread.
            self._fail(server, e)

    def _admit(self, server: Server, link: Link) -> None:
        if self._servers.get(server.name) is not server:
            link.close()
            return
        server.link = link
        server.failures = 0
        server.away_since = None
        self._selector.register(link.fileno(), selectors.EVENT_READ, server)
        self._note_end()
        self._watch.renew(server)

    def _fail(self, server: Server, error: Exception) -> None:
        if isinstance(error, TrackingRefused):
            self._refuse(error)
            return
        if self._servers.get(server.name) is not server:
            return
        if server.away_since is None:
            server.away_since = time.monotonic()
        if not self._is_out:
            self._is_out = True
            log.warning(
                "The connection on which the job state store tells of changes is lost. "
                "Streams wait for it: %s: %s",
                type(error).__name__,
                error,
            )
        server.failures += 1
        pause = min(MIN_PAUSE * 2**server.failures, MAX_PAUSE)
        server.connect_at = time.monotonic() + pause
        # By now another node may hold the jobs.
        self._watch.renew(server)

    def _note_end(self) -> None:
        """Log the end of an outage, if this is it."""
        links = [server.link for server in self._servers.values()]
        if self._is_out and links and None not in links:
            self._is_out = False
            log.info("The job state store tells of changes again.")

    def _lose(self, server: Server, error: Exception) -> None:
        """Close a link that is of no more use, and connect anew."""
        self._close(server)
        self._fail(server, error)
        server.connect_at = 0.0

    def _close(self, server: Server) -> None:
        link, server.link = server.link, None
        if link is not None:
            self._selector.unregister(link.fileno())
            link.close()

    def _try(self, server: Server, act: Callable[[Link], None]) -> None:
        if server.link is not None:
            try:
                act(server.link)
            except (RedisError, OSError) as e:
                self._lose(server, e)

    def _refreshed(self) -> None:
        self._is_refreshing = False
        self._watch.look()


def _start(run: Callable[[], None]) -> None:
    threading.Thread(target=run, name="jobstate-link", daemon=True).start()


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
