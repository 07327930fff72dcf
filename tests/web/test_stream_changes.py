"""How streams learn of changes: over a connection that may be slow, lost or lie."""

from __future__ import annotations

import contextlib
import functools
import logging
import random
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis
from redis.connection import BlockingConnectionPool, ConnectionPool

from pyramid_jobstate import Batch, JobStore
from pyramid_jobstate.testing import put_batch
from tests.asgi import Exchange, Server, pushing
from tests.jobs import Gate, RunMarathon, messages
from tests.relay import TrackingRelay, tracking
from tests.running import Run, Runs
from tests.support import load_job, wait_for
from tests.web.streaming import HINT, PublicRun, batch, one, put, wait_until
from tests.webapp import make_config

LOST = "The connection on which the job state store tells of changes is lost. Streams "
AGAIN = "The job state store tells of changes again."


@pytest.fixture
def relay(redis_url: str) -> Iterator[TrackingRelay]:
    """A relay in front of the store."""
    with tracking(redis_url) as relay:
        yield relay


@pytest.fixture
def far(relay: TrackingRelay) -> Iterator[Server]:
    """An application behind the relay."""
    with pushing(make_config(relay.url)) as server:
        yield server


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """Returns what was logged of streams, without the reasons of outages."""
    caplog.set_level(logging.INFO, "pyramid_jobstate")

    def lines() -> list[str]:
        found = messages(caplog, "pyramid_jobstate", logging.INFO)
        return [
            LOST if line.startswith(LOST) else line
            for line in found
            if not line.startswith("Job states are stored in")
        ]

    return lines


def told(stream: Exchange, run: Run | None = None) -> list[int]:
    """Return the metrics n of the states of a stream, or of one job in it."""
    states = [event.state for event in stream.events if event.name == "message"]
    return [
        state["n"]
        for state in states
        if run is None or state["job"]["uuid"] == run.uuid
    ]


def names(stream: Exchange) -> list[str]:
    """Return the names of the events of a stream that were no states."""
    return [event.name for event in stream.events if event.name != "message"]


def follow(server: Server, run: Run, n: int = 1) -> Exchange:
    """Open a stream of a job that has been told of a change."""
    stream = server.open(one(run.uuid))
    stream.at(0)
    report(run, n, stream)
    return stream


def shown(stream: Exchange, run: Run | None = None) -> int:
    """Return the last of :func:`told`, or -1."""
    return [-1, *told(stream, run)][-1]


def report(run: Run, n: int, *streams: Exchange) -> None:
    """Have a job report, and wait until streams show it."""
    run.report(n=n)
    for stream in streams:
        wait_until(n, shown, stream, run)


# What is read, and when


def test_changes_are_read_together(pushed: Server, runs: Runs) -> None:
    """Many changes in a short time are few readings, 20 ms apart, and the newest
    wins.
    """
    run = runs.start(n=0)
    stream = follow(pushed, run)
    count, begun = len(stream.events), time.monotonic()

    def hurry(job_state: Any) -> None:
        for n in range(2, 200):
            job_state.set_progress_metric("n", n)
            job_state.flush()

    run.do(hurry)
    wait_for(lambda: told(stream)[-1] == 199)
    assert len(stream.events) - count <= 2 + (time.monotonic() - begun) / 0.02


def test_stream_takes_nothing_from_before_it(
    far: Server, relay: TrackingRelay, runs: Runs
) -> None:
    """A reply on its way may be older than a stream that begins meanwhile, which waits
    for the next one. So it is when all others have left.
    """
    run = runs.start(n=0)
    first = follow(far, run)
    with relay.held():
        second = far.open(one(run.uuid))
        second.at(0)
        # The server has answered.
        wait_for(lambda: relay.is_holding)
        run.report(n=2)
        third = far.open(one(run.uuid))
        assert told(third) == [2] or third.at(0).state["n"] == 2
    wait_for(lambda: told(first)[-1] == 2)
    report(run, 3, first, second, third)
    assert told(third) == [2, 3]
    with relay.held():
        fourth = far.open(one(run.uuid))
        fourth.at(0)
        wait_for(lambda: relay.is_holding)
        far.close()
        run.report(n=4)
        again = far.open(one(run.uuid))
        assert again.at(0).state["n"] == 4
    report(run, 5, again)
    assert told(again) == [4, 5]


