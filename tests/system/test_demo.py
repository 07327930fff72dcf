"""The demo, started as its users start it and driven by a real browser."""

import contextlib
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import FilePayload, Page, expect

from tests.processes import Process, run_python
from tests.readme import README
from tests.support import ROOT, is_alive, lack, unmeasured, wait_for

#: The seconds that the demo may take to start, and a job to become visible.
PATIENCE = 20.0


class Demo(Process):
    """A running `python -m demo`."""

    def __init__(
        self, data: Path, *start: str, folder: Path = ROOT, **variables: str
    ) -> None:
        self.data = data
        variables["JOBSTATE_DEMO_DATA"] = str(data)
        command = [*(start or (sys.executable, "-m", "demo")), "--port", "0"]
        super().__init__(command, data / "log", folder, variables)
        self.wait_for_line(r"http://\S+\s")
        self.url = re.findall(r"http://\S+", self.text())[0]

    def __exit__(self, *exception: object) -> None:
        try:
            self.stop()
        finally:
            super().__exit__(*exception)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    """The demo that most tests share: fast, but slow enough to be seen at work."""
    data = tmp_path_factory.mktemp("demo")
    with Demo(data, JOBSTATE_DEMO_ROWS_A_SECOND="6000") as demo:
        yield demo


def query(data: Path, statement: str) -> tuple[object, ...]:
    """Return the only row that a statement finds in a demo's database."""
    with contextlib.closing(sqlite3.connect(data / "demo.sqlite")) as database:
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


def test_marathon_is_watched_to_its_end(demo, page, console_errors):
    """The miles of a marathon rise on its page until it ends, or is cancelled."""
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
    bar = page.get_by_role("progressbar", name="Run of 13.1 miles")
    expect(bar).to_have_attribute("aria-valuenow", "100")
    expect(page.get_by_role("list", name="Splits")).to_contain_text("Mile 13 at")
    assert console_errors == []


def test_batch_fails_in_part_and_runs_again(demo, page, console_errors):
    """The page counts the files, and runs those that failed again until all are in.
    Each end of the batch leaves a note, and those of its jobs leave none.
    """
    log_in(page, demo, "Alice")
    page.get_by_role("button", name="Import 120 files").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Import of 120 files")
    batch = page.url
    expect_status(page, "Running")
    assert wait_for(lambda: number(page, "[data-files]"), PATIENCE) < 118

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
    notes = "SELECT group_concat(text, ' ') FROM notes "
    notes += "WHERE text LIKE '%120 files%' OR text LIKE '%oslo.csv%'"
    note = "Import of 120 files has failed."
    wait_for(lambda: query(demo.data, notes) == (note,), PATIENCE)

    page.get_by_role("button", name="Run the 2 failed files again").click()
    expect(failed).to_be_hidden()
    expect(page.get_by_role("table")).to_be_visible(timeout=PATIENCE * 1000)
    expect_status(page, "Done")
    expect(figure).to_have_text("120 of 120 files in the database")
    uuid = batch.rpartition("/")[2]
    files, rows = query(
        demo.data,
        "SELECT count(DISTINCT upload_id), count(*) FROM results "
        f"JOIN uploads ON uploads.id = upload_id WHERE batch = '{uuid}'",
    )
    assert files == 120
    note += " Import of 120 files is done."
    wait_for(lambda: query(demo.data, notes) == (note,), PATIENCE)
    caption = f"The fastest of {rows:,} in the database"
    expect(page.locator("caption")).to_have_text(caption)
    page.get_by_role("link", name="Your jobs").click()
    expect(page.locator("li [part=title]").first).to_have_text("Import of 120 files")
    assert console_errors == []


def test_job_is_seen_by_its_owner_and_the_admin_only(demo, page):
    """Only its owner and the admin see a job. No form works without its token."""
    log_in(page, demo, "Alice")
    marathon = {"miles": "5", "speed": "Flat out"}
    assert page.request.post(f"{demo.url}/marathons", form={**marathon}).status == 400
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


def show_home(page: Page, demo: Demo) -> str:
    """Go to the home page, and return what it says of the inbox."""
    page.goto(demo.url)
    return page.get_by_role("link", name="Inbox").inner_text()


