"""The worker of `python -m demo`: Dramatiq's command, which ends with its parent.

Its standard input is a pipe from the parent. The system closes the pipe when the parent
ends, even if the parent was killed.
"""

import logging
import os
import signal
import sys
import threading

from dramatiq.cli import main, make_argument_parser

import demo

ARGUMENTS = [
    "demo.worker:make_application",
    "--processes=1",
    "--threads=4",
    "--worker-shutdown-timeout=2000",
]


def make_application() -> None:
    """Make the application, and with it the broker, in a worker process: the hooks
    receive its requests.
    """
    demo.main({})


def follow_parent() -> None:
    """Wait for the parent's end, then kill this process and its children.

    A parent that shuts down in order sends SIGTERM first. If only the pipe closes, the
    parent was killed.
    """
    os.read(0, 1)
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    threading.Thread(target=follow_parent, daemon=True).start()
    for name in ("dramatiq", "pyramid_jobstate"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # It warns of each message that is skipped, 120 times for a batch that is cancelled.
    logging.getLogger("dramatiq.worker.WorkerThread").setLevel(logging.ERROR)
    sys.exit(main(make_argument_parser().parse_args(ARGUMENTS)))
