"""The outbox of ends compared with what was told of them, for any order of events."""

import contextlib
import itertools
import json
import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis
from hypothesis import example, given
from hypothesis import strategies as st

from pyramid_jobstate import JobError, JobStore, NotRepeatable
from pyramid_jobstate.job.hooks import HookInfo
from pyramid_jobstate.job.record import (
    BATCH_MARK,
    NOT_REACHED,
    NOT_SENT,
    End,
    Failure,
    JobInfo,
    Member,
    NewBatch,
    NewJob,
    Update,
)
from pyramid_jobstate.store.ends import UntoldEnd
from pyramid_jobstate.store.jobstore import records_of
from pyramid_jobstate.testing import pass_time
from tests.jobs import new_id
from tests.store.test_model import examples
from tests.trips import met

#: A kind that nobody would choose.
KIND = "a}:%\"' \\{é"

#: As it stands in the names of keys.
ESCAPED = "a%7D%3A%25\"' \\{é"

#: What a class says of its hooks, which change between two versions of it.
HOOKS = (
    '["sec","default",null,null]',
    '["s","mails",null,null]',
    '["e","default","https://example.com/","shop"]',
)

QUEUES = ("default", "mails")

FINISHED = ("success", "error", "cancelled")

#: The jobs: one of its own, two with one identity, two members, and two batches, one of
#: them empty.
LONE, FIRST, SECOND, BIG, SMALL, BATCH, EMPTY = range(7)
JOBS = (LONE, FIRST, SECOND, BIG, SMALL)
MEMBERS = (BIG, SMALL)

#: Seconds until the last member is due, much longer than ended jobs live.
MONTH = 30.0 * 24 * 3600

#: Seconds of the life of a record that may have passed.
SLACK = 3600

#: The beginning of a command, as it is sent.
COMMAND = re.compile(rb"\*\d+\r\n\$\d+\r\n[A-Z]")

Pair = tuple[str, str]

#: Reads all keys at one moment: for each its milliseconds to live, and what it holds.
ALL = """
local found = {}
local commands = { hash = "HGETALL", set = "SMEMBERS" }
for _, key in ipairs(redis.call("KEYS", "*")) do
  local kind, rows = redis.call("TYPE", key).ok, {}
  if commands[kind] then
    rows = redis.call(commands[kind], key)
  elseif kind == "zset" then
    rows = redis.call("ZRANGE", key, 0, -1)
  end
  found[#found + 1] = { key, redis.call("PTTL", key), rows }
end
return found
"""


