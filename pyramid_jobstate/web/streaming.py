"""Hands a view's answer to the offer of an ASGI request, if there is one. Under WSGI
nothing of :mod:`pyramid_jobstate.web.push` is imported.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Protocol

from .answers import render_state

if TYPE_CHECKING:
    from pyramid.request import Request
    from pyramid.response import Response

    from ..job import JobState

#: The name of the offer in the scope of an ASGI request.
OFFER = "pyramid_jobstate"


class Offer(Protocol):
    """What :func:`pyramid_jobstate.asgi.asgi_app` puts into the scope of a request."""

    def answer(
        self, request: Request, text: str, jobs: Mapping[str, JobState | None]
    ) -> Response:
        """Return a response that goes on as a stream, if the request asks for one and
        can have it, or else the answer to a poll.
        """


def answer_state(
    request: Request, text: str, jobs: Callable[[], Mapping[str, JobState | None]]
) -> Response:
    """Return the response to a request for the states of jobs.

    Parameters:
      text: The states as JSON.
      jobs: Returns the jobs that the request may see, and None for the others, by the
        uuid under which it asked.
    """
    # A header cannot get into the environment under this name.
    scope = request.environ.get("asgi.scope")
    offer: Offer | None = None if scope is None else scope.get(OFFER)
    if offer is None:
        return render_state(request, text)
    return offer.answer(request, text, jobs())
