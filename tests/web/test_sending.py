"""Sending with the transaction, in real requests and with real databases."""

import contextlib
import datetime
import logging
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dramatiq.broker
import pytest
import redis
import sqlalchemy
import transaction
import zope.sqlalchemy
from dramatiq import Broker, Message, actor, group, pipeline
from dramatiq.brokers.redis import RedisBroker
from dramatiq.middleware import Middleware
from pyramid.config import Configurator
from pyramid.request import Request
from pyramid.response import Response
from transaction.interfaces import TransientError
from webtest import TestApp

from pyramid_jobstate import JobState, JobStateMiddleware
from pyramid_jobstate.embedded import EmbeddedServer
from pyramid_jobstate.job.record import NOT_REACHED, NOT_SENT
from pyramid_jobstate.store.connection import FAIL_FAST
from tests.faulty import faulty
from tests.jobs import messages, working
from tests.support import wait_for
from tests.web.databases import Manager, SQLite, Zodb, fail
from tests.webapp import (
    EXPLICIT,
    NOWHERE,
    get,
    made_config,
    make_app,
    make_broker,
    make_config,
    make_request,
    make_tm_config,
    put_job,
    queued,
)


def visit(
    config: Configurator, view: Callable[[Request], Any], user: str | None = "alice"
) -> Any:
    """Return the response to a request that a view answers."""

    def answer(context: Any, request: Request) -> Any:
        response = view(request)
        return response if isinstance(response, Response) else Response(str(response))

    config.add_view(answer, name="go")
    app = make_app(config)
    return get(app, "/go", user)


def only_job(client: redis.Redis) -> dict[str, str]:
    """Return the only record in the store."""
    (key,) = client.keys("jobstate:????????-*")
    fields: Any = client.hgetall(key)
    return {name.decode(): value.decode() for name, value in fields.items()}


def load(config: Configurator, uuid: str) -> JobState:
    job_state = make_request(config).job_states[uuid]
    assert isinstance(job_state, JobState)
    return job_state


@contextlib.contextmanager
def committing(config: Configurator, user: str | None = "alice") -> Iterator[Any]:
    """Yield the job_states of a request whose transaction then commits."""
    request = make_request(config, user)
    request.tm.begin()
    yield request.job_states
    request.tm.commit()


@pytest.fixture(params=[SQLite, Zodb])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    with contextlib.closing(request.param(tmp_path)) as database:
        yield database


# Commit and abort.


def test_commit_sends_when_the_database_is_durable(
    tm_config: Configurator, global_broker: Broker, client: redis.Redis, database: Any
) -> None:
    """The message is sent once others see what the request wrote, under the uuid that
    the view got. Before, the store has no record.
    """

    class Watch(Middleware):
        def before_enqueue(self, broker: Broker, message: Any, delay: Any) -> None:
            moments.append((database.count(), only_job(client)["status"]))

    def view(request: Request) -> str:
        database.write(request)
        job_state = request.job_states.send(global_broker.get_actor("run_marathon"), 26)
        assert client.keys() == []
        assert job_state.status == "queued" and job_state.owner == "alice"
        return str(job_state.uuid)

    moments: list[Any] = []
    global_broker.add_middleware(Watch())

    response = visit(tm_config, view)

    (message,) = queued(client)
    assert message.message_id == response.text
    assert message.args == (26,)
    assert moments == [(1, "sending")]
    job_state = load(tm_config, response.text)
    assert (job_state.status, job_state.owner) == ("queued", "alice")
    assert (
        make_request(tm_config).job_states.list("alice").items[0].uuid == response.text
    )


def send_and_raise(request: Request, run_marathon: Any) -> None:
    request.job_states.send(run_marathon, 26)
    raise ZeroDivisionError


def send_and_doom(request: Request, run_marathon: Any) -> None:
    request.job_states.send(run_marathon, 26)
    request.tm.doom()
    request.job_states.send(run_marathon, 27)


def send_and_abort(request: Request, run_marathon: Any) -> None:
    request.job_states.send(run_marathon, 26)
    request.tm.abort()
    request.tm.begin()


@pytest.mark.parametrize("how", [send_and_raise, send_and_doom, send_and_abort])
def test_abort_leaves_nothing(
    tm_config: Configurator,
    global_broker: Broker,
    client: redis.Redis,
    database: Any,
    how: Callable[..., Any],
) -> None:
    """A request whose transaction is aborted, however that happens, sends nothing."""

    def view(request: Request) -> None:
        database.write(request)
        how(request, global_broker.get_actor("run_marathon"))

    raises = pytest.raises(ZeroDivisionError) if how is send_and_raise else None
    with raises or contextlib.nullcontext():
        visit(tm_config, view)

    assert client.keys() == []
    assert database.count() == 0


def test_exception_view_leaves_nothing(
    tm_config: Configurator, global_broker: Broker, client: redis.Redis
) -> None:
    """A request answered by an exception view sends nothing, nor does that view."""

    def apologize(exc: Exception, request: Request) -> Response:
        request.job_states.send(global_broker.get_actor("run_marathon"), 1)
        return Response("Sorry")

    tm_config.add_exception_view(apologize, context=ZeroDivisionError)

    response = visit(
        tm_config, lambda r: send_and_raise(r, global_broker.get_actor("run_marathon"))
    )

    assert response.text == "Sorry"
    assert client.keys() == []


def test_exception_view_sends_if_its_transaction_commits(
    redis_url: str, global_broker: Broker, client: redis.Redis
) -> None:
    """If the commit veto accepts an exception view's response, everything is sent, just
    as everything written stays.
    """
    config = make_tm_config(
        redis_url, {**EXPLICIT, "tm.commit_veto": "pyramid_tm.default_commit_veto"}
    )
    run_marathon = global_broker.get_actor("run_marathon")

    def apologize(exc: Exception, request: Request) -> Response:
        request.job_states.send(run_marathon, 1)
        return Response("Sorry")

    config.add_exception_view(apologize, context=ZeroDivisionError)
    visit(config, lambda r: send_and_raise(r, run_marathon))

    assert [m.args for m in queued(client)] == [(26,), (1,)]


