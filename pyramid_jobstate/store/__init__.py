"""Storage of jobs in Redis or Valkey: all keys, scripts and encodings.

This package imports redis-py and :mod:`pyramid_jobstate.job`, and does not depend on
Dramatiq or Pyramid.
"""

from .connection import Client, is_hopeless, redis_errors
from .jobstore import JobStore, store_beside
from .pages import Page
from .places import refusal
from .scripts import Reply

__all__ = [
    "Client",
    "JobStore",
    "Page",
    "Reply",
    "is_hopeless",
    "redis_errors",
    "refusal",
    "store_beside",
]
