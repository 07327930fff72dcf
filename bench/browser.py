"""What a page full of jobs costs the browser."""

from __future__ import annotations

import json
import shutil
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from playwright.sync_api import Page, sync_playwright

from pyramid_jobstate.embedded import EmbeddedServer
from tests.chromium import CHROMIUM_ARGUMENTS, CHROMIUM_NAMES
from tests.pollserver import STATIC, uuid_of

from .timing import Row, Table

JOBS = 150
SECONDS = 10.0

PAGE = (
    '<!doctype html><html lang="en"><title>Jobs</title>'
    '<script src="/job-state.js"></script>'
    + "".join(
        f'<job-state src="/job_state/{uuid_of(n)}/" cancellable></job-state>'
        for n in range(JOBS)
    )
)


class _Handler(BaseHTTPRequestHandler):
    """Serves the page, and jobs that have progressed at each request."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        uuids = parse_qs(url.query).get("uuid", [])
        name = url.path[1:]
        if uuids:
            body = json.dumps({"jobs": {uuid: _working(uuid) for uuid in uuids}})
            self._send(body, "application/json")
        elif name == "":
            self._send(PAGE, "text/html")
        elif (STATIC / name).is_file():
            kind = "text/css" if name.endswith(".css") else "text/javascript"
            self._send((STATIC / name).read_text("utf-8"), kind)
        else:
            self._send("", "text/plain", 404)

    def _send(self, text: str, kind: str, status: int = 200) -> None:
        body = text.encode("utf-8")
        self.send_response_only(status)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        """Log nothing."""


def _working(uuid: str) -> dict[str, Any]:
    done = round(time.monotonic() * 10) % 1000
    progress = {"done": done, "total": 1000, "unit": "miles", "fraction": done / 1000}
    job = {
        "uuid": uuid,
        "title": "Run marathon",
        "status": "working",
        "attempt": 1,
        "progress": {**progress, "eta": 100 - done / 10},
        "message": f"Mile {done}",
        "started_at": "2026-01-01T00:00:00Z",
        "updated_at": "2026-01-01T00:01:00Z",
        "log": [],
        "cancellable": True,
    }
    return {"job_state": "working", "job": job}


def _cpu(page: Page) -> float:
    """Return the share of a core that the page's main thread takes."""
    session = page.context.new_cdp_session(page)
    session.send("Performance.enable", {"timeDomain": "threadTicks"})

    def task_duration() -> float:
        metrics = session.send("Performance.getMetrics")["metrics"]
        found: float = next(m["value"] for m in metrics if m["name"] == "TaskDuration")
        return found

    before, begun = task_duration(), time.monotonic()
    page.wait_for_timeout(SECONDS * 1000)
    return (task_duration() - before) / (time.monotonic() - begun)


def measure(server: EmbeddedServer) -> Table:
    """Return a page's share of a core, with 150 elements updated every second."""
    executable = next(filter(None, map(shutil.which, CHROMIUM_NAMES)))
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    try:
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(
                executable_path=executable, args=CHROMIUM_ARGUMENTS
            )
            page = browser.new_page()
            page.goto(f"http://127.0.0.1:{httpd.server_address[1]}/")
            page.wait_for_timeout(2500)
            share = _cpu(page)
            browser.close()
    finally:
        httpd.shutdown()
        httpd.server_close()
    note = "CPU time of the main thread, by Chromium's TaskDuration"
    return Table(
        "A page of 150 jobs, one update a second",
        [Row("per cent of a core", 100 * share, at_most=5.0, note=note)],
    )
