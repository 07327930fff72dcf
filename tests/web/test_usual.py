"""How long jobs of a kind usually run, as viewers are told."""

import contextlib
import itertools
import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import redis
from webtest import TestApp

from pyramid_jobstate import Batch, JobState
from pyramid_jobstate.testing import put_batch
from tests.asgi import Exchange, Server, pushing
from tests.durations import put_runs
from tests.jobs import Gate, RunMarathon, job_actor, make_broker, working
from tests.store.jobs import Diary
from tests.support import in_child, key_of, wait_for, write
from tests.trips import counting_trips, met
from tests.web.operating import OPERATOR
from tests.web.paging import browse, paged_app
from tests.web.reading import put
from tests.web.streaming import batch as path_of
from tests.web.streaming import one, refusing_threads
from tests.webapp import ADMIN, get, make_app, make_config

USUAL = {"low": 110, "high": 130, "p95": 140}

THREAD = "jobstate-usual"


class Secretive(JobState):
    """A kind of which viewers are not to know how long the jobs of others run."""

    show_usual = False


class Alike(Batch):
    """Batches of equal sizes."""

    show_usual = True


def settle() -> None:
    """Wait until nobody is finding out what is usual."""
    wait_for(lambda: THREAD not in [thread.name for thread in threading.enumerate()])


def is_asking() -> bool:
    """Return whether this thread is finding it out."""
    return threading.current_thread().name == THREAD


@contextlib.contextmanager
def held() -> Iterator[tuple[threading.Event, threading.Event]]:
    """Hold who finds it out, which sets the first event, until the second is set."""
    reached, released = threading.Event(), threading.Event()

    def meet(_: Any, go: Any) -> Any:
        reached.set()
        assert released.wait(30)
        return go()

    with met(meet, is_asking):
        yield reached, released


def poll(app: TestApp, uuid: str, user: str = "alice", **headers: str) -> Any:
    """Return the answer to a poll, after which nothing goes on."""
    answer = get(app, f"/job_state/{uuid}", user, **headers)
    settle()
    return answer


def usual_of(app: TestApp, uuid: str, user: str = "alice") -> Any:
    """Return what the second poll of a job says: the first has it found out."""
    first, second = (poll(app, uuid, user).json["job"]["usual"] for _ in "12")
    assert first is None
    return second


def polled(server: Server, uuid: str) -> Any:
    """Return what a poll under ASGI says."""
    return json.loads(server.poll(one(uuid)).body)["job"]["usual"]


def usuals(stream: Exchange) -> list[Any]:
    """Return what the states say that a stream has shown."""
    events = [event for event in stream.events if event.name == "message"]
    return [event.state["job"]["usual"] for event in events]


@pytest.fixture
def begun() -> Iterator[list[str]]:
    """The threads that have been started to find out what is usual."""
    start, found = threading.Thread.start, []

    def note(thread: threading.Thread) -> None:
        if thread.name == THREAD:
            found.append(thread.name)
        start(thread)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threading.Thread, "start", note)
        yield found


@pytest.mark.promise("usual-durations-are-told")
def test_working_job_says_what_is_usual(app, store, begun):
    """From the second poll on: none waits for it, or takes another round trip."""
    put_runs(store)
    uuid, *others = [put(store) for _ in range(20)]
    poll(app, put(store, status="queued"))
    found = []
    for _ in range(3):
        with counting_trips() as trips:
            found.append(poll(app, uuid).json["job"]["usual"])
        assert len(trips) == 1
    assert found == [None, USUAL, USUAL]
    assert len(begun) == 1
    # A list has it of all its jobs that work, with one thread.
    for seen in [None] * len(others), [USUAL] * len(others):
        with held() as (_, released):
            answer = get(app, "/job_state?status=working", "alice")
            released.set()
            settle()
        items = answer.json["items"]
        assert [item["job"]["usual"] for item in items] == [*seen, USUAL]
    assert len(begun) == 2


