"""What the commands draw on a terminal, and what they do without one that can."""

import contextlib
import io
import os
import re
import signal
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import redis

from pyramid_jobstate import JobError, JobState, Progress
from pyramid_jobstate.testing import put_batch
from tests.faulty import faulty
from tests.jobs import RunMarathon
from tests.operated import HARMLESS, HOSTILE, Haul, put
from tests.support import key_of, write
from tests.terminal import Terminal
from tests.webapp import NOWHERE

BAR = "━━━━━╺━━━━━━━━━━━━━━"


class Amble(JobState):
    """A kind that is busier than marathons."""


def test_list_is_a_table(pjobs, store):
    """The jobs are rows of a table. Control characters and rich's markup are shown as
    text. A last line says when there are more jobs, a job queued on another day shows
    its date, and NO_COLOR removes the colours.
    """
    message = "[red]Reading[/red] :smile:"
    working = put(store, progress=Progress(1, 4, "rows"), message=message)
    put(store, "error", owner=HOSTILE, error=JobError("ValueError", HOSTILE))
    write(store, put(store, "success"), queued=0)
    shown = pjobs.draw("list", "--limit", "2", columns=150)
    head, first, second, last = shown.lines()
    assert head.split() == ["id", "queued", "kind", "owner", "status"]
    assert first.split()[0] == working.uuid[:8]
    assert first.endswith(f"working  25% 1 of 4 rows: {message}")
    assert " 1970-01-01 " in second
    assert last == "More than 2: see --limit."
    assert "\x1b[36m" in shown.output
    shown = pjobs.draw("list", columns=150, NO_COLOR="1")
    assert r"ValueError: a\x1b[2J" in shown.lines()[3]
    assert "\x07" not in shown.output.replace("mark\x07", "")
    assert "\x1b[3" not in shown.output
    assert pjobs.draw("list", "--kind", "Other").lines() == ["No job matches."]
    write(store, working, queued="")
    shown = pjobs.draw("list", columns=150)
    assert f"\n{working.uuid[:8]}  -  " in shown.text()


def test_show_is_a_card(pjobs, store):
    """`show` is a card with a bar, which is full after a success."""
    metrics = {"[b]x[/b]": HOSTILE}
    job = put(store, progress=Progress(1, 4, "rows"), metrics=metrics, log=["1", "2"])
    shown = pjobs.draw("show", job.uuid, columns=150)
    text = shown.text()
    assert BAR in text
    assert re.search("^log  +1\n +2$", text, re.MULTILINE)
    assert "progress    " in text and "  25% 1 of 4 rows" in text
    assert 'metric [b]x[/b]  "a\\u001b[2J\\u0007\\x9b1m\\x7f\\u202eb' in text
    assert "\x9b" not in shown.output and "\u202e" not in shown.output
    job = put(store, "success", progress=Progress(1, 4))
    shown = pjobs.draw("show", job.uuid, columns=150)
    assert len(BAR) * "━" in shown.text()


def test_info_has_bars(pjobs, store):
    """Bars show which kinds run most. Without jobs the totals remain."""
    shown = pjobs.draw("info", rows=300, columns=40)
    assert shown.lines()[:2] == [
        "working 0   queued 0   retrying 0",
        "stalled 0   | 24 h: success 0  error 0",
    ]
    for _ in range(3):
        put(store, cls=Amble)
    for status in "working", "cancelling":
        put(store, status)
    # It is not due, so that the line does not say for how long it has waited.
    put(store, "queued", delay=60)
    shown = pjobs.draw(rows=300)
    head, busiest, next_ = shown.lines()[:3]
    assert head.startswith("working 4   queued 1   ")
    assert re.fullmatch(r"Amble  +█{16}  3 working  0 queued  0 error", busiest)
    assert re.fullmatch(
        r"RunMarathon  +█{10}▋ +1 working  1 queued  0 error  1 cancelling", next_
    )


