"""The page of a batch, which lists its jobs, and that of a job, which leads to it."""

from typing import Any
from urllib.parse import urlsplit

from pyramid.authorization import Deny

from pyramid_jobstate import Batch
from pyramid_jobstate.testing import put_job
from tests.jobs import RunMarathon
from tests.support import load_job
from tests.trips import counting_trips
from tests.web.operating import KEEPER, OPERATOR, Letter, put
from tests.web.paging import Visit, browse, put_batch, query_of

EACH = ("success", "error", "working", "queued", "retrying", "cancelled", "error")


def test_page_lists_the_members(paged, store):
    """First those that failed, then those that run, then the others, each as sent."""
    batch, sent = put_batch(store, *EACH)
    jobs = [sent[n] for n in (1, 6, 2, 0, 3, 4, 5)]
    put_job(store, RunMarathon, owner="alice")
    for user in "alice", OPERATOR:
        page = Visit(paged, f"/job_state/{batch}", user)
        base = "http://localhost/job_state/"
        assert page.texts("h1, title") == ["Import of the files"] * 2
        assert page.one("#jobstate-job")["src"] == f"{base}{batch}/"
        said = "Running · 57% · 4 of 7 jobs, 2 failed, 1 cancelled"
        assert page.texts("#jobstate-job p") == [said]
        assert page.uuids == jobs
        urls = [f"{base}{job}/" for job in jobs]
        assert [str(tag["src"]) for tag in page.all("tr job-state")] == urls
        assert [str(tag["href"]) for tag in page.all("tr th a")] == urls
        assert not page.has("tr input")
        assert page.texts("h2") == ["Jobs", "Timeline"]
        assert page.has(".jobstate-whose") is (user == OPERATOR)


def test_tabs_count_the_members(store, visit):
    """Each tab leads to members, and has their number if the batch counts them."""
    batch, jobs = put_batch(store, *EACH)
    page = visit(f"/job_state/{batch}/?status=error&limit=5&_LOCALE_=en&other=1")
    tabs = "All 7|Waiting 1|Running 1|Trying again 1|No sign of life|Cancelling…|Done 1"
    tabs += "|Failed 2|Cancelled 1"
    assert page.texts(".jobstate-tabs a") == tabs.split("|")
    assert page.texts(".jobstate-tabs [aria-current]") == ["Failed 2"]
    assert page.uuids == [jobs[1], jobs[6]]
    kept = {"limit": "5", "_LOCALE_": "en"}
    assert query_of(page.link("All 7")) == kept
    assert query_of(page.link("Done")) == {**kept, "status": "success"}
    assert visit(page.link("Done")).uuids == jobs[:1]


def test_addresses(paged, store):
    """Where scripts get the members of a batch as JSON, browsers get its page."""
    batch, jobs = put_batch(store, "error", "queued")
    for query in "status=done", "cursor=x", "limit=0":
        assert browse(paged, f"/job_state/{batch}/?{query}").status_code == 400
        # The page of any other job has no list.
        assert browse(paged, f"/job_state/{jobs[0]}/?{query}").status_code == 200
    assert browse(paged, "/job_state/?batch=x").status_code == 404
    query = f"batch={batch}&status=error&limit=1&_LOCALE_=en"
    for user in "alice", OPERATOR:
        response = browse(paged, f"/job_state/?{query}", user)
        url = f"http://localhost/job_state/{batch}/?status=error&limit=1&_LOCALE_=en"
        assert (response.status_code, response.location) == (302, url)


def test_first_page_begins_with_what_matters(paged, store):
    """Failed and running members come first, found at once in a batch of any size."""
    put_batch(store, *["working"] * 3)
    small, _ = put_batch(store, "queued", "error", "working")
    each = [*["queued"] * 45, *["error", "working"] * 25, *["queued"] * 20]
    each[46] = "cancelling"
    batch, jobs = put_batch(store, *each)
    # Jobs beside batches do not count.
    put(store, *["alice"] * 200)
    failed, running = jobs[45:85:2], jobs[46:66:2]
    trips = []
    for each_batch in small, small, batch:
        # The first visit also reads the clock.
        with counting_trips() as found:
            page = Visit(paged, f"/job_state/{each_batch}")
        trips.append(len(found))
    assert page.uuids == [*failed, *running, *jobs[:45]]
    assert trips[1] == trips[2]
    second = Visit(paged, page.link("Next"))
    last = Visit(paged, second.link("Next"))
    assert (second.uuids, last.uuids) == (jobs[50:100], jobs[100:])
    assert second.texts(".jobstate-more a") == ["First", "Next"]
    assert last.texts(".jobstate-more a") == ["First"]
    assert Visit(paged, last.link("First")).uuids == page.uuids
    running = Visit(paged, f"/job_state/{batch}/?status=working&limit=25").uuids
    assert running == jobs[48:95:2]


