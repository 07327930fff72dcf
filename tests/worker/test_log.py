"""What jobs log with `logging`, in classes with a `log_level`."""

import asyncio
import contextlib
import contextvars
import gc
import logging
import logging.config
import re
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import dramatiq
import pytest
from dramatiq.brokers.stub import StubBroker
from dramatiq.middleware import AsyncIO, Shutdown

from pyramid_jobstate import JobState, JobStateMiddleware, JobStore, LogLine
from pyramid_jobstate.testing import away
from tests.incaller import InCallerBroker
from tests.jobs import Gate, job_actor, make_broker, messages, wait_until, working
from tests.support import in_child, load_job, wait_for


class Journaled(JobState):
    log_level = "INFO"


class LoudJournaled(JobState):
    log_level = logging.ERROR


class DebugJournaled(JobState):
    log_level = "DEBUG"


log = logging.getLogger("tests.diary")

#: A logger whose records no handler formats or keeps, not even those of pytest.
quiet = logging.Logger("tests.quiet", logging.INFO)
quiet.addHandler(logging.NullHandler())


@pytest.fixture(autouse=True)
def level() -> Iterator[None]:
    """Has the root logger let INFO through, and leaves logging as it was."""
    root, factory = logging.getLogger(), logging.getLogRecordFactory()
    before, handlers = root.level, [*root.handlers]
    root.setLevel(logging.INFO)
    yield
    root.setLevel(before)
    root.handlers[:] = handlers
    logging.setLogRecordFactory(factory)


def texts(store: JobStore, uuid: str) -> list[str]:
    return [line.text for line in store.log(uuid)]


#: Runs a function as a job of a class, and returns its lines once it has succeeded.
Ran = Callable[..., Sequence[LogLine]]


@pytest.fixture
def ran(own: JobStore, store: JobStore) -> Ran:
    """The store may be away, or another one, and the middleware have options."""

    def run(
        act: Callable[[JobState], object],
        cls: type[JobState] = Journaled,
        own: JobStore = own,
        **options: Any,
    ) -> Sequence[LogLine]:
        stub = StubBroker()
        stub.add_middleware(JobStateMiddleware(own, **{"interval": 0.01, **options}))

        @job_actor(broker=stub, job_state=cls, max_retries=0)
        def keep_diary(*, job_state: JobState) -> None:
            act(job_state)

        with working(stub):
            message = keep_diary.send()
            stub.join("default")
        assert load_job(store, message.message_id).is_success
        return store.log(message.message_id)

    return run


@pytest.mark.promise("logging-is-captured")
def test_job_keeps_what_it_logs(ran):
    """Records of its level and above stand in the order in which they came, with their
    times, levels and loggers, and with the lines of append_log().
    """

    def act(job_state: JobState) -> None:
        log.info("%s miles", 26)
        log.debug("a step")
        # What this package has to say does not concern the job.
        for name in "pyramid_jobstate", "pyramid_jobstate.recorder":
            logging.getLogger(name).warning("no")
        job_state.append_log("at the start")
        logging.getLogger("pyramid_jobstate_demo").warning("hot\nand dry")
        try:
            _ = 1 / 0
        except ZeroDivisionError:
            log.exception("a blister")

    first, second, third, fourth = ran(act)
    assert [line.number for line in (first, second, third, fourth)] == [1, 2, 3, 4]
    assert (first.text, first.level, first.level_name) == ("26 miles", 20, "INFO")
    assert (first.logger, first.attempt, first.is_captured) == ("tests.diary", 1, True)
    assert second.text == "at the start" and not second.is_captured
    assert (second.level, second.level_name, second.logger) == (None, None, None)
    assert (third.text, third.logger) == ("hot\nand dry", "pyramid_jobstate_demo")
    assert fourth.text == "a blister\nZeroDivisionError: division by zero"
    assert first.time <= fourth.time


def test_class_says_from_which_level_on(ran, caplog):
    """A level of logging, by its name or its number. Other classes keep nothing, and
    nothing is lost for the handlers of the application.
    """
    assert [line.text for line in ran(lambda _: log.error("e"), LoudJournaled)] == ["e"]
    assert ran(lambda _: log.warning("w"), LoudJournaled) == []
    assert ran(lambda _: log.error("n"), JobState) == []
    assert ran(lambda job: job.append_log("own"), JobState) == []
    assert messages(caplog, "tests.diary") == ["e", "w", "n"]