@pytest.mark.parametrize(("status", "sent"), [(409, 0), (500, 0), (200, 1), (303, 1)])
def test_commit_veto_leaves_nothing(
    redis_url: str, global_broker: Broker, client: redis.Redis, status: int, sent: int
) -> None:
    """A response that the application's commit veto rejects sends nothing."""
    config = make_tm_config(
        redis_url, {**EXPLICIT, "tm.commit_veto": "pyramid_tm.default_commit_veto"}
    )

    def view(request: Request) -> Response:
        request.job_states.send(global_broker.get_actor("run_marathon"), 26)
        return Response(status=status)

    assert visit(config, view).status_code == status

    assert len(queued(client)) == sent
    assert len(client.keys("jobstate:*-*")) == sent


def test_retried_request_sends_once(
    tm_config: Configurator, global_broker: Broker, client: redis.Redis, database: Any
) -> None:
    """Of the attempts of pyramid_retry, only the last one's job is sent."""
    uuids = []

    def view(request: Request) -> str:
        database.write(request)
        job_state = request.job_states.send(global_broker.get_actor("run_marathon"), 26)
        uuids.append(job_state.uuid)
        if len(uuids) < 3:
            raise TransientError
        return str(job_state.uuid)

    tm_config.include("pyramid_retry")
    response = visit(tm_config, view)

    assert len(set(uuids)) == 3
    assert [m.message_id for m in queued(client)] == [response.text] == uuids[2:]
    assert only_job(client)["status"] == "queued"
    assert database.count() == 1


def test_commit_that_is_retried_sends_once(
    tm_config: Configurator, global_broker: Broker, client: redis.Redis
) -> None:
    """A conflict that arises in the commit, after the records were written, takes them
    back before the next attempt.
    """
    left = ["tpc_vote", "commit"]

    def view(request: Request) -> None:
        request.job_states.send(global_broker.get_actor("run_marathon"), 26)
        if left:
            manager = Manager("~~~", left.pop(), lambda: fail(TransientError))
            request.tm.get().join(manager)

    tm_config.include("pyramid_retry")
    visit(tm_config, view)

    assert left == []
    assert len(queued(client)) == 1
    assert only_job(client)["status"] == "queued"
    assert client.zcard("jobstate:active:all") == 1


# Failures of other data managers.


@pytest.mark.parametrize("key", ["a", "~~~"])
@pytest.mark.parametrize("phase", ["tpc_begin", "commit", "tpc_vote"])
def test_manager_that_fails_leaves_nothing(
    tm_config: Configurator,
    global_broker: Broker,
    client: redis.Redis,
    database: Any,
    phase: str,
    key: str,
) -> None:
    """If another data manager fails, before or after ours, no record and no index entry
    stays, and nothing is sent.
    """

    def view(request: Request) -> None:
        database.write(request)
        request.job_states.send(global_broker.get_actor("run_marathon"), 26)
        request.tm.get().join(Manager(key, phase, fail))

    with pytest.raises(ZeroDivisionError):
        visit(tm_config, view)

    assert client.keys() == []
    # A one-phase database has committed by the last vote.
    is_late = (phase, key) == ("tpc_vote", "~~~")
    assert database.count() == (is_late and isinstance(database, SQLite))


def test_database_that_refuses_at_its_commit_leaves_nothing(
    tm_config: Configurator, global_broker: Broker, client: redis.Redis, sqlite: SQLite
) -> None:
    """A one-phase database fails only in its vote, when the record is already written:
    the record is deleted.
    """
    records = []

    def view(request: Request) -> None:
        session = sqlite.session(request)
        session.execute(sqlalchemy.text("INSERT INTO runner VALUES (42)"))
        zope.sqlalchemy.mark_changed(session, transaction_manager=request.tm)
        request.job_states.send(global_broker.get_actor("run_marathon"), 26)
        note = Manager("a", "tpc_vote", lambda: records.append(only_job(client)))
        request.tm.get().join(note)

    with pytest.raises(sqlalchemy.exc.IntegrityError):
        visit(tm_config, view)

    assert len(records) == 1
    assert client.keys() == []


def test_abort_after_the_end_takes_nothing_back(
    tm_config: Configurator, global_broker: Broker, client: redis.Redis
) -> None:
    """A manager that fails after ours has finished does not affect the job."""

    def view(request: Request) -> None:
        request.job_states.send(global_broker.get_actor("run_marathon"), 26)
        request.tm.get().join(Manager(f"{chr(sys.maxunicode)}~", "tpc_finish", fail))

    with pytest.raises(ZeroDivisionError):
        visit(tm_config, view)

    assert len(queued(client)) == 1
    assert only_job(client)["status"] == "queued"


def test_manager_that_fails_to_finish_before_ours_keeps_the_message(
    tm_config: Configurator, global_broker: Broker, client: redis.Redis
) -> None:
    """If another manager fails in its tpc_finish, contrary to its contract, the request
    fails and nothing is sent. As databases may have committed, the job says so.
    """

    def view(request: Request) -> None:
        request.job_states.send(global_broker.get_actor("run_marathon"), 26)
        request.tm.get().join(Manager("a", "tpc_finish", fail))

    with pytest.raises(ZeroDivisionError):
        visit(tm_config, view)

    assert queued(client) == []
    assert only_job(client)["status"] == "error"


def test_store_that_is_away_vetoes_the_commit(
    server: EmbeddedServer, redis_url: str, client: redis.Redis, database: Any
) -> None:
    """A store that is away vetoes the commit: nobody could follow the job."""
    broker = make_broker(redis_url, JobStateMiddleware(url=server.url))

    def view(request: Request) -> None:
        database.write(request)
        request.job_states.send(broker.get_actor("run_marathon"), 26)
        server.stop()

    response = visit(make_tm_config(server.url), view)

    assert response.status_code == 503 and "does not answer" in response.text
    assert database.count() == 0
    assert client.keys() == []


def test_commit_asks_a_store_that_has_just_failed_others(
    tm_config: Configurator, global_broker: Broker, client: redis.Redis
) -> None:
    """An earlier failure of another request vetoes nothing: the record is written."""
    (middleware,) = (
        m for m in global_broker.middleware if isinstance(m, JobStateMiddleware)
    )

    def view(request: Request) -> None:
        request.job_states.send(global_broker.get_actor("run_marathon"), 26)
        middleware._access._outage.begin()

    visit(tm_config, view)

    assert len(queued(client)) == 1
    assert only_job(client)["status"] == "queued"


