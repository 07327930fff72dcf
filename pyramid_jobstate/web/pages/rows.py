"""What lists of jobs have on each page: tabs of statuses, and a row for each job."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from pyramid.encode import urlencode

from ...store import Counts
from ..query import LOCALE
from ..views import visible
from .acts import acts_on
from .shown import job_of, text_of

if TYPE_CHECKING:
    from ...job import JobState
    from ..jobstates import JobStates
    from .words import Words


class Tab(NamedTuple):
    """A link to the jobs of one status, or of all.

    Attributes:
      text: The word for the status.
      url: Where the jobs are.
      status: The status, or "all".
      number: How many jobs they are, or "" if that is not told.
      is_current: Whether these jobs are listed.
    """

    text: str
    url: str
    status: str
    number: str
    is_current: bool


class Row(NamedTuple):
    """A job of the list.

    Attributes:
      job: Its JSON.
      owner: Its owner, for viewers who may list all jobs.
      text: The job in one line.
      acts: What the viewer may do with it now.
      permitted: What the viewer may do with it, whatever its status becomes.
    """

    job: Mapping[str, Any]
    owner: Any
    text: str
    acts: Sequence[str]
    permitted: Sequence[str]


def tabs_of(
    words: Words,
    status: str | None,
    counts: Mapping[str, int],
    url: Callable[..., str],
) -> list[Tab]:
    """Return the tabs: all jobs, and those of each status.

    Parameters:
      status: The status whose jobs are listed, or None.
      counts: How many jobs have which status, as far as that is told.
      url: Returns the URL of the list with a parameter changed.
    """
    numbers = {**counts, "all": sum(counts.values())} if counts else {}
    return [
        Tab(
            words("all") if name == "all" else words.status(name),
            url(status=None if name == "all" else name),
            name,
            words.number(numbers[name]) if name in numbers else "",
            name == (status or "all"),
        )
        for name in ("all", *Counts._fields)
    ]


def rows_of(
    context: JobStates, jobs: Iterable[JobState], words: Words, *, with_owners: bool
) -> list[Row]:
    """Return the rows of those jobs that the viewer may see."""
    request = context.request

    def make(job_state: JobState, state: dict[str, Any]) -> Row:
        owner = job_state.owner if with_owners else None
        job = job_of(job_state, request, state)
        acts = acts_on(context, job_state, job)
        return Row(job, owner, text_of(job, words), *acts)

    rows = [visible(context, request, job_state, make) for job_state in jobs]
    return [row for row in rows if row is not None]


def url_maker(
    address: str, query: Mapping[str, str], names: Sequence[str]
) -> Callable[..., str]:
    """Return a function that returns the URL of a list, with parameters changed.

    Parameters:
      address: The URL without a query.
      query: The query of the page.
      names: The parameters of the query to keep, beside the language.
    """
    kept = {name: query[name] for name in (*names, LOCALE) if name in query}

    def url(**changes: str | None) -> str:
        wanted = {**kept, **changes}
        known = {name: value for name, value in wanted.items() if value is not None}
        return f"{address}?{urlencode(known)}" if known else address

    return url
