"""Whose job it is, and who decides: any policy, `jobstate.permits`, or neither."""

import functools
import json
import logging
import traceback
from collections import UserDict
from collections.abc import Callable, Mapping
from typing import Any

import dramatiq
import pytest
from dramatiq import Broker, actor
from pyramid.authorization import ACLHelper, Allow, Authenticated, Everyone
from pyramid.config import Configurator
from pyramid.exceptions import ConfigurationError
from pyramid.httpexceptions import HTTPForbidden, HTTPUnauthorized
from pyramid.request import Request
from pyramid.response import Response
from pyramid.scripting import prepare
from pyramid.session import SignedCookieSessionFactory
from webtest import TestApp

from pyramid_jobstate import JobState, JobStore, RequestMiddleware, StoreUnavailable
from tests.jobs import messages, wait_until, working
from tests.support import key_of
from tests.web.paging import browse, paged_config
from tests.web.reading import put
from tests.web.streaming import PublicRun
from tests.webapp import (
    ADMIN,
    EXPLICIT,
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
    make_tm_config,
)

BOTH = ("view_job", "cancel_job")

SetBroker = Callable[[Any], None]


class TutorialPolicy:
    """The policy of Pyramid's tutorials, which trusts the header X-User, in JSON."""

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


class RolePolicy(TutorialPolicy):
    """Decides by a table of roles and ignores ACLs, which shuts owners out."""

    ROLES: Mapping[Any, tuple[str, ...]] = {"admin": (*BOTH, "list_jobs")}

    def permits(self, request: Request, context: Any, permission: str) -> Any:
        return permission in self.ROLES.get(self.authenticated_userid(request), ())


class RaisingPolicy(TutorialPolicy):
    """A policy that raises what it is given, in place of returning a denial."""

    def __init__(self, refusal: Callable[[], Exception] = HTTPForbidden) -> None:
        self.refusal = refusal

    def permits(self, request: Request, context: Any, permission: str) -> Any:
        result = super().permits(request, context, permission)
        if not result:
            raise self.refusal()
        return result


class Stern(JobState):
    """A kind of job whose ACL does not call super()."""

    def __acl__(self) -> list[tuple[str, Any, Any]]:
        return []


def visitor(request: Request) -> str | None:
    """A jobstate.owner that identifies visitors by a cookie."""
    return request.cookies.get("visitor")


def app_of(policy: Any, redis_url: str, **settings: Any) -> TestApp:
    """Return an application with a policy."""
    given = {f"jobstate.{name}": value for name, value in settings.items()}
    return make_app(make_config(redis_url, security_policy=policy, settings=given))


def rights(app: TestApp, job: str, **headers: str) -> tuple[bool, bool, bool, bool]:
    """Return whether a user sees a job alone, in a batch, in a list, and may cancel."""
    path = f"/job_state/{job}"
    batch = get(app, f"/job_state?uuid={job}", **headers).json["jobs"]
    items = get(app, "/job_state", **headers).json["items"]
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


@pytest.mark.promise("hand-written-policy-is-asked")
def test_policy_decides(redis_url, store):
    """It may use principals such as `u:alice`, a second factor, or a table of roles."""
    job, stern = put(store), put(store, Stern)
    app = app_of(RolePolicy(), redis_url)
    assert rights(app, job, X_User='"alice"') == NONE
    assert rights(app, job, X_User='"admin"') == (True, True, False, True)
    app = app_of(SecondFactorPolicy(), redis_url)
    assert rights(app, job, X_User='"alice"') == NONE
    app = app_of(TutorialPolicy(), redis_url)
    assert rights(app, job, X_User='"bob"') == rights(app, job) == NONE
    assert rights(app, job, X_User='"alice"') == ALL
    assert rights(app, stern, X_User='"alice"') == NONE


