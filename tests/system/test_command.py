"""`python -m tests`: a full run needs full coverage, a selection need only pass."""

import os
import subprocess
import sys

import pytest

from tests import __main__ as command
from tests.support import ROOT, unmeasured


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The commands that were recorded instead of run: all succeed but the report."""
    commands: list[list[str]] = []

    def run(line: list[str], check: bool = False) -> subprocess.CompletedProcess[str]:
        commands.append(line[1:])
        return subprocess.CompletedProcess(line, 2 if "report" in line else 0)

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setenv("COVERAGE_FILE", "kept")
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    monkeypatch.chdir(ROOT)
    return commands


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["-q"],
        ["-x", "-n", "2"],
        ["--durations", "30"],
        ["--maxfail=1", "--color=no"],
    ],
)
def test_all_tests_are_to_reach_every_line(
    started: list[list[str]], monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    """Without a selection, the coverage report decides, too."""
    monkeypatch.setattr(sys, "argv", ["tests", *arguments])

    assert command.main() == 2

    assert [line[2] for line in started] == ["erase", "run", "combine", "report"]
    assert started[1][len(started[1]) - len(arguments) :] == arguments
    assert "--durations=10" in started[1]


def test_compiled_modules_are_kept_for_the_next_process(
    started: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the environment says, a run of everything compiles each module once."""
    monkeypatch.setattr(sys, "argv", ["tests"])

    command.main()

    assert "PYTHONDONTWRITEBYTECODE" not in os.environ


@pytest.mark.parametrize(
    "arguments",
    [
        ["tests/job/test_values.py"],
        ["tests/job"],
        ["tests/job/test_mistyped.py"],
        ["-q", "tests/job/test_values.py::test_of_any_name"],
        ["-k", "values"],
        ["-kvalues"],
        ["-m", "not browser"],
        ["--lf"],
        ["--markers"],
        ["-h"],
        ["--deselect=tests/job/test_values.py"],
    ],
)
def test_selected_tests_only_have_to_pass(
    started: list[list[str]], monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    """With a selection, only pytest runs."""
    monkeypatch.setattr(sys, "argv", ["tests", *arguments])

    assert command.main() == 0

    assert started == [["-m", "pytest", *arguments]]


def test_long_tests_run_alone(
    started: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`--long` selects the long tests."""
    monkeypatch.setattr(sys, "argv", ["tests", "--long", "-q"])

    assert command.main() == 0

    assert started == [["-m", "pytest", "-q", "-m", "long"]]


def test_a_file_passes() -> None:
    """The command passes with one file of tests, despite its low coverage."""
    result = subprocess.run(
        [sys.executable, "-m", "tests", "-q", "tests/job/test_record.py"],
        cwd=ROOT,
        env=unmeasured(),
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout
    assert "Coverage failure" not in result.stdout


@pytest.mark.parametrize(
    ("expression", "selected", "others"),
    [
        (
            "browser or rabbitmq",
            ("page_of_another", "outlives_its_broker"),
            "preflight",
        ),
        ("not browser", ("preflight", "stub_broker", "wrong[40]"), "page_of_another"),
        ("long", ("wrong[300]",), "wrong[40]"),
    ],
)
def test_tests_are_selected_by_what_they_start(
    expression: str, selected: tuple[str, ...], others: str
) -> None:
    """Markers select the tests by what they start, and long ones only on request."""
    files = (
        "browser/test_cors.py",
        "functional/test_rabbitmq.py",
        "faults/test_faults.py",
    )
    paths = [f"tests/{file}" for file in files]
    found = subprocess.run(
        [sys.executable, "-m", "pytest", "--co", "-m", expression, *paths],
        cwd=ROOT,
        env=unmeasured(),
        capture_output=True,
        check=True,
        text=True,
    ).stdout
    assert all(name in found for name in selected)
    assert others not in found
    assert ("wrong[300]" in found) == (expression == "long")
