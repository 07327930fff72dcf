"""Redis Sentinel."""

import contextlib
import os
import signal
from pathlib import Path

import pytest
import redis

from pyramid_jobstate import JobState, JobStateMiddleware, JobStore
from tests.jobs import Gate, job_actor, make_broker, wait_until, working
from tests.sentinels import replicated
from tests.support import load_job, wait_for

pytestmark = pytest.mark.system


def test_a_failover_in_mid_job_loses_nothing(redis_url: str, tmp_path: Path) -> None:
    """When the primary dies, the replica takes over and receives the job's end."""
    with replicated(tmp_path) as (primary, replica, sentinel):
        client = sentinel.master_for("jobs", socket_timeout=0.5)
        store = JobStore(client)
        broker = make_broker(redis_url, JobStateMiddleware(store))
        gate = Gate()

        @job_actor(broker=broker)
        def run_marathon(*, job_state: JobState) -> None:
            job_state.set_progress_metric("before", 1)
            job_state.flush()
            gate.wait()
            job_state.set_progress_metric("after", 2)

        with working(broker):
            message = run_marathon.send()
            wait_until(broker, message, "working")
            with redis.Redis.from_url(primary.url) as direct:
                assert direct.wait(1, 2000) == 1
            # Until then, the replica lists jobs and cannot mend its lists.
            reader = JobStore(replica.url)
            assert [job.uuid for job in reader.list().items] == [message.message_id]
            os.kill(primary.pid, signal.SIGKILL)
            gate.open()

            def is_done() -> bool:
                with contextlib.suppress(redis.RedisError):
                    return load_job(store, message.message_id).is_success
                return False

            wait_for(is_done, 40)
        metrics = load_job(store, message.message_id).progress_metrics
        assert metrics == {"before": 1, "after": 2}
