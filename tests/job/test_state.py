"""JobState as a resource that is read, and as the handle of a running job."""

import datetime
import enum
import logging
import uuid

import pytest
from pyramid.authorization import Allow
from pyramid.i18n import make_localizer

from pyramid_jobstate.errors import JobCancelled
from pyramid_jobstate.job import state
from pyramid_jobstate.job.progress import Progress
from pyramid_jobstate.job.record import FINISHED, UNFINISHED, JobError, Record
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
    """The request of a user who may cancel."""

    localizer = make_localizer("en", [])

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
    """The detached JobState of a running job."""
    return JobState(Record(UUID, {"status": "working"}), Run())


def loaded(**fields):
    return JobState(Record(UUID, STORED | fields))


# Reading.


def test_job_state_reads_what_was_stored():
    """Each attribute has the value from the record."""
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
    """Each attribute of an empty record has its empty value."""
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
    """A single metric or parameter can be read, with a default."""
    job_state = loaded()
    assert job_state.get_progress_metric("miles_run") == 12
    assert job_state.get_progress_metric("other") is None
    assert job_state.get_progress_metric("other", 0) == 0
    assert job_state.get_job_param("miles") == 26
    assert job_state.get_job_param("other") is None
    assert job_state.get_job_param("other", 0) == 0


@pytest.mark.parametrize("status", UNFINISHED)
def test_job_state_that_has_not_ended_is_working(status):
    """A job in any unfinished status is working, and nothing else."""
    job_state = loaded(status=status)
    assert job_state.is_working
    assert not job_state.is_finished
    assert not job_state.is_success
    assert not job_state.is_error


@pytest.mark.parametrize("status", FINISHED)
def test_job_state_that_has_ended_is_a_success_or_an_error(status):
    """An ended job is a success or an error, and no longer working."""
    job_state = loaded(status=status)
    assert job_state.is_finished
    assert not job_state.is_working
    assert job_state.is_success is (status == "success")
    assert job_state.is_error is (status != "success")


def test_job_state_repr_tells_class_uuid_and_status():
    """The repr shows the class, uuid and status."""
    assert repr(loaded()) == f"<JobState {UUID} error>"


# Writing.


def test_job_state_reads_back_what_it_has_set(running):
    """A running job reads its own reports in their JSON form."""
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
    """A running job does not have the values of earlier runs."""
    job_state = JobState(Record(UUID, {"m:old": "1"}), Run())
    assert job_state.progress_metrics == {}


def test_set_progress_metric_takes_the_short_way_only_for_plain_numbers(running):
    """A value that needs checks gets them even if the metric was a number before."""
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
    """Each value raises the flag for the recorder, not only the first."""
    for value in (1, 2, "text", 3, 4):
        running._run.dirty = False
        running.set_progress_metric("a", value)
        assert running._run.dirty


def test_set_progress_metric_takes_a_name_of_a_string_enum(running):
    """A name may be an instance of a str subclass."""

    class Name(enum.StrEnum):
        ROWS = "rows"

    running.set_progress_metric(Name.ROWS, 1)
    running.set_progress_metric(Name.ROWS, 2)
    running.set_progress_metric("rows", 3)
    assert running.progress_metrics == {"rows": 3}


@pytest.mark.parametrize("name", [["a"], {}, None, 1, b"a"])
def test_set_progress_metric_refuses_a_name_that_is_not_a_string(running, name):
    """A name that is not a string, hashable or not, is a TypeError."""
    with pytest.raises(TypeError):
        running.set_progress_metric(name, 1)
    assert running.progress_metrics == {}


def test_set_progress_metrics_takes_any_name_by_keyword(running):
    """A metric may be named like a parameter of the method."""
    running.set_progress_metrics({"a": 1}, self=2, mapping=3, a=4)
    assert running.progress_metrics == {"a": 4, "self": 2, "mapping": 3}


def test_set_progress_metrics_of_nothing_sets_nothing(running):
    """A call without metrics is not an error."""
    running.set_progress_metrics()
    assert running.progress_metrics == {}


@pytest.mark.parametrize("values", [[("a", 1)], {1: 2}, "a", 1])
def test_set_progress_metrics_refuses_what_is_not_a_mapping_of_names(running, values):
    """Anything but a mapping of names is a TypeError."""
    with pytest.raises(TypeError):
        running.set_progress_metrics(values)
    assert running.progress_metrics == {}


def test_job_state_copies_a_mutable_value(running):
    """Later changes to a value, or to a value that was read, have no effect."""
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
    """Each item is yielded, and the progress counts the finished ones."""
    assert list(running.track("abc", 5, unit="letters", message="Go")) == [
        "a",
        "b",
        "c",
    ]
    assert running.progress == Progress(3, 5, "letters")
    assert running.message == "Go"


