"""Helpers for testing applications.

* ``config.include("pyramid_jobstate.testing")`` collects the messages that views send
  in an :func:`outbox`, even if the transaction is never committed. :func:`run_jobs`
  runs their jobs, and their hooks.
* :func:`detached` returns a JobState to call an actor with; :func:`values` and
  :func:`history` return what the actor reported, in order.
* :func:`put_job` and :func:`put_batch` create jobs in any status, for testing a page;
  :func:`run_hook` runs the hook that is told of their end; :func:`pass_time` lets time
  pass for them, and :func:`away` takes their store away.
* :func:`release_broker` lets the next application have another ``jobstate.broker``.

The pytest fixtures are in :mod:`pyramid_jobstate.fixtures`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
import secrets
import socket
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar
from unittest import mock

from dramatiq import Message, Worker, pipeline
from dramatiq.broker import MessageProxy
from redis import Redis

from .job.batch import Batch
from .job.hooks import HookInfo
from .job.journal import Journal
from .job.members import check_weight
from .job.progress import Progress
from .job.record import (
    CANCELLED,
    STATUSES,
    TIMES,
    UUID,
    End,
    Failure,
    JobError,
    JobInfo,
    Member,
    NewBatch,
    NewJob,
    Record,
    dump_error,
)
from .job.run import NO_RUN, RecordingRun, Run
from .job.state import (
    Inner,
    JobState,
    class_hooks,
    log_level_of,
    record_of,
    run_of,
    set_container,
)
from .job.values import MAX_DELAY, dumps, encode_owner
from .job.words import did_you_mean
from .store.arguments import positive, type_name
from .store.connection import connect
from .store.ends import UntoldEnd
from .store.jobstore import JobStore, records_of
from .worker.actors import receives_request
from .worker.batches import RunningMember, describe_batch
from .worker.brokers import release_broker
from .worker.current import describe
from .worker.hooks import call_hook, hook_message
from .worker.ledger import ledger_of
from .worker.message import BATCH, OWNER, UNIQUE, check_delay, check_owner
from .worker.middleware import JobStateMiddleware
from .worker.outgoing import Outgoing
from .worker.unsaved import Unsaved

if TYPE_CHECKING:
    from dramatiq import Broker
    from pyramid.config import Configurator
    from pyramid.registry import Registry

    from .worker.batches import OutgoingBatch


__all__ = [
    "Outbox",
    "Sent",
    "away",
    "cancel",
    "detached",
    "history",
    "includeme",
    "outbox",
    "pass_time",
    "put_batch",
    "put_job",
    "release_broker",
    "run_hook",
    "run_jobs",
    "values",
]


#: Takes milliseconds from the life of a key, at one moment.
SHORTEN = """
local life = redis.call("PTTL", KEYS[1])
if life > 0 then
  redis.call("PEXPIRE", KEYS[1], math.max(0, life - ARGV[1]))
