"""Draws numbers of jobs on a terminal, with rich."""

from __future__ import annotations

from collections.abc import Sequence

from rich.bar import Bar
from rich.table import Table
from rich.text import Text

from .draw import make_console
from .texts import short

#: Columns of the longest bar, and of a kind.
BAR, KIND = 16, 30

#: The styles of the numbers, of those that are not 0.
STYLES = {"running": "cyan", "failed": "bold red", "stalled": "bold magenta"}


def draw_info(head: str, kinds: Sequence[tuple[str, int, Sequence[str]]]) -> None:
    """Draw a line about all jobs, and a bar and numbers for each kind.

    Parameters:
      head: The line.
      kinds: The kinds, each with its number of running jobs, and its numbers in words:
        those of running, waiting and failed jobs, and perhaps others.
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
    return Text(text, "dim" if amount == "0" else STYLES.get(name, ""))
