"""What is kept of a run that failed: its message and its traceback."""

from __future__ import annotations

import json
import traceback
from typing import TYPE_CHECKING, Any

from ..job import Failure

if TYPE_CHECKING:
    from dramatiq.broker import MessageProxy

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
