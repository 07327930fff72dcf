"""Where a running job is, as its worker answers."""

import asyncio
import concurrent.futures
import contextlib
import gc
import multiprocessing
import os
import re
import signal
import sys
import threading
import time
import weakref
from collections.abc import (
    AsyncGenerator,
    Callable,
    Coroutine,
    Generator,
    Iterator,
)
from typing import Any

import dramatiq
import greenlet
import pytest
import redis
from dramatiq.middleware import AsyncIO
from redis.backoff import NoBackoff
from redis.retry import Retry

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


#: Where the jobs of these tests wait.
gate = Gate()


@pytest.fixture(autouse=True)
def closed() -> None:
    gate.reached.clear()
    gate.opened.clear()


#: Runs a function as a job until it has come to the gate, and returns where it is then.
Found = Callable[[Callable[[], Any]], Whereabouts]


@pytest.fixture
def found(redis_url: str, store: JobStore) -> Found:
    """The job has to succeed after that."""
    broker = make_broker(redis_url, others=(AsyncIO(),))

    def run(act: Callable[[], Any]) -> Whereabouts:
        actor = dramatiq.actor(broker=broker, job_state=RunMarathon, max_retries=0)
        with working(broker):
            sent = actor(act).send()
            gate.wait_for_job()
            where = asked(store, sent.message_id)
            gate.open()
            wait_until(broker, sent, "success")
        return where

    return run


@pytest.fixture
def in_caller(redis_url: str) -> Iterator[InCallerBroker]:
    """A broker that runs jobs where they are sent, so that it has no worker."""
    broker = InCallerBroker([JobStateMiddleware(url=redis_url, interval=0.01)])
    yield broker
    broker.emit_after("worker_shutdown", None)


@pytest.mark.promise("where-a-job-is")
def test_job_says_where_it_is(redis_url, store):
    """The answer has the stack, the innermost call last, and what runs it. It has no
    values, which may be secret.
    """
    broker = make_broker(redis_url)

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


def test_each_job_says_where_it_is_itself(redis_url, store):
    """Others run in the same process, and report all the time."""
    broker = make_broker(redis_url)

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


def test_job_is_asked_once_a_second(redis_url, store, client):
    """Further requests get the same answer, also those for an alias of the job. It is
    kept for five minutes. A new run is asked at once.
    """
    with running(redis_url) as runs:
        run, alias = runs.start(), new_id()
        make_alias(client, key_of(store, alias), run.uuid)
        first = asked(store, alias)
        assert store.where(run.uuid) == first
        assert store.ask_where(run.uuid) and store.where(run.uuid) == first
        pass_time(store, 1)
        again = asked(store, run.uuid)
        assert again.taken_at is not None and first.taken_at is not None
        assert again.taken_at > first.taken_at
        pass_time(store, 299)
        assert store.where(run.uuid) is not None
        pass_time(store, 2)
        assert store.where(run.uuid) is None
        asked(store, run.uuid)
        write(store, run.uuid, run="another")
        assert store.ask_where(run.uuid)
        where = store.where(run.uuid)
        assert where is not None and where.taken_at is None


def test_job_that_does_not_run_is_not_asked(redis_url, store):
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


def test_answer_of_another_run_is_dropped(redis_url, store):
    """A newer run of the job has begun elsewhere meanwhile."""
    broker = make_broker(redis_url, JobStateMiddleware(interval=0.5))

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


def test_deep_stack_is_cut(found, monkeypatch):
    """Its innermost frames stay, in 64 KiB, whatever Python shows of tracebacks."""

    def odd(depth: int) -> None:
        even(depth - 1)

    def even(depth: int) -> None:
        if depth:
            odd(depth - 1)
        else:
            gate.wait()

    monkeypatch.setattr(sys, "tracebacklimit", 1, raising=False)
    where = found(lambda: even(900))
    assert where.stack is not None
    assert 60 * 1024 < len(where.stack.encode()) <= 64 * 1024
    assert calls(where)[-3:] == ["odd", "even", "wait"]


