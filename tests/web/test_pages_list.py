"""The page of a list: tabs, filters, the chart, rows, and acts on many jobs."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlencode

import pytest
from pyramid.authorization import Allow, Everyone
from webtest import TestApp

from pyramid_jobstate import JobError, JobState, JobStore, Progress, StoreUnavailable
from pyramid_jobstate.testing import put_job
from tests.jobs import RunMarathon
from tests.support import UUID
from tests.web.operating import (
    KEEPER,
    OPERATOR,
    LockedDiary,
    Marathons,
    act,
    put,
    statuses,
    uuids_of,
)
from tests.web.paging import Visit, Visiting, browse, paged_app, put_batch, query_of
from tests.webapp import Root, get

FINISHED = ["success", "error", "cancelled"]


class Steeplechase(JobState):
    """Another kind of job."""


def put_each(store: JobStore) -> dict[str, str]:
    """Put a job of each status, and return their uuids."""
    return {
        status: put_job(store, RunMarathon, status, owner="alice").uuid
        for status in ("queued", "working", "retrying", *FINISHED)
    }


def test_rows_are_the_jobs_of_the_json(paged: TestApp, store: JobStore) -> None:
    """A list has the jobs of its JSON in their order, and each row leads to its job."""
    put_each(store)
    put(store, "alice", cls=LockedDiary)
    put(store, "bob", cls=Steeplechase)
    queries: list[tuple[dict[str, Any], str]] = [
        ({}, "alice"),
        ({"status": "error"}, "alice"),
        ({"all": 1}, OPERATOR),
        ({"owner": "alice"}, OPERATOR),
        ({"all": 1, "kind": "Steeplechase"}, OPERATOR),
        ({"owner": "alice", "status": "working", "kind": "RunMarathon"}, OPERATOR),
        ({"all": 1, "limit": 2}, OPERATOR),
    ]
    for query, user in queries:
        path = f"/job_state/?{urlencode(query)}".rstrip("?")

        visit = Visit(paged, path, user)

        items = get(paged, path, user).json["items"]
        assert visit.uuids == uuids_of(items) != []
        for name in "href", "src":
            urls = [str(tag[name]) for tag in visit.all(f"tr [{name}]")]
            assert urls == [item["job"]["url"] for item in items]
        assert all(tag.has_attr("compact") for tag in visit.all("job-state"))


def test_base_url_is_not_that_of_a_page(redis_url: str, store: JobStore) -> None:
    """Pages lead to where their viewer is. Their scripts could not reach another host
    that jobstate.base_url names.
    """
    settings = {"jobstate.base_url": "https://example.com"}
    paged = paged_app(redis_url, settings=settings)
    (uuid,) = put(store, "alice")
    url = f"http://localhost/job_state/{uuid}/"

    listed, shown = Visit(paged, "/job_state/"), Visit(paged, f"/job_state/{uuid}/")

    (item,) = get(paged, "/job_state?all=1", OPERATOR).json["items"]
    assert item["job"]["url"] == f"https://example.com/job_state/{uuid}/"
    assert [tag["src"] for tag in listed.all("tr [src]")] == [url]
    assert (shown.one("job-state")["src"], shown.data["url"]) == (url, url)


# Addresses and filters.


def test_operators_see_all_jobs_at_first(store: JobStore, visit: Visiting) -> None:
    """Whoever may list all jobs is led to the list of all. Links keep the language."""
    put(store, "alice")

    page = visit("/job_state?status=working&_LOCALE_=de")

    assert query_of(page.path) == {"all": "1", "status": "working", "_LOCALE_": "de"}
    assert len(page.uuids) == 1
    locales = {query_of(str(tag["href"]))["_LOCALE_"] for tag in page.all("nav a")}
    assert locales == {query_of(page.data["first"])["_LOCALE_"]} == {"de"}


def test_form_leads_to_the_address_of_the_json(paged: TestApp) -> None:
    """Empty fields of the form are left out of the address, and the id of a job, known
    or not, leads to its page. Any other text in that field is repeated there.
    """
    for query, location in (
        ("kind=&owner=&id=&status=error", "?status=error&all=1"),
        ("kind=A&owner=bob&id=+&all=1", "?kind=A&owner=bob"),
        ("owner=bob&all=1", "?owner=bob"),
        (f"kind=&id=+{UUID.upper()}+", f"{UUID}/"),
    ):
        response = browse(paged, f"/job_state/?{query}")
        assert response.status_code == 302
        assert response.location == f"http://localhost/job_state/{location}"
    assert browse(paged, "/job_state/?status=error&all=1").status_code == 200
    assert browse(paged, f"/job_state/?id={UUID}", "alice").status_code == 302

    page = Visit(paged, "/job_state/?id=<x>")
    assert page.texts("#jobstate-wrong-id") == ["This is not a job ID: <x>"]
    assert page.one("input[name=id]")["value"] == "<x>"
    assert not Visit(paged, "/job_state").has("#jobstate-wrong-id")


def test_tabs_lead_to_the_jobs_of_a_status(
    redis_url: str, store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tab for each status counts its jobs, keeps the other filters and leads to the
    jobs. The numbers can be read.
    """
    jobs = put_each(store)
    put_job(store, Steeplechase, "error", owner="bob")
    app = paged_app(redis_url)

    page = Visit(app, "/job_state/?all=1&kind=RunMarathon&status=error&limit=9")

    assert page.texts(".jobstate-tabs a") == [
        "All 6",
        "Waiting 1",
        "Running 1",
        "Trying again 1",
        "No sign of life 0",
        "Cancelling… 0",
        "Done 1",
        "Failed 1",
        "Cancelled 1",
    ]
    assert page.texts(".jobstate-tabs [aria-current]") == ["Failed 1"]
    kept = {"all": "1", "kind": "RunMarathon", "limit": "9"}
    assert query_of(page.link("All")) == kept
    assert query_of(page.link("Done")) == {**kept, "status": "success"}
    assert Visit(app, page.link("Done")).uuids == [jobs["success"]]
    counts = store.counts()._replace(success=1_234_567)
    monkeypatch.setattr(JobStore, "counts", lambda *args: counts)
    assert "Done 1,234,567" in Visit(app, "/job_state").texts(".jobstate-tabs a")


