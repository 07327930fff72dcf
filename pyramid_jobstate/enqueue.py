"""Sending messages, each with the record of its job."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dramatiq import Actor, Message, get_broker

from .middleware import JobStateMiddleware
from .state import JobState
from .store import JobStore, is_uuid

if TYPE_CHECKING:
    from dramatiq import Broker


class Outgoing:
    """A message on its way, and the job that it will be.

    Parameters:
      what: The actor to send `args` and `kwargs` to, or a message.
      owner: The principal that the job belongs to, unless the message's option
        ``job_owner`` names another.

    Raises:
      TypeError: `what` is neither, or is for an actor that is not tracked, or the owner
        is neither a string nor a number.
      ValueError: The message's id is no uuid, so that it cannot be tracked.
    """

    def __init__(
        self,
        what: Actor[Any, Any] | Message[Any],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        owner: str | float | None,
    ) -> None:
        if isinstance(what, Actor):
            self.broker: Broker = what.broker
            message = what.message(*args, **kwargs)
        elif isinstance(what, Message) and not args and not kwargs:
            self.broker = get_broker()
            message = what
        else:
            raise TypeError(
                f"Give an actor and its arguments, or a message alone, not {what!r}."
            )
        self._middleware = middleware_of(self.broker)
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
        owner = check_owner(message.options.get("job_owner", owner))
        if owner is not None:
            message = message.copy(options={"job_owner": owner})
        self.message = message
        self._start = function.start(message.args, message.kwargs, owner)
        self.job_state: JobState = function.queued(message.message_id, self._start)

    def record(self, store: JobStore) -> None:
        """Write that the job is queued."""
        store.create(self.message.message_id, self._start)
        self.job_state._store = store

    def send(self) -> None:
        """Hand the message over to the broker."""
        self._middleware.announce(self.message)
        self.broker.enqueue(self.message)


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
    if isinstance(owner, bool) or not isinstance(owner, (str, int, float, type(None))):
        raise TypeError(
            f"The owner of a job must be a string or a number, not {owner!r}. The "
            "setting jobstate.owner can name a function that returns such a principal."
        )
    return owner
