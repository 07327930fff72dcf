"""Runs the tests and demands that they reach every line and branch of the package.

``python -m tests``; further arguments go to pytest. ``python -m tests --long`` runs the
tests that take minutes, only these, whatever they reach.
"""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def main() -> int:
    """Run the tests and the report, and return an exit code."""
    os.chdir(ROOT)
    arguments = sys.argv[1:]
    if "--long" in arguments:
        arguments.remove("--long")
        pytest = [sys.executable, "-m", "pytest", "-m", "long"]
        return subprocess.run([*pytest, *arguments]).returncode
    # Workers that run in another directory are to leave what they measured here.
    os.environ["COVERAGE_FILE"] = str(ROOT / ".coverage")
    coverage = [sys.executable, "-m", "coverage"]
    subprocess.run([*coverage, "erase"], check=True)
    tests = subprocess.run([*coverage, "run", "-m", "pytest", *arguments])
    subprocess.run([*coverage, "combine", "--quiet"], check=True)
    report = subprocess.run([*coverage, "report"])
    return tests.returncode or report.returncode


if __name__ == "__main__":
    sys.exit(main())
