"""The page of a batch, which lists its jobs, and that of a job, which leads to it."""

from __future__ import annotations

import contextlib
import sys
from typing import Any
from urllib.parse import urlsplit

import pytest
from pyramid.authorization import Allow, Deny
from pyramid.config import Configurator
from webtest import TestApp

from pyramid_jobstate import Batch, JobStore, StoreUnavailable
from pyramid_jobstate.testing import away, pass_time, put_job
from tests.jobs import RunMarathon
from tests.support import UUID, key_of, load_job, wait_for
from tests.web.operating import (
    ACTS,
    KEEPER,
    OPERATOR,
    Letter,
    LockedDiary,
    Marathons,
    act,
)
from tests.web.paging import (
    Errands,
    Visit,
    Visiting,
    browse,
    paged_app,
    put_batch,
    query_of,
    shape_of,
)
from tests.webapp import get, make_request

EACH = ("success", "error", "working", "queued", "retrying", "cancelled", "error")


def test_page_lists_the_members(paged: TestApp, store: JobStore) -> None:
    """The page has the element of its batch, and below it a row for each member, in the
    order in which they were sent, as the JSON lists them.
    """
    batch, jobs = put_batch(store, *EACH)
    put_job(store, RunMarathon, owner="alice")
    for user in "alice", OPERATOR:
        page = Visit(paged, f"/job_state/{batch}", user)

        url = f"http://localhost/job_state/{batch}/"
        assert page.texts("h1, title") == ["Import of the files"] * 2
        assert page.one("#jobstate-job")["src"] == url
        assert page.texts("#jobstate-job p") == [
            "Running · 57 % · 4 of 7 jobs, 2 failed, 1 cancelled"
        ]
        assert page.uuids == jobs
        members = urlsplit(
            get(paged, f"/job_state/{batch}", user).json["job"]["members"]
        )
        listed = get(paged, f"{members.path}?{members.query}", user).json["items"]
        urls = [item["job"]["url"] for item in listed]
        assert [str(tag["src"]) for tag in page.all("tr job-state")] == urls
        assert [str(tag["href"]) for tag in page.all("tr a")] == urls
        assert all(tag.has_attr("compact") for tag in page.all("tr job-state"))
        assert not page.has("tr input")
        assert page.texts("h2") == ["Jobs", "Timeline"]
        assert page.has(".jobstate-whose") is (user == OPERATOR)


def test_tabs_count_the_members(store: JobStore, visit: Visiting) -> None:
    """A tab for each status says how many members have it, and leads to them. What the
    batch does not count has no number.
    """
    batch, jobs = put_batch(store, *EACH)
    path = f"/job_state/{batch}/"

    page = visit(f"{path}?status=error&limit=5&_LOCALE_=en&other=1")

    assert page.texts(".jobstate-tabs a") == [
        "All 7",
        "Waiting 1",
        "Running 1",
        "Trying again 1",
        "No sign of life",
        "Cancelling…",
        "Done 1",
        "Failed 2",
        "Cancelled 1",
    ]
    assert page.texts(".jobstate-tabs [aria-current]") == ["Failed 2"]
    assert page.uuids == [jobs[1], jobs[6]]
    kept = {"limit": "5", "_LOCALE_": "en"}
    assert query_of(page.link("All 7")) == kept
    assert query_of(page.link("Done")) == {**kept, "status": "success"}
    assert urlsplit(page.link("Done")).path == path
    assert visit(page.link("Done")).uuids == jobs[:1]
    assert visit(page.link("All 7")).uuids == jobs[:5]
    counted = "all", "queued", "working", "retrying", "success", "error", "cancelled"
    found = [tag["data-count"] for tag in page.all("[data-count]")]
    assert found == [*counted]


def test_addresses(paged: TestApp, store: JobStore) -> None:
    """A list that does not exist is a bad address. Where scripts get the members of a
    batch as JSON, browsers get its page, and the address is as strict.
    """
    batch, jobs = put_batch(store, "error", "queued")
    other = put_job(store, RunMarathon).uuid
    for query in "status=done", "cursor=x", "limit=0", "limit=x":
        assert browse(paged, f"/job_state/{batch}/?{query}").status_code == 400
        # The page of any other job has no list.
        assert browse(paged, f"/job_state/{other}/?{query}").status_code == 200
    for query, status in (
        ("batch=x", 404),
        (f"batch={UUID}&kind=x", 400),
        (f"batch={UUID}&all=1", 400),
    ):
        assert browse(paged, f"/job_state/?{query}").status_code == status
        assert get(paged, f"/job_state/?{query}", OPERATOR).status_code == status
    query = f"batch={batch}&status=error&limit=1&_LOCALE_=en"
    for user in "alice", OPERATOR:
        response = browse(paged, f"/job_state/?{query}", user)
        url = f"http://localhost/job_state/{batch}/?status=error&limit=1&_LOCALE_=en"
        assert (response.status_code, response.location) == (302, url)
        assert Visit(paged, f"/job_state?{query}", user).uuids == jobs[:1]


