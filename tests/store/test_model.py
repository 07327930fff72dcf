"""The scripts compared with a model of the states, for any order of events."""

import dataclasses
import time
from typing import Any

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pyramid_jobstate import JobStore
from pyramid_jobstate.job.changes import End, NewJob, Update
from pyramid_jobstate.job.record import NOT_REACHED, JobError
from pyramid_jobstate.store.scripts import Reply
from tests.jobs import new_id
from tests.support import INFO, key_of

RUNS = ("first", "second", "third")

RUNNING = ("working", "cancelling")
WAITING = ("sending", "queued", "retrying")


@dataclasses.dataclass
class Model:
    """The expected record, by the table of states.

    Attributes:
      status: The stored status, or None without a record.
      run: The run that owns the record.
      past: The previous owners.
      seq: The owner's last update.
      metrics: The metrics that a viewer sees.
      asked: Whether cancellation was requested.
      dropped: The token of the last drop that was carried out.
    """

    status: str | None = None
    run: str | None = None
    past: frozenset[str] = frozenset()
    seq: int = 0
    metrics: dict[str, str] = dataclasses.field(default_factory=dict)
    asked: bool = False
    dropped: str | None = None

    def supersede(self, run: str | None) -> None:
        if self.run is not None:
            self.past |= {self.run}
        self.run, self.seq, self.metrics = run, 0, {}

    def create(self) -> bool:
        if self.status == "sending":
            # As if the reply to the first call had been lost.
            return True
        is_over = self.status in ("success", "error", "cancelled")
        if self.status is not None and (not is_over or self.is_cancelled):
            return False
        self.supersede(None)
        self.status, self.asked, self.dropped = "sending", False, None
        return True

    @property
    def is_cancelled(self) -> bool:
        """Whether a user cancelled it, so that its message must be skipped."""
        return self.status == "cancelled" and self.asked

    def confirm(self) -> None:
        if self.status == "sending":
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
        return Reply.CANCELLING if self.status == "cancelling" else Reply.OK

    def refusal(self, update: Update) -> Reply | None:
        if self.status is None:
            return Reply.MISSING
        if update.token != self.run:
            is_known = self.run is not None or update.token in self.past
            return Reply.FENCED if is_known else Reply.MISSING
        if self.status in RUNNING:
            return None
        is_success = update.end is not None and update.end.status == "success"
        if self.status == "cancelled" and (update.end is None or is_success):
            return Reply.CANCELLED
        return Reply.OK

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
        assert update.end is not None
        is_cancelled = self.status == "cancelling" and update.end.status != "success"
        self.status = "cancelled" if is_cancelled else update.end.status
        self.metrics.update(update.fields)
        return Reply.OK

    def drop(self, update: Update) -> Reply:
        assert update.end is not None
        if update.token == self.dropped:
            # As if the reply to the first call had been lost.
            return Reply.OK
        is_unsent = update.end.error is NOT_REACHED
        if self.status not in (("sending",) if is_unsent else WAITING):
            return Reply.MISSING
        metrics = self.metrics
        self.supersede(None)
        self.status, self.metrics = update.end.status, metrics
        self.dropped = update.token
        return Reply.OK


class Both:
    """The store and the model, which get the same calls.

    Attributes:
      sent: All updates, whether they have arrived or not.
    """

    def __init__(self, store: JobStore) -> None:
        self.store = store
        self.model = Model()
        self.job = new_id()
        self.sent: list[Update] = []
        self.seqs = dict.fromkeys(RUNS, 0)
        #: The time when the first run began, a minute before the second.
        self.epoch = time.monotonic() - 600

    def update(self, run: str, **options: Any) -> Update:
        self.seqs[run] += 1
        fields = {"m:x": f'"{run} {self.seqs[run]}"', f"m:{self.seqs[run]}": "1"}
        options.setdefault("fields", fields)
        update = Update(self.job, run, self.seqs[run], INFO, **options)
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
        metrics = {k: v for k, v in stored.items() if k.startswith("m:")}
        assert metrics == self.model.metrics
        state = self.store.load(self.job)
        if state is not None:
            is_over = state.status in ("success", "error", "cancelled")
            assert (state.finished_at is not None) == is_over
            assert state.owner == "alice"


runs = st.sampled_from(RUNS)
arrives = st.booleans()
steps = st.one_of(
    st.tuples(st.sampled_from(["create", "confirm", "cancel"])),
    st.tuples(st.just("begin"), runs, arrives, st.booleans()),
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
    ),
    st.tuples(st.just("again"), st.integers(0, 30)),
)


def take(both: Both, step: tuple[Any, ...]) -> None:
    name, *rest = step
    match name:
        case "create":
            job = NewJob(both.job, INFO)
            assert list(both.store.create(job)) == [both.model.create()]
            return
        case "confirm":
            both.store.confirm(both.job)
            both.model.confirm()
            return
        case "cancel":
            assert both.store.cancel(both.job, INFO) == both.model.cancel()
            return
        case "again":
            # Sent twice or arriving late.
            if both.sent:
                both.deliver(both.sent[rest[0] % len(both.sent)])
            return
        case "begin":
            run, arrives, late = rest
            options = {"late": late, "begins": True}
            update = both.update(run, **options, fields={} if late else {"m:y": "1"})
        case "record":
            run, arrives = rest
            update = both.update(run)
        case "finish":
            run, arrives, status, begins = rest
            # The start may have to be sent along.
            options = {"begins": begins, "late": True} if begins else {}
            delay = 0.0 if status == "retrying" else None
            update = both.update(run, end=End(status, delay=delay), **options)
        case "drop":
            arrives, status, is_step = rest
            error = NOT_REACHED if is_step else JobError(None, "Too old")
            end = End(status, error, 0.0 if status == "retrying" else None)
            token = f"drop {len(both.sent)}"
            update = Update(both.job, token, 0, INFO, end=end, dropped=True)
            both.sent.append(update)
    if arrives:
        both.deliver(update)


@pytest.fixture(scope="module")
def model_store(redis_server: Any) -> JobStore:
    return JobStore(redis.Redis.from_url(redis_server.url))


@settings(
    max_examples=500,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
@given(st.lists(steps, min_size=3, max_size=30))
def test_the_scripts_do_as_the_model(model_store: JobStore, path: list[Any]) -> None:
    """Whatever is requested or reported, twice, late or out of order, the store has the
    same content as the model.
    """
    both = Both(model_store)
    for step in path:
        take(both, step)
        both.check()
