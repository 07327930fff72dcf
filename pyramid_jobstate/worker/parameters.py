"""The parameters that a middleware hands to an actor's function."""

from __future__ import annotations

import abc
import functools
import inspect
import types
import typing
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from dramatiq import GenericActor

from ..errors import ActorError

if TYPE_CHECKING:
    from dramatiq import Actor


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
