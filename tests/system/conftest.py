"""What the functional tests share: a host, and databases with their managers."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.counters import MANAGERS, Database, make_database
from tests.deployed import Host


@pytest.fixture
def host(tmp_path: Path) -> Host:
    """A host with the files of the README, in a folder of its own."""
    return Host(tmp_path)


@pytest.fixture(params=MANAGERS)
def manager(request: pytest.FixtureRequest) -> Any:
    """The name of a transaction manager."""
    return request.param


@pytest.fixture(params=["sqlite", "zodb"])
def database(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Database]:
    """A new database with a counter, of each kind."""
    with contextlib.closing(make_database(request.param, tmp_path)) as database:
        yield database
