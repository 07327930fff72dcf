"""Put each mutant into a copy of the package, and see whether its tests notice::

    python -m bench.mutants                          # all of them
    python -m bench.mutants --part 1/2               # half of them, and --part 2/2
    python -m bench.mutants --only NAME …            # these
    python -m bench.mutants --only NAME --by FILE …  # these, with other tests
    python -m bench.mutants --touched REV            # whose place has changed since REV
    python -m bench.mutants --minutes 5              # as many as there is time for
    python -m bench.mutants --check                  # does each still fit the code?

A mutant names the file of tests that notices it. These have to pass without it, and
with it one has to fail, twice: the first time may be a coincidence. A crash counts as
well, and so does a run that takes ten times as long.

The exit code is 1 if a mutant survives.
"""

from __future__ import annotations

import argparse
import itertools
import random
import signal
import sys
import time
from collections.abc import Sequence

from . import Mutant, faults, load
from .checkout import Copy, Ran, touched


def hunt(copy: Copy, tests: Sequence[str], patience: float) -> Ran:
    """Run tests on the mutant in the copy until one fails twice."""
    once: list[str] = []
    while True:
        ran = copy.test(*tests, patience=patience, without=once)
        if ran.how != "failed":
            return ran
        if copy.test(ran.test, patience=patience).how != "passed":
            return ran
        print(f"  {ran.test} failed once.", flush=True)
        once.append(ran.test)


def run(mutants: Sequence[Mutant], by: Sequence[str], end: float) -> int:
    """Run mutants until an end, in seconds of the clock of time.monotonic().

    Returns:
      1 if some survive, or cannot be judged, else 0.
    """
    killed, alive = 0, []
    with Copy() as copy:
        groups = itertools.groupby(mutants, lambda m: by or [f"tests/{m.by}"])
        for tests, group in groups:
            if time.monotonic() > end:
                break
            clean = copy.test(*tests)
            print(f"{' '.join(tests)}: {clean.how}, {clean.seconds:.0f} s", flush=True)
            for mutant in group:
                if time.monotonic() > end:
                    break
                ran = clean
                if clean.how == "passed":
                    with copy.mutated(mutant):
                        ran = hunt(copy, tests, 60 + 10 * clean.seconds)
                    if ran.how != "passed":
                        killed += 1
                        print(f"  {mutant.name}: {ran.how} {ran.test}", flush=True)
                        continue
                alive.append(mutant.name)
                print(f"  {mutant.name} SURVIVES. {mutant.breaks}", flush=True)
    left = len(mutants) - killed - len(alive)
    print(f"{killed} killed, {left} not run, {len(alive)} alive: {' '.join(alive)}")
    return 1 if alive else 0


def main(argv: Sequence[str] | None = None) -> int:
    """Do what the arguments say, and return an exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.mutants",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--only", nargs="+", metavar="NAME", default=[])
    parser.add_argument("--by", nargs="+", metavar="FILE", default=[])
    parser.add_argument("--touched", metavar="REV")
    parser.add_argument("--minutes", type=float, default=float("inf"), metavar="N")
    parser.add_argument("--part", default="1/1", metavar="K/N")
    args = parser.parse_args(argv)
    mutants = load()
    # The copy must go, and what runs in it.
    signal.signal(signal.SIGTERM, lambda signum, _: sys.exit(128 + signum))
    wrong = list(faults(mutants))
    print("\n".join([*wrong, f"{len(mutants)} mutants, {len(wrong)} to mend."]))
    if wrong or args.check:
        return 1 if wrong else 0
    if unknown := set(args.only) - {mutant.name for mutant in mutants}:
        parser.error(f"unknown mutants: {', '.join(sorted(unknown))}")
    wanted = [m for m in mutants if not args.only or m.name in args.only]
    if args.touched is not None:
        wanted = touched(wanted, args.touched)
    files = sorted({mutant.by for mutant in wanted})
    if args.minutes < float("inf"):
        # Another share each time.
        random.shuffle(files)
    wanted.sort(key=lambda mutant: files.index(mutant.by))
    part, parts = map(int, args.part.split("/"))
    return run(wanted[part - 1 :: parts], args.by, time.monotonic() + args.minutes * 60)


if __name__ == "__main__":
    sys.exit(main())
