"""Messages, pipelines, groups and unique jobs to be sent, and their records."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from dramatiq import ActorNotFound, Message, group, pipeline
from dramatiq.middleware import GroupCallbacks
from redis.exceptions import RedisError

from ..errors import ActorError
from ..job.members import check_key, member_uuid
from ..job.record import NewJob, Update, is_uuid
from ..job.state import JobState, inner_of
from ..job.values import encode_owner, identity_of
from ..store.jobstore import JobStore, records_of
from ..store.places import refusal
from .actors import (
    TrackedFunction,
    hooks_receive_request,
    receives_request,
    refuse_request,
)
from .ledger import UNREACHED, UNSENT, global_broker, ledger_of
from .message import BATCH, LOST_BATCH, OWNER, UNIQUE, check_delay, check_owner

if TYPE_CHECKING:
    from dramatiq import Broker


#: The key of the unique jobs that a transaction sends, among its data.
_SENT = object()


class NotClaimed(Exception):
    """Raised if the store does not say whether another job is under way."""


class Unique:
    """The uniqueness of a job that is being sent.

    Parameters:
      key: Its unique key.
      shared: Whether all owners share one job.

    Attributes:
      identity: Its identity, as JSON: see :meth:`identify`.
      is_withdrawn: Whether :meth:`withdraw` was called.
      winner: The uuid of the job that is under way, once that is known.
    """

    def __init__(self, key: object, *, shared: bool) -> None:
        self.identity = ""
        self.is_withdrawn = False
        self._key = key
        self._shared = shared
        #: The job of this identity that the transaction sends before.
        self._first: Unique | None = None
        self.winner = ""

    def identify(self, actor: str, owner: str | float | None) -> str:
        """Return the identity of the job.

        Raises:
          TypeError, ValueError: See :func:`.identity_of`.
        """
        encoded = encode_owner(owner)
        self.identity = identity_of(actor, self._key, encoded, shared=self._shared)
        return self.identity

    def join(self, transaction: Any, registry: object) -> None:
        """Follow an earlier send of this identity in the same transaction, if any."""
        try:
            sent = transaction.data(_SENT)
        except KeyError:
            sent = {}
            transaction.set_data(_SENT, sent)
        # Another application may keep its jobs elsewhere.
        place = id(registry), self.identity
        first = sent.get(place)
        if first is None or first.is_withdrawn:
            sent[place] = self
        else:
            self._first = first

    def withdraw(self) -> None:
        """Leave the identity to later sends: this one is aborted."""
        self.is_withdrawn = True

    def take(self, store: JobStore, job: NewJob) -> bool:
        """Claim the identity for the job, whose record is written. If another one is
        under way, that record becomes an alias of it.

        Returns:
          Whether the job is to be sent.

        Raises:
          NotClaimed: The store does not say which.
        """
        claims = records_of(store).claims
        try:
            self.winner = self._first.winner if self._first is not None else ""
            if not self.winner:
                claims.touch(job)
                self.winner = claims.take(self.identity, job.uuid, job.delay)
            if self.winner != job.uuid:
                claims.make_alias(job, self.winner)
        except RedisError as e:
            raise NotClaimed(str(e)) from e
        return self.winner == job.uuid


class Outgoing:
    """A message, pipeline or group to be sent, and the records of its jobs.

    It is copied and encoded at once: later changes to its arguments have no effect, and
    arguments that cannot be encoded are refused here.

    Parameters:
      what: The message, pipeline or group.
      owner: The owner of the jobs, unless a message has the option ``job_owner``.
      broker: The broker to send everything through. By default that of the pipeline or
        group, and Dramatiq's global broker for a message.
      delay: Milliseconds, or a timedelta, until it is due.
      origin: Returns the message options that tell actors with a request where they
        come from.
      unique: The uniqueness of the job of a message, if it is a unique one.
      batch: The uuid of the batch of the jobs, or None.
      key: What identifies them in that batch, or None.
      sender: The uuid of the running job that sends them, which may send them again
        after a failure, or "" if none does.

    Attributes:
      broker: The broker to send everything through.
      jobs: The jobs, in order.
      messages: The messages, in order.
      job_states: The JobStates of the jobs, in the same order.
      following: The id of the next step of a pipeline, by the id of each step.
      unsent: The ids of the messages that the broker has not accepted.
      store: The store to which :meth:`record` has written the jobs.

    Raises:
      TypeError: `what` is not a message, pipeline or group, an actor is untracked or
        unknown to the broker, the owner is neither a string nor a number, a delay
        not a number, an argument cannot be encoded, a group has parts for another
        broker, its completion callbacks cannot be kept, or no broker is set.
      ValueError: A message id is not a uuid, a pipeline is empty, a delay is out of
        range, or the owner is one of Pyramid's own principals.
    """

    store: JobStore

    def __init__(
        self,
        what: Sendable,
        owner: object = None,
        *,
        broker: Broker | None = None,
        delay: timedelta | int | None = None,
        origin: Callable[[], Mapping[str, str]] = dict,
        unique: Unique | None = None,
        batch: str | None = None,
        key: str | None = None,
        sender: str = "",
    ) -> None:
        if isinstance(delay, timedelta):
            delay = int(delay.total_seconds() * 1000)
        if delay is not None:
            check_delay(delay)
        self.delay = delay
        self._owner = owner
        self._origin = origin
        self.unique = unique
        self._batch = batch
        self._key = None if key is None else check_key(key)
        self._sending_job = sender
        # Another sender may send the same messages.
        self._sender = sender or secrets.token_hex(6)
        self.jobs: list[NewJob] = []
        self.messages: list[Message[Any]] = []
        self.job_states: list[JobState] = []
        self.following: dict[str, str] = {}
        self._is_named = broker is not None
        if broker is None and isinstance(what, (pipeline, group)):
            broker = what.broker
        broker = broker or global_broker()
        if broker is None:
            raise TypeError("No Dramatiq broker is set. Call dramatiq.set_broker(...).")
        self.broker = broker
        self.what = self._prepare(what)
        # Looked up last: the error for an unknown actor would be misleading.
        self._ledger = ledger_of(self.broker)
        #: The jobs that had ended before, and the tokens with which to requeue them.
        self._ended: dict[str, tuple[NewJob, str]] = {}
        self.unsent = {job.uuid for job in self.jobs}

    def check(self, store: JobStore) -> None:
        """Check that the worker writes the jobs to `store`. Warn if it may not.

        Raises:
          ActorError: It certainly writes elsewhere.
        """
        if self.messages:
            name = self.messages[0].actor_name
            written = self._ledger.store_for(self.broker)
            error = refusal(store, written, f"the broker of the actor {name!r}")
            if error is not None:
                raise ActorError(error)

    def record(self, store: JobStore) -> None:
        """Write that the jobs are queued. Jobs that had ended before keep that state
        until their messages are sent.
        """
        self.note(store, records_of(store).create_new(*self.jobs, marks=True))

    def note(self, store: JobStore, replies: Sequence[bool | str]) -> None:
        """Note that the jobs are written: see :meth:`.Records.create_new`."""
        self.store = store
        self._ended = {
            job.uuid: (job, reply)
            for job, reply in zip(self.jobs, replies, strict=True)
            if isinstance(reply, str)
        }
        for job_state in self.job_states:
            inner_of(job_state).store = records_of(store)

    def forget(self, store: JobStore) -> None:
        """Undo :meth:`record` for the jobs that were not sent."""
        records_of(store).forget(*self.left())

    def withdraw(self) -> None:
        """Note that nothing is sent: the transaction is aborted."""
        if self.unique is not None:
            self.unique.withdraw()

    def send(self, *, confirms: bool = True) -> None:
        """Hand the messages to the broker. Call :meth:`record` before.

        Parameters:
          confirms: Whether to write that the broker has accepted each message.

        Raises:
          NotClaimed: The store does not say whether another job with the identity of a
            unique one is under way.
          Exception: The broker did not accept them.
        """
        if self.unique is not None and not self.unique.take(self.store, self.jobs[0]):
            return
        if self._ended:
            # The messages are sent even if this fails.
            with contextlib.suppress(RedisError):
                records_of(self.store).queue_again([*self._ended.values()])
        with self._ledger.announced(self.unsent, self._sender, confirms=confirms):
            if isinstance(self.what, Message):
                self.broker.enqueue(self.what, delay=self.delay)
            else:
                self.what.run(delay=self.delay)

    def fail(self, store: JobStore) -> None:
        """Write the failure of the jobs that the broker did not accept: all of them, or
        some parts of a group.
        """
        records_of(store).write([failure_to_send(job) for job in self.left()])

    def fail_soon(self) -> None:
        """Write that a unique job was not sent, as soon as the store answers."""
        (job,) = self.jobs
        self._ledger.write_unsent(self.broker, job)

    def left(self) -> list[NewJob]:
        """Return the jobs that the broker has not accepted. The later steps of a
        pipeline count like its first.
        """
        left = []
        is_left = False
        for job in self.jobs:
            if not job.waits:
                is_left = job.uuid in self.unsent
            if is_left:
                left.append(job)
        return left

    def _prepare(self, what: Any) -> Any:
        if isinstance(what, Message):
            # As with the first step of a pipeline, but not with a member of a group.
            if self.delay is None:
                self.delay = _own_delay(what)
            return self._message(what, self.delay)
        if isinstance(what, pipeline):
            return self._pipeline(what)
        if isinstance(what, group):
            return self._group(what)
        raise TypeError(
            f"Only messages, pipelines and groups can be sent, not {what!r}."
        )

    def _check_broker(self, what: pipeline | group) -> None:
        if what.broker is not self.broker and not self._is_named:
            kind = type(what).__name__
            raise ActorError(
                f"A group is sent through one broker, {self.broker!r}, but contains a "
                f"{kind} for another broker, {what.broker!r}. Send them separately, or "
                "pass one broker for all: send_message(..., broker=...)."
            )

    def _pipeline(self, what: pipeline) -> pipeline:
        self._check_broker(what)
        if not what.messages:
            raise ValueError("A pipeline without messages cannot be sent.")
        steps = []
        before = 0
        for i, step in enumerate(unlinked(what)):
            delay = _own_delay(step) if i or self.delay is None else self.delay
            # The record of a later step must live until its turn comes.
            wait = before if i else delay
            steps.append(self._message(step, wait, waits=i > 0))
            before += max(0, delay or 0)
        for step, following in itertools.pairwise(steps):
            self.following[step.message_id] = following.message_id
        return pipeline(steps, broker=self.broker)

    def _group(self, what: group) -> group:
        self._check_broker(what)
        # Dramatiq does not annotate the constructor of a group.
        make_group: Callable[..., group] = group
        copy = make_group((), broker=self.broker)
        for child in what.children:
            prepare = self._message if isinstance(child, Message) else self._prepare
            copy.children.append(prepare(child))
        check_callbacks(self.broker, what)
        for fields in what.completion_callbacks:
            callback: Message[Any] = Message(**fields)
            owner = callback.options.get(OWNER, self._owner)
            is_tracked = self._function(callback.actor_name) is not None
            checked = check_owner(owner) if is_tracked else None
            callback = encoded(self.broker, callback, checked, self._origin)
            copy.completion_callbacks.append(callback.asdict())
        return copy

    def _message(
        self, message: Message[Any], delay: int | None = None, *, waits: bool = False
    ) -> Message[Any]:
        function = self._function(message.actor_name)
        if function is None:
            raise ActorError(
                f"The actor {message.actor_name!r} is not tracked. Declare it with a "
                "parameter job_state, or with the option job_state=True."
            )
        if not is_uuid(message.message_id):
            raise ValueError(
                f"A message whose id is not a uuid cannot be tracked: "
                f"{message.message_id!r}."
            )
        owner = check_owner(message.options.get(OWNER, self._owner))
        unique = None
        if self.unique is not None:
            unique = self.unique.identify(message.actor_name, owner)
        elif UNIQUE in message.options:
            raise ActorError(
                f"The message {message.message_id} is that of a unique job. Send "
                "another with send_with_options(..., unique=...), or call rerun()."
            )
        if BATCH in message.options:
            raise ActorError(
                f"The message {message.message_id} belongs to a member of a batch. "
                "Send another with batch.send(...), or call rerun()."
            )
        if self._batch is not None and self._key is not None:
            place = len(self.jobs)
            uuid = member_uuid(
                self._batch,
                self._sending_job or self._batch,
                message.actor_name,
                self._key,
                place,
            )
            message = dataclasses.replace(message, message_id=uuid)
        batch = self._batch
        message = encoded(self.broker, message, owner, self._origin, unique, batch)
        info = function.info_of(message)
        seconds = max(0, delay or 0) / 1000
        job = NewJob(message.message_id, info, seconds, waits, self._sender)
        self._add(message, job, function)
        return message

    def _add(
        self, message: Message[Any], job: NewJob, function: TrackedFunction
    ) -> None:
        self.jobs.append(job)
        self.messages.append(message)
        due_in = 0.0 if job.waits else job.delay
        self.job_states.append(function.queued(job.uuid, job.info, due_in))

    def leave_batch(self) -> None:
        """Let the jobs of a message or pipeline belong to no batch: the store has lost
        theirs.
        """
        functions = ledger_of(self.broker).functions
        former = [*zip(self.messages, self.jobs, strict=True)]
        self.messages, self.jobs, self.job_states = [], [], []
        for message, job in former:
            options = dict(message.options)
            options[LOST_BATCH] = options.pop(BATCH)
            lone = job._replace(info=job.info._replace(batch=None))
            function = functions[message.actor_name]
            self._add(dataclasses.replace(message, options=options), lone, function)
        is_pipeline = isinstance(self.what, pipeline)
        self.what = (
            pipeline(self.messages, broker=self.broker)
            if is_pipeline
            else self.messages[0]
        )

    def _function(self, actor_name: str) -> TrackedFunction | None:
        """Return the function of an actor, or None if the actor is not tracked."""
        try:
            self.broker.get_actor(actor_name)
        except ActorNotFound:
            raise ActorError(
                f"The broker {self.broker!r} does not know the actor {actor_name!r}. "
                "If the actor belongs to another broker, pass that broker: "
                "send_message(..., broker=...) or send_immediately(..., broker=...)."
            ) from None
        return ledger_of(self.broker).functions.get(actor_name)


def failure_to_send(job: NewJob) -> Update:
    """Return the update of a job whose message the broker has not accepted."""
    end = UNREACHED if job.waits else UNSENT
    return Update(job.uuid, "", 0, job.info, end=end, dropped=True, sender=job.sender)


def encoded(
    broker: Broker,
    message: Message[Any],
    owner: object,
    origin: Callable[[], Mapping[str, str]],
    unique: str | None = None,
    batch: str | None = None,
) -> Message[Any]:
    """Return a copy of a message as the worker will see it.

    Parameters:
      owner: The owner of its job, or None.
      origin: Returns the options that tell an actor or a hook with a request where it
        comes from.
      unique: The identity of its job if that is unique, or None.
      batch: The uuid of the batch of its job, or None.

    Raises:
      TypeError: It cannot be encoded.
      ActorError: It carries an argument `request` to an actor that receives one.
    """
    options = dict(message.options)
    if unique is not None:
        options[UNIQUE] = unique
    if batch is not None:
        options[BATCH] = batch
    if owner is not None:
        options[OWNER] = owner
    is_handed = receives_request(broker, message.actor_name)
    if is_handed:
        refuse_request(message)
    if is_handed or hooks_receive_request(broker, message.actor_name):
        options.update(origin())
    try:
        return Message.decode(dataclasses.replace(message, options=options).encode())
    except (TypeError, ValueError) as e:
        raise TypeError(f"The message {message} cannot be encoded: {e}") from e


def unlinked(what: pipeline) -> Iterator[Message[Any]]:
    """Yield copies of the steps of a pipeline, which another pipeline links again."""
    for i, step in enumerate(what.messages, 1):
        options = dict(step.options)
        if i < len(what):
            options.pop("pipe_target", None)
        yield dataclasses.replace(step, options=options)


def check_callbacks(broker: Broker, what: group) -> None:
    """Check that the completion callbacks of a group can be kept, which `group.run()`
    would do too late.

    Raises:
      TypeError: They cannot.
    """
    if not what.completion_callbacks:
        return
    if not any(isinstance(m, GroupCallbacks) for m in broker.middleware):
        raise TypeError(
            f"The broker {broker!r} has no GroupCallbacks middleware, which a group "
            "with completion callbacks needs."
        )
    if any(isinstance(child, group) for child in what.children):
        raise TypeError(
            "A group with completion callbacks cannot contain another group."
        )


#: What can be sent.
Sendable = Message[Any] | pipeline | group


def _own_delay(message: Message[Any]) -> int | None:
    """Return the delay that the options of a message name in milliseconds, or None.

    Raises:
      TypeError, ValueError: See :func:`.check_delay`.
    """
    delay: int | None = message.options.get("delay")
    if delay is not None:
        check_delay(delay)
    return delay
