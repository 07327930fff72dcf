"""Writes jobs in Redis as they are sent and run, and lists them."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Sequence
from typing import Any

from redis.exceptions import RedisError

from ..job import NewJob, Update
from .calls import Calls, millis
from .claims import UNASKED, Claims, Hold
from .connection import LOST, Client, connect, text
from .entries import ListAccess
from .index import Index
from .reading import Reader
from .scripts import Call, Reply, read_scripts, run_scripts, worst
from .sweeping import Sweep


class JobWrites:
    """The part of a JobStore that writes jobs. See there for the parameters."""

    def __init__(
        self,
        client: Client | str,
        *,
        namespace: str = "jobstate",
        expire_in: float = 24 * 3600,
        active_expire_in: float = 8 * 24 * 3600,
        stalled_after: float = 15,
    ) -> None:
        self.client = connect(client) if isinstance(client, str) else client
        self.namespace = namespace
        self.expire_in = positive("expire_in", expire_in)
        self.active_expire_in = positive("active_expire_in", active_expire_in)
        self.stalled_after = positive("stalled_after", stalled_after)
        silence = millis(stalled_after)
        scripts = read_scripts()
        ttls = {"active_ttl": millis(active_expire_in), "ended_ttl": millis(expire_in)}
        self._calls = Calls(scripts, namespace, silence=silence, **ttls)
        self._reader = Reader(self.client, self._calls.key, silence)
        self._index = Index(scripts, namespace, **ttls)
        self._access = ListAccess(self._reader, self._index, self._run)
        #: Which unique jobs are under way.
        self.claims = Claims(self._calls, *self._access)
        self._sweep = Sweep(
            self.client,
            self._access,
            key=f"{namespace}:swept",
            ttl=2 * sum(ttls.values()),
        )

    def create(self, *jobs: NewJob) -> Sequence[bool]:
        """Write new jobs as queued, in two round trips. Jobs that have ended are queued
        again, in up to two more. A later step of a pipeline is queued when its turn has
        come. The records of other unfinished jobs and of cancelled ones stay unchanged.

        Returns:
          For each job, whether this call queued it or made it wait for its turn.
        """
        replies = self.create_new(*jobs)
        ended = [
            (job, reply)
            for job, reply in zip(jobs, replies, strict=True)
            if isinstance(reply, str)
        ]
        requeued = iter(self.queue_again(ended))
        return [next(requeued) if isinstance(r, str) else r for r in replies]

    def create_new(self, *jobs: NewJob) -> Sequence[bool | str]:
        """Write new jobs as :meth:`create` does, but leave ended jobs alone.

        Returns:
          As :meth:`create`, or for an ended job the token for :meth:`queue_again`.
        """
        replies = [
            text(reply) if isinstance(reply, (str, bytes)) else bool(reply)
            for reply in self._run(self._calls.create(job) for job in jobs)
        ]
        self._list_queued(jobs, [reply is True for reply in replies])
        return replies

    def queue_again(self, ended: Sequence[tuple[NewJob, str]]) -> Sequence[bool]:
        """Write ended jobs as queued again, unless they have changed since
        :meth:`create_new` returned their tokens, or are unique and another job is under
        way.

        Returns:
          For each job, whether it was queued again.
        """
        # The token makes a repeated or late call harmless.
        with contextlib.ExitStack() as stack:
            holds = [
                stack.enter_context(self.claims.held(job.uuid, job.info, job.delay))
                for job, _ in ended
            ]
            replies = self._run(
                self._calls.queue_again(job, token, hold.deadline)
                for (job, token), hold in zip(ended, holds, strict=True)
            )
        is_queued = [bool(reply) for reply in replies]
        self._list_queued([job for job, _ in ended], is_queued, again=True)
        return is_queued

    def _list_queued(
        self, jobs: Sequence[NewJob], is_queued: Sequence[bool], *, again: bool = False
    ) -> None:
        self._list(
            call
            for job, is_new in zip(jobs, is_queued, strict=True)
            if is_new
            for call in self._index.queue(job, again=again)
        )

    def forget(self, *jobs: NewJob) -> None:
        """Delete the records that :meth:`create` wrote for jobs that were not sent
        after all. Records of other senders stay.
        """
        forgotten = self._run(self._calls.forget(job) for job in jobs)
        self._run(
            call
            for job, is_gone in zip(jobs, forgotten, strict=True)
            if is_gone
            for call in self._index.forget(job)
        )

    def confirm(self, uuid: str, kind: str, word: str | None = None) -> None:
        """Write that the broker has accepted the message of a job.

        Parameters:
          uuid, kind: The job.
          word: The word that its message bears if it runs the job again, or None.
        """
        call, listed = self._calls.confirm(uuid, word or ""), self._index.confirm
        if word is None:
            self._run([call, *listed(uuid, kind)])
        elif self._run([call]) == [1]:
            # Else the job waits for the message of a later request.
            self._run(listed(uuid, kind))
        self._sweep.note()

    def write(self, updates: Sequence[Update]) -> Sequence[Reply | Exception]:
        """Write updates of runs in one round trip, or in two if the lists change too. A
        unique job whose message comes again takes a few more.

        Returns:
          The reply to each update, or the exception if it failed.
        """
        firsts, results = self._change(updates)
        if Reply.UNCLAIMED in results:
            self._reopen(updates, firsts, results)
        # Most updates leave the lists as they are.
        moved = [
            i
            for i, update in enumerate(updates)
            if update.begins or update.renews or update.end is not None
        ]
        listed = [
            (i, call)
            for i in moved
            for call in self._index.update(
                updates[i], results[i], reopened=firsts[i] == Reply.REOPENED
            )
        ]
        claimed = [
            (i, call)
            for i in moved
            for call in self.claims.renew(updates[i], results[i])
        ]
        if listed:
            self._sweep.begin()
            self._sweep.note()
        replies = run_scripts(self.client, [call for _, call in (*listed, *claimed)])
        for (i, _), reply in zip(listed, replies, strict=False):
            if isinstance(reply, Exception):
                results[i] = reply
        for (i, _), reply in zip(claimed, replies[len(listed) :], strict=True):
            self.claims.retake(updates[i], reply)
        return results

    def _change(
        self, updates: Sequence[Update], hold: Hold = UNASKED
    ) -> tuple[list[Any], list[Reply | Exception]]:
        """Write updates to the records of their jobs. Return for each the reply to its
        first call, and the reply to the update.

        Parameters:
          hold: Whether unique jobs may run again that have ended.
        """
        calls: list[Call] = []
        places: list[tuple[int, int]] = []
        for update in updates:
            first = len(calls)
            if update.begins:
                deadline = "" if update.info.unique is None else hold.deadline
                calls.append(self._calls.start(update, deadline))
            if update.reports:
                calls.append(self._calls.report(update))
            places.append((first, len(calls) - 1))
        replies = run_scripts(self.client, calls)
        results = [worst(replies[first], replies[last]) for first, last in places]
        return [replies[first] for first, _ in places], results

    def _reopen(
        self,
        updates: Sequence[Update],
        firsts: list[Any],
        results: list[Reply | Exception],
    ) -> None:
        """Write the updates that need a claim, and put the replies in place.

        Parameters:
          updates, firsts, results: Updates, and what :meth:`_change` has returned.
        """
        away: RedisError | None = None
        for i, update in enumerate(updates):
            if results[i] is not Reply.UNCLAIMED:
                continue
            try:
                if away is not None:
                    raise away
                with self.claims.held(update.uuid, update.info) as hold:
                    if hold.other is None:
                        ((firsts[i],), (results[i],)) = self._change([update], hold)
                    else:
                        results[i] = Reply.HELD
            except RedisError as e:
                results[i] = e
                if isinstance(e, LOST):
                    # Do not wait for the server once more for each job.
                    away = e

    def cancels(self, since: int) -> tuple[set[str], int]:
        """Return the uuids of the running jobs whose cancellation was requested after
        `since`, at most a minute ago, and the value for `since` at the next call.
        Times are in microseconds of the server's clock.
        """
        words = (self._index.cancels_key, f"({since}", "+inf", "WITHSCORES")
        found = self._reader.scores("ZRANGEBYSCORE", *words)
        return {uuid for uuid, _ in found}, max([since, *(time for _, time in found)])

    def _run(self, calls: Iterable[Call]) -> Sequence[Any]:
        """Run calls and return their replies. Raise the first error among these."""
        calls = list(calls)
        return checked(run_scripts(self.client, calls) if calls else [])

    def _list(self, calls: Iterable[Call]) -> None:
        """Run calls that list jobs."""
        calls = list(calls)
        if calls:
            self._sweep.begin()
            self._run(calls)


def checked(replies: Sequence[Any]) -> Sequence[Any]:
    """Return replies. Raise the first error among them."""
    for reply in replies:
        if isinstance(reply, RedisError):
            raise reply
    return replies


def positive(name: str, seconds: float) -> float:
    """Return a number of seconds.

    Parameters:
      name: What to call it in an error message.

    Raises:
      ValueError: It is not a positive, finite number.
    """
    if not 0 < seconds < math.inf:
        raise ValueError(f"{name} must be a positive number of seconds, not {seconds}.")
    return seconds
