"""The errors that somebody may catch."""

from __future__ import annotations

from dramatiq.middleware import Interrupt, MiddlewareError


class ActorError(MiddlewareError, TypeError):
    """An actor cannot be tracked as it was declared."""


class JobCancelled(Interrupt):
    """Raised in a job that somebody has cancelled, by its next call that reports.

    Not an Exception, so that ``except Exception`` lets it through.
    """


class PoolJobCancelled(JobCancelled, Exception):
    """A JobCancelled in a thread of multiprocessing's pool, which hands nothing but an
    Exception to whoever waits for its result.
    """


class StoreUnavailable(Exception):
    """The store does not answer a web request.

    Parameters:
      container: The JobStates that asked it.
    """

    def __init__(self, container: object) -> None:
        super().__init__("The job state store does not answer.")
        self.container = container
