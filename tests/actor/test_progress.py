"""Progress: set by hand, or by a loop that is tracked."""

import asyncio
import contextlib
import decimal
import random
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from pyramid_jobstate import JobCancelled, JobState, Progress
from pyramid_jobstate.testing import cancel, detached
from tests.actor.conftest import RunJob
from tests.actor.test_values import NAN, Kilometres, Scalar


def test_fraction_is_the_share_that_is_done() -> None:
    """It is between 0 and 1: 1 if there is nothing to do, None without a total."""
    for done, total, fraction in [
        (0, 26, 0.0),
        (13, 26, 0.5),
        (26, 26, 1.0),
        (30, 26, 1.0),
        (5, None, None),
        (0, 0, 1.0),
        (3, 0, 1.0),
        (1.5, 6, 0.25),
        (10**300, 5e-324, 1.0),
    ]:
        assert Progress(done, total).fraction == fraction


def test_progress_is_set_with_its_message(job_state: JobState) -> None:
    """Total, unit and message are optional. A message stays until another comes."""
    assert job_state.progress is None
    total: Any = decimal.Decimal("7.5")
    job_state.set_progress(3, total, "rows", "Reading")
    assert job_state.progress == Progress(3, 7.5, "rows")
    assert job_state.message == "Reading"
    job_state.set_progress(4)
    assert job_state.progress == Progress(4)
    assert job_state.message == "Reading"
    job_state.set_progress(1, 2, unit="rows", message="Writing")
    job_state.set_message(None)
    job_state.set_progress(2, 2, unit="rows", message="Writing")
    assert job_state.message == "Writing"


@pytest.mark.parametrize("seed", range(5))
def test_progress_is_checked_whatever_was_set_before(
    job_state: JobState, seed: int
) -> None:
    """Whatever is set in whatever order, good or bad, as the same object or as an equal
    one, the job takes what a job that has reported nothing yet would take.
    """
    chance = random.Random(seed)
    texts: list[Any] = ["rows", "Zeilen", "".join(["ro", "ws"]), None, "x" * 20_000, 3]
    totals: list[Any] = [10, 10.0, 2000, int("2000"), None, decimal.Decimal(7)]
    totals += [Kilometres(9), True, NAN, -1, 2**62, 10**400, Scalar("f", 5)]
    amounts: list[Any] = [0, 1, 2.5, 3, 2**62, -1, NAN, True, Kilometres(4), "1"]
    for _ in range(400):
        # Most calls repeat what the one before had.
        done, total, unit, message = [
            chance.choice(values[:2] if chance.random() < 0.8 else values)
            for values in (amounts, totals, texts, texts)
        ]
        fresh, before = detached(JobState), (job_state.progress, job_state.message)
        errors = []
        for each in job_state, fresh:
            try:
                each.set_progress(done, total, unit, message)
            except (TypeError, ValueError) as e:
                errors.append((type(e), str(e)))
        assert len(errors) in (0, 2) and len(set(errors)) <= 1
        if errors:
            assert (job_state.progress, job_state.message) == before
        else:
            assert repr(job_state.progress) == repr(fresh.progress)
            assert job_state.message == (before[1] if message is None else message)
        if chance.random() < 0.1:
            job_state.set_message(chance.choice([*texts[:2], None]))


class Sly(int):
    """A number that compares as it likes."""

    is_negative = False

    def __ge__(self, other: float) -> bool:
        return not self.is_negative


def test_total_that_may_change_is_checked_each_time(job_state: JobState) -> None:
    """The same object may be another number by now, as an array of NumPy may."""
    array: Any = Scalar("f", 5)
    job_state.set_progress(1, array, "rows")
    array.value = 7
    job_state.set_progress(2, array, "rows")
    assert job_state.progress == Progress(2, 7.0, "rows")
    array.value = -1
    sly = Sly(5)
    job_state.set_progress(2, sly, "rows")
    sly.is_negative = True
    for total in (array, sly):
        with pytest.raises(ValueError, match="total"):
            job_state.set_progress(3, total, "rows")
    assert job_state.progress == Progress(2, 5, "rows")


# Loops.


def test_track_counts_the_items(job_state: JobState) -> None:
    """An item counts as done when the next one is asked for; the last when the loop
    ends. The total is what the loop has, and 0 is shown as soon as it is tracked.
    """
    loop = job_state.track("ab", unit="letters", message="Reading")
    assert job_state.progress == Progress(0, 2, "letters")
    assert job_state.message == "Reading"
    seen = [(item, job_state.progress) for item in loop]
    assert seen == [
        ("a", Progress(0, 2, "letters")),
        ("b", Progress(1, 2, "letters")),
    ]
    assert job_state.progress == Progress(2, 2, "letters")


def test_track_prefers_the_total_that_was_given(job_state: JobState) -> None:
    """It is a plain number at each step."""
    for total in (5, 7.5, decimal.Decimal(5)):
        given: Any = total
        steps = job_state.track([1, 2], given)
        assert [next(steps), next(steps)] == [1, 2]
        assert job_state.progress == Progress(1, given)
        assert type(job_state.progress.total) in (int, float)


def test_track_of_what_has_no_length_has_no_total(job_state: JobState) -> None:
    """Iterators have none, and some ranges are too long for it."""
    for iterable in (iter([1, 2]), (i for i in (1, 2))):
        assert list(job_state.track(iterable)) == [1, 2]
        assert job_state.progress == Progress(2)
    assert next(job_state.track(range(10**30))) == 0
    assert job_state.progress == Progress(0)


