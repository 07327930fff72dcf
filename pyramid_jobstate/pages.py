"""Pages for people, at the URLs of their jobs::

    config.include("pyramid_jobstate")
    config.include("pyramid_jobstate.pages")

They need the extra ``pyramid_jobstate[pages]``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyramid.exceptions import ConfigurationError

if TYPE_CHECKING:
    from pyramid.config import Configurator

__all__ = ["includeme"]


def includeme(config: Configurator) -> None:
    """Add pages to an application that includes :mod:`pyramid_jobstate`.

    A browser that opens the URL of a job, or of a list of jobs, then gets a page: with
    what the JSON of that URL tells this viewer, and nothing else. Scripts still get
    JSON: only a header Accept that names HTML asks for a page.

    The setting ``jobstate.pages_layout`` names a template of the application, such as
    ``myapp:templates/jobs.jinja2``, in which the pages appear. It is rendered with
    ``title``, ``head`` and ``main``, which are markup. Without it, the pages have a
    layout of their own.

    Raises:
      pyramid.exceptions.ConfigurationError: pyramid_jinja2 or babel is not installed,
        pyramid_jobstate is not included, or the layout cannot be rendered.
    """
    # Imported here: a missing package is then a ConfigurationError.
    try:
        from .web.pages.config import include
    except ModuleNotFoundError as e:
        if e.name not in ("pyramid_jinja2", "jinja2", "markupsafe", "babel"):
            raise
        raise ConfigurationError(
            f"pyramid_jobstate.pages needs the package {e.name}. Install "
            "pyramid_jobstate[pages]."
        ) from e
    include(config)
