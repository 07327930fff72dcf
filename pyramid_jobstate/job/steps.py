"""Asynchronous loops that a job tracks."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterator
from typing import Any, TypeVar

T = TypeVar("T")


class AsyncSteps(AsyncIterator[T]):
    """Iterates over an async iterable and keeps a run's progress current. ``for`` works
    too if the iterable is also a plain iterable.

    Parameters:
      iterable: The async iterable.
      step: Called with the number of items done.
      iterate: Returns the iterator for ``for``.

    Not an async generator: a loop that exits early drops this object along with the
    iterable, which is then closed as it would be without tracking. If `step` raises,
    the iterable is closed first.
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
        """Stop the iteration and close the iterable if it has an ``aclose()``."""
        iterator, self._iterator = self._iterator, None
        close = getattr(iterator, "aclose", None)
        if close is not None:
            await close()
