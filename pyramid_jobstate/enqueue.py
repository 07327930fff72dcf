"""What is sent: messages, pipelines and groups, each job with its record."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import dramatiq.broker
from dramatiq import Message, group, pipeline

from .middleware import JobStateMiddleware
from .record import NOT_REACHED, NOT_SENT, End, NewJob, Update
from .state import JobState
from .store import JobStore, is_uuid

if TYPE_CHECKING:
    from dramatiq import Broker

#: What can be sent.
Sendable = Message[Any] | pipeline | group


class Outgoing:
    """A message, pipeline or group on its way, and the jobs that it will be.

    It is copied, and encoded, at once: what becomes of its arguments until it leaves
    does not matter, and those that cannot be encoded fail here.

    Parameters:
      what: What is to be sent.
      owner: The principal that the jobs belong to, unless a message's own option
        ``job_owner`` names another.
      broker: The broker of a message. Dramatiq's global one unless given.
      delay: Milliseconds, or a timedelta, until it is due.

    Attributes:
      messages: The messages, in their order.
      job_states: The states of their jobs.

    Raises:
      TypeError: `what` is none of these, or is for an actor that is not tracked, the
        owner is neither a string nor a number, or an argument cannot be encoded.
      ValueError: A message's id is no uuid, so that it cannot be tracked.
    """

    def __init__(
        self,
        what: Sendable,
        owner: object = None,
        *,
        broker: Broker | None = None,
        delay: timedelta | int | None = None,
    ) -> None:
        if isinstance(delay, timedelta):
            delay = int(delay.total_seconds() * 1000)
        self._delay = delay
        self._owner = owner
        self._jobs: list[NewJob] = []
        self.messages: list[Message[Any]] = []
        self.job_states: list[JobState] = []
        if isinstance(what, (pipeline, group)):
            broker = what.broker
        # Not get_broker(), which would make one.
        broker = broker or dramatiq.broker.global_broker
        if broker is None:
            raise TypeError("No Dramatiq broker is set: dramatiq.set_broker(...).")
        self._broker = broker
        self._middleware = middleware_of(broker)
        self._what = self._prepare(what)

    def record(self, store: JobStore) -> None:
        """Write that the jobs are queued."""
        store.create(*self._jobs)
        for job_state in self.job_states:
            job_state._store = store

    def forget(self, store: JobStore) -> None:
        """Take back what :meth:`record` has written."""
        store.forget(*self._jobs)

    def send(self) -> None:
        """Hand it over to the broker."""
        with self._middleware.announced(job.uuid for job in self._jobs):
            if isinstance(self._what, Message):
                self._broker.enqueue(self._what, delay=self._delay)
            else:
                self._what.run(delay=self._delay)

    def fail(self, store: JobStore) -> None:
        """Write that the broker did not take it."""
        store.write(
            [
                Update(
                    job.uuid,
                    "",
                    0,
                    job.start,
                    end=End("cancelled", NOT_REACHED)
                    if job.waits
                    else End("error", NOT_SENT),
                    dropped=True,
                )
                for job in self._jobs
            ]
        )

    def _prepare(self, what: Any) -> Any:
        if isinstance(what, Message):
            return self._message(what)
        if isinstance(what, pipeline):
            return self._pipeline(what)
        if isinstance(what, group):
            children = [self._prepare(child) for child in what.children]
            copy = group(children, broker=what.broker)  # type: ignore[no-untyped-call]
            copy.completion_callbacks = list(what.completion_callbacks)
            return copy
        raise TypeError(f"Only messages, pipelines and groups are sent, not {what!r}.")

    def _pipeline(self, what: pipeline) -> pipeline:
        return pipeline(
            (
                self._message(message, waits=i > 0)
                for i, message in enumerate(what.messages)
            ),
            broker=what.broker,
        )

    def _message(self, message: Message[Any], *, waits: bool = False) -> Message[Any]:
        function = self._middleware.functions.get(message.actor_name)
        if function is None:
            raise TypeError(
                f"The actor {message.actor_name!r} is not tracked. Declare a parameter "
                "job_state for it, or the option job_state=True."
            )
        if not is_uuid(message.message_id):
            raise ValueError(
                f"A message whose id is no uuid is not tracked: {message.message_id!r}."
            )
        owner = check_owner(message.options.get("job_owner", self._owner))
        options = {k: v for k, v in message.options.items() if k != "pipe_target"}
        if owner is not None:
            options["job_owner"] = owner
        fields = {**message.asdict(), "options": options}
        try:
            message = Message.decode(Message(**fields).encode())
        except (TypeError, ValueError) as e:
            raise TypeError(f"The message {message} cannot be encoded: {e}") from e
        start = function.start(message.args, message.kwargs, owner)
        delay = max(self._delay or 0, options.get("delay") or 0) / 1000
        self._jobs.append(
            NewJob(message.message_id, start, 0.0 if waits else delay, waits)
        )
        self.messages.append(message)
        self.job_states.append(function.queued(message.message_id, start))
        return message


def middleware_of(broker: Broker) -> JobStateMiddleware:
    """Return the JobStateMiddleware of a broker.

    Raises:
      TypeError: It has none.
    """
    for middleware in broker.middleware:
        if isinstance(middleware, JobStateMiddleware):
            return middleware
    raise TypeError(
        f"The broker {broker!r} has no JobStateMiddleware. Add one to it, before the "
        "actors are declared: broker.add_middleware(JobStateMiddleware())."
    )


def check_owner(owner: Any) -> str | float | None:
    """Return `owner` if it can be a job's.

    Raises:
      TypeError: It is neither a string nor a number: as JSON it would be another
        principal than the one that the security policy knows.
    """
    if (
        isinstance(owner, bool)
        or not isinstance(owner, (str, int, float, type(None)))
        or owner != owner  # NaN
    ):
        raise TypeError(
            f"The owner of a job must be a string or a number, not {owner!r}. The "
            "setting jobstate.owner can name a function that returns such a principal."
        )
    return owner
