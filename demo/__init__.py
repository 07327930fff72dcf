"""Finish Line: a small Pyramid application whose jobs are watched live.

`python -m demo` starts all of it. The parts, in the order to read them:

=========  ===================================================================
jobs       what the worker does, and what it says about it
views      the pages: how a job is sent, and how its page is guarded
templates  `<job-state>` shows a job as it goes on
static     what that leaves to do: one's list of jobs, the course of a marathon
security   who may log in, and what they may do
models     the application's own database
results    the CSV files: reading, checking, making a sample
=========  ===================================================================
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
    """Let the browser load and run nothing but what this application serves."""
    event.response.headers.update(HEADERS)


def main(global_config: Any, **settings: Any) -> Router:
    """Return the WSGI application.

    Settings:
      demo.secret: Signs the cookies. By default another one at each start, which
        logs everybody out.
    """
    # Joining a transaction that nobody began is then an error, not a silent loss.
    settings.setdefault("tm.manager_hook", "pyramid_tm.explicit_manager")
    settings.setdefault("demo.secret", secrets.token_hex())

    with Configurator(settings=settings) as config:
        config.set_session_factory(
            SignedCookieSessionFactory(
                settings["demo.secret"], httponly=True, samesite="Lax"
            )
        )
        config.include("pyramid_tm")
        config.include("pyramid_jinja2")
        config.include("pyramid_jobstate")
        config.include(".models")
        config.include(".security")
        config.include(".views")
        config.add_subscriber(add_headers, NewResponse)
        return config.make_wsgi_app()
