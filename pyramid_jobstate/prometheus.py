"""Metrics for Prometheus: how many jobs have which status, how late they are, and how
busy the workers are::

    from prometheus_client import REGISTRY
    from pyramid_jobstate.prometheus import JobStateCollector

    REGISTRY.register(JobStateCollector(store))

This needs the extra ``pyramid_jobstate[prometheus]``, but not Pyramid. The metrics are
listed in :doc:`/howto/metrics`.
"""

from __future__ import annotations

from collections.abc import Sequence

from redis.exceptions import RedisError

from .job.record import STATUSES
from .store.connection import ConnectionsInUse
from .store.jobstore import JobStore

try:
    from prometheus_client.metrics_core import GaugeMetricFamily
except ImportError as e:
    raise ImportError(
        "pyramid_jobstate.prometheus needs the package prometheus-client. Install "
        "pyramid_jobstate[prometheus]."
    ) from e

__all__ = ["JobStateCollector"]

#: What each metric tells, and its labels, by its name.
METRICS: dict[str, tuple[str, Sequence[str]]] = {
    "jobstate_up": ("Whether the store of job states answers", ()),
    "jobstate_jobs": ("Jobs, members of batches included", ("kind", "status")),
    "jobstate_oldest_wait_seconds": (
        "How long the oldest waiting job has waited for a worker",
        ("kind",),
    ),
    "jobstate_recent_wait_seconds": (
        "Median wait of the last ten jobs to start",
        ("kind",),
    ),
    "jobstate_workers": (
        "Worker processes that were heard of within the last hour",
        ("state",),
    ),
    "jobstate_worker_threads": ("Threads of the workers that are alive", ()),
    "jobstate_busy_threads": ("Threads of these workers that run tracked jobs", ()),
}


class JobStateCollector:
    """Collects the metrics of a store each time that its registry is asked for them.

    All are gauges: the number of ended jobs falls as their records expire. While the
    store is away, ``jobstate_up`` is 0, and no other metric has a value. While all
    connections to it are in use, none has.

    Parameters:
      store: The store.
    """

    def __init__(self, store: JobStore) -> None:
        self._store = store

    def describe(self) -> Sequence[GaugeMetricFamily]:
        """Return the metrics without values. A registry calls this to learn their names
        when the collector is registered, so it does not ask the store.
        """
        return [*_families().values()]

    def collect(self) -> Sequence[GaugeMetricFamily]:
        """Return the metrics, which are at most a second old."""
        try:
            found = self._read()
        except ConnectionsInUse:
            found = _families()
        except RedisError:
            found = _families()
            found["jobstate_up"].add_metric([], 0)
        return [*found.values()]

    def _read(self) -> dict[str, GaugeMetricFamily]:
        """Return the metrics by their names.

        Raises:
          redis.exceptions.RedisError: The store does not answer.
        """
        found = _families()

        def add(name: str, value: float, *labels: str) -> None:
            found[f"jobstate_{name}"].add_metric(labels, value)

        add("up", 1)
        # Another program may have written names of kinds that read alike.
        for kind in dict.fromkeys(self._store.kinds()):
            counts = self._store.counts(kind, members=True)
            for status in STATUSES:
                add("jobs", getattr(counts, status), kind, status)
            add("oldest_wait_seconds", counts.oldest_wait or 0, kind)
            if counts.recent_wait is not None:
                add("recent_wait_seconds", counts.recent_wait, kind)
        workers = self._store.workers()
        alive = [worker for worker in workers if not worker.is_silent]
        add("workers", len(alive), "alive")
        add("workers", len(workers) - len(alive), "silent")
        add("worker_threads", sum(worker.threads for worker in alive))
        add("busy_threads", sum(worker.busy for worker in alive))
        return found


def _families() -> dict[str, GaugeMetricFamily]:
    """Return the metrics without values, by their names."""
    return {
        name: GaugeMetricFamily(name, text, labels=labels)
        for name, (text, labels) in METRICS.items()
    }
