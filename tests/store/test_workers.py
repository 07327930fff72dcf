"""What a store knows of workers, whatever else is written beside it."""

import socket
import time
from typing import Any

from pyramid_jobstate import JobStateMiddleware, JobStore
from tests.faulty import faulty
from tests.jobs import make_broker, working
from tests.running import running
from tests.support import wait_for
from tests.worker.floors import idle_actor


def test_foreign_name_stops_no_list(redis_url, store, client):
    """Though another program says beside it what a worker does."""
    broker = make_broker(redis_url, JobStateMiddleware(heartbeat=3600))
    idle_actor(broker)
    with working(broker):
        wait_for(store.workers)
        (own,) = store.workers()
        says: Any = client.hgetall(f"{{jobstate:workers}}:{own.id}")
        for token in "a:b:c", f"a:{'9' * 5000}:c":
            client.zadd("jobstate:workers", {token: own.seen_at.timestamp() * 1e6})
            client.hset(f"{{jobstate:workers}}:{token}", mapping=says)
        assert store.workers() == [own]


def test_job_answers_once(redis_url, store):
    """What says where it is stays, although the worker repeats its answer, of which the
    reply may have been lost.
    """
    answers: list[bytes] = []

    def judge(request: bytes) -> str:
        if b"in live\n" in request:
            answers.append(request)
        return "pass"

    with faulty(redis_url) as proxy:
        proxy.judge = judge
        with running(redis_url, store=JobStore(proxy.url)) as runs:
            uuid = runs.start().uuid
            assert store.ask_where(uuid)
            wait_for(lambda: (where := store.where(uuid)) and where.taken_at)
            found = store.where(uuid)
            time.sleep(0.005)
            place: Any = store.client.get_connection_kwargs()
            with socket.create_connection((place["host"], place["port"])) as again:
                again.sendall(answers[-1])
                assert again.recv(100) == b":0\r\n"
            assert store.where(uuid) == found
