"""A job as it is read from the store, whatever another program wrote into it."""

import datetime
import json
from collections.abc import Mapping
from typing import Any

import pytest
from redis import Redis

from pyramid_jobstate import JobError, JobState, JobStore, Progress
from pyramid_jobstate.testing import pass_time, put_job
from tests.actor.conftest import put_fields
from tests.jobs import RunMarathon, new_id
from tests.support import UUID, load_job

UNFINISHED = ("queued", "working", "retrying", "stalled", "cancelling")
FINISHED = ("success", "error", "cancelled")

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
        return {
            text: getattr(state, name)
            for text, state in zip(texts, loaded, strict=True)
        }

    return read


def test_job_reads_as_it_was_stored(store: JobStore) -> None:
    """Each attribute has its value; one metric or parameter can be had by its name."""
    state = put_job(
        store,
        RunMarathon,
        "error",
        actor="run_marathon",
        owner="alice",
        params={"miles": 26, "secret": "x"},
        metrics={"miles_run": 12, "none": None},
        progress=Progress(13, 26, "miles"),
        message="Running",
        log=["a", "b"],
        error=JobError("ValueError", "too far"),
        attempt=2,
    )
    assert state.uuid == state.__name__
    assert (state.kind, state.actor, state.owner) == (
        "RunMarathon",
        "run_marathon",
        "alice",
    )
    assert (state.status, state.attempt) == ("error", 2)
    assert state.job_params == {"miles": 26, "secret": "x"}
    assert state.get_job_param("miles") == 26
    assert (state.get_job_param("other"), state.get_job_param("other", 0)) == (None, 0)
    assert state.progress_metrics == {"miles_run": 12, "none": None}
    assert state.get_progress_metric("miles_run") == 12
    assert state.get_progress_metric("other", 0) == 0
    assert state.get_progress_metric("none", 0) is None
    assert state.progress == Progress(
        13, 26, "miles", state.progress and state.progress.eta
    )
    assert (state.message, state.log) == ("Running", ["a", "b"])
    assert state.error == JobError("ValueError", "too far")
    assert state.due_at is None
    times = [state.queued_at, state.started_at, state.updated_at, state.finished_at]
    for time in times:
        assert time is not None and time.utcoffset() == datetime.timedelta()
        age = datetime.datetime.now(datetime.UTC) - time
        assert abs(age) < datetime.timedelta(minutes=1)
    assert repr(state) == f"<RunMarathon {state.uuid} error>"


def test_nothing_reads_where_nothing_is_stored(store: JobStore, client: Redis) -> None:
    """What an almost empty record does not say has its empty value."""
    put_fields(client, store, UUID, x="1")
    state = load_job(store, UUID)
    assert (state.kind, state.actor, state.owner) == ("", "", None)
    assert state.attempt == 0
    assert state.job_params == state.progress_metrics == {}
    assert (state.progress, state.message, state.error, state.log) == (
        None,
        None,
        None,
        [],
    )
    assert (state.queued_at, state.due_at, state.started_at) == (None, None, None)
    assert (state.updated_at, state.finished_at) == (None, None)


def test_job_is_known_by_one_spelling(store: JobStore) -> None:
    """A uuid is in lower case, with hyphens and nothing around it."""
    uuid = put_job(store).uuid
    assert store.load(uuid) is not None
    for other in (uuid.upper(), uuid + "\n", "{" + uuid + "}", uuid.replace("-", "")):
        assert store.load(other) is None


def test_job_is_working_until_it_has_ended(store: JobStore) -> None:
    """Then it is a success or an error."""
    for status in UNFINISHED + FINISHED:
        state = put_job(store, status=status)
        assert state.status == status
        assert state.is_working is (status in UNFINISHED)
        assert state.is_finished is (status in FINISHED)
        assert state.is_success is (status == "success")
        assert state.is_error is (status in ("error", "cancelled"))


def test_silent_job_reads_stalled(store: JobStore) -> None:
    """A job that runs reads stalled once its worker has been silent for too long; any
    other keeps its status for any length of time.
    """
    statuses = ["queued", "working", "retrying", "cancelling", *FINISHED]
    uuids = [put_job(store, status=status).uuid for status in statuses]
    pass_time(store, store.stalled_after / 2)
    assert [load_job(store, uuid).status for uuid in uuids] == statuses
    pass_time(store, store.stalled_after)
    silent = ["stalled" if s in ("working", "cancelling") else s for s in statuses]
    assert [load_job(store, uuid).status for uuid in uuids] == silent
    pass_time(store, 80_000)
    assert [load_job(store, uuid).status for uuid in uuids] == silent


def test_clock_that_is_set_back_stalls_no_job(store: JobStore) -> None:
    """A sign of life from the future counts."""
    uuid = put_job(store).uuid
    pass_time(store, -1000)
    assert load_job(store, uuid).status == "working"


