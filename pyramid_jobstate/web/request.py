"""RequestMiddleware: a request for an actor, of the application that sent its job."""

from __future__ import annotations

import asyncio
import inspect
import logging
import weakref
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from dramatiq.middleware import Middleware
from pyramid import threadlocal
from pyramid.config import global_registries
from pyramid.interfaces import IRequestFactory, IRootFactory, IRoutesMapper
from pyramid.request import Request, apply_request_extensions
from pyramid.threadlocal import RequestContext
from pyramid.traversal import DefaultRootFactory

from ..errors import ActorError
from ..job.hooks import REQUEST
from ..worker.actors import (
    HandedFunction,
    TrackedFunction,
    called_function,
    has_parameter,
    receives_request,
    refuse_request,
)
from ..worker.current import Conflict
from ..worker.ledger import ledger_of
from ..worker.message import APPLICATION, OWNER, URL, check_owner
from .interfaces import IJobStore
from .jobstates import application_name
from .permits import set_owner
from .settings import is_base_url
from .transaction import abort, is_shared

if TYPE_CHECKING:
    from dramatiq import Actor, Broker, Message
    from dramatiq.broker import MessageProxy
    from pyramid.registry import Registry

log = logging.getLogger("pyramid_jobstate")

NONE = (
    "needs a request, but this process has made no Pyramid application. Start workers "
    'with `pjobs INI work`. See "An error with a request in it" in the troubleshooting '
    "guide."
)

SEVERAL = (
    "needs a request, but several applications of this process share its broker, and "
    "the message does not name one of them. Send it with request.job_states, give each "
    "application a jobstate.base_url, and keep a reference to the application that a "
    "worker makes. A test suite gives its applications one such URL, or calls "
    "pyramid_jobstate.testing.release_broker()."
)

#: What an actor's option `throws` may be.
Throws = type[BaseException] | tuple[type[BaseException], ...]

#: The URL of an application that neither a setting nor a sender has named.
DEFAULT_URL = "http://localhost"


class RequestMiddleware(Middleware):
    """Gives a request to each actor, and to each hook, that has a parameter `request`::

        @dramatiq.actor
        def import_file(name, *, request, job_state):
            request.dbsession.add(...)

    Each run of a job begins a transaction on ``request.tm``, commits it when the actor
    returns, and aborts it if anything is raised. A job is a success only once that has
    committed. A conflict runs the job again at once, at most ``retry.attempts`` times
    in all, and after that as Dramatiq retries any failure.

    The setting ``jobstate.broker`` adds this middleware. A broker of your own needs it
    beside its :class:`JobStateMiddleware`, added before the actors are declared.

    Attributes:
      parameter: The parameter of those actors.
      applications: The applications that the requests are made for. The include adds
        each one to the middleware of the global broker.
    """

    parameter = REQUEST

    def __init__(self) -> None:
        self.applications = Applications()
        #: The actors whose functions receive one.
        self._given: weakref.WeakSet[Actor[Any, Any]] = weakref.WeakSet()

    def before_declare_actor(self, broker: Broker, actor: Actor[Any, Any]) -> None:
        # Only an error from a before_ hook reaches the code that declares the actor.
        if not has_parameter(actor, REQUEST):
            return
        if asyncio.iscoroutinefunction(inspect.unwrap(called_function(actor.fn))):
            raise ActorError(
                f"The actor {actor.actor_name!r} is async and cannot receive a "
                "request, which belongs to one thread: its commit would block every "
                "other coroutine of the worker. Declare it with `def`."
            )
        self._give(actor)

    def after_declare_actor(self, broker: Broker, actor: Actor[Any, Any]) -> None:
        # For a middleware added after its actors, Dramatiq calls only this hook.
        if has_parameter(actor, REQUEST):
            self._give(actor)

    def _give(self, actor: Actor[Any, Any]) -> None:
        """Have the function of an actor receive a request."""
        if actor in self._given:
            return
        self._given.add(actor)
        if isinstance(actor.fn, TrackedFunction):
            # Inside, so that the job ends after the commit.
            actor.fn.put_inside(RequestFunction(actor.fn.inner, actor, self))
        else:
            actor.fn = RequestFunction(actor.fn, actor, self)

    def before_enqueue(
        self, broker: Broker, message: Message[Any], delay: int | None
    ) -> None:
        if receives_request(broker, message.actor_name):
            refuse_request(message)


