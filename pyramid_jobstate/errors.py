"""The exceptions that an application may catch."""

from __future__ import annotations

from dramatiq.middleware import Interrupt, MiddlewareError

__all__ = [
    "ActorError",
    "JobCancelled",
    "JobStalled",
    "NotRepeatable",
    "NotUnique",
    "StoreUnavailable",
]


class ActorError(MiddlewareError, TypeError):
    """Raised when an actor is declared, or a message sent to it, in a way that cannot
    be tracked. A TypeError, and a ``dramatiq.middleware.MiddlewareError``.
    """


class JobCancelled(Interrupt):
    """Raised in a cancelled job, by its next call that reports.

    A ``dramatiq.middleware.Interrupt``, and not an Exception: ``except Exception``
    does not swallow it.
    """


class PoolJobCancelled(JobCancelled, Exception):
    """A JobCancelled raised in a thread of a multiprocessing pool, which passes only
    an Exception on to the caller that waits for the result.
    """


class JobStalled(TimeoutError):
    """Raised if a job that is waited for is stalled for too long. A TimeoutError.

    Attributes:
      uuid: The uuid of the job.
    """

    # A default, since pickle passes the text alone.
    def __init__(self, text: str, uuid: str = "") -> None:
        super().__init__(text)
        self.uuid = uuid


class NotRepeatable(Exception):
    """Raised when a job that failed cannot run again. The text says why."""


class NotUnique(NotRepeatable):
    """Raised when a unique job that failed cannot run again yet: another one is under
    way. A :class:`NotRepeatable`.

    Attributes:
      uuid: The uuid of the job that is under way.
    """

    def __init__(self, uuid: str) -> None:
        super().__init__(f"The job {uuid} with the same unique key is under way.")
        self.uuid = uuid


class BatchCancelled(NotRepeatable):
    """Raised when a member of a cancelled batch is to run again."""

    def __init__(self) -> None:
        super().__init__("Its batch was cancelled.")


class StoreUnavailable(Exception):
    """Raised in a web request when the store does not answer, or when all connections
    to it stay in use. The text says which.

    Attributes:
      container: The JobStates that queried the store.
    """

    def __init__(
        self, container: object, text: str = "The job state store does not answer."
    ) -> None:
        super().__init__(text)
        self.container = container