def test_pages_follow_each_other(store: JobStore, visit: Visiting) -> None:
    """Fifty members are on a page. Links lead to the next ones, and to the first."""
    batch, jobs = put_batch(store, *["queued"] * 101)

    first = visit(f"/job_state/{batch}")
    second = visit(first.link("Next"))
    last = visit(second.link("Next"))

    pages = [first.uuids, second.uuids, last.uuids]
    assert pages == [jobs[:50], jobs[50:100], jobs[100:]]
    assert [page.texts(".jobstate-more a") for page in (first, second, last)] == [
        ["Next"],
        ["First", "Next"],
        ["First"],
    ]
    assert visit(last.link("First")).uuids == first.uuids


def test_members_that_are_missing(store: JobStore, visit: Visiting) -> None:
    """An empty batch says so. When the records of members are gone, the counts stay,
    and the page says why there are fewer rows.
    """
    page = visit(f"/job_state/{put_batch(store)[0]}")
    assert page.texts(".jobstate-none") == ["No jobs."]
    assert page.texts("#jobstate-job p") == ["Done · 100 % · 0 of 0 jobs"]
    assert not page.has("table, .jobstate-more")

    batch, jobs = put_batch(store, "success", "queued")
    assert store.delete(jobs[0])
    page = visit(f"/job_state/{batch}")
    assert page.uuids == jobs[1:]
    assert page.texts(".jobstate-tabs a")[0] == "All 2"
    done = visit(f"/job_state/{batch}/?status=success")
    assert done.texts(".jobstate-none") == [
        "These jobs have expired or changed, or you may not see them."
    ]
    failed = visit(f"/job_state/{batch}/?status=error")
    assert failed.texts(".jobstate-none") == ["No jobs."]


def test_members_of_others_are_only_counted(paged: TestApp, store: JobStore) -> None:
    """Each row needs the right to see its job, and the page that to see the batch. Of
    other jobs the page has nothing but the number.
    """
    theirs = {"status": "error", "owner": "bob", "params": {"miles": 424242}}
    batch, jobs = put_batch(store, "success", theirs)
    path = f"/job_state/{batch}"

    page = Visit(paged, path, "alice")

    assert page.uuids == jobs[:1]
    assert page.texts(".jobstate-tabs a")[0] == "All 2"
    assert "Failed 1" in page.texts(".jobstate-tabs a")
    failed = Visit(paged, f"{path}/?status=error", "alice")
    assert failed.uuids == []
    for secret in jobs[1], "bob", "424242":
        assert secret not in page.response.text + failed.response.text
    assert page.acts == []
    assert Visit(paged, path).uuids == jobs
    diaries, _ = put_batch(store, "success", member=LockedDiary)
    assert Visit(paged, f"/job_state/{diaries}", "alice").uuids == []
    assert browse(paged, path, "bob").status_code == 403
    assert browse(paged, f"/job_state/{jobs[1]}", "bob").status_code == 200


# Acts.


def test_failed_members_may_run_again(store: JobStore, visit: Visiting) -> None:
    """A button offers to run the failed jobs of a batch again, though not the batch.
    The script gets what it needs for the bulk request: that of all jobs for viewers who
    may list them.
    """
    batch, _ = put_batch(store, *EACH)

    page = visit(f"/job_state/{batch}")

    assert page.acts == ["rerun", "cancel"]
    button = page.one("[data-act=rerun]")
    assert button.get_text() == "Run 2 failed jobs again"
    assert button["data-verb"] == "Run again"
    assert page.one("[data-act=cancel]")["data-question"] == (
        "Cancel all unfinished jobs of this batch?"
    )
    rerun = page.data["bulk"]["rerun"]
    assert urlsplit(rerun["url"]).path == "/job_state/rerun"
    assert query_of(rerun["url"]) == {"batch": batch, "all": "1"}
    assert rerun["counts"] == f"http://localhost/job_state/{batch}/"
    assert rerun["statuses"] == ["error"]
    assert rerun["question"] == "Run all failed jobs that match again?"
    assert page.data["seen"] == "working 0 failed"
    done = visit(f"/job_state/{put_batch(store, 'error')[0]}")
    assert done.texts("[data-act]") == ["Run 1 failed job again", "Delete"]
    assert done.one("[data-act=delete]")["data-question"] == (
        "Delete this batch? Its jobs stay. This cannot be undone."
    )
    assert not done.has("#jobstate-reason, [disabled]")
    assert done.texts(".jobstate-exception") == ["Some of its jobs failed."]
    tolerant, _ = put_batch(store, "success", "error", allow_failures=True)
    assert visit(f"/job_state/{tolerant}").acts == ["rerun", "delete"]


