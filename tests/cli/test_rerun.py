"""`pjobs … rerun`, and what `pjobs … show` says of failures."""

import json
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dramatiq
import pytest
import redis
from dramatiq.brokers.rabbitmq import RabbitmqBroker
from dramatiq.brokers.redis import RedisBroker
from dramatiq.brokers.stub import StubBroker

from pyramid_jobstate import JobState, JobStateMiddleware, JobStore
from pyramid_jobstate.cli import brokers
from pyramid_jobstate.cli.faults import Refused
from tests.cliapp import PJOBS, Folder, free_port
from tests.jobs import wait_until, working
from tests.operated import HARMLESS, HOSTILE, Operator, Ran, put, run
from tests.rerunapp import FAILS, Errand, make
from tests.support import UUID, key_of, load_job, wait_for


class Shop:
    """A broker with an actor, whose jobs fail, in the module `shop`."""

    def __init__(self, pjobs: Operator, module: Any) -> None:
        self.pjobs = pjobs
        self.module = module
        self.client = redis.Redis.from_url(pjobs.url)
        module.broker, self.errand = make(pjobs.url)
        self.url = pjobs.url
        self.store = JobStore(pjobs.url)

    def fail(self, count: int = 1) -> list[str]:
        """Have jobs fail, and return their ids."""
        self.client.set(FAILS, 1)
        sent = [self.errand.send(i) for i in range(count)]
        with working(self.module.broker):
            for message in sent:
                wait_until(self.module.broker, message, "error")
        self.client.delete(FAILS)
        return [message.message_id for message in sent]

    def forget(self, uuid: str, **instead: str) -> None:
        """Have the store hold something else than the message of a job."""
        key = self.store._calls.failure_key(uuid)
        self.client.hdel(key, "message")
        for name, value in instead.items():
            self.client.hset(key, name, value)

    def rerun(self, *arguments: str) -> Ran:
        return self.pjobs("rerun", "--broker", "shop:broker", *arguments)

    def statuses(self, *uuids: str) -> list[str]:
        return [load_job(self.store, uuid).status for uuid in uuids]


@pytest.fixture
def shop(pjobs: Operator, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shop]:
    """The shop, which this process can import."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    module = types.ModuleType("shop")
    monkeypatch.setitem(sys.modules, "shop", module)
    made = Shop(pjobs, module)
    yield made
    made.client.close()


def test_failed_jobs_run_again(shop: Shop) -> None:
    """A job that failed is sent again under its id, and a worker runs it."""
    first, second = shop.fail(2)
    ran = shop.rerun(first)
    assert ran == (0, [f"{first} queued"], [])
    assert shop.statuses(first, second) == ["queued", "error"]
    with working(shop.module.broker):
        wait_for(lambda: shop.statuses(first) == ["success"])


def test_jobs_that_cannot_run_again(shop: Shop, store: JobStore) -> None:
    """Each job that cannot has a line that says why; the others run: 1."""
    lost, kept, big = shop.fail(3)
    done, stalled = put(store, "success"), put(store, "stalled")
    shop.forget(lost)
    shop.forget(big, refusal=HOSTILE)
    expected = [
        f"pjobs: The job {lost} cannot run again: The store does not hold its message.",
        f"pjobs: The job {done.uuid} has not failed: success.",
        f"pjobs: The job {stalled.uuid} has not failed: stalled.",
        f"pjobs: The job {UUID} is unknown, or has expired.",
        f"pjobs: The job {big} cannot run again: "
        + HARMLESS.replace(r"\n", " ").replace(r"\u2028", " "),
    ]
    ids = (lost, done.uuid, stalled.uuid, UUID, kept, big)
    for extra, line in (
        (["--dry-run"], f"{kept} would be requeued, is error"),
        ([], f"{kept} queued"),
    ):
        assert shop.rerun(*ids, *extra) == (1, [line], expected)


def test_an_unsent_job_may_run_again(shop: Shop) -> None:
    """A job whose sender died while it ran it again counts as failed, by its id and by
    filters.
    """
    (uuid,) = shop.fail()
    record = shop.store.record(uuid)
    assert record is not None
    assert shop.store.requeue(record) is not None
    shop.client.hset(key_of(shop.store, uuid), "updated", 1)
    assert shop.statuses(uuid) == ["stalled"]
    assert shop.rerun("--dry-run", uuid).code == 0
    assert shop.rerun("--status=error", "--dry-run").out == ["1 would be requeued"]
    assert shop.rerun(uuid).out == [f"{uuid} queued"]
    assert shop.rerun(uuid).err == [f"pjobs: The job {uuid} has not failed: queued."]


@pytest.mark.parametrize(
    "words", [["--kind", "Errand"], ["--status=error"], ["--everything"]]
)
def test_all_that_match_run_again(shop: Shop, words: list[str]) -> None:
    """By a filter, failed jobs run again; those that cannot are counted: 1."""
    uuids = shop.fail(3)
    shop.forget(uuids[1])
    assert shop.rerun(*words, "--dry-run").out == ["3 would be requeued"]
    assert shop.statuses(*uuids) == ["error"] * 3
    ran = shop.rerun(*words, "--yes")
    assert ran == (1, ["2 requeued, 1 refused"], [])
    assert shop.statuses(*uuids) == ["queued", "error", "queued"]


def test_a_class_that_fails_stops_no_others(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job whose class fails runs again as the others do."""
    uuids = shop.fail(3)

    def fail_for_one(job: JobState, *args: Any) -> None:
        JobState.__init__(job, *args)
        if job.uuid in uuids and job.uuid != uuids[1]:
            raise ValueError("broken")

    monkeypatch.setattr(Errand, "__init__", fail_for_one)
    ran = shop.rerun("--kind", "Errand", "--yes")
    assert (ran.code, ran.out) == (0, ["3 requeued, 0 refused"])


