"""The pages in a real Chromium: live rows, new jobs, acts and their results."""

from __future__ import annotations

import re
from datetime import timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, Route, expect

from pyramid_jobstate import JobState, JobStore
from pyramid_jobstate.asgi import asgi_app
from pyramid_jobstate.job.changes import End, Update
from pyramid_jobstate.testing import put_job
from tests import streams
from tests.browser.paged import ImportSheet, Pages, fill, serving
from tests.browser.test_static import protected
from tests.catalogs import write_catalog
from tests.jobs import RunMarathon
from tests.listed import create, finish
from tests.support import INFO, load_job, wait_for
from tests.web.operating import OPERATOR, Marathons
from tests.web.paging import paged_config
from tests.webapp import Root


def put(store: JobStore, *statuses: str) -> list[str]:
    """Put a job of Alice's in each status, and return their uuids."""
    return [put_job(store, RunMarathon, s, owner="alice").uuid for s in statuses]


# The list


def test_rows_are_live(pages: Pages, store: JobStore) -> None:
    """A row follows its job to the end: its state, its attempt, when it ended, and what
    can be done with it.
    """
    job, other = put(store, "working", "success")
    pages.visit()
    row = pages.row(job)
    expect(row.locator("[part=status]")).to_have_text("Running")
    expect(row.locator(".jobstate-ended time")).to_have_count(0)
    delete = pages.page.get_by_role("button", name="Delete")
    row.get_by_role("checkbox").check()
    expect(delete).to_be_disabled()

    store.write([Update(job, "0" * 12, 1, INFO._replace(attempt=3), {}, begins=True)])
    expect(row.locator(".jobstate-number")).to_have_text("3")
    finish(store, job)

    expect(row.locator("[part=status]")).to_have_text("Done")
    expect(row.locator(".jobstate-ended time")).to_have_text(re.compile(r"\d:\d\d:"))
    expect(delete).to_be_enabled()
    expect(pages.page.get_by_role("button", name="Cancel")).to_be_disabled()
    assert pages.uuids == [job, other]


def test_rows_share_their_polls(pages: Pages, store: JobStore) -> None:
    """All rows of a page are asked for by one request."""
    jobs = put(store, *["working"] * 50)
    # A busy browser may ask for the first of them before it knows the last.
    with pages.page.expect_request(lambda r: r.url.count("uuid=") == len(jobs)):
        pages.visit()


def test_rows_are_streamed(page: Page, redis_url: str, store: JobStore) -> None:
    """Under ASGI, the rows join a stream."""
    (job,) = put(store, "working")
    config = paged_config(redis_url)
    config.include("pyramid_jobstate")
    page.set_extra_http_headers({"X-User": OPERATOR})
    with streams.serving(asgi_app(config.make_wsgi_app())) as port:
        page.goto(f"http://127.0.0.1:{port}/job_state")
        element = page.locator("job-state")
        wait_for(lambda: element.evaluate("e => e.transport") == "stream")
        finish(store, job)
        expect(element.locator("[part=status]")).to_have_text("Done")
        page.goto("about:blank")


def test_new_jobs_wait_until_they_are_asked_for(pages: Pages, store: JobStore) -> None:
    """The page says how many new jobs there are, and shows them on request. Until then
    its rows stay where they are.
    """
    pages.page.clock.install()
    old = put(store, "success", "success")[::-1]
    pages.visit()
    top = pages.row(old[0]).bounding_box()
    new = put(store, "queued", "working", "success")
    button = pages.one("new")
    expect(button).to_be_hidden()

    pages.page.clock.fast_forward(10_000)

    expect(button).to_have_text("3 new jobs · Show")
    assert pages.uuids == old
    assert pages.row(old[0]).bounding_box() == top
    button.click()
    expect(pages.page.locator("tr[data-uuid]")).to_have_count(5)
    assert set(pages.uuids) == {*old, *new}


def test_older_jobs_are_not_new(pages: Pages, store: JobStore) -> None:
    """A job that moves up from the next page is not called new."""
    pages.page.clock.install()
    jobs = put(store, *["success"] * 51)
    pages.visit()
    store.delete(jobs[-1])

    with pages.page.expect_request_finished(lambda r: "?all=1" in r.url):
        pages.page.clock.fast_forward(10_000)

    # By the time of another answer, the page has read this one.
    pages.page.evaluate("fetch('/favicon.ico')")
    expect(pages.one("new")).to_be_hidden()


