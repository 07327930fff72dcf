"""The mutants: small faults, each of which breaks a behaviour that users are promised.

``python -m bench.mutants`` puts them into a copy of the package, one at a time, and
says which test notices. The lists beside this file have them by area::

    [batch-ignores-late-changes]
    breaks = "A change of a member that is told late turns its batch's counts back."
    file = "store/lua/tell_batch.lua"
    find = 'if told <= rev or (ARGV[9]'
    replace = 'if (ARGV[9]'

How to write one:

* Break what the README, or the design, promises to users, operators or other programs,
  as a hurried change might: a wrong comparison, a dropped condition, a swapped order,
  an early return, a permission asked of the wrong thing. No wording of logs, no mere
  speed, nothing that fails at import, nothing that nobody could notice.
* The name and ``breaks`` are for good, and do not say how the code is written: results
  from before and after a redesign are compared by name. ``breaks`` is one sentence:
  what happens to whom.
* ``file`` is below ``pyramid_jobstate``. ``find`` is exact text that occurs once in it,
  and ``replace`` takes its place. Keep both short, so that they outlive changes around
  them. Whoever moves the code edits these three.
* A behaviour that is given up takes its mutant with it. A bug that no test had noticed
  leaves a mutant behind.
"""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

PACKAGE = "pyramid_jobstate"

HERE = Path(__file__).parent
ROOT = HERE.parent.parent


class Mutant(NamedTuple):
    """A fault in one file.

    Attributes:
      name: Its name, for good.
      area: The list that has it.
      breaks: The behaviour that it breaks.
      file: The file, below the package.
      find: The text to replace.
      replace: What takes its place.
    """

    name: str
    area: str
    breaks: str
    file: str
    find: str
    replace: str

    def source(self, root: Path = ROOT) -> str:
        """Return the text of the file as it should be."""
        return (root / PACKAGE / self.file).read_text("utf-8")

    def broken(self, root: Path = ROOT) -> str:
        """Return the text of the file with the fault."""
        return self.source(root).replace(self.find, self.replace)


def load() -> list[Mutant]:
    """Return all mutants, by area."""
    found = []
    for path in sorted(HERE.glob("*.toml")):
        with path.open("rb") as file:
            tables = tomllib.load(file)
        found += [Mutant(name, path.stem, **t) for name, t in tables.items()]
    return found


def faults(mutants: list[Mutant]) -> Iterator[str]:
    """Yield what is wrong with the mutants: nothing, if they fit the code."""
    names: set[str] = set()
    for mutant in mutants:
        fault = _fault(mutant)
        if mutant.name in names:
            fault = "has the name of another."
        names.add(mutant.name)
        if fault is not None:
            yield f"{mutant.area}.toml: {mutant.name} {fault}"


def _fault(mutant: Mutant) -> str | None:
    if not re.fullmatch("[a-z0-9]+(-[a-z0-9]+)*", mutant.name):
        return "is not a name such as batch-counts-a-change-once."
    if not re.fullmatch(r"\S.*\.", mutant.breaks):
        return f"does not say what it breaks in a sentence: {mutant.breaks!r}"
    try:
        count = mutant.source().count(mutant.find)
    except FileNotFoundError:
        return f"names a file that does not exist: {mutant.file}"
    if count != 1:
        return f"matches {count} times in {mutant.file}: {mutant.find!r}"
    if not mutant.file.endswith(".py"):
        return "changes nothing." if mutant.find == mutant.replace else None
    try:
        broken = ast.parse(mutant.broken())
    except SyntaxError as e:
        return f"does not compile: {e}"
    same = ast.dump(broken) == ast.dump(ast.parse(mutant.source()))
    return "changes nothing." if same else None
