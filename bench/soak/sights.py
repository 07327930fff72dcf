"""The jobs that were sent, and what their watchers saw of them."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Iterator
from typing import Any, NamedTuple

FINISHED = ("success", "error", "cancelled")


class Sight(NamedTuple):
    """What a response or an event showed of a job.

    Attributes:
      at: When it was requested, or when the event arrived.
      status: The status.
      run: The run whose metrics it has, if one has reported.
      attempt: The attempt.
      done: The progress.
    """

    at: float
    status: str
    run: str | None
    attempt: int
    done: float


class Ending(NamedTuple):
    """An end that an event showed.

    Attributes:
      finished: When the job finished, as the store says.
      arrived: When the event arrived.
      status, run: What it showed.
    """

    finished: float
    arrived: float
    status: str
    run: str | None


@dataclasses.dataclass(slots=True)
class Stream:
    """A stream that a watcher has followed.

    Attributes:
      asked: When it was requested.
      opened: When its head arrived.
      until: When it ended, or was left.
      endings: The ends that it showed.
      away: When it said that the store does not answer.
    """

    asked: float
    opened: float = float("inf")
    until: float = float("inf")
    endings: list[Ending] = dataclasses.field(default_factory=list)
    away: list[float] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(slots=True)
class Job:
    """A job that was sent.

    Attributes:
      uuid: Its message's id.
      owner: Its owner. Few jobs have the same one: the streams of an owner are limited.
      what: Its sort.
      steps, fails: How many steps it takes, and in how many attempts it fails.
      sent: When it was sent.
      recorded: Whether the store was available at that time.
      cancel_in: Seconds after which a watcher is to cancel it, if at all.
      cancel_asked: When a watcher tried to.
      cancel_answer: The result: a status code, 0 for no response, and the job's
        status.
      sights: What each of its watchers saw, in order.
      streams: The streams of those that followed it by one.
    """

    uuid: str
    owner: str
    what: str
    steps: int
    fails: int
    sent: float
    recorded: bool
    cancel_in: float | None = None
    cancel_asked: float = 0.0
    cancel_answer: tuple[int, str] = (0, "")
    sights: list[list[Sight]] = dataclasses.field(default_factory=list)
    streams: list[Stream] = dataclasses.field(default_factory=list)


def ending_of(at: float, state: dict[str, Any]) -> Ending:
    """Return the end that an event showed."""
    about = state["job"]
    finished = datetime.datetime.fromisoformat(about["finished_at"]).timestamp()
    return Ending(finished, at, about["status"], state.get("run"))


def see(
    job: Job, sights: list[Sight], at: float, state: dict[str, Any]
) -> Iterator[str]:
    """Note what was shown of a job, and yield what is wrong with it at first sight."""
    about = state["job"]
    progress = about["progress"] or {"done": 0}
    sight = Sight(
        at, about["status"], state.get("run"), about["attempt"], progress["done"]
    )
    coarse = {"success": "success", "error": "error", "cancelled": "error"}
    if state["job_state"] != coarse.get(sight.status, "working"):
        yield f"{job.uuid} reads {state['job_state']} as {sight}"
    if len({value for name, value in state.items() if name[0] == "m"}) > 1:
        yield f"{job.uuid}: some metrics of a step and not others"
    if sight.status == "success" and sight.done != job.steps:
        yield f"{job.uuid} succeeded after {sight.done} {job.steps=}"
    last = sights[-1] if sights else None
    if last and last.run == sight.run is not None and last.done > sight.done:
        yield f"{job.uuid} went back from {last} to {sight}"
    if last is None or last[1:] != sight[1:]:
        sights.append(sight)
