"""The page of a list: tabs, filters, the chart, rows, and acts on many jobs."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import pytest
import redis
from webtest import TestApp

from pyramid_jobstate import JobError, JobState, JobStore, Progress
from pyramid_jobstate.errors import StoreUnavailable
from pyramid_jobstate.job import FINISHED, UNFINISHED
from pyramid_jobstate.testing import put_job
from tests.jobs import RunMarathon
from tests.listed import Diary, uuids_of
from tests.support import UUID, key_of
from tests.web.operating import KEEPER, OPERATOR, Marathons, act
from tests.web.paging import Visit, Visiting, browse, paged_app
from tests.webapp import PLACES, Root, get


class Steeplechase(JobState):
    """Another kind of job."""


def put_each(store: JobStore) -> dict[str, str]:
    """Put a job of each status, and return their uuids."""
    return {
        status: put_job(store, RunMarathon, status, owner="alice").uuid
        for status in ("queued", "working", "retrying", "success", "error", "cancelled")
    }


def query_of(url: str) -> dict[str, str]:
    return {k: v[0] for k, v in parse_qs(urlsplit(url).query).items()}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    ("query", "user"),
    [
        ({}, "alice"),
        ({"status": "error"}, "alice"),
        ({"all": 1}, OPERATOR),
        ({"owner": "alice"}, OPERATOR),
        ({"all": 1, "kind": "Steeplechase"}, OPERATOR),
        ({"owner": "alice", "status": "working", "kind": "RunMarathon"}, OPERATOR),
        ({"all": 1, "limit": 2}, OPERATOR),
    ],
)
def test_rows_are_the_jobs_of_the_json(
    paged: TestApp, store: JobStore, place: str, query: dict[str, Any], user: str
) -> None:
    """A list has the jobs of its JSON in their order, and each row leads to its job."""
    put_each(store)
    put_job(store, Diary, owner="alice")
    put_job(store, Steeplechase, owner="bob")
    path = f"{place}/?{urlencode(query)}".rstrip("?")

    visit = Visit(paged, path, user)

    items = get(paged, path, user).json["items"]
    assert visit.uuids == uuids_of(items) != []
    for name in "href", "src":
        urls = [str(tag[name]) for tag in visit.all(f"tr [{name}]")]
        assert urls == [item["job"]["url"] for item in items]
        assert urls[0].startswith(f"http://localhost{place}/")
    assert all(tag.has_attr("compact") for tag in visit.all("job-state"))


def test_base_url_is_not_that_of_a_page(redis_url: str, store: JobStore) -> None:
    """Pages lead to where their viewer is. Their scripts could not reach another host
    that jobstate.base_url names.
    """
    settings = {"jobstate.base_url": "https://example.com"}
    paged = paged_app(redis_url, settings=settings)
    uuid = put_job(store, RunMarathon, owner="alice").uuid
    url = f"http://localhost/job_state/{uuid}/"

    listed, shown = Visit(paged, "/job_state/"), Visit(paged, f"/job_state/{uuid}/")

    (item,) = get(paged, "/job_state?all=1", OPERATOR).json["items"]
    assert item["job"]["url"] == f"https://example.com/job_state/{uuid}/"
    assert [tag["src"] for tag in listed.all("tr [src]")] == [url]
    assert (shown.one("job-state")["src"], shown.data["url"]) == (url, url)


@pytest.mark.parametrize("place", PLACES)
def test_operators_see_all_jobs_at_first(
    paged: TestApp, store: JobStore, place: str
) -> None:
    """Whoever may list all jobs is led to the list of all."""
    put_job(store, RunMarathon, owner="alice")

    assert browse(paged, place).location == f"http://localhost{place}/?all=1"
    visit = Visit(paged, f"{place}?status=working&_LOCALE_=de")
    assert query_of(visit.path) == {"all": "1", "status": "working", "_LOCALE_": "de"}
    assert len(visit.uuids) == 1
    assert {query_of(str(tag["href"]))["_LOCALE_"] for tag in visit.all("nav a")} == {
        "de"
    }
    assert query_of(visit.data["first"])["_LOCALE_"] == "de"


@pytest.mark.parametrize(
    ("query", "location"),
    [
        ("kind=&owner=&id=&status=error", "status=error&all=1"),
        ("kind=A&owner=bob&id=+&all=1", "kind=A&owner=bob"),
        ("owner=bob&all=1", "owner=bob"),
    ],
)
def test_empty_fields_of_the_form_are_left_out(
    paged: TestApp, query: str, location: str
) -> None:
    """The URL of a page is that of its JSON, without the fields that are empty."""
    response = browse(paged, f"/job_state/?{query}")

    assert response.status_code == 302
    assert response.location == f"http://localhost/job_state/?{location}"
    assert browse(paged, f"/job_state/?{location}").status_code == 200


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("user", [OPERATOR, "alice"])
def test_id_leads_to_its_job(paged: TestApp, place: str, user: str) -> None:
    """The id of a job, known or not, leads to its page."""
    response = browse(paged, f"{place}/?kind=&id=+{UUID.upper()}+", user)

    assert response.status_code == 302
    assert response.location == f"http://localhost{place}/{UUID}/"


def test_what_is_not_an_id_is_said(visit: Visiting) -> None:
    """Any other text in the field of the id is repeated there."""
    page = visit("/job_state/?id=<x>")

    assert page.texts("#jobstate-wrong-id") == ["This is not a job ID: <x>"]
    assert page.one("input[name=id]")["value"] == "<x>"
    assert not visit("/job_state").has("#jobstate-wrong-id")


def test_tabs_lead_to_the_jobs_of_a_status(store: JobStore, visit: Visiting) -> None:
    """A tab for each status counts its jobs, keeps the other filters and leads to the
    jobs.
    """
    jobs = put_each(store)
    put_job(store, Steeplechase, "error", owner="bob")

    page = visit("/job_state/?all=1&kind=RunMarathon&status=error&limit=9")

    tabs = page.texts(".jobstate-tabs a")
    assert tabs == [
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
    done = visit(page.link("Done"))
    assert done.uuids == [jobs["success"]]


def test_numbers_are_grouped(
    store: JobStore, visit: Visiting, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Large numbers of jobs can be read."""
    counts = store.counts()._replace(success=1_234_567)
    monkeypatch.setattr(JobStore, "counts", lambda *args: counts)

    assert "Done 1,234,567" in visit("/job_state").texts(".jobstate-tabs a")


