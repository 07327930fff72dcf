"""Jobs that are sent by Dramatiq's own send(), without a request."""

import contextlib
import logging
import threading
from typing import Any

import dramatiq
import pytest
import redis
from dramatiq.brokers.redis import RedisBroker
from dramatiq.brokers.stub import StubBroker
from dramatiq.middleware import Middleware

from pyramid_jobstate import JobState, JobStateMiddleware, JobStore
from pyramid_jobstate.testing import away, pass_time
from tests.faulty import faulty
from tests.jobs import (
    Alarm,
    Gate,
    RunMarathon,
    job_actor,
    load,
    make_broker,
    messages,
    store_of,
    wait_until,
    working,
)
from tests.support import load_job, wait_for


@pytest.fixture
def run_marathon(stub: dramatiq.Broker) -> dramatiq.Actor[..., None]:
    """A tracked actor of that broker."""

    @dramatiq.actor(broker=stub, job_state=RunMarathon)
    def run_marathon(miles: int = 26) -> None: ...

    return run_marathon


# Parameters.


def test_params_have_the_names_that_the_actor_gives_them(stub: dramatiq.Broker) -> None:
    """What was sent is stored by the names of the parameters, even if the call is going
    to fail.
    """

    @dramatiq.actor(broker=stub, job_state=True)
    def run(a: int, b: int = 0, *more: int, **options: int) -> None: ...

    cases: list[tuple[Any, Any, Any]] = [
        ([1], {}, {"a": 1}),
        ([1, 2], {}, {"a": 1, "b": 2}),
        ([1, 2, 3, 4], {}, {"a": 1, "b": 2, "more": [3, 4]}),
        ([], {"a": 1, "x": 2}, {"a": 1, "x": 2}),
        ([], {"x": 2}, {"x": 2}),
    ]
    for args, kwargs, params in cases:
        assert load(stub, run.send(*args, **kwargs)).job_params == params


def test_params_leave_out_what_cannot_be_stored(stub: dramatiq.Broker) -> None:
    """A value of more than 16 KiB is left out, and one that JSON cannot say, which
    another encoder of messages allows.
    """

    @dramatiq.actor(broker=stub, job_state=True)
    def run(thing: object, miles: int) -> None: ...

    assert load(stub, run.send("x" * 20_000, 26)).job_params == {"miles": 26}
    dramatiq.set_encoder(dramatiq.PickleEncoder())
    try:
        assert load(stub, run.send({1, 2}, 26)).job_params == {"miles": 26}
    finally:
        dramatiq.set_encoder(dramatiq.JSONEncoder())


# Sending.


def test_job_is_queued_before_its_message_is_visible(redis_url: str) -> None:
    """Its owner is the one that the send names."""
    seen: list[JobState] = []

    class Looking(StubBroker):
        def emit_before(self, signal: str, *args: Any, **kwargs: Any) -> None:
            super().emit_before(signal, *args, **kwargs)
            if signal == "enqueue":
                seen.append(load(self, args[0]))

    broker = Looking()
    broker.add_middleware(JobStateMiddleware(url=redis_url))

    @dramatiq.actor(broker=broker, job_state=RunMarathon)
    def run_marathon(miles: int) -> None: ...

    run_marathon.send(26)
    run_marathon.send_with_options(args=(26,), job_owner="alice")
    assert [state.status for state in seen] == ["queued"] * 2
    assert [state.owner for state in seen] == [None, "alice"]
    assert seen[0].attempt == 0 and seen[0].queued_at and seen[0].due_at is None


def test_owner_that_cannot_be_one_owns_nothing(
    broker: RedisBroker, caplog: pytest.LogCaptureFixture
) -> None:
    """The job runs, for nobody, and a warning names the owner."""

    @dramatiq.actor(broker=broker, job_state=True)
    def run_marathon() -> None: ...

    sent = {}
    owner: Any
    for owner in (float("nan"), float("inf"), -float("inf"), True, ["a"], {}):
        sent[repr(owner)] = run_marathon.send_with_options(job_owner=owner)
    assert [load(broker, message).owner for message in sent.values()] == [None] * 6
    with working(broker):
        for message in sent.values():
            wait_until(broker, message, "success")
    said = [m for m in messages(caplog, "pyramid_jobstate") if "has no owner" in m]
    for text in sent:
        assert any(f"not {text}." in line for line in said), text
    assert not [r for r in caplog.records if r.exc_info]