class Applications:
    """The applications whose jobs a RequestMiddleware runs."""

    def __init__(self) -> None:
        # A worker need not keep the only application that it has made.
        self._last: Registry | None = None
        #: The last one made of each, by its name or else its identity. Test suites make
        #: and drop many.
        self._all: dict[str | int, weakref.ref[Any]] = {}

    def add(self, registry: Registry) -> None:
        """Note an application that has just been made."""
        key = application_name(registry) or _identity(registry)
        self._all[key] = weakref.ref(registry)
        self._last = registry

    def find(self, options: Mapping[str, Any]) -> Registry:
        """Return the registry of a job's application: the one that has sent it, or else
        the only one.

        Parameters:
          options: The options of the message.

        Raises:
          LookupError: No application was made, or none can be chosen. The message
            continues "The actor ...".
        """
        # An unhashable value is not a name either.
        ref = self._all.get(str(options.get(APPLICATION)))
        if ref is not None or len(self._all) > 1:
            sender = ref and ref()
            if sender is None:
                raise LookupError(SEVERAL)
            return sender
        found = self._last or last_application()
        if found is None:
            raise LookupError(NONE)
        return found


def _identity(registry: Registry) -> int:
    """Return what stays the same if an application without a name is made again."""
    settings = registry.settings.items()
    texts = frozenset((key, text) for key, text in settings if isinstance(text, str))
    routes = registry.getUtility(IRoutesMapper).get_routes()
    patterns = tuple((route.name, route.pattern) for route in routes)
    return hash((registry.package_name, texts, patterns))


def last_application() -> Registry | None:
    """Return the registry of the last application that was made with this package."""
    for registry in reversed([*global_registries]):
        # A registry may be collected meanwhile.
        if registry is not None and registry.queryUtility(IJobStore) is not None:
            return registry
    return None


class RequestFunction(HandedFunction):
    """The function of an actor, called with a request and in its transaction.

    If it is called directly it passes on what it is given.

    Parameters:
      fn: The function that it calls.
      actor: The actor.
      middleware: The middleware, which knows the application.
    """

    parameter = REQUEST

    def __init__(
        self,
        fn: Callable[..., Any],
        actor: Actor[Any, Any],
        middleware: RequestMiddleware,
    ) -> None:
        super().__init__(fn)
        self._actor = actor
        self._middleware = middleware

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        job = ledger_of(self._actor.broker).thread.job
        name = self._actor.actor_name
        if job is None or job.has_request or job.message.actor_name != name:
            return self.inner(*args, **kwargs)
        # A call from within the job counts as direct.
        job.has_request = True
        try:
            registry = self._middleware.applications.find(job.message.options)
        except LookupError as e:
            raise RuntimeError(f"The actor {name!r} {e}") from None
        return with_request(
            registry,
            job.message,
            lambda request: self.inner(*args, **{**kwargs, REQUEST: request}),
            throws=self._actor.options.get("throws") or (),
        )


def with_request(
    registry: Registry,
    message: Message[Any] | MessageProxy,
    call: Callable[[Request], Any],
    environ: Mapping[str, Any] | None = None,
    *,
    throws: Throws = (),
) -> Any:
    """Call a function with a request for a job, in a transaction, and return the
    result.

    Parameters:
      registry: The registry of the application.
      message: The message of the job.
      environ: Further keys for the request's WSGI environ. With ``tm.active``, the
        transaction is left to the caller.
      throws: The exceptions that are not conflicts, since the actor expects them.

    Raises:
      Conflict: A conflict occurred, and the job has attempts left.
      BaseException: What the function or the commit raises. The transaction is aborted.
    """
    request = _make_request(registry, message, environ)
    stack = threadlocal.manager.stack
    depth = len(stack)
    try:
        RequestContext(request).begin()
        apply_request_extensions(request)
        try:
            return _in_transaction(request, message.actor_name, call, throws)
        finally:
            _finish(request)
    finally:
        # Not end(): an interrupt may have come before or after the push. None can come
        # between these statements, which call nothing.
        del stack[depth:]


