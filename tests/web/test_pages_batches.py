"""The page of a batch, which lists its jobs, and that of a job, which leads to it."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from pyramid.authorization import Allow, Deny
from pyramid.config import Configurator
from webtest import TestApp

from pyramid_jobstate import Batch, JobStore
from pyramid_jobstate.errors import StoreUnavailable
from pyramid_jobstate.testing import pass_time, put_job
from tests.batched import ImportFiles, end, put_batch
from tests.jobs import RunMarathon
from tests.listed import Diary
from tests.support import UUID, key_of
from tests.web.operating import ACTS, KEEPER, OPERATOR, Marathons, act
from tests.web.paging import Visit, Visiting, browse, paged_app
from tests.webapp import PLACES, get, make_request

EACH = ("success", "error", "working", "queued", "retrying", "cancelled", "error")


class Parcel(Batch):
    """A kind of batch whose owner may do everything with it."""

    def __acl__(self) -> list[tuple[str, Any, Any]]:
        return [(Allow, self.owner, ACTS), *super().__acl__()]


class Letter(RunMarathon):
    """A kind of member whose owner may do everything with it."""

    def __acl__(self) -> list[tuple[str, Any, Any]]:
        return [(Allow, self.owner, ACTS), *super().__acl__()]


def query_of(url: str) -> dict[str, str]:
    return {k: v[0] for k, v in parse_qs(urlsplit(url).query).items()}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("user", ["alice", OPERATOR])
def test_page_lists_the_members(
    paged: TestApp, store: JobStore, place: str, user: str
) -> None:
    """The page has the element of its batch, and below it a row for each member, in the
    order in which they were sent, as the JSON lists them.
    """
    batch = put_batch(store, *EACH)
    put_job(store, RunMarathon, owner="alice")

    page = Visit(paged, f"{place}/{batch.uuid}", user)

    url = f"http://localhost{place}/{batch.uuid}/"
    assert page.texts("h1, title") == ["Import of the files"] * 2
    assert page.one("#jobstate-job")["src"] == url
    assert page.texts("#jobstate-job p") == [
        "Running · 57 % · 4 of 7 jobs, 2 failed, 1 cancelled"
    ]
    assert page.uuids == batch.members
    members = get(paged, f"{place}/{batch.uuid}", user).json["job"]["members"]
    items = get(paged, urlsplit(members)._replace(netloc="", scheme="").geturl(), user)
    urls = [item["job"]["url"] for item in items.json["items"]]
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
    batch = put_batch(store, *EACH)
    path = f"/job_state/{batch.uuid}/"

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
    assert page.uuids == [batch.members[1], batch.members[6]]
    kept = {"limit": "5", "_LOCALE_": "en"}
    assert query_of(page.link("All 7")) == kept
    assert query_of(page.link("Done")) == {**kept, "status": "success"}
    assert urlsplit(page.link("Done")).path == path
    assert visit(page.link("Done")).uuids == batch.members[:1]
    assert visit(page.link("All 7")).uuids == batch.members[:5]
    assert [tag["data-count"] for tag in page.all("[data-count]")] == [
        "all",
        "queued",
        "working",
        "retrying",
        "success",
        "error",
        "cancelled",
    ]


@pytest.mark.parametrize("query", ["status=done", "cursor=x", "limit=0", "limit=x"])
def test_invalid_address(paged: TestApp, store: JobStore, query: str) -> None:
    """A list that does not exist is a bad address."""
    batch = put_batch(store, "queued")

    path = f"/job_state/{batch.uuid}/?{query}"

    assert browse(paged, path).status_code == 400
    # The page of any other job has no list.
    other = put_job(store, RunMarathon).uuid
    assert browse(paged, f"/job_state/{other}/?{query}").status_code == 200


def test_pages_follow_each_other(store: JobStore, visit: Visiting) -> None:
    """Fifty members are on a page. Links lead to the next ones, and to the first."""
    batch = put_batch(store, *["queued"] * 101)

    first = visit(f"/job_state/{batch.uuid}")
    second = visit(first.link("Next"))
    last = visit(second.link("Next"))

    pages = [first.uuids, second.uuids, last.uuids]
    assert pages == [batch.members[:50], batch.members[50:100], batch.members[100:]]
    assert [page.texts(".jobstate-more a") for page in (first, second, last)] == [
        ["Next"],
        ["First", "Next"],
        ["First"],
    ]
    assert visit(last.link("First")).uuids == first.uuids


def test_batch_without_members(store: JobStore, visit: Visiting) -> None:
    """An empty batch says so."""
    page = visit(f"/job_state/{put_batch(store).uuid}")

    assert page.texts(".jobstate-none") == ["No jobs."]
    assert page.texts("#jobstate-job p") == ["Done · 100 % · 0 of 0 jobs"]
    assert not page.has("table, .jobstate-more")


def test_page_of_a_list_may_be_empty(
    store: JobStore, visit: Visiting, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page that ends before it finds a member says so, and leads on."""
    monkeypatch.setattr("pyramid_jobstate.store.batches.MAX_EXAMINED", 2)
    batch = put_batch(store, "queued", "queued", "queued", "success")

    page = visit(f"/job_state/{batch.uuid}/?status=success")

    assert page.texts(".jobstate-none") == [
        "No matching jobs so far. Later ones may match."
    ]
    assert visit(page.link("Next")).uuids == batch.members[3:]