class Course:
    """Some jobs and batches of a store, and what has become of their ends.

    An end is known by its uuid and its time.

    Attributes:
      told: The ends that a broker has accepted, or whose hooks have begun.
      begun: The messages that have begun to tell ends.
      statuses: The statuses of all ends.
      lives: Until when the records of cancelled jobs live, in seconds.
      hooks: What the records say of hooks.
      sent: The ends for which messages were sent.
      leased: The ends that a process has taken for a while.
      words: The words of the last requests to run jobs again.
    """

    def __init__(self, store: JobStore) -> None:
        self.store = store
        self.client: Any = store.client
        self.records = records_of(store)
        self.ends = self.records.ends
        self.uuids = [new_id() for _ in range(7)]
        self.runs = [""] * 7
        self.words: dict[int, str] = {}
        self.told: set[Pair] = set()
        #: Empty batches whose transaction has not committed.
        self.uncommitted: set[str] = set()
        self.begun: dict[Pair, str] = {}
        #: The ends whose hooks have returned or were given up.
        self.over: set[Pair] = set()
        self.statuses: dict[Pair, str] = {}
        self.lives: dict[Pair, float] = {}
        self.hooks: dict[str, str] = {}
        self.sent: list[Pair] = []
        self.leased: set[Pair] = set()
        #: The ends that stood at the last look, each with the runs before it.
        self.standing: dict[Pair, str] = {}

    def key(self, name: str) -> str:
        return f"{self.store.namespace}:{name}"

    def info(self, slot: int, n: int) -> JobInfo:
        """Return the facts of a job, as its class is at the moment."""
        batch = self.uuids[BATCH] if slot in MEMBERS else None
        return JobInfo(
            KIND,
            "act" if slot in JOBS else "",
            owner='"alice"',
            rerun=self.words.get(slot),
            unique="one" if slot in (FIRST, SECOND) else None,
            batch=batch if slot in JOBS else BATCH_MARK,
            hooks=HOOKS[n % len(HOOKS)],
        )

    def job(self, slot: int, n: int, *, waits: bool = False) -> NewJob:
        delay = MONTH if slot == SMALL else 0.0
        return NewJob(self.uuids[slot], self.info(slot, n), delay, waits, "me")

    def batch(self, slot: int, n: int) -> NewBatch:
        members = MEMBERS if slot == BATCH else ()
        jobs = [Member(self.job(each, n), 1000) for each in members]
        return NewBatch(self.uuids[slot], self.info(slot, n), {}, "me", jobs)

    def write(self, slot: int, n: int, **options: Any) -> None:
        """Write an update of the last run of a job, or of a new one."""
        if options.get("begins"):
            self.runs[slot] = f"run {n}"
        usual: dict[str, Any] = {"token": self.runs[slot], "seq": 5}
        info = self.info(slot, n)._replace(attempt=1)
        update = Update(self.uuids[slot], info=info, **usual | options)
        (reply,) = self.records.write([update])
        assert not isinstance(reply, Exception), reply

    def stored(self, uuid: str) -> dict[str, str]:
        return texts_of(self.client.hgetall(self.key(uuid)))

    def end_of(self, uuid: str) -> Pair | None:
        """Return the end of a job that has ended."""
        fields = self.stored(uuid)
        is_over = fields.get("status") in FINISHED
        return (uuid, fields["finished"]) if is_over else None

    def is_awaited(self, uuid: str) -> bool:
        """Return whether a hook has yet to begin for the end of a job."""
        fields, end = self.stored(uuid), self.end_of(uuid)
        letters = json.loads(fields.get("hooks", '[""]'))[0]
        is_told = end is not None and fields["status"][0] in letters
        return is_told and fields.get("hook") != "over"

    def life_of(self, uuid: str) -> float:
        """Return the seconds that a record lives."""
        return float(self.client.pttl(self.key(uuid)) / 1000)

    def due(self, *queues: str) -> set[str]:
        """Return the jobs in the outbox that are due."""
        found: set[str] = set()
        for queue in queues:
            key = self.key(f"untold:{queue}:{ESCAPED}")
            rows = self.client.zrangebyscore(key, "-inf", time.time() * 1e6)
            found.update(uuid.decode() for uuid in rows)
        return found

    def send(self, found: list[UntoldEnd], due: set[str]) -> None:
        """Send messages for ends that were taken: all that are due, and none twice."""
        assert sorted(end.uuid for end in found) == sorted(due)
        for end in found:
            pair = end.uuid, end.finished
            assert self.end_of(end.uuid) == pair not in self.told | self.leased
            assert (end.kind, end.status) == (KIND, self.statuses[pair])
            assert list(end.hooks) == json.loads(self.hooks[end.uuid])
            self.leased.add(pair)
            self.sent.append(pair)

    def names(self) -> set[str]:
        return {name.decode() for name in self.client.smembers(self.key("untold"))}

    def make_due(self) -> None:
        """Let the time pass for which ends are taken."""
        for name in self.names():
            key = self.key(f"untold:{name}")
            for uuid in self.client.zrange(key, 0, -1):
                self.client.zincrby(key, -16_000_000, uuid)
        self.leased.clear()

    def begin_hook(self, pair: Pair, message: str) -> None:
        """Have a message begin to tell an end."""
        is_first = self.begun.get(pair, message) == message and pair not in self.over
        may = self.end_of(pair[0]) == pair and is_first
        assert self.ends.begin(*pair, message) == may
        if may:
            self.begun[pair] = message
            self.told.add(pair)
            # It may be tried again for a while, and asks for what lies beside.
            lives = map(self.client.pttl, self.client.scan_iter(f"*{pair[0]}*"))
            assert min(lives) / 1000 > self.store.active_expire_in - 1

    def end_hook(self, pair: Pair, message: str, *, is_given_up: bool) -> None:
        """Have a message return, or be given up, perhaps before the hook began: if it
        ran the hook, the record lives as long as others from now on, but that of a
        cancelled job or batch is not shortened.
        """
        uuid = pair[0]
        before, fields = self.life_of(uuid), self.stored(uuid)
        self.ends.finish(*pair, message, is_given_up=is_given_up)
        is_cut = fields.get("status") == "cancelled" or "stopped" in fields
        holder = self.begun.get(pair, message if is_given_up else None)
        is_left = "untold" in fields or holder != message
        if self.end_of(uuid) == pair and not is_left:
            self.over.add(pair)
        if self.end_of(uuid) != pair or is_cut or is_left:
            assert self.life_of(uuid) >= before - 1
        else:
            assert abs(self.life_of(uuid) - self.store.expire_in) < 1
            keys = self.client.scan_iter(f"*{uuid}*")
            assert max(map(self.client.pttl, keys)) <= self.store.expire_in * 1000

    def lose(self, uuid: str) -> None:
        """Lose a record. Whoever comes across its entry removes that."""
        self.client.delete(self.key(uuid))
        self.make_due()
        assert uuid not in [end.uuid for end in self.ends.take(QUEUES, [KIND])]

    def lose_outbox(self) -> None:
        """Lose the outbox. A worker tells the end that it has written all the same."""
        for name in self.names():
            self.client.delete(self.key(f"untold:{name}"))
        self.client.delete(self.key("untold"))
        self.leased.clear()
        for uuid in self.uuids:
            found = self.ends.take_one(uuid)
            untold = {uuid} if "untold" in self.stored(uuid) else set()
            self.send([] if found is None else [found], untold)

    def pass_time(self, seconds: float) -> None:
        """Let time pass, after which all ends have other times."""
        pass_time(self.store, seconds)

        def past(pair: Pair) -> Pair:
            return pair[0], str(max(0, int(pair[1]) - int(seconds * 1000)))

        self.told = {*map(past, self.told)}
        self.statuses = {past(pair): each for pair, each in self.statuses.items()}
        self.lives = {past(pair): each - seconds for pair, each in self.lives.items()}
        self.begun = {past(pair): each for pair, each in self.begun.items()}
        self.over = {*map(past, self.over)}
        self.standing = {past(pair): runs for pair, runs in self.standing.items()}
        self.leased.clear()

    def put_back(self) -> None:
        """Note which ends stand again, after another run was to begin. Unless a hook
        was told, nobody knows what became of its message.
        """
        standing = {}
        for uuid in self.uuids:
            if (pair := self.end_of(uuid)) is not None:
                standing[pair] = self.stored(uuid).get("past", "")
        for pair, runs in standing.items():
            is_back = self.standing.get(pair) != runs and pair in self.statuses
            if is_back and pair not in self.over:
                self.told.discard(pair)
                self.leased.discard(pair)
                self.begun.pop(pair, None)
        self.standing = standing

    def check(self) -> None:
        """Check what the records and the outbox say of the ends."""
        self.put_back()
        found = {
            key.decode(): (life, rows) for key, life, rows in self.client.eval(ALL, 0)
        }
        assert [key for key, (life, _) in found.items() if life < 0] == []
        outbox: dict[str, set[str]] = {}
        for slot, uuid in enumerate(self.uuids):
            life, rows = found.get(self.key(uuid), (0, []))
            fields = texts_of(dict(zip(rows[::2], rows[1::2], strict=True)))
            status, hooks = fields.get("status", ""), fields.get("hooks")
            if hooks is None:
                assert status in ("", "deleted", "alias") and "untold" not in fields
                self.hooks.pop(uuid, None)
                continue
            assert self.hooks.setdefault(uuid, hooks) == hooks
            letters, queue, *_ = json.loads(hooks)
            pair = uuid, fields.get("finished", "")
            is_over = status in FINISHED
            assert not is_over or self.statuses.setdefault(pair, status) == status
            is_quiet = pair in self.told or uuid in self.uncommitted
            is_untold = is_over and status[0] in letters and not is_quiet
            assert ("untold" in fields) == is_untold, (slot, fields)
            if is_over and not is_untold and not is_quiet:
                # Nobody will be told: it may be cleared.
                assert status[0] not in letters or "hook" in fields
            if is_untold:
                outbox.setdefault(f"{queue}:{ESCAPED}", set()).add(uuid)
                assert life / 1000 > self.store.active_expire_in - SLACK
            self.check_life(slot, pair, fields, life / 1000)
        start = self.key("untold")
        names = {name.decode() for name in found.get(start, (0, []))[1]}
        sets = {key: rows for key, (_, rows) in found.items() if f"{start}:" in key}
        entries = {
            key.removeprefix(f"{start}:"): {uuid.decode() for uuid in rows}
            for key, rows in sets.items()
        }
        assert entries == outbox
        assert names >= {*outbox}

    def check_life(
        self, slot: int, pair: Pair, fields: dict[str, str], life: float
    ) -> None:
        """Check that a record lives until the messages have come that must not run."""
        if slot in JOBS and fields["status"] == "cancelled":
            until = time.monotonic() + life
            assert until > self.lives.get(pair, 0.0) - 1
            self.lives[pair] = until
        elif slot == BATCH and any(fields.get(f"n:{x}", "0") != "0" for x in "nqrw"):
            assert life > int(fields["latest"]) / 1000 - time.time() - 1


