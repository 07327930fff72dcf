"""What the commands draw on a terminal, with rich. Texts of jobs are never markup."""

from __future__ import annotations

import contextlib
import datetime
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Self

from rich.bar import Bar
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from ..job.state import JobState
from .jobs import RUNNING, Kinds, remarks, shortened
from .terminal import clean, clock, here, number, owner_text, short, span

STYLES = {
    "queued": "dim",
    "working": "cyan",
    "retrying": "yellow",
    "stalled": "bold magenta",
    "cancelling": "yellow",
    "success": "green",
    "error": "bold red",
    "cancelled": "yellow",
}

#: Columns of a bar, and of a kind, on a wide and on a narrow terminal.
WIDE, NARROW = (20, 24), (8, 12)


def make_console() -> Console:
    """Return a console that shows texts as they are."""
    # The command knows that this is a terminal, whatever variables say.
    return Console(
        force_terminal=True,
        force_interactive=True,
        force_jupyter=False,
        markup=False,
        emoji=False,
        highlight=False,
    )


def draw_table(
    jobs: Sequence[JobState], kinds: Sequence[str], *, has_more: bool
) -> None:
    """Draw a list of jobs, each with the text for its kind."""
    console = make_console()
    if not jobs:
        console.print(Text("No job matches.", "dim"))
        return
    table = Table(box=None, pad_edge=False, header_style="dim", expand=True)
    for name in ("id", "queued", "kind", "owner", "status"):
        table.add_column(name, no_wrap=True, overflow="ellipsis")
    table.add_column("", no_wrap=True, overflow="ellipsis", ratio=1)
    names = shortened([job.uuid for job in jobs])
    for job, kind in zip(jobs, kinds, strict=True):
        table.add_row(
            names[job.uuid],
            _when(job.queued_at),
            Text(short(kind, 30)),
            Text(short(owner_text(job.owner), 30)),
            _status(job),
            Text(remarks(job).lstrip(",: ")),
        )
    console.print(table)
    if has_more:
        console.print(Text(f"More than {len(jobs):,}: see --limit.", "dim"))


def draw_card(job: JobState, facts: Iterable[tuple[str, str]]) -> None:
    """Draw what is known about a job."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    last = ""
    for name, text in facts:
        shown = "" if name == last else name
        last = name
        grid.add_row(Text(shown), _status(job) if name == "status" else Text(text))
        if name == "progress":
            grid.add_row("", _bar(job, WIDE[0]))
    make_console().print(grid)


class Screen:
    """A full screen of jobs that changes in place. At its end, the last state of the
    jobs stays below what the terminal showed before.

    Parameters:
      kinds: Names the kinds of the jobs.
    """

    def __init__(self, kinds: Kinds) -> None:
        self._kinds = kinds
        self._console = make_console()
        # Without the alternate screen, a narrowed terminal would wrap what is drawn.
        self._live = Live(
            console=self._console,
            screen=True,
            auto_refresh=False,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._last: tuple[Sequence[JobState], str] = ((), "")

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._live.stop()
        with contextlib.suppress(OSError):
            self._console.print(self._frame(*self._last))

    def show(self, jobs: Sequence[JobState], notice: str) -> None:
        """Draw jobs, as many as the terminal has room for."""
        self._last = (jobs, notice)
        self._live.update(self._frame(jobs, notice), refresh=True)

    def _frame(self, jobs: Sequence[JobState], notice: str) -> RenderableType:
        # The first line says how many jobs there are, the last ones what is left out.
        columns, room = self._console.size
        room -= 1 + bool(notice)
        room = max(room - (len(jobs) > room), 1)
        # The sort is stable: rows do not jump unless a job stalls.
        rows = sorted(jobs, key=lambda job: job.status != "stalled")
        shown = rows[:room]
        bars = _bars(shown, self._kinds.texts(shown), columns)
        parts: list[RenderableType] = [_head(jobs), bars]
        if len(rows) > room:
            parts.append(Text(f"and {len(rows) - room:,} more", "dim"))
        if notice:
            parts.append(Text(clean(notice), "bold red", no_wrap=True))
        return Group(*parts)


def _head(jobs: Sequence[JobState]) -> Text:
    """Return how many jobs have each status."""
    counts = Counter(job.status for job in jobs)
    shown = [f"{name} {number(counts[name])}" for name in RUNNING if counts[name]]
    text = "   ".join(shown) or "No job is working."
    return Text(f"{clock()}   {text}", "bold", no_wrap=True, overflow="ellipsis")


def _bars(jobs: Sequence[JobState], kinds: Sequence[str], columns: int) -> Table:
    bar, length = WIDE if columns >= 80 else NARROW
    grid = Table.grid(expand=True, padding=(0, 2, 0, 0))
    for _ in range(4):
        grid.add_column(no_wrap=True, overflow="ellipsis")
    grid.add_column(no_wrap=True, overflow="ellipsis", ratio=1)
    names = shortened([job.uuid for job in jobs])
    for job, kind in zip(jobs, kinds, strict=True):
        grid.add_row(
            names[job.uuid],
            Text(short(kind, length)),
            _bar(job, bar),
            _status(job),
            Text(_rest(job)),
        )
    return grid


def _rest(job: JobState) -> str:
    """Return what stands beside a bar."""
    text = remarks(job).lstrip(",: ")
    progress = job.progress
    if job.status == "working" and progress is not None and progress.eta:
        return f"{span(progress.eta)} left, {text}"
    return text


def _bar(job: JobState, width: int) -> RenderableType:
    progress = job.progress
    fraction = None if progress is None else progress.fraction
    if job.is_success:
        fraction = 1.0
    if fraction is not None:
        return ProgressBar(1.0, fraction, width=width)
    if job.status in ("working", "cancelling"):
        return ProgressBar(None, width=width, pulse=True)
    return ""


def _status(job: JobState) -> Text:
    return Text(job.status, STYLES[job.status])


def _when(moment: datetime.datetime | None) -> str:
    """Return a time of today without its date."""
    if moment is None:
        return "-"
    moment = here(moment)
    today = datetime.datetime.now().astimezone().date()
    form = "%H:%M:%S" if moment.date() == today else "%Y-%m-%d %H:%M"
    return moment.strftime(form)


#: Columns of the longest bar, and of a kind.
BAR, KIND = 16, 30

#: The styles of the numbers, of those that are not 0.
NUMBER_STYLES = {name: STYLES[name] for name in ("working", "error", "stalled")}


def draw_info(head: str, kinds: Sequence[tuple[str, int, Sequence[str]]]) -> None:
    """Draw a line about all jobs, and a bar and numbers for each kind.

    Parameters:
      head: The line.
      kinds: The kinds, each with its number of running jobs, and its numbers in words:
        those of working, queued and error, and perhaps others.
    """
    console = make_console()
    console.print(Text(head, "bold"))
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(no_wrap=True, overflow="ellipsis")
    grid.add_column()
    for _ in range(3):
        grid.add_column(no_wrap=True, justify="right")
    grid.add_column(no_wrap=True)
    most = max([1, *(running for _, running, _ in kinds)])
    for kind, running, words in kinds:
        bar = Bar(most, 0, running, width=BAR, color="cyan")
        cells = [_number(text) for text in words]
        rest = Text("  ").join(cells[3:])
        grid.add_row(Text(short(kind, KIND)), bar, *cells[:3], rest)
    console.print(grid)


def _number(text: str) -> Text:
    amount, _, name = text.partition(" ")
    return Text(text, "dim" if amount == "0" else NUMBER_STYLES.get(name, ""))
