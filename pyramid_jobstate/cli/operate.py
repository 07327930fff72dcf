"""Runs a command for operators: opens the store, and turns what happens into an exit
code and one line on stderr.
"""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import NoReturn

from redis.exceptions import RedisError

from ..store import AmbiguousKind, JobStore, name_of
from . import faults
from .arguments import EXIT_CODES, Operation, Parser
from .faults import CouldNot, Refused, say
from .loggers import log_to_stderr
from .opening import Place, open_store
from .output import Output, prepare_streams
from .stores import answers_ping, explained

#: The signals that end a command as Ctrl-C does, with their exit codes.
ENDING = {signal.SIGTERM: faults.TERMINATED, signal.SIGHUP: faults.HUNG_UP}


class Terminated(BaseException):
    """One of the signals above has come.

    Parameters:
      signum: The signal.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.code = ENDING[signal.Signals(signum)]


def operate(
    operation: Operation, place: Place, program: str, arguments: Sequence[str]
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
        with _terminating():
            code = _run(operation, place, program, arguments)
            sys.stdout.flush()
            return code
    except Refused as e:
        say(str(e))
        return faults.USAGE
    except CouldNot as e:
        say(str(e))
        return faults.COULD_NOT
    except KeyboardInterrupt:
        return faults.INTERRUPTED
    except Terminated as e:
        return e.code
    except BrokenPipeError:
        return faults.BROKEN_PIPE
    except OSError as e:
        say(f"The output cannot be written: {e.strerror or e}.")
        return faults.COULD_NOT


def _run(
    operation: Operation, place: Place, program: str, arguments: Sequence[str]
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
    opened = open_store(place)
    with _explained(opened.store):
        return operation.run(opened.store, args, output)


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


@contextlib.contextmanager
def _terminating() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end the command as Ctrl-C does, so that it shows the
    cursor again.
    """

    def terminate(signum: int, frame: FrameType | None) -> NoReturn:
        raise Terminated(signum)

    before = {signum: signal.getsignal(signum) for signum in ENDING}
    for signum, handler in before.items():
        # Under nohup, SIGHUP is ignored and remains so.
        if handler != signal.SIG_IGN:
            signal.signal(signum, terminate)
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
