"""What happens to a store beside its jobs: writes that a server loses in a failover,
and other programs' writes.
"""

import contextlib
import re
from collections.abc import Iterator
from typing import Any


def keys_of(client: Any, *kinds: str) -> list[str]:
    """Return the keys of some types, or all."""
    keys = sorted({key.decode() for key in client.scan_iter("*")})
    return [key for key in keys if not kinds or client.type(key).decode() in kinds]


def keys_without_end(client: Any) -> list[str]:
    """Return the keys of a store that never expire."""
    keys = [key for key in keys_of(client) if "jobstate:" in key]
    return [key for key in keys if client.pttl(key) == -1]


#: Reads the records and the sorted sets at one moment: for each key its type, and its
#: members or the fields that say where a job is listed.
ALL = """
local found = {}
for _, key in ipairs(redis.call("KEYS", "*")) do
  local kind = redis.call("TYPE", key).ok
  if kind == "zset" then
    found[#found + 1] = { key, kind, redis.call("ZRANGE", key, 0, -1) }
  elseif kind == "hash" then
    local names = { "status", "kind", "actor", "owner", "batch" }
    found[#found + 1] = { key, kind, redis.call("HMGET", key, unpack(names)) }
  end
end
return found
"""


def disagreements(client: Any) -> set[tuple[str, str]]:
    """Return the places in the lists of a store that do not follow from its records:
    the set and the job of each that is missing or too many.
    """
    found: set[tuple[str, str]] = set()
    expected: set[tuple[str, str]] = set()
    for key, kind, values in client.eval(ALL, 0):
        name, texts = key.decode(), [v and v.decode() for v in values]
        # "again" holds traces; the others do not list jobs.
        others = ":again", ":cancels", ":kinds", ":workers"
        if kind == b"zset" and not name.endswith(others):
            found.update((name, uuid) for uuid in texts if "failed" not in name)
        elif re.fullmatch("jobstate:[0-9a-f-]{36}", name):
            uuid = name.removeprefix("jobstate:")
            expected.update((key, uuid) for key in places_for(*texts))
    return found ^ expected


def places_for(
    status: str | None, kind: str, actor: str, owner: str | None, batch: str | None
) -> list[str]:
    """Return the sets that should list a job."""
    if status in (None, "deleted", "alias"):
        return []
    is_member = batch not in (None, "*")
    is_plain = kind == "JobState" and batch != "*" and actor
    scopes = ["all", f"actor:{actor}" if is_plain else f"class:{kind}"]
    if owner is not None and not is_member:
        scopes.append(f"owner:{owner}")
    name = "queued" if status in ("waiting", "sending") else status
    part = "members:" if is_member else ""
    places = [f"jobstate:{{{scope}}}:{part}{name}" for scope in scopes]
    return places + ["jobstate:unsent"] * (status == "sending")


def places_of(client: Any, uuid: str) -> list[str]:
    """Return the keys of the sorted sets in which a job is listed."""
    keys = keys_of(client, "zset")
    return [key for key in keys if client.zscore(key, uuid) is not None]


@contextlib.contextmanager
def losing(client: Any, *uuids: str) -> Iterator[None]:
    """Lose what is written meanwhile, as a failover does: under the keys that bear the
    uuids of jobs, or, without any, into the sorted sets, which list jobs.
    """

    def is_lost(key: str) -> bool:
        if not uuids:
            return bool(client.type(key) == b"zset")
        return any(uuid in key for uuid in uuids)

    kept = {
        key: (max(0, client.pttl(key)), client.dump(key))
        for key in keys_of(client)
        if is_lost(key)
    }
    yield
    for key in keys_of(client):
        if is_lost(key):
            client.delete(key)
    for key, (ttl, value) in kept.items():
        client.restore(key, ttl, value)


def take_over(client: Any, *keys: str) -> None:
    """Have another program use some keys."""
    for key in keys:
        client.delete(key)
        client.set(key, "another program's")


def turn_clock_back(client: Any, seconds: int, part: str = "") -> None:
    """Have what is kept under keys whose names contain a part be from the future: the
    clock of the server that goes on is behind by some seconds.
    """

    def later(found: re.Match[bytes]) -> bytes:
        # Times are in milliseconds or in microseconds.
        unit = 10**3 if len(found[0]) == 13 else 10**6
        return b"%d" % (int(found[0]) + seconds * unit)

    for key in keys_of(client, "hash"):
        if part in key:
            for name, value in client.hgetall(key).items():
                client.hset(key, name, re.sub(rb"\b(\d{13}|\d{16})\b", later, value))
