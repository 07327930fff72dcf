"""Hooks: what a class is told of the ends of its jobs."""

import datetime
import logging
import threading
import time
from collections.abc import Callable
from typing import Any
from unittest import mock

import dramatiq
import pytest
import redis
from dramatiq.brokers.redis import RedisBroker
from dramatiq.brokers.stub import StubBroker
from dramatiq.errors import ConnectionClosed
from dramatiq.middleware import Middleware, MiddlewareError, Retries

from pyramid_jobstate import (
    BulkResult,
    JobState,
    JobStateMiddleware,
    JobStore,
    rerun,
)
from pyramid_jobstate.errors import ActorError
from pyramid_jobstate.testing import away, pass_time, put_job
from tests.incaller import InCallerBroker
from tests.jobs import (
    Alarm,
    job_actor,
    load,
    make_broker,
    store_of,
    wait_until,
    working,
)
from tests.lost import keys_of, take_over
from tests.support import key_of, wait_for, write

#: What the hooks were told: their names, the jobs, and when these ended.
told: list[tuple[str, str, Any]] = []

#: What a hook does, by its name.
acts: dict[str, Callable[[JobState], object]] = {}


class Telling(JobState):
    """Notes each end."""

    def on_success(self) -> object:
        return self._note("on_success")

    def on_error(self) -> object:
        return self._note("on_error")

    def on_cancelled(self) -> object:
        return self._note("on_cancelled")

    def _note(self, hook: str) -> object:
        told.append((hook, self.uuid, self.finished_at))
        return acts.get(hook, lambda job: None)(self)


@pytest.fixture(autouse=True)
def quiet() -> None:
    """No hook has been told of anything."""
    told.clear()
    acts.clear()


@pytest.fixture
def broker(redis_url: str) -> RedisBroker:
    """Override: a broker whose workers look for ends ten times a second."""
    return make_broker(redis_url, JobStateMiddleware(heartbeat=0.1))


def hooks() -> list[tuple[str, str]]:
    """Return which hooks have run, and for which jobs."""
    return [(hook, uuid) for hook, uuid, _ in told]


def make_actor(broker: dramatiq.Broker, **options: Any) -> Any:
    """Declare an actor that raises what it is sent, if anything."""
    if "max_retries" in broker.actor_options:
        options = {"max_retries": 0, **options}

    @job_actor(broker=broker, **options)
    def run_marathon(error: str = "", *, job_state: Telling) -> None:
        job_state.set_progress_metric("miles", 26)
        if error:
            raise ValueError(error)

    return run_marathon


def cancel_late(actor: Any, count: int = 1) -> list[str]:
    """Send jobs that are due in a minute, cancel them, and return their uuids."""
    messages = [actor.message() for _ in range(count)]
    for message in messages:
        actor.broker.enqueue(message, delay=60_000)
        assert load(actor.broker, message).cancel()
    return [message.message_id for message in messages]


def call_hook(broker: dramatiq.Broker, *arguments: str) -> None:
    """Send a message that tells an end: the job, the hook, and when the job ended."""
    broker.enqueue(dramatiq.Message("default", "jobstate_hook", arguments, {}, {}))


def millis(moment: datetime.datetime) -> str:
    """Return how a message says when a job has ended."""
    return str(round(moment.timestamp() * 1000))


class Refusing(Middleware):
    """Refuses the messages of hooks that a function chooses."""

    def __init__(self, chooses: Callable[[Any], object] = lambda message: True) -> None:
        self.chooses = chooses

    def before_enqueue(self, broker: Any, message: Any, delay: Any) -> None:
        if message.actor_name == "jobstate_hook" and self.chooses(message):
            raise MiddlewareError("The queue is full.")


def is_retry(message: Any) -> bool:
    return bool(message.options.get("retries"))


def untold(broker: dramatiq.Broker) -> list[str]:
    """Return the jobs whose ends are to be told."""
    client: Any = store_of(broker).client
    keys = client.scan_iter("jobstate:untold:*")
    return [uuid for key in keys for uuid in client.zrange(key, 0, -1)]


