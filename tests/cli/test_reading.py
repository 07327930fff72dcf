"""What `pjobs list`, `show`, `log` and `info` say of jobs."""

import datetime
import functools
import importlib.metadata
import json
import re
import sys
import time
import unicodedata
from collections import Counter
from typing import Any

import dramatiq
import pytest
from pyramid.i18n import TranslationString

from pyramid_jobstate import JobError, JobState, JobStateMiddleware, Progress
from pyramid_jobstate.testing import pass_time, put_batch
from tests.durations import LIKE, put_runs
from tests.jobs import Gate, RunMarathon, job_actor, make_broker, working
from tests.operated import HARMLESS, HOSTILE, Course, Haul, Operator, put, steps
from tests.support import STATUSES, UUID, key_of, load_job, wait_for, write
from tests.worker.floors import idle_actor

VERSION = importlib.metadata.version("pyramid_jobstate")

#: The statuses of a batch's members.
EACH = ("success", "error", "working", "queued", "retrying", "cancelled", "error")


class Titled(JobState):
    """A kind whose title is a translation string, or fails."""

    @property
    def title(self) -> Any:
        if self.owner == "bad":
            raise LookupError
        return TranslationString("Import of ${n}", mapping={"n": 3})


class Stroll(JobState):
    """A kind that is busier than marathons."""


class Sly(JobState):
    """A kind with the name of an actor."""

    kind = "actor:mow"


class Strange(JobState):
    """A kind with a hostile name."""

    kind = HOSTILE


def state_of(pjobs: Operator, job: JobState) -> str:
    """Return what `list` says of the state of a job."""
    (line,) = [line for line in pjobs("list").out if line.startswith(job.uuid)]
    return line.split(" ", 4)[4]


def listed(pjobs: Operator, *arguments: str) -> list[str]:
    """Return the ids of the jobs that `list` shows."""
    return [line.split()[0] for line in pjobs("list", *arguments).out]


def facts_of(pjobs: Operator, job: JobState, name: str) -> list[str]:
    """Return what `show` tells under a name."""
    facts = [line.partition(": ") for line in pjobs("show", job.uuid).out]
    return [text for each, _, text in facts if each == name]


def test_workers_are_listed(pjobs, store):
    """A line says who works where and how busily, or since when it is silent."""
    assert pjobs("workers").printed() == ["No worker has been heard of."]
    assert pjobs("workers", "--json").printed() == []
    broker = make_broker(pjobs.url, JobStateMiddleware(heartbeat=3600))
    idle_actor(broker)
    with working(broker):
        (worker,) = wait_for(store.workers)
        (line,) = pjobs("workers").printed()
        assert line.startswith(f"{worker.name} 0 of 4 threads busy queues default ")
        assert line.endswith(
            f" dramatiq {dramatiq.__version__} pyramid_jobstate {VERSION}"
        )
        (values,) = pjobs("workers", "--json").values()
        assert (values["pid"], values["queues"]) == (worker.pid, ["default"])
        pass_time(store, 60)
        (line,) = pjobs("workers").printed()
        assert line.startswith(f"{worker.name} silent since 20")


@pytest.mark.promise("pjobs-reads-and-acts")
def test_list_has_a_line_a_job(pjobs, store):
    """A line has the id, time, kind, owner and state. What a record lacks is a dash."""
    lost = put(store, "cancelled")
    store.client.delete(key_of(store, lost.uuid))
    write(store, lost, status="cancelled")
    put(store, "error", owner=7, error=JobError("ValueError", HOSTILE))
    working = put(store, message=HOSTILE, progress=Progress(2000, 20000, "rows"))
    first, second, third = pjobs("list").printed()
    uuid, queued, rest = first.split(" ", 2)
    assert uuid == working.uuid
    assert datetime.datetime.fromisoformat(queued).tzinfo is not None
    amount = "10% 2,000 of 20,000 rows"
    assert rest == f'RunMarathon "alice" working {amount}: {HARMLESS}'
    assert " RunMarathon 7 error after 0." in second
    assert second.endswith(f" s: ValueError: {HARMLESS}")
    assert third == f"{lost.uuid} - - - cancelled"


