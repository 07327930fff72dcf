"""Fills the status indexes of a store that an earlier version has written."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from redis.exceptions import RedisError

from .connection import Client, Command, text
from .lists import (
    ACTIVE,
    ENDED,
    INDEXED,
    OUTLINE,
    Entries,
    Filter,
    Found,
    ListAccess,
    Place,
)
from .reader import ask

if TYPE_CHECKING:
    from ..job import Record
    from .scripts import Call

#: How many entries to sweep in one call, which a user waits for.
PORTION = 5000

#: How many of them to read at once.
BATCH = 1000

#: Seconds for which this process remembers that the sweep is done.
DONE_SECONDS = 60.0

#: Seconds after which this process makes sure again that the store remembers it.
BEGUN_SECONDS = 24 * 3600.0

DONE = "done"


class Sweep:
    """Lists the jobs of an earlier version by status, a portion at a time, as lists and
    counts are read. Until it is done, lists examine every job, as that version did, and
    counts take its failures for successes.

    Its place is kept in the store. Two processes may sweep the same entries.

    Parameters:
      client: The server.
      access: The access to the lists.
      key: The key that holds the place.
      ttl: Milliseconds after which nothing that exists now is listed.
    """

    def __init__(
        self,
        client: Client,
        access: ListAccess,
        key: str,
        ttl: int,
    ) -> None:
        self._client = client
        self._reader, self._index, self._run = access
        self._key = key
        self._ttl = ttl
        self._entries = Entries(Filter(), access, skips=False)
        self._begun_until = 0.0
        self._is_fresh = False
        self._done_until = 0.0

    def begin(self) -> None:
        """Look whether the store is empty, with nothing to sweep. Called before this
        process lists a job.

        Raises:
          redis.exceptions.RedisError: The server does not answer.
        """
        now = time.monotonic()
        if now < self._begun_until:
            return
        if not self._ask("PEXPIRE", self._key, self._ttl):
            keys = [self._index.key("all", ended=ended) for ended in (False, True)]
            self._is_fresh = not any(self._ask("EXISTS", key) for key in keys)
        # In time, before the store forgets it.
        self._begun_until = now + min(BEGUN_SECONDS, self._ttl / 2000)

    def note(self) -> None:
        """Write that nothing is to be swept, if that was seen. Called when a job exists
        for good: one that is withdrawn leaves nothing behind.

        Raises:
          redis.exceptions.RedisError: The server does not answer.
        """
        if self._is_fresh:
            self._ask("SET", self._key, DONE, "NX", "PX", self._ttl)
            self._is_fresh = False

    def is_done(self) -> bool:
        """Sweep a portion unless all is done, and return whether it is.

        Raises:
          redis.exceptions.RedisError: The server does not answer.
        """
        if time.monotonic() < self._done_until:
            return True
        state = text(self._ask("GET", self._key) or ACTIVE)
        if state != DONE:
            try:
                place = Place.parse(state) if "." in state else Place(state)
            except ValueError:
                # Another program wrote it.
                place = Place(ACTIVE)
            state = self._advance(place)
            # A server that is read-only keeps what it has.
            with contextlib.suppress(RedisError):
                self._ask("SET", self._key, state, "PX", self._ttl)
        if state == DONE:
            self._done_until = time.monotonic() + DONE_SECONDS
        return state == DONE

    def _advance(self, place: Place) -> str:
        """Sweep a portion of the entries after a place, and return what to store: the
        place where it ends, or DONE.
        """
        for _ in range(PORTION // BATCH):
            found = [place for place, _ in self._entries.read(place, BATCH)]
            uuids = [place.uuid for place in found]
            records = self._reader.read(uuids, *OUTLINE)
            try:
                self._run(self._moves(records))
            except RedisError:
                # It is read-only.
                break
            if len(found) == BATCH:
                place = found[-1]
            elif place.part == ACTIVE:
                place = Place(ENDED)
            else:
                return DONE
        return place.part if place.score is None else str(place)

    def _moves(self, records: Sequence[Record | None]) -> Iterator[Call]:
        for record in records:
            if record is None:
                continue
            yield from self._index.note_kind(record.kind)
            if record.stored_status in INDEXED:
                # Whatever is listed by status was listed by this version.
                yield from self._index.move(
                    record.uuid, record.kind, record.stored_status, Found("")
                )

    def _ask(self, *words: str | int) -> Any:
        (reply,) = ask(self._client, [Command(str(words[1]), words)])
        return reply
