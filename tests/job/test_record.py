"""The stored record of a job, and how it is read whatever another program wrote."""

import datetime
import json

import pytest

from pyramid_jobstate.job.progress import Progress
from pyramid_jobstate.job.record import (
    FINISHED,
    UNFINISHED,
    JobError,
    JobInfo,
    Record,
)
from pyramid_jobstate.job.record import UUID as UUID_PATTERN
from tests.support import UUID

NOW = 1_800_000_000_000
STALLED_AFTER = 15_000

HUGE = pytest.param("9" * 5000, id="huge")

#: Invalid JSON, and JSON that no browser would accept.
NO_JSON = [
    "",
    " ",
    "{",
    "nan",
    "NaN",
    "Infinity",
    "[-Infinity]",
    "1e999",
    '{"a":-1e999}',
    "'a'",
    "1 2",
    pytest.param("[" * 100_000, id="deep"),
    HUGE,
    "\x00",
    "\ufffd",
]


def read(fields, now=NOW):
    return Record.read(UUID, fields, now, STALLED_AFTER)


def record(**fields):
    return Record(UUID, fields)


@pytest.mark.parametrize(
    ("done", "total", "fraction"),
    [
        (0, 26, 0.0),
        (13, 26, 0.5),
        (26, 26, 1.0),
        (30, 26, 1.0),
        (5, None, None),
        (0, 0, 1.0),
        (3, 0, 1.0),
        (1.5, 6, 0.25),
        (10**300, 5e-324, 1.0),
    ],
)
def test_progress_fraction_is_the_share_done(done, total, fraction):
    """The fraction is between 0 and 1: 1 if the total is 0, None without a total."""
    assert Progress(done, total).fraction == fraction


def test_start_fields_leave_out_an_unknown_owner():
    """A field that is None is not stored. All others are text."""
    assert JobInfo("Run", "run", 2, None, '{"a":1}').fields() == {
        "kind": "Run",
        "actor": "run",
        "attempt": "2",
        "params": '{"a":1}',
    }
    assert JobInfo("Run", "run", 1, '"ü"', "{}").fields()["owner"] == '"ü"'


def test_uuid_has_one_spelling():
    """A uuid is in lower case, with hyphens and nothing around it."""
    assert UUID_PATTERN.fullmatch(UUID)
    for other in (UUID.upper(), UUID + "\n", "{" + UUID + "}", UUID.replace("-", "")):
        assert not UUID_PATTERN.fullmatch(other)


def test_record_read_tells_all_that_was_written():
    """Each field of a record is read as it was stored."""
    job = read(
        {
            "status": "error",
            "kind": "RunMarathon",
            "actor": "run_marathon",
            "owner": '"alice"',
            "attempt": "2",
            "params": '{"miles":26}',
            "m:miles_run": "12",
            "m:": '"nameless"',
            "progress": '[12,26,"miles",14.2]',
            "message": '"Running"',
            "log": '["a","b"]',
            "error": '["ValueError","too far"]',
            "queued": "1800000000123",
            "run": "token",
        }
    )
    assert (job.uuid, job.status) == (UUID, "error")
    assert (job.kind, job.actor) == ("RunMarathon", "run_marathon")
    assert (job.owner, job.attempt) == ("alice", 2)
    assert job.params == {"miles": 26}
    assert job.metrics == {"miles_run": 12, "": "nameless"}
    assert job.progress == Progress(12, 26, "miles", 14.2)
    assert job.message == "Running"
    assert job.log == ["a", "b"]
    assert job.error == JobError("ValueError", "too far")
    assert job.time("queued") == datetime.datetime(
        2027, 1, 15, 8, 0, 0, 123000, datetime.UTC
    )
    assert job.time("due") is None
    assert job.info == JobInfo(
        "RunMarathon", "run_marathon", 2, '"alice"', '{"miles":26}'
    )


def test_record_of_an_empty_hash_reads_as_nothing():
    """Each field of an empty record reads as absent."""
    job = record()
    assert (job.status, job.kind, job.actor, job.owner) == ("", "", "", None)
    assert (job.attempt, job.params, job.metrics) == (0, {}, {})
    assert (job.progress, job.message, job.log) == (None, None, [])
    assert (job.error, job.time("updated")) == (None, None)
    assert job.info == JobInfo("", "", 0, None, "{}")


@pytest.mark.parametrize(
    "status", sorted({*UNFINISHED, *FINISHED} - {"working", "cancelling"})
)
def test_record_read_keeps_a_known_status(status):
    """Statuses that do not depend on signs of life are kept, however old."""
    assert read({"status": status, "seen": "1", "queued": "1"}).status == status


@pytest.mark.parametrize("status", [None, "", "WORKING", "done", "\x00", HUGE])
def test_record_read_has_an_unknown_status_stalled(status):
    """A record with an unknown status or none may be in any state: it reads stalled."""
    fields = {} if status is None else {"status": status}
    assert read(fields).status == "stalled"


@pytest.mark.parametrize(
    ("silent", "status"), [(STALLED_AFTER, "working"), (STALLED_AFTER + 1, "stalled")]
)
def test_record_read_has_a_silent_job_stalled(silent, status):
    """A working job without a sign of life for longer than the limit reads stalled."""
    for stored in ("working", "cancelling"):
        expected = status if status == "stalled" else stored
        seen = str(NOW - silent)
        assert read({"status": stored, "seen": seen}).status == expected


