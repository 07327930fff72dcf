"""Requests whose views send jobs, and brokers that refuse them."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import redis
from dramatiq import Broker, actor
from dramatiq.brokers.redis import RedisBroker
from dramatiq.middleware import Middleware, MiddlewareError
from pyramid.config import Configurator
from pyramid.request import Request
from pyramid.response import Response
from webtest import TestApp

from pyramid_jobstate import JobState, JobStateMiddleware, JobStore
from tests.web.operating import operated_root
from tests.webapp import NOWHERE, get, make_app, make_request, make_tm_config, queued

View = Callable[[Request], Any]

#: The reasons that viewers see of jobs that were not sent.
NOT_SENT = "The job could not be sent."
NOT_REACHED = "An earlier step did not succeed."


def add_view(config: Configurator, name: str, view: View) -> None:
    """Add a view that answers with what it returns, as text."""

    def answer(context: Any, request: Request) -> Any:
        response = view(request)
        return response if isinstance(response, Response) else Response(str(response))

    config.add_view(answer, name=name)


def visit(config: Configurator, view: View) -> Any:
    """Return the response to a request of Alice's that a view answers."""
    add_view(config, "go", view)
    return get(make_app(config), "/go", "alice")


@contextlib.contextmanager
def committing(config: Configurator, user: str | None = "alice") -> Iterator[Any]:
    """Yield the job_states of a request whose transaction then commits."""
    request = make_request(config, user)
    request.tm.begin()
    yield request.job_states
    request.tm.commit()


def load(config: Configurator, uuid: str) -> JobState:
    """Return the state of a job."""
    job_state = make_request(config).job_states[uuid]
    assert isinstance(job_state, JobState)
    return job_state


def sent(client: redis.Redis) -> list[Any]:
    """Return the first arguments of the messages in the queue, oldest first."""
    return [message.args[0] for message in queued(client)]


class FullError(MiddlewareError, ValueError):
    """What might be taken for a fault of a query."""


class Refusing(Middleware):
    """Has the broker refuse what a function chooses: by default each message."""

    def __init__(self, chooses: Callable[[Any], object] = bool) -> None:
        self.chooses = chooses

    def before_enqueue(self, broker: Broker, message: Any, delay: Any) -> None:
        if self.chooses(message):
            raise FullError("The queue is full.")


def broker_that_is_away(store_url: str) -> RedisBroker:
    """Return a broker whose server is away but whose store is not."""
    broker = RedisBroker(url=NOWHERE)
    broker.add_middleware(JobStateMiddleware(url=store_url))

    @actor(broker=broker, job_state=True)
    def run_marathon(*miles: Any) -> None:
        pass

    return broker


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
