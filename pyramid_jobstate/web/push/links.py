"""The links to the servers that hold watched jobs: made, checked and lost."""

from __future__ import annotations

import logging
import selectors
import threading
import time
from collections.abc import Callable, Collection, Iterable, Sequence

from redis.exceptions import RedisError

from ...store.watch import Answer, Changed, Link, Question, Tracker, TrackingRefused

log = logging.getLogger("pyramid_jobstate")

#: Seconds between two questions for a server's time, which show that it is there.
CHECK = 5.0

#: Seconds without an answer after which a server counts as away.
AWAY_AFTER = 2.0

#: The fewest and the most seconds between two tries.
MIN_PAUSE, MAX_PAUSE = 0.1, 1.0

#: The most replies that are awaited from one server.
MAX_ASKED = 500


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
      tracker: Connects to the servers.
      selector: Gets each link, with its Server as data.
      post: Has that thread call a function. Any thread may call it.
      note: Called with each answer and each notice of a change.
      renew: Called with a server whose jobs must be read again, here or elsewhere.
      look: Called when it is known anew which server holds which keys.
      refuse: Called if a server does not tell of changes at all.
    """

    def __init__(
        self,
        tracker: Tracker,
        selector: selectors.BaseSelector,
        post: Callable[[Callable[[], None]], None],
        *,
        note: Callable[[Answer | Changed], None],
        renew: Callable[[Server], None],
        look: Callable[[], None],
        refuse: Callable[[TrackingRefused], None],
    ) -> None:
        self._tracker = tracker
        self._selector = selector
        self._post = post
        self._note = note
        self._renew = renew
        self._look = look
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
                self._renew(server)

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

        _start(refresh)

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
        for said in link.receive():
            if isinstance(said, (Answer, Changed)):
                self._note(said)
            else:
                self._tracker.set_clock(said.seconds, said.micros)

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

        _start(connect)

    def _admit(self, server: Server, link: Link) -> None:
        if self._servers.get(server.name) is not server:
            link.close()
            return
        server.link = link
        server.failures = 0
        server.away_since = None
        self._selector.register(link.fileno(), selectors.EVENT_READ, server)
        self._note_end()
        self._renew(server)

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
        self._renew(server)

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
        self._look()


def _start(run: Callable[[], None]) -> None:
    threading.Thread(target=run, name="jobstate-link", daemon=True).start()
