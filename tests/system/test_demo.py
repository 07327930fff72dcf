"""The demo, started as its users start it and driven by a real browser."""

import contextlib
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, FilePayload, Page, expect

from pyramid_jobstate import JobError, JobState, JobStore, Progress
from pyramid_jobstate.embedded import EmbeddedServer
from pyramid_jobstate.testing import put_job
from tests.accessible import complaints
from tests.jobs import RunMarathon
from tests.support import (
    ROOT,
    UUID,
    descendants,
    frozen,
    is_alive,
    unmeasured,
    wait_for,
)

#: The seconds that the demo may take to start, and a job to become visible.
PATIENCE = 20.0


#: The word for each status on a page.
STATUSES = {
    "queued": "Waiting",
    "working": "Running",
    "retrying": "Trying again",
    "stalled": "No sign of life",
    "cancelling": "Cancelling…",
    "success": "Done",
    "error": "Failed",
    "cancelled": "Cancelled",
}


class ImportResults(JobState):
    """The demo's kind, whose real class exists only in the demo's processes."""


class Demo:
    """A running `python -m demo`."""

    def __init__(self, data: Path, *arguments: str, **variables: str) -> None:
        inherited = unmeasured()
        environ = {k: v for k, v in inherited.items() if not k.startswith("JOBSTATE_")}
        self.data = data
        self.process = subprocess.Popen(
            [sys.executable, "-m", "demo", *arguments],
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
        """Return the command lines of the demo's living processes by process id."""
        return descendants(self.process.pid)

    def end(self) -> tuple[int, str]:
        """Wait for the end, and return the exit code and the errors printed."""
        _, errors = self.process.communicate(timeout=PATIENCE)
        return self.process.returncode, errors


@contextlib.contextmanager
def running(data: Path, **variables: str) -> Iterator[Demo]:
    demo = Demo(data, "--port", "0", **variables)
    try:
        yield demo
    finally:
        demo.process.terminate()
        demo.end()


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
    with running(data, **variables) as demo:
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
    with running(tmp_path) as demo:
        wait_for(lambda: len(demo.processes()) >= 5, PATIENCE)
        yield demo


def query(demo: Demo, statement: str) -> list[tuple[object, ...]]:
    """Return the result of a statement in the demo's database."""
    with contextlib.closing(sqlite3.connect(demo.data / "demo.sqlite")) as database:
        return database.execute(statement).fetchall()


def log_in(page: Page, demo: Demo, name: str) -> None:
    page.context.clear_cookies()
    page.goto(demo.url)
    page.get_by_role("button", name=name).click()


def number(page: Page, selector: str) -> float:
    text = page.locator(selector).text_content() or ""
    return float(text.replace(",", "") or 0)


def metric(page: Page, name: str) -> float:
    return number(page, f"[data-metric={name}]")


def expect_status(page: Page, status: str) -> None:
    """Expect that the page shows a status of its job, worded as in STATUSES."""
    shown = page.locator("#job [part=status]")
    expect(shown).to_have_text(worded(status), timeout=PATIENCE * 1000)


def worded(status: str) -> re.Pattern[str]:
    """Return how the text of a status begins. A queued job counts how long it waits."""
    return re.compile(f"^{status}")


def put_jobs(store: JobStore) -> dict[str, str]:
    """Put jobs of Alice's into every status, and return their uuids by status."""
    return {
        status: put_job(
            store,
            ImportResults if status in ("working", "error") else RunMarathon,
            status,
            owner="alice",
            params={"miles": 26.2, "filename": "<b>.csv"},
            progress=Progress(13, 26, "miles"),
            error=JobError("ValueError", "secret") if status == "error" else None,
            attempt=2 if status == "retrying" else 1,
            delay=60 if status == "retrying" else 0,
        ).uuid
        for status in STATUSES
    }


def test_marathon_is_watched_to_its_end(
    demo: Demo, page: Page, console_errors: list[str]
) -> None:
    """The miles of a running marathon rise on its page until it ends."""
    log_in(page, demo, "Alice")
    page.get_by_label("Miles", exact=True).fill("13.1")
    page.get_by_text("Sprint").click()
    page.get_by_role("button", name="Start running").click()
    expect_status(page, "Running")
    first = wait_for(lambda: number(page, "[data-miles]"), PATIENCE)
    wait_for(lambda: number(page, "[data-miles]") > first + 2, PATIENCE)
    assert page.title().startswith("Run of 13.1 miles")
    expect(page.locator("[data-live]")).to_contain_text("the server")
    expect_status(page, "Done")
    expect(page.locator("[data-live]")).to_be_hidden()
    assert number(page, "[data-miles]") == 13.1
    assert metric(page, "strides") == 23056
    bar = page.get_by_role("progressbar", name="13.1 miles")
    expect(bar).to_have_attribute("aria-valuenow", "100")
    expect(page.get_by_role("list", name="Splits")).to_contain_text("Mile 13 at")
    assert console_errors == []


def test_sample_is_imported(demo: Demo, page: Page, console_errors: list[str]) -> None:
    """The page counts the sample's rows while they are imported into the database."""
    log_in(page, demo, "Alice")
    page.get_by_role("button", name="Import a sample").click()
    expect_status(page, "Running")
    first = wait_for(lambda: metric(page, "rows_written"), PATIENCE)
    assert first < 19_000
    wait_for(lambda: metric(page, "rows_written") > first, PATIENCE)
    expect(page.get_by_role("table")).to_be_visible(timeout=PATIENCE * 1000)
    expect_status(page, "Done")
    written, rejected = metric(page, "rows_written"), metric(page, "rows_rejected")
    assert written + rejected == 20_000
    assert 200 < rejected < 600
    found = query(
        demo,
        "SELECT owner, filename, count(*) FROM results "
        "JOIN uploads ON uploads.id = upload_id WHERE batch IS NULL GROUP BY upload_id",
    )
    assert found == [("alice", "sample.csv", written)]
    assert console_errors == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x89PNG\r\n\x1a\n\xff\xff", "The file is not text in UTF-8."),
        (b"bib,name\n1,Ruth\n", "Missing: country, finish."),
        (b'bib,name,country,finish\n1,"Ru"th,KEN,2:20:20\n', "Line 2 of the file"),
        (b"", "Missing: bib, name, country, finish."),
    ],
)
def test_malformed_file_ends_in_a_clear_error(
    demo: Demo, page: Page, console_errors: list[str], content: bytes, message: str
) -> None:
    """A file that cannot be imported fails at once, with a clear reason."""
    log_in(page, demo, "Alice")
    file: FilePayload = {
        "name": "../<b>.csv",
        "mimeType": "text/csv",
        "buffer": content,
    }
    page.get_by_label("File with").set_input_files(file)
    page.get_by_role("button", name="Import file").click()
    expect_status(page, "Failed")
    expect(page.locator("#job [part=notice]")).to_contain_text(message)
    assert "Traceback" not in page.content()
    assert console_errors == []


