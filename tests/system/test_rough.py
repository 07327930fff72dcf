"""Jobs in real worker processes that are cancelled, replayed, killed and cut off."""

from __future__ import annotations

import itertools
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dramatiq
import pytest

from pyramid_jobstate import JobError, JobState, JobStore
from pyramid_jobstate.embedded import EmbeddedServer
from pyramid_jobstate.testing import put_job
from tests import rough
from tests.faulty import FaultyProxy, Moment, faulty
from tests.support import key_of, wait_for
from tests.webapp import made_config, make_request
from tests.workerprocess import PATIENCE, WorkerProcess

#: Why later steps of a pipeline do not run.
NOT_SENT = "The job could not be sent."
NOT_REACHED = "An earlier step did not succeed."

#: The seconds for which a job is kept after its end or its cancel.
EXPIRE_IN = 0.5


class Scene:
    """A worker process, and the process that sends jobs and shows them.

    Attributes:
      store: The store, bypassing the proxy that the worker uses.
      notes: What the jobs have left.
      actors: The actors that jobs are sent to, by name.
    """

    def __init__(
        self, broker_url: str, store_url: str, notes_url: str, expire_in: float = 60
    ) -> None:
        self.store_url = store_url
        self.store = rough.make_store(store_url, expire_in)
        self.broker = rough.make_broker(broker_url, self.store)
        self.notes = rough.Notes(notes_url)
        rough.declare(self.broker, self.notes)
        self.actors = self.broker.actors

    def load(self, message: dramatiq.Message[Any]) -> JobState:
        state = self.store.load(message.message_id)
        assert state is not None
        return state

    def wait_until(self, message: dramatiq.Message[Any], *statuses: str) -> JobState:
        wait_for(lambda: self.load(message).status in statuses, PATIENCE)
        return self.load(message)

    def send_pipeline(
        self, *steps: dramatiq.Message[Any]
    ) -> list[dramatiq.Message[Any]]:
        """Send a pipeline as a web process does: each step has its record."""
        pipe = dramatiq.pipeline(steps, broker=self.broker)
        config = made_config(self.store_url)
        make_request(config, "alice").job_states.send_immediately(pipe)
        # As delivered: each message contains the next.
        return pipe.messages

    def counted(self, count: int = 1) -> None:
        wait_for(lambda: len(self.notes.all("count")) >= count, PATIENCE)

    @property
    def left(self) -> int:
        """The number of messages that the broker still has."""
        client = self.broker.client
        return sum(client.hlen(f"dramatiq:default{q}.msgs") for q in ("", ".DQ"))


def reason(job_state: JobState) -> str:
    assert job_state.error is not None
    return job_state.error.message


StartWorker = Callable[..., WorkerProcess]


@pytest.fixture
def proxy(server: EmbeddedServer) -> Iterator[FaultyProxy]:
    """A proxy between the worker and the store."""
    with faulty(server.url) as proxy:
        yield proxy


@pytest.fixture
def scene(redis_url: str, server: EmbeddedServer) -> Scene:
    return Scene(redis_url, server.url, redis_url)


@pytest.fixture
def brief(redis_url: str, server: EmbeddedServer) -> Scene:
    """A scene that keeps jobs for a shorter time than their messages take."""
    return Scene(redis_url, server.url, redis_url, EXPIRE_IN)


@pytest.fixture
def start_rough_worker(
    redis_url: str, proxy: FaultyProxy, tmp_path: Path
) -> Iterator[StartWorker]:
    """Starts worker processes, and kills them at the end of the test."""
    workers: list[WorkerProcess] = []

    def start(
        broker_url: str = redis_url, heartbeat: float = 0.2, expire_in: float = 60
    ) -> WorkerProcess:
        environ = {
            "ROUGH_BROKER": broker_url,
            "ROUGH_STORE": proxy.url,
            "ROUGH_NOTES": redis_url,
            "ROUGH_HEARTBEAT": str(heartbeat),
            "ROUGH_EXPIRE_IN": str(expire_in),
        }
        log = tmp_path / f"{len(workers)}.log"
        workers.append(WorkerProcess(environ, log, "tests.rough"))
        return workers[-1]

    yield start
    for worker in workers:
        worker.kill(signal.SIGKILL)
        worker.wait()


