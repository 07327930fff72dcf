"""The page of a batch in a real Chromium: live counts, rows, and acts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import expect

from pyramid_jobstate import Batch, JobState, JobStore, Progress
from pyramid_jobstate.testing import put_job
from tests.accessible import complaints
from tests.batched import end, put_batch
from tests.browser.paged import IS_WIDER, Pages
from tests.browser.test_pages_hostile import SAMPLE, check_harm, seen
from tests.jobs import RunMarathon, working
from tests.support import load_job, wait_for
from tests.web.operating import Marathons

#: Milliseconds, fewer than those after which a silent batch is stalled: then the page
#: renews its parts in any case.
SOON = 8000

TABS = ".jobstate-tabs a"

EACH = (
    *("success", "success", "error", "working", "success", "retrying"),
    *("error", "queued", "queued", "cancelled"),
)


class Lap(RunMarathon):
    """A kind of member that anybody may see."""

    @property
    def title(self) -> str:
        return f"Lap {self.get_job_param('miles')}"

    def __acl__(self) -> list[tuple[str, Any, Any]]:
        return [("Allow", "alice", "view_job"), *super().__acl__()]


def tab_of(pages: Pages, name: str) -> Any:
    return pages.page.locator(TABS).filter(has_text=name)


def test_batch_is_live(pages: Pages, store: JobStore) -> None:
    """The bar, the counts and the rows follow the members to the end of the batch, and
    the button comes with the first failure. No row moves.
    """
    batch = put_batch(store, "success", "working", "queued", "queued")
    pages.visit(f"/job_state/{batch.uuid}")
    bar = pages.page.locator("#jobstate-job [part=bar]")
    expect(bar).to_have_attribute("aria-valuenow", "25")
    expect(tab_of(pages, "Waiting")).to_have_text("Waiting 2")
    rerun = pages.page.get_by_role("button", name="Run 1 failed job again")
    expect(rerun).to_have_count(0)

    end(store, batch.uuid, batch.members[2], "error")

    expect(tab_of(pages, "Waiting")).to_have_text("Waiting 1")
    expect(tab_of(pages, "Failed")).to_have_text("Failed 1")
    expect(rerun).to_be_visible(timeout=SOON)
    expect(bar).to_have_attribute("aria-valuenow", "50")
    row = pages.row(batch.members[2])
    expect(row.locator("[part=status]")).to_have_text("Failed")
    expect(row.locator(".jobstate-ended time")).to_have_count(1)
    end(store, batch.uuid, batch.members[3], "error")
    expect(pages.page.locator("[data-act=rerun]")).to_have_text(
        "Run 2 failed jobs again", timeout=SOON
    )
    end(store, batch.uuid, batch.members[1])
    status = pages.page.locator("#jobstate-job [part=status]")
    expect(status).to_have_text("Failed")
    expect(pages.page.locator(".jobstate-timeline")).to_contain_text("Failed")
    expect(pages.page.get_by_role("button", name="Delete")).to_be_visible()
    expect(pages.page.get_by_role("button", name="Cancel")).to_have_count(0)
    expect(tab_of(pages, "All")).to_have_text("All 4")
    assert pages.uuids == batch.members


def test_page_asks_for_all_of_its_jobs_at_once(pages: Pages, store: JobStore) -> None:
    """One request polls the batch and its rows. What the rows tell does not change what
    stands around the element of the batch.
    """
    batch = put_batch(store, *["working"] * 50)
    with pages.page.expect_request(lambda r: r.url.count("uuid=") == 51):
        pages.visit(f"/job_state/{batch.uuid}")
    asked = [url for url in pages.asked if "uuid=" not in url and "static" not in url]

    end(store, batch.uuid, batch.members[0])

    row = pages.row(batch.members[0])
    expect(row.locator("[part=status]")).to_have_text("Done")
    expect(tab_of(pages, "Done")).to_have_text("Done 1")
    # By the time of another answer, the page would have asked for its parts.
    pages.page.evaluate("fetch('/favicon.ico')")
    more = [url for url in pages.asked if "uuid=" not in url and "static" not in url]
    assert [u for u in more[len(asked) :] if "favicon" not in u] == []


def test_failed_jobs_run_again(
    pages: Pages, store: JobStore, marathons: Marathons
) -> None:
    """After a question, the failed jobs of the batch run again, and no others. The page
    says how many, and shows how they end.
    """
    batch = put_batch(store, "success", "error", "error")
    other = marathons.fail("alice")[0]
    pages.visit(f"/job_state/{batch.uuid}")
    tab_of(pages, "Failed").click()
    pages.expect_uuids(*batch.members[1:])
    pages.settle()
    button = pages.page.get_by_role("button", name="Run 2 failed jobs again")
    button.click()
    expect(pages.one("question")).to_have_text("Run 2 jobs again?")
    expect(pages.one("yes")).to_have_text("Run again")
    pages.one("no").click()
    expect(button).to_be_focused()
    assert load_job(store, batch.members[1]).status == "error"

    pages.confirm("Run 2 failed jobs again", "Run 2 jobs again?")

    pages.expect_said("2 jobs run again.")
    expect(button).to_have_count(0)
    assert "?status=error" in pages.page.url
    expect(tab_of(pages, "Waiting")).to_have_text("Waiting 2")
    marathons.is_mended = True
    with working(marathons.broker):
        wait_for(lambda: load_job(store, batch.uuid).status == "success")
    expect(tab_of(pages, "Done")).to_have_text("Done 3")
    expect(pages.page.locator("#jobstate-job [part=status]")).to_have_text("Done")
    assert load_job(store, other).status == "error"
    assert {*marathons.ran} == {other, *batch.members[1:]}


def test_owner_runs_their_failed_jobs_again(
    pages: Pages, store: JobStore, marathons: Marathons
) -> None:
    """Who may not list all jobs runs those again that they own, and may. The question
    has the number of all.
    """
    pages.user = "keeper"
    batch = put_batch(store, "error", "error", owner="keeper", owners=["keeper", "bob"])
    pages.visit(f"/job_state/{batch.uuid}")

    pages.confirm("Run 2 failed jobs again", "Run 2 jobs again?")

    pages.expect_said("1 job runs again.")
    mine, other = (load_job(store, uuid).status for uuid in batch.members)
    assert (mine, other) == ("queued", "error")


def test_question_without_numbers(
    pages: Pages, store: JobStore, marathons: Marathons
) -> None:
    """If the counts cannot be read by then, the question leaves them out."""
    batch = put_batch(store, "error")
    pages.visit(f"/job_state/{batch.uuid}")
    pages.refuse = lambda method: 503 if method == "GET" else None
    pages.page.get_by_role("button", name="Run 1 failed job again").click()
    question = "Run all failed jobs that match again?"
    expect(pages.one("question")).to_have_text(question)
    pages.refuse = lambda method: None
    pages.one("yes").click()
    pages.expect_said("1 job runs again.")
    pages.forgive("status of 503")


def test_batch_is_cancelled(pages: Pages, store: JobStore) -> None:
    """A cancel of the batch is one of all its jobs that are not over."""
    batch = put_batch(store, "success", "queued", "queued")
    pages.visit(f"/job_state/{batch.uuid}")

    pages.confirm("Cancel", "Cancel all unfinished jobs of this batch?")

    pages.expect_said("Asked 1 job to stop.")
    expect(tab_of(pages, "Cancelled")).to_have_text("Cancelled 2")
    expect(pages.row(batch.members[2]).locator("[part=status]")).to_have_text(
        "Cancelled"
    )


def test_page_leads_to_jobs_and_back(pages: Pages, store: JobStore) -> None:
    """A row leads to its job, whose page leads back to the batch. This works without
    JavaScript, as the tabs do.
    """
    pages.user = "alice"
    batch = put_batch(store, "success", "error", owners=["bob", "alice"], member=Lap)
    pages.page.route("**/*.js", lambda route: route.abort())
    pages.page.goto(f"{pages.url}/job_state/{batch.uuid}")
    tab_of(pages, "Failed").click()
    pages.expect_uuids(*batch.members[1:])
    pages.page.get_by_role("link", name="Lap 26").click()
    pages.expect_path(f"/job_state/{batch.members[1]}/")
    expect(pages.page.locator(".jobstate-batch")).to_have_text(
        "Part of: Import of the files"
    )
    pages.page.get_by_role("link", name="Import of the files").click()
    pages.expect_path(f"/job_state/{batch.uuid}/")
    pages.expect_uuids(*batch.members)
    pages.forgive("ERR_FAILED")


def test_hostile_texts_stay_texts(pages: Pages, store: JobStore) -> None:
    """Nothing in the titles of batches and members acts, in the list of members, in
    what the script writes, and on the way back.
    """

    class Graffiti(Batch):
        """A kind of batch whose title is up to others."""

    class Tag(JobState):
        """A kind of member whose title is up to others."""

        @property
        def title(self) -> str:
            return SAMPLE[int(self.get_job_param("number"))]

    pages.page.on("dialog", lambda dialog: pages.problems.append(str(dialog)))
    for number, text in enumerate(SAMPLE[::8]):
        batch = put_batch(
            store,
            "error",
            "queued",
            cls=Graffiti,
            member=Tag,
            title=text,
            owner=text,
            params={"number": 8 * number},
        )
        pages.visit(f"/job_state/{batch.uuid}")
        assert pages.page.locator("h1").text_content() == text
        link = pages.page.locator("tr th a").first
        assert link.text_content() == text
        title = pages.row(batch.members[0]).locator("[part=title]")
        assert title.text_content() == seen(text)
        end(store, batch.uuid, batch.members[1], "error")
        expect(pages.page.locator("[data-act=rerun]")).to_have_text(
            "Run 2 failed jobs again"
        )
        check_harm(pages, 2)
        pages.visit(f"/job_state/{batch.members[0]}")
        assert pages.page.locator(".jobstate-batch a").text_content() == text
        check_harm(pages, 0)


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_is_accessible(
    pages: Pages, store: JobStore, node_modules: Path, width: int, scheme: Any
) -> None:
    """The pages of a batch and of a member fit the window, look like the others, and
    are accessible.
    """
    pages.page.set_viewport_size({"width": width, "height": 900})
    pages.page.emulate_media(color_scheme=scheme)
    batch = put_batch(store, *EACH, *["queued"] * 50, member=Lap)
    put_job(store, RunMarathon, progress=Progress(1, 2))
    size = "phone" if width == 390 else "wide"

    pages.visit(f"/job_state/{batch.uuid}")
    pages.picture(f"pages-batch-{scheme}-{size}")
    assert not pages.page.evaluate(IS_WIDER)
    if scheme == "light":
        assert list(complaints(pages.page, node_modules)) == []
        pages.page.emulate_media(color_scheme=scheme)
    pages.visit(f"/job_state/{batch.uuid}/?status=error")
    pages.picture(f"pages-batch-failed-{scheme}-{size}")
    pages.visit(f"/job_state/{batch.members[2]}")
    pages.picture(f"pages-member-{scheme}-{size}")
    assert not pages.page.evaluate(IS_WIDER)
