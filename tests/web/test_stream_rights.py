"""Who gets which states by a stream: those who get them by a poll."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from pyramid.authorization import Allow, Deny, Everyone
from pyramid.request import Request
from pyramid.response import Response
from pyramid.session import SignedCookieSessionFactory

from pyramid_jobstate import JobState, JobStore
from tests.asgi import Exchange, Server, pushing
from tests.jobs import RunMarathon
from tests.support import UUID, load_job, wait_for
from tests.web.streaming import HINT, PublicRun, batch, one, put
from tests.webapp import Policy, get, make_app, make_config


class OpenJob(JobState):
    """A kind that everybody may see, and only Carol may cancel."""

    def __acl__(self) -> list[tuple[str, Any, Any]]:
        return [(Allow, "carol", "cancel_job"), (Allow, Everyone, "view_job")]


class ClosedJob(JobState):
    """A kind that its owner may not see."""

    def __acl__(self) -> list[tuple[str, Any, Any]]:
        return [(Deny, Everyone, ("view_job", "cancel_job"))]


class RaisingJob(JobState):
    """A kind that cannot decide."""

    def __acl__(self) -> list[tuple[str, Any, Any]]:
        raise LookupError


class TiredJob(JobState):
    """A kind that shows nothing."""

    @property
    def title(self) -> str:
        raise LookupError


class OwnJsonJob(JobState):
    """A kind with JSON of its own."""

    def __json__(self, request: Any) -> dict[str, Any]:
        return {"mine": self.uuid}


KINDS = [RunMarathon, OpenJob, ClosedJob, RaisingJob, TiredJob, OwnJsonJob]
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
        jobs = [
            put(
                store,
                chance.choice(["working", "success"]),
                chance.choice(KINDS),
                chance.choice(OWNERS),
                message=f"secret of {number}",
            )
            for number in range(chance.randint(1, 4))
        ]
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
    """Nobody gets a byte of another's job, whatever they ask for together with it, and
    nobody learns from a stream whether a job that they may not see exists.
    """
    for user in "bob", None, "1":
        theirs = put(store, message="SECRET", metrics={"secret": "SECRET"})
        own = put(store, "queued", owner=user)
        alone = pushed.ask(one(theirs), user)
        assert (alone.status, b"SECRET" in alone.body) == (403, False)
        if user is None:
            # Nobody owns it.
            continue
        stream = pushed.open(batch(own, theirs), user)
        stream.at(1)
        load_job(store, theirs).cancel()
        load_job(store, own).cancel()
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
    """Streams end at 80 to 100 % of jobstate.stream_max_age, 5 minutes, and not all at
    once.
    """
    path = one(put(store, "queued", PublicRun))
    settings = {"jobstate.max_streams": "21"}
    with pushing(make_config(redis_url, settings=settings)) as server:
        streams = [server.open(path, None) for _ in range(20)]
        for stream in streams:
            stream.at(0)
        server.pass_time(235)
        server.pass_time(1)
        assert len(server.streams) == 20
        server.pass_time(34)
        server.pass_time(1)
        wait_for(lambda: len(server.streams) < 20)
        assert server.streams
        server.pass_time(30)
        for stream in streams:
            stream.wait()


class Revocable(Policy):
    """A policy that can be told to allow nothing more."""

    may = True

    def permits(self, request: Request, context: Any, permission: str) -> Any:
        return self.may and super().permits(request, context, permission)


def test_revoked_rights_end_with_the_stream(redis_url: str, store: JobStore) -> None:
    """A stream ends at its age, and who comes again is asked for their rights anew: so
    is who has logged out.
    """
    policy = Revocable()
    job = put(store, "queued", OpenJob)
    config = make_config(
        redis_url,
        settings={"jobstate.stream_max_age": "0.5s"},
        security_policy=policy,
    )
    with pushing(config) as server:
        stream = server.open(one(job), "carol")
        assert stream.at(0).state["job"]["cancellable"] is True
        policy.may = False
        stream.wait(5)
        last = stream.events[-1].id
        assert {event.name for event in stream.events} == {"message"}
        again = server.ask(one(job), "carol", last_event_id=last)
        assert again.status == 403
        policy.may = True
        assert server.open(one(job), "carol", last_event_id=last).opening
        own = server.open(one(put(store)))
        last = own.at(0).id
        path = one(own.at(0).state["job"]["uuid"])
        assert server.ask(path, None, last_event_id=last).status == 403


def test_without_a_policy(redis_url: str, store: JobStore) -> None:
    """Without a policy the ACLs decide, as for a poll."""
    with pushing(make_config(redis_url, security_policy=None)) as server:
        assert server.ask(one(put(store))).status == 403
        state = server.open(one(put(store, kind=OpenJob))).at(0).state
        assert state["job"]["cancellable"] is False


def test_owner_of_a_session(redis_url: str, store: JobStore) -> None:
    """With the setting jobstate.owner = session, a visitor streams their own jobs."""

    def enter(request: Request) -> Response:
        request.session["jobstate.visitor"] = "v1"
        return Response("Welcome")

    config = make_config(
        redis_url, security_policy=None, settings={"jobstate.owner": "session"}
    )
    config.set_session_factory(SignedCookieSessionFactory("secret"))
    config.add_route("enter", "/enter")
    config.add_view(enter, route_name="enter")
    path = one(put(store, owner="v1"))
    with pushing(config) as server:
        cookie = server.poll("/enter").headers["set-cookie"].partition(";")[0]
        stream = server.open(path, None, cookie=cookie)
        assert stream.at(0).state["job"]["cancellable"] is True
        assert "set-cookie" not in stream.headers
        assert server.ask(path, None).status == 403


def raising_owner(request: Any) -> str:
    """A function for the setting jobstate.owner."""
    raise LookupError("no owner")


def everything(request: Any, context: Any, permission: str) -> bool:
    """A function for the setting jobstate.permits."""
    return True


def test_owner_that_cannot_be_found(redis_url: str, store: JobStore) -> None:
    """A function that raises for the owner has polls stay polls."""
    settings: Any = {
        "jobstate.owner": raising_owner,
        "jobstate.permits": everything,
    }
    path = one(put(store))
    expected = get(make_app(make_config(redis_url, settings=settings)), path, "alice")
    assert expected.status_code == 200
    with pushing(make_config(redis_url, settings=settings)) as server:
        for answer in server.poll(path), server.ask(path):
            assert (answer.status, answer.is_stream) == (200, False)
            assert HINT not in answer.headers
        polled = server.poll(path).body
        assert polled.replace(b"example.com", b"localhost") == expected.body


def test_owner_that_is_none(redis_url: str, store: JobStore) -> None:
    """A request streams whose owner can have no jobs, and counts for no owner."""
    owners = {"a": ["alice"], "b": float("nan"), "c": None}
    settings: Any = {
        "jobstate.owner": lambda request: owners.get(request.headers.get("X-User")),
        "jobstate.permits": everything,
        "jobstate.max_streams": "25",
    }
    path = one(put(store, kind=PublicRun))
    with pushing(make_config(redis_url, settings=settings)) as server:
        streams = [server.open(path, user) for user in "a" + "b" * 21 + "c"]
        assert all(stream.is_stream for stream in streams)
