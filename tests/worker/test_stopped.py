"""Messages that another middleware skips, refuses or puts back."""

import asyncio
import collections
import contextlib
import datetime
import functools
import threading
from collections import Counter
from typing import Any

import dramatiq
import pytest
from dramatiq.middleware import (
    AgeLimit,
    CurrentMessage,
    Middleware,
    MiddlewareError,
    Retries,
    SkipMessage,
)

from pyramid_jobstate import JobState, JobStateMiddleware, rerun
from tests.jobs import (
    Alarm,
    job_actor,
    load,
    make_broker,
    store_of,
    wait_until,
    working,
)
from tests.lost import disagreements, places_of
from tests.support import wait_for
from tests.worker.floors import Chore, idle_actor


class RefusedError(MiddlewareError):
    """A message is refused."""


class Stopping(Middleware):
    """Stops a message from its nth delivery on, in the way it says, and notes when."""

    def __init__(self) -> None:
        self.stopped: dict[str, datetime.datetime] = {}

    def before_process_message(self, broker: Any, message: Any) -> None:
        nth, how = message.args
        if message.options.get("retries", 0) + 1 < nth:
            return
        self.stopped[message.message_id] = datetime.datetime.now(datetime.UTC)
        if how != "refuse":
            message.fail()
        if how == "skip":
            raise SkipMessage("not today")
        if how == "refuse":
            raise RefusedError("not today")


@pytest.mark.parametrize("order", ["after", "before", "first"])
def test_attempt_is_that_of_the_last_run_that_began(redis_url, order):
    """Its start is, too, wherever the middleware stands that stops the job. That run's
    reports are kept if the message is stopped before ours sees it.
    """
    broker = make_broker(redis_url, before=None if order == "after" else AgeLimit)
    where: Any = JobStateMiddleware if order != "before" else None
    broker.add_middleware(stopping := Stopping(), before=where)
    began: dict[str, int] = collections.Counter()

    # The end of an attempt is written before the next one begins.
    @job_actor(broker=broker, min_backoff=100, max_backoff=200)
    def run_marathon(nth: int, how: str, *, job_state: JobState) -> None:
        began[job_state.uuid] += 1
        job_state.set_progress_metric("attempt", job_state.attempt)
        job_state.set_progress(job_state.attempt, 5)
        raise ValueError("a cramp")

    def send(nth: int, how: str) -> Any:
        return run_marathon.send_with_options(args=(nth, how), max_retries=nth)

    cases = [(nth, how) for nth in (1, 2) for how in ("skip", "refuse", "fail")]
    with working(broker, threads=6):
        sent = [send(*case) for case in cases]
        states = [wait_until(broker, m, "cancelled", "error") for m in sent]
    for (nth, how), state in zip(cases, states, strict=True):
        assert state.status == ("cancelled" if how == "skip" else "error")
        assert state.error is not None
        reason = "The message was rejected." if how == "fail" else "not today"
        assert state.error.message == reason
        assert (state.attempt, began[state.uuid]) == (nth - 1, nth - 1)
        if order != "before" and how != "fail":
            assert state.progress_metrics == ({"attempt": 1} if nth == 2 else {})
            assert (state.progress is not None) == (nth == 2)
        assert state.finished_at is not None
        assert (state.started_at is None) == (nth == 1)
        if state.started_at is not None:
            # It was put back for a tenth of a second at least.
            before = stopping.stopped[state.uuid] - state.started_at
            assert before > datetime.timedelta(seconds=0.05)
        if how != "skip":
            assert rerun(store_of(broker), broker, state.uuid)


class Once(Middleware):
    """Stops the messages of jobs that have ended before, in the way it says."""

    def __init__(self, how: str) -> None:
        self.how = how
        self.ended: set[str] = set()
        self.stopped: list[str] = []

    def before_process_message(self, broker: Any, message: Any) -> None:
        if message.message_id not in self.ended:
            return
        self.stopped.append(message.message_id)
        if self.how == "put back" and len(self.stopped) == 1:
            broker.enqueue(message, delay=1)
            raise SkipMessage("not now")
        if self.how == "refuse":
            raise RefusedError("once is enough")
        message.fail()
        if self.how != "fail":
            raise SkipMessage("once is enough")

    def after_process_message(self, broker: Any, message: Any, **options: Any) -> None:
        self.ended.add(message.message_id)


#: What stays of a job that has ended.
OF_AN_END = (
    *("status", "error", "attempt", "queued_at", "started_at", "finished_at"),
    *("progress", "progress_metrics", "message", "log", "updated_at"),
)


