"""The reports of one execution of a job: what is kept, and what is refused."""

import asyncio
import contextlib
import datetime
import decimal
import time
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.pool import ThreadPool

import pytest

from pyramid_jobstate.errors import JobCancelled
from pyramid_jobstate.job.run import Run
from pyramid_jobstate.job.values import (
    LIMIT,
    MAX_JOB_BYTES,
    MAX_VALUE_BYTES,
    NUMBER_BYTES,
    is_plain,
    loads,
)
from tests.support import wait_for


def snapshot(run):
    """Return everything that viewers of a run can see, and its size accounting."""
    return (
        dict(run.metrics),
        dict(run.report),
        run.size,
        dict(run._sizes),
        set(run.known),
    )


def fill(run):
    """Fill a run to the last byte with the metrics "0" to "15" and "rest"."""
    count = MAX_JOB_BYTES // MAX_VALUE_BYTES - 1
    values = {str(i): "a" * (MAX_VALUE_BYTES - 2) for i in range(count)}
    room = MAX_JOB_BYTES - sum(len(name) + MAX_VALUE_BYTES for name in values)
    values["rest"] = "a" * (room - len("rest") - 2)
    run.set_metrics(values)


#: The calls by which a job reports.
CALLS = {
    "set_metrics": lambda run: run.set_metrics({"a": 1}),
    "increment": lambda run: run.increment("a", 1),
    "set_progress": lambda run: run.set_progress(1, 2, "rows", "text"),
    "track": lambda run: run.track([1], None, None, None),
    "set_message": lambda run: run.set_message("text"),
    "append_log": lambda run: run.append_log("line"),
}

each_call = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)


def test_run_token_names_one_run():
    """No two runs have the same token."""
    assert len({Run().token for _ in range(1000)}) == 1000


@each_call
def test_run_raises_the_flag_with_each_call(run, call):
    """Each call that reports raises the flag for the recorder."""
    call(run)
    assert run.dirty


@pytest.mark.parametrize("value", [0, -5, 1.5, True, 2**61, -0.0])
def test_run_keeps_a_plain_number_as_it_is(run, value):
    """A number is kept as the same object, and its metric becomes known."""
    run.set_metrics({"a": value})
    assert run.metrics["a"] is value
    assert run.known == {"a"}


@pytest.mark.parametrize("value", [2**62, -(2**62), 10**100, "1", None, [1]])
def test_run_keeps_anything_else_as_json(run, value):
    """Any other value is kept as JSON, and its metric loses the fast path."""
    run.set_metrics({"a": 1})
    run.set_metrics({"a": value})
    assert loads(run.metrics["a"]) == value
    assert run.known == set()


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (LIMIT, False),
        (-LIMIT, False),
        (2**62 - 1, True),
        (float("nan"), False),
        (float("inf"), False),
        (type("Int", (int,), {})(3), False),
    ],
)
def test_is_plain_takes_only_short_finite_numbers(value, plain):
    """A number is kept without further checks if it is finite and short as JSON."""
    assert is_plain(value) is plain


def test_run_copies_a_mutable_value_at_the_call(run):
    """Changes to a list after the call have no effect."""
    inner = [2]
    run.set_metrics({"a": [1, {"a": inner}]})
    inner.append(3)
    assert loads(run.metrics["a"]) == [1, {"a": [2]}]


@pytest.mark.parametrize("name", ["__proto__", "constructor", "m:a", " ", "ü"])
def test_run_takes_a_strange_name(run, name):
    """A metric may have a name that is special elsewhere."""
    run.set_metrics({name: 1})
    assert run.metrics == {name: 1}


@pytest.mark.parametrize(
    ("values", "error"),
    [
        ({"a": 2, "": 1}, ValueError),
        ({"a": 2, "job": 1}, ValueError),
        ({"a": 2, "\ud800": 1}, ValueError),
        ({"a": 2, 1: 1}, TypeError),
        ({"a": 2, "b": float("nan")}, ValueError),
        ({"a": 2, "b": float("inf")}, ValueError),
        ({"a": 2, "b": object()}, TypeError),
        ({"a": 2, "b": "x" * MAX_VALUE_BYTES}, ValueError),
        ({"a": 2, **{str(i): "x" * 16_000 for i in range(17)}}, ValueError),
    ],
)
def test_run_sets_nothing_if_one_metric_is_bad(run, values, error):
    """If one of several metrics is refused, nothing changes, not even the flag."""
    run.set_metrics({"a": 1, "c": "text"})
    run.dirty = False
    before = snapshot(run)
    with pytest.raises(error):
        run.set_metrics(values)
    assert snapshot(run) == before
    assert not run.dirty


