"""The views of states, lists and counts, and the registration of all views."""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING, Any

from pyramid.exceptions import BadCSRFOrigin, BadCSRFToken, URLDecodeError
from pyramid.httpexceptions import HTTPForbidden, HTTPNotFound
from pyramid.response import Response
from pyramid.security import NO_PERMISSION_REQUIRED
from pyramid.viewderivers import INGRESS
from zope.interface import classImplements

from ..errors import StoreUnavailable
from ..job.batch import Batch
from ..job.record import STATUSES, JobError
from ..job.state import Guard, JobState, container_of, record_of
from ..job.values import is_owner, iso_time
from ..store.jobstore import JobStore, records_of
from ..store.lists import MAX_LIMIT, Page
from ..store.reader import Failures, LogLine, line_as_json
from ..store.whereabouts import whereabouts_as_json
from ..store.workers import worker_as_json, worker_name
from ..worker.ledger import global_broker
from ..worker.reruns import why_not_repeatable
from .acts import cancel, cancel_many, clear, delete, rerun, rerun_many, stack
from .answers import (
    AnsweringView,
    View,
    answer_to,
    bad_csrf,
    bad_path,
    bad_request,
    encode,
    encode_state,
    forbidden,
    not_found,
    nothing,
    other_method,
    render_state,
    unavailable,
    unavailable_elsewhere,
)
from .failures import Group, reason_of
from .interfaces import (
    CANCEL,
    CANCEL_ALL,
    CLEAR,
    COUNTS,
    INSPECT,
    JOB,
    LIST,
    LOG,
    OTHER,
    RERUN,
    RERUN_ALL,
    STACK,
    WORKERS,
    IStoreUnavailable,
)
from .jobstates import JobStates, ask
from .permits import require
from .query import (
    BadRequest,
    parse_owner,
    read_flag,
    read_number,
    read_query,
)
from .routes import OursPredicate

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import TypeVar

    from pyramid.config import Configurator
    from pyramid.request import Request

    from ..job.record import Counts
    from ..store.whereabouts import Whereabouts

    T = TypeVar("T")


#: The number of jobs on a page, unless a request names another.
LIMIT = 50

#: The characters of states after which an answer with several jobs has no further ones.
MAX_ANSWER = 4 * 1024 * 1024

#: How many further answers the jobs may fill that a stream has.
MAX_FURTHER = 8

#: The parameters of a request for the members of a batch.
MEMBERS = ("batch", "status", "limit", "cursor")

#: The parameters of a request for groups of failed jobs.
GROUPED = ("group", "status", "owner", "all", "kind", "members")

#: The most failed jobs that are examined for groups.
MAX_GROUPED = 1000


def asked_page(context: JobStates, request: Request, **changes: Any) -> Page:
    """Return the page of a list that the query asks for.

    Parameters:
      changes: Another status, limit or cursor.

    Raises:
      BadRequest: A parameter is invalid.
      HTTPForbidden: The request may not list the jobs of others.
      StoreUnavailable: The store does not answer.
    """
    query = request.GET
    if "batch" in query:
        return _asked_members(context, request)
    wanted = {
        "status": query.get("status"),
        "limit": read_number(query, "limit", LIMIT),
        "cursor": query.get("cursor"),
        **changes,
    }
    is_all, members = read_flag(query, "all"), read_flag(query, "members")
    owner = None
    if "owner" in query or is_all:
        require(request, context, "list_jobs")
        if "owner" in query:
            owner = parse_owner(query["owner"], context.current_owner)
    else:
        owner = context.current_owner
        if not is_owner(owner):
            # A request without an owner does not own the jobs without an owner.
            return Page([], None)
    try:
        return context.list(owner, kind=query.get("kind"), members=members, **wanted)
    except ValueError as e:
        raise BadRequest(str(e)) from e


