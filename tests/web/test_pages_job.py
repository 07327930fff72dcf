"""The page of a job: its header, acts, timeline, metrics, parameters and failure."""

from __future__ import annotations

import datetime
from typing import Any

import pytest
import redis
from markupsafe import Markup
from pyramid.authorization import ALL_PERMISSIONS
from pyramid.i18n import make_localizer
from webtest import TestApp

from pyramid_jobstate import JobError, JobState, JobStore
from pyramid_jobstate.testing import put_job
from pyramid_jobstate.web.pages.timeline import timeline_of
from pyramid_jobstate.web.pages.words import Words
from tests.jobs import RunMarathon
from tests.support import key_of
from tests.web.operating import KEEPER, OPERATOR, Marathons, act
from tests.web.paging import Visit, Visiting, paged_app
from tests.webapp import PLACES, get

SECOND, MINUTE, HOUR, DAY = 1000, 60_000, 3_600_000, 86_400_000

#: Midnight in milliseconds of the store's clock.
START = 1_800_000_000_000 // DAY * DAY


def at(millis: int) -> str:
    """Return a time after START as JSON spells it."""
    time = datetime.datetime.fromtimestamp((START + millis) / 1000, datetime.UTC)
    return time.isoformat(timespec="milliseconds").replace("+00:00", "Z")


@pytest.mark.parametrize("place", PLACES)
def test_page_has_what_the_json_tells(
    paged: TestApp, store: JobStore, place: str
) -> None:
    """The page has the title, id and element of its job, its metrics, and those of its
    parameters that viewers may read.
    """
    job = put_job(
        store,
        RunMarathon,
        owner="alice",
        params={"miles": 26, "shoes": "secret-red"},
        metrics={"miles_run": 12, "place": "the bridge", "splits": [1, 2.5]},
        message="Half of it",
        log=["Gun", "Bridge"],
    ).uuid

    page = Visit(paged, f"{place}/{job}", "alice")

    url = f"http://localhost{place}/{job}/"
    assert page.texts("h1, title") == ["Run marathon", "Run marathon"]
    assert page.texts("[data-jobstate=id]") == [job]
    element = page.one("job-state")
    assert (element["src"], element.has_attr("log")) == (url, True)
    assert page.texts("job-state p") == ["Running · \u2068Half of it\u2069"]
    assert page.texts("job-state li") == ["Gun", "Bridge"]
    facts = dict(zip(page.texts("dt"), page.texts("dd"), strict=True))
    assert facts == {
        "miles_run": "12",
        "place": "the bridge",
        "splits": "[1, 2.5]",
        "miles": "26",
    }
    live = [tag["data-metric"] for tag in page.all(f"[data-job={element['id']}]")]
    assert live == ["miles_run", "place", "splits"]
    assert page.texts("h2") == ["Timeline", "Metrics", "Parameters"]
    assert "secret-red" not in page.response.text
    assert page.link("Your jobs") == f"http://localhost{place}/"
    assert page.data["url"] == url
    assert page.data["list"] == f"http://localhost{place}/"
    assert page.data["seen"] == "working 1"


@pytest.mark.parametrize(
    "name",
    [
        "job",
        "title",
        "status",
        "url",
        "params",
        "progress",
        "message",
        "log",
        "attempt",
        "queued_at",
        "due_at",
        "started_at",
        "finished_at",
        "cancellable",
        "error",
        "result",
    ],
)
def test_class_may_leave_out_what_it_wants(
    store: JobStore, visit: Visiting, name: str
) -> None:
    """A page shows what is left of the JSON of a job, as its row does."""

    class Reticent(JobState):
        def __json__(self, request: Any) -> dict[str, Any]:
            state = super().__json__(request)
            state.pop(name, None)
            state.get("job", {}).pop(name, None)
            return state

    job = put_job(store, Reticent, "retrying", owner="alice", message="Resting").uuid

    page = visit(f"/job_state/{job}")

    assert page.texts("h1") == [job if name in ("job", "title") else "Reticent"]
    assert page.one("job-state")["src"] == f"http://localhost/job_state/{job}/"
    assert ("Resting" in page.html.get_text()) is (name not in ("job", "message"))
    assert visit("/job_state").uuids == [job]


