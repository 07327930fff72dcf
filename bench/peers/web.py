"""A web server with all that answers polls: ``python -m bench.peers.web``.

It is one process, so that whatever slows one application slows all: /floor answers with
a few bytes; /bare, /ours and /celery-progress are those of the table.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import Any

from waitress import create_server

from bench.poll import Application, make_app, make_bare_app

from .workers import CeleryProgress


def floor(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
    body = b'{"job_state": "working"}'
    headers = [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
    start_response("200 OK", headers)
    return [body]


def make_django_app(url: str) -> Application:
    """Return celery-progress's view in a Django without any middleware: without
    sessions, users or rights, it is as fast as it can be.
    """
    import django
    from celery import Celery
    from django.conf import settings
    from django.core.wsgi import get_wsgi_application

    Celery(backend=url).set_default()
    settings.configure(
        ALLOWED_HOSTS=["*"],
        INSTALLED_APPS=["celery_progress"],
        ROOT_URLCONF="celery_progress.urls",
        SECRET_KEY="none",
    )
    django.setup()
    return get_wsgi_application()


def make_apps(url: str) -> dict[str, Application]:
    """Return the applications by the first segment of their paths."""
    server: Any = SimpleNamespace(url=url)
    apps = {"floor": floor, "bare": make_bare_app(server), "ours": make_app(server)}
    if not CeleryProgress.missing():
        apps["celery-progress"] = make_django_app(url)
    return apps


def main() -> None:
    apps = make_apps(os.environ["BENCHMARK_STATE"])

    def dispatch(
        environ: dict[str, Any], start_response: Callable[..., Any]
    ) -> Iterable[bytes]:
        _, name, path = environ["PATH_INFO"].split("/", 2)
        environ["REMOTE_USER"] = environ.get("HTTP_X_USER", "")
        environ["PATH_INFO"] = f"/{path}"
        environ["SCRIPT_NAME"] = f"/{name}"
        return apps[name](environ, start_response)

    server = create_server(dispatch, host="127.0.0.1", port=0, threads=2)
    print(server.effective_port, flush=True)
    server.run()


if __name__ == "__main__":
    main()
