"""The newest jobs of a store, whatever their status."""

import pytest
import redis

from pyramid_jobstate import JobStore
from pyramid_jobstate.store import newest_uuids
from tests.listed import create, finish
from tests.support import key_of


@pytest.mark.parametrize("protocol", [2, 3])
def test_newest_are_found_among_all(redis_url: str, protocol: int) -> None:
    """Unfinished and ended jobs come in one order, by when they were queued or ended,
    and a job in both lists comes once.
    """
    with redis.Redis.from_url(redis_url, protocol=protocol) as client:
        store = JobStore(client)
        old, ended = create(store, 2), create(store, 2)
        finish(store, *ended)
        new = create(store, 1)
        # Its worker died between the two writes that list its end.
        client.zadd("jobstate:active:all", {ended[0]: 1})

        assert newest_uuids(store, 10) == [*new, *ended, *old]
        assert newest_uuids(store, 2) == [*new, ended[0]]


def test_what_is_not_an_id_is_left_out(store: JobStore, client: redis.Redis) -> None:
    """Another program's entries are left out."""
    client.zadd("jobstate:active:all", {"stray": 5})
    assert newest_uuids(store, 10) == []


def test_a_list_of_another_type_is_empty(store: JobStore, client: redis.Redis) -> None:
    """If another program has taken its key, the others are read."""
    client.set(key_of(store, "ended:all"), "")
    new = create(store, 1)
    assert newest_uuids(store, 10) == new