def test_members_that_expired_are_left_out(store: JobStore, visit: Visiting) -> None:
    """The counts stay when the records of members are gone; the page says so."""
    batch = put_batch(store, "success", "queued")
    store.client.delete(key_of(store, batch.members[0]))
    path = f"/job_state/{batch.uuid}"

    page = visit(path)
    assert page.uuids == batch.members[1:]
    assert page.texts(".jobstate-tabs a")[0] == "All 2"
    done = visit(f"{path}/?status=success")
    assert done.texts(".jobstate-none") == [
        "These jobs have expired or changed, or you may not see them."
    ]
    assert visit(f"{path}/?status=error").texts(".jobstate-none") == ["No jobs."]


def test_members_of_others_are_only_counted(store: JobStore, visit: Visiting) -> None:
    """Each row needs the right to see its job. Of the others the page has nothing but
    the number.
    """
    batch = put_batch(
        store, "success", "error", owners=["alice", "bob"], params={"miles": 424242}
    )
    mine, other = batch.members

    page = visit(f"/job_state/{batch.uuid}", "alice")

    assert page.uuids == [mine]
    assert page.texts(".jobstate-tabs a")[0] == "All 2"
    assert "Failed 1" in page.texts(".jobstate-tabs a")
    for secret in other, "bob", "424242":
        assert secret not in page.response.text
    assert page.acts == []
    failed = visit(f"/job_state/{batch.uuid}/?status=error", "alice")
    assert failed.uuids == []
    assert other not in failed.response.text
    assert visit(f"/job_state/{batch.uuid}").uuids == batch.members
    diaries = put_batch(store, "success", member=Diary)
    assert visit(f"/job_state/{diaries.uuid}", "alice").uuids == []


def test_page_needs_the_right_to_see_the_batch(paged: TestApp, store: JobStore) -> None:
    """Owning a member is not enough."""
    batch = put_batch(store, "success", owners=["bob"])

    assert browse(paged, f"/job_state/{batch.uuid}", "bob").status_code == 403
    assert browse(paged, f"/job_state/{batch.members[0]}", "bob").status_code == 200


# The list's own URL.


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("user", ["alice", OPERATOR])
def test_url_of_the_members_leads_to_the_page(
    paged: TestApp, store: JobStore, place: str, user: str
) -> None:
    """Where scripts get the members of a batch as JSON, browsers get its page."""
    batch = put_batch(store, "error", "queued")
    query = f"batch={batch.uuid}&status=error&limit=1&_LOCALE_=en"

    response = browse(paged, f"{place}/?{query}", user)

    url = f"http://localhost{place}/{batch.uuid}/?status=error&limit=1&_LOCALE_=en"
    assert (response.status_code, response.location) == (302, url)
    assert Visit(paged, f"{place}?{query}", user).uuids == batch.members[:1]


@pytest.mark.parametrize(
    ("query", "status"),
    [("batch=x", 404), (f"batch={UUID}&kind=x", 400), (f"batch={UUID}&all=1", 400)],
)
def test_url_of_no_members(paged: TestApp, query: str, status: int) -> None:
    """It is as strict as the JSON is."""
    assert browse(paged, f"/job_state/?{query}").status_code == status
    assert get(paged, f"/job_state/?{query}", OPERATOR).status_code == status


# Acts.