@pytest.mark.parametrize("end", ["x", "xx"])
def test_stack_is_cut_between_characters(found, end):
    """Of two stacks that differ by a byte at their ends, one would be cut amid one."""
    names: dict[str, Any] = {"gate": gate}
    exec(compile("def wait(): gate.wait()", end, "exec"), names)
    turns = "def even(n): odd(n - 1)\ndef odd(n): even(n - 1) if n > 0 else wait()"
    exec(compile(turns, "/tests/" + "ü" * 2000, "exec"), names)
    where = found(lambda: names["even"](60))
    assert where.stack is not None and calls(where)[-2:] == ["odd", "wait"]
    assert 60 * 1024 < len(where.stack.encode()) <= 64 * 1024


async def stand() -> None:
    gate.reached.set()
    while not gate.opened.is_set():
        await asyncio.sleep(0.01)


async def block() -> None:
    gate.wait()


def run_loop() -> None:
    asyncio.run(stand())


def block_loop() -> None:
    asyncio.run(block())


def wait_for_thread() -> None:
    with concurrent.futures.ThreadPoolExecutor() as pool:
        pool.submit(gate.wait)


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


async def wait_for_stranger() -> None:
    await Stranger(stand())


async def wait_for_wrapped() -> None:
    await Wrapper(stand())


async def steps() -> AsyncGenerator[None]:
    try:
        yield
    finally:
        await stand()


async def wait_for_step() -> None:
    async for _ in steps():
        pass


async def wait_for_any_step() -> None:
    course = steps()
    await anext(course)
    await anext(course, None)


async def wait_for_exit() -> None:
    async with contextlib.asynccontextmanager(steps)():
        pass


async def wait_for_error() -> None:
    with contextlib.suppress(KeyError):
        async with contextlib.asynccontextmanager(steps)():
            raise KeyError


async def wait_for_close() -> None:
    course = steps()
    await anext(course)
    await course.aclose()


@pytest.mark.parametrize(
    ("act", "inside"),
    [
        # Its coroutines cannot be asked, but its thread says what blocks it.
        (block, ["wait"]),
        (run_loop, ["stand"]),
        (block_loop, ["block", "wait"]),
        # A job's own thread waits for others.
        (wait_for_thread, []),
        # What is awaited may have any attribute, so it is not asked.
        (wait_for_stranger, []),
        (wait_for_wrapped, ["stand"]),
        (wait_for_step, ["steps", "stand"]),
        (wait_for_any_step, ["steps", "stand"]),
        (wait_for_exit, ["steps", "stand"]),
        (wait_for_error, ["steps", "stand"]),
        (wait_for_close, ["steps", "stand"]),
    ],
)
def test_whatever_a_job_waits_for_says_where_it_is(found, act, inside):
    """A job may wait in a loop, for a thread, or for whatever a coroutine awaits."""
    assert calls(found(act)) == [act.__name__, *inside]


@pytest.mark.parametrize(("act", "inside"), [(stand, "stand"), (block, "wait")])
def test_loop_without_frames_says_where_it_is(found, act, inside):
    """Those of uvloop are compiled."""
    uvloop = pytest.importorskip("uvloop")
    names = [act.__name__, inside] if act is block else [inside]
    assert calls(found(lambda: uvloop.run(act()))) == names


def test_coroutine_says_where_it_is(redis_url, store):
    """It is suspended, several calls deep, as others of the same actor are."""
    broker = make_broker(redis_url, others=(AsyncIO(),))

    async def swim() -> None:
        await stand()

    async def run() -> None:
        await stand()

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


