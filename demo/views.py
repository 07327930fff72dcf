"""The pages."""

import contextlib
import io
import os
from typing import Any, BinaryIO

from pyramid.config import Configurator
from pyramid.httpexceptions import HTTPBadRequest, HTTPSeeOther
from pyramid.request import Request
from pyramid.security import NO_PERMISSION_REQUIRED, forget, remember
from pyramid.view import view_config
from sqlalchemy import ColumnElement, func, select

from demo import sample
from demo.jobs import (
    ImportAll,
    ImportFile,
    RunMarathon,
    import_file,
    import_results,
    run_marathon,
)
from demo.models import Note, Result, Upload
from demo.results import MAX_BYTES
from demo.security import USERS
from pyramid_jobstate import JobState, NotRepeatable

#: The speeds of a marathon, in miles per second.
SPEEDS = {"Stroll": 0.25, "Jog": 1.0, "Sprint": 4.0, "Flat out": None}

#: The speed of an import that is easy to watch, in rows per second.
ROWS_A_SECOND = float(os.environ.get("JOBSTATE_DEMO_ROWS_A_SECOND", "2000"))

#: The speeds of an import, in rows per second.
PACES = {"Easy to watch": ROWS_A_SECOND, "Flat out": None}

#: How much slower each of many small files is imported. They would be gone in a moment.
SLOWNESS = 10

MAX_MILES = 100

#: The number of jobs on a page of a list.
PAGE_SIZE = 20


@view_config(route_name="home", renderer="templates/home.jinja2")
def home(request: Request) -> dict[str, Any]:
    """The forms. The browser fetches the list of the user's jobs."""
    return {
        "speeds": list(SPEEDS),
        "paces": list(PACES),
        "max_bytes": MAX_BYTES,
        "files": len(sample.FILES),
        "max_miles": MAX_MILES,
        "page_size": PAGE_SIZE,
    }


@view_config(route_name="marathons", request_method="POST")
def start_marathon(request: Request) -> HTTPSeeOther:
    try:
        miles = float(request.POST["miles"])
        miles_a_second = SPEEDS[request.POST["speed"]]
    except (KeyError, ValueError):
        miles = 0
    if not 0.1 <= miles <= MAX_MILES:
        return complain(request, "marathon", f"Choose 0.1 to {MAX_MILES} miles.")
    return see(request, request.job_states.send(run_marathon, miles, miles_a_second))


@view_config(route_name="imports", request_method="POST")
def start_import(request: Request) -> HTTPSeeOther:
    file = request.POST.get("file")
    if not hasattr(file, "filename"):
        return complain(request, "import", "Choose a file first.")
    return send_import(request, file.file, file.filename)


@view_config(route_name="sample", request_method="POST")
def start_sample_import(request: Request) -> HTTPSeeOther:
    return send_import(request, io.BytesIO(sample.make()), "sample.csv")


def send_import(request: Request, file: BinaryIO, filename: str) -> HTTPSeeOther:
    """Store the file, and send the job that reads it."""
    rows_a_second = pace(request)
    content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        limit = f"{MAX_BYTES // 1024 // 1024} MB"
        return complain(request, "import", f"The file is larger than {limit}.")
    upload = Upload(
        owner=request.authenticated_userid, filename=filename[:100], content=content
    )
    request.dbsession.add(upload)
    request.dbsession.flush()  # assigns the id
    # The message leaves after the commit, so the job will find the upload. If the
    # commit fails, neither exists.
    job_state = request.job_states.send(
        import_results, upload.id, upload.filename, rows_a_second
    )
    return see(request, job_state)


@view_config(route_name="samples", request_method="POST")
def start_sample_imports(request: Request) -> HTTPSeeOther:
    """Store many files, and send a batch: a job for each."""
    rows_a_second = pace(request)
    if rows_a_second is not None:
        rows_a_second /= SLOWNESS
    files = sample.make_files()
    title = f"Import of {len(files)} files"
    with request.job_states.batch(ImportAll, title=title) as batch:
        uploads = [
            Upload(
                owner=request.authenticated_userid,
                filename=filename,
                content=content,
                batch=batch.uuid,
            )
            for filename, content in files.items()
        ]
        request.dbsession.add_all(uploads)
        request.dbsession.flush()  # assigns the ids
        for upload in uploads:
            batch.send(import_file, upload.id, upload.filename, rows_a_second)
    return see(request, batch)


def pace(request: Request) -> float | None:
    """Return the speed that the user has chosen for an import."""
    try:
        return PACES[request.POST["pace"]]
    except KeyError:
        raise HTTPBadRequest from None


def see(request: Request, job_state: JobState) -> HTTPSeeOther:
    """Redirect to the page of a job."""
    return HTTPSeeOther(request.route_url("job", uuid=job_state.uuid))


