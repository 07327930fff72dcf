"""The scripts compared with a model of the states, for any order of events."""

import dataclasses
import itertools
import time
from typing import Any

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pyramid_jobstate import JobStore
from pyramid_jobstate.job.changes import End, Failure, NewJob, Update
from pyramid_jobstate.job.record import NOT_REACHED, JobError, JobInfo, Record
from pyramid_jobstate.store.scripts import Reply
from pyramid_jobstate.store.statuses import INDEXED
from tests.jobs import new_id
from tests.support import INFO, key_of

RUNS = ("first", "second", "third")

RUNNING = ("working", "cancelling")
WAITING = ("waiting", "sending", "queued", "retrying")
FINISHED = ("success", "error", "cancelled")

TOO_OLD = JobError(None, "Too old")
#: What is kept of a run that failed.
FAILURE = Failure('{"a": "message"}', "", "a traceback")


@dataclasses.dataclass(slots=True)
class Model:
    """The expected record, by the table of states.

    Attributes:
      status: The stored status, or None without a record.
      run: The run that owns the record.
      past: The previous owners.
      seq: The owner's last update.
      metrics: The metrics that a viewer sees.
      asked: Whether cancellation was requested.
      dropped: The token of the last drop that was carried out, or waits for the run.
      stop: How the run ends if it has put its message back, or None.
      word: The word of the only message that may run the job, "" for one without a
        word, or None for any.
      refused: The word of the message that the broker refused last, or None.
      is_unreached: Whether its turn in the pipeline never came.
      attempt: The attempt.
      kept: Whether a message is kept from which it may run again.
      former: The record before the job was queued to run again, or None.
    """

    status: str | None = None
    run: str | None = None
    past: frozenset[str] = frozenset()
    seq: int = 0
    metrics: dict[str, str] = dataclasses.field(default_factory=dict)
    asked: bool = False
    dropped: str | None = None
    stop: End | None = None
    word: str | None = None
    refused: str | None = None
    is_unreached: bool = False
    attempt: int = 0
    kept: bool = False
    former: "Model | None" = None

    def supersede(self, run: str | None) -> None:
        if self.run is not None:
            self.past |= {self.run}
        self.run, self.seq, self.metrics, self.stop = run, 0, {}, None
        self.is_unreached, self.refused = False, None

    def create(self, *, waits: bool) -> bool:
        new = "waiting" if waits else "sending"
        if self.status in ("waiting", "sending"):
            # As if the reply to the first call had been lost.
            if self.status == "waiting":
                self.status = new
            return True
        is_over = self.status in FINISHED
        if self.status is not None and (not is_over or self.is_cancelled):
            return False
        self.supersede(None)
        self.status, self.asked, self.dropped = new, False, None
        self.word = "" if self.word == "" else None
        self.attempt = 1
        return True

    @property
    def is_cancelled(self) -> bool:
        """Whether a user cancelled it, so that its message must be skipped."""
        return self.status == "cancelled" and self.asked

    def confirm(self, word: str | None) -> None:
        if self.status == "sending" and self.word in (None, word or ""):
            self.status = "queued"

    def cancel(self) -> bool:
        if self.status in RUNNING:
            self.status = "cancelling"
        elif self.status in WAITING:
            self.status = "cancelled"
        else:
            return False
        self.asked = True
        return True

    def delete(self) -> bool:
        if self.status not in FINISHED:
            return False
        self.supersede(None)
        self.status, self.word, self.dropped, self.past = (
            "deleted",
            None,
            None,
            frozenset(),
        )
        self.kept, self.former, self.asked = False, None, False
        return True

    def rerun(self, word: str) -> bool:
        if self.status != "error" or not self.kept:
            return False
        self.former = dataclasses.replace(self, former=None)
        self.supersede(None)
        self.status, self.word, self.attempt = "sending", word, 0
        self.asked, self.dropped = False, None
        return True

    def restore(self, word: str) -> bool:
        if self.refused == word:
            return True
        if self.status != "sending" or self.word != word or self.former is None:
            return False
        for field in dataclasses.fields(self):
            if field.name not in ("kept", "former"):
                setattr(self, field.name, getattr(self.former, field.name))
        self.word = self.word or ""
        self.refused, self.former = word, None
        return True

    def await_turn(self) -> bool:
        if self.status == "cancelled" and self.is_unreached and not self.asked:
            self.status, self.is_unreached, self.dropped = "waiting", False, None
        return self.status != "deleted"

    def write(self, update: Update) -> Reply:
        if update.dropped:
            return self.drop(update)
        replies = []
        if update.begins:
            replies.append(self.begin(update))
        if update.end is not None:
            replies.append(self.finish(update))
        elif update.fields or not update.begins:
            replies.append(self.record(update))
        return min(replies)

    def begin(self, update: Update) -> Reply:
        run = update.token
        if self.status == "deleted":
            return Reply.CANCELLED
        if self.word not in (None, update.info.rerun or ""):
            return Reply.STALE
        if run != self.run:
            is_older = self.run is not None and RUNS.index(run) < RUNS.index(self.run)
            if run in self.past or (update.late and is_older):
                return Reply.FENCED
        if self.is_cancelled:
            return Reply.CANCELLED
        if run != self.run:
            self.supersede(run)
            self.asked, self.dropped = self.status == "cancelling", None
            self.status = "cancelling" if self.asked else "working"
            self.attempt = update.info.attempt
            if self.word is None:
                self.word = update.info.rerun
        return Reply.CANCELLING if self.status == "cancelling" else Reply.OK

    def refusal(self, update: Update) -> Reply | None:
        if self.status is None:
            return Reply.MISSING
        if self.status == "deleted":
            return Reply.CANCELLED
        if update.token != self.run:
            is_known = self.run is not None or update.token in self.past
            return Reply.FENCED if is_known else Reply.MISSING
        if self.status in RUNNING:
            return None
        is_success = update.end is not None and update.end.status == "success"
        if self.status == "cancelled" and (update.end is None or is_success):
            return Reply.CANCELLED
        return Reply.OK if update.end is None else self.stopped(update.end)

    def record(self, update: Update) -> Reply:
        refusal = self.refusal(update)
        if refusal is not None:
            return refusal
        if update.seq > self.seq:
            self.seq = update.seq
            self.metrics.update(update.fields)
        return Reply.CANCELLING if self.status == "cancelling" else Reply.OK

    def finish(self, update: Update) -> Reply:
        refusal = self.refusal(update)
        if refusal is not None:
            return refusal
        end = update.end
        assert end is not None
        self.metrics.update(update.fields)
        if self.status == "cancelling" and end.status != "success":
            self.status = "cancelled"
        elif self.stop is not None and end.status == "retrying":
            metrics, self.status = self.metrics, self.stop.status
            self.supersede(None)
            self.metrics = metrics
            self.end_failure(None)
            return Reply.FENCED
        else:
            self.status = end.status
        self.end_failure(end.failure)
        return self.stopped(end)

    def end_failure(self, failure: Failure | None) -> None:
        """Keep what is needed to run the job again, or what was kept before."""
        if self.status == "error" and failure is not None:
            self.kept, self.former = bool(failure.message), None
        elif self.status in ("success", "cancelled"):
            self.kept, self.former = False, None

    def stopped(self, end: End) -> Reply:
        """Return the reply to an end that has been written."""
        is_other = self.status == "cancelled" != end.status
        return Reply.CANCELLING if is_other else Reply.OK

    def drop(self, update: Update) -> Reply:
        assert update.end is not None
        if update.token == self.dropped:
            # As if the reply to the first call had been lost.
            return self.stopped(update.end)
        is_unsent = update.end.error is NOT_REACHED
        if is_unsent and self.status not in ("waiting", "sending"):
            return Reply.MISSING
        if self.word not in (None, update.info.rerun or ""):
            return Reply.MISSING
        if self.status in RUNNING and update.info.attempt >= self.attempt:
            self.dropped, self.stop = update.token, update.end
            return Reply.CANCELLING if self.status == "cancelling" else Reply.OK
        if self.status not in WAITING:
            return Reply.MISSING
        metrics = self.metrics
        self.supersede(None)
        self.status, self.metrics = update.end.status, metrics
        self.dropped, self.is_unreached = update.token, is_unsent
        return Reply.OK


