"""How streams learn of changes: over a connection that may be slow, lost or lie."""

import contextlib
import logging
import random
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis

from pyramid_jobstate import JobStore, Progress
from pyramid_jobstate.testing import pass_time
from tests.asgi import LINKS, Exchange, Server, pushing
from tests.jobs import Gate, messages
from tests.relay import Relay, shut
from tests.running import Run
from tests.support import load_job, wait_for, write
from tests.web.streaming import (
    HINT,
    PublicRun,
    UntimedRun,
    batch,
    flagged,
    follow,
    one,
    pooling,
    put,
    put_members,
    refusing_threads,
    report,
    see_an_end,
    statuses,
    told,
    wait_until,
)
from tests.webapp import make_config

LOST = "The connection on which the job state store tells of changes is lost. Streams "
AGAIN = "The job state store tells of changes again."

Lines = Callable[[], list[str]]

#: What a server may say instead of an answer.
LOADING = "LOADING Redis is loading the dataset in memory"
BUSY = "BUSY Redis is busy running a script"

#: What a server says when all keys may have changed.
ALL_CHANGED = b">2\r\n$10\r\ninvalidate\r\n_\r\n"


class TrackingRelay(Relay):
    """A relay that holds up, loses or falsifies connections that tell of changes."""

    def __init__(self, url: str) -> None:
        self._all_told: list[socket.socket] = []
        #: What was asked on them.
        self.asked = b""
        #: Whether it holds back what the server has said there.
        self.is_holding = False
        super().__init__(url, {})

    @property
    def told(self) -> list[socket.socket]:
        """Those that are open."""
        return [sock for sock in self._all_told if sock.fileno() != -1]

    def lose(self) -> None:
        shut(*self.told)

    def say(self, data: bytes) -> None:
        """Send bytes as if the server said them."""
        for sock in self.told:
            sock.sendall(data)

    def _refusal(self, client: socket.socket, request: bytes) -> bytes | None:
        if client in self._all_told:
            self.asked += request
        elif b"TRACKING" in request:
            self._all_told.append(client)
        elif b"HELLO" not in request:
            return None
        return super()._refusal(client, request)

    def _hold(self, client: socket.socket) -> None:
        if client in self._all_told and not self._passes.is_set():
            self.is_holding = True
            super()._hold(client)
            self.is_holding = False


@pytest.fixture
def relay(redis_url: str) -> Iterator[TrackingRelay]:
    with contextlib.closing(TrackingRelay(redis_url)) as relay:
        yield relay


@pytest.fixture
def far(relay: TrackingRelay) -> Iterator[Server]:
    with pushing(make_config(relay.url)) as server:
        yield server


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> Lines:
    """Returns what was logged of streams, without the reasons of outages."""
    caplog.set_level(logging.INFO, "pyramid_jobstate")

    def lines() -> list[str]:
        found = messages(caplog, "pyramid_jobstate", logging.INFO)
        found = [line for line in found if not line.startswith("Job states are stored")]
        return [LOST if line.startswith(LOST) else line for line in found]

    return lines


def names(stream: Exchange) -> list[str]:
    """Return the names of the events of a stream that were no states."""
    return [event.name for event in stream.events if event.name != "message"]


# What is read, and when


def test_changes_are_read_together(pushed, runs):
    """Many changes are few readings, 20 ms apart, and the newest wins."""
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


def test_stream_takes_nothing_from_before_it(far, relay, runs):
    """A stream takes no reply that was on its way when it began."""
    run = runs.start(n=0)
    first = follow(far, run)
    with relay.held():
        second = far.watch(one(run.uuid))
        # The server has answered.
        wait_for(lambda: relay.is_holding)
        run.report(n=2)
        third = far.open(one(run.uuid))
        assert third.at(0).state["n"] == 2
    wait_for(lambda: told(first)[-1] == 2)
    report(run, 3, first, second, third)
    assert told(third) == [2, 3]


