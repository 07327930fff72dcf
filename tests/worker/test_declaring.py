"""Which actors are tracked, as which class of job, and how they get their JobState."""

import asyncio
import functools
import itertools
import threading
from collections.abc import Callable
from typing import Annotated, Any, Optional

import dramatiq
import pytest
import redis
import redis.asyncio
from dramatiq.brokers.redis import RedisBroker
from dramatiq.brokers.stub import StubBroker
from dramatiq.middleware import AsyncIO, default_middleware

from pyramid_jobstate import (
    Batch,
    JobState,
    JobStateMiddleware,
    JobStore,
    current_job_state,
)
from pyramid_jobstate.errors import ActorError
from tests import annotated
from tests.jobs import RunMarathon, job_actor, make_broker, wait_until, working


class Swim(JobState):
    """Another kind of job."""


Declare = Callable[..., type[JobState] | None]


@pytest.fixture
def declare(stub: dramatiq.Broker, store: JobStore) -> Declare:
    """Declares an actor, and returns the class of its job: None if untracked."""
    names = (f"run_{number}" for number in itertools.count())

    def declare(fn: Any, **options: Any) -> type[JobState] | None:
        options = {"actor_name": next(names), **options}
        actor: Any = dramatiq.actor(broker=stub, **options)(fn)
        state = store.load(actor.send().message_id)
        return None if state is None else type(state)

    return declare


# Which actors are tracked.


@pytest.mark.parametrize("is_late", [False, True])
def test_actor_is_tracked_by_its_parameter_or_the_option(redis_url, is_late):
    """An actor that declares job_state is handed the JobState of its job, whether the
    middleware was added before the actor or after it; a default is for type checkers.
    With the option it may leave out the parameter. A coroutine function is an actor
    like any other, and so is a class with a perform().
    """
    others = () if is_late else (AsyncIO(),)
    broker = make_broker(redis_url, others=others)
    if is_late:
        middleware = [cls() for cls in default_middleware]
        broker = RedisBroker(url=redis_url, middleware=[*middleware, AsyncIO()])

    @job_actor(broker=broker)
    def run_marathon(miles: int, job_state: Any = None) -> None:
        assert type(job_state) is JobState and job_state.status == "working"
        assert current_job_state() is job_state
        job_state.set_progress_metric("miles_run", miles)

    @job_actor(broker=broker)
    async def swim(miles: int, *, job_state: RunMarathon) -> None:
        await asyncio.sleep(0)
        assert current_job_state() is job_state
        job_state.set_progress_metric("miles_run", miles)

    ride = annotated.declare_marathon(broker)
    if is_late:
        broker.add_middleware(JobStateMiddleware())
    options: Any = {"broker": broker, "job_state": RunMarathon}

    @dramatiq.actor(**options)
    def walk(miles: int) -> None:
        job_state = current_job_state()
        assert isinstance(job_state, RunMarathon)
        job_state.set_progress_metric("miles_run", miles)

    actors: list[Any] = [run_marathon, swim, ride, walk]
    with working(broker):
        sent = [actor.send(26) for actor in actors]
        states = [wait_until(broker, message, "success") for message in sent]
    kinds = [JobState, RunMarathon, RunMarathon, RunMarathon]
    assert [type(state) for state in states] == kinds
    for state in states:
        assert state.progress_metrics == {"miles_run": 26}
        assert state.job_params == {"miles": 26}
    assert (states[0].kind, states[0].title) == ("JobState", "Run marathon")
    assert states[2].actor == "Marathon"
    assert current_job_state() is None


def test_other_actors_are_left_alone(broker, client):
    """They keep their function, and nothing is stored, even of a skipped message."""
    done = threading.Event()

    def sweep() -> None:
        done.set()

    actor = dramatiq.actor(broker=broker)(sweep)
    old = dramatiq.actor(broker=broker, max_age=-1, actor_name="old")(sweep)
    assert actor.fn is sweep
    with working(broker):
        old.send()
        actor.send()
        assert done.wait(5)
        broker.join("default", timeout=20_000)
    assert client.keys("jobstate*") == []


# What cannot be declared.


