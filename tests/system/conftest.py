"""What the tests of whole processes share."""

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.deployed import Host
from tests.system import commands
from tests.system.commands import Start


@pytest.fixture
def host(tmp_path: Path) -> Host:
    """A host with the files of the README, in a folder of its own."""
    return Host(tmp_path)


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts commands in processes of their own, which end with the test."""
    with contextlib.ExitStack() as stack:

        def started(*arguments: str, **environ: str) -> "subprocess.Popen[str]":
            process = stack.enter_context(commands.start(*arguments, **environ))
            stack.callback(process.terminate)
            return process

        yield started
