"""The page of a list: tabs, rows, the chart and the acts on all jobs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from pyramid.httpexceptions import HTTPFound, HTTPNotFound

from ...errors import StoreUnavailable
from ...job.record import is_uuid
from ...job.values import iso_time
from ...store.durations import Durations
from ...store.lists import MAX_LIMIT, Page, kind_texts
from ..acts import CANCEL, CLEAR, RERUN
from ..answers import answering
from ..interfaces import IPages
from ..jobstates import ask
from ..query import LOCALE, read_query
from ..views import MEMBERS, asked_page, numbers_of, show_many, visible
from .failures import failures_page
from .layout import Pages, respond
from .rows import ACTS, Block, for_script, rows_of, tabs_of, url_maker
from .words import words_for

if TYPE_CHECKING:
    from pyramid.request import Request
    from pyramid.response import Response

    from ...job.record import Counts
    from ...store.jobstore import JobStore
    from ...store.lists import Bucket
    from ...store.workers import WorkerInfo
    from ..jobstates import JobStates
    from .words import Words


#: The period that the chart shows, in seconds, and the number of its bars.
SECONDS, BARS = 86400, 48

#: The distance of two bars, their width, and the height of the highest one.
STEP, WIDTH, HEIGHT = 10, 8, 60

#: How many bars lie between two times on the axis: six hours.
BETWEEN = 12

#: The least height of a part of a bar: one failure among thousands must be visible.
LEAST = 2

#: The parts of a bar, from the bottom.
PARTS = ("error", "cancelled", "success")


class Chart(NamedTuple):
    """What the template draws.

    Attributes:
      width, height: The size of the drawing.
      paths: What to fill for each part of the bars, by status.
      times: Times at equal distances on the axis, as the JSON of a job spells them. The
        axis ends now.
      summary: The chart in words: how many had each status, and the peak.
    """

    width: int
    height: int
    paths: Mapping[str, str]
    times: Sequence[str | None]
    summary: Mapping[str, str]


def chart_of(buckets: Sequence[Bucket], words: Words) -> Chart:
    """Return the chart of what ended in each of some periods."""
    totals = [sum(getattr(bucket, part) for part in PARTS) for bucket in buckets]
    most = max(totals)
    paths: dict[str, list[str]] = {part: [] for part in PARTS}
    for i, bucket in enumerate(buckets):
        bottom = HEIGHT
        for part in PARTS:
            number = getattr(bucket, part)
            if number:
                height = max(LEAST, round(number / most * HEIGHT))
                # Many parts of the least height may be higher than the chart.
                height = min(height, bottom)
                bottom -= height
                paths[part].append(f"M{i * STEP} {bottom}h{WIDTH}v{height}h-{WIDTH}z")
    return Chart(
        len(buckets) * STEP - (STEP - WIDTH),
        HEIGHT,
        {part: "".join(path) for part, path in paths.items() if path},
        [iso_time(bucket.start) for bucket in buckets[::BETWEEN]],
        summary_of(buckets, totals, words),
    )


def summary_of(
    buckets: Sequence[Bucket], totals: Sequence[int], words: Words
) -> dict[str, str]:
    """Return what the chart shows, in words."""
    if not any(totals):
        return {"none": words("chart-none")}
    numbers = {part: sum(getattr(b, part) for b in buckets) for part in PARTS}
    texts = {
        part: words(f"chart-{part}", number=words.number(numbers[part]))
        for part in reversed(PARTS)
    }
    time = words.duration(SECONDS / len(buckets))
    most = words.number(max(totals))
    return {**texts, "peak": words("chart-peak", time=time, number=most)}


#: The name of the view that does each act, what it is, and the statuses it affects.
BULK = {
    "cancel": ("cancel", CANCEL, CANCEL.statuses),
    "rerun": ("rerun", RERUN, ("error",)),
    "delete": ("clear", CLEAR, CLEAR.statuses),
}


def acts_on_all(
    context: JobStates,
    acts: Sequence[str],
    filters: Mapping[str, str],
    counts: Counts | None,
    words: Words,
) -> dict[str, dict[str, Any]]:
    """Return what the script needs to act on all jobs that match, by act: the URL to
    which it posts, and what it asks before. `question` does not say how many jobs they
    are; `counts` is the URL of their numbers by status, of which it adds up `statuses`.

    The acts are those that fit a job of the page, and those that fit another job and to
    which the viewer has a right on all jobs.

    Parameters:
      acts: The acts on the jobs of the page.
      filters: Which jobs are listed.
      counts: How many jobs have which status, or None if that is not told.
    """
    found: dict[str, dict[str, Any]] = {}
    counts_url = None
    if counts is not None:
        # The acts include members of batches, whatever the list shows.
        counted = {"members": "1"}
        if "kind" in filters:
            counted["kind"] = filters["kind"]
        counts_url = context.request.resource_url(context, "counts", query=counted)
    for act, (name, bulk, statuses) in BULK.items():
        query: dict[str, Any] = {
            key: filters[key] for key in (*bulk.filters, "all") if key in filters
        }
        if not any(key in query for key in bulk.filters):
            query["everything"] = "1"
        wanted = filters.get("status")
        listed = [each for each in statuses if wanted in (None, each)]
        number = 0 if counts is None else sum(getattr(counts, s) for s in listed)
        if act in acts or (number and may_all(context, bulk.permission)):
            found[act] = {
                "url": context.request.resource_url(context, name, query=query),
                "question": words.about_all(act),
                "counts": counts_url,
                "statuses": listed,
            }
    return found


def may_all(context: JobStates, permission: str) -> bool:
    """Return whether a viewer has a permission on all jobs. The application's code may
    know it on single jobs alone, and raise.
    """
    try:
        return bool(context.permits(context, permission))
    except StoreUnavailable:
        raise
    except Exception:
        return False


#: The most running jobs that stand above all others.
RUNNING = 10

#: The parameters that say which jobs are listed, and how many on a page.
FILTERS = ("kind", "owner", "all", "members", "status", "limit")


class Overview(NamedTuple):
    """What viewers who may list all jobs are told of them. Of one owner's jobs, the
    store knows neither counts nor a throughput.
    """

    kinds: Sequence[str] = ()
    counts: Counts | None = None
    buckets: Sequence[Bucket] = ()
    workers: Sequence[WorkerInfo] = ()
    durations: Durations = Durations()


def list_page(context: JobStates, request: Request) -> Response:
    """Respond with the page of a list: the jobs that its JSON has, in rows."""
    if "uuid" in request.GET:
        # The states of several jobs are for scripts alone.
        return answering(show_many)(context, request)
    if "batch" in request.GET:
        return to_batch(context, request)
    may_list = bool(context.permits(context, "list_jobs"))
    query = {name: value for name, value in request.GET.items() if value.strip()}
    asked_id = query.get("id", "").strip()
    if is_uuid(asked_id.lower()):
        return HTTPFound(f"{request.resource_url(context)}{asked_id.lower()}/")
    if "owner" in query:
        query.pop("all", None)
    elif may_list:
        query.setdefault("all", "1")
    if query != dict(request.GET.items()):
        # The JSON of a page's URL has the jobs of the page.
        return HTTPFound(request.resource_url(context, query=query))
    if "group" in query:
        return failures_page(context, request)
    if asked_id:
        newest = asked_page(context, request, limit=MAX_LIMIT).items
        begun = [job for job in newest if job.uuid.startswith(asked_id.lower())]
        # Rows show the beginnings of ids, of jobs that the viewer may see.
        shown = [visible(context, request, job, lambda job, _: job) for job in begun]
        found = [job for job in shown if job is not None]
        if len(found) == 1:
            return HTTPFound(request.resource_url(found[0]))
    page = asked_page(context, request)
    filters = {name: query[name] for name in FILTERS if name in query}
    kept = ("members", "status", "limit", LOCALE, *(() if may_list else ("kind",)))
    is_first = "cursor" not in query
    overview = Overview()
    if may_list:
        overview = overview_of(context, filters, with_chart=is_first)
    words = words_for(request)
    list_url = request.resource_url(context)
    url = url_maker(list_url, query, FILTERS)
    blocks = blocks_of(context, request, page, words, url, may_list=may_list)
    rows = [row for block in blocks for row in block.rows]
    fitting = [act for act in ACTS if any(act in row.acts for row in rows)]
    bulk = {}
    if rows:
        bulk = acts_on_all(context, fitting, filters, overview.counts, words)
    acts = {
        act: act in bulk
        for act in ACTS
        if act in bulk or any(act in row.permitted for row in rows)
    }
    counts = {} if overview.counts is None else numbers_of(overview.counts)
    counted = {name: query[name] for name in ("kind", "members") if name in query}
    title = words("jobs" if may_list else "own-jobs")
    values = {
        "words": words,
        "title": title,
        "may_list": may_list,
        "filters": filters,
        # What the form does not ask for.
        "kept": {name: query[name] for name in kept if name in query},
        "wrong_id": asked_id,
        "list_url": list_url,
        "kinds": kinds_of(overview.kinds, filters.get("kind")),
        "tabs": tabs_of(words, filters.get("status"), counts, url),
        "notes": {
            "workers": workers_text(overview, words),
            "waits": waits_text(overview.counts, words),
            "durations": durations_text(overview.durations, words),
        },
        "chart": chart_of(overview.buckets, words) if overview.buckets else None,
        "blocks": blocks,
        "acts": acts,
        # Beside the failed jobs: there, members count one by one.
        "groups": url(group="error", members="1", limit=None)
        if blocks and filters.get("status") == "error"
        else None,
        "newest": None if is_first else url(),
        "older": None if page.cursor is None else url(cursor=page.cursor),
        "data": for_script(
            request,
            # Where newer jobs would be, and whether older ones follow.
            first=url() if is_first else None,
            more=page.cursor is not None,
            # Where the numbers of the tabs are.
            counts=request.resource_url(context, "counts", query=counted)
            if counts
            else None,
            bulk=bulk,
        ),
    }
    return respond(request, "list.jinja2", title, values)


def blocks_of(
    context: JobStates,
    request: Request,
    page: Page,
    words: Words,
    url: Callable[..., str],
    *,
    may_list: bool,
) -> list[Block]:
    """Return the rows of a page: first the running jobs, which the list may have on a
    later page, then all others.

    Parameters:
      url: Returns the URL of the list with a parameter changed.
      may_list: Whether the viewer may list all jobs.
    """
    running = Page([], None)
    if not any(name in request.GET for name in ("status", "cursor")):
        running = asked_page(context, request, status="working", limit=RUNNING)
    first = rows_of(context, running.items, words, with_owners=may_list)
    above = {row.job["uuid"] for row in first}
    others = [job for job in page.items if job.uuid not in above]
    rest = rows_of(context, others, words, with_owners=may_list)
    more = url(status="working") if running.cursor else None
    found = [
        Block(words.status("working"), first, more),
        Block(words("others") if first else "", rest),
    ]
    return [block for block in found if block.rows]


def kinds_of(kinds: Sequence[str], wanted: str | None) -> list[tuple[str, str, bool]]:
    """Return the kinds to choose from: the name of each, what the viewer reads, and
    whether it is chosen.
    """
    texts = kind_texts(kinds)
    if wanted is not None and wanted not in {*texts, *texts.values()}:
        texts[wanted] = wanted
    return [(kind, text, wanted in (kind, text)) for kind, text in texts.items()]


def to_batch(context: JobStates, request: Request) -> Response:
    """Redirect to the page of a batch, which lists its members.

    Raises:
      BadRequest: A parameter is invalid.
      HTTPNotFound: The query does not name a batch.
    """
    query = read_query(request, *MEMBERS)
    if not is_uuid(query["batch"]):
        raise HTTPNotFound
    address = f"{request.resource_url(context)}{query['batch']}/"
    return HTTPFound(url_maker(address, request.GET, MEMBERS)(batch=None))


def workers_text(overview: Overview, words: Words) -> str:
    """Return what is known of the workers, in words."""
    alive = [worker for worker in overview.workers if not worker.is_silent]
    parts = []
    if alive:
        busy = words.number(sum(worker.busy for worker in alive))
        threads = words.number(sum(worker.threads for worker in alive))
        parts.append(words.plural("workers", len(alive), busy=busy, threads=threads))
    elif not overview.workers and overview.counts and overview.counts.queued:
        parts.append(words.plural("no-worker", overview.counts.queued))
    if silent := len(overview.workers) - len(alive):
        parts.append(words.plural("silent-workers", silent))
    return " · ".join(parts)


def durations_text(durations: Durations, words: Words) -> str:
    """Return how long the jobs of a kind have run, in words, if that is known."""
    p50, p95 = durations.p50, durations.p95
    if p50 is None or p95 is None:
        return ""
    return words("durations", p50=words.duration(p50), p95=words.duration(p95))


def waits_text(counts: Counts | None, words: Words) -> str:
    """Return how late jobs are, in words, if they are counted."""
    if counts is None:
        return ""
    waits = {"oldest-wait": counts.oldest_wait, "recent-wait": counts.recent_wait}
    return " · ".join(
        words(name, time=words.duration(seconds))
        for name, seconds in waits.items()
        if seconds is not None
    )


def overview_of(
    context: JobStates, filters: Mapping[str, str], *, with_chart: bool
) -> Overview:
    """Return what is told of all jobs, or of those of a kind."""
    kind, members = filters.get("kind"), "members" in filters

    def question(store: JobStore) -> Overview:
        kinds = store.kinds()
        if "owner" in filters:
            return Overview(kinds)
        counts = store.counts(kind, members=members)
        workers = store.workers()
        durations = store.durations(kind) if kind else Durations()
        if not with_chart:
            return Overview(kinds, counts, workers=workers, durations=durations)
        pages: Pages = context.request.registry.getUtility(IPages)
        buckets = pages.throughputs.get(
            (kind, members),
            lambda: store.throughput(kind, SECONDS, BARS, members=members),
        )
        return Overview(kinds, counts, buckets, workers, durations)

    return ask(context, question)
