"""Run the tests, and require that they reach every line and branch of the package.

``python -m tests`` runs them all, in several processes, and passes further arguments to
pytest.

``python -m tests tests/job/test_values.py`` runs a selection (paths, ``-k``, ``-m`` and
the like). It passes when those tests pass, whatever their coverage.

``python -m tests --long`` runs only the tests that bear the marker ``long``: slow
variants, and larger forms, of tests that the other runs have. They run one after the
other, whatever their coverage.
"""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TESTS = ROOT / "tests"

#: The options, besides -k and -m, with which pytest runs only some tests or none.
SELECTING = {
    "-h",
    "--co",
    "--collect-only",
    "--deselect",
    "--fixtures",
    "--help",
    "--ignore",
    "--ignore-glob",
    "--last-failed",
    "--lf",
    "--markers",
    "--setup-plan",
    "--stepwise",
    "--sw",
    "--version",
}


def main() -> int:
    """Run the tests and the report, and return an exit code."""
    os.chdir(ROOT)
    arguments = sys.argv[1:]
    pytest = ["-m", "pytest"]
    if "--long" in arguments:
        arguments.remove("--long")
        return subprocess.run(
            [sys.executable, *pytest, *arguments, "-m", "long"]
        ).returncode
    if is_selection(arguments):
        return subprocess.run([sys.executable, *pytest, *arguments]).returncode
    # Hundreds of processes would each compile the tests or the package anew.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    # Workers that run in another directory must leave their measurements here.
    os.environ["COVERAGE_FILE"] = str(ROOT / ".coverage")
    coverage = [sys.executable, "-m", "coverage"]
    subprocess.run([*coverage, "erase"], check=True)
    options = [*in_parallel(), "--durations=10"]
    tests = subprocess.run([*coverage, "run", *pytest, *options, *arguments])
    subprocess.run([*coverage, "combine", "--quiet"], check=True)
    report = subprocess.run([*coverage, "report"])
    return tests.returncode or report.returncode


def is_selection(arguments: Sequence[str]) -> bool:
    """Return whether pytest, given these arguments, runs only some of the tests."""
    for argument in arguments:
        if Path(argument).resolve().is_relative_to(TESTS):
            return True
        # The value may be attached to the option: `--ignore=tests/browser`, `-kvalues`.
        if argument.startswith(("-k", "-m")) or argument.split("=")[0] in SELECTING:
            return True
    return False


def in_parallel() -> list[str]:
    """Return the options to run as many processes as pay off here."""
    # Twice the cores, since most tests mostly wait. The files do not divide into more
    # than eight shares of about equal length.
    number = min(2 * (os.cpu_count() or 1), 8)
    return ["-n", str(number), "--dist", "loadfile", "--no-loadscope-reorder"]


if __name__ == "__main__":
    sys.exit(main())