@pytest.mark.parametrize(
    ("order", "how"),
    [
        *(("before", how) for how in ("skip", "refuse", "fail")),
        # Put back before ours has seen it, it would wait again.
        *(("after", how) for how in ("skip", "refuse", "fail", "put back")),
    ],
)
@pytest.mark.parametrize("end", ["success", "error", "cancelled"])
def test_end_stands_if_the_message_that_comes_again_is_stopped(
    floor, client, logged, order, how, end
):
    """Whichever middleware stops it, wherever that stands. The job keeps its values and
    its failures, and stands in the lists as before.
    """
    where: Any = JobStateMiddleware if order == "before" else None
    floor.broker.add_middleware(once := Once(how), before=where)

    def run(job_state: Any) -> None:
        job_state.set_progress(2, 3)
        job_state.set_progress_metric("miles", 26)
        job_state.set_message("Halfway")
        job_state.append_log("Half of it")
        if end == "error":
            raise ValueError("a cramp")

    floor.scripts["a"] = run
    sent = floor.message("a")
    if end == "cancelled":
        sent = sent.copy(options={"max_age": 1}, message_timestamp=1)
    floor.broker.enqueue(sent)
    floor.work()
    once.ended.add(sent.message_id)
    job, failures = floor.load(sent.message_id), floor.store.failures(sent.message_id)
    places = set(places_of(client, sent.message_id))
    assert (job.status, once.stopped) == (end, [])
    for number in (1, 2):
        floor.deliver(sent.copy(options={"max_age": None}))
        floor.work()
        assert len(once.stopped) >= number
        after = floor.load(sent.message_id)
        for name in OF_AN_END:
            assert getattr(after, name) == getattr(job, name), name
        assert floor.store.failures(sent.message_id) == failures
        assert set(places_of(client, sent.message_id)) == places
        assert disagreements(client) == set()
    assert floor.ran == Counter({"a": 1} if end != "cancelled" else {})
    assert not logged()
    floor.broker.middleware.remove(once)
    if end == "error":
        assert rerun(floor.store, floor.broker, sent.message_id)
    else:
        floor.deliver(sent.copy(options={"max_age": None}))
    floor.scripts.clear()
    floor.work()
    assert floor.statuses(sent) == ["success"]
    assert disagreements(client) == set()


class Lock(Middleware):
    """Lets one message of a job at a time run: it skips the others, before they are
    processed or, if it wraps functions, after it has waited in vain for a lock.
    """

    def __init__(self, *, wraps: bool) -> None:
        self.wraps = wraps
        self.taken: set[str] = set()
        self.skipped: list[str] = []
        self.may_skip = threading.Event()
        self.may_skip.set()

    def take(self, uuid: str) -> None:
        if uuid in self.taken:
            self.skipped.append(uuid)
            assert self.may_skip.wait(30)
            raise SkipMessage("once is enough")
        self.taken.add(uuid)

    def before_process_message(self, broker: Any, message: Any) -> None:
        if not self.wraps:
            self.take(message.message_id)

    def after_declare_actor(self, broker: Any, actor: Any) -> None:
        inner = actor.fn

        @functools.wraps(inner)
        def fn(*args: Any, **kwargs: Any) -> Any:
            message: Any = CurrentMessage.get_current_message()
            self.take(message.message_id)
            return inner(*args, **kwargs)

        if self.wraps and actor.actor_name == "errand":
            actor.fn = fn


class Overheard(Chore):
    def on_success(self) -> None:
        ENDS.append(("success", self.uuid))

    def on_cancelled(self) -> None:
        ENDS.append(("cancelled", self.uuid))


#: What hooks were told.
ENDS: list[tuple[str, str]] = []


@pytest.mark.promise("skipped-copy-changes-nothing")
@pytest.mark.parametrize("wraps", [False, True])
def test_copy_that_is_skipped_while_its_job_runs_changes_nothing(
    make_floor, logged, wraps
):
    """The run goes on, and its values, its end and its hook stand."""
    once = Lock(wraps=wraps)
    floor = make_floor(cls=Overheard, others=[CurrentMessage(), once])
    held = floor.hold(floor.message("a"))
    floor.broker.enqueue(held.message)
    floor.start()
    held.wait().job_state.set_progress_metric("miles", 13)
    floor.deliver(held.message)
    wait_for(lambda: once.skipped and floor.is_idle(but=1))
    assert held.job_state.flush(10)
    assert (held.load().status, held.load().attempt) == ("working", 1)
    held.job_state.set_progress_metric("miles", 26)
    held.end()
    wait_for(floor.is_idle)
    assert held.load().progress_metrics == {"miles": 26}
    assert held.load().status == "success"
    assert [end for end in ENDS if end[1] == held.uuid] == [("success", held.uuid)]
    assert not logged()