@pytest.mark.promise("hand-written-policy-is-asked")
def test_policy_may_raise_to_refuse(redis_url, store, caplog):
    """HTTPForbidden counts as a denial. For a single job, it is the answer itself."""

    class TwoFactors(HTTPForbidden):
        pass

    config = paged_config(redis_url, security_policy=RaisingPolicy(TwoFactors))
    config.add_exception_view(lambda e, r: Response("Your token?"), context=TwoFactors)
    app = make_app(config)
    job, alice = put(store), {"X_User": '"alice"'}
    assert rights(app, job, X_User='"bob"') == rights(app, job) == NONE
    assert rights(app, job, **alice) == ALL
    public, failed = put(store, PublicRun), put(store, status="error")
    assert get(app, f"/job_state/{public}").json["job"]["cancellable"] is False
    groups = get(app, "/job_state?group=error&status=error", **alice).json["groups"]
    assert [group["uuids"] for group in groups] == [[failed]]
    for path in "", f"/{failed}/", "?group=error&status=error":
        assert browse(app, f"/job_state{path}", '"alice"').status_code == 200, path
    assert get(app, "/job_state?all=1", **alice).status_code == 403
    assert browse(app, f"/job_state/{failed}", '"bob"').text == "Your token?"
    assert messages(caplog, "pyramid_jobstate") == []


@pytest.mark.parametrize("where", ["acl", "permits", "owner"])
def test_code_of_the_application_may_raise_to_refuse(redis_url, store, where):
    """HTTPForbidden is a denial from ACLs, `jobstate.permits` and `jobstate.owner`."""

    def refuse(*args: Any) -> Any:
        raise HTTPForbidden

    class Classified(JobState):
        __acl__ = refuse if where == "acl" else JobState.__acl__

    settings = {} if where == "acl" else {where: refuse}
    app = app_of(TutorialPolicy(), redis_url, **settings)
    job, alice = put(store, Classified), {"X_User": '"alice"'}
    assert get(app, f"/job_state/{job}", **alice).status_code == 403
    assert get(app, f"/job_state?uuid={job}", **alice).json == {"jobs": {job: None}}


def test_owner_is_of_the_same_type(redis_url, store):
    """Owners match in type, too, though 1 == True; what cannot own matches nobody."""
    users = ["null", '""', "0", "false", "1", "true", '"1"', "1.0"]
    for policy in TutorialPolicy(), UseridPolicy():
        app = app_of(policy, redis_url)
        for owner in "1", '"1"', "1.0", '""', "true", "null":
            is_bool = owner == "true"
            job = put(store, owner=1 if is_bool else json.loads(owner))
            if is_bool:
                store.client.hset(key_of(store, job), "owner", owner)
            let_in = [user for user in users if any(rights(app, job, X_User=user))]
            assert let_in == ([] if owner in ("true", "null") else [owner]), owner


def test_owners_ace_holds_in_no_other_request(redis_url, store):
    """A job that is kept from its owner's request grants others nothing."""
    config = made_config(redis_url, security_policy=TutorialPolicy())
    kept = make_request(config, '"alice"').job_states[put(store)]
    for user, may in ('"bob"', False), ('"alice"', True):
        request = make_request(config, user)
        config.begin(request)
        assert bool(request.job_states.permits(kept, "view_job")) is may
        assert kept.__json__(request)["job"]["cancellable"] is may
        assert not request.has_permission("view_job", kept)
        config.end()


def test_owner_setting_lets_visitors_in(redis_url, store):
    """Visitors see their own jobs. A system principal cannot own any."""
    asked = []

    def owner(request: Request) -> str | None:
        asked.append(request)
        return visitor(request)

    app = app_of(TutorialPolicy(), redis_url, owner=owner)
    job = put(store, owner="v1")
    assert rights(app, job, Cookie="visitor=v2") == NONE
    assert rights(app, job) == NONE
    assert rights(app, job, X_User='"v1"') == NONE
    assert rights(app, job, Cookie="visitor=v1") == ALL
    assert len(asked) == len(set(map(id, asked)))
    config = made_config(NOWHERE)
    for name in Everyone, Authenticated:
        assert get(app, "/job_state", Cookie=f"visitor={name}").json["items"] == []
        assert make_request(config, name).job_states.current_owner is None


def test_owner_that_raises_shows_nothing(redis_url, store):
    """If `jobstate.owner` raises, lists show no job, and other requests fail."""
    asked = []

    def broken(request: Request) -> str:
        asked.append(request)
        raise LookupError("no session")

    app = app_of(Policy(), redis_url, owner=broken)
    jobs = [put(store) for _ in range(3)]
    query = "&".join(f"uuid={job}" for job in jobs)
    batch = get(app, f"/job_state?{query}", "alice").json["jobs"]
    listed = get(app, "/job_state?all=1", ADMIN).json["items"]
    assert [*batch.values(), *listed] == [None] * 3
    assert len(asked) == 2
    for path in f"/job_state/{jobs[0]}", "/job_state":
        with pytest.raises(LookupError, match="no session"):
            get(app, path, "alice")


