"""Which actors are tracked, and what their functions are handed."""

from __future__ import annotations

import abc
import functools
import inspect
import logging
import time
import types
import typing
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dramatiq import GenericActor
from dramatiq.common import q_name

from ..errors import ActorError
from ..job.batch import Batch
from ..job.capture import new_journal
from ..job.hooks import REQUEST
from ..job.record import JobInfo, Record, is_uuid
from ..job.run import Run, last_notice
from ..job.state import (
    Inner,
    JobState,
    class_hooks,
    current_state,
    log_level_of,
    run_of,
)
from ..job.values import encode_owner, encode_params
from .current import CurrentJob, ThreadState, skip
from .message import (
    OWNER,
    attempts_before,
    batch_of,
    check_owner,
    hook_text,
    sends_for,
    steps_after,
    unique_of,
    word_of,
)
from .unsaved import Unsaved

if TYPE_CHECKING:
    from dramatiq import Actor, Broker, Message
    from dramatiq.broker import MessageProxy

log = logging.getLogger("pyramid_jobstate")

PARAMETER = "job_state"


class HandedFunction(abc.ABC):
    """The function of an actor, called with one more keyword argument. It replaces the
    function on the actor.

    Parameters:
      fn: The function that it calls.

    Attributes:
      parameter: The name of the argument.
      inner: The function that it calls.
    """

    parameter: str

    def __init__(self, fn: Callable[..., Any]) -> None:
        functools.update_wrapper(self, fn)
        self.inner = fn

    @abc.abstractmethod
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the inner function with the argument."""


def layers(fn: Callable[..., Any]) -> list[HandedFunction]:
    """Return the functions of this package's middleware around an actor's own,
    outermost first. Other middleware may have put its own between them.
    """
    found: list[HandedFunction] = []
    inner: Any = fn
    while inner is not None:
        if isinstance(inner, HandedFunction):
            found.append(inner)
            inner = inner.inner
        else:
            inner = getattr(inner, "__wrapped__", None)
    return found


def own_function(fn: Callable[..., Any]) -> Callable[..., Any]:
    """Return an actor's function without those of this package around it."""
    while isinstance(fn, HandedFunction):
        fn = fn.inner
    return fn


