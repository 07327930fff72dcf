"""What the tests of the commands share."""

import logging
import signal
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pyramid.config import global_registries

from tests.cliapp import Folder
from tests.operated import Operator, Said
from tests.running import Runs, running


@pytest.fixture(autouse=True)
def process_kept() -> Iterator[None]:
    """What a command does to this process's logging and signals is undone. A run in the
    background, where a shell has SIGINT ignored, or under nohup, which ignores SIGHUP,
    hears of them all the same.
    """
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    ended = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    kept = {signum: signal.getsignal(signum) for signum in ended}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    for signum, handler in kept.items():
        signal.signal(signum, handler)
    for each in root.handlers:
        if each not in handlers:
            each.close()
    root.handlers = handlers
    root.setLevel(level)


@pytest.fixture
def said(said: Said, monkeypatch: pytest.MonkeyPatch) -> Said:
    """Returns what the package has logged, with "ops" as the user of commands."""
    monkeypatch.setenv("LOGNAME", "ops")
    return said


@pytest.fixture
def pjobs(
    redis_url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Operator:
    """Runs commands on the test's store."""
    return Operator(redis_url, capsys, monkeypatch)


@pytest.fixture
def shop(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A module that `pjobs rerun` can import, without a broker."""
    module = types.ModuleType("shop")
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setitem(sys.modules, "shop", module)
    return module


@pytest.fixture
def runs(redis_url: str) -> Iterator[Runs]:
    """A worker whose jobs do what the test tells them to."""
    with running(redis_url) as runs:
        yield runs


@pytest.fixture
def folder(
    tmp_path: Path, redis_url: str, no_broker: None, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Folder]:
    """The current folder, with an application, of which this process knows nothing."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    # A module may change within a second.
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield Folder(tmp_path, redis_url)
    global_registries.empty()
    sys.modules.pop("cliapp", None)
