"""What a whole job costs, from its send to its end, beside the same job of bare
Dramatiq, and RQ's.

Each measurement takes place in a process and with a server of its own. The sides take
turns, and of each figure the least of all rounds counts: what else the machine does can
only add to it. A round before them warms up and counts the bytes in the append-only
file, which costs the server time.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import logging
import math
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import dramatiq
import redis
from dramatiq.brokers.redis import RedisBroker

from pyramid_jobstate import JobStateMiddleware
from pyramid_jobstate.embedded import EmbeddedServer
from tests.support import ROOT
from tests.webapp import make_request, make_tm_config

from .jobs import OWNER
from .timing import Row, Table

#: The number of members of a batch.
MEMBERS = 1_000

#: The number of rounds, and of the threads of a worker.
ROUNDS, THREADS = 5, 8

#: What each case is measured with.
BARE, TRACKED, OWNED, RQ = "bare", "tracked", "owned", "rq"

#: What is measured of a job: microseconds, numbers and bytes.
FIGURES = {
    "server": "CPU of the Redis server",
    "scripts": "scripts beyond Dramatiq's own",
    "sender": "CPU of the sender",
    "trips": "round trips of the sender beyond Dramatiq's own",
    "worker": "CPU of the worker",
    "rate": "jobs a second of a worker process",
    "bytes": "bytes in the append-only file",
}

#: The goals, for a plain send without an owner.
GOALS = {"server": 3.5, "scripts": 4, "sender": 3, "trips": 2, "worker": 2.2}

Figures = dict[str, float]


class CountingBroker(RedisBroker):
    """Knows how many scripts Dramatiq itself has called."""

    def __init__(self, url: str) -> None:
        make: Any = super().__init__
        make(url=url)
        self.calls: list[str] = []

    def _dispatch(self, command: str) -> Any:
        self.calls.append(command)
        dispatch: Any = super()
        return dispatch._dispatch(command)


class Sender:
    """What sends jobs to Dramatiq and runs them.

    Parameters:
      server: The server of the broker and of the store.
      side: BARE, TRACKED or OWNED.

    Attributes:
      broker, actor: The broker, and an actor that does nothing.
      options: The options of a message that names its owner, if there is one.
      request: A request of the owner, if there is one. All transactions are its.
      left: Is released by each job.
    """

    def __init__(self, server: EmbeddedServer, side: str) -> None:
        self.is_bare = side == BARE
        self.broker = CountingBroker(server.url)
        self.left = left = threading.Semaphore(0)
        dramatiq.set_broker(self.broker)
        config = make_tm_config(server.url if not self.is_bare else None)
        if not self.is_bare:
            self.broker.add_middleware(JobStateMiddleware())
            config.include("pyramid_jobstate")
        config.make_wsgi_app()

        def work(number: int) -> None:
            left.release()

        options: Any = {} if self.is_bare else {"job_state": True}
        self.actor = dramatiq.actor(broker=self.broker, **options)(work)
        owner = OWNER if side == OWNED else None
        self.options: Any = {} if owner is None else {"job_owner": owner}
        self.shared = owner is None
        self.request: Any = make_request(config, owner)

    @property
    def own_scripts(self) -> int:
        """The number of scripts that Dramatiq has called."""
        return len(self.broker.calls)

    def run(self, count: int) -> float:
        """Run so many jobs, and return the seconds that they took."""
        worker = dramatiq.Worker(self.broker, worker_threads=THREADS)
        begun = time.perf_counter()
        worker.start()
        for _ in range(count):
            self.left.acquire()
        seconds = time.perf_counter() - begun
        worker.stop()
        return seconds


class RQSender:
    """The same for RQ, whose worker runs jobs in its own process here: by default it
    forks for each.
    """

    own_scripts = 0

    def __init__(self, server: EmbeddedServer) -> None:
        from rq import Queue

        self.client = redis.Redis.from_url(server.url)
        self.queue = Queue(connection=self.client)

    def run(self, count: int) -> float:
        from rq import SimpleWorker

        worker = SimpleWorker([self.queue], connection=self.client)
        begun = time.perf_counter()
        worker.work(burst=True, logging_level="ERROR")
        return time.perf_counter() - begun


def with_rq(sender: RQSender, number: int) -> None:
    sender.queue.enqueue("operator.index", number)


def plain(sender: Sender, number: int) -> None:
    sender.actor.send_with_options(args=(number,), **sender.options)


def delayed(sender: Sender, number: int) -> None:
    sender.actor.send_with_options(args=(number,), delay=1, **sender.options)


def pipeline(sender: Sender, number: int) -> None:
    step = functools.partial(
        sender.actor.message_with_options, args=(number,), pipe_ignore=True
    )
    steps = [step(**sender.options) for _ in range(3)]
    dramatiq.pipeline(steps, broker=sender.broker).run()


def in_transaction(sender: Sender, number: int, **options: Any) -> None:
    request = sender.request
    with request.tm as transaction:
        if sender.is_bare:
            _after_commit(transaction, sender, 1)
        else:
            states = request.job_states
            states.send_with_options(sender.actor, (number,), **options)


def unique(sender: Sender, number: int) -> None:
    options = {} if sender.is_bare else {"unique": f"{number}", "shared": sender.shared}
    in_transaction(sender, number, **options)


def batch(sender: Sender, number: int) -> None:
    request = sender.request
    with request.tm as transaction:
        if sender.is_bare:
            _after_commit(transaction, sender, MEMBERS)
            return
        with request.job_states.batch() as members:
            for i in range(MEMBERS):
                members.send(sender.actor, i)


def _after_commit(transaction: Any, sender: Sender, count: int) -> None:
    """Send messages after the commit, as is usual with bare Dramatiq."""

    def send(committed: bool) -> None:
        for i in range(count):
            sender.actor.send(i)

    transaction.addAfterCommitHook(send)


class Case(NamedTuple):
    """A way to send jobs.

    Attributes:
      send: Does it once.
      sends: How often a measurement does it. To start and stop a worker takes some
        milliseconds, which count among more jobs for less.
      jobs: The number of jobs that one makes.
      goals: The most that a figure may be, or None.
    """

    what: str
    send: Callable[[Sender, int], None]
    sends: int = 600
    jobs: int = 1
    goals: Mapping[str, float] | None = None


CASES = {
    case.send.__name__: case
    for case in (
        Case("a plain send", plain, sends=1_500, goals=GOALS),
        Case("a send in a transaction", in_transaction),
        Case("a delayed send", delayed),
        Case("a pipeline of three", pipeline, sends=200, jobs=3),
        Case("a unique job", unique),
        Case(f"a batch of {MEMBERS:,}", batch, sends=1, jobs=MEMBERS),
    )
}


def measure(server: EmbeddedServer) -> Table:
    rows: list[Row] = []
    has_rq = importlib.util.find_spec("rq") is not None
    for name, case in CASES.items():
        with_peer = has_rq and name == plain.__name__
        found = _rounds(name, [BARE, TRACKED, OWNED] + [RQ] * with_peer)
        bare = found[BARE]
        rows += _rows(case.what, found[TRACKED], bare, case.goals or {}, found[OWNED])
        if with_peer:
            rows += _rows("RQ's own job", found[RQ], bare)
    notes = [
        "All figures are those of one job, the least of "
        f"{ROUNDS} rounds. A worker process has {THREADS} threads; RQ's has one, and "
        "does not fork. What bare Dramatiq sends in a transaction is sent by a hook "
        "after the commit."
    ]
    if not has_rq:
        notes.append('RQ is left out. Not installed: rq. See the extra "benchmarks".')
    return Table("A whole job / a job of bare Dramatiq", rows, notes)


def _rounds(case: str, sides: Sequence[str]) -> dict[str, Figures]:
    """Return the least figures of each side of a case."""
    files = {side: _in_a_process(case, side, "yes")["bytes"] for side in sides}
    rounds = [
        {side: _in_a_process(case, side, "no") for side in sides} for _ in range(ROUNDS)
    ]
    found = {}
    for side in sides:
        least = {
            key: min(each[side][key] for each in rounds) for key in rounds[0][side]
        }
        found[side] = {**least, "bytes": files[side]}
    return found


def _in_a_process(*arguments: str) -> Figures:
    command = [sys.executable, "-W", "ignore", "-m", "bench.cost", *arguments]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True)
    figures: Figures = json.loads(done.stdout)
    return figures


def _rows(
    what: str,
    mine: Figures,
    bare: Figures,
    goals: Mapping[str, float] = {},
    owned: Figures | None = None,
) -> list[Row]:
    """Return a row for each figure."""

    def compare(figures: Figures, key: str) -> float:
        if key == "scripts":
            return figures[key]
        if key == "trips":
            return figures[key] - bare[key]
        if key == "rate":
            return bare["seconds"] / figures["seconds"]
        return figures[key] / bare[key]

    def show(figures: Figures, key: str) -> str:
        if key in ("scripts", "trips"):
            return f"{figures[key]:.2f}"
        if key == "rate":
            return f"{1 / figures['seconds']:,.0f}"
        return f"{figures[key]:,.0f}"

    rows = []
    for key, name in FIGURES.items():
        if key == "scripts" and what.startswith("RQ"):
            continue
        unit = " µs" if name.startswith("CPU") else ""
        note = f"{show(mine, key)} / {show(bare, key)}{unit}"
        if owned is not None:
            note += f"; with an owner {compare(owned, key):.2f}"
        at_most = goals.get(key, math.inf)
        ratio = compare(mine, key)
        rows.append(Row(f"{what}: {name}", ratio, at_most=at_most, note=note))
    return rows


def _measure(case: Case, side: str, *, keeps_file: bool) -> Figures:
    """Send jobs, run them, and return what one of them cost."""
    logging.disable(logging.CRITICAL)
    arguments = ["--appendonly", "yes" if keeps_file else "no"]
    with (
        EmbeddedServer(arguments=arguments) as server,
        redis.Redis.from_url(server.url) as client,
    ):
        sender: Any = RQSender(server) if side == RQ else Sender(server, side)
        send: Any = with_rq if side == RQ else case.send

        def read() -> Figures:
            info: Any = client.info("everything")
            calls = info.get("cmdstat_evalsha", {"calls": 0})["calls"]
            return {
                "server": (info["used_cpu_user"] + info["used_cpu_sys"]) * 1e6,
                "scripts": calls - sender.own_scripts,
                "sender": time.process_time() * 1e6,
                "trips": info["total_reads_processed"],
                "bytes": info.get("aof_current_size", 0),
            }

        def over(count: int, first: Figures, last: Figures) -> Figures:
            return {key: (last[key] - first[key]) / count for key in first}

        sends, early = case.sends, case.sends // 10 + 1
        for number in range(early):
            send(sender, number)
        begun = read()
        for number in range(early, early + sends):
            send(sender, number)
        sent = read()
        jobs = (early + sends) * case.jobs
        seconds = sender.run(jobs)
        sending = over(sends * case.jobs, begun, sent)
        running = over(jobs, sent, read())
        return {
            "sender": sending["sender"],
            "trips": sending["trips"],
            "worker": running["sender"],
            "seconds": seconds / jobs,
            **{
                key: sending[key] + running[key]
                for key in ("server", "scripts", "bytes")
            },
        }


if __name__ == "__main__":
    _case, _side, _keeps_file = sys.argv[1:]
    figures = _measure(CASES[_case], _side, keeps_file=_keeps_file == "yes")
    print(json.dumps(figures))
