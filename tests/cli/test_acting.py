"""`pjobs cancel`, `clear` and `rerun`: by ids and by filters."""

import getpass
import json
import os
import re
import signal
import sys
from typing import Any

import dramatiq
import pytest
from dramatiq.brokers.rabbitmq import RabbitmqBroker
from dramatiq.brokers.redis import RedisBroker
from dramatiq.brokers.stub import StubBroker

from pyramid_jobstate import (
    BulkResult,
    Counts,
    JobError,
    JobState,
    JobStateMiddleware,
    JobStore,
)
from pyramid_jobstate.testing import pass_time, put_batch
from tests.faulty import faulty
from tests.jobs import working
from tests.operated import HARMLESS, HOSTILE, SIGNALS, Haul, Operator, put
from tests.support import UUID, load_job, wait_for
from tests.terminal import Terminal
from tests.web.operating import Marathons
from tests.webapp import NOWHERE

WRONG = JobError("ValueError", "wrong")


class Dash(JobState):
    """Another kind than a marathon."""


def statuses(store: JobStore, *jobs: JobState | str) -> list[str]:
    uuids = [job if isinstance(job, str) else job.uuid for job in jobs]
    return [load_job(store, uuid).status for uuid in uuids]


def failed(store: JobStore, **options: Any) -> JobState:
    """Store a job that may run again."""
    return put(store, "error", error=WRONG, **options)


def calls(monkeypatch: pytest.MonkeyPatch, *results: Any) -> list[Any]:
    """Put results in the place of those of JobStore.clear(), and return the limits that
    it was called with. A result may be a function of the limit.
    """
    limits: list[Any] = []

    def act(store: JobStore, *, limit: int, **options: Any) -> Any:
        result = results[min(len(limits), len(results) - 1)]
        limits.append(limit)
        assert len(limits) < 10, "The command does not end."
        return result(limit) if callable(result) else result

    monkeypatch.setattr(JobStore, "clear", act)
    return limits


@pytest.fixture
def till(pjobs: Operator, shop: Any, marathons: Marathons) -> Operator:
    """Runs commands, in a shop with the broker of the marathons."""
    shop.broker = marathons.broker
    return pjobs


@pytest.mark.promise("pjobs-reads-and-acts")
def test_jobs_are_cancelled(pjobs, store, said, monkeypatch):
    """A queued job is cancelled at once, a running one stops. The log has by whom."""
    queued, working = put(store, "queued"), put(store)
    ran = pjobs("cancel", queued.uuid[:13], working.uuid)
    assert ran == (0, [f"{queued.uuid} cancelled", f"{working.uuid} cancelling"], [])
    assert statuses(store, queued, working) == ["cancelled", "cancelling"]
    line = "ops (pjobs) cancelled the job {}.".format
    assert said() == [line(queued.uuid), line(working.uuid)]

    def getuser() -> str:
        # As in some containers, the system has no name for its user.
        raise KeyError("getpwuid(): uid not found: 1234")

    monkeypatch.setattr(getpass, "getuser", getuser)
    other = put(store, "queued")
    assert pjobs("cancel", other.uuid).code == 0
    assert said() == [f"pjobs cancelled the job {other.uuid}."]


def test_jobs_that_cannot_be_cancelled(pjobs, store):
    """A job that cannot be cancelled has a line on stderr; the others are cancelled."""
    done, queued, other = put(store, "success"), put(store, "queued"), put(store)
    names = (done.uuid, UUID, queued.uuid, queued.uuid[:13], done.uuid[:13])
    over = f"The job {done.uuid} is already over: success."
    unknown = f"The job {UUID} is unknown, or has expired."
    errors = [f"pjobs: {over}", f"pjobs: {unknown}"]
    assert pjobs("cancel", *names) == (1, [f"{queued.uuid} cancelled"], errors)
    ran = pjobs("cancel", "--json", done.uuid, other.uuid)
    assert ran.code == 1
    assert [json.loads(line) for line in ran.out] == [
        {"uuid": done.uuid, "done": False, "dry_run": False, "error": over},
        {"uuid": other.uuid, "done": True, "dry_run": False, "status": "cancelling"},
    ]


