"""Brokers that run a job within the call that sends it, for development and tests."""

import asyncio
import concurrent.futures
import contextlib
import gc
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import dramatiq
import dramatiq.broker
import greenlet
import pytest
import redis
from dramatiq import group, pipeline
from dramatiq.asyncio import get_event_loop_thread
from dramatiq.brokers.stub import StubBroker
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
from webtest import TestApp

from pyramid_jobstate import (
    JobCancelled,
    JobError,
    JobState,
    JobStateMiddleware,
    current_job_state,
)
from pyramid_jobstate.resources import JobStates
from tests.incaller import InCallerBroker
from tests.jobs import (
    RunMarathon,
    job_actor,
    load,
    make_broker,
    messages,
    store_of,
    wait_until,
)
from tests.jobs import working as worker_of
from tests.support import load_job, wait_for
from tests.webapp import make_app, make_request, make_tm_config

CANCELLED = JobError(None, "The job was cancelled.")
NOT_REACHED = JobError(None, "An earlier step did not succeed.")
CRAMP = JobError("ValueError", "a cramp")

#: The kinds of broker: one that emits as few signals as it can and raises what the job
#: does in the sender, one that does not, and one that emits all signals.
KINDS: dict[str, Any] = {
    "terse": {},
    "mild": {"fail_fast": False},
    "talkative": {"fail_fast": False, "tells_all": True},
}

#: Makes a broker with the given middleware, and ours in place of None, or else last.
InCaller = Callable[..., InCallerBroker]


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


@pytest.fixture
def ours(redis_url: str) -> Iterator[JobStateMiddleware]:
    """The middleware of a broker that the test makes itself."""
    ours = JobStateMiddleware(url=redis_url, interval=0.01, heartbeat=0.05)
    yield ours
    # It has no worker to stop it.
    InCallerBroker([ours]).emit_after("worker_shutdown", None)


@pytest.fixture(params=KINDS)
def in_caller(request: pytest.FixtureRequest, ours: JobStateMiddleware) -> InCaller:
    def make(*others: Middleware | None, **options: Any) -> InCallerBroker:
        them = [m or ours for m in (others if None in others else (*others, None))]
        return InCallerBroker(them, **{**KINDS[request.param], **options})

    return make


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """No test here may log that a run was overtaken."""
    yield
    assert messages(caplog, "pyramid_jobstate") == []


@pytest.fixture
def keeps_nothing(client: redis.Redis) -> Callable[[], bool]:
    """Returns whether this process says no more to the store, so that it has no job."""

    def commands() -> int:
        count: int = client.info("stats")["total_commands_processed"]
        return count

    def is_quiet() -> bool:
        before = commands()
        # Two heartbeats, and many ticks of the recorder.
        time.sleep(0.1)
        return commands() == before + 1

    def keeps_nothing() -> bool:
        return current_job_state() is None and wait_for(is_quiet)

    return keeps_nothing


def state_of(broker: dramatiq.Broker, job_state: JobState | None) -> JobState:
    """Return what viewers see of the job of a JobState."""
    assert job_state is not None
    return load_job(store_of(broker), job_state.uuid)


def send_elsewhere(redis_url: str, message: Any) -> None:
    """Let a web process send a message that this one gets."""
    sender = StubBroker()
    sender.add_middleware(JobStateMiddleware(url=redis_url))
    name = message.actor_name
    dramatiq.actor(broker=sender, job_state=True, actor_name=name)(lambda what: None)
    sender.enqueue(message)