@pytest.mark.promise("mistakes-are-refused-at-declaration")
def test_parameter_that_cannot_be_passed_is_refused(stub):
    """It must be a keyword. The error, at the actor or the middleware, shows how."""

    def by_position_only(job_state: JobState, /, miles: int) -> None: ...
    def swallowed(*job_state: JobState) -> None: ...
    def in_front(job_state: JobState, miles: int) -> None: ...
    def with_defaults(job_state: Any, miles: int = 1, **more: int) -> None: ...

    fn: Any
    for fn, right in [
        (by_position_only, "by_position_only(miles: int, *, job_state)"),
        (swallowed, "swallowed(*, job_state)"),
        (in_front, "in_front(miles: int, *, job_state)"),
        (with_defaults, "with_defaults(miles: int = 1, *, job_state, **more: int)"),
    ]:
        name = fn.__name__
        with pytest.raises(ActorError) as error:
            dramatiq.actor(broker=stub)(fn)
        assert f"The actor '{name}' cannot receive its job_state" in str(error.value)
        assert str(error.value).endswith(f"Declare it as: def {right}")
    later = StubBroker()
    dramatiq.actor(broker=later)(in_front)
    with pytest.raises(ActorError, match="in_front"):
        later.add_middleware(JobStateMiddleware(url="redis://localhost"))


def test_function_whose_parameters_are_unknown(stub):
    """An actor of such a function cannot be tracked, and is otherwise left alone."""
    with pytest.raises(ActorError, match="'tracked' cannot be tracked: Python does no"):
        dramatiq.actor(broker=stub, actor_name="tracked", job_state=True)(dict)
    plain: Any = dramatiq.actor(broker=stub, actor_name="plain")(dict)
    assert plain(miles=26) == {"miles": 26}


def test_option_that_is_no_class_of_jobs_is_refused(stub):
    """It takes a JobState class or True. Neither it nor an annotation takes a batch."""
    for option in ("RunMarathon", int, False):
        with pytest.raises(ActorError, match=r"run_marathon.*JobState or True"):
            dramatiq.actor(broker=stub, actor_name="run_marathon", job_state=option)(
                lambda: None
            )

    def odd(*, job_state: Batch) -> None: ...

    options: Any
    for options, fn in ({"job_state": Batch}, lambda: None), ({}, odd):
        with pytest.raises(ActorError, match="cannot be batches, as Batch says"):
            dramatiq.actor(broker=stub, **options)(fn)


def test_second_middleware_is_refused():
    """It is as it is added to a broker with a tracked actor, or with the first one."""
    first, second = (JobStateMiddleware(url="redis://localhost") for _ in range(2))
    said = r"StubBroker.* 2 JobStateMiddleware instances\. Add only one"
    broker = StubBroker(middleware=[first])
    annotated.declare_marathon(broker)
    with pytest.raises(ActorError, match=said):
        broker.add_middleware(second)
    with pytest.raises(ActorError, match=said):
        annotated.declare_marathon(StubBroker(middleware=[first, second]))


# The annotation, which may name the class.


def actor_with(annotation: object) -> Callable[..., Any]:
    """Return a function with a parameter job_state of that annotation."""

    def run(*, job_state: Any = None) -> None: ...

    run.__annotations__["job_state"] = annotation
    return run


def test_annotation_names_the_class(declare):
    """It may stand beside None or be text, resolved where the innermost function is.
    One that names no kind of job leaves the actor tracked, as none does.
    """

    @annotated.wrapped
    def run(*, job_state: "Swim") -> None: ...
    def bare(*, job_state): ...
    def other(state: Any = None) -> None: ...

    other.__annotations__["state"] = RunMarathon
    for fn in (
        *(annotated.plain, annotated.optional, annotated.coroutine),
        *(annotated.other_is_unresolvable, annotated.wrapped(annotated.plain)),
    ):
        assert declare(fn) is RunMarathon, fn
    annotation: Any
    for annotation in (
        *(RunMarathon, None | RunMarathon, "RunMarathon | None"),
        *(Optional["RunMarathon"], Annotated[RunMarathon, "told"] | None),
    ):
        assert declare(actor_with(annotation)) is RunMarathon, annotation
    for annotation in (JobState, JobState | None, Any, 5, "Any", list[RunMarathon]):
        assert declare(actor_with(annotation)) is JobState, annotation
    assert [declare(fn) for fn in (run, bare, other)] == [Swim, JobState, None]


def test_annotation_with_two_classes_is_refused(stub, declare):
    """It does not say which one the actor is. The option may."""
    for annotation in (RunMarathon | Swim, "Swim | JobState"):
        said = r"names several classes.*@dramatiq\.actor"
        with pytest.raises(ActorError, match=said):
            declare(actor_with(annotation))
        assert not [name for name in stub.actors if name.startswith("run_")]
        name = f"two classes {annotation}"
        assert declare(actor_with(annotation), actor_name=name, job_state=Swim) is Swim