def test_lower_level_than_the_loggers_is_warned_of(ran, caplog):
    """Once. Nothing is captured that loggers do not let through."""
    for _ in range(2):
        assert ran(lambda _: log.debug("d"), DebugJournaled) == []
    (warning,) = messages(caplog, "pyramid_jobstate")
    assert warning.startswith(
        "DebugJournaled.log_level is DEBUG, but the level of the root logger is INFO: "
    )
    log.setLevel(logging.DEBUG)
    try:
        assert [x.text for x in ran(lambda _: log.debug("d"), DebugJournaled)] == ["d"]
    finally:
        log.setLevel(logging.NOTSET)


def test_record_that_cannot_be_formatted_is_counted(ran, caplog):
    """The job goes on. A line is missing, and a warning says how many are."""

    class Rough:
        def __str__(self) -> str:
            raise RuntimeError("no text")

    def act(job_state: JobState) -> None:
        log.info("%d", "x")
        log.info(Rough())
        log.info("after")
        logging.makeLogRecord({"msg": "none of ours"})

    raises, logging.raiseExceptions = logging.raiseExceptions, False
    caplog.handler.addFilter(lambda record: record.name != "tests.diary")
    try:
        (line,) = ran(act)
    finally:
        logging.raiseExceptions = raises
        caplog.handler.filters.clear()
    assert (line.number, line.text) == (3, "after")
    (warning,) = wait_for(lambda: messages(caplog, "pyramid_jobstate"))
    assert warning.startswith("2 of the records that job ")


def test_level_may_be_anything(ran, monkeypatch, subtests):
    """Its number may be longer than JSON allows, and its name than a flush."""

    def act(job_state: JobState) -> None:
        quiet.log(number, "loud")
        quiet.info("next")

    for number, name in (10**5000, "HUGE"), (33, "L" * 70_000):
        with subtests.test(name[:4]), monkeypatch.context() as patch:
            # addLevelName() cannot be undone.
            patch.setitem(vars(logging)["_levelToName"], number, name)
            first, second = ran(act)
            assert (first.text, first.level) == ("loud", min(number, 10**9))
            assert (first.level_name, second.text) == (name[:100], "next")


