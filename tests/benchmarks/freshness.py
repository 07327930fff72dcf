"""How old what a poller reads is: from the worker's call to the answer over HTTP."""

from __future__ import annotations

import http.client
import json
import statistics
import time
from typing import Any

from pyramid_jobstate.embedded import EmbeddedServer

from .peers.workers import CeleryProgress, Ours, Peer, get, peers, web_server
from .timing import Row, Table

#: How many updates are followed.
COUNT = 25

#: The recorder's interval, in seconds.
INTERVAL = 0.1


def measure(server: EmbeddedServer) -> Table:
    rows = []
    with (
        peers(server, Ours, CeleryProgress) as (found, left_out),
        web_server(server) as connection,
    ):
        for peer in found:
            with peer.working():
                ages = sorted(_ages(peer, connection))
            median, last = statistics.median(ages), ages[-1]
            percent = [f"{1000 * ages[len(ages) * n // 10]:.0f}" for n in (1, 5, 9)]
            note = f"10, 50, 90 %: {', '.join(percent)} ms, the oldest {last:.3f} s"
            mine = isinstance(peer, Ours)
            limit = 1.0 if mine else float("inf")
            what = f"{peer.name}: the median age"
            rows.append(Row(what, median / INTERVAL, at_most=limit, note=note))
    notes = [
        f"Ratios to the recorder's interval, {INTERVAL} s. The poller asks again at "
        "once: one with a period adds up to that. Who writes before the job goes on, "
        "as celery-progress does, shows how young an update can be."
    ]
    return Table("How old an update is when a poller has it", rows, notes + left_out)


def _ages(peer: Peer, connection: http.client.HTTPConnection) -> list[float]:
    """Return how old each update was when it was first seen."""
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
    """Return what a job of either peer has told."""
    if "job" in state:
        return (state["job"]["progress"] or {"done": 0})["done"]
    return state["progress"]["current"]