@pytest.mark.parametrize(
    ("silent", "status"), [(STALLED_AFTER, "queued"), (STALLED_AFTER + 1, "stalled")]
)
def test_record_read_has_an_unconfirmed_job_stalled(silent, status):
    """A job whose message was never confirmed reads queued, and then stalled."""
    fields = {"status": "sending", "queued": "1", "updated": str(NOW - silent)}
    assert read(fields).status == status


def test_record_read_has_a_waiting_job_queued():
    """A job whose message was confirmed reads queued for any length of time."""
    assert read({"status": "waiting", "updated": "1"}).status == "queued"


@pytest.mark.parametrize(
    "seen", [None, "", "²", "٣", "-1", "1.5", "1e3", "soon", HUGE, "1_0"]
)
def test_record_read_ignores_an_invalid_time(seen):
    """A working job whose last sign of life is not a valid time reads working."""
    fields = {} if seen is None else {"seen": seen}
    assert read({"status": "working", **fields}).status == "working"


def test_record_read_tolerates_a_clock_set_back():
    """A sign of life from the future counts."""
    assert read({"status": "working", "seen": str(NOW + 10**9)}).status == "working"


@pytest.mark.parametrize("text", NO_JSON)
def test_record_reads_a_field_that_is_not_json_as_absent(text):
    """A field that is invalid JSON, or cannot be written again, reads as absent."""
    names = ("owner", "params", "progress", "message", "log", "error", "m:a")
    job = record(**dict.fromkeys(names, text))
    assert job.owner is None
    assert job.params == {}
    assert job.progress is None
    assert job.message is None
    assert job.log == []
    assert job.error is None
    assert job.metrics == {}


@pytest.mark.parametrize(
    "text", ["null", "true", "false", "[]", "[1]", '["alice"]', "{}", '{"a":1}']
)
def test_record_reads_an_owner_that_is_not_a_principal_as_none(text):
    """An owner that is neither a string nor a number could match another user: True is
    equal to 1.
    """
    assert record(owner=text).owner is None


@pytest.mark.parametrize("owner", ["alice", "", "\ud800", 7, 1.5])
def test_record_reads_an_owner_as_it_was(owner):
    """Owners keep their type: "7" is not 7."""
    read_owner = record(owner=json.dumps(owner)).owner
    assert read_owner == owner
    assert type(read_owner) is type(owner)


@pytest.mark.parametrize(
    "text", ["", "-1", "1.0", "two", "١", HUGE, " 1", "1_0", "0x1"]
)
def test_record_reads_an_attempt_that_is_not_a_number_as_none(text):
    """An attempt that is not a plain number reads as 0, as before the first."""
    assert record(attempt=text).attempt == 0


@pytest.mark.parametrize("text", ["1", '"a"', "[]", "null", "true"])
def test_record_reads_params_that_are_not_an_object_as_empty(text):
    """Parameters that are not an object read as empty."""
    assert record(params=text).params == {}


def test_record_reads_the_other_metrics_beside_a_broken_one():
    """A metric that is not JSON does not hide others, and null is a value."""
    job = record(**{"m:a": "null", "m:b": "{", "m:__proto__": "[1]", "ma": "1"})
    assert job.metrics == {"a": None, "__proto__": [1]}


@pytest.mark.parametrize(
    "text",
    [
        "null",
        "1",
        '"abc"',
        "{}",
        "[]",
        "[1]",
        "[1,2,null]",
        "[1,2,null,null,null]",
        '["1",2,null,null]',
        "[null,2,null,null]",
        "[true,2,null,null]",
        "[-1,2,null,null]",
        '[1,"2",null,null]',
        "[1,-2,null,null]",
        "[1,[2],null,null]",
        "[1,2,3,null]",
        '[1,2,null,"soon"]',
        "[1,2,null,-1]",
        f"[{10**400},2,null,null]",
    ],
)
def test_record_reads_a_strange_progress_as_none(text):
    """Progress that is not two amounts, a unit and the seconds left reads as None."""
    assert record(progress=text).progress is None


@pytest.mark.parametrize("text", ["1", "[]", "{}", "true", "null"])
def test_record_reads_a_message_that_is_not_a_string_as_none(text):
    """A message that is not a string reads as None."""
    assert record(message=text).message is None


def test_record_reads_only_the_strings_of_a_log():
    """A log is a list; anything in it that is not a string is skipped."""
    assert record(log='["a",1,null,["b"],"c"]').log == ["a", "c"]
    assert record(log='"abc"').log == []
    assert record(log='{"a":1}').log == []


@pytest.mark.parametrize(
    "text",
    ["1", "{}", '"ab"', "[]", '["a"]', '[1,"a"]', '["a",null]', '["a","b","c"]'],
)
def test_record_reads_a_strange_error_as_none(text):
    """An error that is not an optional type and a message reads as None."""
    assert record(error=text).error is None


def test_record_reads_a_reason_without_a_type():
    """A reason that does not come from an exception has no type."""
    assert record(error='[null,"too late"]').error == JobError(None, "too late")


@pytest.mark.parametrize(
    ("text", "year"),
    [("0", 1970), ("253402300799999", 9999), ("999999999999", 2001)],
)
def test_record_time_is_aware(text, year):
    """A time in milliseconds since the epoch is read as a datetime in UTC."""
    time = record(queued=text).time("queued")
    assert time.year == year
    assert time.utcoffset() == datetime.timedelta()


@pytest.mark.parametrize(
    "text", ["", "-1", "soon", "1.5", "253402300800000", "9" * 16, HUGE, "²"]
)
def test_record_time_reads_what_is_not_a_time_as_none(text):
    """A time that a datetime cannot represent reads as None."""
    assert record(queued=text).time("queued") is None
