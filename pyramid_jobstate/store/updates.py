"""Writes the updates of runs in Redis, and lists their jobs."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

from redis.exceptions import RedisError

from ..job import NOT_SENT, Update
from .calls import millis
from .claims import UNASKED, Hold
from .connection import LOST
from .reading import MAX_SCORE
from .scripts import Call, Reply, run_scripts, worst
from .told import Change, changes_of
from .trouble import skipped
from .writes import JobWrites


class JobUpdates(JobWrites):
    """The part of a JobStore that writes updates of runs."""

    def write(self, updates: Sequence[Update]) -> Sequence[Reply | Exception]:
        """Write updates of runs in one round trip, or in two if the lists change too. A
        unique job whose message comes again takes a few more.

        Returns:
          The reply to each update, or the exception if it failed.
        """
        firsts, results, changes = self._change(updates)
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
        listed += [
            (i, call)
            for i, change in changes.items()
            if results[i] is Reply.CANCELLED and change.status == "cancelled"
            for call in self._index.end(change.uuid, updates[i].info, "cancelled")
        ]
        claimed = [
            (i, call)
            for i in moved
            for call in self.claims.renew(updates[i], results[i])
        ]
        if listed:
            self._sweep.begin()
            self._sweep.note()
        told = list(changes.values())
        more = [call for _, call in (*listed, *claimed)]
        calls = [*more, *map(self.batches.tell, told)]
        # A job must not suffer from what is wrong with its lists or its batch.
        replies = skipped(calls, run_scripts(self.client, calls))
        for (i, _), reply in zip(listed, replies, strict=False):
            if isinstance(reply, Exception):
                results[i] = reply
        for (i, _), reply in zip(claimed, replies[len(listed) :], strict=False):
            self.claims.retake(updates[i], reply)
        if changes:
            self._hear(updates, results, changes, replies[len(more) :])
        return results

    def _change(
        self, updates: Sequence[Update], hold: Hold = UNASKED
    ) -> tuple[list[Any], list[Reply | Exception], dict[int, Change]]:
        """Write updates to the records of their jobs. Return for each the reply to its
        first call, and the reply to the update; and the changes of which to tell
        batches, by the places of the updates.

        Parameters:
          hold: Whether unique jobs may run again that have ended.
        """
        calls: list[Call] = []
        places: list[tuple[int, int]] = []
        members = [i for i, u in enumerate(updates) if u.info.batch is not None]
        stopped = self._stopped([updates[i] for i in members])
        for update in updates:
            first = len(calls)
            if update.begins:
                deadline = "" if update.info.unique is None else hold.deadline
                is_stopped = update.info.batch in stopped
                call = self._calls.start(update, deadline, is_stopped=is_stopped)
                calls.append(call)
            if update.reports:
                calls.append(self._calls.report(update))
            places.append((first, len(calls) - 1))
        replies = run_scripts(self.client, calls)
        changes: dict[int, Change] = {}
        for i in members:
            update, (first, last) = updates[i], places[i]
            jobs = [(update.uuid, update.info)] * (last - first + 1)
            plain, found = changes_of(jobs, replies[first : last + 1])
            replies[first : last + 1] = plain
            if found and (update.tells or update.begins or update.end):
                changes[i] = _with_details(found[-1], update, plain[-1])
        results = [worst(replies[first], replies[last]) for first, last in places]
        return [replies[first] for first, _ in places], results, changes

    def _stopped(self, updates: Sequence[Update]) -> set[str]:
        """Return the cancelled ones among the batches of members that begin. One that
        has ended stays as it is if its message comes again.
        """
        begun = [update.info.batch for update in updates if update.begins]
        if not begun:
            return set()
        batches = [batch for batch in dict.fromkeys(begun) if batch is not None]
        # Else the batch says so in its reply.
        with contextlib.suppress(RedisError):
            found = self._reader.read_stops(batches)
            return {batch for batch, (stopped, _) in found.items() if stopped}
        return set()

    def _hear(
        self,
        updates: Sequence[Update],
        results: list[Reply | Exception],
        changes: Mapping[int, Change],
        replies: Sequence[Any],
    ) -> None:
        """Take the replies of batches that were told of changes: a run whose batch was
        cancelled has to stop.

        Parameters:
          updates, results: The updates, and the reply to each.
          changes: The changes, by the places of the updates.
        """
        heard: dict[int, tuple[Change, Any]] = {}
        for (i, change), reply in zip(changes.items(), replies, strict=True):
            if isinstance(reply, Exception):
                results[i] = reply
            elif reply is not None:
                heard[i] = change, reply
        answers = self.batches.settle(
            [change for change, _ in heard.values()],
            [reply for _, reply in heard.values()],
        )
        for i, answer in zip(heard, answers, strict=True):
            if answer.is_stopped and not updates[i].end and results[i] is Reply.OK:
                results[i] = Reply.CANCELLING

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
                        ((firsts[i],), (results[i],), _) = self._change([update], hold)
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
        words = (self._index.cancels_key, f"({since}", MAX_SCORE, "WITHSCORES")
        found = self._reader.scores("ZRANGEBYSCORE", *words)
        return {uuid for uuid, _ in found}, max([since, *(time for _, time in found)])


def _with_details(change: Change, update: Update, reply: Any) -> Change:
    """Return a change of a member with what only its update tells.

    Parameters:
      reply: The reply to the update.
    """
    if reply not in (Reply.OK, Reply.CANCELLING, Reply.REOPENED):
        # It is the change of another run.
        return change
    end = update.end
    if end is None:
        return change._replace(millionths=update.millionths)
    return change._replace(
        delay=millis(end.delay or 0),
        is_unsent=change.status == "error" and end.error == NOT_SENT,
    )
