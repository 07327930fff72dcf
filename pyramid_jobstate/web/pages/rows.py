"""Jobs as a page shows them: in a row or alone, with what may be done to each."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from pyramid.csrf import get_csrf_token
from pyramid.encode import urlencode

from ...job.batch import Batch
from ...job.record import FINISHED, STATUSES
from ...job.state import Guard, is_link
from ..failures import exception_of, shortened
from ..interfaces import IPages
from ..query import LOCALE, csrf_options
from ..views import visible
from .words import encode

if TYPE_CHECKING:
    from pyramid.request import Request

    from ...job.state import JobState
    from ..jobstates import JobStates
    from .layout import Pages
    from .words import Words


#: What a page shows in place of what the class of a job leaves out of its JSON.
NOTHING: Mapping[str, Any] = MappingProxyType(
    {
        "params": MappingProxyType({}),
        "counts": None,
        "progress": None,
        "phase": None,
        "message": None,
        "log": (),
        "attempt": 0,
        "queued_at": None,
        "due_at": None,
        "started_at": None,
        "finished_at": None,
        "cancellable": False,
        "error": None,
        "result": None,
    }
)


def job_of(
    job_state: JobState, request: Request, state: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the JSON of a job with all that a page needs.

    Parameters:
      state: What the class of the job makes of it, as JSON.
    """
    job = {**NOTHING, "status": job_state.status, **(state.get("job") or {})}
    job["uuid"] = job_state.uuid
    # Not that of its JSON: with jobstate.base_url it may be of another origin.
    job["url"] = request.resource_url(job_state)
    # Markup is text, as in JSON. A link needs a name.
    title = str(job.get("title") or "")
    job["title"] = title if title.strip() else job_state.uuid
    if not is_link((job["result"] or {}).get("url")):
        job["result"] = None
    return job


def text_of(job: Mapping[str, Any], words: Words) -> str:
    """Return a job in one line: its status, progress, message and error. Of a job that
    has ended, it says as much as the element.

    Parameters:
      job: The JSON of the job.
    """
    status = job["status"]
    parts = [words.status(status)]
    if job["progress"] is not None and (progress := progress_of(job, words)):
        parts.append(progress)
    message = None if status in ("error", "cancelled") else job["message"]
    reason = job["error"] and job["error"]["message"]
    if status == "cancelled" and reason == words.label("reason-cancelled"):
        reason = None
    for text in message, reason:
        if text:
            # Isolated: text of another direction does not reorder the line.
            parts.append(f"\u2068{text}\u2069")
    return " · ".join(parts)


def progress_of(job: Mapping[str, Any], words: Words) -> str:
    """Return how far a job has come that has reported it."""
    progress = job["progress"]
    parts = []
    if progress["fraction"] is not None:
        parts.append(words.percent(progress["fraction"]))
    counts = job["counts"] or {}
    unit = words.label("members") if counts else progress["unit"]
    amount = amount_of({**progress, "unit": unit}, words)
    for status in ("error", "cancelled"):
        if number := counts.get(status):
            count = words.label(f"count-{status}", number=words.number(number))
            amount = words.label("amount-count", amount=amount, count=count)
    phase = job["phase"]
    if phase is not None:
        name = f"\u2068{phase['name']}\u2069"
        amount = words.label("phase", phase=name, amount=amount) if amount else name
    return " · ".join([*parts, *filter(None, [amount])])


def amount_of(progress: Mapping[str, Any], words: Words) -> str:
    """Return how much of how much has been done, or "" before a job has counted."""
    done, total, unit = (progress[name] for name in ("done", "total", "unit"))
    if total is None and not done and unit is None:
        return ""
    digits = digits_for(done, total)
    amount = words.label(
        "amount" if total is None else "amount-of",
        done=words.number(done, digits),
        total="" if total is None else words.number(total, digits),
        unit=unit or "",
    )
    return amount.strip()


def digits_for(done: float, total: float | None) -> int:
    """Return how many decimals tell the amount from the total, and the total from 0.
    The element shows the same number. Rounding errors of floats do not count.
    """
    rest = (total or 0) - done
    number = rest if total and rest > total * 1e-9 else total or done
    zeros = -math.floor(math.log10(abs(number))) if number else 0
    return min(1 + max(0, zeros), 20)


def texts_of(values: Mapping[str, Any]) -> dict[str, str]:
    """Return metrics or parameters as people read them: texts as they are, everything
    else as JSON.
    """
    return {
        name: str(value)
        if isinstance(value, str)
        else json.dumps(value, ensure_ascii=False, default=str)
        for name, value in values.items()
    }


#: What can be done with jobs.
ACTS = ("cancel", "rerun", "delete")


class Acts(NamedTuple):
    """What a viewer may do with a job.

    Attributes:
      now: As it is.
      permitted: Whatever its status becomes.
    """

    now: list[str]
    permitted: list[str]