@pytest.mark.promise("skipped-copy-changes-nothing")
@pytest.mark.parametrize("wraps", [False, True])
@pytest.mark.parametrize("is_sent", [False, True])
def test_end_stands_while_its_message_is_being_skipped(make_floor, wraps, is_sent):
    """A cancel that comes meanwhile finds the end, unless the job was sent again."""
    once = Lock(wraps=wraps)
    floor = make_floor(others=[CurrentMessage(), once])
    floor.scripts["a"] = lambda job: job.set_progress_metric("miles", 26)
    message = floor.post("a")
    floor.work()
    ended = floor.load(message.message_id)
    once.may_skip.clear()
    (floor.broker.enqueue if is_sent else floor.deliver)(message)
    with floor.working():
        wait_for(lambda: once.skipped)
        assert floor.load(message.message_id).status == (
            "queued" if is_sent else "success"
        )
        if not is_sent:
            assert not floor.load(message.message_id).cancel()
        once.may_skip.set()
        wait_for(floor.is_idle)
    after = floor.load(message.message_id)
    for name in OF_AN_END:
        assert getattr(after, name) == getattr(ended, name), name


@pytest.mark.parametrize("order", ["after", "before"])
def test_retry_that_is_dropped_before_its_attempt_has_ended(
    make_floor, slow, relay, order
):
    """Its job ends once the end of that attempt is written, wherever the middleware
    stands that drops it.
    """
    floor, other = make_floor(slow), make_floor()
    where: Any = JobStateMiddleware if order == "before" else None
    other.broker.add_middleware(Stopping(), before=where)
    held = floor.begin(max_retries=1, min_backoff=3_600_000)
    retry = held.message.copy(args=(2, "skip"), options={"retries": 1})
    with relay.frozen():
        held.leave(ValueError("a cramp"))
        assert held.settled.wait(10)
        other.deliver(retry)
        other.work()
        assert held.reads("working")
    wait_for(lambda: held.reads("cancelled"))
    assert held.load().error.message == "not today"


class Refuse(Middleware):
    """Refuses messages while it is told to, and notes which are settled."""

    is_on = False

    def __init__(self) -> None:
        self.settled: list[str] = []

    def before_process_message(self, broker: Any, message: Any) -> None:
        if self.is_on:
            raise RefusedError("not today")

    def after_ack(self, broker: Any, message: Any) -> None:
        self.settled.append(message.message_id)

    after_nack = after_ack


@pytest.mark.parametrize("order", ["after", "before"])
def test_copy_that_is_refused_while_its_job_runs(floor, order):
    """It is put back. The run goes on, and fails for its own reason."""
    where: Any = JobStateMiddleware if order == "before" else None
    floor.broker.add_middleware(refuse := Refuse(), before=where)
    held = floor.begin(max_retries=1, min_backoff=3_600_000)
    refuse.is_on = True
    floor.deliver(held.message)
    wait_for(lambda: refuse.settled)
    assert held.job_state.flush(10) and held.reads("working")
    held.end(ValueError("a cramp"))
    assert held.load().status == "retrying"
    assert held.load().error.message == "a cramp"


def test_step_that_runs_again_in_vain_drops_the_steps_after_it(floor):
    """A failed step that runs again, but is skipped, has failed as before. The steps
    after it, which waited for it once more, are not reached.
    """
    steps = [floor.message(name, pipe_ignore=True) for name in ("fails", "b")]
    request = floor.request()
    with request.tm:
        request.job_states.send_message(dramatiq.pipeline(steps, broker=floor.broker))
    floor.work()
    assert floor.statuses(*steps) == ["error", "cancelled"]
    floor.broker.add_middleware(once := Once("skip"))
    once.ended.add(steps[0].message_id)
    assert rerun(floor.store, floor.broker, steps[0].message_id)
    assert floor.statuses(*steps) == ["queued", "queued"]
    floor.work()
    assert floor.statuses(*steps) == ["error", "cancelled"]
    assert floor.ran == Counter(fails=1)


@pytest.mark.parametrize("order", ["after", "before", "last"])
def test_message_that_is_refused_and_put_back_waits(redis_url, order):
    """It reads retrying, with the time it is due, wherever the middlewares stand."""
    places: dict[str, Any] = {"before": AgeLimit, "last": Retries}
    broker = make_broker(redis_url, before=places.get(order))
    seen: list[str] = []

    class RefusingOnce(Middleware):
        def before_process_message(self, broker: Any, message: Any) -> None:
            seen.append(load(broker, message).status)
            if len(seen) == 1:
                raise RefusedError("not today")

    where: Any = None if order == "before" else JobStateMiddleware
    broker.add_middleware(RefusingOnce(), before=where)
    broker.add_middleware(alarm := Alarm())
    message = idle_actor(broker, min_backoff=60_000, max_backoff=60_001).send()
    with working(broker):
        state: Any = wait_until(broker, message, "retrying")
        assert (state.attempt, state.started_at) == (0, None)
        assert state.error.message == "not today"
        assert 10 < (state.due_at - state.updated_at).total_seconds() < 61
        alarm.ring()
        state = wait_until(broker, message, "success", "error", "cancelled")
    assert (state.status, state.attempt, state.due_at) == ("success", 2, None)
    assert seen == ["queued", "retrying"]


