"""Where a running job is, as its worker answers."""

import asyncio
import concurrent.futures
import contextlib
import functools
import gc
import re
import sys
import threading
import time
from collections.abc import (
    AsyncIterator,
    Callable,
    Coroutine,
    Generator,
    Iterator,
)
from typing import Any

import greenlet
import pytest
import redis
from dramatiq.middleware import AsyncIO

from pyramid_jobstate import JobState, JobStateMiddleware, JobStore, Whereabouts
from pyramid_jobstate.testing import pass_time
from tests.cluster import cluster_of_one
from tests.incaller import InCallerBroker
from tests.jobs import (
    Gate,
    RunMarathon,
    job_actor,
    make_broker,
    new_id,
    store_of,
    wait_until,
    working,
)
from tests.running import running
from tests.support import in_child, key_of, wait_for, write
from tests.webapp import make_alias


def answer(store: JobStore, uuid: str) -> Whereabouts | None:
    """Return where a job is if its worker has answered, or None."""
    where = store.where(uuid)
    return where if where is not None and where.taken_at is not None else None


def asked(store: JobStore, uuid: str) -> Whereabouts:
    """Ask where a job is, and return the answer."""
    assert store.ask_where(uuid)
    return wait_for(lambda: answer(store, uuid))


def calls(where: Whereabouts) -> list[str]:
    """Return the functions of the tests in a stack, the innermost last."""
    assert where.stack is not None
    return re.findall(r'^  File "[^"]*/tests/.*, in (\w+)$', where.stack, re.MULTILINE)


def found_at(redis_url: str, gate: Gate, function: Callable[..., Any]) -> Whereabouts:
    """Return where the job of a function is when it has come to a gate."""
    broker = make_broker(redis_url, others=(AsyncIO(),))
    actor = job_actor(broker=broker, actor_name="go", job_state=RunMarathon)(function)
    with working(broker):
        sent = actor.send()
        gate.wait_for_job()
        where = asked(store_of(broker), sent.message_id)
        gate.open()
        wait_until(broker, sent, "success")
    return where


async def stand(gate: Gate) -> None:
    gate.reached.set()
    while not gate.opened.is_set():
        await asyncio.sleep(0.01)


@pytest.mark.promise("where-a-job-is")
def test_job_says_where_it_is(redis_url: str, store: JobStore) -> None:
    """The answer has the stack, the innermost call last, and what runs it. It has no
    values, which may be secret.
    """
    broker, gate = make_broker(redis_url), Gate()

    def run_far(word: str) -> None:
        gate.wait()

    @job_actor(broker=broker)
    def run_marathon(word: str, *, job_state: RunMarathon) -> None:
        run_far(word)

    with working(broker):
        sent = run_marathon.send("s3cret")
        gate.wait_for_job()
        assert store.where(sent.message_id) is None
        where = asked(store, sent.message_id)
        assert calls(where) == ["run_marathon", "run_far", "wait"]
        assert where.stack is not None and "\n    run_far(word)\n" in where.stack
        assert "s3cret" not in str(where) and "process_message" not in where.stack
        assert where.worker == store.workers()[0].id
        assert where.thread is not None and where.thread.startswith("Thread-")
        assert where.memory is not None and where.memory > 1_000_000
        assert where.taken_at is not None and where.taken_at >= where.asked_at
        gate.open()


def test_each_job_says_where_it_is_itself(redis_url: str, store: JobStore) -> None:
    """Others run in the same process, and report all the time."""
    broker = make_broker(redis_url)
    gate = Gate()

    @job_actor(broker=broker)
    def run_marathon(step: str, *, job_state: RunMarathon) -> None:
        def swim() -> None:
            gate.wait()

        def run() -> None:
            while not gate.opened.is_set():
                job_state.set_progress_metric("time", time.monotonic())
                time.sleep(0.001)

        {"swim": swim, "run": run}[step]()

    with working(broker):
        run = run_marathon.send("run")
        wait_until(broker, run, "working")
        assert calls(asked(store, run.message_id)) == ["run_marathon", "run"]
        swim = run_marathon.send("swim")
        gate.wait_for_job()
        assert calls(asked(store, swim.message_id))[1] == "swim"
        gate.open()


