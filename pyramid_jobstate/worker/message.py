"""What a message says of its job, and what is kept of it if the job fails."""

from __future__ import annotations

import json
import re
import traceback
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from dramatiq import Message

from ..job.hooks import HookInfo
from ..job.record import Failure, is_uuid
from ..job.state import JobState, class_hooks
from ..job.values import MAX_DELAY, is_number, is_owner, is_system

if TYPE_CHECKING:
    from dramatiq.broker import MessageProxy


#: The option with the owner of a job.
OWNER = "job_owner"

#: The options that tell an actor with a request where its job comes from: the URL and
#: the name of the application.
URL, APPLICATION = "job_url", "job_app"

#: The option of a message that runs a job again: a word that the job's record has, too.
WORD = "job_rerun"

#: The option with the identity of a unique job.
UNIQUE = "job_unique"

#: The option with the uuid of a job's batch.
BATCH = "job_batch"

#: The option with the uuid of a batch that the store had lost when one of its members
#: sent the job, which can send further ones by their keys.
LOST_BATCH = "job_lost_batch"


def word_of(message: Message[Any] | MessageProxy) -> str | None:
    """Return the word of the request that sent a message to run its job again, or None
    if it was sent by none.
    """
    word = message.options.get(WORD)
    return word if isinstance(word, str) and word else None


def attempts_before(message: Message[Any] | MessageProxy) -> int:
    """Return the number of attempts before a message, which Retries counts before each
    retry.
    """
    attempts = message.options.get("retries")
    # Another program may have sent it.
    return attempts if type(attempts) is int and attempts >= 0 else 0


def unique_of(message: Message[Any] | MessageProxy) -> str | None:
    """Return the identity of a message's job if it is unique, or None."""
    identity = message.options.get(UNIQUE)
    return identity if isinstance(identity, str) and identity else None


def batch_of(message: Message[Any] | MessageProxy) -> str | None:
    """Return the uuid of the batch of a message's job, or None."""
    batch = message.options.get(BATCH)
    return batch if is_uuid(batch) else None


def sends_for(message: Message[Any] | MessageProxy) -> str | None:
    """Return the uuid of the batch for which a message's job may send members, or None:
    its own, or one that the store has lost.
    """
    batch = message.options.get(LOST_BATCH)
    return batch if is_uuid(batch) else batch_of(message)


def steps_after(message: Message[Any] | MessageProxy) -> Iterator[Message[Any]]:
    """Yield the messages of the later steps of a message's pipeline."""
    while (target := message.options.get("pipe_target")) is not None:
        message = Message(**target)
        yield message


def hook_text(
    cls: type[JobState], queue: str, options: Mapping[str, Any]
) -> str | None:
    """Return what the record of a job says of the hooks of its class, or None.

    Parameters:
      queue: The queue of the messages that tell them.
      options: The message options that tell the request of a hook where it comes from.
    """
    hooks = class_hooks(cls)
    if not hooks:
        return None
    letters = "".join(status[0] for status in hooks)
    return HookInfo(letters, queue, options.get(URL), options.get(APPLICATION)).text


def check_owner(owner: Any) -> str | float | None:
    """Return `owner` if it can own a job, or is None.

    Raises:
      TypeError: It is not a string or a finite number. The JSON form of anything else
        would name a different owner.
      ValueError: It is a principal that stands for many users.
    """
    if owner is not None and not is_owner(owner):
        raise TypeError(
            "The owner of a job must be a string or a finite number, not "
            f"{owner!r}. A function set as jobstate.owner must return one."
        )
    if is_system(owner):
        raise ValueError(
            f"The owner of a job must be a single user, not {owner!r}. All users for "
            "whom this principal stands could see and cancel the job."
        )
    checked: str | float | None = owner
    return checked


def check_queue(name: str | None) -> str | None:
    """Return the name of a queue, or None.

    Raises:
      TypeError: It is not a string.
      ValueError: Dramatiq does not take it.
    """
    if name is None:
        return None
    if not isinstance(name, str):
        raise TypeError(f"hooks_queue must be the name of a queue, not {name!r}.")
    if not re.fullmatch(r"[a-zA-Z_][a-zA-Z0-9._-]*", name):
        raise ValueError(
            f"hooks_queue = {name!r} is not the name of a queue: it must begin with a "
            "letter or an underscore, followed by letters, digits, dots, hyphens and "
            "underscores."
        )
    return name


def check_delay(
    delay: object, unit: str = "milliseconds", longest: int = MAX_DELAY
) -> None:
    """Check the delay of a job, which the store keeps with it. One below 0 has passed.

    Parameters:
      unit: What it is a number of.
      longest: The most that it may be, in either direction.

    Raises:
      TypeError: It is not a number. NumPy's numbers cannot travel with a message.
      ValueError: It is out of range.
    """
    if not is_number(delay):
        raise TypeError(f"delay must be a number of {unit}, not {delay!r}.")
    if not -longest <= delay <= longest:
        raise ValueError(f"delay must be up to {longest:,} {unit}, not {delay}.")


#: The maximum size of a message from which a job may run again, in bytes of JSON.
MAX_MESSAGE = 64 * 1024

#: The bytes that are kept of a traceback: its end.
MAX_TRACEBACK = 4096

#: The options with which a message must not leave again: it would count as retried, or
#: as delayed.
SPENT = ("retries", "traceback", "requeue_timestamp", "eta")


def failure_of(
    message: MessageProxy, exception: BaseException | None, *, is_final: bool
) -> Failure:
    """Return what is kept of a run that failed.

    Parameters:
      message: The message of the run.
      exception: What it raised, or None if its message was rejected without a reason.
      is_final: Whether Dramatiq gives up. Only then the message is kept.
    """
    try:
        text = "".join(traceback.format_exception(exception)) if exception else ""
    except Exception:
        # Code of the application: an attribute of the exception raises, for one.
        text = ""
    end = text.encode("utf-8", "replace")[-MAX_TRACEBACK:].decode("utf-8", "ignore")
    if not is_final:
        return Failure("", "", end)
    try:
        return Failure(_as_json(message), "", end)
    except (TypeError, ValueError, RecursionError) as e:
        return Failure("", f"Its message cannot be kept as JSON: {e}", end)


def _as_json(message: MessageProxy) -> str:
    """Return a message as JSON.

    Raises:
      TypeError, ValueError, RecursionError: JSON cannot say what it holds, or would
        take more than MAX_MESSAGE bytes.
    """
    options = {k: v for k, v in message.options.items() if k not in SPENT}
    # Dramatiq's own encoder makes lists of the arguments.
    fields: dict[str, Any] = {
        **message.asdict(),
        "args": list(message.args),
        "options": options,
    }
    text = json.dumps(fields, allow_nan=False)
    if len(text) > MAX_MESSAGE:
        raise ValueError(f"it takes {len(text)} bytes of at most {MAX_MESSAGE}")
    if not _is_plain(fields):
        raise ValueError("it would come back changed")
    return text


def _is_plain(value: object) -> bool:
    """Return whether JSON gives back the very same value."""
    if type(value) is dict:
        return all(type(k) is str and _is_plain(v) for k, v in value.items())
    if type(value) is list:
        return all(map(_is_plain, value))
    return value is None or type(value) in (str, int, float, bool)
