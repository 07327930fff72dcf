"""What a worker and `pjobs` load of the package."""

from pyramid_jobstate import JobStore
from pyramid_jobstate.testing import put_job
from tests.cliapp import PJOBS
from tests.processes import run_python

#: Runs a job, and prints what it has loaded.
WORKER = """
import sys

# Dramatiq imports it where it is installed, and it imports packages of Zope.
sys.modules["gevent"] = None

import dramatiq
from dramatiq.brokers.stub import StubBroker
from pyramid_jobstate import JobState, JobStateMiddleware

broker = StubBroker()
broker.add_middleware(JobStateMiddleware(url=sys.argv[1]))


@dramatiq.actor(broker=broker)
def run(*, job_state: JobState):
    job_state.set_message("Running")


run.send()
worker = dramatiq.Worker(broker, worker_timeout=50, worker_threads=1)
worker.start()
broker.join("default")
worker.stop()
print(*sys.modules)
"""


def test_worker_does_not_import_pyramid(redis_url):
    """A worker runs and records a job without loading Pyramid."""
    modules = run_python("-c", WORKER, redis_url)
    loaded = {name.partition(".")[0] for name in modules.split()}
    assert "dramatiq" in loaded
    assert not {"pyramid", "webob", "zope", "transaction"} & loaded
    (job,) = JobStore(redis_url).list().items
    assert (job.status, job.message) == ("success", "Running")


def test_metrics_do_not_import_pyramid(redis_url):
    """A process without it can export them, and reads why if prometheus-client is not
    installed.
    """
    program = f"""
import sys
sys.modules["pyramid"] = None
from prometheus_client import REGISTRY, generate_latest
from pyramid_jobstate import JobStore
from pyramid_jobstate.prometheus import JobStateCollector
REGISTRY.register(JobStateCollector(JobStore({redis_url!r})))
print(generate_latest(REGISTRY).decode())
"""
    assert "\njobstate_up 1.0\n" in run_python("-c", program)
    program = """
import sys
sys.modules["prometheus_client"] = None
try:
    import pyramid_jobstate.prometheus
except ImportError as e:
    print(e)
"""
    assert run_python("-c", program).strip() == (
        "pyramid_jobstate.prometheus needs the package prometheus-client. Install "
        "pyramid_jobstate[prometheus]."
    )


def test_pjobs_with_a_url_does_not_import_pyramid(redis_url):
    """It works where Pyramid cannot be imported."""
    job = put_job(JobStore(redis_url), status="working").uuid
    without = f"import sys; sys.modules['pyramid'] = None; {PJOBS}"
    for words, output in (["info"], "working 1"), (["cancel", job], "cancelling"):
        assert output in run_python("-c", without, "--url", redis_url, *words)
