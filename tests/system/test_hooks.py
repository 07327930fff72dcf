"""The promise of hooks: each end that the store holds is told at least once, whoever
dies or goes away.
"""

import contextlib
import json
import os
import random
import signal
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import redis
from redis.exceptions import RedisError

from pyramid_jobstate import JobStateMiddleware, JobStore
from pyramid_jobstate.embedded import EmbeddedServer
from pyramid_jobstate.testing import pass_time
from tests.cliapp import Folder
from tests.faulty import FAULTS, FaultyProxy, faulty
from tests.hooked import (
    PLACES,
    Convoy,
    Workers,
    declare,
    kill,
    make_hooked_broker,
    moment,
)
from tests.jobs import make_broker, working
from tests.sentinels import replicated
from tests.support import is_alive, load_job, wait_for
from tests.web.visits import Refusing
from tests.webapp import make_app, make_request, make_tm_config
from tests.workerprocess import PATIENCE, STALLED_AFTER

#: What of a worker's requests changes something, or reads a job.
ASKS = b"EVAL", b"HGETALL", b"HMGET"
MESSAGES = b"$7\r\nenqueue\r\n", b"$3\r\nack\r\n", b"$4\r\nnack\r\n"

ENDS = {"success": "on_success", "error": "on_error", "cancelled": "on_cancelled"}

#: What the hooks of a plan are told.
PLANS = {
    **{status: {hook} for status, hook in ENDS.items()},
    "retry": {"on_success"},
    "batch": {"on_success", "on_error"},
}


def calm(request: bytes) -> str:
    return "pass"


class Harbour:
    """A broker, a store, and a journal of what hooks were told.

    Attributes:
      ways: The proxies through which workers reach the broker and the store.
    """

    def __init__(
        self, workers: Workers, url: str, store_url: str, ways: Sequence[FaultyProxy]
    ) -> None:
        self.workers, self.store_url, self.ways = workers, store_url, ways
        self.client: Any = redis.Redis.from_url(store_url)
        self.broker = make_hooked_broker(url, store_url)
        self.cross = declare(self.broker)
        self.store = JobStore(store_url, stalled_after=STALLED_AFTER)

    def start(self, **environ: str) -> int:
        """Start a worker."""
        urls = {"BROKER": self.ways[0].url, "STORE": self.ways[1].url}
        return self.workers.start(**{**urls, "JOURNAL": self.store_url, **environ})

    def judge(self, judge: Callable[[bytes], str]) -> None:
        """Have a function say what becomes of the requests of workers."""
        for way in self.ways:
            way.judge = judge

    def send(self, *args: Any, count: int = 1, **options: Any) -> list[str]:
        """Send jobs, and return their uuids."""
        return [
            self.cross.send_with_options(args=args, **options).message_id
            for _ in range(count)
        ]

    def statuses(self, uuids: Sequence[str]) -> set[str]:
        return {load_job(self.store, uuid).status for uuid in uuids}

    def wait_until(self, status: str, uuids: Sequence[str]) -> None:
        wait_for(lambda: self.statuses(uuids) == {status})

    def told(self) -> list[tuple[str, str, int]]:
        """Return what hooks were told: their names, the jobs, and when these ended. The
        end of each could be seen, or it had begun again.
        """
        found = []
        for line in self.client.lrange("journal", 0, -1):
            hook, uuid, ended, status, is_newer = json.loads(line)
            assert ENDS.get(status) == hook or is_newer, line
            found.append((hook, uuid, ended))
        return found

    def untold(self) -> list[str]:
        """Return the jobs whose ends are to be told."""
        keys = self.client.scan_iter("jobstate:untold:*")
        found = [uuid for key in keys for uuid in self.client.zrange(key, 0, -1)]
        return [uuid.decode() for uuid in found]

    def end_leases(self) -> None:
        """Wait for no worker that has died while it told an end."""
        for key in self.client.scan_iter("jobstate:untold:*"):
            for uuid in self.client.zrange(key, 0, -1):
                self.client.zadd(key, {uuid: 0}, xx=True)

    def forget_workers(self) -> None:
        """Have the broker take all workers for dead."""
        for name in self.client.zrange("dramatiq:__heartbeats__", 0, -1):
            self.client.zadd("dramatiq:__heartbeats__", {name: 0}, xx=True)

    def is_settled(self, uuids: Sequence[str]) -> bool:
        """Return whether jobs have ended, their last ends were told, and no message is
        left.
        """
        told = self.told()
        jobs = [load_job(self.store, uuid) for uuid in uuids]
        return (
            all(job.is_finished for job in jobs)
            and all((ENDS[job.status], job.uuid, moment(job)) in told for job in jobs)
            and not self.untold()
            and not self.client.hlen("dramatiq:default.msgs")
        )

    def settle(self, uuids: Sequence[str], *, leases: bool = False) -> None:
        """Wait until that is so.

        Parameters:
          leases: Whether to wait for leases, too.
        """

        def is_settled() -> bool:
            if not leases:
                self.end_leases()
            return self.is_settled(uuids)

        # Dramatiq waits five seconds before it acknowledges a message once more.
        wait_for(is_settled, PATIENCE)


