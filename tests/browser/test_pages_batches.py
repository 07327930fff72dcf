"""The page of a batch in a real Chromium: live counts, rows, and acts."""

from __future__ import annotations

from typing import Any

import pytest
from playwright.sync_api import expect

from pyramid_jobstate import Batch, JobError, JobState, JobStore, Progress
from pyramid_jobstate.testing import put_batch, put_job
from tests.accessible import complaints
from tests.browser.paged import IS_WIDER, ImportFiles, Pages, Runner
from tests.browser.test_pages_hostile import SAMPLE, check_harm, seen
from tests.jobs import RunMarathon, working
from tests.support import load_job, wait_for
from tests.web.operating import Marathons

TITLE = "Import of the files"

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


def put(
    store: JobStore,
    *statuses: str,
    of: type[JobState] = RunMarathon,
    owner: str = "alice",
    owners: tuple[str, ...] = (),
) -> tuple[str, list[str]]:
    """Put a batch, and return its uuid and those of its members. `owners` are those of
    the first of them. Members that failed may run again.
    """
    members: list[dict[str, Any]] = []
    for number, status in enumerate(statuses):
        member = {"status": status, "job_state_class": of, "params": {"miles": 26}}
        if status == "error":
            member["error"] = JobError("ValueError", "wrong")
        whose = owners[number] if number < len(owners) else owner
        members.append({**member, "actor": "run_marathon", "owner": whose})
    batch = put_batch(store, ImportFiles, members, owner=owner, title=TITLE)
    return batch.uuid, members_of(store, batch.uuid)


def members_of(store: JobStore, batch: str) -> list[str]:
    found, _ = store.members(batch, limit=100)
    return [job_state.uuid for job_state in found if job_state is not None]


def tab_of(pages: Pages, name: str) -> Any:
    return pages.page.locator(TABS).filter(has_text=name)


def rerun_button(pages: Pages) -> Any:
    return pages.page.locator("[data-act=rerun]")


def test_batch_is_live(pages: Pages, runner: Runner) -> None:
    """The bar, the counts and the rows follow the members to the end of the batch, and
    the button comes with the first failure. No row moves.
    """
    batch, members = runner.start_batch(pages.registry, 4, TITLE)
    pages.visit(f"/job_state/{batch}")
    bar = pages.page.locator("#jobstate-job [part=bar]")
    expect(tab_of(pages, "Running")).to_have_text("Running 4")
    expect(rerun_button(pages)).to_have_count(0)
    runner.finish(members[0])
    expect(bar).to_have_attribute("aria-valuenow", "25")

    runner.fail(members[2], ValueError("Blister"))

    expect(tab_of(pages, "Running")).to_have_text("Running 2")
    expect(tab_of(pages, "Failed")).to_have_text("Failed 1")
    # Sooner than a silent batch is stalled: then the page renews its parts in any case.
    expect(rerun_button(pages)).to_have_text("Run 1 failed job again", timeout=8000)
    expect(bar).to_have_attribute("aria-valuenow", "50")
    row = pages.row(members[2])
    expect(row.locator("[part=status]")).to_have_text("Failed")
    expect(row.locator(".jobstate-ended time")).to_have_count(1)
    runner.fail(members[3], ValueError("Blister"))
    expect(rerun_button(pages)).to_have_text("Run 2 failed jobs again", timeout=8000)
    runner.finish(members[1])
    status = pages.page.locator("#jobstate-job [part=status]")
    expect(status).to_have_text("Failed")
    expect(pages.page.locator(".jobstate-timeline")).to_contain_text("Failed")
    expect(pages.page.get_by_role("button", name="Delete")).to_be_visible()
    expect(pages.page.get_by_role("button", name="Cancel")).to_have_count(0)
    expect(tab_of(pages, "All")).to_have_text("All 4")
    assert pages.uuids == members


def test_page_asks_for_all_of_its_jobs_at_once(pages: Pages, store: JobStore) -> None:
    """One request polls the batch and its rows. What the rows tell does not change what
    stands around the element of the batch.
    """
    batch, members = put(store, *["queued"] * 49, "success")
    with pages.page.expect_request(lambda r: r.url.count("uuid=") == 50):
        pages.visit(f"/job_state/{batch}")

    def others() -> list[str]:
        quiet = ("uuid=", "static", "favicon")
        return [url for url in pages.asked if not any(word in url for word in quiet)]

    asked = others()

    load_job(store, members[0]).cancel()

    status = pages.row(members[0]).locator("[part=status]")
    expect(status).to_have_text("Cancelled")
    expect(tab_of(pages, "Cancelled")).to_have_text("Cancelled 1")
    # By the time of another answer, the page would have asked for its parts.
    pages.page.evaluate("fetch('/favicon.ico')")
    assert others() == asked