def test_all_processes_say_the_same(redis_url, store):
    """They agree for as long as the attempt works, so that its ETag holds."""
    apps = [make_app(make_config(redis_url)) for _ in range(3)]
    put_runs(store)
    uuid = put(store)
    assert usual_of(apps[0], uuid) == USUAL
    tags = {poll(app, uuid).headers["ETag"] for app in apps}
    (tag,) = tags
    put_runs(store, [10] * 100)
    store.client.delete("jobstate:{class:RunMarathon}:durations")
    for app in apps:
        assert poll(app, uuid, If_None_Match=tag).status_code == 304
    assert usual_of(apps[0], put(store)) == {"low": 10, "high": 10, "p95": 10}


def test_other_statuses_do_not_say_it(app, store, begun):
    """Jobs that wait, are silent or are to stop, and those that have ended."""
    put_runs(store)
    for status in "queued", "retrying", "stalled", "cancelling", "success", "error":
        uuid = put(store, status=status)
        write(store, uuid, usual="[110,130,140]")
        assert poll(app, uuid).json["job"]["usual"] is None
    assert not begun


def test_next_attempt_asks_anew(app, store, redis_url):
    """What was usual is not said of the next attempt, nor of a retry that waits."""
    broker, gates = make_broker(redis_url), [Gate(), Gate()]

    @job_actor(broker=broker, min_backoff=1, max_backoff=1, max_retries=1)
    def run_marathon(*, job_state: RunMarathon) -> None:
        gates[job_state.attempt - 1].wait()
        if job_state.attempt == 1:
            raise ValueError("A cramp.")

    put_runs(store)
    with working(broker):
        uuid = run_marathon.send_with_options(job_owner="alice").message_id
        for gate in gates:
            gate.wait_for_job()
            assert usual_of(app, uuid) == USUAL
            gate.open()
    assert poll(app, uuid).json["job"]["usual"] is None


def test_kinds_of_which_nothing_is_known(app, store, begun):
    """A process asks once a minute for them."""
    put_runs(store, [1, 2, 3, 400] * 10)
    put_runs(store, [5] * 19, cls=Diary)
    for uuid in put(store), put(store), put(store, Diary), put(store, Diary):
        assert usual_of(app, uuid) is None
    assert len(begun) == 2


def test_kind_of_which_something_gets_known(redis_url, store):
    """The job says it a minute later, without a report of its own."""
    with pushing(make_config(redis_url)) as server:
        uuid = put(store)
        assert server.poll(one(uuid)).status == 200
        put_runs(store)
        store.client.delete("jobstate:{class:RunMarathon}:durations")
        for seconds in 0, 50:
            server.pass_time(seconds)
            assert polled(server, uuid) is None
        server.pass_time(15)
        assert wait_for(lambda: polled(server, uuid)) == USUAL


def test_streams_say_what_polls_do(redis_url, store):
    """As soon as it is found out, though the job reports nothing."""
    put_runs(store)
    with pushing(make_config(redis_url)) as server:
        uuids = [put(store) for _ in range(3)]
        alone, both = server.open(one(uuids[0])), server.open(path_of(*uuids[1:]))
        wait_for(lambda: usuals(alone).count(USUAL) == 1)
        wait_for(lambda: usuals(both).count(USUAL) == 2)
        assert usuals(alone) == [None, USUAL]
        assert polled(server, uuids[0]) == USUAL


def test_class_may_keep_it_back(redis_url, store, begun):
    """From polls, lists, pages and streams, of operators, too. Nobody asks for it."""
    put_runs(store, cls=Secretive)
    app = paged_app(redis_url)
    uuid = put(store, Secretive)

    def answers() -> Iterator[str]:
        path = "/job_state"
        for query in f"/{uuid}", f"?uuid={uuid}&uuid={uuid}", "?all=1":
            yield get(app, path + query, OPERATOR).text
        for query in f"/{uuid}/", "/?all=1&kind=class:Secretive":
            yield browse(app, path + query, OPERATOR).text

    assert all('"high"' not in text for text in answers())
    with pushing(make_config(redis_url)) as server:
        assert usuals(server.watch(one(uuid))) == [None]
        assert not begun
    write(store, uuid, usual="[110,130,140]")
    assert all('"high"' not in text for text in answers())
    assert store.durations("Secretive").p50 == 120
    with pytest.raises(TypeError, match=r"Loud\.show_usual must be True or False"):
        type("Loud", (JobState,), {"show_usual": "no"})


