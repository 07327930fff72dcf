"""Phases: shares of the bar that never take it back."""

from __future__ import annotations

import asyncio
import logging
import math
import random
import threading
from collections.abc import AsyncIterator
from typing import Any

import pytest

from pyramid_jobstate.errors import JobCancelled
from pyramid_jobstate.job import JobState, PartOfProgress, Record
from pyramid_jobstate.job.progress import Phase, Progress
from pyramid_jobstate.job.run import Run
from pyramid_jobstate.testing import detached
from tests.job.viewer import Request
from tests.support import UUID


def running() -> JobState:
    """Return the JobState of a job that runs in a worker."""
    return JobState(Record(UUID, {"status": "working"}), Run())


@pytest.fixture(params=["running", "detached"])
def job(request: pytest.FixtureRequest) -> JobState:
    """The JobState of a running job."""
    return running() if request.param == "running" else detached(JobState)


def share(job: JobState) -> float:
    """Return where the bar stands."""
    progress = job.progress
    assert progress is not None
    assert progress.fraction is not None
    return progress.fraction


def phase_in(job: JobState) -> Any:
    """Return what viewers read of the phase."""
    return job.__json__(Request())["job"]["phase"]


def test_phase_rescales_what_is_reported_in_it(job: JobState) -> None:
    """What called functions report fills the share of the phase."""

    def write_all() -> None:
        job.set_progress(1, 4, "rows")

    with job.phase("Parsing", percent=30):
        assert share(job) == 0
        job.set_progress(13, 26, "rows")
        assert share(job) == pytest.approx(0.15)
        assert job.progress == Progress(13, 26, "rows")
    assert share(job) == pytest.approx(0.3)
    with job.phase("Writing", percent=70):
        assert share(job) == pytest.approx(0.3)
        write_all()
        assert share(job) == pytest.approx(0.475)
    assert share(job) == 1


def test_phases_in_phases(job: JobState) -> None:
    """A percentage is one of the part around it, and viewers read the path."""
    assert phase_in(job) is None
    with job.phase("Writing", percent=50):
        with job.phase("Rows", percent=40):
            job.set_progress(1, 2)
            assert share(job) == pytest.approx(0.1)
            assert phase_in(job) == {
                "name": "Rows",
                "path": ["Writing", "Rows"],
                "fraction": 0.5,
            }
        assert share(job) == pytest.approx(0.2)
        assert phase_in(job) == {
            "name": "Writing",
            "path": ["Writing"],
            "fraction": None,
        }
        with job.phase("Index", percent=60):
            assert share(job) == pytest.approx(0.2)
    assert share(job) == pytest.approx(0.5)
    assert phase_in(job) is None


def test_loop_after_phases_fills_the_rest(job: JobState) -> None:
    """What is reported outside phases lies between them."""
    with job.phase("First", percent=20):
        pass
    shares = []
    for _ in job.track(range(4)):
        shares.append(share(job))
    shares.append(share(job))
    assert shares == pytest.approx([0.2, 0.4, 0.6, 0.8, 1])


def test_phases_in_a_loop(job: JobState) -> None:
    """A loop whose steps have phases goes on from where they end."""
    shares = []
    for _ in job.track(range(5)):
        with job.phase("Step", percent=10):
            shares.append(share(job))
        shares.append(share(job))
    shares.append(share(job))
    assert shares == sorted(shares)
    assert shares[-1] == 1


def test_second_loop_takes_nothing_back(job: JobState) -> None:
    """In a phase and after one, the bar waits for the second loop, whose numbers are
    the actor's own.
    """
    with job.phase("Reading", percent=50):
        list(job.track(range(3)))
        loop = job.track(range(3), unit="rows")
        assert share(job) == pytest.approx(0.5)
        assert job.progress == Progress(0, 3, "rows")
        assert phase_in(job)["fraction"] == 0
        list(loop)
    job.set_progress(1, 2)
    shares = []
    for _ in job.track(range(4)):
        shares.append(share(job))
    assert shares == pytest.approx([0.75, 0.75, 0.75, 0.875])


