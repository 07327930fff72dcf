"""``python -m bench.soak [--minutes N] [--jobs N] [--pollers N] [--streams N] …``."""

from __future__ import annotations

import argparse
import asyncio
import collections
import contextlib
import logging
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import redis

from pyramid_jobstate import JobState, JobStore
from pyramid_jobstate.embedded import EmbeddedServer
from tests.support import ROOT

from .actors import HEARTBEAT_TIMEOUT, STALLED_AFTER
from .followers import Follower
from .lag import note_lags
from .lateness import Lateness
from .pollers import Poller, Watched
from .sender import Sender
from .sights import Job
from .verdict import Judge, Runs, read_journal
from .weather import Weather

#: The shortest run that is of use, and the longest.
MIN_MINUTES, MAX_MINUTES = 2.0, 10.0

#: The calm at the end, in which nothing fails any more, as a share of the whole and as
#: a minimum in seconds. The seconds before it in which nothing is sent. The last
#: seconds, before which all jobs must have ended.
CALM, MIN_CALM = 0.2, 45.0
SENT_BEFORE = 10.0
CLOSING = 15.0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=MAX_MINUTES)
    parser.add_argument("--jobs", type=int, default=2000)
    parser.add_argument("--pollers", type=int, default=500)
    parser.add_argument("--streams", type=int, default=100, help="of the pollers")
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--period", type=float, default=1.0, help="of a poller")
    parser.add_argument("--restart-every", type=float, default=60.0)
    parser.add_argument("--kill-every", type=float, default=8.0)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--keep", help="where to leave journal and logs")
    options = parser.parse_args()
    if not MIN_MINUTES <= options.minutes <= MAX_MINUTES:
        parser.error(f"--minutes: from {MIN_MINUTES:g} to {MAX_MINUTES:g}")
    if not 0 <= options.streams <= options.pollers:
        parser.error("--streams: more than --pollers")
    return options


@contextlib.contextmanager
def web_server(environ: dict[str, str], log: IO[bytes]) -> Iterator[int]:
    """Run the web server, and yield its port."""
    command = [sys.executable, "-m", "bench.soak.web"]
    process = subprocess.Popen(
        command, cwd=ROOT, env=environ, stdout=subprocess.PIPE, stderr=log
    )
    assert process.stdout is not None
    try:
        yield int(process.stdout.readline())
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


async def watch(watched: Watched, streams: int) -> None:
    """Watch the jobs until it is over. So many of the watchers follow streams."""
    lags = asyncio.create_task(note_lags(watched.lags.append))
    async with asyncio.TaskGroup() as group:
        for i in range(watched.count):
            watcher = (Follower if i < streams else Poller)(watched)
            group.create_task(watcher.run())
    lags.cancel()


async def drain(client: redis.Redis, store: JobStore, jobs: list[Job]) -> None:
    """Wait until the broker has no messages left and every job has ended, or until it
    is certain that no more will.
    """
    quiet = 0.0
    while quiet < HEARTBEAT_TIMEOUT / 1000 + STALLED_AFTER:
        await asyncio.sleep(0.5)
        left = sum(client.hlen(f"dramatiq:default{x}.msgs") for x in ("", ".DQ"))
        quiet = 0.0 if left else quiet + 0.5
        if left or quiet < 2:
            continue
        if all(state and state.is_finished for state in load(store, jobs)):
            return


def load(store: JobStore, jobs: list[Job]) -> list[JobState | None]:
    states: list[JobState | None] = []
    for i in range(0, len(jobs), 100):
        states += store.load_many([job.uuid for job in jobs[i : i + 100]])
    return states


async def soak(options: argparse.Namespace, folder: Path) -> int:
    seconds = options.minutes * 60
    calm = max(seconds * CALM, MIN_CALM)
    bad = seconds - calm
    arguments = ["--appendonly", "yes"]
    with contextlib.ExitStack() as stack:
        servers = []
        for name in ("broker", "store"):
            (folder / name).mkdir()
            server = EmbeddedServer(directory=str(folder / name), arguments=arguments)
            servers.append(stack.enter_context(server))
        urls = (servers[0].url, servers[1].url)
        environ = {
            **os.environ,
            "SOAK_BROKER": urls[0],
            "SOAK_STORE": urls[1],
            "SOAK_JOURNAL": str(folder / "journal"),
            "SOAK_SECONDS": str(seconds + 60),
            "dramatiq_worker_timeout": "200",
        }
        (folder / "journal").touch()
        web_log = stack.enter_context((folder / "web.log").open("ab"))
        port = stack.enter_context(web_server(environ, web_log))
        watched = Watched(port, options.pollers, options.period)
        worker_log = folder / "workers.log"
        weather = Weather(servers[1], environ, worker_log, options.workers)
        stack.callback(weather.stop_workers)
        sender = Sender(urls, weather, watched)
        store = JobStore(urls[1], stalled_after=STALLED_AFTER)
        client = stack.enter_context(redis.Redis.from_url(urls[0]))

        watching = asyncio.create_task(watch(watched, options.streams))
        threads = [
            asyncio.to_thread(sender.send, options.jobs, bad - SENT_BEFORE),
            asyncio.to_thread(weather.restart_store, options.restart_every),
            asyncio.to_thread(weather.harm_workers, options.kill_every),
        ]
        sending, *harming = map(asyncio.create_task, threads)
        await asyncio.sleep(bad)
        weather.clear_up()
        await asyncio.gather(sending, *harming)
        wrong = []
        try:
            async with asyncio.timeout(calm - CLOSING):
                await drain(client, store, watched.jobs)
        except TimeoutError:
            wrong.append("the jobs did not all end in time")
        watched.over.set()
        await watching
        states = load(store, watched.jobs)
        codes = await asyncio.to_thread(weather.stop_workers)
        if set(codes) != {0}:
            wrong.append(f"the workers stopped with {codes}")
    return report(watched, weather, states, folder, wrong)


