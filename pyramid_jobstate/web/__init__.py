"""The Pyramid side: resources, views, and sending with the transaction.

This wing may import Pyramid, pyramid_retry, transaction, zope.interface, Dramatiq,
redis-py's exceptions, :mod:`pyramid_jobstate.errors` and the wings `worker`, `store`
and `job`. A worker imports it only with an application.
"""
