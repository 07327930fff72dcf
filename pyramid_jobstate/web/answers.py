"""The responses: JSON, what a request prefers to it, and the exception views."""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from pyramid.exceptions import BadCSRFOrigin, BadCSRFToken, URLDecodeError
from pyramid.httpexceptions import (
    HTTPBadRequest,
    HTTPForbidden,
    HTTPNotFound,
    HTTPServiceUnavailable,
)
from pyramid.response import Response
from webob.acceptparse import create_accept_header

from ..errors import StoreUnavailable
from ..job.batch import Batch
from ..job.state import JobState
from ..store.jobstore import records_of
from .interfaces import IJobStore, IPages
from .jobstates import JobStates
from .query import BadRequest, check_text, csrf_options, drop_body, read_form

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pyramid.request import Request


PAGES = ("text/html", "application/xhtml+xml")

#: What JSON may be asked for by, the most specific first.
JSON = ("application/json", "application/*", "*/*")

STREAM = "text/event-stream"


def wants_page(request: Request) -> bool:
    """Return whether a request gets a page: the application has included pages, and the
    header Accept names HTML, and JSON with no higher quality.
    """
    return (
        request.method in ("GET", "HEAD")
        and prefers_html(request.environ.get("HTTP_ACCEPT", ""))
        and request.registry.queryUtility(IPages) is not None
    )


def prefers_html(accept: str) -> bool:
    """Return whether a header Accept names HTML, and JSON with no higher quality.

    A wildcard does not name HTML: scripts and command-line clients send one.
    """
    if "html" not in accept.lower():
        # Parsing takes longer. Polls end here.
        return False
    qualities: dict[str, float] = {}
    for name, quality, *_ in create_accept_header(accept).parsed or ():
        name = name.partition(";")[0].lower()
        qualities[name] = max(quality, qualities.get(name, 0.0))
    # A page is sent as the first of PAGES.
    if qualities.get(STREAM) or qualities.get(PAGES[0]) == 0:
        return False
    html = max(qualities.get(name, 0.0) for name in PAGES)
    json = next((qualities[name] for name in JSON if name in qualities), 0.0)
    return html > 0 and html >= json


def wants_stream(accept: str) -> bool:
    """Return whether a header Accept begins with the type of a stream, and does not
    rule it out by a quality of 0.
    """
    if not accept.lower().startswith(STREAM):
        return False
    # None if the header is invalid.
    name, quality, *_ = (create_accept_header(accept).parsed or [("", 0)])[0]
    return bool(quality) and str(name).partition(";")[0].lower() == STREAM


#: The headers of a page, unless the application sets them: no cache keeps it, and no
#: other origin shows it in a frame, where a click may delete a job unseen.
PAGE_HEADERS = {
    "Cache-Control": "private, no-store",
    "Content-Security-Policy": "frame-ancestors 'self'",
    "X-Frame-Options": "SAMEORIGIN",
}


def protect(request: Request, response: Response) -> None:
    """Keep a page from caches and frames of others, and apart from the JSON of its URL:
    a response callback.
    """
    response.vary = dict.fromkeys(("Accept", *(response.vary or ())))
    headers = response.headers
    # Where a policy names frames, browsers ignore a stricter X-Frame-Options.
    has_own = "X-Frame-Options" in headers
    for name, value in PAGE_HEADERS.items():
        if not (has_own and name == "Content-Security-Policy"):
            headers.setdefault(name, value)


try:
    import orjson
except ImportError:
    # It comes with the extra `speed`.
    fast: Any = None
else:
    fast = orjson.dumps

encode = json.JSONEncoder(allow_nan=False, separators=(",", ":")).encode

#: What ``__json__`` reads and does not check.
READ = frozenset(
    {
        *("__json__", "progress_metrics", "progress", "message", "log", "attempt"),
        *("status", "job_params", "_own_json"),
    }
)