@pytest.mark.parametrize("title", [Markup("<b>Bold</b>"), "<b>Bold</b>"])
def test_markup_in_a_title_is_text(
    store: JobStore, visit: Visiting, title: str
) -> None:
    """A title is what JSON makes of it: text."""

    class Bold(JobState):
        @property
        def title(self) -> str:
            return title

    job = put_job(store, Bold, metrics={"m": "<i>"}).uuid

    page = visit(f"/job_state/{job}")

    assert page.texts("h1, title") == ["<b>Bold</b>"] * 2
    assert not page.has("b b, h1 b, title b")
    assert visit("/job_state").texts("tbody a") == ["<b>Bold</b>"]


@pytest.mark.parametrize("title", ["", " \t"])
def test_job_without_a_title_has_its_id(
    store: JobStore, visit: Visiting, title: str
) -> None:
    """A link needs a name, and so do a heading and a box."""

    class Nameless(JobState):
        @property
        def title(self) -> str:
            return title

    job = put_job(store, Nameless).uuid

    assert visit(f"/job_state/{job}").texts("h1, title") == [job] * 2
    listed = visit("/job_state")
    assert listed.texts("tbody a") == [job]
    assert listed.one("tbody input")["aria-label"] == job


def test_job_with_a_parent_of_the_application(redis_url: str, store: JobStore) -> None:
    """An application's traversal may give a job another parent."""

    class Folder:
        __name__ = "folder"
        __acl__ = (("Allow", OPERATOR, ALL_PERMISSIONS),)

        def __init__(self, request: Any) -> None:
            self.__parent__ = None
            self.request = request

        def __getitem__(self, uuid: str) -> JobState:
            job: JobState = self.request.job_states[uuid]
            job.__parent__ = self
            return job

    app = paged_app(redis_url, root_factory=Folder)
    ended = put_job(store, RunMarathon, "error", owner="alice").uuid
    running = put_job(store, RunMarathon, owner="alice").uuid

    page = Visit(app, f"/{ended}")

    assert page.texts("h1") == ["Run marathon"]
    assert page.data["url"] == f"http://localhost/job_state/{ended}/"
    inspected = get(app, f"/{ended}/inspect", OPERATOR)
    assert inspected.json["uuid"] == ended
    assert act(app, f"/{running}/cancel").status_code == 202
    assert act(app, f"/{ended}", method="DELETE").status_code == 204


def test_page_leads_to_the_result(store: JobStore, visit: Visiting) -> None:
    """Without JavaScript, a page links to what its job has made."""

    class Exported(JobState):
        def result_url(self, request: Any) -> str:
            return f"{request.host_url}/reports?a&b"

    done, running = (put_job(store, Exported, s).uuid for s in ("success", "working"))

    link = visit(f"/job_state/{done}").link("Open the result")

    assert link == "http://localhost/reports?a&b"
    assert not visit(f"/job_state/{running}").has("job-state a")


@pytest.mark.parametrize("url", ["javascript:alert(1)", "/a", "", None, 7])
def test_page_links_to_the_web_alone(
    store: JobStore, visit: Visiting, url: Any
) -> None:
    """Nor does a result become a link that a class puts into its JSON itself."""

    class Homemade(JobState):
        def __json__(self, request: Any) -> dict[str, Any]:
            state = super().__json__(request)
            state["job"]["result"] = {"url": url}
            return state

    job = put_job(store, Homemade, "success").uuid

    assert not visit(f"/job_state/{job}").has("job-state a")


def test_page_of_a_job_that_has_told_nothing(store: JobStore, visit: Visiting) -> None:
    """What a job does not have is left out."""
    page = visit(f"/job_state/{put_job(store, status='queued').uuid}")

    assert page.texts("h2") == ["Timeline"]
    assert not page.has("job-state ol, dl, pre")


