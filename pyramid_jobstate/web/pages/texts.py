"""Every word of the pages, and of the elements in them, as a translation string."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any, NamedTuple

from pyramid.i18n import TranslationStringFactory

from ...job import DOMAIN, FAILED, REASONS, SKIPPED

_ = TranslationStringFactory(DOMAIN)

#: The words of the element, by the names of its labels.
LABELS = MappingProxyType(
    {
        "job": _("Job"),
        "loading": _("Loading…"),
        "queued": _("Waiting"),
        "working": _("Running"),
        "retrying": _("Trying again"),
        "stalled": _("No sign of life"),
        "cancelling": _("Cancelling…"),
        "success": _("Done"),
        "error": _("Failed"),
        "cancelled": _("Cancelled"),
        "reconnecting": _("Connection lost, trying again…"),
        "lost": _("Unavailable"),
        "due": _("Starts at ${time}"),
        "waiting": _("Waiting for ${time}"),
        "retry": _("next try at ${time}"),
        "attempt": _("attempt ${number}"),
        "amount": _("${done} ${unit}"),
        "amount-of": _("${done} of ${total} ${unit}"),
        "amount-count": _("${amount}, ${count}"),
        "members": _("jobs"),
        "count-success": _("${number} succeeded"),
        "count-error": _("${number} failed"),
        "count-cancelled": _("${number} cancelled"),
        "count-working": _("${number} running"),
        "count-queued": _("${number} waiting"),
        "count-retrying": _("${number} trying again"),
        "phase": _("${phase}: ${amount}"),
        "rate": _("${amount}/s"),
        "rate-slow": _("${amount}/min"),
        "left": _("about ${time} left"),
        "took": _("took ${time}"),
        "cancel": _("Cancel"),
        "cancel-failed": _("Not cancelled: ${reason}"),
        "log": _("Log"),
        "result": _("Open the result"),
        "401": _("You are not signed in."),
        "403": _("You may not do this."),
        "404": _("The job does not exist, or has expired."),
        "410": _("The job no longer exists."),
        "address": _("The address is wrong."),
        "csrf": _("The CSRF header or token is wrong."),
        "format": _("The answer is not the state of a job."),
        "network": _("The server cannot be reached."),
        "redirect": _("The server redirects, perhaps to a login page."),
        "status": _("The server answered ${status}."),
    }
)

#: The words of the pages, by names that the templates use.
WORDS = MappingProxyType(
    {
        # The direction of the text, which is "rtl" for some languages.
        "direction": _("text-direction", default="ltr"),
        # Numbers, durations and times.
        "grouping": _("number-grouping", default=","),
        "decimal": _("number-decimal", default="."),
        "percent": _("${number} %"),
        "seconds": _("${number} s"),
        "minutes": _("${number} min"),
        "hours": _("${number} h"),
        "days": _("${number} d"),
        "utc": _("${time} UTC"),
        # Both pages.
        "jobs": _("Jobs"),
        "bad-address": _("This page's address is invalid."),
        "no-script": _("Live updates and actions need JavaScript."),
        "queued-at": _("Sent"),
        "finished-at": _("Ended"),
        "owner": _("Owner"),
        "nobody": _("nobody"),
        "cancel": _("Cancel"),
        "rerun": _("Run again"),
        "delete": _("Delete"),
        "keep": _("Leave as it is"),
        "close": _("Close"),
        # The list.
        "all-jobs": _("All jobs"),
        "own-jobs": _("Your jobs"),
        "statuses": _("Status"),
        "all": _("All"),
        "filter": _("Filter"),
        "show": _("Show"),
        "kind": _("Kind"),
        "all-kinds": _("All kinds"),
        "id": _("Job ID"),
        "not-an-id": _("This is not a job ID: ${text}"),
        "state": _("State"),
        "attempts": _("Attempts"),
        "none": _("No jobs."),
        "none-here": _("No matching jobs so far. Older ones may match."),
        "none-here-yet": _("No matching jobs so far. Later ones may match."),
        "hidden-members": _(
            "These jobs have expired or changed, or you may not see them."
        ),
        "unsent-members": _(
            "Some of these jobs were never sent, since their sender died. Cancel the "
            "batch, and send again what is cancelled then."
        ),
        "newest": _("Newest"),
        "older": _("Older"),
        "first": _("First"),
        "next": _("Next"),
        "pages-of-list": _("Pages of the list"),
        "select-all": _("Select all on this page"),
        "matching": _("All matching jobs, on every page"),
        # The chart.
        "chart": _("Ended in the last 24 hours"),
        "chart-none": _("No job has ended in the last 24 hours."),
        "chart-peak": _("peak: ${number} in ${minutes} min"),
        "chart-error": _("failed: ${number}"),
        "chart-cancelled": _("cancelled: ${number}"),
        "chart-success": _("done: ${number}"),
        # The page of a job.
        "copy": _("Copy"),
        "copied": _("Copied"),
        "timeline": _("Timeline"),
        "part-of": _("Part of"),
        "sent": _("sent"),
        "started": _("started"),
        "due": _("due at"),
        "try": _("try ${number}"),
        "metrics": _("Metrics"),
        "params": _("Parameters"),
        "exception": _("Exception"),
        "traceback": _("Traceback"),
        "not-repeatable": _("The job cannot run again: ${reason}"),
    }
)

#: What other wings say of a job, in English: why it ended, and why it cannot run again.
#: If several of these fit, the first does.
SENTENCES = (
    *map(_, (FAILED, SKIPPED, *REASONS)),
    _("The job has not failed."),
    _("The job ${uuid} with the same unique key is under way."),
    _("This process has no Dramatiq broker."),
    _(
        "The broker ${broker} has no JobStateMiddleware. Add one before the actors are "
        "declared: broker.add_middleware(JobStateMiddleware())."
    ),
    _(
        "Job states are read from ${read}, but the JobStateMiddleware on its broker "
        "writes them to ${written}, in another namespace. Use the same namespace in "
        "jobstate.namespace, or the store in config.set_job_store(...), and in "
        "JobStateMiddleware(namespace=...)."
    ),
    _(
        "Job states are read from ${read}, but the JobStateMiddleware on its broker "
        "writes them to ${written}, in another database. Point jobstate.redis_url, or "
        "the store in config.set_job_store(...), at the store of the middleware."
    ),
    _(
        "Job states are read from ${read}, but the JobStateMiddleware on its broker "
        "writes them to ${written}, on another port. Point jobstate.redis_url, or the "
        "store in config.set_job_store(...), at the store of the middleware."
    ),
    _("The broker does not know the actor ${actor}."),
    _("The actor ${actor} is not tracked here."),
    _("The store does not hold its message."),
    _("The store holds something other than its message."),
    _("The message that the store holds belongs to another job."),
    _("A later step of its pipeline was deleted."),
    _("Its batch was cancelled."),
    _("A batch cannot run again. Rerun its failed jobs."),
    _("Its message cannot be kept as JSON: it takes ${size} bytes of at most ${limit}"),
    _("Its message cannot be kept as JSON: it would come back changed"),
    _("Its message cannot be kept as JSON: ${error}"),
)

#: The words that only the script of the pages uses.
SCRIPT = MappingProxyType(
    {
        "under-way": _("Working…"),
        "metrics": _("Metrics"),
        "changed": _("The job has changed in the meantime."),
        "not-repeatable": _("The job cannot run again."),
        "503": _("The server cannot do this now. Try again later."),
    }
)


class Plural(NamedTuple):
    """A text that depends on a number, which it may contain as ``${number}``."""

    one: Any
    other: Any


PLURALS = MappingProxyType(
    {
        "new": Plural(_("${number} new job · Show"), _("${number} new jobs · Show")),
        "earlier": Plural(_("${number} earlier try"), _("${number} earlier tries")),
        "cancel": Plural(_("Cancel ${number} job?"), _("Cancel ${number} jobs?")),
        "rerun": Plural(_("Run ${number} job again?"), _("Run ${number} jobs again?")),
        "delete": Plural(_("Delete ${number} job?"), _("Delete ${number} jobs?")),
        "rerun-failed": Plural(
            _("Run ${number} failed job again"), _("Run ${number} failed jobs again")
        ),
        "selected": Plural(_("${number} selected"), _("${number} selected")),
        "cancel-done": Plural(
            _("Asked ${number} job to stop."), _("Asked ${number} jobs to stop.")
        ),
        "rerun-done": Plural(
            _("${number} job runs again."), _("${number} jobs run again.")
        ),
        "delete-done": Plural(
            _("${number} job deleted."), _("${number} jobs deleted.")
        ),
        "refused": Plural(_("${number} refused."), _("${number} refused.")),
    }
)

#: The questions about all jobs that match, whose number is unknown.
UNCOUNTED = MappingProxyType(
    {
        "cancel": _("Cancel all unfinished jobs that match?"),
        "rerun": _("Run all failed jobs that match again?"),
        "delete": _("Delete all ended jobs that match?"),
    }
)

#: The questions about the job of a page.
SINGLE = MappingProxyType(
    {
        "cancel": _("Cancel this job?"),
        "rerun": _("Run this job again?"),
        "delete": _("Delete this job? This cannot be undone."),
        "cancel-batch": _("Cancel all unfinished jobs of this batch?"),
        "delete-batch": _("Delete this batch? Its jobs stay. This cannot be undone."),
    }
)
