"""The Lua scripts: reads them, makes calls of them, and runs these in pipelines."""

from __future__ import annotations

import collections
import contextlib
import enum
import functools
import hashlib
import importlib.resources
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from redis.exceptions import NoScriptError, RedisError, ResponseError

from ..job.journal import MAX_LOG_BYTES
from ..job.record import (
    CANCELLED,
    NOT_REACHED,
    NOT_SENT,
    JobError,
    JobInfo,
    NewJob,
    Update,
    dump_error,
)
from .connection import Client, Command, execute, passes, text
from .reader import checked, is_foreign, log_once, skip

#: The scripts that change the record of a job, and its places in the lists.
CHANGES = (
    "alias",
    "ask_where",
    "cancel",
    "confirm",
    "create",
    "delete",
    "drop",
    "finish",
    "forget",
    "mend",
    "part",
    "queue_again",
    "record",
    "requeue",
    "restore",
    "start",
    "wait",
)

#: All of them but these have another form, with this prefix, for the members of a
#: batch: it numbers the changes.
MEMBER = "member "
OF_LONE = ("alias", "ask_where", "delete", "forget", "mend", "part")

#: Those that have a form for many members, with this prefix, unless the keys are
#: in many slots of a Cluster.
MANY = "many "
OF_MANY = ("confirm", "create")

#: The scripts that change the record of a batch, and its places in the lists.
OF_BATCHES = ("add_members", "forget_batch", "open_batch", "stop_batch", "tell_batch")

#: The other scripts.
OTHERS = (
    "answer_where",
    "begin_hook",
    "claim",
    "end_hook",
    "end_sent",
    "log",
    "mark",
    "raise",
    "take_ends",
    "tell_again",
    "touch",
    "usual",
)

#: A function of a prepended file.
_FUNCTION = re.compile(r"^local function (\w+)\(.*?^end\n", re.MULTILINE | re.DOTALL)

#: A word that may be a call, or the argument of one.
_WORD = re.compile(r"\w+(?=[(,)])")

#: The blank lines and comments of a script.
_COMMENTS = re.compile(r"^\s*(--.*)?\n", re.MULTILINE)


class Script(NamedTuple):
    """A Lua script.

    Attributes:
      sha: Its SHA-1.
      text: The script.
      is_change: Whether it changes the lists, too: see lua/lone.lua and lua/spread.lua.
    """

    sha: str
    text: str
    is_change: bool


class News(NamedTuple):
    """What a batch is told of a change of a member beside its status.

    Attributes:
      tells: Whether the script tells the batch.
      part: How much of the member is done, in millionths, if it runs; None for as much
        as before.
      delay: Milliseconds until it is due.
      unsent: Whether it could not be sent.
    """

    tells: bool = True
    part: int | None = None
    delay: int = 0
    unsent: bool = False


NEWS = News()


class Call(NamedTuple):
    """A call of a script: a :class:`.Command`, and the script that it names.

    Attributes:
      batch: The batch of the member whose record it changes, or None.
      news: What it has to tell the batch.
    """

    key: str
    args: Sequence[str | int]
    script: Script
    batch: str | None = None
    news: News = NEWS

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


class Lives(NamedTuple):
    """The durations of a store, in milliseconds.

    Attributes:
      active: How long an unfinished job is kept.
      ended: How long a job is kept after its end.
      silence: Without a sign of life for so long, a run counts as dead.
    """

    active: int
    ended: int
    silence: int


@functools.cache
def read_scripts(
    lives: Lives, *, is_tagged: bool, is_spread: bool
) -> Mapping[str, Script]:
    """Return the scripts in `lua/` by name.

    Parameters:
      lives: The durations of the store.
      is_tagged: Whether the namespace has a hash tag, so that all keys share a slot.
      is_spread: Whether the keys are in many slots of a Cluster. The scripts that
        change a record then return the calls that list the job.
    """
    braces = '"", ""' if is_tagged else '"{", "}"'
    numbers = ", ".join(map(str, lives))
    names = "ACTIVE_TTL, ENDED_TTL, SILENCE, OPEN, CLOSE"
    constants = f"local {names} = {numbers}, {braces}\n"
    scripts = {}
    for name, (body, is_change) in _texts(is_spread).items():
        text = constants + body
        sha = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()
        scripts[name] = Script(sha, text, is_change)
    return scripts


