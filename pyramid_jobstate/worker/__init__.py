"""The worker process: follows the messages of tracked actors.

This wing may import Dramatiq, redis-py's exceptions, :mod:`pyramid_jobstate.errors`,
:mod:`pyramid_jobstate.embedded` and the wings `store` and `job`, but not Pyramid.
"""

from .actors import TrackedFunction
from .batching import OutgoingBatch
from .brokers import (
    is_default,
    is_made,
    made_store,
    release_broker,
    use_broker,
)
from .current import Conflict
from .fanout import RunningMember
from .finding import middleware_of
from .making import STUB, BrokerFault, BrokerSpec, masked
from .messages import REQUEST, receives_request, refuse_request
from .middleware import JobStateMiddleware
from .options import BATCH, UNIQUE, check_owner
from .outage import Outage
from .outgoing import Outgoing
from .parameters import (
    HandedFunction,
    called_function,
    has_parameter,
    is_async,
    layers,
)
from .preparing import Sendable
from .putting import check_class, put_batch, put_job
from .repeatable import why_not_repeatable
from .rerunning import BROKER_IS_AWAY, rerun, rerun_all
from .unique import NotClaimed, Unique

__all__ = [
    "BATCH",
    "BROKER_IS_AWAY",
    "REQUEST",
    "STUB",
    "UNIQUE",
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
    "called_function",
    "check_class",
    "check_owner",
    "has_parameter",
    "is_async",
    "is_default",
    "is_made",
    "layers",
    "made_store",
    "masked",
    "middleware_of",
    "put_batch",
    "put_job",
    "receives_request",
    "refuse_request",
    "release_broker",
    "rerun",
    "rerun_all",
    "use_broker",
    "why_not_repeatable",
]
