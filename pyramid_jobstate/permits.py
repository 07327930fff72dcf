"""What a request may do with a job: the one place that asks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pyramid.authorization import ACLHelper, Authenticated, Everyone
from pyramid.interfaces import ISecurityPolicy
from zope.interface import Interface

if TYPE_CHECKING:
    from pyramid.request import Request

#: Where a request keeps its owner, or what the owner function raised.
_OWNER = "_jobstate_owner"


class IOwner(Interface):  # type: ignore[misc]
    """Marks the function that returns the owner of a request's jobs, a utility."""


def permits(request: Request, context: object, permission: str) -> Any:
    """Return whether a request has a permission on a job or a container, as a policy
    answers.

    Without a security policy the ACLs decide for Everyone alone: Pyramid's own
    `has_permission` would allow everything.
    """
    policy = request.registry.queryUtility(ISecurityPolicy)
    if policy is None:
        return ACLHelper().permits(context, [Everyone], permission)
    return policy.permits(request, context, permission)


def authenticated_userid(request: Request) -> Any:
    """Return the userid of a request; None for Pyramid's Everyone and Authenticated."""
    userid = request.authenticated_userid
    return None if userid in (Everyone, Authenticated) else userid


def owner_of(request: Request) -> Any:
    """Return the owner of the jobs that a request sends. The application's function is
    called once a request, also if it raises.
    """
    known = request.__dict__.get(_OWNER)
    if known is None:
        try:
            known = request.registry.getUtility(IOwner)(request), None
        except Exception as e:
            known = None, e
        request.__dict__[_OWNER] = known
    owner, error = known
    if error is not None:
        raise error
    return owner


def principals_of(request: Request, owner: str | float) -> tuple[str | float, ...]:
    """Return the principals that stand for the owner of a job in a request's ACLs.

    The owner's own request gets one that its policy knows, whatever its principals are
    called. Python says that 1 == True == 1.0: where only the types differ no principal
    is safe.
    """
    theirs = owner_of(request)
    if theirs != owner:
        return (owner,)
    # A subclass of str is stored as a str.
    if type(theirs) is not type(owner) and not isinstance(theirs, str):
        return ()
    is_default = request.registry.getUtility(IOwner) is authenticated_userid
    return (Authenticated if is_default else Everyone, owner)