def texts_of(fields: dict[bytes, bytes]) -> dict[str, str]:
    return {name.decode(): value.decode() for name, value in fields.items()}


@contextlib.contextmanager
def repeating() -> Iterator[None]:
    """Have each round trip of this thread come twice, as if the first reply had been
    lost.
    """

    def meet(connection: Any, go: Any) -> Any:
        (_, command), packed = go.args, go.args[1]
        if not isinstance(command, bytes):
            packed = b"".join(command)
        go()
        for _ in range(len(COMMAND.findall(packed))):
            with contextlib.suppress(redis.ResponseError):
                connection.read_response()
        return go()

    with met(meet):
        yield


def take_step(course: Course, name: str, slot: int, n: int) -> None:
    """Take a step of a course, in a variant of many."""
    records, ends = course.records, course.ends
    uuid = course.uuids[slot]
    # The messages of all ends, or of one of them.
    pairs = (
        [*course.sent]
        if n < 8 or not course.sent
        else [course.sent[n % len(course.sent)]]
    )
    match name:
        case "create":
            job = course.job(slot, n, waits=n % 4 == 3)
            # A unique one takes its claim later, if it does.
            records.create_new(job, marks=True)
            records.create(job)
        case "confirm":
            records.confirm(uuid, course.words.get(slot), course.info(slot, n).batch)
        case "begin":
            course.write(slot, n, begins=True)
        case "report":
            course.write(slot, n, fields={"message": '"x"'}, renews=n % 2 == 0)
        case "finish":
            status = ("success", "error", "cancelled", "retrying")[n % 4]
            failure = Failure("{}", "", "a traceback") if n % 2 else None
            error = None if status == "success" else JobError("E", "x")
            delay = 0.0 if status == "retrying" else None
            end = End(status, error, delay, failure)
            # The start may have to be sent along.
            course.write(slot, n, end=end, begins=n >= 8)
        case "drop":
            status = ("error", "cancelled", "retrying")[n % 3]
            error = (NOT_SENT, NOT_REACHED, JobError(None, "x"))[n // 3 % 3]
            end = End(status, error, 5.0 if status == "retrying" else None)
            course.write(slot, n, end=end, dropped=True, token=f"drop {n}")
        case "cancel":
            before = course.life_of(uuid)
            records.cancel(uuid, course.info(slot, n))
            # Its message may still come.
            assert course.life_of(uuid) >= before - 1
        case "silence":
            if course.stored(uuid):
                course.client.hset(course.key(uuid), "seen", 0)
                course.client.hset(course.key(uuid), "updated", 0)
        case "delete":
            is_over = course.end_of(uuid) is not None
            assert course.store.delete(uuid) or not is_over
        case "clear":
            awaited = [each for each in course.uuids if course.is_awaited(each)]
            # Members of a cancelled batch read cancelled, and may not have ended.
            is_cut = "stopped" in course.stored(course.uuids[BATCH])
            result = course.store.clear(everything=True)
            assert result.refused == len(awaited) or is_cut
            assert all(map(course.is_awaited, awaited))
        case "requeue":
            record = records.record(uuid)
            with contextlib.suppress(NotRepeatable):
                word = record and record.uuid == uuid and records.requeue(record, "x")
                course.words[slot] = word or course.words.get(slot, "")
        case "restore":
            record = records.record(uuid)
            if record is not None and record.uuid == uuid and course.words.get(slot):
                records.restore(record, course.words.pop(slot))
        case "await_turn":
            records.await_turn([(uuid, course.info(slot, n))])
        case "forget":
            records.forget(course.job(slot, n))
        case "alias":
            records.claims.make_alias(course.job(slot, n), course.uuids[FIRST])
        case "claim":
            # That ends the jobs of the identity whose senders have died.
            records.claims.take("one", uuid)
        case "open":
            is_new = not course.stored(uuid)
            records.batches.open(course.batch(slot, n))
            if is_new and slot == EMPTY:
                course.uncommitted.add(uuid)
        case "forget_batch":
            records.batches.forget(course.batch(slot, n))
        case "commit":
            course.uncommitted.discard(uuid)
            records.ends.tell(uuid)
        case "stop":
            records.cancel(course.uuids[BATCH], course.info(BATCH, n))
        case "add":
            members = course.batch(BATCH, n).members
            sender = course.uuids[BIG] if n % 2 else ""
            records.batches.add(course.uuids[BATCH], members, sender)
        case "sweep":
            assert ends.take(QUEUES, ["other"]) == ends.take(["other"], [KIND]) == []
            queues = QUEUES[n % 2 :]
            due = course.due(*queues)
            course.send(ends.take(queues, [KIND, "other"]), due)
            names = {f"{queue}:{ESCAPED}" for queue in queues} & course.names()
            assert all(course.client.exists(course.key(f"untold:{n}")) for n in names)
        case "take_one":
            due = course.due(*QUEUES) & {uuid}
            found = ends.take_one(uuid)
            course.send([] if found is None else [found], due)
        case "make_due":
            course.make_due()
        case "accept":
            hooks = HookInfo("", "default")
            ends.mark_sent(
                UntoldEnd(uuid, hooks, KIND, "", finished, None)
                for uuid, finished in pairs
            )
            course.told.update(pairs)
        case "begin_hook":
            for pair in pairs:
                course.begin_hook(pair, f"message {n % 2}")
        case "end_hook":
            for pair in pairs:
                course.end_hook(pair, f"message {n % 2}", is_given_up=n >= 4)
        case "lose":
            course.lose(uuid)
        case "lose_outbox":
            course.lose_outbox()
        case "pass_time":
            course.pass_time(20)


#: What processes do not do, or what they do again later if they lose the reply.
ONCE = (
    *("silence", "make_due", "lose", "lose_outbox", "pass_time"),
    *("sweep", "take_one"),
)

OF_JOBS = (
    *("create", "confirm", "begin", "report", "finish", "drop", "cancel", "silence"),
    *("delete", "requeue", "restore", "await_turn", "forget", "alias", "claim"),
    *("take_one", "lose"),
)
OF_BATCHES = ("open", "commit", "forget_batch", "stop", "add")
OF_ENDS = (
    "sweep",
    "make_due",
    "accept",
    "begin_hook",
    "end_hook",
    "clear",
    "pass_time",
    "lose_outbox",
)

Step = tuple[str, int, int, bool]

numbers = st.integers(0, 15)
steps = st.one_of(
    st.tuples(st.sampled_from(OF_JOBS), st.sampled_from(JOBS), numbers, st.booleans()),
    st.tuples(
        st.sampled_from(OF_BATCHES),
        st.sampled_from([BATCH, EMPTY]),
        numbers,
        st.booleans(),
    ),
    st.tuples(st.sampled_from(OF_ENDS), st.just(LONE), numbers, st.booleans()),
)

SUCCESS, ERROR, CANCELLED, RETRYING, AGAIN, STOPPED = 0, 1, 2, 3, 8, 14


def scenes_of(slot: int, n: int) -> list[list[Any]]:
    """Return steps that rarely follow each other by chance."""
    run = [("create", slot, n), ("begin", slot, n + 1)]
    rerun = [("create", slot, n), ("begin", slot, n + 2)]
    fail, succeed = ("finish", slot, ERROR), ("finish", slot, SUCCESS)
    sweep, accept = ("sweep", LONE, 0), ("accept", LONE, 0)
    begin, end = ("begin_hook", LONE, 0), ("end_hook", LONE, 0)
    told, other = [sweep, begin, end], ("begin_hook", LONE, 1)
    again, late = ("make_due", LONE, 0), ("end_hook", LONE, 8)
    cancel, dies = ("cancel", slot, 0), ("silence", slot, 0)
    whole = [("open", BATCH, 0), *(("create", each, 0) for each in MEMBERS)]
    begun = [*whole, *(("begin", each, 1) for each in MEMBERS)]
    failed = [*begun, *(("finish", each, ERROR) for each in MEMBERS)]
    stop, requeue = ("stop", BATCH, 0), ("requeue", slot, 0)
    goes_on = [("requeue", BIG, 0), ("begin", BIG, 2), ("finish", BIG, ERROR)]
    unreached, skipped = [("create", slot, 3), ("drop", slot, 4)], ("drop", slot, 7)
    stopped = ("finish", slot, STOPPED)
    refused = [requeue, ("restore", slot, 0)]
    worried = [("create", slot, 2), ("begin", slot, 2), cancel]
    return [
        [*run, succeed, *told],
        [*run, succeed, sweep, accept, ("create", slot, n + 1)],
        [*run, succeed, again, *told, *told],
        [*run, succeed, ("lose", slot, 0), *run, succeed, *told],
        [*run, succeed, ("lose_outbox", LONE, 0), *told],
        [*run, succeed, sweep, ("take_one", slot, 0), end],
        [*run, succeed, sweep, begin, other, begin, ("end_hook", LONE, 1)],
        [*run, succeed, *told, *rerun, succeed, sweep, begin, late],
        [*run, succeed, ("pass_time", LONE, 0), ("clear", LONE, 0), *told],
        [*run, fail, *refused, *told],
        [*run, fail, sweep, *refused, again, *told],
        [*run, fail, *told[:2], requeue, late, ("restore", slot, 0), sweep, other],
        [*run, fail, *told, *refused, sweep],
        [*run, fail, sweep, accept, *refused, sweep, accept, end, begin],
        [*run, succeed, ("begin", slot, 5), stopped, *told],
        [*run, succeed, *told, ("begin", slot, 5), stopped, sweep],
        [*run, succeed, sweep, accept, ("begin", slot, 5), end, stopped, *told],
        [*run, fail, ("begin", slot, 5), ("begin", slot, 6), stopped, *told],
        [*run, fail, requeue, ("begin", slot, n), succeed, *told],
        [*run, fail, sweep, ("begin", slot, n), fail, accept, *told],
        [*run, dies, cancel, *told],
        [*run, cancel, ("finish", slot, CANCELLED), *told],
        [*run, ("drop", slot, 6), ("finish", slot, RETRYING), *told],
        [*worried, fail],
        [*worried, dies, ("drop", slot, 6)],
        [*unreached, ("await_turn", slot, 0)],
        [*unreached, sweep, begin, ("await_turn", slot, 0), skipped, sweep, other],
        [("create", SECOND, n), ("silence", SECOND, 0), ("claim", FIRST, 0)],
        [("create", SECOND, 0), ("drop", SECOND, 1), ("alias", SECOND, 0)],
        [("open", EMPTY, 0), ("commit", EMPTY, 0), again, *told],
        [("open", EMPTY, 0), ("forget_batch", EMPTY, 0)],
        [*whole, stop, ("begin", slot, n), *told],
        [*begun, ("finish", BIG, ERROR), stop, *told],
        [*whole, ("begin", BIG, 1), ("finish", BIG, ERROR), stop, *told],
        [*whole, ("begin", BIG, 1), stop, ("finish", BIG, ERROR), *told],
        [*failed, sweep, begin, *goes_on, sweep, other],
        [*failed, *goes_on[:2], ("requeue", SMALL, 0), ("finish", SMALL, AGAIN)],
        [*failed, ("finish", BIG, AGAIN), ("finish", SMALL, AGAIN), *told],
    ]


scenes = st.tuples(st.sampled_from(JOBS), numbers).flatmap(
    lambda found: st.sampled_from(scenes_of(*found))
)
parts = st.one_of(
    steps.map(lambda step: [step]),
    st.tuples(scenes, st.booleans()).map(lambda f: [(*step, f[1]) for step in f[0]]),
)
paths = st.lists(parts, min_size=2, max_size=8).map(
    lambda found: [*itertools.chain(*found)]
)


@pytest.fixture(scope="module")
def course(modelled: JobStore) -> Callable[[], Course]:
    """Begins a course in an empty database: on one server, and on a Cluster all of
    whose keys share a slot.
    """
    is_cluster = isinstance(modelled.client, redis.RedisCluster)
    store = modelled.replace(namespace="{a}:b") if is_cluster else modelled

    def begin() -> Course:
        store.client.flushall()
        return Course(store)

    return begin


def follow(course: Course, path: list[Step]) -> None:
    """Take the steps, and check the outbox after each."""
    for name, slot, n, is_repeated in path:
        repeats = is_repeated and name not in ONCE
        with repeating() if repeats else contextlib.nullcontext():
            take_step(course, name, slot, n)
        course.check()
        # No two ends have the same time.
        time.sleep(0.001)


def with_scenes(test: Any) -> Any:
    """Have a test begin with each of the scenes: of a lone job, and of a member with
    each call repeated.
    """
    for scene in scenes_of(LONE, 0):
        test = example(path=[(*step, False) for step in scene])(test)
    for scene in scenes_of(BIG, 1):
        test = example(path=[(*step, True) for step in scene])(test)
    return test


@pytest.mark.promise("every-end-is-told")
@pytest.mark.system
@with_scenes
@examples(20)
@given(path=paths)
def test_outbox_has_what_is_to_be_told(course, path):
    """Whatever happens to jobs and batches, and however often a call is repeated, the
    ends that are to be told stand in the outbox, and no others do. Each is told by one
    message at most.
    """
    follow(course(), path)


@pytest.mark.long
@pytest.mark.timeout(1800)
@examples(2000)
@given(path=paths)
def test_outbox_has_what_is_to_be_told_for_long(course, path):
    """The same holds for many more events."""
    follow(course(), path)


def test_process_takes_a_hundred_ends_at_once(course):
    """Others take the rest, the later ones. An end that is taken is due again later."""
    records, ends = course().records, course().ends
    info = JobInfo(KIND, "act", hooks=HOOKS[0])
    jobs = [NewJob(new_id(), info) for _ in range(150)]
    records.create(*jobs)
    for job in jobs:
        records.cancel(job.uuid, info)
    parts = [[end.uuid for end in ends.take(QUEUES, [KIND])] for _ in range(3)]
    uuids = [job.uuid for job in jobs]
    assert parts == [uuids[:100], uuids[100:], []]
