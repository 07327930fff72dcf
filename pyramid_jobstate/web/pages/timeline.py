"""The course of a job: what happened to it, and how long each part took."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from .words import Words


class Step(NamedTuple):
    """A step of a timeline.

    Attributes:
      name: What happened, for the style sheet: "sent", "earlier", "try", "due" or the
        status of the job.
      text: The same for people.
      time: When it happened, as the JSON of a job spells it, or None.
      after: How long after the step before it, or "".
      detail: Why a try failed, or "".
      took: How long a try that failed took, or "".
    """

    name: str
    text: str
    time: str | None = None
    after: str = ""
    detail: str = ""
    took: str = ""


def timeline_of(
    job: Mapping[str, Any], tries: Sequence[Mapping[str, Any]], words: Words
) -> list[Step]:
    """Return the steps of a job.

    Parameters:
      job: The JSON of the job.
      tries: Its last failed tries, as GET …/inspect gives them; none for a viewer who
        may not read them.
    """
    started, status = job["started_at"], job["status"]
    # Whether the newest run is still to come, or succeeded, or is not told.
    is_open = started is not None and not any(t["started_at"] == started for t in tries)
    earlier = max(0, job["attempt"] - is_open - len(tries))
    last = job["queued_at"]
    steps = [Step("sent", words("sent"), last)]
    if earlier:
        steps.append(Step("earlier", words.plural("earlier", earlier)))
        last = None
    for number, each in enumerate(tries, earlier + 1):
        begun, ended = each["started_at"], each["ended_at"]
        steps.append(
            Step(
                "try",
                words("try", number=words.number(number)),
                begun,
                between(last, begun, words),
                each.get("type") or words.sentence(each.get("message", "")),
                between(begun, ended, words),
            )
        )
        last = ended
    if is_open:
        # A batch makes no attempts.
        is_batch = not job["attempt"]
        text = words("try", number=words.number(earlier + len(tries) + 1))
        text = words("started") if is_batch else text
        steps.append(Step("try", text, started, between(last, started, words)))
        last = started
    if job["due_at"] is not None and status in ("queued", "retrying"):
        steps.append(Step("due", words("due"), job["due_at"]))
    finished = job["finished_at"]
    # A try that failed says itself how long it took.
    after = between(last, finished, words) if is_open or not tries else ""
    return [*steps, Step(status, words.status(status), finished, after)]


def between(first: str | None, second: str | None, words: Words) -> str:
    """Return how long it took from one time to another, or "" if that is unknown."""
    if first is None or second is None:
        return ""
    begun, ended = map(datetime.datetime.fromisoformat, (first, second))
    return words.duration((ended - begun).total_seconds())