@pytest.mark.parametrize("value", [float("nan"), object(), "é" * 8192])
def test_run_names_the_metric_that_is_bad(run, value):
    """The error names the metric and says what is wrong with it."""
    with pytest.raises((TypeError, ValueError), match=r"^The progress metric 'x' "):
        run.set_metrics({"a": 1, "x": value})


def test_run_takes_16_kib_in_a_value(run):
    """A value may take up to 16 KiB as JSON, counted in bytes."""
    run.set_metrics({"a": "é" * 8191})
    assert len(run.metrics["a"].encode()) == MAX_VALUE_BYTES
    with pytest.raises(ValueError, match="takes 16385 bytes as JSON"):
        run.set_metrics({"a": "é" * 8191 + "a"})


def test_run_takes_256_kib_in_a_job(run):
    """All metrics may take up to 256 KiB together, including their names."""
    fill(run)
    assert run.size == MAX_JOB_BYTES
    with pytest.raises(ValueError, match=r"'x' the job's metrics would take 262169 b"):
        run.set_metrics({"x": 1})
    assert run.size == MAX_JOB_BYTES


def test_run_counts_a_name_in_bytes(run):
    """A name counts with its bytes in UTF-8."""
    run.set_metrics({"😀": 1})
    assert run.size == 4 + NUMBER_BYTES


def test_run_reckons_a_replaced_value_once(run):
    """A replaced value counts only once."""
    fill(run)
    run.set_metrics({"0": "b" * (MAX_VALUE_BYTES - 2)})
    assert run.size == MAX_JOB_BYTES
    run.set_metrics({"0": "b", "x": "a" * (MAX_VALUE_BYTES - 100)})
    run.set_metrics({"x": 1})
    assert run.size == MAX_JOB_BYTES - MAX_VALUE_BYTES + 1 + 2 * NUMBER_BYTES
    run.set_metrics({"x": "a" * (MAX_VALUE_BYTES - 100)})
    with pytest.raises(ValueError, match="The limit is 262144"):
        run.set_metrics({"0": "b" * (MAX_VALUE_BYTES - 2)})


def test_run_counts_a_number_as_the_longest(run):
    """The size of a number is the same for all values: a counter never runs full."""
    run.set_metrics({"a": 0})
    size = run.size
    assert len(str(-1.7976931348623157e308)) == NUMBER_BYTES
    run.set_metrics({"a": 1.2345678901234567e-300})
    run.set_metrics({"a": ""})
    assert run.size == size


def test_run_increments_from_zero(run):
    """A counter that was never set starts at 0."""
    run.increment("a", 2)
    run.increment("a", 0.5)
    assert run.metrics == {"a": 2.5}


def test_run_increments_beyond_any_limit(run):
    """A counter stays exact as it grows beyond the limit for plain numbers."""
    run.set_metrics({"a": 2**62 - 1})
    run.increment("a", 1)
    run.increment("a", 2**80)
    assert loads(run.metrics["a"]) == 2**62 + 2**80
    run.increment("a", -(2**80))
    run.increment("a", -1)
    assert run.metrics["a"] == 2**62 - 1


@pytest.mark.parametrize("old", ["text", None, True, [1]])
def test_run_refuses_to_increment_a_non_number(run, old):
    """Incrementing a metric that is not a number is a TypeError that names it."""
    run.set_metrics({"a": old})
    with pytest.raises(TypeError, match="'a' cannot be incremented"):
        run.increment("a", 1)
    with pytest.raises(TypeError, match="'b' cannot be incremented"):
        run.increment("b", old)


