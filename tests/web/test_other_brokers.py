"""Sending through other brokers, whose workers may write to another store."""

import contextlib
import gc
import weakref
from collections.abc import Iterator
from typing import Any

import dramatiq.broker
import pytest
import redis
from dramatiq import Broker, Message, actor, group, pipeline
from dramatiq.brokers.redis import RedisBroker
from dramatiq.brokers.stub import StubBroker
from pyramid.config import Configurator
from redis.sentinel import Sentinel
from transaction.interfaces import NoTransaction

from pyramid_jobstate import JobStateMiddleware, JobStore, testing
from pyramid_jobstate.embedded import EmbeddedServer
from tests.jobs import messages, wait_until, working
from tests.webapp import (
    make_app,
    make_broker,
    make_config,
    make_request,
    make_tm_config,
)

pytestmark = pytest.mark.usefixtures("global_broker")


def make_site(url: str | None, store: JobStore | None = None) -> Configurator:
    config = make_tm_config(url)
    config.include("pyramid_jobstate")
    if store is not None:
        config.set_job_store(store)
    make_app(config)
    return config


def begin(config: Configurator) -> Any:
    """Return the job_states of a request of Alice's whose transaction has begun."""
    request = make_request(config, "alice")
    request.tm.begin()
    begun.append(request.tm)
    return request.job_states


#: The managers of the transactions that have begun.
begun: list[Any] = []


def end() -> None:
    """Abort all transactions that have begun."""
    while begun:
        with contextlib.suppress(NoTransaction):
            begun.pop().abort()


@pytest.fixture(autouse=True)
def _end() -> Iterator[None]:
    yield
    end()


def database(url: str, db: int) -> str:
    """Return the URL of another database on the server of a URL."""
    return f"redis://{url.partition('//')[2].partition('/')[0]}/{db}"


def second(url: str, middleware: JobStateMiddleware | None = None) -> RedisBroker:
    """Return another broker, with the actors print_label and, untracked, weigh."""
    broker = RedisBroker(url=url)
    broker.add_middleware(middleware or JobStateMiddleware())

    @actor(broker=broker, job_state=True)
    def print_label(*parcels: Any) -> None:
        pass

    @actor(broker=broker)
    def weigh() -> None:
        pass

    return broker


@pytest.fixture
def other(redis_url: str) -> RedisBroker:
    """Another broker in another database, which writes to the web side's store."""
    return second(database(redis_url, 1), JobStateMiddleware(url=redis_url))


@pytest.fixture
def stray(redis_url: str) -> RedisBroker:
    """Another broker in another database, which also writes there."""
    return second(database(redis_url, 1))


@pytest.fixture
def others(redis_url: str) -> Iterator[redis.Redis]:
    """A client of the other broker's database."""
    with redis.Redis.from_url(database(redis_url, 1)) as client:
        yield client


def sent_to(client: redis.Redis) -> list[str]:
    """Return the ids of the messages in a broker's queue, oldest first."""
    keys = client.lrange("dramatiq:default", 0, -1)
    found: Any = client.hmget("dramatiq:default.msgs", keys)
    return [Message.decode(message).message_id for message in found]


def in_all_ways(job_states: Any, broker: Broker) -> list[Any]:
    """Return calls that send an actor's messages in each way."""
    print_label = broker.get_actor("print_label")

    def many() -> list[Message[Any]]:
        return [print_label.message(i) for i in range(2)]

    return [
        lambda: job_states.send(print_label, 1),
        lambda: job_states.send_with_options(print_label, (1,), delay=1000),
        lambda: job_states.send_message(print_label.message(1), broker=broker),
        lambda: job_states.send_message(pipeline(many(), broker=broker)),
        lambda: job_states.send_message(group(many(), broker=broker)),
        lambda: job_states.send_message(pipeline(many()), broker=broker),
        lambda: job_states.send_immediately(print_label, 1),
        lambda: job_states.send_immediately(print_label.message(1), broker=broker),
        lambda: job_states.send_immediately(group(many(), broker=broker)),
    ]


# The store of the other broker.


def test_actor_whose_states_are_elsewhere_is_refused(
    job_states: Any,
    stray: RedisBroker,
    redis_url: str,
    client: redis.Redis,
    others: redis.Redis,
) -> None:
    """A job whose worker would write to another store is refused, however it is sent.
    The error names the actor and both stores.
    """
    read, written = JobStore(redis_url), JobStore(database(redis_url, 1))

    for send in in_all_ways(job_states, stray):
        with pytest.raises(TypeError, match="in another database") as caught:
            send()
        for part in "'print_label'", repr(read), repr(written):
            assert part in str(caught.value)

    job_states.request.tm.commit()
    assert client.keys() == others.keys() == []