class OpenRoot(Root):
    """A root that lets everyone see jobs."""

    __acl__ = ((Allow, Everyone, "view_job"),)


@pytest.fixture
def sending(redis_url: str, set_broker: SetBroker) -> Callable[..., TestApp]:
    """Makes an application with views that send a job of an actor, or a batch."""
    broker = make_broker(redis_url)
    set_broker(broker)
    # Each is warned of once a process.
    for name in ("walk", "swim", "run", "row", "play", "crawl", "dive", "climb"):
        cls = PublicRun if name == "play" else JobState
        declare = dramatiq.actor(actor_name=name, broker=broker, job_state=cls)
        declare(lambda *, job_state: None)

    def send(request: Request) -> str:
        sender, name = request.job_states, request.matchdict["actor"]
        if name == "batch":
            with sender.batch() as batch:
                return batch.uuid
        actor = broker.get_actor(name)
        if "owner" in request.GET:
            owner = request.GET["owner"] or None
            return sender.send_with_options(actor, owner=owner).uuid
        return sender.send_immediately(actor).uuid

    def make(**options: Any) -> TestApp:
        config = make_tm_config(redis_url, **options)
        config.add_route("send", "/send/{actor}")
        config.add_view(send, route_name="send", renderer="string")
        return make_app(config)

    return make


def test_job_that_its_sender_may_not_see_is_warned_of(sending, caplog):
    """The first of each actor or class is told, with the line that changes it."""
    app = sending()
    for name in "walk", "swim", "batch":
        for _ in range(2):
            app.get(f"/send/{name}")
        (warning,) = messages(caplog, "pyramid_jobstate")
        caplog.clear()
        assert repr(name.replace("batch", "Batch")) in warning
        assert "authenticated_userid(request) returned None" in warning
        assert "`jobstate.owner = session`" in warning and 'See "403"' in warning


def test_job_that_need_not_be_seen_is_not_warned_of(sending, caplog):
    """It has an owner, or none on purpose; others are let in; or a script sends it."""
    app = sending()
    for path, user in (
        ("run?owner=", None),
        ("run?owner=bob", None),
        ("run", "alice"),
        ("play", None),
    ):
        get(app, f"/send/{path}", user)
    sending(root_factory=OpenRoot).get("/send/row")
    with prepare(registry=app.app.registry) as env:
        run = dramatiq.get_broker().get_actor("run")
        env["request"].job_states.send_immediately(run)
    assert messages(caplog, "pyramid_jobstate") == []
    app.get("/send/run")
    assert len(messages(caplog, "pyramid_jobstate")) == 1


def test_warning_of_a_policy_that_fails(sending, caplog):
    """A job is sent even if the policy fails for it, which is not told."""
    errors = {
        "crawl": LookupError("no such right"),
        "dive": StoreUnavailable(None),
        "climb": HTTPUnauthorized(),
    }

    class Faulty(TutorialPolicy):
        def permits(self, request: Request, context: Any, permission: str) -> Any:
            raise errors[context.actor]

    app = sending(security_policy=Faulty())
    for name in errors:
        assert app.get(f"/send/{name}").text
    (warning,) = messages(caplog, "pyramid_jobstate")
    assert "'climb'" in warning


def test_refusal_is_told_to_the_applications_logging(app, store, caplog):
    """The policy's answer is logged, to help debug a 403."""
    caplog.set_level(logging.DEBUG, "pyramid_jobstate")
    caplog.clear()
    for path, permission in (f"/{put(store)}", "view_job"), ("?all=1", "list_jobs"):
        assert get(app, f"/job_state{path}", "bob").status_code == 403
        line = caplog.records[-1].getMessage()
        assert line.startswith(f"{permission} was refused on ")
        assert "ACLDenied" in line and "'bob'" in line


# No security policy.


def test_what_is_open_without_a_policy(redis_url, store):
    """Without a policy, ACLs for Everyone count, and visitors have their own jobs."""
    app, public = app_of(None, redis_url), put(store, PublicRun)
    assert rights(app, public) == (True, True, False, False)
    assert get(app, f"/job_state/{public}").json["job"]["cancellable"] is False
    app, job = app_of(None, redis_url, owner=visitor), put(store, owner="v1")
    assert rights(app, job, Cookie="visitor=v2") == rights(app, job) == NONE
    assert rights(app, job, Cookie="visitor=v1") == ALL


