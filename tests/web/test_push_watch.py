"""Watching: what is read when, and what a server's weather does to it."""

from __future__ import annotations

import contextlib
import functools
import logging
import random
import selectors
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import pytest
import redis

from pyramid_jobstate import JobStore
from pyramid_jobstate.embedded import EmbeddedServer
from pyramid_jobstate.store.tracking import Link, Tracker, TrackingRefused
from pyramid_jobstate.web.push.links import MAX_ASKED
from pyramid_jobstate.web.push.watch import Watch
from tests.relay import Relay, relaying
from tests.support import wait_for
from tests.webapp import put_job

LOGGER = "pyramid_jobstate"

AnyTracker = TypeVar("AnyTracker", bound=Tracker)


class Report(NamedTuple):
    """A report of a watch's."""

    uuid: str
    reading: int
    found: Mapping[str, Any]
    at: float

    @property
    def n(self) -> int:
        """The metric `n` of the one record that was found, or -1."""
        (fields,) = self.found.values()
        return int(fields.get("m:n", -1))


class Ear:
    """Watches jobs in the test's thread, as a hub does in its own.

    Attributes:
      reports: What was reported.
      refusals: The refusals of servers.
    """

    def __init__(self, tracker: Tracker) -> None:
        self.reports: list[Report] = []
        self.refusals: list[TrackingRefused] = []
        self._inbox: deque[Callable[[], None]] = deque()
        self._selector = selectors.DefaultSelector()
        self._ticked_at = 0.0
        self.watch = Watch(
            tracker,
            self._selector,
            self._inbox.append,
            report=self._report,
            refuse=self.refusals.append,
        )

    def _report(self, uuid: str, reading: int, found: Mapping[str, Any]) -> None:
        self.reports.append(Report(uuid, reading, dict(found), time.monotonic()))

    def turn(self) -> None:
        """Do what there is to do."""
        for key, _ in self._selector.select(0.002):
            self.watch.listen(key.data)
        while self._inbox:
            self._inbox.popleft()()
        self.watch.read(time.monotonic())

    def until(self, condition: Callable[[], object], tick: float = 0.1) -> None:
        """Watch until a condition holds.

        Parameters:
          tick: The seconds between two ticks.
        """

        def holds() -> object:
            self.turn()
            now = time.monotonic()
            if now - self._ticked_at >= tick:
                self._ticked_at = now
                self.watch.tick(now)
            return condition()

        wait_for(holds)

    def last(self, uuid: str) -> int:
        """Return the metric `n` of a job's last report, or None."""
        return next((r.n for r in reversed(self.reports) if r.uuid == uuid), -2)

    def have_all(self, uuids: Sequence[str], n: int) -> bool:
        """Return whether the last report of each job has a certain `n`."""
        return all(self.last(uuid) == n for uuid in uuids)

    def until_last(self, uuid: str, n: int) -> None:
        """Watch until the last report of a job has a certain `n`."""
        self.until(lambda: self.last(uuid) == n)

    def settle(self) -> None:
        """Watch until nothing more happens for a while."""
        quiet_at = time.monotonic() + 0.1
        count = len(self.reports)

        def is_quiet() -> bool:
            nonlocal quiet_at, count
            if self.watch.is_reading or len(self.reports) != count:
                count = len(self.reports)
                quiet_at = time.monotonic() + 0.1
            return time.monotonic() > quiet_at

        self.until(is_quiet, tick=10)

    def is_away(self, uuid: str) -> bool:
        """Return whether a job counts as away."""
        return uuid in self.watch.away(time.monotonic())

    def close(self) -> None:
        """Close the links, those too that are being made."""
        self.watch.close()
        while any(t.name == "jobstate-link" for t in threading.enumerate()):
            time.sleep(0.01)
        while self._inbox:
            self._inbox.popleft()()
        self._selector.close()


@contextlib.contextmanager
def listening(tracker: Tracker) -> Iterator[Ear]:
    """Have an ear."""
    ear = Ear(tracker)
    try:
        yield ear
    finally:
        ear.close()


@pytest.fixture
def ear(store: JobStore) -> Iterator[Ear]:
    """An ear at the shared server."""
    with listening(store.track()) as ear:
        yield ear


@pytest.fixture
def relay(redis_url: str) -> Iterator[Relay]:
    """A relay in front of the shared server."""
    with relaying(redis_url) as relay:
        yield relay


@pytest.fixture
def far(relay: Relay) -> Iterator[Ear]:
    """An ear behind the relay."""
    with listening(JobStore(relay.url).track()) as ear:
        yield ear