@pytest.mark.parametrize(
    ("known", "count", "text"),
    [
        (51, 49, "49 new jobs · Show"),
        (51, 60, "50+ new jobs · Show"),
        (2, 60, "50+ new jobs · Show"),
        (2, 50, "50+ new jobs · Show"),
    ],
)
def test_many_new_jobs_are_counted(
    pages: Pages, store: JobStore, known: int, count: int, text: str
) -> None:
    """The page counts new jobs as far as its list shows them. One whose class leaves
    out its JSON is not counted.
    """
    pages.page.clock.install()
    put(store, *["success"] * known)
    pages.visit()
    put(store, *["queued"] * count)

    pages.page.clock.fast_forward(10_000)

    expect(pages.one("new")).to_have_text(text)


def test_new_jobs_stay_new_when_rows_end(pages: Pages, store: JobStore) -> None:
    """The times of ends that the page shows later do not make other jobs old."""
    pages.page.clock.install()
    jobs = put(store, *["working"] * 52)
    pages.visit()
    put(store, *["queued"] * 60)
    finish(store, *jobs)
    pages.page.clock.run_for(1500)
    expect(pages.page.locator(".jobstate-ended time")).to_have_count(50)

    pages.page.clock.fast_forward(10_000)

    expect(pages.one("new")).to_have_text("50+ new jobs · Show")


def test_jobs_of_the_next_page_are_not_new(pages: Pages, store: JobStore) -> None:
    """If all jobs of the page are gone, those that follow are still old."""
    pages.page.clock.install()
    jobs = put(store, *["success"] * 103)
    pages.visit()
    for job in jobs[-51:]:
        store.delete(job)

    with pages.page.expect_request_finished(lambda r: "?all=1" in r.url):
        pages.page.clock.fast_forward(10_000)

    pages.page.evaluate("fetch('/favicon.ico')")
    expect(pages.one("new")).to_be_hidden()


def test_page_stops_looking_when_it_may_not(pages: Pages, store: JobStore) -> None:
    """Once the session has ended, the page does not look for new jobs any more; while
    the server is away, it does.
    """
    pages.page.clock.install()
    put(store, "success")
    pages.visit()

    def looks(*, is_answered: bool = True) -> int:
        if is_answered:
            # It does not look again before it has read an answer.
            with pages.page.expect_response(lambda r: "?all=1" in r.url):
                pages.page.clock.fast_forward(10_000)
        else:
            pages.page.clock.fast_forward(10_000)
        pages.page.evaluate("fetch('/favicon.ico')")
        return sum("?all=1" in url for url in pages.asked)

    first = looks()
    pages.refuse = lambda method: 503
    assert looks() == first + 1
    pages.refuse = lambda method: 401
    assert looks() == first + 2
    assert looks(is_answered=False) == first + 2
    pages.forgive("status of 503", "status of 401")


def test_list_of_nothing_is_a_page(pages: Pages) -> None:
    """Without jobs, the page says so, and nothing fails."""
    pages.visit()
    expect(pages.page.get_by_text("No jobs.", exact=True)).to_be_visible()
    assert pages.page.locator("button:visible").all_text_contents() == ["Show"]


# Acts on jobs of a list


def test_selected_jobs_are_deleted(pages: Pages, store: JobStore) -> None:
    """A click with Shift selects a range. The question says how many jobs are meant,
    and Esc answers no. Afterwards the rows are gone, the page says how many, and has
    the focus there.
    """
    jobs = put(store, *["success"] * 5)[::-1]
    pages.visit()
    boxes = pages.page.locator("tbody").get_by_role("checkbox")
    boxes.nth(1).click()
    boxes.nth(3).click(modifiers=["Shift"])
    expect(pages.one("selected")).to_have_text("3 selected")
    delete = pages.page.get_by_role("button", name="Delete")
    delete.click()
    expect(pages.page.get_by_role("dialog", name="Delete 3 jobs?")).to_be_visible()
    expect(pages.one("no")).to_be_focused()
    pages.page.keyboard.press("Escape")
    expect(pages.one("dialog")).to_be_hidden()
    expect(delete).to_be_focused()
    assert pages.changes == []

    pages.confirm("Delete", "Delete 3 jobs?")

    pages.expect_said("3 jobs deleted.")
    pages.expect_uuids(jobs[0], jobs[4])
    assert len(pages.changes) == 3
    assert store.load(jobs[1]) is None


def test_all_on_the_page_are_selected(pages: Pages, store: JobStore) -> None:
    """Jobs that an act does not fit are not counted."""
    put(store, "working", "queued", "success", "error")
    pages.visit()
    pages.one("all").check()
    expect(pages.one("selected")).to_have_text("4 selected")
    pages.page.get_by_role("button", name="Run again").click()
    expect(pages.one("question")).to_have_text("Run 1 job again?")
    pages.one("no").click()

    pages.confirm("Cancel", "Cancel 2 jobs?")

    pages.expect_said("Asked 2 jobs to stop.")
    assert len(pages.changes) == 2