def test_what_is_not_said(app, store, begun):
    """Unknown classes, nonsense, and what the viewer may not see are left out."""
    put_runs(store)
    uuid = put(store)
    for path in f"/job_state/{uuid}", f"/job_state?uuid={uuid}", "/job_state":
        assert "usual" not in get(app, path, "eve").text
    for text in (
        "",
        '["<b>",1,2]',
        "[]",
        "[1,2]",
        "[-1,2,3]",
        "[1,2,1e999]",
        "{}",
        "NaN",
    ):
        write(store, uuid, usual=text)
        assert poll(app, uuid).json["job"]["usual"] is None
    write(store, uuid, kind="NeverHeardOf", usual="[110,130,140]")
    assert poll(app, uuid, ADMIN).json["job"]["usual"] is None
    assert not begun


def test_batches_say_it_if_their_class_does(app, store):
    """Others may differ in size."""
    for cls, usual in (Batch, None), (Alike, {"low": 60, "high": 60, "p95": 60}):
        for i in range(20):
            uuid = put_batch(store, cls, ["success"]).uuid
            write(store, uuid, started=i * 60_000 + 1, finished=(i + 1) * 60_000 + 1)
        uuid = put_batch(store, cls, ["working"], owner="alice").uuid
        assert usual_of(app, uuid) == usual


@pytest.mark.parametrize(
    "becomes", [{}, {"status": "success"}, {"status": "working", "run": "other"}]
)
def test_job_that_changes_meanwhile(app, store, client, becomes):
    """Its record stays what it has become, or away."""
    put_runs(store)
    uuid = put(store)
    key, changes = key_of(store, uuid), [becomes]

    def meet(_: Any, go: Any) -> Any:
        if changes:
            change = changes.pop()
            client.delete(key)
            if change:
                write(store, uuid, **change)
        return go()

    with met(meet, is_asking):
        poll(app, uuid)
    found: Any = client.hgetall(key)
    assert not changes
    assert {k.decode(): v.decode() for k, v in found.items()} == becomes


def test_troubles_of_who_finds_it_out(app, store, begun, said):
    """If the store goes away, or no thread can start, polls are answered anyway."""
    put_runs(store)
    uuid = put(store)
    with refusing_threads(THREAD, 1):
        assert poll(app, uuid).status_code == 200

    def meet(_: Any, go: Any) -> Any:
        raise redis.ConnectionError

    with met(meet, is_asking):
        poll(app, uuid)
    for _ in range(3):
        assert poll(app, uuid).json["job"]["usual"] is None
    assert len(begun) == 1 and not said()


def test_forked_process_asks_by_itself(app, store):
    """Though its parent was at it as it forked."""
    put_runs(store)
    uuids = [put(store), put(store)]

    def state_of(uuid: str) -> Any:
        return get(app, f"/job_state/{uuid}", "alice").json["job"]

    with held() as (forking, forked):
        state_of(uuids[0])
        assert forking.wait(30)

        def act() -> str:
            forked.set()
            return str(wait_for(lambda: state_of(uuids[1])["usual"]))

        assert in_child(act) == str(USUAL)
        forked.set()
        settle()
    assert poll(app, uuids[0]).json["job"]["usual"] == USUAL


def test_followers_do_not_hear_of_it(app, store, runs, monkeypatch):
    """For them, the job has not changed."""
    put_runs(store)
    run = runs.start()
    load, looks = store.load_many, itertools.count(1)

    def load_many(uuids: Any) -> Any:
        number = next(looks)
        if number == 2:
            assert usual_of(app, run.uuid) == USUAL
        elif number == 4:
            run.end()
        return load(uuids)

    monkeypatch.setattr(store, "load_many", load_many)
    statuses = [job.status for job in store.follow(run.uuid, timeout=20)]
    assert statuses == ["working", "success"]
