"""What one execution of a job has said, and what it may say."""

import asyncio
import contextlib
import datetime
import decimal
import time
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.pool import ThreadPool

import pytest

from pyramid_jobstate.errors import JobCancelled
from pyramid_jobstate.job.run import LIMIT, Run, is_plain
from pyramid_jobstate.job.values import (
    MAX_JOB_BYTES,
    MAX_VALUE_BYTES,
    NUMBER_BYTES,
    loads,
)
from tests.support import wait_for


def snapshot(run):
    """Return all that a run's viewers can see, and what it reckons with."""
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


#: Each call by which a job reports.
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
    """After each call that reports the recorder finds the flag up."""
    call(run)
    assert run.dirty


@pytest.mark.parametrize("value", [0, -5, 1.5, True, 2**61, -0.0])
def test_run_keeps_a_plain_number_as_it_is(run, value):
    """A number is kept as the object it is, and its metric is known from then on."""
    run.set_metrics({"a": value})
    assert run.metrics["a"] is value
    assert run.known == {"a"}


@pytest.mark.parametrize("value", [2**62, -(2**62), 10**100, "1", None, [1]])
def test_run_keeps_anything_else_as_json(run, value):
    """Any other value is kept as JSON, and its metric is known no more."""
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
    """A number may be kept unlooked at if it is finite and short as JSON."""
    assert is_plain(value) is plain


def test_run_copies_a_mutable_value_at_the_call(run):
    """What becomes of a list after the call has no effect."""
    inner = [2]
    run.set_metrics({"a": [1, {"a": inner}]})
    inner.append(3)
    assert loads(run.metrics["a"]) == [1, {"a": [2]}]


@pytest.mark.parametrize("name", ["__proto__", "constructor", "m:a", " ", "ü"])
def test_run_takes_a_strange_name(run, name):
    """A metric may be called what is special to others."""
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
    """Metrics of which one is refused leave everything as it was, the flag too."""
    run.set_metrics({"a": 1, "c": "text"})
    run.dirty = False
    before = snapshot(run)
    with pytest.raises(error):
        run.set_metrics(values)
    assert snapshot(run) == before
    assert not run.dirty


@pytest.mark.parametrize("value", [float("nan"), object(), "é" * 8192])
def test_run_names_the_metric_that_is_bad(run, value):
    """The message says which metric it was, and what is wrong with it."""
    with pytest.raises((TypeError, ValueError), match=r"^The progress metric 'x' "):
        run.set_metrics({"a": 1, "x": value})


def test_run_takes_16_kib_in_a_value(run):
    """A value may take 16 KiB as JSON, in bytes, and not one more."""
    run.set_metrics({"a": "é" * 8191})
    assert len(run.metrics["a"].encode()) == MAX_VALUE_BYTES
    with pytest.raises(ValueError, match="takes 16385 bytes as JSON"):
        run.set_metrics({"a": "é" * 8191 + "a"})


def test_run_takes_256_kib_in_a_job(run):
    """All metrics may take 256 KiB, names included, and not one byte more."""
    fill(run)
    assert run.size == MAX_JOB_BYTES
    with pytest.raises(ValueError, match=r"'x' the job's metrics would take 262169 b"):
        run.set_metrics({"x": 1})
    assert run.size == MAX_JOB_BYTES


def test_run_counts_a_name_in_bytes(run):
    """A name takes as much as it does in UTF-8."""
    run.set_metrics({"😀": 1})
    assert run.size == 4 + NUMBER_BYTES


def test_run_reckons_a_replaced_value_once(run):
    """A value that takes another's place takes only the difference."""
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
    """A number's size does not change with its value: a counter never runs full."""
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
    """A counter stays exact as it grows beyond what is kept as a plain number."""
    run.set_metrics({"a": 2**62 - 1})
    run.increment("a", 1)
    run.increment("a", 2**80)
    assert loads(run.metrics["a"]) == 2**62 + 2**80
    run.increment("a", -(2**80))
    run.increment("a", -1)
    assert run.metrics["a"] == 2**62 - 1


