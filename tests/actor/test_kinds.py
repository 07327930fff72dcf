"""The classes of jobs: their kinds, their titles, and what they declare."""

import logging
from typing import Any

import pytest
from pyramid.authorization import Allow
from redis import Redis

from pyramid_jobstate import JobState, JobStore
from pyramid_jobstate.testing import detached, put_job
from tests.actor.conftest import put_fields
from tests.jobs import RunMarathon, new_id
from tests.support import load_job


def test_kind_is_the_name_of_the_class(store: JobStore) -> None:
    """A class may set another one, which its subclasses do not inherit."""

    class Stroll(JobState):
        kind = "strolling"

    class Hike(Stroll):
        pass

    assert (JobState.kind, Stroll.kind, Hike.kind) == ("JobState", "strolling", "Hike")
    for cls in (JobState, Stroll, Hike):
        assert type(load_job(store, put_job(store, cls).uuid)) is cls


class Sport(str):
    """A text whose str() is another, as of a member of a (str, Enum)."""

    def __str__(self) -> str:
        return f"Sport.{super().__str__()}"


def test_kind_is_a_text() -> None:
    """A class is refused if the kind that is stored would not lead back to it."""
    kind: Any
    for kind in (5, None, "", property(lambda self: "x"), Sport("jog")):
        with pytest.raises(TypeError, match=r"Jog\.kind must be a str that is not emp"):
            type("Jog", (JobState,), {"kind": kind})


def test_kind_goes_to_the_class_of_a_reloaded_module(store: JobStore) -> None:
    """A class replaces an earlier one of the same module and name."""

    def declare() -> type[JobState]:
        class Reloaded(JobState):
            pass

        return Reloaded

    uuid = put_job(store, declare()).uuid
    newest = declare()
    assert type(load_job(store, uuid)) is newest


def test_two_classes_of_one_kind_are_refused(store: JobStore) -> None:
    """The error names both, and the first stays."""

    class Trot(JobState):
        pass

    with pytest.raises(TypeError, match=r"'Trot'.*\.Trot and .*\.Canter. Give"):

        class Canter(JobState):
            kind = "Trot"

    with pytest.raises(TypeError, match="'JobState'"):

        class Other(JobState):
            kind = "JobState"

    for cls in (Trot, JobState):
        assert type(load_job(store, put_job(store, cls).uuid)) is cls


def test_public_params_are_no_text() -> None:
    """A lone string, for lack of a comma, is a TypeError."""
    with pytest.raises(TypeError, match=r"Race.public_params .*'miles'.*comma"):

        class Race(JobState):
            public_params = "miles"


def test_class_may_have_other_bases() -> None:
    """A base may take arguments in the class statement."""

    class Base:
        colour = ""

        def __init_subclass__(cls, colour: str, **kwargs: Any) -> None:
            super().__init_subclass__(**kwargs)
            cls.colour = colour

    class Parade(JobState, Base, colour="red"):
        pass

    assert Parade.colour == "red"


def test_unknown_kind_has_no_rights(
    store: JobStore, client: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    """A job of a kind that is not imported here can be read, grants nothing, and is
    told of once.
    """
    kinds = [
        f"{text}{new_id()}"
        for text in ("", "Nobody ", "<b>", "\ud800".encode("utf-8", "replace").decode())
    ]
    for kind in kinds:
        uuid = put_job(store, owner="alice", params={"miles": 26}).uuid
        put_fields(client, store, uuid, kind=kind)
        for _ in range(2):
            state = load_job(store, uuid)
        assert state.__acl__() == []
        assert (state.kind, state.owner) == (kind, "alice")
        assert state.job_params == {"miles": 26}
    logged = [r for r in caplog.records if r.name.startswith("pyramid_jobstate")]
    assert [record.levelno for record in logged] == [logging.WARNING] * len(kinds)
    for kind, record in zip(kinds, logged, strict=True):
        assert repr(kind) in record.getMessage()


def test_jobs_of_unknown_kinds_keep_them(store: JobStore, client: Redis) -> None:
    """Each has its own kind and title."""
    uuids = [put_job(store).uuid for _ in range(2)]
    for uuid, kind in zip(uuids, ("PatDog", "PatCat"), strict=True):
        put_fields(client, store, uuid, kind=kind)
    states = [state for state in store.load_many(uuids) if state]
    assert [state.kind for state in states] == ["PatDog", "PatCat"]
    assert [state.title for state in states] == ["Pat dog", "Pat cat"]


def test_title_is_made_from_the_kind() -> None:
    """It is the kind in words, unless the class has a title of its own."""

    class Headlined(JobState):
        pass

    for kind, title in [
        ("RunMarathon", "Run marathon"),
        ("ExportPDF", "Export PDF"),
        ("PDFExport", "PDF export"),
        ("Import2024Data", "Import2024 data"),
        ("import_csv_files", "Import csv files"),
        ("X", "X"),
        ("_", ""),
        ("", ""),
        ("ÄrzteListe", "Ärzte liste"),
        ("myapp.Import", "Myapp import"),
    ]:
        Headlined.kind = kind
        assert detached(Headlined).title == title

    class Poetic(JobState):
        title = "A long walk"

    assert detached(Poetic).title == "A long walk"


def test_title_without_a_class_is_made_from_the_actor(store: JobStore) -> None:
    """A job of no class of its own is called like its actor."""
    assert put_job(store, actor="run_marathon").title == "Run marathon"


def test_owner_may_view_and_cancel(store: JobStore) -> None:
    """The lineage decides everything else, and all about a job of nobody."""
    state = put_job(store, RunMarathon, owner="alice")
    assert state.__acl__() == [(Allow, "alice", ("view_job", "cancel_job"))]
    assert put_job(store, RunMarathon).__acl__() == []
