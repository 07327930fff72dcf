"""The sorted sets that list the jobs, separately for unfinished and ended jobs."""

from __future__ import annotations

from collections.abc import Iterator

from ..job import JobInfo
from .scripts import Call, Script

#: Milliseconds for which a requested cancellation is announced. Later, workers learn of
#: it from the reply to a heartbeat.
NEWS_TTL = 60_000


class Index:
    """Makes the calls that list the jobs of a store: all jobs, by kind, by owner, and
    those whose cancellation was requested recently.

    Parameters:
      script: The script that adds a job to an index or removes it.
      namespace: The prefix of each key.
      active_ttl: Milliseconds that an unfinished job stays listed.
      ended_ttl: Milliseconds that a job stays listed after its end.
    """

    def __init__(
        self, script: Script, namespace: str, active_ttl: int, ended_ttl: int
    ) -> None:
        self._script = script
        self._namespace = namespace
        self._active_ttl = active_ttl
        self._ended_ttl = ended_ttl

    def key(self, name: str, *, ended: bool) -> str:
        """Return the key of an index, whose name is "all", "kind:" and a kind, or
        "owner:" and an owner as JSON.
        """
        return f"{self._namespace}:{'ended' if ended else 'active'}:{name}"

    def activate(
        self, uuid: str, info: JobInfo, delay: int = 0, *, renews: bool = False
    ) -> Iterator[Call]:
        """Yield the calls that list a job as unfinished and due in `delay`
        milliseconds. A listed job keeps its place unless `renews` is true.
        """
        place = "GT" if renews else "NX"
        for name in _names(info):
            key = self.key(name, ended=False)
            yield Call(self._script, key, (uuid, self._active_ttl, delay, place))

    def end(self, uuid: str, info: JobInfo) -> Iterator[Call]:
        """Yield the calls that list a job as ended."""
        yield from self.remove(uuid, info, ended=False)
        for name in _names(info):
            key = self.key(name, ended=True)
            # "GT", because the end of an earlier run may have listed it already.
            yield Call(self._script, key, (uuid, self._ended_ttl, 0, "GT"))

    def remove(self, uuid: str, info: JobInfo, *, ended: bool) -> Iterator[Call]:
        """Yield the calls that remove a job from the ended or the unfinished jobs."""
        for name in _names(info):
            yield self.drop(self.key(name, ended=ended), uuid)

    @property
    def cancels_key(self) -> str:
        """The key of the sorted set of running jobs with a requested cancellation."""
        return f"{self._namespace}:cancels"

    def announce(self, uuid: str) -> Call:
        """Return the call that announces to all workers that a job should stop."""
        return Call(self._script, self.cancels_key, (uuid, NEWS_TTL, 0, "GT"))

    def drop(self, key: str, uuid: str) -> Call:
        """Return the call that removes a job from one index."""
        return Call(self._script, key, (uuid, 0, 0))


def _names(info: JobInfo) -> Iterator[str]:
    yield "all"
    if info.kind:
        yield f"kind:{info.kind}"
    if info.owner is not None:
        yield f"owner:{info.owner}"
