"""The keys under which an application's registry keeps what is ours."""

from __future__ import annotations

from pyramid.interfaces import IException
from zope.interface import Interface


class IJobStore(Interface):
    """Marks the application's JobStore, a utility."""


class IOwner(Interface):
    """Marks the function that returns the owner of a request's jobs, a utility."""


class IPermits(Interface):
    """Marks the function that decides what a request may do, a utility."""


class IMaxUuids(Interface):
    """Marks the number of jobs that one request may ask for, a utility."""


class IWebOutage(Interface):
    """Marks the WebOutage of an application, a utility."""


class IOutbox(Interface):
    """Marks what keeps the messages that an application's tests send, a utility."""


class IStoreUnavailable(IException):
    """Marks StoreUnavailable. The application's view for the class itself wins over
    ours for this interface, whichever was registered first.
    """
