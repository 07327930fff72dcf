"""Running Lua scripts, pipelined by their sha."""

from __future__ import annotations

import hashlib
import importlib.resources
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from redis.exceptions import NoScriptError

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

#: The lines of a script that only say why.
_COMMENTS = re.compile(r"^\s*(--.*)?\n", re.MULTILINE)


class Script(NamedTuple):
    sha: str
    text: str


class Call(NamedTuple):
    """One call of a script, with the one key that it touches."""

    script: Script
    key: str
    args: Sequence[str | int]


def read_scripts() -> dict[str, Script]:
    """Return the scripts of this package by name."""
    folder = importlib.resources.files(__package__) / "lua"
    common = (folder / "common.lua").read_text("utf-8")
    scripts = {}
    for name in NAMES:
        text = common + (folder / f"{name}.lua").read_text("utf-8")
        # A server that does not know a script is sent all of it.
        text = _COMMENTS.sub("", text)
        sha = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()
        scripts[name] = Script(sha, text)
    return scripts


def run_scripts(client: Client, calls: Sequence[Call]) -> list[Any]:
    """Run `calls` in one round trip and return their replies.

    A call that failed has the exception as its reply. A server that does not know a
    script is sent it, and then again all calls for the keys concerned, in their
    order: a script that is sent twice changes nothing the second time.

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
