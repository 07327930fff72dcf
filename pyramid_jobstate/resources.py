"""The resources of jobs: the container that an application may mount in its tree."""

from .web.resources import JobStates

__all__ = ["JobStates"]