@pytest.mark.promise("hook-runs-after-the-end")
def test_each_end_is_told_once(broker):
    """A hook gets the job as the store has it, whoever has ended it. Nothing is left to
    be told after that.
    """
    run_marathon = make_actor(broker)
    seen: dict[str, Any] = {}
    for hook in ("on_success", "on_error", "on_cancelled"):
        acts[hook] = lambda job: seen.update(
            {job.status: (job.progress_metrics, job.error and job.error.message)}
        )
    (cancelled,) = cancel_late(run_marathon)
    assert untold(broker) == [cancelled]
    with working(broker):
        good, bad = run_marathon.send(), run_marathon.send("blisters")
        wait_for(lambda: len(told) == 3)
        wait_for(lambda: not untold(broker))
        store_of(broker).client.flushdb()
    assert dict(hooks()) == {
        "on_success": good.message_id,
        "on_error": bad.message_id,
        "on_cancelled": cancelled,
    }
    assert seen == {
        "success": ({"miles": 26}, None),
        "error": ({"miles": 26}, "blisters"),
        "cancelled": ({}, "The job was cancelled."),
    }


def test_end_without_a_hook_of_its_class_is_not_told(broker, store):
    """A class with `on_success` alone hears of no cancel and of no failure. A clean-up
    takes the job.
    """

    class Cheering(JobState):
        def on_success(self) -> None:
            told.append(("on_success", self.uuid, self.finished_at))

    @job_actor(broker=broker, throws=ValueError)
    def cheer(error: str = "", *, job_state: Cheering) -> None:
        if error:
            raise ValueError(error)

    cancel_late(cheer)
    assert store.clear(everything=True) == BulkResult(1, 0, None)
    with working(broker):
        wait_until(broker, cheer.send("blisters"), "error")
        assert store.clear(everything=True) == BulkResult(1, 0, None)
        sent = cheer.send()
        wait_for(lambda: told)
    assert hooks() == [("on_success", sent.message_id)]


@pytest.mark.promise("job-that-goes-on-is-not-told")
def test_attempt_that_is_tried_again_is_no_end(broker):
    """Only the last attempt is told, and so is that of a job that an operator runs
    again: its uuid and the time of its end tell two ends apart.
    """
    broker.add_middleware(alarm := Alarm())
    run_marathon = make_actor(broker, max_retries=1, min_backoff=60_000)
    with working(broker):
        sent = run_marathon.send("blisters")
        wait_until(broker, sent, "retrying")
        assert not told and not untold(broker)
        alarm.ring()
        wait_for(lambda: told)
        assert rerun(store_of(broker), broker, sent.message_id)
        wait_for(lambda: len(told) == 2)
    assert hooks() == [("on_error", sent.message_id)] * 2
    assert told[0] != told[1]


def test_failure_is_told_whose_rerun_is_refused(broker):
    """Its message had to wait for the broker. A hook that has returned is not told
    again.
    """
    broker.add_middleware(refusing := Refusing())
    run_marathon, store = make_actor(broker), store_of(broker)
    with working(broker):
        sent = run_marathon.send("blisters")
        before = wait_until(broker, sent, "error")
    refusing.chooses = lambda message: False
    away = mock.patch.object(broker, "enqueue", side_effect=ConnectionClosed("No"))
    with away, pytest.raises(ConnectionClosed):
        rerun(store, broker, sent.message_id)
    assert not told and untold(broker) == [sent.message_id]
    with working(broker):
        wait_for(lambda: told)
        wait_for(lambda: store.clear(everything=True, limit=1).refused == 0)
    assert told == [("on_error", sent.message_id, before.finished_at)]


@pytest.mark.promise("failing-hook-spares-the-job")
def test_hook_that_fails_is_tried_again(broker, logged, said):
    """The job stays as it was, even if somebody clears the store or a second message
    tells the end, and the hook sees the same end. After that, a clean-up takes the job.
    """
    run_marathon, store = make_actor(broker), store_of(broker)
    broker.add_middleware(alarm := Alarm())

    def fail_once(job: JobState) -> None:
        if len(told) == 1:
            raise OSError("no mail today")

    acts["on_success"] = fail_once
    with working(broker):
        sent = run_marathon.send()
        wait_for(lambda: told)
        before = wait_until(broker, sent, "success")
        assert store.clear(everything=True).refused == 1
        said()
        call_hook(broker, sent.message_id, "on_success", millis(told[0][2]))
        wait_for(lambda: any("does not run" in line for line in said()))
        alarm.ring()
        wait_for(lambda: len(told) == 2)
        assert load(broker, sent).error is None
        wait_for(lambda: store.clear(everything=True).done == 1)
    assert told[0] == told[1] == ("on_success", sent.message_id, before.finished_at)
    assert not logged()


