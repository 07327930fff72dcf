"""Permissions with any policy, with `jobstate.permits`, and without either."""

import functools
import json
import logging
import traceback
from collections.abc import Mapping
from typing import Any

import pytest
import redis
from pyramid import testing
from pyramid.authorization import ACLHelper, Allow, Authenticated, Everyone
from pyramid.exceptions import ConfigurationError
from pyramid.request import Request, apply_request_extensions
from webtest import TestApp

from pyramid_jobstate import JobState, JobStore
from pyramid_jobstate.web.permits import set_owner
from tests.jobs import messages
from tests.webapp import (
    ADMIN,
    NOWHERE,
    Policy,
    Root,
    ask,
    get,
    made_config,
    make_app,
    make_broker,
    make_config,
    make_request,
    mounted_root,
    put_job,
    take_steps,
)

#: Userids, as JSON so that they fit in a header.
USERIDS = ["null", '""', "0", "false", "1", "true", '"1"', "1.0", '"alice"', '"bob"']


class TutorialPolicy:
    """The policy of Pyramid's own tutorials: principals are not userids. It trusts the
    header X-User, which is JSON.
    """

    def authenticated_userid(self, request: Request) -> Any:
        return json.loads(request.headers.get("X-User", "null"))

    identity = authenticated_userid

    def permits(self, request: Request, context: Any, permission: str) -> Any:
        principals = [Everyone]
        userid = self.authenticated_userid(request)
        if userid is not None:
            principals += [Authenticated, f"u:{userid}"]
        return ACLHelper().permits(context, principals, permission)


class UseridPolicy(TutorialPolicy):
    """A policy whose principals contain the userid itself, whatever its type."""

    def permits(self, request: Request, context: Any, permission: str) -> Any:
        principals = [Everyone, self.authenticated_userid(request)]
        return ACLHelper().permits(context, principals, permission)


class SecondFactorPolicy(TutorialPolicy):
    """Knows the user, but withholds Authenticated until a second factor."""

    def permits(self, request: Request, context: Any, permission: str) -> Any:
        return ACLHelper().permits(context, [Everyone], permission)


class Stern(JobState):
    """A kind of job whose ACL does not call super()."""

    def __acl__(self) -> list[tuple[str, Any, Any]]:
        return []


class Public(JobState):
    """A kind of job that everyone may see."""

    def __acl__(self) -> list[tuple[str, Any, Any]]:
        return [*super().__acl__(), (Allow, Everyone, "view_job")]


def visitor(request: Request) -> str | None:
    """A jobstate.owner that identifies visitors by a cookie."""
    return request.cookies.get("visitor")


def broken_owner(request: Request) -> str:
    request.registry.asked.append(request)
    raise LookupError("no session")


def listing_owner(request: Request) -> list[str]:
    return ["alice"]


def app_of(policy: Any, redis_url: str, **settings: str) -> TestApp:
    config = make_config(
        redis_url,
        security_policy=policy,
        root_factory=mounted_root,
        settings={f"jobstate.{name}": value for name, value in settings.items()},
    )
    config.registry.asked = []
    return make_app(config)


def rights(
    app: TestApp, job: str, place: str = "/job_state", **headers: str
) -> tuple[bool, bool, bool, bool]:
    """Return whether a user sees a job alone, in a batch and in a list, and may cancel
    it.
    """
    path = f"{place}/{job}"
    batch = get(app, f"{place}?uuid={job}", **headers).json["jobs"]
    items = get(app, place, **headers).json["items"]
    post = ask(app, "POST", f"{path}/cancel", X_Requested_With="x", **headers)
    assert post.status_code in (202, 403, 409)
    return (
        get(app, path, **headers).status_code == 200,
        batch[job] is not None,
        job in [item["job"]["uuid"] for item in items],
        post.status_code != 403,
    )


ALL, NONE = (True,) * 4, (False,) * 4


# The owner.


