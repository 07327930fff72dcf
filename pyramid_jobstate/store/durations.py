"""How long jobs of a kind usually run, and the records that are to say so."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence

from redis.exceptions import RedisError

from ..job.progress import is_amount
from ..job.record import UUID, Record
from ..job.values import dumps, parse_json
from .connection import Command, text
from .lists import ListAccess, kind_name
from .reader import ask

log = logging.getLogger("pyramid_jobstate")

#: How many of the newest successes of a kind count, at most and at least.
MOST, FEWEST = 100, 20

#: Which of them count: all or, if those began too close to each other, every tenth, and
#: so on. Many threads may run jobs of a kind.
STEPS = (1, 10, 100, 1000)

#: For how many seconds the store keeps what is known of a kind, and a process does not
#: ask again for one of which nothing is known.
KEPT = 60.0


@dataclasses.dataclass(frozen=True, slots=True)
class Durations:
    """How long the newest jobs of a kind that succeeded have run, in seconds: from the
    start of the attempt that succeeded to its end. All are None if too little is known.

    Attributes:
      p50: Half of them took at most this long.
      p95: 95% of them took at most this long.
      low, high: The middle half of them took between these two, which have two
        significant digits. None if the durations differ so much that they would
        mislead.
    """

    p50: float | None = None
    p95: float | None = None
    low: float | None = None
    high: float | None = None


UNKNOWN = Durations()


def read_durations(access: ListAccess, kind: str) -> Durations:
    """Return how long jobs of a kind have run, as it was within the last minute.

    Parameters:
      access: The access to the lists.
      kind: The name of the kind: see :func:`.kind_name`.
    """
    key = f"{access.sets.scope(kind)}durations"
    (kept,) = ask(access.client, [Command(key, ("GET", key))])
    match parse_json(None if kept is None else text(kept)):
        case [*found] if len(found) == 4 and all(
            value is None or is_amount(value) for value in found
        ):
            return Durations(*found)
    durations = _reckon(access, kind)
    words = ("SET", key, dumps(dataclasses.astuple(durations)), "EX", int(KEPT))
    # The server may be read-only, or full.
    with contextlib.suppress(RedisError):
        ask(access.client, [Command(key, words)])
    return durations


def _reckon(access: ListAccess, kind: str) -> Durations:
    for step in STEPS:
        runs = sorted(_runs(access, kind, step))[-MOST:]
        if len(runs) < FEWEST:
            break
        starts = [finished - spent for finished, spent in runs]
        spent = sorted(spent for _, spent in runs)
        # Of jobs that began together, those that took long have not ended yet.
        if max(starts) - min(starts) > 2 * spent[-1]:
            return _durations_of(spent)
    return UNKNOWN


def _runs(access: ListAccess, kind: str, step: int) -> Iterator[tuple[int, int]]:
    """Yield the ends of successes, and how long each took, in milliseconds.

    Parameters:
      step: How far apart those are that are read, from the newest on.
    """
    scopes = [access.sets.scope(kind, members=each) for each in (False, True)]
    ranges = [(0, MOST - 1)]
    if step > 1:
        ranges = [(i, i) for i in range(0, MOST * step, step)]
    replies = ask(
        access.client,
        [
            Command(key, ("ZREVRANGE", key, *each))
            for key in (f"{scope}success" for scope in scopes)
            for each in ranges
        ],
    )
    names = [text(name) for reply in replies for name in reply or ()]
    uuids = [name for name in names if UUID.fullmatch(name)]
    for record in access.reader.read(uuids, "status", "started", "finished"):
        if record is not None and record.status == "success":
            started, finished = record.millis("started"), record.millis("finished")
            if started and finished and started <= finished:
                yield finished, finished - started


def _durations_of(spent: Sequence[int]) -> Durations:
    """Return what durations in milliseconds say, in ascending order."""

    def share(percent: int) -> float:
        return spent[round(percent / 100 * (len(spent) - 1))] / 1000

    if share(90) > 4 * share(10):
        return Durations(share(50), share(95))
    return Durations(share(50), share(95), _rounded(share(25)), _rounded(share(75)))


def _rounded(seconds: float) -> float:
    """Return a duration with two significant digits."""
    rounded = float(f"{seconds:.2g}")
    return int(rounded) if rounded.is_integer() else rounded


class Usual:
    """Has the records of working jobs say how long such jobs usually run.

    Parameters:
      aside: Has an access for the thread, which lets the requests have theirs.
    """

    def __init__(
        self, aside: Callable[[], contextlib.AbstractContextManager[ListAccess]]
    ) -> None:
        self._aside = aside
        #: The records that are to say what is usual, by their uuids, and the thread
        #: that writes it. It takes no lock: a forked process could find it locked.
        self._asked: dict[str, Record] = {}
        self._thread: threading.Thread | None = None
        #: Until when this process does not ask for a kind.
        self._pauses: dict[str, float] = {}

    def tell(self, record: Record) -> None:
        """Have the record of a working job say soon what is usual for its kind. A
        thread writes it: the caller does not wait.
        """
        if self._pauses.get(kind_name(record), 0.0) > time.monotonic():
            return
        self._asked[record.uuid] = record
        thread = self._thread
        # A fork does not take the thread along.
        if thread is None or not thread.is_alive():
            # Another request may start a thread meanwhile, which may end, too.
            thread = self._thread = threading.Thread(
                target=self._run, name="jobstate-usual", daemon=True
            )
            # The process may start no more threads.
            with contextlib.suppress(RuntimeError):
                thread.start()

    def _run(self) -> None:
        self._write_all()
        # Whoever asks from now on starts another thread.
        self._thread = None
        self._write_all()

    def _write_all(self) -> None:
        while self._asked:
            kinds: dict[str, list[Record]] = {}
            with contextlib.suppress(KeyError):
                while True:
                    _, record = self._asked.popitem()
                    kinds.setdefault(kind_name(record), []).append(record)
            for kind, records in kinds.items():
                if not self._write(kind, records):
                    now = time.monotonic()
                    kept = {k: t for k, t in self._pauses.items() if t > now}
                    self._pauses = {**kept, kind: now + KEPT}

    def _write(self, kind: str, records: Sequence[Record]) -> bool:
        """Write what is usual into records of a kind. Return False if that is unknown,
        or the store does not take it.
        """
        try:
            with self._aside() as access:
                found = read_durations(access, kind)
                if found.low is None:
                    return False
                words = dumps((found.low, found.high, _rounded(found.p95 or 0)))
                access.runner.run(
                    access.calls.usual(record.uuid, record.text("run") or "", words)
                    for record in records
                )
        except Exception as e:
            # A pool of the application's may raise anything.
            log.debug("What is usual for jobs of the kind %s is unknown: %r", kind, e)
            return False
        return True
