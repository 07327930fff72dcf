"""Runs a command for operators: opens the store, and turns what happens into an exit
code and one line on stderr.
"""

from __future__ import annotations

import contextlib
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import FrameType
from typing import NamedTuple, NoReturn

from redis import exceptions as errors
from redis.exceptions import RedisError

from ..job.state import JobState
from ..store.arguments import namespace_fault
from ..store.connection import HOPELESS, ConnectionsInUse, name_of
from ..store.jobstore import JobStore
from ..store.lists import AmbiguousKind
from ..store.looks import Looks, Unended
from .arguments import EXIT_CODES, Operation, Parser
from .jobs import find_all
from .terminal import (
    BROKEN_PIPE,
    COULD_NOT,
    HUNG_UP,
    INTERRUPTED,
    TERMINATED,
    CouldNot,
    Output,
    Refused,
    log_to_stderr,
    prepare_streams,
    say,
    span,
)


class Location(NamedTuple):
    """Where the command line says that the jobs are.

    Attributes:
      ini: The ini of the application, or "" with a URL.
      variables: The variables for the ini, as ``name=value``.
      url: The URL of the store, or None.
      namespace: The prefix of its keys, or None for the default.
    """

    ini: str
    variables: Sequence[str]
    url: str | None
    namespace: str | None


def open_store(place: Location) -> tuple[JobStore, object]:
    """Return the store of the command line, and the application that it belongs to,
    which must live as long, or None.

    Raises:
      Refused: The URL, the namespace or the ini is wrong.
      CouldNot: The application does not start or has no store, or the Cluster does not
        answer.
    """
    if place.url is None:
        # Only now are Pyramid and the application's classes imported.
        from .application import open_application

        return open_application(place.ini, place.variables)
    if place.namespace is not None:
        fault = namespace_fault(place.namespace)
        if fault is not None:
            raise Refused(f"--namespace {place.namespace!r} {fault}.")
    try:
        if place.namespace is None:
            return JobStore(place.url), None
        return JobStore(place.url, namespace=place.namespace), None
    except ValueError as e:
        raise Refused(f"--url: {e}") from None
    except RedisError as e:
        raise CouldNot(f"--url: {e}") from None


#: Seconds between two looks.
INTERVAL = 0.5


class Followed:
    """The jobs that a command follows until they have ended. While the store is away,
    it is asked again. An outage is said once, and so is its end.

    Parameters:
      store: The store.
      names: The jobs: see :func:`.find`.
      patience: How long the store may be away, or a job without a record.
      stalled: How long a job may be stalled, or None.
      timeout: How long to follow them, or None.

    Attributes:
      uuids: The jobs, once they are found.
      unended: What is known of those that have not ended.
    """

    def __init__(
        self,
        store: JobStore,
        names: Sequence[str],
        patience: float,
        stalled: float | None = None,
        timeout: float | None = None,
    ) -> None:
        self.uuids: Sequence[str] = ()
        self.unended = Unended((), min(patience, store.stalled_after), stalled)
        self._store = store
        self._names = names
        self._patience = patience
        self._looks = Looks(self._ask, timeout, INTERVAL)

    def __iter__(self) -> Iterator[Sequence[JobState | Exception]]:
        """Yield what is new at each look: see :meth:`.Unended.take`.

        Raises:
          CouldNot: A name does not mean one job, or the store was away for too long.
          TimeoutError: The jobs have not ended in time.
          redis.exceptions.RedisError: Asking again would not help.
        """
        is_away = False
        for answer in self._looks:
            news, error = self.unended.take(answer), self._looks.error
            if error is None:
                if is_away:
                    say("The store answers again.")
                yield news
                if not self.unended.jobs:
                    return
            else:
                reason = explained(self._store, error)
                if not is_away:
                    say(f"{reason}. Asking again for {span(self._patience)}.")
                away = time.monotonic() - self._looks.away_since
                if away >= self._patience:
                    raise CouldNot(f"{reason}, for {span(away)}.")
            is_away = error is not None

    def _ask(self) -> Sequence[JobState | None]:
        if not self.uuids:
            self.uuids = [job.uuid for job in find_all(self._store, self._names)]
            self.unended.jobs.update(dict.fromkeys(self.uuids))
        return self._store.load_many([*self.unended.jobs])