def test_messages_of_a_transaction_wait_together_for_a_store_that_went_away(
    redis_url: str, server: EmbeddedServer, client: redis.Redis
) -> None:
    """A store that goes away once the records are written delays a transaction once,
    not once per message, and all messages are sent.
    """
    with faulty(server.url) as proxy:
        broker = make_broker(redis_url, JobStateMiddleware(url=proxy.url))
        messages = [broker.get_actor("run_marathon").message(26) for _ in range(20)]

        def view(request: Request) -> None:
            request.job_states.send_message(group(messages, broker=broker))
            swallow = Manager("~~~~", "tpc_vote", proxy.swallow)
            request.tm.get().join(swallow)

        visit(make_tm_config(proxy.url), view)

        assert len(queued(client)) == 20
        # One confirmation, which the client library has tried twice.
        assert proxy.swallowed == 2


def test_store_that_goes_away_before_an_abort_is_only_logged(
    server: EmbeddedServer, redis_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """If the record cannot be deleted, the request's own error is raised, and the job
    will read stalled.
    """
    broker = make_broker(redis_url, JobStateMiddleware(url=server.url))

    def stop() -> None:
        server.stop()
        fail()

    def view(request: Request) -> None:
        request.job_states.send(broker.get_actor("run_marathon"), 26)
        request.tm.get().join(Manager("~~~", "tpc_vote", stop))

    with pytest.raises(ZeroDivisionError):
        visit(make_tm_config(server.url), view)

    (line,) = messages(caplog, "pyramid_jobstate")
    assert "stalled" in line and "RunMarathon" in line


def broker_that_is_away(redis_url: str) -> RedisBroker:
    """Return a broker whose server is away but whose store is not."""
    away = redis.Redis.from_url(NOWHERE, **FAIL_FAST)
    broker = RedisBroker(client=away)
    broker.add_middleware(JobStateMiddleware(url=redis_url))

    @actor(broker=broker, job_state=True)
    def run_marathon(*miles: Any) -> None:
        pass

    return broker


def test_broker_that_is_away_marks_the_job(
    tm_config: Configurator,
    redis_url: str,
    database: Any,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The commit stands: the user gets a response and sees that the job failed."""
    broker = broker_that_is_away(redis_url)

    def view(request: Request) -> str:
        database.write(request)
        return str(request.job_states.send(broker.get_actor("run_marathon"), 26).uuid)

    response = visit(tm_config, view)

    assert response.status_code == 200
    assert database.count() == 1
    job_state = load(tm_config, response.text)
    assert (job_state.status, job_state.error) == ("error", NOT_SENT)
    shown = job_state.__json__(make_request(tm_config, "alice"))["job"]
    assert shown["error"] == {"message": "The job could not be sent."}
    (line,) = messages(caplog, "pyramid_jobstate", logging.ERROR)
    assert response.text in line


def test_broker_and_store_that_are_away_raise_nothing(
    server: EmbeddedServer, redis_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """If the store goes away along with the broker, the request still succeeds; the job
    will read stalled.
    """
    broker = broker_that_is_away(server.url)

    def view(request: Request) -> None:
        request.job_states.send(broker.get_actor("run_marathon"), 26)
        request.tm.get().join(Manager("a", "tpc_finish", server.stop))

    assert visit(make_tm_config(server.url), view).status_code == 200

    lines = messages(caplog, "pyramid_jobstate")
    assert len(lines) == 2 and "stalled" in lines[1]


def put_failed(client: redis.Redis, message: Message[Any]) -> dict[str, Any]:
    """Write that a message's job has failed, and return its record."""
    job = put_job(
        client,
        uuid=message.message_id,
        status="error",
        error='["ValueError", "a blister"]',
        finished=1,
        **{"m:miles_run": "12"},
    )
    fields: Any = client.hgetall(f"jobstate:{job}")
    return dict(fields)


@pytest.mark.parametrize("phase", ["commit", "tpc_vote", None])
def test_abort_leaves_the_end_of_a_job_that_is_put_back(
    tm_config: Configurator,
    global_broker: Broker,
    client: redis.Redis,
    phase: str | None,
) -> None:
    """If the message of a failed job is sent again but the transaction aborts, the
    record of the failure does not change.
    """
    make_app(tm_config)
    message = global_broker.get_actor("run_marathon").message(26)
    before = put_failed(client, message)
    request = make_request(tm_config, "alice")
    transaction = request.tm.begin()

    request.job_states.send_message(message)
    if phase is None:
        transaction.abort()
    else:
        transaction.join(Manager("~~~", phase, fail))
        with pytest.raises(ZeroDivisionError):
            transaction.commit()
        transaction.abort()

    assert client.hgetall(f"jobstate:{message.message_id}") == before
    assert queued(client) == []


def test_job_that_is_put_back_is_queued_when_its_message_leaves(
    tm_config: Configurator, global_broker: Broker, client: redis.Redis
) -> None:
    """A job that is put back is queued at the commit, without its last run's error."""
    make_app(tm_config)
    message = global_broker.get_actor("run_marathon").message(26)
    put_failed(client, message)

    with committing(tm_config) as job_states:
        job_states.send_message(message)
        assert load(tm_config, message.message_id).status == "error"

    job_state = load(tm_config, message.message_id)
    assert (job_state.status, job_state.error) == ("queued", None)
    assert [m.message_id for m in queued(client)] == [message.message_id]


@pytest.mark.parametrize("immediately", [False, True])
def test_job_that_the_broker_does_not_take_back_keeps_its_record(
    redis_url: str, client: redis.Redis, immediately: bool
) -> None:
    """A job that cannot be put back reads as not sent, and can be sent again."""
    broker = broker_that_is_away(redis_url)
    config = make_tm_config(redis_url)
    make_app(config)
    message = broker.get_actor("run_marathon").message(26)
    put_failed(client, message)

    with committing(config) as job_states:
        if immediately:
            with pytest.raises(redis.ConnectionError):
                job_states.send_immediately(message, broker=broker)
        else:
            job_states.send_message(message, broker=broker)

    job_state = load(config, message.message_id)
    assert (job_state.status, job_state.error) == ("error", NOT_SENT)


def resend(config: Configurator, what: Any, broker: Broker | None = None) -> None:
    """Send something that was sent before, and have the commit vetoed or, if a broker
    that is away is given, the message refused.
    """
    request = make_request(config, "bob")
    transaction = request.tm.begin()
    request.job_states.send_message(what, broker=broker)
    if broker is not None:
        transaction.commit()
        return
    transaction.join(Manager("~~~", "commit", fail))
    with pytest.raises(ZeroDivisionError):
        transaction.commit()
    transaction.abort()


@pytest.mark.parametrize("is_refused", [False, True])
@pytest.mark.parametrize("was", ["queued", "unconfirmed", "pipeline"])
def test_record_of_another_sender_is_left_alone(
    tm_config: Configurator,
    redis_url: str,
    global_broker: Broker,
    client: redis.Redis,
    was: str,
    is_refused: bool,
) -> None:
    """A second send that fails does not take back the record of the first."""
    make_app(tm_config)
    run_marathon = global_broker.get_actor("run_marathon")
    messages = [run_marathon.message(i) for i in range(3 if was == "pipeline" else 1)]
    what = pipeline(messages) if was == "pipeline" else messages[0]
    with committing(tm_config) as job_states:
        job_states.send_message(what)
    if was == "unconfirmed":
        client.hset(f"jobstate:{messages[0].message_id}", "status", "sending")
    records = [client.hgetall(f"jobstate:{m.message_id}") for m in messages]

    resend(tm_config, what, broker_that_is_away(redis_url) if is_refused else None)

    assert [client.hgetall(f"jobstate:{m.message_id}") for m in messages] == records
    assert [load(tm_config, m.message_id).status for m in messages] == (
        ["queued"] * len(messages)
    )


def test_veto_between_the_two_steps_of_another_send(
    tm_config: Configurator, global_broker: Broker, client: redis.Redis
) -> None:
    """If two transactions send one message and one is vetoed, the record of the other
    stays.
    """
    make_app(tm_config)
    message = global_broker.get_actor("run_marathon").message(26)
    put_failed(client, message)

    with committing(tm_config) as job_states:
        job_states.send_message(message)
        job_states.request.tm.get().join(
            Manager("~~~~", "commit", lambda: resend(tm_config, message))
        )

    assert load(tm_config, message.message_id).status == "queued"
    assert len(queued(client)) == 1


def test_one_message_that_is_refused_does_not_stop_the_next(
    tm_config: Configurator, redis_url: str, global_broker: Broker, client: redis.Redis
) -> None:
    """Each message of a transaction is sent independently."""
    away = broker_that_is_away(redis_url)

    def view(request: Request) -> None:
        request.job_states.send(away.get_actor("run_marathon"), 1)
        request.job_states.send(global_broker.get_actor("run_marathon"), 2)

    visit(tm_config, view)

    assert [m.args for m in queued(client)] == [(2,)]


def crash_between_commit_and_departure(redis_url: str) -> None:
    """Run in the child process of the next test."""
    broker = make_broker(redis_url)
    config = make_tm_config(redis_url)
    make_app(config)
    with committing(config) as job_states:
        job_states.send(broker.get_actor("run_marathon"), 26)
        exit_now = Manager("~~", "tpc_finish", lambda: os._exit(7))
        job_states.request.tm.get().join(exit_now)


def test_crash_between_commit_and_departure_reads_stalled(
    redis_url: str, client: redis.Redis
) -> None:
    """A process that dies before sending the message leaves a job that reads stalled
    after a while, rather than queued forever.
    """
    code = (
        f"from {__name__} import {crash_between_commit_and_departure.__name__} as crash"
    )
    done = subprocess.run([sys.executable, "-c", f"{code}; crash({redis_url!r})"])
    assert done.returncode == 7

    assert queued(client) == []
    keys: Any = client.keys("jobstate:????????-*")
    (key,) = keys
    config = made_config(redis_url, settings={"jobstate.stalled_after": "10s"})
    uuid = key.decode().removeprefix("jobstate:")
    assert load(config, uuid).status == "queued"
    client.hset(key, "updated", int(time.time() * 1000) - 11_000)
    assert load(config, uuid).status == "stalled"


# Savepoints.


def test_savepoint_takes_back_what_was_sent_since(
    tm_config: Configurator, global_broker: Broker, client: redis.Redis, tmp_path: Path
) -> None:
    """A rollback to a savepoint drops the jobs sent since, but not those before."""
    run_marathon = global_broker.get_actor("run_marathon")

    def view(request: Request) -> None:
        zodb.write(request)
        request.job_states.send(run_marathon, 1)
        first = request.tm.savepoint()
        request.job_states.send(run_marathon, 2)
        request.tm.savepoint()
        request.job_states.send(run_marathon, 3)
        first.rollback()
        request.job_states.send(run_marathon, 4)
        second = request.tm.savepoint()
        request.job_states.send(run_marathon, 5)
        second.rollback()

    with contextlib.closing(Zodb(tmp_path)) as zodb:
        visit(tm_config, view)

    assert [m.args for m in queued(client)] == [(1,), (4,)]
    assert len(client.keys("jobstate:????????-*")) == 2


# Arguments, owners, delays and options.


def test_arguments_that_cannot_be_encoded_fail_in_the_view(
    tm_config: Configurator, global_broker: Broker, client: redis.Redis
) -> None:
    """The call raises an error, and the transaction can go on without the message."""

    def view(request: Request) -> str:
        for arguments in [object()], [{1, 2}], [b"x"]:
            with pytest.raises(TypeError, match=r"run_marathon.* cannot be encoded"):
                request.job_states.send(
                    global_broker.get_actor("run_marathon"), arguments
                )
        return "caught"

    assert visit(tm_config, view).text == "caught"
    assert client.keys() == []


def test_arguments_are_those_of_the_call(
    tm_config: Configurator, global_broker: Broker, client: redis.Redis
) -> None:
    """Changes to an argument after the call do not affect the message."""

    def view(request: Request) -> str:
        miles, shoes = [1, 2], {"left": "red"}
        run_marathon = global_broker.get_actor("run_marathon")
        job_state = request.job_states.send(run_marathon, miles, shoes=shoes)
        miles.append(3)
        shoes.clear()
        assert job_state.job_params == {"miles": [1, 2], "shoes": {"left": "red"}}
        return str(job_state.uuid)

    response = visit(tm_config, view)

    (message,) = queued(client)
    assert message.args == ([1, 2],)
    assert message.kwargs == {"shoes": {"left": "red"}}
    params = {"miles": [1, 2], "shoes": {"left": "red"}}
    assert load(tm_config, response.text).job_params == params


@pytest.mark.parametrize(
    ("options", "owner"),
    [
        ({}, "alice"),
        ({"owner": "bob"}, "bob"),
        ({"owner": 7}, 7),
        ({"owner": None}, None),
        ({"job_owner": "carol"}, "carol"),
        ({"job_owner": None}, None),
    ],
)
def test_owner_is_the_sender_unless_another_is_named(
    tm_config: Configurator,
    global_broker: Broker,
    client: redis.Redis,
    options: dict[str, Any],
    owner: object,
) -> None:
    """The owner of a job is the one that the view names, possibly None, or else the
    user of the request.
    """

    def view(request: Request) -> str:
        run_marathon = global_broker.get_actor("run_marathon")
        job_state = request.job_states.send_with_options(run_marathon, (1,), **options)
        assert job_state.owner == owner
        return str(job_state.uuid)

    uuid = visit(tm_config, view).text

    (message,) = queued(client)
    assert message.options.get("job_owner") == owner
    assert load(tm_config, uuid).owner == owner


@pytest.mark.parametrize("what", [None, "run_marathon", print, "message"])
def test_only_an_actor_is_sent_arguments(
    job_states: Any, global_broker: Broker, what: Any
) -> None:
    """The error says what was passed in place of an actor, in a batch, too."""
    if what == "message":
        what = global_broker.get_actor("run_marathon").message(26)
    match = f"^actor must be a Dramatiq actor, not {re.escape(repr(what))}\\. Send a "
    with pytest.raises(TypeError, match=match):
        job_states.send(what)
    with pytest.raises(TypeError, match=match):
        job_states.send_with_options(what, (26,))
    with pytest.raises(TypeError, match=match):
        job_states.find_unique(what, "x")
    with pytest.raises(TypeError, match=match), job_states.batch() as batch:
        batch.send(what)


def test_owner_must_be_a_principal(job_states: Any, global_broker: Broker) -> None:
    """An owner that JSON would change is refused in the call."""
    with pytest.raises(TypeError, match="a string or a finite number"):
        job_states.send_with_options(
            global_broker.get_actor("run_marathon"), (1,), owner=("alice", 1)
        )


@pytest.mark.parametrize("delay", [60_000, datetime.timedelta(minutes=1)])
def test_delay_counts_from_the_commit(
    tm_config: Configurator, global_broker: Broker, client: redis.Redis, delay: Any
) -> None:
    """The delay of the job and its message counts from the record being written."""

    def view(request: Request) -> str:
        job_state = request.job_states.send_with_options(
            global_broker.get_actor("run_marathon"), (26,), delay=delay
        )
        assert job_state.due_at - job_state.queued_at == datetime.timedelta(minutes=1)
        time.sleep(0.02)
        sent.append(job_state)
        return str(job_state.uuid)

    sent: list[JobState] = []
    job_state = load(tm_config, visit(tm_config, view).text)

    assert job_state.due_at and job_state.queued_at
    assert job_state.due_at - job_state.queued_at == datetime.timedelta(minutes=1)
    assert sent[0].queued_at and job_state.queued_at > sent[0].queued_at
    assert job_state.status == "queued"
    (message,) = queued(client, "default.DQ")
    eta = message.options["eta"] / 1000
    assert 0 <= eta - job_state.due_at.timestamp() < 5


DELAYS = [
    ("soon", TypeError),
    (True, TypeError),
    (float("nan"), ValueError),
    (float("inf"), ValueError),
    (10**14 + 1, ValueError),
    (10**30, ValueError),
]


@pytest.mark.parametrize(("delay", "error"), DELAYS)
def test_delay_that_the_store_cannot_keep_is_refused(
    job_states: Any, global_broker: Broker, delay: Any, error: type[Exception]
) -> None:
    """The call names the delay and its unit, in a batch, too."""
    run_marathon = global_broker.get_actor("run_marathon")
    match = "^delay must be .* milliseconds, not "
    with pytest.raises(error, match=match):
        job_states.send_with_options(run_marathon, (1,), delay=delay)
    with pytest.raises(error, match=match), job_states.batch() as batch:
        batch.send_with_options(run_marathon, (1,), delay=delay)


@pytest.mark.parametrize(
    ("delay", "error"), [*DELAYS, (datetime.timedelta(days=1), TypeError)]
)
def test_delay_of_a_message_that_the_store_cannot_keep_is_refused(
    job_states: Any, global_broker: Broker, delay: Any, error: type[Exception]
) -> None:
    """The call names a wrong delay among the options of a message or of any step of a
    pipeline.
    """
    run_marathon = global_broker.get_actor("run_marathon")
    late = run_marathon.message_with_options(args=(1,), delay=delay)
    first = run_marathon.message(1)
    for what in late, late | first, first | late, group([late | first]):
        with pytest.raises(error, match=r"^delay must be .* milliseconds, not "):
            job_states.send_message(what)
    with pytest.raises(error, match=r"^delay must be "):
        job_states.send_immediately(late)


@pytest.mark.parametrize("delay", [0, 30 * 86_400_000, 10**14])
def test_delay_may_be_as_long_as_a_time_can_say(
    job_states: Any, global_broker: Broker, delay: int
) -> None:
    """A job may be due in a month or, at the latest, in some 3,000 years."""
    run_marathon = global_broker.get_actor("run_marathon")
    uuid = job_states.send_with_options(run_marathon, (1,), delay=delay).uuid
    job_states.request.tm.commit()
    job_state = job_states[uuid]
    due = job_state.due_at or job_state.queued_at
    late = due - job_state.queued_at - datetime.timedelta(milliseconds=delay)
    assert abs(late) < datetime.timedelta(milliseconds=1)


@pytest.mark.parametrize("delay", [-5, datetime.timedelta(days=-14)])
def test_job_whose_time_has_passed_is_due_at_once(
    job_states: Any, global_broker: Broker, client: redis.Redis, delay: Any
) -> None:
    """Dramatiq accepts a delay below 0, such as the time until a moment in the past."""
    run_marathon = global_broker.get_actor("run_marathon")
    uuid = job_states.send_with_options(run_marathon, (1,), delay=delay).uuid
    job_states.request.tm.commit()
    assert job_states[uuid].status == "queued"
    with working(global_broker):
        wait_for(lambda: job_states.find(uuid).is_success)


def test_options_travel_with_the_message(
    job_states: Any, global_broker: Broker, client: redis.Redis
) -> None:
    """Further options become options of the message."""
    job_states.send_with_options(
        global_broker.get_actor("run_marathon"),
        kwargs={"miles": 26},
        max_retries=5,
        on_failure="sweep",
    )
    job_states.request.tm.commit()

    (message,) = queued(client)
    assert message.kwargs == {"miles": 26}
    assert message.options["max_retries"] == 5
    assert message.options["on_failure"] == "sweep"


def test_messages_leave_in_their_order(
    job_states: Any, global_broker: Broker, client: redis.Redis
) -> None:
    """The messages of a transaction are sent in the order of the calls."""
    for miles in range(12):
        job_states.send(global_broker.get_actor("run_marathon"), miles)
    job_states.request.tm.commit()

    assert [m.args for m in queued(client)] == [(miles,) for miles in range(12)]
    assert len(job_states.list("alice").items) == 12


# Without a transaction.


def send(request: Request, broker: Broker) -> JobState:
    job_state = request.job_states.send(broker.get_actor("run_marathon"), 26)
    assert isinstance(job_state, JobState)
    return job_state


def test_implicit_manager_without_the_tween_is_refused(
    redis_url: str, global_broker: Broker, client: redis.Redis
) -> None:
    """A transaction that nobody will commit is not joined, or the next one would send
    the message.
    """
    settings = {"tm.activate_hook": "tests.webapp.inactive"}
    config = make_config(redis_url, settings=settings)
    config.include("pyramid_tm")

    with pytest.raises(RuntimeError, match=r"No transaction .*send_immediately"):
        visit(config, lambda request: send(request, global_broker))

    transaction.commit()
    assert client.keys() == []


def test_explicit_manager_without_the_tween_is_refused(
    redis_url: str, global_broker: Broker
) -> None:
    """An explicit manager's transaction that has not begun is not joined either."""
    config = make_tm_config(
        redis_url, {**EXPLICIT, "tm.activate_hook": "tests.webapp.inactive"}
    )

    with pytest.raises(RuntimeError, match=r"No transaction .*send_immediately"):
        visit(config, lambda request: send(request, global_broker))


def test_without_pyramid_tm_send_names_the_other_way(
    redis_url: str, global_broker: Broker, client: redis.Redis
) -> None:
    """Without a request.tm, the error says what to do."""
    config = make_config(redis_url)

    with pytest.raises(RuntimeError, match=r"pyramid_tm.*send_immediately"):
        visit(config, lambda request: send(request, global_broker))

    assert client.keys() == []


def test_send_after_the_end_of_the_transaction_is_refused(
    tm_config: Configurator, global_broker: Broker, client: redis.Redis
) -> None:
    """A send after the tween has finished is refused: its transaction is over."""

    def view(request: Request) -> None:
        request.add_finished_callback(finish)

    def finish(request: Request) -> None:
        with pytest.raises(RuntimeError, match="No transaction "):
            send(request, global_broker)
        finished.append(request)

    finished: list[Request] = []
    visit(tm_config, view)

    assert finished
    assert client.keys() == []


def test_implicit_manager_under_the_tween_sends(
    redis_url: str, global_broker: Broker, client: redis.Redis
) -> None:
    """pyramid_tm's default manager works where its tween is active."""
    config = make_config(redis_url)
    config.include("pyramid_tm")

    visit(config, lambda request: send(request, global_broker))

    assert len(queued(client)) == 1


def test_explicit_manager_by_hand_sends(
    job_states: Any, global_broker: Broker, client: redis.Redis
) -> None:
    """A script or test that begins a transaction also commits it."""
    send(job_states.request, global_broker)
    assert queued(client) == []

    job_states.request.tm.commit()

    assert len(queued(client)) == 1


def test_transaction_of_repoze_tm_sends(
    redis_url: str, global_broker: Broker, client: redis.Redis
) -> None:
    """If a WSGI middleware manages the transaction, the message is sent when that
    commits.
    """
    config = make_config(redis_url)
    config.include("pyramid_tm")
    config.add_view(lambda c, r: Response(send(r, global_broker).uuid), name="go")
    app = make_app(config)

    def middleware(environ: Any, start_response: Any) -> Any:
        with transaction.manager:
            environ["repoze.tm.active"] = True
            response = app.app(environ, start_response)
            assert queued(client) == []
        return response

    uuid = TestApp(middleware).get("/go").text

    assert [m.message_id for m in queued(client)] == [uuid]


# Sending immediately.


def test_send_immediately_does_not_wait_for_the_transaction(
    tm_config: Configurator, global_broker: Broker, client: redis.Redis
) -> None:
    """An abort of the transaction does not take back what was sent immediately."""

    def view(request: Request) -> None:
        job_states = request.job_states
        job_states.send_immediately(global_broker.get_actor("run_marathon"), 26)
        assert len(queued(client)) == 1
        assert only_job(client)["status"] == "queued"
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        visit(tm_config, view)

    assert only_job(client)["status"] == "queued"


@pytest.mark.parametrize("form", ["actor", "message", "pipeline", "group"])
def test_send_immediately_that_the_broker_refuses_leaves_nothing(
    job_states: Any, redis_url: str, client: redis.Redis, form: str
) -> None:
    """The caller gets the broker's error, and no record stays behind."""
    broker = broker_that_is_away(redis_url)
    run_marathon = broker.get_actor("run_marathon")
    forms: dict[str, Any] = {
        "actor": run_marathon,
        "message": run_marathon.message(1),
        "pipeline": pipeline(
            [run_marathon.message(i) for i in range(3)], broker=broker
        ),
        "group": group([run_marathon.message(i) for i in range(3)], broker=broker),
    }
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(dramatiq.broker, "global_broker", broker)
        with pytest.raises(redis.ConnectionError):
            job_states.send_immediately(forms[form])

    assert client.keys() == []


def test_send_immediately_reports_the_brokers_error_before_the_stores(
    server: EmbeddedServer, redis_url: str
) -> None:
    """If the record cannot be deleted, the broker's error is still raised."""

    class Stop(Middleware):
        def before_enqueue(self, broker: Broker, message: Any, delay: Any) -> None:
            server.stop()

    broker = broker_that_is_away(server.url)
    broker.add_middleware(Stop())
    config = make_tm_config(server.url)
    make_app(config)

    with pytest.raises(redis.ConnectionError):
        make_request(config).job_states.send_immediately(
            broker.get_actor("run_marathon")
        )


# Messages, pipelines and groups.


def test_message_keeps_its_id(
    job_states: Any, global_broker: Broker, client: redis.Redis
) -> None:
    """A message made earlier is sent unchanged."""
    message = global_broker.get_actor("run_marathon").message(26)

    job_state = job_states.send_message(message, owner="bob")
    job_states.request.tm.commit()

    assert job_state.uuid == message.message_id
    assert job_state.owner == "bob"
    assert [m.message_id for m in queued(client)] == [message.message_id]
    assert "job_owner" not in message.options


def test_message_of_its_own_delay_is_delayed(
    job_states: Any, global_broker: Broker, client: redis.Redis
) -> None:
    """A message's own delay counts, as that of a pipeline's first step does."""
    run_marathon = global_broker.get_actor("run_marathon")
    message = run_marathon.message_with_options(args=(26,), delay=60_000)

    uuid = job_states.send_message(message).uuid
    job_states.request.tm.commit()

    assert [m.message_id for m in queued(client, "default.DQ")] == [uuid]
    job_state = job_states[uuid]
    assert job_state.due_at - job_state.queued_at == datetime.timedelta(minutes=1)


def test_message_keeps_what_it_leads_to(
    job_states: Any, global_broker: Broker, client: redis.Redis
) -> None:
    """A message taken out of a pipeline still leads to the next step."""
    run_marathon = global_broker.get_actor("run_marathon")
    steps = pipeline([run_marathon.message(1), run_marathon.message(2)])

    job_states.send_message(steps.messages[0])
    job_states.request.tm.commit()

    (message,) = queued(client)
    assert message.options["pipe_target"]["message_id"] == steps.messages[1].message_id


@pytest.mark.parametrize("what", [None, "run_marathon", print, JobState])
def test_what_is_not_a_message_is_refused(
    job_states: Any, global_broker: Broker, what: Any
) -> None:
    """Only what Dramatiq can send is accepted."""
    with pytest.raises(TypeError, match="Only messages, pipelines and groups"):
        job_states.send_message(what)


def test_message_without_a_broker_is_refused(
    job_states: Any, global_broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A message cannot be sent without a global broker, and none is made."""
    message = global_broker.get_actor("run_marathon").message(1)
    monkeypatch.setattr(dramatiq.broker, "global_broker", None)

    with pytest.raises(TypeError, match=r"dramatiq\.set_broker"):
        job_states.send_message(message)

    assert dramatiq.broker.global_broker is None


def test_pipeline_has_all_its_records_from_the_start(
    job_states: Any, global_broker: Broker, client: redis.Redis
) -> None:
    """Each step has a record, owner and id. The first message leads to the others."""
    run_marathon = global_broker.get_actor("run_marathon")
    what = pipeline([run_marathon.message(i) for i in range(3)])
    ids = [m.message_id for m in what.messages]
    before = what.messages[0].asdict()

    sent = job_states.send_message(what)
    job_states.request.tm.commit()

    assert [job_state.uuid for job_state in sent] == ids
    assert what.messages[0].asdict() == before
    (message,) = queued(client)
    for i, uuid in enumerate(ids):
        assert message.message_id == uuid
        assert message.options["job_owner"] == "alice"
        job_state = job_states[uuid]
        assert (job_state.status, job_state.owner) == ("queued", "alice")
        assert job_state.job_params == {"miles": i}
        if i < 2:
            message = Message(**message.options["pipe_target"])
    assert "pipe_target" not in message.options
    assert {j.uuid for j in job_states.list("alice").items} == set(ids)


def test_steps_that_wait_for_their_turn_never_stall(
    redis_url: str, global_broker: Broker, client: redis.Redis
) -> None:
    """Later steps stay queued, however long the first takes."""
    config = make_tm_config(redis_url, {**EXPLICIT, "jobstate.stalled_after": "0.01"})
    make_app(config)
    run_marathon = global_broker.get_actor("run_marathon")
    with committing(config) as job_states:
        sent = job_states.send_message(
            run_marathon.message(1) | run_marathon.message(2)
        )
    for job_state in sent:
        client.hset(f"jobstate:{job_state.uuid}", mapping={"updated": 1, "queued": 1})

    assert [load(config, job_state.uuid).status for job_state in sent] == ["queued"] * 2


def test_delay_of_a_pipeline_is_that_of_its_first_step(
    job_states: Any, global_broker: Broker, client: redis.Redis
) -> None:
    """A pipeline is delayed as in Dramatiq, by its first message. The delay of a later
    step counts from its turn.
    """
    run_marathon = global_broker.get_actor("run_marathon")
    first = run_marathon.message_with_options(args=(1,), delay=60_000)
    second = run_marathon.message_with_options(args=(2,), delay=30_000)

    sent = job_states.send_message(first | second)
    job_states.request.tm.commit()

    assert sent[0].due_at - sent[0].queued_at == datetime.timedelta(minutes=1)
    one, two = (job_states[job_state.uuid] for job_state in sent)
    assert one.due_at - one.queued_at == datetime.timedelta(minutes=1)
    assert two.due_at is None
    assert [m.message_id for m in queued(client, "default.DQ")] == [one.uuid]
    # Dramatiq does this when the first step has succeeded.
    global_broker.enqueue(
        Message(**queued(client, "default.DQ")[0].options["pipe_target"]), delay=30_000
    )
    two = job_states[two.uuid]
    assert two.status == "queued"
    assert two.due_at - two.updated_at == datetime.timedelta(seconds=30)
    assert client.pttl(f"jobstate:{two.uuid}") > (8 * 24 * 3600 + 29) * 1000


def test_empty_pipeline_is_refused(
    job_states: Any, global_broker: Broker, client: redis.Redis
) -> None:
    """A pipeline that could not be sent at the commit is refused in the call."""
    for what in pipeline([]), group([pipeline([])]):
        with pytest.raises(ValueError, match="pipeline without messages"):
            job_states.send_message(what)

    job_states.request.tm.commit()
    assert client.keys() == []


def test_untracked_member_is_refused(
    job_states: Any, global_broker: Broker, client: redis.Redis
) -> None:
    """Pipelines and groups with a member that cannot be followed are refused."""
    members = [
        global_broker.get_actor("run_marathon").message(1),
        global_broker.get_actor("sweep").message(),
    ]

    for what in pipeline(members), group(members), group([pipeline(members)]):
        with pytest.raises(TypeError, match="'sweep' is not tracked"):
            job_states.send_message(what)

    job_states.request.tm.commit()
    assert client.keys() == []


def test_group_has_all_its_records(
    job_states: Any, global_broker: Broker, client: redis.Redis
) -> None:
    """All members of a group are sent, and the sender owns each job. As in Dramatiq, a
    member's own delay is ignored.
    """
    run_marathon = global_broker.get_actor("run_marathon")
    m = [run_marathon.message_with_options(args=(i,)) for i in range(6)]
    late = run_marathon.message_with_options(args=(6,), delay=60_000)

    sent = job_states.send_message(
        group([m[0], m[1] | m[2], group([m[3], m[4] | m[5]]), late])
    )
    job_states.request.tm.commit()

    ids = [message.message_id for message in [*m, late]]
    assert [job_state.uuid for job_state in sent] == ids
    loaded = [job_states[uuid] for uuid in ids]
    assert {(j.status, j.owner, j.due_at) for j in loaded} == {
        ("queued", "alice", None)
    }
    assert [x.message_id for x in queued(client)] == [ids[i] for i in (0, 1, 3, 4, 6)]
    assert {x.options["job_owner"] for x in queued(client)} == {"alice"}


def test_group_of_nothing_sends_nothing(
    job_states: Any, global_broker: Broker, client: redis.Redis
) -> None:
    """As in Dramatiq, an empty group sends nothing."""
    assert job_states.send_message(group([])) == []

    job_states.request.tm.commit()
    assert client.keys() == []


class RefusesSecond(Middleware):
    """Makes the broker refuse one message."""

    def __init__(self, miles: int) -> None:
        self.miles = miles

    def before_enqueue(self, broker: Broker, message: Any, delay: Any) -> None:
        if message.args == (self.miles,):
            raise dramatiq.middleware.MiddlewareError("It is too far.")


def test_group_that_left_in_part_is_shown_as_it_is(
    job_states: Any, global_broker: Broker, client: redis.Redis
) -> None:
    """If the broker goes away during a group, the messages that it took run, with their
    later steps, and the others read as failed.
    """
    global_broker.add_middleware(RefusesSecond(2))
    m = [global_broker.get_actor("run_marathon").message(i) for i in range(5)]

    sent = job_states.send_message(group([m[0] | m[1], m[2] | m[3], m[4]]))
    job_states.request.tm.commit()

    loaded = [job_states[job_state.uuid] for job_state in sent]
    assert [(j.status, j.error) for j in loaded] == [
        ("queued", None),
        ("queued", None),
        ("error", NOT_SENT),
        ("cancelled", NOT_REACHED),
        ("error", NOT_SENT),
    ]
    assert [x.message_id for x in queued(client)] == [m[0].message_id]


def test_group_sent_immediately_in_part_keeps_what_has_left(
    job_states: Any, global_broker: Broker, client: redis.Redis
) -> None:
    """Messages that the broker took keep their records, as do their later steps."""
    global_broker.add_middleware(RefusesSecond(2))
    m = [global_broker.get_actor("run_marathon").message(i) for i in range(5)]

    with pytest.raises(dramatiq.middleware.MiddlewareError):
        job_states.send_immediately(group([m[0] | m[1], m[2] | m[3], m[4]]))

    found = job_states.find_many([message.message_id for message in m])
    assert [j and j.status for j in found] == ["queued", "queued", None, None, None]
    assert client.zcard("jobstate:active:all") == 2


# Groups with completion callbacks.


@pytest.fixture
def callbacks(global_broker: Broker) -> dramatiq.middleware.GroupCallbacks:
    """The middleware that makes completion callbacks possible."""
    from dramatiq.rate_limits.backends import StubBackend

    middleware = dramatiq.middleware.GroupCallbacks(StubBackend())
    global_broker.add_middleware(middleware)
    return middleware


@pytest.mark.usefixtures("callbacks")
def test_completion_callbacks_are_the_senders(
    job_states: Any, global_broker: Broker, client: redis.Redis
) -> None:
    """A completion callback belongs to the sender of the group, with its arguments at
    the time of the call. Its record is written when it is sent.
    """
    run_marathon, sweep = (
        global_broker.get_actor("run_marathon"),
        global_broker.get_actor("sweep"),
    )
    miles = [26]
    what = group(
        [run_marathon.message(1), run_marathon.message(2) | run_marathon.message(3)]
    )
    for callback in (
        run_marathon.message(miles),
        run_marathon.message_with_options(args=(27,), job_owner="bob"),
        sweep.message(),
    ):
        what.add_completion_callback(callback)

    sent = job_states.send_message(what)
    miles.append(27)
    job_states.request.tm.commit()

    assert len(sent) == 3
    assert len(client.keys("jobstate:????????-*")) == 3
    messages = queued(client)
    assert [m.message_id for m in messages] == [sent[0].uuid, sent[1].uuid]
    last: Message[Any] = Message(**messages[1].options["pipe_target"])
    assert last.message_id == sent[2].uuid
    for message in (messages[0], last):
        first, second, third = message.options["group_completion_callbacks"]
        assert first["args"] == [[26]]
        assert first["options"]["job_owner"] == "alice"
        assert second["options"]["job_owner"] == "bob"
        assert "job_owner" not in third["options"]


@pytest.mark.usefixtures("callbacks")
def test_completion_callback_that_is_not_json_fails_in_the_call(
    job_states: Any, global_broker: Broker
) -> None:
    """A callback that cannot be encoded raises an error in the call."""
    run_marathon = global_broker.get_actor("run_marathon")
    what = group([run_marathon.message(1)])
    what.add_completion_callback(run_marathon.message(object()))

    with pytest.raises(TypeError, match="cannot be encoded"):
        job_states.send_message(what)


@pytest.mark.usefixtures("callbacks")
def test_completion_callbacks_are_not_for_groups_of_groups(
    job_states: Any, global_broker: Broker
) -> None:
    """A group that Dramatiq would refuse at the commit is refused in the call."""
    run_marathon = global_broker.get_actor("run_marathon")
    what = group([group([run_marathon.message(1)])])
    what.add_completion_callback(run_marathon.message(2))

    with pytest.raises(TypeError, match="cannot contain another group"):
        job_states.send_message(what)


def test_completion_callbacks_need_their_middleware(
    job_states: Any, global_broker: Broker
) -> None:
    """Callbacks are refused if the broker lacks GroupCallbacks."""
    run_marathon = global_broker.get_actor("run_marathon")
    what = group([run_marathon.message(1)])
    what.add_completion_callback(run_marathon.message(2))

    with pytest.raises(TypeError, match="has no GroupCallbacks middleware"):
        job_states.send_message(what)