def test_failed_members_may_run_again(store: JobStore, visit: Visiting) -> None:
    """A button offers to run the failed jobs of a batch again, though not the batch.
    The script gets what it needs for the bulk request: that of all jobs for viewers who
    may list them.
    """
    batch = put_batch(store, *EACH)

    page = visit(f"/job_state/{batch.uuid}")

    assert page.acts == ["rerun", "cancel"]
    button = page.one("[data-act=rerun]")
    assert button.get_text() == "Run 2 failed jobs again"
    assert button["data-verb"] == "Run again"
    assert page.one("[data-act=cancel]")["data-question"] == (
        "Cancel all unfinished jobs of this batch?"
    )
    rerun = page.data["bulk"]["rerun"]
    assert urlsplit(rerun["url"]).path == "/job_state/rerun"
    assert query_of(rerun["url"]) == {"batch": batch.uuid, "all": "1"}
    assert rerun["counts"] == f"http://localhost/job_state/{batch.uuid}/"
    assert rerun["statuses"] == ["error"]
    assert rerun["question"] == "Run all failed jobs that match again?"
    assert page.data["seen"] == "working 0 failed"
    one = put_batch(store, "error")
    done = visit(f"/job_state/{one.uuid}")
    assert done.texts("[data-act]") == ["Run 1 failed job again", "Delete"]
    assert done.one("[data-act=delete]")["data-question"] == (
        "Delete this batch? Its jobs stay. This cannot be undone."
    )
    assert not done.has("#jobstate-reason, [disabled]")
    assert done.texts(".jobstate-exception") == ["Some of its jobs failed."]
    tolerant = put_batch(store, "success", "error", allow_failures=True)
    assert visit(f"/job_state/{tolerant.uuid}").acts == ["rerun", "delete"]


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
    with request.tm, request.job_states.batch(ImportFiles, title="Two laps") as batch:
        jobs = [batch.send(marathons.run_marathon, miles) for miles in (1, 2)]
    marathons.wait_for(jobs[0].uuid, "error")
    marathons.wait_for(jobs[1].uuid, "error")

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


@pytest.mark.parametrize(
    ("user", "owner", "member", "may"),
    [
        (OPERATOR, "alice", RunMarathon, True),
        # May run each of them, but a request of theirs acts on their own jobs alone.
        (KEEPER, "alice", RunMarathon, False),
        (KEEPER, KEEPER, RunMarathon, True),
        ("alice", "alice", RunMarathon, False),
        ("alice", "alice", Letter, True),
    ],
)
def test_button_is_for_those_who_may(
    store: JobStore,
    visit: Visiting,
    user: str,
    owner: str,
    member: type[RunMarathon],
    may: bool,
) -> None:
    """Only viewers whose request would run one of the jobs again see the button."""
    batch = put_batch(store, "success", "error", owner=owner, member=member)

    page = visit(f"/job_state/{batch.uuid}", user)

    assert ("rerun" in page.acts) is may
    query = {"batch": batch.uuid, **({"all": "1"} if user == OPERATOR else {})}
    assert query_of(page.data["bulk"]["rerun"]["url"]) == query


@pytest.mark.parametrize("statuses", [["success", "queued"], ["cancelled"], []])
def test_batch_without_failures_has_no_button(
    store: JobStore, visit: Visiting, statuses: list[str]
) -> None:
    """Without failed jobs there is nothing to run again."""
    page = visit(f"/job_state/{put_batch(store, *statuses).uuid}")

    assert "rerun" not in page.acts
    assert not page.data["seen"].endswith("failed")


def test_members_of_a_cancelled_batch_do_not_run_again(
    store: JobStore, visit: Visiting
) -> None:
    """The page of a cancelled batch offers nothing that would be refused, and that of a
    member says why.
    """
    batch = put_batch(store, "error", "queued")
    job_state = store.load(batch.uuid)
    assert job_state is not None and job_state.cancel()

    page = visit(f"/job_state/{batch.uuid}")

    assert page.acts == ["delete"]
    assert page.uuids == batch.members
    assert page.texts("tr job-state")[1].startswith("Cancelled")


def test_batch_does_not_run_again_in_lists(store: JobStore, visit: Visiting) -> None:
    """A list offers no act on a batch that would be refused."""
    batch = put_batch(store, "error")
    store.delete(batch.members[0])

    page = visit("/job_state/?all=1&status=error")

    assert page.uuids == [batch.uuid]
    assert page.one("tr[data-uuid]")["data-permitted"] == "delete"


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
    batch = put_batch(store, "error", member=Limping)

    page = Visit(app, f"/job_state/{batch.uuid}")

    assert (page.uuids, page.acts) == ([], ["delete"])
    assert "Limping" in caplog.text
    fault = StoreUnavailable("away")
    assert browse(app, f"/job_state/{batch.uuid}").status_code == 503


def test_class_may_leave_out_the_counts(store: JobStore, visit: Visiting) -> None:
    """A batch whose class keeps its counts to itself lists its members without."""

    class Discreet(Batch):
        def __json__(self, request: Any) -> dict[str, Any]:
            state = super().__json__(request)
            del state["job"]["counts"]
            return state

    batch = put_batch(store, "error", cls=Discreet)

    page = visit(f"/job_state/{batch.uuid}")

    assert page.uuids == batch.members
    assert page.texts(".jobstate-tabs a")[:2] == ["All", "Waiting"]
    assert "rerun" not in page.acts