def test_jobs_of_one_owner_are_not_counted(store: JobStore, visit: Visiting) -> None:
    """The store cannot count an owner's jobs, so the page tells no other numbers."""
    put_each(store)

    page = visit("/job_state?owner=alice")

    assert page.texts(".jobstate-tabs a")[:2] == ["All", "Waiting"]
    assert not page.has(".jobstate-chart")
    assert page.one("input[name=owner]")["value"] == "alice"
    assert query_of(page.link("Failed")) == {"owner": "alice", "status": "error"}


def test_form_keeps_what_is_filtered(store: JobStore, visit: Visiting) -> None:
    """The form has all kinds, the one that is shown even if it has no jobs, and the
    status.
    """
    put_job(store, RunMarathon)
    put_job(store, Steeplechase)

    page = visit("/job_state?status=error")
    assert page.texts("option") == ["All kinds", "RunMarathon", "Steeplechase"]
    assert not page.has("option[selected]")
    assert page.one("input[name=status]")["value"] == "error"
    assert page.one("form[role=search]")["action"] == "http://localhost/job_state/"
    page = visit("/job_state?kind=Steeplechase")
    assert page.texts("option[selected]") == ["Steeplechase"]
    assert not page.has("input[name=status]")
    page = visit("/job_state?kind=Relay+<race>")
    assert page.texts("option[selected]") == ["Relay <race>"]
    assert len(page.all("option")) == 4