def test_stream_that_begins_during_a_reading_waits_for_no_change(
    relay: TrackingRelay, store: JobStore
) -> None:
    """What a view has read may be outdated when its stream begins. If a job is being
    read just then, it is read once more, though nothing changes any more.
    """
    gate = Gate()

    def gated(app: Any) -> Any:
        def application(environ: Any, start_response: Any) -> Any:
            answer = app(environ, start_response)
            if "HTTP_X_GATE" in environ:
                gate.wait()
            return answer

        return application

    def statuses(stream: Exchange) -> list[str]:
        return [event.state["job"]["status"] for event in stream.events]

    # A job without a worker, whose sign of life would have it read, too.
    job = put(store)
    config = make_config(relay.url, settings={"jobstate.stalled_after": "600"})
    with pushing(config, gated) as server:
        first = server.open(one(job))
        first.at(0)
        late = server.open(one(job), x_gate="1")
        gate.wait_for_job()
        load_job(store, job).cancel()
        wait_until(["working", "cancelling"], statuses, first)
        with relay.held():
            server.open(one(job)).at(0)
            wait_for(lambda: relay.is_holding)
            gate.open()
            wait_until(["working"], statuses, late)
            for _ in range(3):
                server.pass_time(0.02)
        wait_until(["working", "cancelling"], statuses, late)


def test_only_what_is_shown_is_read(
    far: Server, relay: TrackingRelay, runs: Runs, store: JobStore, client: redis.Redis
) -> None:
    """A job is read while a stream shows it: not one that the client may not see, nor
    one that has ended. Without any stream there is no connection.
    """
    run, other, hidden = runs.start(n=0), runs.start(n=0), put(store, owner="bob")
    gone, staying = (
        far.open(batch(each.uuid, other.uuid, hidden)) for each in (run, other)
    )
    ended = runs.start(n=0)
    over = follow(far, ended)
    ended.succeed()
    over.wait()
    report(run, 1, gone)
    report(other, 1, staying)
    gone.go()
    gone.wait()
    report(run, 2)
    report(other, 2, staying)
    asked = relay.asked
    for n in 3, 4:
        report(run, n)
        report(other, n, staying)
    client.hset(f"jobstate:{ended.uuid}", "another", "field")
    report(other, 5, staying)
    assert relay.asked.count(run.uuid.encode()) == asked.count(run.uuid.encode())
    assert relay.asked.count(ended.uuid.encode()) == asked.count(ended.uuid.encode())
    assert relay.asked.count(other.uuid.encode()) > asked.count(other.uuid.encode())
    assert hidden.encode() not in relay.asked
    assert relay.count == 1
    staying.go()
    staying.wait()
    for _ in range(2):
        far.pass_time(6)
    wait_for(lambda: relay.count == 0)
    follow(far, other, 6)
    assert relay.count == 1


def test_connection_that_comes_too_late_is_closed(
    far: Server, relay: TrackingRelay, runs: Runs, client: redis.Redis
) -> None:
    """A connection that nobody needs any more when it is made is closed at once."""
    run = runs.start(n=0)
    with relay.held():
        stream = far.open(one(run.uuid))
        wait_for(lambda: relay.is_holding)
        stream.go()
        stream.wait()
        far.pass_time(6)
    wait_for(lambda: relay.count == 0)
    follow(far, run)


def put_members(store: JobStore, count: int) -> tuple[Batch, list[str]]:
    """Store a batch of jobs that wait, each of which depends on the batch, too."""
    member = {"status": "queued", "job_state_class": RunMarathon}
    made = put_batch(store, Batch, [member] * count, owner="alice")
    return made, [job.uuid for job in store.members(made.uuid, limit=count).items]


