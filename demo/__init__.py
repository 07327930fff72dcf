"""Finish Line: a small Pyramid application that shows its jobs live.

`python -m demo` starts everything. The parts, in reading order:

=========  =================================================================
jobs       what the worker does, how it reports progress, and its hooks
views      the users' pages: how a job is sent, and who may see its page
templates  `<job-state>` shows a job while it runs
static     the rest: a user's list of jobs, the course of a marathon
problems   the pages that say why a request failed
security   who may log in, and what they may do
models     the application's own database
results    the CSV files: reading and checking them
sample     CSV files to try an import with
=========  =================================================================
"""

import secrets
from typing import Any

from pyramid.config import Configurator
from pyramid.events import NewResponse
from pyramid.router import Router
from pyramid.session import SignedCookieSessionFactory

HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self'; script-src 'self'; style-src 'self'; "
        "require-trusted-types-for 'script'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
}


def add_headers(event: NewResponse) -> None:
    """Let the browser load and run only what this application serves."""
    event.response.headers.update(HEADERS)


def main(global_config: Any, **settings: Any) -> Router:
    """Return the WSGI application.

    Settings:
      demo.secret: Signs the cookies. The default is a new one at each start, which
        logs everybody out.
    """
    # Sending outside a transaction is then an error instead of a lost job.
    settings.setdefault("tm.manager_hook", "pyramid_tm.explicit_manager")
    settings.setdefault("demo.secret", secrets.token_hex())
    # The admins' pages are those of the package, in the look of the others.
    settings.setdefault("jobstate.pages_layout", "demo:templates/pages.jinja2")
    settings.setdefault("jobstate.owner_label", "demo.security.owner_label")

    with Configurator(settings=settings) as config:
        config.set_session_factory(
            SignedCookieSessionFactory(
                settings["demo.secret"], httponly=True, samesite="Lax"
            )
        )
        config.include("pyramid_tm")
        config.include("pyramid_jinja2")
        config.include("pyramid_jobstate")
        config.include("pyramid_jobstate.pages")
        config.include(".models")
        config.include(".security")
        config.include(".views")
        config.add_subscriber(add_headers, NewResponse)
        return config.make_wsgi_app()
