"""Owners and their jobs in the applications of Pyramid's tutorials."""

import pytest

from tests.system.firsthour.conftest import MakeProject
from tests.system.firsthour.recipe import apply, quick_start

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


@pytest.mark.parametrize(
    "name", ["wiki2", pytest.param("wiki", marks=pytest.mark.long)]
)
def test_owners_alone_see_and_cancel_their_jobs(
    make_project: MakeProject, redis_url: str, name: str
) -> None:
    """Users who log in by the application's own form see and cancel the job that they
    sent, and no one else does.
    """
    project = make_project(name)
    apply(project, quick_start(name))
    if name == "wiki2":
        project.initialize("testing.ini")
    project.edit(
        "testing.ini", "jobstate.broker = stub", f"jobstate.broker = {redis_url}"
    )
    program = VISITS + REFUSALS + (TOKENS if name == "wiki2" else "")
    project.python("-c", program, *USERS[name])
