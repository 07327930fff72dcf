"""URLs, clients and servers of a store."""

import asyncio
import concurrent.futures
import functools
import itertools
import logging
import sys
import time
import traceback
from typing import Any
from urllib.parse import quote

import pytest
import redis
from dramatiq.brokers.redis import RedisBroker

from pyramid_jobstate import (
    Counts,
    JobStateMiddleware,
    JobStore,
    StoreUnavailable,
)
from pyramid_jobstate.embedded import EmbeddedServer
from pyramid_jobstate.testing import away, put_job
from tests.jobs import RunMarathon, new_id
from tests.relay import relaying
from tests.store.jobs import make_desk, put
from tests.support import crowded, in_child, load_job
from tests.webapp import make_config, make_request

#: URLs with passwords, which must not show, and URLs that are ambiguous.
WRONG = [
    *(f"redis://:hush{sign}hish@localhost/0" for sign in "#/[]?\n\r\t"),
    "rediss://:hush#hish@[::1]:6379/0",
    "unix://:hush#hish@/tmp/redis.sock?db=0",
    "redis+cluster://:hush/hish@127.0.0.1:1",
    "redis://:12?hush=hish@localhost",
    "redis://localhost:hush/0",
    "redis://:hush@localhost:hish/0",
    "redis://:hush@localhost:99999/0",
    "redis://:hush@local[host/0",
    "redis://:hush@localhost/hish",
    "redis://:hush@localhost/1/2",
    "redis+cluster://:hush@localhost/5",
    "redis://:hush@localhost/0#hish",
    "redis://:hush@localhost/0?hish=1",
    "redis://:hush@localhost/0?socket_timeout=hish",
    " redis://:hush@localhost/0",
    "http://:hush@localhost/0",
    "hush",
    "unix://:hush@?db=0",
]


def everything_of(error: BaseException | None) -> str:
    """Return everything that could be printed of an error."""
    texts = []
    while error is not None:
        texts += [repr(error), str(error), repr(vars(error))]
        texts += traceback.format_exception(error, chain=False)
        chained = everything_of(error.__cause__)
        error = error.__context__
        texts.append(chained)
    return "".join(texts)


def test_wrong_url_is_an_error_that_shows_nothing_of_it(caplog):
    """The error of a URL that cannot be understood says what to do, chains no other,
    and shows no part of a password. Nor does the log.
    """
    caplog.set_level(logging.DEBUG)
    for url in WRONG:
        with pytest.raises(ValueError, match=r"URL .* invalid.*%23") as caught:
            JobStore(url)
        shown = everything_of(caught.value) + caplog.text
        assert "hush" not in shown and "hish" not in shown, url
        assert caught.value.__context__ is caught.value.__cause__ is None


#: URLs, and what a client makes of them.
RIGHT: list[tuple[str, dict[str, Any]]] = [
    ("redis://", {}),
    ("redis://localhost:6380/3", {"host": "localhost", "port": 6380, "db": 3}),
    ("redis://localhost/1?db=3", {"host": "localhost", "db": 3}),
    ("rediss://h:1/2", {"host": "h", "port": 1, "db": 2}),
    ("redis://bob:pw@h/1", {"host": "h", "username": "bob", "password": "pw", "db": 1}),
    ("redis://:p%23%2F%40%5B%3F%0Aw@h", {"host": "h", "password": "p#/@[?\nw"}),
    ("redis://:p@w@h", {"host": "h", "password": "p@w"}),
    ("redis://:pw@[::1]:7/1", {"host": "::1", "port": 7, "password": "pw", "db": 1}),
    ("redis://h?socket_timeout=3&password=pw", {"host": "h", "password": "pw"}),
    (
        "unix://bob@/tmp/redis.sock?db=2&password=pw",
        {"path": "/tmp/redis.sock", "db": 2, "username": "bob", "password": "pw"},
    ),
]


def test_every_documented_form_of_a_url_is_understood():
    """Every documented form of a URL is accepted, and the repr shows the address, but
    no password.
    """
    names = ("host", "port", "db", "path", "username", "password")
    for url, place in RIGHT:
        store = JobStore(url)
        assert isinstance(store.client, redis.Redis)
        kwargs = store.client.connection_pool.connection_kwargs
        assert {name: kwargs[name] for name in names if name in kwargs} == place
        assert "pw" not in repr(store)
    store = JobStore("redis://user:hunter2@example.com:7000/3")
    assert repr(store) == "<JobStore 'jobstate' at example.com:7000/3>"