def write(client: redis.Redis, uuid: str, n: int) -> None:
    """Write a job's metric `n`."""
    client.hset(f"jobstate:{uuid}", "m:n", n)


def outages(caplog: pytest.LogCaptureFixture) -> tuple[int, int]:
    """Return how many outages were logged, and how many ends of one."""
    texts = [record.getMessage() for record in caplog.records]
    return (
        sum("tells of changes is lost. Streams wait" in text for text in texts),
        sum("tells of changes again" in text for text in texts),
    )


def test_a_job_is_reported_and_again_when_it_changes(
    ear: Ear, client: redis.Redis
) -> None:
    """The first report has the number that was promised, or a higher one, and each
    change another.
    """
    job = put_job(client, **{"m:n": 1})
    promised = ear.watch.add(job)
    ear.until_last(job, 1)
    write(client, job, 2)
    ear.until_last(job, 2)
    first, second = ear.reports
    assert promised <= first.reading < second.reading


def test_changes_are_read_together(ear: Ear, client: redis.Redis) -> None:
    """Many changes in a short time are few readings, 20 ms apart, and the newest
    wins.
    """
    job = put_job(client)
    ear.watch.add(job)
    ear.until(lambda: ear.reports)
    for n in range(400):
        write(client, job, n)
        ear.turn()
    ear.until_last(job, 399)
    begun = ear.reports[0].at
    assert len(ear.reports) <= 2 + (time.monotonic() - begun) / 0.02
    before = len(ear.reports)
    for n in range(400, 800):
        write(client, job, n)
    ear.until_last(job, 799)
    assert len(ear.reports) <= before + 2


def test_who_joins_during_a_reading_waits_for_the_next(
    far: Ear, relay: Relay, client: redis.Redis
) -> None:
    """A reply on its way may be older than a stream that joins meanwhile: the stream
    waits for the next reading, which follows.
    """
    job = put_job(client, **{"m:n": 1})
    far.watch.add(job)
    far.until_last(job, 1)
    before = commands(client, "hgetall")
    with relay.held():
        far.watch.touch([job])
        far.until(lambda: far.watch.is_reading)
        # The server has answered the question already.
        wait_for(lambda: commands(client, "hgetall") > before)
        client.delete(f"jobstate:{job}")
        put_job(client, uuid=job, **{"m:n": 2})
        promised = far.watch.add(job)
        for _ in range(30):
            far.turn()
        assert len(far.reports) == 1
    far.until_last(job, 2)
    assert [(r.reading >= promised, r.n) for r in far.reports[1:]] == [
        (False, 1),
        (True, 2),
    ]


def test_who_joins_during_a_reading_waits_for_no_change(
    far: Ear, relay: Relay, client: redis.Redis
) -> None:
    """The reading that is promised to a stream which joins during another comes even if
    nothing changes any more.
    """
    job = put_job(client, **{"m:n": 1})
    far.watch.add(job)
    far.until_last(job, 1)
    with relay.held():
        far.watch.touch([job])
        far.until(lambda: far.watch.is_reading)
        promised = far.watch.add(job)
        for _ in range(30):
            far.turn()
    far.until(lambda: far.reports[-1].reading >= promised)


def commands(client: redis.Redis, name: str) -> int:
    """Return how often a command was run at the server."""
    return int(client.info("commandstats").get(f"cmdstat_{name}", {}).get("calls", 0))


def test_a_job_that_was_left_is_not_read(ear: Ear, client: redis.Redis) -> None:
    """When the last stream has left, neither a reply on its way nor a change of the
    job causes anything.
    """
    job, other = put_job(client), put_job(client)
    for each in job, other:
        ear.watch.add(each)
    ear.until(lambda: len(ear.reports) == 2)
    ear.watch.touch([job])
    ear.until(lambda: ear.watch.is_reading)
    ear.watch.remove(job)
    ear.settle()
    assert len(ear.reports) == 2
    client.config_resetstat()
    write(client, job, 2)
    ear.settle()
    assert commands(client, "hgetall") == 0
    assert len(ear.reports) == 2
    write(client, other, 2)
    ear.until_last(other, 2)


def test_a_job_that_was_left_in_a_hurry_is_not_read(
    ear: Ear, client: redis.Redis
) -> None:
    """A job that leaves before its turn is never asked for."""
    job, other = put_job(client), put_job(client)
    ear.watch.add(other)
    ear.until(lambda: ear.reports)
    client.config_resetstat()
    ear.watch.add(job)
    ear.watch.touch([job, str(uuid.uuid4())])
    ear.watch.remove(job)
    ear.watch.touch([job])
    ear.settle()
    assert commands(client, "hgetall") == 0