def test_watch_has_bars_that_move(pjobs, runs, store):
    """Each running job has a bar, also one that starts later; texts are harmless and
    markup is text; an ended job stays for five seconds, a lost one does not. Ctrl-C
    restores the terminal, with the last state below, and ends with 130.
    """
    run = runs.start()
    run.do(lambda job: job.set_progress(1, 4, "rows", HOSTILE))
    put(store, "success")
    put(store, "queued")

    def course(shown: Terminal) -> Iterator[None]:
        shown.catch_up()
        assert shown.is_alternate and not shown.has_cursor
        head, row = shown.lines()
        assert re.fullmatch(r"\d\d:\d\d:\d\d   working 1", head)
        assert row.startswith(f"{run.uuid[:8]}  RunMarathon  {BAR}  working  25% 1 of")
        assert HARMLESS[:40] in row

        run.do(lambda job: job.set_progress(3, 4, "rows", "[b]Read[/b] :smile:"))
        write(store, run.uuid, progress='[3, 4, "rows", 65]')
        yield
        shown.catch_up()
        text = "1 min 5 s left, 75% 3 of 4 rows: [b]Read[/b] :smile:"
        assert text in shown.text()

        other = runs.start()
        yield
        assert "working 2" in shown.catch_up().text()
        assert other.uuid[:8] in shown.lines()[2]

        other.end(ValueError("wrong"))
        yield
        pjobs.pass_time(4)
        yield
        text = shown.catch_up().text()
        assert re.search(r"error +after [\d.]+ s: ValueError: wrong", text)
        pjobs.pass_time(2)
        yield
        assert other.uuid[:8] not in shown.catch_up().text()

        lost = put(store).uuid
        yield
        assert lost[:8] in shown.catch_up().text()
        store.client.delete(key_of(store, lost))
        yield
        text = shown.catch_up().text()
        assert lost[:8] not in text and run.uuid[:8] in text
        signal.raise_signal(signal.SIGINT)

    shown = pjobs.draw("watch", course=course, code=130, columns=150)
    assert not shown.is_alternate and shown.has_cursor
    assert "75% 3 of 4 rows" in shown.text()
    for character in "\x9b\x7f\u202e\u2028":
        assert character not in shown.output


def test_watch_without_jobs(pjobs, store):
    """Without running jobs the screen says so. SIGTERM and SIGHUP show the cursor and
    the former screen again. Variables that tell rich that this is no terminal do not
    count.
    """
    put(store, "success")
    for signum, code in (signal.SIGTERM, 143), (signal.SIGHUP, 129):

        def course(shown: Terminal, signum: int = signum) -> Iterator[None]:
            (line,) = shown.catch_up().lines()
            assert re.fullmatch(r"\d\d:\d\d:\d\d   No job is working\.", line)
            assert shown.is_alternate and not shown.has_cursor
            signal.raise_signal(signum)
            yield

        tty: dict[str, Any] = {"TTY_COMPATIBLE": "0", "TTY_INTERACTIVE": "0"}
        shown = pjobs.draw("watch", course=course, code=code, **tty)
        assert not shown.is_alternate and shown.has_cursor


def test_many_jobs_on_a_small_terminal(pjobs, store):
    """Jobs fill any terminal, stalled ones first. The last line counts the others."""
    member = {
        "status": "working",
        "job_state_class": RunMarathon,
        "progress": Progress(1, 4),
        "message": "x" * 200,
    }
    batch = put_batch(store, Haul, [member] * 49)
    jobs = store.members(batch.uuid, limit=50).items

    def course(shown: Terminal) -> Iterator[None]:
        write(store, jobs[0], seen=1)
        yield
        lines = shown.catch_up().lines()
        assert (len(lines), lines[-1]) == (24, "and 28 more")
        assert lines[0].endswith("   stalled 1   working 49")
        assert lines[1].startswith(jobs[0].uuid[:8])
        ids = {job.uuid[:8] for job in (*jobs[1:], batch)}
        assert all(line[:8] in ids for line in lines[2:23])
        for rows, columns, more in ((3, 20, 49), (1, 1, 0), (40, 200, 12)):
            shown.resize(rows, columns)
            yield
            lines = shown.catch_up().lines()
            assert len(lines) == rows
            assert max(map(len, lines)) <= columns
            assert lines[-1] == f"and {more} more" or not more
        signal.raise_signal(signal.SIGINT)

    pjobs.draw("watch", "--members", course=course, code=130)


