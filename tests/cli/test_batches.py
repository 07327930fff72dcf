"""Batches in the commands: their counts, their bars, and their failed jobs."""

from __future__ import annotations

import json
import re
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pyramid_jobstate import Batch, JobState, JobStore
from pyramid_jobstate.cli import info
from pyramid_jobstate.cli.following import Changes
from pyramid_jobstate.testing import pass_time
from tests.batched import Put, end, put_batch
from tests.jobs import working
from tests.operated import HARMLESS, HOSTILE, Operator, Ran, Start, finished, put, run
from tests.support import ROOT, UUID, key_of, load_job, wait_for
from tests.terminal import terminal
from tests.web.operating import Marathons

EACH = ("success", "error", "working", "queued", "retrying", "cancelled", "error")

COUNTS = {
    "queued": 1,
    "working": 1,
    "retrying": 1,
    "success": 1,
    "error": 2,
    "cancelled": 1,
}


def states(lines: list[str]) -> list[str]:
    """Return lines without their times."""
    return [line.split(" ", 1)[1] for line in lines]


def statuses(store: JobStore, batch: Put) -> list[str]:
    return [load_job(store, uuid).status for uuid in batch.members]


@pytest.fixture
def rerun(
    pjobs: Operator, marathons: Marathons, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Ran]:
    """Runs jobs again through the broker of the marathons, in the module `shop`."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    module: Any = types.ModuleType("shop")
    module.broker = marathons.broker
    monkeypatch.setitem(sys.modules, "shop", module)

    def rerun(*arguments: str) -> Ran:
        return pjobs("rerun", "--broker", "shop:broker", *arguments)

    return rerun


# What is said


@pytest.mark.parametrize(
    ("members", "text"),
    [
        ([], r"success after 0\.0 s, 0 of 0 jobs"),
        (["queued"] * 2, "queued 0% 0 of 2 jobs"),
        (EACH, "working 57% 4 of 7 jobs, 2 failed, 1 cancelled"),
        (["success", "queued"], "working 50% 1 of 2 jobs"),
        (["success", "success"], r"success after [\d.]+ s, 2 of 2 jobs"),
        (["success", "error"], r"error after [\d.]+ s, 2 of 2 jobs, 1 failed"),
    ],
    ids=str,
)
def test_state_of_a_batch(
    pjobs: Operator, store: JobStore, members: list[str], text: str
) -> None:
    """A line about a batch says how many of its jobs are over, and how many of these
    failed or were cancelled.
    """
    batch = put_batch(store, *members)
    (line,) = [line for line in pjobs("list").out if line.startswith(batch.uuid)]
    assert re.fullmatch(text, line.split(" ", 4)[4])


def test_large_numbers_are_grouped(pjobs: Operator, store: JobStore) -> None:
    """Counts are written as all numbers are."""
    batch = put_batch(store, "queued")
    key = key_of(store, batch.uuid)
    store.client.hset(key, mapping={"size": 1201, "n:q": 0, "n:e": 1200, "n:w": 1})
    (line,) = pjobs("list", "--kind", "ImportFiles").out
    assert line.endswith(" 1,200 of 1,201 jobs, 1,200 failed")
    assert "jobs: 1,200 failed, 1 running" in pjobs("show", batch.uuid).out


def test_batch_without_started_time(pjobs: Operator, store: JobStore) -> None:
    """What a record lacks is left out."""
    batch = put_batch(store, "success")
    store.client.hdel(key_of(store, batch.uuid), "started")
    (line,) = pjobs("list", "--kind", "ImportFiles").out
    assert line.endswith(" success 1 of 1 jobs")


def test_show_has_the_counts(pjobs: Operator, store: JobStore) -> None:
    """`show` says how many jobs of a batch have which status, and of a member to which
    batch it belongs.
    """
    batch = put_batch(store, *EACH)
    lines = pjobs("show", batch.uuid[:9]).out
    assert "title: Import of the files" in lines
    assert "progress: 57% 4 of 7 jobs" in lines
    assert (
        "jobs: 1 succeeded, 2 failed, 1 cancelled, 1 running, 1 waiting, 1 retrying"
        in lines
    )
    assert not any(line.startswith(("batch: ", "rerun: ")) for line in lines)
    lines = pjobs("show", batch.members[0]).out
    assert f"batch: {batch.uuid}" in lines
    assert not any(line.startswith("jobs: ") for line in lines)
    assert "jobs: none" in pjobs("show", put_batch(store).uuid).out


def test_json_has_the_counts(pjobs: Operator, store: JobStore) -> None:
    """With --json, a batch has its counts, and a member the id of its batch; any other
    job has neither.
    """
    batch = put_batch(store, *EACH)
    alone = put(store, "success").uuid
    (text,) = pjobs("show", "--json", batch.uuid).out
    found = json.loads(text)
    assert found["counts"] == COUNTS
    assert found["progress"]["fraction"] == pytest.approx(4 / 7)
    assert (found["progress"]["done"], found["progress"]["total"]) == (4, 7)
    jobs = [json.loads(line) for line in pjobs("list", "--json").out]
    by_uuid = {job["uuid"]: job for job in jobs}
    assert by_uuid[batch.uuid]["counts"] == COUNTS
    assert by_uuid[batch.members[0]]["batch"] == batch.uuid
    assert by_uuid[alone].keys().isdisjoint({"counts", "batch"})
    assert "batch" not in by_uuid[batch.uuid]
    assert "counts" not in by_uuid[batch.members[0]]


def test_failed_batch_says_what_runs_again(
    pjobs: Operator, store: JobStore, rerun: Callable[..., Ran]
) -> None:
    """A batch does not run again, but its failed jobs do: `show` and `rerun` say so."""
    batch = put_batch(store, "error")
    reason = "A batch cannot run again. Rerun its failed jobs."
    assert f"rerun: impossible: {reason}" in pjobs("show", batch.uuid).out
    (text,) = pjobs("show", "--json", batch.uuid).out
    assert json.loads(text)["failures"]["rerun_refusal"] == reason
    for words in ([], ["--dry-run"]):
        assert rerun(batch.uuid, *words) == (
            1,
            [],
            [
                f"pjobs: The job {batch.uuid} cannot run again: {reason} "
                f"Use --batch {batch.uuid}."
            ],
        )


def test_batches_of_unknown_kinds(redis_url: str, store: JobStore) -> None:
    """Without the application's classes, a batch is one all the same."""
    batch = put_batch(store, *EACH)
    code = "import sys; sys.modules['pyramid'] = None; "
    code += "from pyramid_jobstate.cli import main; sys.exit(main())"
    ran = run("--url", redis_url, "list", "--kind=ImportFiles", code=code)
    assert (ran.code, ran.err) == (0, [])
    assert ran.out[0].endswith(" working 57% 4 of 7 jobs, 2 failed, 1 cancelled")
    ran = run("--url", redis_url, "show", batch.uuid, "--json", code=code)
    assert json.loads(ran.out[0])["counts"] == COUNTS