def test_dry_run_changes_nothing(pjobs, store, said):
    """--dry-run says what would be done, and what could not, and needs no --yes."""
    queued, done = put(store, "queued"), put(store, "success")
    ran = pjobs("cancel", "--dry-run", queued.uuid, done.uuid)
    assert (ran.code, len(ran.err)) == (1, 1)
    assert ran.out == [f"{queued.uuid} would be cancelled, is queued"]
    put(store, "success")
    ran = pjobs("clear", "--kind", "RunMarathon", "--dry-run")
    assert ran == (0, ["2 would be deleted"], [])
    ran = pjobs("clear", "--everything", "--dry-run", "--limit=1", "--json")
    assert ran.values() == [{"matching": 1, "dry_run": True}]
    assert store.counts() == Counts(queued=1, success=2)
    assert said() == []


def test_filters_of_cancel(pjobs, store, said):
    """Unfinished jobs that match are cancelled; the log names them and the filter."""
    queued, working = put(store, "queued"), put(store)
    number, text = put(store, "queued", owner=7), put(store, "queued", owner="7")
    other, done = put(store, "queued", cls=Dash), put(store, "success")
    ran = pjobs("cancel", "--owner", '"7"', "--yes")
    assert ran == (0, ["1 cancelled, 0 refused"], [])
    assert statuses(store, number, text) == ["queued", "cancelled"]
    said()
    pjobs("cancel", "--kind", "RunMarathon", "--owner", '"alice"', "--yes")
    found = statuses(store, queued, working, other, done)
    assert found == ["cancelled", "cancelling", "queued", "success"]
    assert said() == [
        f"ops (pjobs) cancelled the job {working.uuid}.",
        f"ops (pjobs) cancelled the job {queued.uuid}.",
        "ops (pjobs): 2 cancelled, 0 refused, of the jobs with "
        "{'owner': 'alice', 'kind': 'RunMarathon'}.",
    ]
    assert pjobs("cancel", "--status", "queued", "--yes").out[0][:11] == "2 cancelled"
    pjobs("clear", "--kind", "a\nb", "--yes")
    assert said()[-1].endswith(r"of the jobs with {'kind': 'a\nb'}.")


def test_ended_jobs_are_deleted(pjobs, store):
    """Ended jobs that match are deleted, by status, by age, or all."""
    old = put(store, "error")
    pass_time(store, 3600)
    new = put(store, "error")
    put(store, "success")
    put(store, "queued")
    words = ("clear", "--older-than", "30m", "--yes")
    assert pjobs(*words, "--status", "error") == (0, ["1 deleted, 0 refused"], [])
    assert store.load(old.uuid) is None
    assert statuses(store, new) == ["error"]
    assert pjobs(*words).out[0][:9] == "0 deleted"
    assert pjobs("clear", "--everything", "--yes").out == ["2 deleted, 0 refused"]
    assert store.counts() == Counts(queued=1)


def test_limit_spans_calls(pjobs, monkeypatch):
    """Calls go on until all, or --limit, are done: with 1 if some were refused."""
    clear = ("clear", "--everything")
    limits = calls(monkeypatch, lambda n: BulkResult(n, 0, "more"))
    ran = pjobs(*clear, "--yes", "--limit", "2500")
    assert (ran.printed(), sum(limits)) == (["2,500 deleted, 0 refused"], 2500)
    limits = calls(monkeypatch, lambda n: BulkResult(0, n, "more"))
    ran = pjobs(*clear, "--dry-run", "--limit", "1500")
    assert (ran.out, sum(limits)) == (["1,500 would be deleted"], 1500)
    calls(monkeypatch, BulkResult(7, 0, "more"), BulkResult(3, 2, None))
    ran = pjobs(*clear, "--yes", "--json")
    expected = {"done": 10, "refused": 2, "dry_run": False, "complete": True}
    assert (ran.code, *map(json.loads, ran.out)) == (1, expected)


