"""Waiting for jobs and following them, in threads and in asyncio."""

import asyncio
import concurrent.futures
import contextlib
import functools
import gc
import pickle
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis

from pyramid_jobstate import Batch, JobStalled, JobState, JobStore, rerun
from pyramid_jobstate.testing import put_batch
from tests.operated import Course, Pauses, steps
from tests.store.jobs import make_desk, put
from tests.support import UUID, frozen, in_child, key_of, load_job, wait_for, write
from tests.trips import met
from tests.webapp import make_alias

#: Lets time pass while the test waits: each time that it pauses, the next step.
Passing = Callable[[Course], Pauses]


@pytest.fixture
def passing(monkeypatch: pytest.MonkeyPatch) -> Passing:
    """Has the pauses of this thread take no time."""

    def start(course: Course) -> Pauses:
        pauses = Pauses(course)
        monkeypatch.setattr(time, "sleep", pauses.sleep)
        monkeypatch.setattr(time, "monotonic", pauses.monotonic)
        return pauses

    return start


def report(store: JobStore, uuid: str, done: int) -> None:
    """Write the progress of a job as its worker does."""
    write(store, uuid, progress=f"[{done}, 9, null, null]")


def finish(store: JobStore, *uuids: str) -> None:
    """Write the end of jobs."""
    for uuid in uuids:
        write(store, uuid, status="success")


async def last(jobs: Any) -> JobState:
    """Return the end of a job that is followed."""
    found: JobState = await jobs
    return found


def statuses(jobs: Any) -> list[str]:
    return [job.status for job in jobs]


@pytest.mark.promise("wait-sees-the-end")
def test_wait_returns_the_ended_job(store, passing):
    """One uuid gives the ended job, several a list in their order."""
    first, second = put(store, "working"), put(store, "queued")
    ended = put(store, "error")
    passing(steps(lambda: finish(store, second), lambda: finish(store, first)))
    jobs = store.wait(first, ended, second)
    assert [job.uuid for job in jobs] == [first, ended, second]
    assert statuses(jobs) == ["success", "error", "success"]
    assert store.wait(first).status == "success"
    assert [job.uuid for job in store.wait(first, first)] == [first, first]
    assert store.wait() == []


@pytest.mark.promise("wait-sees-the-end")
def test_follow_yields_each_change_that_it_sees(store, passing):
    """The state at first, each change, the end last, of whichever job has changed. A
    sign of life changes nothing.
    """
    first, second = put(store, "working"), put(store, "working")
    pauses = passing(
        steps(
            functools.partial(report, store, second, 1),
            functools.partial(write, store, second, seen=10**15, seq=7),
            functools.partial(finish, store, second),
            functools.partial(finish, store, first),
        )
    )
    seen = [
        (job.uuid, job.status, job.progress and job.progress.done)
        for job in store.follow(first, second)
    ]
    assert seen == [
        (first, "working", None),
        (second, "working", None),
        (second, "working", 1),
        (second, "success", 1),
        (first, "success", None),
    ]
    assert len(pauses.slept) == 4


def test_looks_are_frequent_while_something_moves(store, passing):
    """Ten looks a second while a job changes, one a second after a second of quiet, and
    ten again as soon as it changes.
    """
    uuid = put(store, "working")

    def course() -> Iterator[None]:
        for done in range(30):
            report(store, uuid, done)
            yield
        quiet.append(len(pauses.slept))
        for _ in range(20):
            yield
        quiet.append(len(pauses.slept))
        report(store, uuid, 50)
        yield
        finish(store, uuid)

    quiet: list[int] = []
    pauses = passing(course())
    store.wait(uuid, stalled=None)
    moving, calm = pauses.slept[:30], pauses.slept[quiet[0] : quiet[1]]
    # On a busy machine, a look may take longer.
    assert statistics.median(moving) == pytest.approx(0.1)
    assert sum(pause == 1 for pause in calm) >= 10
    assert calm == sorted(calm)
    assert pauses.slept[-1] < 0.5


def test_unknown_job_is_a_key_error_at_once(store, passing):
    """Nothing is waited for if a job is unknown at the first look, even if Redis could
    not be asked for its name.
    """
    pauses = passing(steps())
    for name in UUID, "", "nope", "\ud800":
        with pytest.raises(KeyError) as e:
            store.wait(put(store, "working"), name)
        assert e.value.args == (name,)
    assert pauses.slept == []