def test_all_that_match_are_cancelled(pages: Pages, store: JobStore) -> None:
    """Jobs on other pages are included, a thousand at a time until none is left; those
    of another status are not.
    """
    create(store, 1050)
    (done,) = put(store, "success")
    pages.visit("/job_state/?all=1&status=queued")
    pages.one("matching").check()
    expect(pages.page.locator("tbody input").first).to_be_disabled()

    pages.confirm("Cancel", "Cancel 1,050 jobs?")

    pages.expect_said("Asked 1,050 jobs to stop.")
    # The first one only begins.
    assert pages.changes == [("POST", "/job_state/cancel")] * 3
    assert store.counts() == (0, 0, 0, 0, 0, 1, 0, 1050)
    assert load_job(store, done).status == "success"


def test_jobs_run_again(pages: Pages, store: JobStore, marathons: Marathons) -> None:
    """What can run again does; the dialog says what was refused, and why."""
    failed = marathons.fail("alice", "bob")
    put(store, "error")
    pages.visit()
    pages.one("all").check()

    pages.confirm("Run again", "Run 3 jobs again?")

    text = "2 jobs run again. 1 refused. The job cannot run again."
    expect(pages.one("result")).to_have_text(text)
    expect(pages.one("close")).to_be_focused()
    pages.forgive("status of 410")
    pages.page.keyboard.press("Escape")
    pages.expect_said(text)
    assert {load_job(store, job).status for job in failed} == {"queued"}


REFUSALS = {
    400: ("The CSRF header or token is wrong.", 1),
    401: ("You are not signed in.", 1),
    403: ("2 refused. You may not do this.", 2),
    404: ("2 refused. The job does not exist, or has expired.", 2),
    409: ("2 refused. The job has changed in the meantime.", 2),
    410: ("2 refused. The job cannot run again.", 2),
    418: ("The server answered 418.", 1),
    503: ("The server cannot do this now. Try again later.", 1),
    302: ("The server redirects, perhaps to a login page.", 1),
    0: ("The server cannot be reached.", 1),
}
#: Those that are told apart by nothing but their words.
LONG = (400, 401, 404, 410, 418)


@pytest.mark.parametrize(
    "status",
    [
        pytest.param(status, marks=pytest.mark.long if status in LONG else ())
        for status in REFUSALS
    ],
)
def test_failures_are_said(pages: Pages, store: JobStore, status: int) -> None:
    """The dialog says in words why nothing was done, and nothing more is sent once that
    would be in vain.
    """
    text, count = REFUSALS[status]
    put(store, "success", "success")
    pages.visit()
    pages.one("all").check()
    pages.refuse = lambda method: status if method == "DELETE" else None

    pages.confirm("Delete", "Delete 2 jobs?")

    expect(pages.one("result")).to_have_text(text)
    expect(pages.one("close")).to_be_focused()
    assert len(pages.changes) == count
    pages.forgive(f"status of {status}", "net::ERR")
    pages.page.keyboard.press("Enter")
    pages.expect_said(text)
    assert len(pages.uuids) == 2


def test_bulk_act_that_breaks_off_says_how_far_it_came(
    pages: Pages, store: JobStore
) -> None:
    """If a later request fails, the page says what the earlier ones have changed."""
    create(store, 1050)
    pages.visit("/job_state/?all=1&status=queued")
    pages.one("matching").check()
    pages.refuse = lambda method: 503 if len(pages.changes) == 3 else None

    pages.confirm("Cancel", "Cancel 1,050 jobs?")

    unavailable = "The server cannot do this now. Try again later."
    expect(pages.one("result")).to_have_text(f"Asked 1,000 jobs to stop. {unavailable}")
    pages.forgive("status of 503")


def test_dialog_cannot_be_closed_while_it_acts(pages: Pages, store: JobStore) -> None:
    """Esc does not hide what goes on, however often, nor does what else closes it."""
    put(store, "success")
    pages.visit()
    pages.one("all").check()
    pages.page.route("**/job_state/*/", lambda route: None, times=1)
    pages.confirm("Delete", "Delete 1 job?")
    expect(pages.one("result")).to_have_text("Working…")
    expect(pages.one("result")).to_be_focused()

    for _ in range(3):
        pages.page.keyboard.press("Escape")

    expect(pages.one("dialog")).to_be_visible()
    pages.one("dialog").evaluate("dialog => dialog.close()")
    expect(pages.one("dialog")).to_be_visible()


