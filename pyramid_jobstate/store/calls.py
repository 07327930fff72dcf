"""Makes calls of the Lua scripts, each of which documents its arguments."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

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
from .scripts import MEMBER, Call, Script

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
