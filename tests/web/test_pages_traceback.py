"""The traceback on the page of a job: the application's frames, and what is folded."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pyramid_jobstate import JobError, JobStore
from pyramid_jobstate.testing import put_job
from tests.jobs import RunMarathon
from tests.support import load_job
from tests.web.paging import (
    INNER,
    OUTER,
    OWN,
    SITE,
    TRACEBACK,
    Visit,
    Visiting,
    paged_app,
)

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
    """Returns the parts of a traceback on the page of its job: an open one as it is, a
    folded one as its heading. Together, they are the traceback.
    """

    def show(text: str, message: str = "wrong") -> list[str]:
        error = JobError("ValueError", message)
        job = put_job(store, RunMarathon, "error", error=error, traceback=text)
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


def test_traceback_opens_at_the_application_s_frames(
    shown: Callable[..., list[str]],
) -> None:
    """Runs of frames of libraries are folded. What raised is seen, and each line of the
    application's, with the headers between the exceptions of a chain or a group.
    """
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


def test_frame_is_taken_whole(shown: Callable[..., list[str]]) -> None:
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


def test_libraries(shown: Callable[..., list[str]]) -> None:
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


def test_application_may_be_configured_in_a_subpackage(
    redis_url: str, store: JobStore
) -> None:
    """The frames of all its packages are its own."""
    app = paged_app(redis_url, package="tests.web")
    text = TRACEBACK.replace("/srv/shop/shop", f"{SITE}/tests")
    error = JobError("ValueError", "wrong")
    job = put_job(store, RunMarathon, "error", error=error, traceback=text)
    summaries = Visit(app, f"/job_state/{job.uuid}").texts("[role=region] summary")
    outer = "2 frames of dramatiq, pyramid_jobstate"
    assert summaries == [outer, "1 frame of openpyxl"]


def test_what_is_no_frame_is_seen(shown: Callable[..., list[str]]) -> None:
    """A message may look like a traceback, and the beginning may be cut off anywhere,
    also in the message. Nothing is lost.
    """
    for said in FAKE, f"very {8 * FAKE}":
        # As it is stored.
        message = said[:1000]
        text = f"{OUTER}{OWN}ValueError: {said}\n"
        last = f"{OWN}ValueError: {said}\n"
        assert shown(text, message)[1:] == [
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


def test_traceback_of_a_cancelled_job(store: JobStore, visit: Visiting) -> None:
    """A job that failed and was cancelled before its next try has the traceback of the
    last one, and no exception. That it was cancelled says its status.
    """
    error, end = JobError("ValueError", FAKE), f"{OWN}ValueError: {FAKE}\n"
    job = put_job(store, RunMarathon, "retrying", error=error, traceback=OUTER + end)
    assert load_job(store, job.uuid).cancel()
    page = visit(f"/job_state/{job.uuid}")
    assert page.texts("h2") == ["Traceback", "Timeline"]
    assert page.all("pre")[-1].get_text() == end
    assert page.texts(".jobstate-detail") == ["ValueError"]
