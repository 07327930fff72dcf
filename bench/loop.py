"""What an update in each step costs a loop of short steps."""

from __future__ import annotations

from collections.abc import Callable

from pyramid_jobstate import JobStore
from pyramid_jobstate.embedded import EmbeddedServer

from .jobs import running_job
from .timing import Row, Table, side_by_side

#: What a step takes without the update, in seconds.
STEP = 1e-6


def measure(server: EmbeddedServer) -> Table:
    size = _step_size()
    with running_job(JobStore(server.url)) as job_state:

        def without(count: int) -> None:
            for _ in range(count):
                _step(size)

        def updated(count: int) -> None:
            for i in range(count):
                _step(size)
                job_state.set_progress_metric("miles_run", i)

        def tracked(count: int) -> None:
            for _ in job_state.track(range(count)):
                _step(size)

        bare, *others = side_by_side(
            (200_000, without), (200_000, updated), (200_000, tracked)
        )

        def in_phase(count: int) -> None:
            with job_state.phase("Running", percent=1):
                steps(count)

        def steps(count: int) -> None:
            for _ in job_state.track(range(count)):
                pass

        outside, inside = side_by_side((200_000, steps), (200_000, in_phase))
    rows = [
        Row(
            f"with {what} in each step / without",
            timing.over(bare),
            at_most=1.2,
            note=f"{timing} / {bare}",
        )
        for what, timing in zip(("an update", "`track`"), others, strict=True)
    ]
    rows.append(
        Row(
            "a step of `track` in a phase / outside",
            inside.over(outside),
            at_most=1.1,
            note=f"{inside} / {outside}",
        )
    )
    return Table("A loop of 1 µs steps in a recorded job", rows)


def _step(size: int) -> None:
    for _ in range(size):
        pass


def _step_size() -> int:
    """Return the size at which a step takes as long as it should."""

    def steps_of(size: int) -> Callable[[int], None]:
        def do(count: int) -> None:
            for _ in range(count):
                _step(size)

        return do

    small, large = side_by_side((20_000, steps_of(10)), (20_000, steps_of(110)))
    slope = (min(large.rounds) - min(small.rounds)) / 100
    return max(1, 10 + round((STEP - min(small.rounds)) / slope))
