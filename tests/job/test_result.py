"""The link to what a job has made, and what an application can get wrong with it."""

from __future__ import annotations

from typing import Any

import pytest

from pyramid_jobstate.errors import StoreUnavailable
from pyramid_jobstate.job import JobState, Record, result, state
from pyramid_jobstate.job.record import FINISHED, UNFINISHED
from tests.job.viewer import Request
from tests.support import UUID


class Pageant(JobState):
    """A job whose result is at the URL that a metric names."""

    def result_url(self, request: Any) -> str | None:
        file = self.get_progress_metric("file")
        return request.route_url("reports", file=file) if file else None


@pytest.fixture(autouse=True)
def _kinds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget the kinds that a test registers, and which were logged."""
    monkeypatch.setattr(state, "_kinds", dict(state._kinds))
    monkeypatch.setattr(result, "_faulty", set())


def told(cls: type[JobState], status: str = "success", **fields: str) -> Any:
    """Return the result in the JSON of a job."""
    record = Record(UUID, {"status": status, **fields})
    return cls(record).__json__(Request())["job"]["result"]


def test_success_leads_to_its_result() -> None:
    """The class makes the URL of the request and of the job's metrics."""
    assert told(Pageant, **{"m:file": '"a.csv"'}) == {
        "url": "https://example.com/reports/a.csv"
    }


def test_job_may_have_no_result() -> None:
    """By default a job has no result, and a class may return None."""
    assert told(JobState) is None
    assert told(Pageant) is None


@pytest.mark.parametrize("status", [s for s in UNFINISHED + FINISHED if s != "success"])
def test_only_a_success_has_a_result(status: str) -> None:
    """Nobody asks for the result of a job before it has succeeded."""

    class Early(JobState):
        def result_url(self, request: Any) -> str:
            raise AssertionError

    assert told(Early, status) is None


@pytest.mark.parametrize(
    "url",
    [
        "http://x",
        "HTTPS://EXAMPLE.COM/a?b#c",
        "https://example.com/ü/%20",
        "http://[::1]:8080/",
    ],
)
def test_urls_of_the_web_are_results(url: str) -> None:
    """An http or https URL is passed on as it is."""

    class Website(JobState):
        def result_url(self, request: Any) -> str:
            return url

    assert told(Website) == {"url": url}


@pytest.mark.parametrize(
    "url",
    [
        "javascript:alert(1)",
        " javascript:alert(1)",
        "java\nscript:alert(1)",
        "data:text/html,x",
        "/reports/1",
        "reports/1",
        "//example.com/1",
        "ftp://example.com/1",
        "http:",
        "http://",
        "https:///a",
        "http://x/\n",
        "http://x/a b",
        "",
        b"http://x",
        7,
        ["http://x"],
        True,
    ],
    ids=repr,
)
def test_anything_else_is_an_error(url: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Any other value is logged once per kind, with the class and the job. The state
    has no result.
    """

    class Wrong(JobState):
        def result_url(self, request: Any) -> Any:
            return url

    assert [told(Wrong), told(Wrong)] == [None, None]

    (line,) = caplog.messages
    assert line == (
        f"{Wrong.__module__}.{Wrong.__qualname__}.result_url() for the job {UUID} "
        f"returned {url!r}, not an http or https URL, such as request.route_url(…). "
        "The job has no result. Further faults for jobs of kind 'Wrong' are not logged."
    )


def test_exception_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """A class that raises is logged with its traceback, once a kind."""

    class Broken(JobState):
        def result_url(self, request: Any) -> str:
            raise LookupError("no file")

    assert [told(Broken), told(Broken)] == [None, None]

    (record,) = caplog.records
    assert record.getMessage().startswith(
        f"{Broken.__module__}.{Broken.__qualname__}.result_url() for the job {UUID} "
        "raised an exception. The job has no result."
    )
    assert record.exc_text is not None and "LookupError: no file" in record.exc_text


def test_store_that_is_away_is_none_of_its_faults() -> None:
    """If the class asks the store for more, the request is told that it is away."""

    class Inquiring(JobState):
        def result_url(self, request: Any) -> str:
            raise StoreUnavailable("away")

    with pytest.raises(StoreUnavailable):
        told(Inquiring)
