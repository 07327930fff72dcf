"""The store fails in various ways while jobs go on. The broker has its own server."""

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator
from typing import Any

import dramatiq
import pytest
import redis
from dramatiq.middleware import Middleware

from pyramid_jobstate import JobState, JobStateMiddleware, JobStore
from pyramid_jobstate.embedded import EmbeddedServer
from tests.jobs import Gate, make_broker, messages, working
from tests.support import frozen, wait_for

LOGGER = "pyramid_jobstate"


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


class Storm(Middleware):
    """Holds a job at a gate between its return and its acknowledgement."""

    def __init__(self) -> None:
        self.gate: Gate | None = None

    def before_ack(self, broker: Any, message: Any) -> None:
        if self.gate is not None and message.actor_name == "run_marathon":
            self.gate.wait()


class Scene:
    """A job in a worker, and a viewer.

    Attributes:
      gates: Where the job waits: before its updates, after them, and before its
        message is acknowledged.
      errors: What the actor has raised.
    """

    def __init__(self, url: str, server: EmbeddedServer) -> None:
        self.server = server
        # A viewer is another process with its own connections.
        self.store = JobStore(server.url, stalled_after=60)
        storm = Storm()
        middleware = JobStateMiddleware(
            JobStore(server.url), interval=0.02, heartbeat=0.1
        )
        self.broker = make_broker(url, middleware, others=(storm,))
        self.middleware = middleware
        self.gates = [Gate(), Gate(), Gate()]
        storm.gate = self.gates[2]
        self.errors: list[BaseException] = []
        self.swept = threading.Semaphore(0)

        @dramatiq.actor(broker=self.broker, max_retries=0)
        def run_marathon(miles: int, *, job_state: JobState) -> None:
            try:
                self.run(job_state)
            except BaseException as e:
                self.errors.append(e)
                raise

        @dramatiq.actor(broker=self.broker)
        def sweep() -> None:
            self.swept.release()

        self.sweep = sweep
        self.send = lambda: run_marathon.send_with_options(
            args=(26,), job_owner="alice"
        )

    def run(self, job_state: JobState) -> None:
        job_state.set_progress_metrics(before=[1], count=0)
        job_state.append_log("on we go")
        self.gates[0].wait()
        for number in job_state.track(range(200), unit="steps", message="Running"):
            job_state.set_progress_metric("number", number)
            job_state.increment_progress_metric("count")
        job_state.append_log("nearly there")
        self.gates[1].wait()
        job_state.set_progress_metric("last", True)

    def begin(self) -> None:
        self.uuid = self.send().message_id
        self.gates[0].wait_for_job()
        self.wait_until(lambda state: state.progress_metrics.get("before"))

    def load(self) -> JobState | None:
        try:
            return self.store.load(self.uuid)
        except redis.RedisError:
            return None

    def wait_until(self, condition: Callable[[JobState], object]) -> JobState:
        def holds() -> JobState | None:
            state = self.load()
            return state if state is not None and condition(state) else None

        state = wait_for(holds, 10)
        assert state is not None
        return state

    def check(self, state: JobState) -> None:
        """Check that everything that the job reported is stored."""
        assert (state.kind, state.actor, state.owner) == (
            "JobState",
            "run_marathon",
            "alice",
        )
        assert state.job_params == {"miles": 26} and state.attempt == 1
        metrics = dict(state.progress_metrics)
        metrics.pop("last", None)
        assert metrics == {"before": [1], "count": 200, "number": 199}
        assert state.progress and state.progress[:3] == (200, 200, "steps")
        assert state.message == "Running"
        assert state.log == ["on we go", "nearly there"]

    def finish(self) -> None:
        for gate in self.gates:
            gate.open()


@pytest.fixture
def weather_scene(
    request: pytest.FixtureRequest, redis_url: str, tmp_path: Any
) -> Iterator[Scene]:
    is_kept = getattr(request, "param", False)
    options: dict[str, Any] = {}
    if is_kept:
        options = {"directory": str(tmp_path), "arguments": ["--appendonly", "yes"]}
    with EmbeddedServer(**options) as server:
        scene = Scene(redis_url, server)
        with working(scene.broker, threads=2):
            yield scene
            scene.finish()