def test_pages_follow_each_other(store: JobStore, visit: Visiting) -> None:
    """Links lead to the older jobs, with the same filters, and back to the newest."""
    jobs = [put_job(store, RunMarathon).uuid for _ in range(5)][::-1]

    first = visit("/job_state?limit=2&kind=RunMarathon")
    second = visit(first.link("Older"))
    last = visit(second.link("Older"))

    assert [*first.uuids, *second.uuids, *last.uuids] == jobs
    assert query_of(second.path)["kind"] == "RunMarathon"
    assert first.texts(".jobstate-more a") == ["Older"]
    assert last.texts(".jobstate-more a") == ["Newest"]
    assert visit(last.link("Newest")).uuids == first.uuids
    # The chart is on the first page, and only that looks for new jobs.
    assert [p.has(".jobstate-chart") for p in (first, second)] == [True, False]
    assert query_of(first.data["first"]) == {
        "all": "1",
        "limit": "2",
        "kind": "RunMarathon",
    }
    assert second.data["first"] is None
    assert [p.data["more"] for p in (first, second, last)] == [True, True, False]


def test_fifty_jobs_are_on_a_page(store: JobStore, visit: Visiting) -> None:
    """A page has fifty jobs unless it is asked for fewer."""
    for _ in range(51):
        put_job(store, RunMarathon)

    assert len(visit("/job_state").uuids) == 50


@pytest.mark.parametrize("user", [OPERATOR, "alice", None])
def test_list_without_jobs(visit: Visiting, user: str | None) -> None:
    """A page without jobs says so."""
    page = visit("/job_state", user)

    assert page.texts(".jobstate-none") == ["No jobs."]
    assert not page.has("table, [data-jobstate=acts], .jobstate-more")


