"""A job as viewers see it: its JSON, and the link to what it has made."""

from typing import Any

import pytest
from pyramid.request import Request

from pyramid_jobstate import JobError, JobState
from pyramid_jobstate.testing import put_job
from tests.support import STATUSES, load_job, write


class Foray(JobState):
    public_params = ("miles", "none")

    def public_error(self, exception_type: str, message: str) -> str:
        return f"{exception_type}: {message}"


class Pageant(JobState):
    """A job whose result is at the URL that a metric names. Nobody asks before."""

    def result_url(self, request: Any) -> str | None:
        assert self.is_success
        file = self.get_progress_metric("file")
        return request.route_url("report", file=file) if file else None


def iso(time: Any) -> str:
    text: str = time.isoformat(timespec="milliseconds")
    return text.replace("+00:00", "Z")


def test_json_shows_a_job(store, viewer):
    """Metrics are at the top, all else is in `job`, and times are as in JavaScript."""
    uuid = put_job(
        store,
        Foray,
        "error",
        params={"miles": 26, "secret": "x"},
        metrics={"miles_run": 12},
        message="Running",
        log=["a", "b"],
        error=JobError("ValueError", "too far"),
        attempt=2,
    ).uuid
    write(store, uuid, progress='[13,26,"miles",14.2]')
    state = load_job(store, uuid)
    miles = {"done": 13, "total": 26, "unit": "miles", "fraction": 0.5, "eta": 14.2}
    assert state.__json__(viewer) == {
        "miles_run": 12,
        "job_state": "error",
        "job": {
            "uuid": uuid,
            "kind": "Foray",
            "title": "Foray",
            "status": "error",
            "url": viewer.resource_url(state),
            "params": {"miles": 26},
            "progress": miles,
            "phase": None,
            "message": "Running",
            "log": ["a", "b"],
            "attempt": 2,
            "usual": None,
            "queued_at": iso(state.queued_at),
            "due_at": None,
            "started_at": iso(state.started_at),
            "updated_at": iso(state.updated_at),
            "quiet_since": None,
            "finished_at": iso(state.finished_at),
            "cancellable": False,
            "error": {"message": "ValueError: too far"},
            "result": None,
        },
    }
    assert viewer.resource_url(state) == f"http://localhost/job_state/{uuid}/"


def test_json_hides_exceptions_and_params(store, viewer):
    """Both are hidden by default. Reasons that no exception gave are shown."""
    for status, error, text in (
        ("error", JobError("ValueError", "too far"), "The job failed."),
        ("cancelled", JobError("SkipMessage", "too far"), "The job was skipped."),
        ("cancelled", JobError(None, "Too late."), "Too late."),
    ):
        state = put_job(store, JobState, status, params={"miles": 26}, error=error)
        shown = state.__json__(viewer)
        assert shown["job"]["params"] == {}
        assert shown["job"]["error"] == {"message": text}
        assert "too far" not in str(shown)


def test_json_has_the_coarse_state(store, viewer):
    """Pages rely on one of three. Only a success has a result."""
    for status in STATUSES:
        job = put_job(store, Pageant, status, metrics={"file": "a.csv"})
        shown = job.__json__(viewer)
        ends = {"success": "success", "error": "error", "cancelled": "error"}
        assert shown["job_state"] == ends.get(status, "working")
        assert shown["job"]["status"] == status
        assert (shown["job"]["result"] is not None) == (status == "success")


# What a job has made.


def result(state: JobState, viewer: Request) -> Any:
    return state.__json__(viewer)["job"]["result"]


@pytest.mark.promise("results-are-shown")
def test_success_leads_to_its_result(store, viewer):
    """The class makes a URL of the request and the metrics, or by default none."""
    made = put_job(store, Pageant, "success", metrics={"file": "a.csv"})
    assert result(made, viewer) == {"url": "http://localhost/reports/a.csv"}
    assert result(put_job(store, Pageant, "success"), viewer) is None
    assert result(put_job(store, status="success"), viewer) is None


@pytest.mark.promise("results-are-shown")
def test_result_is_on_the_web(store, viewer, caplog):
    """An http or https URL is passed on as it is. Anything else, or an exception, is
    logged once a kind, with the class and the job, and the job has no result.
    """

    class Website(JobState):
        def result_url(self, request: Any) -> str:
            return str(self.get_progress_metric("url"))

    for url in "HTTPS://EXAMPLE.COM/a?b#c", "https://example.com/ü", "http://[::1]:80/":
        state = put_job(store, Website, "success", metrics={"url": url})
        assert result(state, viewer) == {"url": url}
    wrong: list[Any] = [
        *("javascript:alert(1)", " javascript:alert(1)", "java\nscript:alert(1)"),
        *("data:text/html,x", "/reports/1", "//example.com", "http://", "https:///a"),
        *("http://x/\n", "http://x/a b", "", b"http://x", *range(100)),
    ]
    for number, url in enumerate(wrong):
        body = {"result_url": lambda self, request, url=url: url}
        kind: Any = type(f"Wrong{number}", (JobState,), body)
        state = put_job(store, kind, "success")
        assert [result(state, viewer), result(state, viewer)] == [None, None]
        (line,) = caplog.messages
        assert line == (
            f"{kind.__module__}.{kind.__qualname__}.result_url() for the job "
            f"{state.uuid} returned {url!r}, not an http or https URL, such as "
            "request.route_url(…). The job has no result. Further faults for jobs of "
            f"kind {kind.kind!r} are not logged."
        )
        caplog.clear()

    class Broken(JobState):
        def result_url(self, request: Any) -> str:
            raise LookupError("no file")

    state = put_job(store, Broken, "success")
    assert [result(state, viewer), result(state, viewer)] == [None, None]
    (record,) = caplog.records
    assert record.getMessage().startswith(
        f"{Broken.__module__}.{Broken.__qualname__}.result_url() for the job "
        f"{state.uuid} raised an exception. The job has no result."
    )
    assert record.exc_text is not None and "LookupError: no file" in record.exc_text