def test_flush_of_a_detached_job_has_nothing_to_wait_for(running):
    """Values kept in memory need no flush."""
    assert running.flush(timeout=0)


#: The methods by which a job reports.
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
    """A loaded JobState refuses to report and does not change."""
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
    """A loaded JobState has nothing to flush, and does not claim otherwise."""
    with pytest.raises(RuntimeError, match=r"was loaded from a store\. Only a running"):
        loaded().flush()


@each_write
def test_job_state_of_a_job_that_has_ended_takes_nothing(running, write):
    """After the end, reports are refused, even for a known metric."""
    running.set_progress_metric("a", 5)
    running._run.close("The job has ended.")
    with pytest.raises(RuntimeError, match="has ended"):
        write(running)
    assert running.progress_metrics == {"a": 5}


# Cancelling.


@each_write
def test_job_state_of_a_cancelled_job_says_so_once(running, write):
    """The next call that reports raises JobCancelled. The one after it reports."""
    running.set_progress_metric("a", 5)
    running._run.cancel()
    with pytest.raises(JobCancelled):
        write(running)
    write(running)
    assert running.cancel_requested


def test_cancel_requested_makes_the_recorder_ask_the_store(running):
    """Reading cancel_requested makes the recorder ask the store, as a report does."""
    assert not running.cancel_requested
    assert running._run.dirty
    running._run.dirty = False
    running.raise_if_cancelled()
    assert running._run.dirty


def test_cancel_requested_of_a_loaded_job_is_what_was_asked():
    """A loaded job shows whether its cancellation was requested, whatever the outcome.
    A skipped job was cancelled without a request.
    """
    for status in ("cancelling", "cancelled", "success"):
        assert loaded(status=status, asked="word").cancel_requested
        assert not loaded(status=status).cancel_requested


def test_cancel_needs_a_store(running):
    """A running job cannot cancel itself: that is a RuntimeError."""
    with pytest.raises(RuntimeError, match="loaded"):
        running.cancel()


@pytest.mark.parametrize("answer", [True, False])
def test_cancel_asks_the_store(answer):
    """A loaded job asks its store and returns the answer."""

    class Store:
        def cancel(self, *args):
            self.args = args
            return answer

    job_state = loaded()
    job_state._store = store = Store()
    assert job_state.cancel() is answer
    assert store.args == (UUID, job_state._record.info)


def test_delete_needs_a_store(running):
    """A running job cannot delete itself: that is a RuntimeError."""
    with pytest.raises(RuntimeError, match="loaded"):
        running.delete()


@pytest.mark.parametrize("answer", [True, False])
def test_delete_asks_the_store(answer):
    """A loaded job asks its store to delete it, and returns the answer."""

    class Store:
        def delete(self, uuid):
            return answer and uuid == UUID

    job_state = loaded()
    job_state._store = Store()
    assert job_state.delete() is answer


def test_rerun_needs_a_request():
    """A job that no request has loaded names the function that runs it again."""
    with pytest.raises(RuntimeError, match=r"pyramid_jobstate\.rerun\(store, broker"):
        loaded().rerun()


@pytest.mark.parametrize("answer", [True, False])
def test_rerun_asks_the_container(answer):
    """A job that a request has loaded asks its container, and returns the answer."""

    class Container:
        def rerun(self, job_state):
            self.job_state = job_state
            return answer

    job_state = loaded()
    job_state._container = container = Container()
    assert job_state.rerun() is answer
    assert container.job_state is job_state


# The current job.


def test_current_job_state_is_none_outside_a_job():
    """Outside a job, current_job_state() returns None."""
    assert current_job_state() is None


# Kinds.


def test_kind_is_the_name_of_the_class():
    """The kind of a class is its own name, even in a subclass."""

    class Walk(JobState):
        pass

    class Hike(Walk):
        pass

    assert (JobState.kind, Walk.kind, Hike.kind) == ("JobState", "Walk", "Hike")


def test_kind_may_be_set():
    """A class may set another kind, which its subclasses do not inherit."""

    class Walk(JobState):
        kind = "walking"

    class Hike(Walk):
        pass

    assert type(JobState.from_record(Record(UUID, {"kind": "walking"}))) is Walk
    assert Hike.kind == "Hike"


class Sport(str):
    """A text whose str() is another, as of a member of a (str, Enum)."""

    def __str__(self):
        return f"Sport.{super().__str__()}"


