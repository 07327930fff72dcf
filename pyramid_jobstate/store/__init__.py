"""Storage of jobs in Redis or Valkey: all keys, scripts and encodings.

This wing may import redis-py, :mod:`pyramid_jobstate.job` and
:mod:`pyramid_jobstate.errors`, but not Dramatiq or Pyramid.
"""

from .connection import Client, is_hopeless, place_of, redis_errors
from .deferred import deferred_client
from .jobstore import JobStore, store_beside
from .pages import Page
from .places import refusal
from .scripts import Reply

__all__ = [
    "Client",
    "JobStore",
    "Page",
    "Reply",
    "deferred_client",
    "is_hopeless",
    "place_of",
    "redis_errors",
    "refusal",
    "store_beside",
]
