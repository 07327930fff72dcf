"""Serves applications to a page, and watches what the page asks and complains of."""

import threading
from collections.abc import Callable
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from playwright.sync_api import Page
from pyramid.config import Configurator
from pyramid.csrf import CookieCSRFStoragePolicy
from pyramid.response import Response

from tests.browser.watching import Watched

POLICY = "default-src 'self'; require-trusted-types-for 'script'"


class Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True
    request_queue_size = 128


class Handler(WSGIRequestHandler):
    def log_message(self, *args: object) -> None:
        """Log nothing."""


class Site(Watched):
    """Serves a WSGI application to a page."""

    forgiven = ()

    def __init__(self, page: Page) -> None:
        super().__init__(page)
        self.user: str | None = "alice"
        self.markup: Callable[[Any], str] = lambda request: ""
        self._server = make_server("127.0.0.1", 0, self.dispatch, Server, Handler)
        self._app: Any = None
        threading.Thread(target=self._server.serve_forever, args=(0.01,)).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def dispatch(self, environ: Any, start_response: Any) -> Any:
        """Pass a request of the user's to the application."""
        if environ["PATH_INFO"] == "/favicon.ico":
            start_response("204 No Content", [])
            return []
        if self.user is not None:
            environ = {**environ, "HTTP_X_USER": self.user}
        return self._app(environ, start_response)

    def show(self, request: Any) -> Response:
        response = Response("<!doctype html><title>Jobs</title>" + self.markup(request))
        response.headers["Content-Security-Policy"] = POLICY
        return response

    def open(self, config: Configurator, prefix: str | None = None) -> None:
        """Make the application, with a page of this site's markup, and open it."""
        config.include("pyramid_jobstate", route_prefix=prefix)
        config.add_route("page", "/page")
        config.add_view(self.show, route_name="page")
        self._app = config.make_wsgi_app()
        self.page.goto(f"{self.url}/page")

    def __exit__(self, *exc_info: Any) -> None:
        try:
            super().__exit__(*exc_info)
        finally:
            self._server.shutdown()
            self._server.server_close()


def protected(config: Configurator, **options: Any) -> Configurator:
    """Have an application check each POST for Pyramid's CSRF token."""
    config.set_csrf_storage_policy(CookieCSRFStoragePolicy())
    config.set_default_csrf_options(require_csrf=True, **options)
    return config