def test_import_leaves_a_note_in_its_owners_inbox(demo, page, console_errors):
    """The note leads to the import. Only its owner sees it, and it counts until then.
    Its text is not markup.
    """
    log_in(page, demo, "Grace")
    file: FilePayload = {
        "name": "<b>rome</b>.csv",
        "mimeType": "text/csv",
        "buffer": b"bib,name,country,finish\n1,Ruth,KEN,2:20:00\n",
    }
    page.get_by_label("File with").set_input_files(file)
    page.get_by_role("button", name="Import file").click()
    expect_status(page, "Done")
    job = page.url
    wait_for(lambda: show_home(page, demo) == "Inbox (1)", PATIENCE)

    log_in(page, demo, "Bob")
    assert show_home(page, demo) == "Inbox"
    page.get_by_role("link", name="Inbox").click()
    expect(page.get_by_text("Nothing yet.")).to_be_visible()

    log_in(page, demo, "Grace")
    page.get_by_role("link", name="Inbox").click()
    note = page.get_by_role("listitem").get_by_role("link")
    expect(note).to_have_text("Import of <b>rome</b>.csv is done.")
    note.click()
    expect(page).to_have_url(job)
    assert show_home(page, demo) == "Inbox"
    assert console_errors == []


#: Tells an import of its end twice, as happens if a worker dies in a hook.
TWICE = """
import demo
from demo.jobs import ImportResults, broker
from pyramid_jobstate import JobStore
from pyramid_jobstate.testing import put_job, run_hook

registry = demo.main({}).registry
import_ = put_job(JobStore(broker.client), ImportResults, "success", owner="alice")
for _ in range(2):
    run_hook(registry, import_, {})
"""


def test_hook_that_runs_twice_leaves_one_note(tmp_path, redis_url):
    """The hook finds the note of its first run."""
    own = {"JOBSTATE_REDIS_URL": redis_url, "JOBSTATE_DEMO_DATA": str(tmp_path)}
    run_python("-c", TWICE, environ=own)
    assert query(tmp_path, "SELECT count(*), owner FROM notes") == (1, "alice")


#: What a fresh checkout does not have.
EXTRA = shutil.ignore_patterns(
    *(".git", ".venv*", ".*_cache", "*.egg-info", "__pycache__", "build")
)


@pytest.mark.promise("demo-starts-alone")
@pytest.mark.timeout(360)
def test_command_of_the_readme_installs_the_demo(tmp_path, page):
    """A checkout and Python are all that it needs."""
    shown = re.search(r"^\.\. demo-command\n\n::\n\n  (.+)$", README, re.MULTILINE)
    assert shown
    folder = shutil.copytree(ROOT, tmp_path / "checkout", ignore=EXTRA)
    install, _, start = shown[1].rpartition(" && ")
    done = subprocess.run(
        ["sh", "-c", install], cwd=folder, env=unmeasured(), capture_output=True
    )
    if done.returncode:
        lack(f"pip could not install the demo: {done.stderr[-300:]!r}")
    with Demo(tmp_path, *start.split(), folder=folder) as demo:
        log_in(page, demo, "Alice")
        start_marathon(page, "Flat out")
        expect_status(page, "Done")


@pytest.mark.parametrize("victim", ["worker", "demo", None])
def test_all_end_together(tmp_path, victim):
    """A part that dies ends the demo, which names the part and fails. Not even a
    SIGKILL of the demo orphans its worker or its Redis server, and SIGTERM ends all
    with exit code 0.
    """
    with Demo(tmp_path) as demo:
        wait_for(lambda: len(demo.processes()) >= 5, PATIENCE)
        processes = demo.processes()
        if victim == "demo":
            os.kill(demo.pid, signal.SIGKILL)
        elif victim is None:
            assert demo.stop() == 0
        else:
            worker = next(p for p in processes if "demo.worker" in processes[p])
            os.kill(worker, signal.SIGKILL)
            assert demo.end() == 1
            assert "The worker has ended" in demo.text()
        wait_for(lambda: not any(map(is_alive, processes)), PATIENCE)
