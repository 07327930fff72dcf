"""Hooks: sends the messages that tell how jobs have ended, and runs the hooks."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Collection, Coroutine, Iterable
from typing import TYPE_CHECKING, Any

import dramatiq
from dramatiq import Message
from dramatiq.errors import ConnectionClosed, ConnectionFailed
from dramatiq.middleware import Retries
from redis.exceptions import RedisError

from ..errors import ActorError
from ..job.hooks import HOOKS, REQUEST, current_hook
from ..job.state import (
    JobState,
    class_hooks,
    imported_class,
    kinds_with_hooks,
    record_of,
)
from ..job.values import stored_owner
from ..store.connection import LOST
from ..store.jobstore import JobStore, records_of
from .message import APPLICATION, OWNER, URL
from .recorder import Outage

if TYPE_CHECKING:
    from dramatiq import Broker
    from dramatiq.broker import MessageProxy

    from ..job.record import End
    from ..store.ends import UntoldEnd
    from .current import ThreadState

log = logging.getLogger("pyramid_jobstate")

#: The names of the actors that run hooks without and with a request.
HOOK, REQUEST_HOOK = "jobstate_hook", "jobstate_request_hook"

#: Their options, as far as the broker's middleware knows them: a message must not
#: expire, nor be interrupted where a job would be cancelled.
OPTIONS = {"max_age": None, "notify_shutdown": False, "store_results": False}

REFUSED = (
    "The broker refuses messages that call hooks. They leave once it accepts them: "
    "%s: %s"
)

#: What a broker raises whose server does not answer.
AWAY = (*LOST, ConnectionClosed, ConnectionFailed)


def is_hook(message: Message[Any] | MessageProxy) -> bool:
    """Return whether a message runs a hook."""
    return message.actor_name in (HOOK, REQUEST_HOOK)


def check_hooks(cls: type[JobState], broker: Broker, store: JobStore) -> None:
    """Check that the hooks of a class can be told.

    Raises:
      ActorError: They cannot.
    """
    hooks = class_hooks(cls)
    if not hooks:
        return
    if not records_of(store).ends.can_be_kept:
        name = HOOKS[next(iter(hooks))]
        raise ActorError(
            f"{cls.__qualname__}.{name}() needs a store whose keys share a slot of the "
            "Cluster. Give its namespace a hash tag, such as {jobstate}."
        )
    asking = [HOOKS[status] for status, takes_request in hooks.items() if takes_request]
    if asking and not _gives_requests(broker):
        raise ActorError(
            f"{cls.__qualname__}.{asking[0]}() needs a request, but the broker "
            f"{broker!r} has no RequestMiddleware. Add one before the actors are "
            "declared: broker.add_middleware(RequestMiddleware())."
        )


def _gives_requests(broker: Broker) -> bool:
    return any(getattr(m, "parameter", None) == REQUEST for m in broker.middleware)


def forget_actors(broker: Broker) -> None:
    """Remove the actors that run hooks from a broker whose actors move to another."""
    for name in (HOOK, REQUEST_HOOK):
        broker.actors.pop(name, None)


class Hooks:
    """Tells the ends of a broker's jobs to the hooks of their classes.

    Parameters:
      queue: The queue of the messages that run hooks, or None for those of the jobs.
      actors: The names of the tracked actors.
      store_for: Returns the store of a broker's jobs.
      thread: The state of the calling thread.
    """

    def __init__(
        self,
        queue: str | None,
        actors: Collection[str],
        store_for: Callable[[Broker], JobStore],
        thread: ThreadState,
    ) -> None:
        self.queue = queue
        self._actors = actors
        self._store_for = store_for
        self._thread = thread
        self._lock = threading.Lock()
        self._outage = Outage(log, REFUSED, None)
        #: The hooks that are to be tried again, but whose messages the broker has not
        #: accepted: the jobs, when these ended, and the ids of the messages.
        self._lost: set[tuple[str, str, str]] = set()
        #: The ids of the messages that are being sent, and have not been settled.
        self._sending: set[str] = set()

    def queue_of(self, broker: Broker) -> str | None:
        """Return the queue of the actors that run hooks, or None if the broker has no
        tracked actor.
        """
        if self.queue is not None:
            return self.queue
        actors = [broker.actors.get(name) for name in self._actors]
        return next((actor.queue_name for actor in actors if actor is not None), None)

    def declare(self, broker: Broker) -> None:
        """Declare the actors that run hooks, unless they are."""
        if HOOK in broker.actors:
            # An interrupt could leave the lock locked.
            return
        with self._lock:
            queue = self.queue_of(broker)
            if queue is None or HOOK in broker.actors:
                return
            known = broker.actor_options
            options = {name: OPTIONS[name] for name in OPTIONS if name in known}

            def run(uuid: str, hook: str, finished: str) -> None:
                self._run(broker, uuid, hook, finished)

            def run_with_request(
                uuid: str, hook: str, finished: str, *, request: Any
            ) -> None:
                self._run(broker, uuid, hook, finished, request)

            actors: dict[str, Callable[..., None]] = {}
            if _gives_requests(broker):
                actors[REQUEST_HOOK] = run_with_request
            # Last, since it stands for both.
            actors[HOOK] = run
            for name, function in actors.items():
                declare: Any = dramatiq.actor
                declare(
                    function,
                    broker=broker,
                    actor_name=name,
                    queue_name=queue,
                    **options,
                )

    def tell(self, broker: Broker, uuid: str) -> None:
        """Send the message that tells the end of a job, which is stored. What fails is
        left to :meth:`sweep`.
        """
        try:
            end = records_of(self._store_for(broker)).ends.take_one(uuid)
        except RedisError:
            return
        if end is not None:
            self._send(broker, [end])

    def sweep(self, broker: Broker, queues: Iterable[str]) -> None:
        """Send the messages that tell ends which nobody has told, as far as this
        process may: those of classes that it has imported, whose hooks receive a
        request only if the broker gives them one.

        Parameters:
          queues: The queues that this process consumes.
        """
        self._tell_again(broker)
        kinds = kinds_with_hooks(has_requests=_gives_requests(broker))
        if not kinds:
            return
        ends = records_of(self._store_for(broker)).ends.take(queues, kinds)
        self._send(broker, ends)

    def _send(self, broker: Broker, ends: Iterable[UntoldEnd]) -> None:
        sent = []
        self.declare(broker)
        for end in ends:
            message = hook_message(end)
            self._sending.add(message.message_id)
            try:
                broker.enqueue(message)
            except Exception as e:
                if message.message_id not in self._sending:
                    # It has run in the caller, and the hook has raised this.
                    continue
                self._outage.complain(e)
                if isinstance(e, AWAY):
                    # The others would each wait for it, too.
                    break
            else:
                self._outage.recover()
                sent.append(end)
            finally:
                self._sending.discard(message.message_id)
        try:
            records_of(self._store_for(broker)).ends.mark_sent(sent)
        except RedisError:
            # They are told twice, and the second message runs nothing.
            return

    def _run(
        self, broker: Broker, uuid: str, hook: str, finished: str, request: Any = None
    ) -> None:
        """Run a hook of a job, unless another message has, or the job has another end.

        Raises:
          RuntimeError: The process has not imported its class, or this has no such
            hook.
          Exception: What the hook raises.
        """
        job = self._thread.job
        assert job is not None
        # Else a broker that runs jobs in the caller would seem to have rejected it.
        job.was_called = True
        store = self._store_for(broker)
        job_state: Any
        job_state = (
            store.load(uuid) if request is None else request.job_states.find(uuid)
        )
        record = None if job_state is None else record_of(job_state)
        if record is None or record.text("finished") != finished:
            log.info(
                "%s() of the job %s does not run: that end is no longer there.",
                hook,
                uuid,
            )
            return
        cls = imported_class(record.kind)
        if cls is None:
            raise RuntimeError(
                f"{hook}() of the job {uuid} cannot run: this worker has not imported "
                f'the JobState class of the kind {record.kind!r}. See "A hook does not '
                'run" in the troubleshooting guide.'
            )
        if record.status not in class_hooks(cls):
            raise RuntimeError(
                f"{hook}() of the job {uuid} cannot run: the class "
                f"{cls.__module__}.{cls.__qualname__} of this worker has no such hook."
            )
        if request is None and class_hooks(cls)[record.status]:
            # It took none where the message was sent. With another id, it would be
            # told before if it has begun.
            broker.enqueue(job.message.copy(actor_name=REQUEST_HOOK))
            return
        if not records_of(store).ends.begin(uuid, finished, job.uuid):
            log.info("%s() of the job %s does not run: it was told before.", hook, uuid)
            return
        try:
            call_hook(job_state, request)
        except BaseException as e:
            # A broker that runs it in the caller may tell the middleware nothing.
            job.raised = e
            raise

    def end(self, broker: Broker, message: MessageProxy, end: End) -> None:
        """Note that the message of a hook is settled."""
        self._sending.discard(message.message_id)
        match message.args:
            case (str() as uuid, str() as hook, str() as finished):
                pass
            case _:
                # Another program has sent it.
                return
        if end.status == "retrying":
            return
        # Retries rejects a message once it has given up.
        retries = any(isinstance(m, Retries) for m in broker.middleware)
        if end.status == "error" and retries and not message.failed:
            self._lost.add((uuid, finished, message.message_id))
            with contextlib.suppress(RedisError):
                self._tell_again(broker)
            return
        is_given_up = end.status != "success"
        if is_given_up:
            reason = end.error and f"{end.error.type}: {end.error.message}"
            log.error(
                "%s() of the job %s has failed for the last time, and is not told of "
                "this end again: %s",
                hook,
                uuid,
                reason,
            )
        try:
            ends = records_of(self._store_for(broker)).ends
            ends.finish(uuid, finished, message.message_id, is_given_up=is_given_up)
        except RedisError:
            # The record lives longer than it needs to.
            return

    def _tell_again(self, broker: Broker) -> None:
        """Have other messages tell the ends whose messages are lost."""
        for lost in [*self._lost]:
            records_of(self._store_for(broker)).ends.tell_again(*lost)
            # Not before: this thread may be interrupted.
            self._lost.discard(lost)


def call_hook(job_state: JobState, request: Any) -> None:
    """Call the hook of a job that has ended.

    Parameters:
      request: What it receives if it takes a request.

    Raises:
      TypeError: The hook is async.
      Exception: What it raises.
    """
    status = job_state.status
    given = {REQUEST: request} if class_hooks(type(job_state))[status] else {}
    token = current_hook.set(record_of(job_state).uuid)
    try:
        result = getattr(job_state, HOOKS[status])(**given)
    finally:
        current_hook.reset(token)
    if isinstance(result, Coroutine):
        # A decorator hides that the hook is async, so its class could not be refused.
        result.close()
        raise TypeError(
            f"{type(job_state).__qualname__}.{HOOKS[status]}() has returned a "
            "coroutine, which nobody runs: a hook cannot be async."
        )


def hook_message(end: UntoldEnd) -> Message[Any]:
    """Return the message that tells an end."""
    own, cls = end.hooks, imported_class(end.kind)
    takes_request = cls is not None and class_hooks(cls).get(end.status)
    options = {
        OWNER: stored_owner(end.owner),
        URL: own.url,
        APPLICATION: own.application,
    }
    return Message(
        queue_name=own.queue,
        actor_name=REQUEST_HOOK if takes_request else HOOK,
        args=(end.uuid, HOOKS[end.status], end.finished),
        kwargs={},
        options={name: value for name, value in options.items() if value is not None},
    )
