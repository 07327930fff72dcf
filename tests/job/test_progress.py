"""Progress that a loop sets: what was checked last is not checked again."""

import decimal
import math
import random
from typing import Any

import pytest

from pyramid_jobstate import JobState
from pyramid_jobstate.errors import JobCancelled
from pyramid_jobstate.job.record import Record
from pyramid_jobstate.job.recording import RecordingRun
from pyramid_jobstate.job.run import Run
from pyramid_jobstate.job.values import LIMIT

from .test_values import Scalar


class Amount(int):
    """A number of an application's own class."""


def job_of(run):
    return JobState(Record("a" * 36, {}), run)


@pytest.mark.parametrize("seed", range(20))
def test_progress_set_again_is_what_a_full_check_keeps(seed):
    """Whatever is set in whatever order, good or bad, as the same object or as an equal
    one, the job reports what it would if each call checked everything.
    """
    chance = random.Random(seed)
    ours, full = Run(), Run()
    unknown: Any = object()
    texts: list[Any] = ["rows", "Zeilen", "".join(["ro", "ws"]), None, "x" * 20_000, 3]
    totals: list[Any] = [10, 10.0, 2000, int("2000"), None]
    totals += [
        decimal.Decimal(7),
        Amount(9),
        True,
        math.nan,
        -1,
        LIMIT,
        10**400,
        Scalar("f", 5),
    ]
    amounts: list[Any] = [0, 1, 2.5, 3, LIMIT, -1, math.nan, True, Amount(4), "1"]
    for _ in range(500):
        # Most calls repeat what the one before had.
        call = [
            chance.choice(values[:2] if chance.random() < 0.8 else values)
            for values in (amounts, totals, texts, texts)
        ]
        # Nothing is known to a run whose checked parts are forgotten.
        full.total = full.unit = unknown
        for run in ours, full:
            run.dirty = False
        errors = []
        for run in ours, full:
            try:
                job_of(run).set_progress(*call)
            except (TypeError, ValueError) as e:
                errors.append((type(e), str(e)))
        assert len(errors) in (0, 2) and len(set(errors)) <= 1
        assert ours.report == full.report
        assert ours.dirty is full.dirty is (not errors)
        if chance.random() < 0.1:
            message = chance.choice([*texts[:2], None])
            for run in ours, full:
                run.set_message(message)


def test_progress_checks_an_amount_that_may_change():
    """The same object may hold another number by now, as an array of NumPy may."""
    run = Run()
    job_state = job_of(run)
    total = Scalar("f", 5)
    job_state.set_progress(1, total, "rows")
    total._item = 7
    job_state.set_progress(2, total, "rows")
    assert run.report["progress"] == (2, 7.0, "rows")
    total._item = -1
    with pytest.raises(ValueError, match="total"):
        job_state.set_progress(3, total, "rows")
    assert run.report["progress"] == (2, 7.0, "rows")


class Sly(int):
    """A number that compares as it likes."""

    is_negative = False

    def __ge__(self, other: float) -> bool:
        return not self.is_negative


def test_progress_checks_a_number_of_another_class_each_time():
    """Even if it is the same object as before."""
    run = Run()
    job_state = job_of(run)
    total = Sly(5)
    job_state.set_progress(1, total, "rows")
    total.is_negative = True
    with pytest.raises(ValueError, match="total"):
        job_state.set_progress(2, total, "rows")


def test_progress_of_a_loop_is_checked_once(monkeypatch):
    """A loop that passes the same objects spares the checks."""
    checked = []
    check = Run.set_progress

    def spy(run, *args):
        checked.append(args)
        check(run, *args)

    monkeypatch.setattr(Run, "set_progress", spy)
    run = Run()
    job_state = job_of(run)
    for done in range(1, 4):
        job_state.set_progress(done, 3, unit="rows", message="Reading")
    assert checked == [(1, 3, "rows", "Reading")]
    assert run.report == {"progress": (3, 3, "rows"), "message": "Reading"}


def test_progress_sets_a_message_again_that_was_removed():
    """A message that another call has removed is shown again."""
    run = Run()
    job_state = job_of(run)
    message = "Reading"
    job_state.set_progress(1, 2, "rows", message)
    job_state.set_message(None)
    job_state.set_progress(2, 2, "rows", message)
    assert run.report == {"progress": (2, 2, "rows"), "message": "Reading"}


def test_progress_that_was_set_before_is_refused_after_the_end():
    """A job that has ended, or was cancelled, learns of it at the next call."""
    for end, error in (
        (Run.cancel, JobCancelled),
        (lambda run: run.close("It has ended."), RuntimeError),
    ):
        run = Run()
        job_state = job_of(run)
        job_state.set_progress(1, 2, "rows")
        end(run)
        with pytest.raises(error):
            job_state.set_progress(2, 2, "rows")
        assert run.report["progress"] == (1, 2, "rows")


@pytest.mark.parametrize("rest", [(), (3,), (3, "rows"), (3, "rows", "Reading")])
def test_progress_set_again_is_kept_for_tests(rest):
    """A run that keeps every report keeps those that need no check."""
    run = RecordingRun()
    job_state = job_of(run)
    for done in range(3):
        job_state.set_progress(done, *rest)
    kept = [report[1:] for report in run.history if report[0] == "progress"]
    total, unit = (*rest, None, None)[:2]
    assert kept == [(done, total, unit) for done in range(3)]
