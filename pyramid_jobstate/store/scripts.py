"""Reads the Lua scripts and runs calls of them in pipelines."""

from __future__ import annotations

import enum
import hashlib
import importlib.resources
import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from redis.exceptions import NoScriptError

from .commands import Command
from .connection import Client, execute

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
