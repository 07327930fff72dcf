"""How many streams are open in a process, for each owner, and under how many hosts."""

from __future__ import annotations

import collections
import logging
import resource
import threading
from typing import Any

from .forks import watch_forks

log = logging.getLogger("pyramid_jobstate")

#: The most streams that one owner may have open in a process.
MAX_OF_OWNER = 20

#: How many sites may have streams open in a process.
MAX_SITES = 8

#: The default of max_streams where descriptors are unlimited.
MAX_STREAMS = 100_000


class Rooms:
    """Counts the open streams of a process. Any thread may ask.

    Parameters:
      max_streams: The most streams, or None for half the descriptors that the process
        may open.
    """

    def __init__(self, max_streams: int | None) -> None:
        self.max_streams = usual_streams() if max_streams is None else max_streams
        self._said: set[str] = set()
        self._reset()
        watch_forks().add(self)

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._owners: collections.Counter[Any] = collections.Counter()
        self._sites: collections.Counter[Any] = collections.Counter()
        self.count = 0

    def abandon(self) -> None:
        """Start anew. Called in a forked child, which has none of the streams."""
        self._reset()

    def has(self, owner: object, site: str | None) -> bool:
        """Return whether a request could get a stream: see :meth:`take`."""
        return self._refusal(_key(owner), site) is None

    def take(self, owner: object, site: str | None) -> bool:
        """Count a stream. Return False if there are too many already. The first refusal
        is logged.

        Parameters:
          owner: The owner who asks for it, or None.
          site: How the URLs in its states begin, if its visitor may have made that up,
            or None. For each site, jobs are rendered once more.
        """
        key = _key(owner)
        with self._lock:
            refusal = self._refusal(key, site)
            if refusal is None:
                self.count += 1
                self._owners[key] += 1
                self._sites[site] += 1
                return True
            is_said = refusal in self._said
            self._said.add(refusal)
        if not is_said:
            log.warning("%s Further pages poll.", refusal)
        return False

    def leave(self, owner: object, site: str | None) -> None:
        """Stop counting a stream."""
        with self._lock:
            self.count -= 1
            for counter, key in ((self._owners, _key(owner)), (self._sites, site)):
                counter[key] -= 1
                if not counter[key]:
                    del counter[key]

    def _refusal(self, key: object, site: str | None) -> str | None:
        if self.count >= self.max_streams:
            limit = f"{self.max_streams} streams (jobstate.max_streams)"
            return f"The limit of {limit} is reached."
        if key is not None and self._owners[key] >= MAX_OF_OWNER:
            return f"An owner has {MAX_OF_OWNER} streams open in this process."
        is_another = site is not None and site not in self._sites
        if is_another and len(self._sites) >= MAX_SITES:
            limit = f"{MAX_SITES} host names (one with jobstate.base_url)"
            return f"The limit of {limit} is reached."
        return None


def usual_streams() -> int:
    """Return half the number of descriptors that the process may open."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MAX_STREAMS if soft == resource.RLIM_INFINITY else soft // 2


def _key(owner: object) -> object:
    # Since 1 == True == 1.0 in Python, the type tells owners apart.
    return None if owner is None else (type(owner).__name__, owner)
