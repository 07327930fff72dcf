"""Sending members of a batch, from outside and from a running member."""

from __future__ import annotations

import math
import uuid
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, Protocol

from .values import MAX_KEY, is_number


class MemberSender(Protocol):
    """The interface of what sends the members of a batch. It knows Dramatiq."""

    def take(
        self, what: Any, /, *, broker: Any, key: str | None, weight: float, delay: Any
    ) -> Sequence[Any]:
        """Send a message, pipeline or group, and return its jobs."""


class Block(MemberSender, Protocol):
    """The interface of what takes the members of a batch in a `with` block."""

    def enter(self) -> None:
        """Begin to take members."""

    def leave(self, error: BaseException | None, /) -> None:
        """Take no more members, and send none of them if an exception was raised."""


#: The least and the greatest weight of a member.
MIN_WEIGHT, MAX_WEIGHT = 0.001, 10_000


class SendsMembers:
    """The methods that send members of a batch."""

    uuid: str

    @property
    def _member_sender(self) -> MemberSender | None:
        return None

    def send(
        self, actor: Any, *args: Any, key: str | None = None, **kwargs: Any
    ) -> Any:
        """Send a message to an actor, whose job is a member of the batch.

        Parameters:
          actor: The actor.
          args, kwargs: Its arguments. If it has a parameter `key`, use
            :meth:`send_with_options`.
          key: What identifies the member among those that the same sender sends to
            this actor, of 1 to 200 characters: see :attr:`.JobState.batch`.

        Returns:
          The JobState of the job.

        Raises:
          TypeError: `actor` is not an actor or is not tracked, an argument cannot be
            encoded, or the key is not a string.
          ValueError: The key is empty or too long, or was used before.
          RuntimeError: The batch takes no more members, or the job that sends it is
            over.
          StoreUnavailable: A running member sends it, and the store does not answer.
        """
        return self.send_with_options(actor, args, kwargs, key=key)

    def send_with_options(
        self,
        actor: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
        delay: timedelta | int | None = None,
        *,
        key: str | None = None,
        weight: float = 1,
        **options: Any,
    ) -> Any:
        """Send a message with options to an actor, like :meth:`send`.

        Parameters:
          actor: The actor.
          args, kwargs: The arguments of the actor.
          delay: Milliseconds, or a timedelta, until it is due: at most
            100,000,000,000,000 milliseconds, about 3,000 years.
          key: As for :meth:`send`.
          weight: Its share of the bar, from 0.001 to 10,000. Other members have 1.
          options: Further options of the message.

        Returns:
          The JobState of the job.

        Raises:
          TypeError, ValueError, RuntimeError, StoreUnavailable: As :meth:`send`. Also
            if the weight or the delay is not a number, or out of range.
        """
        for name in ("unique", "shared", "owner"):
            if name in options:
                raise TypeError(
                    f"A member cannot take {name}=. Members belong to the owner of the "
                    "batch and are never unique."
                )
        check_actor(actor)
        message = actor.message_with_options(args=args, kwargs=kwargs, **options)
        (job_state,) = self._members.take(
            message, broker=actor.broker, key=key, weight=weight, delay=delay
        )
        return job_state

    def send_message(
        self,
        what: Any,
        *,
        key: str | None = None,
        weight: float = 1,
        broker: Any = None,
    ) -> Any:
        """Send a message, pipeline or group, like :meth:`send`. Each message is a
        member.

        Parameters:
          what: A Dramatiq message, pipeline or group.
          key: As for :meth:`send`, of all its messages together.
          weight: The weight of each message.
          broker: The broker of the actors. By default that of the pipeline or group,
            and for a message that of the running member, or else Dramatiq's global
            broker.

        Returns:
          The JobState, or for a pipeline or group those of its jobs in order.

        Raises:
          TypeError, ValueError, RuntimeError, StoreUnavailable: As
            :meth:`send_with_options`.
        """
        if isinstance(what, SendsMembers):
            raise TypeError(
                f"A batch cannot be a member of another: {what!r}. Send its jobs as "
                "members of one batch."
            )
        jobs = self._members.take(
            what, broker=broker, key=key, weight=weight, delay=None
        )
        # A message is one job.
        return jobs[0] if hasattr(what, "message_id") else jobs

    @property
    def _members(self) -> Any:
        """The MemberSender or, in a request that sends the batch, the Block."""
        if self._member_sender is None:
            raise RuntimeError(
                f"The batch {self.uuid} takes members only from the request that sends "
                "it, within `with request.job_states.batch() as batch:`, and from its "
                "running members: job_state.batch.send(…)."
            )
        return self._member_sender


class OwnBatch(SendsMembers):
    """The batch of a running job, for sending further members.

    Attributes:
      uuid: The uuid of the batch.
    """

    def __init__(self, uuid: str, sender: MemberSender | None) -> None:
        self.uuid = uuid
        self._sender = sender

    @property
    def _member_sender(self) -> MemberSender | None:
        return self._sender

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.uuid}>"


def member_uuid(batch: str, sender: str, actor: str, key: str, place: int) -> str:
    """Return the uuid of a member that has a key. A sender that runs again finds the
    members that it has sent before, and none of another sender.

    Parameters:
      sender: The uuid of the running member that sends it, or that of the batch.
      actor: The name of its actor.
      place: The number of the message among those of this key, from 0.
    """
    name = f"{sender}\0{actor}\0{key}" + (f"\0{place}" if place else "")
    return str(uuid.uuid5(uuid.UUID(batch), name))


def check_actor(actor: object) -> None:
    """Check that an object is a Dramatiq actor, without importing Dramatiq.

    Raises:
      TypeError: It is not.
    """
    if not hasattr(actor, "message_with_options"):
        raise TypeError(
            f"actor must be a Dramatiq actor, not {actor!r}. Send a message, pipeline "
            "or group with send_message()."
        )


def check_key(key: object) -> str:
    """Return the key of a member.

    Raises:
      TypeError: It is not a string.
      ValueError: It is empty, too long or not valid Unicode, or contains a NUL.
    """
    if not isinstance(key, str):
        raise TypeError(f"The key of a member must be a string, not {key!r}.")
    if not 1 <= len(key) <= MAX_KEY or "\0" in key:
        raise ValueError(
            f"The key of a member must have 1 to {MAX_KEY} characters, none of them a "
            f"NUL, not {len(key)}: {key[:MAX_KEY]!r}."
        )
    try:
        key.encode()
    except UnicodeEncodeError:
        raise ValueError(
            f"The key of a member must be valid Unicode, not {key!r}."
        ) from None
    return key


def check_weight(weight: object) -> int:
    """Return the weight of a member in thousandths.

    Raises:
      TypeError: It is not a number.
      ValueError: It is out of range.
    """
    if not is_number(weight):
        raise TypeError(f"The weight of a member must be a number, not {weight!r}.")
    if not MIN_WEIGHT <= weight <= MAX_WEIGHT or math.isnan(weight):
        raise ValueError(
            f"The weight of a member must be from {MIN_WEIGHT} to {MAX_WEIGHT:,}, not "
            f"{weight}."
        )
    return round(weight * 1000)
