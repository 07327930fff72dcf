"""Texts of jobs, and of addresses, that try to be more than text in a page."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlencode

import pytest

from pyramid_jobstate import JobError, JobState, JobStore, Progress
from pyramid_jobstate.testing import put_job
from tests.jobs import RunMarathon
from tests.web.paging import Visiting, put_batch, shape_of

#: Ends an attribute, an element, a script, an expression of any template engine; has
#: control characters, and text of another direction.
HOSTILE = (
    "\"'><script>alert(1)</script><img src=x onerror=alert(2)>&amp;</title></textarea>"
    "</job-state>{{ 7 * 7 }}{% raw %}${7*7}<%= 7*7 %>\u202eabc\u2028\x1b[2J"
)


class Hurdles(JobState):
    """A kind of job whose texts try to be more."""

    kind = f"kind {HOSTILE}"
    public_params = ("miles", HOSTILE)

    @property
    def title(self) -> str:
        return f"title {HOSTILE}"

    def public_error(self, exception_type: str, message: str) -> str:
        return f"error {HOSTILE}"


@pytest.mark.promise("texts-are-inert")
def test_hostile_texts_stay_text(store: JobStore, visit: Visiting) -> None:
    """Texts of jobs, owners and kinds add no markup to a page, and read as they are."""

    def put_each(cls: type[JobState], text: str) -> str:
        given: dict[str, Any] = {
            "owner": f"owner {text}",
            "params": {"miles": f"value {text}", text: "named"},
            "metrics": {"m": f"metric {text}", "n": {text: text}},
            "message": f"message {text}",
            "log": [f"line {text}"],
            "progress": Progress(1, 2, f"unit {text}"),
            "error": JobError(f"type {text}", f"exception {text}"),
            "traceback": f"trace {text}",
        }
        put_job(store, cls, "error", **given)
        # Shows both its message and its error.
        return put_job(store, cls, "retrying", **given).uuid

    harmless = put_each(RunMarathon, "x")
    list_shape = shape_of(visit("/job_state"))
    groups_shape = shape_of(visit("/job_state?status=error&group=error"))
    shape = shape_of(visit(f"/job_state/{harmless}"))
    job = put_each(Hurdles, HOSTILE)
    page = visit("/job_state")
    one = visit(f"/job_state/{job}")
    groups = visit("/job_state?status=error&group=error")
    assert len(groups.all("tbody tr")) == 2
    assert shape_of(groups) == groups_shape
    assert shape_of(page) == list_shape
    assert shape_of(one) == shape
    both = ["title", "message", "owner", "unit", "type", "exception"]
    own = ["error", "line", "value", "metric", "trace"]
    for visited, words in (page, ["kind", *both]), (one, [*both, *own]):
        text = visited.html.get_text()
        for word in words:
            assert f"{word} {HOSTILE}" in text, word
    assert {HOSTILE, "m", "n", "miles"} == {tag.get_text() for tag in one.all("dt")}
    assert one.all("title")[0].get_text() == f"title {HOSTILE}"


def test_hostile_titles_of_a_batch_stay_text(store: JobStore, visit: Visiting) -> None:
    """Nothing in the titles of a batch and of its members becomes an element."""
    options: Any = {"title": f"batch {HOSTILE}", "member": Hurdles, "owner": HOSTILE}
    batch, (job,) = put_batch(store, "error", **options)
    plain, (other,) = put_batch(store, "error")
    page, member = visit(f"/job_state/{batch}"), visit(f"/job_state/{job}")
    assert shape_of(page) == shape_of(visit(f"/job_state/{plain}"))
    assert page.one("h1").get_text() == f"batch {HOSTILE}"
    assert page.one("tr th a").get_text() == f"title {HOSTILE}"
    assert shape_of(member) == shape_of(visit(f"/job_state/{other}"))
    assert member.one(".jobstate-batch a").get_text() == f"batch {HOSTILE}"


def test_hostile_queries_stay_text(store: JobStore, visit: Visiting) -> None:
    """What a query says adds nothing to a page, and its links say the same."""
    put_job(store, RunMarathon)
    shape = shape_of(visit("/job_state?owner=a&kind=Unknown&id=x"))
    query = urlencode({"owner": HOSTILE, "kind": HOSTILE, "id": HOSTILE})
    page = visit(f"/job_state/?{query}")
    assert shape_of(page) == shape
    assert page.one("input[name=owner]")["value"] == HOSTILE
    filters = {"kind": HOSTILE, "owner": HOSTILE, "status": "error"}
    assert page.link("Failed") == f"http://localhost/job_state/?{urlencode(filters)}"
