"""On one server, records and lists agree after every command, whoever sent it, and a
server that refuses lists costs no job.
"""

import contextlib
import threading
from collections.abc import Callable
from typing import Any
from unittest import mock

import dramatiq
import pytest
import redis

from pyramid_jobstate import JobStore, StoreUnavailable, rerun, rerun_all
from tests.lost import disagreements
from tests.support import wait_for
from tests.trips import met
from tests.web.databases import Manager
from tests.worker.floors import Floor, fail


def live(floor: Floor) -> None:
    """Have jobs go through all that may happen to them."""
    floor.scripts["reports"] = lambda job_state: job_state.set_message("on it")
    failed = floor.post("fails", job_owner="alice")
    floor.post("reports")
    cancelled, deleted = floor.post("c"), floor.post("d", job_owner="alice")
    assert floor.load(cancelled.message_id).cancel()
    floor.broker.enqueue(floor.stubborn.message("fails"), delay=1)
    steps = [floor.message(name, pipe_ignore=True) for name in ("fails", "b")]
    with (request := floor.request()).tm:
        request.job_states.send_message(dramatiq.pipeline(steps, broker=floor.broker))
    request = floor.request()
    request.tm.begin()
    request.job_states.send(floor.errand, "withdrawn")
    with request.job_states.batch() as withdrawn:
        withdrawn.send(floor.errand, "withdrawn, too")
    request.tm.get().join(Manager("~", "tpc_vote", lambda: fail(ZeroDivisionError)))
    with contextlib.suppress(ZeroDivisionError):
        request.tm.commit()
    first, second = floor.request(), floor.request()
    for request in first, second:
        # Neither knows of the other yet.
        request.tm.begin()
        request.job_states.send_with_options(floor.errand, ("u",), unique="nightly")
    first.tm.commit()
    second.tm.commit()
    batch = floor.send_batch("fails", "reports", "z")
    assert floor.send_batch("x", "y").cancel()
    floor.work()
    assert floor.store.delete(deleted.message_id)
    del floor.scripts["fails"]
    away = mock.patch.object(floor.broker, "enqueue", side_effect=ConnectionError)
    with away, contextlib.suppress(ConnectionError):
        rerun(floor.store, floor.broker, failed.message_id)
    assert rerun(floor.store, floor.broker, failed.message_id)
    assert rerun_all(floor.store, floor.broker, batch=batch.uuid).done == 1
    floor.work()
    held = floor.begin()
    assert held.load().cancel()
    wait_for(lambda: held.job_state.cancel_requested)
    held.end(lambda job_state: job_state.raise_if_cancelled())
    result = floor.store.clear(everything=True)
    assert result.done > 10 and result.cursor is None


@pytest.mark.promise("counts-agree-with-lists")
def test_lists_agree_with_records_after_every_command(floor, client):
    """Whatever happens to jobs, batches and pipelines, no command leaves a job without
    a place, or in one where its record does not say: whoever sent it may die then.
    """
    found: list[object] = []
    here = threading.local()

    def meet(connection: Any, go: Callable[[], Any]) -> Any:
        here.is_checking = True
        found.append(disagreements(client))
        here.is_checking = False
        return go()

    # Before every round trip of any thread.
    with met(meet, lambda: not getattr(here, "is_checking", False)):
        live(floor)
    found.append(disagreements(client))
    assert len(found) > 100
    assert [each for each in found if each] == []


def test_run_whose_record_was_lost_leaves_its_old_places(floor, client):
    """A server that comes back without a record may still list the job."""
    sent = floor.post("a", job_owner="alice")
    client.delete(f"jobstate:{sent.message_id}")
    assert disagreements(client)
    floor.work()
    assert floor.load(sent.message_id).is_success
    assert disagreements(client) == set()


@pytest.mark.promise("full-store-takes-each-change-whole")
def test_full_server_takes_each_change_whole_or_not_at_all(make_floor, floor, client):
    """Whatever it refuses, records and lists agree. All goes on when it has room."""
    failed, waits, ends = (floor.post(name) for name in ("fails", "w", "e"))
    batch = floor.send_batch("a", "fails")
    floor.work()
    # Here no worker runs, which could take a message with it as it stops.
    waiting, held = floor.post("w", job_owner="alice"), make_floor().begin()

    def send() -> None:
        floor.post("a", job_owner="alice")
        floor.press()
        floor.send_batch("a", "b")

    changes: list[Callable[[], object]] = [
        send,
        lambda: floor.load(waiting.message_id).cancel(),
        lambda: rerun(floor.store, floor.broker, failed.message_id),
        lambda: rerun_all(floor.store, floor.broker, batch=batch.uuid),
        lambda: floor.store.delete(ends.message_id),
        lambda: floor.broker.enqueue(waits),
        lambda: held.end(lambda job_state: job_state.set_message("last words")),
    ]
    for change in changes:
        client.config_set("maxmemory", 1)
        with contextlib.suppress(redis.RedisError, StoreUnavailable):
            change()
        assert disagreements(client) == set()
        client.config_set("maxmemory", 0)
    floor.work()
    assert disagreements(client) == set()
    wait_for(lambda: held.reads("success"))
    assert held.load().message == "last words"


def test_two_patterns_cover_all_keys_of_a_namespace(make_floor, client, named):
    """A user of the server who may touch those alone has all that jobs need."""
    keys = ["jobstate:*", "{jobstate:*"]
    client.acl_setuser("worker", enabled=True, reset_keys=True, keys=keys)
    floor = make_floor(JobStore(named))
    floor.store = floor.own
    live(floor)
    assert disagreements(client) == set()


@pytest.mark.system
def test_job_comes_through_whatever_is_refused_of_its_lists(make_floor, client, named):
    """If a user of the server may not run one of the commands that write lists, jobs
    are sent, run, report and end all the same; so do the members of a batch.
    """
    floor = make_floor(JobStore(named))
    floor.scripts["a"] = lambda job_state: job_state.set_message("one")
    for command in "zadd", "zrem", "zscore", "zcount", "zremrangebyrank":
        client.acl_setuser("worker", enabled=True, commands=[f"-{command}"])
        sent = [floor.post(name, job_owner="alice") for name in ("a", "fails")]
        batch = floor.send_batch("a", "fails")
        floor.work()
        assert floor.statuses(*sent) == ["success", "error"]
        assert floor.load(sent[0].message_id).message == "one"
        assert floor.counts(batch) == {"success": 1, "error": 1}
        client.acl_setuser("worker", enabled=True, commands=[f"+{command}"])
