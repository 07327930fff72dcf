"""The steps of a loop that a job tracks, where that is asynchronous."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from .run import Run

T = TypeVar("T")


class AsyncSteps(AsyncIterator[T]):
    """Goes through an async iterable and keeps a run's progress current. `for` goes
    through one that is an iterable as well.

    A class, not an async generator: a loop that is left drops it along with the
    iterable, which is then closed as it would be without it. When the loop may not go
    on, the iterable is closed before that is raised.
    """

    def __init__(
        self,
        run: Run,
        iterable: AsyncIterable[T],
        total: float | None,
        unit: str | None,
    ) -> None:
        self._run = run
        self._iterable: Any = iterable
        self._iterator: AsyncIterator[T] | None = aiter(iterable)
        self._done = 0
        self._total = total
        self._unit = unit

    def __iter__(self) -> Iterator[T]:
        return self._run.steps(self._iterable, self._total, self._unit)

    async def __anext__(self) -> T:
        if self._iterator is None:
            raise StopAsyncIteration
        if self._done:
            try:
                self._run.step(self._done, self._total, self._unit)
            except BaseException:
                await self.aclose()
                raise
        item = await anext(self._iterator)
        self._done += 1
        return item

    async def aclose(self) -> None:
        """Close the iterable, if it can be closed, and yield no more items."""
        iterator, self._iterator = self._iterator, None
        close = getattr(iterator, "aclose", None)
        if close is not None:
            await close()
