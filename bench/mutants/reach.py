"""The map: which tests pass, how long they take, and which lines they reach."""

from __future__ import annotations

import ast
import collections
import difflib
import itertools
import json
import sys
from collections.abc import Mapping, Sequence

import coverage

from . import PACKAGE, ROOT, Mutant
from .checkout import Copy, Test

MAP = ROOT / "build" / "mutants" / "map"

#: The folders of tests for a file whose lines no test is known to reach, by how its
#: path begins. The first that fits counts; those that do not exist are left out.
FOLDERS = {
    "store/lua/": ("store", "worker", "system"),
    "static/": ("browser",),
    "job/": ("actor", "worker"),
    "store/": ("store",),
    "worker/": ("worker",),
    "web/": ("web",),
    "cli/": ("cli",),
    "": ("system",),
}

#: Folders whose tests need another environment.
APART = ("interop",)

#: The test of the patterns, which would notice each mutant.
PATTERNS = "test_each_mutant_changes_one_place"

#: How many sets of parameters of one function run.
SETS = 3

COVERAGE = f"[run]\nsource_pkgs = {PACKAGE}\nrelative_files = true\n"


def folders() -> set[str]:
    """Return the folders that have tests."""
    return {path.parent.name for path in ROOT.glob("tests/*/test_*.py")} - {*APART}


def unmapped() -> list[str]:
    """Return those that have no map."""
    return sorted(name for name in folders() if not (MAP / f"{name}.json").exists())


def make_map(names: Sequence[str]) -> None:
    """Map some folders of tests, or else all that have no map."""
    if unknown := set(names) - folders():
        sys.exit(f"These folders have no tests: {', '.join(sorted(unknown))}.")
    MAP.mkdir(parents=True, exist_ok=True)
    for name in names or unmapped():
        with Copy() as copy:
            print(f"tests/{name} …", flush=True)
            _map_folder(copy, name)


def _map_folder(copy: Copy, name: str) -> None:
    settings = copy.folder / "coveragerc"
    settings.write_text(COVERAGE)
    data = MAP / f"{name}.coverage"
    command = ["-m", "coverage", "run", f"--rcfile={settings}", f"--data-file={data}"]
    command += ["-m", "pytest"]
    # Other cores of coverage cannot tell tests apart.
    code, outcomes = copy.run(command, [f"tests/{name}"], COVERAGE_CORE="ctrace")
    ended = {o["test"]: o for o in outcomes if o["outcome"] != "begun"}
    passed = {t: o["seconds"] for t, o in ended.items() if o["outcome"] == "passed"}
    passed = {t: seconds for t, seconds in passed.items() if PATTERNS not in t}
    if not passed or code not in (0, 1):
        sys.exit(f"tests/{name} could not be mapped:\n{copy.output()}")
    package = copy.root / PACKAGE
    sources = {
        path.relative_to(package).as_posix(): path.read_text("utf-8")
        for path in package.rglob("*.py")
    }
    kept = json.dumps({"tests": passed, "sources": sources})
    (MAP / f"{name}.json").write_text(kept, "utf-8")
    print(f"  {len(passed)} tests pass, in {sum(passed.values()):.0f} s.", flush=True)
    for nodeid, each in ended.items():
        if each["outcome"] == "failed":
            print(f"  fails without mutants: {nodeid}", flush=True)


class Map:
    """The map that was made."""

    def __init__(self) -> None:
        kept = {p.stem: json.loads(p.read_text("utf-8")) for p in MAP.glob("*.json")}
        self._tests: Mapping[str, Mapping[str, float]]
        self._tests = {name: each["tests"] for name, each in kept.items()}
        self._sources = {name: each["sources"] for name, each in kept.items()}
        self._data: dict[str, coverage.CoverageData] = {}

    def tests(self, mutant: Mutant) -> list[Test]:
        """Return the tests that may kill a mutant, the fastest first."""
        found: dict[str, float] = {}
        if mutant.file.endswith(".py"):
            lines = changed_lines(mutant)
            for folder, tests in self._tests.items():
                reached = self._reached(folder, mutant.file)
                for line in self._lines_then(folder, mutant, lines):
                    ids = reached.get(line, ())
                    found |= {
                        nodeid: tests[nodeid] for nodeid in ids if nodeid in tests
                    }
        if not found:
            start = next(start for start in FOLDERS if mutant.file.startswith(start))
            for folder in FOLDERS[start]:
                if (ROOT / "tests" / folder).is_dir():
                    found |= self._of(folder)
        return fastest(found)

    def _of(self, folder: str) -> Mapping[str, float]:
        if folder not in self._tests:
            command = f"python -m bench.mutants --map {folder}"
            sys.exit(f"Nobody knows the tests in tests/{folder}. Run: {command}")
        return self._tests[folder]

    def _reached(self, folder: str, file: str) -> Mapping[int, Sequence[str]]:
        if folder not in self._data:
            self._data[folder] = coverage.CoverageData(str(MAP / f"{folder}.coverage"))
            self._data[folder].read()
        return self._data[folder].contexts_by_lineno(f"{PACKAGE}/{file}")

    def _lines_then(self, folder: str, mutant: Mutant, lines: set[int]) -> set[int]:
        """Return the numbers that lines had when the map was made."""
        then = self._sources[folder].get(mutant.file, "").splitlines()
        same = difflib.SequenceMatcher(
            None, then, mutant.source().splitlines(), autojunk=False
        )
        return {
            a + i + 1
            for a, b, size in same.get_matching_blocks()
            for i in range(size)
            if b + i + 1 in lines
        }


def fastest(tests: Mapping[str, float]) -> list[Test]:
    """Return the fastest sets of parameters of each function, the fastest first."""
    counts: collections.Counter[str] = collections.Counter()
    found = []
    for test in sorted(itertools.starmap(Test, tests.items()), key=lambda t: t.seconds):
        function = test.nodeid.partition("[")[0]
        counts[function] += 1
        if counts[function] <= SETS:
            found.append(test)
    return found


def changed_lines(mutant: Mutant) -> set[int]:
    """Return the numbers of the lines that a mutant changes, or after which it inserts
    some, with the rest of their statements.
    """
    before, after = mutant.source().splitlines(), mutant.broken().splitlines()
    same = difflib.SequenceMatcher(None, before, after, autojunk=False)
    lines = {
        line
        for tag, first, last, *_ in same.get_opcodes()
        if tag != "equal"
        for line in range(first + (first < last), last + 1)
    }
    for node in ast.walk(ast.parse(mutant.source())):
        if isinstance(node, ast.stmt):
            body = getattr(node, "body", None)
            last = body[0].lineno - 1 if body else node.end_lineno or node.lineno
            statement = range(node.lineno, max(node.lineno, last) + 1)
            if not lines.isdisjoint(statement):
                lines.update(statement)
    return lines
