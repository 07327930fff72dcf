"""Which errors of a server pass by themselves."""

from __future__ import annotations

from redis.exceptions import ResponseError

#: The prefixes of errors that will pass.
PASSING = (
    "LOADING",
    "BUSY",
    "MASTERDOWN",
    "CLUSTERDOWN",
    "TRYAGAIN",
    "ERR max number of clients",
)


def is_passing(error: Exception) -> bool:
    """Return whether a server will not answer so for long. redis-py leaves out the
    prefix of the errors that it has a class for: see `redis.exceptions`.
    """
    return isinstance(error, ResponseError) and str(error).startswith(PASSING)