def test_question_is_about_what_matches_by_then(pages: Pages, store: JobStore) -> None:
    """The question counts the jobs anew. What ends, or is sent, after it stays."""
    running, *_ = put(store, "working", "success")
    pages.visit("/job_state/?all=1&kind=RunMarathon")
    put(store, "success", "error")
    pages.one("matching").check()
    pages.page.get_by_role("button", name="Delete").click()
    expect(pages.one("question")).to_have_text("Delete 3 jobs?")
    finish(store, running)
    (later,) = put(store, "success")

    pages.one("yes").click()

    pages.expect_said("3 jobs deleted.")
    pages.expect_uuids(later, running)


def test_question_that_cannot_be_asked(pages: Pages, store: JobStore) -> None:
    """Without an answer to how many jobs match, nothing is asked or done."""
    put(store, "success")
    pages.visit()
    pages.one("matching").check()
    pages.refuse = lambda method: 503 if method == "POST" else None
    pages.page.get_by_role("button", name="Delete").click()
    expect(pages.one("question")).to_have_text(
        "The server cannot do this now. Try again later."
    )
    expect(pages.one("yes")).to_be_hidden()
    pages.one("close").click()
    expect(pages.one("dialog")).to_be_hidden()
    assert len(pages.uuids) == 1
    pages.forgive("status of 503")


def test_stale_token_is_renewed(pages: Pages, redis_url: str, store: JobStore) -> None:
    """After a refusal of the token, the page is loaded again with the one of by now."""
    pages.serve(protected(paged_config(redis_url)))
    put(store, "success")
    pages.visit()
    pages.page.context.clear_cookies()
    pages.one("matching").check()
    pages.page.get_by_role("button", name="Delete").click()
    expect(pages.one("question")).to_have_text("The CSRF header or token is wrong.")
    pages.one("close").click()
    pages.expect_said("The CSRF header or token is wrong.")

    pages.one("matching").check()
    pages.confirm("Delete", "Delete 1 job?")

    pages.expect_said("1 job deleted.")
    pages.forgive("status of 400")


def leave_question(pages: Pages, store: JobStore) -> Route:
    """Close a dialog before the page knows its question, open another, and return the
    request for that question.
    """
    put(store, "success", "working")
    pages.visit()
    pages.one("matching").check()
    held: list[Route] = []
    pages.page.route("**/job_state/clear*", lambda route: held.append(route))
    pages.page.get_by_role("button", name="Delete").click()
    # Routes are handled while the page is asked.
    wait_for(lambda: pages.page.evaluate("1") and held)
    pages.one("no").click()
    pages.page.get_by_role("button", name="Cancel").click()
    return held[0]


def test_question_that_nobody_waits_for(pages: Pages, store: JobStore) -> None:
    """A question that comes after its dialog was closed is not asked elsewhere."""
    route = leave_question(pages, store)
    expect(pages.one("question")).to_have_text("Cancel 1 job?")
    with pages.page.expect_response("**/job_state/clear*"):
        route.continue_()
    pages.page.evaluate("fetch('/job_state')")
    expect(pages.one("question")).to_have_text("Cancel 1 job?")


@pytest.mark.parametrize("status", [400, 503])
def test_refusal_that_nobody_waits_for(
    pages: Pages, store: JobStore, status: int
) -> None:
    """A question that fails after its dialog was closed leaves the next one alone."""
    route = leave_question(pages, store)
    expect(pages.one("yes")).to_be_visible()
    with pages.page.expect_response("**/job_state/clear*"):
        route.fulfill(status=status)
    pages.page.evaluate("fetch('/job_state')")
    expect(pages.one("close")).to_be_hidden()
    expect(pages.one("question")).to_have_text("Cancel 1 job?")
    pages.page.evaluate("window.isTheSame = true")
    pages.one("no").click()
    expect(pages.one("dialog")).to_be_hidden()
    pages.page.evaluate("fetch('/job_state')")
    assert pages.page.evaluate("window.isTheSame")
    pages.forgive(f"status of {status}")


def test_selection_is_not_restored(pages: Pages, store: JobStore) -> None:
    """After going back, no box is checked: their rows may be those of other jobs."""
    jobs = put(store, "success", "success", "success")[::-1]
    pages.visit("/job_state/?all=1")
    pages.row(jobs[0]).get_by_role("checkbox").check()
    pages.one("matching").check()
    pages.row(jobs[0]).get_by_role("link").click()
    expect(pages.page.locator("#jobstate-job")).to_be_attached()
    put(store, "success")

    pages.page.go_back()

    expect(pages.page.locator("tr[data-uuid]")).to_have_count(4)
    expect(pages.page.locator("input:checked")).to_have_count(0)
    assert pages.page.get_by_role("button", name="Delete").is_disabled()


