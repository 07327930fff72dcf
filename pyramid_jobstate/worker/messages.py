"""Messages as they leave: encoded, and with the options of their jobs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from dramatiq import Message, group, pipeline
from dramatiq.middleware import GroupCallbacks

from ..errors import ActorError
from .options import BATCH, UNIQUE
from .parameters import layers

if TYPE_CHECKING:
    from dramatiq import Broker

#: The parameter of an actor that receives a request.
REQUEST = "request"


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
      origin: Returns the options that tell an actor with a request where it comes from.
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
        options["job_owner"] = owner
    if receives_request(broker, message.actor_name):
        refuse_request(message)
        options.update(origin())
    try:
        return Message.decode(dataclasses.replace(message, options=options).encode())
    except (TypeError, ValueError) as e:
        raise TypeError(f"The message {message} cannot be encoded: {e}") from e


def receives_request(broker: Broker, actor_name: str) -> bool:
    """Return whether an actor receives a request from the RequestMiddleware."""
    actor = broker.actors.get(actor_name)
    return actor is not None and any(
        layer.parameter == REQUEST for layer in layers(actor.fn)
    )


def refuse_request(message: Message[Any]) -> None:
    """Check that a message does not carry a request.

    Raises:
      ActorError: It does.
    """
    if REQUEST in message.kwargs:
        raise ActorError(
            f"A message to the actor {message.actor_name!r} cannot carry the argument "
            "request: the worker makes the request. Leave it out."
        )


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