class Both:
    """The store and the model, which get the same calls.

    Attributes:
      sent: All updates, whether they have arrived or not.
      word: The word of the last request to run the job again, or None.
    """

    def __init__(self, store: JobStore) -> None:
        self.store = store
        self.model = Model()
        self.job = new_id()
        self.sent: list[Update] = []
        self.word: str | None = None
        self.seqs = dict.fromkeys(RUNS, 0)
        #: The time when the first run began, a minute before the second.
        self.epoch = time.monotonic() - 600

    @property
    def record(self) -> Record:
        """The record, or an empty one."""
        return self.store.record(self.job) or Record(self.job, INFO.fields())

    def info(self, *, knows: bool) -> JobInfo:
        """Return what a message says that knows the last word, or none."""
        return INFO._replace(rerun=self.word if knows else None)

    def update(self, run: str, **options: Any) -> Update:
        self.seqs[run] += 1
        fields = {"m:x": f'"{run} {self.seqs[run]}"', f"m:{self.seqs[run]}": "1"}
        options = {"fields": fields, "info": INFO} | options
        update = Update(self.job, run, self.seqs[run], **options)
        self.sent.append(update)
        return update

    def deliver(self, update: Update) -> None:
        place = 0 if update.dropped else RUNS.index(update.token)
        begun = self.epoch + 60 * place
        update = dataclasses.replace(update, age=time.monotonic() - begun)
        (reply,) = self.store.write([update])
        assert reply is self.model.write(update), update

    def check(self) -> None:
        fields: Any = self.store.client.hgetall(key_of(self.store, self.job))
        stored = {name.decode(): value.decode() for name, value in fields.items()}
        assert stored.get("status") == self.model.status
        assert stored.get("run") == self.model.run
        assert stored.get("rerun") == self.model.word
        metrics = {k: v for k, v in stored.items() if k.startswith("m:")}
        assert metrics == self.model.metrics
        assert bool(self.store.failures(self.job).message) == self.model.kept
        state = self.store.load(self.job)
        if state is not None:
            is_over = state.status in FINISHED
            assert (state.finished_at is not None) == is_over
            assert state.owner == "alice"

    def check_lists(self) -> None:
        """Check that the job is listed under its status, and no other."""
        if self.model.stop is not None:
            # It is listed under the status that its run is about to write.
            return
        index = self.store._index
        for scope in ("all", f"kind:{INFO.kind}"):
            found = [
                status
                for status in INDEXED
                if self.store.client.zscore(index.status_key(scope, status), self.job)
            ]
            wanted = [self.model.status] if self.model.status in INDEXED else []
            assert found == wanted, scope


