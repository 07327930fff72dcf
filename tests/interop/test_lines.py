"""The README's numbers of lines for each integration are right."""

import ast
import re
from pathlib import Path

from tests.readme import page

HERE = Path(__file__).parent
#: The modules that a reader copies, by the row of the README's table.
PLUGINS = {"Kinto": "kinto_jobs", "devpi-server": "devpi_jobs"}
APPLICATIONS = {
    "PyAMS": "pyams_app",
    "pyramid_fullauth": "fullauth_app",
    "c2cwsgiutils": "c2c_app",
    "pyramid_exclog": "exclog_app",
    "dramatiq-eager-broker": "eager_app",
}


def code_of(module: str) -> list[str]:
    """Return the lines of a module without blank ones, comments and its docstring."""
    text = (HERE / f"{module}.py").read_text("utf-8")
    docstring = ast.parse(text).body[0]
    assert docstring.end_lineno is not None
    lines = text.splitlines()[docstring.end_lineno :]
    return [line for line in lines if line.strip() and line.strip()[0] != "#"]


def test_few_lines_are_needed():
    """The README lists exactly the applications tested here. A plugin's lines count in
    full, and so does the one that enables it; the others need only the include.
    """
    text = page("howto/other-applications")
    table = text.partition("lines\n")[2].partition("\n\n")[0]
    rows = dict(re.findall(r"^([\w-]+) +([0-9]+) ", table, re.MULTILINE))
    assert rows.keys() == PLUGINS.keys() | APPLICATIONS.keys()
    for name, module in PLUGINS.items():
        assert len(code_of(module)) + 1 == int(rows[name]) <= 12
    for name, module in APPLICATIONS.items():
        ours = [line.strip() for line in code_of(module) if "jobstate" in line]
        assert ours == ['config.include("pyramid_jobstate")']
        assert rows[name] == "1"