@pytest.mark.parametrize("old", ["text", None, True, [1]])
def test_run_increments_no_metric_that_is_no_number(run, old):
    """To count up a metric that is no number is a TypeError that names it."""
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
    """An increment that is refused leaves everything as it was."""
    run.set_metrics({"a": 1})
    before = snapshot(run)
    with pytest.raises(error):
        run.increment(name, by)
    assert snapshot(run) == before


def test_run_refuses_an_increment_that_no_float_holds(run):
    """A sum that is too large is a ValueError, like every number that is."""
    run.set_metrics({"a": 10**400})
    with pytest.raises(ValueError, match="'a'"):
        run.increment("a", 1.5)


def test_run_sets_progress(run):
    """Progress is kept as plain numbers and a unit, and the message goes with it."""
    run.set_progress(decimal.Decimal(3), decimal.Decimal("7.5"), "rows", "Reading")
    assert run.report == {"progress": (3, 7.5, "rows"), "message": "Reading"}


def test_run_sets_progress_without_the_rest(run):
    """Without total, unit and message there are none, and a message that was stays."""
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
def test_run_sets_no_progress_that_is_bad(run, done, total, unit, message, error, what):
    """Progress of which one part is refused leaves everything as it was."""
    run.set_progress(0, 1, "rows", "Before")
    run.dirty = False
    before = snapshot(run)
    with pytest.raises(error, match=f"^The .*{what}"):
        run.set_progress(done, total, unit, message)
    assert snapshot(run) == before
    assert not run.dirty


def test_run_tracks_an_iterable(run):
    """An item counts as done when the next one is asked for."""
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
    """The progress stands at 0 as soon as track is called."""
    run.track([1, 2], None, None, None)
    assert run.report["progress"] == (0, 2, None)


@pytest.mark.parametrize("total", [5, 7.5, decimal.Decimal(5)])
def test_run_track_prefers_the_total_that_was_given(run, total):
    """A total that was given wins over len(), and is a plain number at each step."""
    steps = run.track([1, 2], total, None, None)
    assert next(steps) == 1
    assert next(steps) == 2
    done, kept, unit = run.report["progress"]
    assert (done, kept, unit) == (1, total, None)
    assert type(kept) in (int, float)


@pytest.mark.parametrize("iterable", [iter([1, 2]), (i for i in (1, 2))])
def test_run_track_of_an_iterator_is_indeterminate(run, iterable):
    """What has no len() has no total."""
    assert list(run.track(iterable, None, None, None)) == [1, 2]
    assert run.report["progress"] == (2, None, None)


def test_run_tracks_what_is_too_long_for_len(run):
    """A range beyond what len() can say is indeterminate."""
    steps = run.track(range(10**30), None, None, None)
    assert next(steps) == 0
    assert run.report["progress"] == (0, None, None)


def test_run_track_that_is_left_stays_where_it_was(run):
    """The item at which a loop broke off is not done."""
    for item in run.track(range(5), None, None, None):
        if item == 3:
            break
    assert run.report["progress"] == (3, 5, None)


@pytest.mark.parametrize(
    ("total", "unit", "message"), [(-1, None, None), (None, 3, None), (None, None, 3)]
)
def test_run_track_refuses_at_the_call(run, total, unit, message):
    """What set_progress refuses track refuses at the call, not at the first item."""
    with pytest.raises((TypeError, ValueError)):
        run.track([], total, unit, message)


class Closable:
    """An async iterator of three items that says what becomes of it."""

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
    """The same, which a plain loop goes through as well."""

    def __iter__(self):
        return iter(self.left)


async def letters(log):
    """Yield two letters, and say when that is over."""
    try:
        yield "a"
        yield "b"
    finally:
        await asyncio.sleep(0)
        log.append("closed")