def report(
    watched: Watched, weather: Weather, states: list, folder: Path, wrong: list[str]
) -> int:
    """Print the counts, and return the number of things that were wrong."""
    jobs = watched.jobs
    journal = read_journal(folder / "journal")
    judge = Judge(weather)
    lateness = Lateness(weather, watched.lags, folder / "web.log")
    wrong += watched.wrong
    for job, state in zip(jobs, states, strict=True):
        runs = journal.get(job.uuid, {})
        found = [*judge.final(job, runs, state)]
        for sights in job.sights:
            found += judge.seen(runs, sights)
        found += lateness.measure(job, runs)
        found += lateness.alarms(job)
        if state and state.finished_at:
            found += lateness.missed(job, state.finished_at.timestamp())
        wrong += [f"{job.uuid} {what}" for what in found]
    unwatched = sum(not any(job.sights) for job in jobs)
    if unwatched:
        wrong.append(f"{unwatched} jobs were watched by nobody")
    logs = (folder / "workers.log").read_text(errors="replace").splitlines()
    ours = [line for line in logs if "[pyramid_jobstate" in line]
    wrong += [f"a worker logged {line}" for line in ours if "[ERROR]" in line]
    wrong += [
        f"the web server logged {line}"
        for line in lateness.log
        if "[ERROR]" in line or "Traceback" in line
    ]
    wrong = list(dict.fromkeys(wrong))
    statuses = collections.Counter(
        state.status if state else "none" for state in states
    )
    sights = [sight for job in jobs for watch in job.sights for sight in watch]
    seen = collections.Counter(sight.status for sight in sights)
    print(f"jobs         {len(jobs)}: {counts(statuses)}")
    print(f"sorts        {counts(collections.Counter(job.what for job in jobs))}")
    print(f"runs         {runs_line(journal)}")
    print(f"workers      killed {weather.killed}, frozen {weather.frozen}")
    away = sum(span.until - span.since for span in weather.outages)
    print(
        f"store        restarted {len(weather.outages)}, {weather.crashes} of them "
        f"after kill -9; away for {away:.0f} s"
    )
    fenced = sum("a newer run of it has begun" in line for line in ours)
    print(f"overtaken    {fenced} runs said that a newer one has begun")
    print(f"cancels      {counts(watched.cancels)}")
    print(f"polls        {watched.codes.total()}: {counts(watched.codes)}")
    if watched.failures:
        print(f"no answer    {counts(watched.failures)}")
    print(f"streams      {watched.streams.total()}: {counts(watched.streams)}")
    print(f"events       {watched.events.total()}: {counts(watched.events)}")
    print(f"seen         {len(sights)} changes: {counts(seen)}")
    for line in lateness.lines():
        print(line)
    busy = max((lag.until - lag.since for lag in watched.lags), default=0.0)
    print(f"slow         {len(watched.slow)} responses")
    print(f"watchers     were busy {len(watched.lags)} times, for {busy:.1f} s at most")
    print(f"came back    {judge.came_back} ends seen to begin again, delivered again")
    print(f"lost         {judge.lost} jobs by the broker, which read stalled")
    print(f"wrong        {len(wrong)}")
    for line in wrong[:20]:
        print(f"  {line[:500]}")
    (folder / "slow").write_text("\n".join(watched.slow))
    (folder / "ends").write_text("\n".join(lateness.table))
    (folder / "wrong").write_text("".join(f"{line}\n" for line in wrong))
    return len(wrong)


def counts(counter: collections.Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counter.items()))


def runs_line(journal: dict[str, Runs]) -> str:
    runs = [run for found in journal.values() for run in found.values()]
    attempts = collections.Counter(
        (job, run.attempt) for job, found in journal.items() for run in found.values()
    )
    again = sum(count - 1 for count in attempts.values())
    retried = sum(run.attempt > 1 for run in runs)
    outcomes = collections.Counter(run.outcome or "no end" for run in runs)
    return (
        f"{len(runs)}: {counts(outcomes)}; {retried} of a retry, "
        f"{again} delivered again"
    )


def main() -> int:
    options = parse()
    random.seed(options.seed)
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="jobstate-soak-") as folder:
        logging.basicConfig(filename=Path(folder) / "sender.log")
        wrong = asyncio.run(soak(options, Path(folder)))
        if options.keep:
            shutil.copytree(folder, options.keep)
    print(f"took         {time.monotonic() - begun:.0f} s")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
