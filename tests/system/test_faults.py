"""Random faults: lost, late and cut replies, killed workers, cancels at any moment.

Each run of a job writes its start and its end to a journal that no fault affects. In
the end the store must agree with it.
"""

import contextlib
import dataclasses
import json
import random
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from pyramid_jobstate import JobState, JobStore
from tests import rough
from tests.faulty import FAULTS, faulty
from tests.processes import Process
from tests.support import load_job, wait_for
from tests.workerprocess import STALLED_AFTER, start_worker

#: The share of the store's requests that fail.
SHARE = 0.12

#: The seconds for which a failure may still have an effect.
MARGIN = 2.0

#: How jobs are to end unless they are cancelled.
PLANS = ("success", "success", "success", "error", "retry", "shield")


@dataclasses.dataclass(slots=True)
class Sent:
    """A job that was sent, to end by one of PLANS.

    Attributes:
      cancelled: What cancel() returned, or None if it raised an error.
      asked: Whether a cancel was attempted.
      after: The status just after that.
    """

    uuid: str
    plan: str
    cancelled: bool | None = None
    asked: bool = False
    after: str = ""


class Journal:
    """What the runs have written down, in that order.

    Attributes:
      starts: The runs of each job.
      at: When each run began.
      ends: The last line of each run that has ended.
    """

    def __init__(self, client: redis.Redis) -> None:
        self.starts: dict[str, list[str]] = {}
        self.at: dict[str, float] = {}
        self.ends: dict[str, dict[str, Any]] = {}
        lines: Any = client.lrange("journal", 0, -1)
        for line in map(json.loads, lines):
            if line["outcome"] is None:
                self.starts.setdefault(line["job"], []).append(line["run"])
                self.at[line["run"]] = line["at"]
            else:
                self.ends[line["run"]] = line

    def has_ended(self, job: str) -> bool:
        return any(run in self.ends for run in self.starts.get(job, ()))


