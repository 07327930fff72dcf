"""The mutants: small faults, each of which breaks a behaviour that users are promised.

``python -m bench.mutants`` puts them into a copy of the package, one at a time, and
says whether their tests notice. The lists beside this file have them by area::

    [batch-ignores-late-changes]
    breaks = "A change of a member that is told late turns its batch's counts back."
    where = "tell"
    find = 'if rev <= last or (known'
    replace = 'if (known'
    by = "store/test_batches.py"

How to write one:

* Break what the README, or the design, promises to users, operators or other programs,
  as a hurried change might: a wrong comparison, a dropped condition, a swapped order,
  an early return, a permission asked of the wrong thing. No wording of logs, no mere
  speed, nothing that fails at import, nothing that nobody could notice.
* The name and ``breaks`` are for good, and do not say how the code is written: results
  from before and after a redesign are compared by name. ``breaks`` is one sentence:
  what happens to whom.
* ``where`` names the function, method, class, constant, script or template that it
  breaks: see places.py. In whatever module that is, the mutant finds it. ``find`` is
  exact text that occurs once there, and ``replace`` takes its place. Keep both short,
  so that they outlive changes around them.
* ``by`` is the file, below ``tests``, with a test that notices.
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

from .places import places

PACKAGE = "pyramid_jobstate"

HERE = Path(__file__).parent
ROOT = HERE.parent.parent


class Mutant(NamedTuple):
    """A fault in one place.

    Attributes:
      name: Its name, for good.
      area: The list that has it.
      breaks: The behaviour that it breaks.
      where: The name of the place.
      find: The text to replace.
      replace: What takes its place.
      by: The file with a test that notices, below ``tests``.
    """

    name: str
    area: str
    breaks: str
    where: str
    find: str
    replace: str
    by: str

    def spots(self, root: Path = ROOT) -> set[tuple[str, int]]:
        """Return where its text is in a checkout: files below the package, each with an
        index in its text. Only one, if it fits the code.
        """
        return {
            (place.file, place.start + match.start())
            for place in places(root / PACKAGE).get(self.where, ())
            for match in re.finditer(re.escape(self.find), place.text)
        }

    @property
    def file(self) -> str:
        """The file that it breaks, below the package."""
        ((file, _),) = self.spots()
        return file

    def source(self, root: Path = ROOT) -> str:
        """Return the text of the file as it should be."""
        return (root / PACKAGE / self.file).read_text("utf-8")

    def broken(self, root: Path = ROOT) -> str:
        """Return the text of the file with the fault."""
        ((_, start),) = self.spots(root)
        source = self.source(root)
        return source[:start] + self.replace + source[start + len(self.find) :]


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
    if not (ROOT / "tests" / mutant.by).is_file():
        return f"names a file of tests that does not exist: {mutant.by}"
    if mutant.where not in places(ROOT / PACKAGE):
        return f"names a place that does not exist: {mutant.where}"
    if len(found := mutant.spots()) != 1:
        return f"matches {len(found)} times in {mutant.where}: {mutant.find!r}"
    if not mutant.file.endswith(".py"):
        return "changes nothing." if mutant.find == mutant.replace else None
    try:
        broken = ast.parse(mutant.broken())
    except SyntaxError as e:
        return f"does not compile: {e}"
    same = ast.dump(broken) == ast.dump(ast.parse(mutant.source()))
    return "changes nothing." if same else None
