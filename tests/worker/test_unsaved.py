"""Unsaved: what it takes from a run for the store, and that no value is ever lost."""

import json
import random
import sys
import threading

import pytest

from pyramid_jobstate.job import handle as handle_module
from pyramid_jobstate.job import run as run_module
from pyramid_jobstate.job.changes import End, Failure
from pyramid_jobstate.job.record import METRIC, JobError, Record
from pyramid_jobstate.job.run import Run
from pyramid_jobstate.job.state import JobState
from pyramid_jobstate.worker import unsaved as unsaved_module
from pyramid_jobstate.worker.pace import WINDOW
from pyramid_jobstate.worker.unsaved import Unsaved
from tests.support import INFO, UUID


@pytest.fixture
def unsaved(run):
    return Unsaved(UUID, run, INFO)


class Flusher:
    """Plays the recorder: writes what is new into a hash.

    Parameters:
      luck: Returns how each write goes: None stores it, "lost" does not, and
        "unknown" does, but the reply is lost.
    """

    def __init__(self, run, luck=lambda: None):
        self.unsaved = Unsaved(UUID, run, INFO)
        self.luck = luck
        self.hash = {}
        self.seen = []

    def flush(self):
        """Write what is new, if the flag is up."""
        if not self.unsaved.run.dirty:
            return
        update = self.unsaved.take(0.0)
        fate = self.luck()
        if fate != "lost":
            self.hash.update(update.fields)
            self.seen.append(dict(self.hash))
        if fate is None:
            self.unsaved.mark_stored(0.0)
        else:
            self.unsaved.mark_unconfirmed()

    def drain(self):
        """Write until the flag stays down."""
        while self.unsaved.run.dirty:
            self.flush()

    def metrics(self):
        return Record(UUID, self.hash).metrics


# Taking what is new.


def test_take_has_everything_at_first(run, unsaved):
    """The first update has all that was set, as JSON."""
    run.set_metrics({"a": 1, "b": "ü", "c": [True], "d": 2.5, "e": False})
    run.set_progress(3, 4, "rows", "Reading")
    run.append_log("line")
    update = unsaved.take(0.0)
    assert update.fields == {
        "m:a": "1",
        "m:b": '"ü"',
        "m:c": "[true]",
        "m:d": "2.5",
        "m:e": "false",
        "progress": '[3,4,"rows",null]',
        "message": '"Reading"',
        "log": '["line"]',
    }
    assert (update.uuid, update.token) == (UUID, run.token)
    assert (update.info, update.end) == (INFO, None)


def test_take_lowers_the_flag(run, unsaved):
    """The flag is down once everything is taken."""
    run.set_message("a")
    unsaved.take(0.0)
    assert not run.dirty


def test_take_has_only_what_is_new(run, unsaved):
    """A stored value is not sent again when another one is set."""
    run.set_metrics({"a": 1, "b": "text"})
    run.set_progress(1, 2, None, "Reading")
    unsaved.take(0.0)
    unsaved.mark_stored(0.0)
    run.set_metrics({"b": "other"})
    assert unsaved.take(1.0).fields == {"m:b": '"other"'}
    unsaved.mark_stored(1.0)
    assert unsaved.take(2.0).fields == {}


def test_take_has_the_place_of_a_bar_that_waits_once(run, unsaved):
    """A bar that must not go back stays where it is until the progress moves it."""
    with run.phases.open(run, "Reading", 50):
        found = []
        for done in (9, 1, 2, 10):
            run.set_progress(done, 10, None, None)
            found.append(unsaved.take(0.0).fields.get("phase"))
            unsaved.mark_stored(0.0)
    held = '[0.45,0.0,["Reading"]]'
    assert found == ['[0.0,0.5,["Reading"]]', held, None, '[0.0,0.5,["Reading"]]']


def test_take_has_a_message_that_was_taken_away(run, unsaved):
    """Clearing the message is sent as null."""
    run.set_message("a")
    unsaved.take(0.0)
    unsaved.mark_stored(0.0)
    run.set_message(None)
    assert unsaved.take(0.0).fields == {"message": "null"}


def test_take_keeps_metrics_apart_from_the_other_fields(run, unsaved):
    """A metric may have the name of a field of the hash."""
    run.set_metrics({"status": 1, "progress": 2, "m:a": 3})
    assert unsaved.take(0.0).fields == {
        "m:status": "1",
        "m:progress": "2",
        "m:m:a": "3",
    }