@pytest.mark.parametrize(
    "kind", [5, None, "", property(lambda self: "x"), Sport("walk")]
)
def test_kind_must_be_a_string(kind):
    """A class is refused if the kind that the store keeps would not lead back to it."""
    with pytest.raises(TypeError, match=r"Walk\.kind must be a str that is not empty"):
        type("Walk", (JobState,), {"kind": kind})
    assert JobState.class_of(Record(UUID, {"kind": str(kind)})).kind == ""


def test_kind_goes_to_the_class_of_a_reloaded_module():
    """A class replaces an earlier one of the same module and name."""

    def declare():
        class Walk(JobState):
            pass

        return Walk

    declare()
    newest = declare()
    assert type(JobState.from_record(Record(UUID, {"kind": "Walk"}))) is newest


def test_kind_of_two_classes_is_an_error():
    """A second class of the same kind is refused, with both named. The first stays."""

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


def test_public_params_must_not_be_a_string():
    """A lone string, for lack of a comma, is a TypeError."""
    with pytest.raises(TypeError, match=r"Walk.public_params .*'miles'.*comma"):

        class Walk(JobState):
            public_params = "miles"


def test_init_subclass_passes_arguments_on():
    """The class may have a base that takes arguments in the class statement."""

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
    """A job of a kind that is not imported here has an empty ACL, and a warning is
    logged once.
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
    """Two jobs of unknown kinds keep their own kinds."""
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
    """The title is the kind, split into words."""

    class Walk(JobState):
        pass

    Walk.kind = kind
    assert Walk(Record(UUID, {})).title == title


def test_title_without_a_class_is_made_from_the_actor():
    """A job without a class of its own is titled after its actor."""
    assert loaded().title == "Run marathon"


def test_title_may_be_set():
    """A class may set the title of its jobs."""

    class Walk(JobState):
        title = "A long walk"

    assert Walk(Record(UUID, {})).title == "A long walk"


# ACL and JSON.


def test_acl_lets_the_owner_in():
    """The owner may view and cancel. The lineage decides everything else."""
    assert loaded().__acl__() == [(Allow, "alice", ("view_job", "cancel_job"))]


@pytest.mark.parametrize("owner", ["null", "true", '["alice"]', "{}", "", "NaN"])
def test_acl_of_a_job_of_nobody_is_empty(owner):
    """A job without a valid owner has an empty ACL."""
    assert loaded(owner=owner).__acl__() == []


def test_json_shows_a_job():
    """The JSON has the metrics at the top and everything else in `job`."""

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
            "phase": None,
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
            "result": None,
        },
    }


def test_json_of_an_empty_record_shows_unknown_values_as_empty():
    """Unknown values are null, empty or 0."""
    job = JobState(Record(UUID, {"status": "queued"})).__json__(Request())["job"]
    nothing = ("progress", "message", "due_at", "queued_at", "error")
    assert [job[name] for name in nothing] == [None] * 5
    assert (job["params"], job["log"], job["attempt"]) == ({}, [], 0)
    assert job["cancellable"] is True


def test_json_keeps_exceptions_and_params_from_viewers():
    """By default, no parameters and no text of an exception are shown."""
    shown = loaded().__json__(Request())
    assert shown["job"]["params"] == {}
    assert shown["job"]["error"] == {"message": "The job failed."}
    assert "too far" not in str(shown)


def test_json_shows_a_reason_that_no_exception_gave():
    """The reason of a cancellation is shown to viewers."""
    shown = loaded(status="cancelled", error='[null,"Too late."]').__json__(Request())
    assert shown["job"]["error"] == {"message": "Too late."}


@pytest.mark.parametrize(
    ("status", "coarse"),
    [(status, "working") for status in UNFINISHED]
    + [("success", "success"), ("error", "error"), ("cancelled", "error")],
)
def test_json_has_the_coarse_state(status, coarse):
    """Pages rely on one of three states."""
    shown = loaded(status=status).__json__(Request())
    assert shown["job_state"] == coarse
    assert shown["job"]["status"] == status


def test_json_lets_no_metric_pass_for_the_state():
    """Metrics with reserved names, written by another program, are not shown."""
    shown = loaded(**{"m:job_state": '"success"', "m:job": "{}"}).__json__(Request())
    assert shown["job_state"] == "error"
    assert shown["job"]["uuid"] == UUID


def test_job_that_has_not_ended_is_working_for_pages():
    """Even if its class takes it for a success already. Its result is not shown."""

    class Hasty(JobState):
        is_success = True
        is_finished = False

        def result_url(self, request):
            return "https://example.com/result"

    shown = Hasty(Record(UUID, STORED)).__json__(Request())
    assert shown["job_state"] == "working"
    assert shown["job"]["result"] is None
