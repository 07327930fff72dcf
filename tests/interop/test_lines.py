"""The README's numbers of lines for each integration are right."""

import ast
import re
from pathlib import Path

import pytest

HERE = Path(__file__).parent
README = (HERE.parent.parent / "README.rst").read_text("utf-8")

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


def shown(name: str) -> int:
    """Return the number of lines in a row of the README's table."""
    (count,) = re.findall(rf"^{re.escape(name)} +([0-9]+) ", README, re.MULTILINE)
    return int(count)


@pytest.mark.parametrize(("name", "module"), PLUGINS.items())
def test_plugin_takes_a_dozen_lines(name: str, module: str) -> None:
    """A plugin's lines count in full, and so does the one that enables it."""
    lines = len(code_of(module)) + 1

    assert lines == shown(name) <= 12


@pytest.mark.parametrize(("name", "module"), APPLICATIONS.items())
def test_other_applications_take_one_line(name: str, module: str) -> None:
    """Other applications need only the include."""
    ours = [line.strip() for line in code_of(module) if "jobstate" in line]

    assert ours == ['config.include("pyramid_jobstate")']
    assert shown(name) == 1


def test_table_has_all_of_them() -> None:
    """The README lists exactly the applications tested here."""
    section = README.partition("Use it in other applications\n---")[2]
    table = section.partition("lines\n")[2].partition("\n\n")[0]
    rows = re.findall(r"^([\w-]+) ", table, re.MULTILINE)

    assert set(rows) == PLUGINS.keys() | APPLICATIONS.keys()


def test_modules_to_copy_are_short() -> None:
    """None of the modules has more than forty lines."""
    for module in (*PLUGINS.values(), *APPLICATIONS.values()):
        assert len((HERE / f"{module}.py").read_text("utf-8").splitlines()) <= 40
