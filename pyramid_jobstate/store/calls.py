"""Which script is called for each change, and with what."""

from __future__ import annotations

from collections.abc import Mapping

from ..job.record import CANCELLED, NOT_REACHED, NOT_SENT, NewJob, Update
from ..job.values import dumps
from .scripts import Call, Script


class Calls:
    """Makes the calls of a store. What the arguments mean is said in each script.

    Parameters:
      scripts: The scripts by name.
      namespace: What the name of each key begins with.
      active_ttl: Milliseconds that a job is kept which has not ended.
      ended_ttl: Milliseconds that one is kept after its end.
      silence: Milliseconds after which a run is taken for dead that is not heard of.
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
            *_flat(update.start.fields()),
        )

    def report(self, update: Update) -> Call:
        """Return the call for what an update has to say, the beginning apart."""
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
        delay, fields = millis(job.delay), _flat(job.start.fields())
        return [self._active_ttl, delay, status, job.sender, *fields]

    def _call(self, script: str, uuid: str, *args: str | int) -> Call:
        return Call(self._scripts[script], self.key(uuid), args)


def millis(seconds: float) -> int:
    return int(seconds * 1000)


def _flat(fields: Mapping[str, str]) -> list[str]:
    return [word for field in fields.items() for word in field]
