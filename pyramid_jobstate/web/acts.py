"""The views that act on one job: cancel it, delete it, run it again."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from pyramid.httpexceptions import HTTPNotFound

from ..errors import (
    BatchCancelled,
    NotRepeatable,
    NotUnique,
    StoreUnavailable,
)
from ..job import container_of, record_of
from ..worker import BROKER_IS_AWAY
from .answers import come_back, render, render_nothing
from .permits import require
from .queries import drop_body, read_query, require_header

if TYPE_CHECKING:
    from pyramid.request import Request
    from pyramid.response import Response

    from ..job import JobState

log = logging.getLogger("pyramid_jobstate")

#: What the log says of each job that a user has acted on.
CANCELLED = "%s cancelled the job %s."
DELETED = "%s deleted the job %s."
RAN_AGAIN = "%s ran the job %s again."

#: What a request reads whose job the broker did not accept, and why.
REFUSED = "The broker did not accept the message of the job."
AWAY = "The broker does not answer."


def cancel(context: JobState, request: Request) -> Response:
    """Cancel a job. Respond with 202 and its state, or 409 if it has ended."""
    drop_body(request)
    require(request, context, "cancel_job")
    require_header(request)
    container, who = container_of(context), name_of(request)
    # That of the job, if it was asked for by the uuid of an alias.
    record = record_of(context)
    is_cancelled = container.ask(
        lambda store: store.records.cancel(record.uuid, record.info, may_follow=False)
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
    return render(job_state.__json__(request), 202)


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
    if record.is_finished and container.ask(lambda store: store.delete(uuid)):
        log.info(DELETED, who, uuid)
        return render_nothing()
    if container.find(context.uuid) is None:
        raise HTTPNotFound
    return render({"error": "The job has not ended."}, 409)


def rerun(context: JobState, request: Request) -> Response:
    """Run a job again. Respond with 202 and its state, 409 if it has not failed, is
    unique and another one is under way, or belongs to a cancelled batch, or 410 if it
    cannot run again.
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
        is_sent = record.has_failed and container.rerun(context)
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
    return render(job_state.__json__(request), 202)


def broker_failed(error: BaseException | None) -> Response:
    """Return the response to a request whose job could not be sent.

    Parameters:
      error: What the broker raised.
    """
    return come_back(AWAY if isinstance(error, BROKER_IS_AWAY) else REFUSED)


def name_of(request: Request) -> str:
    """Return the user of a request, for the log."""
    userid = request.authenticated_userid
    # An owner that is not a user may be a secret of the visitor's.
    return "A visitor without a login" if userid is None else repr(userid)