def test_page_without_jobs_may_have_older_ones(
    store: JobStore, visit: Visiting, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page that ends before it finds a job says so, and leads on."""
    monkeypatch.setattr("pyramid_jobstate.store.pages.MAX_EXAMINED", 3)
    old = put_job(store, RunMarathon, owner="alice").uuid
    for _ in range(5):
        put_job(store, Steeplechase, owner="alice")

    page = visit("/job_state?owner=alice&kind=RunMarathon")

    assert page.texts(".jobstate-none") == [
        "No matching jobs so far. Older ones may match."
    ]
    assert visit(page.link("Older")).uuids == [old]


def test_row_tells_a_job_without_javascript(
    store: JobStore, client: redis.Redis, visit: Visiting
) -> None:
    """A row has the title, status, progress, message, times, attempts and owner of its
    job as text.
    """
    job = put_job(
        store,
        RunMarathon,
        owner="alice",
        message="Up the hill",
        progress=Progress(1200, 2600, "miles"),
        attempt=2,
    ).uuid
    times: Any = {"queued": 1_800_000_000_123, "started": 1_800_000_001_000}
    client.hset(key_of(store, job), mapping=times)

    page = visit("/job_state")

    assert page.texts("tbody :is(th, td)") == [
        "",
        "Run marathon",
        "Running · 46 % · 1,200 of 2,600 miles · \u2068Up the hill\u2069",
        "2027-01-15 08:00 UTC",
        "",
        "2",
        "alice",
    ]
    assert page.one("time")["datetime"] == "2027-01-15T08:00:00.123Z"
    assert page.texts("noscript") == ["Live updates and actions need JavaScript."]
    assert page.one("[data-jobstate=acts]").has_attr("hidden")


@pytest.mark.parametrize(
    ("status", "progress", "text"),
    [
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
        (
            "error",
            Progress(1, 1),
            "Failed · 100 % · 1 of 1 · \u2068The job failed.\u2069",
        ),
        ("cancelled", None, "Cancelled · \u2068The job was cancelled.\u2069"),
    ],
    ids=str,
)
def test_progress_in_words(
    store: JobStore,
    visit: Visiting,
    status: str,
    progress: Progress | None,
    text: str,
) -> None:
    """What is unknown of the progress is left out; 100 % means done."""
    error = JobError("ValueError", "hush") if status == "error" else None
    put_job(store, RunMarathon, status, progress=progress, error=error)

    assert visit("/job_state").texts("job-state") == [text]


def test_phase_in_words(client: redis.Redis, store: JobStore, visit: Visiting) -> None:
    """The name of a phase stands before what its loop counts."""
    job = put_job(store, RunMarathon, progress=Progress(1, 2, "rows")).uuid
    client.hset(key_of(store, job), "phase", '[0.4,0.2,["A","<B>"]]')
    name = "\u2068<B>\u2069"
    assert visit("/job_state").texts("job-state") == [
        f"Running · 50 % · {name}: 1 of 2 rows"
    ]
    client.hset(key_of(store, job), "progress", "[0,null,null,null]")
    assert visit("/job_state").texts("job-state") == [f"Running · 40 % · {name}"]
    client.hset(key_of(store, job), "phase", "[0.6,0.4,[]]")
    assert visit("/job_state").texts("job-state") == ["Running · 60 %"]


def test_owner_of_a_row(store: JobStore, visit: Visiting) -> None:
    """Whoever may list all jobs reads whose they are."""
    for owner in "alice", 7, None:
        put_job(store, RunMarathon, owner=owner)

    page = visit("/job_state")

    assert page.texts("tbody td:last-child") == ["nobody", "7", "alice"]
    assert page.texts("thead th")[-1] == "Owner"
    assert "Owner" not in visit("/job_state", "alice").texts("thead th")


def test_job_that_cannot_be_shown_is_left_out(
    store: JobStore, visit: Visiting, caplog: pytest.LogCaptureFixture
) -> None:
    """A job whose class fails does not spoil the list."""

    class Fallen(JobState):
        @property
        def title(self) -> str:
            raise ZeroDivisionError

    put_job(store, Fallen)
    job = put_job(store, RunMarathon).uuid

    assert visit("/job_state").uuids == [job]
    assert "Fallen" in caplog.text


def test_job_whose_owner_cannot_be_told_is_left_out(
    store: JobStore, visit: Visiting, caplog: pytest.LogCaptureFixture
) -> None:
    """A list with owners leaves out a job whose class fails to say its own."""

    class Foundling(JobState):
        @property
        def owner(self) -> str:
            raise ZeroDivisionError

        def __acl__(self) -> Any:
            return [("Allow", "system.Everyone", "view_job")]

    put_job(store, Foundling)
    job = put_job(store, RunMarathon).uuid

    assert visit("/job_state?all=1").uuids == [job]
    assert "Foundling" in caplog.text


def test_job_is_listed_though_its_rights_are_unknown(
    redis_url: str, store: JobStore, caplog: pytest.LogCaptureFixture
) -> None:
    """A policy that fails for what can be done with a job leaves its row without it."""

    class Picky(JobState):
        def __acl__(self) -> Any:
            return [("Allow", "alice", "view_job"), *self.broken()]

        def broken(self) -> Any:
            if caught:
                raise ZeroDivisionError
            caught.append(self)
            return []

    caught: list[Any] = []
    app = paged_app(redis_url)
    job = put_job(store, Picky, "success", owner="alice").uuid

    page = Visit(app, "/job_state", "alice")

    assert page.uuids == [job] and page.acts == []
    assert "ZeroDivisionError" in caplog.text


# The chart.


def test_store_that_goes_away_among_the_rows(redis_url: str, store: JobStore) -> None:
    """If a policy asks the store, and it is away, the page says so."""

    class Asking(JobState):
        def __acl__(self) -> Any:
            if asked:
                raise StoreUnavailable("away")
            asked.append(self)
            return [("Allow", "alice", "view_job")]

    asked: list[Any] = []
    put_job(store, Asking, "success", owner="alice")

    assert browse(paged_app(redis_url), "/job_state", "alice").status_code == 503


def test_chart_draws_what_ended(store: JobStore, visit: Visiting) -> None:
    """The chart shows how many jobs ended when and how, and says it in words."""
    for status in ("success", "success", "success", "error", "cancelled", "working"):
        put_job(store, RunMarathon, status)
    put_job(store, Steeplechase, "error")

    page = visit("/job_state")

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
    of_a_kind = visit("/job_state?kind=Steeplechase")
    assert of_a_kind.texts("figcaption span")[2:] == [
        "failed: 1",
        "peak: 1 in 30 min",
    ]
    assert len(of_a_kind.all("svg path")) == 1


def test_chart_of_nothing(visit: Visiting) -> None:
    """Without ended jobs, the chart says so."""
    page = visit("/job_state")

    assert page.texts("figcaption span") == ["No job has ended in the last 24 hours."]
    assert not page.has("svg path")


def test_single_failure_is_visible(
    store: JobStore, visit: Visiting, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One failure among many successes has a height, and no bar leaves the chart."""
    put_job(store, RunMarathon, "success")
    (bucket,) = store.throughput(buckets=1)
    buckets = [bucket._replace(success=5000, error=1, cancelled=1)] * 48
    monkeypatch.setattr(JobStore, "throughput", lambda *args: buckets)

    paths = [str(path["d"]) for path in visit("/job_state").all("svg path")]

    assert [path.partition("z")[0] for path in paths] == [
        "M0 58h8v2h-8",
        "M0 56h8v2h-8",
        "M0 0h8v56h-8",
    ]


# Acts.


def test_acts_are_those_that_a_job_allows(store: JobStore, visit: Visiting) -> None:
    """Each row says what can be done with its job as it is now."""
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


def test_acts_that_no_job_allows_are_missing(store: JobStore, visit: Visiting) -> None:
    """A page offers only what it has jobs for."""
    put_each(store)

    assert visit("/job_state?status=success").acts == ["delete"]
    assert visit("/job_state?status=working").acts == ["cancel"]
    assert visit("/job_state?status=stalled").acts == []


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    ("query", "acts"),
    [
        (
            "all=1",
            {
                "cancel": ("cancel", "all=1&everything=1", "counts", UNFINISHED),
                "rerun": ("rerun", "all=1&everything=1", "counts", ("error",)),
                "delete": ("clear", "all=1&everything=1", "counts", FINISHED),
            },
        ),
        (
            "all=1&kind=RunMarathon&status=error&limit=5",
            {
                "rerun": (
                    "rerun",
                    "kind=RunMarathon&all=1",
                    "counts?kind=RunMarathon",
                    ("error",),
                ),
                "delete": (
                    "clear",
                    "kind=RunMarathon&status=error&all=1",
                    "counts?kind=RunMarathon",
                    ("error",),
                ),
            },
        ),
        (
            "owner=alice&status=working",
            {"cancel": ("cancel", "owner=alice&status=working", None, ("working",))},
        ),
    ],
    ids=["all", "kind and status", "owner"],
)
def test_acts_on_all_that_match(
    paged: TestApp,
    store: JobStore,
    place: str,
    query: str,
    acts: dict[str, tuple[str, str, str | None, tuple[str, ...]]],
) -> None:
    """The script is told where to post an act on all jobs that match, and what to ask
    before: where it reads how many they are, as far as that is known.
    """
    questions = {
        "cancel": "Cancel all unfinished jobs that match?",
        "rerun": "Run all failed jobs that match again?",
        "delete": "Delete all ended jobs that match?",
    }
    put_each(store)

    bulk = Visit(paged, f"{place}/?{query}").data["bulk"]

    assert bulk == {
        name: {
            "url": f"http://localhost{place}/{view}?{wanted}",
            "question": questions[name],
            "counts": counts and f"http://localhost{place}/{counts}",
            "statuses": list(statuses),
        }
        for name, (view, wanted, counts, statuses) in acts.items()
    }


