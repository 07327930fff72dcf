"""The worker process: follows the messages of tracked actors.

This wing may import Dramatiq, redis-py's exceptions, :mod:`pyramid_jobstate.errors`,
:mod:`pyramid_jobstate.embedded` and the wings `store` and `job`, but not Pyramid.
"""

from .actors import TrackedFunction, check_owner
from .brokers import (
    is_default,
    is_made,
    made_store,
    middleware_of,
    release_broker,
    use_broker,
)
from .current import Conflict
from .making import STUB, BrokerFault, BrokerSpec, masked
from .middleware import JobStateMiddleware
from .options import UNIQUE
from .outage import Outage
from .parameters import HandedFunction, called_function, has_parameter, layers
from .putting import put_job
from .repeatable import why_not_repeatable
from .rerunning import BROKER_IS_AWAY, rerun, rerun_all

__all__ = [
    "BROKER_IS_AWAY",
    "STUB",
    "UNIQUE",
    "BrokerFault",
    "BrokerSpec",
    "Conflict",
    "HandedFunction",
    "JobStateMiddleware",
    "Outage",
    "TrackedFunction",
    "called_function",
    "check_owner",
    "has_parameter",
    "is_default",
    "is_made",
    "layers",
    "made_store",
    "masked",
    "middleware_of",
    "put_job",
    "release_broker",
    "rerun",
    "rerun_all",
    "use_broker",
    "why_not_repeatable",
]