def test_take_counts_its_updates(unsaved):
    """Each update has a higher number than the one before, even after a failure."""
    numbers = []
    for settle in (
        lambda: unsaved.mark_stored(0.0),
        unsaved.mark_unconfirmed,
        unsaved.begin_again,
    ):
        numbers.append(unsaved.take(0.0).seq)
        settle()
    numbers.append(unsaved.take(0.0).seq)
    assert numbers == [1, 2, 3, 4]


def test_take_notes_when_something_was_last_said(unsaved):
    """The heartbeat counts from the last update."""
    unsaved.take(unsaved.begun + 7)
    assert unsaved.heard == unsaved.begun + 7


def test_take_has_the_end(run, unsaved):
    """The last update carries the run's end, with all that is not yet stored."""
    run.set_metrics({"a": 1})
    unsaved.end = End("error", JobError("ValueError", "bad"))
    update = unsaved.take(0.0)
    assert update.end == unsaved.end
    assert update.fields == {"m:a": "1"}


def test_take_begins_the_run_until_that_is_stored(unsaved):
    """An update begins the run until one is stored; a repeated one begins it late."""
    begun = unsaved.begun
    said = []
    for settle in (
        unsaved.mark_unconfirmed,
        lambda: unsaved.mark_stored(0.0),
        lambda: None,
    ):
        update = unsaved.take(begun + 2)
        said.append((update.begins, update.late, update.age))
        settle()
    assert said == [(True, False, 2), (True, True, 2), (False, False, 2)]


def test_take_of_a_run_that_goes_on_anyway_says_so(unsaved):
    """A job that began without the store begins late."""
    unsaved.is_late = True
    update = unsaved.take(0.0)
    assert update.begins
    assert update.late


def test_take_of_a_dropped_message_begins_no_run(run):
    """A dropped message does not begin a run."""
    update = Unsaved(UUID, run, INFO, dropped=True).take(0.0)
    assert update.dropped
    assert not update.begins


def test_mark_stored_confirms_the_run(unsaved):
    """A stored update confirms the run at its time."""
    unsaved.mark_stored(unsaved.begun + 3)
    assert unsaved.confirmed == unsaved.begun + 3


@pytest.mark.parametrize("value", [True, None, 7, "short", (1, 2)])
def test_mark_unconfirmed_resends_a_value_that_changed_back(run, unsaved, value):
    """A value that changed and changed back is sent again if the change may be stored,
    even if it is the very object that was stored before.
    """
    report = run.report if isinstance(value, str) else run.metrics
    name = "message" if isinstance(value, str) else "a"
    report[name] = value
    unsaved.take(0.0)
    unsaved.mark_stored(0.0)
    report[name] = False
    unsaved.take(0.0)
    unsaved.mark_unconfirmed()
    unsaved.take(0.0)
    unsaved.mark_unconfirmed()
    report[name] = value
    (field,) = unsaved.take(0.0).fields
    assert field.endswith(name)


def test_mark_unconfirmed_repeats_a_renewal(unsaved):
    """If the renewal of a job's place in the lists may have failed, it is repeated."""
    unsaved.take(0.0)
    unsaved.mark_stored(0.0)
    later = unsaved.begun + 10
    assert unsaved.take(later, renew_after=5).renews
    unsaved.mark_unconfirmed()
    assert unsaved.take(later, renew_after=5).renews
    unsaved.mark_stored(later)
    assert not unsaved.take(later + 1, renew_after=5).renews


def test_mark_unconfirmed_resends_everything(run, unsaved):
    """Unconfirmed values are sent again, with those set since, and the flag is up."""
    run.set_metrics({"a": 1})
    unsaved.take(0.0)
    unsaved.mark_stored(0.0)
    run.set_metrics({"b": 2})
    unsaved.take(0.0)
    run.set_metrics({"c": 3})
    unsaved.mark_unconfirmed()
    assert run.dirty
    assert unsaved.take(0.0).fields == {"m:b": "2", "m:c": "3"}


def test_begin_again_resends_everything(run, unsaved):
    """Everything is written again to a store that came back empty."""
    run.set_metrics({"a": 1})
    run.set_progress(1, 2, None, None)
    unsaved.take(0.0)
    unsaved.mark_stored(0.0)
    unsaved.begin_again()
    assert run.dirty
    update = unsaved.take(0.0)
    assert update.begins
    assert update.late
    assert update.fields == {"m:a": "1", "progress": "[1,2,null,null]"}


def test_is_orphaned_tells_of_a_thread_that_left_no_end(run):
    """A run is orphaned if its thread is gone and its end is not set."""
    made = []
    thread = threading.Thread(target=lambda: made.append(Unsaved(UUID, run, INFO)))
    thread.start()
    thread.join()
    (left,) = made
    assert left.is_orphaned
    left.end = End("success")
    assert not left.is_orphaned
    assert not Unsaved(UUID, run, INFO).is_orphaned


