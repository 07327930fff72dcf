"""The first hour of a newcomer: the README's quick start in a generated project."""

import contextlib
import re
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Page, Route, expect

from tests.support import free_ports, listens
from tests.system.firsthour.conftest import MakeProject
from tests.system.firsthour.projects import OWN_TESTS, PJOBS, Project
from tests.system.firsthour.recipe import apply, blocks, commands, quick_start, section

#: The words for the ends of a job.
SUCCESS, CANCELLED = "Done", "Cancelled"

#: How the README starts a ZEO server.
ZEO = re.compile(r"``runzeo (.+?)``")

#: What the tutorial adds to the quick start.
REDIRECT, GO_ON = "Redirect after the POST", "Go on when the job ends"

#: Presses the button of the home page, and prints the address in the element.
PRESS = """
from pyramid.paster import get_app
from webtest import TestApp

app = TestApp(get_app("testing.ini"))
print(app.get("/").form.submit().html.find("job-state")["src"])
"""

#: The two projects that the README begins with.
BOTH = ["sqlalchemy", pytest.param("zodb", marks=pytest.mark.long)]


class Site:
    """A generated project after the recipe, started as the README says.

    Attributes:
      project: The project.
      url: The address of its home page.
    """

    def __init__(self, project: Project, url: str) -> None:
        self.project = project
        self.url = url

    def stored(self, uuid: str) -> int | None:
        """Return the miles that a job has stored in the database, or None."""
        if self.project.name == "sqlalchemy":
            return dict(self.project.rows()).get(uuid)
        ask = f"print('stored', root.get('{uuid}', {{}}).get('miles'))\n"
        pshell = ("-m", "pyramid.scripts.pshell", "development.ini")
        answer = re.search(r"stored (\w+)", self.project.python(*pshell, stdin=ask))
        assert answer
        return None if answer[1] == "None" else int(answer[1])


@contextlib.contextmanager
def zeo(project: Project) -> Iterator[None]:
    """Run the ZEO server of the README."""
    shown = ZEO.search(section("With ZODB and Chameleon"))
    assert shown
    (port,) = free_ports(1)
    arguments = shown[1].replace("9991", str(port)).split()
    project.edit("development.ini", "localhost:9991", f"localhost:{port}")
    with project.running("-m", "ZEO.runzeo", *arguments) as server:
        server.wait_until(lambda: listens(port))
        yield


@pytest.fixture
def project(request: pytest.FixtureRequest, make_project: MakeProject) -> Project:
    """A generated project, after the recipe."""
    project = make_project(request.param)
    apply(project, quick_start(project.name))
    return project


@pytest.fixture
def site(project: Project) -> Iterator[Site]:
    """The project, started with the README's command on free ports."""
    # The README's runner takes a second a mile, for people to watch.
    project.edit("tutorial/jobs.py", "time.sleep(1)", "time.sleep(0.2)")
    web, redis = free_ports(2)
    project.edit("development.ini", "localhost:6543", f"localhost:{web}")
    project.edit("development.ini", "localhost:6379", f"localhost:{redis}")
    [command] = [x for x in commands(section("Quick start")) if x.startswith("pjobs ")]
    with contextlib.ExitStack() as stack:
        if project.name == "zodb":
            stack.enter_context(zeo(project))
        else:
            project.initialize("development.ini")
        started = stack.enter_context(project.running(*PJOBS, *command.split()[1:]))
        started.wait_for_line("worker is ready")
        started.wait_until(lambda: listens(web))
        yield Site(project, f"http://localhost:{web}/")


def keep_local(route: Route) -> None:
    """Let the page reach this host alone: its style sheets are on a CDN."""
    if urlsplit(route.request.url).hostname == "localhost":
        route.continue_()
    else:
        route.abort()


def run_a_marathon(page: Page) -> str:
    """Press the button, wait until the bar moves, and return the URL of the job."""
    page.get_by_role("button", name="Run a marathon").click()
    bar = page.get_by_role("progressbar", name="Run marathon")
    expect(bar).to_have_attribute("aria-valuenow", re.compile("[1-9]"))
    first = bar.get_attribute("aria-valuenow")
    expect(bar).not_to_have_attribute("aria-valuenow", first or "")
    url = page.locator("job-state").get_attribute("src")
    assert url
    return url