def test_members_that_are_missing(store, visit):
    """When records of members are gone, the counts stay, and the page says why."""
    page = visit(f"/job_state/{put_batch(store)[0]}")
    assert page.texts(".jobstate-none") == ["No jobs."]
    assert page.texts("#jobstate-job p") == ["Done · 100% · 0 of 0 jobs"]
    batch, jobs = put_batch(store, "success", "queued")
    assert store.delete(jobs[0])
    page = visit(f"/job_state/{batch}")
    assert page.uuids == jobs[1:]
    assert page.texts(".jobstate-tabs a")[0] == "All 2"
    (said,) = visit(f"/job_state/{batch}/?status=success").texts(".jobstate-none")
    assert said.startswith("These jobs have expired")


def test_members_of_others_are_only_counted(paged, store):
    """Members that the viewer may not see have no row, and are only counted."""
    theirs = {"status": "error", "owner": "bob", "params": {"miles": 424242}}
    batch, jobs = put_batch(store, "success", theirs)
    path = f"/job_state/{batch}"
    for query, uuids in ("", jobs[:1]), ("?status=error", []):
        page = Visit(paged, f"{path}/{query}", "alice")
        assert page.uuids == uuids
        assert "Failed 1" in page.texts(".jobstate-tabs a")
        assert page.acts == []
        for secret in jobs[1], "bob", "424242":
            assert secret not in page.response.text
    assert Visit(paged, path).uuids == jobs[::-1]


def test_failed_members_may_run_again(store, visit):
    """A button runs failed members again, by the bulk request that is permitted."""
    batch, _ = put_batch(store, *EACH)
    page = visit(f"/job_state/{batch}")
    assert page.acts == ["rerun", "cancel"]
    assert page.texts("[data-act=rerun]") == ["Run 2 failed jobs again"]
    question = "Cancel all unfinished jobs of this batch?"
    assert page.one("[data-act=cancel]")["data-question"] == question
    rerun = page.data["bulk"]["rerun"]
    assert urlsplit(rerun["url"]).path == "/job_state/rerun"
    assert query_of(rerun["url"]) == {"batch": batch, "all": "1"}
    assert rerun["counts"] == f"http://localhost/job_state/{batch}/"
    assert rerun["statuses"] == ["error"]
    done = visit(f"/job_state/{put_batch(store, 'error')[0]}")
    assert done.texts("[data-act]") == ["Run 1 failed job again", "Delete"]
    question = "Delete this batch? Its jobs stay. This cannot be undone."
    assert done.one("[data-act=delete]")["data-question"] == question
    reason = "Some of its jobs failed."
    assert done.texts(".jobstate-step-error .jobstate-detail") == [reason]
    # A batch makes no attempts.
    assert done.texts(".jobstate-timeline b") == ["sent", "started", "Failed"]
    listed = visit("/job_state").texts(f"tr[data-uuid='{batch}'] .jobstate-number")
    assert listed == [""]


def test_batch_that_does_not_run_again(store, visit):
    """A batch without failed jobs, a cancelled one and one in a list offer no rerun."""
    page = visit(f"/job_state/{put_batch(store, 'success', 'queued')[0]}")
    assert page.acts == ["cancel"]
    batch, jobs = put_batch(store, "error", "queued")
    assert load_job(store, batch).cancel()
    page = visit(f"/job_state/{batch}")
    assert page.acts == ["delete"]
    assert page.texts("tr job-state")[1].startswith("Cancelled")
    store.client.flushdb()
    batch, jobs = put_batch(store, "error")
    store.delete(jobs[0])
    page = visit("/job_state/?all=1&status=error")
    assert page.uuids == [batch]
    assert page.one("tr[data-uuid]")["data-permitted"] == "delete"


def test_button_is_for_those_who_may(store, visit):
    """Only viewers whose request would run one of the jobs again see the button."""
    cases: list[tuple[str, str, type[RunMarathon], bool]] = [
        # May run each of them, but a request of theirs acts on their own jobs alone.
        (KEEPER, "alice", RunMarathon, False),
        (KEEPER, KEEPER, RunMarathon, True),
        ("alice", "alice", RunMarathon, False),
        ("alice", "alice", Letter, True),
    ]
    for user, owner, member, may in cases:
        batch, _ = put_batch(store, "success", "error", owner=owner, member=member)
        page = visit(f"/job_state/{batch}", user)
        assert ("rerun" in page.acts) is may, (user, owner, member)
        assert query_of(page.data["bulk"]["rerun"]["url"]) == {"batch": batch}


def test_member_leads_to_its_batch(store, visit):
    """A member's page names its batch, unless that is gone or may not be seen."""

    class Sealed(Batch):
        def __acl__(self) -> Any:
            return [(Deny, "alice", "view_job"), *super().__acl__()]

    batch, jobs = put_batch(store, "success")
    sealed, sealed_jobs = put_batch(store, "success", cls=Sealed)
    page = visit(f"/job_state/{jobs[0]}", "alice")
    hidden = visit(f"/job_state/{sealed_jobs[0]}", "alice")
    assert page.texts(".jobstate-batch") == ["Part of: Import of the files"]
    url = f"http://localhost/job_state/{batch}/"
    assert page.link("Import of the files") == url
    assert not page.has(".jobstate-members")
    assert not hidden.has(".jobstate-batch")
    assert sealed not in hidden.response.text
    store.delete(batch)
    assert not visit(f"/job_state/{jobs[0]}").has(".jobstate-batch")
