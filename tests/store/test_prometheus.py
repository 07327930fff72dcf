"""The metrics for Prometheus."""

import contextlib
import functools
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.openmetrics import exposition, parser
from prometheus_client.parser import text_string_to_metric_families

from pyramid_jobstate import Batch, JobError, JobState, JobStateMiddleware, JobStore
from pyramid_jobstate.prometheus import JobStateCollector
from pyramid_jobstate.testing import away, pass_time, put_batch, put_job
from tests.jobs import make_broker, working
from tests.operated import HOSTILE
from tests.store.jobs import Diary, put
from tests.support import STATUSES, crowded, wait_for
from tests.trips import counting_trips
from tests.worker.floors import idle_actor

#: A server that does not answer.
NOWHERE = "redis://127.0.0.1:1/0"

#: A sample: its name, and the values of its labels.
Samples = dict[tuple[str, ...], float]


def samples_in(metrics: Any) -> Samples:
    """Return the values of the samples in metrics, which are all different."""
    found = [
        ((sample.name, *sample.labels.values()), sample.value)
        for metric in metrics
        for sample in metric.samples
    ]
    assert len(dict(found)) == len(found)
    return dict(found)


def scrape(store: JobStore) -> Samples:
    """Return what Prometheus reads, which is valid as OpenMetrics, too."""
    registry = CollectorRegistry()
    registry.register(JobStateCollector(store))
    text = generate_latest(registry).decode()
    found = samples_in(text_string_to_metric_families(text))
    text = exposition.generate_latest(registry).decode()
    assert (
        samples_in(parser.text_string_to_metric_families(text)).keys() == found.keys()
    )
    return found


@pytest.mark.promise("metrics-for-prometheus")
def test_metrics_of_jobs(store):
    """Each kind has a number for each status, members of batches one by one, and says
    how late its jobs are.
    """
    put(store, "retrying", delay=10, error=JobError("ValueError", "bad"))
    put(store, "working")
    put_batch(store, Batch, [{"job_state_class": Diary, "status": "queued"}] * 3)
    pass_time(store, 40)
    found = scrape(store)
    assert found["jobstate_up",] == 1
    numbers = {(name, *rest): n for (name, *rest), n in found.items() if len(rest) == 2}
    expected = {
        ("class:RunMarathon", "retrying"): 1,
        ("class:RunMarathon", "stalled"): 1,
        ("class:Diary", "queued"): 3,
        ("class:Batch", "queued"): 1,
    }
    kinds = {kind for kind, _ in expected}
    assert numbers == {
        ("jobstate_jobs", kind, status): expected.get((kind, status), 0)
        for kind in kinds
        for status in STATUSES
    }
    oldest = "jobstate_oldest_wait_seconds"
    assert 30 <= found[oldest, "class:RunMarathon"] < 40 <= found[oldest, "class:Diary"]
    # Nothing waits, and nothing is known of starts.
    assert found[oldest, "class:Batch"] == 0
    recent = {
        rest[0] for name, *rest in found if name == "jobstate_recent_wait_seconds"
    }
    assert recent == {"class:RunMarathon"}


@pytest.mark.promise("metrics-for-prometheus")
def test_metrics_of_workers(redis_url, store):
    """Those that are alive say how many threads they have. Others may have died."""
    broker = make_broker(redis_url)
    idle_actor(broker)
    with working(broker):
        wait_for(store.workers)
        found = scrape(store)
        assert found["jobstate_workers", "alive"] == 1
        assert found["jobstate_workers", "silent"] == 0
        assert found["jobstate_worker_threads",] == 4
        assert found["jobstate_busy_threads",] == 0
    silent = make_broker(redis_url, JobStateMiddleware(heartbeat=3600))
    idle_actor(silent)
    with working(silent):
        wait_for(store.workers)
        pass_time(store, 16)
        found = scrape(store)
        assert found["jobstate_workers", "alive"] == 0
        assert found["jobstate_workers", "silent"] == 1
        assert found["jobstate_worker_threads",] == 0


def test_registering_does_not_ask_the_store(store):
    """A registry hears of the names, which it admits once, while the store is away."""
    with counting_trips() as trips:
        CollectorRegistry().register(JobStateCollector(store))
    assert trips == []
    registry = CollectorRegistry()
    registry.register(JobStateCollector(JobStore(NOWHERE)))
    with pytest.raises(ValueError, match="Duplicated timeseries"):
        registry.register(JobStateCollector(JobStore(NOWHERE)))


@pytest.mark.promise("metrics-for-prometheus")
def test_no_metrics_while_the_store_is_away(store):
    """Only `jobstate_up` says so, also if it goes away in the middle, or if it has been
    asked a moment ago.
    """
    put(store, "queued")
    assert len(scrape(store)) > 5
    with away(store):
        assert scrape(store) == {("jobstate_up",): 0}
    assert len(scrape(store)) > 5
    for number in 1, 2, 3, 4:
        other = JobStore(store.client)
        outage = away(other)
        with contextlib.ExitStack() as stack:
            leave = functools.partial(stack.enter_context, outage)
            with counting_trips(number, leave) as trips:
                assert scrape(other) == {("jobstate_up",): 0}, number
            assert len(trips) >= number


def test_full_pool_has_no_metrics(redis_url):
    """Nobody knows whether the store is away, so `jobstate_up` is missing, too."""
    store = JobStore(redis_url, max_connections=1)
    with crowded(store):
        assert scrape(store) == {}
    assert scrape(store)["jobstate_up",] == 1


def test_kinds_with_hostile_names(store):
    """They become labels unchanged. Two that are not UTF-8 read alike, and are one."""
    names = [
        'a"b',
        "a\\b",
        'x"} 1\njobstate_up 5',
        "\\n",
        "}{,=#",
        "\x00\r\u2028",
        f"{HOSTILE}.",
    ]
    for number, name in enumerate(names):
        put_job(
            store, type("Odd", (JobState,), {"kind": name, "__module__": f"{number}"})
        )
    kinds = {rest[0] for _, *rest in scrape(store) if len(rest) == 2}
    assert kinds == {f"class:{name}" for name in names}
    score: Any = store.client.zscore("jobstate:kinds", "class:a\\b")
    bad: Any = {b"class:\xff": score, b"class:\xfe": score, b"nothing": score}
    store.client.zadd("jobstate:kinds", bad)
    found = {rest[0] for _, *rest in scrape(store) if len(rest) == 2}
    assert found - kinds == {"class:\ufffd"}
