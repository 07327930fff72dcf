"""Runs a command for operators: opens the store, and turns what happens into an exit
code and one line on stderr.
"""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import NoReturn, Protocol

from redis.exceptions import RedisError

from ..store import AmbiguousKind, JobStore, name_of
from . import faults
from .arguments import EXIT_CODES, Parser
from .faults import CouldNot, Refused, say
from .loggers import log_to_stderr
from .opening import Place, open_store
from .output import Output, prepare_streams
from .stores import answers_ping, explained


class Operation(Protocol):
    """The module of a command.

    Attributes:
      DESCRIPTION: Its help.
      DRAWS: Whether it draws on terminals.
    """

    DESCRIPTION: str
    DRAWS: bool

    def add_to(self, parser: argparse.ArgumentParser) -> None:
        """Let a parser accept the arguments of the command."""

    def run(self, store: JobStore, args: argparse.Namespace, output: Output) -> int:
        """Run the command, and return its exit code.

        Parameters:
          store: The store of the jobs.
          args: The arguments. `has_application` says whether an ini was given.
          output: What takes the output.
        """


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
    module: Operation, place: Place, program: str, arguments: Sequence[str]
) -> int:
    """Run a command and return its exit code.

    Parameters:
      module: The module of the command.
      place: Where the jobs are.
      program: How the command was called, for its help.
      arguments: What follows the command.
    """
    prepare_streams()
    try:
        with _terminating():
            code = _run(module, place, program, arguments)
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
    module: Operation, place: Place, program: str, arguments: Sequence[str]
) -> int:
    parser = Parser(program, description=module.DESCRIPTION, epilog=EXIT_CODES)
    module.add_to(parser)
    parser.set_defaults(has_application=place.url is None)
    parser.add_argument(
        "--json", action="store_true", help="write one JSON object a line"
    )
    # Options may stand between ids.
    args = parser.parse_intermixed_args(arguments)
    output = Output.choose(is_json=args.json, can_draw=module.DRAWS)
    log_to_stderr()
    opened = open_store(place)
    with _explained(opened.store):
        return module.run(opened.store, args, output)


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
