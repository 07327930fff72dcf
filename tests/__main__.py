"""Run the tests.

``python -m tests`` runs what needs no process of its own beside a Redis server and a
browser: under three minutes. ``python -m tests --system`` runs the others: whole
processes, other servers, more browsers. ``python -m tests --long`` runs slow variants,
and larger forms, of both, one after the other.

Further arguments go to pytest: ``python -m tests tests/web/test_acts.py`` runs all but
the long tests of that file. An expression after ``-m`` narrows each of these.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TESTS = ROOT / "tests"

#: The most seconds of CPU that a run without arguments may take in CI, and that a test
#: may take that does not bear the marker `system`. On a busy machine it takes up to
#: twice as many.
BUDGET, SHARE, NOISE = 400.0, 1.0, 2.0


def main() -> int:
    """Run the tests, and return an exit code."""
    os.chdir(ROOT)
    options, is_default = chosen(sys.argv[1:])
    # Hundreds of processes would each compile the tests or the package anew.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TESTS_CPU"] = folder
        command = [sys.executable, "-m", "pytest", "--durations=10", *options]
        code = subprocess.run(command).returncode
        dear = costs(Path(folder))
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = used.ru_utime + used.ru_stime
    print(f"{time.monotonic() - begun:.0f} s, of the CPU {cpu:.0f} s.")
    if not is_default:
        return code
    for name, seconds in dear:
        print(f"{name} takes {seconds:.1f} s of CPU: it should bear the mark system.")
    if cpu > BUDGET:
        print(f"The run may take {BUDGET:.0f} s of CPU.")
    is_dear = cpu > BUDGET or any(seconds > NOISE * SHARE for _, seconds in dear)
    return code or int(is_dear and os.environ.get("CI") == "true")


def costs(folder: Path) -> list[tuple[str, float]]:
    """Return the tests that take more than their share of CPU, with the seconds."""
    lines = [line for path in folder.iterdir() for line in path.open(encoding="utf-8")]
    noted = [json.loads(line) for line in lines]
    return [(name, seconds) for name, seconds in noted if seconds > SHARE]


def chosen(arguments: Sequence[str]) -> tuple[list[str], bool]:
    """Return pytest's arguments, and whether they are those of the run that each change
    needs, or of a part of it.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--system", dest="kind", action="store_const", const="system")
    parser.add_argument("--long", dest="kind", action="store_const", const="long")
    parser.add_argument("-m", dest="marks")
    parser.add_argument("-k", dest="words")
    parser.add_argument("--lf", "--last-failed", dest="failed", action="store_true")
    given, rest = parser.parse_known_args(arguments)
    paths = [Path(each.partition("::")[0]).resolve() for each in rest]
    paths = [path for path in paths if path.is_relative_to(TESTS)]
    is_default = not (given.kind or paths or given.words or given.failed)
    # Twice the cores, since many tests wait most of their time. Those of whole systems
    # do not, and the tests of a file share what they start.
    cores = os.cpu_count() or 1
    options = ["-n", str(2 * cores), "--dist", "loadgroup"]
    if given.kind == "system" or TESTS / "system" in paths:
        options = ["-n", str(cores), "--dist", "loadfile"]
    if given.kind == "long" or given.failed or any(path.is_file() for path in paths):
        options = []
    marks = [given.kind or (is_default and "not system"), given.marks]
    if expression := " and ".join(f"({each})" for each in marks if each):
        options += ["-m", expression]
    if given.words:
        options += ["-k", given.words]
    if given.failed:
        options += ["--lf"]
    return [*options, *rest], is_default


if __name__ == "__main__":
    sys.exit(main())