@pytest.mark.parametrize("is_handling", [False, True])
def test_job_has_ended_when_send_returns(
    in_caller: InCaller, is_handling: bool
) -> None:
    """A job that returns is a success, with all that it reported, and one that raises
    is an error, even if the broker tells only the sender, and whatever that handles.
    """
    broker = in_caller()
    seen: list[JobState] = []

    @job_actor(broker=broker, job_state=RunMarathon)
    def run_marathon(fails: bool, *, job_state: JobState) -> None:
        seen.append(job_state)
        for mile in job_state.track(range(2)):
            job_state.set_progress_metric("mile", mile)
            if fails and mile:
                raise ValueError("a cramp")
        assert state_of(broker, job_state).status == "working"
        assert current_job_state() is job_state

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
    assert current_job_state() is None
    failed, fine = (state_of(broker, job_state) for job_state in seen)
    assert (failed.status, failed.error) == ("error", CRAMP)
    assert (fine.status, fine.error, fine.attempt) == ("success", None, 1)
    assert fine.progress_metrics == failed.progress_metrics == {"mile": 1}
    assert failed.progress is not None and failed.progress.fraction == 0.5
    assert fine.progress is not None and fine.progress.fraction == 1


# Jobs within jobs.


@pytest.mark.parametrize(
    "inner", ["success", "error", "cancelled", "skipped", "untracked"]
)
@pytest.mark.parametrize("fails", [False, True])
def test_job_within_a_job_leaves_that_alone(
    in_caller: InCaller, inner: str, fails: bool
) -> None:
    """However the jobs that a job sends end, it can go on reporting, and it and they
    end with their own status.
    """
    broker = in_caller(Stop(SkipMessage("not today")))
    seen: list[JobState | None] = []

    def work(fate: str) -> None:
        job_state = current_job_state()
        seen.append(job_state)
        if fate == "error":
            raise ValueError("a cramp")
        if fate == "cancelled" and job_state is not None:
            assert state_of(broker, job_state).cancel()
            while True:
                job_state.raise_if_cancelled()

    plain = dramatiq.actor(broker=broker, actor_name="plain")(work)
    tracked = dramatiq.actor(broker=broker, actor_name="tracked", job_state=True)(work)

    @job_actor(broker=broker)
    def outer(*, job_state: JobState) -> None:
        seen.append(job_state)
        job_state.set_progress_metric("before", 1)
        for number in range(2):
            with contextlib.suppress(ValueError, SkipMessage):
                actor = plain if inner == "untracked" else tracked
                actor.send("stop" if inner == "skipped" else inner)
            assert current_job_state() is job_state
            job_state.increment_progress_metric("after")
            assert state_of(broker, job_state).status == "working", number
        if fails:
            raise KeyError("of its own")

    with pytest.raises(KeyError) if fails and broker.fail_fast else open_end():
        outer.send()
    state = state_of(broker, seen[0])
    assert state.status == ("error" if fails else "success")
    assert state.error == (JobError("KeyError", "'of its own'") if fails else None)
    assert state.progress_metrics == {"before": 1, "after": 2}
    if inner == "skipped":
        assert len(seen) == 1
    elif inner == "untracked":
        assert seen[1:] == [None, None]
    else:
        statuses = [state_of(broker, job_state).status for job_state in seen[1:]]
        assert statuses == [inner, inner]


def open_end() -> contextlib.AbstractContextManager[None]:
    return contextlib.nullcontext()


def test_direct_call_within_a_job_is_detached(in_caller: InCaller) -> None:
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
    seen: list[JobState] = []

    @job_actor(broker=broker)
    def call_back(*args: Any, job_state: JobState) -> None:
        seen.append(job_state)
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
    assert [state_of(broker, j).status for j in seen] == ["error", "success"]