@pytest.mark.parametrize(
    ("name", "by", "error"),
    [
        ("", 1, ValueError),
        ("job", 1, ValueError),
        (["a"], 1, TypeError),
        ("a", float("nan"), ValueError),
        ("a", float("inf"), ValueError),
        ("a", decimal.Decimal("NaN"), (TypeError, ValueError)),
    ],
)
def test_run_leaves_a_counter_alone_at_a_bad_increment(run, name, by, error):
    """A refused increment changes nothing."""
    run.set_metrics({"a": 1})
    before = snapshot(run)
    with pytest.raises(error):
        run.increment(name, by)
    assert snapshot(run) == before


def test_run_refuses_an_increment_that_no_float_holds(run):
    """A sum that is too large is a ValueError, like any number that is too large."""
    run.set_metrics({"a": 10**400})
    with pytest.raises(ValueError, match="'a'"):
        run.increment("a", 1.5)


def test_run_sets_progress(run):
    """Progress is kept as plain numbers and a unit, together with the message."""
    run.set_progress(decimal.Decimal(3), decimal.Decimal("7.5"), "rows", "Reading")
    assert run.report == {"progress": (3, 7.5, "rows"), "message": "Reading"}


def test_run_sets_progress_without_the_rest(run):
    """Total, unit and message are optional. An earlier message stays."""
    run.set_message("Before")
    run.set_progress(3, None, None, None)
    assert run.report == {"progress": (3, None, None), "message": "Before"}


@pytest.mark.parametrize(
    ("done", "total", "unit", "message", "error", "what"),
    [
        (-1, 2, None, None, ValueError, "progress"),
        (float("nan"), 2, None, None, ValueError, "progress"),
        pytest.param(10**5000, 2, None, None, ValueError, "progress", id="huge"),
        ("1", 2, None, None, TypeError, "progress"),
        (True, 2, None, None, TypeError, "progress"),
        (1, -2, None, None, ValueError, "total"),
        (1, float("inf"), None, None, ValueError, "total"),
        (1, "2", None, None, TypeError, "total"),
        (1, 2, 3, None, TypeError, "unit"),
        pytest.param(1, 2, "x" * 16384, None, ValueError, "unit", id="long unit"),
        (1, 2, None, 3, TypeError, "message"),
        pytest.param(1, 2, None, "x" * 16384, ValueError, "message", id="long"),
    ],
)
def test_run_refuses_bad_progress(run, done, total, unit, message, error, what):
    """If one part of the progress is refused, nothing changes."""
    run.set_progress(0, 1, "rows", "Before")
    run.dirty = False
    before = snapshot(run)
    with pytest.raises(error, match=f"^The .*{what}"):
        run.set_progress(done, total, unit, message)
    assert snapshot(run) == before
    assert not run.dirty


def test_run_tracks_an_iterable(run):
    """An item counts as done when the next one is requested."""
    seen = [
        (item, run.report["progress"])
        for item in run.track("ab", None, "letters", "Reading")
    ]
    assert seen == [("a", (0, 2, "letters")), ("b", (1, 2, "letters"))]
    assert run.report == {"progress": (2, 2, "letters"), "message": "Reading"}


def test_run_tracks_with_a_step_raising_the_flag(run):
    """Each step raises the flag again."""
    steps = run.track("ab", None, None, None)
    for _ in steps:
        assert run.dirty
        run.dirty = False
    assert run.dirty


def test_run_track_shows_its_total_before_the_first_item(run):
    """The progress is 0 as soon as track() is called."""
    run.track([1, 2], None, None, None)
    assert run.report["progress"] == (0, 2, None)


@pytest.mark.parametrize("total", [5, 7.5, decimal.Decimal(5)])
def test_run_track_prefers_the_total_that_was_given(run, total):
    """A given total takes precedence over len(), and is a plain number at each step."""
    steps = run.track([1, 2], total, None, None)
    assert next(steps) == 1
    assert next(steps) == 2
    done, kept, unit = run.report["progress"]
    assert (done, kept, unit) == (1, total, None)
    assert type(kept) in (int, float)


@pytest.mark.parametrize("iterable", [iter([1, 2]), (i for i in (1, 2))])
def test_run_track_of_an_iterator_is_indeterminate(run, iterable):
    """An iterable without len() has no total."""
    assert list(run.track(iterable, None, None, None)) == [1, 2]
    assert run.report["progress"] == (2, None, None)


