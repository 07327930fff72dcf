"""The page of a batch in a real Chromium: live counts, rows, and acts."""

from typing import Any

import pytest
from playwright.sync_api import expect

from tests.accessible import complaints
from tests.browser.paged import IS_WIDER, Pages
from tests.jobs import working
from tests.support import STATUSES, load_job, wait_for
from tests.web.paging import put_batch

TABS = ".jobstate-tabs a"


def tab_of(pages: Pages, name: str) -> Any:
    return pages.page.locator(TABS).filter(has_text=name)


def rerun_button(pages: Pages) -> Any:
    return pages.page.locator("[data-act=rerun]")


def test_batch_is_live(pages, runner):
    """The bar, the counts and the rows follow the members to the end of the batch, and
    the button comes with the first failure. No row moves.
    """
    batch, members = runner.start_batch(pages.registry, 3)
    pages.visit(f"/job_state/{batch}")
    bar = pages.page.locator("#jobstate-job [part=bar]")
    expect(tab_of(pages, "Running")).to_have_text("Running 3")
    expect(rerun_button(pages)).to_have_count(0)
    runner.fail(members[2], ValueError("Blister"))
    expect(tab_of(pages, "Running")).to_have_text("Running 2")
    expect(tab_of(pages, "Failed")).to_have_text("Failed 1")
    # Sooner than a silent batch is stalled: then the page renews its parts in any case.
    expect(rerun_button(pages)).to_have_text("Run 1 failed job again", timeout=8000)
    expect(bar).to_have_attribute("aria-valuenow", "33")
    row = pages.row(members[2])
    expect(row.locator("[part=status]")).to_have_text("Failed")
    expect(row.locator(".jobstate-ended time")).to_have_count(1)
    for member in members[:2]:
        runner.finish(member)
    status = pages.page.locator("#jobstate-job [part=status]")
    expect(status).to_have_text("Failed")
    expect(pages.page.locator(".jobstate-timeline")).to_contain_text("Failed")
    expect(pages.page.get_by_role("button", name="Delete")).to_be_visible()
    expect(pages.page.get_by_role("button", name="Cancel")).to_have_count(0)
    assert pages.uuids == members


def test_page_asks_for_all_of_its_jobs_at_once(pages, store):
    """One request polls the batch and its rows."""
    batch, members = put_batch(store, *["queued"] * 49, "success")
    with pages.page.expect_request(lambda r: r.url.count("uuid=") == 50):
        pages.visit(f"/job_state/{batch}")
    load_job(store, members[0]).cancel()
    status = pages.row(members[0]).locator("[part=status]")
    expect(status).to_have_text("Cancelled")
    expect(tab_of(pages, "Cancelled")).to_have_text("Cancelled 1")


def test_failed_jobs_run_again(pages, store, marathons):
    """After a question they do, no others. The page says how many, and how they end."""
    batch, members = put_batch(store, "success", "error", "error")
    other = marathons.fail("alice")[0]
    pages.visit(f"/job_state/{batch}")
    tab_of(pages, "Failed").click()
    pages.expect_uuids(*members[1:])
    pages.settle()
    button = pages.page.get_by_role("button", name="Run 2 failed jobs again")
    button.click()
    expect(pages.one("question")).to_have_text("Run 2 jobs again?")
    expect(pages.one("yes")).to_have_text("Run again")
    pages.one("no").click()
    expect(button).to_be_focused()
    assert load_job(store, members[1]).status == "error"
    pages.confirm("Run 2 failed jobs again", "Run 2 jobs again?")
    pages.expect_said("2 jobs run again.")
    expect(button).to_have_count(0)
    assert "?status=error" in pages.page.url
    expect(tab_of(pages, "Waiting")).to_have_text("Waiting 2")
    marathons.is_mended = True
    with working(marathons.broker):
        wait_for(lambda: load_job(store, batch).status == "success")
    expect(tab_of(pages, "Done")).to_have_text("Done 3")
    expect(pages.page.locator("#jobstate-job [part=status]")).to_have_text("Done")
    assert load_job(store, other).status == "error"
    assert {*marathons.ran} == {other, *members[1:]}


@pytest.mark.usefixtures("marathons")
def test_owner_runs_their_failed_jobs_again(pages, store):
    """Who may not list all jobs runs those again that they own, and may. The question
    has the number of all, unless the counts cannot be read by then.
    """
    pages.user = "keeper"
    failed = [{"status": "error", "owner": owner} for owner in ("keeper", "b")]
    batch, members = put_batch(store, *failed, owner="keeper")
    pages.visit(f"/job_state/{batch}")
    pages.refuse = lambda method: 503 if method == "GET" else None
    rerun_button(pages).click()
    question = "Run all failed jobs that match again?"
    expect(pages.one("question")).to_have_text(question)
    pages.refuse = lambda method: None
    pages.one("no").click()
    pages.confirm("Run 2 failed jobs again", "Run 2 jobs again?")
    pages.expect_said("1 job runs again.")
    mine, other = (load_job(store, uuid).status for uuid in members)
    assert (mine, other) == ("queued", "error")
    pages.forgive("status of 503")


def test_batch_is_cancelled(pages, store):
    """A cancel of the batch is one of all its jobs that are not over."""
    batch, members = put_batch(store, "success", "queued", "queued")
    pages.visit(f"/job_state/{batch}")
    pages.confirm("Cancel", "Cancel all unfinished jobs of this batch?")
    pages.expect_said("Asked 1 job to stop.")
    expect(tab_of(pages, "Cancelled")).to_have_text("Cancelled 2")
    status = pages.row(members[2]).locator("[part=status]")
    expect(status).to_have_text("Cancelled")


@pytest.mark.system
@pytest.mark.parametrize("width", [1280, 390])
def test_page_is_accessible(pages, store, node_modules, width):
    """The pages of a batch and of a member fit the window, and are accessible."""
    pages.page.set_viewport_size({"width": width, "height": 900})
    batch, members = put_batch(store, *STATUSES, *STATUSES, *["queued"] * 50)
    pages.visit(f"/job_state/{batch}")
    pages.picture(f"pages-batch-{width}")
    assert not pages.page.evaluate(IS_WIDER)
    assert list(complaints(pages.page, node_modules)) == []
    pages.visit(f"/job_state/{members[2]}")
    pages.picture(f"pages-member-{width}")
    assert not pages.page.evaluate(IS_WIDER)
