"""The store's scripts compared with a model of a job, for any order of events."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import time
from collections.abc import Callable
from typing import Any

import pytest
import redis
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from pyramid_jobstate import Counts, JobError, JobStore
from pyramid_jobstate.job.journal import NewLine
from pyramid_jobstate.job.record import (
    NOT_REACHED,
    End,
    Failure,
    JobInfo,
    NewJob,
    Record,
    Update,
)
from pyramid_jobstate.job.values import Json
from pyramid_jobstate.store.jobstore import records_of
from pyramid_jobstate.testing import pass_time
from tests.jobs import new_id
from tests.lost import disagreements, keys_without_end
from tests.support import key_of

RUNS = ("first", "second", "third")

RUNNING = ("working", "cancelling")
WAITING = ("waiting", "sending", "queued", "retrying")
FINISHED = ("success", "error", "cancelled")


@dataclasses.dataclass(frozen=True, slots=True)
class Report:
    """What a worker tells the store of a job, perhaps twice or late.

    Attributes:
      token: The run that it is about, or an id of its own if a message was stopped
        before a run of it began.
      is_late: Whether another run may have begun since.
      is_answered: Whether something answered in place of the function.
      failure: Whether the run has failed: None if not, else whether its message is
        kept, from which it may run again.
      is_drop: Whether a message was stopped before a run of it began.
      is_unreached: Whether the turn of a later step never comes.
      word: The word of the request to run the job again that sent the message.
    """

    token: str
    seq: int = 0
    values: tuple[tuple[str, str], ...] = ()
    begins: bool = False
    is_late: bool = False
    is_told: bool = False
    end: str = ""
    is_answered: bool = False
    failure: bool | None = None
    is_drop: bool = False
    is_unreached: bool = False
    word: str | None = None
    attempt: int = 1


#: What a run logs as it begins.
LINE = NewLine(1, 0, Json('[30,"WARNING","x",1,"a line"]'))

#: What the store holds of a job, by the names of Model.
Stored = dict[str, Any]


class Scripts:
    """One job, as workers and senders write it.

    This class alone knows how they speak with the store.
    """

    def __init__(self, store: JobStore) -> None:
        self.store = store
        self.uuid = new_id()
        params = '{"miles":26}'
        self.info = JobInfo("RunMarathon", "run", 0, '"alice"', params, log_level=30)

    def create(self, sender: str, *, waits: bool) -> bool:
        job = NewJob(self.uuid, self.info, waits=waits, sender=sender)
        return records_of(self.store).create(job) == [True]

    def confirm(self, word: str | None, sender: str = "") -> None:
        records_of(self.store).confirm(self.uuid, word, sender=sender)

    def cancel(self) -> bool:
        return records_of(self.store).cancel(self.uuid, self.info)

    def delete(self) -> bool:
        return self.store.delete(self.uuid)

    def rerun(self) -> str | None:
        return records_of(self.store).requeue(self._record, "default")

    def restore(self, word: str) -> bool:
        return records_of(self.store).restore(self._record, word)

    def await_turn(self) -> bool:
        return records_of(self.store).await_turn([(self.uuid, self.info)])

    def write(self, report: Report, age: float) -> str:
        """Write a report of a run that began so many seconds ago. Return the reply."""
        end = None
        if report.end:
            failure = None
            if report.failure is not None:
                failure = Failure("{}" if report.failure else "", "", "a traceback")
            error = JobError("E", report.token) if report.end != "success" else None
            if report.is_unreached:
                error = NOT_REACHED
            delay = 0.0 if report.end == "retrying" else None
            end = End(report.end, error, delay, failure)
        # Its message says that it is another's.
        options: dict[str, Any] = {"attempt": report.attempt, "rerun": report.word}
        update = Update(
            self.uuid,
            report.token,
            report.seq,
            self.info._replace(owner='"bob"', **options),
            {f"m:{name}": f'"{value}"' for name, value in report.values},
            begins=report.begins,
            lines=[LINE] if report.begins else [],
            age=age,
            late=report.is_late,
            is_answered=report.is_answered,
            cancelled=report.is_told,
            end=end,
            dropped=report.is_drop,
        )
        (reply,) = records_of(self.store).write([update])
        assert not isinstance(reply, Exception), reply
        return reply.name

    def stored(self) -> Stored:
        """Return what the store holds of the job."""
        found: Any = self.store.client.hgetall(f"jobstate:{self.uuid}")
        fields = {name.decode(): value.decode() for name, value in found.items()}
        failures = self.store.failures(self.uuid)
        return {
            "status": fields.get("status"),
            "run": fields.get("run"),
            "word": fields.get("rerun"),
            "owner": fields.get("owner"),
            "metrics": {
                k[2:]: v.strip('"') for k, v in fields.items() if k.startswith("m:")
            },
            "attempt": int(fields.get("attempt", 0)),
            "kept": bool(failures.message),
            "tries": [each.error.message for each in failures.tries if each.error],
        }

    @property
    def _record(self) -> Record:
        record = records_of(self.store).record(self.uuid)
        return record or Record(self.uuid, self.info.fields())


@dataclasses.dataclass(slots=True)
class Model:
    """The job as it should be, by the table of states.

    Attributes:
      status: The status, or None without a record. Beside those that a viewer sees, a
        job is "waiting" for its turn, "sending" until its message has left, "deleted".
      word: The word of the only message that may run it, "" for one without a word, or
        None for any.
      is_silent: Whether nobody has spoken of it for a while.
      sender: Who has created its record, "" if that is not known any more.
      resender: Who alone may confirm that its message is put back, or None for all.
      began: The run whose start it shows, or None.
      dropped: The id of the last drop that was carried out, or waits for the run.
      stop: How the run ends if it puts its message back, or None.
      refused: The word of the message that the broker refused last, or None.
      tries: The runs that have failed, each with when it began.
      former: The end that stands again if nothing runs, or None.
    """

    status: str | None = None
    run: str | None = None
    word: str | None = None
    owner: str | None = None
    metrics: dict[str, str] = dataclasses.field(default_factory=dict)
    attempt: int = 0
    kept: bool = False
    is_silent: bool = False
    sender: str = ""
    resender: str | None = None
    past: frozenset[str] = frozenset()
    seq: int = 0
    began: str | None = None
    is_asked: bool = False
    dropped: str | None = None
    stop: Report | None = None
    refused: str | None = None
    is_unreached: bool = False
    tries: dict[str, float] = dataclasses.field(default_factory=dict)
    former: Model | None = None

    @property
    def stored(self) -> Stored:
        """What the store should hold."""
        names = ("status", "run", "word", "owner", "metrics", "attempt", "kept")
        found = {name: getattr(self, name) for name in names}
        return {**found, "tries": sorted(self.tries, key=lambda run: self.tries[run])}

    @property
    def shown(self) -> str | None:
        """The status that a viewer sees, or None."""
        if self.is_silent and self.status in ("sending", *RUNNING):
            return "stalled"
        if self.status in ("waiting", "sending"):
            return "queued"
        return None if self.status == "deleted" else self.status

    @property
    def was_cancelled(self) -> bool:
        """Whether a user cancelled it, so that its message must be skipped."""
        return self.status == "cancelled" and self.is_asked

    def supersede(self, run: str | None) -> None:
        if self.run is not None:
            self.past |= {self.run}
        self.run, self.seq, self.metrics, self.stop = run, 0, {}, None
        self.is_unreached, self.refused = False, None

    def create(self, sender: str, *, waits: bool) -> bool:
        new = "waiting" if waits else "sending"
        if self.status in ("waiting", "sending"):
            if not waits and self.resender is not None:
                self.resender = sender
            if self.status == "waiting" and not waits:
                self.status, self.is_silent = new, False
                return True
            # As if the reply to the first call had been lost.
            return sender == self.sender
        is_over = self.status in FINISHED
        if self.status is not None and (not is_over or self.was_cancelled):
            return False
        if is_over:
            self.former = dataclasses.replace(self, former=None)
        self.owner = self.owner or '"alice"'
        self.resender = sender if is_over and not waits else None
        self.sender = sender
        self.supersede(None)
        self.status, self.is_asked, self.dropped = new, False, None
        self.word = "" if self.word == "" else None
        self.attempt, self.began, self.is_silent = 0, None, False
        return True

    def confirm(self, word: str | None, sender: str) -> None:
        is_known = self.word in (None, word or "") and self.resender in (None, sender)
        if self.status == "sending" and is_known:
            self.status = "queued"

    def cancel(self) -> bool:
        if self.status in RUNNING and not self.is_silent:
            self.status = "cancelling"
        elif self.status in (*RUNNING, *WAITING):
            self.status = "cancelled"
        else:
            return False
        self.is_asked = True
        return True

    def delete(self) -> bool:
        if self.status not in FINISHED:
            return False
        self.supersede(None)
        self.status, self.word, self.dropped = "deleted", None, None
        self.owner = None
        self.past, self.tries, self.attempt = frozenset(), {}, 0
        self.kept, self.former, self.is_asked, self.began = False, None, False, None
        return True

    def rerun(self, word: str) -> bool:
        # The process may have died that was about to send it.
        is_lost = self.status == "sending" and self.is_silent and bool(self.word)
        if not (self.status == "error" or is_lost) or not self.kept:
            return False
        if not is_lost:
            self.former = dataclasses.replace(self, former=None)
        self.supersede(None)
        self.status, self.word, self.attempt, self.began = "sending", word, 0, None
        self.is_asked, self.dropped, self.is_silent = False, None, False
        self.sender, self.resender = "", None
        return True

    def restore(self, word: str) -> bool:
        if self.refused == word:
            return True
        if self.status != "sending" or self.word != word or self.former is None:
            return False
        self.put_back(self.former)
        self.refused = word
        return True

    def put_back(self, former: Model) -> None:
        """Have an end stand again. What is kept of failures stays, and so does which
        runs are over. A word that has been given runs nothing.
        """
        has_word = self.word is not None
        for field in dataclasses.fields(self):
            if field.name not in ("kept", "tries", "past"):
                setattr(self, field.name, getattr(former, field.name))
        if has_word:
            self.word = self.word or ""

    def await_turn(self) -> bool:
        if self.status == "cancelled" and self.is_unreached and not self.is_asked:
            self.status, self.is_unreached, self.dropped = "waiting", False, None
            self.is_silent = False
        return self.status != "deleted"

    def write(self, report: Report) -> str:
        if report.is_drop:
            return self.drop(report)
        replies = []
        if report.begins:
            replies.append(self.begin(report))
        if report.end:
            replies.append(self.finish(report))
        else:
            # Also of a run that only begins, since it has logged a line.
            replies.append(self.record(report))
        # A refusal counts for more than consent.
        order = ("UNCLAIMED", "STALE", "CANCELLED", "FENCED", "MISSING", "OK")
        return min(replies, key=(*order, "CANCELLING").index)

    def begin(self, report: Report) -> str:
        run = report.token
        if self.status == "deleted":
            return "CANCELLED"
        if self.word not in (None, report.word or ""):
            return "STALE"
        if run != self.run:
            is_older = self.run is not None and is_before(run, self.began)
            if run in self.past or (report.is_late and is_older):
                return "FENCED"
        if self.was_cancelled:
            return "CANCELLED"
        if run != self.run:
            goes_on = self.status in RUNNING and not self.is_silent
            if goes_on and report.is_answered:
                return "FENCED"
            if self.status == "cancelling":
                self.status = "cancelled"
                return "CANCELLED"
            self.supersede(run)
            self.former, self.is_asked = None, report.is_told
            self.status = "cancelling" if self.is_asked else "working"
            self.attempt, self.began = report.attempt, run
            self.dropped, self.is_silent = None, False
            self.sender, self.resender = "", None
            self.owner = self.owner or '"bob"'
            if self.word is None:
                self.word = report.word
        return "CANCELLING" if self.status == "cancelling" else "OK"

    def refusal(self, report: Report) -> str | None:
        if self.status is None:
            return "MISSING"
        if self.status == "deleted":
            return "CANCELLED"
        if report.token != self.run:
            is_known = self.run is not None or report.token in self.past
            if is_known and report.failure is not None:
                self.keep_try(report.token, is_over=True)
            return "FENCED" if is_known else "MISSING"
        if self.status in RUNNING:
            return None
        if self.status == "cancelled" and report.end in ("", "success"):
            return "CANCELLED"
        return self.answer(report.end) if report.end else "OK"

    def record(self, report: Report) -> str:
        refusal = self.refusal(report)
        if refusal is not None:
            return refusal
        if report.seq > self.seq:
            self.seq, self.is_silent = report.seq, False
            self.metrics.update(report.values)
        return "CANCELLING" if self.status == "cancelling" else "OK"

    def finish(self, report: Report) -> str:
        refusal = self.refusal(report)
        if refusal is not None:
            return refusal
        self.metrics.update(report.values)
        if self.status == "cancelling" and report.end != "success":
            self.status = "cancelled"
        elif self.stop is not None and report.end == "retrying":
            metrics, self.status = self.metrics, self.stop.end
            self.supersede(None)
            self.metrics = metrics
            if report.failure is not None:
                self.keep_try(report.token)
            self.forget_failure()
            return "FENCED"
        else:
            self.status = report.end
        if report.failure is not None and self.status != "cancelled":
            self.keep_try(report.token)
            if self.status == "error":
                self.kept = report.failure
        self.forget_failure()
        return self.answer(report.end)

    def keep_try(self, run: str, *, is_over: bool = False) -> None:
        """Keep that a run has failed, perhaps after the next one began."""
        start: float = RUNS.index(run)
        if is_over and self.began is not None:
            start = min(start, RUNS.index(self.began) - 0.001)
        self.tries.setdefault(run, start)

    def forget_failure(self) -> None:
        """Keep no message of a job that cannot fail any more."""
        if self.status in ("success", "cancelled"):
            self.kept = False

    def answer(self, end: str) -> str:
        """Return the reply to an end that has been written."""
        return "CANCELLING" if self.status == "cancelled" != end else "OK"

    def drop(self, report: Report) -> str:
        if report.token == self.dropped:
            # As if the reply to the first call had been lost.
            return self.answer(report.end)
        if report.is_unreached and self.status not in ("waiting", "sending"):
            return "MISSING"
        if self.word not in (None, report.word or ""):
            return "MISSING"
        if self.status in RUNNING and not self.is_silent:
            if report.attempt < self.attempt:
                return "MISSING"
            self.dropped, self.stop = report.token, report
            return "CANCELLING" if self.status == "cancelling" else "OK"
        if self.status not in (*RUNNING, *WAITING):
            return "MISSING"
        if report.end != "retrying" and self.former is not None:
            self.put_back(self.former)
            self.dropped = report.token
            return "OK"
        metrics = self.metrics
        end = "cancelled" if self.status == "cancelling" else report.end
        stop = self.stop
        self.supersede(None)
        self.stop = stop
        self.status, self.metrics = end, metrics
        self.dropped, self.is_unreached = report.token, report.is_unreached
        return self.answer(report.end)


def is_before(run: str, other: str | None) -> bool:
    """Return whether a run began before another, if there is one."""
    return other is not None and RUNS.index(run) < RUNS.index(other)


class Both:
    """The store and the model, which are told the same.

    Attributes:
      word: The word of the last request to run the job again, or None.
      has_waited: Whether time has passed, for all but the times of earlier failures.
    """

    def __init__(self, scripts: Scripts) -> None:
        self.scripts = scripts
        self.model = Model()
        self.sent: list[Report] = []
        self.word: str | None = None
        self.has_waited = False
        self.seqs = dict.fromkeys(RUNS, 0)
        #: When the first run began, ten minutes before the second.
        self.epoch = time.monotonic() - 6000

    def report(self, run: str, **options: Any) -> Report:
        self.seqs[run] += 1
        seq = self.seqs[run]
        values = (("m", f"{run} {seq}"), (str(seq), "1"))
        report = Report(run, seq, **{"values": values} | options)
        self.sent.append(report)
        return report

    def deliver(self, report: Report) -> None:
        place = 0 if report.is_drop else RUNS.index(report.token)
        age = time.monotonic() - self.epoch - 600 * place
        assert self.scripts.write(report, age) == self.model.write(report), report

    def wait(self) -> None:
        """Let time pass in which nobody speaks of the job."""
        seconds = self.scripts.store.stalled_after + 1
        pass_time(self.scripts.store, seconds)
        self.epoch -= seconds
        self.model.is_silent = self.has_waited = True

    def check(self) -> None:
        stored, expected = self.scripts.stored(), self.model.stored
        if self.has_waited:
            stored["tries"].sort()
            expected["tries"].sort()
        assert stored == expected
        state = self.scripts.store.load(self.scripts.uuid)
        assert (None if state is None else state.status) == self.model.shown
        if state is not None:
            assert (state.finished_at is not None) == (state.status in FINISHED)
            assert (state.started_at is not None) == (self.model.began is not None)
            assert state.due_at is not None or state.status != "retrying"
            assert state.due_at is None or state.status in ("retrying", "cancelled")

    def check_lives(self) -> None:
        """Check that the record does not outlive its log and what is kept of its
        failures, nor do they live for much longer.
        """
        store: Any = self.scripts.store
        key = key_of(store, self.scripts.uuid)
        record, *beside = [
            store.client.pttl(each) / 1000
            for each in (key, *(f"{{{key}}}:{n}" for n in ("log", "failure", "former")))
        ]
        for life in beside:
            most = record + store.active_expire_in / 2 + 1
            assert life < 0 or record - 1 <= life <= most, (record, beside)

    def check_lists(self) -> None:
        """Check that the job is listed where its record says, and nowhere else."""
        client: Any = self.scripts.store.client
        if isinstance(client, redis.RedisCluster):
            # It is of one node.
            client = client.get_redis_connection(client.get_primaries()[0])
        assert disagreements(client) == set()

    def check_counts(self) -> None:
        """Check that the job is counted under its status, and no other."""
        status = self.model.shown
        expected = Counts() if status is None else Counts(**{status: 1})
        if self.model.stop is None:
            for kind in (None, "RunMarathon"):
                assert self.scripts.store.counts(kind, anew=True) == expected, kind


#: How a run may end. A wrapper may answer in place of the function.
ENDS = [
    *("success", "error", "retrying", "cancelled"),
    *("answered: success", "answered: error"),
]

#: Who sends its message.
SENDERS = ("one", "other")

runs = st.sampled_from(RUNS)
senders = st.sampled_from(SENDERS)
arrives = st.booleans()
knows = st.booleans()
acts = ["cancel", "delete", "rerun", "await_turn", "wait"]
steps = st.one_of(
    st.tuples(st.sampled_from(acts)),
    st.tuples(st.just("create"), st.booleans(), senders),
    st.tuples(st.just("confirm"), knows, senders),
    st.tuples(st.just("restore"), knows),
    st.tuples(st.just("begin"), runs, arrives, st.booleans(), knows),
    st.tuples(st.just("record"), runs, arrives),
    st.tuples(st.just("finish"), runs, arrives, st.sampled_from(ENDS), st.booleans()),
    st.tuples(
        st.just("drop"),
        arrives,
        st.sampled_from(["error", "cancelled", "retrying"]),
        st.booleans(),
        st.sampled_from([0, 1]),
        knows,
    ),
    # Sent twice or arriving late.
    st.tuples(st.just("again"), st.integers(0, 30)),
)


def scenes_of(run: str) -> list[list[tuple[Any, ...]]]:
    """Return steps that rarely follow each other by chance."""
    begin, stop = ("begin", run, True, False, True), ("drop", True, "error", False)
    fail = [begin, ("finish", run, True, "error", False)]
    other = RUNS[RUNS.index(run) - 1]
    again = ("begin", other, True, False, True)
    succeed = ("finish", other, True, "success", False)
    refuse = ("drop", True, "cancelled", True, 0, True)
    put_back = ("finish", run, True, "retrying", False)
    answered = ("finish", other, True, "answered: success", False)
    third = ("finish", RUNS[RUNS.index(run) - 2], True, "answered: error", False)
    dropped = ("drop", True, "cancelled", False, 1, True)
    send, send_too = (("create", False, sender) for sender in SENDERS)
    sent, sent_too = (("confirm", True, sender) for sender in SENDERS)
    done = [send, begin, ("finish", run, True, "success", False)]
    return [
        fail,
        [*fail, ("rerun",)],
        [*fail, ("rerun",), ("confirm", False, "one")],
        [*fail, ("rerun",), ("restore", True)],
        [*fail, ("rerun",), again, ("restore", True)],
        [*fail, ("rerun",), ("begin", other, True, False, False)],
        [*fail, ("create", False, "one"), (*stop, 0, True), ("rerun",)],
        [*fail, ("create", False, "one"), again, succeed],
        [("rerun",), ("restore", True)],
        [("rerun",), ("confirm", True, "one")],
        [("create", True, "one"), refuse, ("await_turn",)],
        [("create", True, "one"), ("cancel",), ("await_turn",)],
        [send, ("drop", True, "retrying", True, 0, True), ("cancel",), ("await_turn",)],
        [("create", True, "one"), refuse, ("rerun",)],
        [begin, (*stop, 1, True), put_back],
        [begin, ("cancel",), put_back],
        [begin, ("cancel",), ("finish", run, True, "success", False)],
        [begin, ("record", run, False), ("record", run, True), ("again", 1)],
        [begin, ("wait",), ("cancel",), put_back],
        [begin, ("cancel",), ("wait",), ("cancel",)],
        [begin, ("wait",), (*stop, 1, True), again],
        [begin, ("wait",), again, put_back],
        [*fail, ("rerun",), ("wait",), ("rerun",)],
        [*done, send_too, sent],
        [*done, send_too, sent_too],
        [*done, send_too, send, sent_too, sent],
        [*done, send_too, refuse, ("await_turn",), send, sent],
        [("told", run), ("finish", run, True, "cancelled", False), again],
        [("create", False, "one"), again],
        [begin, again, ("again", 0), ("record", run, True)],
        [*fail, ("delete",), again],
        [*fail, answered],
        [begin, answered, ("finish", run, True, "success", False)],
        [begin, ("wait",), answered],
        [begin, ("cancel",), answered],
        [*fail, again, ("wait",), third],
        [*fail, again, ("finish", other, True, "retrying", False), third],
        [*fail, again, ("finish", other, True, "retrying", False), dropped],
        [*fail, again, ("wait",), dropped],
        [*fail, ("rerun",), dropped],
        [*done, send_too, dropped],
        [*done, send_too, dropped, again],
        [*done, send_too, ("drop", True, "retrying", False, 0, True), dropped],
        [*fail, again, (*stop, 1, True), succeed],
    ]


def paths_of(
    step: st.SearchStrategy[Any], most: int = 20
) -> st.SearchStrategy[list[Any]]:
    """Return a strategy for steps, some of them in scenes."""
    scenes = runs.flatmap(lambda run: st.sampled_from(scenes_of(run)))
    scene = st.one_of(step.map(lambda each: [each]), scenes)
    several = st.lists(scene, min_size=2, max_size=most)
    return several.map(lambda found: list(itertools.chain(*found)))


def take(both: Both, step: tuple[Any, ...]) -> None:
    scripts, model = both.scripts, both.model
    name, *rest = step
    match name:
        case "create":
            waits, sender = rest
            # A message that is being sent has had its turn.
            waits = waits and model.status != "sending"
            is_new = scripts.create(sender, waits=waits)
            assert is_new == model.create(sender, waits=waits)
            return
        case "confirm":
            knows, sender = rest
            word = both.word if knows else None
            scripts.confirm(word, sender)
            model.confirm(word, sender)
            return
        case "cancel" | "delete" | "await_turn":
            assert getattr(scripts, name)() == getattr(model, name)()
            return
        case "wait":
            both.wait()
            return
        case "rerun":
            word = scripts.rerun()
            assert (word is not None) == model.rerun(word or "")
            both.word = word or both.word
            return
        case "restore":
            word = both.word if rest[0] and both.word else "another"
            assert scripts.restore(word) == model.restore(word)
            return
        case "again":
            # Sent twice or arriving late.
            if both.sent:
                both.deliver(both.sent[rest[0] % len(both.sent)])
            return
        case "begin":
            run, arrives, is_late, knows = rest
            options: dict[str, Any] = {"begins": True, "is_late": is_late}
            options["word"] = both.word if knows else None
            options["values"] = () if is_late else (("y", "1"),)
            report = both.report(run, **options)
        case "told":
            # The store lost the job, whose run had heard of its cancel.
            (run,), arrives = rest, True
            report = both.report(
                run, begins=True, is_late=True, is_told=True, values=()
            )
        case "record":
            run, arrives = rest
            report = both.report(run)
        case "finish":
            run, arrives, end, begins = rest
            # The start may have to be sent along.
            options = {"begins": begins, "is_late": begins}
            if end.startswith("answered: "):
                end = end.removeprefix("answered: ")
                options |= {"begins": True, "is_answered": True}
            if end in ("error", "retrying"):
                options["failure"] = run != "third"
            report = both.report(run, end=end, **options)
        case "drop":
            arrives, end, is_unreached, attempt, knows = rest
            word = both.word if knows else None
            report = Report(
                f"drop {len(both.sent)}",
                end=end,
                is_drop=True,
                is_unreached=is_unreached,
                word=word,
                attempt=attempt,
            )
            both.sent.append(report)
    if arrives:
        both.deliver(report)


@pytest.fixture(scope="module")
def both(modelled: JobStore) -> Callable[[], Both]:
    """Makes a job in an empty database, and its model: on one server, whose scripts
    write the lists as well, and on a Cluster.
    """

    def make() -> Both:
        modelled.client.flushall()
        return Both(Scripts(modelled))

    return make


def examples(count: int) -> settings:
    """Return the settings of so many examples, which are the same in each run."""
    return settings(
        max_examples=count,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=[HealthCheck.too_slow],
    )


def follow(both: Both, path: list[Any], every: int) -> None:
    """Take the steps. Each reply is compared, and what is stored after some steps; the
    lists, after each.
    """
    for number, step in enumerate(path, 1):
        take(both, step)
        both.check_lists()
        both.check_lives()
        if number % every == 0 or number == len(path):
            both.check()
            both.check_counts()
    assert keys_without_end(both.scripts.store.client) == []


def with_scenes(test: Any) -> Any:
    """Have a test begin with each of the scenes."""
    for scene in scenes_of("second"):
        test = example(path=scene)(test)
    return test


@pytest.mark.promise("scripts-agree-with-the-model")
@pytest.mark.system
@with_scenes
@examples(60)
@given(path=paths_of(steps, 14))
def test_scripts_do_as_the_model(both, path):
    """Whatever is requested or reported, twice, late or out of order, the store has the
    same content as the model, and lists the job where its record says.
    """
    follow(both(), path, 4)


@pytest.mark.long
@pytest.mark.timeout(1800)
@examples(2000)
@given(path=paths_of(steps))
def test_scripts_do_as_the_model_for_long(both, path):
    """The same holds for many more events."""
    follow(both(), path, 1)


def test_hold_of_a_claim_ends_with_its_version(store):
    """While an ended unique job is about to run again, no other takes its claim. Who
    has stood still meanwhile, and ends an earlier hold, does not end that of another.
    """
    records, claims = records_of(store), records_of(store).claims
    ended, other = new_id(), new_id()
    info = JobInfo("RunMarathon", "run", unique="one")
    records.create(NewJob(ended, info))
    assert claims.take("one", ended) == ended
    assert records.cancel(ended, info)
    with contextlib.ExitStack() as early, contextlib.ExitStack() as late:
        for stack in early, late:
            assert stack.enter_context(claims.held(ended, info)).other is None
        early.close()
        with claims.held(other, info) as hold:
            assert hold.other == ended
        late.close()
        with claims.held(other, info) as hold:
            assert hold.other is None