# A cancelled job never runs, however late its message is delivered.


def test_a_job_that_was_cancelled_long_before_it_is_due_never_runs(
    brief: Scene, start_rough_worker: StartWorker
) -> None:
    """The record of a cancelled job outlives its delayed message, even if `expire_in`
    is shorter than the delay.
    """
    message = brief.actors["count"].send_with_options(delay=2500)
    assert brief.load(message).cancel()
    start_rough_worker(expire_in=EXPIRE_IN)
    other = brief.actors["count"].send_with_options(delay=2600)
    brief.counted()
    brief.wait_until(other, "success")
    wait_for(lambda: brief.left == 0)
    assert brief.notes.all("count") == [""]
    assert brief.load(message).status == "cancelled"


def test_a_job_that_was_cancelled_long_before_its_retry_never_runs_again(
    brief: Scene, start_rough_worker: StartWorker
) -> None:
    """The record of a job cancelled before its retry outlives the retry's message."""
    start_rough_worker(expire_in=EXPIRE_IN)
    message = brief.actors["fail_once"].send()
    assert brief.wait_until(message, "retrying").cancel()
    time.sleep(EXPIRE_IN)
    wait_for(lambda: brief.left == 0, PATIENCE)
    assert len(brief.notes.all("count")) == 1
    assert brief.load(message).status == "cancelled"


@pytest.mark.parametrize("cancels", [pytest.param(1, marks=pytest.mark.long), 2])
def test_a_job_whose_worker_was_killed_is_cancelled_for_good(
    brief: Scene, start_rough_worker: StartWorker, cancels: int
) -> None:
    """A job whose worker was killed, before or after a cancel, reads stalled; a cancel
    then ends it, and its redelivered message is skipped.
    """
    worker = start_rough_worker(expire_in=EXPIRE_IN)
    message = brief.actors["hang"].send()
    brief.wait_until(message, "working")
    brief.counted()
    worker.kill(signal.SIGSTOP)
    if cancels == 2:
        assert brief.load(message).cancel()
        assert brief.load(message).status == "cancelling"
    worker.kill(signal.SIGKILL)
    assert brief.wait_until(message, "stalled").cancel()
    assert brief.load(message).status == "cancelled"
    assert not brief.load(message).cancel()
    time.sleep(EXPIRE_IN)
    start_rough_worker(expire_in=EXPIRE_IN)
    wait_for(lambda: brief.left == 0, PATIENCE)
    assert len(brief.notes.all("count")) == 1
    assert brief.load(message).status == "cancelled"


def test_a_stalled_run_that_is_alive_hears_of_its_cancel(
    scene: Scene, start_rough_worker: StartWorker
) -> None:
    """A worker that was frozen during the cancel learns of it with its next heartbeat:
    the job stops, and stays cancelled.
    """
    worker = start_rough_worker(expire_in=EXPIRE_IN)
    message = scene.actors["submit"].send()
    scene.counted()
    worker.kill(signal.SIGSTOP)
    assert scene.wait_until(message, "stalled").cancel()
    assert scene.load(message).status == "cancelled"
    worker.kill(signal.SIGCONT)
    wait_for(lambda: scene.left == 0, PATIENCE)
    assert len(scene.notes.all("count")) < 300
    assert scene.load(message).status == "cancelled"


def test_a_stalled_run_that_returns_after_its_cancel_is_logged(
    scene: Scene, start_rough_worker: StartWorker
) -> None:
    """A job that was cancelled while its worker was frozen, and then returns normally,
    stays cancelled; the worker logs it.
    """
    worker = start_rough_worker(heartbeat=60, expire_in=60)
    message = scene.actors["ask_seldom"].send("set")
    wait_for(lambda: scene.notes.has("begun"), PATIENCE)
    assert scene.wait_until(message, "stalled").cancel()
    scene.notes.set("go")
    wait_for(lambda: scene.left == 0, PATIENCE)
    assert scene.notes.all("missed") == [""]
    assert scene.load(message).status == "cancelled"
    wait_for(lambda: worker.lines(f"Job {message.message_id} returned after"))


