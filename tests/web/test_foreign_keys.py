"""Keys of the store into which another program has written are skipped: they fail no
request, no send and no end.
"""

import logging
from collections.abc import Iterator
from typing import Any

import dramatiq
import pytest
import redis

from pyramid_jobstate import JobState, JobStateMiddleware
from pyramid_jobstate.store import newest_uuids, trouble
from tests.jobs import RunMarathon, messages, wait_until, working
from tests.web.desks import Desk, make_desk
from tests.web.operating import OPERATOR, act
from tests.webapp import get, make_broker

INDEXES = [
    "jobstate:active:all",
    "jobstate:ended:all",
    'jobstate:active:owner:"alice"',
    'jobstate:ended:owner:"alice"',
    "jobstate:active:kind:RunMarathon",
    "{jobstate:active:all}:sending",
    "{jobstate:active:all}:working",
    "{jobstate:active:all}:cancelling",
    "{jobstate:ended:all}:error",
    "jobstate:kinds",
    "jobstate:cancels",
]

#: Requests for lists and counts.
PATHS = [
    "?all=1",
    "?owner=alice",
    *(
        f"?all=1&status={status}"
        for status in ("queued", "success", "error", "stalled")
    ),
    "?owner=alice&status=error",
    "/counts",
    "/counts?kind=RunMarathon",
]


class ForeignDesk(Desk):
    """An application whose jobs fail."""

    def send(self, **options: Any) -> JobState:
        """Send a job in a transaction."""
        request = self.begin()
        job = request.job_states.send_with_options(self.actor, (1,), **options)
        request.tm.commit()
        assert isinstance(job, JobState)
        return job

    def work(self, *jobs: JobState) -> None:
        """Have a worker run jobs, all of which fail."""
        with working(self.actor.broker):
            for job in jobs:
                message = self.actor.message(1).copy(message_id=job.uuid)
                wait_until(self.actor.broker, message, "error")
        # Their ends are written.
        for job in jobs:
            state = get(self.app, f"/job_state/{job.uuid}", "alice").json["job"]
            assert (state["status"], state["attempt"]) == ("error", 1)
            assert state["finished_at"] is not None
            assert self.client.ttl(f"jobstate:{job.uuid}") <= 24 * 3600

    def read(self) -> dict[str, Any]:
        """Return the answers to all requests for lists and counts."""
        answers = {path: get(self.app, f"/job_state{path}", OPERATOR) for path in PATHS}
        assert {each.status_code for each in answers.values()} == {200}
        assert isinstance(newest_uuids(self.store, 10), list)
        self.store.cancels(0)
        return {path: answer.json for path, answer in answers.items()}