def test_run_tracks_what_is_too_long_for_len(run):
    """A range that is too long for len() has no total."""
    steps = run.track(range(10**30), None, None, None)
    assert next(steps) == 0
    assert run.report["progress"] == (0, None, None)


def test_run_track_that_is_left_stays_where_it_was(run):
    """The item at which a loop breaks off does not count as done."""
    for item in run.track(range(5), None, None, None):
        if item == 3:
            break
    assert run.report["progress"] == (3, 5, None)


@pytest.mark.parametrize(
    ("total", "unit", "message"), [(-1, None, None), (None, 3, None), (None, None, 3)]
)
def test_run_track_refuses_at_the_call(run, total, unit, message):
    """track() refuses what set_progress() refuses, at the call, not the first item."""
    with pytest.raises((TypeError, ValueError)):
        run.track([], total, unit, message)


class Closable:
    """An async iterator of three items that counts how often it is closed."""

    def __init__(self):
        self.left = [3, 2, 1]
        self.closed = 0

    def __len__(self):
        return 3

    def __aiter__(self):
        return self

    async def __anext__(self):
        await asyncio.sleep(0)
        if not self.left:
            raise StopAsyncIteration
        return self.left.pop()

    async def aclose(self):
        self.closed += 1


class Either(Closable):
    """The same, but also iterable by a plain loop."""

    def __iter__(self):
        return iter(self.left)


async def letters(log):
    """Yield two letters, and log the end of the generator."""
    try:
        yield "a"
        yield "b"
    finally:
        await asyncio.sleep(0)
        log.append("closed")


def test_run_tracks_an_async_iterable(run):
    """In `async for`, an item counts as done when the next one is requested."""

    async def work():
        return [
            (item, run.report["progress"])
            async for item in run.track(letters([]), 2, "letters", "Reading")
        ]

    seen = asyncio.run(work())
    assert seen == [("a", (0, 2, "letters")), ("b", (1, 2, "letters"))]
    assert run.report == {"progress": (2, 2, "letters"), "message": "Reading"}


def test_run_tracks_an_async_iterable_with_its_len(run):
    """The total of an async iterable is its len() from the start, and each step raises
    the flag.
    """

    async def work():
        steps = run.track(Closable(), None, None, None)
        assert run.report["progress"] == (0, 3, None)
        async for _ in steps:
            assert run.dirty
            run.dirty = False
        assert run.dirty
        with pytest.raises(StopAsyncIteration):
            await anext(steps)

    asyncio.run(work())
    assert run.report["progress"] == (3, 3, None)


def test_run_tracks_what_is_both(run):
    """An object for both `for` and `async for` is tracked in either."""

    async def work():
        steps = run.track(Either(), None, None, None)
        assert [item async for item in steps] == [1, 2, 3]

    asyncio.run(work())
    assert run.report["progress"] == (3, 3, None)
    steps = run.track(Either(), None, None, None)
    assert list(steps) == [3, 2, 1]
    assert run.report["progress"] == (3, 3, None)


@pytest.mark.parametrize("what", [3, None, letters, len])
def test_run_track_refuses_a_non_iterable(run, what):
    """Anything but an iterable or async iterable is named in an error at the call."""
    with pytest.raises(
        TypeError, match=r"^track\(\) takes an iterable or an async"
    ) as e:
        run.track(what, None, None, None)
    assert repr(what) in str(e.value)
    assert run.report == {} and not run.dirty


def test_run_track_takes_a_sequence_of_the_old_protocol(run):
    """An object with only __getitem__ is an iterable."""

    class Sequence:
        def __getitem__(self, place):
            return "ab"[place]

    assert list(run.track(Sequence(), None, None, None)) == ["a", "b"]


@pytest.mark.parametrize("fails", [False, True])
def test_run_track_that_is_left_closes_an_async_generator(run, fails):
    """A `break` or an exception in the loop's body closes the generator, as it does
    without track(). The current item does not count as done.
    """
    log: list[str] = []

    async def loop():
        async for _ in run.track(letters(log), 2, None, None):
            if fails:
                raise KeyError
            break

    async def work():
        with contextlib.suppress(KeyError):
            await loop()
        for _ in range(3):
            await asyncio.sleep(0)
        assert log == ["closed"]

    asyncio.run(work())
    assert run.report["progress"] == (0, 2, None)