@functools.cache
def _texts(is_spread: bool) -> Mapping[str, tuple[str, bool]]:
    """Return the text of each script without the constants of a store, and whether it
    changes the lists, too.
    """
    folder = importlib.resources.files(__package__) / "lua"

    def read(*names: str) -> str:
        texts = ((folder / f"{name}.lua").read_text("utf-8") for name in names)
        return _COMMENTS.sub("", "".join(texts))

    clock = read("clock")
    common = clock + read("moves" if is_spread else "move", "sets", "untold", "common")
    of_batches = common + read("batch", "tell")
    tail = "spread" if is_spread else "lone"

    def change(name: str, head: str, *tail: str) -> tuple[str, bool]:
        body = f"local function change(KEYS, ARGV)\n{read(name)}end\n"
        return _shortened(head, body + read(*tail)), True

    def change_member(name: str, tail: str) -> tuple[str, bool]:
        if is_spread:
            return change(name, common, "numbered", tail)
        return change(name, of_batches, "numbered", "with_batch", tail)

    return {
        **{name: change(name, common, tail) for name in CHANGES},
        **{
            MEMBER + name: change_member(name, "member" if is_spread else "one")
            for name in CHANGES
            if name not in OF_LONE
        },
        **{
            MANY + name: change_member(name, "many")
            for name in OF_MANY
            if not is_spread
        },
        **{name: change(name, of_batches, "spread") for name in OF_BATCHES},
        **{name: (_shortened(common, read(name)), False) for name in OTHERS},
        "presence": (_shortened(clock, read("presence")), False),
        "look_batch": (_shortened(of_batches, read("look_batch")), False),
        "move_in": (_shortened(clock + read("move"), read("move_in")), False),
    }


def _shortened(head: str, body: str) -> str:
    """Return a script, without those functions of its head that it does not call: each
    costs time at every call. A server that does not have the script receives its text.
    """
    text = head + body
    counts = collections.Counter(_WORD.findall(text))
    for match in [*_FUNCTION.finditer(head)][::-1]:
        if counts[match[1]] == 1:
            text = text.replace(match[0], "")
            counts.subtract(_WORD.findall(match[0]))
    return text


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
    keys = set()
    for call, reply in zip(calls, replies, strict=True):
        if isinstance(reply, NoScriptError):
            keys.add(call.key)
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
    return _REPLIES[min(first, last)]


#: What the script `drop` calls a message that was not sent.
NOT_LEFT: dict[JobError | None, str] = {NOT_SENT: "lost", NOT_REACHED: "unreached"}