def test_lost_reply_is_logged(pjobs, store, said):
    """If the store's reply is lost, the log has the jobs that may have been deleted."""
    job = put(store, "success")
    pjobs("clear", "--kind=Dash", "--yes")
    said()
    with faulty(pjobs.url) as proxy:
        lost = re.compile(rb"EVAL.*" + job.uuid.encode(), re.DOTALL)
        proxy.judge = lambda request: "lose" if lost.search(request) else "pass"
        ran = pjobs.main("--url", proxy.url, "clear", "--everything", "--yes")
    assert (ran.code, ran.out) == (1, ["at least 0 deleted, 0 refused, then stopped"])
    assert said()[0] == (
        f"ops (pjobs) may have deleted the job {job.uuid}: the store did not answer."
    )


def test_signals(pjobs, monkeypatch):
    """A signal lets the current call end. A second one breaks it off."""
    for signum, code in SIGNALS:

        def stop(limit: int, signum: int = signum) -> BulkResult:
            signal.raise_signal(signum)
            return BulkResult(3, 0, "more")

        limits = calls(monkeypatch, stop)
        ran = pjobs("clear", "--everything", "--yes", "--json")
        assert (ran.code, ran.err, len(limits)) == (code, [], 1)
        expected = {"done": 3, "refused": 0, "dry_run": False, "complete": False}
        assert json.loads(ran.out[0]) == expected

    def stop_twice(limit: int) -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        raise AssertionError("The call went on.")

    calls(monkeypatch, BulkResult(3, 0, "more"), stop_twice)
    ran = pjobs("clear", "--everything", "--yes")
    assert ran == (130, ["at least 3 deleted, 0 refused, then stopped"], [])
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_person_is_asked(pjobs, store):
    """The question says how many jobs match. A yes is about these, not later ones."""
    jobs = [put(store, "queued") for _ in range(3)]
    later = []

    def answer(shown: Terminal) -> None:
        pass_time(store, 1)
        later.append(put(store, "queued"))
        shown.type(" YES \n")

    shown = pjobs.draw("cancel", "--everything", answer=answer)
    assert "Cancel 3 jobs? [y/N]" in shown.text()
    assert shown.lines()[-1] == "3 cancelled, 0 refused"
    assert statuses(store, *jobs, *later) == ["cancelled"] * 3 + ["queued"]


def test_only_a_yes_goes_on(pjobs, store):
    """Any other answer, Ctrl-D and Ctrl-C leave all jobs as they are."""
    jobs = [put(store, "queued") for _ in range(2)]
    for keys, code in ("\n", 1), ("yes please\n", 1), ("\x04", 1), ("", 130):

        def answer(shown: Terminal, keys: str = keys) -> None:
            if keys:
                shown.type(keys)
            else:
                os.kill(os.getpid(), signal.SIGINT)

        words = ("cancel", "--everything", "--limit=1")
        shown = pjobs.draw(*words, answer=answer, code=code)
        assert "Cancel 1 job? [y/N]" in shown.text()
        assert ("pjobs: Nothing was done." in shown.text()) == (code == 1)
    assert statuses(store, *jobs) == ["queued"] * 2


def test_nobody_is_asked_without_need(pjobs, store):
    """Without jobs, or with --yes, nobody is asked. Without a terminal it is needed."""
    shown = pjobs.draw("clear", "--everything")
    assert shown.lines() == ["0 deleted, 0 refused"]
    put(store, "success")
    shown = pjobs.draw("clear", "--everything", "--yes")
    assert shown.lines() == ["1 deleted, 0 refused"]
    job = put(store, "queued")
    text = "pjobs: Pass --yes, since nobody can be asked without a terminal."
    assert pjobs("cancel", "--everything") == (2, [], [text])
    assert statuses(store, job) == ["queued"]