def called_function(fn: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function that has an actor's signature: for a class-based actor its
    `perform`, which receives all arguments.
    """
    actor: Any = inspect.unwrap(fn)
    return actor.perform if isinstance(actor, GenericActor) else fn


def is_async(fn: Callable[..., Any]) -> bool:
    """Return whether a function, or an object that is called like one, is async."""
    # Not unwrapped: a wrapper may be async where the function is not, or the reverse.
    called: Any = type(fn)
    return any(map(inspect.iscoroutinefunction, (fn, called.__call__)))


def check_signature(actor: Actor[Any, Any]) -> None:
    """Check that Python knows the parameters of an actor's function. It does not for
    some of its own, such as `dict`.

    Raises:
      ActorError: It does not.
    """
    try:
        inspect.signature(called_function(actor.fn))
    except ValueError:
        raise ActorError(
            f"The actor {actor.actor_name!r} cannot be tracked: Python does not know "
            f"the parameters of {actor.fn!r}. Make an actor of a function that calls "
            "it."
        ) from None


def has_parameter(actor: Actor[Any, Any], name: str) -> bool:
    """Return whether an actor declares a parameter.

    Raises:
      ActorError: It does, but cannot receive it by keyword.
    """
    fn: Any = called_function(actor.fn)
    try:
        parameters = inspect.signature(fn).parameters
    except ValueError:
        # It has none that Python knows.
        return False
    parameter = parameters.get(name)
    if parameter is None:
        return False
    if _goes_by_keyword(parameter, parameters):
        return True
    # Show the `self` of a class-based actor's method, too.
    declared = inspect.signature(getattr(fn, "__func__", fn)).parameters
    others = [p for p in declared.values() if p.name != name]
    by_keyword = inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY)
    last = len(others) - sum(p.kind is p.VAR_KEYWORD for p in others)
    right = inspect.Signature([*others[:last], by_keyword, *others[last:]])
    raise ActorError(
        f"The actor {actor.actor_name!r} cannot receive its {name} by keyword. "
        f"Declare it as: def {getattr(fn, '__name__', actor.actor_name)}{right}"
    )


def annotation_of(actor: Actor[Any, Any], name: str) -> Any:
    """Return the annotation of an actor's parameter, evaluated, or None if it has none.
    Other annotations are not evaluated.

    Raises:
      Exception: It cannot be evaluated.
    """
    fn = called_function(actor.fn)
    parameter = inspect.signature(fn).parameters[name]
    if parameter.annotation is parameter.empty:
        return None
    # get_type_hints() evaluates whatever has annotations.
    holder = types.SimpleNamespace(__annotations__={name: parameter.annotation})
    names = getattr(inspect.unwrap(fn), "__globals__", {})
    return typing.get_type_hints(holder, names)[name]


def classes_of(annotation: Any) -> list[type]:
    """Return the classes that an annotation allows: several for a union."""
    is_union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    members = typing.get_args(annotation) if is_union else (annotation,)
    # The origin of `Timed[int]` is `Timed`.
    found = [typing.get_origin(member) or member for member in members]
    return [member for member in found if isinstance(member, type)]


def _goes_by_keyword(
    parameter: inspect.Parameter, parameters: Mapping[str, inspect.Parameter]
) -> bool:
    """Return whether a parameter can be passed by keyword, however many of the others
    are passed by position.
    """
    if parameter.kind is parameter.KEYWORD_ONLY:
        return True
    if parameter.kind is not parameter.POSITIONAL_OR_KEYWORD:
        return False
    following = list(parameters.values())[list(parameters).index(parameter.name) + 1 :]
    return not any(
        p.kind in (p.POSITIONAL_OR_KEYWORD, p.VAR_POSITIONAL) for p in following
    )


def receives_request(broker: Broker, actor_name: str) -> bool:
    """Return whether an actor receives a request from the RequestMiddleware."""
    actor = broker.actors.get(actor_name)
    return actor is not None and any(
        layer.parameter == REQUEST for layer in layers(actor.fn)
    )


def hooks_receive_request(broker: Broker, actor_name: str) -> bool:
    """Return whether any hook of an actor's jobs receives a request."""
    actor = broker.actors.get(actor_name)
    return actor is not None and any(
        isinstance(layer, TrackedFunction)
        and any(class_hooks(layer.job_state_class).values())
        for layer in layers(actor.fn)
    )


def refuse_request(message: Message[Any]) -> None:
    """Check that a message does not carry a request.

    Raises:
      ActorError: It does.
    """
    if REQUEST in message.kwargs:
        raise ActorError(
            f"A message to the actor {message.actor_name!r} cannot carry the argument "
            "request: the worker makes the request. Leave it out."
        )


class TrackedFunction(HandedFunction):
    """The function of a tracked actor, which it replaces on the actor.

    It passes on the JobState of the job that this thread runs or, if it is called
    directly, a detached one that keeps its values in memory.

    Parameters:
      actor: The actor, with its original function.
      job_state_class: The class of its jobs.
      thread: The state of the calling thread.
      hooks_queue: The queue of the messages that run hooks, or None for that of a job.
      begin: Writes that the run of a job begins, and notes whether it may.
    """

    parameter = PARAMETER

    def __init__(
        self,
        actor: Actor[Any, Any],
        job_state_class: type[JobState],
        thread: ThreadState,
        hooks_queue: str | None,
        begin: Callable[[CurrentJob], None],
    ) -> None:
        super().__init__(actor.fn)
        self._thread = thread
        self._hooks_queue = hooks_queue
        self._begin = begin
        self.actor, self.actor_name = actor, actor.actor_name
        self.job_state_class = job_state_class
        self._log_level = log_level_of(job_state_class)
        parameters = dict(inspect.signature(called_function(actor.fn)).parameters)
        self._is_handed = PARAMETER in parameters
        self._signature = inspect.Signature(list(parameters.values()))
        for layer in (self, *layers(actor.fn)):
            self._leave_out(layer.parameter)

    def put_inside(self, layer: HandedFunction) -> None:
        """Have another middleware's function called around the actor's own."""
        self.inner = layer
        self._leave_out(layer.parameter)

    def _leave_out(self, parameter: str) -> None:
        """Leave a parameter that is handed over out of those that are sent."""
        parameters = self._signature.parameters.values()
        kept = [p for p in parameters if p.name != parameter]
        self._signature = inspect.Signature(kept)
        is_plain = all(p.kind is p.POSITIONAL_OR_KEYWORD for p in kept)
        #: The names of the parameters, if each may be passed by position.
        self._names = [p.name for p in kept] if is_plain else None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        job = self._thread.job
        if job is None or job.tracked is not self or job.unsaved is None:
            return self._call_directly(args, kwargs)
        if not job.was_called:
            job.was_called = True
            try:
                self._begin(job)
            except Exception:
                # It would count as the actor's own failure.
                log.exception("The beginning of job %s could not be written.", job.uuid)
        elif not job.is_forbidden:
            # A call from within the job counts as direct.
            return self._call_directly(args, kwargs)
        if job.is_forbidden:
            # Also if a wrapper tries again.
            skip(job.message)
        unsaved = job.unsaved
        info = unsaved.info._replace(batch=sends_for(job.message))
        message = job.message

        def later_steps() -> list[str]:
            return [step.message_id for step in steps_after(message)]

        job_state = self.job_state(
            job.uuid, unsaved.run, info, members=job.members, later_steps=later_steps
        )
        return self._run(job, job_state, args, kwargs)

    def _call_directly(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        given = kwargs.get(PARAMETER)
        job_state = given if given is not None else self.detached(args, kwargs)
        return self.call(job_state, args, kwargs)

    def call(
        self, job_state: JobState, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Any:
        """Call the actor's function with a JobState."""
        if self._is_handed:
            kwargs = {**kwargs, PARAMETER: job_state}
        token = current_state.set(job_state)
        try:
            return self.inner(*args, **kwargs)
        finally:
            current_state.reset(token)

    def _run(
        self,
        job: CurrentJob,
        job_state: JobState,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
    ) -> Any:
        """Call the function as a job."""
        job.is_running, notice = True, last_notice.get()
        try:
            return self.call(job_state, args, kwargs)
        except BaseException as e:
            job.raised = e
            if not run_of(job_state).cancel_requested:
                raise
            # Any exception ends a cancelled job: Retries must not see it.
            skip(job.message)
        finally:
            job.is_running = False
            last_notice.set(notice)

    def detached(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> JobState:
        """Return a JobState for a direct call."""
        params = encode_params(self.params(args, kwargs))
        info = JobInfo(self.job_state_class.kind, self.actor_name, 1, params=params)
        run, caller = Run(), current_state.get()
        if caller is not None:
            outer = run_of(caller)
            run.outer = outer.outer or outer
        return self.job_state(str(uuid.uuid4()), run, info)

    def info_of(
        self, message: Message[Any] | MessageProxy, attempt: int = 0
    ) -> JobInfo:
        """Return what to store about a message."""
        try:
            owner = check_owner(message.options.get(OWNER))
        except (TypeError, ValueError) as e:
            # A wrong owner must not keep the message from being sent and run.
            log.warning("The job of %s has no owner: %s", message, e)
            owner = None
        # Of a delayed message, the one that it goes to when it is due.
        queue = q_name(message.queue_name)
        return JobInfo(
            kind=self.job_state_class.kind,
            actor=self.actor_name,
            attempt=attempt,
            owner=encode_owner(owner),
            params=encode_params(self.params(message.args, message.kwargs)),
            rerun=word_of(message),
            unique=unique_of(message),
            batch=batch_of(message),
            queue=queue,
            hooks=hook_text(
                self.job_state_class, self._hooks_queue or queue, message.options
            ),
            log_level=self._log_level,
        )

    def unsaved(self, message: MessageProxy, worker: str | None = None) -> Unsaved:
        """Return the recorder's entry for the run of a message.

        Parameters:
          worker: The token of the worker process, or None.
        """
        info = self.info_of(message, attempts_before(message) + 1)
        run = Run()
        if self._log_level is not None:
            run.journal = new_journal(
                self.job_state_class, self._log_level, info.attempt
            )
        return Unsaved(message.message_id, run, info._replace(worker=worker))

    def job_state(
        self, message_id: str, run: Run, info: JobInfo, **more: Any
    ) -> JobState:
        """Return the JobState that writes to a run.

        Parameters:
          more: Further attributes of its :class:`.Inner`.
        """
        now = str(int(time.time() * 1000))
        fields = {"status": "working", "started": now, "updated": now}
        record = Record(message_id, info.fields() | fields)
        return self.job_state_class(Inner(record, run, **more))

    def queued(self, message_id: str, info: JobInfo, delay: float) -> JobState:
        """Return the JobState of a job that is being sent."""
        now = str(time_ms := int(time.time() * 1000))
        fields = {"status": "queued", "queued": now, "updated": now, "attempt": "0"}
        if delay > 0:
            fields["due"] = str(time_ms + int(delay * 1000))
        return self.job_state_class(Inner(Record(message_id, info.fields() | fields)))

    def params(
        self, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> dict[str, object]:
        """Return the arguments of a call by parameter name."""
        if not kwargs and self._names is not None and len(args) == len(self._names):
            # Faster than bind(), at every send.
            return dict(zip(self._names, args, strict=True))
        # A direct call may pass what a middleware would hand over.
        handed = {PARAMETER, *(layer.parameter for layer in layers(self.inner))}
        kwargs = {k: v for k, v in kwargs.items() if k not in handed}
        try:
            arguments = self._signature.bind(*args, **kwargs).arguments
        except TypeError:
            # The call will fail. Until then, show the arguments that can be named.
            return {
                **dict(zip(self._signature.parameters, args, strict=False)),
                **kwargs,
            }
        for name, parameter in self._signature.parameters.items():
            if parameter.kind is parameter.VAR_KEYWORD:
                arguments.update(arguments.pop(name, {}))
        return dict(arguments)


class TrackedFunctions(dict[str, TrackedFunction]):
    """The functions of the tracked actors, by the names of the actors."""

    def __init__(self) -> None:
        super().__init__()
        self._is_warned = False

    def find(self, message: Message[Any] | MessageProxy) -> TrackedFunction | None:
        """Return the function of a tracked message's actor, or None."""
        function = self.get(message.actor_name)
        if function is None or is_uuid(message.message_id):
            return function
        if not self._is_warned:
            self._is_warned = True
            log.warning(
                "Messages whose id is not a uuid are not tracked, such as %r.",
                message.message_id,
            )
        return None


def job_state_class(actor: Actor[Any, Any]) -> type[JobState] | None:
    """Return the class of an actor's jobs, or None if the actor is not tracked. The
    class is the option `job_state`, or the annotation of the parameter `job_state`.

    Raises:
      ActorError: The option is neither a JobState class nor True, or the function has
        no signature; or the parameter cannot be passed by keyword, or its annotation
        cannot be resolved or names several classes.
    """
    option = actor.options.get(PARAMETER)
    if option is not None:
        check_signature(actor)
    is_handed = has_parameter(actor, PARAMETER)
    cls: Any = option
    if option is None or option is True:
        if not is_handed:
            return JobState if option else None
        cls = _annotated(actor, is_needed=option is None)
    if not (isinstance(cls, type) and issubclass(cls, JobState)):
        raise ActorError(
            f"The option job_state of the actor {actor.actor_name!r} must be a "
            f"subclass of JobState or True, not {cls!r}."
        )
    if issubclass(cls, Batch):
        raise ActorError(
            f"The jobs of the actor {actor.actor_name!r} cannot be batches, as "
            f"{cls.__qualname__} says."
        )
    return cls


def _annotated(actor: Actor[Any, Any], *, is_needed: bool) -> type[JobState]:
    """Return the JobState class that annotates the parameter, or else JobState.

    Parameters:
      is_needed: Whether an annotation that cannot be resolved, or is ambiguous, is an
        error.
    """
    try:
        annotation = annotation_of(actor, PARAMETER)
    except Exception as e:
        if is_needed:
            raise ActorError(
                f"The annotation of job_state in the actor {actor.actor_name!r} cannot "
                f"be resolved: {e}. Import the class at the top of the module, outside "
                "`if TYPE_CHECKING`, or name it in the decorator: "
                "@dramatiq.actor(job_state=...)."
            ) from e
        return JobState
    classes = {c for c in classes_of(annotation) if issubclass(c, JobState)}
    if len(classes) > 1 and is_needed:
        raise ActorError(
            f"The annotation of job_state in the actor {actor.actor_name!r} names "
            "several classes. Name one in the decorator: "
            "@dramatiq.actor(job_state=...)."
        )
    return classes.pop() if len(classes) == 1 else JobState
