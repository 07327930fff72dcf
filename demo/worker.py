"""The worker of `python -m demo`: `dramatiq demo.jobs` that ends with its parent.

Its standard input is a pipe from the parent, which the system closes when the parent
ends, even where that was killed.
"""

import logging
import os
import signal
import sys
import threading

from dramatiq.cli import main, make_argument_parser

ARGUMENTS = [
    "demo.jobs",
    "--processes=1",
    "--threads=4",
    "--worker-shutdown-timeout=2000",
]


def follow_parent() -> None:
    """Wait for the parent's end, and end this process and its children.

    A parent that can still ask does it with SIGTERM. This one was killed, so that there
    is nothing to wait for.
    """
    os.read(0, 1)
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    threading.Thread(target=follow_parent, daemon=True).start()
    logging.getLogger("dramatiq").setLevel(logging.WARNING)
    sys.exit(main(make_argument_parser().parse_args(ARGUMENTS)))
