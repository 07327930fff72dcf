"""A commit that the store vetoes leaves nothing behind and is logged once."""

from typing import Any

import pytest
import redis
from pyramid.request import Request

from pyramid_jobstate import JobStateMiddleware
from pyramid_jobstate.embedded import EmbeddedServer
from pyramid_jobstate.store.scripts import read_scripts
from tests.faulty import faulty
from tests.jobs import messages
from tests.webapp import get, make_app, make_broker, make_config


def visit(url: str, view: Any) -> Any:
    """Return the response to a request whose transaction includes a view."""
    config = make_config(
        url, settings={"tm.manager_hook": "pyramid_tm.explicit_manager"}
    )
    config.include("pyramid_tm")
    config.add_view(view, name="go", renderer="string")
    return get(make_app(config), "/go", "alice")


def test_record_whose_reply_was_lost_is_taken_back(
    redis_url: str, client: redis.Redis
) -> None:
    """A store that wrote the record, but whose replies were lost, vetoes the commit.
    The abort deletes the record.
    """
    with faulty(redis_url) as proxy:
        broker = make_broker(redis_url, JobStateMiddleware(url=proxy.url))
        create = read_scripts()["create"]
        # The server knows the script, so it runs even if its reply is lost.
        client.script_load(create.text)

        def lose_creates(request: bytes) -> str:
            return "lose" if create.sha.encode() in request else "pass"

        def view(request: Request) -> str:
            request.job_states.send(broker.get_actor("run_marathon"), 26)
            proxy.judge = lose_creates
            return ""

        response = visit(proxy.url, view)

    assert response.status_code == 503
    assert proxy.faults["lose"] > 0
    assert client.keys("jobstate:*") == []


def test_veto_is_logged_as_an_outage_alone(
    server: EmbeddedServer, redis_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A store that is away at the commit causes one warning and no error about the
    transaction.
    """
    broker = make_broker(redis_url, JobStateMiddleware(url=server.url))

    def view(request: Request) -> str:
        request.job_states.send(broker.get_actor("run_marathon"), 26)
        server.stop()
        return ""

    assert visit(server.url, view).status_code == 503
    (said,) = messages(caplog, "")
    assert "does not answer" in said
