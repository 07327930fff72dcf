"""The page of a job: its header, acts, timeline, metrics, parameters and failure."""

import datetime
import json
from collections.abc import Callable
from typing import Any, ClassVar

import pytest

from pyramid_jobstate import JobError, JobState, JobStore
from pyramid_jobstate.testing import put_job
from tests.jobs import RunMarathon
from tests.support import key_of, load_job
from tests.web.operating import KEEPER, put
from tests.web.paging import INNER, OUTER, OWN, SITE, TRACEBACK, Visit, Visiting
from tests.webapp import get

START = datetime.datetime(2027, 1, 15, tzinfo=datetime.UTC)


def at(millis: int) -> str:
    """Return a time after START as JSON spells it."""
    time = START + datetime.timedelta(milliseconds=millis)
    return time.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def facts_of(page: Visit) -> dict[str, str]:
    """Return the metrics and parameters of a page."""
    return dict(zip(page.texts("dt"), page.texts("dd"), strict=True))


def test_page_has_what_the_json_tells(paged, store):
    """The page tells what the JSON tells, and leaves out what is missing."""
    job = put_job(
        store,
        RunMarathon,
        owner="alice",
        params={"miles": 26},
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
    metrics = {"miles_run": "12", "place": "the bridge", "splits": "[1, 2.5]"}
    assert facts_of(page) == {**metrics, "miles": "26"}
    live = [tag["data-metric"] for tag in page.all(f"[data-job={element['id']}]")]
    assert live == [*metrics]
    assert page.texts("h2") == ["Timeline", "Metrics", "Parameters"]
    assert page.link("Your jobs") == page.data["list"] == "http://localhost/job_state/"
    assert (page.data["url"], page.data["seen"]) == (url, "working 1")

    page = Visit(paged, f"/job_state/{put_job(store, status='queued').uuid}")
    assert page.texts("h2") == ["Timeline"]
    assert not page.has("job-state ol, dl, pre")


def test_page_leads_to_the_result(store, visit):
    """A page links to a result on the web alone, even if its class says otherwise."""

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
    for url in "javascript:alert(1)", "", 7:
        assert not visit(f"/job_state/{job}").has("job-state a"), url


def test_failure_is_for_those_who_may_inspect(paged, store, marathons):
    """With inspect_job, a page tells all of a failure, or why no rerun is possible."""
    (job,) = marathons.fail("alice", kwargs={"shoes": "sandals"})
    lost = put_job(store, RunMarathon, "error", error=JobError(None, "It broke.")).uuid
    page = Visit(paged, f"/job_state/{job}", KEEPER)
    assert facts_of(page) == {"miles": "26", "shoes": "sandals"}
    said = "tests.web.operating.Blister: after 26 miles in sandals shoes"
    assert page.texts("h2 + p") == [said]
    text = "".join(tag.get_text() for tag in page.all("pre"))
    assert text == get(paged, f"/job_state/{job}/inspect", KEEPER).json["traceback"]
    where = [f"Actor: {marathons.run_marathon.actor_name}", "Queue: default"]
    assert page.texts(".jobstate-actor, .jobstate-queue") == where
    assert page.texts("job-state p") == [f"Failed · \u2068{said}\u2069"]
    assert "try 1 tests.web.operating.Blister" in page.texts(".jobstate-timeline li")[1]
    assert not page.has("#jobstate-reason, [data-act][disabled]")
    seen = Visit(paged, f"/job_state/{job}", "alice")
    assert seen.texts("job-state p") == ["Failed · \u2068The job failed.\u2069"]
    assert not seen.has("pre, .jobstate-failure, .jobstate-actor, .jobstate-queue")
    store.client.hdel(key_of(store, job), "queue")
    assert not Visit(paged, f"/job_state/{job}", KEEPER).has(".jobstate-queue")
    other = Visit(paged, f"/job_state/{lost}", KEEPER)
    (reason,) = other.texts("#jobstate-reason")
    assert reason.startswith("The job cannot run again: ")
    button = other.one("[data-act=rerun][disabled]")
    assert button["aria-describedby"] == "jobstate-reason"
    # A reason differs from an exception.
    assert other.texts("h2") == ["Timeline"] and not other.has(".jobstate-failure")
    assert other.texts(".jobstate-detail") == ["It broke."]


def test_exception_replaces_what_others_read(store, visit):
    """It does so unless its class tells the others something else."""

    class Kind(JobState):
        def public_error(self, exception_type: str, message: str) -> str:
            return "Lace your shoes."

    error = JobError("ValueError", "The laces are loose.")
    for cls, status, shown in (
        (JobState, "error", "Failed · \u2068ValueError: The laces are loose.\u2069"),
        (Kind, "error", "Failed · \u2068Lace your shoes.\u2069"),
        # The element keeps why a job was skipped.
        (JobState, "cancelled", "Cancelled · \u2068The job was skipped.\u2069"),
    ):
        page = visit(f"/job_state/{put_job(store, cls, status, error=error).uuid}")
        assert page.texts("job-state p") == [shown]
        assert page.has(".jobstate-instead") is ("ValueError" in shown)


class SelfTimed(JobState):
    """A kind that says itself when what happened to its job."""

    told: ClassVar[dict[str, Any]] = {}

    def __json__(self, request: Any) -> dict[str, Any]:
        state = super().__json__(request)
        state["job"].update(self.told)
        return state


def told(course: str) -> dict[str, Any]:
    """Return what JSON tells of a course, with times in milliseconds after START."""
    status, attempt, *times = course.split()
    found: dict[str, Any] = {"status": status, "attempt": int(attempt)}
    found |= dict.fromkeys(["queued_at", "started_at", "finished_at", "due_at"])
    for name, _, time in (each.partition("=") for each in times):
        found[f"{name}_at"] = at(int(time))
    return found


def steps_of(page: Visit) -> list[str]:
    """Return the steps of a timeline without their times."""
    for tag in page.all(".jobstate-timeline time"):
        tag.extract()
    return page.texts(".jobstate-timeline li")


def test_timeline(store, visit, monkeypatch):
    """The steps of a job, with the time between them, and that of each failed try."""
    (job,) = put(store, "alice", cls=SelfTimed, status="error")
    key, begin = f"{{jobstate:{job}}}:failure", int(START.timestamp() * 1000)
    # Courses of jobs, when each failed try began and ended, and the steps.
    for course, tries, steps in (
        (
            "success 2 queued=0 started=20100 finished=61100",
            "2100-5100",
            "sent|2.1 sec try 1 ValueError 3 sec|15 sec try 2"
            "|41 sec Done 1 min after it was sent",
        ),
        (
            "error 12 queued=0 started=10000 finished=12000",
            "10000-12000",
            "sent|11 earlier tries|try 12 ValueError 2 sec"
            "|Failed 12 sec after it was sent",
        ),
        (
            "retrying 1 queued=0 started=1000 due=30000",
            "1000-2000",
            "sent|1 sec try 1 ValueError 1 sec|due at|Trying again",
        ),
        # It ran again after a failure, which counts its attempts anew.
        (
            "working 1 queued=0 started=50000",
            "1000-2000 3000-4000",
            "sent|1 sec try 1 ValueError 1 sec|1 sec try 2 ValueError 1 sec"
            "|46 sec try 3|Running",
        ),
        ("cancelled 0 queued=0 finished=5000", "", "sent|5 sec Cancelled"),
    ):
        store.client.delete(key)
        for number, each in enumerate(tries.split()):
            times = [begin + int(time) for time in each.split("-")]
            tried = json.dumps([*times, ["ValueError", "wrong"]])
            store.client.hset(key, f"try:{number}", tried)
        monkeypatch.setattr(SelfTimed, "told", told(course))
        assert steps_of(visit(f"/job_state/{job}")) == steps.split("|")


def test_times_of_the_timeline(store, visit, monkeypatch):
    """The time of each step is as precise as it is useful."""
    path = f"/job_state/{put_job(store, SelfTimed).uuid}"
    course = told("success 1 queued=0 started=2100 finished=60000")
    monkeypatch.setattr(SelfTimed, "told", course)
    page = visit(path)
    midnight = "Jan 15, 2027, 12:00 AM UTC"
    done = "58 sec Done Jan 15, 2027, 12:01 AM UTC"
    steps = [f"sent {midnight}", f"2.1 sec try 1 {midnight}", done]
    assert page.texts(".jobstate-timeline li") == steps
    times = [tag["datetime"] for tag in page.all("time")]
    assert times == [at(0), at(2100), at(60_000)]
    for millis, text in (
        (-5, "0 sec"),
        (59_500, "1 min"),
        (65 * 60_000, "1 hr 5 min"),
        (60 * 3_600_000, "2.5 days"),
    ):
        now = told(f"working 1 queued=0 started={millis}")
        monkeypatch.setattr(SelfTimed, "told", now)
        assert steps_of(visit(path))[1] == f"{text} try 1"


# The traceback: the application's frames, and what is folded.


CAUSE = "\nThe above exception was the direct cause of the following exception:\n\n"

GROUP = f'''\
  + Exception Group Traceback (most recent call last):
  |   File "/usr/lib/python3.12/asyncio/runners.py", line 118, in run
  |     return self._loop.run_until_complete(task)
  |   File "/srv/shop/shop/jobs.py", line 3, in main
  |     async with asyncio.TaskGroup() as group:
  | ExceptionGroup: unhandled errors in a TaskGroup (1 sub-exception)
  +-+---------------- 1 ----------------
    | Traceback (most recent call last):
    |   File "/srv/shop/shop/jobs.py", line 5, in fetch
    |     await client.get(url)
    |   File "{SITE}/httpx/_client.py", line 9, in get
    |     raise ValueError("wrong")
    | ValueError: wrong
    +------------------------------------
'''

#: A message that looks like a traceback.
FAKE = f"wrong\n\nTraceback (most recent call last):\n{INNER}{OWN}Exception: x"


@pytest.fixture
def shown(store: JobStore, visit: Visiting) -> Callable[..., list[str]]:
    """Returns the parts of a traceback: open ones, and the headings of folded ones."""

    def show(text: str, message: str = "wrong", status: str = "error") -> list[str]:
        error = JobError("ValueError", message)
        job = put_job(store, RunMarathon, status, error=error, traceback=text)
        if status != "error":
            assert load_job(store, job.uuid).cancel()
        page = visit(f"/job_state/{job.uuid}")
        (root,) = page.all("[role=region]")
        found = root.select("pre")
        # As browsers do, without a newline at the beginning.
        lines = [tag.get_text().removeprefix("\n") for tag in found]
        assert "".join(lines) == text
        headings = [tag.find_previous_sibling("summary") for tag in found]
        return [
            line if heading is None else heading.get_text()
            for line, heading in zip(lines, headings, strict=True)
        ]

    return show


def test_traceback_opens_at_the_application_s_frames(shown):
    """Runs of frames of libraries are folded. The application's and errors are seen."""
    header, outer = OUTER[:35], "2 frames of dramatiq, pyramid_jobstate"
    inner, end = "1 frame of openpyxl", "ValueError: wrong\n"
    assert shown(TRACEBACK) == [header, outer, OWN, inner, end]
    # With notes, and without the lines of the source.
    lines = TRACEBACK.splitlines(keepends=True)
    bare = "".join(line for line in lines if line[:4] != "    ")
    own, end = OWN.partition("    ")[0], f"{end}Row 17\n"
    assert shown(f"{bare}Row 17\n") == [header, outer, own, inner, end]
    last = f"{OWN}KeyError: 'x'\n"
    middle = f"ValueError: wrong\n{CAUSE}{header}"
    parts = [header, outer, OWN, inner, middle, outer, last]
    assert shown(TRACEBACK + CAUSE + OUTER + last, "'x'") == parts
    message = "unhandled errors in a TaskGroup (1 sub-exception)"
    first, asyncio, middle, httpx, last = shown(GROUP, message)
    assert (asyncio, httpx) == ("1 frame of asyncio", "1 frame of httpx")
    assert (first.count("\n"), middle.count("\n"), last.count("\n")) == (1, 7, 2)


def test_frame_is_taken_whole(shown):
    """A frame has marks, lines of a long call, blank ones among them, and repeats."""
    recursion = "  [Previous line repeated 996 more times]\n"
    long = "    call(\n    ~~~~^\n\n        1)\n        ^^\n"
    end = '  File "<x>", line 1\n    a b\n      ^\nSyntaxError: invalid syntax\n'
    text = OUTER + long + INNER + recursion + OWN + recursion + INNER + end
    assert shown(text, "invalid syntax (<x>, line 1)")[1:] == [
        "999 frames of dramatiq, pyramid_jobstate, openpyxl",
        OWN + recursion,
        "1 frame of openpyxl",
        end,
    ]


def test_libraries(shown):
    """Frames are told by their paths, which are those of another machine."""
    for path, name in (
        (f"{SITE}/six.py", "six"),
        ("/usr/lib/python3/dist-packages/dramatiq/actor.py", "dramatiq"),
        ("/usr/lib/python3.12/threading.py", "threading"),
        ("/opt/lib64/python3.13t/concurrent/futures/thread.py", "concurrent.futures"),
        ("<frozen importlib._bootstrap>", "importlib"),
        (r"C:\Python312\Lib\json\decoder.py", "json"),
        (r"C:\app\.venv\Lib\site-packages\redis\client.py", "redis"),
        ("/src/pyramid_jobstate/pyramid_jobstate/web/request.py", "pyramid_jobstate"),
        # The application's own. The package of the tests' one is `tests`.
        ("/src/pyramid_jobstate/demo/jobs.py", ""),
        ("/srv/python3.12/jobs.py", ""),
        (f"{SITE}/tests/jobs.py", ""),
        ("<string>", ""),
    ):
        frame = f'  File "{path}", line 3, in run\n'
        text = f"{OUTER[:35]}{OWN}{frame}ValueError: wrong\n"
        folded = [f"1 frame of {name}"] if name else []
        assert shown(text)[1:-1] == folded, path
    # Without any frame of the application's, nothing is folded.
    text = f"{OUTER}{INNER}ValueError: wrong\n"
    assert shown(text) == [text]


def test_what_is_no_frame_is_seen(shown):
    """A message may look like a traceback, and the beginning may be cut off."""
    for said in FAKE, f"very {8 * FAKE}":
        # As it is stored.
        message = said[:1000]
        text = f"{OUTER}{OWN}ValueError: {said}\n"
        last = f"{OWN}ValueError: {said}\n"
        # A cancelled job keeps the traceback of its last try.
        for status in "error", "retrying":
            assert shown(text, message, status)[1:] == [
                "2 frames of dramatiq, pyramid_jobstate",
                last,
            ]
        for start in range(0, text.index(said), 97):
            assert shown(text[start:], message)[-1].endswith(f"ValueError: {said}\n")
        assert shown(said[101:], message) == [said[101:]]
    many = f"  [Previous line repeated {'9' * 3000} more times]\n"
    assert shown(OUTER + OWN + INNER + many)[-1] == many
    # Nothing else tells of an earlier exception where its message ends.
    earlier = f"LookupError: x\n{INNER}{CAUSE}"
    found = shown(OUTER + OWN + earlier + TRACEBACK)
    assert found[2:4] == [f"{OWN}{earlier}{OUTER[:35]}", found[1]]
    for text in "\n", "x", '  File "', f"{OWN}\n", "Traceback:\n  x\n":
        assert shown(text) == [text]