def start_batch(page: Page, demo: Demo, speed: str) -> None:
    """Start the import of 120 files, and wait for its page."""
    page.goto(demo.url)
    button = page.get_by_role("button", name="Import 120 files")
    page.locator("form", has=button).get_by_text(speed).click()
    button.click()
    expect(page.locator("#job [part=title]")).to_have_text("120 files")


def test_batch_fails_in_part_and_runs_again(
    demo: Demo, demo_store: JobStore, page: Page, console_errors: list[str]
) -> None:
    """The page counts the files, names those that failed, and runs them again until all
    are in the database. The list of jobs has one line for all of them.
    """
    log_in(page, demo, "Alice")
    start_batch(page, demo, "Easy to watch")
    expect_status(page, "Running")
    first = wait_for(lambda: number(page, "[data-files]"), PATIENCE)
    assert first < 118
    assert page.title().startswith("Import of 120 files")

    failed = page.get_by_role("region", name="2 failed files")
    expect(failed).to_be_visible(timeout=PATIENCE * 1000)
    expect_status(page, "Failed")
    expect(page.locator("#job [part=details]")).to_contain_text("2 failed")
    figure = page.locator(".figure")
    expect(figure).to_have_text("118 of 120 files in the database")
    for filename, line in ("durham.csv", 58), ("oslo.csv", 41):
        expect(
            failed.get_by_role("listitem").filter(has_text=filename)
        ).to_contain_text(
            f"The file ends in the middle of line {line}. The timekeeper has sent it"
        )
    failed.get_by_role("link", name="oslo.csv").click()
    expect(page.locator("#job [part=title]")).to_have_text("oslo.csv")
    expect_status(page, "Failed")
    page.get_by_role("link", name="All files").click()

    page.get_by_role("button", name="Run the 2 failed files again").click()
    expect(failed).to_be_hidden()
    expect(page.get_by_role("table")).to_be_visible(timeout=PATIENCE * 1000)
    expect_status(page, "Done")
    expect(figure).to_have_text("120 of 120 files in the database")
    uuid = page.url.rpartition("/")[2]
    ((files, rows),) = query(
        demo,
        "SELECT count(DISTINCT upload_id), count(*) FROM results "
        f"JOIN uploads ON uploads.id = upload_id WHERE batch = '{uuid}'",
    )
    assert files == 120
    expect(page.locator("caption")).to_have_text(
        f"The fastest of {rows:,} in the database"
    )
    page.get_by_role("link", name="Your jobs").click()
    expect(page.locator("li")).to_have_count(1)
    expect(page.locator("li [part=title]")).to_have_text("Import of 120 files")
    assert console_errors == []