def test_page_of_a_batch_whose_sender_died(store: JobStore, visit: Visiting) -> None:
    """It says what to do, once the batch has been silent for a while."""
    batch = put_batch(store, "success", "sending")
    path = f"/job_state/{batch.uuid}"
    assert not visit(path).has(".jobstate-members .jobstate-note")
    pass_time(store, 20)
    assert visit(path).texts(".jobstate-members .jobstate-note") == [
        "Some of these jobs were never sent, since their sender died. Cancel the "
        "batch, and send again what is cancelled then."
    ]
    running = put_batch(store, "working", "queued")
    store.client.hincrby(key_of(store, running.uuid), "updated", -20_000)
    page = visit(f"/job_state/{running.uuid}")
    assert page.texts("#jobstate-job p")[0].startswith("No sign of life")
    assert not page.has(".jobstate-members .jobstate-note")


def test_timeline_of_a_batch(store: JobStore, visit: Visiting) -> None:
    """A batch starts and ends. It makes no attempts."""
    batch = put_batch(store, "working", "queued")
    path = f"/job_state/{batch.uuid}"

    def steps() -> list[str]:
        return visit(path).texts(".jobstate-timeline b")

    assert steps() == ["sent", "started", "Running"]
    end(store, batch.uuid, batch.members[1])
    other = put_batch(store, "success")
    path = f"/job_state/{other.uuid}"
    assert steps() == ["sent", "started", "Done"]
    path = f"/job_state/{put_batch(store, 'queued').uuid}"
    assert steps() == ["sent", "Waiting"]


# The page of a member.


@pytest.mark.parametrize("place", PLACES)
def test_member_leads_to_its_batch(paged: TestApp, store: JobStore, place: str) -> None:
    """The page of a member says of which batch it is a part."""
    batch = put_batch(store, "success")

    page = Visit(paged, f"{place}/{batch.members[0]}", "alice")

    assert page.texts(".jobstate-batch") == ["Part of: Import of the files"]
    url = f"http://localhost{place}/{batch.uuid}/"
    assert page.link("Import of the files") == url
    assert not page.has(".jobstate-members")
    assert not Visit(paged, f"{place}/{batch.uuid}", "alice").has(".jobstate-batch")


def test_batch_of_a_member_may_be_hidden(
    store: JobStore, visit: Visiting, caplog: pytest.LogCaptureFixture
) -> None:
    """A viewer who may not see the batch, or a batch that is gone or whose class fails,
    leaves the page of the member without a link.
    """

    class Sealed(ImportFiles):
        def __acl__(self) -> Any:
            return [(Deny, "alice", "view_job"), *super().__acl__()]

    class Torn(ImportFiles):
        def __acl__(self) -> Any:
            raise ZeroDivisionError

    for cls in Sealed, Torn:
        batch = put_batch(store, "success", cls=cls)
        page = visit(f"/job_state/{batch.members[0]}", "alice")
        assert not page.has(".jobstate-batch")
        assert batch.uuid not in page.response.text
    assert "Torn" in caplog.text
    batch = put_batch(store, "success")
    store.client.delete(key_of(store, batch.uuid))
    assert not visit(f"/job_state/{batch.members[0]}").has(".jobstate-batch")
    assert not visit(f"/job_state/{put_job(store).uuid}").has(".jobstate-batch")


@pytest.mark.parametrize("text", ["*", "x", f"{UUID}?", "<b>"])
def test_batch_that_is_none(store: JobStore, visit: Visiting, text: str) -> None:
    """Whatever a record names as its batch, the page is shown."""
    job = put_job(store, RunMarathon).uuid
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

    batch = put_batch(
        store, "error", title=f"batch {HOSTILE}", member=Scribble, owner=HOSTILE
    )
    plain = put_batch(store, "error")

    def shape(page: Visit) -> set[tuple[str, ...]]:
        return {(tag.name, *sorted(tag.attrs)) for tag in page.html.find_all(True)}

    page, usual = (visit(f"/job_state/{uuid}") for uuid in (batch.uuid, plain.uuid))
    assert shape(page) == shape(usual)
    assert page.one("h1").get_text() == f"batch {HOSTILE}"
    assert page.one("tr a").get_text() == f"member {HOSTILE}"
    member, other = (visit(f"/job_state/{b.members[0]}") for b in (batch, plain))
    assert shape(member) == shape(other)
    assert member.one(".jobstate-batch a").get_text() == f"batch {HOSTILE}"
