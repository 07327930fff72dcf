"""The classes of jobs: their kinds, their titles, and what they declare."""

from typing import Any

import pytest
from pyramid.authorization import Allow

from pyramid_jobstate import Batch, JobState
from pyramid_jobstate.testing import detached, put_batch, put_job
from tests.jobs import RunMarathon, messages
from tests.support import load_job, write


def test_kind_is_the_name_of_the_class(store):
    """A class may set another one, which its subclasses do not inherit."""

    class Stroll(JobState):
        kind = "strolling"

    class Hike(Stroll): ...

    assert (JobState.kind, Stroll.kind, Hike.kind) == ("JobState", "strolling", "Hike")
    for cls in (JobState, Stroll, Hike):
        assert type(load_job(store, put_job(store, cls).uuid)) is cls


def test_kind_goes_to_the_class_of_a_reloaded_module(store):
    """A class replaces an earlier one of the same module and name."""

    def declare() -> type[JobState]:
        class Reloaded(JobState): ...

        return Reloaded

    uuid = put_job(store, declare()).uuid
    newest = declare()
    assert type(load_job(store, uuid)) is newest


def test_two_classes_of_one_kind_are_refused(store):
    """The error names both, and the first stays."""

    class Trot(JobState): ...

    for cls, error in (
        (Trot, r"'Trot'.*\.Trot and .*\.Canter. Give"),
        (JobState, "'JobState'"),
    ):
        with pytest.raises(TypeError, match=error):
            type("Canter", (JobState,), {"kind": cls.kind})
        assert type(load_job(store, put_job(store, cls).uuid)) is cls


def test_what_a_class_declares_is_checked():
    """An attribute that is wrong is an error of the class that declares it."""
    no_kind = "must be a str that is not emp"
    for name, value, error in (
        *(("kind", value, no_kind) for value in (5, None, "")),
        # For lack of a comma.
        ("public_params", "miles", ".*'miles'.*comma"),
        ("public_log", "no", r"must be .* not 'no'\.$"),
        ("log_level", True, r"must be a level of logging, .* not True\.$"),
        ("log_level", ["INFO"], r"must be .* not \['INFO'\]\.$"),
        ("log_level", "info", r"must be .* DEBUG.* not 'info'\.$"),
        ("log_level", "NOTSET", r"must be .* above 0 .* not 'NOTSET'\.$"),
        ("log_level", 0, r"must be .* not 0\.$"),
    ):
        expected = (TypeError, ValueError) if name == "log_level" else TypeError
        with pytest.raises(expected, match=rf"Race\.{name} {error}"):
            type("Race", (JobState,), {name: value})


def on_success(self: Any, request: Any) -> None:
    """A hook as it should be."""


async def sleeps(self: Any) -> None: ...


def yields(self: Any) -> Any:
    yield


class Called:
    """Not bound to the job, so it would not receive it."""

    def __call__(self, job: Any) -> None: ...


@pytest.mark.parametrize(
    ("hook", "error"),
    [
        (property(lambda self: None), "must be a method, not a property"),
        (staticmethod(on_success), "must be a method, not a staticmethod"),
        (classmethod(on_success), "must be a method, not a classmethod"),
        (JobState, "must be a method, not a type"),
        (7, "must be a method, not a int"),
        (Called(), "must be a method, not a Called"),
        (sleeps, "is async, but a hook runs in one thread"),
        (yields, "is a generator"),
        (lambda self, error: None, "has the parameter 'error'"),
        (lambda self, request, error=None: None, "has the parameter 'error=None'"),
        (lambda self, request, /: None, "has the parameter 'request'"),
        (lambda self, *args: None, r"has the parameter '\*args'"),
        (lambda self, **kwargs: None, r"has the parameter '\*\*kwargs'"),
        (lambda: None, "has no parameter self"),
    ],
)
def test_hook_is_a_plain_method(hook, error):
    """Another is refused where its class is made, even if a mixin has it."""
    mixin = type("Mixin", (), {"on_error": hook})
    for base in (JobState, Batch):
        with pytest.raises(
            TypeError, match=rf"^Climb\.on_error\(?\)? {error}.*Declare"
        ):
            type("Climb", (mixin, base), {})


def test_hook_may_be_switched_off():
    """A subclass that sets it to None has none."""
    first = type("Rise", (JobState,), {"on_success": on_success})
    second = type("Fall", (first,), {"on_success": None})
    assert not hasattr(JobState, "on_success")
    assert first.on_success is on_success  # type: ignore[attr-defined]
    assert second.on_success is None  # type: ignore[attr-defined]


def test_unknown_kind_has_no_rights(store, caplog):
    """A job or batch of one can be read, grants nothing, and is told of once."""
    uuid = put_job(store, owner="alice", params={"miles": 26}).uuid
    write(store, uuid, kind="<b>PatDog")
    for _ in range(2):
        state = load_job(store, uuid)
    assert state.__acl__() == []
    assert (state.kind, state.owner) == ("<b>PatDog", "alice")
    assert state.job_params == {"miles": 26}
    (said,) = messages(caplog, "pyramid_jobstate")
    assert "'<b>PatDog'" in said
    uuid = put_batch(store, members=["success"], owner="alice").uuid
    write(store, uuid, kind="Pack of dogs")
    batch = load_job(store, uuid)
    assert isinstance(batch, Batch) and batch.counts.success == 1
    assert (batch.__acl__(), batch.kind, batch.owner) == ([], "Pack of dogs", "alice")


def test_init_that_forgets_its_parents_is_named(store):
    """A class that overrides `__init__()` has to call that of JobState."""

    class Forgetful(JobState):
        forgets = False

        def __init__(self, *args: Any) -> None:
            if not self.forgets:
                super().__init__(*args)

    uuid = put_job(store, Forgetful).uuid
    Forgetful.forgets = True
    with pytest.raises(TypeError, match=r"Forgetful.__init__\(\) must call super\(\)"):
        store.load(uuid)


def test_title_is_made_from_the_kind(store):
    """It is the kind in words, or the class's own. A plain job has its actor's name."""

    class Headlined(JobState): ...

    for kind, title in [
        ("RunMarathon", "Run marathon"),
        ("PDFExport", "PDF export"),
        ("Import2024Data", "Import2024 data"),
        ("import_csv_files", "Import csv files"),
        ("_", ""),
        ("ÄrzteListe", "Ärzte liste"),
        ("myapp.Import", "Myapp import"),
    ]:
        Headlined.kind = kind
        assert detached(Headlined).title == title

    class Poetic(JobState):
        title = "A long walk"

    assert detached(Poetic).title == "A long walk"
    assert put_job(store, actor="run_marathon").title == "Run marathon"


def test_owner_may_view_and_cancel(store):
    """The lineage decides everything else, and all about a job of nobody."""
    state = put_job(store, RunMarathon, owner="alice")
    assert state.__acl__() == [(Allow, "alice", ("view_job", "cancel_job"))]
    assert put_job(store, RunMarathon).__acl__() == []
