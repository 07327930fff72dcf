"""A job as it is read from the store, whatever another program wrote into it."""

import datetime
import json
from typing import Any

from pyramid_jobstate import JobError, JobStore, Progress
from pyramid_jobstate.testing import pass_time, put_job
from tests.jobs import RunMarathon, new_id
from tests.support import FINISHED, STATUSES, UNFINISHED, counted, load_job, write

#: More digits than Python reads.
HUGE = "9" * 5000

#: Invalid JSON, and JSON that no browser would accept.
NO_JSON = ["", " ", "{", "nan", "NaN", "Infinity", "[-Infinity]", "1e999"]
NO_JSON += ['{"a":-1e999}', "'a'", "1 2", "[" * 100_000, HUGE, "\x00", "\ufffd"]


def read(store: JobStore, field: str, name: str, text: str) -> Any:
    """Return what a job has where another program has written a text into a field."""
    uuid = new_id()
    fields: Any = {"status": "success", "kind": "JobState", field: text}
    write(store, uuid, **fields)
    return getattr(load_job(store, uuid), name)


def test_job_reads_as_it_was_stored(store):
    """Each attribute has its value; one metric or parameter can be had by its name."""
    given: dict[str, Any] = {
        "actor": "run_marathon",
        "owner": "alice",
        "message": "Running",
        "log": ["a", "b"],
        "error": JobError("ValueError", "too far"),
        "attempt": 2,
    }
    params, metrics = {"miles": 26, "secret": "x"}, {"miles_run": 12, "none": None}
    progress = Progress(13, 26, "miles")
    more: Any = {"params": params, "metrics": metrics, "progress": progress}
    state = put_job(store, RunMarathon, "error", **given, **more)
    assert (state.kind, state.status) == ("RunMarathon", "error")
    for name, value in given.items():
        assert getattr(state, name) == value, name
    assert (state.job_params, state.progress_metrics) == (params, metrics)
    assert state.get_job_param("miles") == 26
    assert (state.get_job_param("other"), state.get_job_param("other", 0)) == (None, 0)
    assert state.get_progress_metric("miles_run") == 12
    assert state.get_progress_metric("other", 0) == 0
    assert state.get_progress_metric("none", 0) is None
    assert counted(state.progress) == counted(progress)
    assert state.due_at is None
    for time in state.queued_at, state.started_at, state.updated_at, state.finished_at:
        assert time is not None and time.utcoffset() == datetime.timedelta()
        age = datetime.datetime.now(datetime.UTC) - time
        assert abs(age) < datetime.timedelta(minutes=1)
    assert repr(state) == f"<RunMarathon {state.uuid} error>"


def test_job_is_working_until_it_has_ended(store):
    """Then it is a success or an error, which has failed or was cancelled."""
    for status in STATUSES:
        state = put_job(store, status=status)
        assert state.status == status
        assert state.is_working is (status in UNFINISHED)
        assert state.is_finished is (status in FINISHED)
        assert state.is_success is (status == "success")
        assert state.is_error is (status in ("error", "cancelled"))
        assert state.has_failed is (status == "error")
        assert state.is_cancelled is (status == "cancelled")


def test_silent_job_reads_stalled(store):
    """A running job does. Any other keeps its status for any length of time."""
    statuses = ["queued", "working", "retrying", "cancelling", *FINISHED]
    uuids = [put_job(store, status=status).uuid for status in statuses]
    pass_time(store, store.stalled_after / 2)
    assert [load_job(store, uuid).status for uuid in uuids] == statuses
    pass_time(store, store.stalled_after)
    silent = ["stalled" if s in ("working", "cancelling") else s for s in statuses]
    assert [load_job(store, uuid).status for uuid in uuids] == silent
    pass_time(store, 80_000)
    assert [load_job(store, uuid).status for uuid in uuids] == silent


def test_foreign_status_reads_stalled(store):
    """A job with a status that nobody knows may be in any state. One whose last sign of
    life has an invalid time reads working.
    """
    for status in ("", "WORKING", HUGE):
        uuid = new_id()
        write(store, uuid, status=status)
        assert load_job(store, uuid).status == "stalled", status
    for seen in ("", "²", "-1", "1.5", HUGE):
        uuid = new_id()
        write(store, uuid, status="working", seen=seen)
        assert load_job(store, uuid).status == "working", seen


def test_broken_json_reads_as_absent(store):
    """A field that is not JSON, that JSON cannot express, or that is missing, hides no
    other field.
    """
    names = ("owner", "params", "progress", "message", "log", "error", "m:a", "phase")
    for text in [None, *NO_JSON]:
        uuid = new_id()
        fields = {} if text is None else dict.fromkeys(names, text)
        fields |= {"m:b": "null", "m:__proto__": "[1]", "ma": "1"}
        write(store, uuid, **fields)
        state = load_job(store, uuid)
        assert (state.kind, state.actor, state.attempt) == ("", "", 0)
        assert (state.owner, state.job_params, state.log) == (None, {}, []), text
        assert (state.progress, state.message, state.error) == (None, None, None), text
        assert state.progress_metrics == {"b": None, "__proto__": [1]}, text
        times = (state.queued_at, state.started_at, state.updated_at, state.finished_at)
        assert times == (None, None, None, None)


def test_foreign_owner_owns_nothing(store):
    """An owner is a string or a number and keeps its type: "7" is not 7, nor True 1."""
    for text in "null", "true", "false", "[]", "[1]", '["alice"]', "{}", '{"a":1}':
        assert read(store, "owner", "owner", text) is None, text
    for owner in "alice", "", "\ud800", "7", 7, 1.5:
        found = read(store, "owner", "owner", json.dumps(owner))
        assert repr(found) == repr(owner)


def test_foreign_values_read_as_absent(store):
    """What is JSON, but not of the form that a worker writes, is left out."""
    for field, name, absent, texts in (
        ("attempt", "attempt", 0, ["", "-1", "1.0", "two", "١", HUGE]),
        ("params", "job_params", {}, ["1", '"a"', "[]", "null"]),
        ("queued", "queued_at", None, ["", "-1", "1.5", "253402300800000", HUGE]),
        ("message", "message", None, ["1", "[]", "{}", "true", "null"]),
        ("log", "log", [], ['"abc"', '{"a":1}']),
        ("log", "log", ["a", "c"], ['["a",1,null,["b"],"c"]']),
        ("error", "error", None, ["1", "{}", '"ab"', '["a"]', '[1,"a"]']),
        ("error", "error", None, ['["a",null]', '["a","b","c"]']),
        ("error", "error", JobError(None, "too late"), ['[null,"too late"]']),
        ("progress", "progress", None, ["null", '"abc"', "[1,2,null]"]),
        ("progress", "progress", None, ['["1",2,null,null]', "[1,-2,null,null]"]),
        ("progress", "progress", None, ["[1,2,3,null]", '[1,2,null,"soon"]']),
    ):
        for text in texts:
            assert read(store, field, name, text) == absent, (field, text)


def test_loaded_job_knows_of_its_cancel(store):
    """It shows whether somebody has asked for it, whatever became of that. A job that
    was skipped was cancelled though nobody asked.
    """
    asked = put_job(store)
    assert not asked.cancel_requested
    assert asked.cancel()
    assert not asked.cancel_requested
    assert load_job(store, asked.uuid).cancel_requested
    assert not put_job(store, status="cancelled").cancel_requested
