"""Reads the records of jobs in one round trip, and what is kept of their failures.

Any bytes are tolerated: keys of ours into which another program has written are
skipped.
"""

from __future__ import annotations

import dataclasses
import datetime
import logging
import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from redis.exceptions import RedisError, ResponseError

from ..job.once import Once
from ..job.record import ALIAS, TARGET, JobError, Record
from ..job.values import iso_time, parse_json, parse_natural, parse_time
from .connection import (
    Client,
    Command,
    Keyed,
    execute,
    execute_some,
    redis_errors,
    text,
    texts,
)

log = logging.getLogger("pyramid_jobstate")

#: Seconds between two readings of the server's clock, which drifts slowly.
CLOCK_SECONDS = 10.0

#: The bytes of records after which read_some() reads no further ones.
MAX_BYTES = 4 * 1024 * 1024

#: How many records it reads at once: fewer for a while after large ones.
LEAST, MOST = 16, 1024

#: For how many seconds it may say that a job is silent. The server that takes over may
#: be behind.
SURE_SECONDS = 1.0

#: The highest score that is read. Scores are microseconds, exact as floats up to here.
MAX_SCORE = 2**53

#: The status of a deleted job, which reads as an unknown one.
DELETED = "deleted"

#: The status of an alias, as text and as bytes.
ALIASES = (ALIAS, ALIAS.encode())


class Alias(NamedTuple):
    """A record that leads to the job of another uuid.

    Attributes:
      target: The other uuid.
      updated: When it was last renewed, in milliseconds of the store's clock.
    """

    uuid: str
    target: str
    updated: int


def ask(client: Client, commands: Sequence[Command]) -> list[Any]:
    """Return the replies to commands in one round trip, with None for each key into
    which another program has written.

    Raises:
      redis.exceptions.RedisError: A command failed, or the server did not answer.
    """
    return checked(commands, execute(client, commands))


def records_in(found: Sequence[Record | Alias | None]) -> Sequence[Record | None]:
    """Return what was read, with None for each alias."""
    return [record if isinstance(record, Record) else None for record in found]


def scored(rows: Any) -> list[tuple[str, int]]:
    """Return the members and scores in a reply to a command with WITHSCORES, which may
    be None. Its scores end at MAX_SCORE.
    """
    if rows and not isinstance(rows[0], (list, tuple)):
        # RESP2 returns a flat list instead of pairs.
        rows = zip(rows[::2], rows[1::2], strict=True)
    return [(text(member), int(float(score))) for member, score in rows or ()]


