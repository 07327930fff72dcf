"""Owners and their jobs in the application of a Pyramid tutorial."""

from tests.system.firsthour.recipe import apply, quick_start

#: Visits the application as its users do, whose names are also their passwords.
VISITS = """
from pyramid.paster import get_app
from webtest import TestApp

app = get_app("testing.ini")


def visit(name=None):
    visitor = TestApp(app)
    if name:
        forms = visitor.get("/login").forms.values()
        [form] = [form for form in forms if "login" in form.fields]
        form["login"] = form["password"] = name
        form.submit().follow()
    return visitor


def submit(visitor):
    forms = visitor.get("/FrontPage").forms.values()
    [form] = [form for form in forms if form.action == "http://localhost/run"]
    return form.submit()


def press(visitor):
    page = submit(visitor).html
    element = page.find("job-state")
    headers = {"X-Requested-With": "XMLHttpRequest"}
    headers["X-CSRF-Token"] = element["csrf-token"]
    return element["src"], headers


owner, other, nobody = visit("basic"), visit("editor"), visit()
assert "/login" in submit(nobody).location
url, headers = press(owner)
_, other_headers = press(other)

assert owner.get(url).json["job"]["cancellable"] is True
for visitor in (other, nobody):
    visitor.get(url, status=403)
other.post(url + "cancel", headers=other_headers, status=403)
cancelled = owner.post(url + "cancel", headers=headers, status=202).json
assert cancelled["job"]["status"] == "cancelled"
del headers["X-CSRF-Token"]
owner.post(url + "cancel", headers=headers, status=400)
"""


def test_owners_alone_see_and_cancel_their_jobs(make_project, redis_url):
    """Users who log in by the application's form see and cancel only their own jobs.
    Others send none.
    """
    project = make_project("wiki2")
    apply(project, quick_start(project.name))
    project.initialize("testing.ini")
    project.edit("testing.ini", "broker = stub", f"broker = {redis_url}")
    project.python("-c", VISITS)