@pytest.mark.promise("pjobs-reads-and-acts")
def test_rerun_by_id(till, store, marathons):
    """A job that failed is sent again under its id, and a worker runs it. Each job that
    cannot has a line that says why; the others run: 1.
    """
    lost, kept, first = failed(store, actor=""), failed(store), failed(store)
    assert till.rerun(first.uuid) == (0, [f"{first.uuid} queued"], [])
    assert statuses(store, first, kept) == ["queued", "error"]
    odd, done = failed(store, actor=HOSTILE), put(store, "success")
    for extra, line in (
        (["--dry-run"], f"{kept.uuid} would be requeued, is error"),
        ([], f"{kept.uuid} queued"),
    ):
        ran = till.rerun(lost.uuid, done.uuid, UUID, kept.uuid, odd.uuid, *extra)
        assert (ran.code, ran.out) == (1, [line])
        cannot = "pjobs: The job {} cannot run again: {}".format
        *errors, last = ran.err
        assert errors == [
            cannot(lost.uuid, "The store does not hold its message."),
            f"pjobs: The job {done.uuid} has not failed: success.",
            f"pjobs: The job {UUID} is unknown, or has expired.",
        ]
        assert last.startswith(cannot(odd.uuid, ""))
        assert HARMLESS.partition(r"\n")[0] in last
    marathons.is_mended = True
    assert marathons.wait_for(first.uuid, "success").uuid == first.uuid


def test_all_that_match_run_again(till, store):
    """By a filter, which may be their status, failed jobs run again; those that cannot
    are counted: 1.
    """
    jobs = [failed(store), failed(store, actor=""), failed(store)]
    for every in ["--everything"], ["--status", "error"]:
        assert till.rerun(*every, "--dry-run").out == ["3 would be requeued"], every
    assert statuses(store, *jobs) == ["error"] * 3
    ran = till.rerun("--kind", "RunMarathon", "--yes")
    assert ran == (1, ["2 requeued, 1 refused"], [])
    assert statuses(store, *jobs) == ["queued", "error", "queued"]


def test_rerun_batch(till, store, marathons):
    """`rerun --batch` runs the failed jobs of the batch again, and no others."""
    member = {"status": "error", "actor": "run_marathon", "error": WRONG}
    members: list[Any] = ["success", {**member, "owner": "bob"}, member]
    batch = put_batch(store, Haul, members, owner="alice")
    other = put_batch(store, Haul, [member])
    reason = "A batch cannot run again. Rerun its failed jobs."
    assert f"rerun: impossible: {reason}" in till("show", batch.uuid).out
    error = f"pjobs: The job {batch.uuid} cannot run again: {reason} "
    error += f"Use --batch {batch.uuid}."
    assert till.rerun(batch.uuid) == (1, [], [error])
    uuids = [job.uuid for job in store.members(batch.uuid).items]
    ran = till.rerun("--batch", batch.uuid, "--dry-run")
    assert ran == (0, ["2 would be requeued"], [])
    ran = till.rerun("--batch", batch.uuid, "--owner", '"bob"', "--yes")
    assert ran == (0, ["1 requeued, 0 refused"], [])
    assert statuses(store, *uuids) == ["success", "queued", "error"]
    ran = till.rerun("--batch", batch.uuid[:13], "--status=error", "--yes")
    assert ran.out == ["1 requeued, 0 refused"]
    marathons.is_mended = True
    with working(marathons.broker):
        wait_for(lambda: statuses(store, batch) == ["success"])
    assert statuses(store, other) == ["error"]


def test_what_is_no_batch(pjobs, store, till):
    """A typing error is not taken for a batch without failed jobs."""
    job = put(store, "error").uuid
    for words, code, reason in (
        (["--batch", job, "--yes"], 1, f"The job {job} is not a batch."),
        (["--batch", UUID, "--yes"], 1, f"The job {UUID} is unknown, or has expired."),
        (["--batch", "x", "--yes"], 2, "the batch x is not made of 0-9, a-f and -"),
        (["--batch", job, job], 2, "Give either ids, or filters with or without"),
    ):
        assert reason in till.rerun(*words).error(code)
    assert pjobs("cancel", "--batch", job).code == 2