def test_delayed_job_says_when_it_is_due(broker: RedisBroker) -> None:
    """It reads queued until then, and runs. A delay that Dramatiq accepts and no time
    can say is cut short.
    """
    broker.add_middleware(alarm := Alarm())

    @dramatiq.actor(broker=broker, job_state=RunMarathon)
    def run_marathon() -> None: ...

    message = run_marathon.send_with_options(delay=3000)
    state = load(broker, message)
    assert state.status == "queued" and state.due_at and state.queued_at
    assert abs((state.due_at - state.queued_at).total_seconds() - 3) < 0.01
    with working(broker):
        alarm.ring()
        assert wait_until(broker, message, "success").due_at is None
    endless = load(broker, run_marathon.send_with_options(delay=10**30))
    assert endless.status == "queued"
    assert endless.due_at is not None and endless.due_at.year > 5000


def test_message_whose_id_is_no_uuid_is_not_tracked(
    broker: RedisBroker, client: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    """Its actor gets a detached JobState, with one warning for all such messages."""
    ran = threading.Semaphore(0)

    @job_actor(broker=broker)
    def run_marathon(*, job_state: JobState) -> None:
        job_state.set_progress_metric("x", 1)
        ran.release()

    with working(broker):
        for number in range(2):
            fields: Any = {
                **run_marathon.message().asdict(),
                "message_id": f"n{number}",
            }
            broker.enqueue(dramatiq.Message(**fields))
            assert ran.acquire(timeout=5)
    assert client.keys("jobstate*") == []
    assert messages(caplog, "pyramid_jobstate") == [
        "Messages whose id is not a uuid are not tracked, such as 'n0'."
    ]


def test_message_that_cannot_be_encoded_leaves_no_job(
    run_marathon: dramatiq.Actor[..., None], client: redis.Redis
) -> None:
    """The sender is told, and nothing is stored."""
    with pytest.raises(TypeError, match="not JSON serializable"):
        run_marathon.send(object())
    assert client.keys("jobstate*") == []


def test_worker_that_is_faster_than_the_senders_hook_wins(redis_url: str) -> None:
    """A job that has begun before its sender learns that the broker took the message
    keeps its status.
    """
    gate = Gate()

    class Slow(Middleware):
        def after_enqueue(self, broker: Any, message: Any, delay: Any) -> None:
            gate.wait_for_job()

    broker = make_broker(redis_url)
    # These hooks run in reverse.
    broker.add_middleware(Slow())

    @dramatiq.actor(broker=broker, job_state=RunMarathon)
    def run_marathon() -> None:
        gate.wait()

    with working(broker):
        message = run_marathon.send()
        assert load(broker, message).status == "working"
        gate.open()
        wait_until(broker, message, "success")


def test_job_that_the_broker_refuses_reads_stalled(client: redis.Redis) -> None:
    """It does not read queued for ever. Others do for as long as they wait."""
    store = JobStore(client)

    class Refusing(StubBroker):
        refuses = False

        def enqueue(self, message: Any, *, delay: int | None = None) -> Any:
            if self.refuses:
                self.emit_before("enqueue", message, delay)
                raise dramatiq.errors.ConnectionClosed("away")
            return super().enqueue(message, delay=delay)

    broker = Refusing()
    broker.add_middleware(JobStateMiddleware(store))

    @dramatiq.actor(broker=broker, job_state=RunMarathon)
    def run_marathon() -> None: ...

    accepted, refused = run_marathon.send(), run_marathon.message()
    broker.refuses = True
    with pytest.raises(dramatiq.errors.ConnectionClosed):
        broker.enqueue(refused)
    assert load(broker, refused).status == "queued"
    pass_time(store, store.stalled_after + 1)
    assert load(broker, refused).status == "stalled"
    assert load(broker, refused).is_working
    assert load(broker, accepted).status == "queued"


# Trouble with the store.


def test_send_without_the_store_goes_out(
    redis_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """While the store is away, plain sends still go out, with one warning for all. Once
    it is back, their jobs appear when they start, and further ones when they are sent.
    """
    store = JobStore(redis_url)
    broker = make_broker(redis_url, JobStateMiddleware(store))

    @job_actor(broker=broker)
    def run_marathon(miles: int, *, job_state: JobState) -> None:
        job_state.set_progress_metric("miles_run", miles)

    with away(store):
        sent = [run_marathon.send(i) for i in range(3)]
    assert len(messages(caplog, "pyramid_jobstate")) == 1
    with working(broker):
        for message in sent:
            wait_until_known(broker, message)
            assert load(broker, message).owner is None
    assert [load(broker, m).progress_metrics for m in sent] == [
        {"miles_run": i} for i in range(3)
    ]
    caplog.clear()
    with away(store):
        run_marathon.send(4)
    assert len(messages(caplog, "pyramid_jobstate")) == 1

    def is_recorded() -> bool:
        return store.load(run_marathon.send(5).message_id) is not None

    wait_for(is_recorded)
    assert is_recorded() and is_recorded()


def test_send_that_the_store_refuses_is_logged(
    stub: dramatiq.Broker, client: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    """A full server keeps no message from its actor."""

    @dramatiq.actor(broker=stub, job_state=True)
    def run_marathon() -> None: ...

    client.config_set("maxmemory", 1)
    try:
        message = run_marathon.send()
    finally:
        client.config_set("maxmemory", 0)
    (said,) = messages(caplog, "pyramid_jobstate")
    assert said.startswith("The store refused to note that a job is sent.")
    with working(stub):
        wait_until_known(stub, message)


def wait_until_known(broker: dramatiq.Broker, message: Any) -> None:
    """Wait until a job is a success that had no record at first."""
    store = store_of(broker)

    def is_success() -> bool:
        state = store.load(message.message_id)
        return state is not None and state.is_success

    wait_for(is_success)


def test_store_that_goes_away_during_a_send_is_no_error(redis_url: str) -> None:
    """A job whose record was written does not go stalled because the store was away for
    another one meanwhile. If it is away when the broker has taken the message, the
    send goes out.
    """
    store = JobStore(redis_url)

    class Trouble(Middleware):
        def after_enqueue(self, broker: Any, message: Any, delay: Any) -> None:
            if message.args == (1,):
                with away(store):
                    broker.get_actor("run_marathon").send(2)
            if message.args == (3,):
                stack.enter_context(away(store))

    broker = StubBroker()
    broker.add_middleware(JobStateMiddleware(store))
    # These hooks run in reverse.
    broker.add_middleware(Trouble())

    @dramatiq.actor(broker=broker, job_state=True)
    def run_marathon(number: int) -> None: ...

    first = run_marathon.send(1)
    third = run_marathon.message(3)
    with contextlib.ExitStack() as stack:
        broker.enqueue(third)
    assert broker.queues["default"].qsize() == 3
    assert load(broker, third).status == "queued"
    pass_time(store, store.stalled_after + 1)
    assert load(broker, first).status == "queued"


def test_send_does_not_end_the_trouble_of_a_running_job(
    redis_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """While what a running job reports cannot be written, a send that the store takes
    does not say that the store is back.
    """
    caplog.set_level(logging.INFO, "pyramid_jobstate")
    gate = Gate()
    with faulty(redis_url) as proxy:
        middleware = JobStateMiddleware(url=proxy.url, interval=0.02, heartbeat=0.05)
        broker = make_broker(redis_url, middleware)

        @dramatiq.actor(broker=broker, job_state=True)
        def run_marathon() -> None:
            gate.wait()

        @dramatiq.actor(broker=broker, job_state=True)
        def wait() -> None: ...

        def said() -> list[str]:
            return messages(caplog, "pyramid_jobstate", logging.INFO)

        with working(broker, threads=1):
            uuid = run_marathon.send().message_id
            gate.wait_for_job()
            # The store has several nodes, and that of this job is away.
            proxy.judge = lambda request: (
                "refuse" if uuid.encode() in request else "pass"
            )
            wait_for(said)
            store = JobStore(redis_url)
            wait_for(
                lambda: store.load(wait.send_with_options(delay=60_000).message_id)
            )
            assert len(said()) == 1
            proxy.judge = lambda request: "pass"
            wait_for(lambda: "again" in said()[-1])
            gate.open()


def test_error_of_one_job_is_no_outage(
    broker: RedisBroker, client: redis.Redis
) -> None:
    """A job whose key another program has overwritten is sent without a state. The next
    ones get theirs, and those that were cancelled do not run.
    """
    runs = []

    @dramatiq.actor(broker=broker, job_state=True)
    def run_marathon() -> None:
        runs.append(1)

    poisoned = run_marathon.message()
    client.set(f"jobstate:{poisoned.message_id}", "not a hash")
    broker.enqueue(poisoned)
    cancelled = [run_marathon.send() for _ in range(3)]
    assert all(load(broker, message).cancel() for message in cancelled)
    broker.enqueue(poisoned.copy(message_id=poisoned.message_id))
    with working(broker):
        broker.join("default", timeout=20_000)
    assert len(runs) == 2
    assert [load(broker, message).status for message in cancelled] == ["cancelled"] * 3


# Sends within sends.


class Auditor(Middleware):
    """Sends its own message from each enqueue hook of the others."""

    def __init__(self) -> None:
        self.audit: Any = None

    def before_enqueue(self, broker: Any, message: Any, delay: Any) -> None:
        if self.audit is not None and message.actor_name == "run_marathon":
            self.audit.send()

    def after_enqueue(self, broker: Any, message: Any, delay: Any) -> None:
        self.before_enqueue(broker, message, delay)


@pytest.mark.parametrize("tracked", [False, True])
@pytest.mark.parametrize("is_last", [False, True])
def test_send_within_an_enqueue_hook_confuses_nothing(
    redis_url: str, is_last: bool, tracked: bool
) -> None:
    """A middleware that sends a message whenever another is sent does not change that
    one's state, whether it comes before or after ours.
    """
    auditor = Auditor()
    broker = make_broker(redis_url, others=() if is_last else (auditor,))
    if is_last:
        broker.add_middleware(auditor)
    broker.add_middleware(alarm := Alarm())

    @job_actor(broker=broker, min_backoff=60_000, max_retries=1)
    def run_marathon(*, job_state: JobState) -> None:
        if job_state.attempt == 1:
            raise ValueError("as planned")

    options: dict[str, Any] = {"job_state": True} if tracked else {}

    @dramatiq.actor(broker=broker, **options)
    def audit() -> None: ...

    auditor.audit = audit
    message = run_marathon.send()
    store = store_of(broker)
    pass_time(store, store.stalled_after + 1)
    assert load_job(store, message.message_id).status == "queued"
    with working(broker):
        state = wait_until(broker, message, "retrying", "error")
        assert state.status == "retrying"
        alarm.ring()
        assert wait_until(broker, message, "success", "error").status == "success"


def test_job_put_back_by_an_operator_is_queued(broker: RedisBroker) -> None:
    """A failed job whose message is put back reads queued, and runs again."""
    fails = [True]

    @dramatiq.actor(broker=broker, max_retries=0, job_state=True)
    def run_marathon() -> None:
        if fails.pop():
            raise ValueError

    with working(broker):
        message = run_marathon.send()
        wait_until(broker, message, "error")
    fails.append(False)
    broker.enqueue(message)
    assert load(broker, message).status == "queued"
    with working(broker):
        assert wait_until(broker, message, "success", "error").status == "success"


def test_store_with_short_durations_hears_of_jobs_more_often(redis_url: str) -> None:
    """A silent job is confirmed before it reads stalled, and before it expires."""
    gate = Gate()
    stalls = JobStore(redis_url, stalled_after=0.3)
    expires = JobStore(redis_url, namespace="other", active_expire_in=1.5)
    brokers = [
        make_broker(redis_url, JobStateMiddleware(stalls)),
        RedisBroker(url=redis_url, namespace="other"),
    ]
    brokers[1].add_middleware(JobStateMiddleware(expires))
    with contextlib.ExitStack() as stack:
        sent = []
        for broker in brokers:

            @dramatiq.actor(broker=broker, job_state=True)
            def run_marathon() -> None:
                gate.wait()

            stack.enter_context(working(broker))
            stack.callback(gate.open)
            sent.append(run_marathon.send())
            wait_until(broker, sent[-1], "working")
        pass_time(stalls, 20)
        # By default it would be five seconds.
        wait_for(lambda: load(brokers[0], sent[0]).status == "working", timeout=4)
        ttls: list[Any] = [1500]

        def is_renewed() -> bool:
            ttls.append(expires.client.pttl(f"other:{sent[1].message_id}"))
            return ttls[-1] > ttls[-2]

        for _ in range(2):
            wait_for(is_renewed, timeout=4)