def test_stream_that_begins_during_a_reading_waits_for_no_change(relay, store):
    """A job that is being read when a stream begins is read once more for it."""
    gate = Gate()

    def gated(app: Any) -> Any:
        def application(environ: Any, start_response: Any) -> Any:
            answer = app(environ, start_response)
            if "HTTP_X_GATE" in environ:
                gate.wait()
            return answer

        return application

    # A job without a worker, whose sign of life would have it read, too.
    job = put(store)
    config = make_config(relay.url, settings={"jobstate.stalled_after": "600"})
    with pushing(config, gated) as server:
        first = server.watch(one(job))
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


def test_silence_is_shown_without_a_change(redis_url, store):
    """A stream shows that a job has become quiet, and that it is stalled, though nobody
    writes meanwhile.
    """
    job = put(store, kind=UntimedRun, progress=Progress(1, 4))
    config = make_config(redis_url, settings={"jobstate.stalled_after": "30"})

    def seen() -> list[tuple[str, bool]]:
        states = [event.state for event in stream.events if event.name == "message"]
        return [
            (s["job"]["status"], s["job"]["quiet_since"] is not None) for s in states
        ]

    with pushing(config) as server:
        pass_time(store, 14)
        stream = server.open(one(job))
        wait_until([("working", False), ("working", True)], seen)
        pass_time(store, 14)
        wait_until(("stalled", True), lambda: seen()[-1])
        assert ("stalled", False) not in seen()


def test_only_what_is_shown_is_read(far, relay, runs, store):
    """A job is read while a client that may see it is shown it. Nobody else's is."""
    run, other, hidden = runs.start(n=0), runs.start(n=0), put(store, owner="bob")
    gone, staying = follow(far, run), far.open(batch(other.uuid, hidden))
    report(other, 1, staying)
    gone.go().wait()
    report(run, 2)
    report(other, 2, staying)
    asked = relay.asked.count(run.uuid.encode())
    for n in 3, 4:
        report(run, n)
        report(other, n, staying)
    assert relay.asked.count(run.uuid.encode()) == asked
    assert hidden.encode() not in relay.asked
    assert len(relay.told) == 1
    staying.go().wait()
    for _ in range(2):
        far.pass_time(6)
    wait_for(lambda: not relay.told)
    follow(far, other, 6)


def test_more_jobs_than_are_asked_for_at_a_time(far, relay, store):
    """Hundreds of jobs are read in turn. Those that wait for their turn may leave."""
    made, uuids = put_members(store, 200)
    _, others = put_members(store, 100)
    groups = uuids[:100], uuids[100:], others[:80], others[80:]
    streams = [far.watch(batch(*group), count=len(group)) for group in groups]
    wait_for(lambda: relay.asked.count(b"HGETALL") >= 600)
    # By the time that this end is shown, all that was asked before has been answered.
    assert "cancelled" in see_an_end(far, store)
    before = len(relay.asked)
    with relay.held():
        relay.say(ALL_CHANGED)
        wait_for(lambda: relay.asked[before:].count(b"HGETALL") >= 500)
        far.pass_time(0.1)
        assert relay.asked[before:].count(b"HGETALL") == 500
        # Of the 50 jobs that wait, 20 leave.
        streams[3].go().wait()
    wait_for(lambda: all(uuid.encode() in relay.asked[before:] for uuid in others[:80]))
    made.cancel()
    for stream in streams[:2]:
        assert statuses(stream.wait()).count("cancelled") == 100


# Connections that are lost


def test_short_break_is_told_to_nobody(far, relay, runs, log):
    """What changes while the connection is lost is read again, and only logged."""
    several = [runs.start(n=0) for _ in range(3)]
    streams = [follow(far, run) for run in several]
    with relay.held():
        far.open(one(several[0].uuid)).at(0)
        wait_for(lambda: relay.is_holding)
        relay.lose()
        for run in several:
            run.report(n=2)
        wait_until([LOST], log)
    far.pass_time(1)
    for stream, run in zip(streams, several, strict=True):
        wait_until(2, lambda stream: told(stream)[-1], stream)
        report(run, 3, stream)
        assert names(stream) == []
    wait_until([LOST, AGAIN], log)