@pytest.mark.parametrize("place", ["/job_state", "/jobs", "/site/jobs"])
def test_owner_needs_no_principal_of_its_own(
    redis_url: str, client: redis.Redis, place: str
) -> None:
    """With principals such as `u:alice`, senders see, list and cancel their jobs."""
    app = app_of(TutorialPolicy(), redis_url)
    job = put_job(client, owner='"alice"')
    client.zadd('jobstate:active:owner:"alice"', {job: 1e15})

    assert rights(app, job, place, X_User='"bob"') == NONE
    assert rights(app, job, place) == NONE
    assert rights(app, job, place, X_User='"alice"') == ALL


@pytest.mark.parametrize("policy", [TutorialPolicy(), UseridPolicy()])
@pytest.mark.parametrize("owner", ["1", '"1"', "1.0", "0", "0.0", '""', "true", "null"])
def test_owner_is_of_the_same_type(
    redis_url: str, client: redis.Redis, policy: Any, owner: str
) -> None:
    """Owners must match in type, too, though 1 == True == 1.0 in Python."""
    app = app_of(policy, redis_url)
    job = put_job(client, owner=owner)
    client.zadd(f"jobstate:active:owner:{owner}", {job: 1e15})

    let_in = [user for user in USERIDS if any(rights(app, job, X_User=user))]

    assert let_in == ([owner] if owner in ("1", '"1"', "1.0", "0", '""') else [])


def test_owner_who_may_is_told_so(redis_url: str, client: redis.Redis) -> None:
    """For its owner, the JSON of the job says that it is cancellable."""
    app = app_of(TutorialPolicy(), redis_url)
    job = put_job(client, owner="7")

    state = get(app, f"/job_state/{job}", X_User="7").json

    assert state["job"]["cancellable"] is True


def test_sender_owns_its_job_at_once(redis_url: str) -> None:
    """A request has the owner's rights on a job that it has just sent."""
    config = made_config(redis_url, security_policy=TutorialPolicy())
    run_marathon = make_broker(redis_url).get_actor("run_marathon")
    request = make_request(config, '"alice"')

    job_state = request.job_states.send_immediately(run_marathon, 26)

    assert request.has_permission("view_job", job_state)


def test_policy_still_decides(redis_url: str, client: redis.Redis) -> None:
    """The policy refuses an owner who is not Authenticated yet."""
    app = app_of(SecondFactorPolicy(), redis_url)
    job = put_job(client, owner='"alice"')
    client.zadd('jobstate:active:owner:"alice"', {job: 1e15})

    assert rights(app, job, X_User='"alice"') == NONE


def test_acl_without_super_has_no_owner(redis_url: str, client: redis.Redis) -> None:
    """An `__acl__` that does not call super() gives the owner no rights."""
    app = app_of(TutorialPolicy(), redis_url)
    job = put_job(client, owner='"alice"', kind="Stern")
    client.zadd('jobstate:active:owner:"alice"', {job: 1e15})

    assert rights(app, job, X_User='"alice"') == NONE


def test_job_from_the_store_knows_no_request(
    redis_url: str, client: redis.Redis
) -> None:
    """A job from store.load() has a single ACE, with the owner as principal."""
    app_of(TutorialPolicy(), redis_url)
    job_state = JobStore(redis_url).load(put_job(client, owner="7"))
    assert job_state is not None

    assert job_state.__acl__() == [(Allow, 7, ("view_job", "cancel_job"))]


def test_owners_ace_begins_the_acl(redis_url: str, client: redis.Redis) -> None:
    """In the owner's request, an ACE for Authenticated precedes that for the owner.
    Other requests see only the latter.
    """
    config = made_config(redis_url, security_policy=TutorialPolicy())
    job = put_job(client, owner='"alice"')
    both = ("view_job", "cancel_job")

    mine = make_request(config, '"alice"').job_states[job].__acl__()
    bobs = make_request(config, '"bob"').job_states[job].__acl__()

    assert mine == [(Allow, Authenticated, both), (Allow, "alice", both)]
    assert bobs == [(Allow, "alice", both)]