def test_password_is_shown_nowhere(redis_url, client, caplog):
    """No log line, error, repr or introspectable contains the password, whatever signs
    it has, and whether it is right or wrong or the server is away.
    """
    caplog.set_level(logging.DEBUG, "pyramid_jobstate")
    said: list[str] = []
    rights: dict[str, Any] = {"keys": ["*"], "commands": ["+@all"], "enabled": True}
    client.acl_setuser("jobs", passwords=["+hunter#/2"], reset=True, **rights)
    for password in "hunter#/2", "hunter#/3":
        place = f"jobs:{quote(password, safe='')}@"
        config = make_config(redis_url.replace("//", f"//{place}"))
        config.include("pyramid_jobstate")
        config.make_wsgi_app()
        for category in config.introspector.categorized():
            if category[0].startswith("job state"):
                said += [repr([dict(i["introspectable"]) for i in category[1]])]
        store = JobStore(config.registry.settings["jobstate.redis_url"])
        said += [repr(store)]
        _, run_marathon = make_desk(store)
        run_marathon.send(26)
        try:
            make_request(config).job_states.list()
        except (redis.RedisError, StoreUnavailable) as e:
            said += [everything_of(e)]
        with away(store), pytest.raises(redis.RedisError) as error:
            store.load(new_id())
        said += [everything_of(error.value)]
    client.acl_deluser("jobs")
    assert len(said) >= 7
    assert "could not" in caplog.text or "does not" in caplog.text
    assert "hunter" not in "".join(said) + caplog.text


@pytest.mark.promise("every-server-works")
def test_store_works_with_any_client(redis_url):
    """A client may decode its responses or not, with any encoding, use either protocol,
    and be of a class of the application's.
    """

    class OwnClient(redis.Redis):
        """A class of the application's, such as one that is traced."""

    for decode in False, True:
        for options in {"protocol": 2}, {"protocol": 3}, {"encoding": "latin-1"}:
            with OwnClient.from_url(
                redis_url, decode_responses=decode, **options
            ) as own:
                store = JobStore(own)
                failed = put(store, "error", metrics={"Åsa": "→"})
                job = load_job(store, failed)
                assert job.progress_metrics == {"Åsa": "→"}
                both = store.load_many([failed, new_id()])
                assert [job and job.uuid for job in both] == [failed, None]
                assert store.list("alice").items[0].uuid == failed
                assert store.kinds() == ["class:RunMarathon"]
                assert store.failures(failed).message
                assert load_job(store, put(store, "queued")).cancel()
                assert store.clear(everything=True).done == 2
                assert store.counts(anew=True) == Counts()


def test_server_that_forgot_the_scripts_is_told_them(store):
    """After a restart, the scripts are sent again, also if the server knows some of
    them, and the calls keep their order.
    """
    job = put(store, "working")
    store.client.script_flush()
    assert load_job(store, job).cancel()
    # The server knows how to cancel now, but not how to begin a run.
    other = put_job(store, RunMarathon, "working", metrics={"miles_run": 2})
    assert other.progress_metrics == {"miles_run": 2}


def test_store_of_ones_own_fails_fast(redis_url):
    """Without a server, a store fails at once; if it does not answer, soon."""
    with relaying(redis_url) as relay:
        store = JobStore(relay.url)
        store.load(new_id())
        began = time.monotonic()
        with relay.held(), pytest.raises(redis.TimeoutError):
            store.load(new_id())
        assert time.monotonic() - began < 5
    with pytest.raises(redis.ConnectionError):
        store.load(new_id())


def test_callers_share_few_connections(redis_url, client, store):
    """However many call at once, a client has no more connections than it may, and each
    call is answered in its turn.
    """
    uuid = put(store, "queued")

    def read(own: JobStore) -> str:
        return load_job(own, uuid).status

    before = len(client.client_list())
    # A busy machine may take longer than they would wait by default.
    patient = f"{redis_url}{'&' if '?' in redis_url else '?'}socket_timeout=20"
    option = f"{patient}&max_connections=2"
    for few in JobStore(patient, max_connections=2), JobStore(option):
        ask = functools.partial(read, few)
        with concurrent.futures.ThreadPoolExecutor(20) as pool:
            found = [pool.submit(ask) for _ in range(800)]
        assert {each.result() for each in found} == {"queued"}
        assert len(client.client_list()) - before == 2
        with crowded(few):
            # A forked child has connections of its own.
            assert in_child(ask) == "queued"
        few.client.close()