def test_more_jobs_than_are_asked_for_at_a_time(
    far: Server, relay: TrackingRelay, store: JobStore
) -> None:
    """Hundreds of jobs are read in turn, also after a break. Those that wait for theirs
    may leave.
    """
    made, uuids = put_members(store, 200)
    _, others = put_members(store, 100)
    groups = others, uuids[:100], uuids[100:]
    streams = [far.open(batch(*group)) for group in groups]
    for stream in streams:
        stream.at(99)
    relay.lose()
    far.pass_time(1)
    streams[0].go()
    streams[0].wait()
    made.cancel()
    for stream in streams[1:]:
        stream.wait()
        assert len([e for e in stream.events if '"cancelled"' in e.data]) == 100


def test_server_that_remembers_few_keys(
    pushed: Server, client: redis.Redis, store: JobStore
) -> None:
    """A server that forgets which keys were read still tells of all changes."""
    client.config_set("tracking-table-max-keys", 5)
    try:
        _, uuids = put_members(store, 20)
        stream = pushed.open(batch(*uuids))
        stream.at(19)
        for number, job in enumerate(store.load_many(uuids)):
            assert job is not None
            job.cancel()
            stream.at(20 + number)
        stream.wait()
    finally:
        client.config_set("tracking-table-max-keys", 1_000_000)


# Connections that are lost


def test_short_break_is_told_to_nobody(
    far: Server, relay: TrackingRelay, runs: Runs, log: Callable[[], list[str]]
) -> None:
    """What changes while the connection is lost is read when there is another one. The
    log says when it was lost and when that was over; clients hear nothing.
    """
    several = [runs.start(n=0) for _ in range(3)]
    streams = [follow(far, run) for run in several]
    for n in 2, 3:
        if n == 3:
            # A message of the server's may precede its first reply.
            relay.greeting = b">2\r\n$10\r\ninvalidate\r\n_\r\n"
        relay.lose()
        for run in several:
            run.report(n=n)
        far.pass_time(1)
        for stream in streams:
            wait_until(n, shown, stream)
            assert names(stream) == []
        wait_until([LOST, AGAIN] * (n - 1), log)


def test_reply_that_is_lost_is_asked_for_again(
    far: Server, relay: TrackingRelay, runs: Runs
) -> None:
    """A reading that a lost connection leaves half done blocks nobody, and keeps nobody
    busy meanwhile.
    """
    run = runs.start(n=0)
    stream = follow(far, run)
    (hub,) = (t for t in far.threads if t.name == "jobstate-hub")
    assert hub.ident is not None
    clock = time.pthread_getcpuclockid(hub.ident)
    with relay.held():
        for _ in range(2):
            far.open(one(run.uuid)).at(0)
        wait_for(lambda: relay.is_holding)
        relay.refuse(CLIENT_TRACKING="LOADING Redis is loading the dataset in memory")
        relay.lose()
        run.report(n=2)
        wait_for(lambda: relay.count == 0)
        begun, used = time.monotonic(), time.clock_gettime(clock)
        wait_for(lambda: time.monotonic() > begun + 0.5)
        assert time.clock_gettime(clock) - used < 0.2
    relay.refuse()
    far.pass_time(2)
    wait_for(lambda: told(stream)[-1] == 2)


