"""The job itself: its record, its changes, its reports and its JobState.

This wing may import the standard library, translationstring and
:mod:`pyramid_jobstate.errors`, but not Redis, Dramatiq or Pyramid.
"""
