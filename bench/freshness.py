"""The age of what a poller reads: from the worker's call to the response over HTTP, and
to the callback in a browser.
"""

from __future__ import annotations

import http.client
import json
import math
import shutil
import statistics
import time
from typing import Any

from playwright.sync_api import sync_playwright

from pyramid_jobstate.embedded import EmbeddedServer
from tests.chromium import CHROMIUM_ARGUMENTS, CHROMIUM_NAMES

from .jobs import OWNER
from .peers.workers import CeleryProgress, Ours, Peer, get, peers, web_server
from .timing import Row, Table

#: The number of updates to follow.
COUNT = 25

#: The recorder's interval, in seconds.
INTERVAL = 0.1

#: The browser's polling period, in milliseconds.
PERIOD = 50

#: Follows a job to its end, and returns the age of each update in milliseconds.
FOLLOW = """([url, pollingPeriod]) => new Promise((resolve, reject) => {
  const ages = [];
  let last = 0;
  const update = ({ job }) => {
    const told = job.progress ? job.progress.done : 0;
    if (told > 1e12 && told !== last) ages.push(Date.now() - told / 1000);
    last = told;
  };
  JobState.startPolling({
    url, pollingPeriod, update,
    success: () => resolve(ages), error: reject, lost: reject,
  });
})"""


def measure(server: EmbeddedServer) -> Table:
    rows = []
    with (
        peers(server, Ours, CeleryProgress) as (found, left_out),
        web_server(server) as connection,
    ):
        for peer in found:
            mine = isinstance(peer, Ours)
            with peer.working():
                ages = _ages(peer, connection)
                rows.append(_row(peer.name, ages, 1.0 if mine else math.inf))
                if mine:
                    ages = _ages_in_browser(peer, connection)
                    what = f"{peer.name}, in a browser that polls every {PERIOD} ms"
                    rows.append(_row(what, ages, 2.0))
    notes = [
        f"Ratios to the recorder's interval, {INTERVAL} s. The poller asks again at "
        "once; a period would add up to its length. celery-progress writes before the "
        "job goes on, which shows how young an update can be."
    ]
    return Table("The age of an update when a poller gets it", rows, notes + left_out)


def _row(what: str, ages: list[float], limit: float) -> Row:
    ages = sorted(ages)
    median = statistics.median(ages)
    percent = [f"{1000 * ages[len(ages) * n // 10]:.0f}" for n in (1, 5, 9)]
    note = f"10, 50, 90 %: {', '.join(percent)} ms, the oldest {ages[-1]:.3f} s"
    return Row(f"{what}: median age", median / INTERVAL, at_most=limit, note=note)


def _ages_in_browser(peer: Peer, connection: http.client.HTTPConnection) -> list[float]:
    """Return the age of each update when a page's callback got it."""
    executable = next(filter(None, map(shutil.which, CHROMIUM_NAMES)))
    static = f"http://{connection.host}:{connection.port}/ours/job_state/static"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=executable, args=CHROMIUM_ARGUMENTS
        )
        page = browser.new_page(extra_http_headers={"X-User": OWNER})
        # Any document of the same origin will do.
        page.goto(f"{static}/job-state.css")
        page.add_script_tag(url=f"{static}/job-state.js")
        url = peer.path(peer.send("tell_the_time", COUNT))
        ages: list[float] = page.evaluate(FOLLOW, [url, PERIOD])
        browser.close()
    return [age / 1000 for age in ages]


def _ages(peer: Peer, connection: http.client.HTTPConnection) -> list[float]:
    """Return the age of each update when it was first seen."""
    job = peer.send("tell_the_time", COUNT)
    ages, last = [], 0.0
    while not peer.is_done(job):
        state = json.loads(get(connection, peer.path(job)))
        now = time.time()
        told = _told(state) / 1e6
        if told > 1e6 and told != last:
            ages.append(now - told)
            last = told
        time.sleep(0.003)
    return ages


def _told(state: dict[str, Any]) -> float:
    """Return what a job of either peer has reported."""
    if "job" in state:
        return (state["job"]["progress"] or {"done": 0})["done"]
    return state["progress"]["current"]
