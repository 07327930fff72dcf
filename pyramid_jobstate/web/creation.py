"""Calls functions once, when an application is made."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyramid.interfaces import IApplicationCreated
from pyramid.registry import Registry

if TYPE_CHECKING:
    from collections.abc import Callable

    from pyramid.config import Configurator
    from pyramid.events import ApplicationCreated


def at_creation(
    config: Configurator, *calls: Callable[[ApplicationCreated], object]
) -> None:
    """Call functions when the application of a configurator is made, and only then.

    A subscriber that stayed would have Pyramid announce each request of the application
    four times, even if nothing else listens.
    """
    registry = config.registry

    def call(event: ApplicationCreated) -> None:
        for each in calls:
            each(event)
        registry.unregisterHandler(call, (IApplicationCreated,))
        # Handlers that come later raise the flag again.
        if isinstance(registry, Registry) and not registry.__bases__:
            registry.has_listeners = any(registry.registeredHandlers())

    # In the order in which the application adds its own.
    config.action(None, lambda: registry.registerHandler(call, (IApplicationCreated,)))
