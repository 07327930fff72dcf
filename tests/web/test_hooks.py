"""Hooks with a request, those of batches, and both in an application's tests."""

import contextlib
from collections.abc import Callable
from typing import Any

import dramatiq
import pytest
import transaction
from dramatiq import Broker, get_broker
from pyramid.config import Configurator
from pyramid.exceptions import ConfigurationError

from pyramid_jobstate import (
    Batch,
    JobError,
    JobState,
    JobStateMiddleware,
    RequestMiddleware,
    rerun,
    rerun_all,
    testing,
)
from pyramid_jobstate.errors import ActorError
from tests.jobs import Alarm, job_actor, make_broker, store_of, working
from tests.support import wait_for
from tests.web.databases import Manager, fail
from tests.webapp import (
    EXPLICIT,
    NOWHERE,
    made_config,
    make_app,
    make_config,
    make_request,
    make_tm_config,
)

#: What the hooks have noted.
notes: list[Any] = []

#: What a hook does after that.
acts: list[Callable[[], object]] = []


def note(job: JobState, request: Any) -> None:
    """Note the end of a job, and what its request is for."""
    facts: tuple[Any, ...] = (None, None, None)
    if request:
        sent = request.job_states.send_immediately(get_broker().get_actor("letter"))
        active = request.environ.get("tm.active")
        facts = sent.owner, request.resource_url(job), active
    notes.append((type(job).__name__, job.status, job.owner, *facts))
    if acts:
        acts.pop(0)()


class Told(JobState):
    """Is told of its ends with a request, but for cancels."""

    def on_success(self, request: Any) -> None:
        note(self, request)

    def on_error(self, *, request: Any) -> None:
        note(self, request)

    def on_cancelled(self) -> None:
        note(self, None)


class ToldAll(Batch):
    """Is told how its batches end."""

    def on_success(self, request: Any) -> None:
        note(self, request)

    def on_error(self) -> None:
        note(self, None)


@pytest.fixture(autouse=True)
def quiet() -> None:
    notes.clear()
    acts.clear()


@pytest.fixture
def broker(redis_url: str, set_broker: Callable[[Any], None]) -> Broker:
    """The global broker, whose workers look for ends ten times a second."""
    ours = JobStateMiddleware(heartbeat=0.1)
    broker = make_broker(redis_url, ours, others=(RequestMiddleware(),))

    @dramatiq.actor(broker=broker, job_state=True)
    def letter() -> None: ...

    set_broker(broker)
    return broker


@pytest.fixture
def run_marathon(broker: Broker) -> Any:
    @job_actor(broker=broker, max_retries=0)
    def run_marathon(error: str = "", *, job_state: Told) -> None:
        job_state.set_progress_metric("miles", 26)
        if error:
            raise ValueError(error)

    return run_marathon


@pytest.fixture
def config(run_marathon: Any) -> Configurator:
    """Override: a finished application with pyramid_tm."""
    return app_config()


def app_config(*includes: str) -> Configurator:
    config = make_tm_config(None, EXPLICIT)
    for name in (*includes, "pyramid_jobstate"):
        config.include(name)
    config.make_wsgi_app()
    return config


def url_of(job: JobState) -> str:
    return f"http://shop.example/job_state/{job.uuid}/"


def told_of(job: JobState, status: str = "success", cls: str = "Told") -> Any:
    """Return what a hook with a request notes of a job of Alice's."""
    return cls, status, "alice", "alice", url_of(job), True


def alices(config: Configurator) -> Any:
    """Return a request of Alice's to another host than the default."""
    request = make_request(config, "alice")
    request.host = "shop.example"
    return request


def test_hook_with_a_request(config, run_marathon):
    """Its request is that of an actor. A hook without one gets none."""
    states = alices(config).job_states
    with working(run_marathon.broker):
        good = states.send_immediately(run_marathon)
        bad = states.send_immediately(run_marathon, "blisters")
        wait_for(lambda: len(notes) == 2)
        late = run_marathon.message()
        run_marathon.broker.enqueue(late, delay=60_000)
        assert states[late.message_id].cancel()
        wait_for(lambda: len(notes) == 3)
    assert sorted(notes, key=str) == [
        ("Told", "cancelled", None, None, None, None),
        told_of(bad, "error"),
        told_of(good),
    ]


def send_batch(config: Configurator, actor: Any, *errors: str) -> Batch:
    request = alices(config)
    with request.tm, request.job_states.batch(ToldAll, title="<b>all</b>") as batch:
        for error in errors:
            batch.send(actor, error)
    return batch


