"""How a cancel reaches the code of an actor, in all its threads and tasks."""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing.pool import ThreadPool
from typing import Any, TypeVar

import pytest

from pyramid_jobstate import JobCancelled, JobState
from pyramid_jobstate.testing import cancel
from tests.actor.calls import CALLS, REPORTS

R = TypeVar("R")


@pytest.fixture
def cancelled(job_state: JobState) -> JobState:
    """What an actor has received whose job was cancelled since."""
    job_state.set_progress_metric("a", 5)
    job_state.set_progress(1, 2, "rows")
    cancel(job_state)
    return job_state


def count_cancels(job_state: JobState, calls: int = 3) -> int:
    """Report, and return how many calls have raised JobCancelled."""
    told = 0
    for _ in range(calls):
        try:
            job_state.set_progress_metric("a", 1)
        except JobCancelled:
            told += 1
    return told


def in_thread(call: Callable[[], R]) -> R:
    """Return the result of a call in a separate thread."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(call).result()


@pytest.mark.parametrize("name", REPORTS)
def test_next_call_raises_the_cancel(cancelled, name):
    """It raises JobCancelled, and changes nothing. The one after it reports."""
    assert cancelled.cancel_requested

    def seen() -> list[Any]:
        return [read(cancelled) for _, read in CALLS.values()]

    before = seen()
    with pytest.raises(JobCancelled, match="The job was cancelled"):
        REPORTS[name](cancelled)
    assert seen() == before
    REPORTS[name](cancelled)
    assert (seen() == before) is (name == "raise_if_cancelled")


def test_except_exception_lets_the_cancel_pass():
    """JobCancelled is an Interrupt, as Dramatiq's own are."""
    assert not issubclass(JobCancelled, Exception)


def test_own_thread_is_told_once(cancelled):
    """The job's own thread is told once. Other threads are told at every call."""
    assert in_thread(lambda: count_cancels(cancelled)) == 3
    assert count_cancels(cancelled) == 1
    assert in_thread(lambda: count_cancels(cancelled)) == 3


def test_each_task_is_told_once(cancelled):
    """In whatever thread it runs. A thread it hands work to is told at every call."""

    async def count() -> int:
        return count_cancels(cancelled)

    async def work() -> Any:
        told = await asyncio.gather(count(), count())
        return told, await asyncio.to_thread(count_cancels, cancelled)

    assert asyncio.run(work()) == ([1, 1], 3)
    assert in_thread(lambda: asyncio.run(work())) == ([1, 1], 3)


@pytest.mark.parametrize("is_own", [True, False])
def test_clean_up_may_report(cancelled, is_own):
    """No call raises again in a handler, whichever thread noticed the cancel first."""
    with pytest.raises(JobCancelled) as raised:
        in_thread(lambda: cancelled.set_message("noticed elsewhere"))

    def clean_up() -> None:
        try:
            raise raised.value
        except JobCancelled as e:
            cancelled.set_message("in the handler")
            group = BaseExceptionGroup("of a task group", [OSError(), e])
        # Outside of that handler, so that it has no context.
        try:
            raise group
        except BaseExceptionGroup:
            cancelled.set_message("in the handler of a group")

    (clean_up if is_own else lambda: in_thread(clean_up))()
    assert cancelled.message == "in the handler of a group"
    assert count_cancels(cancelled) == (0 if is_own else 1)


def test_other_exceptions_keep_no_cancel_back(cancelled):
    """A call in the handler of something else is told."""

    def handle() -> int:
        try:
            raise OSError("no cancel")
        except OSError:
            return count_cancels(cancelled, 1)

    assert in_thread(handle) == 1
    assert handle() == 1


def test_tasks_may_clean_up(cancelled):
    """A task that was told may report from tasks and threads, such as the tasks of
    `asyncio.wait_for` up to Python 3.11. One that is cancelled for that may report.
    """
    is_waiting = asyncio.Event()
    done: list[str | None] = []

    async def report(name: str) -> None:
        cancelled.set_message(name)

    async def hear() -> None:
        await is_waiting.wait()
        try:
            cancelled.set_progress(1)
        finally:
            await asyncio.wait_for(report("waited for"), 5)
            await asyncio.gather(report("one"), report("two"))
            await asyncio.to_thread(cancelled.set_message, "in a thread")
            done.append(cancelled.message)

    async def wait() -> None:
        try:
            is_waiting.set()
            await asyncio.sleep(10)
        finally:
            cancelled.set_message("cleaned up")
            done.append(cancelled.message)

    async def work() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(wait())
            group.create_task(hear())

    with pytest.raises(BaseExceptionGroup):
        asyncio.run(work())
    assert done == ["in a thread", "cleaned up"]


def test_callback_of_a_future_may_report(job_state):
    """An exception would end a thread of the pool, and no other future be done."""
    called: list[Future[None]] = []

    def call_back(future: Future[None]) -> None:
        job_state.set_message("called back")
        called.append(future)

    with ThreadPoolExecutor(1) as pool:
        pool.submit(cancel, job_state)
        futures = [pool.submit(time.sleep, 0.01) for _ in range(5)]
        for future in futures:
            future.add_done_callback(call_back)
        for future in futures:
            future.result(timeout=10)
    assert len(called) == 5


def test_pool_stops(cancelled):
    """A pool's threads do not go on with the rest of the work, and the caller who waits
    for it is told. In threads of multiprocessing's pool JobCancelled is an Exception,
    too, since nothing else reaches the caller.
    """
    began: list[int] = []

    def work(number: int) -> None:
        cancelled.set_progress(number)
        began.append(number)

    with ThreadPoolExecutor(2) as executor:
        for future in [executor.submit(work, n) for n in range(400)]:
            with pytest.raises(JobCancelled):
                future.result(timeout=10)
    with ThreadPool(2) as pool, pytest.raises(JobCancelled):
        pool.map_async(work, range(20)).get(timeout=10)
    assert began == []
