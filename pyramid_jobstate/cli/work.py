"""``pjobs INI work``: Dramatiq's own command, with the application of an ini."""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, NoReturn

import dramatiq
import dramatiq.broker
from dramatiq.brokers.redis import RedisBroker
from dramatiq.brokers.stub import StubBroker
from dramatiq.errors import BrokerConnectionError
from pyramid.paster import get_app, setup_logging
from pyramid.settings import aslist, falsey, truthy
from redis.exceptions import RedisError

from ..worker.brokers import is_default
from ..worker.ledger import global_broker
from .application import misconfigured, place_of
from .brokers import NO_BROKER
from .ini import Ini
from .terminal import Refused

#: The section of an ini that holds defaults.
SECTION = "pjobs"


class Flag(NamedTuple):
    """A flag, without the dashes.

    Attributes:
      kind: How it takes its values: a key of KINDS.
    """

    name: str
    short: str
    kind: str
    help: str


def _whole(text: str, least: int) -> int:
    """Return a whole number, of at most nine digits."""
    if not re.fullmatch("[0-9]{1,9}", text) or int(text) < least:
        raise ValueError(f"not a whole number from {least} to 999,999,999")
    return int(text)


def _from(least: int) -> Callable[[str], int]:
    """Return a converter to whole numbers for argparse."""

    def convert(text: str) -> int:
        try:
            return _whole(text, least)
        except ValueError as e:
            raise argparse.ArgumentTypeError(f"{text!r} is {e}") from None

    return convert


#: What argparse needs to know for each kind.
KINDS: dict[str, dict[str, Any]] = {
    "positive": {"type": _from(1), "metavar": "N"},
    "number": {"type": _from(0), "metavar": "N"},
    "text": {"metavar": "PATH"},
    "words": {"nargs": "*", "metavar": "NAME"},
    "repeated": {"action": "append", "metavar": "NAME"},
    "switch": {"action": "store_true"},
    "count": {"action": "count"},
}

#: The flags of Dramatiq 2.2. A test compares them with the installed version's.
FLAGS = (
    Flag("processes", "p", "positive", "worker processes (default: one per CPU)"),
    Flag("threads", "t", "positive", "threads in each of them (default: 8)"),
    Flag("queues", "Q", "words", "listen to these queues only"),
    Flag("path", "P", "words", "import modules from these folders (default: .)"),
    Flag("pid-file", "", "text", "write the process id to this file"),
    Flag("log-file", "", "text", "write logs to this file (default: stderr)"),
    Flag("skip-logging", "", "switch", "do not set up Dramatiq's logging"),
    Flag("use-spawn", "", "switch", "start processes by spawning"),
    Flag("fork-function", "f", "repeated", "run a function in a process of its own"),
    Flag("worker-fork-timeout", "", "number", "milliseconds the workers have to start"),
    Flag("worker-shutdown-timeout", "", "number", "milliseconds that jobs have to end"),
    Flag("watch", "", "text", "reload when Python files in this folder change"),
    Flag("watch-use-polling", "", "switch", "poll the files"),
    Flag("watch-include", "i", "repeated", "watch files with this pattern, too"),
    Flag("watch-exclude", "x", "repeated", "do not watch files with this pattern"),
    Flag("verbose", "v", "count", "log more"),
)


def add_to(parser: argparse.ArgumentParser) -> None:
    """Let a parser accept the flags. Only those that are given are in its result."""
    for flag in FLAGS:
        names = [f"-{flag.short}"] * bool(flag.short) + [f"--{flag.name}"]
        parser.add_argument(
            *names, help=flag.help, default=argparse.SUPPRESS, **KINDS[flag.kind]
        )


def arguments_of(settings: Mapping[str, str], path: str) -> dict[str, list[str]]:
    """Return the flags that ``[pjobs]`` sets: their names and the arguments for them.

    Parameters:
      path: The path of the ini, for errors.

    Raises:
      Refused: A name or a value is wrong.
    """
    known = {flag.name: flag.kind for flag in FLAGS}
    found = {}
    for setting, value in settings.items():
        name = setting.replace("_", "-")
        if name not in known:
            raise Refused(
                f"{path}: {setting!r} in [{SECTION}] is not a long flag of Dramatiq's. "
                f"Use one of: {', '.join(known)}."
            )
        try:
            found[name] = _ARGUMENTS[known[name]](f"--{name}", value.strip())
        except ValueError as e:
            raise Refused(f"{path}: {setting} in [{SECTION}] is {e}.") from None
    return found


def _positive(flag: str, value: str) -> list[str]:
    return _number(flag, value, 1)


def _number(flag: str, value: str, least: int = 0) -> list[str]:
    try:
        return [flag, str(_whole(value, least))]
    except ValueError as e:
        raise ValueError(f"{value!r}, {e}") from None


def _text(flag: str, value: str) -> list[str]:
    return [f"{flag}={value}"] if value else []


def _words(flag: str, value: str) -> list[str]:
    words = aslist(value)
    return [flag, *words] if words else []


def _repeated(flag: str, value: str) -> list[str]:
    return [f"{flag}={word}" for word in aslist(value)]


def _switch(flag: str, value: str) -> list[str]:
    if value.lower() not in truthy | falsey:
        raise ValueError(f"{value!r}, neither true nor false")
    return [flag] if value.lower() in truthy else []


def _count(flag: str, value: str) -> list[str]:
    return [flag] * int(_number(flag, value)[1])


_ARGUMENTS = {
    "positive": _positive,
    "number": _number,
    "text": _text,
    "words": _words,
    "repeated": _repeated,
    "switch": _switch,
    "count": _count,
}