def encode_state(job_state: JobState, state: Any) -> str:
    """Return the state that a job's ``__json__`` has returned as JSON.

    An application's own values may be what orjson writes and the standard library
    refuses, such as NaN.
    """
    cls: Any = type(job_state)
    if fast is None or not _is_ours(cls) or not READ.isdisjoint(vars(job_state)):
        return encode(state)
    title, error = state["job"]["title"], state["job"]["error"]
    if not isinstance(title, str) or (error and not isinstance(error["message"], str)):
        return encode(state)
    try:
        text: str = fast(state).decode()
    except TypeError:
        # A number beyond 64 bits, or a lone surrogate.
        return encode(state)
    return text


@functools.lru_cache(1024)
def _is_ours(cls: Any) -> bool:
    """Return whether a class of jobs overrides nothing that ``__json__`` reads."""
    find = inspect.getattr_static
    return any(
        all(find(cls, name) is find(base, name) for name in READ)
        for base in (JobState, Batch)
    )


View = Callable[[Any, "Request"], Response]

#: The headers of every response: JSON, which no cache keeps.
HEADERS = (
    ("Content-Type", "application/json"),
    ("Cache-Control", "private, no-store"),
    ("Vary", "Accept"),
    ("X-Content-Type-Options", "nosniff"),
)

#: The header that tells the store's time, in milliseconds: not in the body, whose ETag
#: would change with it.
TIME = "JobState-Time"

#: The Retry-After header, in seconds, when the store does not answer.
RETRY_AFTER = 5


class TimedResponse(Response):
    """A response whose time scripts of other origins may read, if the application lets
    them read the response.
    """

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Any:
        # Only now, beside what the application, its tweens and subscribers have set:
        # browsers join headers of a name.
        if "HTTP_ORIGIN" in environ and TIME in self.headers:
            self.headerlist.append(("Access-Control-Expose-Headers", TIME))
        return super().__call__(environ, start_response)


def not_found(exc: HTTPNotFound, request: Request) -> Response:
    return timed(render({"error": "The job does not exist."}, 404), request)


def forbidden(exc: HTTPForbidden, request: Request) -> Response:
    return timed(render({"error": "You may not do this with the job."}, 403), request)


def bad_request(message: str) -> Response:
    return render({"error": message}, 400)


def bad_csrf(exc: HTTPBadRequest, request: Request) -> Response:
    return bad_request(f"The CSRF check refused the request. {exc.detail}")


def bad_path(exc: URLDecodeError, request: Request) -> Response:
    return bad_request("The path is not UTF-8.")


def unavailable(exc: StoreUnavailable, request: Request) -> Response:
    return come_back(str(exc))


def come_back(message: str) -> Response:
    """Return a response that asks the client to repeat its request later."""
    response = render({"error": message}, 503)
    response.retry_after = RETRY_AFTER
    return response


def other_method(*allowed: str) -> View:
    """Return a view that responds with 405 to all methods but those allowed."""

    def view(context: JobState | JobStates, request: Request) -> Response:
        text = f"The method {request.method} is not allowed here."
        response = render({"error": text}, 405)
        response.allow = allowed
        return response

    return view


def nothing(context: JobStates, request: Request) -> Response:
    """Respond with 404 to unknown jobs and to any other path below ours."""
    return not_found(HTTPNotFound(), request)


def answering(view: View) -> View:
    """Return a view that turns the exceptions of `view` into responses. If raised, they
    would pass through all tweens, some of which log them, and might reach an exception
    view of the application.
    """

    @functools.wraps(view)
    def answer(context: Any, request: Request) -> Response:
        try:
            check_text(request)
            if request.subpath:
                # Below a view of a container in the application's tree.
                raise HTTPNotFound
            if request.method in ("GET", "HEAD"):
                if request.environ.get("CONTENT_TYPE"):
                    drop_body(request)
            elif csrf_options(request) is not None:
                # The check comes next, and looks for fields in the body.
                read_form(request)
            return timed(view(context, request), request)
        except StoreUnavailable as e:
            return unavailable(e, request)
        except HTTPForbidden as e:
            return forbidden(e, request)
        except HTTPNotFound as e:
            return not_found(e, request)
        except (BadCSRFOrigin, BadCSRFToken) as e:
            return bad_csrf(e, request)
        except BadRequest as e:
            return bad_request(str(e))

    return answer


