"""Hooks: the methods of a class that are told of the ends of its jobs."""

from __future__ import annotations

import contextvars
import inspect
from collections.abc import Mapping
from typing import Any, NamedTuple

from .values import dumps, parse_json

#: The hooks, by the status of a job that has ended.
HOOKS = {"success": "on_success", "error": "on_error", "cancelled": "on_cancelled"}

#: The parameter of a hook that receives a request.
REQUEST = "request"

#: The uuid of the job of which a hook runs here.
current_hook: contextvars.ContextVar[str | None] = contextvars.ContextVar(
    "pyramid_jobstate.hook", default=None
)


class HookInfo(NamedTuple):
    """What the record of a job says of the hooks of its class.

    Attributes:
      letters: The first letters of the statuses that are to be told.
      queue: The queue of the message that tells its end.
      url: The URL of the application for the request of a hook, or None.
      application: The name of that application, or None.
    """

    letters: str
    queue: str
    url: str | None = None
    application: str | None = None

    @classmethod
    def parse(cls, text: str | None) -> HookInfo | None:
        """Return what a record says, or None."""
        match parse_json(text):
            case [str(), str(), str() | None, str() | None] as found:
                return cls(*found)
        return None

    @property
    def text(self) -> str:
        """The value of the record's field: see store/lua/untold.lua."""
        return dumps(list(self))


def hooks_of(cls: type[Any]) -> Mapping[str, bool]:
    """Return for each status of which a class has a hook whether that receives a
    request.

    Raises:
      TypeError: A hook is not a plain method, or has another parameter.
    """
    found = {}
    for status, name in HOOKS.items():
        hook = inspect.getattr_static(cls, name, None)
        if hook is not None:
            found[status] = _takes_request(cls, name, hook)
    return found


def _takes_request(cls: type[Any], name: str, hook: Any) -> bool:
    where, form = f"{cls.__qualname__}.{name}", f"def {name}(self, request)"
    call = getattr(type(hook), "__call__", None)  # noqa: B004, as it is called
    if any(map(inspect.iscoroutinefunction, (hook, call))):
        raise TypeError(
            f"{where}() is async, but a hook runs in one thread, in its transaction. "
            f"Declare it as: {form}"
        )
    if inspect.isgeneratorfunction(hook) or inspect.isasyncgenfunction(hook):
        raise TypeError(f"{where}() is a generator. Declare it as: {form}")
    is_bound = callable(hook) and hasattr(hook, "__get__")
    if not is_bound or isinstance(hook, (type, staticmethod, classmethod)):
        kind = type(hook).__name__
        raise TypeError(
            f"{where} must be a method, not a {kind}. Declare it as: {form}"
        )
    parameters = [*inspect.signature(hook).parameters.values()]
    if not parameters:
        raise TypeError(f"{where}() has no parameter self. Declare it as: {form}")
    for parameter in parameters[1:]:
        by_keyword = parameter.kind in (
            parameter.POSITIONAL_OR_KEYWORD,
            parameter.KEYWORD_ONLY,
        )
        if parameter.name != REQUEST or not by_keyword:
            raise TypeError(
                f"{where}() has the parameter {str(parameter)!r}, but a hook receives "
                f"only self and, by its name, a request. Declare it as: {form}, or "
                "without the request."
            )
    return len(parameters) > 1