def test_batch_is_cancelled(demo: Demo, page: Page, console_errors: list[str]) -> None:
    """The files that wait for their turn are not imported."""
    log_in(page, demo, "Alice")
    start_batch(page, demo, "Easy to watch")
    expect_status(page, "Running")
    page.get_by_role("button", name="Cancel").click()
    expect_status(page, "Cancelled")
    expect(page.locator("#job [part=count-cancelled]")).to_be_visible()
    assert number(page, "[data-files]") < 118
    expect(page.get_by_role("button", name="again")).to_have_count(0)
    assert console_errors == []


def test_batch_holds_up_no_other_job(demo: Demo, page: Page) -> None:
    """A marathon that starts after the batch ends before it. The files that failed
    before the batch was cancelled are named, but do not run again.
    """
    log_in(page, demo, "Alice")
    start_batch(page, demo, "Easy to watch")
    batch = page.url
    page.goto(demo.url)
    page.get_by_label("Miles", exact=True).fill("0.1")
    page.get_by_text("Flat out").first.click()
    page.get_by_role("button", name="Start running").click()
    expect_status(page, "Done")
    page.goto(batch)
    expect_status(page, "Running")
    expect(page.locator("#job [part=details]")).to_contain_text("failed")
    page.get_by_role("button", name="Cancel").click()
    expect_status(page, "Failed")
    expect(page.get_by_role("region", name="failed file")).to_be_visible()
    expect(page.get_by_role("button", name="again")).to_have_count(0)


def test_batch_of_another_user_is_neither_seen_nor_run_again(
    demo: Demo, page: Page
) -> None:
    """Only the owner sees the page, and runs the failed files again from it."""
    log_in(page, demo, "Alice")
    start_batch(page, demo, "Flat out")
    button = page.get_by_role("button", name="Run the 2 failed files again")
    expect(button).to_be_visible(timeout=PATIENCE * 1000)
    batch = page.url
    assert page.request.post(f"{batch}/again").status == 400

    log_in(page, demo, "Bob")
    token = page.locator("[name=csrf_token]").first.get_attribute("value")
    answer = page.request.post(
        f"{batch}/again", form={"csrf_token": token or ""}, max_redirects=0
    )
    assert answer.status == 403
    assert page.request.get(batch).status == 403

    log_in(page, demo, "Alice")
    page.goto(batch)
    expect_status(page, "Failed")
    expect(button).to_be_visible()


def test_file_that_is_too_large_is_refused(demo: Demo, page: Page) -> None:
    """The page says that the file is too large, and no job starts."""
    log_in(page, demo, "Bob")
    token = page.locator("[name=csrf_token]").first.get_attribute("value")
    file: FilePayload = {
        "name": "a.csv",
        "mimeType": "text/csv",
        "buffer": bytes(6 * 1024 * 1024),
    }
    answer = page.request.post(
        f"{demo.url}/imports",
        multipart={"csrf_token": token or "", "pace": "Flat out", "file": file},
    )
    assert "The file is larger than 5 MB." in answer.text()
    assert page.request.get(f"{demo.url}/job_state").json()["items"] == []


