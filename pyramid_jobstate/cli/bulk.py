"""Acts on all jobs that filters match: counts them, asks, and says what was done."""

from __future__ import annotations

import argparse
import contextlib
import functools
import signal
from collections.abc import Callable, Iterator, Mapping
from types import FrameType
from typing import Any

from ..store import BulkResult
from .act import log, note, operator
from .arguments import confirm, must_ask
from .faults import COULD_NOT, DONE
from .output import Output
from .texts import number

#: The most jobs that one call acts on.
MOST = 1000


#: Acts on some of the jobs that filters match, such as `store.cancel_all`.
Call = Callable[..., BulkResult]


class Bulk:
    """Acts on all jobs that filters match.

    Parameters:
      call: Acts on some of them.
      filters: What it takes beside limit, cursor, permits and tell.
      what: What is done to jobs, such as "cancelled".
      args: The arguments of the command.
      output: What takes the result.
    """

    def __init__(
        self,
        call: Call,
        filters: Mapping[str, Any],
        what: str,
        args: argparse.Namespace,
        output: Output,
    ) -> None:
        self._call = call
        self._filters = filters
        self._what = what
        self._args = args
        self._output = output
        self._done = self._refused = 0

    def run(self) -> int:
        """Act on the jobs, after a question unless --yes was given, and return the exit
        code: 1 if some of them were refused.
        """
        args, what = self._args, self._what
        if args.dry_run:
            count = self._count()
            text = f"{number(count)} would be {what}"
            self._output.tell(text, matching=count, dry_run=True)
            return DONE
        cursor = None
        if must_ask(args):
            # Leaves alone jobs sent or ended after the question.
            cursor = self._call(limit=0, **self._filters).cursor
            count = self._count(cursor)
            if count:
                jobs = "1 job" if count == 1 else f"{number(count)} jobs"
                confirm(f"{args.verb.capitalize()} {jobs}?")
        self._act(cursor)
        return COULD_NOT if self._refused else DONE

    def _count(self, cursor: str | None = None) -> int:
        """Return how many jobs match."""
        count = 0
        while True:
            result = self._next(count, cursor, permits=lambda job: False)
            count += result.refused
            cursor = result.cursor
            if cursor is None or count == self._args.limit:
                return count

    def _act(self, cursor: str | None) -> None:
        ending, at_least = ", then stopped", ""
        try:
            while ending:
                with _uninterrupted():
                    at_least = "at least "
                    acted = self._done + self._refused
                    result = self._next(acted, cursor)
                    self._done += result.done
                    self._refused += result.refused
                    at_least, cursor = "", result.cursor
                acted = self._done + self._refused
                if cursor is None or acted == self._args.limit:
                    ending = ""
        finally:
            self._tell(at_least, ending)

    def _next(self, count: int, cursor: str | None, **options: Any) -> BulkResult:
        limit = self._args.limit
        most = MOST if limit is None else min(MOST, limit - count)
        return self._call(
            limit=most,
            cursor=cursor,
            tell=functools.partial(note, self._what),
            **self._filters,
            **options,
        )

    def _tell(self, at_least: str, ending: str) -> None:
        done, refused = self._done, self._refused
        text = f"{at_least}{number(done)} {self._what}, {number(refused)} refused"
        log.info(
            "%s: %s%s, of the jobs with %s.", operator(), text, ending, self._filters
        )
        self._output.tell(
            text + ending,
            done=done,
            refused=refused,
            dry_run=False,
            complete=not ending,
        )


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Put off Ctrl-C, SIGTERM and SIGHUP until a call is over, so that it is known what
    was done. The second one does not wait.
    """
    noted: list[int] = []
    handlers = {}
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        handler = signal.getsignal(signum)
        # In the background of a script, Ctrl-C is ignored, and under nohup SIGHUP.
        if callable(handler):
            handlers[signum] = handler

    def note(signum: int, frame: FrameType | None) -> None:
        noted.append(signum)
        if len(noted) > 1:
            handlers[signal.Signals(signum)](signum, frame)

    for signum in handlers:
        signal.signal(signum, note)
    try:
        yield
    finally:
        for signum, handler in handlers.items():
            signal.signal(signum, handler)
    for signum in map(signal.Signals, noted):
        handlers[signum](signum, None)
