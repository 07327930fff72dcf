"""Unique jobs that are being sent: each takes its claim, or follows another job."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from redis.exceptions import RedisError

from ..job import dumps, identity_of

if TYPE_CHECKING:
    from ..job import NewJob
    from ..store import JobStore

#: The key of the unique jobs that a transaction sends, among its data.
_SENT = object()


class NotClaimed(Exception):
    """Raised if the store does not say whether another job is under way."""


class Unique:
    """The uniqueness of a job that is being sent.

    Parameters:
      key: Its unique key.
      shared: Whether all owners share one job.

    Attributes:
      identity: Its identity, as JSON: see :meth:`identify`.
      is_withdrawn: Whether :meth:`withdraw` was called.
      winner: The uuid of the job that is under way, once that is known.
    """

    def __init__(self, key: object, *, shared: bool) -> None:
        self.identity = ""
        self.is_withdrawn = False
        self._key = key
        self._shared = shared
        #: The job of this identity that the transaction sends before.
        self._first: Unique | None = None
        self.winner = ""

    def identify(self, actor: str, owner: str | float | None) -> str:
        """Return the identity of the job.

        Raises:
          TypeError, ValueError: See :func:`.identity_of`.
        """
        encoded = None if owner is None else dumps(owner)
        self.identity = identity_of(actor, self._key, encoded, shared=self._shared)
        return self.identity

    def join(self, transaction: Any, registry: object) -> None:
        """Follow an earlier send of this identity in the same transaction, if any."""
        try:
            sent = transaction.data(_SENT)
        except KeyError:
            sent = {}
            transaction.set_data(_SENT, sent)
        # Another application may keep its jobs elsewhere.
        place = id(registry), self.identity
        first = sent.get(place)
        if first is None or first.is_withdrawn:
            sent[place] = self
        else:
            self._first = first

    def withdraw(self) -> None:
        """Leave the identity to later sends: this one is aborted."""
        self.is_withdrawn = True

    def take(self, store: JobStore, job: NewJob) -> bool:
        """Claim the identity for the job, whose record is written. If another one is
        under way, that record becomes an alias of it.

        Returns:
          Whether the job is to be sent.

        Raises:
          NotClaimed: The store does not say which.
        """
        claims = store.records.claims
        try:
            self.winner = self._first.winner if self._first is not None else ""
            if not self.winner:
                claims.touch(job)
                self.winner = claims.take(self.identity, job.uuid, job.delay)
            if self.winner != job.uuid:
                claims.make_alias(job, self.winner)
        except RedisError as e:
            raise NotClaimed(str(e)) from e
        return self.winner == job.uuid
