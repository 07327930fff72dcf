"""Operators who act while workers are at work, and operators who die."""

from __future__ import annotations

import concurrent.futures
import itertools

import pytest

from pyramid_jobstate import rerun, rerun_all
from pyramid_jobstate.testing import pass_time
from tests.support import wait_for
from tests.trips import dying
from tests.worker.floors import Floor, fail, failed


def test_running_again_while_a_worker_is_at_work(floor: Floor) -> None:
    """Two operators run all failed jobs again: each runs once more."""
    names = [str(number) for number in range(30)]
    floor.scripts = dict.fromkeys(names, lambda _: fail(ValueError("x")))
    sent = [floor.post(name) for name in names]
    floor.work()
    floor.scripts = {}

    def operate() -> int:
        return rerun_all(floor.store, floor.broker, kind="Chore").done

    with floor.working(), concurrent.futures.ThreadPoolExecutor(2) as pool:
        found = [pool.submit(operate) for _ in range(2)]
        assert sum(each.result() for each in found) == 30
        wait_for(floor.is_idle)
    assert {*floor.statuses(*sent)} == {"success"}
    assert floor.ran == dict.fromkeys(names, 2)


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("is_bulk", [False, True])
def test_operator_who_dies_runs_a_job_once(
    floor: Floor, is_bulk: bool, moment: str
) -> None:
    """The job runs once more, at the latest when another operator does it."""
    for number in itertools.count(1):
        (sent,) = failed(floor)
        with dying(number, moment) as has_died:
            if is_bulk:
                rerun_all(floor.store, floor.broker, kind="Chore")
            else:
                rerun(floor.store, floor.broker, sent.message_id)
        floor.work()
        # If its message never left, it will read stalled.
        pass_time(floor.store, 16)
        if floor.statuses(sent) != ["success"]:
            assert rerun(floor.store, floor.broker, sent.message_id), number
            floor.work()
        assert floor.statuses(sent) == ["success"], number
        assert floor.ran == {"a": 1}, number
        if not has_died():
            break
    assert number > 3
