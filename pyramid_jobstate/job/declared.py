"""What a subclass of JobState declares."""

from __future__ import annotations

from typing import Any


def check_declaration(cls: type[Any]) -> None:
    """Check what a JobState class declares.

    Raises:
      TypeError: Its `kind` is not a string that the store keeps, or its `public_params`
        are a string.
    """
    kind: object = cls.kind
    # The store keeps str(kind), which differs for the member of a str Enum.
    if not isinstance(kind, str) or not kind or str(kind) != kind:
        raise TypeError(
            f"{cls.__qualname__}.kind must be a str that is not empty, not {kind!r}. "
            "Leave it out to use the name of the class."
        )
    if isinstance(cls.public_params, str):
        raise TypeError(
            f"{cls.__qualname__}.public_params must be a tuple of names, not the "
            f"string {cls.public_params!r}. Is a comma missing?"
        )
