"""Brokers that run a job within the call that sends it, for development and tests."""

import asyncio
import concurrent.futures
import contextlib
import gc
import importlib
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import dramatiq
import dramatiq.broker
import greenlet
import pytest
from dramatiq import group, pipeline
from dramatiq.asyncio import get_event_loop_thread
from dramatiq.middleware import (
    AgeLimit,
    AsyncIO,
    Callbacks,
    Middleware,
    MiddlewareError,
    Pipelines,
    Retries,
    SkipMessage,
)

from pyramid_jobstate import (
    JobCancelled,
    JobState,
    JobStateMiddleware,
    current_job_state,
)
from pyramid_jobstate.job.changes import NewJob
from pyramid_jobstate.job.record import CANCELLED, NOT_REACHED, JobError
from tests.incaller import InCallerBroker
from tests.jobs import (
    RunMarathon,
    job_actor,
    load,
    make_broker,
    messages,
    middleware_of,
    record_steps,
    store_of,
    wait_until,
)
from tests.jobs import working as worker_of
from tests.support import SENT
from tests.webapp import make_app, make_request, make_tm_config

#: The kinds of broker: one that emits as few signals as it can, one that emits all, and
#: the package, where it is installed.
KINDS: dict[str, Callable[..., Any]] = {
    "terse": InCallerBroker,
    "talkative": lambda *args, **options: InCallerBroker(
        *args, **options, tells_all=True
    ),
}
with contextlib.suppress(ImportError):
    KINDS["package"] = importlib.import_module("dramatiq_eager_broker").EagerBroker

InCaller = Callable[..., dramatiq.Broker]


class Stop(Middleware):
    """Stops the messages whose first argument is "stop" before they are processed."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def before_process_message(self, broker: Any, message: Any) -> None:
        if message.args[:1] == ("stop",):
            # A new exception each time, since its traceback would keep frames alive.
            raise type(self.error)(*self.error.args)


class RefusedError(MiddlewareError):
    pass


def stop(ours: JobStateMiddleware) -> None:
    """Stop a middleware that has no worker to stop it."""
    broker = InCallerBroker(())
    ours.after_worker_shutdown(broker, dramatiq.Worker(broker))


@pytest.fixture
def ours(redis_url: str) -> Iterator[JobStateMiddleware]:
    """The middleware of a broker that the test makes itself."""
    ours = JobStateMiddleware(url=redis_url, interval=0.01)
    yield ours
    stop(ours)


@pytest.fixture(params=KINDS)
def in_caller(request: pytest.FixtureRequest, redis_url: str) -> Iterator[InCaller]:
    """Makes a broker with the given middleware, and ours in place of None."""
    made = []

    def make(*others: Middleware | None, fail_fast: bool = True) -> dramatiq.Broker:
        ours = JobStateMiddleware(url=redis_url, interval=0.01)
        them = [m or ours for m in (others if None in others else (*others, None))]
        broker: dramatiq.Broker = KINDS[request.param](them, fail_fast=fail_fast)
        made.append(ours)
        return broker

    yield make
    for ours in made:
        stop(ours)


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """No test here may log that a run was overtaken."""
    yield
    assert messages(caplog, "pyramid_jobstate") == []


@pytest.mark.parametrize("fail_fast", [True, False])
def test_a_job_that_returns_is_a_success_at_once(
    in_caller: InCaller, fail_fast: bool
) -> None:
    """When `send` returns, the job is a success, with all that it reported."""
    broker = in_caller(fail_fast=fail_fast)

    @job_actor(broker=broker, job_state=RunMarathon)
    def run_marathon(miles: int, *, job_state: JobState) -> None:
        for mile in job_state.track(range(miles)):
            job_state.set_progress_metric("mile", mile)
        state = load(broker, message_of(job_state))
        assert (state.status, current_job_state()) == ("working", job_state)

    state = load(broker, run_marathon.send(3))
    assert (state.status, state.attempt) == ("success", 1)
    assert state.progress_metrics == {"mile": 2}
    assert state.progress is not None and state.progress.done == 3
    assert current_job_state() is None


def message_of(job_state: JobState | None) -> Any:
    """Return what load() accepts as a message."""
    assert job_state is not None
    return message_of_uuid(job_state.uuid)


def message_of_uuid(uuid: str) -> Any:
    return dramatiq.Message("", "", (), {}, {}, message_id=uuid)


@pytest.mark.parametrize("is_handling", [False, True])
@pytest.mark.parametrize("fail_fast", [True, False])
def test_a_job_that_fails_is_an_error_at_once(
    in_caller: InCaller, fail_fast: bool, is_handling: bool
) -> None:
    """A job that raises is an error, even if the broker tells only the sender. A job
    sent while an exception is handled is unaffected by it.
    """
    broker = in_caller(fail_fast=fail_fast)
    seen = []

    @job_actor(broker=broker)
    def run_marathon(fails: bool, *, job_state: JobState) -> None:
        seen.append(message_of(job_state))
        job_state.set_progress(1, 2)
        if fails:
            raise ValueError("a cramp")

    def send() -> None:
        with contextlib.suppress(ValueError):
            run_marathon.send(True)
        run_marathon.send(False)

    try:
        if is_handling:
            raise KeyError("of the sender's")
        send()
    except KeyError:
        send()
    failed, fine = (load(broker, message) for message in seen)
    assert (failed.status, failed.error) == ("error", ("ValueError", "a cramp"))
    assert failed.progress is not None and failed.progress.fraction == 0.5
    assert (fine.status, fine.error) == ("success", None)


def note_ends(broker: dramatiq.Broker, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list to which each end written from now on is added."""
    ends: list[str] = []
    store = store_of(broker)
    write = store.write

    def note(updates: Any) -> Any:
        ends.extend(u.end.status for u in updates if u.end is not None)
        return write(updates)

    monkeypatch.setattr(store, "write", note)
    return ends


