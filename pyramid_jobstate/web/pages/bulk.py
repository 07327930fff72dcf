"""What the script of a list needs to act on all jobs that match."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ...errors import StoreUnavailable
from ..acts import CANCEL, CLEAR, RERUN

if TYPE_CHECKING:
    from ...store import Counts
    from ..jobstates import JobStates
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