def test_option_wins_over_the_annotation(declare):
    """If it is a class, the annotation is not evaluated. True does not name a class."""
    for option in (JobState, Swim):
        for fn in (annotated.plain, annotated.unresolvable):
            assert declare(fn, job_state=option) is option
    assert declare(annotated.plain, job_state=True) is RunMarathon
    assert declare(annotated.unresolvable, job_state=True) is JobState
    assert declare(actor_with(RunMarathon | Swim), job_state=True) is JobState
    assert declare(lambda: None, actor_name="a", job_state=True) is JobState


def test_annotation_that_cannot_be_resolved_is_refused(stub, declare):
    """It could hide the class, so the declaration fails and says how to name it."""
    for fn in (
        *(annotated.unresolvable, annotated.wrapped(annotated.unresolvable)),
        *(actor_with("Swim.Nothing"), actor_with("1 / 0")),
        # A partial function has no module, where a text could be resolved.
        functools.partial(actor_with("RunMarathon")),
    ):
        with pytest.raises(ActorError) as caught:
            declare(fn, actor_name="run")
        text = str(caught.value)
        assert "The annotation of job_state in the actor 'run' cannot be" in text
        assert "outside `if TYPE_CHECKING`" in text
        assert "@dramatiq.actor(job_state=...)" in text
        assert not stub.actors


# Direct calls.


@pytest.mark.promise("called-actor-needs-no-store")
def test_direct_call_gets_a_detached_job_state(stub, store):
    """It keeps its values in memory, unless the call brings one of its own."""

    @job_actor(broker=stub, job_state=RunMarathon)
    def run_marathon(miles: int, *, job_state: Any) -> Any:
        if isinstance(job_state, JobState):
            for mile in job_state.track(range(miles), unit="miles"):
                job_state.set_progress_metric("miles_run", mile + 1)
            assert job_state.flush()
        return job_state

    state = run_marathon(5)
    assert type(state) is RunMarathon
    assert state.progress_metrics == {"miles_run": 5}
    assert state.progress is not None and state.progress.fraction == 1
    assert (state.status, state.attempt) == ("working", 1)
    assert state.job_params == {"miles": 5}
    assert store.load(state.uuid) is None
    mine = object()
    assert run_marathon(26, job_state=mine) is mine


# Where the states go.


def test_middleware_takes_one_place(client):
    """It needs one on any broker but a RedisBroker: a store, a URL or a client, and not
    two of them. An error shows no password.
    """
    nowhere = StubBroker()
    nowhere.add_middleware(JobStateMiddleware())
    with pytest.raises(ActorError, match=r"StubBroker.*JobStateMiddleware\(url="):
        dramatiq.actor(broker=nowhere, job_state=True)(lambda: None)
    broker, url = StubBroker(), "redis://example.com:7000/3"
    store = JobStateMiddleware(client=client, namespace="mine").store_for(broker)
    assert store.client is client and store.namespace == "mine"
    assert "example.com:7000" in repr(JobStateMiddleware(url=url).store_for(broker))
    given = JobStore(client)
    assert JobStateMiddleware(given).store_for(broker) is given
    cases: list[tuple[Any, Any, str]] = [
        ([given], {"client": client}, "one of store, url and client"),
        (["redis://:hush@host"], {}, r"^store must be a JobStore, not str\. Pass a"),
        ([redis.Redis()], {}, r"not redis\.client\.Redis\. .*client=\.$"),
        ([], {"url": 5}, r"^url must be a str, not int\.$"),
        ([], {"client": redis.asyncio.Redis()}, r"not redis\.asyncio\.client\.Redis"),
    ]
    for args, options, match in cases:
        with pytest.raises(TypeError, match=match) as caught:
            JobStateMiddleware(*args, **options)
        assert "hush" not in str(caught.value)
    # An empty one, as of an unset variable, is not the broker's server.
    with pytest.raises(ValueError, match="URL of the Redis server is invalid"):
        JobStateMiddleware(url="")


def test_pace_that_no_worker_can_keep_is_refused():
    """The error names the interval or heartbeat at which nothing could be written."""
    for name in ("interval", "heartbeat"):
        for wrong in ("1s", True, 0, -1, float("nan"), 1e10):
            options: dict[str, Any] = {name: wrong}
            error = TypeError if isinstance(wrong, str | bool) else ValueError
            with pytest.raises(error, match=f"^{name} must be .* of seconds.*, not "):
                JobStateMiddleware(**options)
