"""Owners and their jobs in the applications of Pyramid's tutorials."""

import pytest

from tests.firsthour.conftest import MakeProject
from tests.firsthour.projects import Project
from tests.firsthour.recipe import Block, apply, quick_start
from tests.firsthour.test_projects import OWN_TESTS

#: Two users of each application. The names are also their passwords.
USERS = {"wiki2": ("basic", "editor"), "wiki": ("viewer", "editor")}

#: Visits the application as its users do.
VISITS = """
import sys
from pyramid.paster import get_app
from webtest import TestApp

owner_name, other_name = sys.argv[1:]
app = get_app("testing.ini")


def visit(name=None):
    visitor = TestApp(app)
    if name:
        forms = visitor.get("/login").forms.values()
        [form] = [form for form in forms if "login" in form.fields]
        form["login"] = form["password"] = name
        # The button has a name in one of the applications.
        button = "form.submitted" if "form.submitted" in form.fields else None
        form.submit(button).follow()
    return visitor


def press(visitor):
    forms = visitor.get("/FrontPage").forms.values()
    [form] = [form for form in forms if form.action == "run"]
    page = form.submit().html
    element = page.find("job-state")
    headers = {"X-Requested-With": "XMLHttpRequest"}
    if token := element.get("csrf-token"):
        headers["X-CSRF-Token"] = token
    return element["src"], headers


def listed(visitor):
    return [item["job"]["url"] for item in visitor.get("/job_state").json["items"]]


owner, other, nobody = visit(owner_name), visit(other_name), visit()
url, headers = press(owner)
others_url, others_headers = press(other)

assert owner.get(url).json["job"]["cancellable"] is True
assert listed(owner) == [url]
assert listed(other) == [others_url]
"""

REFUSALS = """
for visitor in (other, nobody):
    assert visitor.get(url, status=403).content_type == "application/json"
batch = other.get("/job_state", {"uuid": url.split("/")[-2]}).json["jobs"]
assert list(batch.values()) == [None]
other.post(url + "cancel", headers=others_headers, status=403)
assert owner.get(url).json["job"]["status"] == "queued"

cancelled = owner.post(url + "cancel", headers=headers, status=202).json
assert cancelled["job"]["status"] == "cancelled"
"""

#: For wiki2 alone: its policy checks tokens.
TOKENS = """
del headers["X-CSRF-Token"]
owner.post(url + "cancel", headers=headers, status=400)
"""

#: The broker of the application, for as long as the ini cannot name it.
BROKER = """
import os
from dramatiq.brokers.redis import RedisBroker
from pyramid_jobstate import JobStateMiddleware

broker = RedisBroker(url=os.environ.get("REDIS_URL", "redis://localhost:9/0"))
broker.add_middleware(JobStateMiddleware())
dramatiq.set_broker(broker)
"""


def without_features(block: Block) -> Block:
    """Return a block without what the package cannot do yet."""
    imported = "import dramatiq"
    return block.without("jobstate.broker", "dbsession").replaced(
        {imported: imported + BROKER, "*, request, ": "*, "}
    )


@pytest.fixture(params=USERS)
def wiki(request: pytest.FixtureRequest, make_project: MakeProject) -> Project:
    """The application of each tutorial, with what the README adds to it."""
    project = make_project(request.param)
    recipe = [x for x in quick_start(request.param) if "dbsession" not in x.place]
    apply(project, map(without_features, recipe))
    return project


def test_wikis_pass_their_own_tests(wiki: Project) -> None:
    """The applications still pass their own tests, unmodified."""
    assert wiki.run_tests() == OWN_TESTS[wiki.name]


def test_owners_alone_see_and_cancel_their_jobs(wiki: Project, redis_url: str) -> None:
    """Users who log in by the application's own form see and cancel the job that they
    sent, and no one else does.
    """
    if wiki.name == "wiki2":
        wiki.python("-m", "alembic", "-c", "testing.ini", "upgrade", "head")
        wiki.script("initialize_tutorial_db", "testing.ini")
    program = VISITS + REFUSALS + (TOKENS if wiki.name == "wiki2" else "")

    wiki.python("-c", program, *USERS[wiki.name], variables={"REDIS_URL": redis_url})
