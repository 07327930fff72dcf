"""The worker process: follows the messages of tracked actors.

This wing may import Dramatiq, redis-py's exceptions, :mod:`pyramid_jobstate.errors`,
:mod:`pyramid_jobstate.embedded` and the wings `store` and `job`, but not Pyramid.
"""

from ..job import REQUEST
from .actors import (
    HandedFunction,
    TrackedFunction,
    called_function,
    has_parameter,
    is_async,
    layers,
    receives_request,
    refuse_request,
)
from .batches import OutgoingBatch, RunningMember, describe_batch
from .brokers import (
    STUB,
    BrokerFault,
    BrokerSpec,
    is_default,
    is_made,
    made_store,
    masked,
    release_broker,
    use_broker,
)
from .current import MAX_TEXT, Conflict, describe
from .hooks import call_hook, hook_message
from .ledger import global_broker, ledger_of
from .message import (
    APPLICATION,
    BATCH,
    OWNER,
    UNIQUE,
    URL,
    check_delay,
    check_owner,
    check_queue,
)
from .middleware import JobStateMiddleware
from .outgoing import NotClaimed, Outgoing, Sendable, Unique
from .recorder import Outage, watch_forks
from .reruns import BROKER_IS_AWAY, NO_BROKER, rerun, rerun_all, why_not_repeatable
from .unsaved import Unsaved

__all__ = [
    "APPLICATION",
    "BATCH",
    "BROKER_IS_AWAY",
    "MAX_TEXT",
    "NO_BROKER",
    "OWNER",
    "REQUEST",
    "STUB",
    "UNIQUE",
    "URL",
    "BrokerFault",
    "BrokerSpec",
    "Conflict",
    "HandedFunction",
    "JobStateMiddleware",
    "NotClaimed",
    "Outage",
    "Outgoing",
    "OutgoingBatch",
    "RunningMember",
    "Sendable",
    "TrackedFunction",
    "Unique",
    "Unsaved",
    "call_hook",
    "called_function",
    "check_delay",
    "check_owner",
    "check_queue",
    "describe",
    "describe_batch",
    "global_broker",
    "has_parameter",
    "hook_message",
    "is_async",
    "is_default",
    "is_made",
    "layers",
    "ledger_of",
    "made_store",
    "masked",
    "receives_request",
    "refuse_request",
    "release_broker",
    "rerun",
    "rerun_all",
    "use_broker",
    "watch_forks",
    "why_not_repeatable",
]
