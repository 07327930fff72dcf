"""The application that the table `push` measures, for uvicorn: see push.py."""

import os

from pyramid.config import Configurator
from pyramid.request import Request
from pyramid.response import Response

from pyramid_jobstate.asgi import asgi_app

from .poll import Policy


class HeaderPolicy(Policy):
    """Takes the user from a header."""

    def identity(self, request: Request) -> str | None:
        return request.headers.get("X-User")

    authenticated_userid = identity


def plain(request: Request) -> Response:
    return Response("plain")


settings = {
    "jobstate.redis_url": os.environ["JOBSTATE_REDIS_URL"],
    "jobstate.max_streams": "100000",
}
with Configurator(settings=settings, security_policy=HeaderPolicy()) as config:
    config.include("pyramid_jobstate")
    config.add_route("plain", "/plain")
    config.add_view(plain, route_name="plain")
    app = asgi_app(config.make_wsgi_app())