def test_job_whose_record_goes(store, passing):
    """A record may be missing for `stalled_after`, since its worker writes it again."""
    uuid = put(store, "working")
    kept: Any = store.client.dump(key_of(store, uuid))
    lose = functools.partial(store.client.delete, key_of(store, uuid))
    restore = functools.partial(store.client.restore, key_of(store, uuid), 0, kept)
    passing(
        steps(
            lose, *[lambda: None] * 15, restore, functools.partial(finish, store, uuid)
        )
    )
    assert store.wait(uuid, stalled=None).status == "success"
    store.client.delete(key_of(store, uuid))
    store.client.restore(key_of(store, uuid), 0, kept)
    pauses = passing(steps(lose))
    with pytest.raises(KeyError, match=uuid):
        store.wait(uuid)
    assert store.stalled_after < sum(pauses.slept) < store.stalled_after + 2


def test_stalled_job_ends_the_wait(store, passing):
    """A job that is stalled for longer than `stalled` raises JobStalled, which names
    it. Without a limit only the timeout counts.
    """
    uuid = put(store, "stalled")
    pauses = passing(steps())
    with pytest.raises(JobStalled, match=f"{uuid} has been stalled for 5 sec") as e:
        store.wait(uuid, stalled=5)
    copy = pickle.loads(pickle.dumps(e.value))
    for error in e.value, copy:
        assert (error.uuid, str(error)) == (uuid, str(e.value))
    assert 5 <= sum(pauses.slept) < 7
    with pytest.raises(TimeoutError) as late:
        store.wait(uuid, stalled=None, timeout=100)
    assert not isinstance(late.value, JobStalled)


def test_job_that_is_heard_of_again_is_not_stalled(store, passing):
    """The time of `stalled` begins anew."""
    uuid = put(store, "stalled")

    def course() -> Iterator[None]:
        for _ in range(2):
            write(store, uuid, seen=1)
            yield from [None] * 13
            write(store, uuid, seen=10**15)
            yield
        finish(store, uuid)

    passing(course())
    assert store.wait(uuid, stalled=7).status == "success"


@pytest.mark.promise("wait-ends-in-time")
def test_timeout_says_what_has_not_ended(store, passing):
    """The wait gives up in time, and looks once even without any."""
    first, second = put(store, "queued"), put(store, "queued")
    pauses = passing(steps())
    with pytest.raises(TimeoutError, match=f"{first} has not ended after 2.5 s") as e:
        store.wait(first, timeout=2.5)
    assert 2 < sum(pauses.slept) <= 2.5
    assert e.value.__cause__ is None
    with pytest.raises(TimeoutError, match=f"{first} and 1 more have not ended"):
        store.wait(first, second, timeout=0.1)
    with pytest.raises(TimeoutError, match=r"after 1 second\.$"):
        store.wait(first, timeout=1)
    finish(store, first)
    assert store.wait(first, timeout=0).is_success


def test_slow_consumer_gets_what_happened_in_time(store, passing):
    """Time that passes between two looks hides no end: after the timeout, the last look
    is still to come.
    """
    uuid = put(store, "working")
    pauses = passing(steps())
    seen = []
    for job in store.follow(uuid, timeout=1):
        seen.append(job.status)
        pauses.passed += 1.5
        finish(store, uuid)
    assert seen == ["working", "success"]


def test_end_during_the_last_look_counts(store, passing):
    """If the answer comes after the timeout, another look tells what was in time."""
    uuid = put(store, "working")
    store.load(uuid)
    pauses = passing(steps())
    looks = 0

    def meet(connection: Any, go: Callable[[], Any]) -> None:
        nonlocal looks
        looks += 1
        go()
        if looks == 1:
            assert connection.can_read(20)
            finish(store, uuid)
            pauses.passed += 2

    with met(meet):
        assert store.wait(uuid, timeout=1).is_success


