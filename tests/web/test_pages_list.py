"""The page of a list: tabs, filters, the chart, rows, and acts on many jobs."""

import logging
from typing import Any

from pyramid.authorization import Allow, Everyone
from pyramid.request import Request

from pyramid_jobstate import (
    JobError,
    JobState,
    JobStore,
    Page,
    Progress,
    StoreUnavailable,
)
from pyramid_jobstate.testing import put_job
from tests.durations import put_runs
from tests.jobs import RunMarathon, messages
from tests.store.jobs import Diary
from tests.support import FINISHED, UUID
from tests.web.operating import (
    ACTS,
    KEEPER,
    OPERATOR,
    Asked,
    LockedDiary,
    act,
    put,
    uuids_of,
)
from tests.web.paging import Visit, browse, paged_app, put_batch, query_of
from tests.webapp import ADMIN, Root, get


def put_each(store: JobStore) -> dict[str, str]:
    """Put a job of each status, and return their uuids."""
    each = "queued", "working", "retrying", *FINISHED
    return {s: put_job(store, RunMarathon, s, owner="alice").uuid for s in each}


def test_rows_are_the_jobs_of_the_json(paged, store):
    """The list has the jobs of its JSON, each once, and above them those that run."""
    put_each(store)
    put(store, "alice", cls=LockedDiary)
    put(store, 7, None, cls=Diary)
    for query, user in (
        ("?kind=RunMarathon", "alice"),
        ("?all=1&limit=2", OPERATOR),
        ("?owner=alice&status=working&kind=RunMarathon", OPERATOR),
    ):
        path = f"/job_state/{query}"
        visit = Visit(paged, path, user)
        runs = get(paged, f"{path}&status=working&limit=10", user)
        items = [] if "status" in query else runs.json["items"]
        listed = get(paged, path, user).json["items"]
        items += [item for item in listed if item not in items]
        assert visit.uuids == uuids_of(items) != []
        for selector, name in ("th a", "href"), ("job-state[compact]", "src"):
            urls = [str(tag[name]) for tag in visit.all(f"tr {selector}")]
            assert urls == [item["job"]["url"] for item in items]
        assert ("Owner" in visit.texts("thead th")) is (user == OPERATOR)
    everyone = Visit(paged, "/job_state/?all=1&limit=3")
    owners = ["nobody", "7", "alice", "alice"]
    assert everyone.texts("[data-uuid] td:last-child") == owners


def test_running_jobs_stand_above_the_others(store, visit):
    """The ten newest running jobs come first. Of a batch, there is the batch alone."""
    batch, members = put_batch(store, "queued", "working", "error")
    running = put(store, *["alice"] * 11)[::-1]
    waiting = put(store, *["alice"] * 3, status="queued")[::-1]
    page = visit("/job_state?all=1")
    assert page.texts(".jobstate-block") == ["Running Show all", "Other jobs"]
    assert page.uuids == [*running[:10], *waiting, running[10], batch]
    assert query_of(page.link("Show all")) == {"all": "1", "status": "working"}
    cursor = query_of(visit("/job_state?all=1&limit=2").link("Older"))["cursor"]
    for query in "status=working", "status=queued", f"cursor={cursor}":
        assert not visit(f"/job_state?all=1&{query}").has(".jobstate-block"), query
    assert set(members) < set(visit("/job_state?all=1&members=1").uuids)
    assert not visit("/job_state?kind=Diary").has(".jobstate-block")


def test_owners_are_named(redis_url, store, caplog):
    """The application names owners, each once, as text. An outage is a 503."""
    asked: list[Any] = []

    def label(request: Request, owner: Any) -> Any:
        asked.append(owner)
        if owner == "carol":
            raise StoreUnavailable(None)
        return {1: "One", "alice": "<b>Alice", "dave": None, "eve": ""}[owner]

    app = paged_app(redis_url, settings={"jobstate.owner_label": label})
    (job,) = put(store, "alice")
    put(store, 1, 1, 1.0, "bob", "dave", "eve", None)
    page = Visit(app, "/job_state?all=1")
    named = ["nobody", "eve", "dave", "bob", "One", "One", "One", "<b>Alice"]
    assert page.texts("tbody .jobstate-whose") == named
    # The owners 1 and 1.0 are two.
    each = ["'alice'", "'bob'", "'dave'", "'eve'", "1", "1.0"]
    assert sorted(map(repr, asked)) == each
    page = Visit(app, f"/job_state/{job}")
    assert page.texts(".jobstate-owner") == ["Owner: <b>Alice"]
    (record,) = caplog.records
    assert "jobstate.owner_label raised an exception" in record.message
    put(store, "carol")
    assert browse(app, "/job_state/?all=1", OPERATOR).status_code == 503