@pytest.mark.parametrize("retries", [None, Retries(max_retries=0)])
def test_hook_that_dramatiq_gives_up_is_logged(redis_url, logged, retries):
    """Without retries it has one try. The job stays as it was, and is named. A hook
    that a decorator makes async has failed, too: its class could not be refused.
    """

    async def sleep() -> None: ...

    others = () if retries is None else (retries,)
    broker = make_broker(redis_url, without=Retries, others=others)
    run_marathon = make_actor(broker)
    with working(broker):
        for act, error in (
            (lambda job: [][0], "IndexError: list index out of range"),
            (lambda job: sleep(), "TypeError: Telling.on_success() has returned a cor"),
        ):
            before = len(logged(logging.ERROR))
            acts["on_success"] = act
            sent = run_marathon.send()
            line = wait_for(lambda: logged(logging.ERROR)[before:])[0]  # noqa: B023
            said = f"on_success() of the job {sent.message_id} has failed for the last"
            assert line.startswith(said) and error in line
            assert load(broker, sent).status == "success"
    assert len(told) == 2


def test_worker_whose_class_is_another_says_so(redis_url, logged):
    """It has not imported the class, or that has no such hook, as where the job was
    sent. Once Dramatiq has given up, a clean-up takes the job.
    """

    class Fewer(JobState):
        def on_success(self) -> None: ...

    broker = make_broker(redis_url, without=Retries)
    make_actor(broker)
    store = store_of(broker)
    jobs = [put_job(store, Fewer, "error").uuid for _ in range(2)]
    for uuid, kind in zip(jobs, ("Fewer", "Nowhere"), strict=True):
        write(store, uuid, kind=kind, finished=1, hooks='["e","default",null,null]')
    assert store.clear(everything=True).refused == 2
    with working(broker):
        for uuid in jobs:
            call_hook(broker, uuid, "on_error", "1")
        wait_for(lambda: len(logged(logging.ERROR)) == 2)
    said = "".join(logged(logging.ERROR))
    assert "Fewer of this worker has no such hook" in said
    assert "has not imported the JobState class of the kind 'Nowhere'" in said
    assert store.clear(everything=True).done == 2


def test_hook_cannot_put_its_own_job_back(broker):
    """Else each end would bring about the next one. It may delete another job."""
    run_marathon = make_actor(broker)
    store = store_of(broker)
    other = put_job(store, status="success").uuid
    found: list[Any] = []

    def attempt(job: JobState) -> None:
        for act in (
            lambda: rerun(store, broker, job.uuid),
            lambda: store.delete(job.uuid),
            job.delete,
        ):
            with pytest.raises(RuntimeError, match=f"job {job.uuid} cannot"):
                act()
        found.append(job.cancel())
        found.append(store.delete(other))

    acts["on_error"] = attempt
    with working(broker):
        sent = run_marathon.send("blisters")
        wait_for(lambda: found)
        assert load(broker, sent).status == "error"
    assert found == [False, True] and len(told) == 1


@pytest.mark.promise("job-that-goes-on-is-not-told")
def test_message_of_a_past_end_runs_nothing(broker, said):
    """Nor does a second message for one that was told. Both are logged at INFO."""
    run_marathon = make_actor(broker)
    with working(broker):
        sent = run_marathon.send()
        wait_for(lambda: told)
        said()
        uuid, finished = sent.message_id, told[0][2]
        for end in ("1", millis(finished)):
            call_hook(broker, uuid, "on_success", end)
        lines: list[str] = []

        def have_both_come() -> bool:
            lines.extend(said())
            return len(lines) == 2

        wait_for(have_both_come)
    assert len(told) == 1
    assert sorted(lines) == [
        f"on_success() of the job {uuid} does not run: it was told before.",
        f"on_success() of the job {uuid} does not run: that end is no longer there.",
    ]


def test_hooks_have_a_queue_of_their_own(redis_url):
    """A worker that does not consume it leaves them to others."""
    broker = make_broker(redis_url, JobStateMiddleware(hooks_queue="mails"))
    run_marathon = make_actor(broker)
    worker = dramatiq.Worker(broker, queues={"default"}, worker_timeout=20)
    worker.start()
    # It does not expire, and no shutdown interrupts it.
    options = broker.actors["jobstate_hook"].options
    assert options == {"max_age": None, "notify_shutdown": False}
    sent = run_marathon.send()
    wait_until(broker, sent, "success")
    worker.stop()
    client: Any = store_of(broker).client
    assert client.llen("dramatiq:mails") == 1 and not told
    # Else it would be sent again and again until one comes.
    assert not untold(broker)
    # A clean-up must not keep it from running.
    cleared = store_of(broker).clear(everything=True)
    assert (cleared.done, cleared.refused) == (0, 1)
    with working(broker):
        wait_for(lambda: told)