def test_size_grows_with_the_rest_that_is_reported(run, unsaved):
    """A long message and long parameters count towards the size."""
    size = unsaved.size
    run.set_message("x" * 1000)
    assert unsaved.size >= size + 1000
    params = '{"miles":"' + "x" * 1000 + '"}'
    assert Unsaved(UUID, Run(), INFO._replace(params=params)).size >= size + 1000


def test_size_grows_with_what_a_failure_keeps(unsaved):
    """The message and the traceback of a run that failed take memory, too."""
    size = unsaved.size
    unsaved.end = End("error", None)
    assert unsaved.size == size
    unsaved.end = End("error", None, failure=Failure("x" * 1000, "", "y" * 500))
    assert unsaved.size == size + 1500


def test_size_grows_with_the_metrics(run, unsaved):
    """Metrics count towards the size."""
    size = unsaved.size
    assert size > 0
    run.set_metrics({"a": "x" * 1000})
    assert unsaved.size == size + 1003


# The time left.


def eta(run, unsaved, now, done, total):
    """Return the seconds left that a viewer reads after a report of progress."""
    run.set_progress(done, total, None, None)
    return json.loads(unsaved.take(now).fields["progress"])[3]


def test_eta_is_none_at_first(run, unsaved):
    """One report does not give a pace."""
    assert eta(run, unsaved, 0, 5, 10) is None


def test_eta_is_none_without_a_total(run, unsaved):
    """Without a total, the time left is unknown."""
    assert eta(run, unsaved, 0, 0, None) is None
    assert eta(run, unsaved, 10, 5, None) is None


def test_eta_is_none_while_nothing_gets_done(run, unsaved):
    """The pace is unknown until something gets done and time has passed."""
    assert eta(run, unsaved, 0, 5, 10) is None
    assert eta(run, unsaved, 0, 6, 10) is None
    assert eta(run, unsaved, 1, 5, 10) is None
    assert eta(run, unsaved, 20, 5, 10) is None


def test_eta_is_what_is_left_at_the_pace_so_far(run, unsaved):
    """Two done in ten seconds and eight to go: forty seconds."""
    eta(run, unsaved, 100, 0, 10)
    assert eta(run, unsaved, 110, 2, 10) == 40
    assert eta(run, unsaved, 110.5, 3, 10) == 24.5


@pytest.mark.parametrize("done", [10, 12])
def test_eta_of_all_done_is_zero(run, unsaved, done):
    """If everything is done, or more than the total, no time is left."""
    eta(run, unsaved, 0, 0, 10)
    assert eta(run, unsaved, 10, done, 10) == 0


def test_eta_follows_a_pace_that_changes(run, unsaved):
    """A pace of long ago no longer counts."""
    for second in range(100):
        eta(run, unsaved, second, second * 100, 10**6)
    for second in range(1, 3 * int(WINDOW)):
        left = eta(run, unsaved, 100 + second, 10**4 + second, 10**6)
    assert left == 10**6 - 10**4 - second


def test_eta_looks_back_far_enough_to_be_steady(run, unsaved):
    """A short pause within the window changes the time left only by its share."""
    for second in range(100):
        eta(run, unsaved, second, second, 200)
    assert 100 < eta(run, unsaved, 105, 100, 200) < 125


@pytest.mark.parametrize(("done", "total"), [(0, 100), (99, 100), (100, 200)])
def test_eta_starts_again_with_another_part_of_the_job(run, unsaved, done, total):
    """Progress that goes back or changes its total starts a new estimate."""
    eta(run, unsaved, 0, 0, 100)
    assert eta(run, unsaved, 1000, 100, 100) == 0
    assert eta(run, unsaved, 1001, done, total) is None
    assert eta(run, unsaved, 1002, done + 1, total) == total - done - 1


def test_eta_of_a_phase_is_that_of_the_job(run, unsaved):
    """In a phase, the time left is that of the whole job, at the pace of the bar."""
    with run.phases.open(run, "Parsing", 20):
        unsaved.take(0)
        assert eta(run, unsaved, 10, 5, 10) == 90
        assert eta(run, unsaved, 20, 10, 10) == 80
    # The bar stands still where phases meet.
    with run.phases.open(run, "Writing", 80):
        assert eta(run, unsaved, 22, 1, 8) == 51.3


