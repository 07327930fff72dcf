"""The README's chapter "Push" is true: its servers, and its nginx in front of them."""

import contextlib
import http.client
import itertools
import json
import re
import signal
import time
from collections.abc import Iterator
from typing import Any

import pytest
import redis
from playwright.sync_api import Page

from pyramid_jobstate import JobStore
from tests.asgi import EVENTS
from tests.deployed import HOME, PUSH, SITE, Browser, Host, nginx
from tests.readme import DOCUMENTS, snippets
from tests.support import wait_for
from tests.web.reading import put


def mixed(host: Host) -> str:
    """Return the site with the README's lines for an ASGI process beside it."""
    places = ("", ", at the top", ', before "location /"')
    site, top, ours = (host.files[f"{SITE}{place}"] for place in places)
    assert site.count("    location / {\n") == 1
    return top + site.replace("    location / {\n", ours + "    location / {\n")


def state(stream: http.client.HTTPResponse) -> Any:
    """Return the next state of a stream."""
    while line := stream.readline():
        if line.startswith(b"data: {"):
            return json.loads(line[6:])
    raise EOFError


def visit(browser: Browser, client: redis.Redis, **metrics: Any) -> str:
    """Put a job of a visitor, whose first one is sent, and return its uuid."""
    first = browser("/run?n=1").json["url"].split("/")[-2]
    owner: Any = client.hget(f"jobstate:{first}", "owner")
    return put(JobStore(client), owner=json.loads(owner), metrics=metrics)


@pytest.mark.parametrize(
    "server",
    [
        "uvicorn",
        pytest.param("hypercorn", marks=pytest.mark.long),
        pytest.param("granian", marks=pytest.mark.long),
    ],
)
def test_command_of_the_readme_streams(host, server):
    """Each command of the README starts a server whose streams come through the
    README's nginx at once, uncompressed and with URLs of the outside, and which ends
    soon after SIGTERM.
    """
    (shell,) = [text for text in snippets("sh") if "uvicorn" in text]
    lines = shell.replace("\\\n", "")
    (command,) = re.findall(rf"^venv/bin/{server} .+$", lines, re.MULTILINE)
    for text in snippets("python"):
        if text.startswith(f"# {HOME}/asgi.py") and f"for {server}" in text:
            module = host.folder / "asgi.py"
            module.write_text(module.read_text("utf-8") + text, "utf-8")
    (line,) = re.findall(r"``(proxy_set_header X-Forwarded-Host \$host;)``", DOCUMENTS)
    site = host.files[SITE].replace("location / {", f"location / {{ {line}")
    with (
        host.redis() as client,
        host.web(host.replaced(command)) as process,
        nginx(host, site) as browser,
    ):
        uuid = visit(browser, client)
        path, url = f"/job_state/{uuid}", f"https://example.com/job_state/{uuid}/"
        assert browser(path, X_Forwarded_Host="evil.example").json["job"]["url"] == url
        polled = browser(path, accept_encoding="gzip")
        assert polled.headers["JobState-Stream"] == "1"
        assert polled.headers["Content-Encoding"] == "gzip"
        with browser.open(path, accept=EVENTS, accept_encoding="gzip") as stream:
            assert stream.status == 200
            assert stream.headers.get_content_type() == EVENTS
            assert "Content-Encoding" not in stream.headers
            assert state(stream)["job"]["url"] == url
            for miles in range(3):
                begun = time.monotonic()
                client.hset(f"jobstate:{uuid}", "m:miles", miles)
                assert state(stream)["miles"] == miles
                assert time.monotonic() - begun < 5
            process.send_signal(signal.SIGTERM)
            begun = time.monotonic()
            process.wait(15)
            assert time.monotonic() - begun < 8
            with pytest.raises((EOFError, http.client.IncompleteRead)):
                state(stream)


@contextlib.contextmanager
def followed(
    page: Page, browser: Browser, client: redis.Redis
) -> Iterator[tuple[Page, str]]:
    """Open a page through nginx that follows a job, whose uuid is given as well."""
    chromium = page.context.browser
    assert chromium is not None
    uuid = visit(browser, client, miles=0)
    address = f"https://127.0.0.1:{browser.host.https_port}"
    name, _, value = browser.cookie.partition(";")[0].partition("=")
    with chromium.new_context(ignore_https_errors=True) as context:
        context.add_cookies([{"name": name, "value": value, "url": address}])
        other = context.new_page()
        other.clock.install()
        other.goto(f"{address}/job_state")
        other.add_script_tag(url=f"{address}/job_state/static/job-state.js")
        other.evaluate(
            """(jobUuid) => {
              window.seen = [];
              const update = ({ miles }) => seen.push([miles, poller.transport]);
              const poller = JobState.startPolling(
                { jobUuid, pollingPeriod: 200, update });
            }""",
            uuid,
        )
        yield other, uuid


@pytest.mark.timeout(180)
def test_streams_beside_a_wsgi_server(host, page):
    """A page of an application under waitress streams from the ASGI process beside it,
    polls while that is away, and streams again when it is back. Polls and cancels go to
    the WSGI server, and say once that a page could have a stream.
    """
    numbers = itertools.count(1)

    def see(transport: str, timeout: float = 20) -> None:
        """Wait until changes reach the page by a stream, or by polls."""

        def is_seen() -> bool:
            miles = next(numbers)
            client.hset(f"jobstate:{uuid}", "m:miles", miles)
            deadline = time.monotonic() + 2
            while time.monotonic() < deadline:
                found, by = marathon.evaluate("seen.at(-1) || [null, null]")
                if found == miles:
                    return bool(by == transport)
                time.sleep(0.05)
            return False

        wait_for(is_seen, timeout)

    with host.redis() as client, host.web(), nginx(host, mixed(host)) as browser:
        with (
            host.web(unit=PUSH) as process,
            followed(page, browser, client) as (marathon, uuid),
        ):
            see("stream")
            process.send_signal(signal.SIGTERM)
            see("poll")
            process.wait(15)
            assert "Traceback" not in host.log(PUSH)
            with host.web(unit=PUSH):
                marathon.clock.fast_forward(15_000)
                see("stream", 40)
            path = f"/job_state/{uuid}"
            for polled in path, f"/job_state?uuid={uuid}", "/job_state/none":
                answer = browser(polled, accept="*/*")
                assert answer.headers.get_all("JobState-Stream") == ["1"]
            cancel = {"x_requested_with": "a test", "accept": "*/*"}
            assert browser(f"{path}/cancel", "POST", **cancel).status == 202
        # The port, the status and what was accepted of each request passed on.
        log = (host.folder / "access.log").read_text().splitlines()
        asked = [line.removeprefix("127.0.0.1:") for line in log]
        seen = {(line.split()[0], EVENTS in line) for line in asked}
    assert seen == {(str(host.push_port), True), (str(host.web_port), False)}
