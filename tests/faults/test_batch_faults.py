"""Batches whose workers die and stand still, whose messages come twice, whose records
are lost, while commands to the store fail, are carried out late, or lose their replies.

Members start, report, end, are retried, cancelled, put back, run again and cleared, in
any order. Some send further members, all by the same keys. Once nothing is on its way,
the batch must count what its members read as, and read what follows from that, and each
sender has sent its own members. Meanwhile the bar never goes back, unless it starts
anew, and no look at the members is a sign of life.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import random
import time
import uuid
from collections import Counter
from collections.abc import Sequence
from typing import Any

import dramatiq
import pytest
import redis
from dramatiq.brokers.stub import StubBroker
from redis.exceptions import ConnectionError as Lost

from pyramid_jobstate import (
    JobCancelled,
    JobStateMiddleware,
    JobStore,
    StoreUnavailable,
)
from pyramid_jobstate.job.batch import Batch
from pyramid_jobstate.job.changes import End, Failure, Member, NewBatch, NewJob
from pyramid_jobstate.job.membership import member_uuid
from pyramid_jobstate.job.record import BATCH, FINISHED, JobError, JobInfo, Record
from pyramid_jobstate.job.run import Run
from pyramid_jobstate.store import batches, connection, reading, scripts
from pyramid_jobstate.store.told import LETTERS
from pyramid_jobstate.worker.backlog import Backlog
from pyramid_jobstate.worker.fanout import RunningMember
from pyramid_jobstate.worker.flush import Flush
from pyramid_jobstate.worker.outage import Outage
from pyramid_jobstate.worker.unsaved import Unsaved

#: What may happen to a round trip.
FATES = ("before", "after", "late", "die before", "die after")

#: The scripts whose calls may be carried out after later ones. The others take a record
#: over, and a client that does not get their reply repeats them.
MAY_BE_LATE = ("index", "tell_batch", "raise", "member confirm")


flush_log = logging.getLogger(__name__)


#: The statuses that batches count, by the letters of their members.
STATUSES = {
    "n": "queued",
    "q": "queued",
    "r": "retrying",
    "w": "working",
    "s": "success",
    "e": "error",
    "x": "error",
    "c": "cancelled",
}


class Killed(BaseException):
    """Raised in a worker that has died."""


class Wire:
    """Between the store and the server.

    Attributes:
      faults: The share of round trips to which something happens.
      seen: How often what has happened.
      late: The commands that are still to be carried out.
      is_dead: Whether the process has died that is at work, None if that cannot.
    """

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.faults = 0.0
        self.seen: Counter[str] = Counter()
        self.late: list[Any] = []
        self.is_dead: bool | None = None
        self.client: Any = None
        self._late_shas = {
            script.sha
            for name, script in scripts.read_scripts().items()
            if name in MAY_BE_LATE
        }

    def execute(self, client: Any, commands: Sequence[Any]) -> list[Any]:
        self.client = client
        if self.is_dead:
            raise Killed
        if self.rng.random() >= self.faults:
            return connection.execute(client, commands)
        fate = self.rng.choice(FATES)
        if fate == "late" and not all(
            command.args[1] in self._late_shas for command in commands
        ):
            fate = "before"
        self.seen[fate] += 1
        if fate in ("after", "die after"):
            connection.execute(client, commands)
        if fate == "late":
            self.late += commands
        if fate.startswith("die"):
            if self.is_dead is not None:
                self.is_dead = True
            raise Killed
        raise Lost(fate)

    def deliver_one(self) -> None:
        """Carry out one of the late commands."""
        command = self.late.pop(self.rng.randrange(len(self.late)))
        connection.execute(self.client, [command])


@dataclasses.dataclass(eq=False)
class Execution:
    """A run of a member.

    Attributes:
      steps: How often it is still to report.
      keys: The keys of the members that it is still to send.
      is_acked: Whether its message was acknowledged before its end was stored.
    """

    unsaved: Unsaved
    steps: int
    keys: list[str]
    has_begun: bool = False
    is_acked: bool = False

    @property
    def uuid(self) -> str:
        return self.unsaved.uuid


class Worker:
    """A worker process."""

    def __init__(self, store: JobStore) -> None:
        self.backlog = Backlog()
        # It gives a sign of life of each run whenever it writes.
        self.flush = Flush(self.backlog, store, 0.0, Outage(flush_log))
        self.runs: list[Execution] = []


class Scene:
    """A batch, its members, and all that happens to them.

    Parameters:
      loses: Whether records are lost, and messages acknowledged too early.
      stops: Whether the batch is cancelled at some time.
    """

    def __init__(
        self, seed: int, client: redis.Redis, *, members: int, loses: bool, stops: bool
    ) -> None:
        self.rng = random.Random(seed)
        self.wire = Wire(self.rng)
        self.loses = loses
        self.stops_at = self.rng.randrange(20 * members) if stops else -1
        self.client = client
        self.store = JobStore(client, namespace=f"s{seed}", stalled_after=0.005)
        self.batch = self.uuid()
        self.info = JobInfo("Batch", "", 0, '"alice"', "{}", batch=BATCH)
        self.member = JobInfo("JobState", "a", 0, '"alice"', "{}", batch=self.batch)
        self.weights = {
            self.uuid(): self.rng.choice([1000, 1000, 3000, 10_000_000, 1])
            for _ in range(members)
        }
        jobs = [NewJob(uuid, self.member, sender="s") for uuid in self.weights]
        pairs = zip(jobs, self.weights.values(), strict=True)
        new = [Member(job, weight) for job, weight in pairs]
        self.store.batches.open(NewBatch(self.batch, self.info, {}, "s", new))
        self.store.create_new(*jobs, tells=False)
        self.store.confirm_members(jobs)
        #: The messages in the queue, each with the word of the request that sent it.
        self.queue: list[tuple[str, str | None]] = [(job.uuid, None) for job in jobs]
        self.words: dict[str, str | None] = {}
        self.workers = [Worker(self.store), Worker(self.store)]
        #: The letters of the members whose records were lost after their ends.
        self.gone: dict[str, str] = {}
        #: Since when the bar goes on, for how many members, and where it was last.
        self.anew, self.shown = ("", 0), 0.0
        self.broker = StubBroker()
        self.broker.add_middleware(JobStateMiddleware(self.store))
        self.part = dramatiq.actor(
            broker=self.broker, actor_name="part", job_state=True
        )(print)
        #: How many members each of the first ones sends, and the uuids of those that
        #: it has begun to send, by their keys.
        self.senders = {uuid: self.rng.choice([0, 0, 2]) for uuid in self.weights}
        self.sent: dict[tuple[str, str], str] = {}

    def uuid(self) -> str:
        return str(uuid.UUID(int=self.rng.getrandbits(128), version=4))

    # What happens

    def deliver(self) -> None:
        """Give a message to a worker."""
        if not self.queue:
            return
        worker = self.rng.choice(self.workers)
        uuid, word = self.queue.pop(self.rng.randrange(len(self.queue)))
        self.words[uuid] = word
        info = self.member._replace(attempt=1, rerun=word)
        keys = [*"xy"[: self.senders.get(uuid, 0)]]
        run = Execution(Unsaved(uuid, Run(), info), self.rng.randrange(4), keys)
        worker.backlog.add(run.unsaved)
        worker.runs.append(run)
        self.flush(worker)

    def step(self, worker: Worker) -> None:
        """Let a run go on."""
        running = [run for run in worker.runs if run.unsaved.end is None]
        if not running:
            self.flush(worker)
            return
        run = self.rng.choice(running)
        if run.unsaved.run.cancel_requested:
            self.end(worker, run, End("cancelled", JobError(None, "x")))
        elif run.keys:
            self.send(worker, run)
            return
        elif run.steps:
            run.steps -= 1
            run.unsaved.run.set_progress(self.rng.randrange(100), 100, None, None)
            run.unsaved.tell_soon()
        else:
            status = self.rng.choice(["success"] * 4 + ["error", "retrying"])
            if not self.wire.faults:
                status = "success"
            failure = Failure("{}", "", "") if status == "error" else None
            delay = 0.0 if status == "retrying" else None
            error = None if status == "success" else JobError("E", "x")
            self.end(worker, run, End(status, error, delay, failure=failure))
        self.flush(worker)

    def send(self, worker: Worker, run: Execution) -> None:
        """Have a run send a member. If it cannot, it is tried again."""
        key = run.keys[-1]
        message: Any = self.part.message().copy(message_id=run.uuid)
        member = RunningMember(self.broker, message, self.batch, run.unsaved.run)
        self.sent[run.uuid, key] = member_uuid(self.batch, run.uuid, "part", key, 0)
        self.wire.is_dead = False
        try:
            what = self.part.message()
            (job,) = member.take(what, broker=None, key=key, weight=1, delay=None)
            assert job.uuid == self.sent[run.uuid, key]
            run.keys.pop()
        except StoreUnavailable:
            self.wire.seen["not sent"] += 1
            self.end(worker, run, End("retrying", JobError("E", "x"), 0.0))
        except (JobCancelled, RuntimeError):
            # It is over, or cancelled, and hears of that.
            self.wire.seen["refused"] += 1
            run.unsaved.run.cancel()
        except Killed:
            self.kill(worker)
        finally:
            self.wire.is_dead = None
        queue = self.broker.queues["default"]
        while not queue.empty():
            message = dramatiq.Message.decode(queue.get())
            self.queue.append((message.message_id, None))
            self.wire.seen["sent"] += 1

    def end(self, worker: Worker, run: Execution, end: End) -> None:
        if end.delay is not None:
            self.queue.append((run.uuid, run.unsaved.info.rerun))
        if not worker.backlog.end(run.unsaved, end):
            worker.runs.remove(run)
        elif self.loses and self.rng.random() < 0.2:
            # The store was away for more than a second.
            run.is_acked = True

    def flush(self, worker: Worker) -> None:
        """Write what a worker has to write."""
        try:
            worker.flush.tick(time.monotonic(), True)
        except Killed:
            self.kill(worker)
            return
        for run in [*worker.runs]:
            run.unsaved.is_late = True
            is_stored = run.unsaved.end is not None and run.unsaved not in (
                worker.backlog.all()
            )
            if run.unsaved.lost or is_stored:
                worker.runs.remove(run)
            elif run.unsaved.end is None and self.is_to_skip(run):
                end = End("cancelled", JobError(None, "x"), was_called=False)
                self.end(worker, run, end)

    def is_to_skip(self, run: Execution) -> bool:
        """Return whether a run is cancelled before its actor is called."""
        if run.has_begun:
            return False
        run.has_begun = True
        return run.unsaved.run.cancel_requested

    def kill(self, worker: Worker) -> None:
        """Kill a worker, and start another. What it did not acknowledge comes again."""
        self.wire.seen["kill"] += 1
        self.workers[self.workers.index(worker)] = Worker(self.store)
        for run in worker.runs:
            end = run.unsaved.end
            if not run.is_acked and (end is None or end.delay is None):
                self.queue.append((run.uuid, run.unsaved.info.rerun))

    def is_idle(self, uuid: str) -> bool:
        """Return whether no message and no run of a member is left."""
        if uuid in [queued for queued, _ in self.queue]:
            return False
        return not any(r.uuid == uuid for w in self.workers for r in w.runs)

    def freeze(self) -> None:
        """Deliver the message of a run again, which goes on."""
        runs = [r for w in self.workers for r in w.runs if not r.is_acked]
        if runs:
            self.wire.seen["frozen"] += 1
            run = self.rng.choice(runs)
            self.queue.append((run.uuid, run.unsaved.info.rerun))

    def operate(self) -> None:
        """Do something with a member that users and operators do."""
        uuid = self.rng.choice(sorted(self.weights))
        act = self.rng.choice(["cancel", "put back", "run again", "clear"])
        try:
            if act == "cancel":
                self.store.cancel(uuid, self.member)
            elif act == "clear":
                if self.is_told(uuid):
                    # Perhaps: its reply may be lost. If it waits in a cancelled
                    # batch, it is cancelled first.
                    letter = self.entry(uuid)[0]
                    self.gone[uuid] = letter if letter in "sexc" else "c"
                    self.store.delete(uuid)
            elif not self.is_idle(uuid):
                return
            elif act == "put back":
                self.queue.append((uuid, self.words.get(uuid)))
                self.store.create(NewJob(uuid, self.member, sender=self.uuid()))
            else:
                record = self.store.record(uuid)
                if record is None or not record.has_failed or self.is_stopped():
                    return
                word = self.store.requeue(record)
                if word is not None:
                    self.queue.append((uuid, word))
                    self.store.confirm(uuid, "JobState", word, self.batch)
        except (Lost, Killed):
            pass
        self.wire.seen[act] += 1

    def lose(self) -> None:
        """Lose the record of a member: it has expired, or a server has."""
        uuid = self.rng.choice(sorted(self.weights))
        if self.status(uuid) in FINISHED and self.is_idle(uuid) and self.is_told(uuid):
            self.gone[uuid] = self.entry(uuid)[0]
        elif not any(
            r.uuid == uuid and r.has_begun and not r.is_acked
            for w in self.workers
            for r in w.runs
        ):
            return
        else:
            self.gone.pop(uuid, None)
        self.client.delete(self.store._calls.key(uuid))
        self.wire.seen["lost"] += 1

    def is_told(self, uuid: str) -> bool:
        """Return whether the batch knows the status of a member."""
        late = any(uuid in command.args for command in self.wire.late)
        status = self.status(uuid)
        return not late and LETTERS.get(status or "") == self.entry(uuid)[0]

    def tick(self, step: int) -> None:
        """Let something happen."""
        chance = self.rng.random()
        if step == self.stops_at:
            self.stop()
        elif chance < 0.25:
            self.deliver()
        elif chance < 0.80:
            self.step(self.rng.choice(self.workers))
        elif chance < 0.84:
            self.freeze()
        elif chance < 0.90:
            if self.wire.late:
                self.wire.deliver_one()
        elif chance < 0.93:
            self.operate()
        elif chance < 0.94:
            if self.loses:
                self.lose()
        elif chance < 0.96:
            self.kill(self.rng.choice(self.workers))
        elif chance < 0.98:
            self.look()
        self.check()

    def stop(self) -> None:
        """Cancel the batch. Who asks tries again until there is an answer."""
        while True:
            try:
                self.store.cancel(self.batch, self.info)
                return
            except (Lost, Killed):
                self.wire.seen["stop lost"] += 1

    def look(self) -> None:
        """Poll the batch. That is no sign of life: what it finds is as old as it is."""
        before = self.heard(self.batch)
        with contextlib.suppress(Lost, Killed):
            self.store.record(self.batch)
        signs = [before, *map(self.heard, self.weights)]
        assert before <= self.heard(self.batch) <= max(signs)

    def play(self, steps: int, faults: float) -> None:
        """Let things happen, then let all end."""
        self.wire.faults = faults
        for step in range(steps):
            self.tick(step)
        self.wire.faults = 0.0
        while self.wire.late:
            self.wire.deliver_one()
        while self.queue or any(worker.runs for worker in self.workers):
            self.deliver()
            for worker in self.workers:
                self.step(worker)
            self.check()

    # What is true

    def is_stopped(self) -> bool:
        return bool(self.client.hexists(self.store._calls.key(self.batch), "stopped"))

    def status(self, uuid: str) -> str | None:
        found: Any = self.client.hget(self.store._calls.key(uuid), "status")
        return None if found is None else found.decode()

    def heard(self, uuid: str) -> int:
        """Return when a batch has heard of its members, or a member was heard of."""
        key, names = self.store._calls.key(uuid), ("updated", "seen")
        found: Any = self.client.hmget(key, *names[: 1 if uuid == self.batch else 2])
        return max(int(time or 0) for time in found)

    def entries(self) -> dict[str, list[str]]:
        key = self.store._calls.batch_keys(self.batch)[0]
        found: Any = self.client.hgetall(key)
        return {k.decode(): v.decode().split() for k, v in found.items()}

    def entry(self, uuid: str) -> list[str]:
        key = self.store._calls.batch_keys(self.batch)[0]
        found: Any = self.client.hget(key, uuid)
        return list(found.decode().split())

    def check(self) -> None:
        """Check that the batch agrees with itself."""
        found: Any = self.client.hgetall(self.store._calls.key(self.batch))
        head = {k.decode(): v.decode() for k, v in found.items()}
        counts = {c: int(head.get(f"n:{c}", 0)) for c in "nqrwsec"}
        entries = self.entries()
        added = entries.keys() - self.weights.keys()
        assert added <= {*self.sent.values()}
        self.weights.update(dict.fromkeys(sorted(added), 1000))
        letters = Counter("e" if e[0] == "x" else e[0] for e in entries.values())
        assert counts == {c: letters[c] for c in "nqrwsec"}, head
        assert sum(counts.values()) == int(head["size"]) == len(self.weights)
        done = sum(
            int(part) * int(weight) for _, _, part, weight, _ in entries.values()
        )
        assert done == int(head.get("sum", 0)) <= 10**6 * int(head["weight"])
        over = counts["s"] + counts["e"] + counts["c"]
        is_over = over == len(self.weights)
        if "stopped" in head:
            # Once it has ended, it stays so.
            is_over = is_over or counts["w"] == 0 or "finished" in head
        assert is_over == (head["status"] in FINISHED) == ("finished" in head), head
        failed_key = self.store._calls.batch_keys(self.batch)[1]
        assert self.client.zcard(failed_key) == counts["e"]
        silent = "w" if counts["n"] + counts["w"] else "r" if counts["r"] else None
        assert head.get("seen") == (None if is_over else silent)
        shown = Batch(Record(self.batch, head)).progress.fraction or 0.0
        assert shown >= done / (10**6 * int(head["weight"]))
        # It starts anew with new members, and when the batch goes on after its end.
        anew = head["listed"], len(self.weights)
        assert shown >= self.shown or anew != self.anew
        self.anew, self.shown = anew, shown
        # No two senders share a member.
        assert len({*self.sent.values()}) == len(self.sent)

    def check_senders(self) -> None:
        """Check that those that have succeeded have sent all their members."""
        for sender, count in self.senders.items():
            if self.status(sender) == "success":
                uuids = [self.sent[sender, key] for key in "xy"[:count]]
                assert self.weights.keys() >= {*uuids}
                for uuid in [uuid for uuid in uuids if self.entry(uuid)[0] == "n"]:
                    # It has failed, and who was about to run it again died.
                    record = self.store.record(uuid)
                    assert record is not None
                    assert record.info.rerun

    def wrong(self) -> dict[str, int]:
        """Return how the batch and the records of its members differ: how many members
        it counts too many of each status.
        """
        batch = self.store.load(self.batch)
        assert isinstance(batch, Batch)
        counted, truth = Counter(batch.counts), Counter(map(self.truth, self.weights))
        counted.subtract(truth)
        return {status: count for status, count in counted.items() if count}

    def status_by_members(self) -> str:
        """Return what the silent batch must read as."""
        truth = Counter(map(self.truth, self.weights))
        over = truth["success"] + truth["error"] + truth["cancelled"]
        if over < len(self.weights):
            waiting = [uuid for uuid in self.weights if self.truth(uuid) == "queued"]
            if truth["working"] or "sending" in map(self.status, waiting):
                return "stalled"
            return "retrying" if truth["retrying"] else "queued"
        if truth["error"]:
            return "error"
        return "cancelled" if truth["cancelled"] else "success"

    def truth(self, uuid: str) -> str:
        """Return the status of a member, as its record reads and batches count it."""
        record = self.store.record(uuid)
        if record is None:
            letter = self.entry(uuid)[0]
            if letter == "n" and uuid not in self.gone:
                # Its sender has ended before it could record it.
                return "cancelled" if self.is_stopped() else "queued"
            # Expired, cleared or lost.
            return STATUSES[self.gone.get(uuid, "e")]
        if self.status(uuid) == "sending" and self.entry(uuid)[0] == "e":
            # It failed, and who was about to run it again died: it may be run again.
            assert "rerun" in record.info.fields()
            return "error"
        if record.status == "stalled":
            return STATUSES[LETTERS[record.stored_status]]
        return "working" if record.status == "cancelling" else record.status

    def reading(self) -> str:
        record = self.store.record(self.batch)
        assert record is not None
        return record.status

    def repair(self) -> None:
        """Poll the batch, as its viewers do, until all is known."""
        for _ in range(2 + len(self.weights) // batches.LOOKED_AT):
            time.sleep(0.007)
            self.look()


@pytest.fixture
def scenes(client: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Plays scenes of the seeds in a range."""
    monkeypatch.setattr(batches, "PAUSE", 0)

    def play_all(
        *seeds: int, members: int = 20, stops: bool, **options: bool
    ) -> Counter[str]:
        seen: Counter[str] = Counter()
        for seed in range(*seeds):
            scene = Scene(seed, client, members=members, stops=stops, **options)
            monkeypatch.setattr(scripts, "execute", scene.wire.execute)
            monkeypatch.setattr(reading, "execute", scene.wire.execute)
            scene.play(25 * members, 0.08)
            seen["behind"] += bool(scene.wrong())
            scene.repair()
            assert scene.wrong() == {}, seed
            scene.check()
            scene.check_senders()
            if not stops:
                # Else what it reads was fixed when the batch was cancelled.
                assert scene.reading() == scene.status_by_members(), seed
            seen += scene.wire.seen
            for key in client.scan_iter(f"*s{seed}:*", count=10000):
                client.delete(key)
        return seen

    return play_all


@pytest.mark.parametrize("loses", [False, True], ids=["kept", "lost"])
@pytest.mark.parametrize("stops", [False, True], ids=["goes on", "cancelled"])
def test_batch_knows_its_members(scenes: Any, loses: bool, stops: bool) -> None:
    """Whatever happens, the batch counts in the end what the records read as."""
    seen = scenes(12, loses=loses, stops=stops)
    assert sum(seen[fate] for fate in FATES) > 300
    assert seen["kill"] > 100
    assert seen["sent"] > 50


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("loses", [False, True], ids=["kept", "lost"])
@pytest.mark.parametrize("stops", [False, True], ids=["goes on", "cancelled"])
def test_batch_knows_its_members_in_long_weather(
    scenes: Any, loses: bool, stops: bool
) -> None:
    """The same, for many more batches."""
    seen = scenes(1000, 1260, loses=loses, stops=stops)
    assert sum(seen[fate] for fate in FATES) > 7_000
