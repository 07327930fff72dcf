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


@pytest.mark.parametrize("fail_fast", [True, False])
def test_job_ends(eager_app, interop_broker, fail_fast):
    """A job that has run reads `success`, with its last values, or `error`, whether or
    not the exception reaches its sender. It is protected like any other. A job goes on
    reporting after another that it has sent.
    """
    interop_broker.fail_fast = fail_fast
    for run, status in ("/run", "success"), ("/run?fails=1", "error"):
        sent = ask(eager_app, "POST", run, "alice")
        assert sent.status_code == 200
        path = f"/job_state/{sent.json['job']['uuid']}"
        state = get(eager_app, path, "alice").json
        assert (state["job"]["status"], state["miles_run"]) == (status, 2)
        assert get(eager_app, path, "bob").status_code == 403
        relay = f"/run?relay=1&{run.partition('?')[2]}"
        uuid = ask(eager_app, "POST", relay, "alice").json["job"]["uuid"]
        state = get(eager_app, f"/job_state/{uuid}", "alice").json
        assert (state["job"]["status"], state["goes_on"]) == ("success", True)
