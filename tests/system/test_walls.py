"""Tests know the package as its users do, so that what is inside may move, and say what
they check.
"""

import ast
import re
import tomllib
from pathlib import Path

from tests.support import ROOT

#: What is inside the package, as imports and as strings name it.
WINGS = r"pyramid_jobstate\.(cli|job|store|web|worker)"
IMPORTED = re.compile(rf"{WINGS}\b")
# "pyramid_jobstate.job" alone is the route of a job.
NAMED = re.compile(rf"{WINGS}(\.|:(?!main$))|^(?!pyramid_jobstate\.job){WINGS}$")

#: The command `pjobs`, which has no other name in Python.
COMMAND = "from pyramid_jobstate.cli import main"


def names_inside(path: Path) -> bool:
    """Return whether a module's imports, or its strings, name what is inside."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import | ast.ImportFrom):
            text = ast.unparse(node)
            if IMPORTED.search(text) and text != COMMAND:
                return True
        elif isinstance(node, ast.Constant) and NAMED.search(str(node.value)):
            return True
    return False


def test_tests_name_nothing_inside():
    """Only the files that pyproject.toml lists name what is inside the package."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    excepted = {
        ROOT / name
        for name, rules in settings["tool"]["ruff"]["lint"]["per-file-ignores"].items()
        if name.startswith("tests/") and "TID251" in rules
    }
    paths = {path for path in (ROOT / "tests").rglob("*.py") if path != Path(__file__)}
    assert {path for path in paths if names_inside(path)} == excepted


def test_each_test_has_a_docstring():
    """Each test says what it checks."""
    silent = [
        (path.name, node.name)
        for path in (ROOT / "tests").rglob("test_*.py")
        for node in ast.parse(path.read_text("utf-8")).body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
        if ast.get_docstring(node) is None
    ]
    assert silent == []