def _make_request(
    registry: Registry,
    message: Message[Any] | MessageProxy,
    environ: Mapping[str, Any] | None,
) -> Request:
    factory = registry.queryUtility(IRequestFactory, default=Request)
    options = message.options
    url = registry.jobstate.base_url or options.get(URL, DEFAULT_URL)
    if not isinstance(url, str) or not is_base_url(url):
        log.warning("The message %s has an invalid job_url: %r.", message, url)
        url = DEFAULT_URL
    attempts = int(registry.settings.get("retry.attempts", 3))
    known = {
        # As pyramid_retry counts: from 0.
        "retry.attempt": min(options.get("retries", 0), attempts),
        "retry.attempts": attempts,
    }
    # Made with Pyramid's `blank`, since that of a factory may accept only a path.
    request = factory(
        Request.blank("/", environ={**known, **(environ or {})}, base_url=url).environ
    )
    request.registry = registry
    try:
        set_owner(request, check_owner(options.get(OWNER)))
    except (TypeError, ValueError) as e:
        log.warning("The job of %s has no owner: %s", message, e)
        set_owner(request, None)
    return request


def _in_transaction(
    request: Request,
    actor_name: str,
    call: Callable[[Request], Any],
    throws: Throws,
) -> Any:
    environ = request.environ
    manager = getattr(request, "tm", None)
    if manager is None or "tm.active" in environ or "repoze.tm.active" in environ:
        return _call(request, call)
    if is_shared(request, manager):
        raise RuntimeError(
            f"The actor {actor_name!r} runs within a request whose transaction manager "
            "it would share, so it cannot have a transaction of its own. Set "
            'tm.manager_hook = pyramid_tm.explicit_manager. See "An error with a '
            'request in it" in the troubleshooting guide.'
        )
    try:
        # The arguments of a job may be private, and ZODB stores the note.
        manager.begin().note(actor_name)
        environ.update({"tm.active": True, "tm.manager": manager})
        result = _call(request, call)
        _deactivate(environ)
        manager.commit()
    except BaseException as e:
        try:
            _deactivate(environ)
            # Asked first, since an abort forgets the databases.
            is_conflict = (
                isinstance(e, Exception)
                and not isinstance(e, throws)
                and _is_retryable(request, manager, e)
            )
        finally:
            abort(manager, e)
        if is_conflict:
            raise Conflict(f"{type(e).__name__}: {e}", delay=0) from e
        raise
    return result


def _call(request: Request, call: Callable[[Request], Any]) -> Any:
    factory = request.registry.queryUtility(IRootFactory, default=DefaultRootFactory)
    request.root = request.context = factory(request)
    return call(request)


def _deactivate(environ: dict[str, Any]) -> None:
    environ.pop("tm.active", None)
    environ.pop("tm.manager", None)


def _is_retryable(request: Request, manager: Any, error: Exception) -> bool:
    """Return whether pyramid_retry would try again after an error."""
    environ = request.environ
    if environ["retry.attempt"] + 1 >= environ["retry.attempts"]:
        return False
    from transaction.interfaces import NoTransaction

    try:
        if manager.get().isRetryableError(error):
            return True
    except NoTransaction:
        pass
    try:
        from pyramid_retry import is_error_retryable
    except ImportError:
        return False
    return bool(is_error_retryable(request, error))


def _finish(request: Request) -> None:
    """Call the finished callbacks of a request, such as those that close a database."""
    try:
        request._process_finished_callbacks()  # noqa: SLF001, as pyramid.scripting
    except Exception:
        # The transaction has committed or aborted: the job's end is settled.
        log.exception("A finished callback of a job failed.")
    finally:
        # Even an interrupt must not keep a database from being closed.
        if request.finished_callbacks:
            _finish(request)
