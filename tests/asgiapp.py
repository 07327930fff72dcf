"""An application for ASGI servers that run as processes of their own:
``uvicorn tests.asgiapp:app``.

It reads from the environment where its store is (STORE_URL).
"""

import os
import time
from pathlib import Path

from pyramid.request import Request
from pyramid.response import Response

from pyramid_jobstate.asgi import asgi_app
from tests.webapp import make_config


def pid(request: Request) -> Response:
    """Say which process answers. It may touch a file, and then take two seconds."""
    if begun := request.GET.get("begun"):
        Path(begun).touch()
        time.sleep(2)
    return Response(str(os.getpid()))


def large(request: Request) -> Response:
    """Send more than any buffer holds, without an end."""
    return Response(app_iter=(b"x" * 100_000 for _ in iter(int, 1)))


with make_config(os.environ["STORE_URL"]) as config:
    config.include("pyramid_jobstate")
    for view in pid, large:
        config.add_route(view.__name__, f"/{view.__name__}")
        config.add_view(view, route_name=view.__name__)
    app = asgi_app(config.make_wsgi_app())
