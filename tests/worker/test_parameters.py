"""The annotation of an actor's parameter job_state, which may name the class."""

import functools
from collections.abc import Callable
from typing import Annotated, Any, ForwardRef, Generic, Optional, TypeVar, Union

import dramatiq
import pytest
from dramatiq import Broker
from dramatiq.brokers.stub import StubBroker

from pyramid_jobstate import JobState, JobStateMiddleware
from pyramid_jobstate.errors import ActorError
from tests import annotated
from tests.jobs import RunMarathon, middleware_of
from tests.webapp import NOWHERE

T = TypeVar("T")


class Swim(JobState):
    """Another kind of job."""


class Timed(JobState, Generic[T]):
    """A kind of job with a type parameter."""


@pytest.fixture
def broker() -> Broker:
    """Override: a broker whose jobs are tracked, and kept nowhere."""
    broker = StubBroker()
    broker.add_middleware(JobStateMiddleware(url=NOWHERE))
    return broker


def class_of(broker: Broker, actor: dramatiq.Actor[..., Any]) -> type[JobState] | None:
    """Return the class of an actor's jobs, or None if it is not tracked."""
    function = middleware_of(broker).functions.get(actor.actor_name)
    return None if function is None else function.job_state_class


def declare(
    broker: Broker, fn: Callable[..., Any], **options: Any
) -> type[JobState] | None:
    """Declare an actor and return the class of its jobs."""
    actor: Any = dramatiq.actor(broker=broker, **options)(fn)
    return class_of(broker, actor)


def actor_with(annotation: object, **default: Any) -> Callable[..., Any]:
    """Return a function with a parameter job_state of that annotation."""

    def run(miles: int, *, job_state: Any = None) -> None: ...

    run.__annotations__["job_state"] = annotation
    return run


@pytest.mark.parametrize(
    "fn",
    [
        annotated.plain,
        annotated.optional,
        annotated.older_optional,
        annotated.annotated,
        annotated.quoted,
        annotated.other_is_unresolvable,
        annotated.coroutine,
        annotated.wrapped(annotated.plain),
        annotated.wrapped(annotated.wrapped(annotated.other_is_unresolvable)),
    ],
    ids=lambda fn: fn.__name__,
)
def test_string_annotation_names_the_class(
    broker: Broker, fn: Callable[..., Any]
) -> None:
    """Under `from __future__ import annotations` the annotation is resolved where the
    function stands, and no other annotation is.
    """
    assert declare(broker, fn) is RunMarathon


@pytest.mark.parametrize(
    "annotation",
    [
        RunMarathon,
        RunMarathon | None,
        None | RunMarathon,
        Optional[RunMarathon],  # noqa: UP045, the older spelling
        Union[None, RunMarathon, int],  # noqa: UP007, the older spelling
        Annotated[RunMarathon, "told"],
        Annotated[RunMarathon | None, "told"],
        Annotated[RunMarathon, "told"] | None,
        "RunMarathon",
        "RunMarathon | None",
        Optional["RunMarathon"],
        RunMarathon | RunMarathon,
    ],
    ids=repr,
)
def test_annotation_names_the_class(broker: Broker, annotation: object) -> None:
    """The class may be the annotation, alone or beside None."""
    assert declare(broker, actor_with(annotation)) is RunMarathon


@pytest.mark.parametrize(
    "annotation",
    [
        JobState,
        JobState | None,
        Any,
        None,
        object,
        int,
        5,
        T,
        "Any",
        "JobState",
        type[RunMarathon],
        list[RunMarathon],
        Callable[[RunMarathon], None],
    ],
    ids=repr,
)
def test_annotation_of_another_type_means_a_job_state(
    broker: Broker, annotation: object
) -> None:
    """An annotation that names no kind of job leaves the actor tracked, as a plain
    JobState.
    """
    assert declare(broker, actor_with(annotation)) is JobState


def test_parameter_without_an_annotation_means_a_job_state(broker: Broker) -> None:
    """Without an annotation the jobs are plain JobStates."""

    def run(miles, *, job_state): ...

    assert declare(broker, run) is JobState


def test_annotation_without_the_parameter_means_nothing(broker: Broker) -> None:
    """Only the parameter job_state is handed over, whatever others are annotated as."""

    def run(state: RunMarathon) -> None: ...

    assert declare(broker, run) is None


def test_generic_class_can_be_named_with_its_parameter(broker: Broker) -> None:
    """`Timed[int]` names the class Timed."""
    assert declare(broker, actor_with(Timed[int])) is Timed
    assert declare(broker, actor_with(Timed[int] | None), actor_name="b") is Timed


@pytest.mark.parametrize("annotation", [RunMarathon | Swim, "Swim | JobState"])
def test_annotation_with_two_classes_is_refused(
    broker: Broker, annotation: object
) -> None:
    """An annotation that names two kinds of job does not say which one the actor is."""
    with pytest.raises(ActorError, match=r"names several classes.*@dramatiq\.actor"):
        declare(broker, actor_with(annotation))
    assert not broker.actors
    assert declare(broker, actor_with(annotation), job_state=Swim) is Swim


