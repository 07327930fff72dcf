"""Put each mutant into a copy of the package, and say which test notices.

First make the map: which tests pass, how long they take, and which lines they reach::

    python -m bench.mutants --map             # all folders of tests without a map
    python -m bench.mutants --map job store   # these, anew

Then run the mutants without a result. That takes hours, and may be stopped and started
again at any time::

    python -m bench.mutants                   # in two terminals: --part 1/2, --part 2/2
    python -m bench.mutants --only NAME …     # these, even if they have a result
    python -m bench.mutants --again           # those that have survived

    python -m bench.mutants --report          # what was killed, by what, and when
    python -m bench.mutants --report --since FILE    # and what only FILE had killed
    python -m bench.mutants --check           # does each pattern still fit the code?

A mutant meets the tests that reach its lines. If none is known to (the lines run in
child processes or at import, or are not Python), it meets those of the folders that
FOLDERS in reach.py names. Of a function with parameters, the three fastest sets run.
A test that fails twice kills it; so do a crash and a timeout. It survives if all pass.
Tests that fail once are noted, and count as passed; those that fail without mutants
never run.

All is kept in build/mutants: ``map``, which has to be made anew when tests have
changed, and ``results.jsonl``, or the file that ``--results`` names.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from . import ROOT, Mutant, faults, load
from .checkout import Copy, Test
from .reach import Map, make_map, unmapped

RESULTS = ROOT / "build" / "mutants" / "results.jsonl"

#: The first batch: so many tests that take less than so many seconds each.
FIRST, FAST = 60, 2.0

Result = dict[str, Any]


def batches(tests: Sequence[Test]) -> Iterator[list[Test]]:
    """Yield tests in the batches in which they run. Those of a file follow each other,
    since they share what is slow to set up.
    """
    first = [test for test in tests if test.seconds < FAST][:FIRST]
    for batch in (first, [test for test in tests if test not in first]):
        if batch:
            files = [test.file for test in batch]
            yield sorted(batch, key=lambda test: files.index(test.file))


def hunt(copy: Copy, tests: Sequence[Test]) -> Result:
    """Run tests on the mutant in the copy until one kills it."""
    count = 0
    once: list[str] = []
    for batch in batches(tests):
        while batch:
            ran = copy.test(batch)
            count += ran.number
            if ran.how == "passed":
                break
            if ran.how == "nothing":
                return {"status": "unknown", "how": "no test is there: map anew"}
            place = [test.nodeid for test in batch].index(ran.nodeid or batch[0].nodeid)
            if ran.how != "failed" or copy.test([batch[place]]).how != "passed":
                how = {"status": "killed", "how": ran.how, "by": ran.nodeid}
                return {**how, "tests": count, "once": once}
            once.append(ran.nodeid)
            batch = batch[place + 1 :]
    return {"status": "survived", "tests": count, "once": once}


def run(mutants: Sequence[Mutant], path: Path) -> None:
    """Run mutants, and append their results to a file."""
    if unknown := unmapped():
        print(f"Without a map, these tests do not run: {', '.join(unknown)}.")
    known = Map()
    work = [(mutant, known.tests(mutant)) for mutant in mutants]
    path.parent.mkdir(parents=True, exist_ok=True)
    with Copy() as copy:
        for mutant, tests in work:
            begun = time.monotonic()
            print(f"{mutant.name}: {len(tests)} tests …", flush=True)
            with copy.mutated(mutant):
                result = hunt(copy, tests)
            result["seconds"] = round(time.monotonic() - begun, 1)
            with path.open("a", encoding="utf-8") as file:
                file.write(f"{json.dumps({'name': mutant.name, **result})}\n")
            print(f"  {told(result)}", flush=True)


def results_in(path: Path) -> dict[str, Result]:
    """Return the results in a file by the names of the mutants. The last one counts."""
    lines = path.read_text("utf-8").splitlines() if path.exists() else []
    results = [json.loads(line) for line in lines if line.endswith("}")]
    return {each["name"]: each for each in results if each["status"] != "unknown"}


def told(result: Result) -> str:
    """Return a result as text."""
    how, by, once = (result.get(name) for name in ("how", "by", "once"))
    words = [result["status"], how != "failed" and how, by and f"by {by}"]
    text = f"{' '.join(filter(None, words))} ({result['seconds']} s)"
    return f"{text}; failed once: {', '.join(once)}" if once else text


def report(mutants: Sequence[Mutant], path: Path, since: Path | None) -> int:
    """Print all results. Return 1 if mutants live that had been killed, else 0."""
    found = results_in(path)
    for area, group in itertools.groupby(mutants, lambda mutant: mutant.area):
        those = [mutant for mutant in group if mutant.name in found]
        alive = [m for m in those if found[m.name]["status"] == "survived"]
        print(f"{area}: {len(those) - len(alive)} of {len(those)} killed")
        for mutant in those:
            print(f"  {mutant.name}: {told(found[mutant.name])}")
            if mutant in alive:
                print(f"    {mutant.breaks}")
    before = {} if since is None else results_in(since)
    lost = [
        name
        for name, result in before.items()
        if result["status"] == "killed"
        and found.get(name, {"status": "killed"})["status"] != "killed"
    ]
    if since is not None:
        print(f"Killed in {since}, but alive now: {', '.join(lost) or 'none'}.")
    return 1 if lost else 0


def main(argv: Sequence[str] | None = None) -> int:
    """Do what the arguments say, and return an exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.mutants",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--map", nargs="*", metavar="FOLDER")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--report", action="store_true")
    parser.add_argument("--since", type=Path, metavar="FILE")
    parser.add_argument("--only", nargs="+", metavar="NAME", default=[])
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--part", default="1/1", metavar="K/N")
    parser.add_argument("--seed", type=int, help="run them in a random order")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FILE")
    args = parser.parse_args(argv)
    mutants = load()
    # The copy must go, and what runs in it.
    signal.signal(signal.SIGTERM, lambda signum, _: sys.exit(128 + signum))
    if args.map is not None:
        make_map(args.map)
        return 0
    if args.report:
        return report(mutants, args.results, args.since)
    wrong = list(faults(mutants))
    print("\n".join([*wrong, f"{len(mutants)} mutants, {len(wrong)} to mend."]))
    if wrong or args.check:
        return 1 if wrong else 0
    names = {mutant.name for mutant in mutants}
    if unknown := set(args.only) - names:
        parser.error(f"unknown mutants: {', '.join(sorted(unknown))}")
    found = results_in(args.results)
    survivors = {n for n, each in found.items() if each["status"] == "survived"}
    wanted = set(args.only) or (survivors if args.again else names - found.keys())
    part, parts = map(int, args.part.split("/"))
    todo = [mutant for mutant in mutants[part - 1 :: parts] if mutant.name in wanted]
    if args.seed is not None:
        random.Random(args.seed).shuffle(todo)
    run(todo, args.results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
