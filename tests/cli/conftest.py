"""What the tests of the commands share."""

import logging
from collections.abc import Callable, Iterator

import pytest

from tests.operated import Operator


@pytest.fixture(autouse=True)
def logging_kept() -> Iterator[None]:
    """What a command does to this process's logging is undone."""
    root = logging.getLogger()
    handlers = list(root.handlers)
    yield
    root.handlers = handlers


@pytest.fixture
def said(
    said: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> Callable[[], list[str]]:
    """Returns what the package has logged, with "ops" as the user of commands."""
    monkeypatch.setenv("LOGNAME", "ops")
    return said


@pytest.fixture
def pjobs(redis_url: str, capsys: pytest.CaptureFixture[str]) -> Operator:
    """Runs commands on the test's store."""
    return Operator(redis_url, capsys)