class Full(dramatiq.Middleware):
    """Has a broker refuse each message."""

    def before_enqueue(self, *args: Any) -> None:
        raise dramatiq.middleware.MiddlewareError("redis://me:secret@h/0 is full.")


def test_broker_that_takes_nothing(shop, store, pjobs):
    """A broker that does not answer, or refuses, is told in one line, without a
    password, and the job stays failed.
    """
    job = failed(store)
    address = NOWHERE.removeprefix("redis://")
    away = "The broker does not answer: ConnectionClos"
    for shop.broker, text in (
        (RedisBroker(url=f"redis://me:secret@{address}"), away),
        (RabbitmqBroker(url=f"amqp://me:secret@{address}"), away),
        (
            RedisBroker(url=pjobs.url, middleware=[Full()]),
            "Sending failed: MiddlewareError: redis://…@h/0 is full.",
        ),
    ):
        shop.broker.add_middleware(JobStateMiddleware(url=pjobs.url))
        options = {"broker": shop.broker, "actor_name": "run_marathon"}
        dramatiq.actor(job_state=True, **options)(print)
        for words, out in (
            ([job.uuid], []),
            (["--everything", "--yes"], ["at least 0 requeued, 0 refused, then sto"]),
        ):
            ran = pjobs.rerun(*words)
            assert (ran.code, [line[:40] for line in ran.out]) == (1, out)
            (line,) = ran.err
            assert line.startswith(f"pjobs: {text}")
            assert "secret" not in line
    assert statuses(store, job) == ["error"]


def test_unsuitable_brokers(shop, store, pjobs):
    """An unsuitable broker is refused before any job changes, with advice."""
    shop.store = store
    shop.stub = StubBroker()
    shop.plain = RedisBroker(url=pjobs.url, middleware=[])
    shop.other = RedisBroker(url=pjobs.url, middleware=[])
    shop.other.add_middleware(JobStateMiddleware(namespace="other"))
    advice = "Name that store with --url and --namespace."
    for name, code, text in (
        ("missing", 1, "--broker shop:missing cannot be imported: AttributeError"),
        ("store", 2, "--broker shop:store is a JobStore, not a Dramatiq broker."),
        ("stub", 2, "--broker shop:stub is a StubBroker, whose messages no work"),
        ("plain", 2, "has no JobStateMiddleware. Add one before the actors"),
        ("other", 2, f"another namespace. {advice}"),
    ):
        ran = pjobs("rerun", "--broker", f"shop:{name}", "--everything", "--yes")
        assert text in ran.error(code)


#: A module that prints, logs, and has a broker.
MODULE = """
import logging

from tests.jobs import job_actor, make_broker

print("printed at import")
logging.getLogger().addHandler(logging.StreamHandler())
logging.getLogger().setLevel(logging.INFO)
logging.info("logged at import")
broker = make_broker({url!r})
job_actor(broker=broker, job_state=True)(lambda: None)
job_actor(broker=broker, actor_name="run_marathon", job_state=True)(print)
"""


def test_module_in_the_current_folder(shop, store, pjobs, tmp_path, monkeypatch):
    """The module is imported from the current folder, and its own output stays off
    stdout. If the import fails, the error hides passwords.
    """
    job = failed(store)
    (tmp_path / "till.py").write_text(MODULE.format(url=pjobs.url))
    (tmp_path / "broken.py").write_text("raise ValueError('redis://me:secret@h/0')")
    monkeypatch.delitem(sys.modules, "till", raising=False)
    monkeypatch.chdir(tmp_path)
    ran = pjobs("rerun", job.uuid, "--broker", "till:broker")
    assert (ran.code, ran.out) == (0, [f"{job.uuid} queued"])
    assert ran.err == ["printed at import", "logged at import"]
    line = pjobs("rerun", job.uuid, "--broker", "broken:broker").error(1)
    text = "--broker broken:broker cannot be imported: ValueError: redis://…@h/0"
    assert line == f"pjobs: {text}"
