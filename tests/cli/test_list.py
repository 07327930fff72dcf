"""`pjobs … list` and `pjobs … show`."""

import json
import re
from datetime import datetime

import pytest
import redis

from pyramid_jobstate import JobError, JobState, JobStore, Progress
from pyramid_jobstate.cli import ids, listing
from pyramid_jobstate.cli.arguments import Filters
from tests.listed import create, finish
from tests.operated import HARMLESS, HOSTILE, Operator, put, run
from tests.support import UUID, key_of
from tests.terminal import terminal


class Titled(JobState):
    """A kind whose title is a translation string, or fails."""

    @property
    def title(self) -> str:
        if self.owner == "bad":
            raise LookupError
        from pyramid.i18n import TranslationString

        return TranslationString("Import of ${n}", mapping={"n": 3})


def first_words(lines: list[str]) -> list[str]:
    return [line.split()[0] for line in lines]


def test_a_line_a_job(pjobs: Operator, store: JobStore) -> None:
    """A line has the id, the time, the kind, the owner as JSON and the state."""
    done = put(store, "success")
    failed = put(store, "error", owner=7, error=JobError("ValueError", HOSTILE))
    progress = Progress(2000, 20000, "rows")
    working = put(store, owner=None, progress=progress, message=HOSTILE)

    ran = pjobs("list")

    assert (ran.code, ran.err) == (0, [])
    assert first_words(ran.out) == [working.uuid, failed.uuid, done.uuid]
    _, queued, rest = ran.out[0].split(" ", 2)
    assert datetime.fromisoformat(queued).tzinfo is not None
    amount = "10% 2,000 of 20,000 rows"
    assert rest == f"RunMarathon - working {amount}: {HARMLESS}"
    assert f" RunMarathon 7 error after 0.0 s: ValueError: {HARMLESS}" in ran.out[1]
    assert ' RunMarathon "alice" success after 0.0 s' in ran.out[2]


@pytest.mark.parametrize(
    ("status", "options", "text"),
    [
        ("queued", {}, "queued"),
        ("queued", {"delay": 60}, "queued, due 20"),
        ("retrying", {"delay": 60, "error": JobError("E", "x")}, "retrying, due 20"),
        ("retrying", {"delay": 60, "error": JobError("E", "x")}, ": E: x"),
        ("working", {}, "working"),
        ("working", {"message": "Reading"}, "working: Reading"),
        ("cancelling", {"progress": Progress(3)}, "cancelling 3"),
        ("stalled", {"progress": Progress(1, 2)}, "stalled 50% 1 of 2"),
        ("cancelled", {}, "cancelled after 0.0 s: The job was cancelled."),
        ("success", {"message": "Never mind"}, "success after 0.0 s"),
    ],
)
def test_each_status_has_its_words(
    pjobs: Operator, store: JobStore, status: str, options: dict, text: str
) -> None:
    """The state says what belongs to a status, and nothing else."""
    put(store, status, **options)
    (line,) = pjobs("list").out
    state = line.split(" ", 4)[4]
    assert text in state
    if "due" not in state:
        assert state == text


def test_what_a_record_lacks_is_a_dash(
    pjobs: Operator, store: JobStore, client: redis.Redis
) -> None:
    """A record with a status alone makes a line like any other, and a card."""
    client.hset(key_of(store, UUID), mapping={"status": "cancelled"})
    client.zadd("jobstate:ended:all", {UUID: 1})
    assert pjobs("list").out == [f"{UUID} - - - cancelled"]
    assert "actor: -" in pjobs("show", UUID).out


def test_filters(pjobs: Operator, store: JobStore) -> None:
    """Jobs are filtered by kind, status and owner, whose type counts."""
    number = put(store, "error", owner=7)
    text = put(store, "error", owner="7", cls=Titled)
    working = put(store, owner="7")

    def found(*arguments: str) -> set[str]:
        return set(first_words(pjobs("list", *arguments).out))

    assert found("--owner", "7") == {number.uuid}
    assert found("--owner", '"7"') == {text.uuid, working.uuid}
    assert found("--status", "error") == {number.uuid, text.uuid}
    assert found("--kind", "Titled") == {text.uuid}
    assert found("--kind", "RunMarathon", "--status=error") == {number.uuid}
    assert found("--kind", "Other") == set()


