"""The demo, started as its users start it and driven by a real browser."""

import contextlib
import os
import re
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import FilePayload, Page, expect

from pyramid_jobstate import JobStore
from pyramid_jobstate.embedded import EmbeddedServer
from pyramid_jobstate.testing import put_job
from tests.accessible import complaints
from tests.jobs import RunMarathon
from tests.support import (
    ROOT,
    descendants,
    frozen,
    is_alive,
    unmeasured,
    wait_for,
)

#: The seconds that the demo may take to start, and a job to become visible.
PATIENCE = 20.0


class Demo:
    """A running `python -m demo`."""

    def __init__(self, data: Path, **variables: str) -> None:
        inherited = unmeasured()
        environ = {k: v for k, v in inherited.items() if not k.startswith("JOBSTATE_")}
        self.data = data
        self.process = subprocess.Popen(
            [sys.executable, "-m", "demo", "--port", "0"],
            cwd=ROOT,
            env={
                **environ,
                "JOBSTATE_DEMO_DATA": str(data),
                # The milliseconds between the worker's checks for a shutdown.
                "dramatiq_worker_timeout": "100",
                **variables,
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        lines = iter(self.process.stdout.readline, "")
        self.url = next(filter(None, (re.search(r"http://\S+", s) for s in lines)))[0]
        self.port = int(self.url.rpartition(":")[2])

    def processes(self) -> dict[int, str]:
        return descendants(self.process.pid)

    def end(self) -> tuple[int, str]:
        """Wait for the end, and return the exit code and the errors printed."""
        _, errors = self.process.communicate(timeout=PATIENCE)
        return self.process.returncode, errors

    def close(self) -> None:
        self.process.terminate()
        self.end()


@pytest.fixture(scope="module")
def demo_server() -> Iterator[EmbeddedServer]:
    """The server of the demo that most tests share."""
    with EmbeddedServer() as server:
        yield server


@pytest.fixture(scope="module")
def demo(
    demo_server: EmbeddedServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Demo]:
    data = tmp_path_factory.mktemp("demo")
    variables = {
        "JOBSTATE_REDIS_URL": demo_server.url,
        # Fast, but slow enough to be seen at work.
        "JOBSTATE_DEMO_ROWS_A_SECOND": "6000",
    }
    with contextlib.closing(Demo(data, **variables)) as demo:
        yield demo


@pytest.fixture
def demo_store(demo_server: EmbeddedServer) -> JobStore:
    """The shared demo's store, emptied."""
    store = JobStore(demo_server.url)
    store.client.flushall()
    return store


@pytest.fixture
def own_demo(tmp_path: Path) -> Iterator[Demo]:
    """A demo for one test to end, with its worker running."""
    with contextlib.closing(Demo(tmp_path)) as demo:
        wait_for(lambda: len(demo.processes()) >= 5, PATIENCE)
        yield demo


def query(demo: Demo, statement: str) -> tuple[object, ...]:
    """Return the only row that a statement finds in the demo's database."""
    with contextlib.closing(sqlite3.connect(demo.data / "demo.sqlite")) as database:
        (row,) = database.execute(statement)
        return tuple(row)


def log_in(page: Page, demo: Demo, name: str) -> None:
    page.context.clear_cookies()
    page.goto(demo.url)
    page.get_by_role("button", name=name).click()


def number(page: Page, selector: str) -> float:
    text = page.locator(selector).text_content() or ""
    return float(text.replace(",", "") or 0)


def expect_status(page: Page, status: str) -> None:
    """Expect that the page says what has become of its job, in a word or more."""
    shown = page.locator("#job [part=status]")
    expect(shown).to_have_text(re.compile(f"^{status}"), timeout=PATIENCE * 1000)


def start_marathon(page: Page, speed: str) -> str:
    """Start a marathon, and return the URL of its page."""
    page.get_by_text(speed).first.click()
    page.get_by_role("button", name="Start running").click()
    expect(page.locator("#job")).to_be_visible()
    return page.url


def start_batch(page: Page, demo: Demo, speed: str) -> str:
    """Start the import of 120 files, and return the URL of its page."""
    page.goto(demo.url)
    button = page.get_by_role("button", name="Import 120 files")
    page.locator("form", has=button).get_by_text(speed).click()
    button.click()
    expect(page.locator("#job [part=title]")).to_have_text("120 files")
    return page.url


def import_file(page: Page, content: bytes) -> None:
    file: FilePayload = {"name": "<b>.csv", "mimeType": "text/csv", "buffer": content}
    page.get_by_label("File with").set_input_files(file)
    page.get_by_role("button", name="Import file").click()


def test_marathon_is_watched_to_its_end(
    demo: Demo, page: Page, console_errors: list[str]
) -> None:
    """The miles of a running marathon rise on its page until it ends, or is
    cancelled.
    """
    log_in(page, demo, "Alice")
    start_marathon(page, "Stroll")
    expect_status(page, "Running")
    first = wait_for(lambda: number(page, "[data-miles]"), PATIENCE)
    wait_for(lambda: number(page, "[data-miles]") > first, PATIENCE)
    assert page.title().startswith("Run of 26.2 miles")
    expect(page.locator("[data-live]")).to_contain_text("the server")
    page.get_by_role("button", name="Cancel").click()
    expect_status(page, "Cancelled")

    page.goto(demo.url)
    page.get_by_label("Miles", exact=True).fill("13.1")
    start_marathon(page, "Flat out")
    expect_status(page, "Done")
    expect(page.locator("[data-live]")).to_be_hidden()
    assert number(page, "[data-miles]") == 13.1
    bar = page.get_by_role("progressbar", name="13.1 miles")
    expect(bar).to_have_attribute("aria-valuenow", "100")
    expect(page.get_by_role("list", name="Splits")).to_contain_text("Mile 13 at")
    assert console_errors == []


def test_files_are_imported(demo: Demo, page: Page, console_errors: list[str]) -> None:
    """The page counts the rows of a sample while they are imported into the database. A
    file that cannot be imported fails at once, with a clear reason.
    """
    log_in(page, demo, "Alice")
    page.get_by_role("button", name="Import a sample").click()
    expect_status(page, "Running")
    written = "[data-metric=rows_written]"
    first = wait_for(lambda: number(page, written), PATIENCE)
    assert first < 19_000
    wait_for(lambda: number(page, written) > first, PATIENCE)
    expect(page.get_by_role("table")).to_be_visible(timeout=PATIENCE * 1000)
    expect_status(page, "Done")
    assert number(page, written) + number(page, "[data-metric=rows_rejected]") == 20_000
    assert (
        number(page, written)
        == query(
            demo,
            "SELECT count(*) FROM results JOIN uploads ON uploads.id = upload_id "
            "WHERE batch IS NULL AND owner = 'alice' AND filename = 'sample.csv'",
        )[0]
    )
    for content, message in (
        (b"\x89PNG\r\n\x1a\n\xff\xff", "The file is not text in UTF-8."),
        (b"bib,name\n1,Ruth\n", "Missing: country, finish."),
    ):
        page.goto(demo.url)
        import_file(page, content)
        expect_status(page, "Failed")
        expect(page.locator("#job [part=notice]")).to_contain_text(message)
        assert "Traceback" not in page.content()
    assert console_errors == []


def test_batch_fails_in_part_and_runs_again(
    demo: Demo, demo_store: JobStore, page: Page, console_errors: list[str]
) -> None:
    """The page counts the files, names those that failed, and runs them again until all
    are in the database. The list of jobs has one line for all of them.
    """
    log_in(page, demo, "Alice")
    batch = start_batch(page, demo, "Easy to watch")
    expect_status(page, "Running")
    first = wait_for(lambda: number(page, "[data-files]"), PATIENCE)
    assert first < 118

    failed = page.get_by_role("region", name="2 failed files")
    expect(failed).to_be_visible(timeout=PATIENCE * 1000)
    expect_status(page, "Failed")
    figure = page.locator(".figure")
    expect(figure).to_have_text("118 of 120 files in the database")
    oslo = failed.get_by_role("listitem").filter(has_text="oslo.csv")
    expect(oslo).to_contain_text("The file ends in the middle of line 41.")
    failed.get_by_role("link", name="oslo.csv").click()
    expect_status(page, "Failed")
    page.get_by_role("link", name="All files").click()

    page.get_by_role("button", name="Run the 2 failed files again").click()
    expect(failed).to_be_hidden()
    expect(page.get_by_role("table")).to_be_visible(timeout=PATIENCE * 1000)
    expect_status(page, "Done")
    expect(figure).to_have_text("120 of 120 files in the database")
    uuid = batch.rpartition("/")[2]
    files, rows = query(
        demo,
        "SELECT count(DISTINCT upload_id), count(*) FROM results "
        f"JOIN uploads ON uploads.id = upload_id WHERE batch = '{uuid}'",
    )
    assert files == 120
    caption = f"The fastest of {rows:,} in the database"
    expect(page.locator("caption")).to_have_text(caption)
    page.get_by_role("link", name="Your jobs").click()
    expect(page.locator("li [part=title]")).to_have_text(["Import of 120 files"])
    assert console_errors == []


def test_job_is_seen_by_its_owner_and_the_admin_only(demo: Demo, page: Page) -> None:
    """Another user gets a page with status 403, and JSON from the job's own URL. A
    visitor who logs in gets where they wanted. No form works without its token.
    """
    log_in(page, demo, "Alice")
    marathon = {"miles": "5", "speed": "Flat out"}
    assert page.request.post(f"{demo.url}/marathons", form=marathon).status == 400
    job = start_marathon(page, "Flat out")
    expect_status(page, "Done")
    state = f"{demo.url}/job_state/{job.rpartition('/')[2]}"
    assert page.request.get(state).status == 200
    page.get_by_role("button", name="Log out").click()
    page.goto(job)
    assert page.url.endswith("/login")
    page.get_by_role("button", name="Alice").click()
    expect(page).to_have_url(job)

    log_in(page, demo, "Bob")
    expect(page.get_by_text("None yet.")).to_be_visible()
    expect(page.get_by_role("link", name="All jobs")).to_have_count(0)
    answer = page.goto(job)
    assert answer is not None
    assert answer.status == 403
    expect(page.get_by_role("heading")).to_have_text("This one is not yours")
    refusal = page.request.get(state)
    assert (refusal.status, refusal.json().keys()) == (403, {"error"})

    log_in(page, demo, "Grace")
    page.get_by_role("link", name="All jobs").click()
    page.locator(f"tbody a[href^='{state}']").click()
    expect(page.get_by_text("Owner: alice")).to_be_visible()
    page.goto(job)
    expect(page.get_by_text("Started by alice")).to_be_visible()


def test_store_that_is_away_is_explained(
    demo: Demo, demo_server: EmbeddedServer, demo_store: JobStore, page: Page
) -> None:
    """While the store is away, nothing is started or kept for later; the list shows an
    error, too, and can be reloaded.
    """
    log_in(page, demo, "Alice")
    uploads = query(demo, "SELECT count(*) FROM uploads")
    with frozen(demo_server):
        with page.expect_navigation() as navigation:
            page.get_by_role("button", name="Import a sample").click()
        assert navigation.value.status == 503
        expect(page.get_by_role("heading")).to_have_text("Out of breath")
        page.get_by_role("link", name="Go to your own jobs").click()
        alert = page.get_by_text("Your jobs cannot be shown at the moment.")
        expect(alert).to_be_visible()
    page.get_by_role("button", name="Try again").click()
    expect(page.get_by_text("None yet.")).to_be_visible()
    assert query(demo, "SELECT count(*) FROM uploads") == uploads


def test_pages_are_accessible(
    demo: Demo, demo_store: JobStore, page: Page, node_modules: Path
) -> None:
    """axe-core finds nothing to complain about on any page, light or dark. They have
    the demo's content security policy, and a missing one a way out.
    """
    # A colour in transition belongs to neither scheme.
    page.emulate_media(reduced_motion="reduce")
    found = {}

    def check(path: str) -> None:
        page.goto(demo.url + path)
        waiting = "#your-jobs + ol:empty, [state=loading], job-state:not([state])"
        expect(page.locator(waiting)).to_have_count(0)
        for scheme, rule, html in complaints(page, node_modules):
            found[path, scheme, rule] = html

    check("/login")
    policy = page.request.get(f"{demo.url}/login").headers["content-security-policy"]
    assert "default-src 'self'; script-src 'self'; style-src 'self';" in policy
    log_in(page, demo, "Alice")
    batch = start_batch(page, demo, "Flat out")
    button = page.get_by_role("button", name="Run the 2 failed files again")
    expect(button).to_be_visible(timeout=PATIENCE * 1000)
    made = {"owner": "alice", "params": {"miles": 26.2}}
    job = put_job(demo_store, RunMarathon, "stalled", **made).uuid
    for path in "/", batch.removeprefix(demo.url), f"/jobs/{job}", "/nope":
        check(path)
    page.get_by_role("link", name="Go to your own jobs").click()
    log_in(page, demo, "Grace")
    for path in "/job_state?all=1", f"/job_state/{job}":
        check(path)
    assert found == {}


def test_demo_ends_with_each_of_its_parts(own_demo: Demo) -> None:
    """A part that dies ends the demo, which names the part and fails."""
    processes = own_demo.processes()
    command = r"\S+ -m demo\.worker"
    part = next(pid for pid, line in processes.items() if re.match(command, line))
    os.kill(part, signal.SIGKILL)
    code, errors = own_demo.end()
    assert code == 1
    assert "The worker has ended" in errors
    wait_for(lambda: not any(map(is_alive, processes)))


def test_killed_demo_leaves_no_process_behind(own_demo: Demo) -> None:
    """Not even a SIGKILL orphans the worker or the Redis server."""
    pids = list(own_demo.processes())
    own_demo.process.kill()
    wait_for(lambda: not any(map(is_alive, pids)), PATIENCE)


def test_demo_starts_and_ends_as_it_should(
    demo: Demo, redis_url: str, tmp_path: Path
) -> None:
    """The .ini file makes the application, as `pserve` does. A port that is taken is
    named. A SIGTERM ends all processes with exit code 0.
    """
    taken = subprocess.run(
        [sys.executable, "-m", "demo", "--port", str(demo.port)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert taken.returncode == 1
    assert f"port {demo.port}" in taken.stderr
    program = (
        "from pyramid.paster import get_app, setup_logging;"
        "setup_logging('demo/development.ini');"
        "print(type(get_app('demo/development.ini')).__name__)"
    )
    made = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env={
            **unmeasured(),
            "JOBSTATE_REDIS_URL": redis_url,
            "JOBSTATE_DEMO_DATA": str(tmp_path),
        },
        check=True,
        capture_output=True,
        text=True,
    )
    assert made.stdout == "Router\n"
    own = Demo(tmp_path, JOBSTATE_REDIS_URL=redis_url)
    pids = list(own.processes())
    own.process.terminate()
    assert own.end()[0] == 0
    wait_for(lambda: not any(map(is_alive, pids)))
