"""The settings of Sphinx: `python -m sphinx -W -n docs build/docs`."""

import os
from importlib.metadata import version as version_of
from typing import Any

from sphinx.application import Sphinx

from pyramid_jobstate import JobState, OwnBatch
from pyramid_jobstate.resources import JobStates

project = "pyramid_jobstate"
copyright = "pyramid_jobstate contributors"
release = version = version_of(project)

extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon"]
autodoc_member_order = "bysource"
autodoc_inherit_docstrings = False
autodoc_default_options = {
    "members": True,
    # But not of these bases: they are on the page themselves, or not ours.
    "inherited-members": "JobState, BaseException, Middleware, list",
    "special-members": "__acl__, __getitem__, __json__",
}
napoleon_use_ivar = True
html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["site.css"]
highlight_language = "none"
html_title = f"{project} {release}"
exclude_patterns = ["_*"]

nitpicky = True
nitpick_ignore_regex = [
    # Other packages. What is ours has to resolve.
    (r"py:.*", r"(?!pyramid_jobstate\b).*"),
    # Type variables.
    (r"py:class", r"pyramid_jobstate\..*\.(Any\w+|Default|T)"),
]

if os.environ.get("DOCS_ONLINE") == "1":
    extensions.append("sphinx.ext.intersphinx")
    intersphinx_mapping = {
        "dramatiq": ("https://dramatiq.io", None),
        "pyramid": ("https://docs.pylonsproject.org/projects/pyramid/en/latest", None),
        "python": ("https://docs.python.org/3", None),
        "redis": ("https://redis.readthedocs.io/en/stable", None),
    }


def hide_constructors(
    app: Sphinx, what: str, name: str, thing: Any, *rest: Any
) -> tuple[str, str] | None:
    """Show no signature of the classes that users do not call."""
    is_handed = what == "class" and issubclass(thing, JobState | OwnBatch | JobStates)
    return ("", "") if is_handed else None


def setup(app: Sphinx) -> None:
    app.connect("autodoc-process-signature", hide_constructors)