def test_exceptions_keep_type_text_and_notes(ran):
    """Notes come after the text, not in its place. An interrupt of Dramatiq's passes
    through the formatting.
    """

    class Mute(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no text")

    class Interrupting:
        def __str__(self) -> str:
            raise Shutdown

    error = ValueError("no date")
    error.add_note("in row 17")

    def act(job_state: JobState) -> None:
        quiet.error("skipped", exc_info=error)
        quiet.error("skipped", exc_info=Mute())
        with pytest.raises(Shutdown):
            quiet.info(Interrupting())

    first, second = ran(act)
    assert first.text == "skipped\nValueError: no date\nin row 17"
    assert second.text.endswith("Mute: <exception str() failed>")


@pytest.mark.promise("logging-is-captured")
def test_contexts_of_the_job_log_for_it(redis_url, store):
    """Its tasks, and what asyncio.to_thread() runs. Pools and threads that it starts do
    not, unless they run in a copy of its context.
    """
    broker = make_broker(redis_url, others=(AsyncIO(),))

    @job_actor(broker=broker)
    async def keep_diary(name: str, *, job_state: Journaled) -> None:
        async def step() -> None:
            await asyncio.sleep(0.01)
            log.info("%s: task", name)

        log.info("%s: actor", name)
        await asyncio.gather(step(), asyncio.sleep(0.02))
        await asyncio.to_thread(log.info, "%s: to_thread", name)
        thread = threading.Thread(target=log.info, args=("thread",))
        thread.start()
        with ThreadPoolExecutor(1) as pool:
            pool.submit(log.info, "pool").result()
            copied = contextvars.copy_context()
            pool.submit(copied.run, log.info, "%s: copy", name).result()
        await asyncio.to_thread(thread.join)

    with working(broker):
        sent = {name: keep_diary.send(name) for name in ("a", "b")}
        for name, message in sent.items():
            wait_until(broker, message, "success", "error")
            assert texts(store, message.message_id) == [
                f"{name}: {what}" for what in ("actor", "task", "to_thread", "copy")
            ]


def test_job_inside_a_job_has_its_own_log(redis_url, store):
    """A broker that runs jobs in the caller nests them. A nested job that captures
    nothing, or is not tracked, does not log for the one around it. What a job calls
    logs for it, whatever that captures; what it reports is lost.
    """
    broker = InCallerBroker([JobStateMiddleware(url=redis_url)])
    uuids: list[str] = []

    @job_actor(broker=broker)
    def keep_inner(*, job_state: LoudJournaled) -> None:
        uuids.append(job_state.uuid)
        log.error("inner")
        log.info("low")
        job_state.append_log("own")

    @job_actor(broker=broker, job_state=True)
    def keep_none() -> None:
        log.error("none")

    @dramatiq.actor(broker=broker)
    def untracked() -> None:
        log.error("untracked")

    @job_actor(broker=broker)
    def keep_diary(*, job_state: Journaled) -> None:
        uuids.append(job_state.uuid)
        log.info("before")
        for actor in keep_inner, keep_none, untracked:
            actor.send()
        log.info("after")
        keep_inner()
        wait_for(lambda: texts(store, job_state.uuid))
        keep_none()
        log.info("at last")

    keep_diary.send()
    keep_none()
    outer, inner, _ = uuids
    expected = ["before", "after", "inner", "low", "none", "at last"]
    assert texts(store, outer) == expected
    assert texts(store, inner) == ["inner", "own"]


def test_run_that_is_over_logs_no_more(broker, store):
    """A thread may outlive its job: what it logs belongs to nobody, even while the
    same job runs again.
    """
    gate = Gate()

    @job_actor(broker=broker, min_backoff=1, max_backoff=1, max_retries=1)
    def keep_diary(*, job_state: Journaled) -> None:
        log.info("attempt %d", job_state.attempt)
        if job_state.attempt == 1:
            # The next attempt may begin before the end of this one is written.
            assert job_state.flush(10)
            context = contextvars.copy_context()

            def outlive() -> None:
                gate.wait()
                log.info("too late")

            threads.append(threading.Thread(target=context.run, args=(outlive,)))
            threads[0].start()
            raise ValueError
        gate.open()
        threads[0].join()

    threads: list[threading.Thread] = []
    with working(broker):
        message = keep_diary.send()
        wait_until(broker, message, "success")
    lines = store.log(message.message_id)
    assert [(x.number, x.attempt, x.text) for x in lines] == [
        (1, 1, "attempt 1"),
        (2, 2, "attempt 2"),
    ]


def test_forked_child_logs_nothing(ran):
    """The parent goes on."""

    def child() -> str:
        log.info("child")
        return "logged"

    def act(job_state: JobState) -> None:
        log.info("before")
        assert in_child(child) == "logged"
        log.info("after")

    assert [line.text for line in ran(act)] == ["before", "after"]


def test_logging_may_be_configured_during_the_run(ran):
    """Capturing takes no handler, so basicConfig() works, and Python's handler of last
    resort stays.
    """
    root = logging.getLogger()

    def act(job_state: JobState) -> None:
        root.handlers.clear()
        log.info("first")
        assert not root.hasHandlers()
        logging.basicConfig(level=logging.INFO)
        assert len(root.handlers) == 1
        log.info("second")

    assert [line.text for line in ran(act)] == ["first", "second"]


def test_application_may_set_another_record_factory(ran):
    """One that calls the factory it found, one that does not, and one that it puts
    back: the next run captures each record once, as the application made it.
    """

    class Braced(logging.LogRecord):
        def getMessage(self) -> str:  # noqa: N802
            return str(self.msg).format(*self.args or ())

    assert ran(lambda _: log.info("plain"))
    found = logging.getLogRecordFactory()

    def wrapping(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = found(*args, **kwargs)
        record.msg = f"<{record.msg}>"
        return record

    logging.setLogRecordFactory(wrapping)
    assert [line.text for line in ran(lambda _: log.info("x"))] == ["<x>"]
    logging.setLogRecordFactory(Braced)
    assert [x.text for x in ran(lambda _: log.info("{} miles", 26))] == ["26 miles"]
    logging.setLogRecordFactory(found)
    assert [line.text for line in ran(lambda _: log.info("y"))] == ["y"]


def test_record_factory_may_be_replaced_for_a_while(redis_url, store):
    """Another job begins meanwhile. The one that goes on keeps each record once."""
    broker = InCallerBroker([JobStateMiddleware(url=redis_url)])
    uuids: list[str] = []

    @job_actor(broker=broker)
    def keep_inner(*, job_state: Journaled) -> None:
        log.info("inner")

    @job_actor(broker=broker)
    def keep_diary(*, job_state: Journaled) -> None:
        uuids.append(job_state.uuid)
        found = logging.getLogRecordFactory()
        logging.setLogRecordFactory(lambda *args, **more: found(*args, **more))
        log.info("first")
        keep_inner.send()
        log.info("second")
        newest = logging.getLogRecordFactory()
        logging.setLogRecordFactory(found)
        log.info("third")
        logging.setLogRecordFactory(newest)
        log.info("fourth")

    keep_diary.send()
    assert texts(store, uuids[0]) == ["first", "second", "third", "fourth"]


@pytest.mark.promise("log-has-the-newest-lines")
def test_log_is_bounded(ran, client):
    """A line keeps 1,000 characters, and a job its newest 64 KiB: numbers tell how many
    lines are gone.
    """

    def act(job_state: JobState) -> None:
        for number in range(200):
            log.info("%d %s", number, "é" * 2000)
            if number % 10 == 0:
                assert job_state.flush(10)
        job_state.append_log("x" * 2000)

    lines = ran(act)
    assert [len(line.text) for line in lines] == [1000] * len(lines)
    assert lines[-1].number == 201
    assert [line.number for line in lines] == [*range(201 - len(lines) + 1, 202)]
    assert 25 < len(lines) < 33
    (key,) = client.keys("*:log")
    assert sum(map(len, client.lrange(key, 0, -1))) <= 64 * 1024


def test_flush_writes_no_more_than_64_kib(ran, client):
    """However the lines read as JSON."""
    sent: list[int] = []

    def act(job_state: JobState) -> None:
        # The server has the script from then on.
        log.info("before")
        assert job_state.flush(10)
        before = client.info("stats")["total_net_input_bytes"]
        for _ in range(1000):
            log.info("\x01" * 1000)
        assert job_state.flush(10)
        sent.append(client.info("stats")["total_net_input_bytes"] - before)

    last = ran(act, interval=60)[-1]
    assert (last.number, last.text) == (1001, "\x01" * 1000)
    assert sent[0] < 80 * 1024


def test_outage_loses_no_line_and_doubles_none(ran, own):
    """What is logged while the store is away comes later, up to 64 KiB."""

    def act(job_state: JobState) -> None:
        log.info("before")
        assert job_state.flush(10)
        with away(own):
            for number in range(500):
                log.info("line %d", number)
                if number % 100 == 0:
                    job_state.flush(0.05)
        wait_for(lambda: job_state.flush(10))
        log.info("after")

    lines = ran(act)
    expected = ["before", *(f"line {n}" for n in range(500)), "after"]
    assert [line.text for line in lines] == expected
    assert [line.number for line in lines] == [*range(1, 503)]


def test_long_outage_keeps_the_newest_lines(ran, own):
    """A gap in the numbers tells how many lines are gone, and memory is bounded."""
    used: list[int] = []

    def act(job_state: JobState) -> None:
        log.info("before")
        assert job_state.flush(10)
        with away(own):
            tracemalloc.start()
            for number in range(5000):
                quiet.info("%-1000d", number)
            used.append(tracemalloc.get_traced_memory()[0])
            tracemalloc.stop()
        wait_for(lambda: job_state.flush(10))

    lines = ran(act)
    assert sum(len(line.text) for line in lines) <= 64 * 1024
    assert lines[-1].number == 5001
    assert [x.number for x in lines[-50:]] == [*range(4952, 5002)]
    assert used[0] < 1024 * 1024


def test_line_waits_while_others_are_sent(ran, proxy):
    """What is logged between a request and its reply is in the next request."""
    contexts: list[contextvars.Context] = []

    def judge(request: bytes) -> str:
        if contexts and b"early" in request:
            contexts.pop().run(log.info, "late")
        return "pass"

    def act(job_state: JobState) -> None:
        contexts.append(contextvars.copy_context())
        log.info("early")
        assert job_state.flush(10)
        assert not contexts

    proxy.judge = judge
    lines = ran(act, own=JobStore(proxy.url))
    assert [(x.number, x.text) for x in lines] == [(1, "early"), (2, "late")]


@pytest.mark.promise("log-has-the-newest-lines")
def test_lost_replies_double_no_line(ran, proxy):
    """What was sent is sent again if its reply is lost, and stands once."""
    seen: set[bytes] = set()

    def judge(request: bytes) -> str:
        """Lose each reply to a new line, and cut some."""
        found = {word for word in re.findall(rb"line \d+", request) if word not in seen}
        seen.update(found)
        return ("lose", "cut")[len(seen) % 2] if found else "pass"

    def act(job_state: JobState) -> None:
        for number in range(20):
            log.info("line %d", number)
            job_state.append_log(f"own {number}")
            wait_for(lambda: job_state.flush(1))

    proxy.judge = judge
    lines = ran(act, own=JobStore(proxy.url), interval=0.001)
    assert proxy.faults["lose"] > 5 and proxy.faults["cut"] > 5
    assert [line.number for line in lines] == [*range(1, 41)]
    assert [x.text for x in lines if x.is_captured] == [f"line {n}" for n in range(20)]


def test_threads_of_a_job_lose_no_line(ran):
    """Whenever another one logs, and its line is stored, in the middle of a call."""

    def act(job_state: JobState) -> None:
        def step(frame: Any, event: str, _: object) -> Any:
            frame.f_trace_opcodes = "pyramid_jobstate" in frame.f_code.co_filename
            if event == "opcode":
                context = contextvars.copy_context()
                pool.submit(context.run, log.info, "between").result()
                assert job_state.flush(10)
            return step

        before = sys.gettrace()
        sys.settrace(step)
        try:
            log.info("whole")
        finally:
            sys.settrace(before)

    with ThreadPoolExecutor(1) as pool:
        lines = ran(act, interval=0.001)
    # Later versions of Python stop once a line, this one about seven times.
    least = 50 if sys.version_info < (3, 12) else 20
    assert len(lines) > least and [line.text for line in lines].count("whole") == 1
    assert [line.number for line in lines] == [*range(1, len(lines) + 1)]


def test_late_line_is_dropped_while_the_end_is_unwritten(own, store):
    """A thread outlives its job while the store is away."""
    stub = StubBroker()
    stub.add_middleware(JobStateMiddleware(own, interval=0.01))
    contexts: list[contextvars.Context] = []

    @job_actor(broker=stub)
    def keep_diary(*, job_state: Journaled) -> None:
        log.info("in time")
        contexts.append(contextvars.copy_context())
        stack.enter_context(away(own))

    with contextlib.ExitStack() as stack, working(stub):
        message = keep_diary.send()
        stub.join("default")
        contexts[0].run(log.info, "too late")
        stack.close()
        wait_for(lambda: load_job(store, message.message_id).is_finished)
    assert texts(store, message.message_id) == ["in time"]


def test_handlers_and_finalizers_may_log(ran):
    """A handler holds its lock while it logs. A finalizer, which may run anywhere,
    waits for that lock.
    """
    stuck: list[str] = []

    class Chatty(logging.Handler):
        def acquire(self) -> None:
            lock: Any = self.lock
            if not lock.acquire(timeout=5):
                stuck.append(threading.current_thread().name)
                raise TimeoutError

        def emit(self, record: logging.LogRecord) -> None:
            time.sleep(0.001)
            quiet.info("from the handler")

    chatty = logging.Logger("tests.chatty", logging.INFO)
    chatty.addHandler(Chatty())
    over = threading.Event()
    thread: threading.Thread | None = None

    def finalize(phase: str, info: object) -> None:
        if threading.current_thread() is thread:
            chatty.info("from a finalizer")

    def go_on() -> None:
        kept: list[object] = []
        while not over.is_set():
            quiet.info("from the thread")
            kept.append([])

    def act(job_state: JobState) -> None:
        nonlocal thread
        context = contextvars.copy_context()
        thread = threading.Thread(target=context.run, args=(go_on,))
        thread.start()
        until = time.monotonic() + 0.5
        while time.monotonic() < until:
            chatty.info("from the job")
        over.set()
        thread.join()

    threshold = gc.get_threshold()
    gc.callbacks.append(finalize)
    gc.set_threshold(20)
    try:
        assert ran(act)
    finally:
        gc.set_threshold(*threshold)
        gc.callbacks.remove(finalize)
    assert not stuck


def test_log_of_a_store_that_came_back_empty_goes_on(ran, client):
    """What it had is gone with the record. Numbers do not begin again."""

    def act(job_state: JobState) -> None:
        log.info("lost")
        assert job_state.flush(10)
        for key in client.keys("*jobstate:*"):
            client.delete(key)
        log.info("kept")
        wait_for(lambda: job_state.flush(10))

    (line,) = ran(act)
    assert (line.number, line.text) == (2, "kept")


def test_log_that_another_program_has_written_does_no_harm(ran, store, client):
    """The job goes on, and its log is empty."""

    def act(job_state: JobState) -> None:
        key = f"{{jobstate:{job_state.uuid}}}:log"
        client.set(key, "theirs")
        log.info("nowhere")
        job_state.set_message("on")
        assert job_state.flush(10)
        assert load_job(store, job_state.uuid).message == "on"
        assert store.log(job_state.uuid) == []
        client.delete(key)
        client.rpush(key, b"theirs", b"1 a b c 4 [20]", b"\xff")
        assert store.log(job_state.uuid) == []

    ran(act)