@pytest.mark.parametrize(
    ("status", "user", "acts"),
    [
        ("working", "alice", ["cancel"]),
        ("cancelling", "alice", []),
        ("error", "alice", []),
        ("success", "alice", []),
        ("working", OPERATOR, ["cancel"]),
        ("success", OPERATOR, ["delete"]),
        ("cancelled", OPERATOR, ["delete"]),
        ("error", OPERATOR, ["rerun", "delete"]),
        ("error", KEEPER, ["rerun", "delete"]),
    ],
)
def test_acts_are_those_that_are_permitted(
    store: JobStore, visit: Visiting, status: str, user: str, acts: list[str]
) -> None:
    """The page offers what its viewer may do with the job as it is, each with its
    question, and only to the script.
    """
    job = put_job(store, RunMarathon, status, owner="alice").uuid

    page = visit(f"/job_state/{job}", user)

    assert page.acts == acts
    questions = {
        "cancel": "Cancel this job?",
        "rerun": "Run this job again?",
        "delete": "Delete this job? This cannot be undone.",
    }
    for button in page.all("[data-act]"):
        assert button["data-question"] == questions[str(button["data-act"])]
    assert all(tag.has_attr("hidden") for tag in page.all("[data-jobstate=acts]"))
    assert not page.one("job-state").has_attr("cancellable")


def test_owner_is_told_to_those_who_may_list(store: JobStore, visit: Visiting) -> None:
    """Whoever may list all jobs reads whose a job is, and is led to all."""
    alices = f"/job_state/{put_job(store, RunMarathon, owner='alice').uuid}"
    nobodys = f"/job_state/{put_job(store, RunMarathon).uuid}"

    assert visit(alices).texts(".jobstate-owner") == ["Owner: alice"]
    assert visit(nobodys).texts(".jobstate-owner") == ["Owner: nobody"]
    assert visit(alices).link("All jobs") == "http://localhost/job_state/"
    for user in "alice", KEEPER:
        assert not visit(alices, user).has(".jobstate-owner")


def test_failure_is_for_those_who_may_inspect(
    paged: TestApp, store: JobStore, marathons: Marathons
) -> None:
    """With inspect_job, the page has all parameters, the exception, the traceback and
    each try.
    """
    (job,) = marathons.fail("alice", kwargs={"shoes": "sandals"})

    page = Visit(paged, f"/job_state/{job}", KEEPER)
    mine = Visit(paged, f"/job_state/{job}", "alice")

    facts = dict(zip(page.texts("dt"), page.texts("dd"), strict=True))
    assert facts == {"miles": "26", "shoes": "sandals"}
    assert page.texts("h2 + p") == [
        "tests.web.operating.Blister: after 26 miles in sandals shoes"
    ]
    text = page.one("pre").get_text()
    assert text == get(paged, f"/job_state/{job}/inspect", KEEPER).json["traceback"]
    steps = page.texts(".jobstate-timeline li")
    assert "try 1 tests.web.operating.Blister" in steps[1]
    for secret in "sandals", "Blister", "Traceback":
        assert secret not in mine.response.text
    assert mine.texts("dt") == ["miles"]
    # It can run again, so nothing says why not.
    assert not page.has("#jobstate-reason, [data-act][disabled]")
    assert act(paged, f"/job_state/{job}/rerun", KEEPER).status_code == 202


def test_reason_why_a_job_cannot_run_again(store: JobStore, visit: Visiting) -> None:
    """Whoever may inspect a job reads why it cannot run again."""
    error = JobError(None, "It broke.")
    job = put_job(store, RunMarathon, "error", owner="alice", error=error).uuid

    page = visit(f"/job_state/{job}")

    (reason,) = page.texts("#jobstate-reason")
    assert reason.startswith("The job cannot run again: ")
    button = page.one("[data-act=rerun]")
    assert button.has_attr("disabled")
    assert button["aria-describedby"] == "jobstate-reason"
    assert page.texts("h2 + p") == ["It broke."]
    assert not page.has("pre")


# The timeline.


def job_at(status: str = "success", **times: Any) -> dict[str, Any]:
    """Return what the timeline needs of a job's JSON, with times after START."""
    names = ("queued", "started", "finished", "due")
    attempt = times.pop("attempt", 1)
    found = {
        f"{n}_at": at(times[n]) if times.get(n) is not None else None for n in names
    }
    return {"status": status, "attempt": attempt, **found}


def try_at(begun: int, ended: int, type_: str | None = "ValueError") -> dict[str, Any]:
    error = {"type": type_, "message": "It broke."}
    return {"started_at": at(begun), "ended_at": at(ended), **error}


ENGLISH = Words(make_localizer("en", []))


