"""JobState as a resource that is read, and as a handle that is written to."""

import datetime
import enum
import logging
import uuid

import pytest
from pyramid.authorization import Allow

from pyramid_jobstate.errors import JobCancelled
from pyramid_jobstate.job import state
from pyramid_jobstate.job.record import FINISHED, UNFINISHED, JobError, Progress, Record
from pyramid_jobstate.job.run import Run
from pyramid_jobstate.job.state import JobState, current_job_state
from tests.support import UUID

STORED = {
    "status": "error",
    "kind": "JobState",
    "actor": "run_marathon",
    "owner": '"alice"',
    "attempt": "2",
    "params": '{"miles":26,"secret":"x"}',
    "m:miles_run": "12",
    "progress": '[13,26,"miles",14.2]',
    "message": '"Running"',
    "log": '["a","b"]',
    "error": '["ValueError","too far"]',
    "queued": "1800000000001",
    "due": "1800000000002",
    "started": "1800000000003",
    "updated": "1800000000004",
    "finished": "1800000000005",
}


class Request:
    """The request of somebody who may cancel."""

    def resource_url(self, resource):
        return f"/job_state/{resource.uuid}/"

    @property
    def job_states(self):
        return self

    def permits(self, context, permission):
        return permission == "cancel_job"


@pytest.fixture(autouse=True)
def _kinds(monkeypatch):
    """Forget the kinds that a test registers."""
    monkeypatch.setattr(state, "_kinds", dict(state._kinds))
    monkeypatch.setattr(state, "_unknown", set())


@pytest.fixture
def running():
    """The JobState of a job that runs, detached."""
    return JobState(Record(UUID, {"status": "working"}), Run())


def loaded(**fields):
    return JobState(Record(UUID, STORED | fields))


# Reading.


def test_job_state_reads_what_was_stored():
    """Each attribute gives what the record holds."""
    job_state = loaded()
    assert job_state.uuid == job_state.__name__ == UUID
    assert job_state.status == "error"
    assert job_state.actor == "run_marathon"
    assert job_state.owner == "alice"
    assert job_state.attempt == 2
    assert job_state.job_params == {"miles": 26, "secret": "x"}
    assert job_state.progress_metrics == {"miles_run": 12}
    assert job_state.progress == Progress(13, 26, "miles", 14.2)
    assert job_state.message == "Running"
    assert job_state.log == ["a", "b"]
    assert job_state.error == JobError("ValueError", "too far")


def test_job_state_reads_nothing_where_nothing_is_stored():
    """Each attribute of an empty record says that there is nothing."""
    job_state = JobState(Record(UUID, {}))
    assert job_state.owner is None
    assert job_state.attempt == 0
    assert job_state.job_params == job_state.progress_metrics == {}
    assert job_state.progress is None
    assert job_state.message is None
    assert job_state.error is None
    assert job_state.log == []
    assert job_state.queued_at is None


@pytest.mark.parametrize(
    ("name", "microsecond"),
    [
        ("queued_at", 1000),
        ("due_at", 2000),
        ("started_at", 3000),
        ("updated_at", 4000),
        ("finished_at", 5000),
    ],
)
def test_job_state_times_are_utc(name, microsecond):
    """Each time is an aware datetime."""
    expected = datetime.datetime(2027, 1, 15, 8, 0, 0, microsecond, datetime.UTC)
    assert getattr(loaded(), name) == expected


def test_job_state_gets_one_metric_or_param():
    """One metric or parameter can be asked for, with a default."""
    job_state = loaded()
    assert job_state.get_progress_metric("miles_run") == 12
    assert job_state.get_progress_metric("other") is None
    assert job_state.get_progress_metric("other", 0) == 0
    assert job_state.get_job_param("miles") == 26
    assert job_state.get_job_param("other") is None
    assert job_state.get_job_param("other", 0) == 0


