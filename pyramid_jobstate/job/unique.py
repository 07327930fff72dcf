"""The identity of a unique job: at most one unended job has it."""

from __future__ import annotations

from .values import dumps

#: The maximum number of characters of a unique key.
MAX_KEY = 200


def identity_of(actor: str, key: object, owner: str | None, *, shared: bool) -> str:
    """Return the identity of a unique job, as JSON.

    Parameters:
      actor: The name of its actor.
      key: Its unique key.
      owner: Its owner as JSON, or None.
      shared: Whether the jobs of all owners have one identity.

    Raises:
      TypeError: The key is not a string.
      ValueError: The key is empty, too long or not valid Unicode, or the job has
        neither an owner nor a shared identity.
    """
    if not isinstance(key, str):
        raise TypeError(f"A unique key must be a string, not {key!r}.")
    if not 1 <= len(key) <= MAX_KEY:
        raise ValueError(
            f"A unique key must have 1 to {MAX_KEY} characters, not {len(key)}: "
            f"{key[:MAX_KEY]!r}."
        )
    try:
        key.encode()
    except UnicodeEncodeError:
        raise ValueError(f"A unique key must be valid Unicode, not {key!r}.") from None
    if shared:
        return dumps([actor, key])
    if owner is None:
        raise ValueError(
            f"The job with the unique key {key!r} has no owner. Pass shared=True to "
            "let all visitors share one job, or name an owner."
        )
    return f"[{dumps(actor)},{dumps(key)},{owner}]"
