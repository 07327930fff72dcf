"""The steps of a loop that a job tracks, where that is asynchronous."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterator
from typing import Any, TypeVar

T = TypeVar("T")


class AsyncSteps(AsyncIterator[T]):
    """Goes through an async iterable and keeps a run's progress current. `for` goes
    through one that is an iterable as well.

    Parameters:
      iterable: The async iterable.
      step: Called with the number of items that are done.
      iterate: Returns the iterator for `for`.

    A class, not an async generator: a loop that is left drops it along with the
    iterable, which is then closed as it would be without it. When the loop may not go
    on, the iterable is closed before that is raised.
    """

    def __init__(
        self,
        iterable: AsyncIterable[T],
        step: Callable[[int], None],
        iterate: Callable[[Any], Iterator[T]],
    ) -> None:
        self._iterable = iterable
        self._iterator: AsyncIterator[T] | None = aiter(iterable)
        self._step = step
        self._iterate = iterate
        self._done = 0

    def __iter__(self) -> Iterator[T]:
        return self._iterate(self._iterable)

    async def __anext__(self) -> T:
        if self._iterator is None:
            raise StopAsyncIteration
        if self._done:
            try:
                self._step(self._done)
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
