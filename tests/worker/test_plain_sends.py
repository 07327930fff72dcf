"""Jobs that are sent by Dramatiq's own send(), without a request."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any
from unittest import mock

import dramatiq
import pytest
from dramatiq.errors import ConnectionClosed
from dramatiq.middleware import Middleware

from pyramid_jobstate import JobState
from pyramid_jobstate.testing import away, pass_time
from tests.jobs import (
    Alarm,
    RunMarathon,
    job_actor,
    load,
    wait_until,
    working,
)
from tests.support import load_job, wait_for
from tests.trips import counting_trips
from tests.worker.floors import Floor, failed, idle_actor


def refusing(floor: Floor) -> Any:
    """Return a context in which the broker accepts no message."""
    queue = floor.broker.queues["default"]
    return mock.patch.object(queue, "put", side_effect=ConnectionClosed("away"))


# Parameters.


def test_params_have_the_names_that_the_actor_gives_them(stub):
    """What was sent is stored by them, even if the call is going to fail."""

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


def test_params_leave_out_what_cannot_be_stored(stub):
    """Values over 16 KiB, or not JSON, which another encoder of messages allows."""

    @dramatiq.actor(broker=stub, job_state=True)
    def run(thing: object, miles: int) -> None: ...

    for text in "x" * 20_000, "€" * 6_000:
        assert load(stub, run.send(text, 26)).job_params == {"miles": 26}
    dramatiq.set_encoder(dramatiq.PickleEncoder())
    try:
        assert load(stub, run.send({1, 2}, 26)).job_params == {"miles": 26}
    finally:
        dramatiq.set_encoder(dramatiq.JSONEncoder())


# Sending.


@pytest.mark.promise("job-is-queued-when-sent")
@pytest.mark.promise("plain-sends-are-tracked")
def test_job_is_queued_before_its_message_is_visible(floor):
    """Its owner is the one that the send names."""
    seen: list[JobState] = []

    class Looking(Middleware):
        def before_enqueue(self, broker: Any, message: Any, delay: Any) -> None:
            seen.append(floor.load(message.message_id))

    floor.broker.add_middleware(Looking())
    floor.post()
    floor.post(job_owner="alice")
    assert [state.status for state in seen] == ["queued"] * 2
    assert [state.owner for state in seen] == [None, "alice"]
    for state in seen:
        assert (state.actor, state.attempt) == ("errand", 0)
        assert state.queued_at is not None and state.queued_at == state.updated_at
        assert state.started_at is state.due_at is state.finished_at is None
    floor.work()
    assert [floor.load(state.uuid).attempt for state in seen] == [1, 1]


def test_owner_that_cannot_be_one_owns_nothing(floor, logged):
    """The job runs, for nobody, and a warning names the owner."""
    owners: list[Any] = [float("nan"), True, ["a"], "system.Everyone"]
    sent = [floor.post(job_owner=owner) for owner in owners]
    assert [floor.load(message.message_id).owner for message in sent] == [None] * 4
    floor.work()
    assert floor.statuses(*sent) == ["success"] * 4
    said = [m for m in logged() if "has no owner" in m]
    for owner in owners:
        assert any(f"not {owner!r}." in line for line in said), owner


def test_delayed_job_says_when_it_is_due(broker):
    """It is queued until then, and runs. A delay that no time can say is cut short."""
    broker.add_middleware(alarm := Alarm())
    run_marathon = idle_actor(broker, job_state=RunMarathon)
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


def test_message_whose_id_is_no_uuid_is_not_tracked(floor, client, logged):
    """Its actor gets a detached JobState, with one warning for all such messages."""
    floor.scripts["a"] = lambda job_state: job_state.set_progress_metric("x", 1)
    for number in range(2):
        floor.broker.enqueue(floor.message("a").copy(message_id=f"n{number}"))
    floor.work()
    assert floor.ran == {"a": 2}
    assert client.keys("jobstate*") == []
    assert logged() == [
        "Messages whose id is not a uuid are not tracked, such as 'n0'."
    ]


def test_message_that_cannot_be_encoded_leaves_no_job(floor, client):
    """The sender is told, and nothing is stored."""
    with pytest.raises(TypeError, match="not JSON serializable"):
        floor.errand.send(object())
    assert client.keys("jobstate*") == []


def test_worker_that_is_faster_than_the_senders_hook_wins(floor):
    """A job that has begun before its sender hears from the broker keeps its status."""
    held = floor.hold(floor.message())

    class Slow(Middleware):
        def after_enqueue(self, broker: Any, message: Any, delay: Any) -> None:
            held.wait()

    # These hooks run in reverse.
    floor.broker.add_middleware(Slow())
    floor.start()
    floor.broker.enqueue(held.message)
    assert held.load().status == "working"
    held.end()
    assert held.load().status == "success"


def test_job_of_a_stub_broker_has_ended_after_its_joins(stub):
    """They are the two of Dramatiq's guide to unit tests. The job may be delayed."""

    @job_actor(broker=stub)
    def run_marathon(miles: int, *, job_state: Any = None) -> None:
        for mile in job_state.track(range(miles)):
            job_state.set_progress_metric("miles_run", mile)

    with working(stub) as worker:
        message = run_marathon.send_with_options(args=(26,), delay=50)
        assert load(stub, message).status == "queued"
        stub.join(run_marathon.queue_name)
        worker.join()
        state = load(stub, message)
    assert (state.status, state.progress_metrics) == ("success", {"miles_run": 25})