def test_owner_of_another_type_finds_no_ace(
    redis_url: str, client: redis.Redis
) -> None:
    """A request of True gets no ACE of the owner 1, which would let it in."""
    config = made_config(redis_url, security_policy=UseridPolicy())
    job = put_job(client, owner="1")

    assert make_request(config, "true").job_states[job].__acl__() == []


@pytest.mark.parametrize("owners", [["1", "1.0"], ["1.0", "1"]])
def test_equal_owners_of_two_types_are_told_apart(
    redis_url: str, client: redis.Redis, owners: list[str]
) -> None:
    """One request asks about both of them."""
    app = app_of(TutorialPolicy(), redis_url)
    jobs = {put_job(client, owner=owner): owner for owner in owners}
    query = "&".join(f"uuid={job}" for job in jobs)

    states = get(app, f"/job_state?{query}", "1").json["jobs"]

    assert {jobs[job] for job, state in states.items() if state} == {"1"}


def test_principals_follow_a_request_that_becomes_anothers(
    redis_url: str, client: redis.Redis
) -> None:
    """The request of a job learns its owner last."""
    config = made_config(redis_url, security_policy=TutorialPolicy())
    request = make_request(config, '"alice"')
    job_state = request.job_states[put_job(client, owner='"alice"')]
    both = ("view_job", "cancel_job")
    assert job_state.__acl__()[0] == (Allow, Authenticated, both)

    set_owner(request, "bob")

    assert job_state.__acl__() == [(Allow, "alice", both)]


def test_owner_may_be_a_subclass_of_str(redis_url: str, client: redis.Redis) -> None:
    """A userid of a str subclass, such as a StrEnum, equals the stored string."""

    class Name(str):
        __slots__ = ()

    class NamePolicy(TutorialPolicy):
        def authenticated_userid(self, request: Request) -> Any:
            return Name("alice")

    app = app_of(NamePolicy(), redis_url)

    assert get(app, f"/job_state/{put_job(client)}").status_code == 200


def test_owner_setting_lets_visitors_in(redis_url: str, client: redis.Redis) -> None:
    """With `jobstate.owner`, visitors without a login see their own jobs."""
    app = app_of(TutorialPolicy(), redis_url, owner=f"{__name__}.visitor")
    job = put_job(client, owner='"v1"')
    client.zadd('jobstate:active:owner:"v1"', {job: 1e15})

    assert rights(app, job, Cookie="visitor=v2") == NONE
    assert rights(app, job) == NONE
    assert rights(app, job, X_User='"v1"') == NONE
    assert rights(app, job, Cookie="visitor=v1") == ALL


def test_owner_that_raises_shows_nothing(redis_url: str, client: redis.Redis) -> None:
    """If `jobstate.owner` raises, batches and lists of all jobs show no job, and other
    requests fail. It is called once per request.
    """
    app = app_of(Policy(), redis_url, owner=f"{__name__}.broken_owner")
    jobs = [put_job(client) for _ in range(3)]
    client.zadd("jobstate:active:all", dict.fromkeys(jobs, 1e15))
    query = "&".join(f"uuid={job}" for job in jobs)

    batch = get(app, f"/job_state?{query}", "alice").json["jobs"]
    listed = get(app, "/job_state?all=1", ADMIN).json["items"]

    assert list(batch.values()) == [None] * 3
    assert listed == []
    assert len(app.app.registry.asked) == 2
    with pytest.raises(LookupError):
        get(app, f"/job_state/{jobs[0]}", "alice")
    with pytest.raises(LookupError):
        get(app, "/job_state", "alice")


def test_owner_that_is_not_a_scalar_owns_nothing(
    redis_url: str, client: redis.Redis
) -> None:
    """A `jobstate.owner` that returns a list makes nobody an owner."""
    app = app_of(TutorialPolicy(), redis_url, owner=f"{__name__}.listing_owner")
    job = put_job(client, owner='["alice"]')
    other = put_job(client, owner='"alice"')
    client.zadd('jobstate:active:owner:["alice"]', {job: 1e15, other: 1e15})

    assert rights(app, job, X_User='"alice"') == NONE
    assert rights(app, other, X_User='"alice"') == NONE