@pytest.mark.parametrize("status", UNFINISHED)
def test_job_state_that_has_not_ended_is_working(status):
    """A job in any of the unfinished statuses is working, and nothing else."""
    job_state = loaded(status=status)
    assert job_state.is_working
    assert not job_state.is_finished
    assert not job_state.is_success
    assert not job_state.is_error


@pytest.mark.parametrize("status", FINISHED)
def test_job_state_that_has_ended_is_a_success_or_an_error(status):
    """A job that has ended is a success or an error, and works no more."""
    job_state = loaded(status=status)
    assert job_state.is_finished
    assert not job_state.is_working
    assert job_state.is_success is (status == "success")
    assert job_state.is_error is (status != "success")


def test_job_state_repr_tells_class_uuid_and_status():
    """The repr says which job it is and how it stands."""
    assert repr(loaded()) == f"<JobState {UUID} error>"


# Writing.


def test_job_state_reads_back_what_it_has_set(running):
    """A running job reads what it has just set, in its JSON form."""
    running.set_progress_metric("a", 1)
    running.set_progress_metrics({"b": (1, 2)}, c=uuid.UUID(UUID))
    running.increment_progress_metric("d")
    running.increment_progress_metric("d", 2)
    running.set_progress(3, 4, unit="rows", message="Reading")
    running.append_log("line")
    assert running.progress_metrics == {"a": 1, "b": [1, 2], "c": UUID, "d": 3}
    assert running.get_progress_metric("a") == 1
    assert running.progress == Progress(3, 4, "rows")
    assert running.message == "Reading"
    assert running.log == ["line"]
    running.set_message(None)
    assert running.message is None


def test_job_state_has_a_running_job_start_from_nothing():
    """Values of an earlier run are not a running job's own."""
    job_state = JobState(Record(UUID, {"m:old": "1"}), Run())
    assert job_state.progress_metrics == {}


def test_set_progress_metric_takes_the_short_way_only_for_plain_numbers(running):
    """A value that must be looked at is looked at also where a number was before."""
    running.set_progress_metric("a", 1)
    for value in (2, 2.5, False, -(2**61), 2**62, 10**100, "x", [1], None):
        running.set_progress_metric("a", value)
        assert running.get_progress_metric("a") == value
        assert type(running.get_progress_metric("a")) is type(value)
    running.set_progress_metric("a", 1)
    for bad in (float("nan"), float("inf"), -float("inf")):
        with pytest.raises(ValueError, match="'a'"):
            running.set_progress_metric("a", bad)
    assert running.get_progress_metric("a") == 1


def test_set_progress_metric_raises_the_flag_on_either_way(running):
    """The recorder learns of the first value as of each later one."""
    for value in (1, 2, "text", 3, 4):
        running._run.dirty = False
        running.set_progress_metric("a", value)
        assert running._run.dirty


def test_set_progress_metric_takes_a_name_of_a_string_enum(running):
    """A name that is a string by inheritance is a name."""

    class Name(enum.StrEnum):
        ROWS = "rows"

    running.set_progress_metric(Name.ROWS, 1)
    running.set_progress_metric(Name.ROWS, 2)
    running.set_progress_metric("rows", 3)
    assert running.progress_metrics == {"rows": 3}


@pytest.mark.parametrize("name", [["a"], {}, None, 1, b"a"])
def test_set_progress_metric_refuses_a_name_that_is_no_string(running, name):
    """A name that is no string, hashable or not, is a TypeError."""
    with pytest.raises(TypeError):
        running.set_progress_metric(name, 1)
    assert running.progress_metrics == {}


def test_set_progress_metrics_takes_any_name_by_keyword(running):
    """Also the names that the methods' own parameters might have."""
    running.set_progress_metrics({"a": 1}, self=2, mapping=3, a=4)
    assert running.progress_metrics == {"a": 4, "self": 2, "mapping": 3}


def test_set_progress_metrics_of_nothing_sets_nothing(running):
    """No metrics are no error."""
    running.set_progress_metrics()
    assert running.progress_metrics == {}


