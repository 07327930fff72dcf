"""The setting ``jobstate.owner = session``: visitors own what their session sent."""

import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import redis
from dramatiq import Broker
from pyramid.config import Configurator
from pyramid.exceptions import ConfigurationError
from pyramid.request import Request
from pyramid.session import SignedCookieSessionFactory
from webtest import TestApp

from pyramid_jobstate.web.permits import VISITOR, session_owner, set_owner
from tests.webapp import EXPLICIT, Root, make_request

AJAX = {"X-Requested-With": "XMLHttpRequest"}


class PlainSession:
    """A session that is not a dict, like Beaker's."""

    kept: dict[str, dict[str, Any]] = {}  # noqa: RUF012, shared like a server's memory

    def __init__(self, request: Request) -> None:
        self.data = self.kept.setdefault(request.cookies.get("id", ""), {})

    def get(self, name: str, default: Any = None) -> Any:
        return self.data.get(name, default)

    def __getitem__(self, name: str) -> Any:
        return self.data[name]

    def __setitem__(self, name: str, value: Any) -> None:
        self.data[name] = value


def cookies(**options: Any) -> Any:
    """Return a factory of cookie sessions, which do not end. Each access that would
    ever renew a session does so at once, with a new cookie.
    """
    usual = {"timeout": None, "reissue_time": -1}
    return SignedCookieSessionFactory("s" * 64, **{**usual, **options})


def make_visited(
    redis_url: str, broker: Broker, factory: Any = None, **settings: str
) -> Configurator:
    """Return the configurator of a finished application without a policy, whose
    visitors send jobs.
    """
    run_marathon = broker.get_actor("run_marathon")
    given = {"jobstate.redis_url": redis_url, "jobstate.owner": "session", **EXPLICIT}
    config = Configurator(settings={**given, **settings}, root_factory=Root)
    config.set_session_factory(factory or cookies())
    config.include("pyramid_tm")
    config.include("pyramid_jobstate")

    def send(request: Request) -> Any:
        return request.job_states.send(run_marathon, 26).uuid

    def now(request: Request) -> Any:
        return request.job_states.send_immediately(run_marathon, 26).uuid

    def list_and_send(request: Request) -> Any:
        assert request.job_states.list().items == []
        assert request.job_states.current_owner is None
        uuid = send(request)
        assert request.job_states.current_owner == request.session[VISITOR]
        return uuid

    def anew(request: Request) -> Any:
        request.job_states.list(request.job_states.current_owner)
        request.session.invalidate()
        return send(request)

    def between(request: Request) -> Any:
        old = send(request)
        request.session.invalidate()
        return [old, send(request)]

    def twice(request: Request) -> Any:
        return [send(request), now(request)]

    def beside(request: Request) -> Any:
        with request.job_states.batch() as batch:
            batch.send(run_marathon, 26)
            uuids = [send(request), now(request)]
        return [batch.uuid, *uuids]

    def before(request: Request) -> Any:
        batches = [request.job_states.batch(), request.job_states.batch()]
        uuids = [send(request), *(batch.uuid for batch in batches)]
        for batch in batches:
            with batch:
                batch.send(run_marathon, 26)
        return uuids

    def nobodys(request: Request) -> Any:
        options: Any = {"owner": None}
        return request.job_states.send_with_options(run_marathon, (26,), **options).uuid

    def refused(request: Request) -> Any:
        request.job_states.send(run_marathon, object())

    def page(request: Request) -> Any:
        """Show a job and the visitor's others, as a page with progress bars does."""
        jobs = request.job_states
        found = jobs.find(request.GET.get("uuid", ""))
        may = found is not None and bool(jobs.permits(found, "view_job"))
        owner = jobs.current_owner
        return {"may": may, "count": len(jobs.list(owner).items) if owner else 0}

    senders = (send, now, list_and_send, anew, between, twice, beside, before)
    for view in (*senders, nobodys, refused, page):
        config.add_route(view.__name__, f"/{view.__name__}")
        config.add_view(view, route_name=view.__name__, renderer="json")
    return config