class Storm:
    """Workers behind a failing network, and threads that kill and cancel."""

    def __init__(
        self, seed: int, urls: tuple[str, str], proxy_url: str, folder: Path
    ) -> None:
        self.dice = random.Random(seed)
        self.client = redis.Redis.from_url(urls[0])
        # Observers get a long timeout, since the machine may be busy.
        observer = redis.Redis.from_url(urls[1], socket_timeout=30)
        self.store = JobStore(observer, stalled_after=STALLED_AFTER)
        #: The users' store, which meets faults as well.
        self.users = JobStore(proxy_url, stalled_after=STALLED_AFTER)
        self.wander = rough.make_rough_broker(urls[0], proxy_url).get_actor("wander")
        self.environ = {"ROUGH_BROKER": urls[0], "ROUGH_STORE": proxy_url}
        self.folder = folder
        self.started = self.killed = 0
        #: The time from which all requests pass.
        self.calm_since = float("inf")
        self.sent: list[Sent] = []
        self.over = threading.Event()
        self.workers = [self.start() for _ in range(2)]

    def start(self) -> Process:
        self.started += 1
        log = self.folder / f"{self.started}.log"
        return start_worker(self.environ, log, "tests.rough")

    def send(self, count: int) -> None:
        for number in range(count):
            plan = self.dice.choice(PLANS)
            seed = self.dice.randrange(1 << 30)
            delay = self.dice.choice([None, None, 300])
            message = self.wander.send_with_options(args=(plan, seed), delay=delay)
            self.sent.append(Sent(message.message_id, plan))
            if number % 5 == 4:
                time.sleep(0.1)

    def cancel_some(self) -> None:
        """Cancel a third of the jobs, each at a random moment."""
        dice = random.Random(self.dice.random())
        while not self.over.wait(dice.uniform(0, 0.2)):
            left = [s for s in self.sent if not s.asked]
            if left and len(left) > len(self.sent) * 2 / 3:
                sent = dice.choice(left)
                if self.store.load(sent.uuid) is not None:
                    sent.asked = True
                    with contextlib.suppress(redis.RedisError):
                        seen = self.users.load(sent.uuid)
                        sent.cancelled = None if seen is None else seen.cancel()
                    sent.after = load_job(self.store, sent.uuid).status

    def kill_some(self) -> None:
        """Kill workers, except one that alone knows the end of a job whose message will
        not be redelivered: that end would be lost.
        """
        dice = random.Random(self.dice.random())
        while not self.over.wait(dice.uniform(0.5, 2.0)) or not self.killed:
            place = dice.randrange(len(self.workers))
            worker = self.workers[place]
            worker.kill(signal.SIGSTOP)
            if any(map(self.is_only_known_there, self.sent)):
                worker.kill(signal.SIGCONT)
                continue
            worker.kill()
            worker.end()
            self.workers[place] = self.start()
            self.killed += 1

    def is_only_known_there(self, sent: Sent) -> bool:
        if not Journal(self.client).has_ended(sent.uuid):
            return False
        state = self.store.load(sent.uuid)
        is_over = state is not None and state.is_finished
        return not is_over and sent.uuid not in self.messages()

    def messages(self) -> str:
        """Return all that the broker holds."""
        queues = ("default", "default.DQ")
        held: Any = [self.client.hvals(f"dramatiq:{queue}.msgs") for queue in queues]
        return b" ".join(message for found in held for message in found).decode()

    def is_done(self) -> bool:
        states = self.store.load_many([sent.uuid for sent in self.sent])
        return not self.messages() and all(s and s.is_finished for s in states)

    def wrong(self) -> Iterator[str]:
        journal = Journal(self.client)
        for sent in self.sent:
            state = load_job(self.store, sent.uuid)
            for what in self.judge(sent, state, journal):
                yield f"{sent} {what}: {state}, {journal.starts.get(sent.uuid)}"

    def judge(self, sent: Sent, state: JobState, journal: Journal) -> Iterator[str]:
        runs = journal.starts.get(sent.uuid, [])
        # A job whose worker cannot reach the store still runs, and learns of its cancel
        # later.
        calm = self.calm_since + MARGIN
        if sent.after == "cancelled" and any(journal.at[run] > calm for run in runs):
            yield "ran after it was cancelled for good"
        if state.status == "cancelled":
            if not sent.asked or sent.cancelled is False:
                yield "was cancelled by nobody"
            return
        if sent.after == "cancelled":
            yield "was cancelled for good, but is no longer"
        if sent.cancelled and state.status != "success":
            yield "was told to stop, but failed"
        if state.status != ("error" if sent.plan == "error" else "success"):
            yield "ended otherwise than it should"
        if not runs:
            yield "ended, but never began"
            return
        end = journal.ends.get(runs[-1])
        if end is None or end["outcome"] != state.status:
            yield f"ended otherwise than its last run {end}"
        elif end["values"] != state.progress_metrics:
            yield f"lost a last value of {end}: {state.progress_metrics}"


@pytest.mark.promise("last-value-lands")
@pytest.mark.parametrize(
    "count", [40, pytest.param(300, marks=[pytest.mark.long, pytest.mark.timeout(400)])]
)
def test_no_end_and_no_last_value_is_wrong(redis_url, server, tmp_path, count):
    """Each job ends as its last run did, with that run's last values, or cancelled."""
    dice = random.Random(count)

    def judge(request: bytes) -> str:
        return dice.choice(FAULTS[1:]) if dice.random() < SHARE else "pass"

    with faulty(server.url) as proxy:
        storm = Storm(count, (redis_url, server.url), proxy.url, tmp_path)
        works = (storm.cancel_some, storm.kill_some)
        helpers = [threading.Thread(target=work) for work in works]
        proxy.judge = judge
        try:
            for helper in helpers:
                helper.start()
            storm.send(count)
            wait_for(lambda: len(Journal(storm.client).ends) > count / 2, 100)
            storm.over.set()
            for helper in helpers:
                helper.join()
            proxy.judge = lambda request: "pass"
            storm.calm_since = time.time()
            wait_for(storm.is_done, 60)
        finally:
            storm.over.set()
            for worker in storm.workers:
                worker.kill()
                worker.end()
    wrong = "\n".join(storm.wrong())
    assert not wrong, wrong
    assert all(proxy.faults[fault] for fault in FAULTS)
    assert storm.killed