def test_row_has_the_first_public_parameters(store, visit):
    """It has five of them, the text of each cut to 40 characters."""

    class Order(JobState):
        public_params = tuple("abcdef")

    params: dict[str, Any] = {"a": 1, "b": "x" * 40, "c": "y" * 41, "d": [2]}
    put_job(store, Order, params={**params, "e": None, "f": 6, "secret": 7})
    (about,) = visit("/job_state").texts(".jobstate-about > span")
    cut = f"{'y' * 39}…"
    assert about == f"a: 1 · b: {'x' * 40} · c: {cut} · d: [2] · e: null"


def test_owners_lead_to_their_jobs(store, visit):
    """Whoever may list all jobs finds the others of an owner by their name."""
    put(store, "alice & co", 7, None)
    page = visit("/job_state?kind=Letter&_LOCALE_=de")
    links = [str(tag["href"]) for tag in page.all(".jobstate-whose a")]
    owners = [query_of(link) for link in links]
    assert owners == [{"owner": o, "_LOCALE_": "de"} for o in ("7", "alice & co")]
    found = visit(links[1].removeprefix("http://localhost"))
    assert found.texts(".jobstate-whose")[1:] == ["alice & co"]
    assert not visit("/job_state", "alice & co").has(".jobstate-whose")


def test_job_is_found_by_the_beginning_of_its_id(store, visit):
    """The form takes what a row shows of an id, if one job of the list begins so."""
    job, other = put(store, "alice", "bob")
    for user, found in ("alice", job), (OPERATOR, job), (OPERATOR, other):
        page = visit(f"/job_state?id=+{found[:8].upper()}+", user)
        assert page.texts("[data-jobstate=id]") == [found]
    for user, wrong in ("alice", other[:8]), (OPERATOR, ""), (OPERATOR, "zz"):
        page = visit(f"/job_state?id={wrong}", user)
        assert not page.has("[data-jobstate=id]")
        assert page.has("#jobstate-wrong-id") is bool(wrong)


def test_operators_read_why_jobs_fail(store, visit):
    """Those who may inspect a job read its exception, others what the class says."""
    put(store, "alice", status="error", error=JobError("ValueError", "x" * 500))
    page = visit("/job_state")
    assert page.texts(".jobstate-reason") == [f"ValueError: {'x' * 387}…"]
    assert page.texts("job-state") == ["Failed"]
    page = visit("/job_state", ADMIN)
    assert not page.has(".jobstate-reason")
    assert page.texts("job-state") == ["Failed · \u2068The job failed.\u2069"]


def test_base_url_is_not_that_of_a_page(redis_url, store):
    """Pages lead to where their viewer is, since scripts reach no other host."""
    paged = paged_app(redis_url, settings={"jobstate.base_url": "https://example.com"})
    (uuid,) = put(store, "alice")
    url = f"http://localhost/job_state/{uuid}/"
    listed, shown = Visit(paged, "/job_state/"), Visit(paged, f"/job_state/{uuid}/")
    assert [tag["src"] for tag in listed.all("tr [src]")] == [url]
    assert (shown.one("job-state")["src"], shown.data["url"]) == (url, url)


def test_operators_see_all_jobs_at_first(store, visit):
    """Whoever may list all jobs is led to the list of all. Links keep the language."""
    put(store, "alice")
    page = visit("/job_state?status=working&_LOCALE_=de")
    assert query_of(page.path) == {"all": "1", "status": "working", "_LOCALE_": "de"}
    assert len(page.uuids) == 1
    locales = {query_of(str(tag["href"]))["_LOCALE_"] for tag in page.all("nav a")}
    assert locales == {query_of(page.data["first"])["_LOCALE_"]} == {"de"}


def test_form_leads_to_the_address_of_the_json(paged):
    """The form leaves out empty fields, and the id of a job leads to its page."""
    for query, location in (
        ("kind=A&owner=bob&id=+&status=&all=1", "?kind=A&owner=bob"),
        (f"kind=&id=+{UUID.upper()}+", f"{UUID}/"),
    ):
        response = browse(paged, f"/job_state/?{query}")
        assert response.location == f"http://localhost/job_state/{location}"
    page = Visit(paged, "/job_state/?id=<x>")
    assert page.texts("#jobstate-wrong-id") == ["This is not a job ID: <x>"]
    assert page.one("input[name=id]")["value"] == "<x>"