@pytest.fixture
def workers(tmp_path: Path) -> Iterator[Workers]:
    with contextlib.closing(Workers(tmp_path / "workers.log")) as workers:
        yield workers


@contextlib.contextmanager
def opened(workers: Workers, url: str, store_url: str) -> Iterator[Harbour]:
    with faulty(url) as one, faulty(store_url) as other:
        yield Harbour(workers, url, store_url, [one, other])


@pytest.fixture
def harbour(workers: Workers, redis_url: str) -> Iterator[Harbour]:
    with opened(workers, redis_url, redis_url) as harbour:
        yield harbour


# Workers that die.


@pytest.mark.promise("every-end-is-told")
@pytest.mark.parametrize(
    ("plan", "fault"),
    [
        ("success", "refuse"),
        ("error", "lose"),
        ("cancelled", "lose"),
        pytest.param("cancelled", "refuse", marks=pytest.mark.long),
        pytest.param("success", "lose", marks=pytest.mark.long),
        pytest.param("error", "refuse", marks=pytest.mark.long),
        pytest.param("retry", "lose", marks=pytest.mark.long),
        pytest.param("batch", "lose", marks=pytest.mark.long),
    ],
)
def test_worker_dies_at_any_request(harbour, set_broker, plan, fault):
    """Whatever a worker asked last, before or after a server heard of it, another one
    tells the end of its job, or of one that somebody else has ended. No attempt that is
    tried again is told.
    """
    set_broker(harbour.broker)
    number = 0
    while dies_at(harbour, number, plan, fault):
        number += 1
        harbour.client.flushdb()
    assert number > 6


def begin(harbour: Harbour, plan: str) -> list[str]:
    """Do what a plan begins with. Return the uuids of its jobs."""
    if plan == "cancelled":
        uuids = harbour.send(delay=60_000)
        assert load_job(harbour.store, *uuids).cancel()
        return uuids
    if plan == "batch":
        config = make_tm_config(harbour.store_url)
        make_app(config)
        request = make_request(config, "alice")
        with request.tm, request.job_states.batch(Convoy, allow_failures=True) as batch:
            jobs = [batch.send(harbour.cross, end) for end in ("success", "error")]
        return [batch.uuid, *(job.uuid for job in jobs)]
    return harbour.send(plan)


def dies_at(harbour: Harbour, number: int, plan: str, fault: str) -> bool:
    """Run a job by a worker that dies at the request of a number, from 0, of those that
    change something or read a job, and by another one. Return whether it died.
    """
    pids: list[int] = []
    asked = 0

    def judge(request: bytes) -> str:
        nonlocal asked
        words = MESSAGES if b"\r\ndramatiq\r\n" in request else ASKS
        if not any(word in request for word in words):
            return "pass"
        asked += 1
        if asked <= number:
            return "pass"
        kill(wait_for(lambda: pids)[0])
        return fault

    uuids = begin(harbour, plan)
    harbour.judge(judge)
    pids.append(harbour.start())
    wait_for(lambda: not is_alive(pids[0]) or harbour.is_settled(uuids))
    has_died = not is_alive(pids[0])
    harbour.judge(calm)
    if has_died:
        harbour.forget_workers()
        pids.append(harbour.start())
        harbour.settle(uuids)
    for pid in pids:
        kill(pid)
    counts = Counter(harbour.told())
    assert {hook for hook, _, _ in counts} == PLANS[plan]
    assert max(counts.values()) <= 2
    return has_died


