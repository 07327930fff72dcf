"""The pages."""

import io
import json
from typing import Any

from pyramid.config import Configurator
from pyramid.httpexceptions import HTTPBadRequest, HTTPSeeOther
from pyramid.request import Request
from pyramid.security import NO_PERMISSION_REQUIRED, forget, remember
from pyramid.view import (
    exception_view_config,
    forbidden_view_config,
    notfound_view_config,
    view_config,
)
from sqlalchemy import func, select

from demo import sample, uploads
from demo.jobs import ImportResults, RunMarathon, import_results, run_marathon
from demo.models import Result
from demo.security import USERS
from pyramid_jobstate import JobState, StoreUnavailable

#: How fast a marathon may be run, in miles a second.
SPEEDS = {"Stroll": 0.25, "Jog": 1.0, "Sprint": 4.0, "Flat out": None}

#: How fast a file may be imported, in rows a second.
PACES = {"Easy to watch": 2_000.0, "Flat out": None}

MAX_MILES = 100

#: How many jobs are listed, and how many of its own a browser session remembers.
MAX_JOBS = 20


@view_config(route_name="home", renderer="templates/home.jinja2")
def home(request: Request) -> dict[str, Any]:
    """The forms, and the jobs of this browser session, or to an admin of everyone."""
    is_admin = request.has_permission("list_jobs")
    if is_admin:
        jobs = request.job_states.list(limit=MAX_JOBS).items
    else:
        jobs = request.job_states.find_many(request.session.get("jobs", []))
    return {
        "heading": "Everyone’s jobs" if is_admin else "Your jobs",
        "jobs": [
            as_json(request, job)
            for job in jobs
            if job and request.has_permission("view_job", job)
        ],
        "speeds": list(SPEEDS),
        "paces": list(PACES),
        "max_bytes": uploads.MAX_BYTES,
        "max_miles": MAX_MILES,
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
    return started(
        request,
        request.job_states.send_immediately(run_marathon, miles, miles_a_second),
    )


@view_config(route_name="imports", request_method="POST")
def start_import(request: Request) -> HTTPSeeOther:
    file = request.POST.get("file")
    if not hasattr(file, "filename"):
        return complain(request, "import", "Choose a file first.")
    return send_import(request, file.file, file.filename)


@view_config(route_name="sample", request_method="POST")
def start_sample_import(request: Request) -> HTTPSeeOther:
    return send_import(request, io.BytesIO(sample.make()), "sample.csv")


def send_import(request: Request, file: Any, filename: str) -> HTTPSeeOther:
    """Keep the file, and send the job that is to read it."""
    try:
        rows_a_second = PACES[request.POST["pace"]]
    except KeyError:
        raise HTTPBadRequest from None
    try:
        upload = uploads.save(file)
    except uploads.TooLarge:
        limit = f"{uploads.MAX_BYTES // 1024 // 1024} MB"
        return complain(request, "import", f"The file is larger than {limit}.")
    return started(
        request,
        request.job_states.send_immediately(
            import_results, upload, filename[:100], rows_a_second
        ),
    )


def started(request: Request, job_state: JobState) -> HTTPSeeOther:
    """Remember a new job in the browser session, and go to its page."""
    jobs = request.session.get("jobs", [])
    request.session["jobs"] = [job_state.uuid, *jobs][:MAX_JOBS]
    return HTTPSeeOther(request.route_url("job", uuid=job_state.uuid))


def complain(request: Request, form: str, message: str) -> HTTPSeeOther:
    """Go back to a form, which shows the message."""
    request.session.flash(message, form)
    return HTTPSeeOther(request.route_url("home"))


def as_json(request: Request, job_state: JobState) -> dict[str, Any]:
    """Return a job as its page shows it before it has asked the server."""
    return {
        "uuid": job_state.uuid,
        "title": job_state.title,
        "is_finished": job_state.is_finished,
        "is_marathon": isinstance(job_state, RunMarathon),
        "owner": job_state.owner,
        "state": json.dumps(job_state.__json__(request)),
    }


# The route's factory and traversal make the JobState the context: no such job is no
# such page, and the permission is asked for of the job itself.
@view_config(
    route_name="job",
    context=RunMarathon,
    permission="view_job",
    renderer="templates/marathon.jinja2",
)
def marathon(context: RunMarathon, request: Request) -> dict[str, Any]:
    return {"job": as_json(request, context)}


@view_config(
    route_name="job",
    context=ImportResults,
    permission="view_job",
    renderer="templates/import.jinja2",
)
def results_import(context: ImportResults, request: Request) -> dict[str, Any]:
    mine = select(Result).where(Result.import_uuid == context.uuid)
    fastest = mine.order_by(Result.seconds, Result.bib).limit(5)
    return {
        "job": as_json(request, context),
        "fastest": request.dbsession.scalars(fastest).all(),
        "count": request.dbsession.scalar(
            select(func.count()).select_from(mine.subquery())
        ),
    }


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
    # A new session: nothing that was in it before may speak for the user.
    request.session.invalidate()
    return HTTPSeeOther(wanted, headers=remember(request, user.userid))


@view_config(
    route_name="logout", request_method="POST", permission=NO_PERMISSION_REQUIRED
)
def logout(request: Request) -> HTTPSeeOther:
    request.session.invalidate()
    return HTTPSeeOther(request.route_url("login"), headers=forget(request))


@forbidden_view_config(renderer="templates/problem.jinja2")
def forbidden(request: Request) -> Any:
    if request.identity is None:
        if request.method == "GET":
            request.session["wanted"] = request.url
        return HTTPSeeOther(request.route_url("login"))
    request.response.status_int = 403
    return {
        "heading": "This one is not yours",
        "text": "The job belongs to somebody else, so only they and an admin see it.",
    }


@notfound_view_config(renderer="templates/problem.jinja2")
def not_found(request: Request) -> dict[str, Any]:
    request.response.status_int = 404
    return {
        "heading": "Nothing here",
        "text": "There is no such page. A job’s page goes a day after its end.",
    }


@exception_view_config(StoreUnavailable, renderer="templates/problem.jinja2")
def unavailable(request: Request) -> dict[str, Any]:
    request.response.status_int = 503
    return {
        "heading": "Out of breath",
        "text": "The jobs cannot be seen at the moment. Try again in a little while.",
    }


def includeme(config: Configurator) -> None:
    config.add_static_view("static", "demo:static")
    config.add_route("home", "/")
    config.add_route("login", "/login")
    config.add_route("logout", "/logout")
    config.add_route("marathons", "/marathons")
    config.add_route("imports", "/imports")
    config.add_route("sample", "/imports/sample")
    config.add_route(
        "job",
        "/jobs/{uuid}",
        factory=lambda request: request.job_states,
        traverse="/{uuid}",
    )
    config.scan(".views")
