"""Stores that refuse: keys of another program, full servers, missing rights."""

import logging
from typing import Any

from pyramid_jobstate import JobStore
from tests.support import wait_for


def test_poisoned_record_does_not_hold_up_the_others(floor, client, logged):
    """A job whose key holds text of another program is given up with a warning, and so
    is its next run. The other jobs are recorded as usual, and their ends waited for.
    """
    held, poisoned = floor.begin(), floor.begin()
    client.set(f"jobstate:{poisoned.uuid}", "a string")
    poisoned.job_state.set_message("one")
    wait_for(lambda: logged())
    assert not poisoned.job_state.flush(10)
    poisoned.end()
    floor.begin(poisoned.message).end()
    held.job_state.set_message("one")
    held.end()
    assert (held.load().status, held.load().message) == ("success", "one")
    first, second, *_ = logged()
    assert first.startswith(f"This process no longer records job {poisoned.uuid}: ")
    assert "WRONGTYPE" in first and "WRONGTYPE" in second


def test_cancel_is_heard_though_the_store_refuses_its_list(
    make_floor, client, named, logged, caplog
):
    """A beat brings it. The refusal is logged once, and its end not at all."""

    def is_asked() -> bool:
        stats: Any = client.info("commandstats")
        return bool(stats.get("cmdstat_zrangebyscore", {}).get("calls", 0) > 2)

    caplog.set_level(logging.INFO, "pyramid_jobstate")
    floor = make_floor(JobStore(named), heartbeat=0.05)
    held = floor.begin()
    client.acl_setuser("worker", enabled=True, commands=["-zrangebyscore", "-zrange"])
    (said,) = wait_for(lambda: logged())
    assert "refuses to list cancels" in said and "next heartbeat" in said
    assert held.load().cancel()
    wait_for(lambda: held.job_state.cancel_requested)
    held.end(lambda job_state: job_state.raise_if_cancelled())
    assert held.load().status == "cancelled"
    assert logged(logging.INFO) == [said]
    floor.begin()
    client.config_resetstat()
    client.acl_setuser("worker", enabled=True, commands=["+zrangebyscore", "+zrange"])
    wait_for(is_asked)
    assert logged(logging.INFO) == [said]
    client.acl_setuser("worker", enabled=True, commands=["-zrangebyscore", "-zrange"])
    assert wait_for(lambda: logged()[1:])[0] == said