def test_each_status_has_its_words(pjobs, store):
    """The state says what belongs to a status, and nothing else. Numbers have
    separators and at most two decimals, and 100% is for the end.
    """
    wrong = JobError("E", "x")
    cases: list[tuple[str, dict[str, Any], str]] = [
        ("queued", {"delay": 60}, "queued, due 20.*"),
        ("retrying", {"delay": 60, "error": wrong}, "retrying, due 20.*: E: x"),
        ("working", {"message": "Reading"}, "working: Reading"),
        ("cancelling", {"progress": Progress(3)}, "cancelling 3"),
        ("stalled", {"progress": Progress(1, 2)}, "stalled 50% 1 of 2"),
        ("cancelled", {}, r"cancelled after 0\.\d s: The job was cancelled\."),
        ("error", {"error": JobError(None, "gone")}, r"error after 0\.\d s: gone"),
        ("success", {"message": "Never mind"}, r"success after 0\.\d s"),
    ]
    for progress, text in (
        (Progress(2000, None, "rows"), "2,000 rows"),
        (Progress(0.256), "0.26"),
        (Progress(29, 100), "29% 29 of 100"),
        (Progress(9999, 10000), "99% 9,999 of 10,000"),
        (Progress(7, 5), "100% 7 of 5"),
        (Progress(1, 2, "\x1b"), r"50% 1 of 2 \\x1b"),
    ):
        cases.append(("working", {"progress": progress}, f"working {text}"))
    for status, options, text in cases:
        state = state_of(pjobs, put(store, status, **options))
        assert re.fullmatch(text, state), (status, options)


def test_phases_have_their_names(pjobs, store):
    """Within phases, the percentage is the job's, and the innermost phase is named."""
    job = put(store)
    for progress, text in (
        ("[0, null, null, null]", r"working 40% C\x1b"),
        ('[1, 2, "rows", null]', r"working 45% C\x1b: 1 of 2 rows"),
    ):
        write(store, job, progress=progress, phase=r'[0.4, 0.1, ["B", "C\u001b"]]')
        assert state_of(pjobs, job) == text
    (value,) = pjobs("list", "--json").values()
    assert value["phase"] == {"name": "C\x1b", "path": ["B", "C\x1b"], "fraction": 0.5}


def test_list_filters(pjobs, store):
    """Jobs are filtered by kind, status and owner, whose type counts."""
    number = put(store, "error", owner=7).uuid
    text = put(store, "error", owner="7", cls=Titled).uuid
    working = put(store, owner="ü").uuid
    for arguments, jobs in (
        ("--owner 7", [number]),
        ('--owner "7"', [text]),
        ('--owner "ü"', [working]),
        ("--status error", [text, number]),
        ("--kind RunMarathon --status=error", [number]),
        ("--kind Other", []),
    ):
        assert listed(pjobs, *arguments.split()) == jobs, arguments


def test_kind_is_a_class_or_an_actor(pjobs, store):
    """Jobs of an actor without a class go by the actor, wherever kinds are shown or
    taken. Each name says what it is if a class and an actor share it.
    """
    names = ["mow", "rake", "Stroll"]
    jobs = [put(store, "queued", cls=JobState, actor=name) for name in names]
    jobs += [put(store, "queued", cls=cls) for cls in (Stroll, Sly)]
    kinds = ["mow", "rake", "actor:Stroll", "class:Stroll", "class:actor:mow"]
    lines = [line.split() for line in pjobs("list").out]
    assert {line[0]: line[2] for line in lines} == {
        job.uuid: kind for job, kind in zip(jobs, kinds, strict=True)
    }
    assert {line.split("  ")[0] for line in pjobs("info").out} >= {*kinds}
    for job, kind in zip(jobs, kinds, strict=True):
        assert facts_of(pjobs, job, "kind") == [kind]
        assert listed(pjobs, "--kind", kind) == [job.uuid]
        ran = pjobs("cancel", "--kind", kind, "--dry-run")
        assert ran.out == ["1 would be cancelled"]
    for words in ["list"], ["cancel", "--dry-run"], ["clear", "--yes"]:
        error = pjobs(*words, "--kind", "Stroll").error(2)
        assert "Pass 'class:Stroll' or 'actor:Stroll'." in error


def test_limits_reach_beyond_a_page(pjobs, store):
    """By default 50 jobs are listed. A limit may exceed a page of the store's."""
    put_batch(store, Haul, ["queued"] * 210)
    newest = store.list(limit=50, members=True).items
    assert listed(pjobs, "--members") == [job.uuid for job in newest]
    found = listed(pjobs, "--members", "--limit", "230")
    assert len(found) == len({*found}) == 211
    assert len(listed(pjobs)) == 1


