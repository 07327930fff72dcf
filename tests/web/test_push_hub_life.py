"""The life of a hub: its thread, its descriptors, its children, its failures."""

from __future__ import annotations

import asyncio
import gc
import logging
import multiprocessing
import os
import threading
import tracemalloc
import uuid
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import pytest
import redis

from pyramid_jobstate import JobState, JobStore
from pyramid_jobstate.embedded import EmbeddedServer
from pyramid_jobstate.store.tracking import Tracker
from pyramid_jobstate.web.push.feed import Feed
from pyramid_jobstate.web.push.forks import watch_forks
from pyramid_jobstate.web.push.hub import REFUSED, Hub
from pyramid_jobstate.web.push.rooms import Rooms
from pyramid_jobstate.web.push.stream import Stream
from pyramid_jobstate.web.push.watch import Watch
from tests.hubs import Basket, LendingPool, end, hub_of
from tests.relay import relaying
from tests.support import frozen, wait_for
from tests.webapp import put_job

LOGGER = "pyramid_jobstate"


@pytest.fixture
def hub(store: JobStore) -> Iterator[Hub]:
    """A hub."""
    with hub_of(store) as hub:
        yield hub


def threads(name: str) -> list[threading.Thread]:
    """Return the threads of a name."""
    return [thread for thread in threading.enumerate() if thread.name == name]


def write(client: redis.Redis, uuid: str, mile: int) -> None:
    """Write a job's metric `miles_run`."""
    client.hset(f"jobstate:{uuid}", "m:miles_run", mile)


@pytest.fixture(autouse=True)
def alone() -> None:
    """End the hubs that tests of other modules have left in this process."""
    for each in list(watch_forks()):
        if isinstance(each, Hub) and each._thread is not None:
            end(each)


def raising_once(act: Callable[..., Any], error: Exception) -> Callable[..., Any]:
    """Return a function that raises when it is first called."""
    left = [error]

    def run(*args: Any, **kwargs: Any) -> Any:
        if left:
            raise left.pop()
        return act(*args, **kwargs)

    return run


@pytest.mark.parametrize(
    ("cls", "name"),
    [
        (Watch, "add"),
        (Watch, "read"),
        (Feed, "take"),
        (Feed, "_update"),
        (Feed, "send_news"),
        (Feed, "tick"),
    ],
    ids=["add", "read", "take", "update", "send", "tick"],
)
def test_a_hub_that_raises_begins_anew(
    hub: Hub,
    client: redis.Redis,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    cls: type,
    name: str,
) -> None:
    """An exception in the hub is logged once, with its traceback. It ends all streams,
    and the next one is served by a new thread.
    """
    job = put_job(client, **{"m:miles_run": 1})
    first = Basket(hub, job)
    first.wait_for_mile(1)
    # Not the class: other tests may have left a hub.
    part = hub._feed if cls is Feed else hub._watch
    failing = raising_once(getattr(part, name), ZeroDivisionError("a bug"))
    monkeypatch.setattr(part, name, failing)
    # A tick may fail before another stream could join.
    others = [] if name == "tick" else [Basket(hub, job)]
    write(client, job, 2)
    for basket in first, *others:
        assert basket.is_over.wait(20)
    wait_for(lambda: hub._thread is None)
    errors = [r for r in caplog.records if r.name == LOGGER and r.exc_info]
    assert [str(r.exc_info[1]) for r in errors if r.exc_info] == ["a bug"]
    third = Basket(hub, job)
    third.wait_for_mile(2)
    write(client, job, 3)
    third.wait_for_mile(3)
    third.leave()


