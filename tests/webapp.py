"""A Pyramid application for the tests of the web side, and jobs to look at."""

from collections.abc import Callable, Mapping
from typing import Any

from dramatiq import Message, actor
from dramatiq.brokers.redis import RedisBroker
from pyramid.authorization import ACLHelper, Allow, Authenticated, Everyone
from pyramid.config import Configurator
from pyramid.request import Request, apply_request_extensions
from webtest import TestApp

from pyramid_jobstate import JobStateMiddleware, JobStore
from pyramid_jobstate.resources import JobStates
from tests.jobs import RunMarathon

#: Nothing listens at this port.
NOWHERE = "redis://127.0.0.1:1/0"

ADMIN = "admin"


class Policy:
    """Trusts the header X-User, and decides by ACLs."""

    def identity(self, request: Request) -> str | None:
        return request.headers.get("X-User")

    authenticated_userid = identity

    def permits(self, request: Request, context: Any, permission: str) -> Any:
        user = self.identity(request)
        principals = [Everyone] if user is None else [Everyone, Authenticated, user]
        return ACLHelper().permits(context, principals, permission)


class Root(dict[str, Any]):
    """The application's own root, where admins may do everything with jobs."""

    __name__: str | None = None
    __parent__: "Root | None" = None
    __acl__: Any = (
        (Allow, Everyone, ("view", "edit")),
        (Allow, ADMIN, ("view_job", "cancel_job", "list_jobs")),
    )

    def __init__(self, request: Request) -> None:
        super().__init__()
        self.request = request


def mounted_root(request: Request) -> Root:
    """A root factory that places the jobs at /jobs and at /site/jobs, too."""
    root, site = Root(request), Root(request)
    site.__name__, site.__parent__ = "site", root
    root["site"] = site
    for place in root, site:
        place["jobs"] = JobStates(request, parent=place, name="jobs")
    return root


#: Where the jobs of an application with `mounted_root` are.
PLACES = ["/job_state", "/jobs", "/site/jobs"]


def make_config(redis_url: str | None, **options: Any) -> Configurator:
    """Return a configurator that has included nothing yet. Options override ours."""
    settings = {"jobstate.redis_url": redis_url} if redis_url else {}
    settings.update(options.pop("settings", {}))
    usual = {"root_factory": Root, "security_policy": Policy()}
    return Configurator(settings=settings, **{**usual, **options})


#: The setting that gives each request its own transaction manager.
EXPLICIT = {"tm.manager_hook": "pyramid_tm.explicit_manager"}


def make_tm_config(
    redis_url: str | None, settings: Mapping[str, str] = EXPLICIT, **options: Any
) -> Configurator:
    """Return the configurator of an application that has included pyramid_tm."""
    config = make_config(redis_url, settings=settings, **options)
    config.include("pyramid_tm")
    return config


def make_app(config: Configurator) -> TestApp:
    """Return the application, with pyramid_jobstate included."""
    config.include("pyramid_jobstate")
    return TestApp(config.make_wsgi_app())


def renewed(app: TestApp) -> TestApp:
    """Return the application with no cookies, and nothing remembered of the store."""
    registry = app.app.registry
    config = Configurator(registry=registry, autocommit=True)
    config.set_job_store(JobStore(registry.settings["jobstate.redis_url"]))
    return TestApp(app.app)


def made_config(redis_url: str | None, **options: Any) -> Configurator:
    """Return the configurator of a finished application with pyramid_jobstate."""
    config = make_config(redis_url, **options)
    make_app(config)
    return config


def take_steps(config: Configurator, steps: str, **own: Callable[[], object]) -> Any:
    """Take named steps of a start, or the test's own, and return the last's result."""
    known: dict[str, Callable[[], object]] = {
        "include": lambda: config.include("pyramid_jobstate"),
        "commit": config.commit,
        "make": lambda: TestApp(config.make_wsgi_app()),
        **own,
    }
    return [known[name]() for name in steps.split()][-1]


def make_request(config: Configurator, user: str | None = None) -> Request:
    """Return a user's request to the finished application."""
    request = Request.blank("/", headers={} if user is None else {"X-User": user})
    request.registry = config.registry
    apply_request_extensions(request)
    return request


def get(app: TestApp, path: str, user: str | None = None, **headers: str) -> Any:
    """Return the response to a user's GET request, whatever its status."""
    return ask(app, "GET", path, user, **headers)


def ask(
    app: TestApp, method: str, path: str, user: str | None = None, **headers: str
) -> Any:
    """Return the response to a user's request, whatever its status."""
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    if user is not None:
        sent["X-User"] = user
    return app.request(path, method=method, headers=sent, expect_errors=True)


def queued(client: Any, name: str = "default") -> list[Message[Any]]:
    """Return the messages in the broker's queue, oldest first."""
    ids = client.lrange(f"dramatiq:{name}", 0, -1)
    found: Any = [client.hget(f"dramatiq:{name}.msgs", i) for i in ids]
    return [Message.decode(message) for message in found]


def make_alias(client: Any, key: str, target: str) -> None:
    """Turn a record at once into an alias, which leads to another job."""
    with client.pipeline() as pipeline:
        pipeline.delete(key)
        pipeline.hset(key, mapping={"status": "alias", "target": target})
        pipeline.execute()


def make_broker(url: str, middleware: JobStateMiddleware | None = None) -> RedisBroker:
    """Return a broker with the tracked actor run_marathon and the untracked sweep."""
    broker = RedisBroker(url=url)
    broker.add_middleware(middleware or JobStateMiddleware())

    @actor(broker=broker, job_state=RunMarathon)
    def run_marathon(miles: int, *, shoes: str = "red", job_state: Any = None) -> None:
        """Do nothing."""

    @actor(broker=broker)
    def sweep() -> None:
        """Do nothing."""

    return broker