def outages(caplog: pytest.LogCaptureFixture) -> tuple[int, int]:
    """Return how often an outage was logged, and how often its end was."""
    said = messages(caplog, LOGGER, logging.INFO)
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
def test_in_the_middle_of_a_job(
    weather_scene: Scene, weather: Weather, caplog: pytest.LogCaptureFixture
) -> None:
    """The job does not notice the outage; once the store is back, a viewer sees the job
    working with all its values, and then its end. The outage is logged once, and other
    messages are processed as usual.
    """
    caplog.set_level(logging.INFO)
    weather_scene.begin()
    with weather(weather_scene.server):
        weather_scene.gates[0].open()
        weather_scene.gates[1].wait_for_job()
        wait_for(lambda: outages(caplog)[0] == 1)
        weather_scene.sweep.send()
        assert weather_scene.swept.acquire(timeout=10)
    state = weather_scene.wait_until(lambda s: len(s.log) == 2)
    assert state.status == "working"
    weather_scene.check(state)
    weather_scene.finish()
    state = weather_scene.wait_until(lambda s: s.is_finished)
    assert state.status == "success" and state.progress_metrics["last"] is True
    weather_scene.check(state)
    assert not weather_scene.errors
    wait_for(lambda: outages(caplog) == (1, 1))


@pytest.mark.parametrize(
    ("weather", "weather_scene"),
    WEATHERS.values(),
    ids=WEATHERS,
    indirect=["weather_scene"],
)
def test_exactly_at_the_end_of_a_job(
    weather_scene: Scene, weather: Weather, caplog: pytest.LogCaptureFixture
) -> None:
    """An end that cannot be written is kept, and written with the last values once the
    store is back, even if all else was lost; the message is acknowledged at once.
    """
    caplog.set_level(logging.INFO)
    weather_scene.begin()
    weather_scene.gates[0].open()
    weather_scene.gates[1].wait_for_job()
    weather_scene.wait_until(lambda s: len(s.log) == 2)
    with weather(weather_scene.server):
        weather_scene.gates[1].open()
        weather_scene.gates[2].wait_for_job()
        weather_scene.gates[2].open()
        weather_scene.broker.join("default", timeout=20_000)
        wait_for(lambda: outages(caplog)[0] == 1)
    state = weather_scene.wait_until(lambda s: s.is_finished)
    assert state.status == "success" and state.progress_metrics["last"] is True
    weather_scene.check(state)
    assert not weather_scene.errors
    wait_for(lambda: outages(caplog) == (1, 1))


def test_at_the_start_of_a_job(
    weather_scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    """A job whose start cannot be written still runs, and is visible once the store is
    back.
    """
    caplog.set_level(logging.INFO)
    weather_scene.server.stop()
    weather_scene.gates[0].open()
    weather_scene.uuid = weather_scene.send().message_id
    weather_scene.gates[1].wait_for_job()
    wait_for(lambda: outages(caplog)[0] == 1)
    weather_scene.server.start()
    state = weather_scene.wait_until(lambda s: len(s.log) == 2)
    assert state.status == "working"
    weather_scene.check(state)
    weather_scene.finish()
    weather_scene.wait_until(lambda s: s.status == "success")
    assert not weather_scene.errors
    # The sender, whose write failed first, logs the outage for all.
    wait_for(lambda: outages(caplog) == (1, 1))


def test_a_job_that_runs_wholly_without_the_store(weather_scene: Scene) -> None:
    """A job that began and ended while the store was away is stored with its end."""
    weather_scene.server.stop()
    weather_scene.finish()
    weather_scene.uuid = weather_scene.send().message_id
    weather_scene.gates[2].wait_for_job()
    weather_scene.broker.join("default", timeout=20_000)
    weather_scene.server.start()
    state = weather_scene.wait_until(lambda s: s.is_finished)
    assert state.status == "success"
    weather_scene.check(state)
    assert not weather_scene.errors


def test_connections_that_break_all_the_time(
    weather_scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    """No update is lost while connections are killed twenty times a second."""
    caplog.set_level(logging.INFO)
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
        weather_scene.finish()
        weather_scene.wait_until(lambda s: s.is_finished)
    finally:
        is_over.set()
        killer.join()
    state = weather_scene.wait_until(lambda s: s.is_finished)
    assert state.status == "success" and state.progress_metrics["last"] is True
    weather_scene.check(state)
    assert not weather_scene.errors
    away, back = outages(caplog)
    assert away - back in (0, 1)


def test_a_store_that_goes_and_comes(
    weather_scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    """Each outage is logged once."""

    def said(away: int, back: int) -> Callable[[], bool]:
        return lambda: outages(caplog) == (away, back)

    caplog.set_level(logging.INFO)
    weather_scene.begin()
    for number in range(1, 4):
        with frozen(weather_scene.server):
            wait_for(said(number, number - 1))
        wait_for(said(number, number), 10)
    weather_scene.finish()
    weather_scene.wait_until(lambda s: s.status == "success")
