"""Brokers that run a job within the call that sends it, for development and tests."""

import contextlib
import gc
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import dramatiq
import dramatiq.broker
import greenlet
import pytest
import redis
from dramatiq import pipeline
from dramatiq.middleware import (
    Middleware,
    MiddlewareError,
    Pipelines,
    Retries,
    SkipMessage,
)

from pyramid_jobstate import JobError, JobState, JobStateMiddleware, current_job_state
from tests.incaller import InCallerBroker
from tests.jobs import job_actor, load, messages, store_of
from tests.support import load_job, wait_for
from tests.webapp import make_app, make_request, make_tm_config

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

    def __init__(self, error: type[Exception]) -> None:
        self.error = error

    def before_process_message(self, broker: Any, message: Any) -> None:
        if message.args[:1] == ("stop",):
            raise self.error("not today")


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

    def commands() -> Any:
        return client.info("stats")["total_commands_processed"]

    def is_quiet() -> bool:
        before = commands()
        # Two heartbeats, and many ticks of the recorder.
        time.sleep(0.1)
        return bool(commands() == before + 1)

    return lambda: current_job_state() is None and wait_for(is_quiet)


def state_of(broker: dramatiq.Broker, job_state: JobState | None) -> JobState:
    """Return what viewers see of the job of a JobState."""
    assert job_state is not None
    return load_job(store_of(broker), job_state.uuid)


def test_job_has_ended_when_send_returns(in_caller):
    """A job that returns is a success, with all that it reported, and one that raises
    is an error, even if the broker tells only the sender, and whatever that handles.
    """
    broker = in_caller()
    seen: list[JobState] = []

    @job_actor(broker=broker)
    def run_marathon(fails: bool, *, job_state: JobState) -> None:
        seen.append(job_state)
        for mile in job_state.track(range(2)):
            job_state.set_progress_metric("mile", mile)
            if fails and mile:
                raise ValueError("a cramp")
        assert state_of(broker, job_state).status == "working"
        assert current_job_state() is job_state

    def send() -> None:
        is_told: Any = pytest.raises(ValueError, match="a cramp")
        with is_told if broker.fail_fast else contextlib.nullcontext():
            run_marathon.send(True)
        run_marathon.send(False)

    send()
    try:
        raise KeyError("of the sender's")
    except KeyError:
        send()
    assert current_job_state() is None
    states = [state_of(broker, job_state) for job_state in seen]
    for failed, fine in zip(states[::2], states[1::2], strict=True):
        assert (failed.status, failed.error) == ("error", CRAMP)
        assert (fine.status, fine.error, fine.attempt) == ("success", None, 1)
        assert fine.progress_metrics == failed.progress_metrics == {"mile": 1}
        assert failed.progress is not None and failed.progress.fraction == 0.5
        assert fine.progress is not None and fine.progress.fraction == 1


# Jobs within jobs.


@pytest.mark.parametrize(
    "inner", ["success", "error", "cancelled", "skipped", "untracked", "called"]
)
def test_job_within_a_job_leaves_that_alone(in_caller, inner):
    """However the jobs that a job sends end, it can go on reporting, and it and they
    end with their own status. One that it calls directly has none.
    """
    broker = in_caller(Stop(SkipMessage))
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
                send = actor if inner == "called" else actor.send
                send("stop" if inner == "skipped" else inner)
            assert current_job_state() is job_state
            job_state.increment_progress_metric("after")
            assert state_of(broker, job_state).status == "working", number

    outer.send()
    state = state_of(broker, seen[0])
    assert (state.status, state.error) == ("success", None)
    assert state.progress_metrics == {"before": 1, "after": 2}
    if inner == "skipped":
        assert len(seen) == 1
    elif inner == "untracked":
        assert seen[1:] == [None, None]
    elif inner == "called":
        uuids = [job_state.uuid for job_state in seen[1:] if job_state]
        assert store_of(broker).load_many(uuids) == [None, None]
    else:
        statuses = [state_of(broker, job_state).status for job_state in seen[1:]]
        assert statuses == [inner, inner]