@pytest.mark.parametrize("option", [JobState, Swim])
@pytest.mark.parametrize("fn", [annotated.plain, annotated.unresolvable])
def test_option_wins_over_the_annotation(
    broker: Broker, option: type[JobState], fn: Callable[..., Any]
) -> None:
    """A class in the decorator is the class; the annotation is not even evaluated."""
    assert declare(broker, fn, job_state=option) is option


def test_option_true_leaves_the_class_to_the_annotation(broker: Broker) -> None:
    """`job_state=True` says that the actor is tracked, and not as what."""
    assert declare(broker, annotated.plain, job_state=True) is RunMarathon
    assert declare(broker, annotated.unresolvable, job_state=True) is JobState
    assert declare(broker, actor_with(RunMarathon | Swim), job_state=True) is JobState
    assert declare(broker, lambda: None, actor_name="a", job_state=True) is JobState


@pytest.mark.parametrize(
    "fn",
    [
        annotated.unresolvable,
        annotated.wrapped(annotated.unresolvable),
        actor_with("Swim.Nothing"),
        actor_with("Swim["),
        actor_with("1 / 0"),
        actor_with(ForwardRef("Nothing")),
    ],
)
def test_annotation_that_cannot_be_resolved_is_refused(
    broker: Broker, fn: Callable[..., Any]
) -> None:
    """An annotation that cannot be resolved could hide the class, so the actor is not
    declared, and the error says how to name the class.
    """
    with pytest.raises(ActorError) as caught:
        declare(broker, fn)
    text = str(caught.value)
    assert f"The annotation of job_state in the actor {fn.__name__!r}" in text
    assert "outside `if TYPE_CHECKING`" in text
    assert "@dramatiq.actor(job_state=...)" in text
    assert not broker.actors


def test_annotation_is_resolved_in_the_module_of_the_innermost_function(
    broker: Broker,
) -> None:
    """A decorator from another module does not lend its names to the annotation."""

    @annotated.wrapped
    def run(*, job_state: "Swim") -> None: ...

    assert declare(broker, run) is Swim


def test_class_based_actor_is_annotated_in_its_perform(broker: Broker) -> None:
    """The annotation of a class-based actor is that of its perform()."""
    actor = annotated.declare_marathon(broker)
    assert class_of(broker, actor) is RunMarathon


def test_other_annotations_are_never_evaluated(broker: Broker) -> None:
    """Only the annotation of job_state is evaluated: another one may do anything."""
    asked: list[str] = []

    def run(miles, *, job_state: RunMarathon): ...

    run.__annotations__["miles"] = "asked.append('miles')"

    run.__globals__["asked"] = asked
    try:
        assert declare(broker, run) is RunMarathon
    finally:
        del run.__globals__["asked"]
    assert asked == []


def test_callables_without_a_module_need_real_classes(broker: Broker) -> None:
    """A partial function has no globals: its annotation must be the class itself."""
    run = functools.partial(actor_with(RunMarathon), 26)
    named = functools.partial(actor_with("RunMarathon"), 26)
    assert declare(broker, run, actor_name="a") is RunMarathon
    with pytest.raises(ActorError, match="cannot be resolved: name 'RunMarathon'"):
        declare(broker, named, actor_name="b")


def test_parameter_that_cannot_go_by_keyword_is_refused(broker: Broker) -> None:
    """The error for a partial function names the actor and the right signature."""

    def run(job_state: RunMarathon, miles: int) -> None: ...

    with pytest.raises(ActorError, match=r"def run\(miles: int, \*, job_state\)"):
        declare(broker, run)
    partial = functools.partial(run)
    with pytest.raises(ActorError, match=r"actor 'b'.*def b\(miles: int, \*, job"):
        declare(broker, partial, actor_name="b")


@pytest.mark.parametrize(
    ("fn", "right"),
    [
        (lambda job_state, /, miles: None, "miles, \\*, job_state"),
        (lambda job_state, *miles: None, "\\*miles, job_state"),
        (
            lambda job_state, miles=1, **more: None,
            "miles=1, \\*, job_state, \\*\\*more",
        ),
        (lambda **job_state: None, "\\*, job_state"),
    ],
)
def test_error_shows_the_right_signature(
    broker: Broker, fn: Callable[..., Any], right: str
) -> None:
    """The parameter must be passed by keyword, however many others are by position."""
    with pytest.raises(ActorError, match=rf"\({right}\)$"):
        declare(broker, fn, actor_name="run")


def test_function_without_a_signature_is_not_tracked(
    broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    """Python knows no parameters of some of its own functions: they have no job_state,
    and no error is logged.
    """
    assert declare(broker, dict) is None
    assert caplog.records == []


@pytest.mark.parametrize("option", [True, RunMarathon])
def test_function_without_a_signature_cannot_be_tracked(
    broker: Broker, option: object
) -> None:
    """The error names the actor and its function."""
    with pytest.raises(ActorError, match=r"'run' cannot be tracked: .* <class 'dict'>"):
        declare(broker, dict, actor_name="run", job_state=option)