@pytest.mark.promise("full-pool-is-no-outage")
def test_full_pool_is_no_outage(redis_url):
    """If no connection becomes free, the error is a RedisError that says so, none of
    those that say that the server does not answer. A client of ours waits for half a
    second, and one of the application's as long as its pool does.
    """
    pool = redis.BlockingConnectionPool.from_url(
        redis_url, max_connections=1, timeout=0.01
    )
    clients: list[tuple[Any, dict[str, Any], float]] = [
        (redis_url, {"max_connections": 1}, 0.4),
        (redis.Redis.from_url(redis_url, max_connections=1), {}, 0),
        (redis.Redis(connection_pool=pool), {}, 0),
    ]
    for client, options, least in clients:
        store = JobStore(client, **options)
        with crowded(store):
            for ask in functools.partial(store.load, new_id()), store.counts:
                begun = time.monotonic()
                with pytest.raises(redis.RedisError) as caught:
                    ask()
                assert time.monotonic() - begun >= least
                text = "All 1 connections to the store are in use."
                assert str(caught.value) == text
                assert not isinstance(
                    caught.value, (redis.ConnectionError, redis.TimeoutError)
                )
        assert store.load(new_id()) is None


def test_nobody_knows_of_an_end_without_a_connection(redis_url):
    """A wait that found no connection at its last look says that, and not that the job
    has not ended. One that has the time sees the end.
    """
    store = JobStore(redis_url, max_connections=1)
    uuid = put(store, "success")
    with concurrent.futures.ThreadPoolExecutor(1) as pool, crowded(store):
        for wait in store.wait, lambda *a, **b: asyncio.run(follow(store, *a, **b)):
            with pytest.raises(TimeoutError, match=r"could not be asked .* in use"):
                wait(uuid, timeout=0)
        found = pool.submit(store.wait, uuid, timeout=20)
        # Longer than a call waits.
        time.sleep(0.7)
        assert not found.done()
    assert found.result().status == "success"


async def follow(store: JobStore, uuid: str, timeout: float) -> Any:
    return await store.follow(uuid, timeout=timeout)


def test_limit_is_for_clients_of_ours(redis_url, client):
    """A limit beside a client or a store, and one out of range, is refused."""
    store = JobStore(client)
    text: Any = "5"
    for make in (
        lambda: JobStore(client, max_connections=5),
        lambda: store.replace(max_connections=5),
        lambda: JobStateMiddleware(store, max_connections=5),
        lambda: JobStateMiddleware(client=client, max_connections=5),
        lambda: JobStore(redis_url, max_connections=text),
        lambda: JobStateMiddleware(max_connections=True),
    ):
        with pytest.raises(TypeError, match="max_connections"):
            make()
    for number in 0, 10_000:
        for refuse in functools.partial(JobStore, redis_url), JobStateMiddleware:
            with pytest.raises(ValueError, match="max_connections must be from 1 to"):
                refuse(max_connections=number)
    broker = RedisBroker(url=redis_url)
    broker.add_middleware(middleware := JobStateMiddleware(max_connections=3))
    own: Any = middleware.store_for(broker).client
    assert own.connection_pool.max_connections == 3


@pytest.mark.system
def test_url_may_be_a_unix_socket(tmp_path):
    """A store works over a Unix socket, and its repr shows the path."""
    path = tmp_path / "s"
    with EmbeddedServer(arguments=["--unixsocket", str(path)]):
        store = JobStore(f"unix://{path}")
        assert store.load(put(store, "working")) is not None
        assert str(path) in repr(store)


def test_interrupt_takes_no_connection(redis_url):
    """Wherever it hits a call that waits for a connection, the next call gets it."""
    store = JobStore(redis_url, max_connections=1)

    def load(last: int) -> None:
        """Load a job, and interrupt that at a line of the package, before redis-py has
        found a connection. The thread is one that coverage no longer measures.
        """
        lines = itertools.count()

        def trace(frame: Any, event: str, _: Any) -> Any:
            module, code = frame.f_globals["__name__"], frame.f_code
            if (module, code.co_name) == ("redis.connection", "get_connection"):
                sys.settrace(None)
            if not module.startswith("pyramid_jobstate."):
                return None
            if event == "line" and next(lines) == last:
                raise KeyboardInterrupt
            return trace

        sys.settrace(trace)
        try:
            store.load(new_id())
        finally:
            sys.settrace(None)

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        for last in itertools.count():
            with crowded(store):
                found = pool.submit(load, last)
                concurrent.futures.wait([found], timeout=0.02)
            try:
                found.result(20)
                break
            except KeyboardInterrupt:
                assert store.load(new_id()) is None, last
    assert last > 20