def test_a_later_step_that_was_cancelled_never_runs_however_late_its_turn_comes(
    redis_url: str, server: EmbeddedServer
) -> None:
    """The record of a later step outlives the delay of the steps before it, by as long
    as an unfinished job is kept.
    """
    scene = Scene(redis_url, server.url, redis_url)
    week = 7 * 24 * 3600
    first, second = scene.send_pipeline(
        scene.actors["count"].message_with_options(delay=week * 1000),
        scene.actors["follow"].message(),
    )
    for cancelled in (False, True):
        if cancelled:
            assert scene.load(second).cancel()
        key = key_of(scene.store, second.message_id)
        ttl: Any = scene.store.client.pttl(key)
        assert ttl / 1000 > week + scene.store.active_expire_in - 60
    assert scene.load(first).due_at and not scene.load(second).due_at


# Messages that nobody cancelled run.


def test_a_replayed_pipeline_goes_on(
    scene: Scene, start_rough_worker: StartWorker
) -> None:
    """When an operator puts back the failed first step of a pipeline, and it succeeds,
    the next step runs.
    """
    start_rough_worker()
    first, second = scene.send_pipeline(
        scene.actors["fail_at_first"].message(), scene.actors["follow"].message()
    )
    scene.wait_until(first, "error")
    assert reason(scene.wait_until(second, "cancelled")) == NOT_REACHED
    scene.notes.set("repaired")
    scene.broker.enqueue(first)
    scene.counted()
    scene.wait_until(first, "success")
    scene.wait_until(second, "success")


def test_a_replayed_message_that_was_too_old_runs(
    scene: Scene, start_rough_worker: StartWorker
) -> None:
    """A job that AgeLimit has dropped runs when an operator puts it back."""
    message = scene.actors["count"].send_with_options(max_age=1)
    time.sleep(0.01)
    start_rough_worker()
    scene.wait_until(message, "cancelled")
    del message.options["max_age"]
    scene.broker.enqueue(message)
    assert scene.load(message).status in ("queued", "working", "success")
    scene.wait_until(message, "success")
    assert len(scene.notes.all("count")) == 1


@pytest.mark.parametrize(
    "how", ["returning", pytest.param("failing", marks=pytest.mark.long)]
)
def test_a_job_that_puts_its_own_message_back_is_retrying(
    scene: Scene, start_rough_worker: StartWorker, how: str
) -> None:
    """A job that puts its own message back reads retrying until that is delivered."""
    start_rough_worker()
    message = scene.actors["come_back"].send(how)
    state = scene.wait_until(message, "retrying", "success", "error")
    assert state.status == "retrying" and state.due_at
    assert (state.error is None) == (how == "returning")
    state = scene.wait_until(message, "success", "error")
    assert state.status == "success"
    assert len(scene.notes.all("count")) == 2


@pytest.mark.parametrize(
    "how", [pytest.param("loop", marks=pytest.mark.long), "thread"]
)
def test_a_coroutine_that_puts_its_own_message_back_is_retrying(
    scene: Scene, start_rough_worker: StartWorker, how: str
) -> None:
    """An async job that puts its message back, in any thread, reads retrying."""
    start_rough_worker()
    message = scene.actors["come_back_async"].send(how)
    state = scene.wait_until(message, "retrying", "success", "error")
    assert state.status == "retrying" and state.due_at and state.error is None
    assert scene.wait_until(message, "success", "error").status == "success"


def test_a_class_based_actor_names_its_parameters(
    scene: Scene, start_rough_worker: StartWorker
) -> None:
    """The parameters of a class-based actor are named as in its perform()."""
    start_rough_worker()
    message = scene.actors["Marathon"].send(26, pace=4)
    state = scene.wait_until(message, "success", "error")
    assert state.job_params == {"miles": 26, "pace": 4}
    assert state.progress_metrics == {"minutes": 104}


# A cancel reaches all threads, and in time.


