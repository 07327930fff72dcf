"""The settings of Sphinx: `python -m sphinx -W -n docs build/docs`."""

import ast
import os
import re
from collections import defaultdict
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.errors import ExtensionError
from sphinx.util.docutils import SphinxDirective

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


def find_promises() -> dict[str, list[str]]:
    """Return the tests that keep each promise, by ``@pytest.mark.promise("name")``."""
    found = defaultdict(list)
    tests = Path(__file__).parent.parent / "tests"
    for path in sorted(tests.rglob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            for mark in getattr(node, "decorator_list", ()):
                if ast.unparse(mark).startswith("pytest.mark.promise("):
                    file = path.relative_to(tests)
                    found[mark.args[0].value].append(f"``{file}::{node.name}``")
    return found


class Promise(SphinxDirective):
    """A promise to users, followed by the tests that keep it."""

    required_arguments = 1
    has_content = True

    def run(self) -> list[nodes.Node]:
        # The tests may have changed, and this page not.
        self.env.note_reread()
        tests = find_promises().get(self.arguments[0])
        if tests is None:
            raise self.error(f"No test keeps the promise {self.arguments[0]!r}.")
        kept = [*self.content, "", *(f"* {test}" for test in tests)]
        return self.parse_text_to_nodes("\n".join(kept))


def check_promises(app: Sphinx, env: BuildEnvironment) -> None:
    """Refuse tests that keep a promise which is not on the page."""
    page = Path(env.doc2path("promises")).read_text("utf-8")
    listed = re.findall(r"^\.\. promise:: (\S+)$", page, re.MULTILINE)
    if unknown := find_promises().keys() - set(listed):
        raise ExtensionError(f"docs/promises.rst lacks {', '.join(sorted(unknown))}.")


def setup(app: Sphinx) -> None:
    app.connect("autodoc-process-signature", tidy_signature)
    app.add_directive("promise", Promise)
    app.connect("env-check-consistency", check_promises)
