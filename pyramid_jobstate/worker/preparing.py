"""Messages, pipelines and groups made ready to be sent, and their jobs."""

from __future__ import annotations

import dataclasses
import itertools
import secrets
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import dramatiq.broker
from dramatiq import ActorNotFound, Message, group, pipeline

from ..errors import ActorError
from ..job import JobState, NewJob, check_key, is_uuid, member_uuid
from .actors import TrackedFunction
from .finding import middleware_of
from .messages import check_callbacks, encoded, unlinked
from .options import BATCH, LOST_BATCH, UNIQUE, check_delay, check_owner
from .unique import Unique

if TYPE_CHECKING:
    from dramatiq import Broker

#: What can be sent.
Sendable = Message[Any] | pipeline | group


class Prepared:
    """A message, pipeline or group as it is to be sent, and its jobs.

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

    Raises:
      TypeError: `what` is not a message, pipeline or group, an actor is untracked or
        unknown to the broker, the owner is neither a string nor a number, a delay
        not a number, an argument cannot be encoded, a group has parts for another
        broker, its completion callbacks cannot be kept, or no broker is set.
      ValueError: A message id is not a uuid, a pipeline is empty, or a delay is out of
        range.
    """

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
        # Not get_broker(), which would create one.
        broker = broker or dramatiq.broker.global_broker
        if broker is None:
            raise TypeError("No Dramatiq broker is set. Call dramatiq.set_broker(...).")
        self.broker = broker
        self.what = self._prepare(what)

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
            delay = _own_delay(step)
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
            owner = callback.options.get("job_owner", self._owner)
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
        owner = check_owner(message.options.get("job_owner", self._owner))
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
        info = function.info(message.args, message.kwargs, owner, unique=unique)
        info = info._replace(batch=batch)
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
        functions = middleware_of(self.broker).functions
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
        return middleware_of(self.broker).functions.get(actor_name)


def _own_delay(message: Message[Any]) -> int | None:
    """Return the delay that the options of a message name in milliseconds, or None.

    Raises:
      TypeError, ValueError: See :func:`.check_delay`.
    """
    delay: int | None = message.options.get("delay")
    if delay is not None:
        check_delay(delay)
    return delay
