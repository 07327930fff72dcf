"""The worker process: follows the messages of tracked actors.

This wing may import Dramatiq, redis-py's exceptions, :mod:`pyramid_jobstate.errors`,
:mod:`pyramid_jobstate.embedded` and the wings `store` and `job`, but not Pyramid.
"""
