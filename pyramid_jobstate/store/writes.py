"""Writes jobs in Redis as they are sent, and lists them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from typing import Any

from ..job import JobInfo, NewJob
from .arguments import checked_namespace, client_of, positive
from .calls import Calls, millis
from .claims import Claims
from .connection import Client, text
from .counting import Counter
from .entries import ListAccess
from .index import Index
from .members import Members
from .reading import Reader
from .scripts import Call, read_scripts, run_scripts
from .sweeping import Sweep
from .told import Change, changes_of, delayed
from .trouble import checked


class JobWrites:
    """The part of a JobStore that writes jobs that are sent. See there for the
    parameters.
    """

    def __init__(
        self,
        client: Client | str,
        *,
        namespace: str = "jobstate",
        expire_in: float = 24 * 3600,
        active_expire_in: float = 8 * 24 * 3600,
        stalled_after: float = 15,
    ) -> None:
        self.client = client_of(client)
        self.namespace = checked_namespace(namespace)
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
        self._counter = Counter(self.client, self._access)
        #: Which unique jobs are under way.
        self.claims = Claims(self._calls, *self._access)
        #: What batches know of their members.
        self.batches = Members(
            self.client, scripts, self._calls, self._reader, self._index, silence
        )
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

    def create_new(
        self, *jobs: NewJob, tells: bool = True, marks: bool = False
    ) -> Sequence[bool | str]:
        """Write new jobs as :meth:`create` does, but leave ended jobs alone.

        Parameters:
          tells: Whether to tell batches of their members.
          marks: Whether unique jobs take their claims later.

        Returns:
          As :meth:`create`, or for an ended job the token for :meth:`queue_again`.
        """
        # First, so that no death leaves a record that nobody finds.
        marked = [*self.claims.mark(*jobs)] if marks else []
        replies = self._run([*marked, *map(self._calls.create, jobs)])
        found, changes = changes_of(
            [(job.uuid, job.info) for job in jobs], replies[len(marked) :]
        )
        created = [
            text(reply) if isinstance(reply, (str, bytes)) else bool(reply)
            for reply in found
        ]
        if tells:
            self.batches.tell_all(delayed(changes, jobs))
        self._list_queued(jobs, [reply is True for reply in created])
        return created

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
            replies, changes = self._run_for(
                [(job.uuid, job.info) for job, _ in ended],
                (
                    self._calls.queue_again(job, token, hold.deadline)
                    for (job, token), hold in zip(ended, holds, strict=True)
                ),
            )
        is_queued = [bool(reply) for reply in replies]
        jobs = [job for job, _ in ended]
        self.batches.tell_all(delayed(changes, jobs))
        self._list_queued(jobs, is_queued, again=True)
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
        listed = [
            call
            for job, is_gone in zip(jobs, forgotten, strict=True)
            if is_gone
            for call in self._index.forget(job)
        ]
        self._run([*listed, *self.claims.unmark(*jobs)])

    def confirm(
        self, uuid: str, kind: str, word: str | None = None, batch: str | None = None
    ) -> None:
        """Write that the broker has accepted the message of a job.

        Parameters:
          uuid, kind: The job.
          word: The word that its message bears if it runs the job again, or None.
          batch: The uuid of its batch, or None.
        """
        info = JobInfo(kind, "", 0, None, "{}", word, batch=batch)
        call, listed = self._calls.confirm(uuid, info), self._index.confirm
        if word is None and batch is None:
            self._run([call, *listed(uuid, kind)])
        else:
            replies, changes = self._run_for([(uuid, info)], [call])
            self.batches.tell_all(changes)
            if replies == [1]:
                # Else the job waits for the message of a later request.
                self._run(listed(uuid, kind))
        self._sweep.note()

    def confirm_members(self, jobs: Sequence[NewJob]) -> None:
        """Write that the broker has accepted the messages of members of a batch."""
        calls = [self._calls.confirm(job.uuid, job.info) for job in jobs]
        replies = run_scripts(self.client, calls) if calls else []
        _, changes = changes_of([(job.uuid, job.info) for job in jobs], replies)
        listed = [
            call
            for job, reply in zip(jobs, replies, strict=True)
            if not isinstance(reply, Exception)
            for call in self._index.confirm(job.uuid, job.info.kind)
        ]
        self.batches.tell_all(changes)
        if listed:
            # What is wrong with one job does not concern the others.
            run_scripts(self.client, listed)
        self._sweep.note()

    def _run_for(
        self, jobs: Sequence[tuple[str, JobInfo]], calls: Iterable[Call]
    ) -> tuple[list[Any], list[Change]]:
        """Run a call for each of some jobs. Return the replies, and the changes of
        which to tell batches.
        """
        return changes_of(jobs, self._run(calls))

    def _run(self, calls: Iterable[Call]) -> Sequence[Any]:
        """Run calls and return their replies: see :func:`.checked`."""
        calls = list(calls)
        return checked(calls, run_scripts(self.client, calls) if calls else [])

    def _list(self, calls: Iterable[Call]) -> None:
        """Run calls that list jobs."""
        calls = list(calls)
        if calls:
            self._sweep.begin()
            self._run(calls)