@pytest.mark.parametrize("end", ["cancel", "close"])
def test_run_track_that_may_not_go_on_closes_the_generator_first(run, end):
    """JobCancelled, or the error after the job's end, reaches the loop once the
    generator is closed. No more items follow.
    """
    log: list[str] = []

    async def work():
        steps = run.track(letters(log), 2, None, None)
        assert await anext(steps) == "a"
        run.cancel() if end == "cancel" else run.close("The job has ended.")
        with pytest.raises(JobCancelled if end == "cancel" else RuntimeError):
            await anext(steps)
        assert log == ["closed"]
        assert [item async for item in steps] == []

    asyncio.run(work())
    assert run.report["progress"] == (0, 2, None)


def test_run_track_can_be_closed(run):
    """contextlib.aclosing() closes a tracked iterable that can be closed."""
    closable = Closable()
    log: list[str] = []

    class Plain:
        __aiter__ = Closable.__aiter__
        __anext__ = Closable.__anext__
        left = ()

    async def work():
        for what in (closable, letters(log), Plain()):
            async with contextlib.aclosing(run.track(what, 2, None, None)) as steps:
                async for _ in steps:
                    break
            assert [item async for item in steps] == []

    asyncio.run(work())
    assert closable.closed == 1 and log == ["closed"]


def test_run_sets_a_message(run):
    """The latest message counts, and None removes it."""
    run.set_message("a")
    assert run.report == {"message": "a"}
    run.set_message(None)
    assert run.report == {"message": None}


@pytest.mark.parametrize(
    ("text", "error"), [(1, TypeError), (b"a", TypeError), ("x" * 16384, ValueError)]
)
def test_run_keeps_its_message_at_a_bad_one(run, text, error):
    """A refused message leaves the previous one."""
    run.set_message("a")
    with pytest.raises(error, match=r"^The message "):
        run.set_message(text)
    assert run.report == {"message": "a"}


def test_run_log_keeps_the_last_lines(run):
    """A log keeps the last 20 lines, and the first 200 characters of each."""
    for i in range(25):
        run.append_log(f"{i:02}" + "ü" * 300)
    log = run.report["log"]
    assert [line[:2] for line in log] == [f"{i:02}" for i in range(5, 25)]
    assert {len(line) for line in log} == {200}


def test_run_log_refuses_what_is_not_a_string(run):
    """A line that is not a string is a TypeError, and the log does not change."""
    run.append_log("a")
    with pytest.raises(TypeError, match=r"^A line of the log must be a str"):
        run.append_log(None)
    assert run.report == {"log": ("a",)}


def test_run_flush_without_a_recorder_has_nothing_to_wait_for(run):
    """A detached run has nothing to wait for: its values are in place at once."""
    assert run.flush(0)


@pytest.mark.parametrize("stored", [True, False])
def test_run_flush_says_what_the_recorder_says(run, stored):
    """flush() makes the recorder write everything and returns its answer."""
    waited = []

    def sync(timeout):
        waited.append((timeout, run.dirty))
        return stored

    run.sync = sync
    assert run.flush(2.5) is stored
    assert waited == [(2.5, True)]


@each_call
def test_run_that_is_closed_takes_nothing(run, call):
    """After the end, each call raises a RuntimeError with the reason."""
    run.set_metrics({"a": 5})
    run.close("The job has ended.")
    before = snapshot(run)
    for _ in range(2):
        with pytest.raises(RuntimeError, match=r"^The job has ended"):
            call(run)
    assert snapshot(run) == before


def test_run_that_is_closed_stops_a_loop(run):
    """A loop that continues in another thread after the end stops at its next step."""
    steps = run.track(range(5), None, None, None)
    next(steps)
    run.close("The job has ended.")
    with pytest.raises(RuntimeError, match="ended"):
        next(steps)
    assert run.report["progress"] == (0, 5, None)


def test_run_that_is_closed_meanwhile_knows_no_metric(run):
    """A call that is under way when the run is closed is the last one."""

    class Closing(dict):
        def update(self, *args, **options):
            super().update(*args, **options)
            run.close("The job has ended.")

    run.metrics = Closing()
    run.set_metrics({"a": 1})
    assert run.metrics == {"a": 1}
    assert run.known == set()