@pytest.mark.parametrize("is_first", [False, True])
def test_pipeline_runs_within_its_first_step(in_caller, alice, is_first):
    """Each step of a pipeline has its own end; those after a failure are cancelled."""
    broker = in_caller(*((None, Pipelines()) if is_first else (Pipelines(), None)))

    @dramatiq.actor(broker=broker, job_state=True)
    def step(miles: int, before: int = 0) -> int:
        if miles == 13:
            raise ValueError("a cramp")
        return miles + before

    for miles, ends in (
        ([0, 1, 2], ["success"] * 3),
        ([1, 13, 2, 3], ["success", "error", "cancelled", "cancelled"]),
    ):
        steps = [step.message(n) for n in miles]
        alice.send_immediately(pipeline(steps, broker=broker))
        assert [load(broker, each).status for each in steps] == ends


@pytest.mark.parametrize("is_first", [False, True])
def test_retry_runs_within_the_try_that_failed(in_caller, is_first):
    """The job counts its tries, and ends as the last."""
    retries = Retries(max_retries=3)
    broker = in_caller(*((None, retries) if is_first else (retries,)), fail_fast=False)

    @job_actor(broker=broker)
    def run_marathon(failures: int, *, job_state: JobState) -> None:
        job_state.set_progress_metric("attempt", job_state.attempt)
        state = state_of(broker, job_state)
        assert (state.status, state.attempt) == ("working", job_state.attempt)
        if job_state.attempt <= failures:
            raise ValueError("a cramp")

    for failures, status, attempts in ((2, "success", 3), (9, "error", 4)):
        state = load(broker, run_marathon.send(failures))
        assert (state.status, state.attempt) == (status, attempts)
        assert (state.error is None) == (status == "success")
        assert state.progress_metrics == {"attempt": attempts}


# What is left when a broker calls fewer hooks, or one is interrupted.


class Quitting(Middleware):
    """Quits when a message is acknowledged; no later middleware learns of it."""

    is_on = True

    def after_ack(self, broker: Any, message: Any) -> None:
        if self.is_on:
            self.is_on = False
            raise KeyboardInterrupt


def test_job_whose_end_nobody_told_ends_with_the_next_message(
    ours, keeps_nothing, caplog
):
    """Without one around it, its end is written when its thread processes the next
    message, which is not disturbed, not even by an end that cannot be written.
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

    for fails in False, True, False:
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


def test_jobs_of_two_greenlets_stay_separate(ours):
    """As in a gevent worker: one job ends, and the other still reports and ends."""
    broker = InCallerBroker([ours])
    main = greenlet.getcurrent()
    seen: list[JobState] = []

    @job_actor(broker=broker)
    def run_marathon(fails: bool, *, job_state: JobState) -> None:
        seen.append(job_state)
        main.switch()
        job_state.set_progress_metric("miles", 26)
        if fails:
            raise ValueError("a blister")

    first, second = (greenlet.greenlet(run_marathon.send) for _ in range(2))
    first.switch(False)
    second.switch(True)
    first.switch()
    statuses = [state_of(broker, job_state).status for job_state in seen]
    assert statuses == ["success", "working"]
    with pytest.raises(ValueError, match="a blister"):
        second.switch()
    states = [state_of(broker, job_state) for job_state in seen]
    assert [state.status for state in states] == ["success", "error"]
    assert [state.progress_metrics for state in states] == [{"miles": 26}] * 2


def test_job_that_leaves_with_the_transaction_runs_in_the_commit(
    ours, redis_url, monkeypatch
):
    """All have ended after it: jobs, the jobs that they send, and pipelines."""
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
    message = request.job_states.send_message
    with request.tm:
        one = request.job_states.send(run_marathon, 7)
        bad = request.job_states.send(run_marathon, 13)
        steps = message(run_marathon.message(7) | run_marathon.message(1))

    states = [request.job_states[job.uuid] for job in (one, bad, *steps)]
    ends = ["success", "error", "success", "success"]
    assert [state.status for state in states] == ends
    assert states[1].error == JobError("ValueError", "Bad luck")
    assert [load(broker, m).status for m in inner] == ["success"] * 2


def test_nothing_is_left_behind(in_caller, keeps_nothing):
    """Once all jobs have ended, nothing of them is kept, nor said to the store."""
    broker = in_caller(Retries(max_retries=1), Stop(MiddlewareError), fail_fast=False)
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


def test_retry_that_the_broker_refuses_is_an_error(ours, keeps_nothing):
    """The job ends in error, and nothing of it is kept."""

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