def test_tabs_lead_to_the_jobs_of_a_status(redis_url, store):
    """The tabs keep the other filters, and count jobs, but not those of one owner."""
    jobs = put_each(store)
    put_job(store, Diary, "error", owner="bob")
    app = paged_app(redis_url)
    page = Visit(app, "/job_state/?all=1&kind=RunMarathon&status=error&limit=9")
    of_alice = Visit(app, "/job_state?owner=alice")
    tabs = "All 6|Waiting 1|Running 1|Trying again 1|No sign of life 0|Cancelling… 0"
    tabs += "|Done 1|Failed 1|Cancelled 1"
    assert page.texts(".jobstate-tabs a") == tabs.split("|")
    assert page.texts(".jobstate-tabs [aria-current]") == ["Failed 1"]
    kept = {"all": "1", "kind": "RunMarathon", "limit": "9"}
    assert query_of(page.link("All")) == kept
    assert Visit(app, page.link("Done")).uuids == [jobs["success"]]
    assert of_alice.texts(".jobstate-tabs a")[:2] == ["All", "Waiting"]
    assert not of_alice.has(".jobstate-chart")
    assert query_of(of_alice.link("Failed")) == {"owner": "alice", "status": "error"}


def test_form_keeps_what_is_filtered(redis_url, store):
    """The form keeps what is filtered, even a kind without jobs."""
    put(store, None, cls=RunMarathon)
    put(store, None, cls=Diary)
    kinds = ["All kinds", "Diary", "RunMarathon"]
    path = "/job_state?status=error&members=1&limit=7&_LOCALE_=de&kind=Mine&owner=alice"
    page = Visit(paged_app(redis_url), path)
    hidden = {tag["name"]: tag["value"] for tag in page.all("form input[type=hidden]")}
    assert hidden == {"status": "error", "limit": "7", "_LOCALE_": "de", "members": "1"}
    assert sorted(page.texts("option")) == sorted([*kinds, "Mine"])
    assert page.texts("option[selected]") == ["Mine"]
    assert page.one("input[name=owner]")["value"] == "alice"


def test_filter_tells_a_class_from_an_actor(store, visit):
    """Two options of one name say what each is, and lead to its jobs."""
    put(store, None, cls=Diary, status="success")
    for actor in "mow", "rake", "Diary":
        put(store, None, cls=JobState, status="success", actor=actor)
    options = visit("/job_state").all("option")
    assert {str(tag["value"]): tag.get_text() for tag in options} == {
        "": "All kinds",
        "actor:Diary": "actor:Diary",
        "actor:mow": "mow",
        "actor:rake": "rake",
        "class:Diary": "class:Diary",
    }
    for kind, title in (
        ("actor:Diary", "Diary"),
        ("class:Diary", "Diary"),
        ("mow", "Mow"),
    ):
        page = visit(f"/job_state?kind={kind}")
        assert page.texts("option[selected]") == [kind]
        assert page.texts(".jobstate-tabs a")[0] == "All 1"
        assert page.texts("figcaption span")[0] == "done: 1"
        assert len(page.uuids) == 1 and title in page.texts("tbody tr")[0]


def test_pages_follow_each_other(store, visit):
    """Links lead to older jobs and back; a page has fifty unless asked for fewer."""
    jobs = put(store, *["alice"] * 51, cls=RunMarathon)[::-1]
    first = visit("/job_state?kind=RunMarathon")
    last = visit(first.link("Older"))
    assert (first.uuids, last.uuids) == (jobs[:50], jobs[50:])
    assert query_of(last.path)["kind"] == "RunMarathon"
    assert visit(last.link("Newest")).uuids == first.uuids
    # The chart is on the first page, and only that looks for new jobs.
    assert [page.has(".jobstate-chart") for page in (first, last)] == [True, False]
    assert query_of(first.data["first"]) == {"all": "1", "kind": "RunMarathon"}
    assert last.data["first"] is None
    assert [page.data["more"] for page in (first, last)] == [True, False]


def test_page_without_jobs(store, visit, monkeypatch):
    """A page without jobs says so. One that ends before it finds a job leads on."""
    page = visit("/job_state")
    assert page.texts(".jobstate-none") == ["No jobs."]
    assert not page.has("table, [data-jobstate=acts], .jobstate-more")
    put(store, *["alice"] * 2)
    # A thousand jobs before it do not match.
    nothing = Page([], store.list(limit=1).cursor)
    monkeypatch.setattr(JobStore, "list", lambda *args, **options: nothing)
    page = visit("/job_state?kind=RunMarathon")
    text = "No matching jobs so far. Older ones may match."
    assert page.texts(".jobstate-none") == [text]
    assert query_of(page.link("Older"))["cursor"] == nothing.cursor


