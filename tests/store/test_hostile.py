"""What other programs have written into the store."""

import itertools
from dataclasses import astuple
from typing import Any

import redis

from pyramid_jobstate import BulkResult, Counts, JobStore, Page
from pyramid_jobstate.testing import put_job
from tests.jobs import messages
from tests.lost import keys_of, take_over
from tests.store.jobs import Diary, all_of, create, finish, make_desk, put, uuids_of
from tests.support import STATUSES, UUID, key_of, load_job

CLIENTS: list[dict[str, Any]] = [
    {"decode_responses": True},
    {"decode_responses": True, "protocol": 2},
    {"encoding": "latin-1"},
    {"decode_responses": True, "encoding_errors": "ignore"},
    {"decode_responses": True, "encoding": "latin-1", "encoding_errors": "replace"},
]


#: Entries of a sorted set that are not those of jobs, or have odd scores.
NONSENSE: dict[str | bytes, Any] = {
    b"\xff": 2**53,
    b"\xff\xfe": 1e15,
    "active:all": 2**53 - 1,
    "": 1e15,
    "x" * 5000: 5,
    UUID: "inf",
    f"{UUID[:-1]}c": "-inf",
    f"{UUID[:-1]}d": 1e300,
}


def litter(client: Any, *more: str) -> None:
    """Have another program write into all sorted sets, and add jobs to them."""
    for key in keys_of(client, "zset"):
        client.zadd(key, NONSENSE)
        for uuid in more:
            client.zadd(key, {uuid: client.time()[0] * 10**6}, nx=True)


def test_bytes_that_are_no_text_do_not_fail_a_read(client, redis_url):
    """Undecodable bytes read as the replacement character, no value gets the name of
    another, and the next job reads as well, with any client.
    """
    store = JobStore(client)
    bad, good = put(store, "error"), put(store, "working")
    key = key_of(store, bad)
    values: list[tuple[str | bytes, bytes]] = [
        ("m:x", b'"a\xffb"'),
        ("message", b'"\xe9"'),
        ("run", b"\xff"),
        ("m:a", b"2"),
        (b"m:\xfe", b"1"),
        (b"m:\xff", b"3"),
        (b"\xff", b""),
    ]
    for name, value in values:
        client.hset(key, name, value)
    litter(client)
    for options in CLIENTS:
        with redis.Redis.from_url(
            redis_url, single_connection_client=True, **options
        ) as own:
            reader = JobStore(own)
            for _ in range(2):
                both = reader.load_many([bad, good])
                listed = reader.list(limit=10).items
                assert uuids_of(listed) == [good, bad], options
                for job in load_job(reader, bad), both[0], listed[1]:
                    assert job is not None and job.message == "\ufffd"
                    names = {"x", "\ufffd", "a"}
                    assert {*job.progress_metrics} == names, options
                    assert job.get_progress_metric("x") == "a\ufffdb"
                assert both[1] is not None and both[1].uuid == good


def test_nonsense_in_a_list_is_passed_over(store):
    """Entries that are not those of jobs, however many, are not shown, and the record
    determines the lists in which a job appears.
    """
    active, ended = [put(store, "working"), put(store, "queued")], put(store, "error")
    others = [put_job(store, Diary, status, owner="bob").uuid for status in STATUSES]
    litter(store.client)
    store.client.zadd(
        max(keys_of(store.client, "zset"), key=len),
        {f"x{i}": 2**53 - i for i in range(1200)},
    )
    lists: list[tuple[dict[str, Any], list[str]]] = [
        ({"owner": "alice"}, [*active, ended]),
        ({"kind": "RunMarathon", "status": "working"}, active[:1]),
        ({"kind": "RunMarathon", "status": "error"}, [ended]),
        ({"kind": "RunMarathon", "status": "success"}, []),
        ({"kind": "Diary"}, others),
        ({}, [*active, ended, *others]),
    ]
    for wanted, expected in lists:
        for limit in 1, 50:
            found = all_of(store, limit, **wanted)
            assert sorted(found) == sorted(expected), wanted
    # Once all lists have each job, they are mended as they are read.
    litter(store.client, *active, ended)
    for status, kind in itertools.product(STATUSES, (None, "RunMarathon", "Diary")):
        store.list(status=status, kind=kind)
    for wanted, expected in lists:
        assert sorted(uuids_of(store.list(**wanted).items)) == sorted(expected), wanted
    assert min(astuple(store.counts())) >= 0


def test_keys_of_another_program_harm_no_job(store, caplog):
    """If another program uses the keys of lists, jobs are sent, run and end, and no
    list, count or act fails. What is wrong is logged once a key.
    """
    every = {status: put(store, status) for status in STATUSES}
    ended = every["error"]
    (job,) = create(store, 1)
    take_over(store.client, *keys_of(store.client, "zset"))
    caplog.clear()
    (other,) = create(store, 1)
    finish(store, job)
    assert load_job(store, other).cancel()
    for status, uuid in (every | {"success": job, "cancelled": other}).items():
        assert load_job(store, uuid).status == status
    lists: list[dict[str, Any]] = [{}, {"status": "error"}, {"owner": "alice"}]
    for wanted in lists:
        assert store.list(**wanted) == Page([], None)
    assert store.counts() == Counts()
    assert not any(any(astuple(each)[1:]) for each in store.throughput())
    assert store.kinds() == []
    assert store.clear(everything=True) == BulkResult(0, 0, None)
    assert store.delete(ended)
    said = messages(caplog, "pyramid_jobstate")
    assert len({*said}) == len(said)
    assert all("What cannot be read is skipped" in line for line in said)


def test_record_of_another_type_is_unknown(store):
    """A job whose key another program uses is unknown, and the next one is not."""
    bad, good = put(store, "working"), put(store, "working")
    take_over(store.client, key_of(store, bad))
    found = store.load_many([bad, good])
    assert [job and job.uuid for job in found] == [None, good]
    assert store.load(bad) is None
    assert uuids_of(store.list().items) == [good]
    assert not store.delete(bad)
    # Neither is it overwritten by a send, or by a run.
    broker, run_marathon = make_desk(store)
    broker.enqueue(run_marathon.message(26).copy(message_id=bad))
    finish(store, bad, good)
    assert load_job(store, good).is_success
    assert store.client.get(key_of(store, bad)) == b"another program's"
