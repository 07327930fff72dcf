"""Interrupt threads at random inside the recorder.

``python -m tests.interrupts URL ROUNDS``

It runs in its own process without coverage, whose tracer does not survive such an
interrupt.
"""

import ctypes
import random
import sys
import threading
import time

from dramatiq.middleware import Interrupt

from pyramid_jobstate import JobStore
from pyramid_jobstate.job.changes import End
from pyramid_jobstate.job.run import Run
from pyramid_jobstate.worker.recorder import Recorder
from pyramid_jobstate.worker.unsaved import Unsaved
from tests.jobs import new_id
from tests.support import INFO, wait_for


def interrupt(thread: threading.Thread) -> None:
    """Raise an exception in a thread as Dramatiq does."""
    ctypes.pythonapi.PyThreadState_SetAsyncExc(
        ctypes.c_ulong(thread.ident or 0), ctypes.py_object(Interrupt)
    )


def main(url: str, rounds: int) -> None:
    store = JobStore(url)
    dice = random.Random(1)
    sys.setswitchinterval(1e-5)
    for number in range(rounds):
        if number % 4 == 0:
            # As in a new process, the next job starts the recorder's thread.
            recorder = Recorder(store, interval=0.02)
        begun = threading.Event()
        thread = threading.Thread(target=run, args=(recorder, begun), daemon=True)
        thread.start()
        begun.wait()
        time.sleep(dice.random() * 0.001)
        deadline = time.monotonic() + 20
        while thread.is_alive() and time.monotonic() < deadline:
            # Repeated, because an interrupt may be lost: it may hit the recorder thread
            # that is just starting, or a finalizer, which swallows it.
            interrupt(thread)
            thread.join(0.3)
        assert not thread.is_alive()
        if number % 4 == 3:
            check(recorder)


def run(recorder: Recorder, begun: threading.Event) -> None:
    try:
        begun.set()
        unsaved = Unsaved(new_id(), Run(), INFO)
        recorder.begin(unsaved)
        while True:
            unsaved.run.flush(0.01)
    except Interrupt:
        pass


def check(recorder: Recorder) -> None:
    """Check that the recorder records another job and has dropped the others."""
    unsaved = Unsaved(new_id(), Run(), INFO)
    recorder.begin(unsaved)
    unsaved.run.set_message("on we go")
    assert unsaved.run.flush(10)
    assert recorder.end(unsaved, End("success"))
    wait_for(lambda: not recorder._backlog._runs)
    recorder.stop()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
