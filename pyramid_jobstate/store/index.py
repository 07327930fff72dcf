"""The sorted sets that list the jobs: those that have ended and those that have not."""

from __future__ import annotations

from collections.abc import Iterator

from ..job import JobInfo
from .scripts import Call, Script

#: How long a requested cancel is announced, in milliseconds. A heartbeat hears of older
#: ones.
NEWS_TTL = 60_000


class Index:
    """Where the jobs of a store are listed: all, by kind and by owner, and those whose
    cancel was requested lately.

    Parameters:
      script: The script that puts a job into an index.
      namespace: What the name of each key begins with.
      active_ttl: Milliseconds that a job which has not ended is listed.
      ended_ttl: Milliseconds that one is listed after its end.
    """

    def __init__(
        self, script: Script, namespace: str, active_ttl: int, ended_ttl: int
    ) -> None:
        self._script = script
        self._namespace = namespace
        self._active_ttl = active_ttl
        self._ended_ttl = ended_ttl

    def key(self, name: str, *, ended: bool) -> str:
        """Return the key of one index: of "all", of "kind:" and a kind, or of "owner:"
        and an owner as JSON.
        """
        return f"{self._namespace}:{'ended' if ended else 'active'}:{name}"

    def activate(
        self, uuid: str, info: JobInfo, delay: int = 0, *, renews: bool = False
    ) -> Iterator[Call]:
        """Yield the calls that list a job as one that has not ended, and is due after
        `delay` milliseconds. One that is there keeps its place, unless that is renewed.
        """
        place = "GT" if renews else "NX"
        for name in _names(info):
            key = self.key(name, ended=False)
            yield Call(self._script, key, (uuid, self._active_ttl, delay, place))

    def end(self, uuid: str, info: JobInfo) -> Iterator[Call]:
        """Yield the calls that list a job as one that has ended."""
        yield from self.remove(uuid, info, ended=False)
        for name in _names(info):
            key = self.key(name, ended=True)
            # It may be there since the end of an earlier run.
            yield Call(self._script, key, (uuid, self._ended_ttl, 0, "GT"))

    def remove(self, uuid: str, info: JobInfo, *, ended: bool) -> Iterator[Call]:
        """Yield the calls that take a job out of those that have ended, or have not."""
        for name in _names(info):
            yield self.drop(self.key(name, ended=ended), uuid)

    @property
    def cancels_key(self) -> str:
        """The key of the sorted set of jobs that were asked to stop."""
        return f"{self._namespace}:cancels"

    def announce(self, uuid: str) -> Call:
        """Return the call that announces to all workers that a job is to stop."""
        return Call(self._script, self.cancels_key, (uuid, NEWS_TTL, 0, "GT"))

    def drop(self, key: str, uuid: str) -> Call:
        """Return the call that takes a job out of one index."""
        return Call(self._script, key, (uuid, 0, 0))


def _names(info: JobInfo) -> Iterator[str]:
    yield "all"
    if info.kind:
        yield f"kind:{info.kind}"
    if info.owner is not None:
        yield f"owner:{info.owner}"