@each_call
def test_run_that_is_cancelled_says_so_once(run, call):
    """The next call raises JobCancelled, and later calls report."""
    run.cancel()
    before = snapshot(run)
    with pytest.raises(JobCancelled, match="cancelled"):
        call(run)
    assert snapshot(run) == before
    call(run)
    assert run.dirty


def test_run_that_is_cancelled_stops_a_loop(run):
    """The next step of a loop raises JobCancelled."""
    steps = run.track(range(5), None, None, None)
    next(steps)
    run.cancel()
    with pytest.raises(JobCancelled):
        next(steps)


def count_cancels(run, calls=3):
    """Make calls of a run and return how many of them raised JobCancelled."""
    told = 0
    for _ in range(calls):
        try:
            run.set_metrics({"a": 1})
        except JobCancelled:
            told += 1
    return told


def in_thread(call):
    """Return the result of a call in a separate thread."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(call).result()


def test_run_that_is_cancelled_tells_its_own_thread_once(run):
    """The run's own thread gets one JobCancelled. If it goes on, it means to."""
    run.cancel()
    assert count_cancels(run) == 1


def test_run_that_is_cancelled_tells_other_threads_at_every_call(run):
    """Another thread gets a JobCancelled at every call: each may be other work."""
    run.cancel()
    assert in_thread(lambda: count_cancels(run)) == 3
    assert count_cancels(run) == 1


def test_run_that_is_cancelled_tells_each_task_once(run):
    """Each asyncio task gets one JobCancelled, in whatever thread it runs. A thread
    that it hands work to gets one at every call.
    """
    run.cancel()

    async def work():
        counts = [asyncio.create_task(count()) for _ in range(3)]
        return [await c for c in counts], await asyncio.to_thread(count_cancels, run)

    async def count():
        return count_cancels(run)

    assert asyncio.run(work()) == ([1, 1, 1], 3)
    assert in_thread(lambda: asyncio.run(work())) == ([1, 1, 1], 3)
    assert count_cancels(run) == 1


def fail_in_between(run, cancel):
    try:
        raise ValueError
    except ValueError:
        run.set_message("in a handler in the handler")


def group(run, cancel):
    try:
        raise BaseExceptionGroup("of a task group", [OSError(), cancel])
    except BaseExceptionGroup:
        run.set_message("in the handler of a group")


def chain(run, cancel):
    try:
        raise OSError from cancel
    except OSError as e:
        e.__context__ = e
        run.set_message("in the handler of what it led to")


def report(run, cancel):
    run.set_message("in the handler")


@pytest.mark.parametrize("is_own", [True, False])
@pytest.mark.parametrize("how", [report, fail_in_between, group, chain])
def test_run_that_is_cancelled_lets_the_clean_up_report(run, how, is_own):
    """While a JobCancelled is being handled, no call raises another, whichever thread
    noticed the cancellation first.
    """
    run.cancel()
    with pytest.raises(JobCancelled) as raised:
        in_thread(lambda: run.set_message("noticed elsewhere"))

    def clean_up():
        try:
            raise raised.value
        except JobCancelled as e:
            how(run, e)
            run.set_message("cleaning up")

    (clean_up if is_own else lambda: in_thread(clean_up))()
    assert run.report["message"] == "cleaning up"
    assert count_cancels(run) == (0 if is_own else 1)


def test_run_that_is_cancelled_lets_the_clean_up_use_tasks_and_threads(run):
    """The clean-up of a task that got its JobCancelled may report through its own tasks
    and threads, such as those of `asyncio.wait_for` up to Python 3.11.
    """
    run.cancel()

    async def clean_up(name):
        run.set_message(name)

    async def work():
        try:
            run.set_progress(1, None, None, None)
        finally:
            await asyncio.wait_for(clean_up("waited for"), 5)
            await asyncio.gather(clean_up("one"), clean_up("two"))
            await asyncio.to_thread(run.set_message, "in a thread")

    with pytest.raises(JobCancelled):
        asyncio.run(work())
    assert run.report["message"] == "in a thread"


