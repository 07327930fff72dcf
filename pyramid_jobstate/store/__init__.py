"""Where jobs are kept: every key, script and byte in Redis or Valkey.

This wing knows Redis, and nothing of Dramatiq or Pyramid. It may use redis-py and the
wing `job`.
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
