"""Worker processes for the tests: Dramatiq's own command."""

import sys
from pathlib import Path

from dramatiq.brokers.redis import RedisBroker

from pyramid_jobstate import JobStateMiddleware, JobStore
from tests.processes import Process

#: The seconds that a worker may take to start on a busy machine, or a message to be
#: redelivered.
PATIENCE = 30

#: The seconds of silence after which their jobs read stalled.
STALLED_AFTER = 1.5


def make_broker(url: str, store_url: str | None = None) -> RedisBroker:
    """Return a broker that redelivers the messages of a dead worker soon."""
    broker = RedisBroker(url=url, heartbeat_timeout=2000, maintenance_chance=1_000_000)
    store = JobStore(store_url or url, stalled_after=STALLED_AFTER)
    broker.add_middleware(JobStateMiddleware(store, interval=0.05, heartbeat=0.2))
    return broker


def start_worker(
    environ: dict[str, str],
    log: Path,
    module: str = "tests.workerapp",
    threads: int = 2,
    *,
    by_gevent: bool = False,
) -> Process:
    """Start Dramatiq's command."""
    script = Path(sys.executable).with_name("dramatiq-gevent")
    start = [str(script)] if by_gevent else ["-m", "dramatiq"]
    command = [sys.executable, *start, module]
    options = ["--processes", "1", "--threads", str(threads)]
    return Process([*command, *options], log, environ=environ, patience=PATIENCE)