def test_show_has_all_that_is_known(pjobs, store):
    """Each fact that matters is a line. With --json, a job is one line of ASCII with
    everything in its record. A title may be a translation string. If it fails, the kind
    takes its place.
    """
    job = put(
        store,
        "error",
        owner="ü\x7f",
        error=JobError("ValueError", HOSTILE),
        progress=Progress(1, 4, "rows"),
        message=HOSTILE,
        log=["one", HOSTILE],
        metrics={"miles": 2.5, HOSTILE: {"a": HOSTILE}},
        params={"miles": 26},
    )
    lines = pjobs("show", job.uuid).out
    for line in (
        f"id: {job.uuid}",
        "title: Run marathon",
        "kind: RunMarathon",
        "actor: run_marathon",
        "status: error",
        r'owner: "ü\x7f"',
        "attempt: 1",
        "progress: 25% 1 of 4 rows",
        f"message: {HARMLESS}",
        f"error: ValueError: {HARMLESS}",
        "param miles: 26",
        "metric miles: 2.5",
        "log: one",
        f"log: {HARMLESS}",
    ):
        assert line in lines
    assert any(line.startswith(f"metric {HARMLESS}: ") for line in lines)
    (line,) = pjobs("list", "--json").out
    assert line.isascii() and line.isprintable()
    value = json.loads(line)
    for name in "queued", "started", "updated", "finished":
        (text,) = facts_of(pjobs, job, name)
        moment = datetime.datetime.fromisoformat(value.pop(f"{name}_at"))
        assert datetime.datetime.fromisoformat(text) == moment.replace(microsecond=0)
    del value["progress"]["eta"]
    expected = {
        "uuid": job.uuid,
        "kind": "RunMarathon",
        "status": "error",
        "owner": "ü\x7f",
        "progress": {"done": 1, "total": 4, "unit": "rows", "fraction": 0.25},
        "message": HOSTILE,
        "metrics": {"miles": 2.5, HOSTILE: {"a": HOSTILE}},
        "params": {"miles": 26},
        "error": {"type": "ValueError", "message": HOSTILE},
        "log": ["one", HOSTILE],
    }
    assert value.items() >= expected.items()
    (shown,) = pjobs("show", job.uuid, "--json").out
    assert shown.startswith(f'{line[:-1]}, "failures": ')
    job = put(store, "cancelling")
    write(store, job, progress='[1, 4, "rows", 14.2]', unique=HOSTILE, queue=HOSTILE)
    found = {*pjobs("show", job.uuid).out}
    assert {"left: 14 s", "cancel: requested", f"unique: {HARMLESS}"} <= found
    assert f"queue: {HARMLESS}" in found
    (value,) = pjobs("show", job.uuid, "--json").values()
    assert (value["queue"], value["unique"]) == (HOSTILE, HOSTILE)
    nothing = {"tries": [], "traceback": "", "rerun_refusal": ""}
    assert value["failures"] == nothing
    for owner, title in ("alice", "Import of 3"), ("bad", "Titled"):
        job = put(store, cls=Titled, owner=owner)
        assert facts_of(pjobs, job, "title") == [title]


def test_characters_that_may_act_are_escaped(pjobs, store):
    """Whatever Unicode calls a control, a surrogate, a separator of lines, a format
    that cannot be seen or no character at all is escaped as Python writes it. What can
    be seen stays, and so do the joiners of scripts and emojis.
    """
    every = {chr(number): number for number in range(sys.maxunicode + 1)}
    seen = {each for each in every if unicodedata.category(each)[0] in "LMNPS"}
    # Joiners, an unassigned code point, and one for private use.
    seen |= {*"\u200c\u200d\u0378\ue000", *map(chr, range(0x13430, 0x13440))}
    # The signs of Arabic, Syriac and Kaithi that stand below or above numbers.
    seen |= {*"\u0600\u0601\u0602\u0603\u0604\u0605\u06dd\u070f\u0890\u0891\u08e2"}
    seen |= {"\U000110bd", "\U000110cd"}
    acting = {
        each
        for each, number in every.items()
        if unicodedata.category(each) in ("Cc", "Cf", "Cs", "Zl", "Zp")
        # Some code points will never be characters.
        or (number & 0xFFFE) == 0xFFFE
        or "\ufdd0" <= each <= "\ufdef"
    }
    # Unassigned, and said to be invisible.
    acting |= {*"\u2065\ufff0\ufff8\U000e0002\U000e00ff\U000e01f0\U000e0fff"}
    acting -= seen
    for characters, texts in (
        (seen, seen),
        (acting, [ascii(each)[1:-1] for each in acting]),
    ):
        job = put(store, params={" ".join(characters): 1})
        assert f"param {' '.join(texts)}: 1" in pjobs("show", job.uuid).out