def test_acts_on_all_reach_beyond_the_page(paged: TestApp, store: JobStore) -> None:
    """An act that fits no job of the page is offered if it fits others, and the viewer
    has the right on all jobs.
    """
    put_each(store)

    page = Visit(paged, "/job_state?all=1&limit=1")

    assert [row["data-acts"] for row in page.all("tr[data-uuid]")] == ["cancel"]
    assert page.acts == ["cancel", "rerun", "delete"]
    assert page.data["bulk"]["delete"]["statuses"] == list(FINISHED)


def test_rights_that_are_known_of_jobs_alone(redis_url: str, store: JobStore) -> None:
    """A function of the application may know the rights on single jobs alone. If the
    store is away for it, so is the page.
    """

    def permits(request: Any, context: Any, permission: str) -> bool:
        if permission == "delete_job":
            if isinstance(context, JobState):
                return True
            raise away[0] if away else AttributeError("owner")
        return True

    away: list[Exception] = []
    app = paged_app(redis_url, settings={"jobstate.permits": permits})
    put_each(store)

    page = Visit(app, "/job_state?all=1&limit=1")

    assert page.acts == ["cancel", "rerun"]
    away.append(StoreUnavailable("away"))
    assert browse(app, "/job_state/?all=1&limit=1").status_code == 503


