"""Which application of a process the request of a job belongs to."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pyramid.config import global_registries

from .interfaces import IApplicationName, IJobStore
from .sending import application_name

if TYPE_CHECKING:
    from pyramid.registry import Registry

NONE = (
    "needs a request, but this process has made no Pyramid application. Start workers "
    "with `pjobs INI work`."
)

SEVERAL = (
    "needs a request, but several applications of this process share its broker, and "
    "the message does not name one of them. Send it with request.job_states, give each "
    "application a jobstate.base_url, and keep a reference to the application that a "
    "worker makes. A test suite calls pyramid_jobstate.testing.release_broker()."
)


class Applications:
    """The applications whose jobs a RequestMiddleware runs."""

    def __init__(self) -> None:
        # A worker need not keep the only application that it has made.
        self._last: Registry | None = None
        #: The last application of each name. Test suites make and drop many.
        self._all: dict[str, weakref.ref[Any]] = {}

    def add(self, registry: Registry) -> None:
        """Note an application that has just been made."""
        name = application_name(registry)
        registry.registerUtility(name, IApplicationName)
        self._all[name] = weakref.ref(registry)
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
        alive = {name: found for name, ref in self._all.items() if (found := ref())}
        # An unhashable value is not a name either.
        sent_by = str(options.get("job_app"))
        if sent_by in alive:
            return alive[sent_by]
        if len(alive) > 1 or sent_by in self._all:
            raise LookupError(SEVERAL)
        found = self._last or last_application()
        if found is None:
            raise LookupError(NONE)
        return found


def last_application() -> Registry | None:
    """Return the registry of the last application that was made with this package."""
    for registry in reversed([*global_registries]):
        # A registry may be collected meanwhile.
        if registry is not None and registry.queryUtility(IJobStore) is not None:
            return registry
    return None
