"""What the script of a list needs to act on all jobs that match."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..acting import CANCEL, CLEAR, RERUN

if TYPE_CHECKING:
    from ...store import Counts
    from ..resources import JobStates
    from .words import Words

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
) -> dict[str, dict[str, str]]:
    """Return for each act the URL to which the script posts it, and the question that
    it asks before. The acts are those on a job of the page, and those to which the
    viewer has a right on all jobs.

    Parameters:
      acts: The acts on the jobs of the page.
      filters: Which jobs are listed.
      counts: How many jobs have which status, or None if that is not told.
    """
    found: dict[str, dict[str, str]] = {}
    for act, (name, bulk, statuses) in BULK.items():
        query: dict[str, Any] = {
            key: filters[key] for key in (*bulk.filters, "all") if key in filters
        }
        if not any(key in query for key in bulk.filters):
            query["everything"] = "1"
        listed = [filters.get("status")] if "status" in filters else statuses
        number = None
        if counts is not None:
            number = sum(getattr(counts, s) for s in statuses if s in listed)
        if act not in acts and not (
            number and context.permits(context, bulk.permission)
        ):
            continue
        url = context.request.resource_url(context, name, query=query)
        found[act] = {"url": url, "question": words.about_all(act, number)}
    return found
