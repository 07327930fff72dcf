"""The job itself: its record, its changes, its reports and its JobState.

This wing may import the standard library and :mod:`pyramid_jobstate.errors`, but not
Redis, Dramatiq or Pyramid.
"""

from .batch import Batch
from .changes import End, Failure, Member, NewBatch, NewJob, Update
from .inside import (
    as_seen_from,
    container_of,
    record_of,
    run_of,
    set_container,
    set_member_sender,
    set_store,
    url_in,
)
from .membership import check_actor, check_key, check_weight, member_uuid
from .parsing import (
    MAX_DELAY,
    MAX_SECONDS,
    iso_time,
    parse_duration,
    parse_int,
    parse_json,
    parse_time,
    stored_iso_time,
)
from .progress import PartOfProgress, Phase, Progress, in_phase, share_of
from .protocols import MemberSender
from .record import (
    ALIAS,
    BATCH,
    CANCELLED,
    FINISHED,
    MEMBERS_FAILED,
    METRIC,
    NOT_REACHED,
    NOT_SENT,
    TARGET,
    TIMES,
    UNFINISHED,
    UUID,
    JobError,
    JobInfo,
    Record,
    is_uuid,
)
from .recording import RecordingRun, live_run_of, recording_of
from .result import is_link
from .run import Run
from .state import JobState, current_job_state, current_state
from .texts import (
    DOMAIN,
    FAILED,
    REASONS,
    SKIPPED,
    filled,
    sentence_of,
    translated,
)
from .told import told_by
from .trouble import note_trouble
from .unique import identity_of
from .values import (
    AMOUNTS,
    MAX_AMOUNT,
    Json,
    dumps,
    encode_params,
    is_number,
    is_owner,
)

__all__ = [
    "ALIAS",
    "AMOUNTS",
    "BATCH",
    "CANCELLED",
    "DOMAIN",
    "FAILED",
    "FINISHED",
    "MAX_AMOUNT",
    "MAX_DELAY",
    "MAX_SECONDS",
    "MEMBERS_FAILED",
    "METRIC",
    "NOT_REACHED",
    "NOT_SENT",
    "REASONS",
    "SKIPPED",
    "TARGET",
    "TIMES",
    "UNFINISHED",
    "UUID",
    "Batch",
    "End",
    "Failure",
    "JobError",
    "JobInfo",
    "JobState",
    "Json",
    "Member",
    "MemberSender",
    "NewBatch",
    "NewJob",
    "PartOfProgress",
    "Phase",
    "Progress",
    "Record",
    "RecordingRun",
    "Run",
    "Update",
    "as_seen_from",
    "check_actor",
    "check_key",
    "check_weight",
    "container_of",
    "current_job_state",
    "current_state",
    "dumps",
    "encode_params",
    "filled",
    "identity_of",
    "in_phase",
    "is_link",
    "is_number",
    "is_owner",
    "is_uuid",
    "iso_time",
    "live_run_of",
    "member_uuid",
    "note_trouble",
    "parse_duration",
    "parse_int",
    "parse_json",
    "parse_time",
    "record_of",
    "recording_of",
    "run_of",
    "sentence_of",
    "set_container",
    "set_member_sender",
    "set_store",
    "share_of",
    "stored_iso_time",
    "told_by",
    "translated",
    "url_in",
]