def test_progress_that_goes_on_in_a_phase_is_not_checked_anew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is set as fast as outside of phases, where only the numbers are replaced."""
    job = running()
    with job.phase("Reading", percent=50):
        job.set_progress(1, 10)
        monkeypatch.setattr(Run, "set_progress", None)
        job.set_progress(1, 10)
        job.set_progress(8, 10)
        with pytest.raises(TypeError, match="not callable"):
            job.set_progress(7, 10)
    monkeypatch.undo()
    assert share(job) == pytest.approx(0.5)


def test_progress_that_goes_back_in_a_phase_leaves_the_bar(job: JobState) -> None:
    """It waits until the progress has come as far again, and what follows begins where
    it stands.
    """

    def read() -> None:
        with job.phase("Reading", percent=50):
            for done in (9, 1, 8, 10, 4):
                job.set_progress(done, 10)
                shares.append(share(job))
            job.set_progress(3)
            shares.append(share(job))
            raise LookupError

    shares: list[float] = []
    with pytest.raises(LookupError):
        read()
    assert shares == pytest.approx([0.45, 0.45, 0.45, 0.5, 0.5, 0.5])
    with job.phase("Repairing", percent=10):
        assert share(job) == pytest.approx(0.5)
    assert share(job) == pytest.approx(0.6)


def test_phase_that_raises_stays_where_it_is(job: JobState) -> None:
    """An exception leaves the bar, and what follows begins there."""

    def read() -> None:
        with job.phase("Reading", percent=50):
            job.set_progress(1, 2)
            raise LookupError

    with pytest.raises(LookupError):
        read()
    assert share(job) == pytest.approx(0.25)
    with job.phase("Repairing", percent=10):
        assert share(job) == pytest.approx(0.25)
    assert share(job) == pytest.approx(0.35)


@pytest.mark.parametrize(
    "percents", [[60, 60], [16.7] * 5 + [16.6], [100, 1], [1e-9] + [100] * 3]
)
def test_more_than_is_left_is_cut(
    job: JobState, percents: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    """Percentages that add up to too much are cut, with one warning."""
    shares = []
    for number, percent in enumerate(percents):
        with job.phase(f"Phase {number}", percent):
            shares.append(share(job))
            job.set_progress(1, 1)
            shares.append(share(job))
    assert shares == sorted(shares)
    assert share(job) == 1
    (line,) = caplog.messages
    assert "more than is left of what encloses it: it gets the rest." in line


@pytest.mark.parametrize(
    "percents", [[100], [30, 70], [33.3, 33.3, 33.4], [10] * 10, [0.1] * 1000]
)
def test_percentages_that_add_up_are_no_fault(
    job: JobState, percents: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    """Rounding errors do not trigger the warning."""
    for percent in percents:
        with job.phase("Phase", percent):
            pass
    assert share(job) == pytest.approx(1)
    assert share(job) <= 1
    assert caplog.messages == []


@pytest.mark.parametrize("percent", [0, -1, 101, 100.0001, math.nan, math.inf])
def test_percentage_is_above_0_and_at_most_100(job: JobState, percent: float) -> None:
    """Any other number is refused when the phase is made, and nothing is reported."""
    with pytest.raises(ValueError, match="'Parsing' must be above 0 and at most 100"):
        job.phase("Parsing", percent)
    assert job.progress is None


@pytest.mark.parametrize("percent", ["30", None, True, [30]])
def test_percentage_is_a_number(job: JobState, percent: Any) -> None:
    """Text and bools are refused."""
    with pytest.raises(TypeError, match="'Parsing' must be a number, not"):
        job.phase("Parsing", percent)


def test_name_is_a_text(job: JobState) -> None:
    """A phase has a name, which is cut if it is too long."""
    wrong: Any
    for wrong in (None, 7, b"Parsing"):
        with pytest.raises(TypeError, match="The name of a phase must be a str"):
            job.phase(wrong, 30)
    with pytest.raises(ValueError, match="must not be empty"):
        job.phase("", 30)
    with job.phase("x" * 300, 30):
        assert phase_in(job)["name"] == "x" * 200


def test_phase_of_another_thread_is_refused(job: JobState) -> None:
    """While a phase is open, no other thread can begin one. Others may report."""
    caught: list[BaseException] = []

    def begin() -> None:
        try:
            with job.phase("Second", percent=10):
                raise AssertionError
        except RuntimeError as e:
            caught.append(e)
        job.set_progress(1, 2)

    with job.phase("First", percent=50):
        thread = threading.Thread(target=begin)
        thread.start()
        thread.join()
        assert share(job) == pytest.approx(0.25)
    assert str(caught[0]) == (
        "The phase 'Second' cannot begin in this thread while the phase 'First' is "
        "open in another."
    )
    with job.phase("Third", percent=10):
        assert share(job) == pytest.approx(0.5)


def test_phase_in_an_asynchronous_actor(job: JobState) -> None:
    """The same `with` works in a coroutine, around an asynchronous loop."""

    async def rows() -> AsyncIterator[int]:
        for n in range(4):
            await asyncio.sleep(0)
            yield n

    async def run() -> list[float]:
        shares = []
        with job.phase("Reading", percent=40):
            async for _ in job.track(rows(), total=4):
                shares.append(share(job))
        return [*shares, share(job)]

    assert asyncio.run(run()) == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])


def test_phases_that_are_left_in_another_order(job: JobState) -> None:
    """A phase that outlives the one around it, as one of another task may, ends with
    it.
    """
    outer, inner = job.phase("Outer", 50), job.phase("Inner", 50)
    with outer:
        inner.__enter__()
        job.set_progress(1, 2)
    assert share(job) == pytest.approx(0.5)
    inner.__exit__(None, None, None)
    assert share(job) == pytest.approx(0.5)
    with job.phase("Next", 25):
        pass
    assert share(job) == pytest.approx(0.75)


def test_phase_of_a_cancelled_job(job: JobState) -> None:
    """A cancelled job does not begin a phase; leaving one does not raise anew."""
    run: Run = job._run

    def read() -> None:
        with job.phase("Reading", percent=50):
            run.cancel()
            job.set_progress(1, 2)

    with pytest.raises(JobCancelled):
        read()
    loaded = JobState(Record(UUID, {})).phase("Reading", percent=50)
    with pytest.raises(RuntimeError, match="loaded from a store"):
        loaded.__enter__()


@pytest.mark.parametrize("seed", range(30))
def test_random_nestings_never_go_back(
    job: JobState, seed: int, caplog: pytest.LogCaptureFixture
) -> None:
    """However phases, loops and exceptions are nested, the bar never goes back, and
    never beyond its end: 3,000 nestings.
    """
    caplog.set_level(logging.ERROR)
    chance = random.Random(seed)
    for _ in range(100):
        job = detached(JobState)
        shares = [0.0]
        look(job, chance, shares, depth=0)
        assert shares == sorted(shares)
        assert 0 <= shares[0] <= shares[-1] <= 1


def look(job: JobState, chance: random.Random, shares: list[float], depth: int) -> None:
    """Do something at random inside a part of the bar, and note where it stands."""

    def note() -> None:
        if job.progress is not None:
            shares.append(share(job))

    steps = chance.randrange(4)
    is_loop = chance.random() < 0.5
    loop: Any = job.track(range(steps)) if is_loop else range(steps)
    for _ in loop:
        note()
        if depth < 4 and chance.random() < 0.7:
            try:
                with job.phase("Phase", chance.choice([1, 7, 33.3, 50, 100])):
                    note()
                    look(job, chance, shares, depth + 1)
                    note()
                    if chance.random() < 0.2:
                        raise LookupError
            except LookupError:
                pass
            note()
    note()
    if depth:
        for _ in range(chance.randrange(3)):
            job.set_progress(chance.randrange(6), chance.choice([None, 0, 5]))
        note()


@pytest.mark.parametrize(
    ("text", "phase"),
    [
        ('[0.25,0.5,["A","B"]]', Phase(0.25, 0.5, ("A", "B"))),
        ("[0,1,[]]", Phase(0, 1, ())),
        ("[0.25,0.5]", None),
        ("[-0.25,0.5,[]]", None),
        ("[0,1.5,[]]", None),
        ('["0",1,[]]', None),
        ("[true,1,[]]", None),
        ("[null,1,[]]", None),
        ('[0,1,"A"]', None),
        ("{}", None),
        ("x", None),
    ],
)
def test_stored_phase_is_read_tolerantly(text: str, phase: Phase | None) -> None:
    """A stored phase that is invalid is ignored."""
    fields = {"status": "working", "progress": '[1,2,"rows",3.5]', "phase": text}
    job = JobState(Record(UUID, fields))
    progress = job.progress
    assert progress == (1, 2, "rows", 3.5)
    found = progress.phase if isinstance(progress, PartOfProgress) else None
    assert found == phase
    whole = 0.5 if phase is None else phase.base + phase.span / 2
    assert share(job) == whole


def test_job_without_phases_is_as_before(job: JobState) -> None:
    """The progress of a job without phases is a plain one."""
    job.set_progress(3)
    progress = job.progress
    assert type(progress) is Progress
    assert progress == Progress(3) and progress.fraction is None
