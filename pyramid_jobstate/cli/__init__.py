"""``pjobs``, the command line: ``pjobs INI [name=value ...] COMMAND``, or
``pjobs --url URL COMMAND`` without Pyramid.

This wing knows the ini, the processes that a command starts, and the terminal. It may
import plaster, Pyramid, Dramatiq, redis-py, rich and the rest of the package, which
does not import it. Each module imports what its command needs, when it runs.
"""

from __future__ import annotations

import importlib
import itertools
import os
import re
import shlex
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from .terminal import USAGE, Refused, say, without_passwords

if TYPE_CHECKING:
    from .arguments import Parser


class Subcommand(NamedTuple):
    """A command.

    Attributes:
      what: What it does.
      module: The module that runs it, imported when it does. It has the
        :class:`.arguments.Operation` of a command for operators under the name of the
        command. The `main` of another takes the ini, the name that the command goes by
        in errors, and the arguments after the command, and returns the exit code.
      is_for_operators: Whether it reads a store, and so takes a URL instead of an ini.
    """

    what: str
    module: str
    is_for_operators: bool = True


COMMANDS = {
    "work": Subcommand("run Dramatiq workers with the application", "work", False),
    "dev": Subcommand("run web server, worker and Redis in one terminal", "dev", False),
    "info": Subcommand("count jobs (the default)", "info"),
    "workers": Subcommand("list the worker processes", "workers"),
    "list": Subcommand("list jobs", "lists"),
    "show": Subcommand("show all that is known about a job", "show"),
    "log": Subcommand("print the log of a job, and follow it", "show"),
    "stack": Subcommand("print where a running job is", "show"),
    "watch": Subcommand("watch working jobs", "watch"),
    "wait": Subcommand("wait for the end of jobs", "wait"),
    "cancel": Subcommand("cancel jobs", "acts"),
    "rerun": Subcommand("run failed jobs again", "acts"),
    "clear": Subcommand("delete ended jobs", "acts"),
}

#: What runs if no command is named.
DEFAULT = "info"

DESCRIPTION = "Run and watch the jobs of an application."

USAGE_LINES = """\
pjobs INI [name=value ...] [COMMAND [...]]
       pjobs --url URL [--namespace NAME] [COMMAND [...]]"""

EPILOG = """\
`pjobs INI COMMAND --help` has the flags of a command.

examples:
  pjobs production.ini
  pjobs production.ini list --status error
  pjobs production.ini rerun --kind ImportResults --dry-run
  pjobs production.ini wait 4f6c --timeout 10m && ./publish
  pjobs --url redis://localhost:6379/0 watch
  pjobs production.ini work --processes 2 --threads 8
  pjobs development.ini http_port=8080 dev
"""


#: What the path of an ini contains.
_INI = re.compile(r"\.ini(#|$)")


class CommandLine(NamedTuple):
    """The words of a command line.

    Attributes:
      head: The words up to the command, without the variables.
      variables: The variables for the ini, which argparse could not tell from a
        command.
      rest: The words after the command, which are its own.
    """

    head: list[str]
    variables: list[str]
    rest: list[str]

    @classmethod
    def split(cls, arguments: Sequence[str]) -> CommandLine:
        words = cls([], [], list(arguments))
        # An ini or a URL, and a command.
        missing = 2
        while words.rest and missing:
            if missing == 1 and _is_flag(words.rest[0]):
                # The flags of the default command.
                break
            word = words.rest.pop(0)
            words.head.append(word)
            if word in ("--url", "--namespace"):
                words.head.extend(words.rest[:1])
                del words.rest[:1]
            if not word.startswith("-") or word.partition("=")[0] == "--url":
                missing -= 1
            if not word.startswith("-") and missing == 1:
                while words.rest and _is_variable(words.rest[0]):
                    words.variables.append(words.rest.pop(0))
        return words


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return the exit code: 2 if the command line or the ini is
    wrong.
    """
    words = CommandLine.split(sys.argv[1:] if argv is None else argv)
    try:
        return _run(words)
    except Refused as e:
        say(str(e))
        return USAGE


def _run(words: CommandLine) -> int:
    from .arguments import Parser

    parser = _make_parser(Parser)
    args = parser.parse_intermixed_args(words.head)
    given = [] if args.url is None else ["--url"]
    given += args.words
    if not given:
        parser.error("the following arguments are required: INI")
    if args.url is None and args.namespace is not None:
        parser.error("--namespace needs --url: an application knows its own")
    if args.url is None and not os.path.isfile(given[0]):
        if given[0] in COMMANDS:
            parser.error(
                f"an INI must precede the command {given[0]}, as in "
                f"`pjobs {without_passwords(_ini_first(given[0], words))}`"
            )
        if _is_variable(given[0]) and not _INI.search(given[0]):
            parser.error(
                f"an INI must precede the variable {without_passwords(given[0])}"
            )
    if len(given) == 1:
        given.append(DEFAULT)
    place, name = given[0], " ".join(given[1:])
    if name not in COMMANDS:
        parser.error(f"invalid choice: {name!r} (choose from {', '.join(COMMANDS)})")
    command = COMMANDS[name]
    program = f"pjobs {place} {name}" if args.url is None else f"pjobs --url URL {name}"
    if args.url is not None and not command.is_for_operators:
        parser.error(f"{name} needs an ini instead of --url")
    module = importlib.import_module(f"{__name__}.{command.module}")
    if command.is_for_operators:
        from .operate import Location, operate

        ini = place if args.url is None else ""
        where = Location(ini, words.variables, args.url, args.namespace)
        operation = getattr(module, name.upper())
        return operate(operation, where, program, words.rest)
    from .ini import Ini

    code: int = module.main(Ini.parse(place, words.variables), program, words.rest)
    return code


def _ini_first(command: str, words: CommandLine) -> str:
    """Return a command line that begins with a command, in the right order."""
    ini, others = ["INI"], [*words.head, *words.rest]
    others.remove(command)
    for i, word in enumerate(others):
        if _INI.search(word):
            variables = itertools.takewhile(_is_variable, others[i + 1 :])
            ini = [word, *variables]
            del others[i : i + len(ini)]
            break
    return shlex.join([*ini, *words.variables, command, *others])


def _make_parser(make: type[Parser]) -> Parser:
    commands = "\n".join(f"  {name:<7} {c.what}" for name, c in COMMANDS.items())
    parser = make(
        "pjobs",
        usage=USAGE_LINES,
        description=f"{DESCRIPTION}\n\ncommands:\n{commands}",
        epilog=EPILOG,
    )
    parser.add_argument(
        "words",
        metavar="INI",
        nargs="*",
        help="the ini file, as for pserve; may end in #section. Variables for it, "
        "name=value, precede the command",
    )
    parser.add_argument(
        "--url",
        help="the Redis server of the jobs, instead of an ini: neither Pyramid nor the "
        "application is imported, and durations are the defaults",
    )
    parser.add_argument(
        "--namespace", metavar="NAME", help="jobstate.namespace, if it is not jobstate"
    )
    return parser


def _is_variable(word: str) -> bool:
    return "=" in word and not word.startswith("-")


def _is_flag(word: str) -> bool:
    """Return whether a word is a flag, but not one that precedes commands."""
    name = word.partition("=")[0]
    return word.startswith("-") and name not in ("--url", "--namespace", "-h", "--help")
