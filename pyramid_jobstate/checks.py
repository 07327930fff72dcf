"""What is wrong with an application at its start."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from pyramid.interfaces import ISecurityPolicy

from .permits import IOwner, authenticated_userid

if TYPE_CHECKING:
    from pyramid.events import ApplicationCreated

log = logging.getLogger("pyramid_jobstate")


def warn_without_policy(event: ApplicationCreated) -> None:
    """Warn of an application in which no job has an owner whom it would know."""
    registry = event.app.registry
    if (
        registry.queryUtility(ISecurityPolicy) is None
        and registry.getUtility(IOwner) is authenticated_userid
    ):
        log.warning(
            "The application has neither a security policy nor the setting "
            "jobstate.owner: nobody owns a job, and whoever asks for one is refused "
            "(403), unless its __acl__ lets Everyone in. Call "
            "config.set_security_policy(...), or set jobstate.owner to a function "
            "that returns the owner of a request."
        )