def test_jobs_of_one_owner_are_not_counted(store: JobStore, visit: Visiting) -> None:
    """The store cannot count an owner's jobs, so the page tells no other numbers."""
    put_each(store)

    page = visit("/job_state?owner=alice")

    assert page.texts(".jobstate-tabs a")[:2] == ["All", "Waiting"]
    assert not page.has(".jobstate-chart")
    assert page.one("input[name=owner]")["value"] == "alice"
    assert query_of(page.link("Failed")) == {"owner": "alice", "status": "error"}


def test_form_keeps_what_is_filtered(redis_url: str, store: JobStore) -> None:
    """The form has all kinds, the one that is shown even if it has no jobs, and keeps
    the status and the language of the page.
    """
    put(store, None, cls=RunMarathon)
    put(store, None, cls=Steeplechase)
    app = paged_app(redis_url)

    page = Visit(app, "/job_state?status=error&limit=7&_LOCALE_=de&kind=My++kind")
    hidden = {tag["name"]: tag["value"] for tag in page.all("form input[type=hidden]")}
    assert hidden == {"status": "error", "limit": "7", "_LOCALE_": "de"}
    # The text of an option loses its blanks.
    assert page.one("option[selected]")["value"] == "My  kind"
    page = Visit(app, "/job_state?status=error")
    assert page.texts("option") == ["All kinds", "RunMarathon", "Steeplechase"]
    assert not page.has("option[selected]")
    assert page.one("input[name=status]")["value"] == "error"
    assert page.one("form[role=search]")["action"] == "http://localhost/job_state/"
    page = Visit(app, "/job_state?kind=Steeplechase")
    assert page.texts("option[selected]") == ["Steeplechase"]
    assert not page.has("input[name=status]")
    page = Visit(app, "/job_state?kind=Relay+<race>")
    assert page.texts("option[selected]") == ["Relay <race>"]
    assert len(page.all("option")) == 4


