"""Jobs that are watched: read on connections on which Redis announces their changes.

Imported by :mod:`pyramid_jobstate.web.push` only, so that workers, and processes whose
pages poll, do without it.
"""

from .link import Answer, Changed, Clock, Link, Question, TrackingRefused
from .tracker import Tracker, is_elsewhere

__all__ = [
    "Answer",
    "Changed",
    "Clock",
    "Link",
    "Question",
    "Tracker",
    "TrackingRefused",
    "is_elsewhere",
]