end
"""

NO_ENVIRON = (
    "run_hook() without an environ would commit what the hook does, and the test could "
    "not take it back. Pass the environ of the test's transaction, such as "
    "testapp.extra_environ with tm.active and tm.manager, or {} to commit."
)

AnyJobState = TypeVar("AnyJobState", bound=JobState)


@dataclasses.dataclass(frozen=True, slots=True)
class Sent:
    """A message that a view has sent.

    Attributes:
      message: The Dramatiq message.
      job_state: The JobState that the view received.
    """

    message: Message[Any]
    job_state: JobState


class Outbox(list[Sent]):
    """The messages that the views of an application have sent, in order: a list of
    :class:`Sent`.

    Attributes:
      batches: The batches that were sent, in order.
    """

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[Batch] = []

    def members(self, batch: Batch) -> list[Sent]:
        """Return the messages of the members of a batch that a view has sent."""
        return [s for s in self if s.message.options.get(BATCH) == batch.uuid]


class Clerk:
    """Keeps what an application sends in an outbox, and remembers which jobs have run.

    Attributes:
      outbox: The outbox.
      following: The id of the next step of a pipeline, by the id of each step.
      brokers: The brokers of the messages, by their ids.
      results: The results of the steps before, by the ids of the steps that receive
        them.
      started: When the jobs have begun that have run, in milliseconds, by the ids of
        their messages.
    """

    def __init__(self) -> None:
        self.outbox = Outbox()
        self.following: dict[str, str] = {}
        self.brokers: dict[str, Broker] = {}
        self.results: dict[str, Any] = {}
        self.started: dict[str, str] = {}
        #: The ids of the messages whose jobs have run, or are running, and the uuids of
        #: the batches that have ended.
        self._ran: set[str] = set()
        self._running: Sent | None = None

    def keep(self, outgoing: Outgoing) -> None:
        self.outbox.extend(map(Sent, outgoing.messages, outgoing.job_states))
        self.following.update(outgoing.following)
        for message in outgoing.messages:
            self.brokers[message.message_id] = outgoing.broker

    def keep_batch(self, outgoing: OutgoingBatch) -> None:
        self.outbox.batches.append(outgoing.batch)
        for item, _ in outgoing.members.items:
            self.keep(item)

    @contextlib.contextmanager
    def instead_of(self, broker: Broker | None) -> Iterator[None]:
        """Keep messages that are sent without a request, too, in place of their broker.
        It still gets those of untracked actors, of jobs that run again, and what a
        worker that runs beside the test puts back or sends in its turn.

        A pipeline is kept as when a request sends it, with all its steps.
        """
        if broker is None or not any(
            isinstance(m, JobStateMiddleware) for m in broker.middleware
        ):
            yield
            return
        ledger, enqueue = ledger_of(broker), broker.enqueue

        def keep(message: Message[Any], *, delay: int | None = None) -> Message[Any]:
            steps = [message]
            while target := steps[-1].options.get("pipe_target"):
                steps.append(Message(**target))
            is_rerun = message.message_id in ledger.thread.announced
            is_tracked = any(map(ledger.functions.find, steps))
            if is_rerun or not is_tracked or _is_sent_by_worker(message, broker):
                return enqueue(message, delay=delay)
            what = pipeline(steps, broker=broker) if len(steps) > 1 else message
            outgoing = Outgoing(what, broker=broker, delay=delay)
            self.keep(outgoing)
            return outgoing.messages[0]

        with mock.patch.object(broker, "enqueue", keep):
            yield

    def unique_job(self, identity: str, *, ended: bool) -> JobState | None:
        """Return the job of an identity that has not ended or, with `ended`, the last
        one, or None.
        """
        for sent in reversed(self.outbox):
            is_over = sent.message.message_id in self._ran and sent != self._running
            if sent.message.options.get(UNIQUE) == identity and (ended or not is_over):
                return sent.job_state
        return None

    def ended_batches(self) -> list[Batch]:
        """Return the batches whose last member has run since the last call, which now
        read as they have ended.
        """
        ended = []
        for batch in self.outbox.batches:
            states = [sent.job_state for sent in self.outbox.members(batch)]
            if batch.uuid in self._ran or any(job.is_working for job in states):
                continue
            self._ran.add(batch.uuid)
            failed = sum(job.has_failed for job in states)
            cut = sum(job.is_cancelled for job in states)
            status = "cancelled" if cut else "success"
            if failed and not batch.allow_failures:
                status = "error"
            now = _now()
            known = [self.started[j.uuid] for j in states if j.uuid in self.started]
            fields = {
                "size": len(states),
                "n:q": 0,
                "n:s": len(states) - failed - cut,
                "n:e": failed,
                "n:c": cut,
            }
            times = {"started": min(known, default=now), "updated": now}
            counts = {name: str(number) for name, number in fields.items()}
            record_of(batch).end(status, {**counts, **times, "finished": now})
            ended.append(batch)
        return ended

    def next(self) -> Sent | None:
        """Return the first message whose job has not run, which now begins.

        Raises:
          RuntimeError: Another job is running.
        """
        if self._running is not None:
            raise RuntimeError(
                "run_jobs() cannot be called inside a job. Call it in the test: what a "
                "job sends runs after the job."
            )
        for sent in self.outbox:
            if sent.message.message_id not in self._ran:
                self._ran.add(sent.message.message_id)
                self.started[sent.message.message_id] = _now()
                self._running = sent
                return sent
        return None

    def end(self, status: str) -> None:
        """Note how the job has ended that was running. If it has failed, later steps of
        its pipeline do not run.
        """
        assert self._running is not None
        record_of(self._running.job_state).status = status
        uuid: str | None = self._running.message.message_id
        while status == "error" and (uuid := self.following.get(uuid or "")):
            self._ran.add(uuid)
            for sent in self.outbox:
                if sent.message.message_id == uuid:
                    record_of(sent.job_state).status = "cancelled"
        self._running = None


def _now() -> str:
    """Return the time as a record has it."""
    return str(int(time.time() * 1000))


def _is_sent_by_worker(message: Message[Any], broker: Broker) -> bool:
    """Return whether a worker sends a message itself, rather than the function of a
    tracked actor that it calls.
    """
    in_worker = type(threading.current_thread()).__module__ == Worker.__module__
    job = ledger_of(broker).thread.job
    is_called = job is not None and job.is_running
    # Middleware puts back proxies, also where no worker runs the job.
    return isinstance(message, MessageProxy) or (in_worker and not is_called)


class KeptMembers(RunningMember):
    """Has a `clerk` keep the members that a job sends."""

    clerk: Clerk

    def dispatch(self, outgoing: Outgoing, weight: int) -> None:
        self.clerk.keep(outgoing)


def includeme(config: Configurator) -> None:
    """Collect the messages that views send in an outbox.

    Messages are validated as usual, but neither written nor sent, whether the
    transaction commits or aborts. Therefore the broker's middleware and the
    application may use different stores.

    Include this module before or after the package itself, for example with the
    setting ``pyramid.includes``.
    """
    from .web.interfaces import IOutbox

    config.registry.registerUtility(Clerk(), IOutbox)


def outbox(registry: Registry) -> Outbox:
    """Return the messages that the views of an application have sent so far.

    Parameters:
      registry: The application's registry, such as ``app.app.registry`` of a WebTest
        ``TestApp``.

    Raises:
      LookupError: The application has not included this module.
    """
    return _clerk_of(registry).outbox


def _clerk_of(registry: Registry) -> Clerk:
    from .web.interfaces import IOutbox

    found: Clerk | None = registry.queryUtility(IOutbox)
    if found is None:
        raise LookupError(
            "The application has no outbox. Call "
            'config.include("pyramid_jobstate.testing").'
        )
    return found


def run_jobs(
    registry: Registry, environ: Mapping[str, Any] | None = None
) -> list[JobState]:
    """Run the jobs in an application's :func:`outbox` that have not run yet, and those
    that they send, in this thread and in the order in which they were sent.

    An actor is called once, with a JobState that keeps every report, and a request if
    it receives one. Delays are ignored. A step of a pipeline receives the result of the
    step before it.

    The hooks of a job run after its commit, in a transaction of their own, or before
    the exception leaves this function. Those of a batch run once all of its members
    have.

    Parameters:
      registry: The registry of the application.
      environ: Further keys for the WSGI environ of the actors' requests, such as the
        `extra_environ` of a TestApp. With ``tm.active`` in it, the jobs run in the
        caller's transaction, and nothing is committed.

    Returns:
      The JobState of each job, for :func:`values` and :func:`history`.

    Raises:
      LookupError: The application has not included this module.
      RuntimeError: A job calls it.
      Exception: What an actor or a hook raises. The jobs after it have not run.
    """
    jobs = []
    clerk = _clerk_of(registry)
    results = clerk.results
    environ = environ or {}
    while (sent := clerk.next()) is not None:
        message = sent.message
        if message.message_id in results and not message.options.get("pipe_ignore"):
            args = (*message.args, results[message.message_id])
            message = message.copy(args=args)
        status, broker = "error", clerk.brokers[message.message_id]
        job_state = _job_of(registry, broker, message)
        error: BaseException | None = None
        try:
            result = _run_job(registry, broker, message, job_state, environ)
            record_of(job_state).status = status = "success"
        except BaseException as e:
            error = e
            raise
        finally:
            clerk.end(status)
            times = {
                "queued": record_of(sent.job_state).text("queued") or _now(),
                "started": clerk.started[message.message_id],
            }
            _tell(registry, message, job_state, times, error, environ)
        jobs.append(job_state)
        following = clerk.following.get(message.message_id)
        if following is not None:
            results[following] = result
    for batch in clerk.ended_batches():
        _run_hook(registry, batch, environ)
    return jobs


def _job_of(registry: Registry, broker: Broker, message: Message[Any]) -> JobState:
    """Return the JobState of a job that is about to run."""
    function = ledger_of(broker).functions[message.actor_name]
    info, run = function.info_of(message, attempt=1), RecordingRun()
    members = None
    if info.batch is not None:
        members = KeptMembers(broker, message, info.batch, run)
        members.clerk = _clerk_of(registry)
    return function.job_state(message.message_id, run, info, members=members)


def _run_job(
    registry: Registry,
    broker: Broker,
    message: Message[Any],
    job_state: JobState,
    environ: Mapping[str, Any],
) -> Any:
    """Run a job, and return its result."""
    from .web.request import with_request

    function = ledger_of(broker).functions[message.actor_name]
    if not receives_request(broker, message.actor_name):
        return function.call(job_state, message.args, message.kwargs)

    def call(request: object) -> Any:
        kwargs = {**message.kwargs, "request": request}
        return function.call(job_state, message.args, kwargs)

    return with_request(registry, message, call, environ)


def _tell(
    registry: Registry,
    message: Message[Any],
    job_state: JobState,
    times: Mapping[str, str],
    error: BaseException | None,
    environ: Mapping[str, Any],
) -> None:
    """Run the hook that is told of the end of a job.

    Parameters:
      times: When it was queued and has begun, as they are stored.
      error: What it has raised, or None.
    """
    run, info = run_of(job_state), record_of(job_state).info
    update = Unsaved(message.message_id, run, info).take(time.monotonic())
    now = _now()
    ended_at = {"updated": now, "finished": now}
    fields = {**info.fields(), **update.fields, **times, **ended_at}
    status = "success"
    if error is not None:
        status = "cancelled" if run.cancel_requested else "error"
        fields["error"] = dump_error(
            CANCELLED if run.cancel_requested else describe(error)
        )
    ended = type(job_state)(Inner(Record(message.message_id, fields, status)))
    _run_hook(registry, ended, environ)


def _run_hook(
    registry: Registry, job_state: JobState, environ: Mapping[str, Any] | None
) -> None:
    """Run the hook of a job that has ended, if its class has one."""
    from .web.request import with_request

    record, hooks = record_of(job_state), class_hooks(type(job_state))
    if record.status not in hooks:
        return
    if not hooks[record.status]:
        call_hook(job_state, None)
        return
    hook = HookInfo.parse(record.info.hooks) or HookInfo("", "default")
    owner = record.text("owner")
    end = UntoldEnd(record.uuid, hook, record.kind, record.status, "", owner)

    def call(request: Any) -> None:
        if environ is None and getattr(request, "tm", None) is not None:
            raise TypeError(NO_ENVIRON)
        set_container(job_state, request.job_states)
        call_hook(job_state, request)

    with_request(registry, hook_message(end), call, environ)


def run_hook(
    registry: Registry,
    job_state: JobState,
    environ: Mapping[str, Any] | None = None,
) -> None:
    """Run the hook that is told of the end of a job, such as one of :func:`put_job`: in
    a request and its transaction, if the hook receives a request.

    Parameters:
      registry: The registry of the application.
      job_state: The job, or the batch.
      environ: As for :func:`run_jobs`. It is required if the hook receives a request
        with a transaction. With ``{}``, that transaction is committed.

    Raises:
      TypeError: The environ is missing.
      ValueError: The job has not ended, or its class has no hook for its status.
      Exception: What the hook raises.
    """
    if job_state.status not in class_hooks(type(job_state)):
        raise ValueError(
            f"{type(job_state).__qualname__} has no hook for a job that reads "
            f"{job_state.status}."
        )
    _run_hook(registry, job_state, environ)


def detached(
    # mypy takes no default for a type variable: python/mypy#3737.
    job_state_class: type[AnyJobState] = JobState,  # type: ignore[assignment]
    /,
    **params: Any,
) -> AnyJobState:
    """Return a JobState to call an actor with: ``run_marathon(26, job_state=...)``.

    Parameters:
      job_state_class: The JobState class of the actor.
      params: The `job_params` of the JobState.

    Raises:
      TypeError: `job_state_class` is not a JobState class.
    """
    _check_class(job_state_class)
    info = JobInfo(job_state_class.kind, attempt=1, params=dumps(params))
    record = Record(str(uuid.uuid4()), info.fields(), "working")
    return job_state_class(Inner(record, RecordingRun()))


def history(job_state: JobState) -> list[tuple[Any, ...]]:
    """Return every report to a JobState from :func:`detached` or :func:`run_jobs`, in
    order: ("metric", name, value), ("progress", done, total, unit), ("message", text),
    ("log", line) or, when a phase begins, ("phase", name, percent).

    Raises:
      TypeError: The JobState is not from one of these.
    """
    run = run_of(job_state) if isinstance(job_state, JobState) else None
    if not isinstance(run, RecordingRun):
        raise TypeError(f"{job_state!r} was not created by detached() or run_jobs().")
    return run.history


def values(job_state: JobState, name: str) -> list[Any]:
    """Return every value that a JobState from :func:`detached` or :func:`run_jobs` has
    reported for one metric, in order.

    Raises:
      TypeError: The JobState is not from one of these.
    """
    return [entry[2] for entry in history(job_state) if entry[:2] == ("metric", name)]


def cancel(job_state: JobState) -> None:
    """Make the next call of a JobState raise JobCancelled: of a :func:`detached` one,
    or of that of an actor that runs.

    Raises:
      TypeError: It was loaded from a store.
    """
    run = run_of(job_state) if isinstance(job_state, JobState) else None
    if not isinstance(run, Run) or run is NO_RUN:
        raise TypeError(f"{job_state!r} does not belong to a job that runs here.")
    run.cancel()


def pass_time(store: JobStore, seconds: float) -> None:
    """Turn a store into what it would be some seconds later, if nobody used it till
    then: jobs that run go stalled, those that are due wait no longer, and what has
    outlived its time is gone.

    Parameters:
      store: The store. What other programs keep on its server stays as it is.
      seconds: How much time passes.

    Raises:
      TypeError: `seconds` is not a number.
      ValueError: It is not positive.
    """
    positive("seconds", seconds)
    client: Any = store.client
    pattern = "".join(f"[{c}]" if c in "*?[" else c for c in store.namespace)
    # Some names begin with a hash tag. SCAN may return a key twice.
    patterns = (f"{pattern}:*", f"{{{pattern}:*")
    names = (
        r"unique:|untold:|workers[:}]|(kinds|unsent|cancels|untold|workers)$|"
        r"\{?(all|owner|class|actor)[:}]"
    )
    ours = re.compile(rf"\{{?{re.escape(store.namespace)}:({UUID.pattern}|{names})")
    for key in {key for each in patterns for key in client.scan_iter(each)}:
        name = key if isinstance(key, str) else key.decode()
        if not ours.match(name):
            # Of a store whose namespace begins with the name of this one.
            continue
        kind = client.type(key)
        pipeline = client.pipeline()
        if kind in ("hash", b"hash"):
            fields = [*TIMES, "asked_at", "taken_at"]
            if name.startswith(f"{store.namespace}:unique:"):
                # When the senders of unique jobs were last heard from.
                known = {"job", "version", b"job", b"version"}
                fields = [*({*client.hkeys(key)} - known)] or fields
            times = zip(fields, client.hmget(key, fields), strict=True)
            # Of a batch, "seen" is a letter.
            for field, moment in times:
                if moment and moment.isdigit():
                    before = max(0, int(moment) - int(seconds * 1000))
                    pipeline.hset(key, field, before)
        elif kind in ("zset", b"zset") and not name.endswith(":failed"):
            # The scores of members that failed are their places.
            for member in client.zrange(key, 0, -1):
                pipeline.zincrby(key, -seconds * 1_000_000, member)
        pipeline.execute()
        client.eval(SHORTEN, 1, key, int(seconds * 1000))


@contextlib.contextmanager
def away(store: JobStore) -> Iterator[None]:
    """Take a store's server away for a while: connections to it are refused.

    Parameters:
      store: The store, such as that of the fixture `job_store`. Other stores on the
        same server, and streams that are open, do not notice.

    Raises:
      TypeError: The client of the store is not a `redis.Redis`.
    """
    client = store.client
    if not isinstance(client, Redis):
        raise TypeError(f"The client must be a redis.Redis, not {type(client)}.")
    pool = client.connection_pool
    with socket.socket() as nobody:
        # It has a port, and does not listen at it.
        nobody.bind(("127.0.0.1", 0))
        nowhere: Any = connect("redis://{}:{}".format(*nobody.getsockname()))
        client.connection_pool = nowhere.connection_pool
        try:
            yield
        finally:
            client.connection_pool = pool


def put_job(
    store: JobStore,
    job_state_class: type[JobState] = JobState,
    status: str = "working",
    *,
    actor: str = "",
    owner: str | float | None = None,
    params: Mapping[str, Any] | None = None,
    metrics: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
    message: str | None = None,
    log: Sequence[str] = (),
    error: JobError | None = None,
    traceback: str = "",
    attempt: int = 1,
    delay: float = 0.0,
) -> JobState:
    """Store a job in the given status, as a worker would, and return it.

    Parameters:
      store: The store to write to.
      job_state_class: The JobState class of the job.
      status: Any status of a job.
      actor: The name of the actor. With it, a job that failed of an `error` can run
        again.
      owner: The owner of the job, or None.
      params: The values that were sent, by the names of the parameters.
      metrics, message, log: What the job has reported; ignored for "queued".
      progress: How far it has come: its `done`, `total` and `unit` count.
      error: Why the job failed, was cancelled or is retried.
      traceback: What operators read of the `error` beside it.
      attempt: The number of the attempt, from 1.
      delay: Seconds until the job is due, for "queued" and "retrying": at most
        100,000,000,000.

    Raises:
      TypeError: An argument has the wrong type, or the class is that of a batch.
      ValueError: The status is unknown, a metric is invalid, the attempt or the delay
        is out of range, or the owner is one of Pyramid's own principals.
    """
    _check_store(store)
    put = _Put(
        job_state_class,
        status,
        actor=actor,
        owner=owner,
        params=params,
        metrics=metrics,
        progress=progress,
        message=message,
        log=log,
        error=error,
        traceback=traceback,
        attempt=attempt,
        delay=delay,
    )
    records_of(store).create(put.job)
    records_of(store).confirm(put.job.uuid)
    put.move(store)
    job_state = store.load(put.job.uuid)
    assert job_state is not None
    return job_state


def put_batch(
    store: JobStore,
    batch_class: type[Batch] = Batch,
    members: Sequence[str | Mapping[str, Any]] = (),
    *,
    owner: str | float | None = None,
    title: str | None = None,
    allow_failures: bool = False,
) -> Batch:
    """Store a batch and its members, as their sender and the workers would, and return
    it. Its status follows from theirs.

    Parameters:
      store: The store to write to.
      batch_class: The class of the batch.
      members: For each member its status, or a dict with `status` and other arguments
        of :func:`put_job`, and with `weight`, as ``batch.send()`` takes it. The owner
        of a member is by default that of the batch.
      owner: The owner of the batch, or None.
      title: The title of this batch, or None for that of its class.
      allow_failures: Whether it succeeds even if members fail.

    Raises:
      TypeError: An argument has the wrong type or an unknown name.
      ValueError: One is out of range, as for :func:`put_job`.
    """
    _check_store(store)
    info, fields = describe_batch(
        batch_class, title, check_owner(owner), allow_failures=allow_failures
    )
    if isinstance(members, str):
        raise TypeError(f"members must be a list of statuses, not {members!r}.")
    batch, puts, weights = str(uuid.uuid4()), [], []
    for member in members:
        options = {"status": member} if isinstance(member, str) else {**member}
        weights.append(check_weight(options.pop("weight", 1)))
        puts.append(_Put(**{"owner": owner, **options}, batch=batch))
    jobs = [put.job for put in puts]
    weighed = [*map(Member, jobs, weights)]
    records = records_of(store)
    records.batches.open(NewBatch(batch, info, fields, secrets.token_hex(6), weighed))
    records.create_new(*jobs, tells=False)
    records.confirm_members(jobs)
    for put in puts:
        put.move(store)
    job_state = store.load(batch)
    assert isinstance(job_state, Batch)
    return job_state


class _Put:
    """A job to be stored: see :func:`put_job`.

    Parameters:
      batch: The uuid of its batch, or None.

    Attributes:
      job: What its sender writes.
    """

    def __init__(
        self,
        job_state_class: type[JobState] = JobState,
        status: str = "working",
        *,
        actor: str = "",
        owner: str | float | None = None,
        params: Mapping[str, Any] | None = None,
        metrics: Mapping[str, Any] | None = None,
        progress: Progress | None = None,
        message: str | None = None,
        log: Sequence[str] = (),
        error: JobError | None = None,
        traceback: str = "",
        attempt: int = 1,
        delay: float = 0.0,
        batch: str | None = None,
    ) -> None:
        _check_class(job_state_class)
        if issubclass(job_state_class, Batch):
            raise TypeError("put_job() makes no batches. Use put_batch().")
        if status not in STATUSES:
            known = ", ".join(STATUSES)
            raise ValueError(
                f"Unknown status {status!r}. Use one of: {known}.{did_you_mean(status)}"
            )
        _check("actor", actor, str, "a str")
        check_owner(owner)
        _check("params", params, Mapping | None, "a dict of values by name")
        _check("metrics", metrics, Mapping | None, "a dict of values by name")
        _check("progress", progress, Progress | None, "a Progress")
        if isinstance(log, str):
            raise TypeError(f"log must be a list of lines, not the string {log!r}.")
        _check("error", error, JobError | None, "a JobError")
        _check("traceback", traceback, str, "a str")
        if isinstance(attempt, bool) or not isinstance(attempt, int):
            raise TypeError(f"attempt must be an int, not {attempt!r}.")
        if attempt < (status != "queued"):
            raise ValueError(f"attempt must be 1 or more, not {attempt}.")
        check_delay(delay, "seconds", MAX_DELAY // 1000)
        self._delay = max(0.0, delay)
        encoded = encode_owner(owner)
        level = log_level_of(job_state_class)
        self._info = JobInfo(
            job_state_class.kind,
            actor,
            attempt,
            encoded,
            dumps(dict(params or {})),
            batch=batch,
            queue="default" if actor else None,
            log_level=level,
        )
        self._status = status
        self._error = CANCELLED if error is None and status == "cancelled" else error
        self._traceback = traceback
        self._run = Run()
        if level is not None:
            self._run.journal = Journal(level, attempt)
        if status != "queued":
            self._run.set_metrics(metrics or {})
            if progress is not None:
                self._run.set_progress(
                    progress.done, progress.total, progress.unit, None
                )
            self._run.set_message(message)
            for line in log:
                self._run.append_log(line)
        self.job = NewJob(
            str(uuid.uuid4()),
            self._info._replace(attempt=0),
            self._delay if status == "queued" else 0.0,
            sender="" if batch is None else secrets.token_hex(6),
        )

    def move(self, store: JobStore) -> None:
        """Bring the job, which waits, to its status."""
        status = self._status
        if status == "queued":
            return
        unsaved = Unsaved(self.job.uuid, self._run, self._info)
        update = unsaved.take(time.monotonic())
        if status == "stalled":
            update.fields["seen"] = "0"
        records_of(store).write([update])
        if status == "cancelling":
            records_of(store).cancel(self.job.uuid, self._info)
        elif status not in ("working", "stalled"):
            put_back = self._delay if status == "retrying" else None
            failure = self._failure() if status in ("error", "retrying") else None
            unsaved.end = End(status, self._error, put_back, failure=failure)
            unsaved.mark_stored(time.monotonic())
            records_of(store).write([unsaved.take(time.monotonic())])

    def _failure(self) -> Failure:
        """Return what is kept of a failure."""
        info = self._info
        if self._status != "error" or not info.actor:
            return Failure("", "", self._traceback)
        options = {OWNER: None if info.owner is None else json.loads(info.owner)}
        if info.batch is not None:
            options[BATCH] = info.batch
        message: Message[Any] = Message(
            "default", info.actor, (), json.loads(info.params), options, self.job.uuid
        )
        return Failure(dumps(message.asdict()), "", self._traceback)


def _check_class(job_state_class: object) -> None:
    """Check the class of a job that a test makes.

    Raises:
      TypeError: It is not a JobState class.
    """
    if not (
        isinstance(job_state_class, type) and issubclass(job_state_class, JobState)
    ):
        raise TypeError(
            f"job_state_class must be a JobState class, not {job_state_class!r}."
        )


def _check_store(store: object) -> None:
    """Check the store of a job that a test makes.

    Raises:
      TypeError: It is not a JobStore.
    """
    if not isinstance(store, JobStore):
        # Without the value: a URL may contain a password.
        raise TypeError(f"store must be a JobStore, not {type_name(store)}.")


def _check(name: str, value: object, kinds: Any, wanted: str) -> None:
    """Check the type of an argument.

    Raises:
      TypeError: It is wrong.
    """
    if not isinstance(value, kinds):
        raise TypeError(f"{name} must be {wanted}, not {value!r}.")
