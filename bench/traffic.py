"""What a job costs the server: commands, bytes over its sockets, and bytes kept."""

from __future__ import annotations

import time
from typing import NamedTuple

import redis

from pyramid_jobstate.embedded import EmbeddedServer

from .peers.workers import RQ, CeleryProgress, Ours, Peer, peers
from .timing import Row, Table

#: The number of jobs measured, the steps of each, and the pause in each step.
JOBS, STEPS, PAUSE = 2, 100, 0.01


class Usage(NamedTuple):
    commands: float
    traffic: float
    kept: float


def measure(server: EmbeddedServer) -> Table:
    usages = {}
    with peers(server, Ours, CeleryProgress, RQ) as (found, left_out):
        for peer in found:
            with redis.Redis.from_url(server.url) as client, peer.working():
                client.flushall()
                client.config_resetstat()
                usages[peer.name] = _usage(client, peer)
    mine = usages.pop("ours")
    rows = []
    for what, i in (("commands", 0), ("bytes sent and received", 1), ("bytes kept", 2)):
        per_step = mine[i] / STEPS
        if i < 2:
            row = Row(f"ours: {what} / steps", per_step, note=f"{mine[i]:.0f} a job")
            rows.append(row._replace(at_most=0.5) if i == 0 else row)
        for name, usage in usages.items():
            note = f"{usage[i]:.0f} / {mine[i]:.0f} a job"
            rows.append(Row(f"{what}: {name} / ours", usage[i] / mine[i], note=note))
    notes = [
        "Commands inside scripts are not counted. RQ keeps its queue in the same "
        "server, the others do not. Nobody polls. The bytes that we keep include the "
        "lists of jobs."
    ]
    title = f"A job of {STEPS} steps of {1000 * PAUSE:.0f} ms, with an update in each"
    return Table(title, rows, notes + left_out)


def _usage(client: redis.Redis, peer: Peer) -> Usage:
    empty = _counts(client)
    before = _counts(client)
    jobs = [peer.send("take_steps", STEPS, PAUSE) for _ in range(JOBS)]
    # Polling meanwhile would count, too.
    time.sleep(JOBS * (STEPS * PAUSE * 1.3 + 0.7))
    after = _counts(client)
    if not all(map(peer.is_done, jobs)):
        raise RuntimeError(f"{peer.name} took too long")
    # Reading the counters counts, too: subtract what it cost before.
    commands, traffic = (
        (last - first - (first - zero)) / JOBS
        for zero, first, last in zip(empty, before, after, strict=True)
    )
    kept = sum(
        client.memory_usage(key, samples=0) or 0
        for key in client.scan_iter()
        if isinstance(peer, Ours) or any(job in key.decode() for job in jobs)
    )
    return Usage(commands, traffic, kept / JOBS)


def _counts(client: redis.Redis) -> tuple[int, int]:
    """Return the commands sent by clients, and the bytes of all connections."""
    stats = client.info("commandstats")
    calls = {name.removeprefix("cmdstat_"): s["calls"] for name, s in stats.items()}
    # Our clients send only EVALSHA; all other commands are called by the scripts.
    commands = calls.get("evalsha", 0) or sum(calls.values())
    network = client.info("stats")
    total = network["total_net_input_bytes"] + network["total_net_output_bytes"]
    return commands, total