@pytest.mark.parametrize("name", [Everyone, Authenticated])
def test_visitor_named_like_a_system_principal_owns_nothing(
    redis_url: str, client: redis.Redis, name: str
) -> None:
    """The job of a visitor who has chosen such a name would be open to everybody."""
    app = app_of(TutorialPolicy(), redis_url, owner=f"{__name__}.visitor")
    job = put_job(client, owner=json.dumps("v1"))
    headers = {"Cookie": f"visitor={name}"}
    assert rights(app, job, **headers) == NONE
    assert get(app, "/job_state", **headers).json["items"] == []


def test_owner_is_asked_once_a_request(redis_url: str, client: redis.Redis) -> None:
    """The owner function is called once per request, however many jobs are shown."""
    asked = []

    def owner(request: Request) -> str:
        asked.append(request)
        return "alice"

    config = make_config(redis_url, settings={"jobstate.owner": owner})
    app = make_app(config)
    jobs = [put_job(client) for _ in range(5)]

    get(app, "/job_state?" + "&".join(f"uuid={job}" for job in jobs), "alice")

    assert len(asked) == 1


def test_owner_of_a_number_like_class_is_let_in(
    redis_url: str, client: redis.Redis
) -> None:
    """An owner of an int subclass, as from a database driver, is stored as an int and
    has the owner's rights.
    """

    class Int64(int):
        pass

    config = make_config(
        redis_url, settings={"jobstate.owner": lambda request: Int64(7)}
    )
    app = make_app(config)

    assert get(app, f"/job_state/{put_job(client, owner='7')}", "x").status_code == 200


@pytest.mark.parametrize("asks", ["permits", "policy", "json"])
def test_owners_ace_holds_in_no_other_request(
    redis_url: str, client: redis.Redis, asks: str
) -> None:
    """A job that the application keeps from its owner's request grants others nothing,
    and still admits its owner in another request.
    """
    config = made_config(redis_url, security_policy=TutorialPolicy())
    kept = make_request(config, '"alice"').job_states[put_job(client, owner='"alice"')]

    def may(user: str) -> bool:
        request = make_request(config, user)
        config.begin(request)
        try:
            if asks == "permits":
                return bool(request.job_states.permits(kept, "view_job"))
            if asks == "policy":
                return bool(request.has_permission("view_job", kept))
            return bool(kept.__json__(request)["job"]["cancellable"])
        finally:
            config.end()

    assert not may('"bob"')
    assert may('"alice"') is (asks != "policy")


# JobStates.permits.


def test_permits_asks_the_policy(redis_url: str, client: redis.Redis) -> None:
    """request.job_states.permits() returns the decision of the policy."""
    config = made_config(redis_url)
    states = make_request(config, "alice").job_states
    job_state = states[put_job(client)]

    assert states.permits(job_state, "view_job").boolval == 1
    assert states.permits(job_state, "view").boolval == 1
    assert states.permits(job_state, "list_jobs").boolval == 0


