"""What the store keeps of a failure is data: whatever another program writes there,
nothing of it is executed. There is no public way to it, so these tests look for it.
"""

from __future__ import annotations

import json
from typing import Any

import dramatiq
import pytest
import redis
from dramatiq import Message

from pyramid_jobstate import NotRepeatable, rerun
from tests.support import UUID
from tests.worker.floors import Floor, failed, records


def kept(client: redis.Redis, message: Message[Any]) -> str:
    """Return the key of what is kept of a job's failure."""
    keys: Any = client.keys(f"*{message.message_id}*")
    (key,) = set(keys) - records(client)
    return str(key.decode())


def forge(client: redis.Redis, message: Message[Any], **changes: Any) -> None:
    """Change the message that is kept of a job."""
    key = kept(client, message)
    text: Any = client.hget(key, "message")
    client.hset(key, "message", json.dumps({**json.loads(text), **changes}))


def test_foreign_message_runs_nothing(floor: Floor, client: redis.Redis) -> None:
    """A message in the store that is not one of the job's, or is none at all."""

    @dramatiq.actor(broker=floor.broker)
    def other() -> None:
        pass

    step = {"actor_name": "unknown", "message_id": UUID, "args": []}
    steps = {"pipe_target": {**step, "kwargs": {}, "options": {}}}
    cases: list[tuple[dict[str, Any], str]] = [
        ({"message_id": UUID}, "belongs to another job"),
        ({"actor_name": "other"}, "belongs to another job"),
        ({"actor_name": "unknown"}, "does not know the actor 'unknown'"),
        ({"args": "abc"}, "something other"),
        ({"options": {"pipe_target": "x"}}, "something other"),
        ({"options": steps}, "does not know the actor 'unknown'"),
    ]
    (message,) = failed(floor)
    key = kept(client, message)
    before: Any = client.hget(key, "message")
    for changes, reason in cases:
        client.hset(key, "message", before)
        forge(client, message, **changes)
        with pytest.raises(NotRepeatable, match=reason):
            rerun(floor.store, floor.broker, message.message_id)
        assert floor.statuses(message) == ["error"], changes
    for text in (b"\x80\x04K\x01.", "null", '{"a": NaN}'):
        client.hset(key, "message", text)
        with pytest.raises(NotRepeatable):
            rerun(floor.store, floor.broker, message.message_id)
    assert floor.waiting() == []


def test_message_may_not_choose_owner_or_queue(
    floor: Floor, client: redis.Redis
) -> None:
    """The owner comes from the record, and the queue from the actor."""
    for owner in "alice", None:
        (message,) = failed(floor)
        if owner is None:
            client.hdel(f"jobstate:{message.message_id}", "owner")
        options = {"job_owner": "mallory"}
        forge(client, message, queue_name="other", options=options)
        assert rerun(floor.store, floor.broker, message.message_id)
        (sent,) = floor.waiting()
        assert sent.options.get("job_owner") == owner
        floor.work()
        state = floor.load(message.message_id)
        assert (state.owner, state.status) == (owner, "success")
