"""The pages that say why a request failed."""

from typing import Any

from pyramid.httpexceptions import HTTPSeeOther
from pyramid.request import Request
from pyramid.view import (
    exception_view_config,
    forbidden_view_config,
    notfound_view_config,
)

from pyramid_jobstate import StoreUnavailable


@forbidden_view_config(renderer="templates/problem.jinja2")
def forbidden(request: Request) -> Any:
    if request.identity is None:
        if request.method == "GET":
            request.session["wanted"] = request.url
        return HTTPSeeOther(request.route_url("login"))
    request.response.status_int = 403
    return {
        "heading": "This one is not yours",
        "text": "Only its owner and admins may see a job. Only admins may see the list "
        "of all jobs.",
    }


@notfound_view_config(renderer="templates/problem.jinja2")
def not_found(request: Request) -> dict[str, Any]:
    request.response.status_int = 404
    return {
        "heading": "Nothing here",
        "text": "This page does not exist. The page of a job disappears a day after "
        "the job has ended.",
    }


@exception_view_config(StoreUnavailable, renderer="templates/problem.jinja2")
def unavailable(request: Request) -> dict[str, Any]:
    request.response.status_int = 503
    return {
        "heading": "Out of breath",
        "text": "Jobs cannot be started or shown at the moment. Try again in a little "
        "while.",
    }