def test_limits_reach_beyond_a_page(pjobs: Operator, store: JobStore) -> None:
    """By default 50 jobs are listed; a limit may be more than the store returns at
    once.
    """
    uuids = create(store, 240)
    assert first_words(pjobs("list").out) == uuids[:50]
    assert first_words(pjobs("list", "--limit", "230").out) == uuids[:230]
    assert first_words(pjobs("list", "--limit", "999").out) == uuids


def test_a_job_that_ends_between_two_pages_comes_once(store: JobStore) -> None:
    """A job on two pages makes one line."""
    uuids = create(store, 3)
    found = listing.jobs(store, Filters(None, None, None), 2)
    seen = [next(found), next(found)]
    finish(store, uuids[0])
    seen += found
    assert [job.uuid for job in seen] == uuids


def test_json_has_all_that_is_known(pjobs: Operator, store: JobStore) -> None:
    """With --json, a job is one line of ASCII with everything in its record."""
    job = put(
        store,
        progress=Progress(1, 4, "rows"),
        message=HOSTILE,
        log=[HOSTILE],
        metrics={"miles": 2.5, HOSTILE: [HOSTILE]},
        params={"miles": 26},
    )
    (line,) = pjobs("list", "--json").out
    assert line.isascii() and line.isprintable()
    value = json.loads(line)
    assert (
        value.pop("queued_at") and value.pop("started_at") and value.pop("updated_at")
    )
    assert value == {
        "uuid": job.uuid,
        "kind": "RunMarathon",
        "title": "Run marathon",
        "actor": "run_marathon",
        "status": "working",
        "cancel_requested": False,
        "owner": "alice",
        "attempt": 1,
        "due_at": None,
        "finished_at": None,
        "progress": {
            "done": 1,
            "total": 4,
            "unit": "rows",
            "eta": value["progress"]["eta"],
            "fraction": 0.25,
        },
        "message": HOSTILE,
        "metrics": {"miles": 2.5, HOSTILE: [HOSTILE]},
        "params": {"miles": 26},
        "error": None,
        "log": [HOSTILE],
    }
    (shown,) = pjobs("show", job.uuid, "--json").out
    assert shown.startswith(line[:-1])
    nothing = {"tries": [], "traceback": "", "rerun_refusal": ""}
    assert json.loads(shown)["failures"] == nothing


