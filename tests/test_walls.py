"""Tests know the package as its users do, so that what is inside may move."""

import ast
import re
import tomllib
from pathlib import Path

import pytest

from tests.support import ROOT

#: What is inside the package, as imports and as strings name it.
WINGS = r"pyramid_jobstate\.(cli|job|store|web|worker)"
IMPORTED, NAMED = re.compile(rf"{WINGS}\b"), re.compile(rf"{WINGS}[.:](?!main$)")

#: The command `pjobs`, which has no other name in Python.
COMMAND = "from pyramid_jobstate.cli import main"

#: Writes the template for translators from all words.
TOOL = ROOT / "tests" / "catalogs.py"

#: At most one in so many test functions may be in a file that names what is inside.
SHARE = 10


def exceptions() -> set[Path]:
    """Return the files that may name what is inside: those that may import it."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    ignores = settings["tool"]["ruff"]["lint"]["per-file-ignores"]
    return {
        ROOT / name
        for name, rules in ignores.items()
        if name.startswith("tests/") and "TID251" in rules
    }


def names(tree: ast.Module) -> list[str]:
    """Return what a module says of the inside: in its imports, and in its strings."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            text, pattern = ast.unparse(node), IMPORTED
        elif isinstance(node, ast.Constant):
            text, pattern = str(node.value), NAMED
        else:
            continue
        if pattern.search(text) and text != COMMAND:
            found.append(text)
    return found


@pytest.mark.system
def test_tests_name_nothing_inside() -> None:
    """Only the files that pyproject.toml lists name what is inside the package. None of
    these is a helper.
    """
    excepted = exceptions()
    assert all(path.name.startswith("test_") for path in excepted - {TOOL})
    inner, functions = set(), {True: 0, False: 0}
    for path in (ROOT / "tests").rglob("*.py"):
        tree = ast.parse(path.read_text("utf-8"))
        if path != Path(__file__) and names(tree):
            inner.add(path)
        functions[path in excepted] += sum(
            isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
            for node in ast.walk(tree)
        )
    assert inner == excepted
    assert functions[True] * SHARE <= sum(functions.values())
