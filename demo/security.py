"""Who may log in, and what they may do."""

from typing import Any, NamedTuple

from pyramid.authentication import AuthTktCookieHelper
from pyramid.authorization import ACLHelper, Allow, Authenticated, Everyone
from pyramid.config import Configurator
from pyramid.request import Request, RequestLocalCache


class User(NamedTuple):
    """Somebody who may log in. The userid also names the owner of their jobs."""

    userid: str
    name: str
    role: str
    groups: tuple[str, ...] = ()


USERS = {
    user.userid: user
    for user in (
        User("alice", "Alice", "Sees her own jobs"),
        User("bob", "Bob", "Sees his own jobs"),
        User("grace", "Grace", "Admin: handles everyone’s", ("group:admins",)),
    )
}


def owner_label(request: Request, owner: str) -> str | None:
    """Return the name of the owner of a job, for the pages of admins."""
    return USERS[owner].name if owner in USERS else None


#: What admins may do with the jobs of everyone.
ADMIN = (
    "view_job",
    "cancel_job",
    "rerun_job",
    "delete_job",
    "inspect_job",
    "list_jobs",
)


class Root:
    """The root of the resource tree. It decides what a JobState's own ACL leaves
    undecided, such as what other users than the owner may do.
    """

    __name__ = None
    __parent__ = None

    def __init__(self, request: Request) -> None:
        pass

    def __acl__(self) -> list[tuple[str, str, Any]]:
        return [
            (Allow, "group:admins", ADMIN),
            (Allow, Authenticated, "enter"),
        ]


class SecurityPolicy:
    """Identifies users by a signed cookie, and decides by access control lists."""

    def __init__(self, secret: str) -> None:
        self.cookie = AuthTktCookieHelper(
            secret, hashalg="sha512", http_only=True, samesite="Lax"
        )
        self.acl = ACLHelper()
        self.users = RequestLocalCache(self.load_user)

    def load_user(self, request: Request) -> User | None:
        ticket = self.cookie.identify(request)
        return USERS.get(ticket["userid"]) if ticket else None

    def identity(self, request: Request) -> User | None:
        return self.users.get_or_create(request)

    def authenticated_userid(self, request: Request) -> str | None:
        user = self.identity(request)
        return user.userid if user else None

    def permits(self, request: Request, context: Any, permission: str) -> Any:
        principals = [Everyone]
        if user := self.identity(request):
            principals += [Authenticated, user.userid, *user.groups]
        return self.acl.permits(context, principals, permission)

    def remember(self, request: Request, userid: str, **kw: Any) -> Any:
        return self.cookie.remember(request, userid, **kw)

    def forget(self, request: Request, **kw: Any) -> Any:
        return self.cookie.forget(request, **kw)


def includeme(config: Configurator) -> None:
    settings = config.get_settings()
    config.set_root_factory(Root)
    config.set_security_policy(SecurityPolicy(settings["demo.secret"]))
    config.set_default_permission("enter")
    config.set_default_csrf_options(require_csrf=True)