def test_member_whose_states_are_elsewhere_is_refused(
    job_states: Any, stray: RedisBroker, others: redis.Redis
) -> None:
    """A batch does not take a job whose worker would write to another store."""
    print_label = stray.get_actor("print_label")
    with job_states.batch() as batch:
        for send in (
            lambda: batch.send(print_label, 1),
            lambda: batch.send_message(group([print_label.message(1)], broker=stray)),
        ):
            with pytest.raises(TypeError, match="in another database"):
                send()

    job_states.request.tm.commit()
    assert batch.size == 0
    assert others.keys() == []


def test_refusal_names_no_password(
    made_tm_config: Configurator, redis_url: str
) -> None:
    """The error does not contain the passwords of the URLs."""
    address = redis_url.partition("//")[2].partition("/")[0]
    url = f"redis://bob:hush@{address}/1"
    stray = second(database(redis_url, 1), JobStateMiddleware(url=url))

    with pytest.raises(TypeError, match="another database") as caught:
        begin(made_tm_config).send(stray.get_actor("print_label"))

    assert "hush" not in str(caught.value)


def test_other_namespace_is_refused(job_states: Any, redis_url: str) -> None:
    """Another namespace in the same database is refused, too."""
    stray = second(redis_url, JobStateMiddleware(namespace="shop"))

    with pytest.raises(TypeError, match="in another namespace") as caught:
        job_states.send(stray.get_actor("print_label"))

    assert "'shop'" in str(caught.value) and "'jobstate'" in str(caught.value)


def test_other_port_is_refused(
    job_states: Any, redis_url: str, client: redis.Redis, server: EmbeddedServer
) -> None:
    """Another server on the same host is refused: nothing is recorded or sent."""
    stray = second(server.url)

    with pytest.raises(TypeError, match="on another port"):
        job_states.send(stray.get_actor("print_label"))

    job_states.request.tm.commit()
    assert client.keys() == []
    with redis.Redis.from_url(server.url) as client:
        assert client.keys() == []


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "LOCALHOST"])
def test_other_spelling_of_one_place_is_sent(
    made_tm_config: Configurator,
    redis_url: str,
    caplog: pytest.LogCaptureFixture,
    host: str,
) -> None:
    """Another spelling of the same server is accepted, and its job is shown."""
    port = redis_url.rpartition(":")[2].partition("/")[0]
    url = f"redis://{host}:{port}"
    other = second(database(redis_url, 1), JobStateMiddleware(url=url))
    job_states = begin(made_tm_config)

    message = other.get_actor("print_label").message(1)
    with working(other):
        job_states.send_message(message, broker=other)
        job_states.request.tm.commit()
        wait_until(other, message, "success")

    assert job_states[message.message_id].status == "success"
    assert messages(caplog, "pyramid_jobstate") == []


def with_pool(url: str) -> JobStore:
    """Return a store whose client has a pool class of the application's own."""

    class Pool(redis.ConnectionPool):
        pass

    return JobStore(redis.Redis(connection_pool=Pool.from_url(url)))


def by_sentinel(url: str) -> JobStore:
    sentinel = Sentinel([("127.0.0.1", 1)])
    return JobStore(sentinel.master_for("jobs", password="hush", db=1))


def test_client_of_the_applications_own_is_as_certain(
    redis_url: str, global_broker: Broker
) -> None:
    """The address of a plain client is as certain as that of a URL."""
    stray = second(
        redis_url, JobStateMiddleware(client=redis.Redis.from_url(f"{redis_url}?db=1"))
    )

    with pytest.raises(TypeError, match="in another database"):
        begin(make_site(redis_url)).send(stray.get_actor("print_label"))


@pytest.mark.parametrize("make_store", [with_pool, by_sentinel])
def test_what_may_be_one_place_is_warned_of_once(
    made_tm_config: Configurator,
    redis_url: str,
    caplog: pytest.LogCaptureFixture,
    make_store: Any,
    others: redis.Redis,
) -> None:
    """If only the application knows how to connect, the job is sent, and one warning
    shows both stores.
    """
    written = make_store(database(redis_url, 1))
    other = second(database(redis_url, 1), JobStateMiddleware(written))

    for _ in range(3):
        job_states = begin(made_tm_config)
        job_states.send(other.get_actor("print_label"))
        job_states.send_message(other.get_actor("print_label").message(), broker=other)
        # The comparison happens in the call, so nothing has to be sent.
        job_states.request.tm.abort()

    (line,) = messages(caplog, "pyramid_jobstate")
    assert "'print_label'" in line and "hush" not in line
    assert repr(JobStore(redis_url)) in line and repr(written) in line


