"""The places of the package that mutants name: functions, methods, constants, scripts.

A place is known by its name alone, so that a mutant follows it into another module.
Several may share a name; then the text that a mutant changes tells which is meant.
"""

from __future__ import annotations

import ast
import functools
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple


class Place(NamedTuple):
    """Some lines of a file.

    Attributes:
      file: The file, below the package.
      start: Where it begins in the file's text.
      text: The lines.
    """

    file: str
    start: int
    text: str


#: How functions, classes, methods and constants begin in Lua and JavaScript. All but
#: the constants end with a line of their indent.
LUA = re.compile(r"^local function (\w+)\(")
CLASS = re.compile(r"^class (\w+)")
SCRIPT = re.compile(
    r"^( *)(?:(?:async )?function (\w+)|(?:(?:static|async|get|set) )*(\w+)\(.*\) \{$)"
)
CONSTANT = re.compile(r"^const (\w+) = ")


@functools.cache
def places(package: Path) -> Mapping[str, list[Place]]:
    """Return all places by their names: ``function``, ``Class``, ``Class.method`` or
    ``CONSTANT``. A Lua script, a static file and a template have the name of their
    file, without its ending.
    """
    found = defaultdict(list)
    read = {".py": _in_python, ".lua": _in_lua, ".js": _in_javascript}
    for path in sorted(package.rglob("*.*")):
        if path.suffix not in (*read, ".jinja2"):
            continue
        source = path.read_text("utf-8")
        file = path.relative_to(package).as_posix()
        lines = source.splitlines(keepends=True)
        starts = [0]
        for line in lines:
            starts.append(starts[-1] + len(line))
        spans = [*read[path.suffix](lines)] if path.suffix in read else []
        if path.suffix != ".py":
            spans.append((path.stem, 0, len(lines)))
        for name, first, last in spans:
            text = source[starts[first] : starts[last]]
            found[name].append(Place(file, starts[first], text))
    return found


Spans = Iterator[tuple[str, int, int]]


def _in_python(lines: list[str]) -> Spans:
    return _in_body(ast.parse("".join(lines)).body, "")


def _in_body(body: list[ast.stmt], owner: str) -> Spans:
    for node in body:
        names: list[str] = []
        first = node.lineno
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                names = [node.name]
                first = min([first, *(each.lineno for each in node.decorator_list)])
            case ast.Assign():
                names = [each.id for each in node.targets if isinstance(each, ast.Name)]
            case ast.AnnAssign(target=ast.Name(id=name)):
                names = [name]
        for name in names:
            yield f"{owner}{name}", first - 1, node.end_lineno or first
        if isinstance(node, ast.ClassDef):
            yield from _in_body(node.body, f"{owner}{node.name}.")


def _in_lua(lines: list[str]) -> Spans:
    for i, line in enumerate(lines):
        if match := LUA.match(line):
            yield match[1], i, lines.index("end\n", i) + 1


def _in_javascript(lines: list[str]) -> Spans:
    owner = ""
    for i, line in enumerate(lines):
        if line.startswith("}"):
            owner = ""
        elif match := CLASS.match(line):
            owner = f"{match[1]}."
            yield match[1], i, lines.index("}\n", i) + 1
        elif (match := SCRIPT.match(line)) and len(match[1]) <= 2:
            end = lines.index(f"{match[1]}}}\n", i) + 1
            yield f"{owner if match[1] else ''}{match[2] or match[3]}", i, end
        elif match := CONSTANT.match(line):
            ends = (n for n in range(i + 1, len(lines)) if lines[n][0] not in " })]")
            yield match[1], i, next(ends, len(lines))
