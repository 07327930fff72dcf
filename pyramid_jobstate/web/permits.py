"""What a request may do with a job. All permission checks go through here."""

from __future__ import annotations

import logging
import secrets
import time
from collections import deque
from typing import TYPE_CHECKING, Any, NoReturn

from pyramid.authorization import ACLHelper, Authenticated, Everyone
from pyramid.httpexceptions import HTTPException, HTTPForbidden
from pyramid.interfaces import ISecurityPolicy
from pyramid.security import Denied
from pyramid.threadlocal import get_current_request
from redis.exceptions import RedisError

from ..errors import StoreUnavailable
from ..job.once import Once
from ..job.state import JobState, as_seen_from, record_of
from ..job.values import is_system
from ..store.connection import LOST, ConnectionsInUse
from ..worker.recorder import Outage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from pyramid.request import Request


log = logging.getLogger("pyramid_jobstate")

#: Seconds between two log lines about a server that answers but refuses requests.
LOG_PAUSE = 60.0

#: The most outages logged in that time. With one node of a Cluster away, errors and
#: answers alternate.
MAX_OUTAGES = 5


class UnreadRecord:
    """The stand-in for a record that the store could not read: any attribute but the
    uuid raises StoreUnavailable.

    With it traversal reaches our own views, which respond. An exception would pass all
    tweens, and a tween that logs exceptions would log each poll during an outage.
    """

    def __init__(self, uuid: str, error: StoreUnavailable) -> None:
        self.uuid = self.name = uuid
        self._error = error

    def __getattr__(self, name: str) -> NoReturn:
        raise StoreUnavailable(self._error.container, str(self._error))


class WebOutage(Outage):
    """Logs that the store does not answer requests.

    Each outage is logged once, and so is its end, with at most five outages a minute. A
    refusal is logged at most once a minute, and so is that no connection is free.
    """

    def __init__(self) -> None:
        super().__init__(
            log,
            "The job state store does not answer. Requests for jobs get a 503 response "
            'until it does: %s: %s (See "503" in the troubleshooting guide.)',
            "The job state store answers again.",
            "%s Requests for jobs that find none free within half a second get a 503 "
            'response. (See "503" in the troubleshooting guide.)',
        )
        self._begun: deque[float] = deque(maxlen=MAX_OUTAGES)
        self._next_refusal = 0.0

    def note(self, error: RedisError) -> None:
        """Log an error of the store, unless it was logged before."""
        now = time.monotonic()
        if isinstance(error, LOST):
            begun = self._begun
            is_rare = len(begun) < MAX_OUTAGES or now - begun[0] > LOG_PAUSE
            if is_rare and not self.is_logged:
                begun.append(now)
                self.complain(error)
            return
        if isinstance(error, ConnectionsInUse):
            self.complain_of_crowd(error)
            return
        # Other requests succeed meanwhile, so a refusal has no end that can be logged.
        if now >= self._next_refusal:
            self._next_refusal = now + LOG_PAUSE
            log.warning(
                "The job state store refused a request, which gets a 503 response: "
                '%s: %s (See "503" in the troubleshooting guide.)',
                type(error).__name__,
                error,
            )


#: The request attribute that caches the owner and principal, or the exception raised.
_KNOWN = "_jobstate_owner"

#: The request attribute that holds a visitor's new name, until the session keeps it.
_NEW_NAME = "_jobstate_new_name"

#: The request attribute that marks the request of a job.
_IS_JOB = "_jobstate_is_job"

#: The actors and kinds of batches whose jobs without an owner were examined.
_ownerless = Once()

OWNERLESS = (
    "A visitor has sent a job of %r that they may not see, since it has no owner: "
    "%s(request) returned None. The line `jobstate.owner = session` in the ini lets "
    "each visitor own the jobs of their session. If nobody is to own the job, send it "
    'with owner=None. See "403" in the troubleshooting guide.'
)

#: The key of a visitor's name in the session.
VISITOR = "jobstate.visitor"


def permits(request: Request, context: Any, permission: str) -> Any:
    """Return whether a request has a permission on a job or a container. HTTPForbidden,
    which the application's code may raise to refuse, counts as a denial.
    """
    try:
        return _decision(request, context, permission)
    except HTTPForbidden as e:
        return Denied("%s", e)


def _decision(request: Request, context: Any, permission: str) -> Any:
    """Return what the setting ``jobstate.permits``, by default :func:`policy_permits`,
    decides on a permission.
    """
    if isinstance(context, JobState):
        # The job may come from another request: an owner's ACE holds in one only.
        context = as_seen_from(context, request)
    return request.registry.jobstate.permits(request, context, permission)


def policy_permits(request: Request, context: Any, permission: str) -> Any:
    """Return the decision of the application's security policy.

    Without a policy the ACLs decide, with Everyone as the only principal. (Pyramid's
    own `has_permission` would allow everything.)
    """
    policy = request.registry.queryUtility(ISecurityPolicy)
    if policy is None:
        return ACLHelper().permits(context, [Everyone], permission)
    return policy.permits(request, context, permission)