def test_batch_is_told(config, run_marathon):
    """It is told whenever it ends. An empty one is told after its commit."""
    states = alices(config).job_states
    with working(run_marathon.broker):
        empty = send_batch(config, run_marathon)
        assert empty.is_success
        wait_for(lambda: notes)
        assert notes == [told_of(empty, cls="ToldAll")]
        notes.clear()
        good = send_batch(config, run_marathon, "", "")
        wait_for(lambda: len(notes) == 3)
        assert told_of(good, cls="ToldAll") in notes
        notes.clear()
        send = send_batch(config, run_marathon, "", "blisters")
        ending = ("ToldAll", "error", "alice", None, None, None)
        wait_for(lambda: ending in notes)
        (failed,) = states.store.members(send.uuid, status="error").items
        assert states.rerun(failed)
        wait_for(lambda: notes.count(ending) == 2)


def test_hook_of_a_batch_cannot_put_its_members_back(config, run_marathon):
    """Otherwise, each end of the batch would bring about the next one."""
    store, broker = store_of(run_marathon.broker), run_marathon.broker
    found: list[str] = []
    left: list[int] = []

    def attempt() -> None:
        (member,) = store.members(batch.uuid).items
        with pytest.raises(RuntimeError) as caught:
            rerun(store, broker, member.uuid)
        found.append(str(caught.value))
        # Others would run again.
        result = rerun_all(store, broker, batch=batch.uuid)
        left.append(result.refused)

    batch = send_batch(config, run_marathon, "blisters")
    acts.extend([attempt, attempt])
    with working(broker):
        wait_for(lambda: len(left) == 2)
    whose = [error for error in found if batch.uuid in error]
    assert len(whose) == 1 and "cannot run its members again" in whose[0]
    assert left == [1, 1] and len(notes) == 2


@pytest.mark.promise("hook-runs-after-the-end")
def test_transaction_that_fails_tells_nothing(config, run_marathon):
    """However long databases vote, nothing is to be told, nor of an empty batch."""
    store, seen = store_of(run_marathon.broker), []

    def vote() -> None:
        testing.pass_time(store, 3600)
        statuses = {job.status for job in store.list().items}
        seen.append((statuses, store.client.keys("*untold*")))
        fail()

    request = alices(config)
    request.tm.begin()
    request.tm.get().join(Manager("~", "tpc_vote", vote))
    with request.job_states.batch(ToldAll):
        pass
    request.job_states.send(run_marathon)
    with pytest.raises(ZeroDivisionError):
        request.tm.commit()
    request.tm.abort()
    assert seen == [({"success", "stalled"}, [])]
    assert not store.list().items and not store.client.keys("*untold*")


def test_outage_after_the_commit_of_an_empty_batch_is_logged(
    config, run_marathon, caplog
):
    """The transaction has committed all the same."""
    request = alices(config)
    store = request.job_states.store
    with contextlib.ExitStack() as outage, request.tm:
        with request.job_states.batch(ToldAll) as batch:
            pass
        away = testing.away(store)
        gone = Manager("~", "tpc_vote", lambda: outage.enter_context(away))
        request.tm.get().join(gone)
    assert f"hooks of the empty batch {batch.uuid} are not called" in caplog.text
    assert not store.client.keys("*untold*")


def test_hooks_of_a_batch_have_a_queue(redis_url, set_broker):
    """It is their own, if there is one. An empty batch is refused that has none."""

    def make(**options: Any) -> tuple[Configurator, Broker]:
        ours, others = JobStateMiddleware(**options), (RequestMiddleware(),)
        set_broker(broker := make_broker(redis_url, ours, others=others))
        return app_config(), broker

    config, broker = make(hooks_queue="mails")

    @job_actor(broker=broker)
    def run_marathon(*args: str, job_state: JobState) -> None: ...

    for errors in ("",), ():
        batch = send_batch(config, run_marathon, *errors)
        kept = store_of(broker).client.hget(f"jobstate:{batch.uuid}", "hooks")
        assert '"mails"' in str(kept)
    config, _ = make()
    with pytest.raises(ActorError, match="would take the hooks of the empty batch"):
        send_batch(config, None)


def test_jobs_in_a_test_run_their_hooks(run_marathon):
    """A success is told after its commit, a failure before its exception leaves."""
    config = app_config("pyramid_jobstate.testing")
    states = alices(config).job_states
    good = states.send_immediately(run_marathon)
    ran, _ = testing.run_jobs(config.registry)
    assert testing.values(ran, "miles") == [26]
    states.send_immediately(run_marathon, "blisters")
    with pytest.raises(ValueError, match="blisters"):
        testing.run_jobs(config.registry)
    assert notes[0] == told_of(good)
    assert notes[1][:4] == ("Told", "error", "alice", "alice")
    notes.clear()
    send_batch(config, run_marathon, "", "")
    testing.run_jobs(config.registry)
    testing.run_jobs(config.registry)
    assert [each[0] for each in notes] == ["Told", "Told", "ToldAll"]
    assert {each[1] for each in notes} == {"success"}