def test_greenlets_say_where_they_are(in_caller, store):
    """Those that wait are in no thread's stack. Each job of a thread has its own."""
    main = greenlet.getcurrent()
    seen: list[str] = []

    def swim() -> None:
        main.switch()

    def run() -> None:
        main.switch()

    @job_actor(broker=in_caller)
    def run_marathon(is_wet: bool, *, job_state: JobState) -> None:
        seen.append(job_state.uuid)
        (swim if is_wet else run)()

    first, second = (greenlet.greenlet(run_marathon.send) for _ in range(2))
    first.switch(True)
    second.switch(False)
    found = [calls(asked(store, uuid)) for uuid in seen]
    assert found == [["run_marathon", "swim"], ["run_marathon", "run"]]
    first.switch()
    second.switch()


@pytest.mark.system
def test_greenlets_are_told_apart_without_touching_other_objects(redis_url):
    """Python refuses to lengthen a tuple that anything else has got hold of."""
    ours = JobStateMiddleware(url=redis_url, interval=0.01)
    broker = InCallerBroker([ours])
    main = greenlet.getcurrent()
    # Whoever went through all objects would hold them for a while.
    heap: list[list[Any]] = [[] for _ in range(500_000)]
    over = threading.Event()
    failed: list[Exception] = []
    seen: list[str] = []

    def make_tuples() -> None:
        while not over.is_set() and not failed:
            try:
                tuple(len([number]) for number in range(50))
            except Exception as e:
                failed.append(e)

    @job_actor(broker=broker)
    def run_marathon(*, job_state: JobState) -> None:
        seen.append(job_state.uuid)
        main.switch()

    job = greenlet.greenlet(run_marathon.send)
    job.switch()
    thread = threading.Thread(target=make_tuples)
    thread.start()
    try:
        for _ in range(5):
            assert calls(asked(store_of(broker), seen[0])) == ["run_marathon"]
            pass_time(store_of(broker), 1)
    finally:
        over.set()
        thread.join()
        heap.clear()
    assert failed == []
    job.switch()
    broker.emit_after("worker_shutdown", None)


def test_refused_question_leaves_the_garbage_collector_on(redis_url):
    """The collector is off while frames are read, which an audit hook may forbid."""

    def ask() -> str:
        states: list[bool] = []
        broker = InCallerBroker([JobStateMiddleware(url=redis_url, interval=0.01)])
        refused = threading.Event()

        def refuse(event: str, arguments: Any) -> None:
            if event == "sys._current_frames":
                states.append(gc.isenabled())
                refused.set()
                raise PermissionError

        @job_actor(broker=broker)
        def run_marathon(*, job_state: JobState) -> None:
            assert store_of(broker).ask_where(job_state.uuid)
            assert refused.wait(20)
            wait_for(gc.isenabled)

        sys.addaudithook(refuse)
        run_marathon.send()
        return f"{states} {gc.isenabled()}"

    assert in_child(ask) == "[False] True"


def test_job_inside_a_job(in_caller, store):
    """The outer one is where the inner one is. Without a worker, none is named."""
    found: dict[str, Whereabouts] = {}

    @job_actor(broker=in_caller)
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


def test_source_and_names_may_be_anything(found):
    """What UTF-8 cannot say is replaced. A thread's name is cut to 200 characters."""
    names: dict[str, Any] = {"gate": gate}
    exec(compile("def run():\n    gate.wait()", "/tests/\udcff<b>", "exec"), names)

    def run_marathon() -> None:
        threading.current_thread().name = ("\udcff" + "ü" * 198 + "<c>") * 1000
        names["run"]()

    where = found(run_marathon)
    assert where.stack is not None and '"/tests/?<b>", line 2' in where.stack
    assert where.thread == "?" + "ü" * 198 + "<"


@pytest.mark.parametrize("namespace", ["jobstate", "{jobstate}"])
def test_job_is_asked_on_a_cluster(redis_url, namespace):
    """The request may be announced in another slot."""
    with cluster_of_one() as node:
        (port,) = re.findall(r":(\d+)", node.url)
        with redis.RedisCluster(host="127.0.0.1", port=int(port)) as cluster:
            store = JobStore(cluster, namespace=namespace)
            with running(redis_url, store=store) as runs:
                assert calls(asked(store, runs.start().uuid))[-1] == "live"