@pytest.mark.parametrize(
    ("job", "tries", "steps"),
    [
        (
            job_at(queued=0, attempt=2, started=20_100, finished=61_100),
            [try_at(2100, 5100)],
            [
                "sent",
                "2.1 s try 1 ValueError 3 s",
                "15 s try 2",
                "41 s Done",
            ],
        ),
        (
            job_at(queued=0, attempt=3, started=20_100, finished=61_100),
            [],
            ["sent", "2 earlier tries", "try 3", "41 s Done"],
        ),
        (
            job_at("error", queued=0, attempt=2, started=10_000, finished=12_000),
            [try_at(1000, 2000, None), try_at(10_000, 12_000)],
            ["sent", "1 s try 1 It broke. 1 s", "8 s try 2 ValueError 2 s", "Failed"],
        ),
        (
            job_at("error", queued=0, attempt=2, started=10_000, finished=12_000),
            [],
            ["sent", "1 earlier try", "try 2", "2 s Failed"],
        ),
        (
            job_at("error", queued=0, attempt=12, started=10_000, finished=12_000),
            [try_at(10_000, 12_000)],
            ["sent", "11 earlier tries", "try 12 ValueError 2 s", "Failed"],
        ),
        (
            job_at("retrying", queued=0, attempt=1, started=1000, due=30_000),
            [try_at(1000, 2000)],
            ["sent", "1 s try 1 ValueError 1 s", "due at", "Trying again"],
        ),
        (
            job_at("working", queued=0, attempt=1, started=90_000, due=1000),
            [],
            ["sent", "2 min try 1", "Running"],
        ),
        # It ran again after a failure, which counts its attempts anew.
        (
            job_at("working", queued=0, attempt=1, started=50_000),
            [try_at(1000, 2000), try_at(3000, 4000)],
            [
                "sent",
                "1 s try 1 ValueError 1 s",
                "1 s try 2 ValueError 1 s",
                "46 s try 3",
                "Running",
            ],
        ),
        (
            job_at("queued", queued=0, attempt=0, due=50_000),
            [],
            ["sent", "due at", "Waiting"],
        ),
        (
            job_at("cancelled", queued=0, attempt=0, finished=5000),
            [],
            ["sent", "5 s Cancelled"],
        ),
        (
            job_at("error", attempt=0, finished=5000),
            [{**try_at(0, 5000), "started_at": None}],
            ["sent", "try 1 ValueError", "Failed"],
        ),
        (job_at("sleeping", attempt=0), [], ["sent", "Running"]),
    ],
)
def test_timeline(
    job: dict[str, Any], tries: list[dict[str, Any]], steps: list[str]
) -> None:
    """The steps of a job, with the time between them and that of each failed try."""
    found = timeline_of(job, tries, ENGLISH)

    texts = [[s.after, s.text, s.detail, s.took] for s in found]
    assert [" ".join(filter(None, each)) for each in texts] == steps


@pytest.mark.parametrize(
    ("millis", "text"),
    [
        (-5, "0 s"),
        (40, "0 s"),
        (60, "0.1 s"),
        (2100, "2.1 s"),
        (9949, "9.9 s"),
        (15_400, "15 s"),
        (59_499, "59 s"),
        (59_500, "1 min"),
        (60 * MINUTE - 1, "1 h"),
        (HOUR + 5 * MINUTE, "1 h 5 min"),
        (DAY - 1, "1 d"),
        (DAY + 12 * HOUR, "1.5 d"),
    ],
)
def test_durations(millis: int, text: str) -> None:
    """A duration is as precise as it is useful."""
    assert ENGLISH.duration(millis / SECOND) == text


def test_times_of_the_page(
    store: JobStore, client: redis.Redis, visit: Visiting
) -> None:
    """Each step of the timeline says when it happened, to people and to the script."""
    job = put_job(store, RunMarathon, "success").uuid
    times: Any = {"queued": START, "started": START + 2100, "finished": START + MINUTE}
    client.hset(key_of(store, job), mapping=times)

    page = visit(f"/job_state/{job}")

    assert page.texts(".jobstate-timeline li") == [
        "sent 2027-01-15 00:00 UTC",
        "2.1 s try 1 2027-01-15 00:00 UTC",
        "58 s Done 2027-01-15 00:01 UTC",
    ]
    assert [tag["datetime"] for tag in page.all("time")] == [
        at(0),
        at(2100),
        at(MINUTE),
    ]