def test_pages_follow_each_other(store: JobStore, visit: Visiting) -> None:
    """Links lead to the older jobs, with the same filters, and back to the newest. A
    page has fifty jobs unless it is asked for fewer.
    """
    jobs = put(store, *["alice"] * 51, cls=RunMarathon)[::-1]
    assert visit("/job_state").uuids == jobs[:50]

    first = visit("/job_state?limit=20&kind=RunMarathon")
    second = visit(first.link("Older"))
    last = visit(second.link("Older"))

    assert [*first.uuids, *second.uuids, *last.uuids] == jobs
    assert query_of(second.path)["kind"] == "RunMarathon"
    assert first.texts(".jobstate-more a") == ["Older"]
    assert last.texts(".jobstate-more a") == ["Newest"]
    assert visit(last.link("Newest")).uuids == first.uuids
    # The chart is on the first page, and only that looks for new jobs.
    assert [p.has(".jobstate-chart") for p in (first, second)] == [True, False]
    query = {"all": "1", "limit": "20", "kind": "RunMarathon"}
    assert query_of(first.data["first"]) == query
    assert second.data["first"] is None
    assert [p.data["more"] for p in (first, second, last)] == [True, True, False]


def test_list_without_jobs(visit: Visiting) -> None:
    """A page without jobs says so."""
    for user in OPERATOR, "alice", None:
        page = visit("/job_state", user)

        assert page.texts(".jobstate-none") == ["No jobs."]
        assert not page.has("table, [data-jobstate=acts], .jobstate-more")