def test_who_comes_again_gets_a_new_reading(
    far: Ear, relay: Relay, client: redis.Redis
) -> None:
    """A job that leaves and comes again during a reading gets nothing of that."""
    job, other = put_job(client, **{"m:n": 1}), put_job(client)
    for each in job, other:
        far.watch.add(each)
    far.until(lambda: len(far.reports) == 2)
    with relay.held():
        far.watch.touch([job])
        far.until(lambda: far.watch.is_reading)
        far.watch.remove(job)
        write(client, job, 2)
        far.watch.add(job)
    far.until_last(job, 2)
    assert [r.n for r in far.reports if r.uuid == job] == [1, 2]


def test_more_jobs_than_questions_at_a_time(ear: Ear, client: redis.Redis) -> None:
    """A thousand jobs are read in turn: at no time are more than 500 replies awaited,
    and a change meanwhile is not missed.
    """
    jobs = [put_job(client, **{"m:n": 1}) for _ in range(1300)]
    most = 0
    for job in jobs:
        ear.watch.add(job)

    def all_read() -> bool:
        nonlocal most
        links = [s.link for s in ear.watch._links._servers.values() if s.link]
        most = max(most, *(link.waiting for link in links), 0)
        return len({report.uuid for report in ear.reports}) == len(jobs)

    ear.until(lambda: ear.watch.is_reading)
    for job in jobs:
        write(client, job, 2)
    ear.until(all_read)
    # And the clock.
    assert most <= MAX_ASKED + 1
    ear.until(lambda: ear.have_all(jobs, 2))


def test_what_waits_for_room_may_leave(
    far: Ear, relay: Relay, client: redis.Redis
) -> None:
    """Of jobs that wait for room, those that leave are not read."""
    jobs = [put_job(client) for _ in range(MAX_ASKED + 50)]
    far.watch.add(jobs[0])
    far.until(lambda: far.reports)
    client.config_resetstat()
    with relay.held():
        for job in jobs[1:]:
            far.watch.add(job)
        far.until(lambda: far.watch.is_reading)
        for job in jobs[-30:]:
            far.watch.remove(job)
    far.until(lambda: len({r.uuid for r in far.reports}) == len(jobs) - 30)
    far.settle()
    assert commands(client, "hgetall") == len(jobs) - 31


def made_tracker(cls: type[AnyTracker], store: JobStore) -> AnyTracker:
    """Return a tracker of the jobs of a store."""
    return cls(store.client, store._reader, store._try_job, store._batch_reads)


class AliasTracker(Tracker):
    """Follows the field `alias` of a record, as one level of indirection.

    Attributes:
      meanwhile: Called once when an alias is found, before its target is read.
    """

    meanwhile: Callable[[], object] | None = None

    def keys_of(self, uuid: str, found: Mapping[str, Any]) -> frozenset[str]:
        keys = super().keys_of(uuid, found)
        target = (found.get(f"jobstate:{uuid}") or {}).get("alias")
        if target is None:
            return keys
        act, self.meanwhile = self.meanwhile, None
        if act is not None:
            act()
        return keys | super().keys_of(target, {})


@pytest.fixture
def aliases(store: JobStore) -> AliasTracker:
    """A tracker that follows aliases."""
    return made_tracker(AliasTracker, store)


def found_n(ear: Ear, uuid: str, target: str) -> int:
    """Return the `n` of an alias's target in the last report, or -1."""
    report = next((r for r in reversed(ear.reports) if r.uuid == uuid), None)
    found = report.found if report else {}
    return int(found.get(f"jobstate:{target}", {}).get("m:n", -1))


def test_a_job_depends_on_keys_that_its_record_names(
    aliases: AliasTracker, client: redis.Redis
) -> None:
    """A change of an alias's target is a change of the alias."""
    target = put_job(client, **{"m:n": 1})
    alias = put_job(client, alias=target)
    with listening(aliases) as ear:
        ear.watch.add(alias)
        ear.until(lambda: found_n(ear, alias, target) == 1)
        assert len(ear.reports) == 1
        write(client, target, 2)
        ear.until(lambda: found_n(ear, alias, target) == 2)


def test_a_change_between_two_reads_is_not_missed(
    aliases: AliasTracker, client: redis.Redis
) -> None:
    """Whatever changes while a job's keys are read one after the other is shown."""
    old, new = put_job(client, **{"m:n": 1}), put_job(client, **{"m:n": 7})
    alias = put_job(client, alias=old)
    with listening(aliases) as ear:
        aliases.meanwhile = lambda: write(client, old, 2)
        ear.watch.add(alias)
        ear.until(lambda: found_n(ear, alias, old) == 2)
        aliases.meanwhile = lambda: client.hset(f"jobstate:{alias}", "alias", new)
        write(client, old, 3)
        ear.until(lambda: found_n(ear, alias, new) == 7)
        ear.settle()
        count = len(ear.reports)
        # What the job no longer depends on is heard of no more.
        write(client, old, 4)
        ear.settle()
        assert len(ear.reports) == count