class Calls:
    """Makes the calls of a store.

    Parameters:
      scripts: The scripts by name.
      namespace: The prefix of each key.
      is_spread: Whether the keys are in many slots of a Cluster.
    """

    def __init__(
        self, scripts: Mapping[str, Script], namespace: str, *, is_spread: bool
    ) -> None:
        self._scripts = scripts
        self._namespace = namespace
        self.is_spread = is_spread

    def key(self, uuid: str) -> str:
        """Return the key of a job's hash."""
        return f"{self._namespace}:{uuid}"

    def failure_key(self, uuid: str) -> str:
        """Return the key of what is kept of a job's failures, in its hash's slot."""
        return beside(self.key(uuid), "failure")

    def where_key(self, uuid: str) -> str:
        """Return the key of what is known of where a job is, in its hash's slot."""
        return beside(self.key(uuid), "where")

    def log_key(self, uuid: str) -> str:
        """Return the key of the log of a job, in its hash's slot."""
        return beside(self.key(uuid), "log")

    def claim_key(self, identity: str) -> str:
        """Return the key of the claim to the identity of unique jobs."""
        digest = hashlib.sha256(identity.encode()).hexdigest()
        return f"{self._namespace}:unique:{digest}"

    def claim(
        self, identity: str, uuid: str, version: str, ttl: int, hold: int | None = None
    ) -> Call:
        args = (uuid, version, ttl, "" if hold is None else hold)
        return Call.of(self._scripts["claim"], self.claim_key(identity), args)

    def mark(self, identity: str, uuid: str, ttl: int) -> Call:
        return Call.of(self._scripts["mark"], self.claim_key(identity), (uuid, ttl))

    def alias(self, uuid: str, target: str, ttl: int, sender: str) -> Call:
        return self._call("alias", uuid, target, ttl, sender, dump_error(NOT_SENT))

    def touch(self, job: NewJob) -> Call:
        return self._call("touch", job.uuid, job.sender)

    def create(self, job: NewJob, *, tells: bool = True) -> Call:
        news = News(tells, delay=millis(job.delay))
        return self._change("create", job.info, job.uuid, *_new(job), news=news)

    def queue_again(self, job: NewJob, token: str, deadline: str) -> Call:
        words, news = [*_new(job), token, deadline], News(delay=millis(job.delay))
        return self._change("queue_again", job.info, job.uuid, *words, news=news)

    def confirm(
        self, uuid: str, word: str | None, batch: str | None, sender: str
    ) -> Call:
        return self._change_in(batch, "confirm", uuid, word or "", sender)

    def forget(self, job: NewJob) -> Call:
        return self._call("forget", job.uuid, job.sender)

    def cancel(self, uuid: str, info: JobInfo, word: str) -> Call:
        return self._change("cancel", info, uuid, dump_error(CANCELLED), word, 0)

    def cancel_unsent(self, uuid: str, word: str) -> Call:
        return self._call("cancel", uuid, dump_error(NOT_SENT), word, 1)

    def start(self, update: Update, deadline: str, *, is_stopped: bool = False) -> Call:
        return self._change(
            "start",
            update.info,
            update.uuid,
            update.token,
            millis(update.age),
            int(update.late),
            int(update.is_answered),
            int(update.cancelled),
            update.info.rerun or "",
            deadline,
            int(is_stopped),
            dump_error(CANCELLED),
            *update.info.words(),
            # Else the report does.
            news=News(not (update.tells or update.end)),
        )

    def report(self, update: Update) -> Call:
        """Return the call that writes an update, apart from the start of its run."""
        uuid, token, seq, end = update.uuid, update.token, update.seq, update.end
        if end is None:
            # A change is numbered only if the batch is told of it.
            words: list[str | int] = [token, seq, update.base, int(update.renews)]
            for field in update.fields.items():
                words += field
            if not update.tells:
                return self._call("record", uuid, *words)
            news = News(part=update.millionths)
            return self._change("record", update.info, uuid, *words, news=news)
        news = News(delay=millis(end.delay or 0), unsent=end.error == NOT_SENT)
        delay = "" if end.delay is None else millis(end.delay)
        error = [] if end.error is None else [dump_error(end.error)]
        failure = end.failure if error else None
        if update.dropped:
            return self._change(
                "drop",
                update.info,
                uuid,
                token,
                NOT_LEFT.get(end.error, "sent"),
                update.sender,
                update.info.rerun or "",
                update.info.attempt,
                end.status,
                delay,
                dump_error(CANCELLED),
                *error,
                *(failure or ()),
                news=news,
            )
        failed: Sequence[str | int] = ()
        if failure is not None:
            failed = (*failure, *error, millis(update.age))
        return self._change_both(
            "finish",
            update.info,
            uuid,
            token,
            seq,
            update.base,
            end.status,
            delay,
            dump_error(CANCELLED),
            int(bool(failed)),
            *failed,
            *_flat(update.fields),
            *(word for text in error for word in ("error", text)),
            news=news,
        )

    def log(self, update: Update) -> Call:
        """Return the call that writes what a run has logged."""
        uuid = update.uuid
        words = (word for line in update.lines for word in line)
        args = update.token, MAX_LOG_BYTES, *words
        return self._call("log", uuid, *args, more_keys=[self.log_key(uuid)])

    def many(self, script: str, batch: str, calls: Sequence[Call]) -> Call:
        """Return the call of a script that does what calls of it do for members.

        Parameters:
          batch: The batch to tell, or "".
        """
        words: list[str | int] = [batch]
        for call in calls:
            # Without the command, its script, its key and the batch.
            args = call.args[4:-1]
            words += [call.key, len(args), *args]
        return Call.of(self._scripts[MANY + script], calls[0].key, words)

    def delete(
        self, uuid: str, info: JobInfo, word: str, *, spares_awaited: bool
    ) -> Call:
        """Return the call that deletes an ended job.

        Parameters:
          spares_awaited: Whether to leave it alone if its hook has yet to return.
        """
        names = ("failure", "former", "log", "where")
        kept = [beside(self.key(uuid), name) for name in names]
        if info.is_batch:
            kept += self.batch_keys(uuid)
        return self._call("delete", uuid, word, int(spares_awaited), more_keys=kept)

    def take_ends(
        self, sets: Iterable[str], milliseconds: int, limit: int, uuid: str = ""
    ) -> Call:
        """Return the call that takes ends that are to be told.

        Parameters:
          sets: The names of their sets.
          milliseconds: For how long no other process takes them.
          limit: The most ends.
          uuid: The only job whose end to take, or "".
        """
        words: list[str | int] = [milliseconds, limit, uuid, *sets]
        return Call.of(self._scripts["take_ends"], self.untold_key, words)

    def worker_keys(self, token: str) -> list[str]:
        """Return the keys of the worker processes, and of one of them."""
        names = self.key("workers")
        return [names, beside(names, token)]

    def presence(self, token: str, milliseconds: int, says: str) -> Call:
        """Return the call that writes that a worker process lives."""
        names, own = self.worker_keys(token)
        words = (token, milliseconds, says)
        return Call.of(self._scripts["presence"], names, words, [own])

    @property
    def untold_key(self) -> str:
        """The key of the set of the names of the sets of ends that are to be told."""
        return self.key("untold")

    def usual(self, uuid: str, run: str, words: str) -> Call:
        """Return the call that has the record of a working job say what is usual."""
        return self._call("usual", uuid, run, words)

    def end_sent(self, uuid: str, finished: str) -> Call:
        """Return the call that takes off the mark of an end that is told."""
        return self._call("end_sent", uuid, finished)

    # Of the hook that a message calls, for the end of a job at a time.

    def begin_hook(self, uuid: str, finished: str, message_id: str) -> Call:
        """Return the call that asks whether it may run, and notes that it does."""
        return self._call("begin_hook", uuid, finished, message_id)

    def end_hook(
        self, uuid: str, finished: str, message_id: str, *, is_given_up: bool
    ) -> Call:
        """Return the call that notes that it has returned, or was given up."""
        return self._call("end_hook", uuid, finished, message_id, int(is_given_up))

    def tell_again(self, uuid: str, finished: str, message_id: str) -> Call:
        """Return the call that has another message call it: this one is lost."""
        return self._call("tell_again", uuid, finished, message_id)

    def batch_keys(self, uuid: str) -> list[str]:
        """Return the keys of what a batch knows of its members, in its hash's slot: see
        lua/batch.lua.
        """
        return [beside(self.key(uuid), name) for name in ("members", "failed", "order")]

    def ask_where(self, uuid: str) -> Call:
        """Return the call that asks where a job is."""
        return self._call("ask_where", uuid, more_keys=[self.where_key(uuid)])

    def answer_where(self, uuid: str, run: str, says: Mapping[str, str]) -> Call:
        """Return the call that says where a job is."""
        kept = [self.where_key(uuid)]
        return self._call("answer_where", uuid, run, *_flat(says), more_keys=kept)

    def of_batch(self, script: str, uuid: str, *args: str | int) -> Call:
        """Return a call of a script of batches."""
        return self._call(script, uuid, *args, more_keys=self.batch_keys(uuid))

    def requeue(
        self, uuid: str, info: JobInfo, queue: str, word: str, deadline: str
    ) -> Call:
        # Not the worker of the run that failed.
        kept = (name for name in info._fields if name != "worker")
        words = word, deadline, queue, "queued", *kept
        return self._change_both("requeue", info, uuid, *words)

    def restore(self, uuid: str, info: JobInfo, word: str) -> Call:
        return self._change_both("restore", info, uuid, word)

    def wait(self, uuid: str, info: JobInfo) -> Call:
        return self._change("wait", info, uuid)

    def above(self, uuid: str, rev: str) -> Call:
        """Return the call that numbers the last change of a member above another."""
        return self._call("raise", uuid, rev)

    def part(self, uuid: str) -> Call:
        """Return the call that makes a member a job of its own."""
        return self._call("part", uuid)

    def mend(self, uuid: str, scope: str, name: str, score: int) -> Call:
        """Return the call that lists a job where its record says, and not in a set.

        Parameters:
          scope, name: What the name of the set begins with, and the rest of it.
          score: The score of the job there.
        """
        return self._call("mend", uuid, scope, name, score)

    def move(self, move: Sequence[Any]) -> Call:
        """Return the call that moves a job in the sets of a scope of a Cluster.

        Parameters:
          move: What a script has returned: see lua/moves.lua.
        """
        scope, _, left, entered, *_ = words = [text(word) for word in move]
        sets = [scope + name for name in (entered, left) if name != "-"]
        return Call.of(self._scripts["move_in"], sets[0], words, sets[1:])

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
        news: News = NEWS,
    ) -> Call:
        """Return a call that changes the record of a job: see :meth:`_change_in`."""
        batch = info.batch if info.is_member else None
        return self._change_in(
            batch, script, uuid, *args, more_keys=more_keys, news=news
        )

    def _change_in(
        self,
        batch: str | None,
        script: str,
        uuid: str,
        *args: str | int,
        more_keys: Sequence[str] = (),
        news: News = NEWS,
    ) -> Call:
        """Return a call that changes the record of a job. For a member of a batch it
        numbers the change and, unless the batch may be in another slot, tells the batch
        of it.
        """
        if batch is None:
            return self._call(script, uuid, *args, more_keys=more_keys)
        if not self.is_spread:
            part, target = "" if news.part is None else news.part, news.tells and batch
            args = (*args, part, news.delay, int(news.unsent), target or "")
        call = self._call(MEMBER + script, uuid, *args, more_keys=more_keys)
        return call._replace(batch=batch, news=news)

    def _change_both(
        self,
        script: str,
        info: JobInfo,
        uuid: str,
        *args: str | int,
        news: News = NEWS,
    ) -> Call:
        """Return such a call with the keys of the record and of its failures."""
        kept = [self.failure_key(uuid)]
        return self._change(script, info, uuid, *args, more_keys=kept, news=news)