class Reader:
    """Reads the hashes of a store.

    Parameters:
      client: The server.
      key: Returns the key of a job's hash.
      silence: Milliseconds without a sign of life after which a job is stalled.

    Attributes:
      has_clock: Whether the server's clock has been read.
    """

    def __init__(self, client: Client, key: Callable[[str], str], silence: int) -> None:
        self._client = client
        #: Returns the key of a job's hash.
        self.key = key
        self._silence = silence
        #: The server's time minus this process's, in milliseconds, and when it expires.
        self._clock = 0.0
        self._clock_until = 0.0
        self.has_clock = False
        self._at_once = MOST

    def read(self, uuids: Sequence[str], *names: str) -> Sequence[Record | None]:
        """Return the records of several jobs in one round trip, with None for each
        unknown job, and for an alias.

        Parameters:
          uuids: The jobs.
          names: The fields to read; by default all. A job without any of them counts as
            unknown.
        """
        return records_in(self.read_any(uuids, *names))

    def read_any(
        self, uuids: Sequence[str], *names: str
    ) -> Sequence[Record | Alias | None]:
        """Return what :meth:`read` does, and each alias."""
        self.clock()
        keys = map(self.key, uuids)
        if names:
            commands = [Command(key, ("HMGET", key, *names)) for key in keys]
        else:
            commands = [Command(key, ("HGETALL", key)) for key in keys]
        replies = execute(self._client, commands)
        return self._surely(uuids, names, replies, self.now())

    def read_some(self, uuids: Sequence[str]) -> Sequence[Record | Alias | None]:
        """Return what :meth:`read_any` does of the first of several jobs: of all, in
        one round trip, unless their records are large. Those are read in portions, and
        end after MAX_BYTES.
        """
        self.clock()
        found: list[Record | Alias | None] = []
        room = MAX_BYTES
        while room > 0 and len(found) < len(uuids):
            asked = uuids[len(found) : len(found) + self._at_once]
            keys = map(self.key, asked)
            commands = [Command(key, ("HGETALL", key)) for key in keys]
            replies, size = execute_some(self._client, commands, room)
            told = asked[: len(replies)]
            found += self._surely(told, (), replies, self.now())
            if len(replies) < len(asked):
                self._at_once = max(LEAST, len(replies))
                break
            self._at_once = min(2 * self._at_once, MOST)
            room -= size
        return found

    def read_one(self, uuid: str) -> Record | Alias | None:
        """Return what :meth:`read_any` does of all fields of one job."""
        # Silence counts until the read begins.
        now, key = self.clock(), self.key(uuid)
        (reply,) = execute(self._client, [Command(key, ("HGETALL", key))])
        (found,) = self._surely([uuid], (), [reply], now)
        return found

    def _surely(
        self, uuids: Sequence[str], names: tuple[str, ...], replies: Any, now: int
    ) -> list[Record | Alias | None]:
        """Return what replies say of jobs at a time. If a job is silent then, make sure
        that the server's clock was not set back.
        """

        def read(now: int) -> list[Record | Alias | None]:
            return [
                self._read(uuid, names, reply, now)
                for uuid, reply in zip(uuids, replies, strict=True)
            ]

        found = read(now)
        is_sure = time.monotonic() < self._clock_until - CLOCK_SECONDS + SURE_SECONDS
        if is_sure or all(getattr(r, "status", "") != "stalled" for r in found):
            return found
        try:
            return read(min(now, self.exact_clock()))
        except RedisError:
            # The jobs have been read all the same.
            return found

    def alias(self, uuid: str, reply: Any) -> Alias | None:
        """Return the alias in a reply to HGETALL, or None if it holds no alias."""
        is_hash = isinstance(reply, dict)
        if not is_hash or (reply.get("status") or reply.get(b"status")) not in ALIASES:
            return None
        found = self._read(uuid, (), reply, 0)
        return found if isinstance(found, Alias) else None

    def record(self, uuid: str, reply: Any) -> Record | None:
        """Return the record in a reply to HGETALL, or None if it holds no job.

        Raises:
          redis.exceptions.RedisError: The reply is an error that will pass.
        """
        found = self._read(uuid, (), reply, self.now())
        return found if isinstance(found, Record) else None

    def exists(self, uuid: str) -> bool:
        """Return whether a job has a hash."""
        key = self.key(uuid)
        (reply,) = ask(self._client, [Command(key, ("EXISTS", key))])
        return bool(reply)

    def read_stops(
        self, batches: Sequence[str]
    ) -> dict[str, tuple[str | None, str | None]]:
        """Return when batches were cancelled, or None, and their statuses."""
        keys = map(self.key, batches)
        commands = [Command(key, ("HMGET", key, "stopped", "status")) for key in keys]
        found = {}
        for uuid, reply in zip(batches, ask(self._client, commands), strict=True):
            stopped, status = reply or (None, None)
            found[uuid] = stopped and text(stopped), status and text(status)
        return found

    def sizes(self, uuids: Sequence[str], name: str) -> Sequence[int]:
        """Return the size of one field of several jobs in bytes, 0 if it is missing."""
        keys = map(self.key, uuids)
        commands = [Command(key, ("HSTRLEN", key, name)) for key in keys]
        replies = execute(self._client, commands)
        return [reply if isinstance(reply, int) else 0 for reply in replies]

    def fields(self, key: str, names: Sequence[str]) -> dict[str, str]:
        """Return those of some fields that a hash has."""
        (reply,) = ask(self._client, [Command(key, ("HMGET", key, *names))])
        found = zip(names, reply or (), strict=False)
        return {name: text(value) for name, value in found if value is not None}

    def scores(
        self, key: str, least: str | int, most: int, *words: str | int
    ) -> list[tuple[str, int]]:
        """Return the members of a sorted set in a range of scores, and their scores.

        Parameters:
          words: Further words of the command, such as a limit.
        """
        args = ("ZRANGEBYSCORE", key, least, most, "WITHSCORES", *words)
        (rows,) = ask(self._client, [Command(key, args)])
        return scored(rows)

    def entries(self, key: str, at: int, count: int) -> list[str]:
        """Return some elements of a list, from a place on."""
        args = ("LRANGE", key, at, at + count - 1)
        (rows,) = ask(self._client, [Command(key, args)])
        return [text(row) for row in rows or ()]

    def members(self, key: str) -> set[str]:
        """Return the members of a set."""
        (rows,) = ask(self._client, [Command(key, ("SMEMBERS", key))])
        return {text(row) for row in rows or ()}

    def now(self) -> int:
        """Return the server's time in milliseconds, as last set: see `has_clock`."""
        return int(time.monotonic() * 1000 + self._clock)

    def clock(self) -> int:
        """Return the server's time in milliseconds, which may take a round trip."""
        if time.monotonic() >= self._clock_until:
            return self.exact_clock()
        return self.now()

    def exact_clock(self) -> int:
        """Ask the server for its time in milliseconds."""
        with redis_errors(self._client):
            seconds, micros = self._client.time()
        self.set_clock(int(seconds), int(micros))
        return self.now()

    def set_clock(self, seconds: int, micros: int) -> None:
        """Set the server's clock.

        Parameters:
          seconds, micros: The reply to TIME.
        """
        now = time.monotonic()
        self._clock = seconds * 1000 + micros / 1000 - now * 1000
        self._clock_until = now + CLOCK_SECONDS
        self.has_clock = True

    def _read(
        self, uuid: str, names: Sequence[str], reply: Any, now: int
    ) -> Record | Alias | None:
        """Return the record of a reply, or None if the key does not hold a job."""
        if isinstance(reply, Exception):
            skip(self.key(uuid), reply)
            return None
        if names:
            found = zip(names, reply, strict=True)
            fields = {name: text(value) for name, value in found if value is not None}
        elif reply and isinstance(next(iter(reply)), bytes):
            fields = texts(reply)
        else:
            fields = reply
        if not fields or fields.get("status") == DELETED:
            return None
        if fields.get("status") == ALIAS:
            updated = parse_natural(fields.get("updated")) or 0
            return Alias(uuid, fields.get(TARGET, ""), updated)
        return Record.read(uuid, fields, now, self._silence)