@pytest.fixture
def config(redis_url: str, global_broker: Broker) -> Configurator:
    """Override: an application whose visitors send jobs."""
    return make_visited(redis_url, global_broker)


@pytest.fixture
def new_visitor(config: Configurator) -> Callable[[], TestApp]:
    """Returns a new visitor of the application."""
    app = config.make_wsgi_app()
    return lambda: TestApp(app)


@pytest.fixture
def visitor(new_visitor: Callable[[], TestApp]) -> TestApp:
    """A visitor of the application."""
    return new_visitor()


@pytest.fixture
def plain_memory() -> Iterator[None]:
    """PlainSession's memory is empty."""
    PlainSession.kept.clear()
    yield
    PlainSession.kept.clear()


def owners(client: redis.Redis) -> list[Any]:
    """Return the owners of all jobs."""
    return [
        client.hget(key, "owner")
        for key in client.keys("jobstate:*")
        if client.type(key) == b"hash"
    ]


@pytest.mark.parametrize("path", ["/send", "/now", "/list_and_send", "/anew"])
def test_send_makes_a_name(
    new_visitor: Callable[[], TestApp], client: redis.Redis, path: str
) -> None:
    """The first send gives the visitor a random name, kept in the session. Only the
    visitor owns the job.
    """
    visitor, other = new_visitor(), new_visitor()
    response = visitor.post(path)
    uuid = response.json
    assert "session" in visitor.cookies
    assert "Set-Cookie" in response.headers
    assert visitor.get(f"/job_state/{uuid}").json["job"]["cancellable"] is True
    assert len(visitor.get("/job_state").json["items"]) == 1
    other.post("/send")
    for stranger in (other, new_visitor()):
        stranger.get(f"/job_state/{uuid}", status=403)
        stranger.post(f"/job_state/{uuid}/cancel", headers=AJAX, status=403)
        assert stranger.get(f"/job_state?uuid={uuid}").json == {"jobs": {uuid: None}}
    visitor.post(f"/job_state/{uuid}/cancel", headers=AJAX, status=202)
    found = owners(client)
    assert len(found) == len(set(found)) == 2
    assert all(owner is not None and len(owner) > 20 for owner in found)


def test_name_stays_the_same(visitor: TestApp, client: redis.Redis) -> None:
    """Later sends, also in the same request, keep the name, and change no session."""
    uuids = visitor.post("/twice").json
    response = visitor.post("/send")
    visitor.post("/now")
    assert len(set(owners(client))) == 1
    assert len(owners(client)) == 4
    shown = visitor.get("/job_state?uuid=" + "&uuid=".join([*uuids, response.json]))
    assert all(shown.json["jobs"].values())


@pytest.mark.parametrize("path", ["/beside", "/before"])
def test_batch_and_jobs_of_a_first_request_share_a_name(
    visitor: TestApp, client: redis.Redis, path: str
) -> None:
    """The session keeps one name, whatever the request sends, and in which order."""
    uuids = visitor.post(path).json
    for uuid in uuids:
        visitor.get(f"/job_state/{uuid}", status=200)
    assert len(visitor.get("/job_state").json["items"]) == 3
    assert len(set(owners(client))) == 1


def test_invalidated_session_gets_a_new_name(
    visitor: TestApp, client: redis.Redis
) -> None:
    """A view that invalidates the session, as a login does, and then sends gives the
    new session a name: the old one would be lost, and the job a 403.
    """
    old = visitor.post("/send").json
    new = visitor.post("/anew").json
    visitor.get(f"/job_state/{new}", status=200)
    visitor.get(f"/job_state/{old}", status=403)
    assert len(set(owners(client))) == 2


