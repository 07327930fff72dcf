"""`python -m tests` selects the tests, and says what they cost."""

import subprocess
import sys

import pytest

from tests.support import ROOT


def collected(*arguments: str, files: tuple[str, ...]) -> str:
    """Return which tests pytest would run."""
    paths = [f"tests/{file}" for file in files]
    return subprocess.run(
        [sys.executable, "-m", "pytest", "--co", "-q", *arguments, *paths],
        cwd=ROOT,
        capture_output=True,
        check=True,
        text=True,
    ).stdout


def test_tests_are_selected_by_what_they_start(
    subtests: pytest.Subtests,
) -> None:
    """Markers select the tests by what they start, and long ones only on request."""
    files = ("browser/test_cors.py", "system/test_rabbitmq.py", "system/test_faults.py")
    cases = {
        "browser or rabbitmq": ("page_of_another", "outlives_its_broker"),
        "not browser": ("outlives_its_broker", "wrong[40]"),
        "not system": ("page_of_another",),
        "long": ("wrong[300]",),
    }
    for expression, names in cases.items():
        with subtests.test(expression):
            found = collected("-m", expression, files=files)
            for name in ("page_of_another", "outlives_its_broker", "wrong[40]"):
                assert (name in found) == (name in names), name
            assert ("wrong[300]" in found) == (expression == "long")


def test_a_file_passes_and_says_what_it_costs() -> None:
    """The command passes with one file of tests, and says what the run has cost."""
    done = subprocess.run(
        [sys.executable, "-m", "tests", "-q", "tests/system/test_mutants.py"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    assert "1 passed" in done.stdout
    assert " s, of the CPU " in done.stdout.splitlines()[-1]
