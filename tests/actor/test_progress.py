"""Progress: set by hand, or by a loop that is tracked."""

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Any

import pytest

from pyramid_jobstate import JobCancelled, JobState, Progress
from pyramid_jobstate.testing import cancel, detached
from tests.actor.calls import letters


def test_fraction_is_the_share_that_is_done():
    """It is between 0 and 1: 1 if there is nothing to do, None without a total."""
    for done, total, fraction in [
        (13, 26, 0.5),
        (30, 26, 1.0),
        (5, None, None),
        (0, 0, 1.0),
        (10**300, 5e-324, 1.0),
    ]:
        assert Progress(done, total).fraction == fraction


def test_progress_is_set_with_its_message(job_state):
    """Total, unit and message are optional. A message stays until another comes."""
    assert job_state.progress is None
    job_state.set_progress(3, 7.5, "rows", "Reading")
    assert job_state.progress == Progress(3, 7.5, "rows")
    job_state.set_progress(4)
    assert job_state.progress == Progress(4)
    assert job_state.message == "Reading"


@pytest.mark.promise("progress-is-tracked")
def test_track_counts_the_items(job_state):
    """An item counts as done when the next one is asked for; the last when the loop
    ends. The total is what the loop has, and 0 is shown as soon as it is tracked.
    """
    loop = job_state.track("ab", unit="letters", message="Reading")
    assert job_state.progress == Progress(0, 2, "letters")
    assert job_state.message == "Reading"
    seen = [(item, job_state.progress) for item in loop]
    assert seen == [("a", Progress(0, 2, "letters")), ("b", Progress(1, 2, "letters"))]
    assert job_state.progress == Progress(2, 2, "letters")


def test_track_finds_the_total(job_state):
    """A given total precedes the length, which iterators and long ranges lack."""
    next(job_state.track([1, 2], 5))
    assert job_state.progress == Progress(0, 5)
    assert list(job_state.track(iter([1, 2]))) == [1, 2]
    assert job_state.progress == Progress(2)
    assert next(job_state.track(range(10**30))) == 0
    assert job_state.progress == Progress(0)


def test_track_that_is_left_stays_where_it_was(job_state):
    """The item at which a loop breaks off does not count as done."""
    for item in job_state.track(range(5)):
        if item == 3:
            break
    assert job_state.progress == Progress(3, 5)


def test_track_takes_what_a_loop_does(job_state):
    """Anything else is refused at the call."""
    wrong: Any
    for wrong in (3, None, letters):
        with pytest.raises(TypeError, match=r"^track\(\) takes an iterable or an") as e:
            job_state.track(wrong)
        assert repr(wrong) in str(e.value)
    assert job_state.progress is None


class Sized:
    """An async iterator that has a length."""

    def __init__(self) -> None:
        self.left = [3, 2, 1]

    def __len__(self) -> int:
        return 3

    def __aiter__(self) -> "Sized":
        return self

    async def __anext__(self) -> int:
        if not self.left:
            raise StopAsyncIteration
        return self.left.pop()


class Either(Sized):
    """The same, but also iterable by a plain loop."""

    def __iter__(self) -> Iterator[int]:
        return iter(self.left)


@pytest.mark.promise("progress-is-tracked")
def test_track_counts_the_items_of_async_for(job_state):
    """It works as in a plain loop, and the total is the len() of the iterable."""

    async def work() -> None:
        loop = job_state.track(letters([]), 2, "letters", "Reading")
        seen = [(item, job_state.progress) async for item in loop]
        assert seen == [
            ("a", Progress(0, 2, "letters")),
            ("b", Progress(1, 2, "letters")),
        ]
        assert job_state.progress == Progress(2, 2, "letters")
        steps = job_state.track(Sized())
        assert job_state.progress == Progress(0, 3)
        assert [item async for item in steps] == [1, 2, 3]
        with pytest.raises(StopAsyncIteration):
            await anext(steps)

    asyncio.run(work())
    assert (job_state.progress, job_state.message) == (Progress(3, 3), "Reading")


def test_track_works_in_either_loop():
    """What is iterable in both ways is tracked in either."""

    async def work(job_state: JobState) -> list[int]:
        return [item async for item in job_state.track(Either())]

    first, second = detached(JobState), detached(JobState)
    assert asyncio.run(work(first)) == [1, 2, 3]
    either: Any = second.track(Either())
    assert list(either) == [3, 2, 1]
    assert first.progress == second.progress == Progress(3, 3)


def test_track_that_is_left_closes_a_generator(job_state):
    """A `break` or an exception closes it, and the current item is not done."""

    async def loop(log: list[str], fails: bool) -> None:
        async for _ in job_state.track(letters(log), 2):
            if fails:
                raise KeyError
            break

    async def work() -> None:
        for fails in False, True:
            log: list[str] = []
            with contextlib.suppress(KeyError):
                await loop(log, fails)
            for _ in range(3):
                await asyncio.sleep(0)
            assert log == ["closed"]
            assert job_state.progress == Progress(0, 2)

    asyncio.run(work())


def test_track_that_may_not_go_on_closes_the_generator_first():
    """JobCancelled follows, and no more items. Other iterators need not be closed."""
    log: list[str] = []

    async def work(job_state: JobState, iterable: Any) -> None:
        steps: Any = job_state.track(iterable, 2)
        assert await anext(steps) in ("a", 1)
        cancel(job_state)
        with pytest.raises(JobCancelled):
            await anext(steps)
        assert log == ["closed"]
        assert [item async for item in steps] == []

    for iterable in letters(log), Sized():
        job_state = detached(JobState)
        asyncio.run(work(job_state, iterable))
        assert job_state.progress == Progress(0, 2)
    job_state = detached(JobState)
    steps = job_state.track(range(5))
    next(steps)
    cancel(job_state)
    with pytest.raises(JobCancelled):
        next(steps)
    assert job_state.progress == Progress(0, 5)
