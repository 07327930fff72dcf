"""``pjobs INI work``: Dramatiq's own command, with the application of an ini."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import sysconfig
import traceback
from collections.abc import Sequence
from typing import NoReturn

import dramatiq
import dramatiq.broker
from dramatiq.brokers.redis import RedisBroker
from dramatiq.brokers.stub import StubBroker
from dramatiq.errors import BrokerConnectionError
from pyramid.exceptions import ConfigurationError
from pyramid.paster import get_app, setup_logging
from redis.exceptions import RedisError

from ..worker import is_default
from . import flags
from .application import place_of
from .faults import Refused
from .ini import Ini

#: What Dramatiq calls in each worker process.
BOOT = f"{__name__}:boot"

NO_BROKER = (
    "The application has no broker. Set jobstate.broker in the ini, or call "
    "dramatiq.set_broker() before the actors are declared."
)

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
line or the ini, a failed import, or no broker; 3 the broker cannot be reached
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
    flags.add_to(parser)
    given, unknown = parser.parse_known_args(arguments)
    defaults = flags.arguments_of(ini.section(flags.SECTION), ini.path)
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
        _fail(CONNECT, f"The broker cannot be reached: {e}")
    except ImportError as e:
        _fail(IMPORT, f"{place_of(e)}{type(e).__name__}: {e}")
    except (Exception, SystemExit) as e:
        if isinstance(e, SystemExit) and e.code:
            # Also Dramatiq's own, on a second signal.
            raise
        if isinstance(e, ConfigurationError) and not _has_broker():
            # The likely cause of what the include complains about.
            _fail(IMPORT, f"{NO_BROKER}\n{getattr(e, 'evalue', e)}")
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
    # Not get_broker(), which would make one.
    broker = dramatiq.broker.global_broker
    return broker is not None and not is_default(broker)


def _knows(script: str, arguments: Sequence[str]) -> bool:
    """Return whether the installed Dramatiq has these flags, which FLAGS lacks."""
    names = {word.partition("=")[0] for word in arguments if word.startswith("-")}
    done = subprocess.run([script, "--help"], capture_output=True, text=True)
    return bool(names) and names <= set(done.stdout.replace(",", " ").split())


def _fail(code: int, message: str) -> NoReturn:
    print(f"pjobs: {message}", file=sys.__stderr__, flush=True)
    sys.exit(code)