def test_info_knows_no_kinds_of_ours(pjobs: Operator, store: JobStore) -> None:
    """`info` names the kinds of the application. That of its batches without a class of
    their own is there once there is one.
    """
    kinds = {line.split("  ")[0] for line in pjobs().out[1:]}
    assert {"ImportFiles", "RunMarathon"} <= kinds
    assert kinds.isdisjoint({"*", "Batch", "JobState"})
    put_batch(store, "queued", cls=Batch)
    assert "Batch  0 running  1 waiting  0 failed" in pjobs().out
    assert {*info._known(JobState)}.isdisjoint({"*", "Batch"})


def test_hostile_titles_are_harmless(pjobs: Operator, store: JobStore) -> None:
    """Nothing in what a batch holds acts on the terminal."""
    batch = put_batch(store, "success", title=HOSTILE)
    assert f"title: {HARMLESS}" in pjobs("show", batch.uuid).out
    store.client.hset(key_of(store, batch.members[0]), "batch", HOSTILE)
    assert f"batch: {HARMLESS}" in pjobs("show", batch.members[0]).out


# Watching and waiting


def test_watch_draws_the_bar_of_a_batch(redis_url: str, store: JobStore) -> None:
    """The bar of a batch is as long as the work that is done, by the weights of the
    jobs; beside it stands how many jobs are over. It ends with the batch.
    """
    batch = put_batch(store, "queued", "queued", "error", weights=[6, 1, 1])
    with terminal("--url", redis_url, "watch", batch.uuid, columns=150) as shown:
        text = shown.wait_for("1 of 3 jobs, 1 failed")
        (row,) = [line for line in text.splitlines() if line.startswith(batch.uuid[:8])]
        assert re.search(r"━━╸? *━* +working +12% 1 of 3 jobs, 1 failed$", row)
        end(store, batch.uuid, batch.members[0])
        text = shown.wait_for("87% 2 of 3 jobs, 1 failed")
        assert "━" * 17 in text
        end(store, batch.uuid, batch.members[1])
        assert shown.end() == 0
        assert re.search(r"error +after [\d.]+ s, 3 of 3 jobs, 1 failed", shown.text())