@pytest.mark.parametrize("values", [[("a", 1)], {1: 2}, "a", 1])
def test_set_progress_metrics_refuses_what_is_no_mapping_of_names(running, values):
    """Anything but a mapping of names is a TypeError."""
    with pytest.raises(TypeError):
        running.set_progress_metrics(values)
    assert running.progress_metrics == {}


def test_job_state_copies_a_mutable_value(running):
    """What becomes of a value after the call, or of what is read, has no effect."""
    value = {"a": [1]}
    running.set_progress_metric("x", value)
    running.append_log("line")
    value["a"].append(2)
    running.get_progress_metric("x")["a"].append(3)
    running.progress_metrics["y"] = 1
    running.log.append("more")
    assert running.progress_metrics == {"x": {"a": [1]}}
    assert running.log == ["line"]


def test_track_yields_the_items(running):
    """Each item comes through, and the progress says how many are done."""
    assert list(running.track("abc", 5, unit="letters", message="Go")) == [
        "a",
        "b",
        "c",
    ]
    assert running.progress == Progress(3, 5, "letters")
    assert running.message == "Go"


def test_flush_of_a_detached_job_has_nothing_to_wait_for(running):
    """What is kept in memory is stored at once."""
    assert running.flush(timeout=0)


#: Each method by which a job reports.
WRITES = {
    "set_progress_metric": lambda j: j.set_progress_metric("a", 1),
    "set_progress_metrics": lambda j: j.set_progress_metrics(a=1),
    "increment_progress_metric": lambda j: j.increment_progress_metric("a"),
    "set_progress": lambda j: j.set_progress(1),
    "track": lambda j: j.track([1]),
    "set_message": lambda j: j.set_message("a"),
    "append_log": lambda j: j.append_log("a"),
    "raise_if_cancelled": lambda j: j.raise_if_cancelled(),
}

each_write = pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)


@each_write
def test_job_state_that_was_loaded_takes_nothing(write):
    """A JobState that was loaded refuses to report, and stays as it was."""
    job_state = loaded()
    for _ in range(2):
        with pytest.raises(
            RuntimeError, match=r"was loaded from a store\. Only a running"
        ):
            write(job_state)
    assert job_state.progress_metrics == {"miles_run": 12}
    assert job_state.progress == Progress(13, 26, "miles", 14.2)
    assert job_state.message == "Running"
    assert job_state.log == ["a", "b"]


def test_flush_of_a_job_that_was_loaded_is_refused():
    """A JobState that was loaded has nothing to wait for, and does not say it had."""
    with pytest.raises(RuntimeError, match=r"was loaded from a store\. Only a running"):
        loaded().flush()


@each_write
def test_job_state_of_a_job_that_has_ended_takes_nothing(running, write):
    """After the end a report is refused, also where the metric was known."""
    running.set_progress_metric("a", 5)
    running._run.close("The job has ended.")
    with pytest.raises(RuntimeError, match="has ended"):
        write(running)
    assert running.progress_metrics == {"a": 5}


# Cancelling.


@each_write
def test_job_state_of_a_cancelled_job_says_so_once(running, write):
    """Each call that reports raises JobCancelled, the next one reports."""
    running.set_progress_metric("a", 5)
    running._run.cancel()
    with pytest.raises(JobCancelled):
        write(running)
    write(running)
    assert running.cancel_requested


def test_cancel_requested_has_the_store_asked(running):
    """A job that only looks learns of a cancel as soon as one that reports."""
    assert not running.cancel_requested
    assert running._run.dirty
    running._run.dirty = False
    running.raise_if_cancelled()
    assert running._run.dirty


def test_cancel_requested_of_a_loaded_job_is_what_was_asked():
    """Whoever loads a job sees that somebody has asked to cancel it, whatever came of
    that; a job that was skipped was not asked.
    """
    for status in ("cancelling", "cancelled", "success"):
        assert loaded(status=status, asked="word").cancel_requested
        assert not loaded(status=status).cancel_requested


