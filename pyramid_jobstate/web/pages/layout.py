"""Renders a page: its own template, inside a layout."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from markupsafe import Markup, escape
from pyramid.httpexceptions import HTTPBadRequest, HTTPNotFound
from pyramid.i18n import make_localizer
from pyramid.renderers import render
from pyramid.response import Response

from ...errors import StoreUnavailable
from ...job.once import Once
from ...store.lists import Fresh
from ..interfaces import IPages
from ..query import BadRequest, check_text, drop_body
from .words import Words, words_for, words_of

if TYPE_CHECKING:
    from jinja2 import Environment
    from pyramid.request import Request

    from ...store.lists import Bucket
    from ..answers import View


log = logging.getLogger("pyramid_jobstate")

TEMPLATES = "pyramid_jobstate:templates"

#: The layout of an application that sets none.
OWN_LAYOUT = f"{TEMPLATES}/layout.jinja2"


HEADERS = (
    ("Content-Type", "text/html; charset=UTF-8"),
    ("X-Content-Type-Options", "nosniff"),
)

#: Seconds for which a chart is drawn from the same numbers. One of its bars stands for
#: half an hour, and counting takes longer than all else.
CHART_SECONDS = 10.0

#: The request attribute that caches the names of owners.
_NAMES = "_jobstate_owner_names"


class Pages:
    """What the pages of an application share.

    Attributes:
      environment: Loads our templates.
      layout: The asset specification of the layout.
      label_owner: The application's function that names owners, or None.
      throughputs: What the charts show, by kind and whether members of batches count.
    """

    def __init__(
        self,
        environment: Environment,
        layout: str,
        label_owner: Callable[..., Any] | None,
    ) -> None:
        self.environment = environment
        self.layout = layout
        self.label_owner = label_owner
        self._complaints = Once()
        self.throughputs: Fresh[tuple[str | None, bool], Sequence[Bucket]] = Fresh(
            CHART_SECONDS
        )

    def owner_name(self, request: Request, owner: str | float | None) -> str | None:
        """Return what a page shows for an owner: what the application's function
        returns or, if that is None or empty, the owner. It is called once a request for
        each owner.
        """
        if owner is None:
            return None
        names: dict[tuple[type, object], str] = vars(request).setdefault(_NAMES, {})
        # The owners 1 and 1.0 are two.
        key = type(owner), owner
        if key not in names:
            names[key] = self._label_of(request, owner) or str(owner)
        return names[key]

    def _label_of(self, request: Request, owner: str | float) -> str:
        """Return the application's name for an owner, or "" if it has none."""
        if self.label_owner is not None:
            try:
                label = self.label_owner(request, owner)
                return "" if label is None else str(label)
            except StoreUnavailable:
                raise
            except Exception:
                if self._complaints.is_new("owner_label"):
                    log.exception(
                        "The function of the setting jobstate.owner_label raised an "
                        "exception for the owner %r. Pages show the owner as it is. "
                        "Further exceptions of the function are not logged.",
                        owner,
                    )
        return ""


def showing(view: View) -> View:
    """Return a view whose exceptions, and their pages, are the application's own."""

    @functools.wraps(view)
    def show(context: Any, request: Request) -> Response:
        try:
            check_text(request)
        except BadRequest:
            # The application's own page for 400 may read what cannot be read.
            return unreadable(request)
        if request.subpath:
            # Below a view of a container in the application's tree.
            raise HTTPNotFound
        if request.environ.get("CONTENT_TYPE"):
            drop_body(request)
        # For a layout of the application's, too.
        vars(request)["localizer"] = request.job_states.localizer
        try:
            return view(context, request)
        except BadRequest as e:
            raise HTTPBadRequest(
                words_for(request)("bad-address"),
                comment=str(e),
                # Without Pyramid's explanation, which is English.
                body_template="${detail}${br}${br}\n${comment}\n",
            ) from e

    return show


def unreadable(request: Request) -> Response:
    """Respond to a query, or a cookie, that is not UTF-8: in English if the language
    depends on it.
    """
    try:
        words = words_for(request)
    except ValueError:
        words = words_of(make_localizer("en", []))
    response = Response(words("bad-address"), 400)
    response.content_type = "text/plain"
    response.headers["X-Content-Type-Options"] = "nosniff"
    return response


def respond(
    request: Request, template: str, title: str, values: Mapping[str, Any]
) -> Response:
    """Return the response with a page.

    Parameters:
      template: The name of the template of its content.
      title: The title of the page, as text.
      values: What the template shows.
    """
    pages: Pages = request.registry.getUtility(IPages)
    load = pages.environment.get_template
    main = Markup(load(f"{TEMPLATES}/{template}").render(values, request=request))
    if request.is_xhr:
        # The script of the page asks for what has changed.
        text = str(main)
    else:
        text = laid_out(request, pages, title, main, values["words"])
    # A job may report half of a surrogate pair, which JSON can spell.
    body = text.encode("utf-8", "replace")
    return Response(body=body, headerlist=list(HEADERS))


def laid_out(
    request: Request, pages: Pages, title: str, main: Markup, words: Words
) -> str:
    """Return the HTML of a page in its layout."""
    load: Callable[[str], Any] = pages.environment.get_template
    head = Markup(load(f"{TEMPLATES}/head.jinja2").render(request=request))
    parts = {"title": escape(title), "head": head, "main": main}
    if pages.layout != OWN_LAYOUT:
        return str(render(pages.layout, parts, request))
    text: str = load(OWN_LAYOUT).render(parts, request=request, words=words)
    return text