def test_bad_queue_is_refused():
    """Where the middleware is made, and not where the first hook is sent."""
    for queue in "", "my mails", "1st", "mails,", 'a"b':
        with pytest.raises(ValueError, match=r"hooks_queue = .* is not the name of a"):
            JobStateMiddleware(hooks_queue=queue)
    with pytest.raises(TypeError, match="hooks_queue must be the name of a queue"):
        JobStateMiddleware(hooks_queue=7)  # type: ignore[arg-type]


def test_request_needs_a_middleware(redis_url):
    """A hook with a request is refused where its actor is declared."""

    class Asking(JobState):
        def on_error(self, request: Any) -> None: ...

    with pytest.raises(ActorError, match=r"Asking\.on_error\(\) needs a request, but"):

        @dramatiq.actor(broker=make_broker(redis_url), job_state=Asking)
        def run_marathon() -> None: ...


@pytest.mark.parametrize("tells_all", [False, True])
def test_broker_that_runs_jobs_in_the_caller_tells_them(
    redis_url, tells_all, logged, caplog
):
    """The process that sends is the worker: it tells the end at once. After that, it
    may delete the job. A hook that fails is logged, and nobody tries it again: the
    sender goes on.
    """
    broker = InCallerBroker([JobStateMiddleware(url=redis_url)], tells_all=tells_all)
    run_marathon = make_actor(broker)
    sent = run_marathon.send()
    assert hooks() == [("on_success", sent.message_id)]
    assert not untold(broker) and not caplog.records
    assert store_of(broker).delete(sent.message_id)
    acts["on_success"] = lambda job: 1 / 0
    sent = run_marathon.send()
    assert logged() == [
        f"on_success() of the job {sent.message_id} has failed for the last time, and "
        "is not told of this end again: ZeroDivisionError: division by zero"
    ]
    assert not untold(broker)


def test_clear_spares_what_is_to_be_told(broker, store):
    """It counts such jobs as refused. `delete()` deletes one, and it is not told."""
    run_marathon = make_actor(broker)
    one, other = cancel_late(run_marathon, 2)
    result = store.clear(everything=True)
    assert (result.done, result.refused) == (0, 2)
    assert store.delete(one) and untold(broker) == [other]
    with working(broker):
        wait_for(lambda: told)
        wait_for(lambda: not untold(broker))
    assert hooks() == [("on_cancelled", other)]
    assert store.clear(everything=True).done == 1


def test_message_that_the_broker_refuses_holds_up_no_other(broker, logged):
    """It is logged once, and sent as soon as the broker takes it."""
    refused: list[str] = []
    broker.add_middleware(Refusing(lambda message: message.args[0] in refused))
    first, *others = cancel_late(make_actor(broker), 3)
    refused.append(first)
    with working(broker):
        wait_for(lambda: len(told) == 2)
        assert {uuid for _, uuid in hooks()} == {*others}
        (line,) = logged()
        assert line.endswith("accepts them: MiddlewareError: The queue is full.")
        refused.clear()
        pass_time(store_of(broker), 20)
        wait_for(lambda: len(told) == 3)
    assert not untold(broker)


def test_broker_that_is_away_is_asked_once(redis_url, logged):
    """Each message would wait for it. They all leave once it is back."""
    asked: list[str] = []

    class Away(StubBroker):
        def enqueue(self, message: Any, *, delay: int | None = None) -> Any:
            if message.actor_name == "jobstate_hook" and len(asked) < 2:
                asked.append(message.args[0])
                raise ConnectionClosed(ConnectionError("It has gone away."))
            return super().enqueue(message, delay=delay)

    ours = JobStateMiddleware(url=redis_url, heartbeat=3600)
    broker = Away(middleware=[ours])
    cancel_late(make_actor(broker), 3)
    for number in (1, 2):
        with working(broker):
            wait_for(lambda: len(asked) == number)  # noqa: B023
        assert len(asked) == number and len(logged()) == 1
        pass_time(store_of(broker), 20)
    with working(broker):
        wait_for(lambda: len(told) == 3)
    assert not untold(broker)