def test_cancel_needs_a_store(running):
    """A job that runs cannot cancel itself: that is a RuntimeError."""
    with pytest.raises(RuntimeError, match="loaded"):
        running.cancel()


@pytest.mark.parametrize("answer", [True, False])
def test_cancel_asks_the_store(answer):
    """A job that was loaded asks its store, and says what that says."""

    class Store:
        def cancel(self, *args):
            self.args = args
            return answer

    job_state = loaded()
    job_state._store = store = Store()
    assert job_state.cancel() is answer
    assert store.args == (UUID, job_state._record.info)


# The current one.


def test_current_job_state_is_none_outside_a_job():
    """Where no job runs there is no current one."""
    assert current_job_state() is None


# Kinds.


def test_kind_is_the_name_of_the_class():
    """A class is of the kind of its name, and a subclass of it of its own."""

    class Walk(JobState):
        pass

    class Hike(Walk):
        pass

    assert (JobState.kind, Walk.kind, Hike.kind) == ("JobState", "Walk", "Hike")


def test_kind_may_be_set():
    """A class may call its kind otherwise, which its subclasses do not inherit."""

    class Walk(JobState):
        kind = "walking"

    class Hike(Walk):
        pass

    assert type(JobState.from_record(Record(UUID, {"kind": "walking"}))) is Walk
    assert Hike.kind == "Hike"


def test_kind_goes_to_the_class_of_a_reloaded_module():
    """A class of the same module and name replaces the one before."""

    def declare():
        class Walk(JobState):
            pass

        return Walk

    declare()
    newest = declare()
    assert type(JobState.from_record(Record(UUID, {"kind": "Walk"}))) is newest


def test_kind_of_two_classes_is_an_error():
    """A second class of a kind is refused, with both named, and the first one stays."""

    class Walk(JobState):
        pass

    with pytest.raises(TypeError, match=r"'Walk'.*\.Walk and .*\.Hike. Give"):

        class Hike(JobState):
            kind = "Walk"

    with pytest.raises(TypeError, match="'JobState'"):

        class Other(JobState):
            kind = "JobState"

    assert type(JobState.from_record(Record(UUID, {"kind": "Walk"}))) is Walk
    assert type(JobState.from_record(Record(UUID, {"kind": "JobState"}))) is JobState


def test_public_params_must_be_no_string():
    """Names in a lone string, for want of a comma, are a TypeError."""
    with pytest.raises(TypeError, match=r"Walk.public_params .*'miles'.*comma"):

        class Walk(JobState):
            public_params = "miles"


def test_init_subclass_passes_arguments_on():
    """A class may have bases that take arguments of the class statement."""

    class Base:
        colour = ""

        def __init_subclass__(cls, colour, **kwargs):
            super().__init_subclass__(**kwargs)
            cls.colour = colour

    class Walk(JobState, Base, colour="red"):
        pass

    assert Walk.colour == "red"


@pytest.mark.parametrize("kind", ["", "Nobody", "<b>", "\ud800"])
def test_from_record_of_an_unknown_kind_has_no_rights(kind, caplog):
    """A job of a kind that is not imported here has no ACL of its own, which is logged
    once.
    """
    for _ in range(2):
        job_state = JobState.from_record(Record(UUID, STORED | {"kind": kind}))
    assert job_state.__acl__() == []
    assert job_state.kind == kind
    assert job_state.job_params
    (logged,) = caplog.records
    assert logged.levelno == logging.WARNING
    assert repr(kind) in logged.getMessage()


def test_from_record_keeps_the_kinds_of_unknown_jobs_apart():
    """Two jobs of unknown kinds are each of their own."""
    one, two = (
        JobState.from_record(Record(UUID, {"kind": k})) for k in ("Walk", "Hike")
    )
    assert (one.kind, two.kind) == ("Walk", "Hike")
    assert (one.title, two.title) == ("Walk", "Hike")


@pytest.mark.parametrize(
    ("kind", "title"),
    [
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
    ],
)
def test_title_is_made_from_the_kind(kind, title):
    """A kind's name is spelt as words."""

    class Walk(JobState):
        pass

    Walk.kind = kind
    assert Walk(Record(UUID, {})).title == title


