"""Handle: the methods that an actor calls to report from its job."""

from __future__ import annotations

from collections.abc import AsyncIterable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any, TypeVar, overload

from .phases import check_phase
from .run import Run
from .steps import AsyncSteps
from .values import AMOUNTS, LIMIT, NUMBERS

T = TypeVar("T")

#: The run of a JobState that does not belong to a running job: it refuses every report.
NO_RUN = Run(
    closed="This JobState was loaded from a store. Only a running job can report, "
    "through the job_state that its actor receives."
)


class Handle:
    """The methods that an actor calls. Those that report raise RuntimeError if the
    JobState was loaded from a store or its job has ended, and JobCancelled once the job
    has been cancelled.
    """

    _run: Run = NO_RUN

    def set_progress_metric(self, name: str, value: Any) -> None:
        """Set the latest value of one metric.

        Parameters:
          name: The name of the metric.
          value: Any JSON value, or a date, UUID, Decimal, enum or NumPy scalar. A
            copy is kept.

        Raises:
          TypeError: The value has no JSON form, or the name is not a string.
          ValueError: The value is NaN, infinite or over 16 KiB, the job's metrics take
            over 256 KiB, or the name is empty or reserved.
        """
        run = self._run
        # A loop may call this a million times: values.py says why these checks suffice.
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
          TypeError, ValueError: As :meth:`set_progress_metric`. No metric is set then.
        """
        self._run.set_metrics({**mapping, **values})

    def increment_progress_metric(self, name: str, by: float = 1) -> None:
        """Add to a counter, which starts at 0. Exact even when several threads count.

        Parameters:
          name: The name of the metric.
          by: The number to add.

        Raises:
          TypeError: The metric's value or `by` is not a number.
          ValueError: As :meth:`set_progress_metric`, or the sum overflows a float.
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
          total: How much there is to do, or None if unknown.
          unit: What is counted, such as "rows".
          message: A message to set along with the progress, or None.

        Raises:
          TypeError: An amount is not a number, or a text is not a string.
          ValueError: An amount is negative, NaN, infinite or too large for a float, or
            a text is over 16 KiB.
        """
        run = self._run
        report: dict[str, Any] = run.report
        # As in set_progress_metric(). The bar of a phase must not go back.
        if (
            type(done) in AMOUNTS
            and 0 <= done < LIMIT
            and total is run.total
            and report["progress"][0] <= done
            and unit is run.unit
            and (message is None or message is report.get("message"))
            and not run.barred
        ):
            report["progress"] = (done, total, unit)
            run.dirty = True
        else:
            run.set_progress(done, total, unit, message)

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
        as done when the next one is requested.

        Parameters:
          iterable: An iterable, or an async iterable for ``async for``. An async
            generator is closed before JobCancelled is raised.
          total: The number of items; by default the iterable's `len()`, if it has one.
          unit, message: As for :meth:`set_progress`.

        Raises:
          TypeError: `iterable` is neither iterable nor async iterable.
          TypeError, ValueError: As :meth:`set_progress`.
        """
        return self._run.track(iterable, total, unit, message)

    def phase(self, name: str, percent: float) -> AbstractContextManager[None]:
        """Return a context in which everything that reports progress, called functions
        included, fills a part of the bar. The bar never moves back: in a second
        :meth:`track` it waits until that has come as far. A phase that raises leaves
        the bar where it stands.

        Parameters:
          name: What is done in the phase, for viewers; the first 200 characters count.
          percent: Its share of what encloses it: of the whole job, or of another phase.
            More than is left is cut, with a warning.

        Raises:
          TypeError: The name is not a string, or the percentage not a number.
          ValueError: The name is empty, or the percentage not above 0 and at most 100.
          RuntimeError: On entry, if a phase is open in another thread.
        """
        return self._run.phases.open(self._run, *check_phase(name, percent))

    def set_message(self, text: str | None) -> None:
        """Set the message, of at most 16 KiB; None removes it.

        Raises:
          TypeError: The text is not a string.
          ValueError: The text is too long.
        """
        self._run.set_message(text)

    def append_log(self, line: str) -> None:
        """Append a line to the job's log, which keeps the last 20 lines, each cut to
        200 characters.

        Raises:
          TypeError: The line is not a string.
        """
        self._run.append_log(line)

    def flush(self, timeout: float = 1.0) -> bool:
        """Wait until everything set so far is stored.

        Parameters:
          timeout: Seconds to wait at most.

        Returns:
          Whether everything is stored.

        Raises:
          RuntimeError: This JobState was loaded from a store.
        """
        return self._run.flush(timeout)

    def raise_if_cancelled(self) -> None:
        """Raise JobCancelled if cancellation of the job was requested, as every call
        that reports does.

        The exception is raised once in the thread that runs the job, once in each
        asyncio task, and at every call in any other thread, so that a pool stops its
        remaining work. It is not raised while a JobCancelled is being handled.

        Raises:
          JobCancelled: Cancellation was requested.
          RuntimeError: The JobState was loaded from a store, or its job has ended.
        """
        self._run.ask()
        self._run.check()