def test_row_tells_a_job_without_javascript(store, visit):
    """A row has the title, status, progress, times, attempts and owner as text."""
    job = put_job(
        store,
        RunMarathon,
        owner="alice",
        params={"miles": 26, "secret": "hush"},
        message="Up the hill",
        progress=Progress(1200, 2600, "miles"),
        attempt=1200,
    )
    at = job.queued_at
    assert at is not None
    page = visit("/job_state")
    assert page.texts("tr[data-uuid] > *") == [
        "",
        f"Run marathon {job.uuid[:8]} miles: 26",
        "Running · 46% · 1,200 of 2,600 miles · \u2068Up the hill\u2069",
        f"{at:%b} {at.day}, {at.year}, {at.hour % 12 or 12}:{at:%M %p} UTC",
        "",
        "1,200",
        "alice",
    ]
    assert page.texts("noscript") == ["Live updates and actions need JavaScript."]
    assert page.one("[data-jobstate=acts]").has_attr("hidden")


def test_job_with_a_blank_title_goes_by_its_uuid(store, visit):
    """The link to it has a name that people can see and click on."""

    class Untitled(JobState):
        title = " \n"

    job = put_job(store, Untitled).uuid
    assert visit("/job_state").texts("tbody th a") == [job]
    assert visit(f"/job_state/{job}").texts("h1") == [job]


def test_row_tells_the_progress_and_the_end(store, runs, visit):
    """A row says what the element says, with no total, a phase, or a reason."""
    half = Progress(1, 2)
    for status, progress, reason, text in (
        ("working", Progress(999.96, 1000), None, "99% · 999.96 of 1,000"),
        ("working", Progress(29, 100), None, "29% · 29 of 100"),
        ("working", Progress(7, None, "rows"), None, "7 rows"),
        ("success", half, None, "50% · 1 of 2 · \u2068Half way\u2069"),
        ("error", half, "It rains.", "50% · 1 of 2 · \u2068It rains.\u2069"),
        ("cancelled", half, "The job was cancelled.", "50% · 1 of 2"),
    ):
        store.client.flushdb()
        error = JobError(None, reason) if reason else None
        message = "Half way" if progress is half else None
        told: dict[str, Any] = {"progress": progress, "message": message}
        put_job(store, RunMarathon, status, error=error, **told)
        (found,) = visit("/job_state").texts("tbody job-state")
        assert found.partition(" · ")[2] == text

    def read(job_state: JobState) -> None:
        with job_state.phase("Reading", percent=40):
            job_state.set_progress(1, 2)
            job_state.flush()
            (found, *_) = visit("/job_state").texts("tbody job-state")
            assert found == "Running · 20% · \u2068Reading\u2069: 1 of 2"

    assert runs.start().do(read)


def test_chart_draws_what_ended(redis_url, store):
    """The chart shows how many jobs ended when and how, and says it in words."""
    nothing = Visit(paged_app(redis_url), "/job_state")
    for status in ("success", "success", "success", "error", "cancelled", "working"):
        put_job(store, RunMarathon, status)
    put_job(store, Diary, "error")
    app = paged_app(redis_url)
    page = Visit(app, "/job_state")
    of_a_kind = Visit(app, "/job_state?kind=Diary")
    text = "No job has ended in the last 24 hours."
    assert nothing.texts("figcaption span") == [text]
    assert not nothing.has("svg path")
    text = "Ended in the last 24 hours|done: 3|cancelled: 1|failed: 2|peak: 6 in 30 min"
    assert page.texts(".jobstate-chart figcaption > *") == text.split("|")
    # The last bar, from the bottom: failed, cancelled, done.
    bars = ["M470 40h8v20h-8z", "M470 30h8v10h-8z", "M470 0h8v30h-8z"]
    assert [path["d"] for path in page.all("svg path")] == bars
    assert of_a_kind.texts("figcaption span")[2:] == ["failed: 1", "peak: 1 in 30 min"]
    # However few jobs fail, they are seen.
    for _ in range(200):
        put_job(store, RunMarathon, "success")
    few = Visit(paged_app(redis_url), "/job_state").all("svg path")
    assert [path["d"] for path in few[:2]] == ["M470 58h8v2h-8z", "M470 56h8v2h-8z"]