def test_form_without_its_token_is_refused(demo: Demo, page: Page) -> None:
    """Another site's page cannot start a job in a user's name."""
    log_in(page, demo, "Alice")
    answer = page.request.post(
        f"{demo.url}/marathons", form={"miles": "5", "speed": "Flat out"}
    )
    assert answer.status == 400


def test_job_is_seen_by_its_owner_and_the_admin_only(demo: Demo, page: Page) -> None:
    """Another user gets a page with status 403, and JSON from the job's own URL."""
    log_in(page, demo, "Alice")
    page.get_by_text("Flat out").first.click()
    page.get_by_role("button", name="Start running").click()
    expect_status(page, "Done")
    job = page.url
    state = f"{demo.url}/job_state/{job.rpartition('/')[2]}"
    assert page.request.get(state).status == 200

    log_in(page, demo, "Bob")
    expect(page.get_by_text("None yet.")).to_be_visible()
    expect(page.get_by_role("link", name="All jobs")).to_have_count(0)
    answer = page.goto(job)
    assert answer is not None
    assert answer.status == 403
    expect(page.get_by_role("heading")).to_have_text("This one is not yours")
    refusal = page.request.get(state)
    assert refusal.status == 403
    assert refusal.json().keys() == {"error"}
    answer = page.goto(f"{demo.url}/job_state?all=1")
    assert answer is not None
    assert answer.status == 403
    expect(page.get_by_role("heading")).to_have_text("This one is not yours")

    log_in(page, demo, "Grace")
    page.get_by_role("link", name="All jobs").click()
    page.locator(f"tbody a[href^='{state}']").click()
    expect(page.locator("job-state [part=status]")).to_have_text("Done")
    expect(page.get_by_text("Owner: alice")).to_be_visible()
    page.goto(job)
    expect(page.get_by_text("Started by alice")).to_be_visible()
    assert page.request.get(state).status == 200


def test_list_of_jobs_is_the_users_not_the_browsers(
    demo: Demo, demo_store: JobStore, page: Page, console_errors: list[str]
) -> None:
    """A user's home page lists their jobs in every status, whatever the session, polls
    all of them with one request, and links to their pages.
    """
    jobs = put_jobs(demo_store)
    polls: list[str] = []
    page.on("request", lambda r: polls.append(r.url) if "uuid=" in r.url else None)
    log_in(page, demo, "Alice")
    for status, word in STATUSES.items():
        row = page.locator(f"li:has(a[href$='{jobs[status]}'])")
        expect(row.locator("[part=status]")).to_have_text(worded(word))
    # A busy browser may ask for the first of them before it knows the last.
    wait_for(lambda: 5 in [url.count("uuid=") for url in polls], PATIENCE)
    expect(page.locator("li")).to_have_count(len(jobs))
    assert "secret" not in page.content()
    for status, word in STATUSES.items():
        page.goto(f"{demo.url}/jobs/{jobs[status]}")
        expect_status(page, word)
    assert console_errors == []


def test_long_list_comes_in_pages(demo: Demo, demo_store: JobStore, page: Page) -> None:
    """A user with many jobs can load more of them."""
    for _ in range(23):
        put_job(demo_store, RunMarathon, "success", owner="alice")
    log_in(page, demo, "Alice")
    expect(page.locator("li")).to_have_count(20)
    page.get_by_role("button", name="Show more").click()
    expect(page.locator("li")).to_have_count(23)
    expect(page.get_by_role("button", name="Show more")).to_be_hidden()


def test_admin_finds_jobs_by_kind_and_status(
    demo: Demo, demo_store: JobStore, page: Page, console_errors: list[str]
) -> None:
    """The admin's list has everyone's jobs, with filters and pages, in the demo's
    layout.
    """
    for n in range(50):
        put_job(demo_store, RunMarathon, "success", owner=("alice", "bob")[n % 2])
    file = {"filename": "paris.csv"}
    put_job(demo_store, ImportResults, "success", owner="bob", params=file)
    put_job(demo_store, ImportResults, "queued", owner="bob", params=file)
    log_in(page, demo, "Grace")
    page.get_by_role("link", name="All jobs").click()
    rows = page.locator("tbody tr")
    expect(page.get_by_role("link", name="Finish Line")).to_be_visible()
    expect(rows).to_have_count(50)
    page.get_by_role("link", name="Older").click()
    expect(rows).to_have_count(2)
    page.get_by_role("link", name="Newest").click()

    page.get_by_label("Kind").select_option("ImportResults")
    page.get_by_role("button", name="Show").click()
    expect(rows).to_have_count(2)
    page.get_by_role("link", name="Done 1").click()
    expect(rows).to_have_count(1)
    expect(rows).to_contain_text("bob")
    expect(page.get_by_role("link", name="Import of paris.csv")).to_be_visible()
    page.get_by_role("link", name="Failed 0").click()
    expect(page.get_by_text("No jobs.")).to_be_visible()
    assert page.title() == "Jobs · Finish Line"
    assert console_errors == []


