"""Texts of jobs, and of addresses, that try to be more than text in a page."""

from __future__ import annotations

from urllib.parse import urlencode

import pytest

from pyramid_jobstate import JobError, JobState, JobStore, Progress
from pyramid_jobstate.testing import put_job
from tests.jobs import RunMarathon
from tests.support import key_of
from tests.web.operating import put
from tests.web.paging import Visit, Visiting, paged_app, paged_config, shape_of
from tests.webapp import make_app

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


def put_each(store: JobStore, cls: type[JobState], status: str, text: str) -> str:
    """Store a job with a text in each field, and return its uuid."""
    return put_job(
        store,
        cls,
        status,
        owner=f"owner {text}",
        params={"miles": f"value {text}", text: "named"},
        metrics={"m": f"metric {text}", "n": {text: text}},
        message=f"message {text}",
        log=[f"line {text}"],
        progress=Progress(1, 2, f"unit {text}"),
        error=JobError(f"type {text}", f"exception {text}"),
    ).uuid


def assert_has(page: Visit, *words: str) -> None:
    """Assert that a page has the texts that begin with these words."""
    text = page.html.get_text()
    for word in words:
        assert f"{word} {HOSTILE}" in text, word


@pytest.mark.parametrize("status", ["working", "error"])
def test_hostile_texts_stay_text(store: JobStore, visit: Visiting, status: str) -> None:
    """Whatever a job, its owner or its kind is called, it adds no element and no
    attribute to a page, and is read as it is.
    """
    harmless = put_each(store, RunMarathon, status, "x")
    list_shape = shape_of(visit("/job_state"))
    shape = shape_of(visit(f"/job_state/{harmless}"))
    job = put_each(store, Hurdles, status, HOSTILE)

    page = visit("/job_state")
    one = visit(f"/job_state/{job}")

    assert shape_of(page) == list_shape
    assert shape_of(one) == shape
    words = ["title", "message", "owner", "unit"]
    assert_has(page, "kind", *words)
    assert_has(one, "line", "value", "metric", *words)
    if status == "error":
        assert_has(page, "error")
        assert_has(one, "error", "type", "exception")
    assert {HOSTILE, "m", "n", "miles"} == {tag.get_text() for tag in one.all("dt")}
    assert one.all("title")[0].get_text() == f"title {HOSTILE}"


def test_half_a_surrogate_pair_is_shown_as_a_question_mark(
    store: JobStore, visit: Visiting
) -> None:
    """Text that JSON can spell, and UTF-8 cannot, does not break a page."""
    job = put_job(store, RunMarathon).uuid
    store.client.hset(key_of(store, job), mapping={"message": r'"half \ud800"'})

    for path in "/job_state", f"/job_state/{job}":
        assert "half ?" in visit(path).html.get_text()


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


def test_hostile_traceback_stays_text(store: JobStore, visit: Visiting) -> None:
    """A traceback is shown as it is."""
    trace = "</pre><script>alert(1)</script>"
    (job,) = put(store, "alice", status="error", traceback=trace)

    page = visit(f"/job_state/{job}")

    assert page.one("pre").get_text() == trace
    assert len(page.all("script")) == 2


def test_pages_need_nothing_inline(store: JobStore, visit: Visiting) -> None:
    """A strict Content-Security-Policy has nothing to block: no inline script or style,
    no event handler, and nothing from elsewhere.
    """
    job = put_job(store, RunMarathon, "error", metrics={"m": 1}).uuid

    for page in visit("/job_state"), visit(f"/job_state/{job}"):
        for tag in page.html.find_all(True):
            assert tag.name != "style"
            assert not [name for name in tag.attrs if name.startswith("on")]
            assert "style" not in tag.attrs
        for tag in page.all("script"):
            assert tag.get_text() == ""
        for tag in page.all("[src], [href], [action]"):
            for name in "src", "href", "action":
                url = str(tag.get(name, "http://localhost/"))
                assert url.startswith("http://localhost/"), tag


def test_settings_of_the_application_s_jinja2_do_not_matter(
    redis_url: str, store: JobStore
) -> None:
    """An application whose own templates escape nothing, or are spelled otherwise, has
    the same pages.
    """
    settings = {
        "jinja2.autoescape": "false",
        "jinja2.undefined": "strict",
        "jinja2.variable_start_string": "[[",
        "jinja2.block_start_string": "<%",
        "jinja2.trim_blocks": "true",
    }
    put_job(store, RunMarathon, message="<b>", metrics={"m": 1})
    plain_page = Visit(paged_app(redis_url), "/job_state").response.text
    config = paged_config(redis_url, settings=settings)
    config.include("pyramid_jinja2")

    text = Visit(make_app(config), "/job_state").response.text

    assert text == plain_page
    assert "&lt;b&gt;" in text
