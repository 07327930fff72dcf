"""``pjobs INI dev``: web server, worker and Redis in one terminal.

The parts end together: when one of them ends, on Ctrl-C, and also if this process is
killed. A changed file restarts the web server and the worker. ``pserve --reload`` would
miss changes in the first second or two after a restart. The worker starts after the web
server: both may create what an empty database lacks.
"""

from __future__ import annotations

import argparse
import contextlib
import fnmatch
import glob
import itertools
import json
import math
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import FrameType
from typing import IO, Any, Self

from pyramid.path import AssetResolver
from pyramid.settings import aslist
from redis.connection import parse_url

from ..embedded import EmbeddedServer
from .ini import Ini
from .operate import ENDING, handling
from .terminal import Refused
from .work import SECTION, arguments_of

#: The module that runs inside each part.
CHILD = "pyramid_jobstate.cli.child"

#: Seconds between two looks at the parts and the files.
INTERVAL = 0.5

#: Seconds that a part has to stop. Above SHUTDOWN_TIMEOUT in child.py, so that the
#: worker can put back the messages of jobs that have not begun.
PATIENCE = 20.0

#: Seconds that the worker waits for the web server, which may wait for the worker.
TURN = 15.0

#: The exit codes of a part that cannot start, but may later.
FIXABLE = (1, 2)

#: Seconds until a part that cannot start is tried again: at first, and at most.
FIRST_PAUSE, LAST_PAUSE = 1, 30

LOCAL = ("localhost", "127.0.0.1", "::1")

#: The settings that may hold the URL of a Redis server.
SETTINGS = ("jobstate.broker", "jobstate.redis_url")

DESCRIPTION = """\
Run the web server, as `pserve --reload` does, and a worker, which both restart when a
file changes. If the ini's Redis URL is on this host and nothing answers there, run an
empty server there, too. All of them end together. The section [pjobs] may set `threads`
and `queues` of the worker, [pserve] further files to watch or to ignore.
"""

#: The last modification, the size and the number of a file.
Signature = tuple[int, int, int]

#: Differs from the signature of any file.
STALE = (-1, -1, -1)


def main(ini: Ini, program: str, arguments: Sequence[str]) -> int:
    """Run the parts until one ends or a signal comes, and return the exit code.

    Raises:
      Refused: The ini is wrong, or a server cannot be started.
    """
    argparse.ArgumentParser(
        prog=program, usage=f"{program} [-h]", description=DESCRIPTION
    ).parse_args(arguments)
    arguments_of(ini.section(SECTION), ini.path)
    address = web_address(ini)
    signals = Signals()
    # This command and its parts end on these, also in the background of a script, where
    # a shell has SIGINT ignored.
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, signal.SIG_DFL)
    with contextlib.ExitStack() as running:
        running.enter_context(handling((signal.SIGINT, *ENDING), signals.note))
        servers = []
        for url, server in wanted_servers(ini.app_settings()):
            try:
                running.enter_context(server)
            except RuntimeError as e:
                raise Refused(f"No server could be started for {url}: {e}") from None
            servers.append(server)
            say("pjobs", f"Nothing answered at {url}: started an empty server.")
            say("pjobs", "Its data are gone when this command ends.")
        at = f"The web server starts at {address}. Ctrl-C stops everything."
        web = Reloaded("web", at, ini, signals)
        worker = Reloaded("worker", "The worker is ready.", ini, signals, after=web)
        parts = [web, worker]
        for part in parts:
            running.enter_context(part)
        for part in parts:
            # Called before the stack waits for either of them.
            running.callback(part.terminate)
        while not signals.wait(INTERVAL):
            for part in parts:
                code = part.poll()
                if code is not None:
                    what = f"The {part.name} part has ended (exit code {code})"
                    return _over(what, max(code, 1))
            if not all(server.is_running for server in servers):
                return _over("The Redis server has ended", 1)
        say("pjobs", "Stopping. A second Ctrl-C does not wait for running jobs.")
    return 0