def acts_on(context: JobStates, job_state: JobState, job: Mapping[str, Any]) -> Acts:
    """Return what a viewer may do with a job.

    Parameters:
      job: Its JSON.
    """
    status = job["status"]
    fitting = {
        "cancel": status != "cancelling",
        "rerun": status == "error",
        "delete": status in FINISHED,
    }
    permitted = ["cancel"] if job["cancellable"] else []
    with Guard(job_state, "which is shown without what can be done with it"):
        # A success, or a cancelled job, can no longer fail. A batch does not run.
        may_fail = status not in ("success", "cancelled")
        may_run = may_fail and not isinstance(job_state, Batch)
        if may_run and context.permits(job_state, "rerun_job"):
            permitted.append("rerun")
        if context.permits(job_state, "delete_job"):
            permitted.append("delete")
    return Acts([act for act in permitted if fitting[act]], permitted)


def for_script(request: Request, **values: Any) -> str:
    """Return what the script of a page needs beside its words, as JSON.

    Parameters:
      values: What only this page needs.
    """
    return encode({"csrf": csrf_of(request), **values})


def csrf_of(request: Request) -> dict[str, str | None] | None:
    """Return what a request needs to pass the application's CSRF checks: the token, and
    the header or else the field of a form for it. None if it checks nothing.
    """
    options = csrf_options(request)
    if options is None:
        return None
    return {
        "token": get_csrf_token(request),
        "header": options.header,
        "field": options.token,
    }


class Tab(NamedTuple):
    """A link to the jobs of one status, or of all.

    Attributes:
      text: The word for the status.
      url: Where the jobs are.
      status: The status, or "all".
      number: How many jobs they are, or "" if that is not told.
      is_current: Whether these jobs are listed.
    """

    text: str
    url: str
    status: str
    number: str
    is_current: bool


#: The most characters of a parameter, and of an exception, in a row.
SHORT, LONG = 40, 400


def about_of(job: Mapping[str, Any]) -> str:
    """Return the public parameters of a job in short.

    Parameters:
      job: The JSON of the job.
    """
    texts = itertools.islice(texts_of(job["params"]).items(), 5)
    return " · ".join(f"{name}: {shortened(text, SHORT)}" for name, text in texts)


class Row(NamedTuple):
    """A job of the list.

    Attributes:
      job: Its JSON.
      about: Its public parameters in short.
      owner: The name of its owner, for viewers who may list all jobs, or None.
      owner_url: Where the other jobs of the owner are.
      text: The job in one line.
      reason: The exception with which its last try failed, for viewers who may inspect
        the job, or "".
      acts: What the viewer may do with it now.
      permitted: What the viewer may do with it, whatever its status becomes.
    """

    job: Mapping[str, Any]
    about: str
    owner: str | None
    owner_url: str
    text: str
    reason: str
    acts: Sequence[str]
    permitted: Sequence[str]


class Block(NamedTuple):
    """Some of the rows of a list.

    Attributes:
      title: What their jobs have in common, or "" without a heading.
      rows: The rows.
      url: Where all jobs are that have this in common, or None if these are all.
    """

    title: str
    rows: Sequence[Row]
    url: str | None = None


def tabs_of(
    words: Words,
    status: str | None,
    counts: Mapping[str, int],
    url: Callable[..., str],
) -> list[Tab]:
    """Return the tabs: all jobs, and those of each status.

    Parameters:
      status: The status whose jobs are listed, or None.
      counts: How many jobs have which status, as far as that is told.
      url: Returns the URL of the list with a parameter changed.
    """
    numbers = {**counts, "all": sum(counts.values())} if counts else {}
    return [
        Tab(
            words("all") if name == "all" else words.status(name),
            url(status=None if name == "all" else name),
            name,
            words.number(numbers[name]) if name in numbers else "",
            name == (status or "all"),
        )
        for name in ("all", *STATUSES)
    ]


def rows_of(
    context: JobStates, jobs: Iterable[JobState], words: Words, *, with_owners: bool
) -> list[Row]:
    """Return the rows of those jobs that the viewer may see."""
    request = context.request
    pages: Pages = request.registry.getUtility(IPages)
    url = url_maker(request.resource_url(context), request.GET, ())

    def make(job_state: JobState, state: dict[str, Any]) -> Row:
        owner = pages.owner_name(request, job_state.owner) if with_owners else None
        job = job_of(job_state, request, state)
        acts = acts_on(context, job_state, job)
        reason = ""
        with Guard(job_state, "which is shown without its exception"):
            if error := exception_of(context, job_state):
                reason = shortened(f"{error.type}: {error.message}", LONG)
        text = text_of({**job, "error": None} if reason else job, words)
        owner_url = url(owner=str(job_state.owner))
        return Row(job, about_of(job), owner, owner_url, text, reason, *acts)

    rows = [visible(context, request, job_state, make) for job_state in jobs]
    return [row for row in rows if row is not None]


def url_maker(
    address: str, query: Mapping[str, str], names: Sequence[str]
) -> Callable[..., str]:
    """Return a function that returns the URL of a list, with parameters changed.

    Parameters:
      address: The URL without a query.
      query: The query of the page.
      names: The parameters of the query to keep, beside the language.
    """
    kept = {name: query[name] for name in (*names, LOCALE) if name in query}

    def url(**changes: str | None) -> str:
        wanted = {**kept, **changes}
        known = {name: value for name, value in wanted.items() if value is not None}
        return f"{address}?{urlencode(known)}" if known else address

    return url
