"""Push: streams of states, to pages that would poll otherwise.

Imported under ASGI only, by :mod:`pyramid_jobstate.asgi`. In reading order: `links` and
`watch` hear of changes, `frames` renders jobs, `stream` is one response, `feed` and
`hub` bring them together, `rooms` counts streams, `carrier` sends them, `offer` turns a
view's answer into one, and `bridge` makes up for what a2wsgi lacks. `forks` is for
processes that fork.
"""

from .bridge import ClientGone, Connection, mended
from .carrier import LoopQueue, Receive, Send
from .offer import AsgiOffer

__all__ = [
    "AsgiOffer",
    "ClientGone",
    "Connection",
    "LoopQueue",
    "Receive",
    "Send",
    "mended",
]
