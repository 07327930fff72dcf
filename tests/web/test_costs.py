"""What jobs, polls and lists cost the store while nobody uses anything beside them."""

import contextlib
import functools
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
import redis

from pyramid_jobstate import JobStore
from pyramid_jobstate.testing import put_job
from tests.asgi import pushing
from tests.store.jobs import Diary
from tests.support import wait_for
from tests.trips import met
from tests.web.operating import operated_app
from tests.web.paging import browse
from tests.web.streaming import one
from tests.web.test_usual import settle
from tests.webapp import get, make_config
from tests.worker.floors import Floor, Held


class Cost(NamedTuple):
    """The round trips of all threads, scripts, and commands, in scripts as well."""

    trips: int
    scripts: int
    commands: int


#: What each step of a job costs, and what a viewer does.
COSTS = {
    "send": Cost(2, 2, 22),
    "start": Cost(1, 1, 19),
    "flush": Cost(1, 1, 5),
    "poll": Cost(1, 0, 1),
    "poll of several": Cost(1, 0, 2),
    "list": Cost(2, 0, 11),
    "page of a job": Cost(1, 0, 1),
    "page of a list": Cost(4, 0, 13),
    "end": Cost(1, 1, 14),
}


#: What does not count: lists are cleaned by chance, and clients connect when they like.
OTHERS = (
    *("zcount", "zremrangebyrank"),
    *("auth", "client|setinfo", "hello", "select"),
    *("config|resetstat", "info"),
)


def commands(client: redis.Redis) -> dict[str, int]:
    """Return how often the server has run each command, and begin to count anew."""
    stats: Any = client.info("commandstats")
    client.config_resetstat()
    calls = {name.partition("_")[2]: each["calls"] for name, each in stats.items()}
    return {name: number for name, number in calls.items() if name not in OTHERS}


def cost_of(client: redis.Redis, act: Callable[[], object]) -> Cost:
    """Return what it costs to do something."""
    trips: list[object] = []

    def meet(connection: object, go: Callable[[], object]) -> object:
        trips.append(connection)
        return go()

    commands(client)
    with met(meet, lambda: True):
        act()
    calls = commands(client)
    return Cost(len(trips), calls.get("evalsha", 0), sum(calls.values()))


@pytest.fixture
def make_floor(store: JobStore) -> Iterator[Callable[..., Floor]]:
    """Makes brokers, whose workers end with the test."""
    with contextlib.ExitStack() as stack:

        def make(**options: Any) -> Floor:
            floor = Floor(store, **{"heartbeat": 3600, **options})
            stack.callback(floor.close)
            return floor

        yield make


@pytest.mark.promise("costs-are-bounded")
def test_what_a_job_and_its_viewers_cost(make_floor, client, paged):
    """A job costs as much as ever, as long as nobody uses another feature."""
    # The worker writes what somebody waits for.
    sender, floor = make_floor(), make_floor(interval=3600)
    held: list[Held] = []

    def send() -> None:
        sender.post("a", job_owner="alice")

    def begin() -> None:
        held.append(floor.begin(sender.waiting()[-1]))

    def flush() -> None:
        job_state = held[-1].job_state
        job_state.set_progress(1, 2, message="on we go")
        job_state.append_log("on we go")
        job_state.set_progress_metric("n", 1)
        assert job_state.flush(10)

    def view(path: str, read: Callable[..., Any] = get) -> None:
        path = path.format(*[each.uuid for each in held])
        assert read(paged, f"/job_state{path}", "alice").status_code == 200

    acts: dict[str, Callable[[], object]] = {
        "send": send,
        "start": begin,
        "flush": flush,
        "poll": lambda: view("/{1}"),
        "poll of several": lambda: view("?uuid={0}&uuid={1}"),
        "list": lambda: view(""),
        "page of a job": lambda: view("/{1}/", browse),
        "page of a list": lambda: view("/", browse),
        "end": lambda: held[-1].end(),
    }
    # First, scripts are loaded, kinds are listed, and jobs are looked at.
    for act in send, begin, flush:
        act()
    held[0].end()
    send()
    begin()
    for path in "/{1}", "":
        view(path)
        settle()
    held[1].end()
    del held[1]
    assert {name: cost_of(client, act) for name, act in acts.items()} == COSTS


def test_what_a_job_costs_that_runs_for_long(make_floor, client, store):
    """Its record and its place in the lists are renewed, without a script more."""
    brief = store.replace(active_expire_in=2)
    held = make_floor(own=brief, interval=3600).begin()
    assert held.job_state.flush(10)
    time.sleep(1.1)

    def flush() -> None:
        held.job_state.set_message("on we go")
        assert held.job_state.flush(10)

    assert cost_of(client, flush) == COSTS["flush"]._replace(commands=12)


@pytest.mark.promise("viewers-share-a-reading")
def test_what_a_stream_costs(make_floor, client, redis_url):
    """Each change of a job is read once for all its viewers, with one command more than
    it takes.
    """
    held = make_floor(interval=3600).begin(job_owner="alice")
    with pushing(make_config(redis_url)) as server:
        streams = [server.watch(f"{one(held.uuid)}?_LOCALE_={n}") for n in range(3)]
        settle()

        def change(number: int) -> None:
            held.job_state.set_progress_metric("n", number)
            assert held.job_state.flush(10)
            assert [s.at(number).state["n"] for s in streams] == [number] * 3

        change(1)
        acts = [functools.partial(change, number) for number in (2, 3, 4)]
        # The hub has a connection of its own kind, and asks for a sign of life there
        # every few seconds.
        least = min(cost_of(client, act) for act in acts)
        assert least == COSTS["flush"]._replace(commands=6)


def test_what_a_view_asks_the_policy(redis_url, store):
    """It asks whether the viewer may see the job and cancel it, and nothing else."""
    asked: list[str] = []
    app = operated_app(redis_url, lambda _, context, right: asked.append(right))
    uuid = put_job(store, Diary, owner="alice").uuid
    for path in f"/{uuid}", f"?uuid={uuid}", "":
        assert get(app, f"/job_state{path}", "alice").status_code == 200
        assert asked == ["view_job", "cancel_job"], path
        asked.clear()


def test_what_an_idle_worker_costs(make_floor, client, store):
    """One script a heartbeat, by which others hear of it."""
    make_floor(heartbeat=0.05).start()
    wait_for(store.workers)
    commands(client)
    begun = time.monotonic()
    time.sleep(0.5)
    calls, seconds = commands(client), time.monotonic() - begun
    # If classes of other tests have hooks, it also looks for ends to tell.
    calls.pop("smembers", None)
    assert 2 < calls["evalsha"] <= seconds / 0.05 + 1
    assert sum(calls.values()) == 8 * calls["evalsha"]


def test_what_a_silent_job_costs(make_floor, client):
    """One command an interval, by which it would learn of its cancel."""
    make_floor(interval=0.05).begin()
    time.sleep(0.1)
    commands(client)
    begun = time.monotonic()
    time.sleep(0.5)
    calls, seconds = commands(client), time.monotonic() - begun
    assert [*calls] == ["zrangebyscore"]
    assert 2 < calls["zrangebyscore"] <= seconds / 0.05 + 1