def test_foreign_status_reads_stalled(store: JobStore, client: Redis) -> None:
    """A job with a status that nobody knows may be in any state. One whose last sign of
    life has an invalid time reads working.
    """
    for status in ("", "WORKING", "done", "\x00", HUGE):
        uuid = new_id()
        put_fields(client, store, uuid, status=status)
        assert load_job(store, uuid).status == "stalled", status
    for seen in ("", "²", "٣", "-1", "1.5", "1e3", "soon", HUGE, "1_0"):
        uuid = new_id()
        put_fields(client, store, uuid, status="working", seen=seen)
        assert load_job(store, uuid).status == "working", seen


def test_broken_json_reads_as_absent(store: JobStore, client: Redis) -> None:
    """A field that is not JSON, or that JSON cannot express, hides no other field."""
    names = ("owner", "params", "progress", "message", "log", "error", "m:a", "phase")
    for text in NO_JSON:
        uuid = new_id()
        fields = {**dict.fromkeys(names, text), "m:b": "null", "m:__proto__": "[1]"}
        put_fields(client, store, uuid, status="error", ma="1", **fields)
        state = load_job(store, uuid)
        assert (state.owner, state.job_params) == (None, {}), text
        assert (state.progress, state.message, state.error) == (None, None, None), text
        assert state.log == [], text
        assert state.progress_metrics == {"b": None, "__proto__": [1]}, text


def test_foreign_owner_owns_nothing(read: Any) -> None:
    """An owner is a string or a number, and keeps its type: True would be equal to 1,
    and "7" is not 7.
    """
    nobody = ["null", "true", "false", "[]", "[1]", '["alice"]', "{}", '{"a":1}']
    assert set(read("owner", "owner", nobody).values()) == {None}
    owners = ["alice", "", "\ud800", "7", 7, 1.5]
    found = read("owner", "owner", [json.dumps(owner) for owner in owners])
    assert [repr(owner) for owner in found.values()] == [repr(o) for o in owners]


def test_foreign_values_read_as_absent(read: Any) -> None:
    """What is JSON, but not of the form that a worker writes, is left out."""
    attempts = ["", "-1", "1.0", "two", "١", HUGE, " 1", "1_0", "0x1"]
    assert set(read("attempt", "attempt", attempts).values()) == {0}
    for text, params in read(
        "params", "job_params", ["1", '"a"', "[]", "null"]
    ).items():
        assert params == {}, text
    progress = ["null", "1", '"abc"', "{}", "[]", "[1]", "[1,2,null]"]
    progress += ["[1,2,null,null,null]", '["1",2,null,null]', "[null,2,null,null]"]
    progress += ["[true,2,null,null]", "[-1,2,null,null]", '[1,"2",null,null]']
    progress += ["[1,-2,null,null]", "[1,[2],null,null]", "[1,2,3,null]"]
    progress += ['[1,2,null,"soon"]', "[1,2,null,-1]", f"[{10**400},2,null,null]"]
    assert set(read("progress", "progress", progress).values()) == {None}
    messages = ["1", "[]", "{}", "true", "null"]
    assert set(read("message", "message", messages).values()) == {None}
    logs = {'["a",1,null,["b"],"c"]': ["a", "c"], '"abc"': [], '{"a":1}': []}
    assert read("log", "log", [*logs]) == logs
    errors = [
        "1",
        "{}",
        '"ab"',
        "[]",
        '["a"]',
        '[1,"a"]',
        '["a",null]',
        '["a","b","c"]',
    ]
    assert set(read("error", "error", errors).values()) == {None}
    reason = '[null,"too late"]'
    assert read("error", "error", [reason])[reason] == JobError(None, "too late")


def test_foreign_times_read_as_absent(read: Any) -> None:
    """An invalid time, or one that a datetime cannot hold, is left out."""
    found = read("queued", "queued_at", ["0", "253402300799999", "999999999999"])
    assert [time.year for time in found.values()] == [1970, 9999, 2001]
    wrong = ["", "-1", "soon", "1.5", "253402300800000", "9" * 16, HUGE, "²"]
    assert set(read("queued", "queued_at", wrong).values()) == {None}


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


def test_job_that_has_ended_is_deleted(store: JobStore) -> None:
    """A loaded job can be cancelled until it has ended, and deleted from then on."""
    running, over = put_job(store), put_job(store, status="success")
    assert not running.delete() and store.load(running.uuid) is not None
    assert not over.cancel()
    assert over.delete() and store.load(over.uuid) is None
    waiting = put_job(store, status="queued")
    assert waiting.cancel() and load_job(store, waiting.uuid).status == "cancelled"
    assert not waiting.cancel()


def test_detached_jobs_read_what_the_test_gave_them(job_state: JobState) -> None:
    """What runs has begun, and has not ended."""
    assert (job_state.status, job_state.attempt) == ("working", 1)
    assert job_state.is_working and not job_state.is_finished
    assert job_state.started_at is not None and job_state.finished_at is None
