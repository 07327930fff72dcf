"""Interrupt threads at random while a job of theirs reports.

``python -m tests.interrupts URL ROUNDS``

It runs in its own process without coverage, whose tracer does not survive such an
interrupt.
"""

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
    """A broker whose jobs report until they are interrupted, or once."""

    def __init__(self, url: str) -> None:
        self.store = JobStore(url)
        self.broker = StubBroker()
        self.broker.add_middleware(
            JobStateMiddleware(self.store, interval=0.02, heartbeat=0.05)
        )

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
        self.broker.emit_before("process_message", proxy)
        self.report(times)
        self.broker.emit_after("process_message", proxy)
        self.broker.emit_before("ack", proxy)
        return message


def main(url: str, rounds: int) -> None:
    dice = random.Random(1)
    sys.setswitchinterval(1e-5)
    for number in range(rounds):
        if number % 4 == 0:
            # As in a new process, the next job is the first one.
            site = Site(url)
        begun = threading.Event()
        thread = threading.Thread(target=run, args=(site, begun), daemon=True)
        thread.start()
        begun.wait()
        time.sleep(dice.random() * 0.001)
        deadline = time.monotonic() + 20
        while thread.is_alive() and time.monotonic() < deadline:
            # Repeated, because an interrupt may be lost: it may hit a thread that is
            # just starting, or a finalizer, which swallows it.
            raise_thread_exception(thread.ident or 0, Interrupt)
            thread.join(0.3)
        assert not thread.is_alive()
        if number % 4 == 3:
            check(site)


def run(site: Site, begun: threading.Event) -> None:
    try:
        begun.set()
        site.process(10**9)
    except Interrupt:
        pass


def check(site: Site) -> None:
    """Check that another job is recorded, and that none of the others beats."""
    message = site.process(3)
    assert load(site.broker, message).progress_metrics == {"number": 2}
    assert load(site.broker, message).status == "success"

    def are_silent() -> bool:
        pass_time(site.store, 16)
        time.sleep(0.15)
        return not site.store.list(status="working").items

    wait_for(are_silent)
    site.broker.emit_after("worker_shutdown", None)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
