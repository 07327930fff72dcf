"""The views that act on all jobs that a query matches: clear, cancel, run again."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pyramid.httpexceptions import HTTPForbidden

from ..errors import NotRepeatable, StoreUnavailable
from ..job import Batch, is_owner, is_uuid
from ..store import BulkResult, check_empty
from .acting import CANCEL, CLEAR, RERUN, Act, Acting, NotAccepted
from .acts import broker_failed, name_of
from .answers import render
from .permits import may_see
from .queries import (
    BadRequest,
    drop_body,
    parse_owner,
    read_duration,
    read_flag,
    read_limit,
    read_query,
    refuse_body,
    require_header,
)

if TYPE_CHECKING:
    from pyramid.request import Request
    from pyramid.response import Response

    from .resources import JobStates

log = logging.getLogger("pyramid_jobstate")

#: The parameters that every bulk request may have beside its filters.
OTHERS = ("all", "everything", "limit", "cursor")

#: The maximum number of jobs that a request acts on, unless it names a limit.
DEFAULT_LIMIT = 1000


def clear(context: JobStates, request: Request) -> Response:
    """Delete ended jobs. Respond with 200 and their number."""
    return act_on_many(context, request, CLEAR)


def cancel_many(context: JobStates, request: Request) -> Response:
    """Cancel unfinished jobs. Respond with 200 and their number."""
    return act_on_many(context, request, CANCEL)


def rerun_many(context: JobStates, request: Request) -> Response:
    """Run failed jobs again. Respond with 200 and their number."""
    return act_on_many(context, request, RERUN)


def act_on_many(context: JobStates, request: Request, act: Act) -> Response:
    """Act on the jobs that match the query, as far as the request may."""
    whole = drop_body(request)
    require_header(request)
    names = (*act.filters, *OTHERS)
    query = read_query(request, *names)
    options = read_options(query, act)
    may_list = bool(context.permits(context, "list_jobs"))
    own, who = context.current_owner, name_of(request)
    if "owner" not in query and "all" not in query and not is_owner(own):
        # A request without an owner does not own the jobs without an owner.
        return act_on_none(options, may_list=may_list)
    owner = owner_meant(query, own)
    is_own = is_owner(own) and owner == own
    if not (is_own or may_list):
        raise HTTPForbidden
    if not (may_list or sees_batch(context, query.get("batch"))):
        # The number of its jobs must not show in how far a request comes.
        return act_on_none(options, may_list=may_list)
    # Not before, since it takes time and memory.
    refuse_body(whole, *names)
    # The own owner is not logged: it may be a secret of the visitor's.
    whose = "their own jobs" if is_own else f"the jobs of {owner!r}"
    text = described("all jobs" if owner is None else whose, query, act.filters)
    acting = Acting(context, act, who)
    try:
        result = context.ask(
            lambda store: act.run(store, acting, owner=owner, **options)
        )
    except NotRepeatable as e:
        return render({"error": str(e)}, 410)
    except (StoreUnavailable, NotAccepted) as e:
        if acting.is_begun:
            line = "%s %s %d of %s until that failed."
            log.info(line, who, act.done, acting.done, text)
        if isinstance(e, StoreUnavailable):
            raise
        log.error("A job could not be sent to run again.", exc_info=e.__cause__)
        return broker_failed(e.__cause__)
    except ValueError as e:
        # The limit or the cursor is wrong.
        raise BadRequest(str(e)) from e
    if result.done:
        done, refused, _ = result
        log.info("%s %s %d of %s; %d were refused.", who, act.done, done, text, refused)
    return render_result(result, may_list=may_list)


def act_on_none(options: Mapping[str, Any], *, may_list: bool) -> Response:
    """Return the response to a request that matches no job.

    Raises:
      BadRequest: Its limit or cursor is invalid.
    """
    try:
        check_empty(options["limit"], options["cursor"])
    except ValueError as e:
        raise BadRequest(str(e)) from e
    return render_result(BulkResult(0, 0, None), may_list=may_list)


def sees_batch(context: JobStates, uuid: str | None) -> bool:
    """Return whether the request may see the batch that it names, if it names one."""
    if uuid is None or not is_uuid(uuid):
        # An invalid one is refused later.
        return True
    batch = context.find(uuid)
    return isinstance(batch, Batch) and may_see(context.request, batch)


def read_options(query: Mapping[str, str], act: Act) -> dict[str, Any]:
    """Return what the query says beside whose jobs are meant.

    Raises:
      BadRequest: It says nothing, without everything=1, or something invalid.
    """
    is_everything = read_flag(query, "everything")
    if not (is_everything or any(name in query for name in act.filters)):
        known = ", ".join(act.filters)
        raise BadRequest(
            "Without a filter this request acts on all jobs. Pass one of the "
            f"parameters {known}, or everything=1."
        )
    status = query.get("status")
    if status is not None and status not in act.statuses:
        known = ", ".join(act.statuses)
        raise BadRequest(f"status must be one of {known}, not {status!r}.")
    filters = {
        "kind": query.get("kind"),
        "status": status,
        "older_than": read_duration(query, "older_than"),
        "batch": query.get("batch"),
    }
    return {
        **{name: filters[name] for name in act.filters if name != "owner"},
        "limit": read_limit(query, DEFAULT_LIMIT),
        "cursor": query.get("cursor"),
        "everything": is_everything,
    }


def owner_meant(query: Mapping[str, str], own: Any) -> str | float | None:
    """Return the owner whose jobs are meant, or None for all.

    Parameters:
      own: The owner of the request, whose jobs are meant by default.

    Raises:
      BadRequest: The query names an owner and all.
    """
    is_all = read_flag(query, "all")
    if is_all and "owner" in query:
        raise BadRequest("all and owner contradict each other. Pass only one.")
    if is_all:
        return None
    return parse_owner(query["owner"], own) if "owner" in query else own


def described(whose: str, query: Mapping[str, str], filters: tuple[str, ...]) -> str:
    """Return for the log which jobs are meant."""
    named = [
        f"{name} {query[name]!r}"
        for name in filters
        if name in query and name != "owner"
    ]
    return f"{whose} with {', '.join(named)}" if named else whose


def render_result(result: BulkResult, *, may_list: bool) -> Response:
    """Return the response. Who may not list the jobs of others cannot count them."""
    answer = {"done": result.done, "refused": result.refused, "cursor": result.cursor}
    if not may_list:
        del answer["refused"]
    return render(answer)
