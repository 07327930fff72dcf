"""What runs in the parts of ``pjobs dev``: the web server, or a Dramatiq worker."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time

import dramatiq
from pyramid.scripts.common import get_config_loader

from . import flags, work
from .faults import Refused
from .ini import Ini
from .reloading import Reporter, files_of, needs_change

#: Seconds that are left to a part when its parent was killed.
GRACE = 5.0

#: Milliseconds that running jobs have to end before the worker restarts or stops.
SHUTDOWN_TIMEOUT = 15_000


def main() -> int:
    """Run the part that the command line names: ``web`` or ``worker``, after the
    descriptors of the pipe from the parent and of the pipe for reports.
    """
    lifeline, reports = map(int, sys.argv[1:3])
    threading.Thread(target=follow_parent, args=[lifeline], daemon=True).start()
    # An older byte code file could be taken for that of a source just saved.
    sys.dont_write_bytecode = True
    reporter = Reporter(reports)
    reporter.start()
    run = {"web": run_web, "worker": run_worker}[sys.argv[3]]
    try:
        ini = Ini.from_environ()
        ini.check()
        run(ini, reporter)
    except BaseException as e:
        reporter.report(files_of(e), needs_change=needs_change(e))
        if isinstance(e, Refused):
            print(f"pjobs: {e}", file=sys.stderr)
            return work.IMPORT
        raise
    return 0


def follow_parent(lifeline: int) -> None:
    """Wait for the parent's end, then stop this process and its children."""
    os.read(lifeline, 1)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE)
    os.killpg(0, signal.SIGKILL)


def run_web(ini: Ini, reporter: Reporter) -> None:
    """Run the web server until SIGTERM, as pserve does."""
    loader = get_config_loader(ini.uri)
    variables = {"__script__": "pserve", **ini.variables}
    loader.setup_logging(variables)
    serve = loader.get_wsgi_server("main", variables)
    app = loader.get_wsgi_app(None, variables)
    reporter.report(is_ready=True)
    serve(app)


def run_worker(ini: Ini, reporter: Reporter) -> None:
    """Run a worker in this process until SIGTERM."""
    options = flags.arguments_of(ini.section(flags.SECTION), ini.path)
    work.boot()
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


if __name__ == "__main__":
    sys.exit(main())
