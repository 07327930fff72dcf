"""Keys of the store into which another program has written are skipped: they fail no
request, no send and no end.
"""

from __future__ import annotations

import itertools
import re
import uuid
from collections.abc import Iterator
from typing import Any

import dramatiq
import pytest
import redis
from webtest import TestApp

from pyramid_jobstate import JobState, JobStateMiddleware, JobStore
from tests.jobs import RunMarathon, job_actor, messages, wait_until, working
from tests.support import key_of
from tests.web.operating import OPERATOR, act, operated_root
from tests.webapp import get, make_app, make_broker, make_request, make_tm_config

#: Requests for lists and counts.
PATHS = [
    "?all=1",
    "?owner=alice",
    "?all=1&status=queued",
    "?all=1&status=success",
    "?all=1&status=error",
    "?all=1&status=stalled",
    "?owner=alice&status=error",
    "/counts",
    "/counts?kind=RunMarathon",
]

#: The name of a key without what differs from run to run.
CHANGING = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


class Desk:
    """An application whose jobs fail, and its store in a namespace of its own."""

    def __init__(self, url: str, client: redis.Redis) -> None:
        # A key is logged once in a process.
        self.namespace = f"foreign{uuid.uuid4().hex[:8]}"
        self.client = client
        self.store = JobStore(url, namespace=self.namespace)
        self.broker = make_broker(
            url, JobStateMiddleware(url=url, namespace=self.namespace)
        )
        dramatiq.broker.global_broker = self.broker
        settings = {
            "jobstate.namespace": self.namespace,
            "tm.manager_hook": "pyramid_tm.explicit_manager",
            "jobstate.redis_url": url,
        }
        self.config = make_tm_config(url, settings, root_factory=operated_root)
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
        for job in jobs:
            state = get(self.app, f"/job_state/{job.uuid}", "alice").json["job"]
            assert (state["status"], state["attempt"]) == ("error", 1)
            assert state["finished_at"] is not None
            assert self.client.ttl(key_of(self.store, job.uuid)) <= 24 * 3600

    def read(self) -> dict[str, Any]:
        """Return the answers to all requests for lists and counts."""
        answers = {path: get(self.app, f"/job_state{path}", OPERATOR) for path in PATHS}
        assert {each.status_code for each in answers.values()} == {200}
        return {path: answer.json for path, answer in answers.items()}

    def live(self) -> None:
        """Send jobs, run them, and cancel, delete and clear some: all that an
        application does.
        """
        sent = [self.send(), self.send(unique="nightly")]
        message = self.actor.send_with_options(args=(1,), job_owner="alice")
        plain = self.store.load(message.message_id)
        assert plain is not None
        self.read()
        for job in sent:
            state = get(self.app, f"/job_state/{job.uuid}", "alice").json["job"]
            assert state["status"] == "queued"
        self.work(*sent, plain)
        counts = self.read()["/counts"]["counts"]
        assert all(counts[name] >= 0 for name in ("error", "queued"))
        waiting = self.send()
        path = f"/job_state/{waiting.uuid}"
        assert act(self.app, f"{path}/cancel", "alice").status_int == 202
        state = get(self.app, path, "alice").json["job"]
        assert state["status"] == "cancelled"
        path = f"/job_state/{sent[0].uuid}"
        assert act(self.app, path, method="DELETE").status_int == 204
        cleared = act(self.app, "/job_state/clear", all=1, everything=1)
        assert cleared.status_int == 200

    def keys(self) -> dict[str, str]:
        """Return the keys of the store that no job has alone, with their types."""
        found: Any = self.client.keys(f"*{self.namespace}:*")
        kinds: dict[str, Any] = {key.decode(): self.client.type(key) for key in found}
        return {k: v.decode() for k, v in kinds.items() if not CHANGING.search(k)}


@pytest.fixture
def desk(redis_url: str, client: redis.Redis, no_broker: None) -> Iterator[Desk]:
    desk = Desk(redis_url, client)
    yield desk
    desk.broker.close()


