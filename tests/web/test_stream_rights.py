"""Who gets which states by a stream: those who get them by a poll."""

import json
import random
from typing import Any

import pytest
from pyramid.authorization import Allow, Deny, Everyone
from pyramid.request import Request

from pyramid_jobstate import JobState, JobStore
from tests.asgi import Exchange, Server, pushing
from tests.jobs import RunMarathon
from tests.support import UUID, load_job, wait_for
from tests.web.streaming import OwnJson, PublicRun, batch, one, put
from tests.webapp import Policy, make_config


class OpenJob(JobState):
    def __acl__(self) -> list[tuple[str, Any, Any]]:
        return [(Allow, "carol", "cancel_job"), (Allow, Everyone, "view_job")]


class ClosedJob(JobState):
    def __acl__(self) -> list[tuple[str, Any, Any]]:
        return [(Deny, Everyone, ("view_job", "cancel_job"))]


KINDS = [RunMarathon, OpenJob, ClosedJob, OwnJson]
USERS = ["alice", "bob", "carol", "admin", "1", None]
OWNERS = ["alice", "bob", "1", 1, 1.0, None]


def shown_by(stream: Exchange) -> dict[str, Any]:
    """Return the first states of a stream, with None for what has gone."""
    found: dict[str, Any] = {}
    for event in stream.events:
        if event.name == "gone":
            found[event.data] = None
        elif event.name == "message":
            found[event.state["job"]["uuid"]] = event.state
    return found


@pytest.mark.parametrize(
    "count", [25, pytest.param(1000, marks=pytest.mark.long)], ids=str
)
@pytest.mark.timeout(600)
def test_streams_show_what_polls_show(
    pushed: Server, store: JobStore, count: int
) -> None:
    """A stream shows the same states as a poll to whoever asks for them."""
    chance = random.Random(count)
    for _ in range(count):
        jobs = []
        for number in range(chance.randint(1, 4)):
            status, kind = chance.choice(["working", "success"]), chance.choice(KINDS)
            owner, message = chance.choice(OWNERS), f"secret of {number}"
            jobs.append(put(store, status, kind, owner, message=message))
        uuids = chance.sample([*jobs, UUID, "x"], chance.randint(1, len(jobs) + 2))
        user = chance.choice(USERS)
        polled = json.loads(pushed.poll(batch(*uuids), user).body)["jobs"]
        stream = pushed.open(batch(*uuids), user)
        if not stream.is_stream:
            # Nothing could be streamed of a single job.
            assert json.loads(stream.wait().body)["jobs"] == polled
            assert len(uuids) == 1
            continue
        stream.at(len(uuids) - 1)
        shown = shown_by(stream)
        assert sorted(shown) == sorted(uuids)
        for uuid, state in shown.items():
            if polled[uuid] is not None and "mine" not in polled[uuid]:
                assert state == polled[uuid]
            else:
                assert state is None
        stream.go()


def test_others_get_no_byte(pushed: Server, store: JobStore) -> None:
    """Nobody gets a byte of another's job, or learns whether there is one."""
    theirs = put(store, message="SECRET", metrics={"secret": "SECRET"})
    own = put(store, "queued", owner="bob")
    for user in "bob", None:
        alone = pushed.ask(one(theirs), user)
        assert (alone.status, b"SECRET" in alone.body) == (403, False)
    stream = pushed.watch(batch(own, theirs), "bob", count=2)
    for uuid in theirs, own:
        load_job(store, uuid).cancel()
    stream.wait()
    assert b"SECRET" not in stream.body
    assert shown_by(stream)[theirs] is None
    assert len(stream.events) == 3
    bodies = []
    for hidden in put(store, owner="carol"), UUID:
        stream = pushed.ask(batch(hidden, "x"))
        text = stream.body.decode().replace(hidden, "HIDDEN")
        bodies.append([stream.header_list, text.partition("\n\n")[2]])
    assert bodies[0] == bodies[1]


def test_streams_end_at_their_age(redis_url: str, store: JobStore) -> None:
    """Streams end at 80 to 100 % of stream_max_age, 5 minutes, and not all at once."""
    path = one(put(store, "queued", PublicRun))
    with pushing(make_config(redis_url), rooms=21) as server:
        streams = [server.watch(path, None) for _ in range(20)]
        server.pass_time(235)
        server.pass_time(1)
        assert not any(stream.is_done for stream in streams)
        server.pass_time(34)
        server.pass_time(1)
        wait_for(lambda: any(stream.is_done for stream in streams))
        assert not all(stream.is_done for stream in streams)
        server.pass_time(30)
        for stream in streams:
            stream.wait()


class Revocable(Policy):
    may = True

    def permits(self, request: Request, context: Any, permission: str) -> Any:
        return self.may and super().permits(request, context, permission)


def test_revoked_rights_end_with_the_stream(redis_url: str, store: JobStore) -> None:
    """Who comes again to a stream that has ended is asked for their rights anew."""
    policy, job = Revocable(), put(store, "queued", OpenJob)
    settings = {"jobstate.stream_max_age": "0.5s"}
    config = make_config(redis_url, settings=settings, security_policy=policy)
    with pushing(config) as server:
        stream = server.open(one(job), "carol")
        assert stream.at(0).state["job"]["cancellable"] is True
        policy.may = False
        stream.wait(5)
        last = stream.events[-1].id
        assert {event.name for event in stream.events} == {"message"}
        assert server.ask(one(job), "carol", last_event_id=last).status == 403
        policy.may = True
        assert server.open(one(job), "carol", last_event_id=last).opening
        own = server.open(one(put(store)))
        last = own.at(0).id
        path = one(own.at(0).state["job"]["uuid"])
        assert server.ask(path, None, last_event_id=last).status == 403