def test_clean_up_reports_in_whichever_thread_noticed_the_cancel(
    scene: Scene, start_rough_worker: StartWorker
) -> None:
    """A job's clean-up may report even if another of its threads noticed the cancel."""
    start_rough_worker()
    message = scene.actors["clean_up"].send()
    wait_for(lambda: scene.load(message).get_progress_metric("step"), PATIENCE)
    assert scene.load(message).cancel()
    state = scene.wait_until(message, "cancelled", "error", "success")
    assert (state.status, state.message) == ("cancelled", "cleaning up")
    assert scene.notes.all("clean") == ["up"]


def test_a_pool_of_submitted_items_stops(
    scene: Scene, start_rough_worker: StartWorker
) -> None:
    """After a cancel, 400 items submitted to a pool do not all run."""
    start_rough_worker()
    message = scene.actors["submit"].send()
    scene.counted(8)
    assert scene.load(message).cancel()
    wait_for(lambda: scene.load(message).is_finished, PATIENCE)
    assert len(scene.notes.all("count")) < 200


def test_all_tasks_of_a_coroutine_stop(
    scene: Scene, start_rough_worker: StartWorker
) -> None:
    """Each task of an async actor gets the cancel, not only the first to ask."""
    start_rough_worker()
    message = scene.actors["gather"].send()
    wait_for(lambda: len(scene.load(message).progress_metrics) == 5, PATIENCE)
    assert scene.load(message).cancel()
    state = scene.wait_until(message, "cancelled", "error", "success")
    assert state.status == "cancelled"
    assert sorted(scene.notes.all("count")) == list("01234")


@pytest.mark.parametrize("how", ["ask", "look", "set"])
def test_a_job_that_says_little_hears_of_its_cancel_within_an_interval(
    scene: Scene, start_rough_worker: StartWorker, how: str
) -> None:
    """A silent job learns of its cancel at its very next call, even with a heartbeat of
    a minute.
    """
    start_rough_worker(heartbeat=60)
    message = scene.actors["ask_seldom"].send(how)
    wait_for(lambda: scene.notes.has("begun"), PATIENCE)
    job_state = scene.load(message)
    wait_for(lambda: scene.load(message).status == "working")
    key = key_of(scene.store, message.message_id)
    seq = scene.store.client.hget(key, "seq")
    assert job_state.cancel()
    # The recorder learns of the cancel from the list of cancels, not from a heartbeat.
    wait_for(lambda: scene.store.client.hget(key, "seq") != seq)
    time.sleep(0.05)
    scene.notes.set("go")
    wait_for(lambda: scene.notes.all("asked"), PATIENCE)
    scene.wait_until(message, "cancelled", "error", "success")
    assert scene.notes.all("missed") == []
    assert scene.load(message).status == "cancelled"


# The broker or the store is out of reach.


def test_a_next_step_that_the_broker_does_not_take_is_an_error(
    redis_url: str, server: EmbeddedServer, start_rough_worker: StartWorker
) -> None:
    """If the broker is away when the first step of a pipeline ends, the second reads
    error (not sent), and the third cancelled.
    """
    with EmbeddedServer() as doomed:
        scene = Scene(doomed.url, server.url, redis_url)
        start_rough_worker(doomed.url)
        first, second, third = scene.send_pipeline(
            scene.actors["kill_broker"].message(doomed.pid),
            scene.actors["follow"].message(),
            scene.actors["follow"].message(),
        )
        scene.wait_until(first, "success")
        assert reason(scene.wait_until(second, "error")) == NOT_SENT
        assert reason(scene.wait_until(third, "cancelled")) == NOT_REACHED
        assert scene.load(second).finished_at
        assert scene.notes.all("count") == []


def test_sends_do_not_wait_for_a_store_that_swallows_packets(
    redis_url: str, proxy: FaultyProxy, caplog: pytest.LogCaptureFixture
) -> None:
    """Ten sends take no longer than one, all go out, and one warning is logged."""
    scene = Scene(redis_url, proxy.url, redis_url)
    proxy.swallow()
    for _ in range(10):
        scene.actors["count"].send()
    # The first send's request, which the client library tried twice.
    assert proxy.swallowed == 2
    assert scene.left == 10
    assert len([r for r in caplog.records if "does not accept" in r.message]) == 1


