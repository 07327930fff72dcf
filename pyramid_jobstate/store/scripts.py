"""The Lua scripts: reads them, makes calls of them, and runs these in pipelines."""

from __future__ import annotations

import enum
import hashlib
import importlib.resources
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from redis.exceptions import NoScriptError

from ..job import (
    BATCH,
    CANCELLED,
    NOT_REACHED,
    NOT_SENT,
    JobError,
    JobInfo,
    NewJob,
    Update,
    dumps,
)
from .connection import Client, Command, execute

#: The names of the scripts in `lua/`.
NAMES = (
    "alias",
    "claim",
    "create",
    "delete",
    "mark",
    "queue_again",
    "requeue",
    "restore",
    "raise",
    "touch",
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

#: The scripts that change the record of a batch.
OF_BATCHES = (
    "open_batch",
    "add_members",
    "tell_batch",
    "stop_batch",
    "look_batch",
    "forget_batch",
)

#: Those that change the record of a job. For a member of a batch another form of each,
#: with this prefix, numbers the changes.
MEMBER = "member "
OF_MEMBERS = (
    "cancel",
    "confirm",
    "create",
    "drop",
    "finish",
    "queue_again",
    "record",
    "requeue",
    "restore",
    "start",
    "wait",
)

#: The blank lines and comments of a script.
_COMMENTS = re.compile(r"^\s*(--.*)?\n", re.MULTILINE)


class Script(NamedTuple):
    """A Lua script and its SHA-1."""

    sha: str
    text: str


class Call(NamedTuple):
    """A call of a script: a :class:`.Command`, and the script that it names."""

    key: str
    args: Sequence[str | int]
    script: Script

    @classmethod
    def of(
        cls,
        script: Script,
        key: str,
        args: Iterable[str | int],
        more_keys: Sequence[str] = (),
    ) -> Call:
        """Return a call of a script.

        Parameters:
          key: The key that it touches.
          more_keys: Further keys, in the same slot of a Cluster.
        """
        count = 1 + len(more_keys)
        words = ["EVALSHA", script.sha, count, key, *more_keys, *args]
        return cls(key, words, script)


class Reply(enum.IntEnum):
    """The reply to an update of a run: see lua/common.lua. No script replies HELD: it
    stands for UNCLAIMED while another job has the claim.
    """

    HELD = -5
    UNCLAIMED = -4
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

    def read(name: str) -> str:
        return (folder / f"{name}.lua").read_text("utf-8")

    clock, common = read("clock"), read("common")
    texts = {
        # A function costs a call of the script even if it does not use it.
        name: (clock if name in LISTING else clock + common) + read(name)
        for name in NAMES
    }
    for name in OF_BATCHES:
        texts[name] = clock + common + read("batch") + read(name)
    for name in OF_MEMBERS:
        body = f"local function change()\n{read(name)}\nend\n"
        texts[MEMBER + name] = clock + common + body + read("member")
    return {name: _script(text) for name, text in texts.items()}


def _script(text: str) -> Script:
    # A server that does not have the script receives its whole text.
    text = _COMMENTS.sub("", text)
    return Script(hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest(), text)


#: The replies by number: calling the class takes three times as long.
_REPLIES = {reply.value: reply for reply in Reply}


def run_scripts(client: Client, calls: Sequence[Call]) -> list[Any]:
    """Run `calls` in one round trip and return their replies.

    The reply of a failed call is the exception. If a server does not have a script, all
    calls for the keys concerned are sent again in order, with the text of the scripts.
    A script that runs twice changes nothing the second time.

    Raises:
      redis.exceptions.RedisError: The server did not answer.
    """
    replies = execute(client, calls)
    keys = {
        call.key
        for call, reply in zip(calls, replies, strict=True)
        if isinstance(reply, NoScriptError)
    }
    if keys:
        places = [i for i, call in enumerate(calls) if call.key in keys]
        again = execute(client, [_with_text(calls[i]) for i in places])
        for i, reply in zip(places, again, strict=True):
            replies[i] = reply
    return replies


def _with_text(call: Call) -> Command:
    return Command(call.key, ("EVAL", call.script.text, *call.args[2:]))


def worst(first: Any, last: Any) -> Reply | Exception:
    """Return the worse of the replies to a start and to the report after it."""
    for reply in (first, last):
        if isinstance(reply, Exception):
            return reply
    reply = _REPLIES[min(first, last)]
    # To the run it makes no difference that the job had ended before.
    return Reply.OK if reply is Reply.REOPENED else reply


#: How the script `drop` is told of a message that was not sent.
UNSENT: dict[JobError | None, str] = {NOT_SENT: "lost", NOT_REACHED: "unreached"}


class Calls:
    """Makes the calls of a store.

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

    def claim_key(self, identity: str) -> str:
        """Return the key of the claim to the identity of unique jobs."""
        digest = hashlib.sha256(identity.encode()).hexdigest()
        return f"{self._namespace}:unique:{digest}"

    def claim(
        self, identity: str, uuid: str, version: str, ttl: int, hold: int | None = None
    ) -> Call:
        args = (uuid, version, ttl, "" if hold is None else hold, self._silence)
        return Call.of(self._scripts["claim"], self.claim_key(identity), args)

    def mark(self, identity: str, uuid: str, ttl: int) -> Call:
        return Call.of(self._scripts["mark"], self.claim_key(identity), (uuid, ttl))

    def alias(self, uuid: str, target: str, ttl: int, sender: str) -> Call:
        return self._call("alias", uuid, target, ttl, sender, dumps(NOT_SENT))

    def touch(self, job: NewJob) -> Call:
        return self._call("touch", job.uuid, job.sender)

    def create(self, job: NewJob) -> Call:
        return self._change("create", job.info, job.uuid, *self._new(job))

    def queue_again(self, job: NewJob, token: str, deadline: str) -> Call:
        words = [*self._new(job), token, deadline]
        return self._change("queue_again", job.info, job.uuid, *words)

    def confirm(self, uuid: str, info: JobInfo) -> Call:
        return self._change("confirm", info, uuid, info.rerun or "")

    def forget(self, job: NewJob) -> Call:
        return self._call("forget", job.uuid, job.sender)

    def cancel(self, uuid: str, info: JobInfo, word: str) -> Call:
        ttl, silence = self._ended_ttl, self._silence
        return self._change(
            "cancel", info, uuid, ttl, silence, dumps(CANCELLED), word, 0
        )

    def cancel_unsent(self, uuid: str, word: str) -> Call:
        ttl, silence = self._ended_ttl, self._silence
        return self._call("cancel", uuid, ttl, silence, dumps(NOT_SENT), word, 1)

    def start(self, update: Update, deadline: str, *, is_stopped: bool = False) -> Call:
        return self._change(
            "start",
            update.info,
            update.uuid,
            update.token,
            millis(update.age),
            int(update.late),
            int(update.cancelled),
            self._active_ttl,
            update.info.rerun or "",
            deadline,
            dumps(CANCELLED) if is_stopped else "",
            *_flat(update.info.fields()),
        )

    def report(self, update: Update) -> Call:
        """Return the call that writes an update, apart from the start of its run."""
        uuid, token, seq, end = update.uuid, update.token, update.seq, update.end
        if end is None:
            # A change is numbered only if the batch is told of it.
            script = MEMBER + "record" if update.tells else "record"
            words: list[str | int] = [token, seq, update.base, self._active_ttl]
            for field in update.fields.items():
                words += field
            return Call.of(self._scripts[script], self.key(uuid), words)
        delay = "" if end.delay is None else millis(end.delay)
        error = [] if end.error is None else [dumps(end.error)]
        if update.dropped:
            return self._change(
                "drop",
                update.info,
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
        failure: list[str | int] = []
        if end.failure is not None and error:
            failure = [*end.failure, *error, millis(update.age)]
        return self._change_both(
            "finish",
            update.info,
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
            *_flat(update.fields),
            *(word for text in error for word in ("error", text)),
        )

    def delete(self, uuid: str, info: JobInfo, word: str) -> Call:
        kept = [self.failure_key(uuid)]
        if info.batch == BATCH:
            kept += self.batch_keys(uuid)
        return self._call("delete", uuid, self._ended_ttl, word, more_keys=kept)

    def batch_keys(self, uuid: str) -> list[str]:
        """Return the keys of what a batch knows of its members, in its hash's slot: see
        lua/batch.lua.
        """
        return [beside(self.key(uuid), name) for name in ("members", "failed", "order")]

    def requeue(self, uuid: str, info: JobInfo, word: str, deadline: str) -> Call:
        ttl, silence = self._active_ttl, self._silence
        return self._change_both("requeue", info, uuid, ttl, silence, word, deadline)

    def restore(self, uuid: str, info: JobInfo, word: str) -> Call:
        return self._change_both("restore", info, uuid, self._ended_ttl, word)

    def wait(self, uuid: str, info: JobInfo) -> Call:
        return self._change("wait", info, uuid, self._active_ttl)

    def _new(self, job: NewJob) -> list[str | int]:
        status = "waiting" if job.waits else "sending"
        delay, fields = millis(job.delay), _flat(job.info.fields())
        return [self._active_ttl, delay, status, job.sender, *fields]

    def _call(
        self, script: str, uuid: str, *args: str | int, more_keys: Sequence[str] = ()
    ) -> Call:
        return Call.of(self._scripts[script], self.key(uuid), args, more_keys)

    def _change(
        self,
        script: str,
        info: JobInfo,
        uuid: str,
        *args: str | int,
        more_keys: Sequence[str] = (),
    ) -> Call:
        """Return a call that changes the record of a job. For a member of a batch it
        numbers the change.
        """
        if info.is_member:
            script = MEMBER + script
        return self._call(script, uuid, *args, more_keys=more_keys)

    def _change_both(
        self, script: str, info: JobInfo, uuid: str, *args: str | int
    ) -> Call:
        """Return such a call with the keys of the record and of its failures."""
        kept = [self.failure_key(uuid)]
        return self._change(script, info, uuid, *args, more_keys=kept)


def has_tag(key: str) -> bool:
    """Return whether a part in braces decides the slot of a key on a Cluster."""
    _, brace, rest = key.partition("{")
    return bool(brace) and rest.find("}") > 0


def beside(key: str, name: str) -> str:
    """Return a key in the slot of another."""
    return f"{key}:{name}" if has_tag(key) else f"{{{key}}}:{name}"


def millis(seconds: float) -> int:
    return int(seconds * 1000)


def _flat(fields: Mapping[str, str]) -> list[str]:
    words: list[str] = []
    for field in fields.items():
        words += field
    return words