@pytest.mark.parametrize("order", ["before", "after", "first"])
def test_message_that_a_limiter_puts_back_waits(redis_url, alice, order):
    """It is not finished, and the next step waits, wherever the limiter stands."""
    broker = make_broker(redis_url, before=AgeLimit if order == "first" else None)
    seen: list[str] = []

    class Limiter(Middleware):
        """Puts the first deliveries back for a while, and skips them."""

        def before_process_message(self, broker: Any, message: Any) -> None:
            seen.append(message.message_id)
            if len(seen) < 3:
                broker.enqueue(message, delay=60_000)
                raise SkipMessage("not now")

    where: Any = None if order == "after" else JobStateMiddleware
    broker.add_middleware(Limiter(), before=where)
    broker.add_middleware(alarm := Alarm())
    over: list[Any] = []
    run_marathon = idle_actor(broker)
    steps = [run_marathon.message() for _ in range(2)]
    pipe = dramatiq.pipeline(steps, broker=broker)

    def delivered(times: int) -> bool:
        over.extend(alice[job.uuid] for job in sent)
        return len(seen) >= times

    with working(broker):
        sent = alice.send_immediately(pipe)
        state: Any = wait_until(broker, steps[0], "retrying")
        assert (state.attempt, state.error) == (0, None)
        # The put-back is written a moment after it happened.
        assert 50 < (state.due_at - state.updated_at).total_seconds() <= 60
        alarm.ring()
        assert wait_for(lambda: delivered(3))
        assert not {state.status for state in over} & {"cancelled", "error"}
        for message in steps:
            wait_until(broker, message, "success")


class Wrap(Middleware):
    """Calls the functions of actors in its own way."""

    def __init__(self, call: Any) -> None:
        self.call = call

    def after_declare_actor(self, broker: Any, actor: Any) -> None:
        if actor.actor_name == "errand":
            actor.fn = functools.partial(self.call, actor.fn)


def in_another_thread(fn: Any, *args: Any) -> Any:
    return asyncio.run(asyncio.to_thread(fn, *args))


def twice(fn: Any, *args: Any) -> Any:
    """Try again what fails, as a decorator that knows nothing of Dramatiq does."""
    try:
        return fn(*args)
    except Exception:
        return fn(*args)


def test_function_that_is_called_in_another_thread(floor):
    """Its reports are those of its job, which it may not start once it is cancelled."""
    floor.broker.add_middleware(Wrap(in_another_thread))
    floor.scripts["a"] = lambda job: job.set_progress_metric("miles", 26)
    message, cancelled = floor.post("a"), floor.post("b")
    assert floor.load(cancelled.message_id).cancel()
    floor.work()
    assert floor.statuses(message, cancelled) == ["success", "cancelled"]
    assert floor.load(message.message_id).progress_metrics == {"miles": 26}
    assert floor.ran == Counter(a=1)


def test_function_that_is_not_called(make_floor):
    """A job whose wrapper answers in its place succeeds. A copy that is answered so
    while the job runs leaves it alone.
    """
    floor, other = make_floor(), make_floor()
    other.broker.add_middleware(Wrap(lambda fn, *args: None))
    message = other.post("a")
    other.work()
    job = other.load(message.message_id)
    assert (job.status, job.attempt) == ("success", 1)
    assert job.started_at is not None
    held = floor.begin()
    other.deliver(held.message)
    other.work()
    assert held.reads("working")
    held.end(lambda job_state: job_state.set_message("Done"))
    assert (held.load().status, held.load().message) == ("success", "Done")


def in_silence(fn: Any, *args: Any) -> Any:
    """Return None in place of what raises."""
    with contextlib.suppress(Exception):
        return fn(*args)


@pytest.mark.parametrize("call", [twice, in_silence])
def test_wrapper_that_handles_what_skips_a_cancelled_job(floor, call):
    """The job does not run, and stays cancelled."""
    floor.broker.add_middleware(Wrap(call))
    message = floor.post("a")
    assert floor.load(message.message_id).cancel()
    floor.work()
    assert (floor.statuses(message), floor.ran) == (["cancelled"], Counter())
