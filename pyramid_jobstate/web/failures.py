"""Groups of jobs that failed for equal reasons."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ..job.record import JobError
    from ..job.state import JobState
    from .jobstates import JobStates

#: The parts in which equal texts may differ: those in quotation marks, addresses, uuids
#: and numbers. An apostrophe within a word does not count. No part extends beyond
#: the next place where one like it may begin, so that hostile texts take linear time.
VARIABLE = re.compile(
    r"""
    "[^"]*" | “[^“”]*” | `[^`]*`
    | „[^„“”]*[“”] | «[^«»]*» | »[^«»]*«
    | ‘ (?: [^‘’] | ’\b )* ’ (?!\w)
    | ‚ (?: [^‚‘’] | ’\b )* [‘’] (?!\w)
    | (?<!\w) b? ' (?: [^'] | (?<!\bb) \b'\b )* ' (?!\w)
    | \b 0x [0-9a-f]+
    | \b [0-9a-f]{8} (?: -[0-9a-f]{4} ){3} -[0-9a-f]{12} \b
    | \d+ (?: [.,:] \d+ )*
    """,
    re.VERBOSE | re.IGNORECASE,
)

#: The most characters of a normal form.
MAX_FORM = 500


def normal_form(text: str) -> str:
    """Return what a text has in common with equal ones, in one line: "…" stands for
    each variable part, and for the end of a long text.
    """
    return shortened(" ".join(VARIABLE.sub("…", text).split()), MAX_FORM)


def shortened(text: str, most: int) -> str:
    """Return a text cut to so many characters, "…" being the last."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


class Group(NamedTuple):
    """Jobs that failed for equal reasons.

    Attributes:
      type: The qualified name of the exception's class, or None if the job did not
        fail with an exception, or the viewer may not read it.
      text: The normal form of the exception's text, or of the public reason.
      jobs: What is shown of the jobs, the newest first.
      times: When each of them failed, as JSON spells it.
    """

    type: str | None
    text: str
    jobs: list[Any]
    times: list[str | None]


def exception_of(context: JobStates, job_state: JobState) -> JobError | None:
    """Return the exception with which a job or its last try failed, if the viewer may
    read it.
    """
    error = job_state.error
    if error is None or error.type is None:
        return None
    return error if context.permits(job_state, "inspect_job") else None


def reason_of(
    context: JobStates, job_state: JobState, state: Mapping[str, Any]
) -> tuple[str | None, str]:
    """Return why a job failed, as far as the viewer may read it: the qualified name of
    the exception's class and the normal form of its text, or None and that of the
    public reason.

    Parameters:
      state: The JSON that the class of the job makes of it.
    """
    error = exception_of(context, job_state)
    if error is not None:
        return error.type, normal_form(error.message)
    public = (state.get("job") or {}).get("error") or {}
    return None, normal_form(str(public.get("message") or ""))
