"""The sorted sets that list the jobs, separately for unfinished and ended jobs."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence

from ..job import FINISHED, JobInfo, NewJob, Record, Update
from .calls import beside, has_tag, millis
from .scripts import Call, Reply, Script
from .statuses import Found, indexes_of, number_of, scopes_of

#: Milliseconds for which a requested cancellation is announced. Later, workers learn of
#: it from the reply to a heartbeat.
NEWS_TTL = 60_000

#: Seconds for which this process does not list a kind again.
KIND_SECONDS = 60.0


class Index:
    """Makes the calls that list the jobs of a store: all jobs, by kind, by owner, by
    status, and those whose cancellation was requested recently.

    Beside each index of all jobs or of a kind stand the indexes of the statuses that
    its jobs may have. One script changes them together.

    Parameters:
      scripts: The scripts by name.
      namespace: The prefix of each key.
      active_ttl: Milliseconds that an unfinished job stays listed.
      ended_ttl: Milliseconds that a job stays listed after its end.

    Attributes:
      kind_ttl: Milliseconds that a kind stays listed after one of its jobs was sent or
        started.
    """

    def __init__(
        self,
        scripts: Mapping[str, Script],
        namespace: str,
        active_ttl: int,
        ended_ttl: int,
    ) -> None:
        self._script = scripts["index"]
        self._seek = scripts["seek"]
        self._namespace = namespace
        self.active_ttl = active_ttl
        self.ended_ttl = ended_ttl
        self.kind_ttl = active_ttl + ended_ttl
        #: When each kind is due to be listed again.
        self._noted: dict[str, float] = {}

    def key(self, name: str, *, ended: bool) -> str:
        """Return the key of an index, whose name is a scope ("all", or "kind:" and a
        kind), or "owner:" and an owner as JSON.
        """
        return index_key(self._namespace, name, ended=ended)

    def status_key(self, scope: str, status: str) -> str:
        """Return the key of a status index, in the slot of the scope's index."""
        return beside(self.key(scope, ended=status in FINISHED), status)

    def ttl(self, *, ended: bool) -> int:
        """Return for how many milliseconds a job stays listed."""
        return self.ended_ttl if ended else self.active_ttl

    def queue(self, job: NewJob, *, again: bool) -> Iterator[Call]:
        """Yield the calls that list a new job, or one that had ended."""
        if again:
            yield from self._reopen(job.uuid, job.info.kind)
        status, delay = "waiting" if job.waits else "sending", millis(job.delay)
        yield from self._enter(job.uuid, job.info, status, delay=delay)

    def confirm(self, uuid: str, kind: str) -> Iterator[Call]:
        """Yield the calls that list a job as sent."""
        yield from self.note_kind(kind)
        yield from self.move(uuid, kind, "queued", Found("sending"))

    def forget(self, job: NewJob) -> Iterable[Call]:
        """Return the calls that remove a job that was not sent."""
        return self.leave(job.uuid, job.info, ended=False)

    def update(
        self, update: Update, reply: Reply | Exception, *, reopened: bool
    ) -> Iterator[Call]:
        """Yield the calls that list a job after an update that begins its run, renews
        its place or ends the run.

        Parameters:
          reply: The store's reply to the update.
          reopened: Whether the job had ended before the run began.
        """
        if reply not in (Reply.OK, Reply.CANCELLING):
            return
        if reopened:
            yield from self._reopen(update.uuid, update.info.kind)
        end, is_cancelling = update.end, reply is Reply.CANCELLING
        uuid, info, delay = update.uuid, update.info, 0
        if end is None:
            status = "cancelling" if is_cancelling else "working"
        else:
            status = "cancelled" if is_cancelling else end.status
            delay = millis(end.delay or 0)
        if status in FINISHED:
            yield from self.end(uuid, info, status)
            return
        if update.begins or update.renews or delay:
            yield from self.note_kind(info.kind, delay)
        place = "GT" if update.renews else "NX" if update.begins else "XX"
        yield from self._enter(uuid, info, status, place, delay)

    def requeue(
        self, uuid: str, info: JobInfo, status: str = "sending"
    ) -> Iterator[Call]:
        """Yield the calls that list a job that had ended as unfinished."""
        # In this order, no crash leaves a job without a place.
        yield from self._enter(uuid, info, status)
        yield from self.leave(uuid, info, ended=True)

    def batch(
        self, uuid: str, info: JobInfo, status: str, delay: int
    ) -> Iterator[Call]:
        """Yield the calls that list a new batch, or list it anew because its place is
        about to expire.

        Parameters:
          delay: Milliseconds until the last of its members is due.
        """
        yield from self.note_kind(info.kind, delay)
        yield from self._enter(uuid, info, status, "GT", delay)

    def delete(self, uuid: str, info: JobInfo) -> Iterator[Call]:
        """Yield the calls that remove a deleted job."""
        yield from self.leave(uuid, info, ended=True)
        yield from self.leave(uuid, info, ended=False)

    def end(self, uuid: str, info: JobInfo, status: str) -> Iterator[Call]:
        """Yield the calls that list a job as ended."""
        # "GT", because the end of an earlier run may have listed it already.
        yield from self._enter(uuid, info, status, "GT")
        # In this order, no crash leaves a job without a place.
        yield from self.leave(uuid, info, ended=False)

    def relist(
        self, uuid: str, record: Record, found: Found | None = None
    ) -> Iterator[Call]:
        """Yield the calls that list a job where its record says.

        Parameters:
          found: The only status index that it may leave for another one of the same
            index, or None for any. If it is elsewhere, it stays.
        """
        if found is not None and record.is_finished == (found.status in FINISHED):
            yield from self.move(uuid, record.kind, record.stored_status, found)
        elif record.is_finished:
            yield from self.end(uuid, record.info, record.status)
        else:
            yield from self.requeue(uuid, record.info, record.stored_status)

    @property
    def cancels_key(self) -> str:
        """The key of the sorted set of running jobs with a requested cancellation."""
        return f"{self._namespace}:cancels"

    def announce(self, uuid: str, kind: str) -> Iterator[Call]:
        """Yield the calls that list a job as being cancelled, and announce to all
        workers that it should stop.
        """
        yield Call.of(self._script, self.cancels_key, (uuid, NEWS_TTL, 0, "GT", 0))
        yield from self.move(uuid, kind, "cancelling")

    @property
    def kinds_key(self) -> str:
        """The key of the sorted set of the kinds of listed jobs."""
        return f"{self._namespace}:kinds"

    def note_kind(self, kind: str, delay: int = 0) -> Iterator[Call]:
        """Yield the call that lists a kind for as long as a job may be listed that is
        sent now and due in `delay` milliseconds, unless it was listed a moment ago.
        """
        now = time.monotonic()
        is_due_late = delay > self.ended_ttl
        if kind and (is_due_late or now >= self._noted.get(kind, 0.0)):
            self._noted[kind] = now + KIND_SECONDS
            args = (kind, self.kind_ttl, delay, "GT", 0)
            yield Call.of(self._script, self.kinds_key, args)

    def drop(self, name: str, uuid: str, *, ended: bool) -> Call:
        """Return the call that removes a job from one index, and from those beside."""
        return self._call(name, (uuid, 0, 0, "", 0), ended=ended)

    def move(
        self,
        uuid: str,
        kind: str,
        status: str,
        found: Found | None = None,
    ) -> Iterator[Call]:
        """Yield the calls that list a job under another status, in the same place.

        Parameters:
          uuid, kind: The job.
          status: Its stored status. Some statuses have no index.
          found: The only status index that it may leave. If it is elsewhere, it stays.
        """
        ended = status in FINISHED
        args = (uuid, self.ttl(ended=ended), 0, "", number_of(status, ended=ended))
        for scope in scopes_of(kind):
            origin = () if found is None else _origin(scope, found)
            yield self._call(scope, (*args, *origin), ended=ended)

    def seek(
        self, scope: str, others: Sequence[str], *args: str | int, ended: bool
    ) -> Call:
        """Return the call that reads the entries of a scope's index that are in none of
        some of its status indexes. See the script for the arguments.
        """
        keys = [self.status_key(scope, status) for status in others]
        return Call.of(self._seek, self.key(scope, ended=ended), args, keys)

    def _reopen(self, uuid: str, kind: str) -> Iterable[Call]:
        """Return the calls that list an ended job under no status. It keeps its place
        among the ended jobs until a list shows that: moved to an earlier page, it would
        be missed by a viewer who pages through the list.
        """
        return self.move(uuid, kind, "success")

    def leave(self, uuid: str, info: JobInfo, *, ended: bool) -> Iterator[Call]:
        """Yield the calls that remove a job from the ended or the unfinished jobs."""
        for name in _names(info):
            yield self.drop(name, uuid, ended=ended)

    def _enter(
        self, uuid: str, info: JobInfo, status: str, place: str = "NX", delay: int = 0
    ) -> Iterator[Call]:
        """Yield the calls that list a job under its status, due in `delay`
        milliseconds. See the script for `place`.
        """
        ended = status in FINISHED
        number = number_of(status, ended=ended)
        args = (uuid, self.ttl(ended=ended), delay, place, number)
        for name in _names(info):
            yield self._call(name, args, ended=ended)

    def _call(self, name: str, args: Sequence[str | int], *, ended: bool) -> Call:
        """Return a call of the script for an index and those beside it."""
        key = self.key(name, ended=ended)
        if name.startswith(OWNER):
            return Call.of(self._script, key, args)
        keys = [beside(key, status) for status in indexes_of(ended=ended)]
        return Call.of(self._script, key, args, keys)


#: How the name of an owner's index begins. Its jobs are not listed by status.
OWNER = "owner:"


def index_key(namespace: str, name: str, *, ended: bool) -> str:
    """Return the key of an index as :meth:`Index.key` does."""
    key = f"{namespace}:{'ended' if ended else 'active'}:{name}"
    if "}" in key and not has_tag(key) and not name.startswith(OWNER):
        # No key of a status index could share its slot.
        return key.replace("}", "%7D")
    return key


def _names(info: JobInfo) -> Iterator[str]:
    yield from scopes_of(info.kind)
    # Among the jobs of its owner, a batch stands for its members.
    if info.owner is not None and not info.is_member:
        yield f"{OWNER}{info.owner}"


def _origin(scope: str, found: Found) -> tuple[str | int, ...]:
    """Return how the script is told of the only index that a job may leave."""
    ended = found.status in FINISHED
    score = found.score if scope == found.scope else ""
    return (number_of(found.status, ended=ended), score)