def test_the_end_is_written_once(
    in_caller: InCaller, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One acknowledgement that the broker signals twice is written as one end."""
    broker = in_caller()

    @dramatiq.actor(broker=broker, job_state=True)
    def run_marathon() -> None: ...

    ends = note_ends(broker, monkeypatch)
    run_marathon.send()
    assert ends == ["success"]


@pytest.mark.parametrize("is_first", [False, True])
def test_a_try_ends_before_the_next_one_begins(
    in_caller: InCaller, monkeypatch: pytest.MonkeyPatch, is_first: bool
) -> None:
    """A job that is retried in place never reads as if it had failed for good."""
    retries = Retries(max_retries=3)
    broker = in_caller(
        *((None, retries) if is_first else (retries, None)), fail_fast=False
    )
    runs: list[int] = []

    @dramatiq.actor(broker=broker, job_state=True)
    def run_marathon() -> None:
        runs.append(1)
        if len(runs) < 3:
            raise ValueError("a cramp")

    ends = note_ends(broker, monkeypatch)
    run_marathon.send()
    assert ends == ["retrying", "retrying", "success"]


@pytest.fixture(params=["success", "error", "cancelled", "skipped", "untracked"])
def inner(request: pytest.FixtureRequest) -> str:
    """How a job that runs within another ends."""
    fate: str = request.param
    return fate


@pytest.mark.parametrize("fail_fast", [True, False])
@pytest.mark.parametrize("fails", [False, True])
def test_a_job_within_a_job_leaves_that_alone(
    in_caller: InCaller, inner: str, fail_fast: bool, fails: bool
) -> None:
    """However the jobs that a job sends end, it can go on reporting, and it and they
    end with their own status.
    """
    broker = in_caller(Stop(SkipMessage("not today")), fail_fast=fail_fast)
    seen: list[Any] = []

    def work(fate: str) -> None:
        seen.append((fate, current_job_state()))
        if fate == "error":
            raise ValueError("a cramp")
        job_state = current_job_state()
        if fate == "cancelled" and job_state is not None:
            assert load(broker, message_of(job_state)).cancel()
            while True:
                job_state.raise_if_cancelled()

    plain = dramatiq.actor(broker=broker, actor_name="plain")(work)
    tracked = dramatiq.actor(broker=broker, actor_name="tracked", job_state=True)(work)

    @job_actor(broker=broker)
    def outer(*, job_state: JobState) -> None:
        seen.append(("outer", job_state))
        job_state.set_progress_metric("before", 1)
        for number in range(2):
            with contextlib.suppress(ValueError, SkipMessage):
                actor = plain if inner == "untracked" else tracked
                actor.send("stop" if inner == "skipped" else inner)
            assert current_job_state() is job_state
            job_state.increment_progress_metric("after")
            assert load(broker, message_of(job_state)).status == "working", number
        if fails:
            raise KeyError("of its own")

    with pytest.raises(KeyError) if fail_fast and fails else contextlib.nullcontext():
        outer.send()
    (_, job_state), *others = seen
    state = load(broker, message_of(job_state))
    assert state.status == ("error" if fails else "success")
    assert state.error == (JobError("KeyError", "'of its own'") if fails else None)
    assert state.progress_metrics == {"before": 1, "after": 2}
    if inner == "skipped":
        assert not others
        return
    assert len(others) == 2
    for fate, job_state in others:
        if inner == "untracked":
            assert job_state is None
        else:
            assert load(broker, message_of(job_state)).status == fate


def test_an_actor_that_sends_itself_runs_within_itself(in_caller: InCaller) -> None:
    """Each level of a recursion is a separate job and keeps its own values."""
    broker = in_caller()
    seen: dict[int, Any] = {}

    @job_actor(broker=broker)
    def count(depth: int, *, job_state: JobState) -> None:
        seen[depth] = message_of(job_state)
        if depth:
            count.send(depth - 1)
        assert current_job_state() is job_state
        job_state.set_progress_metric("depth", depth)

    count.send(4)
    for depth in range(5):
        state = load(broker, seen[depth])
        assert (state.status, state.progress_metrics) == ("success", {"depth": depth})


def test_a_direct_call_within_a_job_is_detached(in_caller: InCaller) -> None:
    """An actor that a job calls directly keeps its values in memory: before another job
    runs within that job, inside the other job, and afterwards.
    """
    broker = in_caller()
    called: list[JobState] = []

    @job_actor(broker=broker)
    def inner(*, job_state: JobState) -> None:
        called.append(job_state)

    @job_actor(broker=broker)
    def outer(depth: int, *, job_state: JobState) -> None:
        if depth == 0:
            called.append(job_state)
            return
        for _ in range(2):
            outer(0)
            inner()
            middle.send()
        job_state.set_message("done")

    @dramatiq.actor(broker=broker)
    def middle() -> None:
        outer(0)

    state = load(broker, outer.send(1))
    assert (state.status, state.message) == ("success", "done")
    assert len(called) == 6
    assert store_of(broker).load_many([c.uuid for c in called]) == [None] * 6


def test_callbacks_run_within_the_job_that_calls_them(in_caller: InCaller) -> None:
    """A job's callbacks run before it is acknowledged, and are separate jobs."""
    broker = in_caller(Callbacks(), fail_fast=False)
    seen: list[Any] = []

    @job_actor(broker=broker)
    def call_back(*args: Any, job_state: JobState) -> None:
        seen.append(message_of(job_state))
        if args[1] is None:
            raise ValueError("so late")

    @dramatiq.actor(broker=broker, job_state=True)
    def run_marathon(fails: bool) -> None:
        if fails:
            raise ValueError("a cramp")

    name = call_back.actor_name
    options: dict[str, Any] = {"on_success": name, "on_failure": name}
    fine = run_marathon.send_with_options(args=(False,), **options)
    failed = run_marathon.send_with_options(args=(True,), **options)
    assert [load(broker, m).status for m in (fine, failed)] == ["success", "error"]
    assert [load(broker, m).status for m in seen] == ["error", "success"]


@pytest.mark.parametrize("is_first", [False, True])
@pytest.mark.parametrize("fail_fast", [True, False])
def test_a_pipeline_runs_within_its_first_step(
    in_caller: InCaller, fail_fast: bool, is_first: bool
) -> None:
    """Each step of a pipeline has its own end; those after a failure are cancelled."""
    order = (None, Pipelines()) if is_first else (Pipelines(), None)
    broker = in_caller(*order, fail_fast=fail_fast)

    @dramatiq.actor(broker=broker, job_state=True)
    def step(miles: int, before: int = 0) -> int:
        if miles == 13:
            raise ValueError("Bad luck")
        return miles + before

    @dramatiq.actor(broker=broker)
    def untracked(miles: int, before: int) -> int:
        return miles + before

    def run(*steps: Any) -> list[tuple[str, Any]]:
        jobs = [step for step in steps if step.actor_name == "step"]
        record_steps(broker, jobs[1:])
        pipeline(steps, broker=broker).run()
        states = [load(broker, job) for job in jobs]
        return [(state.status, state.error) for state in states]

    fine = ("success", None)
    assert run(*(step.message(n) for n in range(4))) == [fine] * 4
    mixed = step.message(1), untracked.message_with_options(args=(2,)), step.message(3)
    assert run(*mixed) == [fine] * 2
    assert run(*(step.message(n) for n in (1, 13, 2, 3))) == [
        fine,
        ("error", ("ValueError", "Bad luck")),
        *[("cancelled", NOT_REACHED)] * 2,
    ]


@pytest.mark.parametrize("is_first", [False, True])
@pytest.mark.parametrize("failures", [2, 9])
def test_a_retry_runs_within_the_try_that_failed(
    in_caller: InCaller, is_first: bool, failures: int
) -> None:
    """A job that is retried in place counts its attempts, and ends as the last one."""
    retries = Retries(max_retries=3)
    order = (None, retries) if is_first else (retries, None)
    broker = in_caller(*order, fail_fast=False)
    attempts: list[int] = []

    @job_actor(broker=broker)
    def run_marathon(*, job_state: JobState) -> None:
        attempts.append(job_state.attempt)
        job_state.set_progress_metric("attempt", job_state.attempt)
        state = load(broker, message_of(job_state))
        assert (state.status, state.attempt) == ("working", job_state.attempt)
        if job_state.attempt <= failures:
            raise ValueError("a cramp")

    state = load(broker, run_marathon.send())
    assert attempts == [1, 2, 3, 4][: failures + 1]
    assert state.attempt == len(attempts)
    assert state.status == ("error" if failures > 3 else "success")
    assert (state.error is None) == (state.status == "success")
    assert state.progress_metrics == {"attempt": len(attempts)}


def test_a_retry_within_a_job_leaves_that_alone(in_caller: InCaller) -> None:
    """A job whose inner job is retried in place goes on once that has ended."""
    broker = in_caller(Retries(), fail_fast=False)
    seen: list[Any] = []

    @job_actor(broker=broker)
    def inner(*, job_state: JobState) -> None:
        seen.append(message_of(job_state))
        if job_state.attempt < 3:
            raise ValueError("a cramp")

    @job_actor(broker=broker)
    def outer(*, job_state: JobState) -> None:
        inner.send()
        assert current_job_state() is job_state
        job_state.set_message("done")

    state = load(broker, outer.send())
    assert (state.status, state.message) == ("success", "done")
    assert len(seen) == 3 and load(broker, seen[0]).status == "success"


def test_a_retry_that_another_middleware_stops_does_not_count(
    in_caller: InCaller,
) -> None:
    """A retry that is skipped in place does not count as an attempt."""
    broker = in_caller(Retries(), fail_fast=False)

    class StopRetries(Middleware):
        def before_process_message(self, broker: Any, message: Any) -> None:
            if message.options.get("retries"):
                message.fail()
                raise SkipMessage("not again")

    broker.add_middleware(StopRetries(), before=Retries)

    @dramatiq.actor(broker=broker, job_state=True, max_retries=2)
    def run_marathon() -> None:
        raise ValueError("a cramp")

    state = load(broker, run_marathon.send())
    assert (state.status, state.attempt) in (("error", 1), ("cancelled", 1))


def test_a_job_that_puts_itself_back_runs_within_itself(in_caller: InCaller) -> None:
    """The run of the message put back owns the record, no longer the outer run."""
    broker = in_caller()
    runs: list[int] = []

    @job_actor(broker=broker)
    def run_marathon(*, job_state: JobState) -> None:
        runs.append(len(runs))
        job_state.set_progress_metric("run", runs[-1])
        if len(runs) == 1:
            message = run_marathon.message()
            broker.enqueue(message.copy(message_id=job_state.uuid))
            assert current_job_state() is job_state
            job_state.set_message("in vain")

    state = load(broker, run_marathon.send())
    assert (state.status, state.progress_metrics) == ("success", {"run": 1})
    assert (state.message, runs) == (None, [0, 1])


@pytest.mark.parametrize("retried", [False, True])
@pytest.mark.parametrize("fail_fast", [True, False])
def test_a_job_that_is_cancelled_says_so(
    in_caller: InCaller, fail_fast: bool, retried: bool
) -> None:
    """A job that is cancelled while it runs reads cancelled, and never runs again."""
    broker = in_caller(*([Retries()] if retried else []), fail_fast=fail_fast)
    seen: list[Any] = []

    @job_actor(broker=broker)
    def run_marathon(*, job_state: JobState) -> None:
        seen.append(message_of(job_state))
        load(broker, seen[0]).cancel()
        while not job_state.cancel_requested:
            pass
        raise ValueError("as good as any")

    with pytest.raises(SkipMessage) if fail_fast else contextlib.nullcontext():
        run_marathon.send()
    assert len(seen) == 1
    state = load(broker, seen[0])
    assert (state.status, state.error) == ("cancelled", CANCELLED)


def test_a_job_is_told_once_of_its_cancel_whatever_it_runs(in_caller: InCaller) -> None:
    """A job that survives its cancel and runs another job that is cancelled, too, does
    not get its own cancel raised again.
    """
    broker = in_caller(fail_fast=False)
    seen: list[Any] = []

    def be_cancelled(job_state: JobState) -> None:
        seen.append(message_of(job_state))
        load(broker, seen[-1]).cancel()
        while not job_state.cancel_requested:
            pass
        job_state.set_message("told")

    @job_actor(broker=broker)
    def inner(*, job_state: JobState) -> None:
        be_cancelled(job_state)

    @job_actor(broker=broker)
    def outer(*, job_state: JobState) -> None:
        with contextlib.suppress(JobCancelled):
            be_cancelled(job_state)
        inner.send()
        job_state.set_message("shielded")

    state = load(broker, outer.send())
    assert (state.status, state.message) == ("success", "shielded")
    assert load(broker, seen[1]).status == "cancelled"


def test_a_job_that_was_cancelled_before_does_not_run(in_caller: InCaller) -> None:
    """A message whose job was cancelled while queued is skipped."""
    broker = in_caller()

    @dramatiq.actor(broker=broker, job_state=True)
    def run_marathon() -> None:
        raise AssertionError

    message = run_marathon.message()
    store_of(broker).create(NewJob(message.message_id, SENT))
    assert load(broker, message).cancel()
    with pytest.raises(SkipMessage):
        broker.enqueue(message)
    state = load(broker, message)
    assert (state.status, state.attempt) == ("cancelled", 0)


@pytest.mark.parametrize("is_first", [False, True])
@pytest.mark.parametrize("fail_fast", [True, False])
@pytest.mark.parametrize("error", [SkipMessage("not today"), RefusedError("not today")])
def test_a_job_that_another_middleware_stops_never_began(
    in_caller: InCaller, fail_fast: bool, is_first: bool, error: Exception
) -> None:
    """A job that a middleware skips or refuses before its start gives the reason and
    reads attempt 0, wherever that middleware stands.
    """
    order = (None, Stop(error)) if is_first else (Stop(error), None)
    broker = in_caller(*order, fail_fast=fail_fast)

    @dramatiq.actor(broker=broker, job_state=True)
    def run_marathon(what: str) -> None:
        raise AssertionError

    message = run_marathon.message("stop")
    store_of(broker).create(NewJob(message.message_id, SENT))
    with pytest.raises(type(error)) if fail_fast else contextlib.nullcontext():
        broker.enqueue(message)
    state = load(broker, message)
    is_skip = isinstance(error, SkipMessage)
    assert state.status == ("cancelled" if is_skip else "error")
    assert state.error is not None and state.error.message == "not today"
    assert (state.attempt, state.started_at) == (0, None)


def test_async_actors_run_within_their_sender(in_caller: InCaller) -> None:
    """An async actor is a job like any other, and so is a job that it sends."""
    broker = in_caller(AsyncIO())
    seen: list[Any] = []

    @job_actor(broker=broker)
    def inner(*, job_state: JobState) -> None:
        seen.append(message_of(job_state))
        assert current_job_state() is job_state

    @job_actor(broker=broker)
    async def middle(*, job_state: JobState) -> None:
        await asyncio.sleep(0)
        inner.send()
        assert current_job_state() is job_state
        job_state.set_message("middle")

    @job_actor(broker=broker)
    def outer(*, job_state: JobState) -> None:
        seen.append(message_of(job_state))
        seen.append(middle.send())
        assert current_job_state() is job_state
        job_state.set_message("outer")

    broker.emit_before("worker_boot", None)
    loop = get_event_loop_thread()
    assert loop is not None
    try:
        outer.send()
    finally:
        broker.emit_after("worker_shutdown", None)
    states = [load(broker, message) for message in seen]
    assert [(s.status, s.message) for s in states] == [
        ("success", "outer"),
        ("success", None),
        ("success", "middle"),
    ]


@pytest.fixture
def begin_request(
    in_caller: InCaller, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> Callable[[dramatiq.Broker], Any]:
    """Makes a request of Alice's in a transaction, and the broker global."""

    def make_site(broker: dramatiq.Broker) -> Any:
        monkeypatch.setattr(dramatiq.broker, "global_broker", broker)
        config = make_tm_config(redis_url)
        make_app(config)
        request = make_request(config, "alice")
        request.tm.begin()
        return request

    return make_site


def test_a_job_that_leaves_with_the_transaction_runs_in_the_commit(
    in_caller: InCaller, begin_request: Any
) -> None:
    """All that a request sends in a transaction has ended once the transaction is
    committed: jobs, the jobs that they send, pipelines and groups.
    """
    broker = in_caller(Pipelines())
    inner: list[Any] = []

    @job_actor(broker=broker)
    def run_marathon(miles: int, *args: int, job_state: JobState) -> int:
        assert job_state.owner == "alice" or miles == 0
        if miles == 7:
            inner.append(run_marathon.send(0))
        if miles == 13:
            raise ValueError("Bad luck")
        return miles

    request = begin_request(broker)
    send = request.job_states.send
    message = request.job_states.send_message
    one = send(run_marathon, 7)
    bad = send(run_marathon, 13)
    steps = message(run_marathon.message(7) | run_marathon.message(1))
    members = message(
        group([run_marathon.message(n) for n in (2, 13, 3)], broker=broker)
    )
    request.tm.commit()

    def outcome(*jobs: JobState) -> list[tuple[str, Any]]:
        states = [request.job_states[job.uuid] for job in jobs]
        return [(s.status, s.error and s.error.message) for s in states]

    fine = ("success", None)
    assert outcome(one, *steps) == [fine] * 3
    assert outcome(bad) == [("error", "Bad luck")]
    assert outcome(*members) == [
        fine,
        ("error", "Bad luck"),
        ("error", "The job could not be sent."),
    ]
    assert [load(broker, m).status for m in inner] == ["success"] * 2


def test_a_job_that_is_sent_at_once_and_fails_is_an_error(
    in_caller: InCaller, begin_request: Any
) -> None:
    """The exception reaches the sender, and the record stays, since the job has run.
    The next step of its pipeline reads as not reached.
    """
    broker = in_caller(Pipelines())

    @dramatiq.actor(broker=broker, job_state=True)
    def run_marathon(*args: int) -> None:
        raise ValueError("Bad luck")

    request = begin_request(broker)
    steps = run_marathon.message() | run_marathon.message()
    with pytest.raises(ValueError, match="Bad luck"):
        request.job_states.send_immediately(steps)
    page = request.job_states.list("alice").items
    assert {(state.status, state.error) for state in page} == {
        ("error", ("ValueError", "Bad luck")),
        ("cancelled", NOT_REACHED),
    }


def test_a_request_within_a_request_keeps_what_the_outer_announced(
    in_caller: InCaller, begin_request: Any
) -> None:
    """A job that sends with its own request leaves the outer request's jobs alone."""
    broker = in_caller()
    seen: list[Any] = []

    @dramatiq.actor(broker=broker, job_state=True)
    def run_marathon(depth: int) -> None:
        if depth:
            inner = group([run_marathon.message(0)], broker=broker)
            seen.extend(begin_request(broker).job_states.send_immediately(inner))

    request = begin_request(broker)
    members = group([run_marathon.message(1) for _ in range(2)], broker=broker)
    seen.extend(request.job_states.send_immediately(members))
    assert len(seen) == 4
    assert {request.job_states[s.uuid].status for s in seen} == {"success"}


def test_nothing_is_left_behind(in_caller: InCaller) -> None:
    """Once all jobs have ended, middleware and recorder keep nothing of them."""
    broker = in_caller(
        Retries(max_retries=1), Stop(RefusedError("no")), fail_fast=False
    )
    alive: list[weakref.ref[Any]] = []

    @job_actor(broker=broker)
    def run_marathon(what: str, *, job_state: JobState) -> None:
        alive.append(weakref.ref(job_state))
        if what == "fail":
            raise ValueError
        if what == "nest":
            run_marathon.send("fail")
            run_marathon.send("stop")

    for what in ("fail", "nest", "stop", "fine"):
        run_marathon.send(what)
    ours = middleware_of(broker)
    assert nothing_is_kept(ours)
    assert (ours._thread.job, ours._thread.returning) == (None, {})
    gc.collect()
    assert len(alive) == 6 and not any(ref() for ref in alive)


class Quitting(Middleware):
    """Quits when a message is acknowledged; no later middleware learns of it."""

    def __init__(self) -> None:
        self.is_on = True

    def after_ack(self, broker: Any, message: Any) -> None:
        if self.is_on:
            self.is_on = False
            raise KeyboardInterrupt


def nothing_is_kept(ours: JobStateMiddleware) -> bool:
    assert ours._access._recorder is not None
    kept = (ours._jobs, ours._access._recorder._backlog._runs, ours._thread.jobs)
    return not any(kept) and current_job_state() is None


@pytest.mark.parametrize("tracked", [False, True])
def test_a_job_whose_end_nobody_told_ends_with_the_outer_one(
    in_caller: InCaller, tracked: bool
) -> None:
    """If the acknowledgement of an inner job is interrupted, its end is written when
    the outer job ends.
    """
    broker = in_caller(None, Quitting())
    seen: list[Any] = []

    @job_actor(broker=broker)
    def inner(*, job_state: JobState) -> None:
        seen.append(message_of(job_state))
        job_state.set_message("run")

    @job_actor(broker=broker)
    def outer(*, job_state: JobState) -> None:
        with pytest.raises(KeyboardInterrupt):
            inner.send()
        job_state.set_message("done")

    @dramatiq.actor(broker=broker)
    def untracked() -> None:
        with pytest.raises(KeyboardInterrupt):
            inner.send()

    if tracked:
        state = load(broker, outer.send())
        assert (state.status, state.message) == ("success", "done")
    else:
        untracked.send()
    state = load(broker, seen[0])
    assert (state.status, state.message) == ("success", "run")
    assert nothing_is_kept(middleware_of(broker))


def test_a_job_whose_end_nobody_told_ends_with_the_next_message(
    in_caller: InCaller,
) -> None:
    """If the acknowledgement of a job is interrupted, its end is written when its
    thread processes the next message that is not within it.
    """
    broker = in_caller(None, quitting := Quitting())
    ours = middleware_of(broker)
    seen: list[Any] = []

    @job_actor(broker=broker)
    def run_marathon(fails: bool, *, job_state: JobState) -> None:
        assert len(ours._thread.jobs) == 1
        seen.append(message_of(job_state))
        if fails:
            raise ValueError("a cramp")

    for fails in (False, True, False):
        quitting.is_on = True
        with pytest.raises(KeyboardInterrupt):
            run_marathon.send(fails)
    run_marathon.send(False)
    states = [load(broker, message) for message in seen]
    assert [s.status for s in states] == ["success", "error", "success", "success"]
    assert states[1].error == ("ValueError", "a cramp")
    assert nothing_is_kept(ours)


def test_an_end_that_cannot_be_written_leaves_the_next_message_alone(
    ours: JobStateMiddleware, caplog: pytest.LogCaptureFixture
) -> None:
    """A job whose end was never reported, and whose next step is not a message, does
    not disturb the job that follows.
    """
    broker = InCallerBroker((ours, Quitting()))
    broker.actor_options |= {"pipe_target"}

    @dramatiq.actor(broker=broker, job_state=True)
    def run_marathon() -> None: ...

    with pytest.raises(KeyboardInterrupt):
        run_marathon.send_with_options(pipe_target="nonsense")
    assert load(broker, run_marathon.send()).status == "success"
    assert "could not be written" in messages(caplog, "pyramid_jobstate")[0]
    assert nothing_is_kept(ours)
    stop(ours)
    caplog.clear()


class MuteBroker(InCallerBroker):
    """Does not signal that it has acknowledged a message."""

    @contextlib.contextmanager
    def _acknowledging(self, message: Any) -> Iterator[None]:
        yield


def end_what_is_left(broker: dramatiq.Broker, ours: JobStateMiddleware) -> None:
    """Acknowledge the last message: otherwise its job, and those begun within it, would
    go on during other tests.
    """
    broker.emit_after("ack", ours._thread.jobs[0].message)
    assert nothing_is_kept(ours)


@pytest.mark.parametrize("fail_fast", [True, False])
@pytest.mark.parametrize("is_first", [False, True])
def test_a_broker_that_acknowledges_nothing_leaks_no_jobs(
    ours: JobStateMiddleware, is_first: bool, fail_fast: bool
) -> None:
    """With a broker that does not signal acknowledgements, a job ends when the next
    message is processed. A message sent by a callback is processed within the job.
    """
    callbacks = Callbacks()
    order = (callbacks, ours) if is_first else (ours, callbacks)
    broker = MuteBroker(order, fail_fast=fail_fast)
    seen: list[Any] = []
    outer: list[str] = []

    @job_actor(broker=broker)
    def call_back(data: Any, result: Any, *, job_state: JobState) -> None:
        outer.append(load(broker, seen[-1]).status)
        assert len(ours._thread.jobs) == 2

    @job_actor(broker=broker)
    def run_marathon(fails: bool, *, job_state: JobState) -> None:
        assert len(ours._thread.jobs) == 1
        seen.append(message_of(job_state))
        if fails:
            raise ValueError("a cramp")

    for fails in (False, True, False):
        with contextlib.suppress(ValueError):
            run_marathon.send_with_options(
                args=(fails,), on_success=call_back.actor_name
            )
    assert outer == ["working"] * 2
    assert [load(broker, m).status for m in seen] == ["success", "error", "working"]
    end_what_is_left(broker, ours)
    assert load(broker, seen[-1]).status == "success"


def test_a_job_that_is_stopped_and_not_acknowledged_is_an_error(
    ours: JobStateMiddleware,
) -> None:
    """A job whose stop only its sender learns of reads as rejected, with attempt 0."""
    broker = MuteBroker((ours, Stop(SkipMessage("not today"))))

    @dramatiq.actor(broker=broker, job_state=True)
    def run_marathon(what: str) -> None: ...

    message = run_marathon.message("stop")
    for sent in (message, run_marathon.message("run")):
        with contextlib.suppress(SkipMessage):
            broker.enqueue(sent)
    state = load(broker, message)
    assert (state.status, state.attempt) == ("error", 0)
    assert state.error == JobError(None, "The message was rejected.")
    end_what_is_left(broker, ours)


class Roundabout(InCallerBroker):
    """Signals through a helper method that a message is processed."""

    def emit_before(self, signal: str, *args: Any, **kwargs: Any) -> None:
        self.tell(signal, *args, **kwargs)

    def tell(self, signal: str, *args: Any, **kwargs: Any) -> None:
        super().emit_before(signal, *args, **kwargs)


def test_a_job_that_runs_is_never_taken_for_one_that_was_left(
    ours: JobStateMiddleware,
) -> None:
    """However a broker signals a message, a running job stays the outer job of those
    that it sends.
    """
    broker = Roundabout((ours,))

    @dramatiq.actor(broker=broker, job_state=True)
    def inner() -> None: ...

    @job_actor(broker=broker)
    def outer(*, job_state: JobState) -> None:
        inner.send()
        assert load(broker, message_of(job_state)).status == "working"
        job_state.set_message("done")

    state = load(broker, outer.send())
    assert (state.status, state.message) == ("success", "done")


class Handling(InCallerBroker):
    """Signals that a message was skipped after it has handled the exception."""

    def _process(self, message: Any) -> None:
        try:
            super()._process(message)
        except SkipMessage:
            pass
        else:
            return
        self.emit_after("skip_message", message)


@pytest.mark.parametrize("what", ["stop", "skip"])
@pytest.mark.parametrize("is_first", [False, True])
def test_a_skipped_job_has_nothing_to_do_with_what_its_sender_handles(
    ours: JobStateMiddleware, is_first: bool, what: str
) -> None:
    """A job that is skipped, or skips itself, is cancelled, whatever exception its
    sender is handling.
    """
    stop = Stop(SkipMessage("not today"))
    broker = Handling((stop, ours) if is_first else (ours, stop))

    @dramatiq.actor(broker=broker, job_state=True)
    def run_marathon(what: str) -> None:
        raise SkipMessage("of its own")

    message = run_marathon.message(what)
    store_of(broker).create(NewJob(message.message_id, SENT))
    try:
        raise KeyError("the sender's")
    except KeyError:
        broker.enqueue(message)
    state = load(broker, message)
    assert state.status == "cancelled" and state.error is not None
    said = "of its own" if what == "skip" else "The message was skipped."
    assert state.error.message == said
    assert state.attempt == (1 if what == "skip" else 0)


@pytest.mark.parametrize("is_handling", [False, True])
def test_a_job_whose_actor_fails_before_its_function_is_an_error(
    in_caller: InCaller, is_handling: bool
) -> None:
    """A wrapper around the function that raises makes the job an error, even if the
    broker tells only the sender.
    """
    broker = in_caller()

    class Failing(dramatiq.Actor[Any, Any]):
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            raise ValueError("a cramp")

    @dramatiq.actor(broker=broker, job_state=True, actor_class=Failing)
    def run_marathon() -> None: ...

    message = run_marathon.message()
    try:
        if is_handling:
            raise KeyError("the sender's")
        broker.enqueue(message)
    except KeyError:
        with pytest.raises(ValueError, match="a cramp"):
            broker.enqueue(message)
    except ValueError:
        assert not is_handling
    state = load(broker, message)
    assert (state.status, state.error) == ("error", ("ValueError", "a cramp"))


@pytest.mark.parametrize("fail_fast", [True, False])
def test_a_job_that_returns_has_nothing_to_do_with_what_its_sender_handles(
    in_caller: InCaller, fail_fast: bool
) -> None:
    """A job is a success even if its function was called in another thread and its
    sender is handling an exception.
    """
    broker = in_caller(fail_fast=fail_fast)

    class InThread(dramatiq.Actor[Any, Any]):
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            with concurrent.futures.ThreadPoolExecutor(1) as pool:
                return pool.submit(super().__call__, *args, **kwargs).result()

    @dramatiq.actor(broker=broker, job_state=True, actor_class=InThread)
    def run_marathon() -> None: ...

    try:
        raise KeyError("the sender's")
    except KeyError:
        state = load(broker, run_marathon.send())
    assert (state.status, state.error, state.attempt) == ("success", None, 1)


def test_a_job_that_has_returned_is_a_success_whatever_stops_its_sender(
    in_caller: InCaller,
) -> None:
    """An interrupt in a middleware does not turn a returned job into an error."""

    class Interrupted(Middleware):
        def after_process_message(self, *args: Any, **kwargs: Any) -> None:
            raise KeyboardInterrupt

    broker = in_caller(None, Interrupted())
    seen: list[Any] = []

    @job_actor(broker=broker)
    def run_marathon(*, job_state: JobState) -> None:
        seen.append(message_of(job_state))

    with pytest.raises(KeyboardInterrupt):
        run_marathon.send()
    state = load(broker, seen[0])
    assert (state.status, state.error) == ("success", None)


class Swallowing(InCallerBroker):
    """Does not signal that a message was skipped."""

    def _process(self, message: Any) -> None:
        with contextlib.suppress(SkipMessage):
            super()._process(message)


def test_a_job_that_is_skipped_in_silence_does_not_fail_as_its_sender_does(
    ours: JobStateMiddleware,
) -> None:
    """An exception that the sender is handling is never taken for the job's own."""
    broker = Swallowing((Stop(SkipMessage("not today")), ours))

    @dramatiq.actor(broker=broker, job_state=True)
    def run_marathon(what: str) -> None: ...

    message = run_marathon.message("stop")
    store_of(broker).create(NewJob(message.message_id, SENT))
    try:
        raise KeyError("the sender's")
    except KeyError:
        broker.enqueue(message)
    assert load(broker, message).error is None


def test_a_retry_that_the_broker_refuses_is_forgotten(ours: JobStateMiddleware) -> None:
    """A job whose retry the broker does not take is an error, and nothing of it is
    kept.
    """

    class Refusing(InCallerBroker):
        def enqueue(self, message: Any, *, delay: int | None = None) -> Any:
            if "retries" in message.options:
                self.emit_before("enqueue", message, delay)
                raise ConnectionError
            return super().enqueue(message, delay=delay)

    broker = Refusing([ours, Retries()], fail_fast=False)

    @dramatiq.actor(broker=broker, job_state=True)
    def run_marathon() -> None:
        raise ValueError("a cramp")

    state = load(broker, run_marathon.send())
    assert (state.status, state.error) == ("error", ("ValueError", "a cramp"))
    assert nothing_is_kept(ours) and ours._thread.returning == {}


class Unsettling(Middleware):
    """Keeps later middleware from learning that a message is acknowledged."""

    def __init__(self) -> None:
        self.is_on = True

    def before_ack(self, broker: Any, message: Any) -> None:
        if self.is_on:
            self.is_on = False
            raise SkipMessage


def test_jobs_of_two_greenlets_stay_separate(in_caller: InCaller) -> None:
    """The end of one job leaves a job in another greenlet of the thread alone: that one
    goes on reporting, and its own end is written.
    """
    broker = in_caller()
    main = greenlet.getcurrent()
    uuids: list[str] = []

    @job_actor(broker=broker)
    def run_marathon(fails: bool, *, job_state: JobState) -> None:
        uuids.append(job_state.uuid)
        main.switch()
        job_state.set_progress_metric("miles", 26)
        if fails:
            raise ValueError("a blister")

    first, second = (
        greenlet.greenlet(lambda fails=fails: run_marathon.send(fails))
        for fails in (False, True)
    )
    first.switch()
    second.switch()
    first.switch()
    states = [load(broker, message_of_uuid(uuid)) for uuid in uuids]
    assert [state.status for state in states] == ["success", "working"]
    with pytest.raises(ValueError, match="a blister"):
        second.switch()

    states = [load(broker, message_of_uuid(uuid)) for uuid in uuids]
    assert [state.status for state in states] == ["success", "error"]
    assert [state.progress_metrics for state in states] == [{"miles": 26}] * 2


def test_a_worker_s_thread_has_no_outer_job(redis_url: str) -> None:
    """A job whose end a worker thread never learned of is not the outer job of the next
    one: it has ended when that begins.
    """
    broker = make_broker(redis_url, before=AgeLimit)
    broker.add_middleware(Unsettling(), before=JobStateMiddleware)
    threads = set()

    @job_actor(broker=broker)
    def run_marathon(*, job_state: JobState) -> None:
        threads.add(threading.current_thread())

    ours = middleware_of(broker)
    left: list[Any] = []

    @dramatiq.actor(broker=broker)
    def look() -> None:
        left.append(len(ours._thread.jobs))

    with worker_of(broker, threads=1):
        first = run_marathon.send()
        second = run_marathon.send()
        wait_until(broker, second, "success")
        look.send()
        wait_until(broker, run_marathon.send(), "success")
        assert load(broker, first).status == "success"
    assert len(threads) == 1
    assert left == [1]
