"""The store fails in various ways while a job goes on."""

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis
from dramatiq.middleware import Middleware

from pyramid_jobstate import JobState, JobStateMiddleware, JobStore
from pyramid_jobstate.embedded import EmbeddedServer
from tests.jobs import Gate, job_actor, make_broker, messages, working
from tests.support import frozen, wait_for


@contextlib.contextmanager
def cut_off(server: EmbeddedServer) -> Iterator[None]:
    """Stop the server, and start it again with what it kept on disk, if anything."""
    server.stop()
    try:
        yield
    finally:
        server.start()


@contextlib.contextmanager
def read_only(server: EmbeddedServer) -> Iterator[None]:
    """Make the server the replica of one that does not exist."""
    with redis.Redis.from_url(server.url) as admin:
        admin.replicaof("127.0.0.1", "1")
        try:
            yield
        finally:
            admin.replicaof("NO", "ONE")


@contextlib.contextmanager
def out_of_memory(server: EmbeddedServer) -> Iterator[None]:
    """Leave the server no memory."""
    with redis.Redis.from_url(server.url) as admin:
        admin.config_set("maxmemory-policy", "noeviction")
        admin.config_set("maxmemory", 1)
        try:
            yield
        finally:
            admin.config_set("maxmemory", 0)


Weather = Callable[[EmbeddedServer], contextlib.AbstractContextManager[None]]

WEATHERS: dict[str, tuple[Weather, bool]] = {
    "frozen": (frozen, False),
    "empty": (cut_off, False),
    "restarted": (cut_off, True),
    "read-only": (read_only, False),
    "out-of-memory": (out_of_memory, False),
}


class Scene:
    """A job in a worker, and a viewer.

    Attributes:
      gates: Where the job waits: before its updates, after them, and before its
        message is acknowledged.
    """

    def __init__(self, url: str, server: EmbeddedServer) -> None:
        self.server = server
        # A viewer is another process with its own connections.
        self.store = JobStore(server.url, stalled_after=60)
        self.gates = gates = [Gate(), Gate(), Gate()]
        middleware = JobStateMiddleware(
            JobStore(server.url), interval=0.02, heartbeat=0.1
        )

        class Storm(Middleware):
            def before_ack(self, broker: Any, message: Any) -> None:
                gates[2].wait()

        self.broker = make_broker(url, middleware, others=(Storm(),))

        @job_actor(broker=self.broker, max_retries=0)
        def run_marathon(miles: int, *, job_state: Any) -> None:
            job_state.set_progress_metrics(before=[1], count=0)
            job_state.append_log("on we go")
            gates[0].wait()
            for number in job_state.track(range(200), unit="steps", message="Running"):
                job_state.set_progress_metric("number", number)
                job_state.increment_progress_metric("count")
            job_state.append_log("nearly there")
            gates[1].wait()
            job_state.set_progress_metric("last", True)

        self.run_marathon = run_marathon

    def send(self) -> None:
        options = {"args": (26,), "job_owner": "alice"}
        self.uuid = self.run_marathon.send_with_options(**options).message_id

    def begin(self) -> None:
        """Send the job, and see it begin."""
        self.send()
        self.gates[0].wait_for_job()
        self.see(lambda state: state.progress_metrics.get("before"))

    def end(self) -> None:
        """Let the job end, and wait until its message is acknowledged."""
        self.gates[1].open()
        self.gates[2].wait_for_job()
        self.gates[2].open()
        self.broker.join("default", timeout=20_000)

    def see(self, condition: Callable[[JobState], object]) -> JobState:
        """Wait until a viewer sees the job so."""

        def seen() -> JobState | None:
            with contextlib.suppress(redis.RedisError):
                state = self.store.load(self.uuid)
                return state if state is not None and condition(state) else None
            return None

        return wait_for(seen)

    def check(self, status: str) -> None:
        """Check that everything that the job reported is stored, with its status."""
        state = self.see(lambda s: len(s.log) == 2 and s.status == status)
        assert (state.actor, state.owner) == ("run_marathon", "alice")
        assert state.job_params == {"miles": 26} and state.attempt == 1
        found = {"before": [1], "count": 200, "number": 199}
        if status == "success":
            found["last"] = True
        assert state.progress_metrics == found
        assert state.progress and state.progress[:3] == (200, 200, "steps")
        assert state.message == "Running"
        assert state.log == ["on we go", "nearly there"]


@pytest.fixture
def weather_scene(
    request: pytest.FixtureRequest, redis_url: str, tmp_path: Any
) -> Iterator[Scene]:
    options: dict[str, Any] = {}
    if getattr(request, "param", False):
        options = {"directory": str(tmp_path), "arguments": ["--appendonly", "yes"]}
    with EmbeddedServer(**options) as server:
        scene = Scene(redis_url, server)
        with working(scene.broker, threads=1):
            yield scene
            for gate in scene.gates:
                gate.open()


def outages(caplog: pytest.LogCaptureFixture) -> tuple[int, int]:
    """Return how often an outage was logged, and how often its end was."""
    said = messages(caplog, "pyramid_jobstate", logging.INFO)
    away = [m for m in said if "does not accept updates" in m]
    back = [m for m in said if "accepts updates again" in m]
    assert len(said) == len(away) + len(back), said
    return len(away), len(back)


@pytest.mark.parametrize(
    ("weather", "weather_scene"),
    WEATHERS.values(),
    ids=WEATHERS,
    indirect=["weather_scene"],
)
def test_in_the_middle_and_at_the_end_of_a_job(
    weather_scene: Scene, weather: Weather, caplog: pytest.LogCaptureFixture
) -> None:
    """The job does not notice an outage; once the store is back, a viewer sees it
    working with all its values. An end that cannot be written is kept, even if all else
    is lost; the message is acknowledged at once. Each outage is logged once.
    """
    caplog.set_level(logging.INFO)
    scene = weather_scene
    scene.begin()
    with weather(scene.server):
        scene.gates[0].open()
        scene.gates[1].wait_for_job()
        wait_for(lambda: outages(caplog) == (1, 0))
    scene.check("working")
    wait_for(lambda: outages(caplog) == (1, 1))
    with weather(scene.server):
        scene.end()
        wait_for(lambda: outages(caplog) == (2, 1))
    scene.check("success")
    wait_for(lambda: outages(caplog) == (2, 2))


def test_a_job_that_runs_wholly_without_the_store(weather_scene: Scene) -> None:
    """A job that began and ended while the store was away is stored with its end."""
    weather_scene.server.stop()
    weather_scene.gates[0].open()
    weather_scene.send()
    weather_scene.end()
    weather_scene.server.start()
    weather_scene.check("success")


def test_connections_that_break_all_the_time(weather_scene: Scene) -> None:
    """No update is lost while connections are killed twenty times a second."""
    weather_scene.begin()
    is_over = threading.Event()
    killed = 0

    def kill() -> None:
        nonlocal killed
        with redis.Redis.from_url(weather_scene.server.url) as admin:
            while not is_over.wait(0.05):
                killed += admin.client_kill_filter(_type="normal", skipme=True)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        weather_scene.gates[0].open()
        weather_scene.gates[1].wait_for_job()
        wait_for(lambda: killed >= 20, 10)
        weather_scene.end()
    finally:
        is_over.set()
        killer.join()
    weather_scene.check("success")
