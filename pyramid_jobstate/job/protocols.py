"""What a JobState needs of the store and of the container that loaded it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from .record import JobInfo


class Store(Protocol):
    """The interface of the store from which a JobState was loaded."""

    def cancel(self, uuid: str, info: JobInfo, /) -> bool:
        """Request cancellation of a job. Return False if it had already ended."""

    def delete(self, uuid: str, /) -> bool:
        """Delete a job. Return False if it has not ended."""


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


class Container(Protocol):
    """The interface of the container through which a request found a JobState."""

    @property
    def request(self) -> Any:
        """The request."""

    @property
    def localizer(self) -> Any:
        """What translates for the request."""

    def permits(self, context: Any, permission: str, /) -> object:
        """Return a true value if the request has the permission on a job."""

    def principals_of(self, owner: str | float, /) -> Sequence[str | float]:
        """Return the principals that represent a job's owner in the request."""

    def url_of(self, job_state: Any, /) -> str:
        """Return the URL of a job that the container has loaded."""

    def rerun(self, job_state: Any, /) -> bool:
        """Run a job again. Return False if it has not failed."""