runs = st.sampled_from(RUNS)
arrives = st.booleans()
knows = st.booleans()
acts = ["cancel", "delete", "rerun", "await_turn"]
timely = st.one_of(
    st.tuples(st.sampled_from(acts)),
    st.tuples(st.just("create"), st.booleans()),
    st.tuples(st.sampled_from(["confirm", "restore"]), knows),
    st.tuples(st.just("begin"), runs, arrives, st.booleans(), knows),
    st.tuples(st.just("record"), runs, arrives),
    st.tuples(
        st.just("finish"),
        runs,
        arrives,
        st.sampled_from(["success", "error", "retrying", "cancelled"]),
        st.booleans(),
    ),
    st.tuples(
        st.just("drop"),
        arrives,
        st.sampled_from(["error", "cancelled", "retrying"]),
        st.booleans(),
        st.sampled_from([0, 1]),
        knows,
    ),
)
late = st.tuples(st.just("again"), st.integers(0, 30))


def scenes_of(run: str) -> st.SearchStrategy[list[tuple[Any, ...]]]:
    """Return a strategy for steps that rarely follow each other by chance."""
    begin, stop = ("begin", run, True, False, True), ("drop", True, "error", False)
    fail = [begin, ("finish", run, True, "error", False)]
    other = RUNS[RUNS.index(run) - 1]
    again = ("begin", other, True, False, True)
    refuse = ("drop", True, "cancelled", True, 0, True)
    return st.sampled_from(
        [
            fail,
            [*fail, ("rerun",)],
            [*fail, ("rerun",), ("confirm", False)],
            [*fail, ("rerun",), again, ("restore", True)],
            [*fail, ("create", False), (*stop, 0, True), ("rerun",)],
            [
                *fail,
                ("create", False),
                again,
                ("finish", other, True, "success", False),
            ],
            [("rerun",), ("restore", True)],
            [("rerun",), ("confirm", True)],
            [("create", True), refuse, ("await_turn",)],
            [("create", True), refuse, ("rerun",)],
            [begin, (*stop, 1, True), ("finish", run, True, "retrying", False)],
        ]
    )


