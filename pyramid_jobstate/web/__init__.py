"""What an application shows and sends: resources, views and transactions.

This wing knows Pyramid; no worker imports it. It may use Pyramid and the wings
`worker`, `store` and `job`.
"""

from .config import include
from .interfaces import IOutbox
from .outgoing import Outgoing
from .resources import JobStates

__all__ = [
    "IOutbox",
    "JobStates",
    "Outgoing",
    "include",
]