def test_acts_follow_what_is_permitted(
    pages: Pages, redis_url: str, store: JobStore
) -> None:
    """When a job ends, the page offers what the viewer may do with it by then, and
    nothing else.
    """

    class Keepers(Root):
        __acl__ = (
            ("Allow", OPERATOR, ("view_job", "list_jobs", "cancel_job", "rerun_job")),
        )

    pages.serve(paged_config(redis_url, root_factory=Keepers))
    (job,) = put(store, "working")
    pages.visit()
    pages.row(job).get_by_role("checkbox").check()
    buttons = pages.page.locator("[data-act]:visible")
    expect(buttons).to_have_text(["Cancel"])

    finish(store, job, status="error")

    expect(buttons).to_have_text(["Cancel", "Run again"])
    expect(pages.page.get_by_role("button", name="Run again")).to_be_enabled()
    expect(pages.page.get_by_role("button", name="Cancel")).to_be_disabled()


def test_reload_during_an_act_says_what_was_done(pages: Pages, store: JobStore) -> None:
    """Who leaves the page before an act is over reads how far it came."""
    put(store, "success", "success")
    pages.visit()
    pages.one("all").check()
    held: list[Route] = []

    def hold_second(route: Route) -> None:
        if route.request.method != "DELETE" or not pages.changes:
            route.continue_()
        else:
            held.append(route)

    pages.page.route("**/job_state/*/", hold_second)
    pages.confirm("Delete", "Delete 2 jobs?")
    expect(pages.one("result")).to_have_text("1 job deleted.")
    # Routes are handled while the page is asked.
    wait_for(lambda: pages.page.evaluate("1") and held)

    pages.page.reload()

    pages.expect_said("1 job deleted.")
    assert len(pages.uuids) == 1


def test_requests_that_hang_are_given_up(pages: Pages, store: JobStore) -> None:
    """The dialog does not wait for ever."""
    pages.page.add_init_script("""
        const timeout = AbortSignal.timeout.bind(AbortSignal);
        window.asked = [];
        AbortSignal.timeout = (most) => (asked.push(most), timeout(most / 500));
    """)
    put(store, "success")
    pages.visit()
    pages.one("all").check()
    pages.page.route("**/job_state/*-*/", lambda route: None)

    pages.confirm("Delete", "Delete 1 job?")

    expect(pages.one("result")).to_have_text("The server cannot be reached.")
    expect(pages.one("close")).to_be_focused()
    assert pages.page.evaluate("asked") == [120_000]


def test_counts_that_hang_are_given_up(pages: Pages, store: JobStore) -> None:
    """Without an answer to how many jobs match, the question does not say it."""
    pages.page.add_init_script("""
        const timeout = AbortSignal.timeout.bind(AbortSignal);
        AbortSignal.timeout = (most) => timeout(most === 30000 ? 50 : most);
    """)
    put(store, "success", "success")
    pages.visit()
    pages.page.route("**/job_state/counts", lambda route: None)
    pages.one("matching").check()

    pages.confirm("Delete", "Delete all ended jobs that match?")

    pages.expect_said("2 jobs deleted.")


@pytest.mark.parametrize(
    "options",
    [{}, pytest.param({"header": "X-Own"}, marks=pytest.mark.long), {"header": None}],
    ids=["usual", "own", "field"],
)
def test_acts_pass_csrf_checks(
    pages: Pages, redis_url: str, store: JobStore, options: dict[str, str | None]
) -> None:
    """The token goes where the application looks for it."""
    job, other = put(store, "success", "success")
    pages.serve(protected(paged_config(redis_url), **options))
    pages.visit(f"/job_state/{job}")
    pages.confirm("Delete", "Delete this job? This cannot be undone.")
    pages.expect_said("1 job deleted.")
    pages.one("matching").check()
    pages.confirm("Delete", "Delete 1 job?")
    pages.expect_said("1 job deleted.")
    assert store.load(other) is None


# The page of a job


def test_job_is_cancelled(pages: Pages, store: JobStore) -> None:
    """After a cancel the page is loaded again, and says so."""
    (job,) = put(store, "queued")
    pages.visit(f"/job_state/{job}")
    cancel = pages.page.get_by_role("button", name="Cancel")
    cancel.click()
    pages.one("no").click()
    expect(cancel).to_be_focused()
    assert pages.changes == []

    pages.confirm("Cancel", "Cancel this job?")

    pages.expect_said("Asked 1 job to stop.")
    expect(pages.page.locator(".jobstate-timeline")).to_contain_text("Cancelled")
    expect(cancel).to_have_count(0)