def test_show_has_the_failures(pjobs, runs, store):
    """`show` has the tries, the traceback, and why the job cannot run again."""
    run = runs.start()
    run.end(ValueError("wrong"))
    job = load_job(store, run.uuid)
    (text,) = facts_of(pjobs, job, "try")
    assert text.endswith(" s: ValueError: wrong")
    found = facts_of(pjobs, job, "traceback")
    assert found[0] == "Traceback (most recent call last):"
    assert found[-1] == "ValueError: wrong"
    assert facts_of(pjobs, job, "rerun") == []
    (value,) = pjobs("show", run.uuid, "--json").values()
    ((tried,), text, refusal) = value["failures"].values()
    assert (tried["error"]["message"], tried["ended_at"][-1:]) == ("wrong", "Z")
    assert text.endswith("ValueError: wrong\n") and refusal == ""
    error = JobError("ValueError", HOSTILE)
    job = put(store, "error", error=error, traceback=HOSTILE, actor="")
    reason = "impossible: The store does not hold its message."
    assert facts_of(pjobs, job, "rerun") == [reason]
    assert facts_of(pjobs, job, "try")[0].endswith(f" s: ValueError: {HARMLESS}")
    assert facts_of(pjobs, job, "traceback") == HARMLESS.split(r"\n")


def test_times_are_local(pjobs, store, monkeypatch):
    """A time is shown in the local time zone, unless that has no such time."""
    job = put(store)
    moment = datetime.datetime(2026, 7, 1, 12, 0, 1, tzinfo=datetime.UTC)
    write(store, job, queued=int(moment.timestamp() * 1000))
    monkeypatch.setenv("TZ", "Asia/Kolkata")
    time.tzset()
    try:
        assert facts_of(pjobs, job, "queued") == ["2026-07-01 17:30:01+05:30"]
        (line,) = pjobs("list").out
        assert line.split()[1] == "2026-07-01T17:30:01+05:30"
        last = datetime.datetime(9999, 12, 31, 23, 59, 59, tzinfo=datetime.UTC)
        write(store, job, queued=int(last.timestamp() * 1000))
        assert facts_of(pjobs, job, "queued") == ["9999-12-31 23:59:59+00:00"]
    finally:
        monkeypatch.undo()
        time.tzset()


def test_beginning_of_an_id_is_enough(pjobs, store):
    """A beginning that only one job has names it, and so does the id of a page that
    lost a double click. What no job has is an error: 1.
    """
    job = put(store, "queued", cls=Strange)
    alias = f"{UUID[:-1]}0"
    write(store, alias, status="alias", target=job.uuid)
    for name in job.uuid[:13], job.uuid[:13].upper(), job.uuid.upper(), alias:
        assert f"id: {job.uuid}" in pjobs("show", name).out
    begins = "The id of none of the newest 1,000 jobs begins with"
    error = pjobs("show", "4f6c0").error(1)
    assert error == f"pjobs: {begins} 4f6c0. Give the full id of an older one."
    error = pjobs("show", UUID).error(1)
    assert error == f"pjobs: The job {UUID} is unknown, or has expired."


def test_ambiguous_beginning_of_an_id(pjobs, store):
    """The error names up to five jobs that begin so, and acts on none of them."""
    uuids = [put(store, "queued").uuid for _ in range(17)]
    ((digit, count),) = Counter(uuid[0] for uuid in uuids).most_common(1)
    for command in "show", "cancel":
        line = pjobs(command, digit).error(1)
        head, _, found = line.partition(" is the beginning of several ids: ")
        assert head == f"pjobs: {digit}"
        named = re.findall(r"([0-9a-f-]{36}) \(RunMarathon, queued\)", found)
        assert {*named} <= {uuid for uuid in uuids if uuid[0] == digit}
        assert len(named) == min(count, 5)
    assert {job.status for job in store.list().items} == {"queued"}


