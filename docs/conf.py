"""The settings of Sphinx: `python -m sphinx -W -n docs build/docs`."""

import os
from importlib.metadata import version as version_of

project = "pyramid_jobstate"
copyright = "pyramid_jobstate contributors"
release = version = version_of(project)

extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "furo"
html_title = f"{project} {release}"
exclude_patterns = ["_*"]

nitpicky = True
# Other packages. What is ours has to resolve.
nitpick_ignore_regex = [
    (r"py:.*", r"(?!pyramid_jobstate\b).*"),
]

if os.environ.get("DOCS_ONLINE") == "1":
    extensions.append("sphinx.ext.intersphinx")
    intersphinx_mapping = {
        "dramatiq": ("https://dramatiq.io", None),
        "pyramid": ("https://docs.pylonsproject.org/projects/pyramid/en/latest", None),
        "python": ("https://docs.python.org/3", None),
        "redis": ("https://redis.readthedocs.io/en/stable", None),
    }
