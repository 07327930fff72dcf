"""Operators who act while workers are at work, and operators who are killed."""

from __future__ import annotations

import concurrent.futures
import itertools
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest
import redis
from dramatiq import Message

from pyramid_jobstate import JobStore, rerun, rerun_all
from pyramid_jobstate.testing import pass_time
from tests.jobs import load, new_id, wait_until, working
from tests.rerunapp import FAILS, RUNS, make
from tests.support import ROOT, wait_for
from tests.worker.floors import Floor, fail


def test_worker_runs_nothing_that_is_cancelled_meanwhile(floor: Floor) -> None:
    """Of the jobs that are cancelled while a worker is at work, those that wait never
    run.
    """
    sent = [floor.post("a") for _ in range(60)]
    floor.scripts["a"] = lambda _: time.sleep(0.001)
    with floor.working():
        wait_for(lambda: floor.ran["a"] > 5)
        done = floor.store.cancel_all(kind="Chore").done
        runs = floor.ran["a"]
        wait_for(floor.is_idle)
    # The worker's four threads had begun a job each.
    assert floor.ran["a"] <= runs + 4
    statuses = floor.statuses(*sent)
    assert set(statuses) == {"success", "cancelled"}
    assert 0 <= done - statuses.count("cancelled") <= 4


def test_clearing_while_a_worker_is_at_work(floor: Floor) -> None:
    """Jobs that end are deleted while others run: each runs once, and none is lost."""
    sent = [floor.post(str(number)) for number in range(60)]
    deleted = 0
    with floor.working():
        while deleted < len(sent):
            deleted += floor.store.clear(kind="Chore").done
    assert deleted == 60
    assert floor.ran == dict.fromkeys(map(str, range(60)), 1)
    assert floor.store.list().items == []


def test_running_again_while_a_worker_is_at_work(floor: Floor) -> None:
    """Two operators run all failed jobs again while a worker processes them: each runs
    once more.
    """
    names = [str(number) for number in range(30)]
    floor.scripts = dict.fromkeys(names, lambda _: fail(ValueError("x")))
    sent = [floor.post(name) for name in names]
    floor.work()
    floor.scripts = {}

    def operate() -> int:
        return rerun_all(floor.store, floor.broker, kind="Chore").done

    with floor.working(), concurrent.futures.ThreadPoolExecutor(2) as pool:
        found = [pool.submit(operate) for _ in range(2)]
        assert sum(each.result() for each in found) == 30
        wait_for(floor.is_idle)
    assert {*floor.statuses(*sent)} == {"success"}
    assert floor.ran == dict.fromkeys(names, 2)


# Operators who are killed.


class Site:
    """A broker with its actor, and the store of its jobs.

    Attributes:
      client: The server.
    """

    def __init__(self, url: str) -> None:
        self.client = redis.Redis.from_url(url)
        self.url = url
        self.broker, self.errand = make(url)
        self.store = JobStore(url)

    def fail(self) -> Message[Any]:
        """Have a job fail, and return its message. No worker runs afterwards."""
        self.client.set(FAILS, 1)
        message: Message[Any] = self.errand.send(1)
        with working(self.broker):
            wait_until(self.broker, message, "error")
        self.client.delete(FAILS)
        return message

    def redeliver(self, message: Message[Any]) -> None:
        """Have a message delivered as after the death of its worker."""
        options = {"redis_message_id": new_id()}
        message = message.copy(options=options)
        queue, place = message.queue_name, options["redis_message_id"]
        self.broker.do_enqueue(queue, place, message.encode())

    def runs(self) -> int:
        runs: Any = self.client.llen(RUNS)
        return int(runs)

    def work(self) -> None:
        """Have a worker process all messages."""
        with working(self.broker):
            # The broker keeps a message until it is settled.
            waiting = ("dramatiq:default.msgs", "dramatiq:default.DQ.msgs")
            wait_for(lambda: not self.client.exists(*waiting))

    def operate(self, name: str, uuid: str, number: int, moment: str) -> None:
        """Act as an operator who is killed at a round trip, if there are so many."""
        command = [sys.executable, "-m", "tests.rerunapp", self.url, name, uuid]
        done = subprocess.run([*command, str(number), moment], cwd=ROOT)
        assert done.returncode in (0, -signal.SIGKILL)


@pytest.fixture
def site(redis_url: str) -> Iterator[Site]:
    site = Site(redis_url)
    yield site
    site.broker.close()


#: The round trips at which an operator is killed by default, and all of them.
SOME = [(2, "after"), (4, "before"), (5, "after"), (9, "before")]
EVERY = list(itertools.product(range(1, 15), ("before", "after")))


def kills(*names: str) -> list[Any]:
    return [
        pytest.param(
            name,
            number,
            moment,
            marks=[] if (number, moment) in SOME else pytest.mark.long,
        )
        for name in names
        for number, moment in EVERY
    ]


@pytest.mark.system
@pytest.mark.parametrize(("name", "number", "moment"), kills("rerun", "rerun_all"))
def test_operator_who_is_killed_runs_a_job_once(
    site: Site, name: str, number: int, moment: str
) -> None:
    """Wherever an operator who runs a job again is killed, the job runs once more, at
    the latest when another does it.
    """
    sent = site.fail()
    with working(site.broker):
        site.operate(name, sent.message_id, number, moment)
        time.sleep(0.1)
        if load(site.broker, sent).status == "queued":
            # Its sender has died: it will read stalled.
            pass_time(site.store, 16)
        if load(site.broker, sent).status in ("error", "stalled"):
            assert rerun(site.store, site.broker, sent.message_id)
        wait_until(site.broker, sent, "success")
    site.work()
    assert site.runs() == 2
    assert load(site.broker, sent).status == "success"


@pytest.mark.system
@pytest.mark.parametrize(
    ("name", "number", "moment"), kills("delete", "clear", "cancel_all")
)
def test_operator_who_is_killed_leaves_others_to_the_next(
    site: Site, name: str, number: int, moment: str
) -> None:
    """Wherever an operator who deletes or cancels jobs is killed, nothing runs that was
    deleted or cancelled, and another finishes the work.
    """
    failed = site.fail()
    waiting: Message[Any] = site.errand.send(2)
    runs = site.runs()
    site.operate(name, failed.message_id, number, moment)
    if name == "cancel_all":
        site.store.cancel_all(kind="Errand")
        assert load(site.broker, waiting).status == "cancelled"
    else:
        site.store.clear(kind="Errand")
        assert site.store.load(failed.message_id) is None
        assert load(site.broker, waiting).status == "queued"
        load(site.broker, waiting).cancel()
    site.redeliver(failed)
    site.work()
    assert site.runs() == runs + (name == "cancel_all")
    assert site.store.list(status="queued").items == []
