"""Commands to the server."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol


class Keyed(Protocol):
    """A command and the one key that it touches, by which a Cluster finds its node."""

    @property
    def key(self) -> str: ...

    @property
    def args(self) -> Sequence[str | int]: ...


class Command(NamedTuple):
    """A command other than a call of a script."""

    key: str
    args: Sequence[str | int]
