"""What the tests of whole processes share."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.deployed import Host
from tests.rabbitmq import RabbitMQ, find_binary
from tests.support import lack


@pytest.fixture
def host(tmp_path: Path) -> Host:
    """A host with the files of the README, in a folder of its own."""
    return Host(tmp_path)


@pytest.fixture(scope="module")
def rabbitmq() -> Iterator[RabbitMQ]:
    """A node for the tests of a module."""
    missing = "No RabbitMQ is installed (Debian: apt-get install rabbitmq-server)"
    with RabbitMQ(find_binary() or lack(missing)) as node:
        yield node
