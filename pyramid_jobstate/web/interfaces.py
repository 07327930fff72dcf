"""The keys of the registry, and the names of our routes."""

from __future__ import annotations

from pyramid.interfaces import IException
from zope.interface import Interface


class IJobStore(Interface):
    """Marks the application's JobStore, a utility."""


class IPages(Interface):
    """Marks the Pages of an application, a utility, if it has included them."""


class IOutbox(Interface):
    """Marks the Clerk that keeps what an application's tests send, a utility."""


class IStoreUnavailable(IException):
    """Marks StoreUnavailable. An application's exception view for the class takes
    precedence over ours for this interface, whichever was registered first.
    """


LIST = "pyramid_jobstate"
COUNTS = "pyramid_jobstate.counts"
WORKERS = "pyramid_jobstate.workers"
CLEAR = "pyramid_jobstate.clear"
CANCEL_ALL = "pyramid_jobstate.cancel_all"
RERUN_ALL = "pyramid_jobstate.rerun_all"
JOB = "pyramid_jobstate.job"
CANCEL = "pyramid_jobstate.cancel"
RERUN = "pyramid_jobstate.rerun"
INSPECT = "pyramid_jobstate.inspect"
STACK = "pyramid_jobstate.stack"
LOG = "pyramid_jobstate.log"
OTHER = "pyramid_jobstate.other"
