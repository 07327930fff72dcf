"""Jobs are sent from wherever there is a request: a shell, a script, another job."""

import pytest

from pyramid_jobstate import JobState, JobStore
from tests.support import wait_for
from tests.system.firsthour.conftest import MakeProject
from tests.system.firsthour.projects import PJOBS, Project
from tests.system.firsthour.recipe import apply, quick_start

#: An actor that sends another job, beside that of the recipe.
TWICE = """

@dramatiq.actor
def run_twice(miles, *, request, job_state):
    for _ in range(2):
        request.job_states.send(run_marathon, miles)
"""


@pytest.fixture
def project(make_project: MakeProject, redis_url: str) -> Project:
    """The generated project, after the recipe, with an empty database."""
    project = make_project("sqlalchemy")
    apply(project, quick_start(project.name))
    project.edit("development.ini", "redis://localhost:6379/0", redis_url)
    project.edit("tutorial/jobs.py", "time.sleep(1)", "time.sleep(0.01)")
    project.migrate("development.ini")
    return project


def jobs(store: JobStore) -> list[JobState]:
    return list(store.list().items)


def shell(project: Project, *lines: str) -> str:
    """Type lines into the project's pshell, and return what it prints."""
    typed = "\n".join(lines) + "\n"
    pshell = ("-m", "pyramid.scripts.pshell", "development.ini")
    return project.python(*pshell, stdin=typed)


def test_shell_sends(project: Project, store: JobStore) -> None:
    """The project's pshell begins a transaction in its setup, and sends a job when that
    commits.
    """
    lines = (
        "from tutorial.jobs import run_marathon",
        "job_state = request.job_states.send(run_marathon, 3)",
        "print('sent', job_state.uuid)",
    )
    shell(project, *lines)
    assert jobs(store) == []

    printed = shell(project, *lines, "tm.commit()")

    [job_state] = jobs(store)
    assert (job_state.actor, job_state.status) == ("run_marathon", "queued")
    assert f"sent {job_state.uuid}" in printed


def send_from_script(project: Project, place: str) -> None:
    """Have the project's console script send a job, and run it.

    Parameters:
      place: "before" or "after" what it writes to the database.

    Raises:
      AssertionError: The script fails.
    """
    path = "tutorial/scripts/initialize_db.py"
    project.edit(path, "from .. import models", "from .. import jobs, models")
    writes = "            setup_models(dbsession)\n"
    sends = "            env['request'].job_states.send(jobs.run_marathon, 3)\n"
    project.edit(path, writes, sends + writes if place == "before" else writes + sends)
    project.script("initialize_tutorial_db", "development.ini")


def test_script_sends(project: Project, store: JobStore) -> None:
    """With one more line, the project's own console script sends a job: it bootstraps
    and works in `with request.tm`.
    """
    send_from_script(project, "after")

    [job_state] = jobs(store)
    assert (job_state.actor, job_state.status) == ("run_marathon", "queued")


def test_script_that_fails_sends_nothing(project: Project, store: JobStore) -> None:
    """A script whose transaction fails sends nothing."""
    project.script("initialize_tutorial_db", "development.ini")

    # The row that it writes is in the database already.
    with pytest.raises(AssertionError, match="IntegrityError"):
        send_from_script(project, "before")

    assert jobs(store) == []


def test_job_sends(project: Project, store: JobStore) -> None:
    """An actor with a request sends jobs, which belong to the owner of its own job and
    write to the database in their turn.
    """
    path = project.folder / "tutorial/jobs.py"
    path.write_text(path.read_text() + TWICE)
    shell(
        project,
        "from tutorial.jobs import run_twice",
        "request.job_states.send_with_options(run_twice, (3,), owner='alice')",
        "tm.commit()",
    )

    with project.running(*PJOBS, "development.ini", "work", "--processes", "1"):
        wait_for(lambda: [x.status for x in jobs(store)] == ["success"] * 3)

    assert sorted((x.actor, x.owner) for x in jobs(store)) == [
        ("run_marathon", "alice"),
        ("run_marathon", "alice"),
        ("run_twice", "alice"),
    ]
    rows = [(x.uuid, 3) for x in jobs(store) if x.actor == "run_marathon"]
    assert sorted(project.rows()) == sorted(rows)