#: How many tries the store keeps, each in a field of its own, in any order.
TRIES = 10

#: The fields that are read.
FIELDS = (
    "message",
    "refusal",
    "traceback",
    *(f"try:{number}" for number in range(TRIES)),
)

LONG_AGO = datetime.datetime.min.replace(tzinfo=datetime.UTC)


@dataclasses.dataclass(frozen=True, slots=True)
class Try:
    """A run of a job that failed.

    Attributes:
      started_at: When it began, in UTC, or None if that is unknown.
      ended_at: When it failed, in UTC, or None if that is unknown.
      error: Why it failed, or None if that is unknown.
    """

    started_at: datetime.datetime | None
    ended_at: datetime.datetime | None
    error: JobError | None


@dataclasses.dataclass(frozen=True, slots=True)
class Failures:
    """What operators read of a job's failures.

    Attributes:
      tries: The last ten runs that failed, the oldest first.
      traceback: The end of the last traceback, or "".
      message: The Dramatiq message from which the job may run again, as JSON, or "".
      refusal: Why it may not run again, or "".
    """

    tries: tuple[Try, ...] = ()
    traceback: str = ""
    message: str = ""
    refusal: str = ""


def read_failures(fields: Mapping[str, str]) -> Failures:
    """Return the failures in the fields of a hash. What cannot be parsed reads as if it
    were missing.
    """
    read = [_read_try(fields.get(f"try:{number}")) for number in range(TRIES)]
    tries = [each for each in read if each is not None]
    tries.sort(key=lambda each: each.started_at or each.ended_at or LONG_AGO)
    return Failures(
        tuple(tries),
        fields.get("traceback", ""),
        fields.get("message", ""),
        fields.get("refusal", ""),
    )