def test_refusal_is_told_to_the_applications_logging(
    redis_url: str, client: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    """The policy's answer is logged, to help debug a 403."""
    config = make_config(redis_url, root_factory=mounted_root)
    app = make_app(config)
    job = put_job(client)
    caplog.set_level(logging.DEBUG, "pyramid_jobstate")
    caplog.clear()

    for place in "/job_state", "/jobs":
        assert get(app, f"{place}/{job}", "bob").status_code == 403
        assert get(app, f"{place}?all=1", "bob").status_code == 403
        assert ask(app, "POST", f"{place}/{job}/cancel", "bob").status_code == 403

    said = [record.getMessage() for record in caplog.records]
    wanted = ["view_job", "list_jobs", "cancel_job"] * 2
    for line, permission in zip(said, wanted, strict=True):
        assert line.startswith(f"{permission} was refused on ")
        assert "ACLDenied" in line and "'bob'" in line


# No security policy.


ORDERS = [
    "include make",
    "commit include make",
    "include commit make",
    "autocommit include make",
]


def assemble(redis_url: str, steps: str, **settings: Any) -> TestApp:
    autocommit = "autocommit" in steps
    config = make_config(
        redis_url,
        security_policy=None,
        autocommit=autocommit,
        root_factory=mounted_root,
        settings={f"jobstate.{name}": value for name, value in settings.items()},
    )
    return take_steps(
        config,
        steps,
        policy=lambda: config.set_security_policy(Policy()),
        autocommit=lambda: None,
    )


@pytest.mark.parametrize("place", ["/job_state", "/jobs"])
@pytest.mark.parametrize("steps", ORDERS)
def test_no_policy_opens_nothing(
    redis_url: str, client: redis.Redis, steps: str, place: str
) -> None:
    """Without a policy, an application starts but shows no job to anybody, in whatever
    order it was configured.
    """
    app = assemble(redis_url, steps)
    job = put_job(client)
    client.zadd('jobstate:active:owner:"alice"', {job: 1e15})

    assert rights(app, job, place, X_User="alice") == NONE
    assert get(app, f"{place}?all=1").status_code == 403
    assert client.hget(f"jobstate:{job}", "status") == b"working"


@pytest.mark.parametrize("steps", ORDERS)
def test_no_policy_lets_everyone_see_what_is_public(
    redis_url: str, client: redis.Redis, steps: str
) -> None:
    """Without a policy, a job whose ACL allows Everyone is seen, but not cancelled."""
    app = assemble(redis_url, steps)
    job = put_job(client, kind="Public")

    assert rights(app, job) == (True, True, False, False)
    assert get(app, f"/job_state/{job}").json["job"]["cancellable"] is False


@pytest.mark.parametrize("steps", ORDERS)
def test_no_policy_knows_the_owner_of_the_setting(
    redis_url: str, client: redis.Redis, steps: str
) -> None:
    """Visitors known to `jobstate.owner` see and cancel their jobs without a policy."""
    app = assemble(redis_url, steps, owner=visitor)
    job = put_job(client, owner='"v1"')
    client.zadd('jobstate:active:owner:"v1"', {job: 1e15})

    assert rights(app, job, Cookie="visitor=v2") == NONE
    assert rights(app, job) == NONE
    assert rights(app, job, Cookie="visitor=v1") == ALL


@pytest.mark.parametrize(
    "steps",
    [
        "policy include make",
        "include policy make",
        "include commit policy make",
        "autocommit include policy make",
    ],
)
def test_policy_that_comes_later_is_asked(
    redis_url: str, client: redis.Redis, steps: str
) -> None:
    """A policy decides whenever it was set, even after the views were made."""
    app = assemble(redis_url, steps)
    job = put_job(client)
    client.zadd('jobstate:active:owner:"alice"', {job: 1e15})

    assert rights(app, job, X_User="bob") == NONE
    assert rights(app, job) == NONE
    assert rights(app, job, X_User="alice") == ALL


def test_no_policy_in_an_applications_unit_test(
    redis_url: str, client: redis.Redis
) -> None:
    """A DummyRequest in an application's unit test is refused like a visitor."""
    settings = {"jobstate.redis_url": redis_url}
    with testing.testConfig(settings=settings) as config:
        config.include("pyramid_jobstate")
        request = testing.DummyRequest()
        apply_request_extensions(request)
        job_state = request.job_states[put_job(client)]

        assert not request.job_states.permits(job_state, "view_job")


def test_allow_no_policy_is_an_unknown_setting() -> None:
    """The former setting that let everyone in is an error."""
    config = make_config(NOWHERE, settings={"jobstate.allow_no_policy": "true"})
    config.include("pyramid_jobstate")

    with pytest.raises(Exception, match=r"jobstate\.allow_no_policy"):
        config.make_wsgi_app()


@pytest.mark.parametrize("steps", [*ORDERS, "include commit include make"])
def test_start_without_a_policy_is_warned_of(
    caplog: pytest.LogCaptureFixture, steps: str
) -> None:
    """One warning says who will be refused, and which line changes that."""
    assemble(NOWHERE, steps)

    (warning,) = messages(caplog, "pyramid_jobstate")

    assert "403" in warning
    assert "config.set_security_policy(" in warning
    assert "jobstate.owner" in warning


@pytest.mark.parametrize(
    ("steps", "settings"),
    [
        ("include commit policy make", {}),
        ("autocommit include policy make", {}),
        ("policy include make", {}),
        ("include make", {"owner": visitor}),
    ],
)
def test_start_that_somebody_decides_is_quiet(
    caplog: pytest.LogCaptureFixture, steps: str, settings: dict[str, Any]
) -> None:
    """With a policy or `jobstate.owner`, no warning is logged."""
    assemble(NOWHERE, steps, **settings)

    assert messages(caplog, "pyramid_jobstate") == []


def test_root_decides_for_an_admin_without_a_policy(
    redis_url: str, client: redis.Redis
) -> None:
    """Without a policy, the ACLs of the lineage count, for Everyone alone."""

    class OpenRoot(Root):
        __acl__ = ((Allow, Everyone, "list_jobs"), (Allow, ADMIN, "view_job"))

    config = make_config(redis_url, security_policy=None, root_factory=OpenRoot)
    app = make_app(config)
    client.zadd("jobstate:active:all", {put_job(client): 1e15})

    response = get(app, "/job_state?all=1", ADMIN)

    assert response.json == {"items": [], "cursor": None}


# The setting jobstate.permits.


class RolePolicy(TutorialPolicy):
    """Decides by a table of roles and ignores ACLs, which shuts owners out."""

    ROLES: Mapping[Any, tuple[str, ...]] = {
        "admin": ("view_job", "cancel_job", "list_jobs")
    }

    def permits(self, request: Request, context: Any, permission: str) -> Any:
        return permission in self.ROLES.get(self.authenticated_userid(request), ())


class LoggedInPolicy(TutorialPolicy):
    """Allows logged-in users everything."""

    def permits(self, request: Request, context: Any, permission: str) -> Any:
        return self.authenticated_userid(request) is not None


class PeculiarPolicy(TutorialPolicy):
    """Expects contexts that only its application has."""

    def permits(self, request: Request, context: Any, permission: str) -> Any:
        return context.get_prefixed_principals()


def by_acl(request: Request, context: Any, permission: str) -> Any:
    """A jobstate.permits that lets the ACLs decide."""
    userid = request.authenticated_userid
    principals = [Everyone] if userid is None else [Everyone, Authenticated, userid]
    return ACLHelper().permits(context, principals, permission)


def list_all(app: TestApp, place: str, **headers: str) -> int:
    status: int = get(app, f"{place}?all=1", **headers).status_code
    return status


@pytest.mark.parametrize("place", ["/job_state", "/site/jobs"])
@pytest.mark.parametrize("policy", [RolePolicy, LoggedInPolicy, PeculiarPolicy])
def test_function_of_the_setting_is_asked_instead_of_the_policy(
    redis_url: str, client: redis.Redis, policy: Any, place: str
) -> None:
    """With `jobstate.permits`, the ACLs count even if the policy ignores them."""
    app = app_of(policy(), redis_url, permits=f"{__name__}.by_acl")
    job = put_job(client, owner='"alice"')
    client.zadd('jobstate:active:owner:"alice"', {job: 1e15})
    client.zadd("jobstate:active:all", {job: 1e15})

    assert list_all(app, place) == 403
    assert list_all(app, place, X_User='"bob"') == 403
    assert list_all(app, place, X_User='"admin"') == 200
    assert rights(app, job, place) == NONE
    assert rights(app, job, place, X_User='"bob"') == NONE
    state = get(app, f"{place}/{job}", X_User='"alice"').json
    assert state["job"]["cancellable"] is True
    assert rights(app, job, place, X_User='"alice"') == ALL


@pytest.mark.parametrize(
    ("policy", "user", "expected"),
    [
        (RolePolicy, '"alice"', NONE),
        (RolePolicy, '"admin"', (True, True, False, True)),
        (LoggedInPolicy, '"bob"', (True, True, False, True)),
        (LoggedInPolicy, "null", NONE),
    ],
)
def test_policy_that_ignores_acls_decides_unless_the_setting_is_there(
    redis_url: str, client: redis.Redis, policy: Any, user: str, expected: Any
) -> None:
    """Without the setting, the policy decides, even if it allows too much or little."""
    app = app_of(policy(), redis_url)
    job = put_job(client, owner='"alice"')

    assert rights(app, job, X_User=user) == expected


def test_setting_counts_for_an_application_without_a_policy(
    redis_url: str, client: redis.Redis
) -> None:
    """The setting also counts without a policy, and in the application's own code."""

    def allow_all(request: Request, context: Any, permission: str) -> bool:
        return True

    settings = {"jobstate.permits": allow_all}
    config = make_config(redis_url, security_policy=None, settings=settings)
    app = make_app(config)
    job = put_job(client)

    assert get(app, f"/job_state/{job}").status_code == 200
    states = make_request(config).job_states
    assert states.permits(states[job], "view_job") is True


@pytest.mark.parametrize("answer", [None, 0, ""])
def test_whatever_is_false_refuses(
    redis_url: str, client: redis.Redis, answer: Any
) -> None:
    """A function that returns a false value lets nobody in."""
    config = make_config(
        redis_url, settings={"jobstate.permits": lambda *arguments: answer}
    )
    app = make_app(config)
    job = put_job(client)

    assert rights(app, job, user="alice") == NONE


def test_function_that_raises_for_one_job_leaves_the_others(
    redis_url: str, client: redis.Redis
) -> None:
    """If the function raises, a batch lacks that job, and a request for it fails."""
    broken, sound = put_job(client), put_job(client)

    def picky(request: Request, context: Any, permission: str) -> bool:
        if context.uuid == broken:
            raise LookupError("no such table")
        return True

    app = make_app(make_config(redis_url, settings={"jobstate.permits": picky}))

    jobs = get(app, f"/job_state?uuid={broken}&uuid={sound}").json["jobs"]

    assert jobs[broken] is None
    assert jobs[sound]["job"]["uuid"] == sound
    with pytest.raises(LookupError):
        get(app, f"/job_state/{broken}")


async def open_later(request: Request, context: Any, permission: str) -> bool:
    return False


class OpenLater:
    """An object that is called like the function before."""

    async def __call__(self, request: Request, context: Any, permission: str) -> bool:
        return False


def allow(request: Request, context: Any, permission: str) -> bool:
    return True


@functools.wraps(allow)
async def wrapped_later(*args: Any) -> bool:
    return False


@functools.wraps(open_later)
def wrapped_at_once(*args: Any) -> bool:
    return True


@pytest.mark.parametrize(
    "plain", [wrapped_at_once, functools.lru_cache(wrapped_at_once)]
)
def test_function_may_wrap_one_that_is_async(redis_url: str, plain: Any) -> None:
    """What is called decides."""
    make_app(make_config(redis_url, settings={"jobstate.permits": plain}))


@pytest.mark.parametrize(
    "wrong",
    [
        open_later,
        wrapped_later,
        OpenLater(),
        functools.partial(open_later),
        "redis://:s3cret@host/0",
    ],
)
def test_function_that_cannot_answer_stops_the_start(wrong: Any) -> None:
    """A coroutine is always true, so what returns one is refused. A URL is not
    quoted.
    """
    config = make_config(NOWHERE, settings={"jobstate.permits": wrong})
    config.include("pyramid_jobstate")

    with pytest.raises(ConfigurationError, match=r"jobstate\.permits") as caught:
        config.make_wsgi_app()

    shown = "".join(traceback.format_exception(caught.value))
    assert "s3cret" not in shown