def test_start_without_a_policy_is_warned_of(caplog):
    """The warning names the line to add. A policy or an owner makes it needless."""
    app_of(None, NOWHERE)
    (warning,) = messages(caplog, "pyramid_jobstate")
    for word in "403", "config.set_security_policy(", "set jobstate.owner to session":
        assert word in warning
    caplog.clear()
    config = make_config(NOWHERE, security_policy=None)
    config.include("pyramid_jobstate")
    config.commit()
    config.set_security_policy(Policy())
    config.make_wsgi_app()
    app_of(None, NOWHERE, owner=visitor)
    assert messages(caplog, "pyramid_jobstate") == []


# The setting jobstate.permits.


def by_acl(request: Request, context: Any, permission: str) -> Any:
    """A jobstate.permits that lets the ACLs decide."""
    return UseridPolicy().permits(request, context, permission)


def test_function_of_the_setting_is_asked_instead_of_the_policy(redis_url, store):
    """With `jobstate.permits`, ACLs count even where the policy ignores them."""
    app = app_of(RolePolicy(), redis_url, permits=f"{__name__}.by_acl")
    job = put(store)
    for user, status in ("null", 403), ('"bob"', 403), ('"admin"', 200):
        assert get(app, "/job_state?all=1", X_User=user).status_code == status
    assert rights(app, job) == rights(app, job, X_User='"bob"') == NONE
    assert rights(app, job, X_User='"alice"') == ALL


async def open_later(request: Request, context: Any, permission: str) -> bool:
    return False


@functools.wraps(open_later)
def wrapped_at_once(*args: Any) -> bool:
    return True


def test_function_that_cannot_answer_stops_the_start():
    """A function that returns a coroutine is refused, and a URL is not quoted."""
    for wrong in open_later, functools.partial(open_later), "redis://:s3cret@host/0":
        with pytest.raises(ConfigurationError, match=r"jobstate\.permits") as caught:
            app_of(Policy(), NOWHERE, permits=wrong)
        assert "s3cret" not in "".join(traceback.format_exception(caught.value))
    # What is called decides.
    app_of(Policy(), NOWHERE, permits=wrapped_at_once)


# The setting ``jobstate.owner = session``: visitors own what their session sent.


Visitors = Callable[[], TestApp]
AJAX = {"X-Requested-With": "XMLHttpRequest"}


@pytest.fixture
def config(redis_url: str, global_broker: Broker) -> Configurator:
    """Override: an application whose visitors send jobs, and renew sessions often."""
    run_marathon = global_broker.get_actor("run_marathon")
    settings = {"jobstate.owner": "session", **EXPLICIT}
    config = make_tm_config(redis_url, settings, security_policy=None)
    session = SignedCookieSessionFactory("s" * 64, timeout=None, reissue_time=-1)
    config.set_session_factory(session)
    config.include("pyramid_jobstate")

    def send(request: Request) -> Any:
        return request.job_states.send(run_marathon, 26).uuid

    def now(request: Request) -> Any:
        return request.job_states.send_immediately(run_marathon, 26).uuid

    def between(request: Request) -> Any:
        old = send(request)
        request.session.invalidate()
        return [old, send(request)]

    def beside(request: Request) -> Any:
        with request.job_states.batch() as batch:
            batch.send(run_marathon, 26)
            return [batch.uuid, send(request), now(request)]

    def named(request: Request) -> Any:
        give = functools.partial(request.job_states.send_with_options, run_marathon)
        return [give((26,), owner=owner).uuid for owner in ("bob", None)]

    def page(request: Request) -> Any:
        """Show a job and the visitor's others, as a page with progress bars does."""
        jobs = request.job_states
        found = jobs.find(request.GET.get("uuid", ""))
        may = found is not None and bool(jobs.permits(found, "view_job"))
        owner = jobs.current_owner
        return {"may": may, "count": len(jobs.list(owner).items) if owner else 0}

    for view in (send, now, between, beside, named, page):
        config.add_route(view.__name__, f"/{view.__name__}")
        config.add_view(view, route_name=view.__name__, renderer="json")
    config.make_wsgi_app()
    return config


@pytest.fixture
def new_visitor(config: Configurator) -> Visitors:
    app = config.make_wsgi_app()
    return lambda: TestApp(app)


