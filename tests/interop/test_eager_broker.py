"""Jobs on dramatiq-eager-broker, which runs them in the process that sends them."""

from typing import Any

import pytest
from webtest import TestApp

from tests.interop.support import need
from tests.webapp import ask, get

need("dramatiq_eager_broker")


@pytest.fixture(scope="module")
def interop_actors() -> str:
    """Override: the actors of the eager broker, in place of those for applications."""
    return "tests.interop.eager_jobs"


@pytest.fixture(scope="module")
def eager_app(interop_broker: Any) -> TestApp:
    from tests.interop.eager_app import main

    return TestApp(main({}))


@pytest.fixture(params=[True, False], ids=["raises", "keeps"])
def fail_fast(request: Any, interop_broker: Any) -> None:
    """Have a failed job raise in its sender, or not."""
    interop_broker.fail_fast = request.param


def send(app: TestApp, what: str) -> str:
    """Send a job of Alice's, which runs at once, and return its uuid."""
    response = ask(app, "POST", f"/run/{what}", "alice")
    assert response.status_code == 200
    uuid: str = response.json["job"]["uuid"]
    return uuid


def state_of(app: TestApp, uuid: str, user: str = "alice") -> Any:
    return get(app, f"/job_state/{uuid}", user).json


@pytest.mark.usefixtures("fail_fast")
def test_job_ends(eager_app: TestApp) -> None:
    """A job that has run reads `success`, with its last values, or `error`, whether or
    not the exception reaches its sender. It is protected like any other.
    """
    for what, status in ("leg", "success"), ("leg?fails=1", "error"):
        uuid = send(eager_app, what)
        state = state_of(eager_app, uuid)
        assert (state["job"]["status"], state["miles_run"]) == (status, 2)
        assert get(eager_app, f"/job_state/{uuid}", "bob").status_code == 403


@pytest.mark.usefixtures("fail_fast")
@pytest.mark.parametrize("status", ["success", "error"])
def test_job_within_a_job_keeps_the_outer_one(eager_app: TestApp, status: str) -> None:
    """A job that sends others, which run at once, goes on reporting, and all end."""
    what = "relay?fails=1" if status == "error" else "relay"
    outer = state_of(eager_app, send(eager_app, what))
    assert outer["job"]["status"] == "success"
    assert (outer["legs_begun"], outer["legs_run"]) == (2, 2)
    assert "miles_run" not in outer
    listed = get(eager_app, "/job_state?all=1", "admin").json["items"]
    inner = [state for state in listed if state["job"]["uuid"] != outer["job"]["uuid"]]
    assert {state["job"]["status"] for state in inner} == {status}
    assert [state["miles_run"] for state in inner] == [3, 3]