@pytest.mark.parametrize(
    ("first", "second", "total"),
    [
        (0, 5e-324, 1e308),
        (0, 1, 10**308),
        (0.5, int(1e308), 1e308),
        (10**300, 10**300 + 1, 10**308),
    ],
)
def test_eta_stands_any_amount(run, unsaved, first, second, total):
    """For extreme amounts the time left is None or a finite number."""
    eta(run, unsaved, 0, first, total)
    left = eta(run, unsaved, 1e6, second, total)
    assert left is None or 0 <= left < float("inf")


def test_eta_is_none_if_it_is_beyond_all_numbers(run, unsaved):
    """An infinite time left reads as unknown."""
    eta(run, unsaved, 0, 0, 1e308)
    assert eta(run, unsaved, 1000, 1e-300, 1e308) is None


# No value is lost: each point at which threads can switch, one by one.


class Interleaving:
    """Runs a call, and something else at one point between two of its bytecodes.

    Parameters:
      modules: The modules whose bytecodes count as points.
    """

    def __init__(self, *modules):
        self._files = {module.__file__ for module in modules}

    def points(self, call):
        """Return at how many points the call can be interrupted."""
        return self.run(call, -1, lambda: None)

    def run(self, call, point, interruption):
        """Make the call, with the interruption at a point, and return how many points
        there were.
        """
        count = 0

        def trace(frame, event, arg):
            nonlocal count
            if event == "call":
                if frame.f_code.co_filename not in self._files:
                    return None
                frame.f_trace_opcodes = True
                frame.f_trace_lines = False
            elif event == "opcode":
                if count == point:
                    interruption()
                count += 1
            return trace

        before = sys.gettrace()
        sys.settrace(trace)
        try:
            call()
        finally:
            sys.settrace(before)
        return count


def running(run):
    return JobState(Record(UUID, {}), run)


def one_step(job_state):
    """Return a call that takes a tracked loop from its second item to the third."""
    steps = job_state.track(range(3))
    next(steps)
    next(steps)
    return lambda: next(steps)


#: A call on a JobState, and what the store then holds.
CALLS = {
    "known": (lambda j: lambda: j.set_progress_metric("a", 2), {"m:a": "2"}),
    "unknown": (lambda j: lambda: j.set_progress_metric("x", [2]), {"m:x": "[2]"}),
    "several": (
        lambda j: lambda: j.set_progress_metrics(a=2, b=2),
        {"m:a": "2", "m:b": "2"},
    ),
    "increment": (lambda j: lambda: j.increment_progress_metric("a"), {"m:a": "2"}),
    "progress": (
        lambda j: lambda: j.set_progress(1, 2, "rows", "Reading"),
        {"progress": '[1,2,"rows",null]', "message": '"Reading"'},
    ),
    "track": (one_step, {"progress": "[2,3,null,null]"}),
    "message": (lambda j: lambda: j.set_message("text"), {"message": '"text"'}),
    "log": (lambda j: lambda: j.append_log("line"), {"log": '["line"]'}),
}


