"""The include of the pages: their views, their templates and the layout."""

from __future__ import annotations

import functools
import os
from typing import TYPE_CHECKING

from pyramid.exceptions import ConfigurationError
from pyramid.httpexceptions import HTTPNotFound
from pyramid.interfaces import IRendererFactory, IRouteRequest
from pyramid.path import AssetResolver
from pyramid.security import NO_PERMISSION_REQUIRED
from pyramid_jinja2 import IJinja2Environment, add_jinja2_renderer

from ...job.state import JobState
from ..answers import protect, wants_page
from ..config import at_creation
from ..interfaces import JOB, LIST, OTHER, IPages
from ..jobstates import JobStates
from ..settings import PREFIX, Settings
from .job import job_page
from .layout import OWN_LAYOUT, Pages, showing
from .list import list_page

if TYPE_CHECKING:
    from typing import Any

    from pyramid.config import Configurator
    from pyramid.events import ApplicationCreated
    from pyramid.request import Request
    from pyramid.response import Response

#: The renderer of our templates. The application's own for .jinja2 may be set up so
#: that it cannot read them, or does not escape.
RENDERER = ".jobstate"


class PagePredicate:
    """The view predicate `jobstate_page`: whether a request gets a page."""

    def __init__(self, value: bool, config: Configurator) -> None:
        self.value = value

    def text(self) -> str:
        return f"jobstate_page = {self.value}"

    phash = text

    def __call__(self, context: Any, request: Request) -> bool:
        is_page = wants_page(request)
        if is_page and self.value:
            # Also for pages of the application's own views.
            request.add_response_callback(protect)
        return is_page is self.value


def include(config: Configurator) -> None:
    """Implement :func:`pyramid_jobstate.pages.includeme`."""
    # Not by config.include(), which would set up the application's own templates.
    add_jinja2_renderer(config, RENDERER, settings_prefix=f"{PREFIX}jinja2.")
    config.add_view_predicate("jobstate_page", PagePredicate)

    def check_routes() -> None:
        if config.registry.queryUtility(IRouteRequest, name=LIST) is None:
            raise ConfigurationError(
                "pyramid_jobstate.pages shows what pyramid_jobstate serves. Include "
                "pyramid_jobstate as well, before config.commit()."
            )

    def register() -> None:
        # The application may set this after the include.
        settings = Settings(config.registry.settings)
        layout = settings.pages_layout() or OWN_LAYOUT
        label_owner = settings.function("owner_label", None)
        environment = config.registry.getUtility(IJinja2Environment, name=RENDERER)
        pages = Pages(environment, layout, label_owner)
        config.registry.registerUtility(pages, IPages)

    # After the routes are made, and before the views that need them.
    config.action("pyramid_jobstate.pages/routes", check_routes, order=-5)
    config.action("pyramid_jobstate.pages", register, order=5)
    add_views(config)
    at_creation(config, check_layout)


def add_views(config: Configurator) -> None:
    """Register each page for our routes, and for containers mounted elsewhere."""
    # These have one predicate more than the views for JSON, so they are tried first.
    add = functools.partial(
        config.add_view,
        request_method="GET",
        jobstate_page=True,
        permission=NO_PERMISSION_REQUIRED,
    )
    for route in (None, LIST, f"{LIST}/"):
        add(showing(list_page), context=JobStates, route_name=route)
    for route in (None, JOB, f"{JOB}/"):
        add(showing(job_page), context=JobState, route_name=route)
    for route in (JOB, f"{JOB}/", OTHER):
        add(showing(missing), context=JobStates, route_name=route)


def missing(context: JobStates, request: Request) -> Response:
    """Respond with the application's own page for 404."""
    raise HTTPNotFound


def check_layout(event: ApplicationCreated) -> None:
    """Check that the application can render the layout of the pages. Its renderers may
    have been added after the include.

    Raises:
      ConfigurationError: It cannot.
    """
    registry = event.app.registry
    layout = registry.getUtility(IPages).layout
    if layout == OWN_LAYOUT:
        return
    complaint = f"The setting {PREFIX}pages_layout = {layout!r}"
    extension = os.path.splitext(layout.partition(":")[2])[1]
    if registry.queryUtility(IRendererFactory, name=extension) is None:
        raise ConfigurationError(
            f"{complaint} needs a renderer for {extension!r}. Include the package that "
            "has one, such as pyramid_jinja2, pyramid_chameleon or pyramid_mako."
        )
    try:
        exists = AssetResolver(None).resolve(layout).exists()
    except ImportError as e:
        raise ConfigurationError(f"{complaint} cannot be imported: {e}") from e
    if not exists:
        raise ConfigurationError(f"{complaint} does not exist.")