# Trouble with the store.


def test_send_without_the_store_goes_out(make_floor, own, logged):
    """One warning tells of all. Later their jobs appear as they start or are sent."""
    floor = make_floor(own)
    floor.scripts["a"] = lambda job_state: job_state.set_message("a")
    with away(own):
        sent = [floor.post("a") for _ in range(3)]
    assert len(logged()) == 1
    floor.work()
    for message in sent:
        job = floor.load(message.message_id)
        assert (job.status, job.owner, job.message) == ("success", None, "a")
    with away(own):
        floor.post()
    assert len(logged()) == 2

    def is_recorded() -> bool:
        return floor.store.load(floor.post().message_id) is not None

    wait_for(is_recorded)
    assert is_recorded() and is_recorded()


def test_send_that_the_store_refuses_is_logged(floor, client, logged):
    """A full server keeps no message from its actor, and the next send asks again."""
    client.config_set("maxmemory", 1)
    try:
        message = floor.post()
    finally:
        client.config_set("maxmemory", 0)
    (said,) = logged()
    assert said.startswith("The store refused to note that a job is sent.")
    assert floor.statuses(floor.post()) == ["queued"]
    floor.work()
    assert floor.statuses(message) == ["success"]


def test_job_put_back_by_an_operator_is_queued(floor):
    """A failed job whose message is put back reads queued for as long as it waits, and
    runs again. It makes no difference if somebody else has failed to put it back.
    """
    (message,) = failed(floor)
    with refusing(floor), pytest.raises(ConnectionClosed):
        floor.broker.enqueue(message)
    floor.broker.enqueue(message)
    pass_time(floor.store, floor.store.stalled_after + 1)
    assert floor.statuses(message) == ["queued"]
    floor.work()
    assert floor.statuses(message) == ["success"]


def test_late_sender_does_not_confirm_a_message_that_was_put_back(floor):
    """If a job ends before its sender hears from the broker, and the broker refuses its
    message when somebody puts that back, the job does not read queued for ever.
    """
    message = floor.message()

    def put_back() -> None:
        with refusing(floor), pytest.raises(ConnectionClosed):
            floor.broker.enqueue(message)

    class Slow(Middleware):
        def after_enqueue(self, broker: Any, message: Any, delay: Any) -> None:
            floor.work()
            with ThreadPoolExecutor(1) as pool:
                pool.submit(put_back).result()

    # These hooks run in reverse.
    floor.broker.add_middleware(Slow())
    floor.broker.enqueue(message)
    pass_time(floor.store, floor.store.stalled_after + 1)
    assert floor.statuses(message) == ["stalled"]


def test_job_costs_two_round_trips_and_four_scripts(stub, store, client):
    """Beside those of Dramatiq: it is recorded and confirmed, begins and ends."""

    @dramatiq.actor(broker=stub, job_state=True)
    def mow() -> None: ...

    def run() -> int:
        with counting_trips() as trips:
            sent = mow.send()
        wait_for(lambda: load_job(store, sent.message_id).is_finished)
        return len(trips)

    with working(stub):
        run()
        # What a worker says of itself takes a script each five seconds.
        wait_for(store.workers)
        client.config_resetstat()
        assert run() == 2
        stats: Any = client.info("commandstats")
    assert stats["cmdstat_evalsha"]["calls"] == 4