@pytest.mark.parametrize("place", PLACES)
def test_worker_dies_with_rabbitmq(workers, redis_url, rabbitmq, place):
    """Another one tells the end of its job."""
    with faulty(redis_url) as way:
        harbour = Harbour(workers, rabbitmq.url, redis_url, [way, way])
        uuids = harbour.send()
        pid = harbour.start(BROKER=rabbitmq.url, DEATH=f"{place} {uuids[0]}")
        wait_for(lambda: not is_alive(pid))
        times = len(harbour.told())
        harbour.start(BROKER=rabbitmq.url)
        harbour.settle(uuids)
        assert times == (place in ("inside", "returned"))
        harbour.broker.close()


@pytest.mark.promise("every-end-is-told")
def test_no_end_is_lost_in_a_storm(harbour):
    """Replies are lost, late or cut, requests do not arrive, jobs are cancelled. The
    workers live, since a dead one may take an end with it that only it knew.
    """
    dice = random.Random(35)

    def judge(request: bytes) -> str:
        # Dramatiq tells its broker of the end of a message until that has heard of it,
        # but late. A delayed one that it could not forward waits for the worker's end.
        is_for_broker = b"\r\ndramatiq\r\n" in request
        words = MESSAGES[:1] if is_for_broker else ASKS
        if b'"retries"' in request and b".DQ" not in request:
            return "pass"
        if not any(word in request for word in words) or dice.random() > 0.15:
            return "pass"
        return dice.choice(FAULTS[1:])

    harbour.judge(judge)
    for _ in range(2):
        harbour.start(THREADS="4")
    uuids = []
    for number in range(60):
        options = {"delay": 60_000} if number % 3 == 0 else {"max_retries": 0}
        uuids += harbour.send(dice.choice(("success", "error")), **options)
        if number % 3 == 0 or number % 5 == 0:
            load_job(harbour.store, uuids[-1]).cancel()
    wait_for(lambda: len(harbour.told()) > 30)
    harbour.judge(calm)
    harbour.settle(uuids)
    assert {hook for hook, _, _ in harbour.told()} == {*ENDS.values()}
    for fault in FAULTS:
        assert any(way.faults[fault] for way in harbour.ways), fault


# What goes away.


def test_broker_and_store_go_away_and_come_back(workers, tmp_path):
    """Ends that are stored while the broker is away are told when it is back. A store
    that is killed and starts again from its file still knows what is to be told.
    """
    folder = tmp_path / "store"
    folder.mkdir()
    kept = ["--appendonly", "yes", "--appendfsync", "always"]
    with (
        EmbeddedServer() as broker,
        EmbeddedServer(directory=str(folder), arguments=kept) as server,
        opened(workers, broker.url, server.url) as harbour,
    ):
        uuids = harbour.send(delay=60_000, count=3)
        harbour.start()
        broker.stop()
        for uuid in uuids:
            assert load_job(harbour.store, uuid).cancel()
        said = "The broker refuses messages that call hooks"
        wait_for(lambda: workers.lines(said))
        os.kill(server.pid, signal.SIGKILL)
        wait_for(lambda: not server.is_running)
        server.stop()
        server.start()
        assert sorted(harbour.untold()) == sorted(uuids)
        assert not harbour.told()
        broker.start()
        harbour.settle(uuids)
        assert {*Counter(harbour.told()).values()} == {1}
        assert len(workers.lines(said)) == 1