def test_store_that_hangs_is_away(
    far: Server, relay: TrackingRelay, runs: Runs, log: Callable[[], list[str]]
) -> None:
    """A store that keeps its connections and says nothing for 2 seconds is away. Its
    streams are told once, hear signs of life, and get the state that they had once more
    when it answers. The log says so once.
    """
    run = runs.start(n=0)
    stream = follow(far, run)
    with relay.held():
        # Within 5 seconds it is asked for a sign of life.
        far.pass_time(6)
        far.pass_time(1.5)
        assert names(stream) == []
        far.pass_time(1)
        wait_for(lambda: names(stream) == ["away"])
        far.pass_time(21)
        wait_for(lambda: names(stream) == ["away", "beat"])
        wait_for(lambda: log() == [LOST])
        # Who comes now is told, too.
        late = far.open(one(run.uuid))
        far.pass_time(3)
        wait_for(lambda: names(late) == ["away"])
        away = stream.until(lambda event: event.name == "away")
        assert away == ("away", "503", "")
    far.pass_time(2)
    wait_for(lambda: told(stream) == [0, 1, 1])
    report(run, 2, stream, late)
    assert names(stream) == ["away", "beat"]
    wait_for(lambda: log() == [LOST, AGAIN])
    fresh = follow(far, run, 3)
    for n in 4, 5:
        far.pass_time(1)
        report(run, n, fresh)
    assert names(fresh) == []