def test_errors_about_one_job_leave_the_others(store, passing):
    """Who goes on with next() gets the changes of the other jobs."""
    stalled, working = put(store, "stalled"), put(store, "working")
    passing(steps(lambda: None, functools.partial(finish, store, working)))
    jobs = store.follow(UUID, stalled, working, stalled=0)
    with pytest.raises(KeyError):
        next(jobs)
    assert statuses([next(jobs), next(jobs)]) == ["stalled", "working"]
    with pytest.raises(JobStalled):
        next(jobs)
    assert statuses(jobs) == ["success"]


def test_end_that_was_seen_counts(store, passing):
    """A job that runs again after its end was seen has ended for this wait."""
    broker, _ = make_desk(store)
    failed, other = put(store, "error"), put(store, "working")
    passing(
        steps(
            lambda: rerun(store, broker, failed),
            functools.partial(finish, store, other),
        )
    )
    assert statuses(store.wait(failed, other)) == ["error", "success"]
    assert load_job(store, failed).status == "queued"


def test_aliases_and_batches(store, passing, client):
    """An alias leads to the job in its place, and a batch ends with its members."""
    target = put(store, "working")
    make_alias(client, key_of(store, UUID), target)
    batch = put_batch(store, Batch, ["queued"])
    (member,) = store.members(batch.uuid).items
    passing(steps(functools.partial(finish, store, target), member.cancel))
    first, second = store.wait(UUID, batch.uuid)
    assert (first.uuid, first.status) == (UUID, "success")
    assert (second.uuid, second.status) == (batch.uuid, "cancelled")


def test_store_that_is_away_is_asked_again(store, passing, proxy):
    """The wait outlasts an outage at the start and later, and what the job does
    meanwhile.
    """
    uuid = put(store, "working")
    proxy.judge = lambda request: "refuse"

    def course() -> Iterator[None]:
        yield
        proxy.judge = lambda request: "pass"
        yield
        proxy.judge = lambda request: "refuse"
        finish(store, uuid)
        yield from [None] * 4
        proxy.judge = lambda request: "pass"

    passing(course())
    seen = statuses(JobStore(proxy.url).follow(uuid))
    assert seen == ["working", "success"]


def test_second_consumer_is_refused(store):
    """Of two threads or tasks that share one object, only one can wait, as with a
    generator. They may take turns.
    """
    uuid = put(store, "working")
    jobs = store.follow(uuid, timeout=9)
    next(jobs)
    with concurrent.futures.ThreadPoolExecutor() as pool:
        first = pool.submit(list, jobs)
        time.sleep(0.05)
        with pytest.raises(RuntimeError, match="follows these jobs already"):
            next(jobs)
        finish(store, uuid)
        assert statuses(first.result()) == ["success"]
    assert statuses(jobs) == []

    async def work() -> Any:
        jobs = store.follow(put(store, "working"), timeout=0.2)
        first, second = (anext(jobs) for _ in range(2))
        return await asyncio.gather(first, second, return_exceptions=True)

    first_job, error = asyncio.run(work())
    assert (first_job.status, type(error)) == ("working", RuntimeError)


def test_store_that_stays_away(store, passing, proxy):
    """The timeout has the store's error as its cause. A store that is away is asked at
    most once a second after a while.
    """
    uuid = put(store, "working")
    proxy.judge = lambda request: "refuse"
    pauses = passing(steps())
    with pytest.raises(TimeoutError, match=uuid) as e:
        JobStore(proxy.url).wait(uuid, timeout=12)
    assert isinstance(e.value.__cause__, redis.ConnectionError)
    assert 11 < len(pauses.slept) < 22
    assert sum(pauses.slept) <= 12


def test_outage_stalls_no_job(store, passing, proxy):
    """An outage does not count as time for which a job is stalled: its worker could not
    write.
    """
    uuid = put(store, "stalled")

    def course() -> Iterator[None]:
        yield
        proxy.judge = lambda request: "refuse"
        yield from [None] * 30
        proxy.judge = lambda request: "pass"
        yield
        finish(store, uuid)

    passing(course())
    assert JobStore(proxy.url).wait(uuid, stalled=5).is_success


def test_time_before_an_outage_counts(store, passing, proxy):
    """A store that answers only every other time hides no stalled job."""

    def course() -> Iterator[None]:
        while True:
            proxy.judge = lambda request: "refuse"
            yield
            proxy.judge = lambda request: "pass"
            yield

    passing(course())
    with pytest.raises(JobStalled):
        JobStore(proxy.url).wait(put(store, "stalled"), stalled=5)