def test_watch_says_each_failure(start: Start, redis_url: str, store: JobStore) -> None:
    """Without a terminal, a failure that moves no whole percent is a line, too."""
    batch = put_batch(store, *["queued"] * 3, weights=[9999, 1, 1])
    process = start("--url", redis_url, "watch", batch.uuid)
    assert process.stdout is not None
    assert process.stdout.readline().endswith(f"{batch.uuid} queued 0% 0 of 3 jobs\n")
    end(store, batch.uuid, batch.members[1], "error")
    line = process.stdout.readline()
    assert line.endswith(" working 0% 1 of 3 jobs, 1 failed\n")
    end(store, batch.uuid, batch.members[2], "cancelled")
    line = process.stdout.readline()
    assert line.endswith(" working 0% 2 of 3 jobs, 1 failed, 1 cancelled\n")
    end(store, batch.uuid, batch.members[0])
    assert finished(process).code == 0


def test_failure_is_worth_a_line_at_once(store: JobStore) -> None:
    """A line follows on a failure or a cancel, but not on a success that moves no whole
    percent.
    """
    batch = put_batch(store, *["queued"] * 4, weights=[9999, 1, 1, 1])
    changes = Changes()

    def text() -> str | None:
        return changes.text(load_job(store, batch.uuid))

    assert text() == "queued 0% 0 of 4 jobs"
    end(store, batch.uuid, batch.members[1], "error")
    assert text() == "working 0% 1 of 4 jobs, 1 failed"
    end(store, batch.uuid, batch.members[2], "cancelled")
    assert text() == "working 0% 2 of 4 jobs, 1 failed, 1 cancelled"
    end(store, batch.uuid, batch.members[3])
    assert text() is None


@pytest.mark.parametrize(
    ("last", "code"), [("success", 0), ("error", 3), ("cancelled", 4)]
)
def test_wait_waits_for_a_batch(
    start: Start, redis_url: str, store: JobStore, last: str, code: int
) -> None:
    """`wait` ends with the batch, as it does with a job."""
    batch = put_batch(store, "success", "queued")
    process = start("--url", redis_url, "wait", batch.uuid)
    assert process.stdout is not None
    assert process.stdout.readline().endswith(" working 50% 1 of 2 jobs\n")
    end(store, batch.uuid, batch.members[1], last)
    assert finished(process).code == code


def test_batch_that_may_have_failures(pjobs: Operator, store: JobStore) -> None:
    """A batch that succeeds even if jobs fail is a success that says so."""
    batch = put_batch(store, "success", "error", allow_failures=True)
    ran = pjobs("wait", batch.uuid)
    assert ran.code == 0
    assert re.fullmatch(
        r"success after [\d.]+ s, 2 of 2 jobs, 1 failed", states(ran.out)[0]
    )


# Cancelling, and running again


def test_batch_is_cancelled(pjobs: Operator, store: JobStore) -> None:
    """`cancel` with the id of a batch stops all of its jobs that are not over."""
    batch = put_batch(store, "success", "queued", "working")
    ran = pjobs("cancel", batch.uuid)
    assert ran == (0, [f"{batch.uuid} cancelling"], [])
    assert statuses(store, batch)[:2] == ["success", "cancelled"]
    waiting = put_batch(store, "success", "queued")
    assert pjobs("cancel", waiting.uuid).out == [f"{waiting.uuid} cancelled"]
    assert pjobs("wait", waiting.uuid).code == 4


def test_failed_jobs_of_a_batch_run_again(
    store: JobStore, marathons: Marathons, rerun: Callable[..., Ran]
) -> None:
    """`rerun --batch` runs the failed jobs of the batch again, and no others, and the
    batch goes on.
    """
    batch, other = put_batch(store, *EACH[:2], "error"), put_batch(store, "error")
    ran = rerun("--batch", batch.uuid, "--dry-run")
    assert ran == (0, ["2 would be requeued"], [])
    ran = rerun("--batch", batch.uuid, "--limit", "1", "--yes")
    assert ran == (0, ["1 requeued, 0 refused"], [])
    assert statuses(store, batch) == ["success", "error", "queued"]
    ran = rerun("--batch", batch.uuid[:10], "--status=error", "--yes")
    assert ran == (0, ["1 requeued, 0 refused"], [])
    marathons.is_mended = True
    with working(marathons.broker):
        wait_for(lambda: load_job(store, batch.uuid).status == "success")
    assert statuses(store, other) == ["error"]