def owners(store: JobStore) -> set[Any]:
    return {job.owner for job in store.list().items}


@pytest.mark.parametrize("path", ["/send", "/now"])
def test_send_makes_a_name(new_visitor, store, path):
    """The first send makes a random name, which the session keeps for later ones."""
    visitor, other = new_visitor(), new_visitor()
    uuid = visitor.post(path).json
    for each in visitor.post("/beside").json:
        visitor.get(f"/job_state/{each}", status=200)
    assert visitor.get(f"/job_state/{uuid}").json["job"]["cancellable"] is True
    assert visitor.get(f"/page?uuid={uuid}").json == {"may": True, "count": 4}
    assert len(visitor.get("/job_state").json["items"]) == 4
    other.post("/beside")
    forger = new_visitor()
    forger.set_cookie("session", "forged")
    for stranger in (other, new_visitor(), forger):
        stranger.get(f"/job_state/{uuid}", status=403)
        stranger.post(f"/job_state/{uuid}/cancel", headers=AJAX, status=403)
        assert stranger.get(f"/job_state?uuid={uuid}").json == {"jobs": {uuid: None}}
        assert stranger.get(f"/page?uuid={uuid}").json["may"] is False
    visitor.post(f"/job_state/{uuid}/cancel", headers=AJAX, status=202)
    assert len(owners(store)) == 2
    assert all(owner is not None and len(owner) > 20 for owner in owners(store))


def test_invalidated_session_gets_a_new_name(new_visitor, store):
    """After a login between two sends, the old name would be lost."""
    visitor = new_visitor()
    old, new = visitor.post("/between").json
    visitor.get(f"/job_state/{new}", status=200)
    visitor.get(f"/job_state/{old}", status=403)
    assert len(owners(store)) == 2


def test_reading_sets_no_cookie(new_visitor):
    """A cookie of a poll or a cancel could undo what another request has stored."""
    sender = new_visitor()
    uuid = sender.post("/send").json
    cookie = sender.cookies["session"]
    jobs, query = "/job_state", f"?uuid={uuid}"
    stranger = new_visitor()
    for path in f"{jobs}/{uuid}", f"{jobs}{query}", jobs, f"/page{query}":
        for visitor in (sender, stranger):
            visitor.get(path, expect_errors=True)
    sender.post(f"/job_state/{uuid}/cancel", headers=AJAX, status=202)
    assert sender.cookies == {"session": cookie}
    assert stranger.cookies == {}


def test_session_need_not_be_a_dict(config, new_visitor):
    """Sessions that a server keeps, such as Beaker's, know their visitors as well."""
    kept: dict[Any, UserDict[str, str]] = {}
    Configurator(registry=config.registry, autocommit=True).set_session_factory(
        lambda request: kept.setdefault(request.cookies.get("id"), UserDict())
    )
    visitor, other = new_visitor(), new_visitor()
    visitor.set_cookie("id", "a")
    uuid = visitor.post("/send").json
    visitor.get(f"/job_state/{uuid}", status=200)
    other.get(f"/job_state/{uuid}", status=403)


def test_named_owner_makes_no_name(new_visitor, store):
    """A send that names the owner, or none, leaves the session alone."""
    visitor = new_visitor()
    response = visitor.post("/named")
    assert "Set-Cookie" not in response.headers
    for uuid in response.json:
        visitor.get(f"/job_state/{uuid}", status=403)
    assert owners(store) == {None, "bob"}


def test_request_of_a_job_makes_no_name(config, global_broker):
    """What a job sends belongs to the job's owner, if any, and to no session."""
    global_broker.add_middleware(RequestMiddleware())
    config.make_wsgi_app()
    run_marathon = global_broker.get_actor("run_marathon")
    found: list[Any] = []

    @actor(broker=global_broker, job_state=True)
    def lead(*, request: Any = None, job_state: Any = None) -> None:
        states = request.job_states
        child = states.send(run_marathon, 1)
        rights = bool(states.permits(child, "view_job"))
        found.append((child.owner, states.current_owner, rights, len(request.session)))

    for owner in "somebody", None:
        options: Any = {"job_owner": owner}
        message = lead.message_with_options(**options)
        uuid = make_request(config).job_states.send_immediately(message).uuid
        with working(global_broker):
            wait_until(global_broker, message.copy(message_id=uuid), "success")
    assert found == [("somebody", "somebody", True, 0), (None, None, False, 0)]
