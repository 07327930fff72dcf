"""``pjobs``, the command line: ``pjobs INI [name=value ...] COMMAND``."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from .ini import Ini, Refused

#: The commands: their names, what they do, and the modules that run them. A module is
#: imported when its command runs. Its `main` takes the ini, the name that the command
#: goes by in errors, and the arguments after the command, and returns the exit code.
COMMANDS = {
    "work": ("run Dramatiq workers with the application of the ini", "work"),
    "dev": ("run web server, worker and Redis in one terminal", "dev"),
}

DESCRIPTION = "Run the jobs of a Pyramid application."

EPILOG = """\
examples:
  pjobs production.ini work --processes 2 --threads 8
  pjobs development.ini dev
  pjobs development.ini http_port=8080 dev
  pjobs development.ini work --help
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return the exit code: 2 if the command line or the ini is
    wrong.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    # Taken out here, since argparse cannot tell them from a command.
    variables = []
    while len(arguments) > 1 and "=" in arguments[1] and arguments[1][0] != "-":
        variables.append(arguments.pop(1))
    # Flags after the command are the command's own.
    args = _parser().parse_args(arguments[:2])
    program = f"pjobs {args.ini} {args.command}"
    _, name = COMMANDS[args.command]
    module = importlib.import_module(f"{__name__}.{name}")
    try:
        ini = Ini.parse(args.ini, variables)
        code: int = module.main(ini, program, arguments[2:])
    except Refused as e:
        print(f"pjobs: {e}", file=sys.stderr)
        return 2
    return code


def _parser() -> argparse.ArgumentParser:
    commands = "\n".join(f"  {name:<6} {what}" for name, (what, _) in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="pjobs",
        usage="pjobs INI [name=value ...] COMMAND [...]",
        description=f"{DESCRIPTION}\n\ncommands:\n{commands}",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "ini", metavar="INI", help="the ini file, as for pserve; may end in #section"
    )
    parser.add_argument(
        "command",
        metavar="COMMAND",
        choices=COMMANDS,
        help="one of the commands above; `pjobs INI COMMAND --help` has its flags. "
        "Put variables for the ini, name=value as for pserve, before it",
    )
    return parser
