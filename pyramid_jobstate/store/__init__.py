"""Storage of jobs in Redis or Valkey: all keys, scripts and encodings.

This wing may import redis-py, :mod:`pyramid_jobstate.job` and
:mod:`pyramid_jobstate.errors`, but not Dramatiq or Pyramid.
"""

from .arguments import checked_namespace, namespace_fault, positive, type_name
from .bulk import Act, Acted, Bulk, BulkResult, Tell, check_empty
from .connection import (
    Client,
    connect,
    deferred_client,
    is_passing,
    name_of,
    place_of,
    redis_errors,
)
from .jobstore import JobStore, store_beside
from .lists import FAILED_OR_LOST, Bucket, Counts, Filter, Fresh, Page
from .newest import newest_uuids
from .places import refusal
from .reader import Failures, Try, is_foreign
from .scripts import Reply

__all__ = [
    "FAILED_OR_LOST",
    "Act",
    "Acted",
    "Bucket",
    "Bulk",
    "BulkResult",
    "Client",
    "Counts",
    "Failures",
    "Filter",
    "Fresh",
    "JobStore",
    "Page",
    "Reply",
    "Tell",
    "Try",
    "check_empty",
    "checked_namespace",
    "connect",
    "deferred_client",
    "is_foreign",
    "is_passing",
    "name_of",
    "namespace_fault",
    "newest_uuids",
    "place_of",
    "positive",
    "redis_errors",
    "refusal",
    "store_beside",
    "type_name",
]