def test_watch_survives_an_outage(pjobs, store):
    """While the store is away, the last states stay with a line that says so; once it
    is back, the line is gone. An error that does not pass ends the command, with the
    terminal restored.
    """
    job = put(store, message="Reading")
    with faulty(pjobs.url) as proxy:
        url = pjobs.url
        pjobs.url = proxy.url

        def course(shown: Terminal) -> Iterator[None]:
            proxy.judge = lambda request: "refuse"
            yield
            pjobs.pass_time(5)
            yield
            last = shown.catch_up().lines()[-1]
            assert re.match(r"The store at \S+ does not answer: ", last)
            assert "Reading" in shown.text()
            proxy.judge = lambda request: "pass"
            yield
            assert re.search(r"Reading *\Z", shown.catch_up().text())
            store.client.config_set("requirepass", "other")
            store.client.client_kill_filter(_type="normal", skipme=True)

        try:
            size: dict[str, Any] = {"rows": 5, "columns": 120}
            shown = pjobs.draw("watch", job.uuid, course=course, code=1, **size)
        finally:
            with redis.Redis.from_url(url, password="other") as client:
                client.config_set("requirepass", "")
    assert shown.has_cursor
    assert "rejects the user or the password" in shown.text()
    assert re.search(r", for [56] s\.", shown.output)


def test_watch_draws_the_bar_of_a_batch(pjobs, store):
    """The bar of a batch goes by the weights of its jobs, and has their counts."""
    members: list[Any] = ["working", "error", {"status": "success", "weight": 6}]
    batch = put_batch(store, Haul, members)

    def course(shown: Terminal) -> Iterator[None]:
        lines = shown.catch_up().lines()
        (row,) = [line for line in lines if line.startswith(batch.uuid[:8])]
        assert re.search(r" ━{17}[━╺╸]* +working +87% 2 of 3 jobs, 1 error$", row)
        signal.raise_signal(signal.SIGINT)
        yield

    pjobs.draw("watch", batch.uuid, course=course, code=130, columns=150)


def test_rich_is_named_where_it_is_missing(pjobs, store, monkeypatch):
    """On a terminal without rich, a command that draws says how to install it."""
    put(store)
    monkeypatch.setitem(sys.modules, "rich", None)
    # As find_spec() does where it is not installed.
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for extra, kind in ((["--json"], "xterm"), ([], "dumb")):
        shown = pjobs.draw("list", *extra, columns=900, TERM=kind)
        assert "run_marathon" in shown.text() or " RunMarathon " in shown.text()
    assert len(pjobs("list").out) == 1
    pjobs.url = NOWHERE
    shown = pjobs.draw("list", code=1, columns=200)
    assert shown.text() == (
        "pjobs: Drawing on a terminal needs the package rich. Install it with `pip "
        'install "pyramid_jobstate[cli]"`, or pass --json, or append `| cat` for plain '
        "lines."
    )


@pytest.mark.promise("pjobs-ends-quietly")
def test_streams_that_take_less(pjobs, store, monkeypatch):
    """What the encoding of stdout lacks is escaped, if it has one. A reader that has
    gone, a full disk and a closed stdout have exit codes and at most one line; a closed
    stderr changes no exit code.
    """
    put(store, message="Größe ☃")
    latin = io.TextIOWrapper(io.BytesIO(), encoding="latin-1", newline="")
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", latin)
        assert pjobs("list").code == 0
    latin.seek(0)
    assert latin.read().endswith("Größe \\u2603\n")
    with contextlib.redirect_stdout(io.StringIO()) as own:
        assert pjobs("list").code == 0
    assert own.getvalue().endswith("Größe ☃\n")

    reader, writer = os.pipe()
    os.close(reader)
    error = "pjobs: The output cannot be written: "
    for name, number, code, text in (
        ("stdout", writer, 141, ""),
        ("stdout", os.open("/dev/full", os.O_WRONLY), 1, f"{error}No space left on"),
        ("stdout", None, 1, f"{error}Bad file descriptor."),
        ("stderr", writer, 0, ""),
        ("stderr", None, 0, ""),
    ):
        with monkeypatch.context() as patch:
            stream = None
            if number is not None:
                raw = os.fdopen(number, "wb", buffering=0, closefd=False)
                stream = io.TextIOWrapper(raw, write_through=True)
            patch.setattr(sys, name, stream)
            ran = pjobs("list")
            # What prepares the streams may have opened another one.
            with contextlib.suppress(OSError):
                getattr(sys, name).close()
        assert ran.code == code, (name, number)
        assert "\n".join(ran.err).startswith(text)
        assert len(ran.err) == bool(text)
