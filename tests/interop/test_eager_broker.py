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
    """A job that has run reads `success`, with its last values."""
    state = state_of(eager_app, send(eager_app, "leg"))

    assert state["job"]["status"] == "success"
    assert state["miles_run"] == 2


@pytest.mark.usefixtures("fail_fast")
def test_job_that_fails_ends(eager_app: TestApp) -> None:
    """A failed job reads `error`, whether or not the exception reaches its sender."""
    state = state_of(eager_app, send(eager_app, "leg?fails=1"))

    assert state["job"]["status"] == "error"
    assert state["job"]["error"] == {"message": "The job failed."}
    assert state["miles_run"] == 2


@pytest.mark.usefixtures("fail_fast")
@pytest.mark.parametrize("fails", [False, True])
def test_job_within_a_job_keeps_the_outer_one(eager_app: TestApp, fails: bool) -> None:
    """A job that sends others, which run at once, goes on reporting, and all end."""
    from tests.interop.eager_jobs import sent

    sent.clear()

    outer = state_of(eager_app, send(eager_app, f"relay{'?fails=1' if fails else ''}"))

    assert outer["job"]["status"] == "success"
    assert (outer["legs_begun"], outer["legs_run"]) == (2, 2)
    assert outer["job"]["progress"]["done"] == 2
    assert "miles_run" not in outer
    inner = [state_of(eager_app, uuid, "admin") for uuid in sent]
    assert {state["job"]["status"] for state in inner} <= {
        "error" if fails else "success"
    }
    assert [state["miles_run"] for state in inner] == [3] * len(inner)
    listed = get(eager_app, "/job_state?all=1", "admin").json["items"]
    assert len(listed) == 3
    assert {item["job"]["status"] for item in listed} == {
        "success",
        "error" if fails else "success",
    }


def test_others_are_refused(eager_app: TestApp) -> None:
    """A job that runs at once is protected like any other."""
    uuid = send(eager_app, "leg")

    assert get(eager_app, f"/job_state/{uuid}", "bob").status_code == 403
    assert get(eager_app, f"/job_state/{uuid}").status_code == 403
    assert get(eager_app, "/job_state?all=1").status_code == 403
