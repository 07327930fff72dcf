"""Runs all tests and demands that they reach every line and branch of the package.

``python -m tests``; further arguments go to pytest.
"""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def main() -> int:
    """Run the tests and the report, and return an exit code."""
    os.chdir(ROOT)
    # Workers that run in another directory are to leave what they measured here.
    os.environ["COVERAGE_FILE"] = str(ROOT / ".coverage")
    coverage = [sys.executable, "-m", "coverage"]
    subprocess.run([*coverage, "erase"], check=True)
    tests = subprocess.run([*coverage, "run", "-m", "pytest", *sys.argv[1:]])
    subprocess.run([*coverage, "combine", "--quiet"], check=True)
    report = subprocess.run([*coverage, "report"])
    return tests.returncode or report.returncode


if __name__ == "__main__":
    sys.exit(main())
