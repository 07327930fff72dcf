"""Makes calls of the Lua scripts and runs them in pipelines."""

from __future__ import annotations

import enum
import hashlib
import importlib.resources
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from redis.exceptions import NoScriptError

from ..job import CANCELLED, NOT_REACHED, NOT_SENT, NewJob, Update, dumps
from .connection import Client, Command, execute

#: The names of the scripts in `lua/`.
NAMES = (
    "create",
    "requeue",
    "forget",
    "confirm",
    "start",
    "record",
    "finish",
    "drop",
    "cancel",
    "index",
)

#: The blank lines and comments of a script.
_COMMENTS = re.compile(r"^\s*(--.*)?\n", re.MULTILINE)


class Script(NamedTuple):
    """A Lua script and its SHA-1."""

    sha: str
    text: str


class Call(NamedTuple):
    """A call of a script and the one key that it touches."""

    script: Script
    key: str
    args: Sequence[str | int]


class Reply(enum.IntEnum):
    """The reply to an update of a run: see lua/common.lua."""

    CANCELLED = -2
    FENCED = -1
    MISSING = 0
    OK = 1
    CANCELLING = 2


def read_scripts() -> dict[str, Script]:
    """Return the scripts in `lua/` by name."""
    folder = importlib.resources.files(__package__) / "lua"
    common = (folder / "common.lua").read_text("utf-8")
    scripts = {}
    for name in NAMES:
        text = common + (folder / f"{name}.lua").read_text("utf-8")
        # A server that does not have the script receives its whole text.
        text = _COMMENTS.sub("", text)
        sha = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()
        scripts[name] = Script(sha, text)
    return scripts


def run_scripts(client: Client, calls: Sequence[Call]) -> list[Any]:
    """Run `calls` in one round trip and return their replies.

    The reply of a failed call is the exception. If a server does not have a script, all
    calls for the keys concerned are sent again in order, with the text of the scripts.
    A script that runs twice changes nothing the second time.

    Raises:
      redis.exceptions.RedisError: The server did not answer.
    """
    replies = execute(client, [_command("EVALSHA", call) for call in calls])
    keys = {
        call.key
        for call, reply in zip(calls, replies, strict=True)
        if isinstance(reply, NoScriptError)
    }
    if keys:
        places = [i for i, call in enumerate(calls) if call.key in keys]
        again = execute(client, [_command("EVAL", calls[i]) for i in places])
        for i, reply in zip(places, again, strict=True):
            replies[i] = reply
    return replies


def _command(name: str, call: Call) -> Command:
    text = call.script.sha if name == "EVALSHA" else call.script.text
    return Command(call.key, (name, text, 1, call.key, *call.args))


class Calls:
    """Makes the calls of a store. Each script documents its arguments.

    Parameters:
      scripts: The scripts by name.
      namespace: The prefix of each key.
      active_ttl: Milliseconds that an unfinished job is kept.
      ended_ttl: Milliseconds that a job is kept after its end.
      silence: Milliseconds without a sign of life after which a run counts as dead.
    """

    def __init__(
        self,
        scripts: Mapping[str, Script],
        namespace: str,
        *,
        active_ttl: int,
        ended_ttl: int,
        silence: int,
    ) -> None:
        self._scripts = scripts
        self._namespace = namespace
        self._active_ttl = active_ttl
        self._ended_ttl = ended_ttl
        self._silence = silence

    def key(self, uuid: str) -> str:
        """Return the key of a job's hash."""
        return f"{self._namespace}:{uuid}"

    def create(self, job: NewJob) -> Call:
        return self._call("create", job.uuid, *self._new(job))

    def requeue(self, job: NewJob, token: str) -> Call:
        return self._call("requeue", job.uuid, *self._new(job), token)

    def confirm(self, uuid: str) -> Call:
        return self._call("confirm", uuid)

    def forget(self, job: NewJob) -> Call:
        return self._call("forget", job.uuid, job.sender)

    def cancel(self, uuid: str, word: str) -> Call:
        ttl, silence = self._ended_ttl, self._silence
        return self._call("cancel", uuid, ttl, silence, dumps(CANCELLED), word)

    def start(self, update: Update) -> Call:
        return self._call(
            "start",
            update.uuid,
            update.token,
            millis(update.age),
            int(update.late),
            int(update.cancelled),
            self._active_ttl,
            *_flat(update.info.fields()),
        )

    def report(self, update: Update) -> Call:
        """Return the call that writes an update, apart from the start of its run."""
        uuid, token, seq, end = update.uuid, update.token, update.seq, update.end
        fields = _flat(update.fields)
        if end is None:
            base, ttl = update.base, self._active_ttl
            return self._call("record", uuid, token, seq, base, ttl, *fields)
        delay = "" if end.delay is None else millis(end.delay)
        error = [] if end.error is None else [dumps(end.error)]
        if update.dropped:
            return self._call(
                "drop",
                uuid,
                token,
                self._ended_ttl,
                self._active_ttl,
                self._silence,
                int(end.error in (NOT_REACHED, NOT_SENT)),
                update.sender,
                end.status,
                delay,
                dumps(CANCELLED),
                *error,
            )
        return self._call(
            "finish",
            uuid,
            token,
            seq,
            update.base,
            self._ended_ttl,
            self._active_ttl,
            end.status,
            delay,
            dumps(CANCELLED),
            int(end.was_called),
            *fields,
            *(word for text in error for word in ("error", text)),
        )

    def _new(self, job: NewJob) -> list[str | int]:
        status = "waiting" if job.waits else "sending"
        delay, fields = millis(job.delay), _flat(job.info.fields())
        return [self._active_ttl, delay, status, job.sender, *fields]

    def _call(self, script: str, uuid: str, *args: str | int) -> Call:
        return Call(self._scripts[script], self.key(uuid), args)


def worst(first: Any, last: Any) -> Reply | Exception:
    """Return the worse of the replies to a start and to the report after it."""
    for reply in (first, last):
        if isinstance(reply, Exception):
            return reply
    return Reply(min(first, last))


def millis(seconds: float) -> int:
    return int(seconds * 1000)


def _flat(fields: Mapping[str, str]) -> list[str]:
    return [word for field in fields.items() for word in field]
