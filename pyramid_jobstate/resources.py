"""The container of jobs, for an application's own resource tree."""

from __future__ import annotations

from .web.jobstates import Default, JobStates

__all__ = ["Default", "JobStates"]
