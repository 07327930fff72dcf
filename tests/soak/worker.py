"""What the worker processes run: ``python -m dramatiq tests.soak.worker``."""

import os
import threading

import dramatiq

from .actors import Journal, declare, make_broker

# Nothing outlives the soak, whatever becomes of the process that began it.
_end = threading.Timer(float(os.environ["SOAK_SECONDS"]), os._exit, (1,))
_end.daemon = True
_end.start()

broker = make_broker(os.environ["SOAK_BROKER"], os.environ["SOAK_STORE"])
work = declare(broker, Journal(os.environ["SOAK_JOURNAL"]))
dramatiq.set_broker(broker)
