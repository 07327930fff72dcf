"""The README's chapter "Push" is true: its servers, and its nginx in front of them."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import signal
import ssl
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from playwright.sync_api import Page

from tests.deployed import (
    PUSH,
    SITE,
    UNITS,
    WEB,
    Browser,
    Host,
    nginx,
    option,
    program,
)
from tests.readme import README, snippets
from tests.support import wait_for
from tests.webapp import put_job

EVENTS = "text/event-stream"

UVICORN = f"{UNITS}/{WEB}, with uvicorn"


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def commands() -> list[str]:
    """Return the README's commands that start an ASGI server."""
    (text,) = [text for text in snippets("sh") if "uvicorn" in text]
    return text.splitlines()[1:]


def mixed(host: Host) -> str:
    """Return the site with the README's lines for an ASGI process beside it."""
    top, ours = (
        host.files[f"{SITE}, at the top"],
        host.files[f'{SITE}, before "location /"'],
    )
    site = host.files[SITE]
    assert site.count("    location / {\n") == 1
    return top + site.replace("    location / {\n", ours + "    location / {\n")


class Stream:
    """A stream through nginx, over TLS."""

    def __init__(self, browser: Browser, path: str, **headers: str) -> None:
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        self.connection = http.client.HTTPSConnection(
            "127.0.0.1", browser.host.https_port, context=context, timeout=20
        )
        sent = {"Accept": EVENTS, "Host": "example.com", "Cookie": browser.cookie}
        sent |= {name.replace("_", "-"): value for name, value in headers.items()}
        self.connection.request("GET", path, headers=sent)
        self.response = self.connection.getresponse()

    def close(self) -> None:
        """Go."""
        self.response.close()
        self.connection.close()

    def state(self) -> Any:
        """Return the next state."""
        while line := self.response.readline():
            if line.startswith(b"data: {"):
                return json.loads(line[6:])
        raise EOFError


def visit(browser: Browser) -> str:
    """Return the owner of the jobs of a visitor, whose first one is sent."""
    path = browser("/run?n=1").json["url"].removeprefix("https://example.com")
    with redis.Redis.from_url(browser.host.redis_url) as client:
        owner = client.hget(f"jobstate:{path.split('/')[-2]}", "owner")
    assert owner is not None
    return owner.decode()


@pytest.mark.parametrize(
    "server",
    [
        "uvicorn",
        pytest.param("hypercorn", marks=pytest.mark.long),
        pytest.param("granian", marks=pytest.mark.long),
    ],
)
def test_command_of_the_readme_streams(host: Host, server: str) -> None:
    """Each command of the README starts a server whose streams come through the
    README's nginx at once, uncompressed and with URLs of the outside, and which ends
    soon after SIGTERM.
    """
    (command,) = [c for c in commands() if c.startswith(f"venv/bin/{server} ")]
    for text in snippets("python"):
        if text.startswith("# myapp/asgi.py") and f"for {server}" in text:
            module = host.folder / "myapp/asgi.py"
            module.write_text(module.read_text("utf-8") + text, "utf-8")
    (line,) = re.findall(r"``(proxy_set_header X-Forwarded-Host \$host;)``", README)
    site = host.files[SITE].replace("location / {", f"location / {{ {line}")
    with (
        host.redis() as client,
        host.web(host.replaced(command)) as process,
        nginx(host, site) as browser,
    ):
        uuid = put_job(client, owner=visit(browser))
        forged = browser(f"/job_state/{uuid}", X_Forwarded_Host="evil.example")
        assert forged.json["job"]["url"].startswith("https://example.com/")
        polled = browser(f"/job_state/{uuid}", accept_encoding="gzip")
        assert polled.headers["JobState-Stream"] == "1"
        assert polled.headers["Content-Encoding"] == "gzip"
        stream = Stream(browser, f"/job_state/{uuid}", accept_encoding="gzip")
        assert stream.response.status == 200
        assert stream.response.headers.get_content_type() == EVENTS
        assert "Content-Encoding" not in stream.response.headers
        assert stream.state()["job"]["url"] == f"https://example.com/job_state/{uuid}/"
        for miles in range(3):
            begun = time.monotonic()
            client.hset(f"jobstate:{uuid}", "m:miles", miles)
            assert stream.state()["miles"] == miles
            assert time.monotonic() - begun < 5
        process.send_signal(signal.SIGTERM)
        begun = time.monotonic()
        process.wait(15)
        assert time.monotonic() - begun < 8
        with pytest.raises((EOFError, http.client.IncompleteRead)):
            stream.state()
        stream.close()


def test_units_of_push_are_valid(host: Host) -> None:
    """Systemd accepts the unit of the ASGI process, and the lines for uvicorn."""
    verify = program("systemd-analyze", "systemd")
    web = host.files[f"{UNITS}/{WEB}"]
    for line in host.files[UVICORN].splitlines()[1:]:
        name = line.partition("=")[0]
        assert re.search(rf"^{name}=", web, re.MULTILINE)
        web = re.sub(rf"^{name}=.*\n", f"{line}\n", web, flags=re.MULTILINE)
    units = {PUSH: host.files[f"{UNITS}/{PUSH}"], "myapp-asgi.service": web}
    paths = [str(host.write(name, text)) for name, text in units.items()]
    checked = subprocess.run(
        [verify, "verify", "--man=no", *paths], capture_output=True, text=True
    )
    assert checked.returncode == 0, checked.stderr
    assert "myapp" not in checked.stderr