def asked_groups(
    context: JobStates,
    request: Request,
    show: Callable[[JobState, dict[str, Any]], object],
) -> tuple[list[Group], bool]:
    """Return the groups of the failed jobs that the query asks for and the request may
    see, and whether there are older ones. The first group has the job that failed last.

    Parameters:
      show: Returns what is shown of a job: see :func:`visible`.

    Raises:
      BadRequest: A parameter is invalid.
      HTTPForbidden: The request may not list the jobs of others.
      StoreUnavailable: The store does not answer.
    """
    query = read_query(request, *GROUPED)
    if query["group"] != "error":
        raise BadRequest(f"group must be error, not {query['group']!r}.")
    if query.get("status") != "error":
        raise BadRequest("group=error needs status=error.")
    members = read_flag(query, "members")
    groups: dict[tuple[str | None, str], Group] = {}

    def add(job_state: JobState, state: dict[str, Any]) -> None:
        if members and isinstance(job_state, Batch):
            # Its members say why they failed.
            return
        reason = reason_of(context, job_state, state)
        time = iso_time(job_state.finished_at)
        shown = show(job_state, state)
        group = groups.setdefault(reason, Group(*reason, [], []))
        group.jobs.append(shown)
        group.times.append(time)

    cursor = None
    for _ in range(MAX_GROUPED // MAX_LIMIT):
        page = asked_page(context, request, limit=MAX_LIMIT, cursor=cursor)
        for job_state in page.items:
            visible(context, request, job_state, add)
        cursor = page.cursor
        if cursor is None:
            break
    return [*groups.values()], cursor is not None


def _asked_members(context: JobStates, request: Request) -> Page:
    """Return a page of the members of the batch that the query names.

    Raises:
      BadRequest: A parameter is invalid.
      HTTPNotFound: The batch is unknown, or the request may not see it.
      StoreUnavailable: The store does not answer.
    """
    query = read_query(request, *MEMBERS)
    batch = context.find(query["batch"])
    if not (isinstance(batch, Batch) and context.permits(batch, "view_job")):
        raise HTTPNotFound
    return members_page(context, batch, query)


def members_page(context: JobStates, batch: Batch, query: Mapping[str, str]) -> Page:
    """Return the page of the members of a batch that a query asks for.

    Raises:
      BadRequest: A parameter is invalid.
      StoreUnavailable: The store does not answer.
    """
    try:
        return context.members(
            batch.uuid,
            status=query.get("status"),
            limit=read_number(query, "limit", LIMIT),
            cursor=query.get("cursor"),
        )
    except ValueError as e:
        raise BadRequest(str(e)) from e


def visible(
    context: JobStates,
    request: Request,
    job_state: JobState | None,
    show: Callable[[JobState, dict[str, Any]], T],
) -> T | None:
    """Return what ``show(job_state, state)`` returns for one job among others, or None
    if the request may not see it. None also if the application's code raises for it,
    which must not affect the others.
    """

    def show_state(job_state: JobState) -> T | None:
        state = job_state.__json__(request)
        return None if state is None else show(job_state, state)

    return permitted(context, job_state, show_state)


def permitted(
    context: JobStates,
    job_state: JobState | None,
    show: Callable[[JobState], T | None],
) -> T | None:
    """Return what ``show(job_state)`` returns, or None as :func:`visible` does."""
    if job_state is None:
        return None
    with Guard(job_state):
        if context.permits(job_state, "view_job"):
            return show(job_state)
    return None


def counts(context: JobStates, request: Request) -> Response:
    """Respond with how many jobs have which status, how long they wait, and all kinds:
    counted anew for a request that no cache may answer.
    """
    require(request, context, "list_jobs")
    query = read_query(request, "kind", "members")
    kind, members = query.get("kind"), read_flag(query, "members")
    anew = "no-cache" in request.headers.get("Cache-Control", "")

    def question(store: JobStore) -> tuple[Counts, Sequence[str]]:
        return store.counts(kind, anew=anew, members=members), store.kinds()

    try:
        counted, kinds = ask(context, question)
    except ValueError as e:
        raise BadRequest(str(e)) from e
    answer = {
        "counts": numbers_of(counted),
        "oldest_wait": counted.oldest_wait,
        "recent_wait": counted.recent_wait,
        "kinds": [*kinds],
    }
    return render_state(request, encode(answer))


def numbers_of(counts: Counts) -> dict[str, int]:
    """Return how many jobs have which status."""
    return {status: getattr(counts, status) for status in STATUSES}


def workers(context: JobStates, request: Request) -> Response:
    """Respond with the worker processes that were heard of within the last hour."""
    require(request, context, "list_jobs")
    read_query(request)
    found = [worker_as_json(worker) for worker in ask(context, JobStore.workers)]
    return render_state(request, encode({"workers": found}))


def inspect(context: JobState, request: Request) -> Response:
    """Respond with what operators need to know of a job and its failures, all of which
    may be secret.
    """
    require(request, context, "inspect_job")
    read_query(request)
    return render_state(request, encode(inspection(context)))


def inspection(context: JobState) -> dict[str, Any]:
    """Return what operators need to know of a job, without checking permissions."""
    broker, record = global_broker(), record_of(context)

    def question(store: JobStore) -> tuple[Failures, Whereabouts | None, str | None]:
        # A job that has become an alias meanwhile is not followed.
        records = records_of(store)
        failures = records.failures(record.uuid) or Failures()
        where = records.where(record.uuid)
        return failures, where, why_not_repeatable(store, broker, context)

    failures, where, reason = ask(container_of(context), question)
    begun = context.started_at
    if where is not None and (begun is None or where.asked_at < begun):
        # It is of an earlier run.
        where = None
    return {
        "uuid": context.uuid,
        "actor": record.actor or None,
        "queue": record.queue,
        "worker": record.worker and worker_name(record.worker),
        "params": context.job_params,
        "error": error_of(context.error),
        "traceback": failures.traceback or None,
        "tries": [
            {
                "started_at": iso_time(each.started_at),
                "ended_at": iso_time(each.ended_at),
                **(error_of(each.error) or {}),
            }
            for each in failures.tries
        ],
        "repeatable": reason is None,
        "reason": reason,
        "where": None if where is None else whereabouts_as_json(where),
    }


def show_log(context: JobState, request: Request) -> Response:
    """Respond with the lines of the log of a job that the request may read: those of
    append_log() and, to some, those that were captured.
    """
    require(request, context, "view_job")
    after = read_number(read_query(request, "after"), "after", 0)
    lines = lines_of(context, after)
    if not may_read_all(context):
        lines = [line for line in lines if not line.is_captured]
    return render_state(
        request, encode({"lines": [line_as_json(line) for line in lines]})
    )


def may_read_all(context: JobState) -> bool:
    """Return whether a request that may view a job may read what was captured of it."""
    is_public: bool = context.public_log is True
    return is_public or bool(container_of(context).permits(context, "inspect_job"))


def lines_of(context: JobState, after: int = 0) -> Sequence[LogLine]:
    """Return the lines of the log of a job, without checking permissions.

    Parameters:
      after: Only return lines with higher numbers.
    """
    record = record_of(context)
    if record.log_level is None:
        # Nothing is asked about a job whose class captures nothing.
        return []

    def question(store: JobStore) -> Sequence[LogLine] | None:
        # A job that has become an alias meanwhile is not followed.
        return records_of(store).log(record.uuid, after)

    return ask(container_of(context), question) or []


def error_of(error: JobError | None) -> dict[str, Any] | None:
    """Return an error with its whole text."""
    return None if error is None else dataclasses.asdict(error)


def show(context: JobState, request: Request) -> Response:
    """Respond with the state of a job, or 304 if the client has it already."""
    require(request, context, "view_job")
    answer = answer_to(request)
    text = answer.state(context.uuid, context) or "null"
    return answer.respond(text, [context.uuid])


def show_many(context: JobStates, request: Request) -> Response:
    """Respond with the states of the jobs that the query names, with groups of failed
    jobs, or with a page of a list.

    One view for all: an application that overrides it overrides all, and a predicate
    such as ``request_param`` would raise for a query that cannot be decoded.
    """
    if "uuid" in request.GET:
        return show_named(context, request)
    return (show_groups if "group" in request.GET else show_list)(context, request)


def show_named(context: JobStates, request: Request) -> Response:
    """Respond with the states of several jobs, with null for each unknown or forbidden
    one. If they are large, the answer ends early: the client asks for the others again,
    and a stream sends them later.
    """
    most = request.registry.jobstate.max_uuids
    uuids = list(dict.fromkeys(request.GET.getall("uuid")))
    if len(uuids) > most:
        return bad_request(f"uuid is given {len(uuids)} times, more than {most}.")
    answer = answer_to(request)
    states: dict[str, str | None] = {}
    size = 0
    for uuid, job_state in zip(uuids, context.find_some(uuids), strict=False):
        if size >= MAX_ANSWER:
            break
        state = permitted(context, job_state, functools.partial(answer.state, uuid))
        states[uuid] = state
        size += 0 if state is None else len(state)
    left = uuids[len(states) :] if answer.is_for_stream else []
    for _ in range(MAX_FURTHER):
        if not left:
            break
        found = context.find_some(left)
        for uuid, job_state in zip(left, found, strict=False):
            permitted(context, job_state, functools.partial(answer.note, uuid))
        left = left[len(found) :]
    text = ",".join(f"{encode(k)}:{state or 'null'}" for k, state in states.items())
    # A stream tells the client to ask for the jobs that it has not noted.
    return answer.respond(f'{{"jobs":{{{text}}}}}', uuids)


def show_list(context: JobStates, request: Request) -> Response:
    """Respond with a page of a list of jobs."""
    page = asked_page(context, request)
    states = [visible(context, request, job, encode_state) for job in page.items]
    items = ",".join(state for state in states if state is not None)
    return render_state(
        request, f'{{"items":[{items}],"cursor":{encode(page.cursor)}}}'
    )


def show_groups(context: JobStates, request: Request) -> Response:
    """Respond with groups of jobs that failed for equal reasons."""
    groups, more = asked_groups(context, request, lambda job_state, _: job_state.uuid)
    found = [
        {
            "type": group.type,
            "text": group.text,
            "count": len(group.jobs),
            "newest": group.times[0],
            "oldest": group.times[-1],
            "uuids": group.jobs,
        }
        for group in groups
    ]
    return render_state(request, encode({"groups": found, "more": more}))


#: Our views: the routes, context and name of each, and its views by method.
VIEWS: tuple[tuple[tuple[str, ...], type, str, dict[str, View]], ...] = (
    ((LIST, f"{LIST}/"), JobStates, "", {"GET": show_many}),
    ((COUNTS,), JobStates, "counts", {"GET": counts}),
    ((WORKERS,), JobStates, "workers", {"GET": workers}),
    ((CLEAR,), JobStates, "clear", {"POST": clear}),
    ((CANCEL_ALL,), JobStates, "cancel", {"POST": cancel_many}),
    ((RERUN_ALL,), JobStates, "rerun", {"POST": rerun_many}),
    ((JOB, f"{JOB}/"), JobState, "", {"GET": show, "DELETE": delete}),
    ((CANCEL,), JobState, "cancel", {"POST": cancel}),
    ((RERUN,), JobState, "rerun", {"POST": rerun}),
    ((INSPECT,), JobState, "inspect", {"GET": inspect}),
    ((STACK,), JobState, "stack", {"POST": stack}),
    ((LOG,), JobState, "log", {"GET": show_log}),
)


def add_views(config: Configurator) -> None:
    """Register each view for our routes, and for containers mounted elsewhere."""
    config.add_view_predicate("jobstate_ours", OursPredicate)
    config.add_view_deriver(
        AnsweringView(), "jobstate_answering", under=INGRESS, over="csrf_view"
    )
    classImplements(StoreUnavailable, IStoreUnavailable)
    config.add_exception_view(unavailable_elsewhere, context=IStoreUnavailable)
    for exception, answer in (
        (HTTPNotFound, not_found),
        (HTTPForbidden, forbidden),
        (BadCSRFToken, bad_csrf),
        (BadCSRFOrigin, bad_csrf),
        (StoreUnavailable, unavailable),
        (URLDecodeError, bad_path),
    ):
        config.add_exception_view(answer, context=exception, jobstate_ours=True)
    # The views check permissions themselves: see require(). Without a CSRF check,
    # other methods and unknown jobs get their own 405 and 404.
    add = functools.partial(config.add_view, permission=NO_PERMISSION_REQUIRED)
    for routes, context, name, views in VIEWS:
        allowed = [*views, "HEAD"] if "GET" in views else [*views]
        for place in ({}, *({"route_name": route} for route in routes)):
            options: dict[str, Any] = {"name": name, "context": context, **place}
            for method, view in views.items():
                add(view, request_method=method, jobstate_answers=True, **options)
            add(other_method(*allowed), require_csrf=False, **options)
            if place and context is JobState:
                options["context"] = JobStates
                add(nothing, require_csrf=False, **options)
    add(nothing, route_name=OTHER, require_csrf=False)
