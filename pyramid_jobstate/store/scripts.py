"""Makes calls of the Lua scripts and runs them in pipelines."""

from __future__ import annotations

import enum
import hashlib
import importlib.resources
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from redis.exceptions import NoScriptError

from ..job import CANCELLED, NOT_REACHED, NOT_SENT, JobError, NewJob, Update, dumps
from .connection import Client, Command, execute

#: The names of the scripts in `lua/`.
NAMES = (
    "create",
    "delete",
    "queue_again",
    "requeue",
    "restore",
    "wait",
    "forget",
    "confirm",
    "start",
    "record",
    "finish",
    "drop",
    "cancel",
    "index",
    "seek",
)

#: Those of them that change or read the indexes.
LISTING = ("index", "seek")

#: How the script `drop` is told of a message that was not sent.
UNSENT: dict[JobError | None, str] = {NOT_SENT: "lost", NOT_REACHED: "unreached"}

#: The blank lines and comments of a script.
_COMMENTS = re.compile(r"^\s*(--.*)?\n", re.MULTILINE)


class Script(NamedTuple):
    """A Lua script and its SHA-1."""

    sha: str
    text: str


class Call(NamedTuple):
    """A call of a script.

    Attributes:
      key: The key that it touches.
      more_keys: Further keys, in the same slot of a Cluster.
    """

    script: Script
    key: str
    args: Sequence[str | int]
    more_keys: Sequence[str] = ()


class Reply(enum.IntEnum):
    """The reply to an update of a run: see lua/common.lua."""

    STALE = -3
    CANCELLED = -2
    FENCED = -1
    MISSING = 0
    OK = 1
    CANCELLING = 2
    REOPENED = 3


def read_scripts() -> dict[str, Script]:
    """Return the scripts in `lua/` by name."""
    folder = importlib.resources.files(__package__) / "lua"
    clock, common = (
        (folder / f"{name}.lua").read_text("utf-8") for name in ("clock", "common")
    )
    scripts = {}
    for name in NAMES:
        # A function costs a call of the script even if it does not use it.
        before = clock if name in LISTING else clock + common
        text = before + (folder / f"{name}.lua").read_text("utf-8")
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
    key, more = call.key, call.more_keys
    return Command(key, (name, text, 1 + len(more), key, *more, *call.args))


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

    def failure_key(self, uuid: str) -> str:
        """Return the key of what is kept of a job's failures, in its hash's slot."""
        return beside(self.key(uuid), "failure")

    def create(self, job: NewJob) -> Call:
        return self._call("create", job.uuid, *self._new(job))

    def queue_again(self, job: NewJob, token: str) -> Call:
        return self._call("queue_again", job.uuid, *self._new(job), token)

    def confirm(self, uuid: str, word: str) -> Call:
        return self._call("confirm", uuid, word)

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
            update.info.rerun or "",
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
                UNSENT.get(end.error, "sent"),
                update.sender,
                update.info.rerun or "",
                update.info.attempt,
                end.status,
                delay,
                dumps(CANCELLED),
                *error,
            )
        failure: list[str] = []
        if end.failure is not None and error:
            failure = [*end.failure, *error]
        return self._call_both(
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
            int(bool(failure)),
            *failure,
            *fields,
            *(word for text in error for word in ("error", text)),
        )

    def delete(self, uuid: str, word: str) -> Call:
        return self._call_both("delete", uuid, self._ended_ttl, word)

    def requeue(self, uuid: str, word: str) -> Call:
        ttl, silence = self._active_ttl, self._silence
        return self._call_both("requeue", uuid, ttl, silence, word)

    def restore(self, uuid: str, word: str) -> Call:
        return self._call_both("restore", uuid, self._ended_ttl, word)

    def wait(self, uuid: str) -> Call:
        return self._call("wait", uuid, self._active_ttl)

    def _new(self, job: NewJob) -> list[str | int]:
        status = "waiting" if job.waits else "sending"
        delay, fields = millis(job.delay), _flat(job.info.fields())
        return [self._active_ttl, delay, status, job.sender, *fields]

    def _call(self, script: str, uuid: str, *args: str | int) -> Call:
        return Call(self._scripts[script], self.key(uuid), args)

    def _call_both(self, script: str, uuid: str, *args: str | int) -> Call:
        """Return a call with the keys of the record and of its failures."""
        call = self._call(script, uuid, *args)
        return call._replace(more_keys=[self.failure_key(uuid)])


def has_tag(key: str) -> bool:
    """Return whether a part in braces decides the slot of a key on a Cluster."""
    _, brace, rest = key.partition("{")
    return bool(brace) and rest.find("}") > 0


def beside(key: str, name: str) -> str:
    """Return a key in the slot of another."""
    return f"{key}:{name}" if has_tag(key) else f"{{{key}}}:{name}"


def worst(first: Any, last: Any) -> Reply | Exception:
    """Return the worse of the replies to a start and to the report after it."""
    for reply in (first, last):
        if isinstance(reply, Exception):
            return reply
    reply = Reply(min(first, last))
    # To the run it makes no difference that the job had ended before.
    return Reply.OK if reply is Reply.REOPENED else reply


def millis(seconds: float) -> int:
    return int(seconds * 1000)


def _flat(fields: Mapping[str, str]) -> list[str]:
    return [word for field in fields.items() for word in field]