def test_session_that_is_invalidated_between_two_sends(
    visitor: TestApp, client: redis.Redis
) -> None:
    """The name of the old session is not that of the new one."""
    old, new = visitor.post("/between").json
    visitor.get(f"/job_state/{new}", status=200)
    visitor.get(f"/job_state/{old}", status=403)
    assert len(set(owners(client))) == 2


READS = [
    "/job_state/{uuid}",
    "/job_state?uuid={uuid}",
    "/job_state",
    "/page?uuid={uuid}",
]


@pytest.mark.parametrize("path", READS)
def test_reading_sets_no_cookie(new_visitor: Callable[[], TestApp], path: str) -> None:
    """A poll, a list and a page neither make a name nor renew the session, whether the
    visitor has one or not: their cookie could undo what another request stored.
    """
    sender, stranger = new_visitor(), new_visitor()
    path = path.format(uuid=sender.post("/send").json)
    cookie = sender.cookies["session"]
    for visitor in (sender, stranger):
        response = visitor.get(path, expect_errors=True)
        assert "Set-Cookie" not in response.headers
    assert sender.cookies == {"session": cookie}
    assert stranger.cookies == {}


def test_cancel_sets_no_cookie(visitor: TestApp) -> None:
    """A cancel does not set a cookie either."""
    uuid = visitor.post("/send").json
    response = visitor.post(f"/job_state/{uuid}/cancel", headers=AJAX, status=202)
    assert "Set-Cookie" not in response.headers


def test_page_of_the_owner_shows_the_job(new_visitor: Callable[[], TestApp]) -> None:
    """request.job_states knows the owner in the application's own views."""
    visitor = new_visitor()
    uuid = visitor.post("/send").json
    assert visitor.get(f"/page?uuid={uuid}").json == {"may": True, "count": 1}
    assert new_visitor().get(f"/page?uuid={uuid}").json == {"may": False, "count": 0}


def test_named_owner_makes_no_name(visitor: TestApp, client: redis.Redis) -> None:
    """A send that names the owner, or none, leaves the session alone."""
    response = visitor.post("/nobodys")
    assert "Set-Cookie" not in response.headers
    assert owners(client) == [None]
    visitor.get(f"/job_state/{response.json}", status=403)