def test_run_tracks_an_async_iterable(run):
    """In `async for` an item counts as done when the next one is asked for."""

    async def work():
        return [
            (item, run.report["progress"])
            async for item in run.track(letters([]), 2, "letters", "Reading")
        ]

    seen = asyncio.run(work())
    assert seen == [("a", (0, 2, "letters")), ("b", (1, 2, "letters"))]
    assert run.report == {"progress": (2, 2, "letters"), "message": "Reading"}


def test_run_tracks_an_async_iterable_with_its_len(run):
    """The total of an async iterable is its len(), at once, and each step raises the
    flag.
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
    """What `for` and `async for` both go through is tracked in either."""

    async def work():
        steps = run.track(Either(), None, None, None)
        assert [item async for item in steps] == [1, 2, 3]

    asyncio.run(work())
    assert run.report["progress"] == (3, 3, None)
    steps = run.track(Either(), None, None, None)
    assert list(steps) == [3, 2, 1]
    assert run.report["progress"] == (3, 3, None)


@pytest.mark.parametrize("what", [3, None, letters, len])
def test_run_track_refuses_what_is_no_iterable(run, what):
    """What is neither iterable nor async iterable is named at the call."""
    with pytest.raises(
        TypeError, match=r"^track\(\) takes an iterable or an async"
    ) as e:
        run.track(what, None, None, None)
    assert repr(what) in str(e.value)
    assert run.report == {} and not run.dirty


def test_run_track_takes_a_sequence_of_the_old_protocol(run):
    """What has only __getitem__ is an iterable."""

    class Sequence:
        def __getitem__(self, place):
            return "ab"[place]

    assert list(run.track(Sequence(), None, None, None)) == ["a", "b"]


@pytest.mark.parametrize("fails", [False, True])
def test_run_track_that_is_left_closes_an_async_generator(run, fails):
    """A `break`, or an exception in the loop's body, closes the generator as it does
    without track, and its item is not done.
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
    """JobCancelled, or the job's end, reaches the loop when the generator is closed;
    then there are no more items.
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
    """contextlib.aclosing() closes what is tracked, if that can be closed."""
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
    """The latest message counts, and None takes it away."""
    run.set_message("a")
    assert run.report == {"message": "a"}
    run.set_message(None)
    assert run.report == {"message": None}


@pytest.mark.parametrize(
    ("text", "error"), [(1, TypeError), (b"a", TypeError), ("x" * 16384, ValueError)]
)
def test_run_keeps_its_message_at_a_bad_one(run, text, error):
    """A message that is refused leaves the one before."""
    run.set_message("a")
    with pytest.raises(error, match=r"^The message "):
        run.set_message(text)
    assert run.report == {"message": "a"}


def test_run_log_keeps_the_last_lines(run):
    """A log has the last 20 lines, and of each the first 200 characters."""
    for i in range(25):
        run.append_log(f"{i:02}" + "ü" * 300)
    log = run.report["log"]
    assert [line[:2] for line in log] == [f"{i:02}" for i in range(5, 25)]
    assert {len(line) for line in log} == {200}


def test_run_log_refuses_what_is_no_string(run):
    """A line that is no string is a TypeError, and the log stays as it was."""
    run.append_log("a")
    with pytest.raises(TypeError, match=r"^A line of the log must be a str"):
        run.append_log(None)
    assert run.report == {"log": ("a",)}


def test_run_flush_without_a_recorder_has_nothing_to_wait_for(run):
    """A detached run's values are where they belong as soon as they are set."""
    assert run.flush(0)


@pytest.mark.parametrize("stored", [True, False])
def test_run_flush_says_what_the_recorder_says(run, stored):
    """The recorder is asked to write all, waited for, and believed."""
    waited = []

    def sync(timeout):
        waited.append((timeout, run.dirty))
        return stored

    run.sync = sync
    assert run.flush(2.5) is stored
    assert waited == [(2.5, True)]


