"""What the tests of all applications need."""

import contextlib
import dataclasses
import importlib.util
import os
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from webtest import TestApp

from pyramid_jobstate.embedded import EmbeddedServer

#: Set to make a missing package fail the tests rather than skip them.
DEMANDED = "JOBSTATE_INTEROP"

#: The possible statuses of a request by a visitor who is not logged in.
REFUSED = (401, 403)

COMMAND = (
    "python3 -m venv .venv-interop && .venv-interop/bin/pip install -e '.[interop]' && "
    ".venv-interop/bin/python -m pytest -W default tests/interop"
)


def need(*names: str) -> None:
    """Skip the tests of a module unless these packages are installed."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            reason = f"{name} is not installed. To run these tests: {COMMAND}"
            if os.environ.get(DEMANDED):
                pytest.fail(reason, pytrace=False)
            pytest.skip(reason, allow_module_level=True)


@dataclasses.dataclass(slots=True)
class Site:
    """An application with jobs, and its users.

    Attributes:
      app: The application.
      headers: The headers of each user's requests: alice, bob and admin.
      owners: The owner of alice's jobs, and of bob's, as the application names them.
      jobs: The path of the jobs.
      marathons: The path that sends a job on a POST.
    """

    app: TestApp
    headers: Mapping[str, Mapping[str, str]]
    owners: Mapping[str, str | int]
    jobs: str = "/job_state"
    marathons: str = "/+marathons"

    def ask(self, method: str, path: str, user: str | None = None) -> Any:
        """Return the response to a user or to a visitor, whatever its status."""
        headers = {} if user is None else self.headers[user]
        # Each user has their own browser.
        self.app.reset()
        return self.app.request(
            path,
            method=method,
            headers={"X-Requested-With": "XMLHttpRequest", **headers},
            expect_errors=True,
        )

    def get(self, path: str, user: str | None = None) -> Any:
        return self.ask("GET", path, user)

    def send(self, user: str) -> str:
        response = self.ask("POST", self.marathons, user)
        assert response.status_code == 200, response
        uuid: str = response.json["job"]["uuid"]
        return uuid


@contextlib.contextmanager
def away(server: EmbeddedServer) -> Iterator[None]:
    """Stop a server, and start it empty."""
    server.stop()
    try:
        yield
    finally:
        server.start()