def test_hook_in_a_test_reads_the_end(config, run_marathon):
    """As after a worker's end, times and counts are known, and no cancel is taken."""
    seen: list[Any] = []

    def see(self: JobState) -> None:
        times = self.queued_at, self.started_at, self.finished_at
        known = [time for time in times if time]
        in_order = len(known) == 3 and known == sorted(known) and bool(self.updated_at)
        if isinstance(self, Batch):
            own = self.counts
            counts = self.size, own.queued, own.success, own.error, self.progress.done
            seen.append((self.status, in_order, counts))
        else:
            seen.append((self.status, in_order, self.cancel()))

    hooks = {"on_success": see, "on_error": see}
    cls = type("Dig", (JobState,), hooks)
    declare = job_actor(broker=run_marathon.broker, job_state=cls, actor_name="dig")
    dig = declare(lambda error: 1 / error)
    config = app_config("pyramid_jobstate.testing")
    states = alices(config).job_states
    with states.request.tm, states.batch(type("Digs", (Batch,), hooks)) as batch:
        batch.send(dig, 1)
        batch.send(dig, 1)
    testing.run_jobs(config.registry)
    with states.request.tm, states.batch(type("Digs", (Batch,), hooks)) as bad:
        bad.send(dig, 0)
    with pytest.raises(ZeroDivisionError):
        testing.run_jobs(config.registry)
    testing.run_jobs(config.registry)
    assert seen == [
        *[("success", True, False)] * 2,
        ("success", True, (2, 0, 2, 0, 2)),
        ("error", True, False),
        ("error", True, (1, 0, 0, 1, 1)),
    ]
    assert batch.finished_at and batch.counts.success == 2


def test_one_hook_runs_in_a_test(config, store):
    """It is told what was put, and commits only if the test says so."""
    job = testing.put_job(store, Told, "success", owner="bob")
    with pytest.raises(
        TypeError, match=r"^run_hook\(\) without an environ would commit"
    ):
        testing.run_hook(config.registry, job)
    assert not notes
    testing.run_hook(made_config(None).registry, job)
    tm = transaction.TransactionManager(explicit=True)
    tm.begin().doom()
    environ = {"tm.active": True, "tm.manager": tm}
    testing.run_hook(config.registry, job, environ)
    error = JobError("OSError", "no")
    failed = testing.put_job(store, Told, "error", owner="bob", error=error)
    testing.run_hook(config.registry, failed, {})
    testing.run_hook(config.registry, testing.put_job(store, Told, "cancelled"))
    batch = testing.put_batch(store, ToldAll, ["success"], owner="bob")
    testing.run_hook(config.registry, batch, {})
    assert [each[:4] for each in notes] == [
        *[("Told", "success", "bob", "bob")] * 2,
        ("Told", "error", "bob", "bob"),
        ("Told", "cancelled", None, None),
        ("ToldAll", "success", "bob", "bob"),
    ]
    for job in testing.put_job(store, Told), testing.put_job(store, status="success"):
        with pytest.raises(ValueError, match="has no hook for a job that reads"):
            testing.run_hook(config.registry, job)
    assert testing.detached(Told).status == "working"
    assert not store.client.keys("*untold*")


@pytest.mark.usefixtures("no_broker")
def test_queue_of_the_hooks_is_a_setting():
    """It goes to the middleware that the setting jobstate.broker makes."""
    queue, setting = "jobstate.hooks_queue", "jobstate.broker"
    for settings, error in (
        ({setting: NOWHERE, queue: "my mails"}, "'my mails' is not the name of"),
        ({setting: "stub", queue: ""}, "'' is not the name of a queue"),
        ({queue: "mails"}, r"'mails' needs jobstate\.broker\. Pass"),
    ):
        with pytest.raises(ConfigurationError, match=f"{queue} = {error}"):
            make_app(make_config(NOWHERE, settings=settings))
    make_app(make_config(None, settings={setting: NOWHERE, queue: " mails "}))
    broker = get_broker()

    @job_actor(broker=broker)
    def run(*, job_state: Told) -> None: ...

    broker.emit_before("worker_boot", None)
    assert broker.actors["jobstate_request_hook"].queue_name == "mails"


def test_hook_of_a_newer_version_gets_its_request(config, broker):
    """A message may have been sent for a hook that took none then, even if that has
    begun.
    """
    broker.add_middleware(alarm := Alarm())

    def fail_once(job: JobState) -> None:
        notes.append("The earlier version fails.")
        raise ZeroDivisionError

    def make_class(hook: Callable[..., None]) -> type[JobState]:
        return type("Punting", (JobState,), {"on_success": hook})

    @dramatiq.actor(broker=broker, job_state=make_class(fail_once))
    def row() -> None: ...

    with working(broker):
        job = alices(config).job_states.send_immediately(row)
        wait_for(lambda: notes)
        make_class(lambda self, request: note(self, request))
        alarm.ring()
        wait_for(lambda: len(notes) == 2)
    url = f"http://localhost/job_state/{job.uuid}/"
    assert notes[1] == ("Punting", "success", "alice", "alice", url, True)
