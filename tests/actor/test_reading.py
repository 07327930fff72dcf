"""A job as it is read from the store, whatever another program wrote into it."""

import datetime
import json
from collections.abc import Mapping
from typing import Any

import pytest
from redis import Redis

from pyramid_jobstate import JobError, JobStore, Progress
from pyramid_jobstate.testing import pass_time, put_job
from tests.jobs import RunMarathon, new_id
from tests.support import FINISHED, STATUSES, UNFINISHED, UUID, counted, load_job, write

#: More digits than Python reads.
HUGE = "9" * 5000

#: Invalid JSON, and JSON that no browser would accept.
NO_JSON = ["", " ", "{", "nan", "NaN", "Infinity", "[-Infinity]", "1e999"]
NO_JSON += ['{"a":-1e999}', "'a'", "1 2", "[" * 100_000, HUGE, "\x00", "\ufffd"]


@pytest.fixture
def read(client: Redis, store: JobStore) -> Any:
    """Reads one field of a job for each of the texts that another program has written
    there, and returns the values by the texts.
    """

    def read(field: str, name: str, texts: list[str]) -> Mapping[str, Any]:
        uuids = [new_id() for _ in texts]
        with client.pipeline() as pipeline:
            for uuid, text in zip(uuids, texts, strict=True):
                fields: Any = {"status": "success", "kind": "JobState", field: text}
                pipeline.hset(f"{store.namespace}:{uuid}", mapping=fields)
            pipeline.execute()
        loaded = store.load_many(uuids)
        values = [getattr(state, name) for state in loaded]
        return dict(zip(texts, values, strict=True))

    return read


def test_job_reads_as_it_was_stored(store: JobStore) -> None:
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
    assert state.job_params == params
    assert state.get_job_param("miles") == 26
    assert (state.get_job_param("other"), state.get_job_param("other", 0)) == (None, 0)
    assert state.progress_metrics == metrics
    assert state.get_progress_metric("miles_run") == 12
    assert state.get_progress_metric("other", 0) == 0
    assert state.get_progress_metric("none", 0) is None
    assert counted(state.progress) == counted(progress)
    assert state.due_at is None
    times = [state.queued_at, state.started_at, state.updated_at, state.finished_at]
    for time in times:
        assert time is not None and time.utcoffset() == datetime.timedelta()
        age = datetime.datetime.now(datetime.UTC) - time
        assert abs(age) < datetime.timedelta(minutes=1)
    assert repr(state) == f"<RunMarathon {state.uuid} error>"


def test_nothing_reads_where_nothing_is_stored(store: JobStore) -> None:
    """What an almost empty record does not say has its empty value."""
    write(store, UUID, x="1")
    state = load_job(store, UUID)
    assert (state.kind, state.actor, state.owner) == ("", "", None)
    assert (state.attempt, state.log) == (0, [])
    assert state.job_params == state.progress_metrics == {}
    assert (state.progress, state.message, state.error) == (None, None, None)
    times = (state.queued_at, state.started_at, state.updated_at, state.finished_at)
    assert times == (None, None, None, None)


def test_job_is_working_until_it_has_ended(store: JobStore) -> None:
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


def test_silent_job_reads_stalled(store: JobStore) -> None:
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


def test_foreign_status_reads_stalled(store: JobStore) -> None:
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


def test_broken_json_reads_as_absent(store: JobStore) -> None:
    """A field that is not JSON, or that JSON cannot express, hides no other field."""
    names = ("owner", "params", "progress", "message", "log", "error", "m:a", "phase")
    for text in NO_JSON:
        uuid = new_id()
        fields = {**dict.fromkeys(names, text), "m:b": "null", "m:__proto__": "[1]"}
        write(store, uuid, status="error", ma="1", **fields)
        state = load_job(store, uuid)
        assert (state.owner, state.job_params) == (None, {}), text
        assert (state.progress, state.message, state.error) == (None, None, None), text
        assert state.log == [], text
        assert state.progress_metrics == {"b": None, "__proto__": [1]}, text


def test_foreign_owner_owns_nothing(read: Any) -> None:
    """An owner is a string or a number and keeps its type: "7" is not 7, nor True 1."""
    nobody = ["null", "true", "false", "[]", "[1]", '["alice"]', "{}", '{"a":1}']
    assert set(read("owner", "owner", nobody).values()) == {None}
    owners = ["alice", "", "\ud800", "7", 7, 1.5]
    found = read("owner", "owner", [json.dumps(owner) for owner in owners])
    assert [repr(owner) for owner in found.values()] == [repr(o) for o in owners]


def test_foreign_values_read_as_absent(read: Any) -> None:
    """What is JSON, but not of the form that a worker writes, is left out."""
    for field, name, absent, texts in (
        ("attempt", "attempt", 0, ["", "-1", "1.0", "two", "١", HUGE]),
        ("params", "job_params", {}, ["1", '"a"', "[]", "null"]),
        ("queued", "queued_at", None, ["", "-1", "1.5", "253402300800000", HUGE]),
        ("message", "message", None, ["1", "[]", "{}", "true", "null"]),
        ("log", "log", [], ['"abc"', '{"a":1}']),
        ("error", "error", None, ["1", "{}", '"ab"', '["a"]', '[1,"a"]']),
        ("error", "error", None, ['["a",null]', '["a","b","c"]']),
        ("progress", "progress", None, ["null", '"abc"', "[1,2,null]"]),
        ("progress", "progress", None, ['["1",2,null,null]', "[1,-2,null,null]"]),
        ("progress", "progress", None, ["[1,2,3,null]", '[1,2,null,"soon"]']),
    ):
        for text, value in read(field, name, texts).items():
            assert value == absent, (field, text)
    reason = '[null,"too late"]'
    assert read("error", "error", [reason])[reason] == JobError(None, "too late")
    log = '["a",1,null,["b"],"c"]'
    assert read("log", "log", [log])[log] == ["a", "c"]


def test_loaded_job_knows_of_its_cancel(store: JobStore) -> None:
    """It shows whether somebody has asked for it, whatever became of that. A job that
    was skipped was cancelled though nobody asked.
    """
    asked = put_job(store)
    assert not asked.cancel_requested
    assert asked.cancel()
    assert not asked.cancel_requested
    assert load_job(store, asked.uuid).cancel_requested
    assert not put_job(store, status="cancelled").cancel_requested
