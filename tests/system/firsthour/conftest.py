"""The projects in which the tests do what the README says."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.system.firsthour.projects import Project, sdist

#: Makes a fresh copy of the project of a name.
MakeProject = Callable[[str], Project]


@pytest.fixture(scope="session")
def pyramid_sdist(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Pyramid's sdist, downloaded unless pytest's cache has it."""
    cache = request.config.cache
    # Without the plugin for the cache, each run downloads it.
    folder = cache.mkdir("sdist") if cache else tmp_path_factory.mktemp("sdist")
    found = sdist(folder)
    if found is None:
        reason = "pip could not download the sdist of Pyramid"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    return found


@pytest.fixture
def make_project(pyramid_sdist: Path, tmp_path: Path) -> MakeProject:
    """A function that makes a copy of a project for this test alone."""

    def make(name: str) -> Project:
        return Project(pyramid_sdist, name, tmp_path / name)

    return make
