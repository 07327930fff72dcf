"""The public import path of :class:`JobStates`."""

from __future__ import annotations

from .web import JobStates

__all__ = ["JobStates"]
