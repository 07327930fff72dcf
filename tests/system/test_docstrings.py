"""Docstrings of tests, which state what they check."""

import ast

from tests.support import ROOT


def test_each_test_has_a_docstring() -> None:
    """Each test says what it checks."""
    silent = [
        (path.name, node.name)
        for path in (ROOT / "tests").rglob("test_*.py")
        for node in ast.parse(path.read_text("utf-8")).body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
        if ast.get_docstring(node) is None
    ]
    assert silent == []