@pytest.mark.parametrize(
    "project",
    [*BOTH, "plain", pytest.param("wiki2", marks=pytest.mark.long)],
    indirect=True,
)
def test_projects_pass_their_tests_after_the_recipe(project):
    """After the recipe, the projects pass their own tests and those of the README."""
    tests = OWN_TESTS[project.name]
    if project.name == "sqlalchemy":
        for title in "Test your application", REDIRECT:
            apply(project, blocks(section(title)))
            tests += 3
    assert project.run_tests() == tests


@pytest.mark.parametrize("project", BOTH, indirect=True)
def test_recipe_leads_to_a_live_bar(site, page):
    """After the recipe, one command starts all that a page needs to show the progress
    of a job, which its sender alone sees and can cancel. What a job stores is in the
    database once it is a success, and only then.
    """
    page.route("**/*", keep_local)
    page.goto(site.url)
    status = page.locator("job-state [part=status]")

    done = run_a_marathon(page)
    assert page.context.browser is not None
    stranger = page.context.browser.new_context()
    assert stranger.request.get(done).status == 403
    stranger.close()
    expect(status).to_have_text(SUCCESS)
    assert site.stored(uuid_in(done)) == 26

    cancelled = run_a_marathon(page)
    page.get_by_role("button", name="Cancel").click()
    expect(status).to_have_text(CANCELLED)
    assert site.stored(uuid_in(cancelled)) is None


@pytest.mark.parametrize("project", ["sqlalchemy"], indirect=True)
def test_page_of_a_job_can_be_reloaded_and_leads_on(project, page, request):
    """After the redirect, a reload shows the same job. When that succeeds the page goes
    on, once it is visible, and back leads past the page of the job.
    """
    for title in REDIRECT, GO_ON:
        apply(project, blocks(section(title)))
    home = request.getfixturevalue("site").url
    page.route("**/*", keep_local)
    page.goto(home)
    src = run_a_marathon(page)
    assert uuid_in(page.url) == uuid_in(src)
    page.reload()
    expect(page.locator("job-state")).to_have_attribute("src", src)
    page.wait_for_url(home)
    assert len(project.rows()) == 2, "The project begins with a row."
    page.go_back()
    assert page.url == home

    src = run_a_marathon(page)
    hide = "Object.defineProperty(document, 'hidden', { value: true, writable: true })"
    tell = "new CustomEvent('job-state:success', { bubbles: true })"
    page.evaluate(f"{hide}; document.querySelector('job-state').dispatchEvent({tell})")
    page.evaluate("fetch('/').then(() => null)")  # fails if the page is left meanwhile
    assert uuid_in(page.url) == uuid_in(src)
    show = (
        "document.hidden = false; document.dispatchEvent(new Event('visibilitychange'))"
    )
    page.evaluate(show)
    page.wait_for_url(home)


@pytest.mark.parametrize(
    ("name", "recipe", "edit"),
    [
        ("sqlalchemy", "mako", None),
        ("plain", "plain", None),
        ("plain", "plain", ("job_states.send(", "job_states.send_immediately(")),
    ],
)
def test_other_projects_send(make_project, store, redis_url, name, recipe, edit):
    """After the lines for Mako, and for a project without a database, the button sends
    a job and shows its element. A job that is sent immediately needs no pyramid_tm.
    """
    project = make_project(name)
    apply(project, quick_start(recipe))
    if name == "sqlalchemy":
        project.initialize("testing.ini")
    project.edit("testing.ini", "broker = stub", f"broker = {redis_url}")
    if edit:
        project.edit("tutorial/views/default.py", *edit)
        project.edit("tutorial/__init__.py", 'config.include("pyramid_tm")', "")
    src = project.python("-c", PRESS).strip()
    (job_state,) = store.list().items
    assert (uuid_in(src), job_state.status) == (job_state.uuid, "queued")


def test_shell_sends_when_it_commits(make_project, store, redis_url):
    """The project's pshell sends a job with the lines of the documentation."""
    project = make_project("sqlalchemy")
    apply(project, quick_start(project.name))
    project.edit("development.ini", "redis://localhost:6379/0", redis_url)
    project.initialize("development.ini")
    text = section("From a shell, a script or a job").replace("myapp", "tutorial")
    lines = re.findall("^  >>> (.+)$", text, re.MULTILINE)
    for typed, count in (lines[:-1], 0), (lines, 1):
        pshell = ("-m", "pyramid.scripts.pshell", "development.ini")
        project.python(*pshell, stdin="\n".join(typed) + "\n")
        assert [job.actor for job in store.list().items] == ["run_marathon"] * count


def uuid_in(url: str) -> str:
    return url.rstrip("/").rpartition("/")[2]