def test_a_broker_that_is_away(shop: Shop) -> None:
    """A broker that does not answer is said in one line, and the job stays failed."""
    (uuid,) = shop.fail()
    address = f"127.0.0.1:{free_port()}"
    for make_broker, scheme in ((RedisBroker, "redis"), (RabbitmqBroker, "amqp")):
        broker = make_broker(url=f"{scheme}://me:secret@{address}/0")
        broker.add_middleware(JobStateMiddleware(url=shop.url))
        dramatiq.actor(broker=broker, actor_name="errand", job_state=True)(print)
        shop.module.broker = broker
        ran = shop.rerun(uuid)
        assert (ran.code, ran.out) == (1, [])
        (line,) = ran.err
        assert line.startswith("pjobs: The broker does not answer: ConnectionClosed: ")
        assert "secret" not in line
        ran = shop.rerun("--kind", "Errand", "--yes")
        assert ran.out == ["at least 0 requeued, 0 refused, then stopped"]
        assert (ran.code, len(ran.err)) == (1, 1)
    assert shop.statuses(uuid) == ["error"]


def test_a_broker_that_refuses(shop: Shop) -> None:
    """What a broker refuses is said in one line, without a password, and the job stays
    failed.
    """

    class Full(dramatiq.Middleware):
        def before_enqueue(self, *args: Any) -> None:
            raise dramatiq.middleware.MiddlewareError("redis://me:secret@h/0 is full.")

    (uuid,) = shop.fail()
    shop.module.broker.add_middleware(Full())
    expected = ["pjobs: Sending failed: MiddlewareError: redis://…@h/0 is full."]
    assert shop.rerun(uuid) == (1, [], expected)
    assert shop.rerun("--everything", "--yes").err == expected
    assert shop.statuses(uuid) == ["error"]


def test_a_store_that_is_away(shop: Shop) -> None:
    """A store that does not answer is not taken for the broker."""
    place = f"127.0.0.1:{free_port()}"
    store = JobStore(f"redis://{place}")
    shop.module.broker.middleware[:] = [JobStateMiddleware(store)]
    for words in ([UUID], ["--everything", "--yes"]):
        ran = shop.pjobs.main(
            "--url", f"redis://{place}", "rerun", "--broker", "shop:broker", *words
        )
        assert ran.code == 1
        (line,) = ran.err
        assert line.startswith(f"pjobs: The store at {place}/0 does not answer: ")


@pytest.mark.parametrize(
    ("name", "code", "error"),
    [
        ("shop:missing", 1, "--broker shop:missing cannot be imported: AttributeErr"),
        ("shop:store", 2, "--broker shop:store is a JobStore, not a Dramatiq broker."),
        ("shop:stub", 2, "--broker shop:stub is a StubBroker, whose messages no work"),
        ("shop:plain", 2, "has no JobStateMiddleware. Add one before the actors"),
        ("shop:placeless", 2, "JobStateMiddleware() shares the Redis server of a Re"),
        ("shop:other", 2, "middleware on --broker shop:other writes them to "),
    ],
)
def test_brokers_that_are_none(
    shop: Shop, store: JobStore, name: str, code: int, error: str
) -> None:
    """An unsuitable broker is refused before any job changes."""
    shop.module.store = store
    shop.module.stub = StubBroker()
    shop.module.plain = RedisBroker(url=shop.url, middleware=[])
    shop.module.placeless = dramatiq.Broker(middleware=[])
    shop.module.placeless.add_middleware(JobStateMiddleware())
    shop.module.other = RedisBroker(url=shop.url, middleware=[])
    shop.module.other.add_middleware(JobStateMiddleware(namespace="other"))
    ran = shop.pjobs("rerun", "--broker", name, "--everything", "--yes")
    assert (ran.code, ran.out) == (code, [])
    (line,) = ran.err
    assert error.lower() in line.lower()


def test_a_broker_whose_jobs_another_store_has(shop: Shop) -> None:
    """With --url, the advice on a broker with another store names what --url can."""
    place, db = shop.url.rsplit("/", 1)
    shop.module.other = RedisBroker(url=shop.url, middleware=[])
    shop.module.other.add_middleware(JobStateMiddleware(namespace="other"))
    shop.module.next = RedisBroker(url=f"{place}/{int(db) + 1}", middleware=[])
    shop.module.next.add_middleware(JobStateMiddleware())
    for name, difference in ("other", "namespace"), ("next", "database"):
        ran = shop.pjobs("rerun", "--broker", f"shop:{name}", UUID)
        assert (ran.code, ran.out) == (2, [])
        (line,) = ran.err
        assert line.endswith(
            f", in another {difference}. Name that store with --url and --namespace."
        )