@pytest.fixture
def desk(
    redis_url: str, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> Iterator[ForeignDesk]:
    monkeypatch.setattr(trouble, "_noted", set())
    broker = make_broker(redis_url, JobStateMiddleware(url=redis_url))
    monkeypatch.setattr(dramatiq.broker, "global_broker", broker)
    desk = make_desk(ForeignDesk, redis_url, client, broker)

    @dramatiq.actor(broker=broker, job_state=RunMarathon, max_retries=0)
    def stumble(miles: int) -> None:
        raise ValueError(f"after {miles} miles")

    desk.actor = stumble
    yield desk
    broker.close()


def noted(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return what was logged of keys into which another program has written."""
    said = messages(caplog, "pyramid_jobstate")
    return [line for line in said if "Another program" in line]


@pytest.mark.parametrize("key", INDEXES)
def test_index_of_another_type_is_empty(
    desk: ForeignDesk, caplog: pytest.LogCaptureFixture, key: str
) -> None:
    """Jobs are sent, run, end, are cancelled and deleted all the same. The key is
    logged once.
    """
    caplog.set_level(logging.WARNING)
    desk.client.set(key, "x")
    sent = [desk.send(), desk.send(unique="nightly")]
    message = desk.actor.send_with_options(args=(1,), job_owner="alice")
    plain = desk.store.load(message.message_id)
    assert plain is not None
    answers = desk.read()
    for job in sent:
        state = get(desk.app, f"/job_state/{job.uuid}", "alice").json["job"]
        assert state["status"] == "queued"
    if "active" not in key:
        assert len(answers["?all=1&status=queued"]["items"]) == 3
    desk.work(*sent, plain)
    answers = desk.read()
    assert all(answers["/counts"]["counts"][name] >= 0 for name in ("error", "queued"))
    waiting = desk.send()
    assert act(desk.app, f"/job_state/{waiting.uuid}/cancel", "alice").status_int == 202
    state = get(desk.app, f"/job_state/{waiting.uuid}", "alice").json["job"]
    assert state["status"] == "cancelled"
    assert (
        act(desk.app, f"/job_state/{sent[0].uuid}", method="DELETE").status_int == 204
    )
    cleared = act(desk.app, "/job_state/clear", all=1, everything=1)
    assert cleared.status_int == 200
    # Scripts name the first of their keys.
    said = noted(caplog)
    assert any(f"the key {key} of" in line for line in said)
    assert len({*said}) == len(said) <= 3
    assert desk.client.get(key) == b"x"


@pytest.mark.parametrize("score", ["inf", "-inf", 1e300, -1])
def test_score_that_is_none_of_ours_is_skipped(desk: ForeignDesk, score: Any) -> None:
    """It fails no list, no count and no page, and the jobs beside it are shown."""
    job = desk.send()
    desk.work(job)
    waits = desk.send()
    for key in INDEXES:
        desk.client.zadd(key, {job.uuid: score, waits.uuid: score, "stray": score})
    desk.read()
    desk.work(waits)
    answers = desk.read()
    for path in "?owner=alice", "?all=1":
        found = [item["job"]["uuid"] for item in answers[path]["items"]]
        assert waits.uuid in found


def test_failures_of_another_type(
    desk: ForeignDesk, caplog: pytest.LogCaptureFixture
) -> None:
    """The job ends, and is inspected without them. It cannot run again."""
    job = desk.send()
    key = f"{{jobstate:{job.uuid}}}:failure"
    desk.client.set(key, "x")
    desk.work(job)
    found = get(desk.app, f"/job_state/{job.uuid}/inspect", OPERATOR)
    assert found.status_code == 200
    assert found.json["tries"] == []
    assert found.json["error"]["message"] == "after 1 miles"
    assert found.json["repeatable"] is False
    assert key in noted(caplog)[0]
    assert act(desk.app, f"/job_state/{job.uuid}/rerun").status_int == 410


def test_claim_of_another_type(desk: ForeignDesk) -> None:
    """A unique job is sent as if it were the first, and runs."""
    first = desk.send(unique="nightly")
    desk.work(first)
    (claim,) = desk.client.keys("jobstate:unique:*")
    desk.client.delete(claim)
    desk.client.set(claim, "x")
    second = desk.send(unique="nightly")
    assert second.uuid != first.uuid
    desk.work(second)
    assert act(desk.app, f"/job_state/{second.uuid}/rerun").status_int == 202


@pytest.mark.timeout(20)
def test_version_of_a_claim_that_is_none(desk: ForeignDesk) -> None:
    """Neither a send nor a worker asks for it again and again."""
    first = desk.send(unique="nightly")
    (claim,) = desk.client.keys("jobstate:unique:*")
    foreign: Any = {"job": "x", "version": b"\xff"}
    desk.client.hset(claim, mapping=foreign)
    second = desk.send(unique="nightly")
    assert second.uuid != first.uuid
    desk.client.hset(claim, mapping=foreign)
    desk.work(first)
    desk.work(second)


@pytest.mark.parametrize("command", [("LPUSH", "x"), ("SET", "3.7")])
def test_place_of_the_sweep_that_is_none(
    desk: ForeignDesk, command: tuple[str, str]
) -> None:
    """Lists of one status are right all the same."""
    desk.client.execute_command(command[0], "jobstate:swept", command[1])
    job = desk.send()
    answers = desk.read()
    assert [i["job"]["uuid"] for i in answers["?all=1&status=queued"]["items"]] == [
        job.uuid
    ]


def test_record_of_another_type(desk: ForeignDesk) -> None:
    """A job whose record cannot be written is sent, and runs without a state."""
    message = desk.actor.message(1)
    desk.client.set(f"jobstate:{message.message_id}", "x")
    request = desk.begin()
    request.job_states.send_message(message)
    request.tm.commit()
    other = desk.send()
    desk.work(other)
    assert get(desk.app, f"/job_state/{message.message_id}", "alice").status_code == 404