class AnsweringView:
    """A view deriver: our views answer, even if the application's CSRF check refuses a
    request.
    """

    options = ("jobstate_answers",)

    def __call__(self, view: View, info: Any) -> View:
        is_ours: bool = info.options.get("jobstate_answers", False)
        return answering(view) if is_ours else view


def timed(response: Response, request: Request) -> Response:
    """Have a response tell the store's time, if this process knows it."""
    now = records_of(request.registry.getUtility(IJobStore)).now()
    if now is not None:
        response.headerlist.append((TIME, str(now)))
    return response


def unavailable_elsewhere(exc: StoreUnavailable, request: Request) -> Response:
    """Respond with 503 in the application's own views, as a page or as JSON."""
    response = HTTPServiceUnavailable(str(exc))
    response.retry_after = RETRY_AFTER
    return response


def render_state(request: Request, text: str) -> Response:
    """Return a response with an ETag: 304 if the client has this version already.

    Parameters:
      text: The state as JSON.
    """
    body = text.encode()
    etag = f'"{hashlib.sha1(body, usedforsecurity=False).hexdigest()}"'
    if is_known(etag, request):
        # An int, since WebOb would parse a string.
        return TimedResponse(status=304, headerlist=[*HEADERS[1:], ("ETag", etag)])
    length = str(len(body))
    headers = [*HEADERS, ("ETag", etag), ("Content-Length", length)]
    return TimedResponse(app_iter=[body], headerlist=headers)


def is_known(etag: str, request: Request) -> bool:
    """Return whether the client has the version with a tag. An asterisk does not count
    as a match.
    """
    sent = request.environ.get("HTTP_IF_NONE_MATCH")
    if sent is None:
        return False
    if sent == etag:
        return True
    # WebOb takes longer: several tags, or one that a proxy has weakened.
    known = request.if_none_match
    return bool(known) and etag[1:-1] in known


def render_nothing() -> Response:
    """Return the response to a request that has deleted what it named."""
    return TimedResponse(headerlist=list(HEADERS[1:]), status=204)


def render(value: dict[str, Any], status: int = 200) -> Response:
    body = encode(value).encode()
    return TimedResponse(body=body, headerlist=list(HEADERS), status=status)


#: The name of the offer in the scope of an ASGI request.
OFFER = "pyramid_jobstate"


class Answer:
    """Answers a poll for the states of jobs.

    Parameters:
      request: The request.

    Attributes:
      is_for_stream: Whether the jobs for which it has no room are noted.
    """

    is_for_stream = False

    def __init__(self, request: Request) -> None:
        self.request = request

    def state(self, uuid: str, job_state: JobState) -> str | None:
        """Return the state of a job that the request may see as JSON, or None if the
        job's ``__json__`` returns None.

        Parameters:
          uuid: The uuid under which the request asked for the job.
        """
        state = job_state.__json__(self.request)
        return None if state is None else encode_state(job_state, state)

    def note(self, uuid: str, job_state: JobState) -> None:
        """Note a job that the request may see, and for whose state the answer has no
        room.

        Parameters:
          uuid: The uuid under which the request asked for the job.
        """

    def respond(self, text: str, uuids: Sequence[str]) -> Response:
        """Return the response.

        Parameters:
          text: The states as JSON.
          uuids: The uuids for which the request asked, those without a state included.
        """
        return render_state(self.request, text)


class Offer(Protocol):
    """What :func:`pyramid_jobstate.asgi.asgi_app` puts into the scope of a request."""

    def answer(self, request: Request) -> Answer:
        """Return what answers the request: with a stream if it asks for one and can
        have it, otherwise as a poll.
        """


def answer_to(request: Request) -> Answer:
    """Return what answers a request for the states of jobs."""
    # A header cannot get into the environment under this name.
    scope = request.environ.get("asgi.scope")
    offer: Offer | None = None if scope is None else scope.get(OFFER)
    return Answer(request) if offer is None else offer.answer(request)