def require(request: Request, context: Any, permission: str) -> None:
    """Require a permission on a job or a container.

    Our views call this instead of declaring a permission: Pyramid does not check one
    if no policy was set when the view was registered.

    Raises:
      HTTPForbidden: The request does not have the permission. One that the
        application's code has raised may have a view of its own.
      StoreUnavailable: The job could not be read.
    """
    if isinstance(context, JobState) and isinstance(record_of(context), UnreadRecord):
        # A policy that looks only at the class might refuse the request for good. This
        # raises StoreUnavailable.
        _ = record_of(context).status
    result = _decision(request, context, permission)
    if not result:
        log.debug("%s was refused on %r: %s", permission, context, result)
        raise HTTPForbidden


def authenticated_userid(request: Request) -> Any:
    """Return the userid of a request."""
    return request.authenticated_userid


def session_owner(request: Request) -> str | None:
    """Return the name of a visitor whose session has sent a job, or None."""
    session = request.session
    # Not session.get(): that would renew a cookie session, and the cookie of a poll
    # could overwrite what another request has just stored.
    name = (
        dict.get(session, VISITOR)
        if isinstance(session, dict)
        else session.get(VISITOR)
    )
    return name if isinstance(name, str) else None


def owner_of(request: Request) -> Any:
    """Return the owner that a request stands for. The application's function is called
    once per request, even if it raises.
    """
    return _owner_and_principal(request)[0]


def sender_of(request: Request) -> Any:
    """Return the owner of the jobs that a request sends. For a visitor whose session
    has no name yet this is a new name, which :func:`name_visitor` keeps.
    """
    find = request.registry.jobstate.owner
    if find is not session_owner or request.__dict__.get(_IS_JOB):
        return owner_of(request)
    # Asked again, since the session may have been invalidated.
    name = session_owner(request)
    if name is None:
        # A batch keeps it at its end, and the request may send others before.
        name = request.__dict__.setdefault(_NEW_NAME, secrets.token_urlsafe(18))
    return name


def note_ownerless(request: Request, job_states: Iterable[JobState]) -> None:
    """Warn of jobs without an owner that the visitor who has just sent them may not
    see, once for each actor and each kind of batch.

    Whom the ACL of a class lets in is not known here. A request that no router has
    handled is that of a job or of a script.
    """
    if "view_name" not in request.__dict__:
        return
    for job_state in job_states:
        cls, name = type(job_state), job_state.actor or job_state.kind
        if (
            job_state.owner is not None
            or cls.__acl__ is not JobState.__acl__
            or not _ownerless.is_new(name)
        ):
            continue
        try:
            is_seen = bool(permits(request, job_state, "view_job"))
        except HTTPException:
            # Such as a redirect to the login.
            is_seen = False
        except Exception:
            # The job is sent already. Requests for it will tell.
            continue
        if not is_seen:
            find = request.registry.jobstate.owner
            log.warning(OWNERLESS, name, getattr(find, "__qualname__", find))


def name_visitor(request: Request, owner: str) -> None:
    """Keep the owner of a job that was sent in the visitor's session, if the owner is
    known by it.
    """
    find = request.registry.jobstate.owner
    if find is session_owner and not request.__dict__.get(_IS_JOB):
        name = session_owner(request)
        if name is None:
            request.session[VISITOR] = name = owner
            # If the session is invalidated, the next name is another.
            request.__dict__.pop(_NEW_NAME, None)
        request.__dict__[_KNOWN] = name, _principal(find)


def set_owner(request: Request, owner: str | float | None) -> None:
    """Have the request of a job stand for the job's owner."""
    find = request.registry.jobstate.owner
    request.__dict__[_IS_JOB] = True
    request.__dict__[_KNOWN] = owner, _principal(find)


def principals_of(request: Request, owner: str | float) -> tuple[str | float, ...]:
    """Return the principals that stand for the owner of a job in a request's ACLs.

    The owner's own request also gets a principal that every policy knows, whatever it
    calls its own. Since 1 == True == 1.0 in Python, an equal owner of another type gets
    no principal at all: none would be safe.
    """
    if get_current_request() not in (None, request):
        # Another request is asking its policy about a job of this one.
        return (owner,)
    theirs, principal = _owner_and_principal(request)
    if theirs != owner:
        return (owner,)
    # An owner of a subclass, such as a database driver's, is stored as a plain value.
    if not isinstance(theirs, type(owner)) or isinstance(theirs, bool):
        return ()
    return (principal, owner)


def _owner_and_principal(request: Request) -> tuple[Any, str]:
    # Cached, since a poll asks twice.
    known: Any = request.__dict__.get(_KNOWN)
    if known is None:
        find = request.registry.jobstate.owner
        try:
            owner = find(request)
            # A visitor may have chosen the name.
            if is_system(owner):
                owner = None
            known = owner, _principal(find)
        except Exception as e:
            known = e
        request.__dict__[_KNOWN] = known
    if isinstance(known, Exception):
        raise known
    return known  # type: ignore[no-any-return]


def _principal(find: Callable[..., Any]) -> str:
    """Return the principal that stands for an owner whom a function has found."""
    principal: str = Authenticated if find is authenticated_userid else Everyone
    return principal