def test_batch_that_does_not_run_again(store: JobStore, visit: Visiting) -> None:
    """A page offers nothing that would be refused: neither without failed jobs, nor for
    a cancelled batch, nor for a batch in a list.
    """
    for members in ["success", "queued"], ["cancelled"], []:
        page = visit(f"/job_state/{put_batch(store, *members)[0]}")
        assert "rerun" not in page.acts
        assert not page.data["seen"].endswith("failed")

    batch, jobs = put_batch(store, "error", "queued")
    assert load_job(store, batch).cancel()
    page = visit(f"/job_state/{batch}")
    assert page.acts == ["delete"]
    assert page.uuids == jobs
    assert page.texts("tr job-state")[1].startswith("Cancelled")

    store.client.flushdb()
    batch, jobs = put_batch(store, "error")
    store.delete(jobs[0])
    page = visit("/job_state/?all=1&status=error")
    assert page.uuids == [batch]
    assert page.one("tr[data-uuid]")["data-permitted"] == "delete"


def test_button_is_for_those_who_may(store: JobStore, visit: Visiting) -> None:
    """Only viewers whose request would run one of the jobs again see the button."""
    cases: list[tuple[str, str, type[RunMarathon], bool]] = [
        (OPERATOR, "alice", RunMarathon, True),
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
        query = {"batch": batch, **({"all": "1"} if user == OPERATOR else {})}
        assert query_of(page.data["bulk"]["rerun"]["url"]) == query


@pytest.mark.parametrize("user", ["alice", OPERATOR])
def test_batch_of_a_request(
    paged: TestApp,
    made_tm_config: Configurator,
    marathons: Marathons,
    monkeypatch: pytest.MonkeyPatch,
    user: str,
) -> None:
    """The page of a batch that a request has sent and workers have run gives the URL at
    which its failed jobs run again.
    """
    may = ("view_job", *ACTS)
    monkeypatch.setattr(RunMarathon, "__acl__", lambda job: [(Allow, job.owner, may)])
    request = make_request(made_tm_config, "alice")
    with request.tm, request.job_states.batch(Errands, title="Two laps") as batch:
        jobs = [batch.send(marathons.run_marathon, miles) for miles in (1, 2)]
    for job in jobs:
        marathons.wait_for(job.uuid, "error")

    page = Visit(paged, f"/job_state/{batch.uuid}", user)

    assert page.texts("h1") == ["Two laps"]
    assert page.uuids == [job.uuid for job in jobs]
    assert page.texts("[data-act=rerun]") == ["Run 2 failed jobs again"]
    url = urlsplit(page.data["bulk"]["rerun"]["url"])
    answer = act(paged, f"{url.path}?{url.query}", user)
    assert answer.json["done"] == 2
    marathons.is_mended = True
    for job in jobs:
        marathons.wait_for(job.uuid, "success")
    ended = Visit(paged, f"/job_state/{batch.uuid}", user)
    assert ended.texts("#jobstate-job p") == ["Done · 100 % · 2 of 2 jobs"]
    assert "rerun" not in ended.acts


# Classes, and batches, that are in trouble.


def test_class_that_fails_for_members(
    redis_url: str, store: JobStore, caplog: pytest.LogCaptureFixture
) -> None:
    """Members whose class raises are not listed, and the page is shown all the same. If
    the class needs the store, and that is away, the page says so.
    """

    class Limping(RunMarathon):
        def __acl__(self) -> Any:
            raise fault

    fault: Exception = ZeroDivisionError("limp")
    app = paged_app(redis_url)
    batch, _ = put_batch(store, "error", member=Limping)

    page = Visit(app, f"/job_state/{batch}")

    assert (page.uuids, page.acts) == ([], ["delete"])
    assert "Limping" in caplog.text
    fault = StoreUnavailable("away")
    assert browse(app, f"/job_state/{batch}").status_code == 503


def test_class_may_leave_out_the_counts(store: JobStore, visit: Visiting) -> None:
    """A batch whose class keeps its counts to itself lists its members without."""

    class Discreet(Batch):
        def __json__(self, request: Any) -> dict[str, Any]:
            state = super().__json__(request)
            del state["job"]["counts"]
            return state

    batch, jobs = put_batch(store, "error", cls=Discreet)

    page = visit(f"/job_state/{batch}")

    assert page.uuids == jobs
    assert page.texts(".jobstate-tabs a")[:2] == ["All", "Waiting"]
    assert "rerun" not in page.acts


def test_page_of_a_batch_whose_sender_died(
    made_tm_config: Configurator,
    store: JobStore,
    visit: Visiting,
    marathons: Marathons,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It says what to do, once the batch has been silent for a while."""
    note = ".jobstate-members .jobstate-note"
    enqueue = marathons.broker.enqueue
    request = make_request(made_tm_config, "alice")

    def enqueue_one(message: Any, **options: Any) -> Any:
        if sent:
            stack.enter_context(away(request.job_states.store))
            sys.exit()
        sent.append(message)
        return enqueue(message, **options)

    def send() -> None:
        with request.job_states.batch(Errands) as batch:
            batches.append(batch)
            for miles in 1, 2:
                batch.send(marathons.run_marathon, miles)

    sent: list[Any] = []
    batches: list[Batch] = []
    with contextlib.ExitStack() as stack, monkeypatch.context() as patched:
        patched.setattr(marathons.broker, "enqueue", enqueue_one)
        with pytest.raises(SystemExit), request.tm:
            send()
    (batch,) = batches
    path = f"/job_state/{batch.uuid}"
    assert not visit(path).has(note)
    pass_time(store, 20)
    wait_for(lambda: load_job(store, batch.uuid).status == "stalled")
    assert visit(path).texts(note) == [
        "Some of these jobs were never sent, since their sender died. Cancel the "
        "batch, and send again what is cancelled then."
    ]
    running, _ = put_batch(store, "working", "queued")
    pass_time(store, 20)
    page = visit(f"/job_state/{running}")
    assert page.texts("#jobstate-job p")[0].startswith("No sign of life")
    assert not page.has(note)


def test_timeline_of_a_batch(store: JobStore, visit: Visiting) -> None:
    """A batch starts and ends. It makes no attempts."""
    for members, steps in (
        (["working", "queued"], ["sent", "started", "Running"]),
        (["success"], ["sent", "started", "Done"]),
        (["queued"], ["sent", "Waiting"]),
    ):
        page = visit(f"/job_state/{put_batch(store, *members)[0]}")
        assert page.texts(".jobstate-timeline b") == steps


# The page of a member.


def test_member_leads_to_its_batch(paged: TestApp, store: JobStore) -> None:
    """The page of a member says of which batch it is a part."""
    batch, jobs = put_batch(store, "success")

    page = Visit(paged, f"/job_state/{jobs[0]}", "alice")

    assert page.texts(".jobstate-batch") == ["Part of: Import of the files"]
    url = f"http://localhost/job_state/{batch}/"
    assert page.link("Import of the files") == url
    assert not page.has(".jobstate-members")
    assert not Visit(paged, f"/job_state/{batch}", "alice").has(".jobstate-batch")


def test_batch_of_a_member_may_be_hidden(
    store: JobStore, visit: Visiting, caplog: pytest.LogCaptureFixture
) -> None:
    """A viewer who may not see the batch, or a batch that is gone, is none or whose
    class fails, leaves the page of the member without a link.
    """

    class Sealed(Errands):
        def __acl__(self) -> Any:
            return [(Deny, "alice", "view_job"), *super().__acl__()]

    class Torn(Errands):
        def __acl__(self) -> Any:
            raise ZeroDivisionError

    for cls in Sealed, Torn:
        batch, jobs = put_batch(store, "success", cls=cls)
        page = visit(f"/job_state/{jobs[0]}", "alice")
        assert not page.has(".jobstate-batch")
        assert batch not in page.response.text
    assert "Torn" in caplog.text
    batch, jobs = put_batch(store, "success")
    store.delete(batch)
    assert not visit(f"/job_state/{jobs[0]}").has(".jobstate-batch")
    job = put_job(store, RunMarathon).uuid
    assert not visit(f"/job_state/{job}").has(".jobstate-batch")
    for text in "*", "x", f"{UUID}?", "<b>":
        store.client.hset(key_of(store, job), "batch", text)
        assert not visit(f"/job_state/{job}").has(".jobstate-batch")


HOSTILE = (
    "\"'><script>alert(1)</script></title></a></job-state>{{ 7 * 7 }}${7*7}\u202eabc"
)


def test_hostile_titles_are_text(store: JobStore, visit: Visiting) -> None:
    """Nothing in the titles of a batch and of its members becomes an element."""

    class Scribble(RunMarathon):
        @property
        def title(self) -> str:
            return f"member {HOSTILE}"

    title = f"batch {HOSTILE}"
    batch, jobs = put_batch(store, "error", title=title, member=Scribble, owner=HOSTILE)
    plain, plain_jobs = put_batch(store, "error")

    page, usual = (visit(f"/job_state/{uuid}") for uuid in (batch, plain))
    assert shape_of(page) == shape_of(usual)
    assert page.one("h1").get_text() == title
    assert page.one("tr a").get_text() == f"member {HOSTILE}"
    member, other = (visit(f"/job_state/{j}") for j in (jobs[0], plain_jobs[0]))
    assert shape_of(member) == shape_of(other)
    assert member.one(".jobstate-batch a").get_text() == title