def test_failed_jobs_run_again(
    pages: Pages, store: JobStore, marathons: Marathons
) -> None:
    """After a question, the failed jobs of the batch run again, and no others. The page
    says how many, and shows how they end.
    """
    batch, members = put(store, "success", "error", "error")
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
def test_owner_runs_their_failed_jobs_again(pages: Pages, store: JobStore) -> None:
    """Who may not list all jobs runs those again that they own, and may. The question
    has the number of all, unless the counts cannot be read by then.
    """
    pages.user = "keeper"
    batch, members = put(
        store, "error", "error", owner="keeper", owners=("keeper", "b")
    )
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


def test_batch_is_cancelled(pages: Pages, store: JobStore) -> None:
    """A cancel of the batch is one of all its jobs that are not over."""
    batch, members = put(store, "success", "queued", "queued")
    pages.visit(f"/job_state/{batch}")

    pages.confirm("Cancel", "Cancel all unfinished jobs of this batch?")

    pages.expect_said("Asked 1 job to stop.")
    expect(tab_of(pages, "Cancelled")).to_have_text("Cancelled 2")
    status = pages.row(members[2]).locator("[part=status]")
    expect(status).to_have_text("Cancelled")


def test_page_leads_to_jobs_and_back(pages: Pages, store: JobStore) -> None:
    """A row leads to its job, whose page leads back to the batch. This works without
    JavaScript, as the tabs do.
    """
    pages.user = "alice"
    batch, members = put(store, "success", "error", owners=("bob", "alice"), of=Lap)
    pages.page.route("**/*.js", lambda route: route.abort())
    pages.page.goto(f"{pages.url}/job_state/{batch}")
    tab_of(pages, "Failed").click()
    pages.expect_uuids(*members[1:])
    pages.page.get_by_role("link", name="Lap 26").click()
    pages.expect_path(f"/job_state/{members[1]}/")
    expect(pages.page.locator(".jobstate-batch")).to_have_text(f"Part of: {TITLE}")
    pages.page.get_by_role("link", name=TITLE).click()
    pages.expect_path(f"/job_state/{batch}/")
    pages.expect_uuids(*members)
    pages.forgive("ERR_FAILED")


class Graffiti(Batch):
    """A kind of batch whose title is up to others."""


class Tag(JobState):
    """A kind of member whose title is up to others."""

    @property
    def title(self) -> str:
        return SAMPLE[int(self.get_job_param("number"))]


@pytest.mark.system
def test_hostile_texts_stay_texts(pages: Pages, store: JobStore) -> None:
    """Nothing in the titles of batches and members acts, in the list of members, in
    what the script writes, and on the way back.
    """
    pages.page.on("dialog", lambda dialog: pages.problems.append(str(dialog)))
    for number, text in enumerate(SAMPLE[::8]):
        member = {"job_state_class": Tag, "params": {"number": 8 * number}}
        error = {"error": JobError("ValueError", "wrong"), "actor": "run_marathon"}
        members = [
            {**member, **error, "status": "error", "owner": text},
            {**member, "status": "queued"},
        ]
        put_kind = put_batch(store, Graffiti, members, owner=text, title=text)
        batch, uuids = put_kind.uuid, members_of(store, put_kind.uuid)
        pages.visit(f"/job_state/{batch}")
        assert pages.page.locator("h1").text_content() == text
        link = pages.page.locator("tr th a").first
        assert link.text_content() == text
        title = pages.row(uuids[0]).locator("[part=title]")
        assert title.text_content() == seen(text)
        load_job(store, uuids[1]).cancel()
        expect(rerun_button(pages)).to_have_text("Run 1 failed job again")
        expect(tab_of(pages, "Cancelled")).to_have_text("Cancelled 1")
        check_harm(pages, 2)
        pages.visit(f"/job_state/{uuids[0]}")
        assert pages.page.locator(".jobstate-batch a").text_content() == text
        check_harm(pages, 0)


@pytest.mark.system
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_is_accessible(
    pages: Pages, store: JobStore, node_modules: Any, width: int, scheme: Any
) -> None:
    """The pages of a batch and of a member fit the window, look like the others, and
    are accessible.
    """
    pages.page.set_viewport_size({"width": width, "height": 900})
    pages.page.emulate_media(color_scheme=scheme)
    batch, members = put(store, *EACH, *["queued"] * 50, of=Lap)
    put_job(store, RunMarathon, progress=Progress(1, 2))
    size = "phone" if width == 390 else "wide"

    pages.visit(f"/job_state/{batch}")
    pages.picture(f"pages-batch-{scheme}-{size}")
    assert not pages.page.evaluate(IS_WIDER)
    if scheme == "light":
        assert list(complaints(pages.page, node_modules)) == []
        pages.page.emulate_media(color_scheme=scheme)
    pages.visit(f"/job_state/{batch}/?status=error")
    pages.picture(f"pages-batch-failed-{scheme}-{size}")
    pages.visit(f"/job_state/{members[2]}")
    pages.picture(f"pages-member-{scheme}-{size}")
    assert not pages.page.evaluate(IS_WIDER)
