"""Looks at a store, one after the other, until jobs have ended."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import math
import os
import threading
import time
from collections import deque
from collections.abc import (
    AsyncIterator,
    Callable,
    Collection,
    Generator,
    Iterator,
    Sequence,
)
from concurrent.futures import Future
from typing import Any, Generic, NamedTuple, TypeVar
from weakref import WeakKeyDictionary

from redis.exceptions import RedisError

from ..errors import JobStalled
from ..job.state import JobState, current_job_state, ends_after, record_of, run_of
from .connection import ConnectionsInUse, passes

T = TypeVar("T")

#: Seconds between two looks while something moves, and while nothing does.
BUSY, CALM = 0.1, 1.0

#: Seconds that an answer may take after the deadline, in asyncio.
GRACE = 1.0

#: Seconds after which a look holds up no others, in asyncio.
STUCK = 3.0


class Entry(NamedTuple):
    """A look that somebody waits for.

    Attributes:
      pid: The process that added it.
      answer: Gets what the store answers.
      looks: What looks.
      context: The context of the task.
    """

    pid: int
    answer: Future[Any]
    looks: Looks[Any]
    context: contextvars.Context


class Queue:
    """The looks of asyncio at a store: a thread takes one after the other. Those of the
    loop would make others wait, and the loop waits for them when it closes.

    Parameters:
      shares: Whether a look that finds the store away answers for those that wait. On a
        Cluster, only some of the nodes may be away.
    """

    def __init__(self, *, shares: bool = True) -> None:
        self._shares = shares
        #: No lock guards them: a process that forks while another thread holds it would
        #: leave it locked in the child for good.
        self._waiting: deque[Entry] = deque()
        self._thread: threading.Thread | None = None
        #: When a look began last.
        self._began = 0.0

    def add(self, looks: Looks[T]) -> Future[T | None]:
        """Have an answer looked for, once :meth:`start` was called."""
        answer: Future[T | None] = Future()
        context = contextvars.copy_context()
        self._waiting.append(Entry(os.getpid(), answer, looks, context))
        return answer

    def start(self) -> None:
        """Start a thread if none looks, or if its look takes long."""
        thread, now = self._thread, time.monotonic()
        if thread and thread.is_alive() and now - self._began < STUCK:
            return
        # Another loop may start a thread meanwhile, which does no harm.
        self._began = now
        thread = self._thread = threading.Thread(
            target=self._run, name="jobstate-looks", daemon=True
        )
        # The process may start no more threads now.
        with contextlib.suppress(RuntimeError):
            thread.start()

    def _run(self) -> None:
        self._look_at_all()
        # What is added from now on starts another thread.
        self._thread = None
        self._look_at_all()

    def _look_at_all(self) -> None:
        while (entry := self._take()) is not None:
            self._look(entry)

    def _take(self) -> Entry | None:
        """Return the next look for which somebody of this process still waits."""
        while self._waiting:
            with contextlib.suppress(IndexError):
                entry = self._waiting.popleft()
                is_ours = entry.pid == os.getpid()
                if is_ours and entry.answer.set_running_or_notify_cancel():
                    return entry
        return None

    def _look(self, entry: Entry) -> None:
        _, answer, looks, context = entry
        self._began = time.monotonic()
        try:
            found = context.run(looks.look)
        except BaseException as e:
            answer.set_exception(e)
            # It has this frame.
            del entry, answer, looks
            return
        # Whoever gets the answer may look again at once.
        error, cost = looks.error, looks.cost
        answer.set_result(found)
        if error is not None and self._shares:
            for _ in range(len(self._waiting)):
                if (other := self._take()) is not None:
                    other.looks.note(error, cost)
                    other.answer.set_result(None)


class Looks(Generic[T]):
    """The answers of a store that is asked again and again: an iterator and an async
    iterator. While the store is away, the answer is None.

    Parameters:
      ask: Asks it.
      timeout: Seconds between the first look and the last, or None.
      pause: Seconds between two looks. After one that takes longer, as long as that.
      overdue: Returns what has not happened in time, as the beginning of a sentence.
      queue: The looks of asyncio at the store.

    Attributes:
      pause: As the parameter.
      error: Why the store is away or could not be asked, or None.
      cost: Seconds that the last look took, or None before the first.
      away_since: Since when, in seconds of `time.monotonic()`.
    """

    away_since = 0.0

    def __init__(
        self,
        ask: Callable[[], T],
        timeout: float | None = None,
        pause: float = BUSY,
        overdue: Callable[[], str] = lambda: "The store has not answered",
        queue: Queue | None = None,
    ) -> None:
        self.pause = pause
        self.error: RedisError | None = None
        self.cost: float | None = None
        self._ask = ask
        self._timeout = timeout
        self._overdue = overdue
        self._queue = queue or Queue()
        self._deadline: float | None = None
        #: Until when the last answer tells what has happened.
        self._known_until = 0.0

    def __iter__(self) -> Looks[T]:
        return self

    def __next__(self) -> T | None:
        if pause := self._next_pause():
            time.sleep(pause)
        return self._answer(time.monotonic(), self.look())

    def __aiter__(self) -> Looks[T]:
        return self

    async def __anext__(self) -> T | None:
        await asyncio.sleep(self._next_pause())
        began = time.monotonic()
        last = math.inf
        if self._deadline is not None:
            last = max(began, self._deadline) + GRACE
        answer = asyncio.wrap_future(self._queue.add(self))
        try:
            while not answer.done():
                self._queue.start()
                left = last - time.monotonic()
                if left <= 0:
                    # What has happened by now is not known.
                    after = _seconds(self._timeout)
                    text = f"The store has not answered after {after}."
                    raise TimeoutError(text) from self.error
                await asyncio.wait([answer], timeout=min(left, CALM))
            return self._answer(began, answer.result())
        finally:
            if not answer.cancel() and not answer.cancelled():
                # It may fail as the task is cancelled. Nobody else asks why.
                answer.exception()

    def look(self) -> T | None:
        """Return the answer of the store, or None if it is away."""
        # Only what `note` changes may change here: in asyncio, the task that waits for
        # the answer may have been cancelled.
        began = time.monotonic()
        answer, error = None, None
        try:
            answer = self._ask()
        except RedisError as e:
            if not passes(e):
                raise
            error = e
        self.note(error, time.monotonic() - began)
        return answer

    def note(self, error: RedisError | None, cost: float | None) -> None:
        """Note whether the store is away, and for how long somebody looked."""
        if self.error is None:
            self.away_since = time.monotonic()
        self.error, self.cost = error, cost

    def _answer(self, began: float, answer: T | None) -> T | None:
        """Note until when an answer tells what has happened, and return it."""
        self._known_until = began if self.error is None else time.monotonic()
        return answer

    def _next_pause(self) -> float:
        """Return for how many seconds to wait before the next look.

        Raises:
          JobCancelled: The job that looks is to stop.
          TimeoutError: The last look was taken.
        """
        job_state = _running()
        if job_state is not None:
            job_state.raise_if_cancelled()
        now = time.monotonic()
        if self.cost is None:
            if self._timeout is not None:
                self._deadline = now + self._timeout
            return 0
        pause = max(self.pause, self.cost)
        if self._deadline is None:
            return pause
        if self._known_until >= self._deadline:
            raise self._late() from self.error
        return max(0, min(pause, self._deadline - now))

    def _late(self) -> TimeoutError:
        if isinstance(self.error, ConnectionsInUse):
            # What has happened by now is not known.
            return TimeoutError(
                f"The store could not be asked after {_seconds(self._timeout)}. "
                f"{self.error}"
            )
        return TimeoutError(f"{self._overdue()} after {_seconds(self._timeout)}.")


class Spans:
    """Counts for how long jobs have been stalled or without a record. An outage of the
    store does not count.
    """

    def __init__(self) -> None:
        #: The time of a clock that stands still while the store is away.
        self._now = 0.0
        self._looked_at: float | None = None
        self._since: dict[str, tuple[str, float]] = {}

    def note_look(self, *, is_away: bool) -> None:
        """Let the time since the last look count, unless the store was away then."""
        now = time.monotonic()
        if self._looked_at is not None:
            self._now += now - self._looked_at
        self._looked_at = None if is_away else now

    def seconds(self, uuid: str, what: str) -> float:
        """Return for how long something has been true of a job, which begins now if
        something else was true at the last look.
        """
        if self._since.get(uuid, ("",))[0] != what:
            self._since[uuid] = what, self._now
        return self._now - self._since[uuid][1]


class Unended:
    """What is known of jobs that have not ended.

    Parameters:
      uuids: The jobs.
      missing: How many seconds a job may have no record. If the store comes back
        empty, a running job writes its record again.
      stalled: How many seconds a job may be stalled, or None.

    Attributes:
      jobs: Those that have not ended, by their uuids, None before the first look.
      errors: Why others are not waited for any longer, by their uuids.
    """

    def __init__(
        self, uuids: Sequence[str], missing: float, stalled: float | None
    ) -> None:
        self.jobs: dict[str, JobState | None] = dict.fromkeys(uuids)
        self.errors: dict[str, Exception] = {}
        self._patience = missing
        self._stalled = stalled
        self._spans = Spans()
        #: At a look, the jobs of transactions that have not committed, if it matters.
        self._unsent: set[str] = set()

    def take(
        self, answer: Sequence[JobState | None] | None
    ) -> list[JobState | Exception]:
        """Return the jobs that have changed, and why others are not waited for any
        longer.

        Parameters:
          answer: The jobs as they are now, or None if the store is away.
        """
        self._spans.note_look(is_away=answer is None)
        if answer is None:
            return []
        news: list[JobState | Exception] = []
        is_unknown = any(
            old is new is None
            for old, new in zip(self.jobs.values(), answer, strict=True)
        )
        self._unsent = uncommitted() if is_unknown else set()
        for (uuid, old), new in zip([*self.jobs.items()], answer, strict=True):
            error = self._fault(uuid, old, new)
            if error is not None:
                self.errors[uuid] = error
                news.append(error)
            elif new is not None and (old is None or not _is_like(new, old)):
                news.append(new)
            if error is not None or (new is not None and new.is_finished):
                # An end counts, even if the job runs again.
                del self.jobs[uuid]
            elif new is not None:
                self.jobs[uuid] = new
        return news

    def overdue(self) -> str:
        """Return what they have not done, as the beginning of a sentence."""
        first, *others = self.jobs
        if not others:
            return f"The job {first} has not ended"
        return f"The job {first} and {len(others):,} more have not ended"

    def _fault(
        self, uuid: str, old: JobState | None, new: JobState | None
    ) -> Exception | None:
        """Return why a job is not waited for any longer, or None."""
        if new is None:
            seconds = self._spans.seconds(uuid, "missing")
            if old is not None:
                return KeyError(uuid) if seconds > self._patience else None
            if uuid in self._unsent:
                return RuntimeError(
                    f"The job {uuid} cannot end: it is sent when a transaction "
                    "commits, and that has not committed. Commit first, or send a job "
                    "that is in no batch with request.job_states.send_immediately(...)."
                )
            return KeyError(uuid)
        seconds = self._spans.seconds(uuid, new.status)
        own = _running()
        if own is not None and old is None and ends_after(own, record_of(new).uuid):
            return RuntimeError(
                f"The job {own.uuid} cannot wait for {new.uuid}, which ends after it: "
                "that is the job itself, its batch or a later step of its pipeline."
            )
        if new.status != "stalled" or self._stalled is None or seconds <= self._stalled:
            return None
        text = f"The job {uuid} has been stalled for {_seconds(self._stalled)}."
        return JobStalled(text, uuid)


def _running() -> JobState | None:
    """Return the job that looks, or None. A task of asyncio may outlive its job."""
    job_state = current_job_state()
    is_over = job_state is None or run_of(job_state).is_closed
    return None if is_over else job_state


def _seconds(number: float | None) -> str:
    return f"{number:g} second{'' if number == 1 else 's'}"


def _is_like(new: JobState, old: JobState) -> bool:
    return record_of(new).reads_like(record_of(old))


class FollowedJobs(Generic[T]):
    """Jobs that are followed until they have ended: see :meth:`.JobStore.follow`. An
    iterator and an async iterator of their changes, and an awaitable of their ends.
    """

    def __init__(
        self,
        uuids: Sequence[str],
        unended: Unended,
        looks: Looks[Sequence[JobState | None]],
    ) -> None:
        self._uuids = uuids
        self._unended = unended
        self._looks = looks
        self._news: deque[JobState | Exception] = deque()
        self._ended: dict[str, JobState] = {}
        self._moved_at = time.monotonic()
        self._lock = threading.Lock()

    def __iter__(self) -> Iterator[JobState]:
        return self

    def __next__(self) -> JobState:
        with self._alone():
            while self._is_waiting():
                self._take(next(self._looks))
            if not self._news:
                raise StopIteration
            return self._next()

    def __aiter__(self) -> AsyncIterator[JobState]:
        return self

    async def __anext__(self) -> JobState:
        with self._alone():
            while self._is_waiting():
                self._take(await anext(self._looks))
            if not self._news:
                raise StopAsyncIteration
            return self._next()

    def __await__(self) -> Generator[Any, None, T]:
        return self._last().__await__()

    async def _last(self) -> T:
        if not self._unended.errors:
            async for _ in self:
                pass
        return self._ends()

    def _ends(self) -> T:
        """Return the ended job, or a list of several in the order of the uuids.

        Raises:
          Exception: Why one of them is not waited for any longer.
        """
        for error in self._unended.errors.values():
            raise error
        found: Any = [self._ended[uuid] for uuid in self._uuids]
        ends: T = found[0] if len(found) == 1 else found
        return ends

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        if not self._lock.acquire(blocking=False):
            raise RuntimeError(
                "Another thread or task follows these jobs already. Call follow() for "
                "each."
            )
        try:
            yield
        finally:
            self._lock.release()

    def _is_waiting(self) -> bool:
        return not self._news and bool(self._unended.jobs)

    def _take(self, answer: Sequence[JobState | None] | None) -> None:
        now = time.monotonic()
        self._news += self._unended.take(answer)
        if self._news:
            self._moved_at = now
        self._looks.pause = BUSY if now - self._moved_at < CALM else CALM

    def _next(self) -> JobState:
        found = self._news.popleft()
        if isinstance(found, Exception):
            raise found
        if found.is_finished:
            self._ended[found.uuid] = found
        return found


#: What sends jobs of this process when a transaction commits, while it lives, and what
#: returns the uuids of its jobs.
_senders: WeakKeyDictionary[Any, Callable[[Any], Collection[str]]] = WeakKeyDictionary()


def note_sender(sender: T, uuids: Callable[[T], Collection[str]]) -> None:
    """Note something that sends jobs when a transaction commits.

    Parameters:
      uuids: Returns the uuids of the jobs that it will send.
    """
    _senders[sender] = uuids


def uncommitted() -> set[str]:
    """Return the uuids of the jobs that are sent in transactions of this process that
    have not committed.
    """
    # The list is made at once, and so is the union, whatever other threads do.
    senders = [reference() for reference in _senders.keyrefs()]
    return set().union(*[_senders[each](each) for each in senders if each is not None])