def test_refusal_is_raised_at_once(store, passing, redis_url):
    """What asking again does not cure is not waited for."""
    uuid = put(store, "working")
    store.client.acl_setuser("ann", enabled=True, nopass=True, categories=["+@all"])
    pauses = passing(steps())
    url = redis_url.replace("redis://", "redis://ann:x@")
    try:
        with pytest.raises(redis.ResponseError):
            JobStore(url).wait(uuid)
    finally:
        store.client.acl_deluser("ann")
    assert pauses.slept == []


@pytest.mark.promise("wait-ends-in-time")
def test_frozen_store_delays_a_timeout_by_a_second(server):
    """A store that keeps its connections and answers nothing does not hold the wait for
    long. In asyncio, neither does a client without a socket timeout.
    """
    store, patient = JobStore(server.url), JobStore(redis.Redis.from_url(server.url))
    uuid = put(store, "working")
    with frozen(server):
        began = time.monotonic()
        with pytest.raises(TimeoutError) as e:
            store.wait(uuid, timeout=0.2)
        assert time.monotonic() - began < 2.5
        assert isinstance(e.value.__cause__, redis.TimeoutError)
        began = time.monotonic()
        with pytest.raises(TimeoutError, match="The store has not answered after"):
            asyncio.run(last(patient.follow(uuid, timeout=0.2)))
        assert time.monotonic() - began < 2.5


def test_bad_arguments(store):
    """They are refused before anybody waits."""
    cases: list[tuple[Any, dict[str, Any], type[Exception]]] = [
        (["a"], {}, TypeError),
        (7, {}, TypeError),
        (UUID, {"timeout": "1"}, TypeError),
        (UUID, {"timeout": -1}, ValueError),
        (UUID, {"stalled": float("nan")}, ValueError),
        (UUID, {"stalled": True}, TypeError),
    ]
    for wait in store.follow, store.wait:
        for uuid, options, error in cases:
            with pytest.raises(error, match=r"must be|is named by its uuid"):
                wait(uuid, **options)


# In asyncio.


@pytest.mark.promise("wait-sees-the-end")
def test_await_returns_the_ended_job(store):
    """`await` gives what wait() returns, and the loop goes on meanwhile. An async loop
    gets each change.
    """
    uuid, other = put(store, "working"), put(store, "working")

    async def changes() -> list[Any]:
        seen = []
        async for job in store.follow(uuid):
            seen.append((job.status, job.progress and job.progress.done))
            report(store, uuid, len(seen))
            if len(seen) == 2:
                finish(store, uuid, other)
        return seen

    async def work() -> Any:
        jobs = store.follow(uuid)
        one, seen = await asyncio.gather(last(jobs), changes())
        return one, seen, await jobs, await store.follow(uuid, other)

    one, seen, again, both = asyncio.run(work())
    assert seen == [("working", None), ("working", 1), ("success", 2)]
    assert (one.uuid, one.status) == (uuid, "success")
    assert [job.uuid for job in both] == [uuid, other]
    assert again is one


def test_async_errors(store, proxy):
    """They are those of wait(). Who awaits the same object again gets what was raised
    first.
    """
    uuid, stalled = put(store, "queued"), put(store, "stalled")

    async def work() -> None:
        with pytest.raises(KeyError):
            await store.follow(UUID)
        jobs = store.follow(stalled, put(store, "working"), stalled=0)
        for _ in range(3):
            with pytest.raises(JobStalled, match=stalled):
                await jobs
        with pytest.raises(TimeoutError, match="has not ended after"):
            await store.follow(uuid, timeout=0.2)
        proxy.judge = lambda request: "refuse"
        with pytest.raises(TimeoutError) as e:
            await JobStore(proxy.url).follow(uuid, timeout=0.2)
        assert isinstance(e.value.__cause__, redis.ConnectionError)

    asyncio.run(work())


