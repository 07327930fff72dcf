"""Keys of the store into which another program has written are skipped: they fail no
request, no send and no end.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable
from typing import Any

import pytest
import redis
from webtest import TestApp

from pyramid_jobstate import JobStateMiddleware, JobStore
from tests.jobs import RunMarathon, job_actor, messages, wait_until, working
from tests.web.desks import Desk
from tests.web.operating import OPERATOR, Marathons, act, operated_root
from tests.webapp import EXPLICIT, get, make_app, make_broker, make_tm_config

#: Requests for lists and counts.
PATHS = ["?all=1", "?owner=alice", "?all=1&status=error", "?all=1&status=stalled"]
PATHS += ["/counts", "/counts?kind=RunMarathon"]

#: What differs in names of keys from run to run.
UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


@pytest.fixture
def desk(
    redis_url: str, client: redis.Redis, set_broker: Callable[[Any], None]
) -> Desk:
    """An application whose jobs fail, and its store in a namespace of its own: a key is
    logged once in a process.
    """
    namespace = f"foreign{uuid.uuid4().hex[:8]}"
    store = JobStore(redis_url, namespace=namespace)
    set_broker(broker := make_broker(redis_url, JobStateMiddleware(store)))

    @job_actor(broker=broker, job_state=RunMarathon, max_retries=0)
    def stumble() -> None:
        raise ValueError

    settings = {**EXPLICIT, "jobstate.namespace": namespace}
    config = make_tm_config(redis_url, settings, root_factory=operated_root)
    return Desk(config, make_app(config), client, stumble)


@pytest.mark.parametrize("share", range(4))
def test_key_of_another_type_is_empty(
    desk: Desk, caplog: pytest.LogCaptureFixture, share: int
) -> None:
    """A key that another program took stays; jobs go on, and it is logged once."""

    def send(**options: Any) -> str:
        request = desk.begin()
        job = request.job_states.send_with_options(desk.actor, (), **options)
        request.tm.commit()
        return str(job.uuid)

    def work(*uuids: str) -> None:
        with working(desk.actor.broker):
            for each in uuids:
                message = desk.actor.message().copy(message_id=each)
                wait_until(desk.actor.broker, message, "error")

    def read() -> None:
        for path in PATHS:
            response = get(desk.app, f"/job_state{path}", OPERATOR)
            assert response.status_code == 200, path

    def cancel(job: str) -> None:
        path = f"/job_state/{job}"
        assert act(desk.app, f"{path}/cancel", "alice").status_int == 202
        assert get(desk.app, path, "alice").json["job"]["status"] == "cancelled"

    def keys() -> set[str]:
        found: Any = desk.client.keys(f"*{desk.store.namespace}:*")
        return {key.decode() for key in found if not UUID.search(key.decode())}

    work(send(unique="nightly"))
    waiting = send()
    known = keys()
    cancel(waiting)
    known |= keys()
    assert len(known) > 8
    for key in sorted(known)[share::4]:
        desk.client.flushall()
        caplog.clear()
        desk.client.set(key, "x")
        # All that an application does.
        sent = [send(), send(unique="nightly")]
        read()
        work(*sent)
        read()
        cancel(send())
        path = f"/job_state/{sent[0]}"
        assert act(desk.app, path, method="DELETE").status_int == 204
        assert act(desk.app, "/job_state/clear", all=1, everything=1).status_int == 200
        assert desk.client.get(key) == b"x", key
        said = messages(caplog, "pyramid_jobstate")
        noted = [line for line in said if "Another program" in line]
        # Scripts name the first of their keys.
        assert len({*noted}) == len(noted) <= 3, key


def test_failures_of_another_type(
    operated: TestApp, marathons: Marathons, client: redis.Redis
) -> None:
    """The job is inspected without them. It cannot run again."""
    (job,) = marathons.fail("alice")
    beside: Any = client.keys(f"*{job}*:*")
    assert beside
    for key in beside:
        client.delete(key)
        client.set(key, "x")
    found = get(operated, f"/job_state/{job}/inspect", OPERATOR)
    assert (found.status_code, found.json["tries"]) == (200, [])
    assert found.json["error"]["message"] == "after 26 miles in red shoes"
    assert act(operated, f"/job_state/{job}/rerun").status_int == 410
