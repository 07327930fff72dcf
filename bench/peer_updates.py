"""What an update costs in a job, ours and our peers', each in its own worker."""

from __future__ import annotations

from pyramid_jobstate.embedded import EmbeddedServer

from .peers.workers import RQ, CeleryProgress, Ours, peers
from .timing import Row, Table

#: The number of updates timed at once. If each waits for Redis, fewer will do.
MANY, SOME = 50_000, 300


def measure(server: EmbeddedServer) -> Table:
    rows = []
    with peers(server, Ours, CeleryProgress, RQ) as (found, left_out):
        for peer in found:
            mine = isinstance(peer, Ours)
            with peer.working():
                update, floor = peer.updates(MANY if mine else SOME)
            rows.append(
                Row(
                    f"{peer.name}: `{peer.call}` / `HSET` in the same job",
                    update.over(floor),
                    at_most=0.03 if mine else float("inf"),
                    note=f"{update} / {floor}",
                )
            )
    return Table("An update in a worker process", rows, left_out)