def test_coroutine_that_was_asked_leaves_nothing(redis_url, store):
    """When it fails, its variables go without the garbage collector."""
    broker = make_broker(redis_url, others=(AsyncIO(),))
    left: list[weakref.ref[Gate]] = []

    @job_actor(broker=broker, throws=ValueError)
    async def run_marathon(*, job_state: RunMarathon) -> None:
        own = Gate()
        left.append(weakref.ref(own))
        await stand()
        raise ValueError

    with working(broker):
        gc.disable()
        try:
            sent = run_marathon.send()
            gate.wait_for_job()
            asked(store, sent.message_id)
            gate.open()
            wait_until(broker, sent, "error")
            wait_for(lambda: left[0]() is None)
        finally:
            gc.enable()


def test_jobs_of_a_blocked_loop_wait_for_it_once(redis_url, store):
    """If many of them are asked at once, all answer in time."""
    broker = make_broker(redis_url, others=(AsyncIO(),))
    blocker = Gate()
    begun: list[str] = []

    @job_actor(broker=broker)
    async def run_marathon(blocks: bool, *, job_state: RunMarathon) -> None:
        begun.append(job_state.uuid)
        if blocks:
            blocker.wait()
        await stand()

    with working(broker, threads=13):
        for blocks in [False] * 12 + [True]:
            run_marathon.send(blocks)
        blocker.wait_for_job()
        assert all(map(store.ask_where, begun))
        since = time.monotonic()
        wait_for(lambda: all(answer(store, uuid) for uuid in begun))
        assert time.monotonic() - since < 2.5
        blocker.open()
        gate.open()


def test_job_that_could_not_answer_is_asked_again(redis_url, store, monkeypatch):
    """The process could start no thread."""
    tried: list[threading.Thread] = []

    def start(thread: threading.Thread) -> None:
        tried.append(thread)
        raise RuntimeError("can't start new thread")

    with running(redis_url) as runs:
        run = runs.start()
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", start)
            assert store.ask_where(run.uuid)
            wait_for(lambda: tried)
        pass_time(store, 1)
        asked(store, run.uuid)


def test_job_is_asked_again_as_it_has_answered(redis_url, store, proxy):
    """Its worker does not know yet that the answer is stored."""
    own = JobStore(redis.Redis.from_url(proxy.url))
    with running(redis_url, store=own) as runs:
        run = runs.start()
        proxy.judge = lambda request: "late" if b"in live\n" in request else "pass"
        for _ in range(3):
            asked(store, run.uuid)
            pass_time(store, 1)


def test_jobs_that_were_asked_together_are_asked_again(redis_url, store, proxy):
    """The store was away when the first of them answered."""
    client = redis.Redis.from_url(proxy.url, retry=Retry(NoBackoff(), 0))
    with running(redis_url, store=JobStore(client)) as runs:
        jobs = [runs.start().uuid for _ in range(2)]
        proxy.judge = lambda request: "refuse" if b"in live\n" in request else "pass"
        assert all(map(store.ask_where, jobs))
        wait_for(lambda: proxy.faults["refuse"])
        proxy.judge = lambda request: "pass"
        for uuid in jobs:

            def has_answered(uuid: str = uuid) -> bool:
                return store.ask_where(uuid) and answer(store, uuid) is not None

            wait_for(has_answered)


def test_child_of_a_job_does_not_answer_for_it(in_caller, store):
    """It runs a job of its own, and would say where that is."""
    begun = multiprocessing.get_context("fork").Event()
    found: list[Whereabouts] = []

    @job_actor(broker=in_caller)
    def swim(*, job_state: JobState) -> None:
        begun.set()
        time.sleep(30)

    @job_actor(broker=in_caller)
    def run_marathon(*, job_state: RunMarathon) -> None:
        pid = os.fork()
        if not pid:
            swim.send()
        try:
            assert begun.wait(30)
            time.sleep(0.2)
            found.append(asked(store, job_state.uuid))
        finally:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)

    run_marathon.send()
    assert "swim" not in calls(found[0])
