"""Handle: what an actor calls to report how its job comes along."""

from __future__ import annotations

from collections.abc import AsyncIterable, Iterable, Iterator, Mapping
from typing import Any, TypeVar, overload

from .run import LIMIT, NUMBERS, Run
from .steps import AsyncSteps

T = TypeVar("T")

#: What a JobState writes to that was not handed to a running job: it takes nothing.
NO_RUN = Run(
    closed="This JobState was loaded: only a running job may report, through the "
    "job_state that it was given."
)


class Handle:
    """What an actor calls. RuntimeError unless this is the job_state of a running job,
    and JobCancelled once somebody has cancelled that.
    """

    def __init__(self, run: Run = NO_RUN) -> None:
        self._run = run

    def set_progress_metric(self, name: str, value: Any) -> None:
        """Set the latest value of one metric.

        Parameters:
          name: The name of the metric.
          value: Anything that JSON can say, or a date, UUID, Decimal, enum or NumPy
            scalar. A copy is kept.

        Raises:
          TypeError: The value has no JSON form, or the name is no string.
          ValueError: The value is NaN, infinite or over 16 KiB, the job's metrics take
            over 256 KiB, or the name is empty or reserved.
        """
        run = self._run
        # Every word here is run a million times: see run.py for what is left out.
        if (
            type(value) in NUMBERS
            and -LIMIT < value < LIMIT
            and type(name) is str
            and name in run.known
        ):
            run.metrics[name] = value
            run.dirty = True
        else:
            run.set_metrics({name: value})

    def set_progress_metrics(
        self, mapping: Mapping[str, Any] = {}, /, **values: Any
    ) -> None:
        """Set several metrics at once: a viewer sees all of them or none.

        Raises:
          TypeError, ValueError: As :meth:`set_progress_metric`. None is set then.
        """
        self._run.set_metrics({**mapping, **values})

    def increment_progress_metric(self, name: str, by: float = 1) -> None:
        """Add to a metric that counts, from 0. Exact when several threads count.

        Raises:
          TypeError: The metric's value, or `by`, is no number.
        """
        self._run.increment(name, by)

    def set_progress(
        self,
        done: float,
        total: float | None = None,
        unit: str | None = None,
        message: str | None = None,
    ) -> None:
        """Set how far the job has come.

        Parameters:
          done: How much is done.
          total: How much there is to do, or None where nobody knows.
          unit: What is counted, such as "rows".
          message: The message to set along with it, if not None.

        Raises:
          TypeError: An amount is no number, a text no string.
          ValueError: An amount is negative, NaN or infinite.
        """
        self._run.set_progress(done, total, unit, message)

    @overload
    def track(
        self,
        iterable: AsyncIterable[T],
        total: float | None = None,
        unit: str | None = None,
        message: str | None = None,
    ) -> AsyncSteps[T]: ...

    @overload
    def track(
        self,
        iterable: Iterable[T],
        total: float | None = None,
        unit: str | None = None,
        message: str | None = None,
    ) -> Iterator[T]: ...

    def track(
        self,
        iterable: Any,
        total: float | None = None,
        unit: str | None = None,
        message: str | None = None,
    ) -> Any:
        """Yield the items of an iterable and keep the progress current: an item counts
        as done when the next one is asked for. ``async for`` goes through an async
        iterable.

        Parameters:
          iterable: An iterable, or an async iterable. An async generator is closed
            before JobCancelled is raised.
          total: How many there are. Its `len()` unless given, if it has one.
          unit, message: As for :meth:`set_progress`.

        Raises:
          TypeError: `iterable` is neither.
        """
        return self._run.track(iterable, total, unit, message)

    def set_message(self, text: str | None) -> None:
        """Set the message; None takes it away."""
        self._run.set_message(text)

    def append_log(self, line: str) -> None:
        """Add a line to the job's log, which keeps the last 20 of 200 characters."""
        self._run.append_log(line)

    def flush(self, timeout: float = 1.0) -> bool:
        """Wait until everything set so far is stored.

        Parameters:
          timeout: Seconds to wait at the most.

        Returns:
          Whether it is stored.
        """
        return self._run.flush(timeout)

    def raise_if_cancelled(self) -> None:
        """Raise JobCancelled if somebody has asked to cancel the job, as each call that
        reports does.

        It is raised once in the thread that runs the job, once in each asyncio task,
        and at every call in any other thread, so that a pool stops whatever is left to
        do. While a JobCancelled is being handled it is not raised.

        Raises:
          JobCancelled: Somebody has.
          RuntimeError: This is not the job_state of a running job.
        """
        self._run.ask()
        self._run.check()