def noted(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return what was logged of keys into which another program has written."""
    said = messages(caplog, "pyramid_jobstate")
    return [line for line in said if "Another program" in line]


@pytest.mark.parametrize("share", range(5))
def test_key_of_another_type_is_empty(
    desk: Desk, caplog: pytest.LogCaptureFixture, share: int
) -> None:
    """Whatever key of the store another program has taken, jobs are sent, run, end, are
    cancelled and deleted all the same, and the key stays as it is. It is logged once.
    """
    desk.work(desk.send())
    waiting = desk.send()
    keys = desk.keys()
    assert waiting.cancel()
    keys |= desk.keys()
    assert len(keys) > 8
    for key in sorted(keys)[share::5]:
        desk.client.flushall()
        caplog.clear()
        if keys[key] == "string":
            desk.client.rpush(key, "x")
        else:
            desk.client.set(key, "x")
        desk.live()
        if keys[key] != "string":
            assert desk.client.get(key) == b"x", key
        # Scripts name the first of their keys.
        said = noted(caplog)
        assert len({*said}) == len(said) <= 3, key


def test_score_that_is_none_of_ours_is_skipped(desk: Desk) -> None:
    """It fails no list, no count and no page, and the jobs beside it are shown."""
    for score in "inf", "-inf", 1e300, -1:
        desk.client.flushall()
        job = desk.send()
        desk.work(job)
        waits = desk.send()
        for key, kind in desk.keys().items():
            if kind == "zset":
                scores = dict.fromkeys((job.uuid, waits.uuid, "stray"), score)
                desk.client.zadd(key, scores)
        desk.read()
        desk.work(waits)
        answers = desk.read()
        for path in "?owner=alice", "?all=1":
            found = [item["job"]["uuid"] for item in answers[path]["items"]]
            assert waits.uuid in found, score


def keys_of(desk: Desk, job: JobState) -> list[str]:
    """Return the keys that a job has beside its record."""
    found: Any = desk.client.keys(f"*{job.uuid}*")
    names = [key.decode() for key in found]
    return [name for name in names if name != key_of(desk.store, job.uuid)]


def test_failures_of_another_type(desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
    """The job ends, and is inspected without them. It cannot run again."""
    other = desk.send()
    desk.work(other)
    job = desk.send()
    keys = [name.replace(other.uuid, job.uuid) for name in keys_of(desk, other)]
    assert keys
    for key in keys:
        desk.client.set(key, "x")
    desk.work(job)
    found = get(desk.app, f"/job_state/{job.uuid}/inspect", OPERATOR)
    assert found.status_code == 200
    assert found.json["tries"] == []
    assert found.json["error"]["message"] == "after 1 miles"
    assert found.json["repeatable"] is False
    assert any(key in line for key, line in itertools.product(keys, noted(caplog)))
    assert act(desk.app, f"/job_state/{job.uuid}/rerun").status_int == 410


@pytest.mark.timeout(60)
def test_claim_of_a_unique_job_that_is_none(desk: Desk) -> None:
    """A unique job is sent as if it were the first, and runs; neither a send nor a
    worker asks for its claim again and again.
    """
    desk.work(desk.send())
    before = set(desk.client.keys())
    first = desk.send(unique="nightly")
    desk.work(first)
    added = set(desk.client.keys()) - before
    claims = [key for key in added if first.uuid.encode() not in key]
    assert claims
    for claim in claims:
        fields: Any = desk.client.hgetall(claim)
        desk.client.delete(claim)
        desk.client.set(claim, "x")
        second = desk.send(unique="nightly")
        assert second.uuid != first.uuid
        desk.work(second)
        assert act(desk.app, f"/job_state/{second.uuid}/rerun").status_int == 202
        desk.client.delete(claim)
        desk.client.hset(claim, mapping=dict.fromkeys(fields, b"\xff"))
        third = desk.send(unique="nightly")
        desk.work(third)


def test_record_of_another_type(desk: Desk) -> None:
    """A job whose record cannot be written is sent, and runs without a state."""
    message = desk.actor.message(1)
    desk.client.set(key_of(desk.store, message.message_id), "x")
    request = make_request(desk.config, "alice")
    with request.tm:
        request.job_states.send_message(message)
    desk.work(desk.send())
    assert get(desk.app, f"/job_state/{message.message_id}", "alice").status_code == 404