@pytest.mark.parametrize("is_first", [False, True])
def test_pipeline_runs_within_its_first_step(
    in_caller: InCaller, alice: JobStates, is_first: bool
) -> None:
    """Each step of a pipeline has its own end; those after a failure are cancelled."""
    broker = in_caller(*((None, Pipelines()) if is_first else (Pipelines(), None)))

    @dramatiq.actor(broker=broker, job_state=True)
    def step(miles: int, before: int = 0) -> int:
        if miles == 13:
            raise ValueError("a cramp")
        return miles + before

    @dramatiq.actor(broker=broker)
    def untracked(miles: int, before: int) -> int:
        return miles + before

    def ends(steps: Any) -> list[tuple[str, Any]]:
        states = [load(broker, s) for s in steps if s.actor_name == "step"]
        return [(state.status, state.error) for state in states]

    def run(*miles: int) -> list[tuple[str, Any]]:
        steps = [step.message(n) for n in miles]
        alice.send_immediately(pipeline(steps, broker=broker))
        return ends(steps)

    fine = ("success", None)
    assert run(0, 1, 2, 3) == [fine] * 4
    assert run(1, 13, 2, 3) == [
        fine,
        ("error", CRAMP),
        *[("cancelled", NOT_REACHED)] * 2,
    ]
    # The sender may learn of it, but the job has run.
    steps = [step.message(13), step.message(2)]
    with pytest.raises(ValueError, match="cramp") if broker.fail_fast else open_end():
        alice.send_immediately(pipeline(steps, broker=broker))
    assert ends(steps) == [("error", CRAMP), ("cancelled", NOT_REACHED)]
    mixed = step.message(1), untracked.message_with_options(args=(2,)), step.message(3)
    pipeline(mixed, broker=broker).run()
    assert ends(mixed) == [fine] * 2


class Watching(Middleware):
    """Notes the status of a job whenever something happens to its message."""

    def __init__(self) -> None:
        self.statuses: set[str] = set()

    def before_process_message(self, broker: Any, message: Any) -> None:
        state = store_of(broker).load(message.message_id)
        if state is not None:
            self.statuses.add(state.status)

    def after_process_message(
        self, broker: Any, message: Any, *, result: Any = None, exception: Any = None
    ) -> None:
        self.before_process_message(broker, message)


@pytest.mark.parametrize("is_first", [False, True])
@pytest.mark.parametrize("failures", [2, 9])
def test_retry_runs_within_the_try_that_failed(
    in_caller: InCaller, is_first: bool, failures: int
) -> None:
    """A job that is retried in place counts its attempts, ends as the last one, and
    never reads as if it had ended before.
    """
    retries = Retries(max_retries=3)
    order = (None, retries) if is_first else (retries, None)
    watching = [Watching(), Watching()]
    broker = in_caller(watching[0], *order, watching[1], fail_fast=False)
    attempts: list[int] = []

    @job_actor(broker=broker)
    def run_marathon(*, job_state: JobState) -> None:
        attempts.append(job_state.attempt)
        job_state.set_progress_metric("attempt", job_state.attempt)
        state = state_of(broker, job_state)
        assert (state.status, state.attempt) == ("working", job_state.attempt)
        if job_state.attempt <= failures:
            raise ValueError("a cramp")

    state = load(broker, run_marathon.send())
    assert attempts == [1, 2, 3, 4][: failures + 1]
    assert state.attempt == len(attempts)
    assert state.status == ("error" if failures > 3 else "success")
    assert (state.error is None) == (state.status == "success")
    assert state.progress_metrics == {"attempt": len(attempts)}
    seen = watching[0].statuses | watching[1].statuses
    # Once the last attempt is over, so are those around it.
    assert seen - {state.status} <= {"queued", "working", "retrying"}


def test_job_that_puts_itself_back_runs_within_itself(in_caller: InCaller) -> None:
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


# Cancelled and stopped jobs.


@pytest.mark.parametrize("retried", [False, True])
def test_job_that_is_cancelled_says_so(in_caller: InCaller, retried: bool) -> None:
    """A job that is cancelled while it runs reads cancelled, and never runs again."""
    broker = in_caller(*([Retries()] if retried else []))
    seen: list[JobState] = []

    @job_actor(broker=broker)
    def run_marathon(*, job_state: JobState) -> None:
        seen.append(job_state)
        state_of(broker, job_state).cancel()
        while not job_state.cancel_requested:
            pass
        raise ValueError("as good as any")

    with pytest.raises(SkipMessage) if broker.fail_fast else open_end():
        run_marathon.send()
    assert len(seen) == 1
    state = state_of(broker, seen[0])
    assert (state.status, state.error) == ("cancelled", CANCELLED)