def test_two_jobs_may_depend_on_one_key(
    aliases: AliasTracker, client: redis.Redis
) -> None:
    """A key that two jobs share changes both, and goes on changing the one that stays
    when the other leaves.
    """
    target = put_job(client, **{"m:n": 1})
    first, second = (put_job(client, alias=target) for _ in range(2))
    with listening(aliases) as ear:
        for job in first, second, target:
            ear.watch.add(job)
        ear.until(lambda: len(ear.reports) >= 3)
        write(client, target, 2)
        ear.until(lambda: found_n(ear, first, target) == 2)
        ear.until(lambda: found_n(ear, second, target) == 2)
        ear.until_last(target, 2)
        ear.watch.remove(first)
        ear.watch.remove(target)
        write(client, target, 3)
        ear.until(lambda: found_n(ear, second, target) == 3)
        assert found_n(ear, first, target) == 2


def test_the_link_may_break_between_two_reads(
    redis_url: str, relay: Relay, client: redis.Redis
) -> None:
    """A job whose link breaks after the first of its keys is read anew, whole."""
    target = put_job(client, **{"m:n": 1})
    alias = put_job(client, alias=target)
    store = JobStore(relay.url)
    tracker = AliasTracker(
        store.client, store._reader, store._try_job, store._batch_reads
    )
    with listening(tracker) as ear:
        tracker.meanwhile = relay.cut
        ear.watch.add(alias)
        ear.until(lambda: found_n(ear, alias, target) == 1)
        write(client, target, 2)
        ear.until(lambda: found_n(ear, alias, target) == 2)