def test_job_runs_again(pages: Pages, store: JobStore, marathons: Marathons) -> None:
    """A job that failed runs again from its page, which shows how it ends."""
    (job,) = marathons.fail("alice")
    pages.visit(f"/job_state/{job}")
    expect(pages.page.get_by_role("region", name="Traceback")).to_contain_text(
        "Blister"
    )
    pages.confirm("Run again", "Run this job again?")
    pages.expect_said("1 job runs again.")

    marathons.is_mended = True
    marathons.wait_for(job, "success")

    expect(pages.page.locator(".jobstate-timeline")).to_contain_text("Done")
    expect(pages.page.get_by_role("button", name="Delete")).to_be_visible()


def test_deleted_job_leads_to_the_list(pages: Pages, store: JobStore) -> None:
    """The page of a job that was deleted gives way to the list."""
    job, other = put(store, "success", "success")
    pages.visit(f"/job_state/{job}")
    pages.confirm("Delete", "Delete this job? This cannot be undone.")
    pages.expect_said("1 job deleted.")
    pages.expect_path("/job_state/?all=1")
    pages.expect_uuids(other)
    # Going back does not lead to a page that is gone.
    pages.page.go_back()
    expect(pages.page).to_have_url("about:blank")


def test_end_of_the_job_is_announced(pages: Pages, store: JobStore) -> None:
    """The page shows what can be done with a job that has ended, and stays: its
    element says the end, and the focus goes where it can.
    """
    (job,) = put(store, "working")
    pages.visit(f"/job_state/{job}")
    pages.page.get_by_role("button", name="Cancel").focus()

    finish(store, job)

    expect(pages.page.get_by_role("button", name="Delete")).to_be_focused()
    expect(pages.page.locator(".jobstate-timeline")).to_contain_text("Done")
    said = pages.page.locator("body > [role=status], body [aria-live=polite]")
    expect(said.filter(has_text="Run marathon: Done.")).to_have_count(1)


def test_focus_is_not_lost_at_the_end(
    pages: Pages, redis_url: str, store: JobStore
) -> None:
    """Where no button is left for the focus, or the one that asked has gone, the title
    gets it.
    """
    pages.user = "alice"
    first, second = put(store, "working", "working")
    for job, is_asked in (first, False), (second, True):
        pages.visit(f"/job_state/{job}")
        cancel = pages.page.get_by_role("button", name="Cancel")
        cancel.focus()
        if is_asked:
            cancel.click()
            expect(pages.one("question")).to_have_text("Cancel this job?")
        finish(store, job)
        expect(pages.page.locator(".jobstate-timeline")).to_contain_text("Done")
        if is_asked:
            pages.page.keyboard.press("Escape")
        expect(pages.page.get_by_role("heading", level=1)).to_be_focused()


def test_parts_of_the_page_are_asked_for_again(pages: Pages, store: JobStore) -> None:
    """What stands around the element arrives even if the server was busy at the end."""
    (job,) = put(store, "working")
    pages.page.clock.install()
    pages.visit(f"/job_state/{job}")
    page = f"**/job_state/{job}"
    busy = {"status": 503, "body": "Busy", "content_type": "text/html"}
    pages.page.route(page, lambda route: route.fulfill(**busy), times=1)
    with pages.page.expect_response(page):
        finish(store, job)
        pages.page.clock.run_for(2000)
    delete = pages.page.get_by_role("button", name="Delete")
    assert delete.count() == 0

    pages.page.clock.run_for(10_000)

    expect(delete).to_be_visible()
    pages.forgive("status of 503")


def test_page_of_a_login_is_not_taken_for_the_job(
    pages: Pages, store: JobStore
) -> None:
    """If the session has ended, what stands around the element stays."""
    (job,) = put(store, "working")
    pages.visit(f"/job_state/{job}")
    body = "<h1>Log in</h1>"
    page = f"**/job_state/{job}"
    pages.page.route(page, lambda r: r.fulfill(body=body, content_type="text/html"))
    with pages.page.expect_response(page):
        finish(store, job)
    pages.page.evaluate("fetch('/job_state')")
    expect(pages.page.get_by_role("button", name="Cancel")).to_be_visible()
    expect(pages.page.locator(".jobstate-timeline")).to_contain_text("Running")


