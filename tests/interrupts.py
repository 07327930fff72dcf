"""Interrupt threads at random while a job of theirs reports, in a process of its own
without coverage, whose tracer does not survive that:

    python -m tests.interrupts URL ROUNDS
"""

import contextlib
import random
import sys
import threading
import time
from typing import Any

from dramatiq.broker import MessageProxy
from dramatiq.brokers.stub import StubBroker
from dramatiq.middleware import Interrupt
from dramatiq.middleware.threading import raise_thread_exception

from pyramid_jobstate import JobState, JobStateMiddleware, JobStore
from pyramid_jobstate.testing import pass_time
from tests.jobs import job_actor, load
from tests.support import wait_for


class Site:
    """A broker whose jobs report until they are interrupted, or some times."""

    def __init__(self, url: str) -> None:
        self.store = JobStore(url)
        self.broker = StubBroker()
        ours = JobStateMiddleware(self.store, interval=0.02, heartbeat=0.05)
        self.broker.add_middleware(ours)

        @job_actor(broker=self.broker)
        def report(times: int, *, job_state: JobState) -> None:
            for number in range(times):
                job_state.set_progress_metric("number", number)
                job_state.flush(0.01)

        self.report: Any = report

    def process(self, times: int) -> Any:
        """Process a message as a worker does, and return it."""
        message = self.report.message(times)
        proxy = MessageProxy(message)
        with contextlib.suppress(Interrupt):
            self.broker.emit_before("process_message", proxy)
            self.report(times)
            self.broker.emit_after("process_message", proxy)
            self.broker.emit_before("ack", proxy)
        return message

    def interrupt(self, seconds: float) -> None:
        """Interrupt a thread that processes a message, after some time."""
        thread = threading.Thread(target=self.process, args=(10**9,), daemon=True)
        thread.start()
        time.sleep(seconds)

        def is_over() -> bool:
            # Repeated, because an interrupt may be lost: it may hit a thread that is
            # just starting, or a finalizer, which swallows it.
            raise_thread_exception(thread.ident or 0, Interrupt)
            thread.join(0.3)
            return not thread.is_alive()

        wait_for(is_over)

    def check(self) -> None:
        """Check that another job is recorded, and that none of the others beats."""
        state = load(self.broker, self.process(3))
        assert (state.status, state.progress_metrics) == ("success", {"number": 2})

        def are_silent() -> bool:
            pass_time(self.store, 16)
            time.sleep(0.15)
            return not self.store.list(status="working").items

        wait_for(are_silent)
        self.broker.emit_after("worker_shutdown", None)


if __name__ == "__main__":
    dice = random.Random(1)
    sys.setswitchinterval(1e-5)
    for _ in range(int(sys.argv[2]) // 4):
        # As in a new process, the next job is the first one.
        site = Site(sys.argv[1])
        for _ in range(4):
            site.interrupt(dice.random() * 0.001)
        site.check()
