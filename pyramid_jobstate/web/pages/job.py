"""The page of a job or a batch."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from ...job.batch import Batch
from ...job.record import CANCELLED, RUNNING
from ...job.state import container_of, record_of
from ...job.texts import FAILED
from ...job.values import is_owner
from ...store.jobstore import records_of
from ...store.reader import line_as_json
from ...store.whereabouts import ANSWER_SECONDS
from ..acts import RERUN, may_act
from ..interfaces import IPages
from ..jobstates import ask
from ..permits import require
from ..views import inspection, lines_of, may_read_all, members_page, visible
from .layout import respond
from .rows import (
    Block,
    Tab,
    acts_on,
    for_script,
    job_of,
    rows_of,
    tabs_of,
    text_of,
    texts_of,
    url_maker,
)
from .trace import Part, parts_of
from .words import words_for

if TYPE_CHECKING:
    from pyramid.request import Request
    from pyramid.response import Response

    from ...job.state import JobState
    from ...store.jobstore import JobStore
    from ..jobstates import JobStates
    from .layout import Pages
    from .words import Words


class Step(NamedTuple):
    """A step of a timeline.

    Attributes:
      name: What happened, for the style sheet: "sent", "earlier", "try", "due" or the
        status of the job.
      text: The same for people.
      time: When it happened, as the JSON of a job spells it, or None.
      after: How long after the step before it, or "".
      detail: Why a try failed, or why the job ended as it did, or "".
      took: How long a try that failed took, or a job of several tries in all, or "".
    """

    name: str
    text: str
    time: str | None = None
    after: str = ""
    detail: str = ""
    took: str = ""


def timeline_of(
    job: Mapping[str, Any],
    tries: Sequence[Mapping[str, Any]],
    reason: str,
    words: Words,
) -> list[Step]:
    """Return the steps of a job.

    Parameters:
      job: The JSON of the job.
      tries: Its last failed tries, as GET …/inspect gives them; none for a viewer who
        may not read them.
      reason: Why it ended as it did, if that is not an exception, or "".
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
    detail = "" if reason == steps[-1].detail else reason
    total = between(job["queued_at"], finished, words)
    was_retried = earlier + len(tries) + is_open > 1
    took = words("since-sent", time=total) if total and was_retried else ""
    end = Step(status, words.status(status), finished, after, detail, took)
    return [*steps, end]


def between(first: str | None, second: str | None, words: Words) -> str:
    """Return how long it took from one time to another, or "" if that is unknown."""
    if first is None or second is None:
        return ""
    begun, ended = map(datetime.datetime.fromisoformat, (first, second))
    return words.duration((ended - begun).total_seconds())


class FailureSection(NamedTuple):
    """The section about a failure, for viewers who may inspect the job.

    Attributes:
      type: The class of the exception, or None if the job has ended without one.
      message: Its text.
      parts: The parts of the traceback of the last try that failed.
      tells_all: Whether its exception tells all that other viewers read.
    """

    type: str | None
    message: str
    parts: Sequence[Part]
    tells_all: bool


def failure_of(
    inspected: Mapping[str, Any], job: Mapping[str, Any], package: str, words: Words
) -> FailureSection | None:
    """Return the section about the failure of a job, or None if it has none.

    Parameters:
      inspected: What GET …/inspect gives, or nothing for a viewer who may not read it.
      job: The JSON of the job.
      package: The package of the application.
    """
    error, traceback = inspected.get("error"), inspected.get("traceback")
    if error is None or not (error["type"] or traceback):
        return None
    parts: Sequence[Part] = ()
    if traceback:
        # A job that was cancelled after it failed has another error by now.
        last = [error, *inspected["tries"]][-1]
        parts = parts_of(traceback, last.get("message", ""), package)
    public = (job["error"] or {}).get("message")
    tells_all = bool(error["type"]) and public in (
        error["message"],
        words.sentence(FAILED),
    )
    return FailureSection(error["type"], error["message"], parts, tells_all)


class WhereSection(NamedTuple):
    """Where a job is, for viewers who may inspect it.

    Attributes:
      taken_at: When its worker answered, or None if it has not.
      has_time: Whether it may answer yet.
      facts: What runs it, as one line.
      parts: The parts of the stack.
    """

    taken_at: str | None
    has_time: bool
    facts: str = ""
    parts: Sequence[Part] = ()


