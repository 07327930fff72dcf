"""Phases: shares of the bar that never take it back."""

import asyncio
import contextlib
import logging
import math
import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from pyramid.request import Request

from pyramid_jobstate import JobCancelled, JobState
from pyramid_jobstate.testing import cancel, detached, put_job
from tests.actor.calls import letters
from tests.support import counted, load_job, write

#: Returns what viewers read of the phase that a job is in.
Shown = Callable[[JobState], Any]


@pytest.fixture
def phase_in(viewer: Request) -> Shown:
    return lambda job_state: job_state.__json__(viewer)["job"]["phase"]


def share(job: JobState) -> float:
    """Return where the bar stands."""
    assert job.progress is not None and job.progress.fraction is not None
    return job.progress.fraction


def test_phase_rescales_what_is_reported_in_it(job_state):
    """What called functions report fills the share of the phase."""

    def write_all() -> None:
        job_state.set_progress(1, 4, "rows")

    with job_state.phase("Parsing", percent=30):
        assert share(job_state) == 0
        first = job_state.progress
        job_state.set_progress(13, 26, "rows")
        assert share(job_state) == pytest.approx(0.15)
        assert counted(job_state.progress) == (13, 26, "rows")
    assert share(job_state) == pytest.approx(0.3)
    with job_state.phase("Writing", percent=70):
        assert share(job_state) == pytest.approx(0.3)
        # The same numbers, elsewhere on the bar.
        assert job_state.progress != first
        write_all()
        assert share(job_state) == pytest.approx(0.475)
    assert share(job_state) == 1


def test_phases_in_phases(job_state, phase_in):
    """A percentage is one of the part around it, and viewers read the path."""
    assert phase_in(job_state) is None
    outer = {"name": "Writing", "path": ["Writing"], "fraction": None}
    inner = {"name": "Rows", "path": ["Writing", "Rows"], "fraction": 0.5}
    with job_state.phase("Writing", percent=50):
        with job_state.phase("Rows", percent=40):
            job_state.set_progress(1, 2)
            assert share(job_state) == pytest.approx(0.1)
            assert phase_in(job_state) == inner
        assert share(job_state) == pytest.approx(0.2)
        assert phase_in(job_state) == outer
        with job_state.phase("Index", percent=60):
            assert share(job_state) == pytest.approx(0.2)
    assert share(job_state) == pytest.approx(0.5)
    assert phase_in(job_state) is None


def test_loops_in_and_after_phases(job_state, phase_in):
    """In a phase, the bar waits for a second loop, whose numbers are its own. What is
    reported outside phases lies between them.
    """
    with job_state.phase("Reading", percent=20):
        list(job_state.track(range(3)))
        loop = job_state.track(range(3), unit="rows")
        assert share(job_state) == pytest.approx(0.2)
        assert counted(job_state.progress) == (0, 3, "rows")
        assert phase_in(job_state)["fraction"] == 0
        list(loop)
    shares = [share(job_state) for _ in job_state.track(range(4))]
    assert [*shares, share(job_state)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1])


def test_phase_may_be_left_with_the_one_around_it(job_state):
    """An async generator that is closed late leaves a phase that is over."""
    with contextlib.ExitStack() as late, job_state.phase("Parsing", percent=50):
        late.enter_context(job_state.phase("Rows", percent=50))
        job_state.set_progress(1, 2)
    with job_state.phase("Writing", percent=50):
        late.close()
        job_state.set_progress(1, 2)
        assert share(job_state) == pytest.approx(0.75)


def test_bar_stays_where_it_is(job_state):
    """It waits until progress that goes back has come as far again. An exception
    leaves it, and what follows begins there.
    """
    with contextlib.suppress(LookupError), job_state.phase("Reading", percent=50):
        for done, total in (9, 10), (1, 10), (8, 10), (4, 10), (3, None):
            job_state.set_progress(done, total)
            assert share(job_state) == pytest.approx(0.45)
        raise LookupError
    with job_state.phase("Repairing", percent=10):
        assert share(job_state) == pytest.approx(0.45)
    assert share(job_state) == pytest.approx(0.55)


def test_phase_of_another_thread_is_refused(job_state):
    """While a phase is open, no other thread can begin one. Others may report."""

    def begin() -> None:
        said = (
            "^The phase 'Second' cannot begin in this thread while the phase 'First' "
            "is open in another"
        )
        with pytest.raises(RuntimeError, match=said):
            job_state.phase("Second", percent=10).__enter__()
        job_state.set_progress(1, 2)

    with job_state.phase("First", percent=50), ThreadPoolExecutor(1) as pool:
        pool.submit(begin).result()
        assert share(job_state) == pytest.approx(0.25)
    with job_state.phase("Third", percent=10):
        assert share(job_state) == pytest.approx(0.5)


def test_phase_in_an_asynchronous_actor(job_state):
    """The same `with` works in a coroutine, around an asynchronous loop."""
    shares = []

    async def run() -> None:
        with job_state.phase("Reading", percent=40):
            async for _ in job_state.track(letters([]), total=2):
                shares.append(share(job_state))

    asyncio.run(run())
    assert [*shares, share(job_state)] == pytest.approx([0, 0.2, 0.4])