@pytest.mark.parametrize(("prepare", "expected"), CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("fate", [None, "lost", "unknown"])
def test_nothing_is_lost_when_a_call_is_interrupted_by_a_flush(prepare, expected, fate):
    """Wherever a flush interrupts a call, and however its write goes, what the call set
    reaches the store.
    """
    interleaving = Interleaving(handle_module, run_module)

    def check(point):
        run = Run()
        run.set_metrics({"a": 1, "b": 1})
        call = prepare(running(run))
        fates = iter([None, fate])
        flusher = Flusher(run, lambda: next(fates, None))
        flusher.flush()
        # Other activity of the job may keep the flag up.
        run.dirty = point % 2 == 0
        points = interleaving.run(call, point, flusher.flush)
        flusher.drain()
        assert expected.items() <= flusher.hash.items()
        return points

    points = check(-1)
    assert points > 10
    for point in range(points):
        check(point)


@pytest.mark.parametrize(("prepare", "expected"), CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("fate", [None, "lost", "unknown"])
def test_nothing_is_lost_when_a_flush_is_interrupted_by_a_call(prepare, expected, fate):
    """Wherever a call interrupts a flush, what the call sets reaches the store."""
    interleaving = Interleaving(unsaved_module)

    def check(point):
        run = Run()
        run.set_metrics({"a": 1, "b": 1})
        call = prepare(running(run))
        fates = iter([None, fate])
        flusher = Flusher(run, lambda: next(fates, None))
        flusher.flush()
        run.dirty = True
        points = interleaving.run(flusher.flush, point, call)
        flusher.drain()
        assert point < 0 or expected.items() <= flusher.hash.items()
        return points

    points = check(-1)
    assert points > 10
    for point in range(points):
        check(point)


def test_a_viewer_sees_several_metrics_all_or_none():
    """Wherever a flush interrupts the call, the store never holds only some of the
    metrics that were set together.
    """
    interleaving = Interleaving(handle_module, run_module)

    def check(point):
        run = Run()
        run.set_metrics({"a": 0, "b": [0], "c": 0})
        flusher = Flusher(run)

        def flush():
            run.dirty = True
            flusher.flush()

        job_state = running(run)
        points = interleaving.run(
            lambda: job_state.set_progress_metrics(a=1, b=[1], c=1), point, flush
        )
        flush()
        seen = {(h["m:a"], h["m:b"], h["m:c"]) for h in flusher.seen}
        assert seen <= {("0", "[0]", "0"), ("1", "[1]", "1")}
        assert ("1", "[1]", "1") in seen
        return points

    for point in range(check(-1)):
        check(point)


def raise_flag_first(run):
    run.dirty = True
    run.metrics["a"] = 2


def lower_flag_last(run, taken):
    taken.update(run.metrics.copy())
    run.dirty = False


def test_the_flag_must_be_raised_after_the_value():
    """A setter that raises the flag first loses its value at some point, so the tests
    above would detect it.
    """
    interleaving = Interleaving(sys.modules[__name__])

    def loses(point):
        run = Run()
        run.set_metrics({"a": 1})
        flusher = Flusher(run)
        flusher.flush()
        interleaving.run(lambda: raise_flag_first(run), point, flusher.flush)
        flusher.drain()
        return flusher.metrics() != {"a": 2}

    points = interleaving.points(lambda: raise_flag_first(Run()))
    assert any(loses(point) for point in range(points))


def test_the_flag_must_be_lowered_before_the_copy():
    """A flusher that lowers the flag last loses a value at some point, so the tests
    above would detect it.
    """
    interleaving = Interleaving(sys.modules[__name__])

    def loses(point):
        run = Run()
        taken: dict[str, object] = {}
        run.set_metrics({"a": 1})
        interleaving.run(
            lambda: lower_flag_last(run, taken),
            point,
            lambda: run.set_metrics({"a": 2}),
        )
        return not run.dirty and taken != {"a": 2}

    points = interleaving.points(lambda: lower_flag_last(Run(), {}))
    assert any(loses(point) for point in range(points))


@pytest.fixture
def _restless():
    """Have threads switch as often as possible."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("_restless")
def test_nothing_is_lost_while_sixteen_threads_report():
    """While writes fail at random, threads set, count and track: in the end each last
    value is stored, and each count is exact.
    """
    threads, rounds = 16, 300
    dice = random.Random(1)
    run = Run()
    flusher = Flusher(run, lambda: dice.choice([None, None, "lost", "unknown"]))
    job_state = running(run)
    barrier = threading.Barrier(threads + 1)
    finished = threading.Event()

    def work(number):
        barrier.wait()
        for i in job_state.track(range(rounds), unit=f"rows of {number}"):
            job_state.set_progress_metric(f"own {number}", i)
            job_state.set_progress_metrics({f"pair {number}": [i], "shared": number})
            job_state.increment_progress_metric("count")
            job_state.increment_progress_metric(f"count {number % 4}", 2)
            job_state.set_message(f"{number}: {i}")
            job_state.append_log(f"{number}: {i}")

    def flush():
        barrier.wait()
        while not finished.is_set():
            flusher.flush()

    workers = [threading.Thread(target=work, args=(n,)) for n in range(threads)]
    recorder = threading.Thread(target=flush)
    for thread in (*workers, recorder):
        thread.start()
    for thread in workers:
        thread.join()
    finished.set()
    recorder.join()
    flusher.drain()

    metrics = flusher.metrics()
    assert metrics == job_state.progress_metrics
    assert metrics["count"] == threads * rounds
    for number in range(4):
        assert metrics[f"count {number}"] == threads * rounds // 4 * 2
    for number in range(threads):
        assert metrics[f"own {number}"] == rounds - 1
        assert metrics[f"pair {number}"] == [rounds - 1]
    stored = Record(UUID, flusher.hash)
    assert stored.message == job_state.message
    assert stored.log == job_state.log
    assert len(stored.log) == 20
    assert stored.progress is not None and job_state.progress is not None
    assert stored.progress[:3] == job_state.progress[:3]
    assert set(flusher.hash) == {METRIC + name for name in metrics} | {
        "progress",
        "message",
        "log",
    }