def test_fifty_failures_leave_nothing(
    hub: Hub,
    client: redis.Redis,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A hub that raises again and again leaks neither threads nor descriptors nor
    connections.
    """
    job = put_job(client, **{"m:miles_run": 1})
    report = Feed.report

    def cycle() -> None:
        monkeypatch.setattr(Feed, "report", raising_once(report, KeyError("a bug")))
        assert Basket(hub, job).is_over.wait(20)
        wait_for(lambda: hub._thread is None)

    cycle()
    wait_for(lambda: links(client) == 0)
    before = len(os.listdir("/proc/self/fd")), threading.active_count()
    for _ in range(50):
        cycle()
    wait_for(lambda: not threads("jobstate-link"))
    after = len(os.listdir("/proc/self/fd")), threading.active_count()
    assert after <= before
    wait_for(lambda: links(client) == 0)


def test_a_link_that_comes_after_the_hub_has_failed_is_closed(
    redis_url: str, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread that is still connecting when the hub raises leaves no connection, and
    a pool of the application's own gets back what it has lent.
    """
    job = put_job(client)
    baskets: list[Basket] = []

    def raise_later(self: Feed, *args: Any) -> None:
        # When the link has been made, and nobody has taken it yet.
        wait_for(lambda: baskets and links(client) == 1)
        baskets[0].leave()
        wait_for(lambda: not threads("jobstate-link"))
        raise KeyError("a bug")

    monkeypatch.setattr(Feed, "tick", raise_later)
    pool = LendingPool.from_url(redis_url)
    with hub_of(JobStore(redis.Redis(connection_pool=pool))) as hub:
        baskets.append(Basket(hub, job))
        assert baskets[0].is_over.wait(20)
        wait_for(lambda: hub._thread is None)
        assert pool.lent == 0
        wait_for(lambda: links(client) == 0)
    pool.disconnect()


def links(client: redis.Redis) -> int:
    """Return how many links a server has."""
    return sum("t" in c["flags"] for c in client.client_list())


def test_a_refusal_ends_the_streams_and_is_said_once(
    redis_url: str,
    client: redis.Redis,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """When the server refuses to track, streams end, those too that come meanwhile,
    until the hub asks again. One line says why, however often that is.
    """
    refused = {"CLIENT TRACKING": "NOPERM no permissions"}
    with (
        relaying(redis_url, refused) as relay,
        hub_of(JobStore(relay.url)) as hub,
    ):
        assert not hub.is_refused
        for _ in range(3):
            first = Basket(hub, put_job(client))
            assert first.is_over.wait(20)
            assert hub.is_refused
            late = Basket(hub, put_job(client))
            assert late.is_over.wait(20)
            hub._refused_until -= REFUSED - 60
            assert hub.is_refused
            hub._refused_until -= 60
            assert not hub.is_refused
    (said,) = [r for r in caplog.records if r.name == LOGGER]
    assert said.levelno == logging.WARNING
    assert "tell of changes: CLIENT TRACKING ON: NOPERM" in said.getMessage()


def descriptors() -> dict[str, str]:
    """Return what each open descriptor of this process is."""
    found = {}
    for number in os.listdir("/proc/self/fd"):
        try:
            found[number] = os.readlink(f"/proc/self/fd/{number}")
        except OSError:
            continue
    return found


def in_child(act: Callable[[], str]) -> str:
    """Return what a function returns in a forked child."""
    ours, theirs = multiprocessing.get_context("fork").Pipe(duplex=False)
    pid = os.fork()
    if pid == 0:
        try:
            said = act()
        except BaseException as e:
            said = f"{type(e).__name__}: {e}"
        theirs.send(said)
        os._exit(0)
    theirs.close()
    assert ours.poll(30)
    said = ours.recv()
    ours.close()
    os.waitpid(pid, 0)
    return str(said)


def hub_descriptors(hub: Hub) -> set[str]:
    """Return what the descriptors of a hub are."""
    assert hub._watch is not None
    all_of_them = descriptors()
    links = hub._watch._links
    numbers = [waker.fileno() for waker in hub._wakers or ()]
    numbers += [s.link.fileno() for s in links._servers.values() if s.link]
    sockets = {all_of_them[str(number)] for number in numbers}
    assert len(sockets) == 3
    return sockets


def test_a_forked_child_has_nothing_of_its_parents_hub(
    hub: Hub, client: redis.Redis
) -> None:
    """A child closes its copies of the hub's descriptors, and the parent's link goes
    on.
    """
    job = put_job(client, **{"m:miles_run": 1})
    basket = Basket(hub, job)
    basket.wait_for_mile(1)
    parents = hub_descriptors(hub)
    polls = sum("eventpoll" in what for what in descriptors().values())

    def look() -> str:
        left = descriptors()
        sockets = parents & set(left.values())
        lost = polls - sum("eventpoll" in what for what in left.values())
        return f"{sorted(sockets)}, {lost} selector closed"

    assert in_child(look) == "[], 1 selector closed"
    write(client, job, 2)
    basket.wait_for_mile(2)
    assert links(client) == 1
    basket.leave()


def test_a_forked_child_has_streams_of_its_own(
    hub: Hub, client: redis.Redis, redis_url: str
) -> None:
    """In a child the hub begins anew with the first stream, beside the parent's."""
    job = put_job(client, **{"m:miles_run": 1})
    basket = Basket(hub, job)
    basket.wait_for_mile(1)

    def stream() -> str:
        own = Basket(hub, job)
        own.wait_for_mile(1)
        with redis.Redis.from_url(redis_url) as writer:
            write(writer, job, 2)
            own.wait_for_mile(2)
            return f"{links(writer)} links"

    assert in_child(stream) == "2 links"
    basket.wait_for_mile(2)
    write(client, job, 3)
    basket.wait_for_mile(3)
    basket.leave()


def test_a_forked_child_has_room_for_streams_of_its_own() -> None:
    """The streams of the parent do not count in a child."""
    rooms = Rooms(1)
    assert rooms.take("alice", "h")
    assert in_child(lambda: f"{rooms.take('alice', 'h')}, {rooms.count}") == "True, 1"
    assert not rooms.take("alice", "h")


def test_a_process_that_is_connecting_may_fork(client: redis.Redis) -> None:
    """A hub whose server is away is abandoned in a child like any other."""
    with hub_of(JobStore("redis://127.0.0.1:1/0")) as hub:
        Basket(hub, str(uuid.uuid4()))
        wait_for(lambda: hub._watch is not None and hub._watch._links._servers)
        assert in_child(lambda: str(hub._watch)) == "None"


def test_a_child_of_a_process_without_streams_may_have_some(
    hub: Hub, client: redis.Redis
) -> None:
    """A server that forks its workers after it has loaded the application has hubs
    whose thread never ran.
    """
    job = put_job(client, **{"m:miles_run": 1})

    def stream() -> str:
        Basket(hub, job).wait_for_mile(1)
        return "fine"

    assert in_child(stream) == "fine"


def test_streams_that_come_and_go_leave_nothing(hub: Hub, client: redis.Redis) -> None:
    """Memory does not grow with the number of jobs that were watched."""
    staying = Basket(hub, put_job(client, **{"m:miles_run": 1}))
    staying.wait_for_mile(1)

    def come_and_go(count: int) -> None:
        for i in range(count):
            Basket(hub, f"{i:08x}-0000-4000-8000-000000000000").leave()
        wait_for(lambda: not hub._inbox)
        wait_for(lambda: len(hub._feed._jobs) == 1)

    come_and_go(500)
    gc.collect()
    tracemalloc.start()
    sizes = []
    try:
        # Dictionaries grow with the most jobs at a time. A leak grows in each round.
        for _ in range(5):
            come_and_go(500)
            gc.collect()
            sizes.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    assert min(after - before for before, after in pairwise(sizes)) < 20_000
    staying.leave()


def test_the_hub_knows_the_time_of_the_store(hub: Hub, client: redis.Redis) -> None:
    """The hub's clock is the store's, not this host's."""
    seconds, _ = client.time()
    basket = Basket(hub, put_job(client, **{"m:miles_run": 1}))
    basket.wait_for_mile(1)
    wait_for(lambda: abs(hub.now() / 1000 - seconds) < 20)
    basket.leave()


@pytest.mark.parametrize(
    "error", [SystemExit, KeyboardInterrupt, asyncio.CancelledError]
)
def test_application_that_exits_does_not_end_push(
    hub: Hub, client: redis.Redis, error: type[BaseException]
) -> None:
    """Whatever a class raises for a job, the next stream is served."""

    class Exiting(JobState):
        kind = f"Exiting{error.__name__}"

        @property
        def title(self) -> str:
            raise error

    first = Basket(hub, put_job(client, kind=Exiting.kind))
    assert first.is_over.wait(20)
    second = Basket(hub, put_job(client, **{"m:miles_run": 1}))
    second.wait_for_mile(1)
    second.leave()


def test_hub_that_fails_while_many_come_and_go_tells_them_all(
    hub: Hub, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Carriers that speak to the hub while it ends neither stop its clean-up nor harm
    the next one.
    """
    job = put_job(client, **{"m:miles_run": 1})
    is_over = threading.Event()
    strangers = [Basket(hub, job).stream for _ in range(2)]

    def chatter(stream: Stream) -> None:
        while not is_over.wait(0.0001):
            for _ in range(20):
                hub.taken(stream)
                hub.leave(stream)

    threads = [threading.Thread(target=chatter, args=[s]) for s in strangers]
    for thread in threads:
        thread.start()
    try:
        for _ in range(10):
            hub.start()
            failing = raising_once(hub._feed.send_news, ZeroDivisionError("a bug"))
            monkeypatch.setattr(hub._feed, "send_news", failing)
            wait_for(lambda: hub._thread is None)
    finally:
        is_over.set()
        for thread in threads:
            thread.join()
    last = Basket(hub, job)
    last.wait_for_mile(1)
    last.leave()


def test_streams_that_come_and_go_as_the_hub_ends_are_over(
    hub: Hub, job: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What reaches the hub's thread in its last moment is not forgotten: a stream that
    joins is over, as is one that leaves.
    """
    first = Basket(hub, job)
    late: list[Basket] = []

    def fail() -> None:
        late.append(Basket(hub, job))
        first.leave()
        raise KeyError("a bug")

    monkeypatch.setattr(hub._feed, "send_news", fail)
    assert first.is_over.wait(20)
    assert late[0].is_over.wait(20)


def test_stream_whose_time_is_over_ends_before_the_news(
    hub: Hub, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A change that is read between two ticks ends a stream whose time is over: its
    client comes again for it.
    """
    job = put_job(client, **{"m:miles_run": 1})
    basket = Basket(hub, job)
    basket.wait_for_mile(1)
    monkeypatch.setattr(hub._feed, "tick", lambda *args: None)
    basket.stream.ends_at = 0.0
    write(client, job, 2)
    assert basket.is_over.wait(20)
    assert [state["miles_run"] for state in basket.states] == [1]


def test_job_whose_server_is_unknown_is_looked_for_again(
    hub: Hub, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Cluster may not know at first who holds a job: its stream begins a little
    later.
    """
    job = put_job(client, **{"m:miles_run": 1})
    unknown = raising_once(Tracker.server_of, redis.RedisError("Nobody holds it"))
    monkeypatch.setattr(Tracker, "server_of", unknown)
    basket = Basket(hub, job)
    basket.wait_for_mile(1)
    assert not basket.is_over.is_set()
    basket.leave()


def test_stream_is_told_once_that_the_store_is_away(
    server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its client hears that the store does not answer, then only signs of life, and the
    same state once more when it answers again.
    """
    monkeypatch.setattr("pyramid_jobstate.web.push.links.AWAY_AFTER", 0.2)
    monkeypatch.setattr("pyramid_jobstate.web.push.links.CHECK", 0.5)
    monkeypatch.setattr("pyramid_jobstate.web.push.feed.BEAT", 0.5)
    with (
        redis.Redis.from_url(server.url) as client,
        hub_of(JobStore(server.url)) as hub,
    ):
        job = put_job(client, **{"m:miles_run": 1})
        basket = Basket(hub, job)
        basket.wait_for_mile(1)
        with frozen(server):
            wait_for(lambda: "away" in basket.events)
            told = basket.events.index("away") + 1
            wait_for(lambda: basket.events[told:] == ["beat"])
        wait_for(lambda: len(basket.states) == 2)
        basket.wait_for_mile(1)
        assert basket.events.count("away") == 1
        basket.leave()


def test_job_that_must_not_be_read_is_gone(
    redis_url: str, client: redis.Redis, job: str
) -> None:
    """If the server refuses to read a job, its page is to ask by a poll."""
    rules = ("on", "nopass", "~*", "+@all", "-hgetall")
    client.execute_command("ACL", "SETUSER", "blind", *rules)
    try:
        url = redis_url.replace("://", "://blind:x@")
        with hub_of(JobStore(url)) as hub:
            basket = Basket(hub, job)
            assert basket.is_over.wait(20)
            assert basket.events == ["gone"]
    finally:
        client.execute_command("ACL", "DELUSER", "blind")


def test_what_a_link_left_for_an_ended_thread_is_closed(hub: Hub) -> None:
    """A connection that was made while the thread ended is closed before another one
    starts.
    """
    closed: list[bool] = []
    hub._post_call(lambda: closed.append(True))
    hub.start()
    assert closed == [True]
    assert not hub._inbox