def _read_try(text: str | None) -> Try | None:
    match parse_json(text):
        case [started, ended, [str() | None as type_, str() as message], *_]:
            error = JobError(type_, message)
            return Try(parse_time(str(started)), parse_time(str(ended)), error)
    return None


@dataclasses.dataclass(frozen=True, slots=True)
class LogLine:
    """A line of a job's log.

    Attributes:
      number: Its number among all lines of the job. Numbers are missing where lines are
        not kept.
      time: When it was logged, in UTC.
      level: The number of its level, or None for a line of `append_log()`.
      level_name: The name of the level, or None.
      logger: The name of its logger, or None.
      attempt: The number of the attempt that logged it.
      text: What it says, up to 1,000 characters.
    """

    number: int
    time: datetime.datetime
    level: int | None
    level_name: str | None
    logger: str | None
    attempt: int
    text: str

    @property
    def is_captured(self) -> bool:
        """Whether it was logged with :mod:`logging`, not by `append_log()`."""
        return self.level is not None


def line_as_json(line: LogLine) -> dict[str, Any]:
    """Return a line as HTTP and the command line tell it."""
    return {
        "number": line.number,
        "time": iso_time(line.time),
        "level": line.level_name,
        "logger": line.logger,
        "attempt": line.attempt,
        "text": line.text,
    }


#: An entry of a log: see lua/log.lua.
_ENTRY = re.compile(
    r"(?P<number>[0-9]{1,15}) \S+ \S+ \S+ (?P<time>[0-9]{1,15}) (?P<json>.*)", re.DOTALL
)


def log_lines(entries: Sequence[str]) -> list[LogLine]:
    """Return the lines of the entries of a log, without what others wrote there."""
    return [line for line in map(_read_line, entries) if line is not None]


def _read_line(entry: str) -> LogLine | None:
    match = _ENTRY.fullmatch(entry)
    if match is None or (time := parse_time(match["time"])) is None:
        return None
    match parse_json(match["json"]):
        case [
            int() | None as level,
            str() | None as name,
            str() | None as logger,
            int() as attempt,
            str() as text,
        ]:
            number = int(match["number"])
            return LogLine(number, time, level, name, logger, attempt, text)
    return None


#: What a server says of such keys: the type is wrong, a value is not a number, or a
#: script cannot use what it has read. Only then does the script's name come before the
#: reason: other errors of scripts, such as that of a full server, end with it.
_FOREIGN = re.compile(
    r"WRONGTYPE|value is not an? |would overflow|must be strings or integers"
    r"|(?<!@)user_script:\d+: "
)

#: The keys that were logged.
_noted = Once(100)


def is_foreign(error: Exception) -> bool:
    """Return whether a server answers so because of what another program wrote."""
    return isinstance(error, ResponseError) and bool(_FOREIGN.search(str(error)))


def skip(key: str, error: Exception) -> None:
    """Log once that a key is skipped into which another program has written.

    Raises:
      redis.exceptions.RedisError: The error has another cause.
    """
    if not is_foreign(error):
        raise error
    log_once(
        "Another program has written into the key %s of the job state store, or into "
        "one beside it. What cannot be read is skipped: %s",
        key,
        error,
    )


def log_once(text: str, key: str, error: Exception) -> None:
    """Log what is wrong with a key, once."""
    if _noted.is_new(key):
        log.warning(text, key, error)


def skipped(commands: Sequence[Keyed], replies: Sequence[Any]) -> list[Any]:
    """Return the replies to commands, with None in place of those that :func:`skip`
    skips. Other errors stay.
    """
    found = [*replies]
    for i, reply in enumerate(replies):
        if isinstance(reply, Exception) and is_foreign(reply):
            skip(commands[i].key, reply)
            found[i] = None
    return found


def checked(commands: Sequence[Keyed], replies: Sequence[Any]) -> list[Any]:
    """Return what :func:`skipped` does.

    Raises:
      redis.exceptions.RedisError: One of the errors that stay.
    """
    found = skipped(commands, replies)
    for reply in found:
        if isinstance(reply, Exception):
            raise reply
    return found