def test_track_that_is_left_stays_where_it_was(job_state: JobState) -> None:
    """The item at which a loop breaks off does not count as done."""
    for item in job_state.track(range(5)):
        if item == 3:
            break
    assert job_state.progress == Progress(3, 5)


def test_track_takes_whatever_a_loop_does(job_state: JobState) -> None:
    """A sequence of the old protocol is one; anything else is refused at the call."""

    class Sequence:
        def __getitem__(self, place: int) -> str:
            return "ab"[place]

    sequence: Any = Sequence()
    assert list(job_state.track(sequence)) == ["a", "b"]
    before = job_state.progress
    wrong: Any
    for wrong in (3, None, letters, len):
        with pytest.raises(TypeError, match=r"^track\(\) takes an iterable or an") as e:
            job_state.track(wrong)
        assert repr(wrong) in str(e.value)
    assert job_state.progress == before


class Closable:
    """An async iterator of three items that counts how often it is closed."""

    def __init__(self) -> None:
        self.left = [3, 2, 1]
        self.closed = 0

    def __len__(self) -> int:
        return 3

    def __aiter__(self) -> "Closable":
        return self

    async def __anext__(self) -> int:
        await asyncio.sleep(0)
        if not self.left:
            raise StopAsyncIteration
        return self.left.pop()

    async def aclose(self) -> None:
        self.closed += 1


class Either(Closable):
    """The same, but also iterable by a plain loop."""

    def __iter__(self) -> Iterator[int]:
        return iter(self.left)


async def letters(log: list[str]) -> AsyncIterator[str]:
    """Yield two letters, and log the end of the generator."""
    try:
        yield "a"
        yield "b"
    finally:
        await asyncio.sleep(0)
        log.append("closed")


def test_track_counts_the_items_of_async_for(job_state: JobState) -> None:
    """It works as in a plain loop, and the total is the len() of the iterable."""

    async def work() -> None:
        loop = job_state.track(letters([]), 2, "letters", "Reading")
        seen = [(item, job_state.progress) async for item in loop]
        assert seen == [
            ("a", Progress(0, 2, "letters")),
            ("b", Progress(1, 2, "letters")),
        ]
        assert job_state.progress == Progress(2, 2, "letters")
        steps = job_state.track(Closable())
        assert job_state.progress == Progress(0, 3)
        assert [item async for item in steps] == [1, 2, 3]
        with pytest.raises(StopAsyncIteration):
            await anext(steps)

    asyncio.run(work())
    assert (job_state.progress, job_state.message) == (Progress(3, 3), "Reading")


def test_track_works_in_either_loop(job_state: JobState) -> None:
    """What is iterable in both ways is tracked in either."""

    async def work() -> list[int]:
        return [item async for item in job_state.track(Either())]

    assert asyncio.run(work()) == [1, 2, 3]
    assert job_state.progress == Progress(3, 3)
    job_state.set_progress(0)
    either: Any = job_state.track(Either())
    assert list(either) == [3, 2, 1]
    assert job_state.progress == Progress(3, 3)


@pytest.mark.parametrize("fails", [False, True])
def test_track_that_is_left_closes_an_async_generator(
    job_state: JobState, fails: bool
) -> None:
    """A `break` or an exception in the loop's body closes the generator, as it does
    without track(). The current item does not count as done.
    """
    log: list[str] = []

    async def loop() -> None:
        async for _ in job_state.track(letters(log), 2):
            if fails:
                raise KeyError
            break

    async def work() -> None:
        with contextlib.suppress(KeyError):
            await loop()
        for _ in range(3):
            await asyncio.sleep(0)
        assert log == ["closed"]

    asyncio.run(work())
    assert job_state.progress == Progress(0, 2)


@pytest.mark.parametrize("end", ["cancel", "return"])
def test_track_that_may_not_go_on_closes_the_generator_first(
    run_job: RunJob, end: str
) -> None:
    """JobCancelled, or the error after the job's end, reaches the loop once the
    generator is closed. No more items follow.
    """
    log: list[str] = []

    async def stop(job_state: JobState, steps: Any) -> None:
        assert await anext(steps) == "a"
        if end == "cancel":
            cancel(job_state)
        with pytest.raises(JobCancelled if end == "cancel" else RuntimeError):
            await anext(steps)
        assert log == ["closed"]
        assert [item async for item in steps] == []
        assert job_state.progress == Progress(0, 2)

    kept: list[Any] = []

    def run(job_state: JobState) -> None:
        kept.extend([job_state, job_state.track(letters(log), 2)])
        if end == "cancel":
            asyncio.run(stop(*kept))

    run_job(run)
    if end == "return":
        asyncio.run(stop(*kept))


def test_track_can_be_closed(job_state: JobState) -> None:
    """contextlib.aclosing() closes a tracked iterable that can be closed."""
    closable = Closable()
    log: list[str] = []

    class Plain:
        __aiter__ = Closable.__aiter__
        __anext__ = Closable.__anext__
        left = ()

    async def work() -> None:
        what: Any
        for what in (closable, letters(log), Plain()):
            async with contextlib.aclosing(job_state.track(what, 2)) as steps:
                async for _ in steps:
                    break
            assert [item async for item in steps] == []

    asyncio.run(work())
    assert closable.closed == 1 and log == ["closed"]
