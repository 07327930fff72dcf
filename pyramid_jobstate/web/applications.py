"""Which application of a process the request of a job belongs to."""

from __future__ import annotations

import hashlib
import json
import weakref
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pyramid.config import global_registries

from .interfaces import IJobStore

if TYPE_CHECKING:
    from pyramid.registry import Registry

NONE = (
    "needs a request, but this process has made no Pyramid application. Start workers "
    "with `pjobs INI work`."
)

SEVERAL = (
    "needs a request, but several applications of this process share its broker, and "
    "none of them has sent it. Send it with request.job_states, or start a worker for "
    "one application alone."
)


class Applications:
    """The applications whose jobs a RequestMiddleware runs."""

    def __init__(self) -> None:
        # A worker need not keep the application that it has made.
        self._last: Registry | None = None
        #: All of them with their names, oldest first. Test suites make and drop many.
        self._all: list[tuple[weakref.ref[Any], str]] = []

    def add(self, registry: Registry) -> None:
        """Note an application that has just been made."""
        self._all = [(ref, name) for ref, name in self._all if ref() is not None]
        self._all.append((weakref.ref(registry), name_of(registry)))
        self._last = registry

    def find(self, options: Mapping[str, Any]) -> Registry:
        """Return the registry of a job's application: the one that has sent it, or else
        the only one.

        Parameters:
          options: The options of the message.

        Raises:
          LookupError: There is no application, or nothing tells which. The message
            continues "The actor ...".
        """
        alive = {name: found for ref, name in self._all if (found := ref()) is not None}
        if len(alive) < 2:
            found = self._last or last_application()
            if found is None:
                raise LookupError(NONE)
            return found
        # An unhashable value is not a name either.
        sent_by = str(options.get("job_app"))
        if sent_by not in alive:
            raise LookupError(SEVERAL)
        return alive[sent_by]


def name_of(registry: Registry) -> str:
    """Return a name for an application, which is the same in every process that makes
    it from the same settings.
    """
    settings = {k: v for k, v in registry.settings.items() if isinstance(v, str)}
    text = json.dumps([registry.package_name, settings], sort_keys=True)
    # Short, so that it gives nothing of the settings away.
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def last_application() -> Registry | None:
    """Return the registry of the last application that was made with this package."""
    for registry in reversed([*global_registries]):
        # A registry may be collected meanwhile.
        if registry is not None and registry.queryUtility(IJobStore) is not None:
            return registry
    return None
