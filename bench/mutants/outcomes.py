"""A pytest plugin: runs some of the tests in a given order, and notes how each ended.

The environment names the files: ``MUTANTS_TESTS`` has the ids of the tests to run, as
JSON (without it, all run); a line is added to ``MUTANTS_OUTCOMES`` as each begins, and
as it ends. Under coverage, what a test and its fixtures reach is kept under its id.
"""

from __future__ import annotations

import json
import os
from collections.abc import Generator
from pathlib import Path

# Before a test replaces it.
from time import monotonic

import coverage
import pytest

#: From good to bad.
OUTCOMES = ("passed", "skipped", "failed")

_worst: dict[str, str] = {}


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(
    config: pytest.Config, items: list[pytest.Item]
) -> None:
    """Keep the wanted tests, in the wanted order."""
    path = os.environ.get("MUTANTS_TESTS")
    if path is None:
        return
    wanted = {uuid: i for i, uuid in enumerate(json.loads(Path(path).read_text()))}
    others = [item for item in items if item.nodeid not in wanted]
    config.hook.pytest_deselected(items=others)
    items[:] = [item for item in items if item.nodeid in wanted]
    items.sort(key=lambda item: wanted[item.nodeid])


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Note the beginning and the end of a test."""
    measured = coverage.Coverage.current()
    if measured is not None:
        measured.switch_context(item.nodeid)
    _note(item.nodeid, "begun", 0.0)
    begun = monotonic()
    result = yield
    outcome = _worst.get(item.nodeid, "failed")
    _note(item.nodeid, outcome, monotonic() - begun)
    return result


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Keep the worst outcome of a test's phases."""
    before = _worst.get(report.nodeid, "passed")
    _worst[report.nodeid] = max(before, report.outcome, key=OUTCOMES.index)


def _note(nodeid: str, outcome: str, seconds: float) -> None:
    line = json.dumps({"test": nodeid, "outcome": outcome, "seconds": seconds})
    with Path(os.environ["MUTANTS_OUTCOMES"]).open("a", encoding="utf-8") as file:
        file.write(f"{line}\n")