def _new(job: NewJob) -> list[str | int]:
    status = "waiting" if job.waits else "sending"
    return [millis(job.delay), status, job.sender, *job.info.words()]


#: The most calls in one, and about as many bytes.
PORTION, PORTION_BYTES = 200, 1024 * 1024


def _portions(calls: Sequence[Call]) -> Iterator[list[Call]]:
    part: list[Call] = []
    size = 0
    for call in calls:
        length = sum(len(word) for word in call.args if isinstance(word, str))
        if part and (len(part) == PORTION or size + length > PORTION_BYTES):
            yield part
            part, size = [], 0
        part.append(call)
        size += length
    if part:
        yield part


#: On a Cluster, a process lists a kind once in so many seconds.
KIND_SECONDS = 60.0


#: How many places a process remembers where it could not list a job of a Cluster, and
#: how many it writes in one round trip.
MAX_UNLISTED, UNLISTED_PORTION = 10_000, 500

#: Seconds between two tries to list them, of a process that has no worker.
UNLISTED_PAUSE = 5.0

#: The names of the sets in which a record says that it is listed.
LISTED = (
    *("queued", "working", "retrying", "cancelling"),
    *("success", "error", "cancelled"),
)


class Runner:
    """Runs the calls of a store.

    Parameters:
      client: The server.
      calls: Makes the calls.
    """

    def __init__(self, client: Client, calls: Calls) -> None:
        self._client = client
        self._calls = calls
        #: When this process has last listed each kind on a Cluster, in seconds of the
        #: monotonic clock, and with which score.
        self._noted: dict[str, tuple[float, int]] = {}
        #: The calls that make good for failed moves, by scope and member.
        self._unlisted: dict[tuple[str, str], Call] = {}
        self._retry_at = 0.0

    def run(self, calls: Iterable[Call]) -> list[Any]:
        """Run calls and return their replies: see :func:`.checked`. On a Cluster, the
        jobs move in the lists in a second round trip.
        """
        calls = [*calls]
        if not calls:
            return []
        replies, moves = self.attempt(calls)
        self.move(moves)
        return checked(calls, replies)

    def attempt(self, calls: Sequence[Call]) -> tuple[list[Any], list[Call]]:
        """Run calls. Return the reply of each script, or the exception if it failed,
        and the calls that move jobs in the lists of a Cluster. The reply of a member's
        script is a list: see :func:`.changes_of`.
        """
        return self.take(calls, run_scripts(self._client, calls) if calls else [])

    def change_members(
        self, script: str, batch: str, calls: Sequence[Call]
    ) -> tuple[list[Any], list[Call]]:
        """Run calls of a script that change members of a batch, many in one. Return
        what :meth:`attempt` does.

        Parameters:
          batch: The batch to tell, or "".
        """
        if self._calls.is_spread:
            return self.attempt(calls)
        parts = [*_portions(calls)]
        replies = run_scripts(
            self._client, [self._calls.many(script, batch, part) for part in parts]
        )
        found: list[Any] = []
        for part, reply in zip(parts, replies, strict=True):
            found += [reply] * len(part) if isinstance(reply, Exception) else reply
        return self.take(calls, found)

    def mend(self, calls: Sequence[Call]) -> None:
        """Run calls that mend the lists, as far as the server lets them."""
        if calls:
            with contextlib.suppress(RedisError):
                replies = run_scripts(self._client, calls)
                _, moves = self.take(calls, replies, is_quiet=True)
                run_scripts(self._client, moves)

    def take(
        self, calls: Sequence[Call], replies: Sequence[Any], *, is_quiet: bool = False
    ) -> tuple[list[Any], list[Call]]:
        """Return what :meth:`attempt` does, from what the server has replied.

        Parameters:
          is_quiet: Whether not to log what is wrong with lists.
        """
        found = [*replies]
        moves: list[Call] = []
        for i, reply in enumerate(found):
            if isinstance(reply, list) and calls[i].script.is_change:
                plain, fault, *more = reply
                if fault and not is_quiet:
                    self._log(*fault)
                if more and more[0]:
                    moves += self._moves(more[0])
                found[i] = [plain, *more[1:]] if len(more) > 1 else plain
        return found, moves

    def move(self, moves: Sequence[Call]) -> None:
        """Move jobs in the lists of a Cluster. What fails is tried again later, unless
        the next change of the job, or the list that shows it, mends it before.
        """
        if moves:
            self._move(moves)
            if self._unlisted and time.monotonic() >= self._retry_at:
                # The next changes list others.
                self.catch_up()

    def _move(self, moves: Sequence[Call]) -> None:
        try:
            replies: Sequence[Any] = run_scripts(self._client, moves)
        except RedisError as e:
            replies = [e] * len(moves)
        self.log(moves, replies)

    def catch_up(self) -> bool:
        """List some of the jobs on a Cluster that could not be listed. Return whether
        others are left, which may be tried at once.
        """
        if not self._unlisted:
            return False
        portion = [*self._unlisted.items()][:UNLISTED_PORTION]
        for key, _ in portion:
            self._unlisted.pop(key, None)
        calls = [call for _, call in portion]
        try:
            replies: Sequence[Any] = run_scripts(self._client, calls)
        except RedisError as e:
            replies = [e] * len(calls)
        for (key, call), reply in zip(portion, replies, strict=True):
            if isinstance(reply, RedisError) and passes(reply):
                self._unlisted[key] = call
        _, moves = self.take(calls, replies, is_quiet=True)
        if moves:
            self._move(moves)
        if any(key in self._unlisted for key, _ in portion):
            self._retry_at = time.monotonic() + UNLISTED_PAUSE
            return False
        return True

    def _keep(self, move: Call) -> None:
        """Remember a move that failed, as what makes good for it whatever becomes of
        the job: its record says where it is to be listed.
        """
        scope, member, left, entered, at, *_ = move.args[3 + int(move.args[2]) :]
        name = str(entered if left == "-" else left)
        if name == "kinds":
            call = move
        elif name in LISTED:
            call = self._calls.mend(str(member), str(scope), name, int(at))
        else:
            return
        if len(self._unlisted) < MAX_UNLISTED:
            # The first move that failed tells where the job is still listed.
            self._unlisted.setdefault((str(scope), str(member)), call)

    def log(self, moves: Sequence[Call], replies: Sequence[Any]) -> None:
        """Log what is wrong with lists, once for each, and remember what will pass.

        Parameters:
          moves, replies: The calls that move jobs, and their replies.
        """
        for call, reply in zip(moves, replies, strict=True):
            if isinstance(reply, Exception):
                self._log(call.key, str(reply))
                if isinstance(reply, RedisError) and passes(reply):
                    self._keep(call)
            elif isinstance(reply, list):
                self._log(*reply)

    def _moves(self, moves: Sequence[Sequence[Any]]) -> Iterator[Call]:
        for move in moves:
            name, member, at = text(move[3]), text(move[1]), int(move[4])
            if name == "kinds":
                now = time.monotonic()
                noted, score = self._noted.get(member, (-KIND_SECONDS, 0))
                if now - noted < KIND_SECONDS and at - score < KIND_SECONDS * 1e6:
                    continue
                self._noted[member] = now, at
            yield self._calls.move(move)

    def _log(self, key: str | bytes, fault: str | bytes) -> None:
        key, error = text(key), ResponseError(text(fault))
        if is_foreign(error):
            skip(key, error)
        else:
            log_once(
                "The list %s of the job state store could not be written. Jobs may be "
                "missing there, or listed under an earlier status, until it can: %s",
                key,
                error,
            )


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