def test_job_is_told_once_of_its_cancel_whatever_it_runs(in_caller: InCaller) -> None:
    """A job that survives its cancel and runs another job that is cancelled, too, does
    not get its own cancel raised again.
    """
    broker = in_caller(fail_fast=False)
    seen: list[JobState] = []

    def be_cancelled(job_state: JobState) -> None:
        seen.append(job_state)
        state_of(broker, job_state).cancel()
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
    assert state_of(broker, seen[1]).status == "cancelled"


@pytest.mark.parametrize("is_first", [False, True])
@pytest.mark.parametrize("how", ["skipped", "refused", "cancelled"])
def test_job_that_is_stopped_never_began(
    in_caller: InCaller, redis_url: str, is_first: bool, how: str
) -> None:
    """A job that was cancelled before, or that another middleware skips or refuses,
    wherever that stands, gives the reason and reads attempt 0.
    """
    error: Any = RefusedError if how == "refused" else SkipMessage
    stop = Stop(error("not today"))
    broker = in_caller(*((None, stop) if is_first else (stop, None)))

    @dramatiq.actor(broker=broker, job_state=True)
    def run_marathon(what: str) -> None:
        raise AssertionError

    message = run_marathon.message("run" if how == "cancelled" else "stop")
    send_elsewhere(redis_url, message)
    if how == "cancelled":
        assert load(broker, message).cancel()
    with pytest.raises(error) if broker.fail_fast else open_end():
        broker.enqueue(message)
    state = load(broker, message)
    assert state.status == ("error" if how == "refused" else "cancelled")
    reason = CANCELLED.message if how == "cancelled" else "not today"
    assert state.error is not None and state.error.message == reason
    assert (state.attempt, state.started_at) == (0, None)


# Other ways to run.


def test_async_actors_run_within_their_sender(in_caller: InCaller) -> None:
    """An async actor is a job like any other, and so is a job that it sends."""
    broker = in_caller(AsyncIO())
    seen: list[JobState] = []

    @job_actor(broker=broker)
    def inner(*, job_state: JobState) -> None:
        seen.append(job_state)
        assert current_job_state() is job_state

    @job_actor(broker=broker)
    async def middle(*, job_state: JobState) -> None:
        seen.append(job_state)
        await asyncio.sleep(0)
        inner.send()
        assert current_job_state() is job_state
        job_state.set_message("middle")

    @job_actor(broker=broker)
    def outer(*, job_state: JobState) -> None:
        seen.append(job_state)
        middle.send()
        assert current_job_state() is job_state
        job_state.set_message("outer")

    broker.emit_before("worker_boot", None)
    assert get_event_loop_thread() is not None
    try:
        outer.send()
    finally:
        broker.emit_after("worker_shutdown", None)
    states = [state_of(broker, job_state) for job_state in seen]
    assert [(s.status, s.message) for s in states] == [
        ("success", "outer"),
        ("success", "middle"),
        ("success", None),
    ]


def test_jobs_of_two_greenlets_stay_separate(in_caller: InCaller) -> None:
    """The end of one job leaves a job in another greenlet of the thread alone: that one
    goes on reporting, and its own end is written.
    """
    broker = in_caller(fail_fast=True)
    main = greenlet.getcurrent()
    seen: list[JobState] = []

    @job_actor(broker=broker)
    def run_marathon(fails: bool, *, job_state: JobState) -> None:
        seen.append(job_state)
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
    statuses = [state_of(broker, job_state).status for job_state in seen]
    assert statuses == ["success", "working"]
    with pytest.raises(ValueError, match="a blister"):
        second.switch()

    states = [state_of(broker, job_state) for job_state in seen]
    assert [state.status for state in states] == ["success", "error"]
    assert [state.progress_metrics for state in states] == [{"miles": 26}] * 2


class InThread(dramatiq.Actor[Any, Any]):
    """Calls its function in another thread."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            return pool.submit(super().__call__, *args, **kwargs).result()


class Failing(dramatiq.Actor[Any, Any]):
    """Fails before it calls its function."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise ValueError("a cramp")