#: What Dramatiq calls in each worker process.
BOOT = f"{__name__}:boot"

#: Dramatiq's own exit codes.
FAILED, IMPORT, CONNECT = 1, 2, 3

DESCRIPTION = """\
Run Dramatiq workers with the application of the ini. This process becomes the command
`dramatiq`: signals, flags and exit codes are Dramatiq's. The section
[pjobs] of the ini can hold defaults for the flags, by their long names:
`processes = 2`.
"""

EPILOG = """\
exit codes: 0 stopped; 1 the application raised an error; 2 a mistake in the command
line, the ini or the configuration, a failed import, or no broker; 3 the broker cannot
be reached
"""

#: The application of this worker process. Pyramid itself refers to it only weakly.
app: object = None


class _Unreachable(Exception):
    """The broker does not answer."""


def main(ini: Ini, program: str, arguments: Sequence[str]) -> NoReturn:
    """Replace this process with Dramatiq's command.

    Raises:
      Refused: A flag is wrong, or Dramatiq's command is missing.
    """
    parser = argparse.ArgumentParser(
        prog=program,
        usage=f"{program} [Dramatiq's flags]",
        description=DESCRIPTION,
        epilog=EPILOG,
    )
    add_to(parser)
    given, unknown = parser.parse_known_args(arguments)
    defaults = arguments_of(ini.section(SECTION), ini.path)
    script = find_script("dramatiq")
    if unknown and not _knows(script, unknown):
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    names = {name.replace("_", "-") for name in vars(given)}
    command = [script, BOOT, *arguments]
    for name, words in defaults.items():
        if name not in names:
            command += words
    names.update(name for name, words in defaults.items() if words)
    if "watch" in names and "watch-include" not in names:
        # Dramatiq's own pattern matches no file with watchdog 7.
        command.append("--watch-include=**/*.py")
    sys.stdout.flush()
    os.execve(script, command, ini.environ())


def find_script(name: str) -> str:
    """Return the path of a console script in this Python's environment, which need not
    be active, nor on ``PATH``.

    Raises:
      Refused: It is not installed.
    """
    folders = [os.path.dirname(sys.executable), sysconfig.get_path("scripts")]
    for path in [os.pathsep.join(folders), os.environ.get("PATH", os.defpath)]:
        found = shutil.which(name, path=path)
        if found is not None:
            return os.path.abspath(found)
    raise Refused(f"The command {name} is not installed in {folders[0]}.")


def boot() -> None:
    """Make the application of the ini, and with it the broker, in a worker process.

    If that fails, the process ends with the exit code that tells why. The reason goes
    to stderr, since Dramatiq may drop what is logged just before an exit.
    """
    global app
    try:
        ini = Ini.from_environ()
        ini.check()
        setup_logging(ini.uri, ini.defaults)
        app = get_app(ini.uri, options=ini.defaults)
        check_broker()
    except Refused as e:
        _fail(IMPORT, str(e))
    except (_Unreachable, BrokerConnectionError) as e:
        _fail(
            CONNECT,
            f'The broker cannot be reached: {e} (See "The job stays queued" in the '
            "troubleshooting guide.)",
        )
    except ImportError as e:
        _fail(IMPORT, f"{place_of(e)}{type(e).__name__}: {e}")
    except (Exception, SystemExit) as e:
        if isinstance(e, SystemExit) and e.code:
            # Also Dramatiq's own, on a second signal.
            raise
        text = misconfigured(e, ini)
        if text is not None:
            _fail(IMPORT, text)
        _fail(FAILED, "".join(traceback.format_exception(e)).rstrip())


def check_broker() -> None:
    """Raise an error if the application made no broker, or its broker is out of reach.

    Raises:
      Refused: The only broker is the one that Dramatiq makes for want of another.
      _Unreachable: The broker cannot be reached.
    """
    if not _has_broker():
        raise Refused(NO_BROKER)
    broker = dramatiq.get_broker()
    if isinstance(broker, StubBroker):
        raise Refused(
            "The broker is a StubBroker, which only passes messages within one "
            "process, as tests need it. Set jobstate.broker to a URL."
        )
    # Without pika, this module cannot be imported.
    rabbitmq = sys.modules.get("dramatiq.brokers.rabbitmq")
    if isinstance(broker, RedisBroker):
        try:
            broker.client.ping()
        except RedisError as e:
            raise _Unreachable(str(e)) from None
    elif rabbitmq and isinstance(broker, rabbitmq.RabbitmqBroker):
        try:
            _ = broker.connection  # connects
        except (rabbitmq.pika.exceptions.AMQPError, OSError) as e:
            raise _Unreachable(repr(e)) from None
        # Nobody would answer the heartbeats of this thread's connection.
        del broker.connection


def _has_broker() -> bool:
    """Return whether somebody has set a broker. Dramatiq's default broker, made for
    actors that are declared before any is set, does not count.
    """
    broker = global_broker()
    return broker is not None and not is_default(broker)


def _knows(script: str, arguments: Sequence[str]) -> bool:
    """Return whether the installed Dramatiq has these flags, which FLAGS lacks."""
    names = {word.partition("=")[0] for word in arguments if word.startswith("-")}
    done = subprocess.run([script, "--help"], capture_output=True, text=True)
    return bool(names) and names <= set(done.stdout.replace(",", " ").split())


def _fail(code: int, message: str) -> NoReturn:
    print(f"pjobs: {message}", file=sys.__stderr__, flush=True)
    sys.exit(code)