def test_end_of_the_job_waits_for_the_answer(pages: Pages, store: JobStore) -> None:
    """A question is not swept away when the job ends."""
    (job,) = put(store, "working")
    pages.visit(f"/job_state/{job}")
    pages.page.get_by_role("button", name="Cancel").click()
    finish(store, job)
    expect(pages.page.locator("#jobstate-job[state=success]")).to_be_attached()
    expect(pages.one("dialog")).to_be_visible()
    pages.one("no").click()
    expect(pages.page.get_by_role("button", name="Delete")).to_be_visible()


def test_timeline_follows_the_tries(
    pages: Pages, store: JobStore, marathons: Marathons
) -> None:
    """A try that failed appears with its failure, and the page is not loaded again."""
    message = marathons.run_marathon.send_with_options(
        args=(26,), job_owner="alice", max_retries=3, min_backoff=3_600_000
    )
    pages.visit(f"/job_state/{message.message_id}")
    timeline = pages.page.locator(".jobstate-timeline")
    expect(timeline).to_contain_text("Waiting")
    pages.page.evaluate("window.isTheSame = true")

    marathons.wait([message], "retrying")

    expect(timeline).to_contain_text(
        re.compile(r"try 1.+Blister.+due at.+Trying", re.S)
    )
    traceback = pages.page.get_by_role("region", name="Traceback")
    expect(traceback).to_contain_text("Blister")
    assert pages.page.evaluate("window.isTheSame")
    # A failure that is read is not written anew.
    traceback.focus()
    job = message.message_id
    store.write([Update(job, "0" * 12, 1, INFO._replace(attempt=2), {}, begins=True)])
    expect(timeline).to_contain_text(re.compile(r"try 1.+try 2.+Running", re.S))
    expect(traceback).to_be_focused()


def test_new_metrics_appear(pages: Pages, store: JobStore) -> None:
    """What the job reports after the page was loaded is shown, as text."""
    (job,) = put(store, "working")
    pages.visit(f"/job_state/{job}")
    expect(pages.page.locator("dt")).to_have_count(0)
    fields = {"m:miles": "12", "m:<b>pace</b>": '"<i>5:03</i>"'}
    store.write([Update(job, "0" * 12, 1, INFO, fields, begins=True)])
    facts = pages.one("metrics")
    expect(facts.locator("dt")).to_have_text(["miles", "<b>pace</b>"])
    expect(facts.locator("dd")).to_have_text(["12", "<i>5:03</i>"])
    expect(facts.get_by_role("heading")).to_have_text("Metrics")


def test_metrics_of_an_earlier_run_go(pages: Pages, store: JobStore) -> None:
    """The page of a job forgets its metrics when it runs again, also those that it was
    loaded with.
    """
    (job,) = create(store, 1)
    fields = {"m:miles": "12", "m:pace": "5"}
    store.write([Update(job, "1" * 12, 1, INFO, {"m:miles": "12"}, begins=True)])
    pages.visit(f"/job_state/{job}")
    store.write([Update(job, "1" * 12, 2, INFO, fields)])
    terms = pages.one("metrics").locator("dt")
    expect(terms).to_have_text(["miles", "pace"])

    again = INFO._replace(attempt=2)
    store.write([Update(job, "2" * 12, 1, again, {"m:pace": "6"}, begins=True)])
    expect(terms).to_have_text(["pace"])
    expect(pages.one("metrics").locator("dd")).to_have_text(["6"])
    store.write([Update(job, "3" * 12, 1, INFO._replace(attempt=3), begins=True)])

    expect(pages.one("metrics")).to_have_count(0)


def test_class_may_leave_out_the_attempts(pages: Pages, store: JobStore) -> None:
    """A row of a job whose JSON lacks them goes on without."""

    class Untold(JobState):
        def __json__(self, request: Any) -> dict[str, Any]:
            state = super().__json__(request)
            del state["job"]["attempt"]
            return state

    job = put_job(store, Untold, "working", owner="alice").uuid
    pages.visit()
    info = INFO._replace(kind="Untold")
    end = End("success")
    store.write([Update(job, "0" * 12, 1, info, begins=True, end=end)])
    expect(pages.row(job).locator("[part=status]")).to_have_text("Done")
    expect(pages.row(job).locator(".jobstate-number")).to_have_text("0")