def answers_ping(store: JobStore) -> bool:
    """Return whether a server answers PING as Redis does, or at least with an error."""
    try:
        return bool(store.client.ping())
    except Exception as e:
        # Any other comes from redis-py, which did not expect the reply.
        return isinstance(e, errors.RedisError)


def explained(store: JobStore, error: errors.RedisError) -> str:
    """Return an error as a sentence without its full stop."""
    where = f"The store at {name_of(store.client)}"
    if isinstance(error, HOPELESS):
        return f"{where} rejects the user or the password, or wants one"
    # A Cluster's own client follows these, and gives up with another error.
    if isinstance(error, errors.AskError):
        return (
            f"{where} is a node of a Cluster: add +cluster to the scheme of its URL, "
            "as in redis+cluster://"
        )
    if isinstance(error, errors.ResponseError):
        return f"{where} refuses: {_text(error)}"
    if isinstance(error, ConnectionsInUse):
        return _text(error).removesuffix(".")
    if isinstance(error, errors.InvalidResponse):
        return f"{where} is not Redis: {_text(error)}"
    return f"{where} does not answer: {_text(error)}"


def _text(error: Exception) -> str:
    return str(error).rstrip(".") or type(error).__name__


#: The signals that end a command as Ctrl-C does, with their exit codes.
ENDING: Mapping[int, int] = {signal.SIGTERM: TERMINATED, signal.SIGHUP: HUNG_UP}


class Terminated(BaseException):
    """One of the signals above has come.

    Parameters:
      signum: The signal.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.code = ENDING[signum]


def operate(
    operation: Operation, place: Location, program: str, arguments: Sequence[str]
) -> int:
    """Run a command and return its exit code.

    Parameters:
      operation: The command.
      place: Where the jobs are.
      program: How the command was called, for its help.
      arguments: What follows the command.
    """
    prepare_streams()
    try:
        with handling(ENDING, _terminate):
            code = _run(operation, place, program, arguments)
            sys.stdout.flush()
            return code
    except CouldNot as e:
        say(str(e))
        return COULD_NOT
    except KeyboardInterrupt:
        return INTERRUPTED
    except Terminated as e:
        return e.code
    except BrokenPipeError:
        return BROKEN_PIPE
    except OSError as e:
        say(f"The output cannot be written: {e.strerror or e}.")
        return COULD_NOT


def _run(
    operation: Operation, place: Location, program: str, arguments: Sequence[str]
) -> int:
    parser = Parser(program, description=operation.description, epilog=EXIT_CODES)
    operation.add_to(parser)
    parser.set_defaults(has_application=place.url is None)
    parser.add_argument(
        "--json", action="store_true", help="write one JSON object a line"
    )
    # Options may stand between ids.
    args = parser.parse_intermixed_args(arguments)
    output = Output.choose(is_json=args.json, can_draw=operation.draws)
    log_to_stderr()
    store, _application = open_store(place)
    with _explained(store):
        return operation.run(store, args, output)


@contextlib.contextmanager
def _explained(store: JobStore) -> Iterator[None]:
    try:
        yield
    except RedisError as e:
        raise CouldNot(f"{explained(store, e)}.") from None
    except AmbiguousKind as e:
        raise Refused(str(e)) from None
    except (CouldNot, Refused, OSError):
        raise
    except Exception:
        # Nonsense for an answer may end in any exception.
        if answers_ping(store):
            raise
        where = f"The store at {name_of(store.client)}"
        raise CouldNot(f"{where} is not Redis: it does not answer PING.") from None


def _terminate(signum: int, frame: FrameType | None) -> NoReturn:
    """End the command as Ctrl-C does, so that it shows the cursor again."""
    raise Terminated(signum)


@contextlib.contextmanager
def handling(
    signums: Iterable[int], handler: Callable[[int, FrameType | None], object]
) -> Iterator[None]:
    """Handle signals for a while, except those that are ignored: SIGHUP under nohup,
    and SIGINT in the background of a script.
    """
    found = {signum: signal.getsignal(signum) for signum in signums}
    before = {signum: old for signum, old in found.items() if old != signal.SIG_IGN}
    for signum in before:
        signal.signal(signum, handler)
    try:
        yield
    finally:
        for signum, old in before.items():
            signal.signal(signum, old)