def test_two_host_names_are_warned_of_once(
    redis_url: str, global_broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    """Two host names may be one server: jobs are sent, with a warning per pair."""
    config = make_site(redis_url)
    other = second(redis_url, JobStateMiddleware(url="redis://db.invalid/1"))
    another = second(redis_url, JobStateMiddleware(url="redis://db.invalid/2"))

    for global_broker in other, other, another, other:
        begin(config).send(global_broker.get_actor("print_label"))

    assert len(messages(caplog, "pyramid_jobstate")) == 2


def test_warning_of_the_start_is_not_repeated(
    redis_url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A pair of stores that the start has warned of is not reported again."""
    other = second(redis_url, JobStateMiddleware(url="redis://db.invalid/1"))
    monkeypatch.setattr(dramatiq.broker, "global_broker", other)

    begin(make_site(redis_url)).send(other.get_actor("print_label"))

    (line,) = messages(caplog, "pyramid_jobstate")
    assert "global broker" in line


def test_unix_socket_is_not_refused(
    redis_url: str, global_broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    """A Unix socket may lead to any server: there is only a warning."""
    config = make_site(redis_url)
    other = second(redis_url, JobStateMiddleware(url="unix:///tmp/redis.sock?db=1"))

    begin(config).send(other.get_actor("print_label"))

    (line,) = messages(caplog, "pyramid_jobstate")
    assert "/tmp/redis.sock" in line


def test_comparison_keeps_no_store(
    made_tm_config: Configurator, redis_url: str
) -> None:
    """The comparison does not keep stores alive."""
    kept = []

    def send() -> None:
        other = second(redis_url, JobStateMiddleware(url="redis://db.invalid/1"))
        begin(made_tm_config).send(other.get_actor("print_label"))
        (middleware,) = (
            m for m in other.middleware if isinstance(m, JobStateMiddleware)
        )
        kept.append(weakref.ref(middleware.store_for(other)))

    send()
    end()
    gc.collect()

    assert kept[0]() is None


def test_tests_of_an_application_may_send_anywhere(
    redis_url: str, stray: RedisBroker, global_broker: Broker
) -> None:
    """With pyramid_jobstate.testing, nothing is written or compared."""
    config = make_config(redis_url)
    config.include("pyramid_jobstate.testing")
    make_app(config)
    job_states = make_request(config).job_states

    for send in in_all_ways(job_states, stray):
        send()

    assert len(testing.outbox(config.registry)) == 13


# The choice of the broker.


def test_message_of_another_broker_says_so(
    job_states: Any, global_broker: Broker, other: RedisBroker, client: redis.Redis
) -> None:
    """An actor that the broker does not know is refused with a hint at `broker=`. With
    the right broker, an untracked actor is refused as untracked.
    """
    label, weigh = other.get_actor("print_label"), other.get_actor("weigh")

    for what in label.message(1), label.message(1) | label.message(2), weigh.message():
        for send in job_states.send_message, job_states.send_immediately:
            with pytest.raises(TypeError, match=r"does not know.*broker=") as caught:
                send(what)
            assert repr(global_broker) in str(caught.value)
    for send in job_states.send_message, job_states.send_immediately:
        with pytest.raises(TypeError, match="'weigh' is not tracked"):
            send(weigh.message(), broker=other)

    job_states.request.tm.commit()
    assert client.keys() == []


def test_message_of_another_broker_says_so_where_the_global_one_tracks_nothing(
    made_tm_config: Configurator, other: RedisBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The unknown actor is reported, not the global broker's lack of a middleware."""
    plain = StubBroker(middleware=[])
    monkeypatch.setattr(dramatiq.broker, "global_broker", plain)

    with pytest.raises(TypeError, match="does not know the actor 'print_label'"):
        begin(made_tm_config).send_message(other.get_actor("print_label").message())
    with pytest.raises(TypeError, match="has no JobStateMiddleware"):
        begin(made_tm_config).send_message(group([]))


def test_actor_of_the_middlewares_other_broker_is_not_known(
    redis_url: str, monkeypatch: pytest.MonkeyPatch, made_tm_config: Configurator
) -> None:
    """Two brokers that share a middleware do not share their actors."""
    middleware = JobStateMiddleware(url=redis_url)
    other = second(redis_url, middleware)
    broker = make_broker(redis_url, middleware)
    monkeypatch.setattr(dramatiq.broker, "global_broker", broker)

    with pytest.raises(TypeError, match="does not know the actor 'print_label'"):
        begin(made_tm_config).send_message(other.get_actor("print_label").message())


@pytest.mark.parametrize("is_now", [False, True])
@pytest.mark.parametrize("form", ["message", "pipeline", "group", "nested"])
def test_broker_can_be_named(
    job_states: Any,
    other: RedisBroker,
    client: redis.Redis,
    others: redis.Redis,
    form: str,
    is_now: bool,
) -> None:
    """A message, pipeline or group goes through the named broker with all its parts.
    Nothing goes through the global broker.
    """
    m = [other.get_actor("print_label").message(i) for i in range(4)]
    forms: dict[str, Any] = {
        "message": m[0],
        "pipeline": m[0] | m[1],
        "group": group([m[0], m[1]]),
        "nested": group([m[0], m[1] | m[2], group([m[3]])]),
    }

    if is_now:
        sent = job_states.send_immediately(forms[form], broker=other)
    else:
        sent = job_states.send_message(forms[form], broker=other)
        job_states.request.tm.commit()

    jobs = [sent] if form == "message" else sent
    assert {job_states[job_state.uuid].status for job_state in jobs} == {"queued"}
    assert client.keys("dramatiq:*") == []
    firsts = {"message": [0], "pipeline": [0], "group": [0, 1], "nested": [0, 1, 3]}
    assert sent_to(others) == [m[i].message_id for i in firsts[form]]


def test_broker_may_be_an_argument_of_an_actor(
    job_states: Any, redis_url: str, global_broker: Broker, client: redis.Redis
) -> None:
    """With an actor, `broker` is an ordinary argument of the actor."""

    @actor(broker=global_broker, job_state=True)
    def insure(*, broker: str) -> None:
        pass

    job_state = job_states.send_immediately(insure, broker="Lloyd's")

    assert job_state.job_params == {"broker": "Lloyd's"}


def test_nested_pipeline_of_another_broker_is_refused(
    job_states: Any, global_broker: Broker, other: RedisBroker, client: redis.Redis
) -> None:
    """A pipeline or group inside a group of another broker is refused. The error names
    both brokers.
    """
    m = [other.get_actor("print_label").message(i) for i in range(2)]
    run_marathon = global_broker.get_actor("run_marathon").message(1)
    mixed: list[Any] = [
        group([run_marathon, pipeline(m, broker=other)]),
        group([run_marathon, group(m, broker=other)]),
        # Easily written by mistake: the pipeline is the global broker's.
        group([m[0] | m[1]], broker=other),
    ]

    for what in mixed:
        with pytest.raises(TypeError, match=r"another broker.*broker=") as caught:
            job_states.send_message(what)
        assert repr(global_broker) in str(caught.value)
        assert repr(other) in str(caught.value)

    job_states.request.tm.commit()
    assert client.keys() == []


@pytest.mark.parametrize("make", [pipeline, group])
def test_member_of_another_broker_is_refused(
    job_states: Any,
    global_broker: Broker,
    other: RedisBroker,
    client: redis.Redis,
    make: Any,
) -> None:
    """Messages of two brokers cannot be mixed: no worker would run them all."""
    members = [
        global_broker.get_actor("run_marathon").message(1),
        other.get_actor("print_label").message(1),
    ]

    with pytest.raises(TypeError, match="does not know the actor 'print_label'"):
        job_states.send_message(make(members))
    with pytest.raises(TypeError, match="does not know the actor 'run_marathon'"):
        job_states.send_message(make(members), broker=other)

    job_states.request.tm.commit()
    assert client.keys() == []


def test_completion_callback_of_another_broker_is_refused(
    job_states: Any, global_broker: Broker, other: RedisBroker
) -> None:
    """A completion callback for another broker's actor is refused."""
    from dramatiq.rate_limits.backends import StubBackend

    global_broker.add_middleware(dramatiq.middleware.GroupCallbacks(StubBackend()))
    what = group([global_broker.get_actor("run_marathon").message(1)])
    what.add_completion_callback(other.get_actor("weigh").message())

    with pytest.raises(TypeError, match="does not know the actor 'weigh'"):
        job_states.send_message(what)