def test_more_than_is_left_is_cut(caplog):
    """It is cut with one warning a job. Rounding errors cause none."""
    for percents in ([60, 60], [16.7] * 5 + [16.6], [100, 1], [10] * 10, [0.1] * 1000):
        job_state = detached(JobState)
        shares = []
        for number, percent in enumerate(percents):
            with job_state.phase(f"Phase {number}", percent):
                shares.append(share(job_state))
                job_state.set_progress(1, 1)
                shares.append(share(job_state))
        assert shares == sorted(shares)
        assert share(job_state) == pytest.approx(1) and share(job_state) <= 1
        is_too_much = sum(percents) > 100.001
        assert len(caplog.messages) == is_too_much
        for line in caplog.messages:
            assert "more than is left of what encloses it: it gets the rest." in line
        caplog.clear()


def test_name_and_percentage_are_checked(job_state, phase_in):
    """A phase has a name, which is cut if it is too long, and a percentage above 0 and
    at most 100. Otherwise nothing is reported.
    """
    no_number = "'Parsing' must be a number, not"
    no_share = "'Parsing' must be above 0 and at most"
    wrong: list[tuple[Any, Any, type[Exception], str]] = [
        (b"Parsing", 30, TypeError, "The name of a phase must be a str"),
        ("", 30, ValueError, "must not be empty"),
        *(("Parsing", n, TypeError, no_number) for n in ("30", None, True)),
        *(("Parsing", n, ValueError, no_share) for n in (0, 100.0001, math.nan)),
    ]
    for name, percent, error, text in wrong:
        with pytest.raises(error, match=text):
            job_state.phase(name, percent)
    assert job_state.progress is None
    with job_state.phase("x" * 300, 30):
        assert phase_in(job_state)["name"] == "x" * 200


def test_phase_of_a_cancelled_job(job_state):
    """A cancelled job does not begin a phase; leaving one does not raise anew."""

    def read() -> None:
        with job_state.phase("Reading", percent=50):
            cancel(job_state)
            job_state.set_progress(1, 2)

    with pytest.raises(JobCancelled):
        read()
    other = detached(JobState)
    cancel(other)
    with pytest.raises(JobCancelled):
        other.phase("Reading", percent=50).__enter__()


@pytest.mark.promise("phases-share-a-bar")
def test_random_nestings_never_go_back(caplog):
    """The bar never goes back or beyond its end, whether each report is kept or not."""
    caplog.set_level(logging.ERROR)
    chance = random.Random(26)
    for _ in range(300):
        job_state = detached(JobState)
        shares = [0.0]
        look(job_state, chance, shares, depth=0)
        assert shares == sorted(shares)
        assert 0 <= shares[0] <= shares[-1] <= 1


def look(
    job_state: JobState, chance: random.Random, shares: list[float], depth: int
) -> None:
    """Do something at random inside a part of the bar, and note where it stands."""

    def note() -> None:
        if job_state.progress is not None:
            shares.append(share(job_state))

    steps = chance.randrange(4)
    is_loop = chance.random() < 0.5
    loop: Any = job_state.track(range(steps)) if is_loop else range(steps)
    for _ in loop:
        note()
        if depth < 4 and chance.random() < 0.7:
            with (
                contextlib.suppress(LookupError),
                job_state.phase("Phase", chance.choice([1, 7, 33.3, 50, 100])),
            ):
                note()
                look(job_state, chance, shares, depth + 1)
                note()
                if chance.random() < 0.2:
                    raise LookupError
            note()
    note()
    if depth:
        for _ in range(chance.randrange(3)):
            job_state.set_progress(chance.randrange(6), chance.choice([None, 0, 5]))
        note()


def test_viewers_see_the_bar(run_job, store, phase_in):
    """The stored bar stands where the actor reads it, also where it waits."""

    def check(job_state: JobState, expected: float) -> None:
        assert job_state.flush(10)
        loaded = load_job(store, job_state.uuid)
        assert share(loaded) == share(job_state) == pytest.approx(expected)
        assert phase_in(loaded) == phase_in(job_state)
        assert loaded.progress and job_state.progress
        assert counted(loaded.progress) == counted(job_state.progress)

    def run(job_state: JobState) -> None:
        with job_state.phase("Reading", percent=50):
            for done, expected in ((9, 0.45), (1, 0.45), (10, 0.5)):
                job_state.set_progress(done, 10, "rows")
                check(job_state, expected)
            with job_state.phase("Index", percent=20):
                check(job_state, 0.5)
        for item in job_state.track(range(2)):
            check(job_state, 0.5 + item / 4)

    assert share(run_job(run)) == 1


def test_time_left_is_that_of_the_whole_job(run_job, store):
    """At the end of a short phase, the rest of the job is still to come."""

    def run(job_state: JobState) -> None:
        with job_state.phase("Reading", percent=0.1):
            for _ in job_state.track(range(10)):
                assert job_state.flush(10)
            assert job_state.flush(10)
            progress = load_job(store, job_state.uuid).progress
            assert progress is not None
            assert progress.eta is not None and progress.eta > 0

    run_job(run)


def test_stored_phase_is_read_tolerantly(store, phase_in):
    """An invalid phase that another program has written is left out."""
    for text, names in [
        ('[0.25,0.5,["A","B"]]', ["A", "B"]),
        ("[0.25,0.5]", None),
        ("[0.5,1.5,[]]", None),
        ("[true,1,[]]", None),
        ('[0,1,"A"]', None),
        ("x", None),
    ]:
        job_state = put_job(store)
        fields = {"progress": '[1,2,"rows",3.5]', "phase": text}
        write(store, job_state.uuid, **fields)
        loaded = load_job(store, job_state.uuid)
        assert loaded.progress is not None
        assert counted(loaded.progress) == (1, 2, "rows"), text
        assert (loaded.progress.eta, share(loaded)) == (3.5, 0.5), text
        phase = phase_in(loaded)
        assert (phase and phase["path"]) == names, text
