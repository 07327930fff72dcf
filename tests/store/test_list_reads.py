"""What a list reads from the store, and what it writes."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import redis

from pyramid_jobstate import JobState, JobStore
from pyramid_jobstate.embedded import EmbeddedServer
from pyramid_jobstate.store.reading import Reader
from tests.jobs import RunMarathon, messages
from tests.listed import create, finish
from tests.support import key_of, wait_for
from tests.webapp import get, make_app, make_config, put_job

MIB = 1024 * 1024

#: Lists a page in a separate process and prints by how many bytes that grew.
MEASURE = """
import sys
from pyramid_jobstate import JobStore

url, wanted = sys.argv[1], eval(sys.argv[2])
store = JobStore(url)
store.list("nobody")

def peak():
    # Not ru_maxrss, which a child takes over from its parent.
    status = open("/proc/self/status").read()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024

before = peak()
page = store.list("alice", limit=1, **wanted)
print(peak() - before, len(page.items), page.cursor is not None)
"""

#: The same over HTTP.
MEASURE_HTTP = """
import sys
from tests.webapp import get, make_app, make_config

app = make_app(make_config(sys.argv[1]))
get(app, "/job_state?limit=1", "nobody")

def peak():
    # Not ru_maxrss, which a child takes over from its parent.
    status = open("/proc/self/status").read()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024

before = peak()
page = get(app, "/job_state?limit=1&" + sys.argv[2], "alice").json
print(peak() - before, len(page["items"]), page["cursor"] is not None)
"""


@pytest.fixture(scope="module")
def large() -> Iterator[str]:
    """The URL of a server with a thousand jobs of 240 KiB each, half of it in the
    parameters.
    """
    with EmbeddedServer() as server, redis.Redis.from_url(server.url) as client:
        filler = b'"' + b"x" * 120 * 1024 + b'"'
        for i in range(1000):
            job = put_job(
                client, **{"m:x": filler, "params": b'{"text":' + filler + b"}"}
            )
            client.zadd('jobstate:active:owner:"alice"', {job: 1e15 + i})
        yield server.url


def measure(code: str, url: str, wanted: str) -> list[str]:
    output = subprocess.check_output([sys.executable, "-c", code, url, wanted])
    return output.decode().split()


@pytest.mark.parametrize(
    "wanted",
    [
        {"kind": "Nope"},
        {"status": "retrying"},
        {"params": {"text": "y"}},
        {"kind": "Nope", "params": {"text": "y"}},
        {"status": "stalled", "params": {"none": None}},
    ],
    ids=str,
)
def test_filtered_page_does_not_hold_what_it_does_not_show(
    large: str, wanted: dict[str, Any]
) -> None:
    """A page that examines a thousand large jobs takes less than 64 MiB."""
    grown, shown, _ = measure(MEASURE, large, repr(wanted))

    assert int(grown) < 64 * MIB
    assert shown == "0"


@pytest.mark.parametrize("query", ["kind=Nope", "status=error", "status=retrying"])
def test_filtered_answer_does_not_hold_what_it_does_not_show(
    large: str, query: str
) -> None:
    """A request that examines a thousand large jobs takes less than 64 MiB."""
    grown, shown, _ = measure(MEASURE_HTTP, large, query)

    assert int(grown) < 64 * MIB
    assert shown == "0"


def test_page_that_shows_one_reads_one(large: str) -> None:
    """Only the jobs on the page are read whole."""
    grown, shown, goes_on = measure(MEASURE_HTTP, large, "kind=RunMarathon")

    assert int(grown) < 64 * MIB
    assert (shown, goes_on) == ("1", "True")


def calls_of(client: redis.Redis) -> dict[str, int]:
    stats: Any = client.info("commandstats")
    return {name.removeprefix("cmdstat_"): s["calls"] for name, s in stats.items()}


WANTED: list[dict[str, Any]] = [
    {},
    {"owner": "alice"},
    {"owner": "alice", "kind": "RunMarathon"},
    {"status": "success"},
    {"status": "queued"},
    {"params": {"miles": 1}},
]


@pytest.mark.parametrize("wanted", WANTED, ids=str)
def test_list_of_right_entries_writes_nothing(
    store: JobStore, client: redis.Redis, wanted: dict[str, Any]
) -> None:
    """Listing a page whose entries are right sends only reading commands."""
    jobs = create(store, 6)
    finish(store, *jobs[:3])
    store.list()

    client.config_resetstat()
    store.list(**wanted, limit=2)

    reads = {"get", "zrevrangebyscore", "hgetall", "hmget", "hstrlen"}
    if wanted.get("status"):
        # The commands of seek.lua.
        reads |= {"evalsha", "eval", "zcount", "zrevrange", "zscore"}
    own = {"config|resetstat", "info", "time", "client|setinfo", "hello", "select"}
    assert set(calls_of(client)) <= reads | own


@pytest.mark.parametrize(
    ("wanted", "trips"),
    [({}, 2), ({"owner": "alice"}, 2), ({"status": "queued"}, 3), ({"params": {}}, 2)],
)
def test_list_takes_few_round_trips(
    store: JobStore,
    monkeypatch: pytest.MonkeyPatch,
    wanted: dict[str, Any],
    trips: int,
) -> None:
    """An unfiltered page takes two round trips, a filtered one up to three."""
    create(store, 30)
    store.list(**wanted)
    sent = []
    send = redis.Connection.send_packed_command

    me = threading.current_thread()

    def count(self: Any, *args: Any, **kwargs: Any) -> Any:
        # The recorder of another test may be writing.
        if threading.current_thread() is me:
            sent.append(self)
        return send(self, *args, **kwargs)

    monkeypatch.setattr(redis.Connection, "send_packed_command", count)

    page = store.list(**wanted, limit=20)

    assert len(page.items) == 20
    assert len(sent) == trips


def test_job_that_no_longer_fits_is_left_out(
    store: JobStore, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job that ends between the two reads of a filtered page is left out, and so is
    one that expires.
    """
    stays, ends, goes = create(store, 3)
    read = Reader.read

    def read_and_change(self: Reader, *args: Any) -> Any:
        found = read(self, *args)
        monkeypatch.undo()
        finish(store, ends)
        client.delete(key_of(store, goes))
        return found

    monkeypatch.setattr(Reader, "read", read_and_change)

    page = store.list(status="queued")

    assert [job_state.uuid for job_state in page.items] == [stays]