def test_store_that_does_not_answer_yet(
    far: Server, relay: TrackingRelay, runs: Runs, log: Callable[[], list[str]]
) -> None:
    """A store that is loading, is busy or has too many clients is away, and is asked
    again, from the first stream on.
    """
    for error in (
        "LOADING Redis is loading the dataset in memory",
        "BUSY Redis is busy running a script",
        "ERR max number of clients reached",
    ):
        before = log().count(LOST)
        relay.refuse(CLIENT_TRACKING=error)
        relay.lose()
        run = runs.start(n=0)
        stream = far.open(one(run.uuid))
        stream.at(0)
        wait_until(True, lambda before: log().count(LOST) > before, before)
        run.report(n=1)
        far.pass_time(3)
        wait_until(["away"], names, stream)
        assert told(stream) == [0]
        relay.refuse()
        far.pass_time(2)
        wait_until([0, 1], told, stream)
        wait_until([AGAIN], lambda: log()[-1:])
        assert log() == [LOST, AGAIN] * (len(log()) // 2)
        stream.go()


def test_outage_takes_nothing_of_the_time_of_grace(
    far: Server, relay: TrackingRelay, runs: Runs, client: redis.Redis
) -> None:
    """A job that was missing before an outage may be written again after it."""
    run = runs.start(n=0)
    stream = follow(far, run)
    client.delete(f"jobstate:{run.uuid}")
    far.pass_time(1)
    far.pass_time(3)
    relay.refuse(CLIENT_TRACKING="LOADING Redis is loading the dataset in memory")
    relay.lose()
    far.pass_time(1)
    far.pass_time(3)
    wait_for(lambda: names(stream) == ["away"])
    relay.refuse()
    far.pass_time(2)
    far.pass_time(2)
    assert {*names(stream)} == {"away"}
    report(run, 2, stream)


def test_busy_store_has_lost_nothing(
    far: Server, relay: TrackingRelay, runs: Runs
) -> None:
    """While a script runs for long, a job is neither shown nor missing, and away after
    a while.
    """
    run = runs.start(n=0)
    stream = follow(far, run)
    relay.refuse(HGETALL="BUSY Redis is busy running a script")
    run.report(n=2)
    wait_for(lambda: relay.asked.count(b"HGETALL") > 4)
    far.pass_time(3)
    wait_for(lambda: names(stream) == ["away"])
    assert told(stream) == [0, 1]
    relay.refuse()
    wait_for(lambda: told(stream) == [0, 1, 2])
    report(run, 3, stream)


def test_job_that_must_not_be_read_is_gone(
    far: Server, relay: TrackingRelay, runs: Runs
) -> None:
    """If the server refuses to read a job, its page is to ask by a poll."""
    run = runs.start(n=0)
    stream = follow(far, run)
    relay.refuse(HGETALL="NOPERM this user has no permissions")
    run.report(n=2)
    stream.wait()
    assert (told(stream), names(stream)) == ([0, 1], ["gone"])
    relay.refuse()


# What a server says


def said_in(caplog: pytest.LogCaptureFixture, text: str) -> bool:
    """Return whether something was logged."""
    return text in caplog.text


def test_server_that_says_what_it_should_not(
    far: Server,
    relay: TrackingRelay,
    runs: Runs,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """After bytes that are no reply, or a reply that belongs to no question, nothing
    on the connection can be trusted: there is a new one. The log does not hold what a
    job keeps secret.
    """
    run = runs.start(n=0)
    stream = follow(far, run)
    for n, (said, reason) in enumerate(
        (
            (b"HTTP/1.1 400 Bad Request\r\n\r\n", "rotocol"),
            (b"-ERR going down\r\n", "says unasked: ERR going down"),
            (b"*2\r\n$6\r\nparams\r\n$6\r\nsecret\r\n", "says unasked: list"),
        ),
        start=2,
    ):
        relay.say(said)
        wait_until(True, said_in, caplog, reason)
        far.pass_time(1)
        report(run, n, stream)
    with relay.held():
        far.open(one(run.uuid)).at(0)
        wait_for(lambda: relay.is_holding)
        relay.say(b"*2\r\n$1\r\n1\r\n$1\r\n2\r\n")
        wait_for(lambda: "out of order, with a list" in caplog.text)
    far.pass_time(1)
    report(run, 9, stream)
    # A server that does not even tell the time is as good as lost.
    relay.refuse(TIME="BUSY Redis is busy running a script")
    far.pass_time(6)
    wait_for(lambda: "ResponseError: BUSY" in caplog.text)
    relay.refuse()
    far.pass_time(1)
    report(run, 10, stream)
    assert names(stream) == []
    assert "secret" not in caplog.text


def test_messages_come_in_any_number_and_in_pieces(
    far: Server, relay: TrackingRelay, runs: Runs, log: Callable[[], list[str]]
) -> None:
    """Messages of the server's are understood wherever the network cuts them, and
    thousands may precede a reply. Those of another kind mean nothing.
    """
    run = runs.start(n=0)
    stream = follow(far, run)
    key = f"jobstate:{run.uuid}".encode()
    change = b">2\r\n$10\r\ninvalidate\r\n*1\r\n$%d\r\n%b\r\n" % (len(key), key)
    asked = relay.asked.count(key)
    for number in range(len(change)):
        relay.say(change[number : number + 1])
    wait_for(lambda: relay.asked.count(key) == asked + 1)
    relay.say(b">2\r\n$7\r\nunknown\r\n$1\r\nb\r\n" + change * 5000)
    report(run, 2, stream)
    assert log() == []


@pytest.mark.system
def test_server_that_reads_nothing_is_given_up(
    relay: TrackingRelay, runs: Runs, log: Callable[[], list[str]]
) -> None:
    """Questions that the system's buffers do not hold are sent as the server reads, for
    half a second at most. After that, the connection counts as lost.
    """
    namespace = "n" * 200_000
    store = JobStore(relay.url, namespace=namespace)
    jobs = [put(store, "queued") for _ in range(50)]
    config = make_config(relay.url, settings={"jobstate.namespace": namespace})
    with pushing(config) as server:
        with relay.deaf():
            stream = server.open(batch(*jobs))
            stream.at(49)
            wait_for(lambda: LOST in log())
        server.pass_time(1)
        for number, job in enumerate(store.load_many(jobs)):
            assert job is not None
            job.cancel()
            assert stream.at(50 + number).state["job"]["status"] == "cancelled"
        stream.wait()


# Servers that refuse


def test_where_changes_cannot_be_heard_pages_poll(
    relay: TrackingRelay, runs: Runs, log: Callable[[], list[str]]
) -> None:
    """When the server refuses to tell of changes, the streams end, requests get the
    answer to a poll, and polls offer no stream. After 5 minutes, it is asked again. One
    line says why, however often that is.
    """
    run = runs.start(n=0)
    with pushing(make_config(f"{relay.url}?protocol=2")) as server:
        for refused in (
            {"CLIENT_TRACKING": "NOPERM no permissions"},
            {"HELLO_3": "ERR unknown command 'HELLO'"},
        ):
            relay.refuse(**refused)
            stream = server.open(one(run.uuid))
            assert stream.is_stream
            stream.wait()
            for _ in range(2):
                answer = server.ask(one(run.uuid))
                assert (answer.status, answer.is_stream) == (200, False)
                assert b'"n":0' in answer.body
                assert HINT not in server.poll(one(run.uuid)).headers
            server.pass_time(290)
            assert not server.ask(one(run.uuid)).is_stream
            server.pass_time(11)
            assert server.poll(one(run.uuid)).headers[HINT] == "1"
        relay.refuse()
        follow(server, run)
        (said,) = log()
        assert said.startswith(
            "Push is off for 5 minutes, and pages poll: the job state"
        )
        assert "tell of changes: CLIENT TRACKING ON: NOPERM" in said


# Clients of the application's own


def flagged(client: redis.Redis, *others: dict[str, str]) -> list[dict[str, str]]:
    """Return the connections on which a server tells of changes, without others."""
    known = [c["id"] for c in others]
    found = client.client_list()
    return [c for c in found if "t" in c["flags"] and c["id"] not in known]


class LendingPool(ConnectionPool):
    """A pool of the application's own.

    Attributes:
      lent: How many connections it lends.
      failures: How often it raises for the thread that connects.
    """

    lent = 0
    failures = 0

    def get_connection(self, *args: Any, **kwargs: Any) -> Any:
        if self.failures and threading.current_thread().name == "jobstate-link":
            self.failures -= 1
            raise KeyError("token")
        self.lent += 1
        return super().get_connection(*args, **kwargs)

    def release(self, connection: Any) -> None:
        self.lent -= 1
        super().release(connection)


def test_client_may_have_any_options(
    redis_url: str, client: redis.Redis, runs: Runs
) -> None:
    """Streams learn of changes whatever options the application's client has, whose
    name and user they bear, and take no connection of a limited pool.
    """
    blocking = BlockingConnectionPool.from_url(redis_url, max_connections=1, timeout=1)
    client.acl_setuser(
        "jobs", enabled=True, passwords=["+hunter2"], keys=["*"], commands=["+@all"]
    )
    run, others = runs.start(n=0), flagged(client)
    own: list[dict[str, Any]] = [
        {"decode_responses": True, "client_name": "web", "health_check_interval": 1},
        {"protocol": 2, "max_connections": 1, "encoding": "latin-1"},
        {"protocol": 3, "socket_timeout": None},
        {"single_connection_client": True, "username": "jobs", "password": "hunter2"},
        {"connection_pool": blocking},
    ]
    for n, options in enumerate(own, start=1):
        made = (
            redis.Redis(**options)
            if "connection_pool" in options
            else redis.Redis.from_url(redis_url, **options)
        )
        config = make_config(None)
        with made, pushing(config, store=JobStore(made), rooms=1) as server:
            follow(server, run, n)
            (found,) = flagged(client, *others)
            assert found["name"] == options.get("client_name", ""), options
            assert found["user"] == options.get("username", "default"), options
        wait_for(lambda: not flagged(client, *others))
    client.acl_deluser("jobs")
    blocking.disconnect()


def test_pool_of_the_applications_own(
    redis_url: str, runs: Runs, log: Callable[[], list[str]]
) -> None:
    """Only such a pool knows how it connects. Whatever it raises is an outage. It gets
    its connection back.
    """
    run = runs.start(n=0)
    pool = LendingPool.from_url(redis_url)
    pool.failures = 2
    store = JobStore(redis.Redis(connection_pool=pool))
    with pushing(make_config(None), store=store) as server:
        stream = server.open(one(run.uuid))
        server.pass_time(1)
        server.pass_time(1)
        report(run, 1, stream)
        wait_for(lambda: pool.lent == 1)
        wait_for(lambda: log() == [LOST, AGAIN])
    assert pool.lent == 0
    pool.disconnect()


def test_pool_whose_connections_hide_their_socket(
    redis_url: str, runs: Runs, log: Callable[[], list[str]]
) -> None:
    """Nobody could hear what such a connection is told: pages poll."""

    class Wrapper:
        def __init__(self, connection: Any) -> None:
            self.connection = connection

        def disconnect(self) -> None:
            self.connection.disconnect()

    class WrappingPool(LendingPool):
        def get_connection(self, *args: Any, **kwargs: Any) -> Any:
            found = super().get_connection(*args, **kwargs)
            is_link = threading.current_thread().name == "jobstate-link"
            return Wrapper(found) if is_link else found

        def release(self, connection: Any) -> None:
            super().release(getattr(connection, "connection", connection))

    run = runs.start(n=0)
    pool = WrappingPool.from_url(redis_url)
    store = JobStore(redis.Redis(connection_pool=pool))
    with pushing(make_config(None), store=store) as server:
        server.open(one(run.uuid)).wait()
        assert not server.ask(one(run.uuid)).is_stream
        (said,) = log()
        assert said.startswith("Push is off") and "socket" in said
    assert pool.lent == 0
    pool.disconnect()


# All of it


class Play:
    """A random course of events: jobs report, clients come and go, the connection is
    held up and lost.
    """

    def __init__(
        self, server: Server, relay: TrackingRelay, jobs: list[Run], seed: int
    ) -> None:
        self._server = server
        self._relay = relay
        self._jobs = jobs
        self._dice = random.Random(seed)
        self._written = {run.uuid: 0 for run in jobs}
        self._open: list[tuple[Run, Exchange, int]] = []

    def act(self) -> None:
        """Do anything."""
        dice, run = self._dice, self._dice.choice(self._jobs)
        chance = dice.random()
        if chance < 0.5:
            self._written[run.uuid] += 1
            run.report(n=self._written[run.uuid])
        elif chance < 0.8:
            stream = self._server.open(one(run.uuid), None)
            self._open.append((run, stream, self._written[run.uuid]))
        elif chance < 0.9 and self._open:
            _, stream, _ = self._open.pop(dice.randrange(len(self._open)))
            stream.go()
            stream.wait()
        elif chance < 0.93:
            self._relay.lose()

    def run(self) -> None:
        """Play, and check that no stream goes backwards, that none begins with a state
        that was outdated when it was asked for, and that all have the last one.
        """
        for _ in range(self._dice.randrange(3, 8)):
            held = self._relay.held() if self._dice.random() < 0.7 else None
            with held or contextlib.nullcontext():
                for _ in range(self._dice.randrange(5)):
                    self.act()
        for run, stream, least in self._open:
            last = self._written[run.uuid]
            check = functools.partial(self._has, stream, last)
            wait_for(check)
            seen = told(stream)
            assert seen == sorted(seen), seen
            assert seen[0] >= least, (seen, least)
            stream.go()
            stream.wait()

    def _has(self, stream: Exchange, n: int) -> bool:
        self._server.pass_time(0.1)
        return told(stream)[-1:] == [n]


@pytest.mark.parametrize(
    "count", [8, pytest.param(500, marks=pytest.mark.long)], ids=str
)
@pytest.mark.timeout(900)
def test_no_stream_goes_backwards(relay: TrackingRelay, runs: Runs, count: int) -> None:
    """Whatever happens, what a stream is told is never older than what it had, and at
    last the newest.
    """
    with pushing(make_config(relay.url), rooms=50) as server:
        for seed in range(count):
            jobs = [runs.start(owner=None, kind=PublicRun, n=0) for _ in range(3)]
            Play(server, relay, jobs, seed).run()
            for run in jobs:
                run.succeed()
