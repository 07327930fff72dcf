"""The Pyramid side: resources, views, and sending with the transaction.

This wing may import Pyramid, pyramid_retry, transaction, zope.interface, Dramatiq,
redis-py's exceptions, :mod:`pyramid_jobstate.errors` and the wings `worker`, `store`
and `job`. A worker imports it only with an application.
"""

from .config import include
from .interfaces import IJobStore, IOutbox
from .jobstates import Default, JobStates
from .request import RequestMiddleware, with_request

__all__ = [
    "Default",
    "IJobStore",
    "IOutbox",
    "JobStates",
    "RequestMiddleware",
    "include",
    "with_request",
]