def where_of(
    inspected: Mapping[str, Any],
    now: int | None,
    package: str,
    words: Words,
    *,
    runs: bool,
) -> WhereSection | None:
    """Return where a job is, or None if nobody has asked, or if it has ended before its
    worker answered.

    Parameters:
      inspected: What GET …/inspect gives, or nothing for a viewer who may not read it.
      now: The time in milliseconds, or None if unknown.
      package: The package of the application.
      runs: Whether the job runs.
    """
    where = inspected.get("where")
    if where is None or not (runs or where["taken_at"]):
        return None
    if where["taken_at"] is None:
        asked_at = datetime.datetime.fromisoformat(where["asked_at"]).timestamp()
        seconds = 0 if now is None else now / 1000 - asked_at
        return WhereSection(None, seconds < ANSWER_SECONDS)
    memory = where["memory"]
    facts = (
        where["worker"],
        where["thread"],
        memory and words("megabytes", number=words.number(memory / 1e6)),
    )
    parts = parts_of(where["stack"], "", package)
    return WhereSection(
        where["taken_at"], False, " · ".join(filter(None, facts)), parts
    )


def reason_of(context: JobState, job: Mapping[str, Any], words: Words) -> str:
    """Return why a job ended as it did, if that is neither an exception nor what its
    status says.

    Parameters:
      job: The JSON of the job.
    """
    error = context.error
    if error is None or error.type is not None or error == CANCELLED:
        return ""
    return words.sentence(str((job["error"] or {}).get("message", "")))


#: The parameters that say which members are listed, and how many on a page.
FILTERS = ("status", "limit")

#: The most failed members that are examined for one which the viewer may run again.
EXAMINED = 50

#: How many failed and how many running members the first page lists first, at most.
FAILED_FIRST, RUNNING_FIRST = 20, 10


class Members(NamedTuple):
    """The members of a batch.

    Attributes:
      tabs, blocks: What the page lists.
      none: What it says in place of rows.
      first, next: The URLs of other pages of the list, or None.
      is_unsent: Whether some of them were never sent.
      failed: How many have failed, if the viewer may run some of them again, else 0.
      bulk: What the script needs to run them again.
    """

    tabs: Sequence[Tab]
    blocks: Sequence[Block]
    none: str
    first: str | None
    next: str | None
    is_unsent: bool
    failed: int
    bulk: Mapping[str, Any]


def members_of(
    context: JobState,
    container: JobStates,
    job: Mapping[str, Any],
    words: Words,
    *,
    may_list: bool,
) -> Members | None:
    """Return the members of a batch as far as the viewer may see them, or None for any
    other job.

    Parameters:
      job: The JSON of the job.
      may_list: Whether the viewer may list all jobs.

    Raises:
      BadRequest: A parameter of the request is invalid.
    """
    if not isinstance(context, Batch):
        return None
    query = container.request.GET
    page = members_page(container, context, query)
    url = url_maker(job["url"], query, FILTERS)
    status = query.get("status")
    counts = job["counts"] or {}
    failing: Sequence[JobState] = ()
    if counts.get("error"):
        failing = container.members(context.uuid, "error", EXAMINED).items
    first: list[JobState] = []
    if status is None and "cursor" not in query:
        running = running_of(context, container) if counts.get("working") else ()
        first = [*failing[:FAILED_FIRST], *running]
    # Each once, at its first place.
    found = {job_state.uuid: job_state for job_state in [*first, *page.items]}
    rows = rows_of(container, found.values(), words, with_owners=may_list)
    listed = sum(counts.values()) if status is None else counts.get(status, 0)
    none = words("hidden-members" if listed else "none")
    failed = counts.get("error", 0)
    if not may_rerun(context, container, failing, may_list=may_list):
        failed = 0
    return Members(
        tabs_of(words, status, counts, url),
        [Block("", rows)] if rows else [],
        words("none-here-yet") if page.cursor else none,
        url() if "cursor" in query else None,
        url(cursor=page.cursor) if page.cursor else None,
        record_of(context).was_never_sent,
        failed,
        {"rerun": rerun_of(context, container, job, words, may_list=may_list)},
    )