# A page


class Followed:
    """A page that follows a job."""

    def __init__(self, page: Page, client: redis.Redis, uuid: str) -> None:
        self.page = page
        self.client = client
        self.uuid = uuid
        self.miles = 0

    def see(self, transport: str, timeout: float = 20) -> None:
        """Wait until changes reach the page by a stream, or by polls."""

        def is_seen() -> bool:
            self.miles += 1
            self.client.hset(f"jobstate:{self.uuid}", "m:miles", self.miles)
            deadline = time.monotonic() + 2
            while time.monotonic() < deadline:
                miles, by = self.page.evaluate("seen.at(-1) || [null, null]")
                if miles == self.miles:
                    return bool(by == transport)
                time.sleep(0.05)
            return False

        wait_for(is_seen, timeout)


@contextlib.contextmanager
def followed(page: Page, host: Host, client: redis.Redis) -> Iterator[Followed]:
    """Open a page through nginx that follows a job."""
    chromium = page.context.browser
    assert chromium is not None
    with chromium.new_context(ignore_https_errors=True) as context:
        other = context.new_page()
        other.clock.install()
        address = f"https://127.0.0.1:{host.https_port}"
        other.goto(f"{address}/run?n=1")
        first = json.loads(other.inner_text("body"))["url"].split("/")[-2]
        owner = client.hget(f"jobstate:{first}", "owner")
        assert owner is not None
        uuid = put_job(client, owner=owner, **{"m:miles": 0})
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
        yield Followed(other, client, uuid)


def asked(host: Host) -> list[str]:
    """Return what nginx has passed on: the port, the status and what was accepted."""
    lines = (host.folder / "access.log").read_text().splitlines()
    return [line.removeprefix("127.0.0.1:") for line in lines]


@pytest.mark.timeout(180)
def test_streams_beside_a_wsgi_server(host: Host, page: Page) -> None:
    """A page of an application under waitress streams from the ASGI process beside it,
    polls while that is away, and streams again when it is back.
    """
    with host.redis() as client, host.web(), nginx(host, mixed(host)):
        with host.push() as process, followed(page, host, client) as marathon:
            marathon.see("stream")
            process.send_signal(signal.SIGTERM)
            marathon.see("poll")
            process.wait(15)
            assert "Traceback" not in host.log(PUSH)
            with host.push():
                marathon.page.clock.fast_forward(15_000)
                marathon.see("stream", 40)
        seen = {(line.split()[0], EVENTS in line) for line in asked(host)}
    assert seen == {(str(host.push_port), True), (str(host.web_port), False)}


def test_polls_and_streams_go_where_they_belong(host: Host) -> None:
    """Polls and cancels go to the WSGI server, and say once that a page could have a
    stream. Only requests for streams go to the ASGI process.
    """
    with (
        host.redis() as client,
        host.web(),
        host.push(),
        nginx(host, mixed(host)) as browser,
    ):
        uuid = put_job(client, owner=visit(browser))
        for path in (
            f"/job_state/{uuid}",
            f"/job_state?uuid={uuid}",
            "/job_state/nothing",
        ):
            answer = browser(path, accept="*/*")
            assert answer.headers.get_all("JobState-Stream") == ["1"]
        with contextlib.closing(Stream(browser, f"/job_state/{uuid}")) as stream:
            assert stream.response.headers.get_content_type() == EVENTS
            assert stream.state()
            path = f"/job_state/{uuid}/cancel"
            cancelled = browser(path, "POST", x_requested_with="a test", accept="*/*")
            assert cancelled.status == 202
            assert stream.state()["job"]["status"] == "cancelling"
    to_push = [line for line in asked(host) if line.startswith(f"{host.push_port} ")]
    assert [line.split()[1:] for line in to_push] == [["200", EVENTS]]


#: Ignores what a stream asks for, and keeps it until a buffer is full.
BUFFERING = """\
    location / {
        proxy_buffering on;
        proxy_ignore_headers X-Accel-Buffering;
        proxy_buffers 8 64k;
        proxy_buffer_size 64k;
"""


def test_page_polls_behind_a_proxy_that_buffers(host: Host, page: Page) -> None:
    """Behind a proxy that buffers streams, a page polls within a few seconds."""
    site = host.files[SITE].replace("    location / {\n", BUFFERING)
    command = option("ExecStart", host.files[UVICORN])
    with (
        host.redis() as client,
        host.web(command) as process,
        nginx(host, site),
    ):
        with followed(page, host, client) as marathon:
            # nginx logs a request when it is over.
            wait_for(lambda: any(EVENTS in line for line in asked(host)), 10)
            marathon.see("poll", 5)
        process.send_signal(signal.SIGTERM)
        process.wait(15)