def test_job_ends_with_the_session(
    redis_url: str, global_broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A session that ends before its job loses it: polls do not renew the session, so
    it must outlive the job.
    """
    now = time.time()
    clock = SimpleNamespace(time=lambda: now)
    monkeypatch.setattr("pyramid.session.time", clock)
    config = make_visited(redis_url, global_broker, cookies(timeout=60))
    visitor = TestApp(config.make_wsgi_app())
    path = f"/job_state/{visitor.post('/send').json}"
    now += 58
    visitor.get(path, status=200)
    now += 4
    visitor.get(path, status=403)
    assert visitor.get("/job_state").json["items"] == []


def test_forged_cookie_owns_nothing(new_visitor: Callable[[], TestApp]) -> None:
    """A cookie that the application has not signed does not make a session."""
    uuid = new_visitor().post("/send").json
    forger = new_visitor()
    forger.set_cookie("session", "forged")
    forger.get(f"/job_state/{uuid}", status=403)


def test_session_need_not_be_a_dict(
    redis_url: str, global_broker: Broker, plain_memory: None
) -> None:
    """Any session that can get and set items will do, such as Beaker's."""
    config = make_visited(redis_url, global_broker, PlainSession)
    app = config.make_wsgi_app()
    visitor, other = TestApp(app), TestApp(app)
    visitor.set_cookie("id", "a")
    other.set_cookie("id", "b")
    uuid = visitor.post("/list_and_send").json
    visitor.get(f"/job_state/{uuid}", status=200)
    other.get(f"/job_state/{uuid}", status=403)
    assert PlainSession.kept["b"] == {}
    assert isinstance(PlainSession.kept["a"][VISITOR], str)


@pytest.mark.parametrize("value", [None, 5, b"name", ["name"], {}])
def test_name_must_be_text(config: Configurator, value: object) -> None:
    """Whatever else the session holds under that key is not a name."""
    config.make_wsgi_app()
    request = make_request(config)
    request.session[VISITOR] = value
    assert session_owner(request) is None


def test_send_replaces_what_is_not_a_name(
    config: Configurator, global_broker: Broker
) -> None:
    """A send then makes a name."""
    config.make_wsgi_app()
    request = make_request(config)
    request.session[VISITOR] = 5
    run_marathon = global_broker.get_actor("run_marathon")
    job_state = request.job_states.send_immediately(run_marathon, 1)
    assert job_state.owner == request.session[VISITOR] == session_owner(request)


@pytest.mark.parametrize("owner", ["somebody", None])
def test_request_of_a_job_makes_no_name(
    config: Configurator, global_broker: Broker, owner: str | None
) -> None:
    """What a job sends belongs to the job's owner, if any, and to no session."""
    config.make_wsgi_app()
    request = make_request(config)
    set_owner(request, owner)
    run_marathon = global_broker.get_actor("run_marathon")
    job_state = request.job_states.send_immediately(run_marathon, 1)
    assert job_state.owner == owner
    assert request.job_states.current_owner == owner
    assert dict(request.session) == {}
    # An owner sees the jobs of the session, and a job its own.
    assert bool(request.job_states.permits(job_state, "view_job")) is (
        owner is not None
    )


def test_session_factory_must_be_set(redis_url: str) -> None:
    """Without sessions the application does not start, whatever the order."""
    settings = {"jobstate.redis_url": redis_url, "jobstate.owner": "session"}
    config = Configurator(settings=settings)
    config.include("pyramid_jobstate")
    with pytest.raises(
        ConfigurationError,
        match=r"owner = session needs a session factory.*Call config",
    ):
        config.make_wsgi_app()
    config = Configurator(settings=settings)
    config.include("pyramid_jobstate")
    config.commit()
    config.set_session_factory(cookies())
    config.make_wsgi_app()


def test_start_without_a_policy_is_not_warned_about(
    config: Configurator, caplog: pytest.LogCaptureFixture
) -> None:
    """With an owner the application recognises its visitors, so all is well."""
    config.make_wsgi_app()
    assert not [r for r in caplog.records if "owner" in r.getMessage()]


def test_start_without_policy_and_owner_is_warned_about_once(
    redis_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """With neither, one warning names the setting."""
    config = Configurator(settings={"jobstate.redis_url": redis_url})
    config.include("pyramid_jobstate")
    config.make_wsgi_app()
    found = [r for r in caplog.records if r.levelname == "WARNING"]
    assert len(found) == 1
    assert "set jobstate.owner to session" in found[0].getMessage()


def test_send_that_fails_makes_no_lasting_harm(visitor: TestApp) -> None:
    """A visitor whose send was refused can send and see jobs afterwards."""
    with pytest.raises(TypeError, match="cannot be encoded"):
        visitor.post("/refused")
    uuid = visitor.post("/send").json
    visitor.get(f"/job_state/{uuid}", status=200)


def test_job_that_is_not_sent_names_nobody(
    redis_url: str, global_broker: Broker
) -> None:
    """A send that fails leaves the session alone, and so does another
    user's job.
    """
    config = make_visited(redis_url, global_broker)
    config.make_wsgi_app()
    actor = global_broker.get_actor("run_marathon")
    request = make_request(config)
    with pytest.raises(RuntimeError, match="No transaction has begun"):
        request.job_states.send(actor, 26)
    bobs = actor.message_with_options(args=(26,), job_owner="bob")
    assert request.job_states.send_immediately(bobs).owner == "bob"
    assert VISITOR not in request.session
    assert request.job_states.send_immediately(actor, 26).owner is not None
    assert VISITOR in request.session