def test_params_are_compared_in_portions(store: JobStore, client: redis.Redis) -> None:
    """A filter by parameters finds its jobs among large and small ones alike."""
    filler = "x" * 3 * MIB
    params = [f'{{"n":{i % 3},"text":"{filler if i % 4 else ""}"}}' for i in range(12)]
    jobs = [put_job(client, params=text) for text in params]
    client.zadd("jobstate:active:all", {job: 1e15 - i for i, job in enumerate(jobs)})

    page = store.list(params={"n": 0}, limit=3)

    assert [job_state.uuid for job_state in page.items] == jobs[:9:3]
    assert page.cursor is not None


def test_filter_by_params_passes_over_what_has_none(
    store: JobStore, client: redis.Redis
) -> None:
    """A filter by parameters skips jobs whose parameters are missing or invalid."""
    jobs = [put_job(client) for _ in range(3)]
    client.hdel(key_of(store, jobs[0]), "params")
    client.hset(key_of(store, jobs[1]), "params", "")
    client.zadd("jobstate:active:all", dict.fromkeys(jobs, 1e15))

    assert [job.uuid for job in store.list(params={"miles": 26}).items] == jobs[2:]
    client.delete(key_of(store, jobs[2]))
    assert store.list(params={"miles": 26}) == ([], None)


# A read-only server.


@pytest.fixture
def replica(server: EmbeddedServer) -> Iterator[EmbeddedServer]:
    """A replica of `server`, which refuses writes."""
    with redis.Redis.from_url(server.url) as client:
        client.config_set("repl-diskless-sync-delay", 0)
    arguments = ["--replicaof", f"127.0.0.1 {server.port}"]
    with EmbeddedServer(arguments=arguments) as replica:
        with redis.Redis.from_url(replica.url) as client:
            wait_for(
                lambda: client.info("replication")["master_link_status"] == "up", 20
            )
        yield replica


def test_list_on_a_read_only_server_is_a_list(
    server: EmbeddedServer, replica: EmbeddedServer, caplog: pytest.LogCaptureFixture
) -> None:
    """Index repairs that cannot be written are left for later. Nothing is logged, and
    no job is missing.
    """
    store = JobStore(server.url)
    gone, ended, begun, fine = create(store, 4)
    finish(store, begun)
    with redis.Redis.from_url(server.url) as primary:
        primary.delete(key_of(store, gone))
        primary.hset(key_of(store, ended), "status", "success")
        primary.hset(key_of(store, begun), "status", "retrying")
        primary.wait(1, 5000)
    app = make_app(make_config(replica.url))
    caplog.clear()

    for query, expected in (
        ("", {fine, begun, ended}),
        ("?kind=RunMarathon", {fine, begun, ended}),
        ("?status=retrying", set()),
        (f"?uuid={fine}", {fine}),
    ):
        answer = get(app, f"/job_state{query}", "alice")
        assert answer.status_code == 200
        found = answer.json.get("items") or list(answer.json.get("jobs", {}).values())
        assert {item["job"]["uuid"] for item in found} == expected
    assert messages(caplog, "pyramid_jobstate") == []


def test_repairs_are_made_where_they_can_be(
    store: JobStore, client: redis.Redis
) -> None:
    """If the server accepts writes, listing repairs the entries of its indexes."""
    gone, ended, fine = create(store, 3)
    client.delete(key_of(store, gone))
    client.hset(key_of(store, ended), "status", "success")

    store.list(status="queued")

    assert client.zrange("jobstate:active:all", 0, -1) == [fine.encode()]
    assert client.zrange("jobstate:ended:all", 0, -1) == [ended.encode()]


def test_classes_are_made_only_of_what_is_shown(
    store: JobStore, client: redis.Redis
) -> None:
    """A filter uses the record, whatever the job's class makes of it."""

    class Fickle(JobState):
        @property
        def status(self) -> str:
            return "success"

    job = put_job(client, kind="Fickle")
    client.zadd("jobstate:active:all", {job: 1e15})
    client.zadd("{jobstate:active:all}:working", {job: 1e15})

    assert [found.uuid for found in store.list(status="working").items] == [job]
    assert store.list(status="success").items == []
    assert RunMarathon.kind == "RunMarathon"