def test_job_is_asked_once_a_second(redis_url: str, store: JobStore) -> None:
    """Further requests get the same answer. It is kept for five minutes."""
    with running(redis_url) as runs:
        run = runs.start()
        first = asked(store, run.uuid)
        assert store.ask_where(run.uuid) and store.where(run.uuid) == first
        pass_time(store, 1)
        again = asked(store, run.uuid)
        assert again.taken_at is not None and first.taken_at is not None
        assert again.taken_at > first.taken_at
        pass_time(store, 299)
        assert store.where(run.uuid) is not None
        pass_time(store, 2)
        assert store.where(run.uuid) is None


def test_job_that_does_not_run_is_not_asked(redis_url: str, store: JobStore) -> None:
    """It is queued, has ended, or is unknown. What it has said stays until it is
    deleted.
    """
    with running(redis_url) as runs:
        run = runs.start()
        assert not store.ask_where(new_id())
        asked(store, run.uuid)
        run.end()
        assert not store.ask_where(run.uuid)
        assert store.where(run.uuid) is not None
        assert store.delete(run.uuid)
        assert store.where(run.uuid) is None
    queued = runs.actor(RunMarathon).send(26)
    assert not store.ask_where(queued.message_id)


def test_answer_of_another_run_is_dropped(redis_url: str, store: JobStore) -> None:
    """A newer run of the job has begun elsewhere meanwhile."""
    broker = make_broker(redis_url, JobStateMiddleware(interval=0.5))
    gate = Gate()

    @job_actor(broker=broker)
    def run_marathon(*, job_state: RunMarathon) -> None:
        gate.wait()

    with working(broker):
        sent, other = run_marathon.send(), run_marathon.send()
        for message in sent, other:
            wait_until(broker, message, "working")
        assert store.ask_where(sent.message_id)
        write(store, sent.message_id, run="another")
        for _ in range(2):
            # By the second time, the worker has come to the first request.
            asked(store, other.message_id)
            pass_time(store, 1)
        where = store.where(sent.message_id)
        assert where is not None and where.taken_at is None and where.stack is None
        gate.open()


