"""Who gets which states by a stream: those who get them by a poll."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

import pytest
import redis
from pyramid.authorization import Allow, Deny, Everyone
from pyramid.request import Request
from pyramid.response import Response
from pyramid.session import SignedCookieSessionFactory

from pyramid_jobstate import JobState
from pyramid_jobstate.web.push.stream import Stream
from tests.asgi import Exchange, Server, pushing
from tests.support import UUID
from tests.web.test_streams import HINT, batch
from tests.webapp import Policy, get, make_app, make_config, put_job


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


KINDS = ["RunMarathon", "OpenJob", "ClosedJob", "RaisingJob", "TiredJob", "OwnJsonJob"]
USERS = ["alice", "bob", "carol", "admin", "1", None]
OWNERS = ['"alice"', '"bob"', '"1"', "1", "1.0", "null"]


def shown_by(stream: Exchange) -> dict[str, Any]:
    """Return the first states of a stream, with None for what has gone."""
    found: dict[str, Any] = {}
    for event in stream.events:
        if event.name == "gone":
            found[event.data] = None
        elif event.name == "message":
            found[event.state["job"]["uuid"]] = event.state
    return found


def compare(server: Server, client: redis.Redis, count: int) -> None:
    """Compare streams with polls of random jobs, for random users."""
    chance = random.Random(count)
    for _ in range(count):
        jobs = {
            put_job(
                client,
                kind=chance.choice(KINDS),
                owner=chance.choice(OWNERS),
                status=chance.choice(["working", "success"]),
                message=f"secret of {number}",
            )
            for number in range(chance.randint(1, 4))
        }
        uuids = chance.sample([*jobs, UUID, "x"], chance.randint(1, len(jobs) + 2))
        user = chance.choice(USERS)
        polled = json.loads(server.poll(batch(*uuids), user).body)["jobs"]
        stream = server.open(batch(*uuids), user)
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


def test_random_streams_show_what_polls_show(
    redis_url: str, client: redis.Redis
) -> None:
    """A stream shows the same states as a poll to whoever asks for them."""
    with pushing(make_config(redis_url)) as server:
        compare(server, client, 150)


@pytest.mark.long
@pytest.mark.timeout(600)
def test_many_random_streams_show_what_polls_show(
    redis_url: str, client: redis.Redis
) -> None:
    """So do thousands."""
    with pushing(make_config(redis_url)) as server:
        compare(server, client, 2000)


@pytest.mark.parametrize("user", ["bob", None, "1"])
def test_others_get_no_byte(
    redis_url: str, client: redis.Redis, user: str | None
) -> None:
    """Nobody gets a byte of another's job, whatever they ask for together with it."""
    theirs = put_job(client, message="SECRET", **{"m:secret": '"SECRET"'})
    own = put_job(client, owner=json.dumps(user))
    with pushing(make_config(redis_url)) as server:
        alone = server.ask(f"/job_state/{theirs}", user)
        assert (alone.status, b"SECRET" in alone.body) == (403, False)
        stream = server.open(batch(own, theirs), user)
        stream.at(1)
        client.hset(f"jobstate:{theirs}", "attempt", 2)
        client.hset(f"jobstate:{own}", "status", "success")
        stream.wait()
        assert b"SECRET" not in stream.body
        assert shown_by(stream)[theirs] is None


def config_of(redis_url: str, **options: Any) -> Any:
    settings = {"jobstate.stream_max_age": "0.5s"} | options.pop("settings", {})
    return make_config(redis_url, settings=settings, **options)


def test_age(redis_url: str) -> None:
    """Streams end at 80 to 100 % of their age, not all at once."""
    streams = [Stream({}, {}, b"", 100) for _ in range(500)]
    shares = [(stream.ends_at - stream.given_at) / 100 for stream in streams]
    assert 0.8 <= min(shares) < 0.82
    assert 0.98 < max(shares) <= 1


def revoked_permits(request: Any, context: Any, permission: str) -> Any:
    """A function for the setting jobstate.permits."""
    return request.registry.settings["may"]