def paths_of(step: st.SearchStrategy[Any]) -> st.SearchStrategy[list[Any]]:
    """Return a strategy for steps, some of them in scenes."""
    scene = st.one_of(step.map(lambda each: [each]), runs.flatmap(scenes_of))
    several = st.lists(scene, min_size=2, max_size=20)
    return several.map(lambda found: list(itertools.chain(*found)))


def take(both: Both, step: tuple[Any, ...]) -> None:
    name, *rest = step
    match name:
        case "create":
            # A message that is being sent has had its turn.
            waits = rest[0] and both.model.status != "sending"
            job = NewJob(both.job, INFO, waits=waits)
            assert list(both.store.create(job)) == [both.model.create(waits=waits)]
            return
        case "confirm":
            word = both.word if rest[0] else None
            both.store.confirm(both.job, INFO.kind, word)
            both.model.confirm(word)
            return
        case "cancel":
            assert both.store.cancel(both.job, INFO) == both.model.cancel()
            return
        case "delete":
            assert both.store.delete(both.job) == both.model.delete()
            return
        case "rerun":
            word = both.store.requeue(both.record)
            assert (word is not None) == both.model.rerun(word or "")
            both.word = word or both.word
            return
        case "restore":
            word = both.word if rest[0] and both.word else "another"
            done = both.store.restore(both.record, word)
            assert done == both.model.restore(word)
            return
        case "await_turn":
            steps = [(both.job, INFO)]
            assert both.store.await_turn(steps) == both.model.await_turn()
            return
        case "again":
            # Sent twice or arriving late.
            if both.sent:
                both.deliver(both.sent[rest[0] % len(both.sent)])
            return
        case "begin":
            run, arrives, late, knows = rest
            options = {"late": late, "begins": True, "info": both.info(knows=knows)}
            update = both.update(run, **options, fields={} if late else {"m:y": "1"})
        case "record":
            run, arrives = rest
            update = both.update(run)
        case "finish":
            run, arrives, status, begins = rest
            # The start may have to be sent along.
            options = {"begins": begins, "late": True} if begins else {}
            delay = 0.0 if status == "retrying" else None
            end = End(
                status, TOO_OLD, delay, failure=FAILURE if run != "third" else None
            )
            if status in ("success", "cancelled"):
                end = End(status)
            update = both.update(run, end=end, **options)
        case "drop":
            arrives, status, is_step, attempts, knows = rest
            error = NOT_REACHED if is_step else TOO_OLD
            end = End(status, error, 0.0 if status == "retrying" else None)
            token = f"drop {len(both.sent)}"
            info = both.info(knows=knows)._replace(attempt=attempts)
            update = Update(both.job, token, 0, info, end=end, dropped=True)
            both.sent.append(update)
    if arrives:
        both.deliver(update)


@pytest.fixture(scope="module")
def model_store(redis_server: Any) -> JobStore:
    """A store in an empty database, whatever the tests of other modules have left."""
    client = redis.Redis.from_url(redis_server.url)
    client.flushall()
    return JobStore(client)


repeatable = settings(
    max_examples=500,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)


@repeatable
@given(paths_of(st.one_of(timely, late)))
def test_the_scripts_do_as_the_model(model_store: JobStore, path: list[Any]) -> None:
    """Whatever is requested or reported, twice, late or out of order, the store has the
    same content as the model.
    """
    both = Both(model_store)
    for step in path:
        take(both, step)
        both.check()


@repeatable
@given(paths_of(timely))
def test_jobs_are_listed_by_status(model_store: JobStore, path: list[Any]) -> None:
    """Whatever is requested or reported, in any order, a job is listed under its status
    alone.
    """
    both = Both(model_store)
    ended = set()
    for step in path:
        name, *rest = step
        # A run says nothing after its end.
        if name in ("begin", "record", "finish") and rest[0] in ended:
            continue
        if name == "finish":
            ended.add(rest[0])
        if name == "confirm" and both.model.word is not None:
            # The sender of another message does not ask before it lists the job.
            step = ("confirm", True)
        take(both, step)
        both.check_lists()
