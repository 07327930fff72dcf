"""Storage of jobs in Redis or Valkey: all keys, scripts and encodings.

This wing may import redis-py, :mod:`pyramid_jobstate.job` and
:mod:`pyramid_jobstate.errors`, but not Dramatiq or Pyramid.
"""