@pytest.mark.promise("stream-outlives-the-store")
def test_store_that_hangs_is_away(far, relay, runs, log):
    """A store that is silent for 2 s is away, which is told once, and its end, too."""
    run = runs.start(n=0)
    stream = follow(far, run)
    with relay.held():
        # Within 5 seconds it is asked for a sign of life.
        far.pass_time(6)
        far.pass_time(1.5)
        assert names(stream) == []
        far.pass_time(1)
        wait_until(["away"], names, stream)
        far.pass_time(21)
        wait_until(["away", "beat"], names, stream)
        wait_until([LOST], log)
        # Who comes now is told, too.
        late = far.open(one(run.uuid))
        far.pass_time(3)
        wait_until(["away"], names, late)
        assert stream.until(lambda e: e.name == "away") == ("away", "503", "")
    far.pass_time(1)
    wait_until([0, 1, 1], told, stream)
    report(run, 2, stream, late)
    assert names(stream) == ["away", "beat"]
    # A busy machine may look like more outages.
    wait_until([AGAIN], lambda: log()[-1:])
    fresh = follow(far, run, 3)
    for n in 4, 5:
        far.pass_time(1)
        report(run, n, fresh)
    assert names(fresh) == []


def test_outage_does_not_count_for_a_lost_record(far, relay, client, store):
    """Its worker, which could not write it meanwhile, has six seconds from then on."""
    lost, other = (put(store, metrics={"n": n}) for n in (1, 5))
    stream = far.open(batch(lost, other))
    wait_until([1, 5], told, stream)
    write(store, other, **{"m:n": 6})
    wait_until([1, 5, 6], told, stream)
    kept = client.dump(f"jobstate:{lost}")
    client.delete(f"jobstate:{lost}")
    # It has been missed once this is seen.
    write(store, other, **{"m:n": 7})
    wait_until([1, 5, 6, 7], told, stream)
    with relay.held():
        for seconds in 6, 1.5, 1:
            far.pass_time(seconds)
        wait_until(["away"], names, stream)
    wait_until([1, 5, 6, 7, 7], told, stream)
    client.restore(f"jobstate:{lost}", 0, kept)
    wait_until([1, 5, 6, 7, 7, 1], told, stream)
    assert names(stream) == ["away"]


