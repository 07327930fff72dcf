"""Runs failed jobs again, each under its uuid."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dramatiq import Message
from dramatiq.errors import BrokerError, ConnectionClosed, ConnectionFailed
from redis.exceptions import RedisError

from ..errors import BatchCancelled, NotRepeatable, NotUnique
from ..job.hooks import current_hook
from ..job.record import JobInfo, Record, Update
from ..job.state import JobState, record_of
from ..job.values import parse_json
from ..store.bulk import Act, Acted, Bulk, BulkResult
from ..store.connection import LOST, is_full
from ..store.jobstore import JobStore, records_of, run_bulk
from ..store.lists import FAILED_OR_LOST, Filter
from ..store.places import refusal
from .ledger import UNREACHED, ledger_of
from .message import OWNER, WORD

if TYPE_CHECKING:
    from dramatiq import Broker


log = logging.getLogger("pyramid_jobstate")

#: What is logged of a batch whose sender died.
NEVER_SENT = (
    "%d of the jobs of batch %s were never sent, and cannot run again. Cancel the "
    "batch, and send again what is cancelled then."
)

#: Why nothing runs again in a process without a broker.
NO_BROKER = "This process has no Dramatiq broker."

#: What :func:`rerun` raises if the broker does not answer.
BROKER_IS_AWAY = (ConnectionClosed, ConnectionFailed)


def rerun(store: JobStore, broker: Broker, uuid: str) -> bool:
    """Run a job again, under its uuid, if it has failed. Later steps of its pipeline
    that were cancelled because of that wait for their turn again. A `max_age` of
    Dramatiq's counts anew, also for those steps and for the callbacks of its group.

    Parameters:
      store: The store of the job.
      broker: The broker of its actor.
      uuid: The job.

    Returns:
      False if the job has not failed, is being sent or is unknown, else True.

    Raises:
      NotRepeatable: The job cannot run again. The error says why. It is a NotUnique if
        another job with its unique key is under way.
      RuntimeError: A hook of the job, or of its batch, runs here.
      redis.exceptions.RedisError: The store does not answer.
      dramatiq.errors.BrokerError: The server of a RedisBroker refuses the message, or,
        as a ConnectionClosed, does not answer. The job stays as it was.
      Exception: What else the broker raises. The job stays as it was.
    """
    record = records_of(store).record(uuid)
    if record is None or not record.is_failed_or_lost:
        return False
    # It may have been asked for by the uuid of an alias.
    uuid = record.uuid
    if _is_told(record):
        told = current_hook.get()
        what = "it" if told == uuid else "its members"
        raise RuntimeError(
            f"A hook of the job {told} cannot run {what} again: its next end would, "
            "too. Dramatiq tries a job again that raises: see its max_retries."
        )
    try:
        message, steps = message_of(store, broker, record)
    except NotRepeatable:
        record = records_of(store).record(uuid)
        if record is None or not record.is_failed_or_lost:
            # Somebody was faster, and the message is gone.
            return False
        raise
    word = records_of(store).requeue(record, message.queue_name)
    if word is None:
        return False
    try:
        if not records_of(store).await_turn(steps):
            raise NotRepeatable("A later step of its pipeline was deleted.")
        with ledger_of(broker).announced({uuid}):
            _enqueue(broker, message.copy(options={WORD: word}))
    except BaseException:
        # Whatever becomes of this, no message with another word runs the job.
        with contextlib.suppress(RedisError):
            if records_of(store).restore(record, word):
                records_of(store).write([_unreached(*step) for step in steps])
        raise
    # Somebody may have taken this process for dead, and cancelled or sent the job.
    return _is_mine(store, uuid, word)


def rerun_all(
    store: JobStore,
    broker: Broker,
    owner: str | float | None = None,
    kind: str | None = None,
    params: Mapping[str, Any] | None = None,
    batch: str | None = None,
    limit: int = 1000,
    cursor: str | None = None,
    *,
    everything: bool = False,
    permits: Callable[[JobState], bool] | None = None,
    tell: Callable[[str, bool], object] | None = None,
) -> BulkResult:
    """Run failed jobs again, as :func:`rerun` does. Among them are jobs that read
    "stalled" because a process that was about to run them again has died.

    The other arguments and errors are those of :meth:`.JobStore.clear`, for failed jobs
    in place of ended ones.

    Parameters:
      store: The store of the jobs.
      broker: The broker of their actors.
      params: Only jobs that were sent with these values.
      batch: Only members of the batch with this uuid that it counts as failed. (They
        are not listed among the jobs of their owner.) Those that were never sent since
        their sender died have not failed, and stay as they are, which is logged: cancel
        the batch, and send again what is cancelled then.
      tell: Is called for each job as soon as it was sent, with its uuid and True.

    Raises:
      redis.exceptions.RedisError: The store does not answer.
      Exception: What :func:`rerun` raises if the broker fails. In both cases, the jobs
        before that have been sent.
    """
    run = functools.partial(_rerun_each, store, broker)
    act = Act("rerun_all", (FAILED_OR_LOST,), run)
    wanted = Filter(owner, kind, None, params, batch)
    bulk = Bulk(act, wanted, everything=everything)
    if batch is not None and cursor is None:
        record = records_of(store).record(batch)
        if record is not None and record.was_never_sent:
            log.error(NEVER_SENT, record.number("n:n"), batch)
    return run_bulk(store, bulk, limit, cursor, permits, tell)


def _enqueue(broker: Broker, message: Message[Any]) -> None:
    """Send a message, without an error that would be taken for one of the store."""
    try:
        broker.enqueue(message)
    except RedisError as e:
        is_away = isinstance(e, LOST) and not is_full(e)
        # As a RedisBroker does where it receives messages.
        error: Any = ConnectionClosed if is_away else BrokerError
        raise error(e) from e


def _is_mine(store: JobStore, uuid: str, word: str) -> bool:
    """Return whether the message with a word runs a job, or has run it, as far as the
    store says.
    """
    try:
        record = records_of(store).record(uuid)
        if record is not None and record.info.rerun != word:
            # The run of this message may have failed, and somebody run that again.
            return not records_of(store).was_overtaken(uuid, word)
    except RedisError:
        return True
    return record is not None and (record.status != "cancelled" or record.attempt > 0)


def _rerun_each(
    store: JobStore, broker: Broker, records: Sequence[Record]
) -> Iterator[Acted]:
    for record in records:
        if _is_told(record):
            continue
        try:
            is_sent = rerun(store, broker, record.uuid)
        except NotRepeatable:
            continue
        if is_sent:
            yield Acted(record.uuid, True)


def _is_told(record: Record) -> bool:
    """Return whether a hook of a job, or of its batch, runs here."""
    told = current_hook.get()
    return told is not None and told in (record.uuid, record.batch)


def _unreached(uuid: str, info: JobInfo) -> Update:
    """Return the update of a step whose turn does not come."""
    token = secrets.token_hex(6)
    return Update(uuid, token, 0, info, end=UNREACHED, dropped=True)


def message_of(
    store: JobStore, broker: Broker, record: Record
) -> tuple[Message[Any], list[tuple[str, JobInfo]]]:
    """Return the message from which a job runs again, and the tracked later steps of
    its pipeline.

    Raises:
      NotRepeatable: The store holds none, or it is not a message of the job.
    """
    ledger = ledger_of(broker)
    error = refusal(store, ledger.store_for(broker), "its broker")
    if error is not None:
        raise NotRepeatable(error)
    if record.is_batch:
        raise NotRepeatable("A batch cannot run again. Rerun its failed jobs.")
    batch = record.info.batch
    if batch is not None and records_of(store).is_stopped(batch):
        raise BatchCancelled
    failures = store.failures(record.uuid)
    if not failures.message:
        reason = failures.refusal or "The store does not hold its message."
        raise NotRepeatable(reason)
    fields = parse_json(failures.message)
    _renew(fields)
    message, *later = _chain(broker, fields)
    if message.message_id != record.uuid or message.actor_name != record.actor:
        raise NotRepeatable("The message that the store holds belongs to another job.")
    functions = ledger.functions
    if functions.find(message) is None:
        raise NotRepeatable(f"The actor {record.actor!r} is not tracked here.")
    options = {k: v for k, v in message.options.items() if k != OWNER}
    if record.owner is not None:
        options[OWNER] = record.owner
    steps = [
        (step.message_id, function.info_of(step))
        for step in later
        if (function := functions.find(step)) is not None
    ]
    queue = record.queue
    if queue is None or queue not in broker.get_declared_queues():
        # That of its actor.
        queue = message.queue_name
    return dataclasses.replace(message, queue_name=queue, options=options), steps


def _renew(fields: Any) -> None:
    """Let AgeLimit take messages for new: the one from which a job runs again, and
    those that its success sends, the later steps of its pipeline and the completion
    callbacks of its group.
    """
    now = int(time.time() * 1000)
    found = [fields]
    for each in found:
        match each:
            case {"options": dict() as options}:
                each["message_timestamp"] = now
                callbacks = options.get("group_completion_callbacks")
                found.append(options.get("pipe_target"))
                found += callbacks if isinstance(callbacks, list) else ()


def _chain(broker: Broker, fields: Any) -> Iterator[Message[Any]]:
    """Yield a message and the later steps of its pipeline.

    Raises:
      NotRepeatable: One of them is not a message for an actor of the broker.
    """
    while True:
        match fields:
            case {
                "actor_name": str() as name,
                "message_id": str() as uuid,
                "args": list() as args,
                "kwargs": dict() as kwargs,
                "options": dict() as options,
            }:
                pass
            case _:
                raise NotRepeatable("The store holds something other than its message.")
        actors = broker.actors
        if name not in actors:
            raise NotRepeatable(f"The broker does not know the actor {name!r}.")
        yield Message(actors[name].queue_name, name, tuple(args), kwargs, options, uuid)
        if (fields := options.get("pipe_target")) is None:
            return


def why_not_repeatable(
    store: JobStore, broker: Broker | None, job_state: JobState
) -> str | None:
    """Return why a job cannot run again at the moment, or None if it can.

    Parameters:
      store: The store of the job.
      broker: The broker of this process, or None.
      job_state: The job.

    Raises:
      redis.exceptions.RedisError: The store does not answer.
    """
    record = record_of(job_state)
    if not record.is_failed_or_lost:
        return "The job has not failed."
    if broker is None:
        return NO_BROKER
    try:
        ledger_of(broker)
    except TypeError as e:
        return str(e)
    try:
        message_of(store, broker, record)
    except NotRepeatable as e:
        return str(e)
    identity = record.info.unique
    other = None if identity is None else records_of(store).claims.under_way(identity)
    if other is not None and other.uuid != record.uuid:
        return str(NotUnique(other.uuid))
    return None