@each_call
def test_run_that_is_closed_takes_nothing(run, call):
    """After the end each call raises a RuntimeError that says why, and sets nothing."""
    run.set_metrics({"a": 5})
    run.close("The job has ended.")
    before = snapshot(run)
    for _ in range(2):
        with pytest.raises(RuntimeError, match=r"^The job has ended"):
            call(run)
    assert snapshot(run) == before


def test_run_that_is_closed_stops_a_loop(run):
    """A loop that goes on in another thread after the end stops at its next step."""
    steps = run.track(range(5), None, None, None)
    next(steps)
    run.close("The job has ended.")
    with pytest.raises(RuntimeError, match="ended"):
        next(steps)
    assert run.report["progress"] == (0, 5, None)


def test_run_that_is_closed_meanwhile_knows_no_metric(run):
    """A call that was under way when the run was closed is the last one."""

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
    """The next call raises JobCancelled, and those after it report."""
    run.cancel()
    before = snapshot(run)
    with pytest.raises(JobCancelled, match="cancelled"):
        call(run)
    assert snapshot(run) == before
    call(run)
    assert run.dirty


def test_run_that_is_cancelled_stops_a_loop(run):
    """A loop's next step raises JobCancelled."""
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
    """Return what a call returns in a thread of its own."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(call).result()


def test_run_that_is_cancelled_tells_its_own_thread_once(run):
    """The run's own thread is told once: whoever goes on means to."""
    run.cancel()
    assert count_cancels(run) == 1


def test_run_that_is_cancelled_tells_other_threads_at_every_call(run):
    """Another thread is told at every call: each may be another piece of work."""
    run.cancel()
    assert in_thread(lambda: count_cancels(run)) == 3
    assert count_cancels(run) == 1


def test_run_that_is_cancelled_tells_each_task_once(run):
    """Each asyncio task is told once, in whatever thread it runs, and a thread that it
    hands work to at every call.
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
    """While a JobCancelled is being handled no call raises another, whichever thread
    noticed the cancel first.
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
    """The clean-up of a task that was told may report through tasks and threads of its
    own, as `asyncio.wait_for` makes one up to Python 3.11.
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
    """A task that is cancelled because another heard of the cancel may report."""
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
    """A time-out of asyncio comes of a CancelledError, but is not a clean-up: the task
    is told while it handles one, or afterwards.
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
    """A callback of a future may report: an exception there would end a thread of the
    pool, and whoever waits for its other futures would wait for ever.
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
    """In the threads of multiprocessing's pool JobCancelled is an Exception as well: no
    other reaches whoever waits for the result.
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


def test_run_stands_a_finalizer_that_reports(run):
    """What encodes a value may run a finalizer, which may report."""

    class Odd(datetime.date):
        def isoformat(self):
            run.append_log("from within")
            return "a day"

    run.set_metrics({"day": Odd(2026, 1, 1)})
    assert run.report["log"] == ("from within",)


def test_run_that_is_cancelled_is_not_kept_quiet_by_another_exception(run):
    """Only a JobCancelled that is being handled keeps the calls quiet."""
    run.cancel()

    def handle():
        try:
            raise OSError("no cancel")
        except OSError:
            return count_cancels(run, 1)

    assert in_thread(handle) == 1
    assert handle() == 1


def test_run_that_is_closed_is_not_cancelled_any_more(run):
    """After the end a call says that it has ended, whatever was asked."""
    run.cancel()
    run.close("The job has ended.")
    with pytest.raises(RuntimeError, match="ended"):
        run.set_message("a")


def test_job_cancelled_passes_by_except_exception():
    """JobCancelled is an Interrupt, which `except Exception` does not swallow."""
    assert not issubclass(JobCancelled, Exception)


def test_run_ask_wants_news_from_the_store(run):
    """To ask whether a cancel was asked counts as an update."""
    assert not run.ask()
    assert run.dirty
    run.cancel()
    assert run.ask()