def test_acts_are_those_that_a_job_allows(store, visit):
    """Each row has the acts that its job allows, and the page offers those it needs."""
    jobs = put_each(store)
    page = visit("/job_state")
    rows = page.all("tr[data-uuid]")
    acts = {str(row["data-uuid"]): row["data-acts"] for row in rows}
    over = {"success": "delete", "error": "rerun delete", "cancelled": "delete"}
    unfinished = dict.fromkeys(("queued", "working", "retrying"), "cancel")
    assert {status: acts[job] for status, job in jobs.items()} == {**unfinished, **over}
    assert page.acts == ["cancel", "rerun", "delete"]
    assert len(page.all("tbody input[type=checkbox]")) == 6
    assert visit("/job_state?status=success").acts == ["delete"]
    assert visit("/job_state?all=1&limit=1").acts == ["cancel", "rerun", "delete"]


def test_acts_on_all_that_match(paged, store, marathons):
    """The script gets the URL and the question of each act on all jobs that match."""
    base = "http://localhost/job_state/"
    put(store, "alice", "bob", cls=RunMarathon, status="error")
    put(store, "alice", KEEPER, cls=Diary, status="success")
    by_owner = Visit(paged, "/job_state/?owner=bob&status=error").data["bulk"]
    by_kind = Visit(paged, "/job_state/?kind=Diary&limit=5").data["bulk"]
    own = Visit(paged, "/job_state", KEEPER).data["bulk"]
    assert by_owner["rerun"] == {
        "url": f"{base}rerun?owner=bob",
        "question": "Run all failed jobs that match again?",
        "counts": None,
        "statuses": ["error"],
    }
    assert by_kind["delete"] == {
        "url": f"{base}clear?kind=Diary&all=1",
        "question": "Delete all ended jobs that match? This cannot be undone.",
        "counts": f"{base}counts?members=1&kind=Diary",
        "statuses": [*FINISHED],
    }
    assert own["delete"]["url"] == f"{base}clear?everything=1"
    for user, bulk, name in (KEEPER, own, "delete"), (OPERATOR, by_owner, "rerun"):
        assert act(paged, bulk[name]["url"], user).json["done"] == 1


def test_acts_need_their_permissions(redis_url, store):
    """Without permissions on its jobs, a list offers nothing."""

    class Readers(Root):
        __acl__ = (
            (Allow, Everyone, ("view_job", "list_jobs")),
            (Allow, "runner", "rerun_job"),
        )

    app = paged_app(redis_url, root_factory=Readers)
    put(store, "alice", cls=RunMarathon)
    runner = Visit(app, "/job_state", "runner")
    assert runner.one("tr[data-uuid]")["data-permitted"] == "rerun"
    assert runner.one("button[data-act][hidden]")["data-act"] == "rerun"
    reader = Visit(app, "/job_state", "reader")
    assert (reader.acts, reader.data["bulk"]) == ([], {})
    assert not reader.has("input[type=checkbox], button[data-act]")


def test_acts_of_a_policy_that_fails(redis_url, store, caplog):
    """Jobs are shown without acts and without exceptions; an outage is a 503."""
    away, bug = StoreUnavailable(None), LookupError("no such shoes")
    errors: dict[bool, Exception | None] = {True: bug, False: bug}

    def fail(request: Request, context: Any, permission: str) -> None:
        error = errors[isinstance(context, JobState)]
        is_shown = isinstance(context, Fencing) != (permission in ACTS[:2])
        if error is not None and permission in ACTS and is_shown:
            raise error

    class Fencing(JobState):
        """Faults are logged once a kind."""

    app = paged_app(redis_url, security_policy=Asked(fail))
    put(store, "alice", "alice", cls=Fencing, status="error")
    put(store, "alice", "alice", cls=Diary, status="error")
    page = Visit(app, "/job_state", ADMIN)
    assert (len(page.uuids), page.acts, page.data["bulk"]) == (4, [], {})
    assert not page.has(".jobstate-reason")
    lines = messages(caplog, "pyramid_jobstate", logging.ERROR)
    for what in "its exception", "what can be done with it":
        assert sum(f"which is shown without {what}." in line for line in lines) == 1
    assert len(lines) == 2
    for errors[True], errors[False] in (away, None), (None, away):
        assert browse(app, "/job_state/?all=1", ADMIN).status_code == 503


def test_page_of_a_kind_says_how_long_its_jobs_run(store, visit):
    """To those who may list all jobs, as soon as enough is known."""

    def line(user: str = OPERATOR, query: str = "?kind=class:RunMarathon") -> list[str]:
        return visit(f"/job_state/{query}", user).texts(".jobstate-durations")

    put_runs(store, owner="alice")
    said = "Half of the latest successful jobs took at most 2 min, 95% at most 2 min"
    assert line() == line(query="?all=1&members=1&kind=RunMarathon") == [said]
    assert line("alice") == line(query="?all=1") == []
    assert (
        line(query="?kind=Diary") == line(query="?owner=alice&kind=RunMarathon") == []
    )