@pytest.mark.system
def test_old_jobs_need_their_full_id(pjobs, store):
    """An old job is found by its full id only, and makes no beginning ambiguous."""
    old = put(store, "queued")
    put_batch(store, Haul, ["queued"] * 1000)
    error = pjobs("show", old.uuid[:13]).error(1)
    assert "The id of none of the newest 1,000 jobs begins with" in error
    assert f"id: {old.uuid}" in pjobs("show", old.uuid).out


def test_log_has_the_lines_of_a_job(pjobs, store):
    """Each line is printed as it is, but harmless; JSON keeps it."""
    job = put(store, log=["one", HOSTILE])
    assert pjobs("log", job.uuid) == (0, ["one", HARMLESS], [])
    assert pjobs("log", job.uuid, "--json").values() == [
        {"uuid": job.uuid, "attempt": 1, "line": line} for line in ("one", HOSTILE)
    ]
    assert pjobs("log", put(store, "queued").uuid) == (0, [], [])


def test_info_counts_jobs(pjobs, store):
    """The totals have a line, and each known kind its own, the busiest first."""
    wrong = JobError("E", "x")
    for _ in range(3):
        put(store, cls=Stroll)
    for status in "working", "cancelling", "success", "cancelled":
        put(store, status)
    # These are not due yet.
    for _ in range(2):
        put(store, "queued", delay=60)
    put(store, "queued", cls=Strange, delay=60)
    put(store, "retrying", error=wrong, delay=60)
    put(store, "error", error=wrong)
    put(store, "stalled", cls=Stroll)
    lines = pjobs().printed()
    assert lines[:4] == [
        "working 4   queued 3   retrying 1   stalled 1   cancelling 1   "
        "| 24 h: success 1  error 1",
        "Stroll  3 working  0 queued  0 error  1 stalled",
        "RunMarathon  1 working  2 queued  1 error  1 retrying  1 cancelling",
        f"{HARMLESS}  0 working  1 queued  0 error",
    ]
    assert "Titled  0 working  0 queued  0 error" in lines
    assert pjobs("info").out == lines
    (found,) = pjobs("--json").values()
    kinds = found.pop("kinds")
    ended = {"seconds": 86400, "success": 1, "error": 1, "cancelled": 1}
    counts = {**dict.fromkeys(STATUSES, 1), "queued": 3, "working": 4}
    waits = {name: found[name] for name in ("oldest_wait", "recent_wait")}
    assert found == {**counts, **waits, "ended": ended}
    assert list(kinds)[:2] == ["class:Stroll", "class:RunMarathon"]
    assert kinds["class:Stroll"].keys() == {*found, "durations"}
    assert kinds["class:Stroll"]["working"] == 3
    put_batch(store, Haul, ["working", "working"])
    assert pjobs("info").out[0].startswith("working 5 ")
    assert pjobs("info", "--members").out[0].startswith("working 7 ")


def test_info_says_how_late_jobs_are(pjobs, store):
    """Of all kinds and of each, if that is a second or more."""
    put(store, "retrying", delay=10, error=JobError("E", "x"))
    put(store, "queued", cls=Stroll)
    shown = "".join(pjobs().printed())
    (found,) = pjobs("--json").values()
    # A busy machine may have taken longer.
    assert "waits" not in shown or found["oldest_wait"] >= 1
    pass_time(store, 130)
    put(store, "queued", cls=Stroll)
    head, *lines = pjobs().printed()
    assert re.search(r"   oldest waits 2 min( \d+ s)?   \| 24 h", head)
    assert any(re.search("^Stroll .*  oldest waits 2 min", line) for line in lines)
    assert any(re.search("^RunMarathon .*  oldest waits 2 min", line) for line in lines)
    (found,) = pjobs("--json").values()
    assert 120 <= found["oldest_wait"] < 140
    assert found["kinds"]["class:RunMarathon"]["oldest_wait"] < 130


