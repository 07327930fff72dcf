"""The settings of Sphinx: `python -m sphinx -W -n docs build/docs`."""

import os
import re
from importlib.metadata import version as version_of
from typing import Any

from sphinx.application import Sphinx

from pyramid_jobstate import FollowedJobs, JobState, OwnBatch

project = "pyramid_jobstate"
copyright = "pyramid_jobstate contributors"
release = version = version_of(project)

extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon"]
autodoc_member_order = "bysource"
autodoc_inherit_docstrings = False
autodoc_default_options = {
    "members": True,
    # But not of these bases: they are on the page themselves, or not ours.
    "inherited-members": "JobState, BaseException, OSError, Middleware, list",
    "special-members": "__acl__, __getitem__, __json__",
}
autodoc_preserve_defaults = True
napoleon_custom_sections = [("Attributes", "params_style")]
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


#: Where a public class is defined, which is nobody's business.
INSIDE = re.compile(r"pyramid_jobstate\.(?:job|store|worker|web)\.\w+\.(?=[A-Z])")


def tidy_signature(
    app: Sphinx,
    what: str,
    name: str,
    thing: Any,
    options: Any,
    arguments: str | None,
    returned: str | None,
) -> tuple[str, str] | None:
    """Show no signature of classes that users do not call, nor of fixtures."""
    is_handed = what == "class" and issubclass(
        thing, JobState | OwnBatch | FollowedJobs
    )
    if is_handed or name.startswith("pyramid_jobstate.fixtures."):
        return "", ""
    if arguments is None:
        return None
    return INSIDE.sub("", arguments), INSIDE.sub("", returned or "")


def setup(app: Sphinx) -> None:
    app.connect("autodoc-process-signature", tidy_signature)
