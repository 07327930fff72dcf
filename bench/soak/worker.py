"""The worker processes: ``python -m dramatiq bench.soak.worker``."""

import os
import threading

import dramatiq

from .actors import Journal, declare, make_broker

# No worker outlives the soak test, even if the process that started it is killed.
_end = threading.Timer(float(os.environ["SOAK_SECONDS"]), os._exit, (1,))
_end.daemon = True
_end.start()

broker = make_broker(os.environ["SOAK_BROKER"], os.environ["SOAK_STORE"])
work = declare(broker, Journal(os.environ["SOAK_JOURNAL"]))
dramatiq.set_broker(broker)