def test_outage_of_the_store_is_logged_once(own, logged, caplog):
    """Workers look for ends all the time, and go on when the store is back. The next
    outage is logged, too.
    """
    caplog.set_level(logging.INFO, "pyramid_jobstate")
    broker = StubBroker(middleware=[JobStateMiddleware(own, heartbeat=0.05)])
    make_actor(broker)

    def wait_for_lines(number: int, level: int) -> None:
        wait_for(lambda: len(logged(level)) == number)

    with working(broker):
        for number in (1, 2):
            with away(own):
                wait_for_lines(number, logging.WARNING)
                threading.Event().wait(0.3)
            wait_for_lines(2 * number, logging.INFO)
    said = "The job state store does not accept updates."
    assert all(line.startswith(said) for line in logged())


def test_store_that_refuses_to_look_is_logged_once(named, client, logged):
    """A worker tells what it has written itself all the same. Once the store has let it
    look, the next refusal is logged, too.
    """

    def allow(sign: str) -> None:
        client.acl_setuser("worker", enabled=True, commands=[f"{sign}smembers"])

    allow("-")
    ours = JobStateMiddleware(JobStore(named), heartbeat=0.05)
    broker = StubBroker(middleware=[ours])
    run_marathon = make_actor(broker)
    (late,) = cancel_late(run_marathon)
    with working(broker):
        wait_for(logged)
        sent = run_marathon.send()
        wait_for(lambda: told)
        threading.Event().wait(0.2)
        (line,) = logged()
        assert hooks() == [("on_success", sent.message_id)]
        allow("+")
        wait_for(lambda: hooks()[1:] == [("on_cancelled", late)])
        allow("-")
        wait_for(lambda: logged()[1:] == [line])
    assert line.startswith("The job state store refuses to say of which ends hooks are")


def test_broker_that_hangs_holds_up_no_shutdown(broker):
    """A worker waits a second for the thread that sends the messages of hooks."""
    has_come, may_go = threading.Event(), threading.Event()

    def hang(message: Any) -> None:
        has_come.set()
        may_go.wait(30)

    broker.add_middleware(Refusing(hang))
    cancel_late(make_actor(broker))
    with working(broker):
        assert has_come.wait(10)
        since = time.monotonic()
    assert time.monotonic() - since < 10
    may_go.set()


def test_broker_without_requests_leaves_their_hooks_to_others(redis_url):
    """Two brokers of a process share a store. A worker of one whose hooks receive no
    request tells none of the others'.
    """

    class Asked(JobState):
        def on_cancelled(self, request: Any) -> None: ...

    plain = make_broker(redis_url, JobStateMiddleware(heartbeat=0.1))
    asked = put_job(store_of(plain), Asked, "queued", actor="run_marathon")
    write(store_of(plain), asked, hooks='["c","default",null,null]')
    assert asked.cancel() and cancel_late(make_actor(plain))
    with working(plain):
        wait_for(lambda: told)
    assert untold(plain) == [asked.uuid]


@pytest.mark.parametrize("is_away", [False, True])
def test_hook_is_told_again_if_its_next_try_is_lost(redis_url, proxy, logged, is_away):
    """The broker accepts no message for that while a hook fails. The store may be away,
    too.
    """
    store = JobStore(proxy.url)
    broker = make_broker(redis_url, JobStateMiddleware(store, heartbeat=0.1))
    broker.add_middleware(Refusing(is_retry))
    run_marathon = make_actor(broker)

    def fail_once(job: JobState) -> None:
        if len(told) == 1:
            proxy.judge = lambda request: "refuse" if is_away else "pass"
            raise OSError("no mail today")

    acts["on_success"] = fail_once
    client: Any = redis.Redis.from_url(redis_url)
    with working(broker):
        sent = run_marathon.send()
        wait_for(lambda: told and not client.hlen("dramatiq:default.msgs"))
        assert (len(told) == 1) or not is_away
        proxy.judge = lambda request: "pass"
        wait_for(lambda: len(told) == 2)
    assert told[0] == told[1] and hooks()[0] == ("on_success", sent.message_id)
    assert not [line for line in logged() if "for the last time" in line]