def complain(request: Request, form: str, message: str) -> HTTPSeeOther:
    """Redirect to a form, which shows the message."""
    request.session.flash(message, form)
    return HTTPSeeOther(request.route_url("home"))


# The route's factory and traversal make the JobState the context: an unknown job is a
# 404, and the permission is checked on the job itself.
@view_config(
    route_name="job",
    context=RunMarathon,
    permission="view_job",
    renderer="templates/marathon.jinja2",
)
def marathon(context: RunMarathon, request: Request) -> dict[str, Any]:
    return {"job_state": context}


@view_config(
    route_name="job",
    context=ImportFile,
    permission="view_job",
    renderer="templates/import.jinja2",
)
def results_import(context: ImportFile, request: Request) -> dict[str, Any]:
    uploads = Upload.id == context.get_job_param("upload_id")
    return {"job_state": context, **results_of(request, uploads)}


@view_config(
    route_name="job",
    context=ImportAll,
    permission="view_job",
    renderer="templates/batch.jinja2",
)
def results_imports(context: ImportAll, request: Request) -> dict[str, Any]:
    failed = failed_members(context, request) if context.is_finished else []
    return {
        "job_state": context,
        # As viewers see them: the text of an exception may hold secrets.
        "failed": [member.__json__(request)["job"] for member in failed],
        **results_of(request, Upload.batch == context.uuid),
    }


# In this demo, whoever may cancel the batch may also run its failed jobs again.
@view_config(
    route_name="again",
    context=ImportAll,
    permission="cancel_job",
    request_method="POST",
)
def run_again(context: ImportAll, request: Request) -> HTTPSeeOther:
    for member in failed_members(context, request):
        # A batch that was cancelled stays as it is.
        with contextlib.suppress(NotRepeatable):
            member.rerun()
    return see(request, context)


def failed_members(context: ImportAll, request: Request) -> list[JobState]:
    page = request.job_states.members(context.uuid, status="error", limit=200)
    return page.items


def results_of(request: Request, uploads: ColumnElement[bool]) -> dict[str, Any]:
    """Return the fastest of the results of some uploads, each with the name of its
    file, and how many results they have.
    """
    found = select(Result, Upload.filename).join(Upload).where(uploads)
    fastest = found.order_by(Result.seconds, Result.bib).limit(5)
    count = select(func.count()).select_from(found.subquery())
    return {
        "fastest": request.dbsession.execute(fastest).all(),
        "count": request.dbsession.scalar(count),
    }


@view_config(route_name="inbox", renderer="templates/inbox.jinja2")
def inbox(request: Request) -> dict[str, Any]:
    """The user's own notes, newest first. Whoever opens the inbox has read them."""
    own = select(Note).where(Note.owner == request.authenticated_userid)
    notes = request.dbsession.scalars(own.order_by(Note.finished_at.desc())).all()
    for note in notes:
        note.is_read = True
    return {"notes": notes}


@view_config(
    route_name="login",
    request_method="GET",
    permission=NO_PERMISSION_REQUIRED,
    renderer="templates/login.jinja2",
)
def login_form(request: Request) -> dict[str, Any]:
    return {"users": USERS.values()}


@view_config(
    route_name="login", request_method="POST", permission=NO_PERMISSION_REQUIRED
)
def login(request: Request) -> HTTPSeeOther:
    user = USERS.get(request.POST.get("user"))
    if user is None:
        raise HTTPBadRequest
    wanted = request.session.get("wanted", request.route_url("home"))
    # A new session: its old contents must not act for the user.
    request.session.invalidate()
    return HTTPSeeOther(wanted, headers=remember(request, user.userid))


@view_config(
    route_name="logout", request_method="POST", permission=NO_PERMISSION_REQUIRED
)
def logout(request: Request) -> HTTPSeeOther:
    request.session.invalidate()
    return HTTPSeeOther(request.route_url("login"), headers=forget(request))


def job_states(request: Request) -> Any:
    """The root factory of the routes to jobs: a container of jobs by uuid."""
    return request.job_states


def includeme(config: Configurator) -> None:
    config.add_static_view("static", "demo:static")
    config.add_route("home", "/")
    config.add_route("inbox", "/inbox")
    config.add_route("login", "/login")
    config.add_route("logout", "/logout")
    config.add_route("marathons", "/marathons")
    config.add_route("imports", "/imports")
    config.add_route("sample", "/imports/sample")
    config.add_route("samples", "/imports/samples")
    config.add_route("job", "/jobs/{uuid}", factory=job_states, traverse="/{uuid}")
    config.add_route(
        "again", "/jobs/{uuid}/again", factory=job_states, traverse="/{uuid}"
    )
    config.scan(".views")
    config.scan(".problems")
