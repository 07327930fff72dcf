"""An application whose users send jobs in transactions, and its server."""

from __future__ import annotations

import dataclasses
from typing import Any, TypeVar

import redis
from dramatiq import Broker
from pyramid.config import Configurator
from pyramid.request import Request
from webtest import TestApp

from pyramid_jobstate import JobStore
from tests.web.operating import operated_root
from tests.webapp import make_app, make_request, make_tm_config


@dataclasses.dataclass
class Desk:
    """An application, the client of its server, and the actor that its users send."""

    config: Configurator
    app: TestApp
    client: redis.Redis
    actor: Any

    @property
    def store(self) -> JobStore:
        store: JobStore = make_request(self.config).job_states.store
        return store

    def begin(self, user: str | None = "alice") -> Request:
        """Return a request whose transaction has begun."""
        request = make_request(self.config, user)
        request.tm.begin()
        return request


AnyDesk = TypeVar("AnyDesk", bound=Desk)


def make_desk(
    cls: type[AnyDesk], url: str, client: redis.Redis, broker: Broker
) -> AnyDesk:
    """Return an application that reaches its store at a URL."""
    config = make_tm_config(url, root_factory=operated_root)
    return cls(config, make_app(config), client, broker.get_actor("run_marathon"))