def test_show_has_all_that_is_known(pjobs: Operator, store: JobStore) -> None:
    """Without JSON, each fact is a line, and times have their offsets."""
    job = put(
        store,
        "error",
        owner="ü",
        error=JobError("ValueError", HOSTILE),
        progress=Progress(1, 4, "rows"),
        message=HOSTILE,
        log=["one", HOSTILE],
        metrics={"miles": 2.5, HOSTILE: {"a": HOSTILE}},
        params={"miles": 26},
    )
    lines = pjobs("show", job.uuid).out
    facts = [line.split(": ", 1) for line in lines]
    times = [text for name, text in facts if name in ("queued", "started", "finished")]
    assert len(times) == 3
    assert all(datetime.fromisoformat(text).tzinfo is not None for text in times)
    for line in (
        f"id: {job.uuid}",
        "title: Run marathon",
        "kind: RunMarathon",
        "actor: run_marathon",
        "status: error",
        'owner: "ü"',
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
    (took,) = (line for line in lines if line.startswith("took: "))
    assert re.fullmatch(r"took: \d\.\d s", took)


def test_show_says_what_is_going_on(
    pjobs: Operator, store: JobStore, client: redis.Redis
) -> None:
    """The time left and a requested cancel are shown while they matter."""
    job = put(store, "cancelling")
    client.hset(key_of(store, job.uuid), "progress", '[1, 4, "rows", 14.2]')
    lines = pjobs("show", job.uuid).out
    assert "left: 14 s" in lines
    assert "cancel: requested" in lines


def test_show_finds_the_job_of_an_alias(
    pjobs: Operator, store: JobStore, client: redis.Redis
) -> None:
    """A page that lost a double click names it. What is shown is the job's own."""
    job = put(store, "error")
    client.hset(key_of(store, job.uuid), "unique", '["errand","nightly"]')
    client.hset(key_of(store, UUID), mapping={"status": "alias", "target": job.uuid})
    lines = pjobs("show", UUID).out
    assert f"id: {job.uuid}" in lines
    (found,) = pjobs("show", "--json", UUID).out
    assert json.loads(found)["uuid"] == job.uuid
    assert 'unique: ["errand","nightly"]' in lines
    client.hset(key_of(store, UUID), "target", "")
    assert "unknown" in pjobs("show", UUID).err[0]


def test_titles_of_the_application(pjobs: Operator, store: JobStore) -> None:
    """A translation string is shown in its own language; a title that fails is
    replaced by the kind.
    """
    good, bad = put(store, cls=Titled), put(store, cls=Titled, owner="bad")
    assert "title: Import of 3" in pjobs("show", good.uuid).out
    assert "title: Titled" in pjobs("show", bad.uuid).out


def test_the_beginning_of_an_id_is_enough(pjobs: Operator, store: JobStore) -> None:
    """A beginning that only one job has names it, in small letters or capitals."""
    jobs = [put(store), put(store, "success"), put(store, "queued")]
    names = ids.shortened([job.uuid for job in jobs])
    for job in jobs:
        for name in (names[job.uuid], names[job.uuid].upper(), job.uuid.upper()):
            assert f"id: {job.uuid}" in pjobs("show", name).out


def named(store: JobStore, client: redis.Redis, uuid: str, score: float) -> None:
    """Store a job with a given uuid."""
    client.hset(key_of(store, uuid), mapping={"status": "cancelled", "kind": HOSTILE})
    client.zadd("jobstate:ended:all", {uuid: score})


def test_an_ambiguous_beginning_lists_the_candidates(
    pjobs: Operator, store: JobStore, client: redis.Redis
) -> None:
    """The error names up to five jobs that begin so, without one that has expired."""
    uuids = [f"4f6c{i:04}{UUID[8:]}" for i in range(7)]
    for i, uuid in enumerate(uuids[:2]):
        named(store, client, uuid, i)
    client.zadd("jobstate:ended:all", {uuids[6]: 9})
    ran = pjobs("show", "4f6c")
    assert ran.code == 1
    assert ran.out == []
    candidates = [f"{uuid} ({HARMLESS}, cancelled)" for uuid in uuids[1::-1]]
    assert ran.err == [
        f"pjobs: 4f6c is the beginning of several ids: {', '.join(candidates)}."
    ]
    for i, uuid in enumerate(uuids):
        named(store, client, uuid, i)
    (error,) = pjobs("show", "4f6c").err
    assert error.count("cancelled") == 5
    assert error.endswith("), ….")


def test_jobs_beyond_the_newest_thousand_need_their_full_id(
    pjobs: Operator, store: JobStore, client: redis.Redis
) -> None:
    """An old job is found by its full id only, and makes no beginning ambiguous."""
    old, new = f"4f6c0000{UUID[8:]}", f"4f6cffff{UUID[8:]}"
    named(store, client, old, 1)
    named(store, client, new, 2000)
    others = {f"0000{i:04}{UUID[8:]}": 10 + i for i in range(999)}
    client.zadd("jobstate:ended:all", others)
    assert f"id: {new}" in pjobs("show", "4f6c").out
    assert f"id: {old}" in pjobs("show", old).out
    assert pjobs("show", "4f6c0").err == [
        "pjobs: The id of none of the newest 1,000 jobs begins with 4f6c0. Give the "
        "full id of an older one."
    ]


def test_an_unknown_id(pjobs: Operator) -> None:
    """A full id without a record is unknown: exit code 1."""
    ran = pjobs("show", UUID)
    assert ran.code == 1
    assert ran.err == [f"pjobs: The job {UUID} is unknown, or has expired."]


def test_short_names_differ() -> None:
    """Ids are cut to eight characters, or to as many as tell them apart."""
    alike = [f"0000000{c}-1{UUID[10:]}" for c in "ab"]
    assert set(ids.shortened(alike).values()) == {"0000000a", "0000000b"}
    alike = [f"00000000-{c}{UUID[10:]}" for c in "ab"]
    assert set(ids.shortened([*alike, alike[0]]).values()) == {
        "00000000-a",
        "00000000-b",
    }
    assert ids.shortened([]) == {}


def test_a_terminal_shows_a_table(redis_url: str, store: JobStore) -> None:
    """On a terminal, the jobs are rows of a table without anything that acts on it,
    and rich's markup is text.
    """
    message = "[red]Reading[/red] :smile:"
    working = put(store, progress=Progress(1, 4, "rows"), message=message)
    put(store, "error", owner=HOSTILE, error=JobError("ValueError", HOSTILE))
    with terminal("--url", redis_url, "list", "--limit", "2", columns=150) as shown:
        assert shown.end() == 0
        lines = shown.lines()
    assert lines[0].split() == ["id", "queued", "kind", "owner", "status"]
    assert lines[1].split()[0] == working.uuid[:8]
    assert lines[1].endswith(f"working  25% 1 of 4 rows: {message}")
    assert r"ValueError: a\x1b[2J" in lines[2]
    assert len(lines) == 3
    assert "\x1b[36m" in shown.output and "\x07" not in shown.output


def test_a_table_says_what_is_left_out(redis_url: str, store: JobStore) -> None:
    """A table has a line about further jobs; NO_COLOR removes the colours; a job of
    another day has its date.
    """
    for _ in range(3):
        store.client.hset(key_of(store, put(store, "success").uuid), "queued", 0)
    newest = store.list(limit=1).items[0]
    store.client.hdel(key_of(store, newest.uuid), "queued")
    arguments = ("--url", redis_url, "list", "--limit=2")
    with terminal(*arguments, NO_COLOR="1", TZ="UTC") as shown:
        assert shown.end() == 0
        assert re.match("[0-9a-f]{8}  -  +RunMarathon ", shown.lines()[1])
        assert " 1970-01-01 00:00 " in shown.lines()[2]
        assert shown.lines()[3] == "More than 2: see --limit."
    assert "\x1b[3" not in shown.output
    with terminal("--url", redis_url, "list", "--kind", "Other") as shown:
        assert shown.end() == 0
        assert shown.lines() == ["No job matches."]


def test_a_terminal_shows_a_card(
    redis_url: str, store: JobStore, client: redis.Redis
) -> None:
    """On a terminal, `show` is a card with a bar."""
    job = put(
        store,
        progress=Progress(1, 4, "rows"),
        metrics={"[b]x[/b]": HOSTILE},
        log=["one", "two"],
    )
    client.hdel(key_of(store, job.uuid), "queued")
    with terminal("--url", redis_url, "show", job.uuid, columns=150) as shown:
        assert shown.end() == 0
        text = shown.text()
    assert "━━━━━╺━━━━━━━━━━━━━━" in text
    assert re.search("^log  +one\n +two$", text, re.MULTILINE)
    assert "progress    " in text and "  25% 1 of 4 rows" in text
    assert 'metric [b]x[/b]  "a\\u001b[2J\\u0007\\x9b1m\\x7f\\u202eb' in text
    assert "\x9b" not in shown.output and "\u202e" not in shown.output


def test_neither_pyramid_nor_rich_is_imported(redis_url: str, store: JobStore) -> None:
    """With a URL and without a terminal, only the store is imported, and the help of
    `pjobs` needs even less.
    """
    put(store)
    code = "import atexit, sys; from pyramid_jobstate.cli import main\n"
    code += "atexit.register(lambda: print(*sys.modules)); main(sys.argv[1:])"
    clear = ("--url", redis_url, "clear", "--everything", "--yes")
    for arguments in (
        ("--url", redis_url, "list"),
        ("--url", redis_url),
        clear,
        ("--help",),
    ):
        ran = run(*arguments, code=code)
        assert ran.code == 0
        modules = {name.partition(".")[0] for name in ran.out[-1].split()}
        assert "redis" in modules
        assert not {"pyramid", "plaster", "zope", "webob", "rich"} & modules