def test_page_that_ends_before_it_finds_a_job(
    store: JobStore, visit: Visiting, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page that ends before it finds a job says so, and leads on: to older jobs, or
    to later jobs of a batch.
    """
    old, *_, last = put(store, *["alice"] * 3, cls=RunMarathon)
    batch, members = put_batch(store, *["queued"] * 3)
    listed = store.list(limit=2)
    of_batch = store.members(batch, limit=2)
    for name, found in ("list", listed), ("members", of_batch):
        # A thousand jobs before it do not match.
        nothing = found._replace(items=[])
        monkeypatch.setattr(JobStore, name, lambda *args, nothing=nothing, **o: nothing)

    page = visit("/job_state?kind=RunMarathon")
    in_batch = visit(f"/job_state/{batch}/?status=queued")

    monkeypatch.undo()
    text = "No matching jobs so far. {} ones may match."
    assert page.texts(".jobstate-none") == [text.format("Older")]
    assert visit(page.link("Older")).uuids[-1] == old != last
    assert in_batch.texts(".jobstate-none") == [text.format("Later")]
    assert visit(in_batch.link("Next")).uuids == members[2:]


# Rows.


def test_row_tells_a_job_without_javascript(store: JobStore, visit: Visiting) -> None:
    """A row has the title, status, progress, message, times, attempts and owner of its
    job as text.
    """

    class Dated(RunMarathon):
        def __json__(self, request: Any) -> dict[str, Any]:
            state = super().__json__(request)
            state["job"]["queued_at"] = "2027-01-15T08:00:00.123Z"
            return state

    put_job(
        store,
        Dated,
        owner="alice",
        message="Up the hill",
        progress=Progress(1200, 2600, "miles"),
        attempt=2,
    )

    page = visit("/job_state")

    assert page.texts("tbody :is(th, td)") == [
        "",
        "Dated",
        "Running · 46 % · 1,200 of 2,600 miles · \u2068Up the hill\u2069",
        "2027-01-15 08:00 UTC",
        "",
        "2",
        "alice",
    ]
    assert page.one("time")["datetime"] == "2027-01-15T08:00:00.123Z"
    assert page.texts("noscript") == ["Live updates and actions need JavaScript."]
    assert page.one("[data-jobstate=acts]").has_attr("hidden")


PROGRESS = [
    ("queued", None, "Waiting"),
    ("working", Progress(2.5), "Running · 2.5"),
    ("working", Progress(3, unit="eggs"), "Running · 3 eggs"),
    ("working", Progress(999, 1000), "Running · 99 % · 999 of 1,000"),
    ("working", Progress(0.0042), "Running · 0.0042"),
    ("working", Progress(0.96, 1), "Running · 96 % · 0.96 of 1"),
    ("working", Progress(12.34, 100), "Running · 12 % · 12.3 of 100"),
    ("working", Progress(0.1 + 0.7, 0.8), "Running · 100 % · 0.8 of 0.8"),
    ("working", Progress(999.999999983, 1000), "Running · 99 % · 1,000 of 1,000"),
    ("working", Progress(0, unit="eggs"), "Running · 0 eggs"),
    ("error", Progress(1, 1), "Failed · 100 % · 1 of 1 · \u2068The job failed.\u2069"),
    ("cancelled", None, "Cancelled · \u2068The job was cancelled.\u2069"),
]


def test_progress_in_words(store: JobStore, visit: Visiting) -> None:
    """What is unknown of the progress is left out; 100 % means done."""
    texts = {}
    for status, progress, text in PROGRESS:
        error = JobError("ValueError", "hush") if status == "error" else None
        job = put_job(store, RunMarathon, status, progress=progress, error=error)
        texts[job.uuid] = text

    page = visit("/job_state")

    assert dict(zip(page.uuids, page.texts("job-state"), strict=True)) == texts


def test_phase_in_words(store: JobStore, visit: Visiting) -> None:
    """The name of a phase stands before what its loop counts."""

    class Phased(JobState):
        def __json__(self, request: Any) -> dict[str, Any]:
            state = super().__json__(request)
            state["job"].update(told)
            return state

    put_job(store, Phased)
    name = "\u2068<B>\u2069"
    rows = {"done": 1, "total": 2, "unit": "rows", "fraction": 0.5}
    nothing = {"done": 0, "total": None, "unit": None, "fraction": 0.4}
    told: dict[str, Any] = {}
    for phase, progress, text in (
        ({"name": "<B>"}, rows, f"Running · 50 % · {name}: 1 of 2 rows"),
        ({"name": "<B>"}, nothing, f"Running · 40 % · {name}"),
        (None, nothing, "Running · 40 %"),
    ):
        told |= {"phase": phase, "progress": progress}
        assert visit("/job_state").texts("job-state") == [text]


def test_owner_of_a_row(store: JobStore, visit: Visiting) -> None:
    """Whoever may list all jobs reads whose they are."""
    put(store, "alice", 7, None)

    page = visit("/job_state")

    assert page.texts("tbody td:last-child") == ["nobody", "7", "alice"]
    assert page.texts("thead th")[-1] == "Owner"
    assert "Owner" not in visit("/job_state", "alice").texts("thead th")


def test_class_that_fails_does_not_spoil_the_list(
    store: JobStore, visit: Visiting, caplog: pytest.LogCaptureFixture
) -> None:
    """A job whose class fails for its title, or to say whose it is, is left out. One
    whose class fails for what can be done with it is listed without that.
    """

    class Fallen(JobState):
        @property
        def title(self) -> str:
            raise ZeroDivisionError

    class Foundling(JobState):
        @property
        def owner(self) -> str:
            raise ZeroDivisionError

        def __acl__(self) -> Any:
            return [(Allow, Everyone, "view_job")]

    class Picky(JobState):
        def __acl__(self) -> Any:
            return [(Allow, OPERATOR, "view_job"), *self.broken()]

        def broken(self) -> Any:
            if asked:
                raise ZeroDivisionError
            asked.append(self)
            return []

    asked: list[Any] = []
    for cls in Fallen, Foundling, Picky:
        put_job(store, cls, "success", owner=OPERATOR)
    (job,) = put(store, None)

    page = visit("/job_state?all=1")

    assert page.uuids[0] == job and len(page.uuids) == 2
    assert page.all("tr[data-uuid]")[1]["data-acts"] == ""
    for name in "Fallen", "Foundling", "Picky":
        assert name in caplog.text


def test_store_that_goes_away_among_the_rows(redis_url: str, store: JobStore) -> None:
    """If a policy asks the store, and it is away, the page says so."""

    class Asking(JobState):
        def __acl__(self) -> Any:
            if asked:
                raise StoreUnavailable("away")
            asked.append(self)
            return [(Allow, "alice", "view_job")]

    asked: list[Any] = []
    put_job(store, Asking, "success", owner="alice")

    assert browse(paged_app(redis_url), "/job_state", "alice").status_code == 503


# The chart.


def test_chart_draws_what_ended(redis_url: str, store: JobStore) -> None:
    """The chart shows how many jobs ended when and how, and says it in words."""
    nothing = Visit(paged_app(redis_url), "/job_state")
    for status in ("success", "success", "success", "error", "cancelled", "working"):
        put_job(store, RunMarathon, status)
    put_job(store, Steeplechase, "error")
    app = paged_app(redis_url)

    page = Visit(app, "/job_state")

    text = "No job has ended in the last 24 hours."
    assert nothing.texts("figcaption span") == [text]
    assert not nothing.has("svg path")
    assert page.texts(".jobstate-chart figcaption > *") == [
        "Ended in the last 24 hours",
        "done: 3",
        "cancelled: 1",
        "failed: 2",
        "peak: 6 in 30 min",
    ]
    # The last bar, from the bottom: failed, cancelled, done.
    assert [path["d"] for path in page.all("svg path")] == [
        "M470 40h8v20h-8z",
        "M470 30h8v10h-8z",
        "M470 0h8v30h-8z",
    ]
    of_a_kind = Visit(app, "/job_state?kind=Steeplechase")
    said = of_a_kind.texts("figcaption span")[2:]
    assert said == ["failed: 1", "peak: 1 in 30 min"]
    assert len(of_a_kind.all("svg path")) == 1


def test_single_failure_is_visible(
    redis_url: str, store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One failure among many successes has a height, and no bar leaves the chart."""
    put_job(store, RunMarathon, "success")
    (bucket,) = store.throughput(buckets=1)
    buckets = [bucket._replace(success=5000, error=1, cancelled=1)] * 48
    monkeypatch.setattr(JobStore, "throughput", lambda *args: buckets)

    page = Visit(paged_app(redis_url), "/job_state")

    paths = [str(path["d"]).partition("z")[0] for path in page.all("svg path")]
    assert paths == ["M0 58h8v2h-8", "M0 56h8v2h-8", "M0 0h8v56h-8"]


# Acts.


def test_acts_are_those_that_a_job_allows(store: JobStore, visit: Visiting) -> None:
    """Each row says what can be done with its job as it is now. The page offers what it
    has jobs for.
    """
    jobs = put_each(store)

    page = visit("/job_state")

    acts = {
        str(row["data-uuid"]): row["data-acts"] for row in page.all("tr[data-uuid]")
    }
    assert {status: acts[job] for status, job in jobs.items()} == {
        "queued": "cancel",
        "working": "cancel",
        "retrying": "cancel",
        "success": "delete",
        "error": "rerun delete",
        "cancelled": "delete",
    }
    assert page.acts == ["cancel", "rerun", "delete"]
    assert len(page.all("tbody input[type=checkbox]")) == 6
    assert visit("/job_state?status=success").acts == ["delete"]
    assert visit("/job_state?status=working").acts == ["cancel"]
    assert visit("/job_state?status=stalled").acts == []
    # One that fits no job of the page may fit others.
    page = visit("/job_state?all=1&limit=1")
    assert [row["data-acts"] for row in page.all("tr[data-uuid]")] == ["cancel"]
    assert page.acts == ["cancel", "rerun", "delete"]
    assert page.data["bulk"]["delete"]["statuses"] == FINISHED


#: Addresses of lists, and what the script is told of each act on all that match: where
#: to post it, where to read how many they are, if that is known, and their statuses.
ON_ALL = {
    "all=1": """
      cancel cancel?all=1&everything=1 counts queued,working,retrying,stalled,cancelling
      rerun rerun?all=1&everything=1 counts error
      delete clear?all=1&everything=1 counts success,error,cancelled""",
    "all=1&kind=RunMarathon&status=error&limit=5": """
      rerun rerun?kind=RunMarathon&all=1 counts?kind=RunMarathon error
      delete clear?kind=RunMarathon&status=error&all=1 counts?kind=RunMarathon error""",
    "owner=alice&status=working": """
      cancel cancel?owner=alice&status=working - working""",
}

QUESTIONS = {
    "cancel": "Cancel all unfinished jobs that match?",
    "rerun": "Run all failed jobs that match again?",
    "delete": "Delete all ended jobs that match?",
}


def test_acts_on_all_that_match(store: JobStore, visit: Visiting) -> None:
    """The script is told where to post an act on all jobs that match, and what to ask
    before: where it reads how many they are, as far as that is known.
    """
    base = "http://localhost/job_state/"
    put_each(store)

    for query, acts in ON_ALL.items():
        told = [line.split() for line in acts.strip().splitlines()]
        assert visit(f"/job_state/?{query}").data["bulk"] == {
            name: {
                "url": base + url,
                "question": QUESTIONS[name],
                "counts": None if counts == "-" else base + counts,
                "statuses": wanted.split(","),
            }
            for name, url, counts, wanted in told
        }


def test_acts_on_all_do_what_they_ask(
    paged: TestApp, store: JobStore, marathons: Marathons
) -> None:
    """The URLs that the script is told do it: to the jobs that match, no others.
    Whoever may not list all jobs acts on their own: the URL names nobody.
    """
    failed = put(store, "alice", "bob", cls=RunMarathon, status="error")
    (running,) = put(store, "alice", cls=RunMarathon)
    (other,) = put(store, "alice", cls=Steeplechase, status="success")
    (mine,) = put(store, KEEPER, cls=Steeplechase, status="success")

    own = Visit(paged, "/job_state", KEEPER)
    assert own.uuids == [mine]
    (delete,) = own.data["bulk"].values()
    assert delete["url"] == "http://localhost/job_state/clear?everything=1"
    assert act(paged, delete["url"], KEEPER).json == {"done": 1, "cursor": None}

    def done(path: str, name: str) -> Any:
        return act(paged, Visit(paged, path).data["bulk"][name]["url"]).json["done"]

    assert done("/job_state?kind=RunMarathon", "cancel") == 1
    assert done("/job_state?owner=bob", "rerun") == 1
    assert done("/job_state?kind=Steeplechase", "delete") == 1
    assert statuses(store, *failed, other, running) == [
        "error",
        "queued",
        None,
        "cancelling",
    ]


def test_rights_that_are_known_of_jobs_alone(redis_url: str, store: JobStore) -> None:
    """A function of the application may know the rights on single jobs alone. If the
    store is away for it, so is the page.
    """

    def permits(request: Any, context: Any, permission: str) -> bool:
        if permission == "delete_job" and not isinstance(context, JobState):
            raise away[0] if away else AttributeError("owner")
        return True

    away: list[Exception] = []
    app = paged_app(redis_url, settings={"jobstate.permits": permits})
    put_each(store)

    assert Visit(app, "/job_state?all=1&limit=1").acts == ["cancel", "rerun"]
    away.append(StoreUnavailable("away"))
    assert browse(app, "/job_state/?all=1&limit=1").status_code == 503


def test_acts_need_their_permissions(redis_url: str, store: JobStore) -> None:
    """The script learns what can be done with a job when its status changes. Without
    permissions on its jobs, a list offers nothing.
    """

    class Readers(Root):
        __acl__ = (
            (Allow, Everyone, ("view_job", "list_jobs")),
            (Allow, "runner", "rerun_job"),
        )

    app = paged_app(redis_url, root_factory=Readers)
    put(store, "alice", cls=RunMarathon)

    page = Visit(app, "/job_state", "runner")
    (row,) = page.all("tr[data-uuid]")
    assert (row["data-acts"], row["data-permitted"]) == ("", "rerun")
    hidden = [tag["data-act"] for tag in page.all("button[data-act][hidden]")]
    assert (page.acts, hidden) == ([], ["rerun"])
    put_each(store)
    page = Visit(app, "/job_state", "reader")
    assert len(page.uuids) == 7
    assert page.acts == [] and page.data["bulk"] == {}
    assert {str(row["data-acts"]) for row in page.all("tr[data-uuid]")} == {""}
    assert not page.has("input[type=checkbox]")