def test_title_is_made_from_the_actor_where_there_is_no_class():
    """Jobs of no class of their own are called after their actor."""
    assert loaded().title == "Run marathon"


def test_title_may_be_set():
    """A class may say how its jobs are called."""

    class Walk(JobState):
        title = "A long walk"

    assert Walk(Record(UUID, {})).title == "A long walk"


# Showing.


def test_acl_lets_the_owner_in():
    """The owner may see and cancel, and all else is for the lineage to decide."""
    assert loaded().__acl__() == [(Allow, "alice", ("view_job", "cancel_job"))]


@pytest.mark.parametrize("owner", ["null", "true", '["alice"]', "{}", "", "NaN"])
def test_acl_of_a_job_of_nobody_is_empty(owner):
    """A job with no owner, or with one that is none, lets nobody in."""
    assert loaded(owner=owner).__acl__() == []


def test_json_shows_a_job():
    """A viewer sees the metrics at the top, and all else in `job`."""

    class Walk(JobState):
        public_params = ("miles", "none")

        def public_error(self, exception_type, message):
            return f"{exception_type}: {message}"

    assert Walk(Record(UUID, STORED)).__json__(Request()) == {
        "miles_run": 12,
        "job_state": "error",
        "job": {
            "uuid": UUID,
            "kind": "Walk",
            "title": "Walk",
            "status": "error",
            "url": f"/job_state/{UUID}/",
            "params": {"miles": 26},
            "progress": {
                "done": 13,
                "total": 26,
                "unit": "miles",
                "fraction": 0.5,
                "eta": 14.2,
            },
            "message": "Running",
            "log": ["a", "b"],
            "attempt": 2,
            "queued_at": "2027-01-15T08:00:00.001Z",
            "due_at": "2027-01-15T08:00:00.002Z",
            "started_at": "2027-01-15T08:00:00.003Z",
            "updated_at": "2027-01-15T08:00:00.004Z",
            "finished_at": "2027-01-15T08:00:00.005Z",
            "cancellable": False,
            "error": {"message": "ValueError: too far"},
        },
    }


def test_json_of_an_empty_record_shows_that_there_is_nothing():
    """What is not known is null, empty or 0."""
    job = JobState(Record(UUID, {"status": "queued"})).__json__(Request())["job"]
    nothing = ("progress", "message", "due_at", "queued_at", "error")
    assert [job[name] for name in nothing] == [None] * 5
    assert (job["params"], job["log"], job["attempt"]) == ({}, [], 0)
    assert job["cancellable"] is True


def test_json_keeps_exceptions_and_params_from_viewers():
    """Unless the class says otherwise no parameter and no exception's text is shown."""
    shown = loaded().__json__(Request())
    assert shown["job"]["params"] == {}
    assert shown["job"]["error"] == {"message": "The job failed."}
    assert "too far" not in str(shown)


def test_json_shows_a_reason_that_no_exception_gave():
    """Why a job was cancelled is for its viewers."""
    shown = loaded(status="cancelled", error='[null,"Too late."]').__json__(Request())
    assert shown["job"]["error"] == {"message": "Too late."}


@pytest.mark.parametrize(
    ("status", "coarse"),
    [(status, "working") for status in UNFINISHED]
    + [("success", "success"), ("error", "error"), ("cancelled", "error")],
)
def test_json_has_the_coarse_state(status, coarse):
    """Pages rely on one of three words."""
    shown = loaded(status=status).__json__(Request())
    assert shown["job_state"] == coarse
    assert shown["job"]["status"] == status


def test_json_lets_no_metric_pass_for_the_state():
    """Metrics that another program called by the reserved names are not shown."""
    shown = loaded(**{"m:job_state": '"success"', "m:job": "{}"}).__json__(Request())
    assert shown["job_state"] == "error"
    assert shown["job"]["uuid"] == UUID
