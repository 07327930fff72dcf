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

from pyramid_jobstate import JobState, JobStateMiddleware, JobStore
from tests.jobs import RunMarathon, job_actor, messages, wait_until, working
from tests.web.operating import OPERATOR, act, operated_root
from tests.webapp import get, make_app, make_broker, make_request, make_tm_config

#: Requests for lists and counts.
PATHS = ["?all=1", "?owner=alice", "?all=1&status=error", "?all=1&status=stalled"]
PATHS += ["/counts", "/counts?kind=RunMarathon"]

#: What differs in names of keys from run to run.
UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


class Desk:
    """An application whose jobs fail, and its store in a namespace of its own."""

    def __init__(
        self, url: str, client: redis.Redis, set_broker: Callable[[Any], None]
    ) -> None:
        # A key is logged once in a process.
        self.namespace = f"foreign{uuid.uuid4().hex[:8]}"
        self.client = client
        self.store = JobStore(url, namespace=self.namespace)
        self.broker = make_broker(url, JobStateMiddleware(self.store))
        set_broker(self.broker)
        self.config = make_tm_config(url, root_factory=operated_root)
        self.config.add_settings({"jobstate.namespace": self.namespace})
        self.app: TestApp = make_app(self.config)

        @job_actor(broker=self.broker, job_state=RunMarathon, max_retries=0)
        def stumble(miles: int) -> None:
            raise ValueError(f"after {miles} miles")

        self.actor = stumble

    def send(self, **options: Any) -> JobState:
        """Send a job in a transaction."""
        request = make_request(self.config, "alice")
        with request.tm:
            job = request.job_states.send_with_options(self.actor, (1,), **options)
        assert isinstance(job, JobState)
        return job

    def work(self, *jobs: JobState) -> None:
        """Have a worker run jobs, all of which fail."""
        with working(self.broker):
            for job in jobs:
                message = self.actor.message(1).copy(message_id=job.uuid)
                wait_until(self.broker, message, "error")

    def read(self) -> dict[str, Any]:
        """Return the answers to all requests for lists and counts."""
        answers = {path: get(self.app, f"/job_state{path}", OPERATOR) for path in PATHS}
        assert {each.status_code for each in answers.values()} == {200}
        return {path: answer.json for path, answer in answers.items()}

    def keys(self) -> dict[str, str]:
        """Return the keys of the store that no job has alone, with their types."""
        found: Any = self.client.keys(f"*{self.namespace}:*")
        kinds: dict[str, Any] = {key.decode(): self.client.type(key) for key in found}
        return {k: v.decode() for k, v in kinds.items() if not UUID.search(k)}


@pytest.fixture
def desk(
    redis_url: str, client: redis.Redis, set_broker: Callable[[Any], None]
) -> Desk:
    return Desk(redis_url, client, set_broker)


@pytest.mark.parametrize("share", range(4))
def test_key_of_another_type_is_empty(
    desk: Desk, caplog: pytest.LogCaptureFixture, share: int
) -> None:
    """A key that another program took stays; jobs go on, and it is logged once."""
    desk.work(desk.send(unique="nightly"))
    waiting = desk.send()
    keys = desk.keys()
    assert waiting.cancel()
    keys |= desk.keys()
    assert len(keys) > 8
    for key in sorted(keys)[share::4]:
        desk.client.flushall()
        caplog.clear()
        desk.client.set(key, "x")
        # All that an application does.
        sent = [desk.send(), desk.send(unique="nightly")]
        desk.read()
        desk.work(*sent)
        desk.read()
        path = f"/job_state/{desk.send().uuid}"
        assert act(desk.app, f"{path}/cancel", "alice").status_int == 202
        assert get(desk.app, path, "alice").json["job"]["status"] == "cancelled"
        path = f"/job_state/{sent[0].uuid}"
        assert act(desk.app, path, method="DELETE").status_int == 204
        assert act(desk.app, "/job_state/clear", all=1, everything=1).status_int == 200
        assert desk.client.get(key) == b"x", key
        said = messages(caplog, "pyramid_jobstate")
        noted = [line for line in said if "Another program" in line]
        # Scripts name the first of their keys.
        assert len({*noted}) == len(noted) <= 3, key


def test_score_that_is_none_of_ours_is_skipped(desk: Desk) -> None:
    """It fails no list, no count and no page, and the jobs beside it are shown."""
    for score in "inf", "-inf", 1e300, -1:
        desk.client.flushall()
        job = desk.send()
        for key, kind in desk.keys().items():
            if kind == "zset":
                desk.client.zadd(key, dict.fromkeys((job.uuid, "stray"), score))
        desk.read()
        desk.work(job)
        (item,) = desk.read()["?owner=alice"]["items"]
        assert item["job"]["uuid"] == job.uuid, score


def test_failures_of_another_type(desk: Desk) -> None:
    """The job ends, and is inspected without them. It cannot run again."""
    job = desk.send()
    desk.work(job)
    beside: Any = desk.client.keys(f"*{job.uuid}*:*")
    assert beside
    for key in beside:
        desk.client.delete(key)
        desk.client.set(key, "x")
    found = get(desk.app, f"/job_state/{job.uuid}/inspect", OPERATOR)
    assert (found.status_code, found.json["tries"]) == (200, [])
    assert found.json["error"]["message"] == "after 1 miles"
    assert act(desk.app, f"/job_state/{job.uuid}/rerun").status_int == 410