@pytest.mark.parametrize("is_handling", [False, True])
def test_job_has_nothing_to_do_with_what_its_sender_handles(
    in_caller: InCaller, is_handling: bool
) -> None:
    """Whatever its sender handles, a job whose function was called in another thread is
    a success, and one whose actor raises before its function is an error, even if the
    broker tells only the sender.
    """
    broker = in_caller()
    options: Any = {"broker": broker, "job_state": True}

    @dramatiq.actor(actor_class=InThread, **options)
    def run_marathon() -> None:
        assert load(broker, sent[0]).status == "working"

    @dramatiq.actor(actor_class=Failing, **options)
    def fail() -> None: ...

    sent = run_marathon.message(), fail.message()

    def send() -> None:
        broker.enqueue(sent[0])
        with (
            pytest.raises(ValueError, match="cramp") if broker.fail_fast else open_end()
        ):
            broker.enqueue(sent[1])

    try:
        if is_handling:
            raise KeyError("the sender's")
        send()
    except KeyError:
        send()
    fine, failed = (load(broker, message) for message in sent)
    assert (fine.status, fine.error, fine.attempt) == ("success", None, 1)
    assert (failed.status, failed.error) == ("error", CRAMP)


# Requests.


def test_job_that_leaves_with_the_transaction_runs_in_the_commit(
    ours: JobStateMiddleware, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that a request sends in a transaction has ended once the transaction is
    committed: jobs, the jobs that they send, pipelines and groups.
    """
    broker = InCallerBroker([Pipelines(), ours])
    inner: list[Any] = []

    @job_actor(broker=broker)
    def run_marathon(miles: int, *args: int, job_state: JobState) -> int:
        assert job_state.owner == "alice" or miles == 0
        if miles == 7:
            inner.append(run_marathon.send(0))
        if miles == 13:
            raise ValueError("Bad luck")
        return miles

    monkeypatch.setattr(dramatiq.broker, "global_broker", broker)
    config = make_tm_config(redis_url)
    make_app(config)
    request = make_request(config, "alice")
    request.tm.begin()
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


def test_request_within_a_request_leaves_the_outer_ones_jobs_alone(
    in_caller: InCaller, alice: JobStates, app: TestApp
) -> None:
    """A job that sends with its own request does not disturb what the outer request is
    sending.
    """
    broker = in_caller()
    seen: list[Any] = []

    @dramatiq.actor(broker=broker, job_state=True)
    def run_marathon(depth: int) -> None:
        if depth:
            inner = group([run_marathon.message(0)], broker=broker)
            states = make_request(app.app, "alice").job_states
            seen.extend(states.send_immediately(inner))

    members = group([run_marathon.message(1) for _ in range(2)], broker=broker)
    seen.extend(alice.send_immediately(members))
    assert len(seen) == 4
    assert {alice[s.uuid].status for s in seen} == {"success"}


# What is left when a broker calls fewer hooks, or one is interrupted.


def test_nothing_is_left_behind(
    in_caller: InCaller, keeps_nothing: Callable[[], bool]
) -> None:
    """Once all jobs have ended, nothing of them is kept, nor said to the store."""
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
    assert keeps_nothing()
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


@pytest.mark.parametrize("tracked", [False, True])
def test_job_whose_end_nobody_told_ends_with_the_outer_one(
    ours: JobStateMiddleware, tracked: bool, keeps_nothing: Callable[[], bool]
) -> None:
    """If the acknowledgement of an inner job is interrupted, its end is written when
    the outer job ends.
    """
    broker = InCallerBroker([ours, Quitting()])
    seen: list[JobState] = []

    @job_actor(broker=broker)
    def inner(*, job_state: JobState) -> None:
        seen.append(job_state)
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
    state = state_of(broker, seen[0])
    assert (state.status, state.message) == ("success", "run")
    assert keeps_nothing()


def test_job_whose_end_nobody_told_ends_with_the_next_message(
    ours: JobStateMiddleware,
    keeps_nothing: Callable[[], bool],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """If the acknowledgement of a job is interrupted, its end is written when its
    thread processes the next message that is not within it, which is not disturbed,
    not even by an end that cannot be written.
    """
    broker = InCallerBroker([ours, quitting := Quitting()])
    broker.actor_options |= {"pipe_target"}
    seen: list[JobState] = []

    @job_actor(broker=broker)
    def run_marathon(fails: bool, *, job_state: JobState) -> None:
        if seen:
            assert state_of(broker, seen[-1]).is_finished
        seen.append(job_state)
        if fails:
            raise ValueError("a cramp")

    for fails in (False, True, False):
        quitting.is_on = True
        with pytest.raises(KeyboardInterrupt):
            run_marathon.send(fails)
    run_marathon.send(False)
    states = [state_of(broker, job_state) for job_state in seen]
    assert [s.status for s in states] == ["success", "error", "success", "success"]
    assert states[1].error == CRAMP
    seen.clear()
    quitting.is_on = True
    with pytest.raises(KeyboardInterrupt):
        run_marathon.send_with_options(args=(False,), pipe_target="nonsense")
    seen.clear()
    assert load(broker, run_marathon.send(False)).status == "success"
    assert "could not be written" in messages(caplog, "pyramid_jobstate")[0]
    assert keeps_nothing()
    caplog.clear()


class MuteBroker(InCallerBroker):
    """Does not signal that it has acknowledged a message, unless the test asks for it:
    the last job, and those begun within it, would go on during other tests.
    """

    depth = 0
    last: Any = None

    @contextlib.contextmanager
    def _acknowledging(self, message: Any) -> Iterator[None]:
        if not self.depth:
            self.last = message
        self.depth += 1
        try:
            yield
        finally:
            self.depth -= 1

    def acknowledge_last(self) -> None:
        self.emit_after("ack", self.last)


@pytest.mark.parametrize("fail_fast", [True, False])
@pytest.mark.parametrize("is_first", [False, True])
def test_broker_that_acknowledges_nothing_leaks_no_jobs(
    ours: JobStateMiddleware,
    is_first: bool,
    fail_fast: bool,
    keeps_nothing: Callable[[], bool],
) -> None:
    """With a broker that does not signal acknowledgements, a job ends when the next
    message is processed. A message sent by a callback is processed within the job. One
    whose stop only its sender learns of reads as rejected.
    """
    others = Callbacks(), Stop(SkipMessage("not today"))
    order = (*others, ours) if is_first else (ours, *others)
    broker = MuteBroker(order, fail_fast=fail_fast)
    seen: list[JobState] = []
    outer: list[str] = []

    @job_actor(broker=broker)
    def call_back(data: Any, result: Any, *, job_state: JobState) -> None:
        outer.append(state_of(broker, seen[-1]).status)

    @job_actor(broker=broker)
    def run_marathon(what: str, *, job_state: JobState) -> None:
        seen.append(job_state)
        if what == "fail":
            raise ValueError("a cramp")

    stopped = run_marathon.message("stop")
    if fail_fast and not is_first:
        with contextlib.suppress(SkipMessage):
            broker.enqueue(stopped)
    for what in ("run", "fail", "run"):
        with contextlib.suppress(ValueError):
            run_marathon.send_with_options(
                args=(what,), on_success=call_back.actor_name
            )
    assert outer == ["working"] * 2
    statuses = [state_of(broker, job_state).status for job_state in seen]
    assert statuses == ["success", "error", "working"]
    broker.acknowledge_last()
    assert state_of(broker, seen[-1]).status == "success"
    if fail_fast and not is_first:
        state = load(broker, stopped)
        assert (state.status, state.attempt) == ("error", 0)
        assert state.error == JobError(None, "The message was rejected.")
    assert keeps_nothing()


class Roundabout(InCallerBroker):
    """Signals through a helper method that a message is processed."""

    def emit_before(self, signal: str, *args: Any, **kwargs: Any) -> None:
        self.tell(signal, *args, **kwargs)

    def tell(self, signal: str, *args: Any, **kwargs: Any) -> None:
        super().emit_before(signal, *args, **kwargs)


def test_job_that_runs_is_never_taken_for_one_that_was_left(
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
        assert state_of(broker, job_state).status == "working"
        job_state.set_message("done")

    state = load(broker, outer.send())
    assert (state.status, state.message) == ("success", "done")


class Handling(InCallerBroker):
    """Signals that a message was skipped after it has handled the exception, or not at
    all.
    """

    signals = True

    def _process(self, message: Any) -> None:
        try:
            super()._process(message)
        except SkipMessage:
            pass
        else:
            return
        if self.signals:
            self.emit_after("skip_message", message)


@pytest.mark.parametrize(
    ("is_first", "signals"), [(True, True), (False, True), (True, False)]
)
def test_skipped_job_has_nothing_to_do_with_what_its_sender_handles(
    ours: JobStateMiddleware, redis_url: str, is_first: bool, signals: bool
) -> None:
    """A job that is skipped, or skips itself, is cancelled, whatever exception its
    sender is handling. If the broker says nothing of it, that is no error of the job.
    """
    stop = Stop(SkipMessage("not today"))
    broker = Handling((stop, ours) if is_first else (ours, stop))
    broker.signals = signals

    @dramatiq.actor(broker=broker, job_state=True)
    def run_marathon(what: str) -> None:
        raise SkipMessage("of its own")

    texts = {"stop": "The message was skipped.", "skip": "of its own"}
    for what, text in texts.items():
        message = run_marathon.message(what)
        send_elsewhere(redis_url, message)
        try:
            raise KeyError("the sender's")
        except KeyError:
            broker.enqueue(message)
        state = load(broker, message)
        assert state.attempt == (1 if what == "skip" else 0)
        if signals:
            assert (state.status, state.error and state.error.message) == (
                "cancelled",
                text,
            )
        elif what == "stop":
            assert state.error is None


def test_job_that_has_returned_is_a_success_whatever_stops_its_sender(
    ours: JobStateMiddleware,
) -> None:
    """An interrupt in a middleware does not turn a returned job into an error."""

    class Interrupted(Middleware):
        def after_process_message(self, *args: Any, **kwargs: Any) -> None:
            raise KeyboardInterrupt

    broker = InCallerBroker([ours, Interrupted()])
    seen: list[JobState] = []

    @job_actor(broker=broker)
    def run_marathon(*, job_state: JobState) -> None:
        seen.append(job_state)

    with pytest.raises(KeyboardInterrupt):
        run_marathon.send()
    state = state_of(broker, seen[0])
    assert (state.status, state.error) == ("success", None)


def test_retry_that_the_broker_refuses_is_forgotten(
    ours: JobStateMiddleware, keeps_nothing: Callable[[], bool]
) -> None:
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
    assert (state.status, state.error) == ("error", CRAMP)
    assert keeps_nothing()


class Unsettling(Middleware):
    """Keeps later middleware from learning that a message is acknowledged."""

    def __init__(self) -> None:
        self.is_on = True

    def before_ack(self, broker: Any, message: Any) -> None:
        if self.is_on:
            self.is_on = False
            raise SkipMessage


def test_thread_of_a_worker_has_no_outer_job(redis_url: str) -> None:
    """A job whose end a worker thread never learned of is not the outer job of the next
    one: it has ended when that begins.
    """
    broker = make_broker(redis_url, before=AgeLimit)
    broker.add_middleware(Unsettling(), before=JobStateMiddleware)
    seen: list[Any] = []

    @job_actor(broker=broker)
    def run_marathon(*, job_state: JobState) -> None:
        ended = [state_of(broker, each).status for each, _, _ in seen]
        seen.append((job_state, ended, threading.current_thread()))

    with worker_of(broker, threads=1):
        for _ in range(3):
            message = run_marathon.send()
        wait_until(broker, message, "success")
    assert [ended for _, ended, _ in seen] == [[], ["success"], ["success"] * 2]
    assert len({thread for _, _, thread in seen}) == 1