class PartProcess:
    """A process with its own session, whose output appears with a prefix.

    It does not outlive this process, however this one ends: it reads from a pipe whose
    other end only this process holds.

    Parameters:
      name: The name of the part, for its module and as the prefix of its output.
      reports: The descriptor for its reports.
      environ: Its environment.
    """

    def __init__(self, name: str, reports: int, environ: Mapping[str, str]) -> None:
        reader, self._lifeline = os.pipe()
        self._process = subprocess.Popen(
            [sys.executable, "-m", CHILD, str(reader), str(reports), name],
            env={**environ, "PYTHONUNBUFFERED": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=[reader, reports],
            start_new_session=True,
        )
        os.close(reader)
        assert self._process.stdout is not None
        copy = (name, self._process.stdout)
        self._output = threading.Thread(target=_copy, args=copy, daemon=True)
        self._output.start()

    def poll(self) -> int | None:
        """Return the exit code, negative for a signal, or None if it still runs."""
        return self._process.poll()

    def terminate(self) -> None:
        """Ask it to stop."""
        self._process.terminate()

    def end(self, patience: float, hurry: Callable[[], bool] = lambda: False) -> None:
        """Wait until it has stopped, but not for longer than `patience` seconds or
        once `hurry` returns true. Then kill what is left of it and its children.
        """
        deadline = time.monotonic() + patience
        while self.poll() is None and time.monotonic() < deadline and not hurry():
            time.sleep(0.05)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        os.close(self._lifeline)
        # A process that left the session may hold the pipe for as long as it likes.
        self._output.join(1)


def say(name: str, text: str) -> None:
    """Print a line with the name of the part that it is from."""
    # The terminal may have been closed. sys.stderr would then keep the text and fail
    # again at the end of the process.
    with contextlib.suppress(OSError):
        os.write(2, f"{name:<6} | {text}\n".encode())


def _copy(name: str, stream: IO[bytes]) -> None:
    with stream:
        for line in stream:
            say(name, line.decode(errors="replace").rstrip("\r\n"))


def web_address(ini: Ini) -> str:
    """Return the address that the section of the web server names.

    Raises:
      Refused: The ini lacks that section.
    """
    if not ini.has_section("server:main"):
        raise Refused(f"{ini.path} has no section [server:main].")
    settings = ini.section("server:main")
    # Waitress's names and defaults, which other servers share.
    address = f"{settings.get('host', '*')}:{settings.get('port', '8080')}"
    host, _, port = (aslist(settings.get("listen", "")) or [address])[0].rpartition(":")
    return f"http://{'localhost' if host in ('*', '0.0.0.0') else host}:{port}"


def watched_files(ini: Ini) -> tuple[list[str], list[str]]:
    """Return the files to watch besides imported modules, and the patterns of files to
    ignore, as pserve reads them from its section.
    """
    settings = ini.section("pserve")
    resolver = AssetResolver()
    paths = [ini.path]
    for name in aslist(settings.get("watch_files", ""), flatten=False):
        path = resolver.resolve(name).abspath() if ":" in name else name
        path = os.path.join(os.path.dirname(ini.path), path)
        paths += glob.glob(path, recursive=True) or [path]
    return paths, aslist(settings.get("ignore_files", ""), flatten=False)


def wanted_servers(
    applications: Sequence[Mapping[str, str]],
) -> Iterator[tuple[str, EmbeddedServer]]:
    """Yield servers to start, each with the URL at which nothing answers.

    Parameters:
      applications: The settings of each application.
    """
    if not any(settings.keys() & SETTINGS for settings in applications):
        say("pjobs", f"The ini sets neither {' nor '.join(SETTINGS)}.")
    # redis-py does not type it.
    parse: Callable[[str], dict[str, Any]] = parse_url
    found: dict[tuple[str, int], tuple[str, int]] = {}
    for settings, setting in itertools.product(applications, SETTINGS):
        url = settings.get(setting, "")
        if not url.startswith("redis://"):
            continue
        try:
            options = parse(url)
        except ValueError:
            continue  # The application says what is wrong with it.
        host = options.get("host", "localhost").lower()
        if host not in LOCAL or options.keys() & {"username", "password"}:
            continue
        address = ("::1" if host == "::1" else "127.0.0.1", options.get("port", 6379))
        db = max(options.get("db", 0), found.get(address, ("", 0))[1])
        if not answers(host, address[1]):
            found[address] = (url, db)
    for (host, port), (url, db) in found.items():
        yield url, EmbeddedServer(host=host, port=port, databases=max(16, db + 1))


def answers(host: str, port: int) -> bool:
    """Return whether a server listens at an address."""
    try:
        socket.create_connection((host, port), timeout=1).close()
    except OSError:
        return False
    return True


class Signals:
    """The signals that stop the command. A second one ends the wait for jobs."""

    def __init__(self) -> None:
        self._count = 0
        self._came = threading.Event()

    def note(self, signum: int, frame: FrameType | None) -> None:
        self._count += 1
        self._came.set()

    def wait(self, timeout: float) -> bool:
        """Wait for the first signal, and return whether it has come."""
        return self._came.wait(timeout)

    def hurry(self) -> bool:
        """Return whether there was a second one."""
        return self._count > 1


class FileWatch:
    """The files that a part depends on.

    Parameters:
      paths: Files to watch from the start.
      ignored: Patterns of files not to watch.
    """

    def __init__(self, paths: Iterable[str], ignored: Iterable[str] = ()) -> None:
        patterns = map(fnmatch.translate, ignored)
        # "(?!)" matches nothing, in case the list is empty.
        self._ignored = re.compile("|".join([*patterns, "(?!)"]))
        self._seen: dict[str, Signature | None] = {}
        self._started = time.time_ns()
        self.add(paths)

    def begin(self) -> None:
        """Note how the files are, just before the part starts and imports them."""
        self._started = time.time_ns()
        self._seen = {path: _signature(path) for path in self._seen}

    def add(self, paths: Iterable[str], is_late: bool = False) -> None:
        """Watch further files, which the part has imported, or has not found.

        Parameters:
          is_late: Whether it was ready before. It may then have written them itself.
        """
        for path in paths:
            if path not in self._seen and not self._ignored.match(path):
                self._seen[path] = _signature(path)
                if not is_late and self._changed_since_start(path):
                    self._seen[path] = STALE

    def changed(self) -> str | None:
        """Return the path of a file that has changed or appeared, or None.

        A missing file counts as unchanged: most editors are about to put it back.
        """
        for path, seen in self._seen.items():
            signature = _signature(path)
            if signature is not None and signature != seen:
                return path
        return None

    def _changed_since_start(self, path: str) -> bool:
        # A file that was moved here keeps its own time of modification. A hard link to
        # it, made or removed elsewhere, changes its ctime, but not its folder.
        with contextlib.suppress(OSError):
            file, folder = os.stat(path), os.stat(os.path.dirname(path))
            modified = max(file.st_mtime_ns, folder.st_mtime_ns)
            return min(file.st_ctime_ns, modified) > self._started
        return False


class PartReports:
    """In the parent: what a part has reported.

    Attributes:
      is_ready: Whether the part has started.
      needs_change: Whether it cannot start before a file changes.
    """

    def __init__(self) -> None:
        self._reader, self.writer = os.pipe()
        os.set_blocking(self._reader, False)
        self._rest = b""
        self.is_ready = self.needs_change = False

    def started(self) -> None:
        """Leave the writing end to the part."""
        os.close(self.writer)

    def files(self) -> Iterator[str]:
        """Yield the files reported since the last call: first those of the start, then
        `is_ready` becomes true.
        """
        with contextlib.suppress(BlockingIOError):
            while chunk := os.read(self._reader, 65536):
                *lines, self._rest = (self._rest + chunk).split(b"\n")
                for line in map(json.loads, lines):
                    yield from line["files"]
                    self.is_ready = line.get("is_ready", self.is_ready)
                    self.needs_change = line.get("needs_change", self.needs_change)

    def close(self) -> None:
        os.close(self._reader)


def _signature(path: str) -> Signature | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


class Reloaded:
    """A part that restarts when a file that it has imported changes.

    Parameters:
      name: The part: "web" or "worker".
      ready: What is said when it has started.
      after: A part that starts before this one.
    """

    def __init__(
        self,
        name: str,
        ready: str,
        ini: Ini,
        signals: Signals,
        after: Reloaded | None = None,
    ) -> None:
        self.name = name
        self._ready = ready
        self._ini = ini
        self._signals = signals
        self._after = after
        self._watch = FileWatch(*watched_files(ini))
        self._part: PartProcess | None = None
        #: When it is to start or, if it still runs, to be killed for its restart.
        self._due = time.monotonic()
        self._pause = FIRST_PAUSE
        self._is_logged = False

    def __enter__(self) -> Self:
        self._start_in_turn()
        return self

    def __exit__(self, *exception: object) -> None:
        self._end(PATIENCE)

    def terminate(self) -> None:
        """Ask the part to stop, a worker after its running jobs."""
        if self._part is not None:
            self._part.terminate()

    def is_starting(self) -> bool:
        """Return whether it is about to be ready, or to fail."""
        runs = self._part is not None
        return runs and (self._due < math.inf or not self._reports.is_ready)

    def poll(self) -> int | None:
        """Start the part if it is due, and restart it if a file has changed, once its
        running jobs have ended. Return its exit code if it has ended for good.
        """
        if self._part is not None:
            code = self._part.poll()
            was_ready = self._reports.is_ready
            for file in self._reports.files():
                self._watch.add([file], is_late=self._reports.is_ready)
            if self._due < math.inf:
                if code is None and time.monotonic() < self._due:
                    return None
                self._end(0)
                self._due = time.monotonic()
            elif code is not None:
                self._end(0)
                if self._reports.is_ready or code not in FIXABLE:
                    return code
                self._try_again()
            # A web server that cannot listen ends right after its report.
            elif was_ready and not self._is_logged:
                self._is_logged = True
                say("pjobs", self._ready)
        path = self._watch.changed()
        if path is not None:
            say("pjobs", f"{path} has changed: the {self.name} part restarts.")
            self._pause = FIRST_PAUSE
            self._due = time.monotonic()
            if self._part is not None:
                self._part.terminate()
                self._due += PATIENCE
                return None
        elif self._part is not None or time.monotonic() < self._due:
            return None
        self._start_in_turn()
        return None

    def _try_again(self) -> None:
        """Plan the next start of a part that could not start."""
        if self._reports.needs_change:
            say("pjobs", f"A changed file starts the {self.name} part again.")
            return
        when = f"in {self._pause} s, or when a file changes"
        say("pjobs", f"The {self.name} part starts again {when}.")
        self._due = time.monotonic() + self._pause
        self._pause = min(2 * self._pause, LAST_PAUSE)

    def _start_in_turn(self) -> None:
        if self._after is not None and self._after.is_starting():
            if time.monotonic() < self._due + TURN:
                return
            first = f"The {self._after.name} part is not ready yet"
            say("pjobs", f"{first}: the {self.name} part starts now.")
        self._due = math.inf
        self._is_logged = False
        self._reports = PartReports()
        self._watch.begin()
        self._part = PartProcess(self.name, self._reports.writer, self._ini.environ())
        self._reports.started()

    def _end(self, patience: float) -> None:
        if self._part is not None:
            self._part.end(patience, self._signals.hurry)
            self._part = None
            self._reports.close()


def _over(what: str, code: int) -> int:
    say("pjobs", f"{what}, and with it everything else.")
    return code