def test_row_says_what_is_permitted(redis_url: str, store: JobStore) -> None:
    """The script learns what can be done with a job when its status changes."""

    class Keepers(Root):
        __acl__ = (("Allow", "keeper", ("view_job", "list_jobs", "rerun_job")),)

    app = paged_app(redis_url, root_factory=Keepers)
    put_job(store, RunMarathon, owner="alice")

    page = Visit(app, "/job_state", "keeper")

    (row,) = page.all("tr[data-uuid]")
    assert (row["data-acts"], row["data-permitted"]) == ("", "rerun")
    assert page.acts == []
    assert [tag["data-act"] for tag in page.all("button[data-act][hidden]")] == [
        "rerun"
    ]


def test_form_keeps_what_it_does_not_ask_for(visit: Visiting) -> None:
    """The form adds to the status and the language of the page."""
    page = visit("/job_state?status=error&limit=7&_LOCALE_=de&kind=My++kind")
    hidden = {tag["name"]: tag["value"] for tag in page.all("form input[type=hidden]")}
    assert hidden == {"status": "error", "limit": "7", "_LOCALE_": "de"}
    # The text of an option loses its blanks.
    assert page.one("option[selected]")["value"] == "My  kind"


def test_acts_on_all_do_what_they_ask(
    paged: TestApp, store: JobStore, marathons: Marathons
) -> None:
    """The URLs that the script is told do it: to the jobs that match, no others."""
    failed = marathons.fail("alice", "bob")
    running = put_job(store, RunMarathon, owner="alice").uuid
    other = put_job(store, Steeplechase, "success", owner="alice").uuid

    def done(path: str, name: str, user: str) -> Any:
        return act(paged, Visit(paged, path, user).data["bulk"][name]["url"], user).json

    assert done("/job_state?kind=RunMarathon", "cancel", OPERATOR)["done"] == 1
    assert done("/job_state?owner=bob", "rerun", OPERATOR)["done"] == 1
    assert done("/job_state?kind=Steeplechase", "delete", OPERATOR)["done"] == 1
    assert {u: s and s.status for u, s in ((u, store.load(u)) for u in failed)} == {
        failed[0]: "error",
        failed[1]: "queued",
    }
    assert store.load(other) is None
    cancelled = store.load(running)
    assert cancelled is not None and cancelled.cancel_requested


def test_acts_on_own_jobs(paged: TestApp, store: JobStore) -> None:
    """Whoever may not list all jobs acts on their own: the URL names nobody."""
    mine = put_job(store, RunMarathon, "success", owner=KEEPER).uuid
    put_job(store, RunMarathon, "success", owner="alice")

    page = Visit(paged, "/job_state", KEEPER)

    assert page.uuids == [mine]
    (delete,) = page.data["bulk"].values()
    assert delete["url"] == "http://localhost/job_state/clear?everything=1"
    assert delete["question"] == "Delete all ended jobs that match?"
    assert act(paged, delete["url"], KEEPER).json == {"done": 1, "cursor": None}


def test_acts_need_their_permissions(redis_url: str, store: JobStore) -> None:
    """Without permissions on its jobs, a list offers nothing."""

    class Readers(Root):
        __acl__ = (("Allow", "reader", ("view_job", "list_jobs")),)

    app = paged_app(redis_url, root_factory=Readers)
    put_each(store)

    page = Visit(app, "/job_state", "reader")

    assert len(page.uuids) == 6
    assert page.acts == [] and page.data["bulk"] == {}
    assert {str(row["data-acts"]) for row in page.all("tr[data-uuid]")} == {""}
    assert not page.has("input[type=checkbox]")
