"""The worker processes, and when each was last heard of."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Mapping, Sequence
from typing import Any

from ..job.values import dumps, iso_time, parse_json, parse_natural, parse_time
from .connection import Client, Command, text
from .reader import MAX_SCORE, Reader, ask
from .scripts import Calls, Runner

#: For how many milliseconds a process is remembered that is silent: an hour.
REMEMBERED = 3_600_000


@dataclasses.dataclass(frozen=True, slots=True)
class WorkerInfo:
    """A worker process, as it has last described itself.

    Attributes:
      id: Its token, which no other process has: its host, its pid and a random word,
        with colons between them.
      host: The name of its host.
      pid: Its process id there.
      started_at: Since when it has been heard of, in UTC, or None if unknown.
      seen_at: When it was last heard of, in UTC.
      is_silent: Whether that is more than `stalled_after` ago: it may have died.
      threads: How many jobs it can run at once.
      busy: How many tracked jobs it ran then.
      queues: The queues that it consumes, in alphabetical order.
      memory: The bytes of memory that it used then, or None if unknown.
      versions: The versions of Python and of packages, by name.
    """

    id: str
    host: str
    pid: int
    started_at: datetime.datetime | None
    seen_at: datetime.datetime
    is_silent: bool
    threads: int
    busy: int
    queues: Sequence[str]
    memory: int | None
    versions: Mapping[str, str]

    @property
    def name(self) -> str:
        """Its host and pid, with a colon between them."""
        return worker_name(self.id)


def worker_name(token: str) -> str:
    """Return the host and the pid in the token of a process."""
    return token.rpartition(":")[0]


def worker_as_json(worker: WorkerInfo) -> dict[str, Any]:
    """Return a process as HTTP and the command line tell it."""
    return {
        **dataclasses.asdict(worker),
        "started_at": iso_time(worker.started_at),
        "seen_at": iso_time(worker.seen_at),
    }


class Workers:
    """The worker processes of a store.

    Parameters:
      client: The server.
      calls: Makes calls.
      runner: Runs them.
      reader: Reads keys.
      silence: Milliseconds without a sign of life after which a process is silent.
    """

    def __init__(
        self, client: Client, calls: Calls, runner: Runner, reader: Reader, silence: int
    ) -> None:
        self._client = client
        self._calls = calls
        self._run = runner.run
        self._reader = reader
        self._silence = silence

    def write(self, token: str, says: Mapping[str, object]) -> None:
        """Write that a process lives.

        Parameters:
          token: Its token.
          says: Its threads, busy, queues, memory and versions: see WorkerInfo.
        """
        self._run([self._calls.presence(token, REMEMBERED, dumps(dict(says)))])

    def remove(self, token: str) -> None:
        """Forget a process that has shut down."""
        names, own = self._calls.worker_keys(token)
        commands = [
            Command(names, ("ZREM", names, token)),
            Command(own, ("DEL", own)),
        ]
        ask(self._client, commands)

    def read(self) -> list[WorkerInfo]:
        """Return the processes that were heard of within an hour, by their names."""
        now = self._reader.clock()
        names, _ = self._calls.worker_keys("")
        signs = self._reader.scores(names, (now - REMEMBERED) * 1000, MAX_SCORE)
        keys = [self._calls.worker_keys(token)[1] for token, _ in signs]
        commands = [Command(key, ("HMGET", key, "started", "says")) for key in keys]
        rows = ask(self._client, commands) if commands else []
        found = []
        for (token, micros), row in zip(signs, rows, strict=True):
            seen = micros // 1000
            is_silent = now - seen > self._silence
            worker = _parse(token, seen, is_silent, row or (None, None))
            if worker is not None:
                found.append(worker)
        return sorted(found, key=lambda worker: (worker.host, worker.pid, worker.id))


def _parse(
    token: str, seen: int, is_silent: bool, row: Sequence[Any]
) -> WorkerInfo | None:
    """Return a process, or None if another program has written what it says."""
    started, says = (None if word is None else text(word) for word in row)
    match token.rsplit(":", 2), parse_json(says):
        case (
            [host, pid, _],
            {
                "threads": int() as threads,
                "busy": int() as busy,
                "queues": list() as queues,
                "memory": int() | None as memory,
                "versions": dict() as versions,
            },
        ) if (number := parse_natural(pid)) is not None:
            seen_at = parse_time(str(seen))
            assert seen_at is not None
            return WorkerInfo(
                token,
                host,
                number,
                parse_time(started),
                seen_at,
                is_silent,
                threads,
                busy,
                tuple(map(str, queues)),
                memory,
                {str(name): str(version) for name, version in versions.items()},
            )
    return None