@pytest.mark.parametrize(
    ("changes", "is_left"),
    [({}, True), ({"finished": 1}, False), ({"hook": "another"}, False)],
)
def test_end_whose_message_is_lost_is_noted_at_once(redis_url, changes, is_left):
    """The worker may die before it looks for ends. Nothing is noted if the job has
    another end by then, or another message tells this one.
    """
    broker = make_broker(redis_url, JobStateMiddleware(heartbeat=3600))
    broker.add_middleware(Refusing(is_retry))
    run_marathon = make_actor(broker)
    client: Any = store_of(broker).client

    def fail(job: JobState) -> None:
        for name, value in changes.items():
            client.hset(f"jobstate:{job.uuid}", name, value)
        raise OSError("no mail today")

    acts["on_success"] = fail
    with working(broker):
        sent = run_marathon.send()
        wait_for(lambda: told and not client.hlen("dramatiq:default.msgs"))
    assert untold(broker) == [sent.message_id] * is_left


def test_ends_of_a_busy_kind_hold_up_no_other(broker, store):
    """A worker takes a hundred ends at a time, whatever the names of their kinds."""
    run_marathon = make_actor(broker)

    class Zigzag(Telling):
        """Its kind comes last in the alphabet."""

    @job_actor(broker=broker)
    def zigzag(*, job_state: Zigzag) -> None: ...

    messages = [run_marathon.message() for _ in range(900)] + [zigzag.message()]
    for message in messages:
        broker.enqueue(message, delay=600_000)
    assert store.cancel_all(everything=True).done == 901
    last = messages[-1].message_id
    with working(broker):
        wait_for(lambda: any(uuid == last for _, uuid in hooks()))
        assert len(told) < 900


def test_end_that_cannot_be_sent_yet_does_no_harm(redis_url, proxy, caplog):
    """The store may go away between the end and the message of its hook. The worker
    raises nothing then, so that whatever follows the end is written, too.
    """
    proxy.judge = lambda request: "refuse" if b":untold" in request else "pass"
    ours = JobStateMiddleware(JobStore(proxy.url), heartbeat=0.1)
    broker = make_broker(redis_url, ours)
    run_marathon = make_actor(broker)
    with working(broker):
        sent = run_marathon.send()
        wait_until(broker, sent, "success")
        broker.join("default")
        assert not told
        proxy.judge = lambda request: "pass"
        wait_for(lambda: told)
    assert not [each for each in caplog.records if each.levelno > logging.ERROR]


def outbox(store: JobStore) -> list[str]:
    """Return the keys of the sets of ends that are to be told."""
    return [key for key in keys_of(store.client) if ":untold:" in key]


def test_end_is_told_though_the_clock_was_set_back(broker, store):
    """A server has taken over whose clock is an hour behind."""
    (uuid,) = cancel_late(make_actor(broker))
    (key,) = outbox(store)
    client: Any = store.client
    client.zincrby(key, 3600 * 1_000_000, uuid)
    with working(broker):
        wait_for(lambda: told)
        wait_for(lambda: not outbox(store))
    assert hooks() == [("on_cancelled", uuid)]


def test_outbox_of_another_program(redis_url, store, said):
    """If another program has taken the keys of the outbox, nothing fails: the worker
    that has written an end tells it, and says once what is wrong with each key.
    """
    broker = make_broker(redis_url, JobStateMiddleware(heartbeat=60))
    run_marathon = make_actor(broker)
    cancel_late(run_marathon)
    (entries,) = outbox(store)
    take_over(store.client, entries, "jobstate:untold")
    with working(broker):
        run_marathon.send()
        wait_for(lambda: len(told) == 1)
        run_marathon.send()
        wait_for(lambda: len(told) == 2)
    assert {hook for hook, _ in hooks()} == {"on_success"}
    lines = [line for line in said() if "Another program" in line]
    assert sorted("jobstate:untold:" in line for line in lines) == [False, True]
    (uuid,) = cancel_late(run_marathon)
    assert store.delete(uuid)
    assert said() == []


def test_record_of_another_program(broker, store):
    """What another program has made of ended jobs holds up no others."""
    uuids = cancel_late(make_actor(broker), 3)
    take_over(store.client, key_of(store, uuids[0]))
    store.client.hdel(key_of(store, uuids[1]), "status")
    with working(broker):
        wait_for(lambda: told)
        wait_for(lambda: not outbox(store))
    assert hooks() == [("on_cancelled", uuids[2])]