def test_one_thread_looks_for_all_tasks(redis_url):
    """One is enough while the store does not answer, and leaves those of the loop to
    what else that has for them. A look that finds the store away answers for all.
    """
    store = JobStore(redis_url)
    uuids = [put(store, "working") for _ in range(40)]
    hangs, over = threading.Event(), threading.Event()
    trips: list[Any] = []

    def meet(connection: Any, go: Callable[[], Any]) -> Any:
        trips.append(connection)
        hangs.set()
        assert over.wait(20)
        raise redis.ConnectionError

    async def work() -> Any:
        found = [last(store.follow(uuid, timeout=0)) for uuid in uuids]
        waits = asyncio.gather(*found, return_exceptions=True)
        assert await asyncio.to_thread(hangs.wait, 20)
        names = [thread.name for thread in threading.enumerate()]
        assert names.count("jobstate-looks") == 1
        over.set()
        return await waits

    with met(meet, lambda: threading.current_thread().name == "jobstate-looks"):
        errors = asyncio.run(work())
    assert {*map(type, errors)} == {TimeoutError}
    assert len(trips) < 10


def test_hung_look_holds_up_others_for_seconds(store, proxy):
    """A connection may die without a word. Then another thread looks."""
    uuid, other = put(store, "working"), put(store, "success")
    own = JobStore(redis.Redis.from_url(proxy.url, socket_timeout=None))
    hangs, over = threading.Event(), threading.Event()

    def judge(request: bytes) -> str:
        if uuid.encode() in request:
            hangs.set()
            over.wait(30)
        return "pass"

    async def work() -> JobState:
        hung = asyncio.ensure_future(last(own.follow(uuid, timeout=None)))
        assert await asyncio.to_thread(hangs.wait, 20)
        found = await last(own.follow(other, timeout=None))
        finish(store, uuid)
        over.set()
        assert (await hung).is_success
        return found

    proxy.judge = judge
    began = time.monotonic()
    assert asyncio.run(asyncio.wait_for(work(), 25)).is_success
    assert time.monotonic() - began < 10


def test_fork_takes_no_looks_along(store):
    """A child process waits for jobs of its own while its parent does."""
    uuid, other = put(store, "working"), put(store, "success")

    def wait() -> str:
        return asyncio.run(last(store.follow(other))).status

    async def work() -> tuple[str, JobState]:
        wait = asyncio.create_task(last(store.follow(uuid)))
        await asyncio.sleep(0.15)
        said = in_child(in_thread)
        finish(store, uuid)
        return said, await wait

    def in_thread() -> str:
        # A loop runs in this one.
        with concurrent.futures.ThreadPoolExecutor() as pool:
            return pool.submit(wait).result()

    said, job = asyncio.run(work())
    assert (said, job.status) == ("success", "success")


def test_cancelled_wait_loses_no_change(store, proxy):
    """A timeout of asyncio ends a wait at once, also amid a look, and the same object
    goes on afterwards.
    """
    uuid = put(store, "working")
    own = JobStore(proxy.url)

    async def work() -> list[str]:
        jobs = own.follow(uuid)
        first = await anext(jobs)
        finish(store, uuid)
        proxy.judge = lambda request: "late"
        for _ in range(3):
            began = time.monotonic()
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(anext(jobs), 0.25)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await jobs
            assert time.monotonic() - began < 0.65
        proxy.judge = lambda request: "pass"
        return statuses([first, await anext(jobs), await jobs])

    assert asyncio.run(work()) == ["working", "success", "success"]


def test_abandoned_follow_leaves_nothing(store, recwarn):
    """A loop that is left early leaves no thread, no task and no warning."""
    # Not what earlier tests have left.
    gc.collect()
    recwarn.clear()
    uuid = put(store, "working")
    threads = {*threading.enumerate()}
    for _ in store.follow(uuid):
        break
    store.follow(uuid)
    iter(store.follow(uuid))

    async def work() -> None:
        async for _ in store.follow(uuid):
            break
        store.follow(uuid)
        jobs = store.follow(uuid)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(jobs, 0.15)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.15):
                async for _ in store.follow(uuid):
                    pass
        await asyncio.sleep(0)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(work(), debug=True)
    gc.collect()
    # A look that was under way ends by itself.
    wait_for(lambda: {*threading.enumerate()} <= threads)
    assert [str(each.message) for each in recwarn] == []