def test_run_that_is_cancelled_lets_the_other_tasks_of_a_group_clean_up(run):
    """A task that is cancelled because another got a JobCancelled may report."""
    run.cancel()

    async def hear():
        await asyncio.sleep(0.01)
        run.set_progress(1, None, None, None)

    async def wait():
        try:
            await asyncio.sleep(10)
        finally:
            run.set_message("cleaned up")

    async def work():
        async with asyncio.TaskGroup() as group:
            group.create_task(wait())
            group.create_task(hear())

    with pytest.raises(BaseExceptionGroup) as raised:
        asyncio.run(work())
    assert [type(e) for e in raised.value.exceptions] == [JobCancelled]
    assert run.report["message"] == "cleaned up"


def test_run_that_is_cancelled_tells_a_task_whose_waiting_timed_out(run):
    """A timeout of asyncio comes from a CancelledError but is not a clean-up: the task
    gets its JobCancelled while handling the timeout, or afterwards.
    """
    run.cancel()

    async def wait_and_report(where):
        try:
            await asyncio.wait_for(asyncio.Event().wait(), 0.01)
        except TimeoutError:
            if where == "within":
                run.set_message("idle")
        run.set_message("on we go")

    async def time_out():
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.01):
                try:
                    await asyncio.sleep(10)
                finally:
                    run.set_message("cleaned up")
        run.set_message("on we go")

    for work in (wait_and_report("within"), wait_and_report("afterwards"), time_out()):
        with pytest.raises(JobCancelled):
            in_thread(lambda work=work: asyncio.run(work))


def test_run_that_is_cancelled_ends_no_thread_that_calls_back(run):
    """A future's callback may report. An exception would end a thread of the pool, and
    its other futures would never complete.
    """
    called = []

    def call_back(future):
        run.set_message("called back")
        called.append(future)

    with ThreadPoolExecutor(1) as pool:
        pool.submit(run.cancel)
        futures = [pool.submit(time.sleep, 0.01) for _ in range(5)]
        for future in futures:
            future.add_done_callback(call_back)
        for future in futures:
            future.result(timeout=10)
    assert len(called) == 5


def test_run_that_is_cancelled_stops_a_pool_of_multiprocessing(run):
    """In threads of multiprocessing's pool, JobCancelled is also an Exception, the only
    kind that reaches the caller who waits for the result.
    """
    run.cancel()
    called = []

    def call_back(result):
        run.set_message("called back")
        called.append(result)

    def work(number):
        run.set_progress(number, None, None, None)

    def numbers():
        for number in range(20):
            work(number)
            yield number

    with ThreadPool(2) as pool:
        with pytest.raises(JobCancelled):
            pool.map_async(work, range(20)).get(timeout=10)
        with pytest.raises(JobCancelled):
            pool.imap(abs, numbers()).next(timeout=10)
        result = pool.apply_async(abs, (1,), callback=call_back)
        assert result.get(timeout=10) == 1
    wait_for(lambda: called == [1])


def test_run_tolerates_a_finalizer_that_reports(run):
    """Encoding a value may run a finalizer that reports."""

    class Odd(datetime.date):
        def isoformat(self):
            run.append_log("from within")
            return "a day"

    run.set_metrics({"day": Odd(2026, 1, 1)})
    assert run.report["log"] == ("from within",)


def test_run_that_is_cancelled_is_not_kept_quiet_by_another_exception(run):
    """Only handling a JobCancelled keeps calls from raising another."""
    run.cancel()

    def handle():
        try:
            raise OSError("no cancel")
        except OSError:
            return count_cancels(run, 1)

    assert in_thread(handle) == 1
    assert handle() == 1


def test_run_that_is_closed_is_not_cancelled_any_more(run):
    """After the end, calls say that the job has ended, cancelled or not."""
    run.cancel()
    run.close("The job has ended.")
    with pytest.raises(RuntimeError, match="ended"):
        run.set_message("a")


def test_job_cancelled_passes_by_except_exception():
    """JobCancelled is an Interrupt, which `except Exception` does not catch."""
    assert not issubclass(JobCancelled, Exception)


def test_run_ask_wants_news_from_the_store(run):
    """Asking for a cancellation counts as an update, so the store is queried."""
    assert not run.ask()
    assert run.dirty
    run.cancel()
    assert run.ask()