def test_batch_whose_sender_died(
    store: JobStore, rerun: Callable[..., Ran], pjobs: Operator
) -> None:
    """`rerun --batch` says what to do about jobs that were never sent."""
    batch = put_batch(store, "success", "sending")
    pass_time(store, 20)
    ran = rerun("--batch", batch.uuid, "--yes")
    assert (ran.code, ran.out) == (0, ["0 requeued, 0 refused"])
    assert "Cancel the batch, and send again what is cancelled then." in ran.err[0]
    assert pjobs("cancel", batch.uuid).out == [f"{batch.uuid} cancelled"]
    assert statuses(store, batch) == ["success", "cancelled"]


def test_other_filters_apply_as_well(
    store: JobStore, rerun: Callable[..., Ran]
) -> None:
    """A job must match all filters."""
    batch = put_batch(store, "error", "error", owners=["alice", "bob"])
    assert rerun("--batch", batch.uuid, "--kind=Other", "--dry-run").out == [
        "0 would be requeued"
    ]
    ran = rerun("--batch", batch.uuid, "--owner", '"bob"', "--yes")
    assert ran.out == ["1 requeued, 0 refused"]
    assert statuses(store, batch) == ["error", "queued"]


def test_jobs_of_a_cancelled_batch_are_refused(
    store: JobStore, rerun: Callable[..., Ran]
) -> None:
    """The jobs of a cancelled batch do not run again, and `rerun ID` says why."""
    batch = put_batch(store, "error", "queued")
    assert load_job(store, batch.uuid).cancel()
    ran = rerun("--batch", batch.uuid, "--yes")
    assert ran == (1, ["0 requeued, 1 refused"], [])
    assert rerun(batch.members[0]).err == [
        f"pjobs: The job {batch.members[0]} cannot run again: Its batch was cancelled."
    ]


def test_what_is_no_batch(
    pjobs: Operator, store: JobStore, rerun: Callable[..., Ran]
) -> None:
    """A typing error is not taken for a batch without failed jobs."""
    job = put(store, "error").uuid
    for name, reason in (
        (job, f"The job {job} is not a batch."),
        (UUID, f"The job {UUID} is unknown, or has expired."),
    ):
        assert rerun("--batch", name, "--yes") == (1, [], [f"pjobs: {reason}"])
    ran = rerun("--batch", "x", "--yes")
    assert (ran.code, len(ran.err)) == (2, 1)
    assert "the batch x is not made of 0-9, a-f and -" in ran.err[0]
    ran = rerun("--batch", job, job)
    assert ran.err == ["pjobs: Give either ids, or filters with or without --limit."]
    ran = rerun("--batch", job, "--everything")
    assert ran.err == ["pjobs: Give filters, or --everything: it stands for no filter."]
    assert pjobs("cancel", "--batch", job).code == 2


#: A broker with the actor of the members, in a module of its own.
SHOP = """
import dramatiq
from tests.jobs import job_actor, make_broker

broker = make_broker({url!r})


@job_actor(broker=broker)
def run_marathon(*, job_state):
    pass
"""


def test_a_person_is_asked(redis_url: str, store: JobStore, tmp_path: Path) -> None:
    """On a terminal, the question says how many jobs are meant."""
    batch, _ = put_batch(store, "error", "error", "success"), put_batch(store, "error")
    (tmp_path / "shop.py").write_text(SHOP.format(url=redis_url))
    arguments = ("--url", redis_url, "rerun", "--broker", "shop:broker")
    path = f"{tmp_path}:{ROOT}"
    with terminal(*arguments, "--batch", batch.uuid, PYTHONPATH=path) as shown:
        shown.wait_for(r"Rerun 2 jobs\? \[y/N\]")
        shown.type("y\n")
        assert shown.end() == 0
        assert shown.lines()[-1] == "2 requeued, 0 refused"
    assert statuses(store, batch) == ["queued", "queued", "success"]
