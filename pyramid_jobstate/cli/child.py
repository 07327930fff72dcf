"""What runs in the parts of ``pjobs dev``: ``pserve``, or a Dramatiq worker."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time

import dramatiq
from pyramid.scripts import pserve

from . import flags, work
from .ini import Ini
from .watch import Reporter, files_of

#: Seconds that are left to a part when its parent was killed.
GRACE = 5.0

#: Milliseconds that running jobs have to end before the worker restarts or stops.
SHUTDOWN_TIMEOUT = 15_000


def main() -> int:
    """Run the part that the command line names: ``LIFELINE web`` or ``LIFELINE worker
    PIPE``.
    """
    lifeline, part, *others = sys.argv[1:]
    watcher = threading.Thread(target=follow_parent, args=[int(lifeline)], daemon=True)
    watcher.start()
    ini = Ini.from_environ()
    if part == "web":
        sys.argv = ["pserve", "--reload", ini.uri, *ini.assignments()]
        code: int = pserve.main(sys.argv)
        return code
    return run_worker(ini, Reporter(int(others[0])))


def follow_parent(lifeline: int) -> None:
    """Wait for the parent's end, then stop this process and its children."""
    os.read(lifeline, 1)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE)
    os.killpg(0, signal.SIGKILL)


def run_worker(ini: Ini, reporter: Reporter) -> int:
    """Run a worker in this process until SIGTERM, and report what it imports."""
    # An older byte code file could be taken for that of a source just saved.
    sys.dont_write_bytecode = True
    reporter.start()
    options = flags.arguments_of(ini.section(flags.SECTION), ini.path)
    try:
        work.boot()
    except BaseException as e:
        reporter.report(files_of(e))
        raise
    broker = dramatiq.get_broker()
    broker.emit_after("process_boot")
    over = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: over.set())
    worker = dramatiq.Worker(
        broker,
        queues=set(options.get("queues", [])[1:]),
        worker_threads=int(options.get("threads", ["", "8"])[1]),
    )
    worker.start()
    reporter.report(is_ready=True)
    over.wait()
    worker.stop(timeout=SHUTDOWN_TIMEOUT)
    broker.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