def test_what_changes_while_a_link_is_broken_is_read(
    far: Ear, relay: Relay, client: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    """After a reconnect all jobs are read, which tells nobody of a short break and logs
    its begin and its end.
    """
    caplog.set_level(logging.INFO, LOGGER)
    jobs = [put_job(client, **{"m:n": 1}) for _ in range(3)]
    for job in jobs:
        far.watch.add(job)
    far.until(lambda: len(far.reports) == 3)
    relay.cut()
    for job in jobs:
        write(client, job, 2)
    far.until(lambda: far.have_all(jobs, 2))
    far.until(lambda: outages(caplog)[1])
    assert outages(caplog) == (1, 1)
    assert not far.is_away(jobs[0])


def test_a_reply_that_is_lost_with_its_link_is_asked_for_again(
    far: Ear, relay: Relay, client: redis.Redis
) -> None:
    """A reading that a broken link leaves half done does not block its job."""
    job = put_job(client, **{"m:n": 1})
    far.watch.add(job)
    far.until_last(job, 1)
    with relay.held():
        write(client, job, 2)
        far.watch.touch([job])
        far.until(lambda: far.watch.is_reading)
        relay.cut()
    far.until_last(job, 2)


def test_a_frozen_server_is_away_and_comes_back(
    far: Ear,
    relay: Relay,
    client: redis.Redis,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A server that keeps its connections and says nothing is away once the patience
    is over, until it answers. The log says so once.
    """
    caplog.set_level(logging.INFO, LOGGER)
    monkeypatch.setattr("pyramid_jobstate.web.push.links.AWAY_AFTER", 0.3)
    monkeypatch.setattr("pyramid_jobstate.web.push.links.CHECK", 0.2)
    job = put_job(client, **{"m:n": 1})
    far.watch.add(job)
    far.until_last(job, 1)
    assert far.watch.away(time.monotonic()) == set()
    begun = time.monotonic()
    with relay.held():
        far.until(lambda: outages(caplog)[0], tick=0.02)
        # The silence counts from its begin, not from when it is noticed.
        assert far.is_away(job)
        assert 0.3 < time.monotonic() - begun < 1.5
        write(client, job, 2)
        # Further failures to connect say nothing more.
        far.until(lambda: relay.connections >= 5)
        assert far.is_away(job)
        assert outages(caplog) == (1, 0)
    far.until_last(job, 2)
    far.until(lambda: outages(caplog)[1])
    assert outages(caplog) == (1, 1)
    assert not far.is_away(job)


def test_a_lost_reply_keeps_nobody_busy(
    far: Ear, relay: Relay, client: redis.Redis
) -> None:
    """While a link is down, a job whose reply went down with it is not asked for again
    and again.
    """
    job = put_job(client, **{"m:n": 1})
    far.watch.add(job)
    far.until_last(job, 1)
    with relay.held():
        far.watch.touch([job])
        far.until(lambda: far.watch.is_reading)
        far.watch.touch([job])
        relay.close()
        far.until(lambda: not far.watch.is_reading, tick=9)
        far.until(lambda: far.watch.wait_until() == float("inf"), tick=9)


def test_a_server_that_is_away_at_first_is_waited_for(
    server: EmbeddedServer,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A job is read as soon as its server can be reached at all."""
    caplog.set_level(logging.INFO, LOGGER)
    monkeypatch.setattr("pyramid_jobstate.web.push.links.AWAY_AFTER", 0.3)
    store = JobStore(server.url)
    server.stop()
    job = str(uuid.uuid4())
    with listening(store.track()) as ear:
        ear.watch.add(job)
        ear.until(lambda: ear.is_away(job))
        server.start()
        with redis.Redis.from_url(server.url) as client:
            put_job(client, uuid=job, **{"m:n": 1})
            ear.until_last(job, 1)
        ear.until(lambda: outages(caplog)[1])
        assert outages(caplog) == (1, 1)


def test_an_emptied_server_is_read_again(ear: Ear, client: redis.Redis) -> None:
    """FLUSHALL is a change of all jobs, after which they are missing."""
    jobs = [put_job(client, **{"m:n": 1}) for _ in range(3)]
    for job in jobs:
        ear.watch.add(job)
    ear.until(lambda: len(ear.reports) == 3)
    client.flushall()
    ear.until(lambda: ear.have_all(jobs, -1))


def test_a_full_table_of_keys_misses_nothing(server: EmbeddedServer) -> None:
    """A server that remembers ten keys still tells of all changes of thirty jobs."""
    with redis.Redis.from_url(server.url) as client:
        client.config_set("tracking-table-max-keys", 10)
        jobs = [put_job(client) for _ in range(30)]
        with listening(JobStore(server.url).track()) as ear:
            for job in jobs:
                ear.watch.add(job)
            ear.until(lambda: len(ear.reports) >= 30)
            for n in range(5):
                for job in jobs:
                    write(client, job, n)
                ear.until(functools.partial(ear.have_all, jobs, n))


def test_a_server_that_refuses_is_no_outage(
    redis_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A refusal is passed on at once, and not logged as an outage."""
    with (
        relaying(redis_url, {"CLIENT TRACKING": "NOPERM no permissions"}) as relay,
        listening(JobStore(relay.url).track()) as ear,
    ):
        ear.watch.add(str(uuid.uuid4()))
        ear.until(lambda: ear.refusals)
        assert "NOPERM" in str(ear.refusals[0])
    assert outages(caplog) == (0, 0)


def test_a_busy_server_is_an_outage(server: EmbeddedServer) -> None:
    """While a script runs for long, a job is neither reported nor missing."""
    with redis.Redis.from_url(server.url) as client:
        client.config_set("busy-reply-threshold", 10)
        job = put_job(client, **{"m:n": 1})
        with listening(JobStore(server.url).track()) as ear:
            ear.watch.add(job)
            ear.until_last(job, 1)
            busy = redis.Redis.from_url(server.url, socket_timeout=30)
            thread = threading.Thread(target=run_forever, args=(busy,))
            thread.start()
            wait_for(lambda: is_busy(client))
            ear.watch.touch([job])
            for _ in range(100):
                ear.turn()
            ear.watch.tick(time.monotonic() + 9)
            for _ in range(100):
                ear.turn()
            assert len(ear.reports) == 1
            wait_for(lambda: client.execute_command("SCRIPT KILL"))
            thread.join()
            busy.close()
            write(client, job, 2)
            ear.until_last(job, 2)


def run_forever(client: redis.Redis) -> None:
    """Run a script that ends when it is killed."""
    with contextlib.suppress(redis.ResponseError):
        client.eval("while true do end", 0)


def is_busy(client: redis.Redis) -> bool:
    """Return whether a server runs a script for long."""
    try:
        client.ping()
    except redis.RedisError as e:
        return "BUSY" in str(e)
    return False


def test_a_link_that_nobody_needs_is_closed(ear: Ear, client: redis.Redis) -> None:
    """Some seconds after the last job has left, the link is closed. The next job brings
    another.
    """
    for i in range(2):
        job = put_job(client, **{"m:n": 1})
        ear.watch.add(job)
        ear.until_last(job, 1)
        assert links(client) == 1
        ear.watch.remove(job)
        ear.watch.tick(time.monotonic() + 100 * i + 100)
        wait_for(lambda: links(client) == 0)


def links(client: redis.Redis) -> int:
    """Return how many links a server has."""
    return sum("t" in c["flags"] for c in client.client_list())


def test_a_link_that_comes_too_late_is_closed(
    far: Ear, relay: Relay, client: redis.Redis
) -> None:
    """A link that nobody needs any more when it is made is closed at once."""
    job = put_job(client)
    far.watch.add(job)
    far.watch.read(time.monotonic())
    far.watch.remove(job)
    far.watch.tick(time.monotonic())
    wait_for(lambda: links(client) == 1)
    far.until(lambda: links(client) == 0)
    assert far.reports == []


def test_a_link_that_fails_too_late_is_not_missed(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """An unreachable server that nobody needs any more does not count as an outage."""
    with listening(JobStore("redis://127.0.0.1:1/0").track()) as ear:
        job = str(uuid.uuid4())
        ear.watch.add(job)
        ear.watch.read(time.monotonic())
        ear.watch.remove(job)
        ear.watch.tick(time.monotonic())
        wait_for(lambda: ear._inbox)
        ear.turn()
    assert outages(caplog) == (0, 0)


class SplitTracker(Tracker):
    """Divides jobs between servers, as a Cluster does.

    Attributes:
      places: The URL of the server that holds each key. The last resort is "".
      refreshed: How often it was asked to look anew.
    """

    def __init__(self, store: JobStore) -> None:
        super().__init__(
            store.client, store._reader, store._try_job, store._batch_reads
        )
        self.places: dict[str, str] = {}
        self.refreshed = 0

    def server_of(self, key: str) -> str:
        return self.places[key]

    def connect(self, server: str) -> Link:
        client = JobStore(server).client
        assert isinstance(client, redis.Redis)
        return Link(client)

    def refresh(self) -> None:
        self.refreshed += 1


class Halves:
    """Two servers, with a relay in front of the first, and a job on each."""

    def __init__(self, ear: Ear, tracker: SplitTracker, relay: Relay, url: str) -> None:
        self.ear = ear
        self.tracker = tracker
        self.relay = relay
        self.urls = relay.url, url
        self.clients = [redis.Redis.from_url(url) for url in self.urls]
        self.jobs = [self.put(0), self.put(1)]
        for job in self.jobs:
            ear.watch.add(job)
        ear.until(lambda: len(ear.reports) == 2)

    def put(self, half: int, **fields: Any) -> str:
        """Write a job to a half."""
        job = put_job(self.clients[half], **{"m:n": 1}, **fields)
        self.tracker.places[f"jobstate:{job}"] = self.urls[half]
        return job

    def write(self, half: int, n: int) -> None:
        """Write the metric of the job on a half."""
        write(self.clients[half], self.jobs[half], n)


@pytest.fixture
def halves(redis_url: str, server: EmbeddedServer, relay: Relay) -> Iterator[Halves]:
    """Jobs on two servers."""
    tracker = SplitTracker(JobStore(redis_url))
    with listening(tracker) as ear:
        halves = Halves(ear, tracker, relay, server.url)
        yield halves
        for client in halves.clients:
            client.close()


def test_a_server_in_trouble_delays_no_job_of_another(halves: Halves) -> None:
    """While one server is silent, with as many questions open as there may be, jobs of
    another go on as before.
    """
    ear = halves.ear
    for job in [halves.put(0) for _ in range(MAX_ASKED + 10)]:
        ear.watch.add(job)
    with halves.relay.held():
        ear.until(lambda: ear.watch._left)
        for n in range(2, 12):
            begun = time.monotonic()
            halves.write(1, n)
            ear.until_last(halves.jobs[1], n)
            # Less than the patience with the silent one.
            assert time.monotonic() - begun < 1.5
    ear.until(lambda: len({r.uuid for r in ear.reports}) == MAX_ASKED + 12)


def test_a_server_in_trouble_has_no_job_of_another_read(
    halves: Halves, server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While one server is away, the jobs of others are read when they change and not
    each time that a connection fails, and are not away.
    """
    monkeypatch.setattr("pyramid_jobstate.web.push.links.AWAY_AFTER", 0.3)
    ear = halves.ear
    halves.relay.close()
    ear.until(lambda: ear.is_away(halves.jobs[0]))
    assert not ear.is_away(halves.jobs[1])
    before = halves.tracker.refreshed
    halves.clients[1].config_resetstat()
    ear.until(lambda: halves.tracker.refreshed >= before + 3)
    assert commands(halves.clients[1], "hgetall") == 0
    halves.write(1, 2)
    ear.until_last(halves.jobs[1], 2)


def test_a_job_is_read_where_it_has_moved_to(halves: Halves) -> None:
    """When a job's server is out of use, for instance after a failover to a replica,
    the job is read from the other one, without any message about it.
    """
    ear, job = halves.ear, halves.jobs[0]
    put_job(halves.clients[1], uuid=job, **{"m:n": 5})
    halves.tracker.places[f"jobstate:{job}"] = halves.urls[1]
    ear.until_last(job, 5)
    write(halves.clients[1], job, 6)
    ear.until_last(job, 6)


def test_a_job_that_moves_during_a_reading_is_read_again(halves: Halves) -> None:
    """A reply lost with the link to a server that has gone out of use does not block
    the job.
    """
    ear, job = halves.ear, halves.jobs[0]
    with halves.relay.held():
        ear.watch.touch([job])
        ear.until(lambda: ear.watch.is_reading, tick=9)
        put_job(halves.clients[1], uuid=job, **{"m:n": 5})
        halves.tracker.places[f"jobstate:{job}"] = halves.urls[1]
        ear.until_last(job, 5)


def test_what_waits_for_room_may_move(halves: Halves) -> None:
    """Jobs that wait for a reply of a server that goes out of use are read elsewhere,
    and wait for it no longer.
    """
    ear = halves.ear
    jobs = [halves.jobs[0], *(halves.put(0) for _ in range(MAX_ASKED + 10))]
    for job in jobs:
        ear.watch.add(job)
    with halves.relay.held():
        ear.until(lambda: ear.watch._left)
        for job in jobs:
            put_job(halves.clients[1], uuid=job, **{"m:n": 5})
            halves.tracker.places[f"jobstate:{job}"] = halves.urls[1]
        ear.until(lambda: ear.have_all(jobs, 5))
        assert not ear.watch._left


def test_two_jobs_that_are_astray_are_looked_for_together(
    halves: Halves, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """While it is being found out who holds a job, another one waits for the same
    answer. If nobody answers, which is logged, they are read where they were.
    """
    ear, jobs = halves.ear, halves.jobs
    astray = True
    asked: list[threading.Event] = []

    def refresh() -> None:
        asked.append(threading.Event())
        asked[-1].wait(20)
        raise redis.ConnectionError("nobody answers")

    monkeypatch.setattr(halves.tracker, "refresh", refresh)
    # As if each reply were MOVED.
    name = "pyramid_jobstate.web.push.watch.is_elsewhere"
    monkeypatch.setattr(name, lambda reply: astray)
    halves.write(0, 2)
    ear.until(lambda: jobs[0] in ear.watch._astray, tick=9)
    halves.write(1, 2)
    ear.until(lambda: jobs[1] in ear.watch._astray, tick=9)
    astray = False
    assert len(asked) == 1
    assert not ear.have_all(jobs, 2)
    asked[0].set()
    ear.until(lambda: ear.have_all(jobs, 2), tick=9)
    assert len(asked) == 1
    assert "does not say who holds a job: nobody answers" in caplog.text


class SplitAliasTracker(SplitTracker, AliasTracker):
    """Follows aliases from server to server."""


def test_a_key_may_be_on_a_server_without_a_link(
    redis_url: str, server: EmbeddedServer
) -> None:
    """A job that depends on a key on another server is reported with both, as soon as
    there is a link to that one.
    """
    tracker = SplitAliasTracker(JobStore(redis_url))
    with (
        redis.Redis.from_url(redis_url) as here,
        redis.Redis.from_url(server.url) as there,
        listening(tracker) as ear,
    ):
        target = put_job(there, **{"m:n": 1})
        alias = put_job(here, alias=target)
        tracker.places = {
            f"jobstate:{alias}": redis_url,
            f"jobstate:{target}": server.url,
        }
        ear.watch.add(alias)
        ear.until(lambda: found_n(ear, alias, target) == 1)
        write(there, target, 2)
        ear.until(lambda: found_n(ear, alias, target) == 2)


def test_a_late_reply_is_not_taken_for_that_of_the_next_reading(
    redis_url: str, server: EmbeddedServer, relay: Relay
) -> None:
    """When one of a job's servers breaks its link during a reading, the reply of the
    other one to that is not part of the next reading.
    """
    tracker = SplitAliasTracker(JobStore(redis_url))
    with (
        redis.Redis.from_url(redis_url) as here,
        redis.Redis.from_url(server.url) as there,
        listening(tracker) as ear,
    ):
        target = put_job(there)
        alias = put_job(here, alias=target, **{"m:n": 1})
        tracker.places = {
            f"jobstate:{alias}": relay.url,
            f"jobstate:{target}": server.url,
        }
        ear.watch.add(alias)
        ear.until(lambda: found_n(ear, alias, alias) == 1)
        here.config_resetstat()
        with relay.held():
            ear.watch.touch([alias])
            ear.until(lambda: commands(here, "hgetall") == 1)
            write(here, alias, 2)
            promised = ear.watch.add(alias)
            there.client_kill_filter(_type="normal", skipme=True)
            # The link comes again, and the next reading begins.
            ear.until(lambda: commands(here, "hgetall") == 2)
        ear.until(lambda: found_n(ear, alias, alias) == 2)
        ear.settle()
        for report in ear.reports:
            if report.reading >= promised:
                assert report.found[f"jobstate:{alias}"]["m:n"] == "2"


def test_an_exception_of_the_applications_pool_is_an_outage(
    store: JobStore, client: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever the application's code raises while it connects is logged once, and it
    is tried again.
    """
    caplog.set_level(logging.INFO, LOGGER)

    class Moody(SplitTracker):
        failures = 2

        def server_of(self, key: str) -> str:
            return ""

        def connect(self, server: str) -> Link:
            self.failures -= 1
            if self.failures >= 0:
                raise KeyError("token")
            return Link(client)

    job = put_job(client, **{"m:n": 1})
    with listening(Moody(store)) as ear:
        ear.watch.add(job)
        ear.until_last(job, 1)
        ear.until(lambda: outages(caplog)[1])
    assert outages(caplog) == (1, 1)
    assert "KeyError: 'token'" in caplog.text


def play(
    far: Ear, relay: Relay, client: redis.Redis, dice: random.Random, jobs: int = 4
) -> None:
    """Play a random schedule of writes, joins, leaves, breaks and delays, and check
    that no reading goes backwards, none is older than who waits for it, and the last
    value is shown.
    """
    names = [put_job(client, **{"m:n": 0}) for _ in range(jobs)]
    written = dict.fromkeys(names, 0)
    joined: list[tuple[str, int, int, int]] = []
    present: set[str] = set()

    def join(job: str) -> None:
        present.add(job)
        number = far.watch.add(job)
        joined.append((job, number, len(far.reports), written[job]))

    for job in names[1:]:
        join(job)
    for _ in range(dice.randrange(4, 12)):
        with relay.held() if dice.random() < 0.7 else contextlib.nullcontext():
            for _ in range(dice.randrange(6)):
                job = dice.choice(names)
                act = dice.random()
                if act < 0.45:
                    written[job] += 1
                    write(client, job, written[job])
                elif act < 0.7:
                    join(job)
                elif act < 0.75 and job in present:
                    present.discard(job)
                    far.watch.remove(job)
                elif act < 0.77:
                    relay.cut()
                else:
                    far.turn()
        if dice.random() < 0.5:
            far.turn()
    far.until(lambda: all(far.last(job) == written[job] for job in present))
    for job, number, begun, least in joined:
        left = next((r for r in far.reports[begun:] if r.uuid == job), None)
        for report in far.reports[begun:]:
            if report.uuid == job and report.reading >= number and left:
                assert report.n >= least, (job, number, least)
                break
    for job in names:
        seen = [report.n for report in far.reports if report.uuid == job]
        assert seen == sorted(seen)
    for job in present:
        far.watch.remove(job)
    far.reports.clear()


@pytest.mark.parametrize(
    "count", [30, pytest.param(2000, marks=pytest.mark.long)], ids=str
)
@pytest.mark.timeout(600)
def test_no_job_goes_backwards(
    far: Ear,
    relay: Relay,
    client: redis.Redis,
    count: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In random schedules of writes, joins, leaves, broken links and late replies, what
    a stream is told is never older than what it had, and at last the newest.
    """
    monkeypatch.setattr("pyramid_jobstate.web.push.watch.GAP", 0.001)
    for seed in range(count):
        play(far, relay, client, random.Random(seed))


def test_a_job_may_come_and_go_ten_thousand_times(
    ear: Ear, client: redis.Redis
) -> None:
    """Of jobs that have left nothing is kept."""
    staying = put_job(client, **{"m:n": 1})
    ear.watch.add(staying)
    ear.until_last(staying, 1)
    for i in range(10_000):
        job = f"{i:08x}-0000-4000-8000-000000000000"
        ear.watch.add(job)
        if i % 100 == 0:
            ear.turn()
        ear.watch.remove(job)
    ear.settle()
    watch = ear.watch
    assert len(watch._jobs) == len(watch._dependents) == 1
    assert not watch._next and not watch._left and not watch._astray
    write(client, staying, 2)
    ear.until_last(staying, 2)
