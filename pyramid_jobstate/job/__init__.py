"""The job itself: its record, its changes, its reports and its JobState.

This wing may import the standard library and :mod:`pyramid_jobstate.errors`, but not
Redis, Dramatiq or Pyramid.
"""

from .changes import End, NewJob, Update
from .record import (
    CANCELLED,
    FINISHED,
    METRIC,
    NOT_REACHED,
    NOT_SENT,
    UNFINISHED,
    UUID,
    JobError,
    JobInfo,
    Progress,
    Record,
    is_uuid,
)
from .recording import RecordingRun
from .run import Run
from .state import (
    JobState,
    as_seen_from,
    current_job_state,
    current_state,
    record_of,
    run_of,
    set_container,
    set_store,
)
from .told import told_by
from .trouble import note_trouble
from .values import MAX_AMOUNT, Json, dumps, encode_params, is_owner, loads

__all__ = [
    "CANCELLED",
    "FINISHED",
    "MAX_AMOUNT",
    "METRIC",
    "NOT_REACHED",
    "NOT_SENT",
    "UNFINISHED",
    "UUID",
    "End",
    "JobError",
    "JobInfo",
    "JobState",
    "Json",
    "NewJob",
    "Progress",
    "Record",
    "RecordingRun",
    "Run",
    "Update",
    "as_seen_from",
    "current_job_state",
    "current_state",
    "dumps",
    "encode_params",
    "is_owner",
    "is_uuid",
    "loads",
    "note_trouble",
    "record_of",
    "run_of",
    "set_container",
    "set_store",
    "told_by",
]
