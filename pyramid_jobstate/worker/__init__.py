"""The worker process: follows the messages of tracked actors.

This wing may import Dramatiq, redis-py's exceptions and the wings `store` and `job`,
but not Pyramid.
"""

from .actors import TrackedFunction, check_owner
from .brokers import middleware_of
from .middleware import JobStateMiddleware
from .outage import Outage
from .unsaved import Unsaved

__all__ = [
    "JobStateMiddleware",
    "Outage",
    "TrackedFunction",
    "Unsaved",
    "check_owner",
    "middleware_of",
]
