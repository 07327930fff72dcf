"""The worker process: follows the messages of tracked actors.

This wing may import Dramatiq, redis-py's exceptions and the wings `store` and `job`,
but not Pyramid.
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
from .outage import Outage
from .parameters import HandedFunction, called_function, has_parameter, layers
from .putting import put_job

__all__ = [
    "STUB",
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
    "use_broker",
]