def test_deep_stack_is_cut(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its innermost frames stay, in 64 KiB, and Python's limit does not hold for it."""
    monkeypatch.setattr(sys, "tracebacklimit", 1, raising=False)
    gate = Gate()

    def odd(depth: int) -> None:
        even(depth - 1)

    def even(depth: int) -> None:
        if depth:
            odd(depth - 1)
        else:
            gate.wait()

    where = found_at(redis_url, gate, lambda: even(900))
    assert where.stack is not None and len(where.stack.encode()) <= 64 * 1024
    assert len(where.stack) > 60 * 1024
    assert calls(where)[-3:] == ["odd", "even", "wait"]


def test_coroutine_says_where_it_is(redis_url: str, store: JobStore) -> None:
    """It is suspended, several calls deep, as others of the same actor are."""
    broker = make_broker(redis_url, others=(AsyncIO(),))
    gate = Gate()

    async def swim() -> None:
        await stand(gate)

    async def run() -> None:
        await stand(gate)

    @job_actor(broker=broker)
    async def run_marathon(is_wet: bool, *, job_state: RunMarathon) -> None:
        await (swim() if is_wet else run())

    with working(broker):
        for is_wet, step in ((True, "swim"), (False, "run")):
            gate.reached.clear()
            sent = run_marathon.send(is_wet)
            gate.wait_for_job()
            where = asked(store, sent.message_id)
            assert calls(where) == ["run_marathon", step, "stand"]
            assert where.stack is not None
            assert where.stack.endswith("return await future\n")
        gate.open()


class Wrapper:
    """Awaits a coroutine, as the request of an HTTP client does."""

    def __init__(self, coroutine: Coroutine[Any, Any, None]) -> None:
        self.coroutine = coroutine

    def __await__(self) -> Generator[Any, None, None]:
        return self.coroutine.__await__()


class Stranger(Wrapper):
    """Is its own iterator, and has any attribute."""

    def __await__(self) -> Any:
        return self

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        return self.coroutine.send(None)

    def __getattr__(self, name: str) -> Any:
        return self


async def steps(gate: Gate) -> AsyncIterator[None]:
    try:
        yield
    finally:
        await stand(gate)


async def wait_for_wrapped(gate: Gate) -> None:
    await Wrapper(stand(gate))


async def wait_for_stranger(gate: Gate) -> None:
    await Stranger(stand(gate))


async def wait_for_step(gate: Gate) -> None:
    async for _ in steps(gate):
        pass


async def wait_for_any_step(gate: Gate) -> None:
    course = steps(gate)
    await anext(course)
    await anext(course, None)


async def wait_for_error(gate: Gate) -> None:
    with contextlib.suppress(KeyError):
        async with contextlib.asynccontextmanager(steps)(gate):
            raise KeyError


async def wait_for_close(gate: Gate) -> None:
    course = steps(gate)
    await anext(course)
    await course.aclose()  # type: ignore[attr-defined]


async def block(gate: Gate) -> None:
    gate.wait()


def wait_for_a_loop(gate: Gate) -> None:
    asyncio.run(stand(gate))


def wait_for_a_blocked_loop(gate: Gate) -> None:
    asyncio.run(block(gate))


def wait_for_a_thread(gate: Gate) -> None:
    with concurrent.futures.ThreadPoolExecutor() as pool:
        pool.submit(gate.wait)


STEPS = ["steps", "stand"]


@pytest.mark.parametrize(
    ("waiting", "inner"),
    [
        (wait_for_wrapped, ["stand"]),
        (wait_for_stranger, []),
        (wait_for_step, STEPS),
        (wait_for_any_step, STEPS),
        (wait_for_error, STEPS),
        (wait_for_close, STEPS),
        (block, ["wait"]),
        (wait_for_a_loop, ["stand"]),
        (wait_for_a_blocked_loop, ["block", "wait"]),
        (wait_for_a_thread, []),
    ],
)
def test_stack_leads_through_all_that_a_job_waits_for(
    redis_url: str, waiting: Callable[[Gate], Any], inner: list[str]
) -> None:
    """Loops that are blocked, a wrapper's iterator, and asynchronous generators. Not
    other threads, nor what may have any attribute, itself for one.
    """
    gate = Gate()
    where = found_at(redis_url, gate, functools.partial(waiting, gate))
    assert calls(where) == [waiting.__name__, *inner]


@pytest.mark.parametrize("blocks", [False, True])
def test_loop_without_frames_says_where_it_is(redis_url: str, blocks: bool) -> None:
    """Those of uvloop are compiled."""
    uvloop, gate = pytest.importorskip("uvloop"), Gate()

    def run_marathon() -> None:
        uvloop.run(block(gate) if blocks else stand(gate))

    inner = ["block", "wait"] if blocks else ["stand"]
    found = calls(found_at(redis_url, gate, run_marathon))
    assert found == ["run_marathon", *inner]


def test_greenlets_say_where_they_are(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that wait are in no thread's stack. Each job of a thread has its own."""
    # Python refuses to lengthen a tuple that anything else has got hold of.
    monkeypatch.delattr(gc, "get_objects")
    monkeypatch.delattr(gc, "get_referrers")
    ours = JobStateMiddleware(url=redis_url, interval=0.01)
    broker = InCallerBroker([ours])
    main = greenlet.getcurrent()
    seen: list[str] = []

    def swim() -> None:
        main.switch()

    def run() -> None:
        main.switch()

    @job_actor(broker=broker)
    def run_marathon(is_wet: bool, *, job_state: JobState) -> None:
        seen.append(job_state.uuid)
        (swim if is_wet else run)()

    first, second = (greenlet.greenlet(run_marathon.send) for _ in range(2))
    first.switch(True)
    second.switch(False)
    store = store_of(broker)
    found = [calls(asked(store, uuid)) for uuid in seen]
    assert found == [["run_marathon", "swim"], ["run_marathon", "run"]]
    first.switch()
    second.switch()
    broker.emit_after("worker_shutdown", None)


def test_refused_question_leaves_the_garbage_collector_on(redis_url: str) -> None:
    """An audit hook of the application may forbid it."""

    def ask() -> str:
        broker = InCallerBroker([JobStateMiddleware(url=redis_url, interval=0.01)])
        refused = threading.Event()

        def refuse(event: str, arguments: Any) -> None:
            if event == "sys._current_frames":
                refused.set()
                raise PermissionError

        @job_actor(broker=broker)
        def run_marathon(*, job_state: JobState) -> None:
            assert store_of(broker).ask_where(job_state.uuid)
            assert refused.wait(20)
            wait_for(gc.isenabled)

        sys.addaudithook(refuse)
        run_marathon.send()
        return str(gc.isenabled())

    assert in_child(ask) == "True"


def test_job_inside_a_job(redis_url: str) -> None:
    """The outer one is where the inner one is. Without a worker, none is named."""
    broker = InCallerBroker([JobStateMiddleware(url=redis_url, interval=0.01)])
    store = store_of(broker)
    found: dict[str, Whereabouts] = {}

    @job_actor(broker=broker)
    def run_marathon(outer: str = "", *, job_state: JobState) -> None:
        if not outer:
            run_marathon.send(job_state.uuid)
            return
        for uuid in (outer, job_state.uuid):
            found[uuid] = asked(store, uuid)

    run_marathon.send()
    outer, inner = found.values()
    assert calls(inner)[0] == calls(outer)[0] == "run_marathon"
    assert calls(outer).count("run_marathon") == 2
    assert calls(inner).count("run_marathon") == 1
    assert (inner.worker, outer.worker) == (None, None)
    broker.emit_after("worker_shutdown", None)


def test_source_and_names_may_be_anything(redis_url: str) -> None:
    """What UTF-8 cannot say is replaced. A thread's name has 200 characters at most."""
    gate, name = Gate(), "<c>" + "ü" * 1000
    names: dict[str, Any] = {"gate": gate}
    exec(compile("def run():\n    gate.wait()", "/tests/\udcff<b>", "exec"), names)

    def run_marathon() -> None:
        threading.current_thread().name = "\udcff" + name
        names["run"]()

    where = found_at(redis_url, gate, run_marathon)
    assert where.stack is not None and '"/tests/?<b>", line 2' in where.stack
    assert where.thread == "?" + name[:199]


def test_job_is_asked_on_a_cluster(redis_url: str) -> None:
    """The request may be announced in another slot."""
    with cluster_of_one() as node:
        (port,) = re.findall(r":(\d+)", node.url)
        with redis.RedisCluster(host="127.0.0.1", port=int(port)) as cluster:
            store = JobStore(cluster)
            with running(redis_url, store=store) as runs:
                assert calls(asked(store, runs.start().uuid))[-1] == "live"


def test_alias_leads_to_the_job_that_is_asked(
    redis_url: str, store: JobStore, client: redis.Redis
) -> None:
    """A unique job was sent once more while it was under way."""
    with running(redis_url) as runs:
        run, alias = runs.start(), new_id()
        make_alias(client, key_of(store, alias), run.uuid)
        assert store.ask_where(alias)
        wait_for(lambda: answer(store, run.uuid))
        assert store.where(alias) == store.where(run.uuid)
