"""The projects in which the tests do what the README says."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import lack
from tests.system.firsthour.projects import Project, sdist

#: Makes a fresh copy of the project of a name.
MakeProject = Callable[[str], Project]


@pytest.fixture
def make_project(request: pytest.FixtureRequest, tmp_path: Path) -> MakeProject:
    """A function that makes a copy of a project for this test alone, of Pyramid's
    sdist, which is downloaded unless pytest's cache has it.
    """
    cache = request.config.cache
    # Without the plugin for the cache, each test downloads it.
    archive = sdist(cache.mkdir("sdist") if cache else tmp_path)
    if archive is None:
        lack("pip could not download the sdist of Pyramid")
    return lambda name: Project(archive, name, tmp_path / name)