#: A module that prints, logs, and has a broker.
MODULE = """
import logging

from tests.rerunapp import make

print("printed at import")
logging.getLogger().addHandler(logging.StreamHandler())
logging.getLogger().setLevel(logging.INFO)
logging.info("logged at import")
broker, errand = make({url!r})
"""


def test_a_module_in_the_current_folder(
    shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The module is imported from the current folder, and its own output stays off
    stdout. If the import fails, the error hides passwords.
    """
    (uuid,) = shop.fail()
    (tmp_path / "till.py").write_text(MODULE.format(url=shop.url))
    (tmp_path / "broken.py").write_text("raise ValueError('redis://me:secret@h/0')")
    monkeypatch.chdir(tmp_path)
    arguments = ("--url", shop.url, "rerun", uuid, "--broker")
    code = f"import sys; sys.modules['pyramid'] = None; {PJOBS}"
    ran = run(*arguments, "till:broker", code=code)
    assert (ran.code, ran.out) == (0, [f"{uuid} queued"])
    assert ran.err == ["printed at import", "logged at import"]
    ran = shop.pjobs(*arguments[2:], "broken:broker")
    assert ran == (
        1,
        [],
        ["pjobs: --broker broken:broker cannot be imported: ValueError: redis://…@h/0"],
    )
    (tmp_path / "gone.py").write_text("raise SystemExit(0)")
    ran = shop.pjobs(*arguments[2:], "gone:broker")
    error = "pjobs: --broker gone:broker cannot be imported: SystemExit: 0"
    assert ran == (1, [], [error])


def test_the_broker_of_an_application(
    tmp_path: Path, redis_url: str, store: JobStore
) -> None:
    """With an ini, jobs run again through the application's broker, which --broker
    cannot replace.
    """
    folder = Folder(tmp_path, redis_url)
    job = put(store, "error", actor="mail")
    message = {
        "queue_name": "mail",
        "actor_name": "mail",
        "args": [],
        "kwargs": {},
        "options": {},
        "message_id": job.uuid,
        "message_timestamp": 0,
    }
    key = store._calls.failure_key(job.uuid)
    store.client.hset(key, "message", json.dumps(message))
    code = f"import os; os.chdir({str(tmp_path)!r}); {PJOBS}"
    arguments = (str(folder.ini), "word=hi", "rerun")
    ran = run(*arguments, "--broker", "m:b", job.uuid, code=code)
    assert ran.code == 2
    assert ran.err[-1].startswith("pjobs: --broker needs --url")
    ran = run(*arguments, job.uuid, code=code, PYTHONPATH=f"{tmp_path}:{sys.path[0]}")
    assert (ran.code, ran.out) == (0, [f"{job.uuid} queued"])
    assert store.client.exists("dramatiq:mail")


def test_an_application_without_a_broker(redis_url: str, set_broker: Any) -> None:
    """No broker is made for an application that has none."""
    with pytest.raises(Refused, match="The application has no broker"):
        brokers.find_broker(JobStore(redis_url), None)
    assert dramatiq.broker.global_broker is None


def test_show_has_the_failures(shop: Shop) -> None:
    """`show` has the tries, the traceback, and why the job cannot run again."""
    (uuid,) = shop.fail()
    lines = shop.pjobs("show", uuid).out
    (text,) = [line for line in lines if line.startswith("try: ")]
    assert text.endswith(" s: ValueError: Number 0 failed")
    found = [line for line in lines if line.startswith("traceback: ")]
    assert found[0] == "traceback: Traceback (most recent call last):"
    assert found[-1] == "traceback: ValueError: Number 0 failed"
    assert not any(line.startswith("rerun: ") for line in lines)
    (line,) = shop.pjobs("show", uuid, "--json").out
    failures = json.loads(line)["failures"]
    assert failures["tries"][0]["error"]["message"] == "Number 0 failed"
    assert failures["tries"][0]["ended_at"].endswith("Z")
    assert failures["traceback"].endswith("ValueError: Number 0 failed\n")
    assert failures["rerun_refusal"] == ""


def test_show_has_harmless_failures(shop: Shop) -> None:
    """Nothing in what is kept of a failure acts on the terminal, or is missed."""
    (uuid,) = shop.fail()
    text = json.dumps([None, None, [None, HOSTILE]])
    shop.forget(uuid, refusal=HOSTILE, traceback=HOSTILE, tries="1", **{"try:1": text})
    lines = shop.pjobs("show", uuid).out
    assert f"try: -: {HARMLESS}" in lines
    assert f"rerun: impossible: {HARMLESS}" in lines
    first, second = HARMLESS.split(r"\n")
    assert [f"traceback: {first}", f"traceback: {second}"] == lines[-3:-1]
    (line,) = shop.pjobs("show", uuid, "--json").out
    assert json.loads(line)["failures"]["rerun_refusal"] == HOSTILE
