"""Run the tests.

``python -m tests`` runs what needs no process of its own beside a Redis server and a
browser: under three minutes. ``python -m tests --system`` runs the others: whole
processes, other servers, more browsers. ``python -m tests --long`` runs slow variants,
and larger forms, of both, one after the other.

Further arguments go to pytest: ``python -m tests tests/web/test_acts.py`` runs all but
the long tests of that file.
"""

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
    arguments = sys.argv[1:]
    kinds = [kind for kind in ("system", "long") if f"--{kind}" in arguments]
    arguments = [each for each in arguments if each not in ("--system", "--long")]
    # Twice the cores, since many tests wait most of their time. Those of whole systems
    # do not, and the tests of a file share what they start.
    cores = os.cpu_count() or 1
    options = ["-n", str(2 * cores), "--dist", "loadgroup"]
    if "system" in kinds:
        options = ["-n", str(cores), "--dist", "loadfile"]
    if "long" in kinds:
        options = []
    if kinds:
        options += ["-m", kinds[-1]]
    elif not is_selection(arguments):
        options += ["-m", "not system"]
    else:
        options = []
    # Hundreds of processes would each compile the tests or the package anew.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TESTS_CPU"] = folder
        command = [sys.executable, "-m", "pytest", "--durations=10", *options]
        code = subprocess.run([*command, *arguments]).returncode
        dear = costs(Path(folder))
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = used.ru_utime + used.ru_stime
    print(f"{time.monotonic() - begun:.0f} s, of the CPU {cpu:.0f} s.")
    if kinds or is_selection(arguments):
        return code
    for name, seconds in dear:
        print(f"{name} takes {seconds:.1f} s of CPU: it should bear the mark system.")
    if cpu > BUDGET:
        print(f"The run may take {BUDGET:.0f} s of CPU.")
    is_dear = cpu > BUDGET or any(seconds > NOISE * SHARE for _, seconds in dear)
    return code or int(is_dear and os.environ.get("CI") == "true")


def costs(folder: Path) -> list[tuple[str, float]]:
    """Return the tests that have taken more than their share of CPU, with the seconds,
    from the files in which pytest's processes have noted them.
    """
    lines = [line for path in folder.iterdir() for line in path.open(encoding="utf-8")]
    noted = [json.loads(line) for line in lines]
    return [(name, seconds) for name, seconds in noted if seconds > SHARE]


def is_selection(arguments: Sequence[str]) -> bool:
    """Return whether arguments name some of the tests."""
    for argument in arguments:
        if Path(argument.partition("::")[0]).resolve().is_relative_to(TESTS):
            return True
        # The value may be attached to the option: `-kvalues`.
        if argument.startswith(("-k", "-m", "--lf", "--last-failed", "--co")):
            return True
    return False


if __name__ == "__main__":
    sys.exit(main())