def test_admin_handles_jobs(
    demo: Demo, demo_store: JobStore, page: Page, console_errors: list[str]
) -> None:
    """The admin watches a job that failed, sees why, runs it again and deletes it."""
    log_in(page, demo, "Alice")
    file: FilePayload = {"name": "a.csv", "mimeType": "text/csv", "buffer": b""}
    page.get_by_label("File with").set_input_files(file)
    page.get_by_role("button", name="Import file").click()
    expect_status(page, "Failed")
    log_in(page, demo, "Grace")
    page.get_by_role("link", name="All jobs").click()
    page.get_by_role("link", name="Import of a.csv").click()
    traceback = page.get_by_role("region", name="Traceback")
    expect(traceback).to_contain_text("demo.results.BadFile")

    def act(name: str) -> None:
        page.get_by_role("button", name=name).click()
        page.get_by_role("dialog").get_by_role("button", name=name).click()

    act("Run again")
    expect(page.get_by_text("1 job runs again.")).to_be_visible()
    # It fails again.
    expect(page.locator("#jobstate-job[state=error]")).to_be_attached()
    expect(traceback).to_be_visible()
    act("Delete")
    expect(page.get_by_text("1 job deleted.")).to_be_visible()
    expect(page.get_by_text("No jobs.", exact=True)).to_be_visible()
    assert console_errors == []


def test_viewer_is_told_on_request(demo: Demo, browser: Browser) -> None:
    """The button asks for permission, says what came of it, and goes with the job."""
    with browser.new_context() as context:
        context.add_init_script(
            """window.Notification = class {
                static permission = "default";
                static async requestPermission() { return "granted"; }
            };"""
        )
        page = context.new_page()
        log_in(page, demo, "Alice")
        page.get_by_text("Stroll").click()
        page.get_by_role("button", name="Start running").click()
        button = page.get_by_role("button", name="Tell me when it is done")
        button.click()
        button = page.get_by_role("button", name="You will be notified")
        expect(button).to_be_disabled()
        page.get_by_role("button", name="Cancel").click()
        expect_status(page, "Cancelled")
        expect(button).to_have_count(0)


def test_job_is_cancelled(demo: Demo, page: Page, console_errors: list[str]) -> None:
    """The button ends a running job, which is then shown as cancelled."""
    log_in(page, demo, "Alice")
    page.get_by_text("Stroll").click()
    page.get_by_role("button", name="Start running").click()
    expect_status(page, "Running")
    page.get_by_role("button", name="Cancel").click()
    expect_status(page, "Cancelled")
    expect(page.get_by_role("button", name="Cancel")).to_be_hidden()
    assert number(page, "[data-miles]") < 20
    assert console_errors == []


def test_visitor_logs_in_and_gets_where_they_wanted(demo: Demo, page: Page) -> None:
    """A page that needs a user leads to the log-in, and from there back."""
    log_in(page, demo, "Alice")
    page.get_by_text("Flat out").first.click()
    page.get_by_role("button", name="Start running").click()
    expect_status(page, "Done")
    job = page.url
    page.get_by_role("button", name="Log out").click()
    page.goto(job)
    assert page.url.endswith("/login")
    page.get_by_role("button", name="Alice").click()
    expect(page).to_have_url(job)


