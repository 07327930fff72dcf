"""The first hour of a newcomer: the README's quick start in a generated project."""

import contextlib
import re
from collections import Counter
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
    "project", [*BOTH, pytest.param("wiki2", marks=pytest.mark.long)], indirect=True
)
def test_projects_pass_their_tests_after_the_recipe(project: Project) -> None:
    """After the recipe, the projects pass their own tests and those of the README."""
    tests = OWN_TESTS[project.name]
    if project.name == "sqlalchemy":
        apply(project, blocks(section("Test your application")))
        tests += 3
    assert project.run_tests() == tests


def test_recipe_is_short() -> None:
    """The recipe from a new project to a live bar has no more lines than promised."""
    one, other = (
        Counter(line.strip() for block in quick_start(name) for line in block.lines)
        for name in ("sqlalchemy", "zodb")
    )
    del one[""], other[""]
    assert one.total() <= 24
    # Lines that are the same for both count once. The form is not: its address is an
    # expression of the template's language.
    assert (one | other).total() <= 29


@pytest.mark.parametrize("project", BOTH, indirect=True)
def test_recipe_leads_to_a_live_bar(site: Site, page: Page) -> None:
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


def uuid_in(url: str) -> str:
    return url.rstrip("/").rpartition("/")[2]
