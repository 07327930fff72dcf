"""Messages, pipelines and groups to be sent, and the records of their jobs."""

from __future__ import annotations

import contextlib
import itertools
import secrets
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import dramatiq.broker
from dramatiq import ActorNotFound, Message, group, pipeline
from redis.exceptions import RedisError

from ..errors import ActorError
from ..job import (
    NOT_REACHED,
    NOT_SENT,
    End,
    JobState,
    NewJob,
    Update,
    is_uuid,
    set_store,
)
from ..store import JobStore, refusal
from ..worker import UNIQUE, TrackedFunction, check_owner, middleware_of
from .messages import check_callbacks, encoded, unlinked
from .unique import Unique

if TYPE_CHECKING:
    from dramatiq import Broker

#: What can be sent.
Sendable = Message[Any] | pipeline | group


class Outgoing:
    """A message, pipeline or group to be sent, and its jobs.

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

    Attributes:
      broker: The broker to send everything through.
      messages: The messages, in order.
      job_states: The JobStates of the jobs, in the same order.
      following: The id of the next step of a pipeline, by the id of each step.
      store: The store to which :meth:`record` has written the jobs.

    Raises:
      TypeError: `what` is not a message, pipeline or group, an actor is untracked or
        unknown to the broker, the owner is neither a string nor a number, an argument
        cannot be encoded, a group has parts for another broker, its completion
        callbacks cannot be kept, or no broker is set.
      ValueError: A message id is not a uuid, or a pipeline is empty.
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
    ) -> None:
        if isinstance(delay, timedelta):
            delay = int(delay.total_seconds() * 1000)
        self._delay = delay
        self._owner = owner
        self._origin = origin
        self.unique = unique
        # Another sender may send the same messages.
        self._sender = secrets.token_hex(6)
        self._jobs: list[NewJob] = []
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
        self._what = self._prepare(what)
        # Looked up last: the error for an unknown actor would be misleading.
        self._middleware = middleware_of(broker)
        #: The jobs that had ended before, and the tokens with which to requeue them.
        self._ended: dict[str, tuple[NewJob, str]] = {}
        #: The ids of the messages that the broker has not accepted.
        self._unsent = {job.uuid for job in self._jobs}
        self.store: JobStore

    def check(self, store: JobStore) -> None:
        """Check that the worker writes the jobs to `store`. Warn if it may not.

        Raises:
          ActorError: It certainly writes elsewhere.
        """
        if self.messages:
            name = self.messages[0].actor_name
            written = self._middleware.store_for(self.broker)
            error = refusal(store, written, f"the broker of the actor {name!r}")
            if error is not None:
                raise ActorError(error)

    def record(self, store: JobStore) -> None:
        """Write that the jobs are queued. Jobs that had ended before keep that state
        until their messages are sent.
        """
        self.store = store
        replies = store.create_new(*self._jobs)
        self._ended = {
            job.uuid: (job, reply)
            for job, reply in zip(self._jobs, replies, strict=True)
            if isinstance(reply, str)
        }
        for job_state in self.job_states:
            set_store(job_state, store)

    def forget(self, store: JobStore) -> None:
        """Undo :meth:`record` for the jobs that were not sent."""
        store.forget(*(job for job in self._left() if job.uuid not in self._ended))

    def send(self) -> None:
        """Hand the messages to the broker. Call :meth:`record` before.

        Raises:
          NotClaimed: The store does not say whether another job with the identity of a
            unique one is under way.
          Exception: The broker did not accept them.
        """
        if self.unique is not None and not self.unique.take(self.store, self._jobs[0]):
            return
        if self._ended:
            # The messages are sent even if this fails.
            with contextlib.suppress(RedisError):
                self.store.queue_again([*self._ended.values()])
        with self._middleware.announced(self._unsent):
            if isinstance(self._what, Message):
                self.broker.enqueue(self._what, delay=self._delay)
            else:
                self._what.run(delay=self._delay)

    def fail(self, store: JobStore) -> None:
        """Write the failure of the jobs that the broker did not accept: all of them, or
        some parts of a group.
        """
        store.write(
            [
                Update(
                    job.uuid,
                    "",
                    0,
                    job.info,
                    end=End("cancelled", NOT_REACHED)
                    if job.waits
                    else End("error", NOT_SENT),
                    dropped=True,
                    sender=job.sender,
                )
                for job in self._left()
            ]
        )

    def fail_soon(self) -> None:
        """Write that a unique job was not sent, as soon as the store answers."""
        (job,) = self._jobs
        self._middleware.drop(self.broker, job.uuid, job.info, End("error", NOT_SENT))

    def _left(self) -> list[NewJob]:
        """Return the jobs that the broker has not accepted. The later steps of a
        pipeline count like its first.
        """
        left = []
        is_left = False
        for job in self._jobs:
            if not job.waits:
                is_left = job.uuid in self._unsent
            if is_left:
                left.append(job)
        return left

    def _prepare(self, what: Any) -> Any:
        if isinstance(what, Message):
            # As with the first step of a pipeline, but not with a member of a group.
            if self._delay is None:
                self._delay = what.options.get("delay")
            return self._message(what, self._delay)
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
            delay = step.options.get("delay")
            # The record of a later step must live until its turn comes.
            wait = before if i else delay
            steps.append(self._message(step, wait, waits=i > 0))
            before += delay or 0
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
        message = encoded(self.broker, message, owner, self._origin, unique)
        info = function.info(message.args, message.kwargs, owner, unique=unique)
        seconds = 0.0 if delay is None else delay / 1000
        self._jobs.append(
            NewJob(message.message_id, info, seconds, waits, self._sender)
        )
        self.messages.append(message)
        due_in = 0.0 if waits else seconds
        self.job_states.append(function.queued(message.message_id, info, due_in))
        return message

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
