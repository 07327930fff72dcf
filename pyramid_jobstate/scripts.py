"""Running Lua scripts, pipelined by their sha."""

from __future__ import annotations

import hashlib
import importlib.resources
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from redis.exceptions import NoScriptError

if TYPE_CHECKING:
    from redis import Redis

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
        sha = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()
        scripts[name] = Script(sha, text)
    return scripts


def run_scripts(client: Redis, calls: Sequence[Call]) -> list[Any]:
    """Run `calls` in one round trip and return their replies.

    A call that failed has the exception as its reply. A server that does not know a
    script is sent it, and then again all calls for the keys concerned, in their
    order: a script that is sent twice changes nothing the second time.

    Raises:
      redis.exceptions.RedisError: The server did not answer.
    """
    replies = _evalsha(client, calls)
    missing = [
        call
        for call, reply in zip(calls, replies, strict=True)
        if isinstance(reply, NoScriptError)
    ]
    if missing:
        for text in {call.script.text for call in missing}:
            client.script_load(text)
        keys = {call.key for call in missing}
        places = [i for i, call in enumerate(calls) if call.key in keys]
        again = _evalsha(client, [calls[i] for i in places])
        for i, reply in zip(places, again, strict=True):
            replies[i] = reply
    return replies


def _evalsha(client: Redis, calls: Sequence[Call]) -> list[Any]:
    with client.pipeline(transaction=False) as pipe:
        for script, key, args in calls:
            pipe.evalsha(script.sha, 1, key, *args)
        return pipe.execute(raise_on_error=False)
