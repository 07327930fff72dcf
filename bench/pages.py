"""What a page of a list costs beside its JSON, and the chart on it."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

from pyramid.request import Request

from pyramid_jobstate.embedded import EmbeddedServer
from pyramid_jobstate.web import answers
from pyramid_jobstate.web.pages.list import BARS, SECONDS
from tests.web.operating import OPERATOR
from tests.web.paging import CHROMIUM, paged_config

from .lists import MANY, fill
from .timing import Row, Table, side_by_side

#: The most seconds that the numbers of a chart may take.
CHART_SECONDS = 0.005


def visits(app: Any, accept: str) -> Callable[[int], None]:
    """Return what asks for the first page of all jobs so many times."""
    headers = {"X-User": OPERATOR, "Accept": accept}

    def visit(count: int) -> None:
        for _ in range(count):
            request = Request.blank("/job_state/?all=1", headers=headers)
            response = request.get_response(app)
            if response.status_int != 200:
                raise RuntimeError(f"{accept} gave {response.status}")

    return visit


def measure(server: EmbeddedServer) -> Table:
    store = fill(server, "jobstate", MANY)
    config = paged_config(server.url)
    config.include("pyramid_jobstate")
    app = config.make_wsgi_app()

    def count_ended(count: int) -> None:
        for _ in range(count):
            store.throughput(None, SECONDS, BARS)

    # orjson makes only the JSON faster.
    fast, answers.fast = answers.fast, None
    page, json, chart = side_by_side(
        (20, visits(app, CHROMIUM)), (20, visits(app, "*/*")), (20, count_ended)
    )
    answers.fast = fast
    store.client.flushdb()
    seconds = statistics.median(chart.rounds)
    rows = [
        Row(
            f"the page of 50 of {MANY:,} jobs / its JSON without the extra `speed`",
            page.over(json),
            at_most=2,
            note=f"{page} / {json}",
        ),
        Row(
            f"the store's time for a chart of {MANY:,} jobs / 5 ms",
            seconds / CHART_SECONDS,
            at_most=1,
            note=f"{chart}",
        ),
    ]
    notes = ["A chart is counted at most once in ten seconds."]
    return Table("Pages", rows, notes)
