"""What requests do with jobs: cancel, delete and run again, one or many."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from pyramid.httpexceptions import HTTPForbidden, HTTPNotFound
from redis.exceptions import RedisError

from ..errors import BatchCancelled, NotRepeatable, NotUnique, StoreUnavailable
from ..job.batch import Batch
from ..job.record import FINISHED, UNFINISHED, is_uuid
from ..job.state import Guard, JobState, container_of, record_of, set_container
from ..job.values import is_owner
from ..job.words import did_you_mean
from ..store.bulk import BulkResult, check_empty
from ..store.jobstore import JobStore, records_of
from ..store.whereabouts import Whereabouts, whereabouts_as_json
from ..worker.ledger import global_broker
from ..worker.reruns import BROKER_IS_AWAY, NO_BROKER, rerun_all
from .answers import come_back, render, render_nothing
from .jobstates import ask
from .permits import require
from .query import (
    BadRequest,
    drop_body,
    parse_owner,
    read_duration,
    read_flag,
    read_number,
    read_query,
    refuse_body,
    require_header,
)

if TYPE_CHECKING:
    from pyramid.request import Request
    from pyramid.response import Response

    from .jobstates import JobStates

log = logging.getLogger("pyramid_jobstate")

#: What the log says of each job that a user has acted on.
CANCELLED = "%s cancelled the job %s."

DELETED = "%s deleted the job %s."

RAN_AGAIN = "%s ran the job %s again."

#: The parameters that every bulk request may have beside its filters.
OTHERS = ("all", "everything", "limit", "cursor")

#: The maximum number of jobs that a request acts on, unless it names a limit.
DEFAULT_LIMIT = 1000


def cancel(context: JobState, request: Request) -> Response:
    """Cancel a job. Respond with 202 and its state as :func:`render_state` shows it, or
    409 if it has ended.
    """
    drop_body(request)
    require(request, context, "cancel_job")
    require_header(request)
    container, who = container_of(context), name_of(request)
    # That of the job, if it was asked for by the uuid of an alias.
    record = record_of(context)
    is_cancelled = ask(
        container,
        lambda store: records_of(store).cancel(
            record.uuid, record.info, may_follow=False
        ),
    )
    if is_cancelled:
        log.info(CANCELLED, who, record.uuid)
    job_state = container.find(context.uuid)
    if job_state is None:
        raise HTTPNotFound
    if record_of(job_state).uuid != record.uuid:
        # It has become an alias: the rights are those of the job to which it leads.
        return cancel(job_state, request)
    if not is_cancelled:
        return render({"error": "The job has ended."}, 409)
    return render_state(job_state, request)


def delete(context: JobState, request: Request) -> Response:
    """Delete a job. Respond with 204, or 409 if it has not ended."""
    drop_body(request)
    require(request, context, "delete_job")
    require_header(request)
    read_query(request)
    container, who = container_of(context), name_of(request)
    record = record_of(context)
    uuid = record.uuid
    # A job that has not ended may have become an alias of another's.
    if record.is_finished and ask(container, lambda store: store.delete(uuid)):
        log.info(DELETED, who, uuid)
        return render_nothing()
    if container.find(context.uuid) is None:
        raise HTTPNotFound
    return render({"error": "The job has not ended."}, 409)


def rerun(context: JobState, request: Request) -> Response:
    """Run a job again. Respond with 202 and its state as :func:`render_state` shows it,
    409 if it has not failed, is unique and another one is under way, or belongs to a
    cancelled batch, or 410 if it cannot run again.
    """
    drop_body(request)
    require(request, context, "rerun_job")
    require_header(request)
    read_query(request)
    container, who = container_of(context), name_of(request)
    record = record_of(context)
    uuid = record.uuid
    try:
        # A job that has not failed may have become an alias of another's.
        is_sent = record.is_failed_or_lost and container.rerun(context)
    except StoreUnavailable:
        raise
    except NotRepeatable as e:
        may_change = isinstance(e, (NotUnique, BatchCancelled))
        return render({"error": str(e)}, 409 if may_change else 410)
    except Exception as e:
        log.exception("The job %s could not be sent to run again.", uuid)
        return broker_failed(e)
    if is_sent:
        log.info(RAN_AGAIN, who, uuid)
    job_state = container.find(context.uuid)
    if job_state is None:
        raise HTTPNotFound
    if not is_sent:
        return render({"error": "The job has not failed."}, 409)
    return render_state(job_state, request)


def stack(context: JobState, request: Request) -> Response:
    """Ask where a job is. Respond with 202 and what is known of that, or 409 if the job
    does not run.
    """
    drop_body(request)
    require(request, context, "inspect_job")
    require_header(request)
    read_query(request)
    container = container_of(context)
    uuid = record_of(context).uuid

    def question(store: JobStore) -> Whereabouts | None:
        # A job that has become an alias meanwhile is not followed.
        records = records_of(store)
        return records.where(uuid) if records.ask_where(uuid) else None

    where = ask(container, question)
    if where is not None:
        return render({"where": whereabouts_as_json(where)}, 202)
    if container.find(context.uuid) is None:
        raise HTTPNotFound
    return render({"error": "The job does not run."}, 409)


def render_state(job_state: JobState, request: Request) -> Response:
    """Return the response to a request that has changed a job: its state, or only its
    uuid and status to whoever may act on the job and may not see it.
    """
    if request.job_states.permits(job_state, "view_job"):
        return render(job_state.__json__(request), 202)
    return render({"job": {"uuid": job_state.uuid, "status": job_state.status}}, 202)


def broker_failed(error: BaseException | None) -> Response:
    """Return the response to a request whose job could not be sent.

    Parameters:
      error: What the broker raised.
    """
    if isinstance(error, BROKER_IS_AWAY):
        return come_back("The broker does not answer.")
    return come_back("The broker did not accept the message of the job.")


def name_of(request: Request) -> str:
    """Return the user of a request, for the log."""
    userid = request.authenticated_userid
    # An owner that is not a user may be a secret of the visitor's.
    return "A visitor without a login" if userid is None else repr(userid)


class NotAccepted(Exception):
    """Raised when the broker does not accept the message of a job."""


class BulkAct(NamedTuple):
    """What a request does with jobs.

    Attributes:
      done: What has been done to them, for the log.
      line: What the log says of each, about a user and a uuid.
      permission: What it takes on each of them.
      filters: The parameters that say which jobs are meant.
      statuses: The values of the parameter status.
      run: Calls the store.
    """

    done: str
    line: str
    permission: str
    filters: tuple[str, ...]
    statuses: tuple[str, ...]
    run: Callable[..., BulkResult]


class BulkRequest:
    """Says of each job whether a request may act on it, and logs what it did.

    Parameters:
      container: The jobs.
      act: What the request does.
      who: The user, for the log.

    Attributes:
      is_begun: Whether it has been asked about a job yet.
      done: How many jobs it has acted on.
    """

    def __init__(self, container: JobStates, act: BulkAct, who: str) -> None:
        self.is_begun = False
        self.done = 0
        self._container = container
        self._act = act
        self._who = who

    def permits(self, job_state: JobState) -> bool:
        """Return whether the request may act on a job."""
        self.is_begun = True
        return may_act(self._container, job_state, self._act.permission)

    def tell(self, uuid: str, is_certain: bool) -> None:
        """Log that a job was acted on, or may have been."""
        if is_certain:
            self.done += 1
            log.info(self._act.line, self._who, uuid)
        else:
            line = "%s may have %s the job %s: the store did not answer."
            log.info(line, self._who, self._act.done, uuid)


def may_act(container: JobStates, job_state: JobState, permission: str) -> bool:
    """Return whether a request has a permission on one of many jobs."""
    set_container(job_state, container)
    with Guard(job_state):
        return bool(container.permits(job_state, permission))
    return False


def clear_all(store: JobStore, acting: BulkRequest, **options: Any) -> BulkResult:
    """Delete ended jobs."""
    return store.clear(permits=acting.permits, tell=acting.tell, **options)


def cancel_all(store: JobStore, acting: BulkRequest, **options: Any) -> BulkResult:
    """Cancel unfinished jobs."""
    return store.cancel_all(permits=acting.permits, tell=acting.tell, **options)


def run_again(store: JobStore, acting: BulkRequest, **options: Any) -> BulkResult:
    """Run failed jobs again.

    Raises:
      NotRepeatable: This process has no broker.
      NotAccepted: The broker did not accept a job.
    """
    broker = global_broker()
    if broker is None:
        raise NotRepeatable(NO_BROKER)
    try:
        return rerun_all(
            store, broker, permits=acting.permits, tell=acting.tell, **options
        )
    except Exception as e:
        if not acting.is_begun or isinstance(e, (RedisError, StoreUnavailable)):
            raise
        raise NotAccepted from e


CLEAR = BulkAct(
    "deleted",
    DELETED,
    "delete_job",
    ("owner", "kind", "status", "older_than"),
    FINISHED,
    clear_all,
)


CANCEL = BulkAct(
    "cancelled",
    CANCELLED,
    "cancel_job",
    ("owner", "kind", "status"),
    UNFINISHED,
    cancel_all,
)


RERUN = BulkAct(
    "requeued", RAN_AGAIN, "rerun_job", ("owner", "kind", "batch"), (), run_again
)


def clear(context: JobStates, request: Request) -> Response:
    """Delete ended jobs. Respond with 200 and their number."""
    return act_on_many(context, request, CLEAR)


def cancel_many(context: JobStates, request: Request) -> Response:
    """Cancel unfinished jobs. Respond with 200 and their number."""
    return act_on_many(context, request, CANCEL)


def rerun_many(context: JobStates, request: Request) -> Response:
    """Run failed jobs again. Respond with 200 and their number."""
    return act_on_many(context, request, RERUN)


def act_on_many(context: JobStates, request: Request, act: BulkAct) -> Response:
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
    acting = BulkRequest(context, act, who)
    try:
        result = ask(
            context, lambda store: act.run(store, acting, owner=owner, **options)
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
        line = "%s %s %d of %s; %d were refused."
        log.info(line, who, act.done, result.done, text, result.refused)
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
    return isinstance(batch, Batch) and bool(context.permits(batch, "view_job"))


def read_options(query: Mapping[str, str], act: BulkAct) -> dict[str, Any]:
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
        raise BadRequest(
            f"status must be one of {known}, not {status!r}."
            f"{did_you_mean(status, act.statuses)}"
        )
    filters = {
        "kind": query.get("kind"),
        "status": status,
        "older_than": read_duration(query, "older_than"),
        "batch": query.get("batch"),
    }
    return {
        **{name: filters[name] for name in act.filters if name != "owner"},
        "limit": read_number(query, "limit", DEFAULT_LIMIT),
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