def test_a_worker_delivers_its_messages_while_the_store_swallows_packets(
    scene: Scene, proxy: FaultyProxy, start_rough_worker: StartWorker
) -> None:
    """Twenty delayed messages start within seconds of each other, not one a second."""
    messages = [scene.actors["count"].send_with_options(delay=1000) for _ in range(20)]
    worker = start_rough_worker()
    proxy.swallow()
    scene.counted(1)
    began = time.monotonic()
    scene.counted(20)
    assert time.monotonic() - began < 10
    proxy.judge = lambda request: "pass"
    for message in messages:
        scene.wait_until(message, "success")
    assert len(worker.lines("The job state store does not")) == 1


def test_one_asks_again_after_a_second(redis_url: str, proxy: FaultyProxy) -> None:
    """Once the store is back, jobs sent a second later are recorded."""
    scene = Scene(redis_url, proxy.url, redis_url)
    proxy.swallow()
    lost = scene.actors["count"].send()
    proxy.judge = lambda request: "pass"
    assert scene.store.load(lost.message_id) is None

    def is_recorded() -> bool:
        message = scene.actors["count"].send()
        return scene.store.load(message.message_id) is not None

    wait_for(is_recorded)


# A lost reply does not change the answer.


def each_reply(
    proxy: FaultyProxy, act: Callable[[], object], fault: str = "lose"
) -> Iterator[None]:
    """Act again and again: each time a fault hits another of the act's requests, until
    it makes no more.
    """
    act()
    for number in itertools.count():
        proxy.judge = Moment(number, fault=fault)
        before = proxy.faults[fault]
        act()
        proxy.judge = lambda request: "pass"
        if proxy.faults[fault] == before:
            assert number > 1
            return
        yield


def test_a_cancel_whose_reply_was_lost_is_told_that_it_cancelled(
    redis_url: str, proxy: FaultyProxy
) -> None:
    """Whichever reply of a cancel is lost, it still returns True, another cancel
    returns False, and the lists have the job.
    """
    scene = Scene(redis_url, proxy.url, redis_url)
    states: list[JobState] = []

    def cancel() -> None:
        state = scene.load(scene.actors["count"].send())
        assert state.cancel()
        states.append(state)

    for _ in each_reply(proxy, cancel):
        assert not states[-1].cancel()
        listed = [s.uuid for s in scene.store.list(status="cancelled").items]
        assert {*listed} == {state.uuid for state in states}


def test_a_job_whose_creation_lost_a_reply_is_listed(
    redis_url: str, server: EmbeddedServer, proxy: FaultyProxy
) -> None:
    """Whichever reply is lost, a job that is sent, or put back after it has failed, is
    queued, and in the lists.
    """
    scene = Scene(redis_url, proxy.url, redis_url)
    near = JobStore(server.url)
    count = scene.actors["count"]
    uuids: list[str] = []

    def put_back() -> None:
        error = JobError("ValueError", "as planned")
        uuids.append(put_job(near, status="error", actor="count", error=error).uuid)
        scene.broker.enqueue(count.message().copy(message_id=uuids[-1]))

    for act in (lambda: uuids.append(count.send().message_id), put_back):
        for _ in each_reply(proxy, act):
            assert {s.uuid for s in near.list(status="queued").items} == {*uuids}


def test_a_value_that_changed_back_while_a_reply_was_lost_lands(
    scene: Scene, proxy: FaultyProxy, start_rough_worker: StartWorker
) -> None:
    """True stored, a lost reply to False, then True again: the store has True."""
    proxy.lose_replies("false")
    start_rough_worker()
    message = scene.actors["toggle"].send()
    wait_for(lambda: scene.notes.all("toggled"), PATIENCE)
    assert proxy.faults["lose"]
    wait_for(lambda: scene.load(message).get_progress_metric("busy") is True)
    scene.notes.set("go")
    state = scene.wait_until(message, "success")
    assert state.progress_metrics == {"busy": True}


# What is refused, or left alone.


def test_an_argument_that_cannot_be_encoded_leaves_no_record(scene: Scene) -> None:
    """A job that cannot be sent does not leave a record."""
    with pytest.raises(Exception, match="not JSON serializable"):
        scene.actors["follow"].send(object())
    assert scene.store.list().items == []
    assert scene.store.client.keys("jobstate:*") == []
