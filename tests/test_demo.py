"""The demo, started as its users start it and driven with a real browser."""

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
from playwright.sync_api import Page, expect

from demo import uploads

from .support import wait_for

ROOT = Path(__file__).parent.parent

#: How long the demo may take to start, and a job to be seen, in seconds.
PATIENCE = 20.0


class Demo:
    """A running `python -m demo`."""

    def __init__(self, data: Path, *arguments: str) -> None:
        environ = {k: v for k, v in os.environ.items() if not k.startswith("JOBSTATE_")}
        self.data = data
        self.process = subprocess.Popen(
            [sys.executable, "-m", "demo", *arguments],
            cwd=ROOT,
            env={**environ, "JOBSTATE_DEMO_DATA": str(data)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        lines = iter(self.process.stdout.readline, "")
        self.url = next(filter(None, (re.search(r"http://\S+", s) for s in lines)))[0]
        self.port = int(self.url.rpartition(":")[2])

    def processes(self) -> dict[int, str]:
        """Return the command lines of the demo's living processes by their ids."""
        listing = subprocess.run(
            ["ps", "-e", "-ww", "-o", "pid=,ppid=,stat=,args="],
            check=True,
            capture_output=True,
            text=True,
        )
        rows = [line.split(None, 3) for line in listing.stdout.splitlines()]
        found = {self.process.pid: "demo"}
        for _ in rows:
            for pid, parent, stat, arguments in rows:
                if int(parent) in found and not stat.startswith("Z"):
                    found[int(pid)] = arguments
        return found

    def end(self) -> tuple[int, str]:
        """Wait for the end, and return the exit code and what was said about it."""
        _, errors = self.process.communicate(timeout=PATIENCE)
        return self.process.returncode, errors


@contextlib.contextmanager
def running(data: Path) -> Iterator[Demo]:
    demo = Demo(data, "--port", "0")
    try:
        yield demo
    finally:
        demo.process.terminate()
        demo.end()


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    with running(tmp_path_factory.mktemp("demo")) as demo:
        yield demo


@pytest.fixture
def own_demo(tmp_path: Path) -> Iterator[Demo]:
    """A demo to be brought to its end, with its worker at work."""
    with running(tmp_path) as demo:
        wait_for(lambda: len(demo.processes()) >= 5, PATIENCE)
        yield demo


def log_in(page: Page, demo: Demo, name: str) -> None:
    page.context.clear_cookies()
    page.goto(demo.url)
    page.get_by_role("button", name=name).click()


def number(page: Page, selector: str) -> float:
    return float(page.locator(selector).inner_text().replace(",", "") or 0)


def fact(page: Page, name: str) -> float:
    return number(page, f".facts div:has(dt:text-is('{name}')) dd")


def expect_status(page: Page, status: str) -> None:
    expect(page.get_by_role("status")).to_have_text(status, timeout=PATIENCE * 1000)


def is_alive(pid: int) -> bool:
    stat = subprocess.run(
        ["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True
    )
    return stat.stdout.strip()[:1] not in ("", "Z")


def test_marathon_is_watched_to_its_end(
    demo: Demo, page: Page, console_errors: list[str]
) -> None:
    """The miles of a running marathon rise on its page, and its end is shown."""
    log_in(page, demo, "Alice")
    page.get_by_text("Sprint").click()
    page.get_by_role("button", name="Start running").click()
    expect_status(page, "Running")
    first = wait_for(lambda: number(page, ".figure > span"), PATIENCE)
    wait_for(lambda: number(page, ".figure > span") > first + 2, PATIENCE)
    assert page.title().startswith("Marathon")
    expect_status(page, "Finished")
    assert number(page, ".figure > span") == 26.2
    assert fact(page, "Strides") == 46112
    assert page.get_by_role("progressbar").evaluate("bar => bar.value") == 1
    assert "Mile 26 at" in page.locator(".log li").first.inner_text()
    page.get_by_role("link", name="All jobs").click()
    expect(page.locator(".row").first).to_contain_text("26.20 of 26.2 miles")
    assert console_errors == []


def test_sample_is_imported(demo: Demo, page: Page, console_errors: list[str]) -> None:
    """The sample's rows are counted as they go into the database, and are there."""
    log_in(page, demo, "Alice")
    page.get_by_role("button", name="Import a sample").click()
    expect_status(page, "Running")
    first = wait_for(lambda: fact(page, "In the database"), PATIENCE)
    assert first < 19_000
    wait_for(lambda: fact(page, "In the database") > first, PATIENCE)
    expect(page.locator(".ticker")).to_contain_text("Line")
    expect(page.get_by_role("table")).to_be_visible(timeout=PATIENCE * 1000)
    expect_status(page, "Finished")
    written, rejected = fact(page, "In the database"), fact(page, "Rejected")
    assert written + rejected == 20_000
    assert 200 < rejected < 600
    with contextlib.closing(sqlite3.connect(demo.data / "demo.sqlite")) as database:
        uuid = page.url.rpartition("/")[2]
        query = "SELECT count(*) FROM results WHERE import_uuid = ?"
        assert database.execute(query, [uuid]).fetchone() == (written,)
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
    """Who uploads what cannot be imported reads why, with no try after the first."""
    log_in(page, demo, "Alice")
    file = {"name": "../<b>.csv", "mimeType": "text/csv", "buffer": content}
    page.get_by_label("File with").set_input_files(file)
    page.get_by_role("button", name="Import file").click()
    expect_status(page, "Failed")
    alert = page.locator(".verdict")
    expect(alert).to_contain_text(message)
    assert "Traceback" not in page.content()
    assert console_errors == []


def test_file_that_is_too_large_is_refused(demo: Demo, page: Page) -> None:
    """The page says so, with no job started."""
    log_in(page, demo, "Alice")
    token = page.locator("[name=csrf_token]").first.get_attribute("value")
    file = {"name": "a.csv", "mimeType": "text/csv", "buffer": bytes(6 * 1024 * 1024)}
    answer = page.request.post(
        f"{demo.url}/imports",
        multipart={"csrf_token": token or "", "pace": "Flat out", "file": file},
    )
    assert "The file is larger than 5 MB." in answer.text()
    assert "None yet." in answer.text()


def test_form_without_its_token_is_refused(demo: Demo, page: Page) -> None:
    """Another site's page cannot start a job in a user's name."""
    log_in(page, demo, "Alice")
    form = {"miles": "5", "speed": "Flat out"}
    assert page.request.post(f"{demo.url}/marathons", form=form).status == 400


def test_job_is_seen_by_its_owner_and_the_admin_only(demo: Demo, page: Page) -> None:
    """Another user gets a page of status 403, and JSON from the job's own URL."""
    log_in(page, demo, "Alice")
    page.get_by_text("Flat out").first.click()
    page.get_by_role("button", name="Start running").click()
    expect_status(page, "Finished")
    job = page.url
    state = f"{demo.url}/job_state/{job.rpartition('/')[2]}"
    assert page.request.get(state).status == 200

    log_in(page, demo, "Bob")
    expect(page.locator(".empty")).to_be_visible()
    answer = page.goto(job)
    assert answer is not None
    assert answer.status == 403
    expect(page.get_by_role("heading")).to_have_text("This one is not yours")
    refusal = page.request.get(state)
    assert refusal.status == 403
    assert refusal.json().keys() == {"error"}

    log_in(page, demo, "Grace")
    expect(page.get_by_role("heading", name="Everyone’s jobs")).to_be_visible()
    page.locator(f".row[href='{job}']").click()
    expect_status(page, "Finished")
    expect(page.locator(".job")).to_contain_text("started by alice")
    assert page.request.get(state).status == 200


def test_job_is_cancelled(demo: Demo, page: Page, console_errors: list[str]) -> None:
    """The button ends a running job, which is then shown as cancelled."""
    log_in(page, demo, "Alice")
    page.get_by_text("Stroll").click()
    page.get_by_role("button", name="Start running").click()
    expect_status(page, "Running")
    page.get_by_role("button", name="Cancel the job").click()
    expect_status(page, "Cancelled")
    expect(page.get_by_role("button", name="Cancel the job")).to_be_hidden()
    assert number(page, ".figure > span") < 20
    assert console_errors == []


def test_visitor_logs_in_and_gets_where_they_wanted(demo: Demo, page: Page) -> None:
    """A page that needs a user leads to the log-in, and from there to itself."""
    log_in(page, demo, "Alice")
    page.get_by_text("Flat out").first.click()
    page.get_by_role("button", name="Start running").click()
    expect_status(page, "Finished")
    job = page.url
    page.get_by_role("button", name="Log out").click()
    page.goto(job)
    assert page.url.endswith("/login")
    page.get_by_role("button", name="Alice").click()
    assert page.url == job


@pytest.mark.parametrize("path", ["/nope", "/jobs/nope", f"/jobs/{'0' * 36}"])
def test_page_that_is_not_there_is_a_friendly_404(
    demo: Demo, page: Page, path: str
) -> None:
    """What does not exist, a job or any page, is said in words and with a way out."""
    log_in(page, demo, "Alice")
    answer = page.goto(demo.url + path)
    assert answer is not None
    assert answer.status == 404
    page.get_by_role("link", name="Go to your own jobs").click()
    expect(page.get_by_role("heading", name="Start something long")).to_be_visible()


def test_pages_allow_nothing_foreign(demo: Demo, page: Page) -> None:
    """Each answer carries the content security policy that the demo works under."""
    for path in ("/login", "/nope", "/static/job.js"):
        policy = page.request.get(demo.url + path).headers["content-security-policy"]
        assert "default-src 'self'; script-src 'self'; style-src 'self';" in policy
        assert "require-trusted-types-for 'script'" in policy


def test_upload_is_kept_where_its_name_cannot_lead_elsewhere() -> None:
    """Only a uuid names an upload."""
    with pytest.raises(ValueError, match="badly formed"):
        uploads.path_of("../../etc/passwd")


def test_sigterm_takes_everything_down(own_demo: Demo) -> None:
    """After a SIGTERM no process and no port is left, and the demo ended well."""
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
    [(r"\S+ -m demo\.worker", "worker"), (r"\S*(valkey|redis)-server", "Redis server")],
)
def test_demo_ends_with_each_of_its_parts(
    own_demo: Demo, command: str, name: str
) -> None:
    """A part that dies takes the demo down, which names it and fails."""
    processes = own_demo.processes()
    part = next(pid for pid, line in processes.items() if re.match(command, line))
    os.kill(part, signal.SIGKILL)
    code, errors = own_demo.end()
    assert code == 1
    assert f"The {name} has ended" in errors
    wait_for(lambda: not any(map(is_alive, processes)))


def test_port_that_is_taken_is_named(demo: Demo) -> None:
    """Who asks for a port that is taken is told so, and nothing is started."""
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
            **os.environ,
            "JOBSTATE_REDIS_URL": redis_url,
            "JOBSTATE_DEMO_DATA": str(tmp_path),
        },
        check=True,
        capture_output=True,
        text=True,
    )
    assert result.stdout == "Router\n"
