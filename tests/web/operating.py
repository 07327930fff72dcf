"""What the tests of operators' requests share: an application with operators, and jobs
that have failed in a real worker.
"""

from collections.abc import Callable
from typing import Any
from urllib.parse import urlencode

from dramatiq import Message
from dramatiq.brokers.redis import RedisBroker
from pyramid.authorization import Allow, Deny
from pyramid.csrf import CookieCSRFStoragePolicy, get_csrf_token
from pyramid.request import Request
from webtest import TestApp

from pyramid_jobstate import JobError, JobState, JobStateMiddleware, JobStore
from pyramid_jobstate.resources import JobStates
from pyramid_jobstate.testing import put_job
from tests.jobs import RunMarathon, job_actor, make_broker, wait_until, working
from tests.webapp import Policy, Root, ask, make_app, make_config

#: May do everything with all jobs.
OPERATOR = "operator"

#: May do everything with each job, and list those of nobody else.
KEEPER = "keeper"

ACTS = ("delete_job", "rerun_job", "inspect_job")


class OperatedRoot(Root):
    """A root that lets operators do what nobody may by default."""

    __acl__ = (
        *Root.__acl__,
        (Allow, OPERATOR, ("view_job", "cancel_job", "list_jobs", *ACTS)),
        (Allow, KEEPER, ("view_job", "cancel_job", *ACTS)),
    )


def operated_root(request: Request) -> OperatedRoot:
    """A root factory that places the jobs at /jobs and at /site/jobs, too."""
    root = OperatedRoot(request)
    root["jobs"] = JobStates(request, parent=root, name="jobs")
    root["site"] = site = Root(request)
    site.__name__, site.__parent__, site.__acl__ = "site", root, ()
    site["jobs"] = JobStates(request, parent=site, name="jobs")
    return root


class Asked(Policy):
    """A policy that calls a function, which may raise, before it decides."""

    def __init__(self, call: Callable[[Request, Any, str], object]) -> None:
        self.call = call

    def permits(self, request: Request, context: Any, permission: str) -> Any:
        self.call(request, context, permission)
        return super().permits(request, context, permission)


def operated_app(
    redis_url: str,
    call: Callable[[Request, Any, str], object] = lambda *asked: None,
    **options: Any,
) -> TestApp:
    """Return an application with operators, whose policy calls a function."""
    options = {"root_factory": operated_root, "security_policy": Asked(call), **options}
    return make_app(make_config(redis_url, **options))


def act(
    app: TestApp,
    path: str,
    user: str | None = OPERATOR,
    method: str = "POST",
    **query: object,
) -> Any:
    """Return the response to a user's request that changes jobs."""
    if query:
        path = f"{path}?{urlencode(query)}"
    return ask(app, method, path, user, X_Requested_With="XMLHttpRequest")


class Blister(Exception):
    """What the actor of the tests raises."""


class Marathons:
    """A broker with an actor that fails until the test mends it. Its worker only runs
    while the test waits for a job, and notes the uuids of the jobs that `ran`.
    """

    def __init__(self, url: str, store: JobStore | None = None) -> None:
        self.broker: RedisBroker = make_broker(url, JobStateMiddleware(store))
        self.is_mended = False
        self.ran: list[str] = []

        @job_actor(broker=self.broker, max_retries=0)
        def run_marathon(
            miles: Any = 26, shoes: Any = "red", *, job_state: RunMarathon
        ) -> None:
            self.ran.append(job_state.uuid)
            if not self.is_mended:
                raise Blister(f"after {miles} miles in {shoes} shoes")

        self.run_marathon = run_marathon

    def fail(self, *owners: str | None, **options: Any) -> list[str]:
        """Let the jobs of owners fail, and return their uuids."""
        options = {"args": (26,), **options}
        send = self.run_marathon.send_with_options
        messages = [send(job_owner=owner, **options) for owner in owners]
        self.wait(messages, "error")
        return [message.message_id for message in messages]

    def wait(self, messages: list[Message[Any]], *statuses: str) -> list[JobState]:
        """Run a worker until jobs have one of the statuses."""
        with working(self.broker):
            return [wait_until(self.broker, message, *statuses) for message in messages]

    def wait_for(self, uuid: str, *statuses: str) -> JobState:
        """Run a worker until a job has one of the statuses."""
        message = self.run_marathon.message()
        return self.wait([message.copy(message_id=uuid)], *statuses)[0]


class Letter(RunMarathon):
    """A kind whose owner may do everything with a job."""

    def __acl__(self) -> list[tuple[str, Any, Any]]:
        return [(Allow, self.owner, ACTS), *super().__acl__()]


class LockedDiary(JobState):
    """A kind of job that its owner may cancel but not see."""

    def __acl__(self) -> list[tuple[str, Any, Any]]:
        return [(Deny, self.owner, "view_job"), *super().__acl__()]


def put(store: JobStore, *owners: Any, cls: Any = Letter, **options: Any) -> list[str]:
    """Store a job of each owner, and return their uuids. The failed can run again."""
    usual = {"actor": "run_marathon", "params": {"miles": 26}, "status": "working"}
    options = {**usual, **options}
    if options["status"] == "error":
        options.setdefault("error", JobError("ValueError", "wrong"))
    return [put_job(store, cls, owner=owner, **options).uuid for owner in owners]


def statuses(store: JobStore, *uuids: str) -> list[str | None]:
    """Return the statuses of jobs, with None for each that is unknown."""
    return [None if job is None else job.status for job in store.load_many(uuids)]


def uuids_of(items: Any) -> list[str]:
    """Return the uuids of the jobs of a list, as its JSON or the store gives them."""
    return [i.uuid if isinstance(i, JobState) else i["job"]["uuid"] for i in items]


def csrf_app(redis_url: str) -> TestApp:
    """Return an application that requires CSRF tokens, and gives them at /token."""
    config = make_config(redis_url, root_factory=operated_root)
    config.set_csrf_storage_policy(CookieCSRFStoragePolicy())
    config.set_default_csrf_options(require_csrf=True)
    config.add_view(lambda c, r: get_csrf_token(r), name="token", renderer="string")
    return make_app(config)
