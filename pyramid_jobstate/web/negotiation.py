"""Whether a request gets a page or a stream rather than JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING

from webob.acceptparse import create_accept_header

from .interfaces import IPages

if TYPE_CHECKING:
    from pyramid.request import Request
    from pyramid.response import Response

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


def never_keep(request: Request, response: Response) -> None:
    """Keep caches from showing a page to others, or instead of the JSON of its URL: a
    response callback.
    """
    response.vary = dict.fromkeys(("Accept", *(response.vary or ())))
    response.headers.setdefault("Cache-Control", "private, no-store")