def test_failover_loses_no_end(redis_url, tmp_path, monkeypatch):
    """A worker tells the ends that the replica has, once that takes over."""
    with replicated(tmp_path) as (primary, replica, sentinel):
        store = JobStore(sentinel.master_for("jobs", socket_timeout=0.5))
        monkeypatch.setenv("STORE", replica.url)
        monkeypatch.setenv("JOURNAL", redis_url)
        broker = make_broker(redis_url, JobStateMiddleware(store, heartbeat=0.1))
        cross = declare(broker)
        for message in [cross.send_with_options(delay=60_000) for _ in range(3)]:
            assert load_job(store, message.message_id).cancel()
        with redis.Redis.from_url(primary.url) as client:
            assert client.execute_command("WAIT", 1, 2000) == 1
        os.kill(primary.pid, signal.SIGKILL)

        def is_quiet() -> bool:
            with contextlib.suppress(RedisError):
                return not [*store.client.scan_iter("*untold:*")]
            return False

        with redis.Redis.from_url(redis_url) as client, working(broker):
            wait_for(lambda: client.llen("journal") == 3, 30)
            wait_for(is_quiet)


# Who ends jobs.


def test_cancels_by_who_knows_no_class(harbour, tmp_path):
    """A job that waits, is delayed, runs or is stalled is told of its cancel, though it
    came from `pjobs --url`.
    """
    folder = Folder(tmp_path, harbour.store_url)

    def cancel(*uuids: str) -> None:
        with folder.start("--url", harbour.store_url, "cancel", *uuids) as pjobs:
            assert pjobs.end() == 0, pjobs.text()

    stalled = harbour.send("success", "never")
    pid = harbour.start()
    harbour.wait_until("working", stalled)
    kill(pid)
    wait_for(lambda: not is_alive(pid))
    pass_time(harbour.store, 60)
    ended = stalled + harbour.send() + harbour.send(delay=60_000)
    cancel(*ended)
    assert harbour.statuses(ended) == {"cancelled"}
    assert sorted(harbour.untold()) == sorted(ended)
    harbour.forget_workers()
    harbour.start()
    harbour.settle(ended, leases=True)
    running = harbour.send("success", "never")
    harbour.wait_until("working", running)
    cancel(*running)
    harbour.settle(ended + running, leases=True)
    told = [(hook, uuid) for hook, uuid, _ in harbour.told()]
    assert sorted(told) == sorted(("on_cancelled", x) for x in ended + running)


def test_jobs_that_are_never_sent_or_skipped(harbour, set_broker):
    """What the broker refuses at the commit reads as failed, and its later steps as
    cancelled; so do those of a step that fails. A worker tells of all. What is aborted
    has no end.
    """
    set_broker(harbour.broker)
    config = make_tm_config(harbour.store_url)
    make_app(config)
    request = make_request(config, "alice")
    cross, refusing = harbour.cross, Refusing()

    def send() -> list[str]:
        request.tm.begin()
        job = request.job_states.send(cross)
        pipe = cross.message("error") | cross.message_with_options(pipe_ignore=True)
        steps: Any = request.job_states.send_message(pipe)
        return [job.uuid, *(step.uuid for step in steps)]

    harbour.broker.add_middleware(refusing)
    send()
    request.tm.abort()
    never = send()
    request.tm.commit()
    refusing.chooses = lambda message: False
    later = send()
    request.tm.commit()
    statuses = [load_job(harbour.store, uuid).status for uuid in never]
    assert statuses == ["error", "error", "cancelled"]
    assert sorted(harbour.untold()) == sorted(never)
    harbour.start()
    harbour.settle(never + later, leases=True)
    names = {uuid: hook for hook, uuid, _ in harbour.told()}
    assert len(names) == len(harbour.told()) == 6
    assert [names[uuid] for uuid in never] == ["on_error", "on_error", "on_cancelled"]
    assert [names[uuid] for uuid in later] == ["on_success", "on_error", "on_cancelled"]


# Who tells.


def test_two_workers_sweep_the_same_ends(harbour):
    """None is lost, and each is sent once."""
    uuids = harbour.send(delay=60_000, count=300)
    for uuid in uuids:
        assert load_job(harbour.store, uuid).cancel()
    for _ in range(2):
        harbour.start(THREADS="4")
    wait_for(lambda: len(harbour.told()) >= 300)
    wait_for(lambda: not harbour.untold())
    counts = Counter(uuid for _, uuid, _ in harbour.told())
    assert counts.keys() == {*uuids} and counts.total() == 300
    assert not harbour.workers.lines("it was told before")
