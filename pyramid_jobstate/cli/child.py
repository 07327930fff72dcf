"""What runs in the parts of ``pjobs dev``: the web server or a Dramatiq worker; and
which files it has imported.

The part reports them, and its parent looks at them. A file that changed between the
start of the part and its report counts as changed, until the part is ready: what was
imported may be older.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from types import ModuleType

import dramatiq
from pyramid.exceptions import ConfigurationError, ConfigurationExecutionError
from pyramid.scripts.common import get_config_loader

from . import work
from .application import misconfigured
from .ini import Ini
from .terminal import Refused

#: Seconds between two looks at the modules that have been imported.
INTERVAL = 0.5

#: The errors that tell of a mistake in the files.
MISTAKES = (
    *(SyntaxError, ImportError, NameError, AttributeError, TypeError),
    *(ConfigurationError, Refused),
)

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
        text = str(e) if isinstance(e, Refused) else misconfigured(e, ini)
        if text is not None:
            print(f"pjobs: {text}", file=sys.stderr)
            return work.IMPORT
        raise
    return 0


class Reporter(threading.Thread):
    """In the part: reports the files of imported modules through a pipe."""

    def __init__(self, descriptor: int) -> None:
        super().__init__(daemon=True)
        self._descriptor = descriptor
        self._reported: set[str] = set()
        self._lock = threading.Lock()

    def run(self) -> None:
        while True:
            self.report()
            time.sleep(INTERVAL)

    def report(self, others: Iterable[str] = (), **facts: bool) -> None:
        """Report what is new among the imported files and some others.

        Parameters:
          facts: Attributes of PartReports that are known from now on.
        """
        with self._lock, contextlib.suppress(BrokenPipeError):
            new = {*_imported(), *others} - self._reported
            self._reported |= new
            if new or facts:
                line = json.dumps({"files": sorted(new), **facts}) + "\n"
                content = line.encode()
                while content:
                    content = content[os.write(self._descriptor, content) :]


def files_of(error: BaseException | None) -> Iterator[str]:
    """Yield the files that an error at import is about, which may not exist yet, and
    those in its traceback and in those of its causes.
    """
    while error is not None:
        traceback = error.__traceback__
        while traceback is not None:
            yield os.path.abspath(traceback.tb_frame.f_code.co_filename)
            traceback = traceback.tb_next
        if isinstance(error, SyntaxError) and error.filename:
            yield os.path.abspath(error.filename)
        if isinstance(error, ImportError):
            yield from _candidates(error)
        error = error.__cause__ or error.__context__


def needs_change(error: BaseException) -> bool:
    """Return whether an error at the start tells of a mistake in the files, rather than
    of a database or a service that may be ready later.
    """
    wrappers = (SystemExit, ConfigurationExecutionError)
    while isinstance(error, wrappers) and error.__context__ is not None:
        error = error.__context__
    return isinstance(error, MISTAKES)


def _candidates(error: ImportError) -> Iterator[str]:
    """Yield the paths at which a module that could not be imported may appear."""
    if error.path:
        yield os.path.abspath(error.path)
    parent, _, name = (error.name or "").rpartition(".")
    places: Sequence[str] = sys.path
    if parent:
        places = list(getattr(sys.modules.get(parent), "__path__", ()))
    for place in places:
        yield os.path.abspath(os.path.join(place, f"{name}.py"))
        yield os.path.abspath(os.path.join(place, name, "__init__.py"))


def _imported() -> Iterator[str]:
    for module in list(sys.modules.values()):
        # Not by getattr, which would run the code of lazy modules.
        if isinstance(module, ModuleType):
            path = vars(module).get("__file__")
            if isinstance(path, str):
                yield os.path.abspath(path)


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
    options = work.arguments_of(ini.section(work.SECTION), ini.path)
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