@pytest.mark.parametrize("is_allowed", [True, False])
def test_id_is_copied(pages: Pages, store: JobStore, is_allowed: bool) -> None:
    """The button copies the id; if the browser forbids that, it selects it."""
    (job,) = put(store, "success")
    if is_allowed:
        pages.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    pages.visit(f"/job_state/{job}")
    if not is_allowed:
        refuse = "() => {navigator.clipboard.writeText = () => Promise.reject()}"
        pages.page.evaluate(refuse)
    pages.one("copy").click()
    if is_allowed:
        expect(pages.one("copy")).to_have_text("Copied")
        assert pages.page.evaluate("navigator.clipboard.readText()") == job
    else:
        wait_for(lambda: pages.page.evaluate("String(getSelection())") == job)


# Beside them


@pytest.mark.parametrize("place", ["list", "job"])
def test_back_shows_the_page(pages: Pages, store: JobStore, place: str) -> None:
    """After polls of the same URL, Back shows the page and not their JSON."""
    (job,) = put(store, "working")
    path = "/job_state/?all=1" if place == "list" else f"/job_state/{job}/"
    pages.visit(path)
    url = pages.url + path
    script = """async (url) => {
        const headers = { Accept: "application/json" };
        return (await fetch(url, { headers })).json();
    }"""
    for _ in range(2):
        assert pages.page.evaluate(script, url)
    pages.page.goto(f"{pages.url}/job_state/static/job-state.css")

    pages.page.go_back()

    pages.settle()
    assert pages.page.url == url
    assert pages.page.evaluate("document.contentType") == "text/html"
    expect(pages.page.locator("h1")).to_be_visible()


@pytest.mark.parametrize("lang", ["en", pytest.param("de-AT", marks=pytest.mark.long)])
def test_times_are_the_viewer_s(
    browser: Browser, redis_url: str, store: JobStore, tmp_path: Path, lang: str
) -> None:
    """Times of today are shown in the viewer's zone and in the language of the page,
    and others with their date.
    """
    (job,) = put(store, "queued")
    sent = load_job(store, job).queued_at
    assert sent is not None
    catalog = tmp_path / "de" / "LC_MESSAGES" / "pyramid_jobstate.mo"
    header = "Content-Type: text/plain; charset=UTF-8\n"
    write_catalog(catalog, {"": header, "Sent": "Abgeschickt"})
    config = paged_config(redis_url)
    config.add_translation_dirs(str(tmp_path))
    config.set_locale_negotiator(lambda request: lang.replace("-", "_"))
    with (
        browser.new_context(timezone_id="Asia/Tokyo") as context,
        serving(context.new_page(), config) as pages,
    ):
        node = pages.page.locator("td time")
        local = sent.astimezone(timezone(timedelta(hours=9)))
        hour = local.hour if lang == "de-AT" else local.hour % 12 or 12
        for days, start in (0, ""), (40, r".*\b[A-Z][a-z]+.*\b"):
            pages.page.clock.set_fixed_time(sent + timedelta(days=days))
            pages.page.goto(f"{pages.url}/job_state")
            clock = rf"{start}0?{hour}:{local:%M}" + (":" if not days else r"\b")
            expect(node).to_have_text(re.compile(f"^{clock}"))
        expect(node).to_have_attribute("title", f"{sent:%Y-%m-%d %H:%M} UTC")


def test_pages_are_plain_without_javascript(
    browser: Browser, redis_url: str, store: JobStore
) -> None:
    """Without JavaScript the pages are read, and followed by links. They say what needs
    JavaScript, and show no button that does nothing.
    """
    jobs = fill(store)
    with (
        browser.new_context(java_script_enabled=False) as context,
        serving(context.new_page(), paged_config(redis_url)) as pages,
    ):
        page = pages.page
        page.goto(f"{pages.url}/job_state")
        note = page.locator("noscript p")
        expect(note).to_have_text("Live updates and actions need JavaScript.")
        expect(note).to_be_visible()
        row = pages.row(jobs[1]).locator("job-state")
        expect(row).to_have_text(
            "Running · 46 % · 9,257 of 20,000 rows · \u2068Writing the rows\u2069"
        )
        expect(row).to_be_visible()
        assert page.locator("button:visible").all_text_contents() == ["Show"]
        expect(page.get_by_role("checkbox")).to_have_count(0)

        page.get_by_label("Kind").select_option(ImportSheet.kind)
        page.get_by_role("button", name="Show").click()
        expect(page.locator("tbody tr")).to_have_count(len(jobs))
        page.get_by_role("link", name="Failed").click()
        page.locator("tbody a").first.click()
        expect(note).to_be_visible()
        expect(page.locator("job-state")).to_contain_text("Failed")
        expect(page.locator("button:visible")).to_have_count(0)
        page.get_by_role("link", name="All jobs").click()
        expect(page.locator("tbody tr")).to_have_count(len(jobs))