@pytest.mark.parametrize(
    "path", ["/nope", "/jobs/nope", f"/jobs/{UUID}", f"/job_state/{UUID}"]
)
def test_missing_page_is_a_friendly_404(demo: Demo, page: Page, path: str) -> None:
    """A missing job or page gets a page that says so and offers a way out."""
    log_in(page, demo, "Alice")
    answer = page.goto(demo.url + path)
    assert answer is not None
    assert answer.status == 404
    page.get_by_role("link", name="Go to your own jobs").click()
    expect(page.get_by_role("heading", name="Start something long")).to_be_visible()


def test_pages_allow_nothing_foreign(demo: Demo, page: Page) -> None:
    """Each response carries the demo's content security policy."""
    for path in ("/login", "/nope", "/static/job.js"):
        policy = page.request.get(demo.url + path).headers["content-security-policy"]
        assert "default-src 'self'; script-src 'self'; style-src 'self';" in policy
        assert "require-trusted-types-for 'script'" in policy


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
    expect(alert).to_be_hidden()
    assert query(demo, "SELECT count(*) FROM uploads") == uploads


def test_pages_are_accessible(
    demo: Demo,
    demo_store: JobStore,
    page: Page,
    node_modules: Path,
) -> None:
    """axe-core finds nothing to complain about on any page, light or dark."""
    # A colour in transition belongs to neither scheme.
    page.emulate_media(reduced_motion="reduce")
    jobs = put_jobs(demo_store)
    found = {}

    def check(path: str) -> None:
        page.goto(demo.url + path)
        waiting = "#your-jobs + ol:empty, [state=loading], job-state:not([state])"
        expect(page.locator(waiting)).to_have_count(0)
        for scheme, rule, html in complaints(page, node_modules):
            found[path, scheme, rule] = html

    check("/login")
    log_in(page, demo, "Alice")
    start_batch(page, demo, "Flat out")
    button = page.get_by_role("button", name="Run the 2 failed files again")
    expect(button).to_be_visible(timeout=PATIENCE * 1000)
    check(page.url.removeprefix(demo.url))
    for path in ("/", "/nope", f"/jobs/{jobs['working']}", f"/jobs/{jobs['stalled']}"):
        check(path)
    log_in(page, demo, "Grace")
    for path in "/job_state?all=1", f"/job_state/{jobs['error']}":
        check(path)
    assert found == {}


def test_sigterm_takes_everything_down(own_demo: Demo) -> None:
    """A SIGTERM ends all processes, frees the port and exits with 0."""
    pids = list(own_demo.processes())
    own_demo.process.terminate()
    assert own_demo.end()[0] == 0
    wait_for(lambda: not any(map(is_alive, pids)))
    with socket.socket() as client:
        assert client.connect_ex(("127.0.0.1", own_demo.port)) != 0


def test_killed_demo_leaves_no_process_behind(own_demo: Demo) -> None:
    """Not even a SIGKILL orphans the worker or the Redis server."""
    pids = list(own_demo.processes())
    own_demo.process.kill()
    wait_for(lambda: not any(map(is_alive, pids)), PATIENCE)


@pytest.mark.parametrize(
    ("command", "name"),
    [
        (r"\S+ -m demo\.worker", "worker"),
        pytest.param(
            r"\S*(valkey|redis)-server", "Redis server", marks=pytest.mark.long
        ),
    ],
)
def test_demo_ends_with_each_of_its_parts(
    own_demo: Demo, command: str, name: str
) -> None:
    """A part that dies ends the demo, which names the part and fails."""
    processes = own_demo.processes()
    part = next(pid for pid, line in processes.items() if re.match(command, line))
    os.kill(part, signal.SIGKILL)
    code, errors = own_demo.end()
    assert code == 1
    assert f"The {name} has ended" in errors
    wait_for(lambda: not any(map(is_alive, processes)))


def test_port_that_is_taken_is_named(demo: Demo) -> None:
    """If the requested port is taken, the demo says so and starts nothing."""
    result = subprocess.run(
        [sys.executable, "-m", "demo", "--port", str(demo.port)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 1
    assert f"port {demo.port}" in result.stderr


def test_application_starts_the_usual_way(redis_url: str, tmp_path: Path) -> None:
    """The .ini file makes the application, as `pserve` does."""
    program = (
        "from pyramid.paster import get_app, setup_logging;"
        "setup_logging('demo/development.ini');"
        "print(type(get_app('demo/development.ini')).__name__)"
    )
    result = subprocess.run(
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
    assert result.stdout == "Router\n"