def test_info_tells_how_long_jobs_run(pjobs, store):
    """Those of a kind of which enough is known."""
    put_runs(store)
    put_runs(store, LIKE[:19], cls=Stroll)
    lines = pjobs("info").out
    nothing = "0 working  0 queued  0 error"
    assert f"RunMarathon  {nothing}  half in 2 min, 95% in 2 min 18 s" in lines
    assert f"Stroll  {nothing}" in lines
    kinds = pjobs("--json").values()[0]["kinds"]
    assert kinds["class:RunMarathon"]["durations"] == {"p50": 120, "p95": 138}
    assert kinds["class:Stroll"]["durations"] == {"p50": None, "p95": None}


def test_batch_has_its_counts(pjobs, store):
    """A batch says how many jobs are over, failed or were cancelled, and has the
    numbers of all statuses. A member names its batch.
    """
    alone = put(store, "success").uuid
    for statuses, text in (
        ([], r"success after 0\.\d s, 0 of 0 jobs"),
        (["queued"] * 2, "queued 0% 0 of 2 jobs"),
        (["success", "error"], r"error after [\d.]+ s, 2 of 2 jobs, 1 error"),
        (EACH, "working 57% 4 of 7 jobs, 2 error, 1 cancelled"),
    ):
        batch = put_batch(store, Haul, statuses, title=HOSTILE)
        assert re.fullmatch(text, state_of(pjobs, batch)), statuses
    lines = pjobs("show", batch.uuid[:13]).out
    jobs = "1 success, 2 error, 1 cancelled, 1 working, 1 queued, 1 retrying"
    expected = {f"title: {HARMLESS}", "progress: 57% 4 of 7 jobs", f"jobs: {jobs}"}
    assert expected <= {*lines}
    assert not any(line.startswith(("batch: ", "rerun: ")) for line in lines)
    member = store.members(batch.uuid).items[0]
    assert facts_of(pjobs, member, "batch") == [batch.uuid]
    assert facts_of(pjobs, member, "jobs") == []
    states = pjobs("list", "--members", "--json").values()
    by_uuid = {state["uuid"]: state for state in states}
    found = by_uuid[batch.uuid]
    assert found["counts"] == dict(Counter(EACH)) and "batch" not in found
    assert (found["progress"]["done"], found["progress"]["total"]) == (4, 7)
    assert by_uuid[member.uuid]["batch"] == batch.uuid
    assert not {"batch", "counts"} & by_uuid[alone].keys()
    assert "counts" not in by_uuid[member.uuid]


def test_stack_of_a_job(pjobs, store):
    """First what runs it, then the stack, the innermost call last."""
    broker, gate = make_broker(pjobs.url), Gate()

    @job_actor(broker=broker)
    def run_marathon(*, job_state: RunMarathon) -> None:
        gate.wait()

    with working(broker):
        uuid = run_marathon.send().message_id
        gate.wait_for_job()

        def wait() -> Course:
            wait_for(lambda: (where := store.where(uuid)) and where.taken_at)
            yield None

        facts, *lines = pjobs("stack", uuid[:8], course=wait()).printed()
        (worker,) = store.workers()
        assert facts.startswith(f"{worker.name} Thread-") and facts.endswith(" MB")
        names = [line.rpartition(", in ")[2] for line in lines]
        assert names.index("run_marathon") < len(names) - names[::-1].index("wait")
        (values,) = pjobs("stack", uuid, "--json").values()
        assert (values["uuid"], values["worker"]) == (uuid, worker.name)
        assert values["stack"].splitlines() == lines and values["taken_at"]
        gate.open()


def test_stack_needs_an_answer(pjobs, store, runs):
    """A job that does not run has none, nor has one whose worker says nothing for five
    seconds. One that ends meanwhile, or is to be tried again, is not waited for.
    """
    run = runs.start()
    # This worker does not run it.
    write(store, run.uuid, run="another")
    begun = time.monotonic()
    no_answer = pjobs("stack", run.uuid).error(1)
    assert "The worker did not answer: it is paused, " in no_answer
    # The time that a busy machine takes counts, too.
    assert 4.9 - (time.monotonic() - begun) < pjobs.pauses.passed < 5.5
    for status, text in (
        ("retrying", f"pjobs: The job {run.uuid} does not run any more."),
        ("success", f"pjobs: The job {run.uuid} has ended."),
    ):
        write(store, run.uuid, status="working")
        pass_time(store, 2)
        change = steps(functools.partial(write, store, run.uuid, status=status))
        assert pjobs("stack", run.uuid, course=change).error(1) == text
        assert pjobs.pauses.passed < 1
    assert "does not run" in pjobs("stack", run.uuid).error(1)
