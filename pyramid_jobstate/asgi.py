"""The application for ASGI servers, which push the states of jobs to pages::

    # asgi.py, beside the ini file: uvicorn asgi:app
    from pyramid.paster import get_app
    from pyramid_jobstate.asgi import asgi_app

    app = asgi_app(get_app("production.ini"))

Keep this module out of your package, where ``config.scan()`` would import it. It needs
the extra ``pyramid_jobstate[asgi]``.
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Awaitable, Callable, MutableMapping
from typing import TYPE_CHECKING, Any, cast

from .web.push.bridge import ClientGone, Connection, mended
from .web.push.response import AsgiOffer, LoopQueue, Receive, Send

try:
    from a2wsgi import WSGIMiddleware
except ImportError as e:
    raise ImportError(
        "pyramid_jobstate.asgi needs the package a2wsgi. Install "
        "pyramid_jobstate[asgi]."
    ) from e

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

__all__ = ["asgi_app"]

AsgiApplication = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]


def asgi_app(
    wsgi_app: WSGIApplication, *, threads: int = 10
) -> Callable[..., Awaitable[None]]:
    """Return an ASGI application that serves a Pyramid application.

    Its views run in a pool of threads. A page's stream of states needs none: when the
    view has answered, the stream goes on in the server's event loop.

    Parameters:
      wsgi_app: The Pyramid application, or a WSGI application around it.
      threads: The number of requests whose views may run at the same time in one
        process.

    Raises:
      ValueError: `threads` is not a whole number above 0.
    """
    if type(threads) is not int or threads < 1:
        raise ValueError(f"threads must be a whole number above 0, not {threads!r}.")
    # Its types are narrower than those of ASGI and WSGI.
    bridge = cast(
        "AsgiApplication", WSGIMiddleware(cast("Any", mended(wsgi_app)), threads)
    )
    queues: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, LoopQueue]
    queues = weakref.WeakKeyDictionary()

    async def application(
        scope: MutableMapping[str, Any], receive: Receive, send: Send
    ) -> None:
        if scope["type"] != "http":
            await bridge(scope, receive, send)
            return
        loop = asyncio.get_running_loop()
        queue = queues.get(loop)
        if queue is None:
            queue = queues[loop] = LoopQueue(loop)
        offer = AsgiOffer(queue)
        connection = Connection(offer, scope, receive, send)
        try:
            await connection.collect()
            try:
                await bridge(connection.scope, connection.receive, connection.send)
            finally:
                connection.unwatch()
            if connection.goes_on:
                await offer.carry(receive, send)
        except ClientGone:
            # The view has heard of it, or never began.
            pass
        finally:
            offer.release()

    return application
