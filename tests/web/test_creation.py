"""What is checked once, when the application is made."""

from __future__ import annotations

from typing import Any

import pytest
from pyramid.config import Configurator
from pyramid.events import ApplicationCreated, NewRequest
from pyramid.exceptions import ConfigurationError
from pyramid.interfaces import IApplicationCreated, ISessionFactory
from pyramid.registry import Registry
from pyramid.session import SignedCookieSessionFactory
from webtest import TestApp
from zope.interface.registry import Components

from pyramid_jobstate.web.creation import at_creation
from tests.support import UUID
from tests.webapp import get, make_config


@pytest.fixture
def config(redis_url: str) -> Configurator:
    config = make_config(redis_url)
    config.include("pyramid_jobstate")
    return config


def test_requests_are_not_announced_to_nobody(config: Configurator) -> None:
    """An application without subscribers does not pay for ours."""
    config.make_wsgi_app()

    assert config.registry.has_listeners is False
    assert not list(config.registry.registeredHandlers())


def test_subscribers_of_the_application_hear_of_requests(config: Configurator) -> None:
    """Those that it added before it was made, and those that it adds later."""
    heard: list[str] = []
    config.add_subscriber(lambda event: heard.append("before"), NewRequest)
    app = TestApp(config.make_wsgi_app())
    config.add_subscriber(lambda event: heard.append("after"), NewRequest)
    config.commit()

    get(app, f"/job_state/{UUID}")

    assert heard == ["before", "after"]


def test_a_subscriber_that_came_later_is_enough(config: Configurator) -> None:
    """One that is added to a finished application is the first that listens."""
    heard: list[object] = []
    app = TestApp(config.make_wsgi_app())
    config.add_subscriber(heard.append, NewRequest)
    config.commit()

    get(app, f"/job_state/{UUID}")

    assert len(heard) == 1


def test_others_hear_of_each_application_that_is_made(config: Configurator) -> None:
    """Our checks run once; a subscriber of the application's own stays."""
    made: list[object] = []
    config.add_subscriber(made.append, ApplicationCreated)

    config.make_wsgi_app()
    config.make_wsgi_app()

    assert len(made) == 2


def made_with(registry: Any, *calls: Any) -> Any:
    """Return a registry after an include that has something to call."""
    config = Configurator(registry=registry)
    if not isinstance(registry, Registry):
        config.setup_registry()
    at_creation(config, *calls)
    config.commit()
    return registry


def test_a_check_that_fails_is_repeated() -> None:
    """The application is not made until the check passes."""
    tries = []

    def check(event: ApplicationCreated) -> None:
        tries.append(event)
        if len(tries) == 1:
            raise ConfigurationError("Not yet.")

    registry = made_with(Registry(), check)
    event = ApplicationCreated(None)
    with pytest.raises(ConfigurationError):
        registry.notify(event)
    assert registry.has_listeners

    registry.notify(event)
    registry.notify(event)

    assert tries == [event, event]


def test_checks_come_in_the_order_of_the_application(redis_url: str) -> None:
    """A subscriber that was added before the include comes before our checks."""
    config = make_config(redis_url, settings={"jobstate.owner": "session"})

    def set_session(event: ApplicationCreated) -> None:
        factory = SignedCookieSessionFactory("secret")
        config.registry.registerUtility(factory, ISessionFactory)

    config.add_subscriber(set_session, IApplicationCreated)
    config.include("pyramid_jobstate")

    # Without a session the check would refuse it.
    config.make_wsgi_app()


def test_handlers_of_other_registries_are_left_alone() -> None:
    """A registry that builds on another may have listeners that it does not know."""
    base = Registry("base")
    heard: list[object] = []
    base.registerHandler(heard.append, (IApplicationCreated,))
    registry = made_with(Registry("application", bases=(base,)))

    for _ in range(2):
        registry.notify(ApplicationCreated(None))

    assert len(heard) == 2
    assert registry.has_listeners


def test_a_registry_that_is_not_pyramids_is_only_called() -> None:
    """Pyramid takes any registry of zope.interface, and adds what it needs."""
    called: list[object] = []
    registry = made_with(Components("plain"), called.append)

    for _ in range(2):
        registry.notify(ApplicationCreated(None))

    assert len(called) == 1
    assert registry.has_listeners