def running_of(context: Batch, container: JobStates) -> Sequence[JobState]:
    """Return some members of a batch that run, in the order of sending."""

    def question(store: JobStore) -> Sequence[str]:
        return records_of(store).running_members(context.uuid, RUNNING_FIRST)

    uuids = ask(container, question)
    return [member for member in container.find_many(uuids) if member is not None]


def may_rerun(
    context: Batch,
    container: JobStates,
    failing: Sequence[JobState],
    *,
    may_list: bool,
) -> bool:
    """Return whether the viewer may run failed members again, as far as the first of
    them tell.
    """
    if context.cancel_requested:
        return False
    own = container.current_owner
    return any(
        may_act(container, member, RERUN.permission)
        for member in failing
        # Without the right to list all jobs, the request acts on the viewer's own.
        if may_list or (is_owner(own) and member.owner == own)
    )


def rerun_of(
    context: Batch,
    container: JobStates,
    job: Mapping[str, Any],
    words: Words,
    *,
    may_list: bool,
) -> dict[str, Any]:
    """Return what the script needs to run the failed members again: see
    :func:`.acts_on_all`.
    """
    query = {"batch": context.uuid, **({"all": "1"} if may_list else {})}
    return {
        "url": container.request.resource_url(container, "rerun", query=query),
        "question": words.about_all("rerun"),
        "counts": job["url"],
        "statuses": ["error"],
    }


def visible_batch(
    context: JobState, container: JobStates, request: Request
) -> dict[str, Any] | None:
    """Return the JSON of the batch of a job, or None if it has none that the viewer may
    see.
    """
    record = record_of(context)
    if not record.is_member:
        return None
    (batch,) = container.find_many([record.batch])
    return visible(
        container, request, batch, lambda found, state: job_of(found, request, state)
    )


def job_page(context: JobState, request: Request) -> Response:
    """Respond with the page of a job: what its JSON tells this viewer and, with the
    permission, what GET …/inspect does.
    """
    require(request, context, "view_job")
    container = container_of(context)
    words = words_for(request)
    pages: Pages = request.registry.getUtility(IPages)
    state: dict[str, Any] = context.__json__(request)
    job = job_of(context, request, state)
    inspected: dict[str, Any] = {}
    if container.permits(context, "inspect_job"):
        inspected = inspection(context)
    metrics = {k: v for k, v in state.items() if k not in ("job", "job_state")}
    params = inspected.get("params", job["params"])
    acts = acts_on(container, context, job).now
    may_list = bool(container.permits(container, "list_jobs"))
    members = members_of(context, container, job, words, may_list=may_list)
    has_failures = bool((job["counts"] or {}).get("error"))
    package = request.registry.package_name
    failure = failure_of(inspected, job, package, words)
    runs = members is None and record_of(context).stored_status in RUNNING
    now = records_of(container.store).now()
    where = where_of(inspected, now, package, words, runs=runs)
    error = job["error"]
    if failure and failure.tells_all:
        error = {"message": f"{failure.type}: {failure.message}"}
    tries = inspected.get("tries", ())
    logged = None
    if record_of(context).log_level is not None and may_read_all(context):
        logged = [line_as_json(line) for line in lines_of(context)]
    values = {
        "words": words,
        "job": job,
        "acts": acts,
        "owner": pages.owner_name(request, context.owner) if may_list else None,
        "may_list": may_list,
        "batch": visible_batch(context, container, request),
        "members": members,
        "list_url": request.resource_url(container),
        "text": text_of({**job, "error": error}, words),
        "logged": logged,
        "steps": timeline_of(job, tries, reason_of(context, job, words), words),
        "metrics": texts_of(metrics),
        "params": texts_of(params),
        "inspected": inspected,
        "failure": failure,
        "where": where,
        "runs": runs,
        "data": for_script(
            request,
            url=job["url"],
            list=request.resource_url(container),
            seen=f"{job['status']} {job['attempt']}{' failed' * has_failures}",
            bulk={} if members is None else members.bulk,
        ),
    }
    return respond(request, "job.jinja2", job["title"], values)
