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
    Batch,
    JobCancelled,
    JobError,
    JobStateMiddleware,
    JobStore,
    StoreUnavailable,
)
from pyramid_jobstate.job.changes import End, Failure, Member, NewBatch, NewJob
from pyramid_jobstate.job.membership import member_uuid
from pyramid_jobstate.job.record import BATCH, JobInfo, Record
from pyramid_jobstate.job.run import Run
from pyramid_jobstate.store import batches, connection, reading, scripts
from pyramid_jobstate.worker.backlog import Backlog
from pyramid_jobstate.worker.fanout import RunningMember
from pyramid_jobstate.worker.flush import Flush
from pyramid_jobstate.worker.outage import Outage
from pyramid_jobstate.worker.unsaved import Unsaved

FINISHED = ("success", "error", "cancelled")

#: What may happen to a round trip.
FATES = ("before", "after", "late", "die before", "die after")

#: The scripts whose calls may be carried out after later ones. The others take a record
#: over, and a client that does not get their reply repeats them.
MAY_BE_LATE = ("index", "tell_batch", "raise", "member confirm")

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

#: The letters by which batches know the statuses of their members, as they are stored.
LETTERS = {
    "waiting": "q",
    "sending": "n",
    "queued": "q",
    "retrying": "r",
    "working": "w",
    "cancelling": "w",
    "success": "s",
    "error": "e",
    "cancelled": "c",
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

    def execute(self, client: Any, commands: Sequence[Any]) -> list[Any]:
        self.client = client
        if self.is_dead:
            raise Killed
        if self.rng.random() >= self.faults:
            return carry_out(client, commands)
        fate = self.rng.choice(FATES)
        if fate == "late" and not all(map(may_be_late, commands)):
            fate = "before"
        self.seen[fate] += 1
        if fate in ("after", "die after"):
            carry_out(client, commands)
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
        carry_out(self.client, [command])


# How workers, senders and operators speak with the store: all that follows up to Inside
# knows how it is made.

carry_out = connection.execute

LATE_SHAS = {
    script.sha for name, script in scripts.read_scripts().items() if name in MAY_BE_LATE
}


def may_be_late(command: Any) -> bool:
    """Return whether a command may be carried out after later ones."""
    return bool(command.args[1] in LATE_SHAS)


class Worker:
    """A worker process.

    Attributes:
      runs: What it runs.
    """

    def __init__(self, store: JobStore) -> None:
        self.backlog = Backlog()
        # It gives a sign of life of each run whenever it writes.
        outage = Outage(logging.getLogger(__name__))
        self.flush = Flush(self.backlog, store, 0.0, outage)
        self.runs: list[Execution] = []

    def write(self) -> None:
        """Write what it has to write."""
        self.flush.tick(time.monotonic(), True)


@dataclasses.dataclass(eq=False)
class Execution:
    """A run of a member.

    Attributes:
      steps: How often it is still to report.
      keys: The keys of the members that it is still to send.
      has_begun: Whether its actor was called.
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

    @property
    def word(self) -> str | None:
        return self.unsaved.info.rerun

    @property
    def is_cancelled(self) -> bool:
        return self.unsaved.run.cancel_requested

    @property
    def has_ended(self) -> bool:
        return self.unsaved.end is not None

    def is_over(self, worker: Worker) -> bool:
        """Return whether its worker has no more to write of it."""
        is_stored = self.has_ended and self.unsaved not in worker.backlog.all()
        return bool(self.unsaved.lost) or is_stored

    @property
    def is_put_back(self) -> bool:
        """Whether it has put its message back."""
        return self.unsaved.end is not None and self.unsaved.end.delay is not None

    def note_delay(self) -> None:
        """Note that another run may have begun by now."""
        self.unsaved.is_late = True

    def report(self, percent: int) -> None:
        self.unsaved.run.set_progress(percent, 100, None, None)
        self.unsaved.tell_soon()

    def end(
        self, worker: Worker, status: str, delay: float | None, *, called: bool
    ) -> bool:
        """Note how it ends. Return False if the store takes no end of it."""
        failure = Failure("{}", "", "") if status == "error" else None
        error = None if status == "success" else JobError("E", "x")
        end = End(status, error, delay, called, failure)
        return worker.backlog.end(self.unsaved, end)


class Inside:
    """The store, a batch in it, and a broker that keeps messages in memory."""

    def __init__(self, client: redis.Redis, namespace: str, batch: str) -> None:
        self.client: Any = client
        self.store = JobStore(client, namespace=namespace, stalled_after=0.005)
        self.batch = batch
        self.info = JobInfo("Batch", "", 0, '"alice"', "{}", batch=BATCH)
        self.member = JobInfo("JobState", "a", 0, '"alice"', "{}", batch=batch)
        self.broker = StubBroker()
        self.broker.add_middleware(JobStateMiddleware(self.store))
        self.part = dramatiq.actor(
            broker=self.broker, actor_name="part", job_state=True
        )(print)

    def open(self, weights: dict[str, int]) -> None:
        """Send the batch with its members, by their uuids."""
        jobs = [NewJob(uuid, self.member, sender="s") for uuid in weights]
        pairs = zip(jobs, weights.values(), strict=True)
        new = [Member(job, weight) for job, weight in pairs]
        self.store.batches.open(NewBatch(self.batch, self.info, {}, "s", new))
        self.store.create_new(*jobs, tells=False)
        self.store.confirm_members(jobs)

    def begin(
        self, worker: Worker, uuid: str, word: str | None, steps: int, keys: list[str]
    ) -> None:
        """Have a worker take a message of a member."""
        info = self.member._replace(attempt=1, rerun=word)
        run = Execution(Unsaved(uuid, Run(), info), steps, keys)
        worker.backlog.add(run.unsaved)
        worker.runs.append(run)

    def uuid_of(self, sender: str, key: str) -> str:
        """Return the uuid of the member that a member sends with a key."""
        return member_uuid(self.batch, sender, "part", key, 0)

    def send(self, run: Execution, key: str) -> None:
        """Have a running member send another."""
        message: Any = self.part.message().copy(message_id=run.uuid)
        member = RunningMember(self.broker, message, self.batch, run.unsaved.run)
        what = self.part.message()
        (job,) = member.take(what, broker=None, key=key, weight=1, delay=None)
        assert job.uuid == self.uuid_of(run.uuid, key)

    def interrupt(self, run: Execution) -> None:
        """Have a run hear that it is over or cancelled."""
        run.unsaved.run.cancel()

    def sent(self) -> list[str]:
        """Return the uuids of the messages that the broker has got since."""
        queue, found = self.broker.queues["default"], []
        while not queue.empty():
            found.append(dramatiq.Message.decode(queue.get()).message_id)
        return found

    def cancel(self, uuid: str) -> None:
        self.store.cancel(uuid, self.info if uuid == self.batch else self.member)

    def put_back(self, uuid: str, sender: str) -> None:
        self.store.create(NewJob(uuid, self.member, sender=sender))

    def run_again(self, uuid: str) -> str | None:
        """Queue a member that has failed. Return the word of its message, or None."""
        record = self.store.record(uuid)
        if record is None or not record.has_failed or self.is_stopped():
            return None
        return self.store.requeue(record)

    def confirm(self, uuid: str, word: str) -> None:
        self.store.confirm(uuid, "JobState", word, self.batch)

    def lose(self, uuid: str) -> None:
        """Lose the record of a member."""
        self.client.delete(self._key(uuid))

    def is_stopped(self) -> bool:
        return bool(self.client.hexists(self._key(self.batch), "stopped"))

    def status(self, uuid: str) -> str | None:
        """Return the status of a member as it is stored."""
        found = self.client.hget(self._key(uuid), "status")
        return None if found is None else found.decode()

    def shown(self, uuid: str) -> tuple[str, bool] | None:
        """Return what a member reads as, were it never silent, and whether a message
        of a rerun is awaited; or None without a record.
        """
        record = self.store.record(uuid)
        if record is None:
            return None
        status = record.status
        if status == "stalled":
            status = STATUSES[LETTERS[record.stored_status]]
        return status, bool(record.info.rerun)

    def head(self) -> dict[str, str]:
        """Return the fields of the batch."""
        found = self.client.hgetall(self._key(self.batch))
        return {k.decode(): v.decode() for k, v in found.items()}

    def fraction(self, head: dict[str, str]) -> float:
        return Batch(Record(self.batch, head)).progress.fraction or 0.0

    def entries(self) -> dict[str, list[str]]:
        """Return what the batch knows of each member: its letter, the number of its
        last change, its share in millionths, its weight, and its place.
        """
        found = self.client.hgetall(f"{{{self._key(self.batch)}}}:members")
        return {k.decode(): v.decode().split() for k, v in found.items()}

    def failed(self) -> int:
        """Return how many members are listed as failed."""
        return int(self.client.zcard(f"{{{self._key(self.batch)}}}:failed"))

    def heard(self, uuid: str) -> int:
        """Return when a batch has heard of its members, or a member was heard of."""
        names = ("updated", "seen")
        found = self.client.hmget(self._key(uuid), *names[: 1 + (uuid != self.batch)])
        return max(int(time or 0) for time in found)

    def read(self) -> Batch:
        """Poll the batch."""
        batch = self.store.load(self.batch)
        assert isinstance(batch, Batch)
        return batch

    def _key(self, uuid: str) -> str:
        return f"{self.store.namespace}:{uuid}"


@pytest.fixture
def rewire(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Has the store reach its server through a wire, and look at its batches without a
    pause.
    """
    monkeypatch.setattr(batches, "PAUSE", 0)

    def rewire(wire: Wire) -> None:
        monkeypatch.setattr(scripts, "execute", wire.execute)
        monkeypatch.setattr(reading, "execute", wire.execute)

    return rewire


# What follows knows nothing of that.


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
        self.inside = Inside(client, f"s{seed}", self.uuid())
        self.weights = {
            self.uuid(): self.rng.choice([1000, 1000, 3000, 10_000_000, 1])
            for _ in range(members)
        }
        self.inside.open(self.weights)
        #: The messages in the queue, each with the word of the request that sent it.
        self.queue: list[tuple[str, str | None]] = [
            (each, None) for each in self.weights
        ]
        self.words: dict[str, str | None] = {}
        self.workers = [Worker(self.inside.store), Worker(self.inside.store)]
        #: The letters of the members whose records were lost after their ends.
        self.gone: dict[str, str] = {}
        #: Since when the bar goes on, for how many members, and where it was last.
        self.anew, self.bar = ("", 0), 0.0
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
        keys = [*"xy"[: self.senders.get(uuid, 0)]]
        self.inside.begin(worker, uuid, word, self.rng.randrange(4), keys)
        self.flush(worker)

    def step(self, worker: Worker) -> None:
        """Let a run go on."""
        running = [run for run in worker.runs if not run.has_ended]
        if not running:
            self.flush(worker)
            return
        run = self.rng.choice(running)
        if run.is_cancelled:
            self.end(worker, run, "cancelled")
        elif run.keys:
            self.send(worker, run)
            return
        elif run.steps:
            run.steps -= 1
            run.report(self.rng.randrange(100))
        else:
            status = self.rng.choice(["success"] * 4 + ["error", "retrying"])
            self.end(worker, run, status if self.wire.faults else "success")
        self.flush(worker)

    def send(self, worker: Worker, run: Execution) -> None:
        """Have a run send a member. If it cannot, it is tried again."""
        key = run.keys[-1]
        self.sent[run.uuid, key] = self.inside.uuid_of(run.uuid, key)
        self.wire.is_dead = False
        try:
            self.inside.send(run, key)
            run.keys.pop()
        except StoreUnavailable:
            self.wire.seen["not sent"] += 1
            self.end(worker, run, "retrying")
        except (JobCancelled, RuntimeError):
            # It is over, or cancelled, and hears of that.
            self.wire.seen["refused"] += 1
            self.inside.interrupt(run)
        except Killed:
            self.kill(worker)
        finally:
            self.wire.is_dead = None
        for found in self.inside.sent():
            self.queue.append((found, None))
            self.wire.seen["sent"] += 1

    def end(
        self, worker: Worker, run: Execution, status: str, *, called: bool = True
    ) -> None:
        delay = 0.0 if status == "retrying" else None
        if delay is not None:
            self.queue.append((run.uuid, run.word))
        if not run.end(worker, status, delay, called=called):
            worker.runs.remove(run)
        elif self.loses and self.rng.random() < 0.2:
            # The store was away for more than a second.
            run.is_acked = True

    def flush(self, worker: Worker) -> None:
        """Write what a worker has to write."""
        try:
            worker.write()
        except Killed:
            self.kill(worker)
            return
        for run in [*worker.runs]:
            run.note_delay()
            if run.is_over(worker):
                worker.runs.remove(run)
            elif not run.has_ended and not run.has_begun:
                run.has_begun = True
                if run.is_cancelled:
                    # Before its actor was called.
                    self.end(worker, run, "cancelled", called=False)

    def kill(self, worker: Worker) -> None:
        """Kill a worker, and start another. What it did not acknowledge comes again."""
        self.wire.seen["kill"] += 1
        self.workers[self.workers.index(worker)] = Worker(self.inside.store)
        for run in worker.runs:
            if not run.is_acked and not run.is_put_back:
                self.queue.append((run.uuid, run.word))

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
            self.queue.append((run.uuid, run.word))

    def operate(self) -> None:
        """Do something with a member that users and operators do."""
        uuid = self.rng.choice(sorted(self.weights))
        act = self.rng.choice(["cancel", "put back", "run again", "clear"])
        try:
            if act == "cancel":
                self.inside.cancel(uuid)
            elif act == "clear":
                if self.is_told(uuid):
                    # Perhaps: its reply may be lost. If it waits in a cancelled
                    # batch, it is cancelled first.
                    letter = self.letter(uuid)
                    self.gone[uuid] = letter if letter in "sexc" else "c"
                    self.inside.store.delete(uuid)
            elif not self.is_idle(uuid):
                return
            elif act == "put back":
                self.queue.append((uuid, self.words.get(uuid)))
                self.inside.put_back(uuid, self.uuid())
            else:
                word = self.inside.run_again(uuid)
                if word is None:
                    return
                self.queue.append((uuid, word))
                self.inside.confirm(uuid, word)
        except (Lost, Killed):
            pass
        self.wire.seen[act] += 1

    def lose(self) -> None:
        """Lose the record of a member: it has expired, or a server has."""
        uuid = self.rng.choice(sorted(self.weights))
        status = self.inside.status(uuid)
        if status in FINISHED and self.is_idle(uuid) and self.is_told(uuid):
            self.gone[uuid] = self.letter(uuid)
        elif not any(
            r.uuid == uuid and r.has_begun and not r.is_acked
            for w in self.workers
            for r in w.runs
        ):
            return
        else:
            self.gone.pop(uuid, None)
        self.inside.lose(uuid)
        self.wire.seen["lost"] += 1

    def is_told(self, uuid: str) -> bool:
        """Return whether the batch knows the status of a member."""
        late = any(uuid in command.args for command in self.wire.late)
        status = self.inside.status(uuid)
        return not late and LETTERS.get(status or "") == self.letter(uuid)

    def letter(self, uuid: str) -> str:
        return self.inside.entries()[uuid][0]

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
                self.inside.cancel(self.inside.batch)
                return
            except (Lost, Killed):
                self.wire.seen["stop lost"] += 1

    def look(self) -> None:
        """Poll the batch. That is no sign of life: what it finds is as old as it is."""
        heard, batch = self.inside.heard, self.inside.batch
        before = heard(batch)
        with contextlib.suppress(Lost, Killed):
            self.inside.read()
        signs = [before, *map(heard, self.weights)]
        assert before <= heard(batch) <= max(signs)

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

    def check(self) -> None:
        """Check that the batch agrees with itself."""
        head, entries = self.inside.head(), self.inside.entries()
        counts = {c: int(head.get(f"n:{c}", 0)) for c in "nqrwsec"}
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
        assert self.inside.failed() == counts["e"]
        silent = "w" if counts["n"] + counts["w"] else "r" if counts["r"] else None
        assert head.get("seen") == (None if is_over else silent)
        bar = self.inside.fraction(head)
        assert bar >= done / (10**6 * int(head["weight"]))
        # It starts anew with new members, and when the batch goes on after its end.
        anew = head["listed"], len(self.weights)
        assert bar >= self.bar or anew != self.anew
        self.anew, self.bar = anew, bar
        # No two senders share a member.
        assert len({*self.sent.values()}) == len(self.sent)

    def check_senders(self) -> None:
        """Check that those that have succeeded have sent all their members."""
        for sender, count in self.senders.items():
            if self.inside.status(sender) == "success":
                uuids = [self.sent[sender, key] for key in "xy"[:count]]
                assert self.weights.keys() >= {*uuids}
                for uuid in [uuid for uuid in uuids if self.letter(uuid) == "n"]:
                    # It has failed, and who was about to run it again died.
                    shown = self.inside.shown(uuid)
                    assert shown is not None and shown[1]

    def wrong(self) -> dict[str, int]:
        """Return how the batch and the records of its members differ: how many members
        it counts too many of each status.
        """
        counted = Counter(self.inside.read().counts)
        truth = Counter(map(self.truth, self.weights))
        counted.subtract(truth)
        return {status: count for status, count in counted.items() if count}

    def status_by_members(self) -> str:
        """Return what the silent batch must read as."""
        truth = Counter(map(self.truth, self.weights))
        over = truth["success"] + truth["error"] + truth["cancelled"]
        if over < len(self.weights):
            waiting = [uuid for uuid in self.weights if self.truth(uuid) == "queued"]
            if truth["working"] or "sending" in map(self.inside.status, waiting):
                return "stalled"
            return "retrying" if truth["retrying"] else "queued"
        if truth["error"]:
            return "error"
        return "cancelled" if truth["cancelled"] else "success"

    def truth(self, uuid: str) -> str:
        """Return the status of a member, as its record reads and batches count it."""
        shown, letter = self.inside.shown(uuid), self.letter(uuid)
        if shown is None:
            if letter == "n" and uuid not in self.gone:
                # Its sender has ended before it could record it.
                return "cancelled" if self.inside.is_stopped() else "queued"
            # Expired, cleared or lost.
            return STATUSES[self.gone.get(uuid, "e")]
        status, is_rerun = shown
        if self.inside.status(uuid) == "sending" and letter == "e":
            # It failed, and who was about to run it again died: it may be run again.
            assert is_rerun
            return "error"
        return "working" if status == "cancelling" else status

    def repair(self) -> None:
        """Poll the batch, as its viewers do, until all is known."""
        for _ in range(2 + len(self.weights) // 20):
            time.sleep(0.007)
            self.look()


@pytest.fixture
def scenes(client: redis.Redis, rewire: Any) -> Any:
    """Plays scenes of the seeds in a range."""

    def play_all(
        *seeds: int, members: int = 20, stops: bool, **options: bool
    ) -> Counter[str]:
        seen: Counter[str] = Counter()
        for seed in range(*seeds):
            scene = Scene(seed, client, members=members, stops=stops, **options)
            rewire(scene.wire)
            scene.play(25 * members, 0.08)
            seen["behind"] += bool(scene.wrong())
            scene.repair()
            assert scene.wrong() == {}, seed
            scene.check()
            scene.check_senders()
            if not stops:
                # Else what it reads was fixed when the batch was cancelled.
                status = scene.inside.read().status
                assert status == scene.status_by_members(), seed
            seen += scene.wire.seen
            for key in client.scan_iter(f"*s{seed}:*", count=10000):
                client.delete(key)
        return seen

    return play_all


@pytest.mark.system
@pytest.mark.timeout(600)
@pytest.mark.parametrize("loses", [False, True], ids=["kept", "lost"])
@pytest.mark.parametrize("stops", [False, True], ids=["goes on", "cancelled"])
def test_batch_knows_its_members(scenes: Any, loses: bool, stops: bool) -> None:
    """Whatever happens, the batch counts in the end what the records read as."""
    seen = scenes(6, loses=loses, stops=stops)
    assert sum(seen[fate] for fate in FATES) > 150
    assert seen["kill"] > 50
    assert seen["sent"] > 10


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