@pytest.mark.parametrize("how", ["policy", "permits", "acl"])
def test_revoked_rights(
    redis_url: str,
    client: redis.Redis,
    how: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A stream ends at its age, and who comes again is asked for their rights anew."""
    settings: Any = {"may": True}
    if how == "permits":
        settings["jobstate.permits"] = revoked_permits

    class Revocable(Policy):
        may = True

        def permits(self, request: Request, context: Any, permission: str) -> Any:
            return self.may and super().permits(request, context, permission)

    policy = Revocable()
    uuid = put_job(client, kind="OpenJob")
    config = config_of(redis_url, settings=settings, security_policy=policy)
    with pushing(config) as server:
        stream = server.open(f"/job_state/{uuid}", "carol")
        assert stream.at(0).state["job"]["cancellable"] is True
        policy.may = how != "policy"
        config.registry.settings["may"] = how != "permits"
        if how == "acl":
            monkeypatch.setattr(OpenJob, "__acl__", ClosedJob.__acl__)
        stream.wait(5)
        last = stream.events[-1].id
        assert {event.name for event in stream.events} == {"message"}
        again = server.ask(f"/job_state/{uuid}", "carol", last_event_id=last)
        assert again.status == 403


def test_logout(redis_url: str, job: str) -> None:
    """So is who has logged out."""
    with pushing(config_of(redis_url)) as server:
        stream = server.open(f"/job_state/{job}")
        last = stream.at(0).id
        stream.wait(5)
        assert server.ask(f"/job_state/{job}", None, last_event_id=last).status == 403
        again = server.open(f"/job_state/{job}", last_event_id=last)
        assert again.opening


def test_stream_that_is_current_ends_for_good(
    redis_url: str, client: redis.Redis
) -> None:
    """Revoked rights show before a client learns that all jobs are over."""
    uuid = put_job(client, status="success")
    with pushing(make_config(redis_url)) as server:
        last = server.ask(f"/job_state/{uuid}").at(0).id
        assert server.ask(f"/job_state/{uuid}", "bob", last_event_id=last).status == 403


def test_without_a_policy(redis_url: str, client: redis.Redis, job: str) -> None:
    """Without a policy the ACLs decide, as for a poll."""
    uuid = put_job(client, kind="OpenJob")
    with pushing(make_config(redis_url, security_policy=None)) as server:
        assert server.ask(f"/job_state/{job}").status == 403
        state = server.open(f"/job_state/{uuid}").at(0).state
        assert state["job"]["cancellable"] is False


def test_owner_of_a_session(redis_url: str, client: redis.Redis) -> None:
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
    uuid = put_job(client, owner='"v1"')
    with pushing(config) as server:
        cookie = server.poll("/enter").headers["set-cookie"].partition(";")[0]
        stream = server.open(f"/job_state/{uuid}", None, cookie=cookie)
        assert stream.at(0).state["job"]["cancellable"] is True
        assert "set-cookie" not in stream.headers
        assert server.ask(f"/job_state/{uuid}", None).status == 403


def raising_owner(request: Any) -> str:
    """A function for the setting jobstate.owner."""
    raise LookupError("no owner")


def everything(request: Any, context: Any, permission: str) -> bool:
    """A function for the setting jobstate.permits."""
    return True


def test_owner_that_cannot_be_found(redis_url: str, job: str) -> None:
    """A function that raises for the owner has polls stay polls."""
    settings: Any = {
        "jobstate.owner": raising_owner,
        "jobstate.permits": everything,
    }
    path = f"/job_state/{job}"
    app = make_app(make_config(redis_url, settings=settings))
    expected = get(app, path, "alice")
    assert expected.status_code == 200
    with pushing(make_config(redis_url, settings=settings)) as server:
        for answer in server.poll(path), server.ask(path):
            assert (answer.status, answer.is_stream) == (200, False)
            assert HINT not in answer.headers
        assert (
            server.poll(path).body.replace(b"example.com", b"localhost")
            == expected.body
        )


@pytest.mark.parametrize(
    "owner",
    [lambda request: ["alice"], lambda request: float("nan"), lambda request: None],
)
def test_owner_that_is_none(
    redis_url: str, job: str, owner: Callable[[Any], Any]
) -> None:
    """A request streams whose owner can have no jobs."""
    settings: Any = {"jobstate.owner": owner, "jobstate.permits": everything}
    with pushing(make_config(redis_url, settings=settings)) as server:
        streams = [server.open(f"/job_state/{job}") for _ in range(22)]
        assert all(stream.is_stream for stream in streams)
