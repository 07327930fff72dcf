"""The page of a job: its header, acts, timeline, metrics, parameters and failure."""

from __future__ import annotations

import datetime
from typing import Any, ClassVar

import pytest
from markupsafe import Markup
from pyramid.authorization import ALL_PERMISSIONS
from webtest import TestApp

from pyramid_jobstate import JobError, JobState, JobStore
from pyramid_jobstate.testing import put_job
from tests.jobs import RunMarathon
from tests.web.operating import KEEPER, OPERATOR, Marathons, act, put
from tests.web.paging import Visit, Visiting, paged_app
from tests.webapp import get

SECOND, MINUTE, HOUR, DAY = 1000, 60_000, 3_600_000, 86_400_000

START = datetime.datetime(2027, 1, 15, tzinfo=datetime.UTC)


def time_at(millis: int) -> datetime.datetime:
    """Return a time after START."""
    return START + datetime.timedelta(milliseconds=millis)


def at(millis: int) -> str:
    """Return a time after START as JSON spells it."""
    return time_at(millis).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def test_page_has_what_the_json_tells(paged: TestApp, store: JobStore) -> None:
    """The page has the title, id and element of its job, its metrics, and those of its
    parameters that viewers may read. What a job does not have is left out.
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

    page = Visit(paged, f"/job_state/{job}", "alice")

    url = f"http://localhost/job_state/{job}/"
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
    assert page.link("Your jobs") == "http://localhost/job_state/"
    assert page.data["url"] == url
    assert page.data["list"] == "http://localhost/job_state/"
    assert page.data["seen"] == "working 1"

    page = Visit(paged, f"/job_state/{put_job(store, status='queued').uuid}")
    assert page.texts("h2") == ["Timeline"]
    assert not page.has("job-state ol, dl, pre")


NAMES = (
    *("job", "title", "status", "url", "params", "progress", "message", "log"),
    *("attempt", "queued_at", "due_at", "started_at", "finished_at"),
    *("cancellable", "error", "result"),
)


def test_class_may_leave_out_what_it_wants(store: JobStore, visit: Visiting) -> None:
    """A page shows what is left of the JSON of a job, as its row does."""

    class Reticent(JobState):
        def __json__(self, request: Any) -> dict[str, Any]:
            state = super().__json__(request)
            state.pop(name, None)
            state.get("job", {}).pop(name, None)
            return state

    job = put_job(store, Reticent, "retrying", owner="alice", message="Resting").uuid
    for name in NAMES:
        page = visit(f"/job_state/{job}")

        title = job if name in ("job", "title") else "Reticent"
        assert page.texts("h1") == [title], name
        assert page.one("job-state")["src"] == f"http://localhost/job_state/{job}/"
        is_told = "Resting" in page.html.get_text()
        assert is_told is (name not in ("job", "message")), name
        assert visit("/job_state").uuids == [job], name


def test_titles(store: JobStore, visit: Visiting) -> None:
    """A title is what JSON makes of it: text. A job without one has its id: a link
    needs a name, and so do a heading and a box.
    """

    class Inscribed(JobState):
        @property
        def title(self) -> str:
            return titles[-1]

    titles = [""]
    job = put_job(store, Inscribed, "success").uuid
    bold = "<b>Bold</b>"
    for given, title in (Markup(bold), bold), (bold, bold), ("", job), (" \t", job):
        titles.append(given)
        page, listed = visit(f"/job_state/{job}"), visit("/job_state")

        assert page.texts("h1, title") == [title] * 2
        assert not page.has("h1 b, title b")
        assert listed.texts("tbody a") == [title]
        assert title in str(listed.one("tbody input")["aria-label"])


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
    (ended,) = put(store, "alice", cls=RunMarathon, status="error")
    (running,) = put(store, "alice")

    page = Visit(app, f"/{ended}")

    assert page.texts("h1") == ["Run marathon"]
    assert page.data["url"] == f"http://localhost/job_state/{ended}/"
    assert get(app, f"/{ended}/inspect", OPERATOR).json["uuid"] == ended
    assert act(app, f"/{running}/cancel").status_code == 202
    assert act(app, f"/{ended}", method="DELETE").status_code == 204


def test_page_leads_to_the_result(store: JobStore, visit: Visiting) -> None:
    """Without JavaScript, a page links to what its job has made: to the web alone, even
    if a class puts the URL into its JSON itself.
    """

    class Exported(JobState):
        def result_url(self, request: Any) -> str:
            return f"{request.host_url}/reports?a&b"

    class Homemade(JobState):
        def __json__(self, request: Any) -> dict[str, Any]:
            state = super().__json__(request)
            state["job"]["result"] = {"url": url}
            return state

    done, running = (put_job(store, Exported, s).uuid for s in ("success", "working"))
    link = visit(f"/job_state/{done}").link("Open the result")
    assert link == "http://localhost/reports?a&b"
    assert not visit(f"/job_state/{running}").has("job-state a")
    job = put_job(store, Homemade, "success").uuid
    for url in "javascript:alert(1)", "/a", "", None, 7:
        assert not visit(f"/job_state/{job}").has("job-state a"), url
    url = "https://example.com/a"
    assert visit(f"/job_state/{job}").link("Open the result") == url


# What viewers may.

OFFERS = [
    ("working", "alice", ["cancel"]),
    ("cancelling", "alice", []),
    ("error", "alice", []),
    ("success", "alice", []),
    ("working", OPERATOR, ["cancel"]),
    ("success", OPERATOR, ["delete"]),
    ("cancelled", OPERATOR, ["delete"]),
    ("error", OPERATOR, ["rerun", "delete"]),
    ("error", KEEPER, ["rerun", "delete"]),
]


def test_acts_are_those_that_are_permitted(store: JobStore, visit: Visiting) -> None:
    """The page offers what its viewer may do with the job as it is, each with its
    question, and only to the script.
    """
    questions = {
        "cancel": "Cancel this job?",
        "rerun": "Run this job again?",
        "delete": "Delete this job? This cannot be undone.",
    }
    for status, user, acts in OFFERS:
        job = put_job(store, RunMarathon, status, owner="alice").uuid

        page = visit(f"/job_state/{job}", user)

        assert page.acts == acts, (status, user)
        for button in page.all("[data-act]"):
            assert button["data-question"] == questions[str(button["data-act"])]
        assert all(tag.has_attr("hidden") for tag in page.all("[data-jobstate=acts]"))
        assert not page.one("job-state").has_attr("cancellable")


def test_owner_is_told_to_those_who_may_list(store: JobStore, visit: Visiting) -> None:
    """Whoever may list all jobs reads whose a job is, and is led to all."""
    alices, nobodys = (f"/job_state/{job}" for job in put(store, "alice", None))

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


class SelfTimed(JobState):
    """A kind that says itself when what happened to its job."""

    told: ClassVar[dict[str, Any]] = {}

    def __json__(self, request: Any) -> dict[str, Any]:
        state = super().__json__(request)
        state["job"].update(self.told)
        return state


def told(course: str) -> dict[str, Any]:
    """Return what a job's JSON tells of its course: its status, its attempt, and when
    what happened, in milliseconds after START.
    """
    status, attempt, *times = course.split()
    found: dict[str, Any] = {"status": status, "attempt": int(attempt)}
    found |= dict.fromkeys(["queued_at", "started_at", "finished_at", "due_at"])
    for name, _, time in (each.partition("=") for each in times):
        found[f"{name}_at"] = at(int(time))
    return found


#: Courses of jobs, when each failed try began and ended, and the steps.
COURSES = [
    (
        "success 2 queued=0 started=20100 finished=61100",
        "2100-5100",
        "sent|2.1 s try 1 ValueError 3 s|15 s try 2|41 s Done",
    ),
    (
        "success 3 queued=0 started=20100 finished=61100",
        "",
        "sent|2 earlier tries|try 3|41 s Done",
    ),
    (
        "error 2 queued=0 started=10000 finished=12000",
        "1000-2000 10000-12000",
        "sent|1 s try 1 ValueError 1 s|8 s try 2 ValueError 2 s|Failed",
    ),
    (
        "error 2 queued=0 started=10000 finished=12000",
        "",
        "sent|1 earlier try|try 2|2 s Failed",
    ),
    (
        "error 12 queued=0 started=10000 finished=12000",
        "10000-12000",
        "sent|11 earlier tries|try 12 ValueError 2 s|Failed",
    ),
    (
        "retrying 1 queued=0 started=1000 due=30000",
        "1000-2000",
        "sent|1 s try 1 ValueError 1 s|due at|Trying again",
    ),
    ("working 1 queued=0 started=90000 due=1000", "", "sent|2 min try 1|Running"),
    # It ran again after a failure, which counts its attempts anew.
    (
        "working 1 queued=0 started=50000",
        "1000-2000 3000-4000",
        "sent|1 s try 1 ValueError 1 s|1 s try 2 ValueError 1 s|46 s try 3|Running",
    ),
    ("queued 0 queued=0 due=50000", "", "sent|due at|Waiting"),
    ("cancelled 0 queued=0 finished=5000", "", "sent|5 s Cancelled"),
    ("error 0 finished=5000", "-5000", "sent|try 1 ValueError|Failed"),
    ("sleeping 0", "", "sent|Running"),
]

DURATIONS = {
    -5: "0 s",
    40: "0 s",
    60: "0.1 s",
    2100: "2.1 s",
    9949: "9.9 s",
    15_400: "15 s",
    59_499: "59 s",
    59_500: "1 min",
    60 * MINUTE - 1: "1 h",
    HOUR + 5 * MINUTE: "1 h 5 min",
    DAY - 1: "1 d",
    DAY + 12 * HOUR: "1.5 d",
}


def steps_of(page: Visit) -> list[str]:
    """Return the steps of a timeline without their times."""
    for tag in page.all(".jobstate-timeline time"):
        tag.extract()
    return page.texts(".jobstate-timeline li")


def test_timeline(
    store: JobStore, visit: Visiting, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The steps of a job, with the time between them and that of each failed try. A
    duration is as precise as it is useful.
    """
    (job,) = put(store, "alice", cls=SelfTimed, status="error")
    failures = store.failures(job)
    (tried,) = failures.tries
    for course, tries, steps in COURSES:
        found = [
            tried._replace(
                started_at=time_at(int(begun)) if begun else None,
                ended_at=time_at(int(ended)),
            )
            for begun, _, ended in (each.partition("-") for each in tries.split())
        ]
        known = failures._replace(tries=tuple(found))
        monkeypatch.setattr(JobStore, "failures", lambda *args, known=known: known)
        monkeypatch.setattr(SelfTimed, "told", told(course))

        assert steps_of(visit(f"/job_state/{job}")) == steps.split("|")
    monkeypatch.setattr(JobStore, "failures", lambda *args: failures._replace(tries=()))
    for millis, text in DURATIONS.items():
        now = told(f"working 1 queued=0 started={millis}")
        monkeypatch.setattr(SelfTimed, "told", now)
        assert steps_of(visit(f"/job_state/{job}"))[1] == f"{text} try 1"


def test_failed_try_without_an_exception(store: JobStore, visit: Visiting) -> None:
    """A try that no exception has ended says what did."""
    error = JobError(None, "It broke.")
    job = put_job(store, SelfTimed, "error", error=error).uuid

    (step,) = (s for s in steps_of(visit(f"/job_state/{job}")) if "try 1" in s)

    assert "It broke." in step


def test_times_of_the_page(
    store: JobStore, visit: Visiting, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each step of the timeline says when it happened, to people and to the script."""
    course = told("success 1 queued=0 started=2100 finished=60000")
    monkeypatch.setattr(SelfTimed, "told", course)
    job = put_job(store, SelfTimed, "success").uuid

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
