"""Storage of jobs in Redis or Valkey: all keys, scripts and encodings.

This wing may import redis-py, :mod:`pyramid_jobstate.job` and
:mod:`pyramid_jobstate.errors`, but not Dramatiq or Pyramid.
"""

from .arguments import (
    check_connections,
    checked_namespace,
    namespace_fault,
    positive,
    type_name,
)
from .bulk import Act, Acted, Bulk, BulkResult, Tell, check_empty
from .connection import (
    HOPELESS,
    LOST,
    Client,
    ConnectionsInUse,
    connect,
    deferred_client,
    is_full,
    name_of,
    passes,
    place_of,
    redis_errors,
)
from .durations import Durations
from .ends import UntoldEnd
from .jobstore import (
    JobStore,
    load_some,
    records_of,
    run_bulk,
    store_beside,
    tracker_of,
)
from .lists import (
    FAILED_OR_LOST,
    MAX_LIMIT,
    AmbiguousKind,
    Bucket,
    Filter,
    Fresh,
    Page,
    kind_name,
    kind_texts,
    newest_uuids,
)
from .looks import FollowedJobs, Looks, Spans, Unended, note_sender
from .places import refusal
from .reader import Failures, LogLine, Try, is_foreign, line_as_json
from .records import Records
from .scripts import Reply
from .whereabouts import ANSWER_SECONDS, NO_ANSWER, Whereabouts, whereabouts_as_json
from .workers import WorkerInfo, worker_as_json, worker_name

__all__ = [
    "ANSWER_SECONDS",
    "FAILED_OR_LOST",
    "HOPELESS",
    "LOST",
    "MAX_LIMIT",
    "NO_ANSWER",
    "Act",
    "Acted",
    "AmbiguousKind",
    "Bucket",
    "Bulk",
    "BulkResult",
    "Client",
    "ConnectionsInUse",
    "Durations",
    "Failures",
    "Filter",
    "FollowedJobs",
    "Fresh",
    "JobStore",
    "LogLine",
    "Looks",
    "Page",
    "Records",
    "Reply",
    "Spans",
    "Tell",
    "Try",
    "Unended",
    "UntoldEnd",
    "Whereabouts",
    "WorkerInfo",
    "check_connections",
    "check_empty",
    "checked_namespace",
    "connect",
    "deferred_client",
    "is_foreign",
    "is_full",
    "kind_name",
    "kind_texts",
    "line_as_json",
    "load_some",
    "name_of",
    "namespace_fault",
    "newest_uuids",
    "note_sender",
    "passes",
    "place_of",
    "positive",
    "records_of",
    "redis_errors",
    "refusal",
    "run_bulk",
    "store_beside",
    "tracker_of",
    "type_name",
    "whereabouts_as_json",
    "worker_as_json",
    "worker_name",
]
