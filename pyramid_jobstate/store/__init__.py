"""Storage of jobs in Redis or Valkey: all keys, scripts and encodings.

This wing may import redis-py, :mod:`pyramid_jobstate.job` and
:mod:`pyramid_jobstate.errors`, but not Dramatiq or Pyramid.
"""

from .arguments import checked_namespace, namespace_fault, positive, type_name
from .bulk import Act, Acted, Bulk, BulkResult, Tell, check_empty
from .connection import Client, connect, name_of, place_of, redis_errors
from .counting import Bucket, Counts
from .deferred import deferred_client
from .failures import Failures, Try
from .filters import FAILED_OR_LOST, Filter
from .fresh import Fresh
from .jobstore import JobStore, store_beside
from .newest import newest_uuids
from .pages import Page
from .passing import is_passing
from .places import refusal
from .scripts import Reply
from .trouble import is_foreign

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