def test_store_that_does_not_answer_yet(far, relay, runs, log):
    """A store that is loading, busy or full is away from the first stream on."""
    for error in LOADING, BUSY, "ERR max number of clients reached":
        relay.refuse({"CLIENT TRACKING": error})
        relay.lose()
        run = runs.start(n=0)
        stream = far.watch(one(run.uuid))
        wait_until([LOST], lambda: log()[-1:])
        run.report(n=1)
        far.pass_time(3)
        wait_until(["away"], names, stream)
        assert told(stream) == [0]
        relay.refuse({})
        far.pass_time(2)
        wait_until([0, 1], told, stream)
        wait_until([AGAIN], lambda: log()[-1:])
        # A busy machine may look like more outages.
        assert log() == [LOST, AGAIN] * (len(log()) // 2)
        stream.go()


def test_busy_store_has_lost_nothing(far, relay, runs):
    """While a script runs for long, a job is asked for ever more seldom, then away."""
    run = runs.start(n=0)
    stream = follow(far, run)
    begun, asked = time.monotonic(), relay.asked.count(b"HGETALL")
    relay.refuse({"HGETALL": BUSY})
    run.report(n=2)
    wait_for(lambda: relay.asked.count(b"HGETALL") > asked + 3)
    assert time.monotonic() > begun + 0.1 + 0.2 + 0.4
    far.pass_time(3)
    wait_until(["away"], names, stream)
    assert told(stream) == [0, 1]
    relay.refuse({})
    wait_until([0, 1, 2], told, stream)
    # If the server refuses to read the job, its page is to ask by a poll.
    relay.refuse({"HGETALL": "NOPERM this user has no permissions"})
    run.report(n=3)
    stream.wait()
    assert (told(stream), names(stream)) == ([0, 1, 2], ["away", "gone"])
    relay.refuse({})


# What a server says


def test_server_that_says_what_it_should_not(far, relay, runs, caplog):
    """After a reply to no question, or one that is broken, there is a new connection.
    No secret is logged.
    """

    def is_logged(reason: str) -> bool:
        return reason in caplog.text

    run = runs.start(n=0)
    stream = follow(far, run)
    secret = b"*2\r\n$6\r\nparams\r\n$6\r\nsecret\r\n"
    for n, said, reason in (
        (2, b"-ERR going down\r\n", "says unasked: ERR going down"),
        (3, secret, "says unasked: list"),
        (4, b"%1\r\n" + secret + b"+x\r\n", "broken: TypeError"),
    ):
        relay.say(said)
        wait_until(True, is_logged, reason)
        far.pass_time(1)
        report(run, n, stream)
    for n, said, reason in (
        (5, secret, "out of order, with a list"),
        (6, b"%1\r\n+secret\r\n:7\r\n", "broken: AttributeError"),
    ):
        with relay.held():
            far.open(one(run.uuid)).at(0)
            wait_for(lambda: relay.is_holding)
            relay.say(said)
            wait_until(True, is_logged, reason)
        far.pass_time(1)
        report(run, n, stream)
    assert names(stream) == []
    assert "secret" not in caplog.text


@pytest.mark.promise("refused-stream-falls-back")
def test_where_changes_cannot_be_heard_pages_poll(relay, runs, log):
    """When the server does not tell of changes, pages poll for 5 minutes."""
    run = runs.start(n=0)
    url = f"{relay.url}?protocol=2&max_connections=1"
    with pushing(make_config(url)) as server:
        for refused in (
            {"CLIENT TRACKING": "NOPERM no permissions"},
            {"HELLO 3": "ERR unknown command 'HELLO'"},
        ):
            relay.refuse(refused)
            stream = server.open(one(run.uuid))
            assert stream.is_stream
            stream.wait()
            answer = server.ask(one(run.uuid))
            assert (answer.status, answer.is_stream) == (200, False)
            assert b'"n":0' in answer.body
            assert HINT not in server.poll(one(run.uuid)).headers
            server.pass_time(290)
            assert not server.ask(one(run.uuid)).is_stream
            server.pass_time(11)
            assert server.poll(one(run.uuid)).headers[HINT] == "1"
        relay.refuse({})
        follow(server, run)
        assert server.poll(one(run.uuid)).status == 200
        (said,) = log()
        start = "Push is off for 5 minutes, and pages poll: the job state"
        assert said.startswith(start)
        assert "tell of changes: CLIENT TRACKING ON: NOPERM" in said


# Clients of the application's own


def test_pool_of_the_applications_own(redis_url, runs, log):
    """Whatever a pool raises is an outage, and so is that no thread can start."""
    run, failures = runs.start(UntimedRun, n=0), [KeyError("token")]

    def fail(connection: Any, name: str) -> None:
        if name == LINKS and failures:
            raise failures.pop()

    with pooling(redis_url, fail) as (server, pool), refusing_threads(LINKS, 2) as left:
        stream = server.open(one(run.uuid))
        wait_for(lambda: left == [0] and not failures)
        server.pass_time(1)
        report(run, 1, stream)
        wait_until([LOST, AGAIN], log)
        assert pool.lent == 1


def test_connections_that_cannot_be_heard_poll(redis_url, store, log):
    """If a connection shows no socket, pages poll, and the log says why."""
    path = one(put(store))

    def hide(connection: Any, name: str) -> None:
        if name == LINKS:
            connection.disconnect()

    with pooling(redis_url, hide) as (server, _):
        server.open(path).wait()
        answer = server.ask(path)
        assert (answer.status, answer.is_stream) == (200, False)
    (said,) = log()
    assert said.startswith("Push is off") and "show no socket" in said


def test_client_may_have_any_options(redis_url, client, runs):
    """Streams learn of changes with any client, as its user, outside its pool."""
    client.acl_setuser(
        "jobs", enabled=True, passwords=["+hunter2"], keys=["*"], commands=["+@all"]
    )
    run, others = runs.start(n=0), flagged(client)
    own: list[dict[str, Any]] = [
        {"decode_responses": True, "client_name": "web", "health_check_interval": 1},
        {"protocol": 2, "max_connections": 1, "encoding": "latin-1"},
        {"single_connection_client": True, "username": "jobs", "password": "hunter2"},
    ]
    for n, options in enumerate(own, start=1):
        made = redis.Redis.from_url(redis_url, **options)
        with made, pushing(make_config(None), store=JobStore(made), rooms=1) as server:
            follow(server, run, n)
            (found,) = flagged(client, *others)
            assert found["name"] == options.get("client_name", ""), options
            assert found["user"] == options.get("username", "default"), options
        wait_for(lambda: not flagged(client, *others))
    client.acl_deluser("jobs")


def play(server: Server, relay: TrackingRelay, jobs: list[Run], seed: int) -> None:
    """Have jobs report, clients come and go, and links fail, at random. Check that
    no stream goes backwards or begins too early, and that all have the last state.
    """
    dice = random.Random(seed)
    written = dict.fromkeys(jobs, 0)
    opened: list[tuple[Run, Exchange, int]] = []

    def act() -> None:
        run, chance = dice.choice(jobs), dice.random()
        if chance < 0.5:
            written[run] += 1
            run.report(n=written[run])
        elif chance < 0.8:
            opened.append((run, server.open(one(run.uuid), None), written[run]))
        elif chance < 0.9 and opened:
            _, stream, _ = opened.pop(dice.randrange(len(opened)))
            stream.go().wait()
        elif chance < 0.93:
            relay.lose()

    def has(stream: Exchange, n: int) -> bool:
        server.pass_time(0.1)
        return told(stream)[-1:] == [n]

    for _ in range(dice.randrange(3, 8)):
        with relay.held() if dice.random() < 0.7 else contextlib.nullcontext():
            for _ in range(dice.randrange(5)):
                act()
    for run, stream, least in opened:
        wait_until(True, has, stream, written[run])
        seen = told(stream)
        assert seen == sorted(seen), seen
        assert seen[0] >= least, (seen, least)
        stream.go().wait()


@pytest.mark.promise("stream-has-the-last-state")
@pytest.mark.parametrize(
    "count", [8, pytest.param(500, marks=pytest.mark.long)], ids=str
)
@pytest.mark.timeout(900)
def test_no_stream_goes_backwards(relay, runs, count):
    """A stream is told nothing older than what it had, and at last the newest."""
    with pushing(make_config(relay.url), rooms=50) as server:
        for seed in range(count):
            jobs = [runs.start(owner=None, kind=PublicRun, n=0) for _ in range(3)]
            play(server, relay, jobs, seed)
            for run in jobs:
                run.succeed()


@pytest.mark.system
def test_server_that_reads_nothing_is_given_up(relay, caplog):
    """A server that reads nothing for half a second counts as lost."""
    store = JobStore(relay.url, namespace="n" * 200_000)
    jobs = [put(store, "queued") for _ in range(50)]
    settings = {"jobstate.namespace": store.namespace}
    with pushing(make_config(relay.url, settings=settings)) as server:
        stream = server.watch(batch(*jobs), count=50)
        wait_for(lambda: relay.asked.count(b"HGETALL") == 50)
        # What the relay does not read is not to fit into a buffer that has grown.
        for sock in relay.told:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
        with relay.frozen():
            relay.say(ALL_CHANGED)
            wait_for(lambda: "TimeoutError: The server does not read." in caplog.text)
        load_job(store, jobs[0]).cancel()
        assert stream.at(50).state["job"]["status"] == "cancelled"
