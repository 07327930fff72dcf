"""What the tests of whole processes share."""

from pathlib import Path

import pytest

from tests.deployed import Host


@pytest.fixture
def host(tmp_path: Path) -> Host:
    """A host with the files of the README, in a folder of its own."""
    return Host(tmp_path)
