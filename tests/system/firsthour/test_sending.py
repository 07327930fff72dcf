"""Jobs are sent from wherever there is a request: a shell, a script, another job."""

import pytest

from pyramid_jobstate import JobStore
from tests.support import wait_for
from tests.system.firsthour.conftest import MakeProject
from tests.system.firsthour.projects import PJOBS
from tests.system.firsthour.recipe import apply, quick_start

#: An actor that sends another job, beside that of the recipe.
TWICE = """

@dramatiq.actor
def run_twice(miles, *, request, job_state):
    for _ in range(2):
        request.job_states.send(run_marathon, miles)
"""


def test_jobs_are_sent_from_anywhere(
    make_project: MakeProject, store: JobStore, redis_url: str
) -> None:
    """The project's pshell sends a job when its transaction commits, and so does its
    console script, with one more line, unless it fails. An actor with a request sends
    jobs, which belong to the owner of its own job.
    """
    project = make_project("sqlalchemy")
    apply(project, quick_start(project.name))
    project.edit("development.ini", "redis://localhost:6379/0", redis_url)
    project.edit("tutorial/jobs.py", "time.sleep(1)", "time.sleep(0.01)")
    path = project.folder / "tutorial/jobs.py"
    path.write_text(path.read_text() + TWICE)

    def shell(*lines: str) -> None:
        """Type lines into the project's pshell."""
        pshell = ("-m", "pyramid.scripts.pshell", "development.ini")
        project.python(*pshell, stdin="\n".join(lines) + "\n")

    def sent() -> list[str]:
        """Return the actors of all jobs."""
        return sorted(job.actor for job in store.list().items)

    script = "tutorial/scripts/initialize_db.py"
    project.edit(script, "from .. import models", "from .. import jobs, models")
    sends = "            env['request'].job_states.send(jobs.run_marathon, 3)\n"
    writes = "            setup_models(dbsession)\n"
    project.edit(script, writes, sends + writes)
    project.initialize("development.ini")
    assert sent() == ["run_marathon"]
    # The row that it writes is in the database already.
    with pytest.raises(AssertionError, match="IntegrityError"):
        project.run_script("development.ini")
    assert sent() == ["run_marathon"]

    lines = (
        "from tutorial.jobs import run_twice",
        "request.job_states.send_with_options(run_twice, (3,), owner='alice')",
    )
    shell(*lines)
    assert len(sent()) == 1
    shell(*lines, "tm.commit()")
    assert sent() == ["run_marathon", "run_twice"]

    with project.running(*PJOBS, "development.ini", "work", "--processes", "1"):
        wait_for(lambda: [x.status for x in store.list().items] == ["success"] * 4)
    owners = [x.owner for x in store.list().items if x.actor == "run_marathon"]
    assert owners.count("alice") == 2 and len(owners) == 3
    assert [row[1] for row in project.rows()].count(3) == 3
