"""The request of a viewer, for the JSON of a job."""

from __future__ import annotations

from typing import Any

from pyramid.i18n import make_localizer

from pyramid_jobstate.job import JobState


class Request:
    """The request of a viewer."""

    localizer = make_localizer("en", [])

    @property
    def job_states(self) -> Request:
        return self

    def resource_url(self, resource: JobState) -> str:
        return f"/job_state/{resource.uuid}/"

    def permits(self, context: JobState, permission: str) -> bool:
        return False

    def route_url(self, name: str, **values: Any) -> str:
        return f"https://example.com/{name}/{values['file']}"
