"""An actor that fails while it is told to, and an operator who may be killed:

    python -m tests.rerunapp URL ACT UUID NUMBER MOMENT

acts on a job, and is killed at its NUMBERth round trip to the server, "before" it sends
or "after". The handshakes of new connections do not count.
"""

from __future__ import annotations

import os
import re
import signal
import sys
from typing import Any

import dramatiq
import redis
from dramatiq.brokers.redis import RedisBroker

from pyramid_jobstate import (
    JobState,
    JobStateMiddleware,
    JobStore,
    current_job_state,
    rerun,
    rerun_all,
)

#: While this key exists, jobs fail.
FAILS = "test:fails"

#: The commands of a handshake.
HANDSHAKE = re.compile(rb"\*\d+\r\n\$\d+\r\n(AUTH|CLIENT|HELLO|SELECT)\r\n")

#: A list of the uuids of all runs.
RUNS = "test:runs"


class Errand(JobState):
    """A kind of job that may be run again."""


def make(url: str) -> tuple[RedisBroker, Any]:
    """Return a broker, and its actor of jobs that fail while they are told to."""
    client = redis.Redis.from_url(url)
    make_broker: Any = RedisBroker
    broker: RedisBroker = make_broker(url=url)
    broker.add_middleware(JobStateMiddleware(interval=0.01))

    @dramatiq.actor(broker=broker, job_state=Errand, max_retries=0)
    def errand(number: int, before: int = 0) -> int:
        job_state = current_job_state()
        assert job_state is not None
        client.rpush(RUNS, job_state.uuid)
        job_state.set_progress_metric("number", number)
        if client.exists(FAILS):
            raise ValueError(f"Number {number} failed")
        return number + before

    return broker, errand


def kill_at(number: int, moment: str) -> None:
    """Have this process killed at a round trip of its main thread."""
    count = 0
    send = redis.Connection.send_packed_command

    def send_or_die(self: Any, command: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal count
        packed = command if isinstance(command, bytes) else b"".join(command)
        if HANDSHAKE.match(packed):
            return send(self, command, *args, **kwargs)
        count += 1
        if count == number and moment == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        sent = send(self, command, *args, **kwargs)
        if count == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return sent

    connection: Any = redis.Connection
    connection.send_packed_command = send_or_die


def act(url: str, name: str, uuid: str) -> None:
    """Act as an operator."""
    broker, _ = make(url)
    store = JobStore(url)
    match name:
        case "rerun":
            rerun(store, broker, uuid)
        case "rerun_all":
            rerun_all(store, broker, kind="Errand")
        case "delete":
            store.delete(uuid)
        case "clear":
            store.clear(kind="Errand")
        case "cancel_all":
            store.cancel_all(kind="Errand")


if __name__ == "__main__":
    url, name, uuid, number, moment = sys.argv[1:]
    kill_at(int(number), moment)
    act(url, name, uuid)
