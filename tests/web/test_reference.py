"""The reference is true and complete: its tables have what the package has, and nothing
else. The settings are in test_readme.py.
"""

import functools
import itertools
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pyramid.request import Request
from webtest import TestApp

from pyramid_jobstate import Batch, JobError, JobState, JobStore, Progress
from pyramid_jobstate.prometheus import JobStateCollector
from pyramid_jobstate.testing import pass_time, put_batch, put_job
from tests.cliapp import PJOBS
from tests.jobs import RunMarathon, working
from tests.readme import PAGES, page
from tests.running import running
from tests.support import PACKAGE, ROOT, wait_for, write
from tests.web.minutes import take_minutes
from tests.web.operating import OPERATOR, Marathons, operated_app
from tests.web.paging import Visit, paged_app
from tests.webapp import ADMIN, ask, get

#: The rows of a table, each with its cells.
Rows = list[list[str]]

#: An application with our routes, as an ini file makes it.
INI = """
[app:main]
paste.app_factory = tests.web.test_routes:main
prefix = /
"""


def tables(text: str, heading: str) -> list[Rows]:
    """Return the tables in a text whose first column has a heading."""
    found = []
    for block in text.split("\n\n"):
        lines = block.rstrip("\n").split("\n")
        if not re.fullmatch("=+( +=+)+", lines[0]) or lines[1].split()[0] != heading:
            continue
        starts = [match.start() for match in re.finditer("=+", lines[0])]
        rows: Rows = []
        for line in lines[3:-1]:
            cells = [line[a:b] for a, b in itertools.pairwise([*starts, None])]
            if line.startswith(" "):
                cells = [
                    f"{old} {more}" for old, more in zip(rows.pop(), cells, strict=True)
                ]
            rows.append([" ".join(cell.split()) for cell in cells])
        found.append(rows)
    return found


def table(name: str, heading: str) -> Rows:
    """Return the only table of a page whose first column has a heading."""
    (found,) = tables(page(name), heading)
    return found


def section(name: str, title: str) -> str:
    """Return the section of a page with a title."""
    pattern = rf"^{title}\n-+\n(.*?)(?=^[^\n]+\n-+\n|\Z)"
    (found,) = re.findall(pattern, page(name), re.MULTILINE | re.DOTALL)
    return found


def words(text: str) -> list[str]:
    """Return the literals in a text."""
    return re.findall(r"``([^`]+)``", text)


def names(rows: Rows) -> list[str]:
    """Return the literals in the first cells of rows."""
    return [word for cell, *_ in rows for word in words(cell)]


# HTTP


def documented_requests() -> dict[str, str]:
    """Return the permission that each request needs, by its method and path."""
    rows = table("reference/http", "request")
    return {words(request)[0]: words(permission)[0] for request, permission, _ in rows}


def test_permissions(redis_url: str, store: JobStore, marathons: Marathons) -> None:
    """Each documented request asks first for its documented permission. Together they
    ask for those of the table, on a job or on the container as it says.
    """
    asked: list[tuple[str, str]] = []

    def note(request: Request, context: Any, permission: str) -> None:
        what = "the job" if isinstance(context, JobState) else "the container"
        asked.append((permission, what))

    app = operated_app(redis_url, note)
    known = set()
    for request, permission in documented_requests().items():
        method, path = request.split(" ")
        has_ended = method == "DELETE" or path.endswith("clear")
        options: dict[str, Any] = {"status": "success" if has_ended else "queued"}
        if path.endswith("rerun"):
            error = JobError("ValueError", "wrong")
            options = {"status": "error", "error": error, "actor": "run_marathon"}
        elif path.endswith("stack"):
            options = {"status": "working"}
        job = put_job(store, RunMarathon, owner=OPERATOR, **options)
        batch = put_batch(store, Batch, ["queued"], owner=OPERATOR)
        for part, value in (
            ("{uuid}", job.uuid),
            ("uuid=…", f"uuid={job.uuid}"),
            ("owner=…", f"owner={OPERATOR}"),
            ("batch=…", f"batch={batch.uuid}"),
        ):
            path = path.replace(part, value)
        is_bulk = method == "POST" and job.uuid not in path
        asked.clear()
        sent = path + "?everything=1" * is_bulk
        response = ask(app, method, sent, OPERATOR, X_Requested_With="x")
        assert response.status_code in (200, 202, 204), (request, response)
        # Many jobs: may the request act on those of others?
        assert asked[is_bulk][0] == permission, request
        known |= {*asked}
    rows = table("reference/permissions", "permission")
    assert {(words(name)[0], on) for name, on, *_ in rows} == known


def test_parameters_of_acts(redis_url: str) -> None:
    """The table has the parameters that each act on many jobs knows."""
    app = operated_app(redis_url)
    (rows,) = tables(section("reference/http", "Actions on many jobs"), "parameter")
    for act in "cancel", "rerun", "clear":
        path = f"/job_state/{act}?nothing=1"
        response = ask(app, "POST", path, OPERATOR, X_Requested_With="x")
        _, _, known = response.json["error"].rstrip(".").partition("Known parameters: ")
        assert sorted(known.split(", ")) == sorted(
            words(name)[0]
            for name, acts, _ in rows
            if acts == "all" or act in words(acts)
        )


@pytest.mark.system
def test_routes(tmp_path: Path) -> None:
    """The table has what Pyramid's own command lists, and each request has a route."""
    ini = tmp_path / "app.ini"
    ini.write_text(INI)
    command = [sys.executable, "-m", "pyramid.scripts.proutes", str(ini)]
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    shown = subprocess.check_output(command, env=environ, text=True)
    found: dict[tuple[str, str], set[str]] = {}
    for line in shown.splitlines():
        match line.split():
            case [name, pattern, view, methods] if "pyramid_jobstate" in view:
                found.setdefault((name, pattern), set()).update(methods.split(","))
    documented = {
        (*words(name), *words(pattern)): {*re.findall("[A-Z]{3,}", methods)} or {"*"}
        for name, pattern, methods in table("reference/http", "route")
    }
    assert documented == found
    requests = {request.partition("?")[0] for request in documented_requests()}
    assert requests == {
        f"{method} {pattern}"
        for (name, pattern), methods in found.items()
        for method in methods
        if not name.endswith(("/", ".other"))
    }


# States


def test_statuses(app: TestApp, store: JobStore, redis_url: str) -> None:
    """The tables have each status, and say how it reads, also on pages, as does the
    glossary.
    """
    counted = get(app, "/job_state/counts", ADMIN).json["counts"]
    rows = table("reference/states", "``status``")
    assert names(rows) == [*counted]
    properties = table("reference/states", "property")
    public = [name for name in dir(JobState) if name.startswith(("is_", "has_"))]
    assert sorted(names(properties)) == public
    tabs = Visit(paged_app(redis_url), "/job_state").texts(".jobstate-tabs a")
    shown = [tab.rpartition(" ")[0] for tab in tabs if not tab.startswith("All ")]
    assert shown == [text for _, text, *_ in rows]
    glossary = " ".join(page("glossary").split())
    for status, text, _, coarse in rows:
        assert f"{text} ({status})" in glossary
        job = put_job(store, RunMarathon, *words(status), owner="alice")
        state = get(app, f"/job_state/{job.uuid}", "alice").json
        assert [state["job"]["status"]] == words(status)
        assert [state["job_state"]] == words(coarse)
        for name, statuses in properties:
            assert getattr(job, *words(name)) is (job.status in words(statuses)), name


class Made(JobState):
    """A kind of job that makes something."""

    public_params = ("miles",)

    def result_url(self, request: Any) -> str:
        return "https://example.com/report"


TYPES = {str: "string", bool: "boolean", int: "number", float: "number"}
TYPES |= {dict: "object", list: "array", type(None): "null"}


def keys_of(value: Any, name: str) -> Iterator[tuple[str, str]]:
    """Yield the name of each value in JSON, and its type."""
    yield name, TYPES[type(value)]
    if isinstance(value, dict) and not name.endswith("params"):
        for key, item in value.items():
            yield from keys_of(item, f"{name}.{key}")


def types_of(*values: tuple[Any, str]) -> dict[str, set[str]]:
    """Return the types of each value in JSON, by name."""
    found: dict[str, set[str]] = {}
    for value in values:
        for name, type_ in keys_of(*value):
            found.setdefault(name, set()).add(type_)
    return found


def documented_types(rows: Rows) -> dict[str, set[str]]:
    """Return the types that a table gives to the keys of JSON."""
    return {words(name)[0]: {*types.split(" or ")} for name, types, _ in rows}


def test_keys_of_the_json(app: TestApp, store: JobStore, redis_url: str) -> None:
    """The tables have each key of a state, with its types. A batch has those of the
    second table as well.
    """

    def state(uuid: str) -> list[tuple[Any, str]]:
        found = get(app, f"/job_state/{uuid}", "alice").json
        return [(found["job_state"], "job_state"), (found["job"], "job")]

    mine: dict[str, Any] = {"owner": "alice", "job_state_class": Made}
    error = JobError("ValueError", "wrong")
    bare = put_job(store, status="queued", **mine)
    write(store, bare, queued="", updated="")
    with running(redis_url, threads=2) as runs:
        phases: list[Any] = []

        def begin(total: float | None, job: JobState) -> None:
            phases.append(job.phase("Reading", 50))
            phases[-1].__enter__()
            job.set_progress(1, total)

        def leave(phase: Any, job: JobState) -> None:
            phase.__exit__(None, None, None)

        for total in None, 4:
            runs.start().do(functools.partial(begin, total))
        counting, measured = runs.all
        write(store, measured, progress='[1, 4, "rows", 3.5]', usual="[1,2,3]")
        found = types_of(
            *state(bare.uuid),
            *state(counting),
            *state(measured),
            *(
                each
                for status, more in (
                    ("queued", {"delay": 60}),
                    ("working", {"progress": Progress(1), "message": "Reading"}),
                    ("error", {"error": error}),
                    ("success", {"params": {"miles": 26}}),
                )
                for each in state(put_job(store, status=status, **mine, **more).uuid)
            ),
        )
        for run, phase in zip(runs.all.values(), phases, strict=True):
            run.do(functools.partial(leave, phase))
            run.end()
    ours, batches = tables(page("reference/states"), "key")
    assert documented_types(ours) == found
    batch = put_batch(store, Batch, ["success", "error", "queued"], owner="alice")
    more = types_of(*state(batch.uuid))
    assert documented_types(batches) == {
        name: types for name, types in more.items() if name not in found
    }


def test_keys_of_an_inspection(
    redis_url: str, store: JobStore, marathons: Marathons
) -> None:
    """The table has each key of the answer to operators, with its types."""
    app = operated_app(redis_url)
    error = JobError("ValueError", "wrong")
    values = []
    cases: list[dict[str, Any]] = [
        {"status": "error", "error": error, "traceback": "ValueError: wrong"},
        {"status": "cancelled", "error": JobError(None, "The job was cancelled.")},
        {"status": "working"},
        {"status": "error", "error": error, "actor": "run_marathon"},
    ]
    # A worker has run one of them.
    uuids = marathons.fail("alice")
    for more in cases:
        uuids.append(put_job(store, RunMarathon, **more).uuid)
        store.ask_where(uuids[-1])
    for uuid in uuids:
        found = get(app, f"/job_state/{uuid}/inspect", OPERATOR).json
        values += [(value, name) for name, value in found.items()]
    (rows,) = tables(section("reference/http", "Inspect"), "key")
    types = types_of(*values)
    # They have a table of their own.
    types = {n: kinds for n, kinds in types.items() if not n.startswith("where.")}
    assert documented_types(rows) == types
    (tries,) = (text for name, _, text in rows if name == "``tries``")
    assert set(words(tries)) == found["tries"][0].keys()


def test_keys_of_where_a_job_is(redis_url: str, store: JobStore) -> None:
    """The table has each key, with its types, before and after the answer."""
    app = operated_app(redis_url)
    with running(redis_url) as runs:
        uuid = runs.start().uuid
        path = f"/job_state/{uuid}"
        asked = ask(app, "POST", f"{path}/stack", OPERATOR, X_Requested_With="x")
        values = [*asked.json["where"].items()]
        wait_for(lambda: (where := store.where(uuid)) and where.taken_at)
        values += get(app, f"{path}/inspect", OPERATOR).json["where"].items()
    (rows,) = tables(section("reference/http", "Where a job is"), "key")
    types = types_of(*((value, name) for name, value in values))
    # It runs outside a worker that was told of its actor before it booted.
    assert types.pop("worker") == {"null"}
    documented = documented_types(rows)
    assert documented.pop("worker") == {"string", "null"}
    assert documented == types


def test_keys_of_a_worker(
    redis_url: str, store: JobStore, marathons: Marathons
) -> None:
    """The table has each key of a worker, with its types."""
    app = operated_app(redis_url)
    with working(marathons.broker):
        wait_for(store.workers)
        (found,) = get(app, "/job_state/workers", OPERATOR).json["workers"]
    (rows,) = tables(section("reference/http", "Workers"), "key")
    types = {name: kinds - {"null"} for name, kinds in documented_types(rows).items()}
    all_types = types_of(*((value, name) for name, value in found.items()))
    assert types == {n: kinds for n, kinds in all_types.items() if "." not in n}


def test_keys_of_counts(redis_url: str, store: JobStore) -> None:
    """The table has each key of counts, with its types."""
    app = operated_app(redis_url)
    values: list[tuple[Any, str]] = []
    for jobs in (), ("queued", "working"):
        for status in jobs:
            put_job(store, RunMarathon, status)
        pass_time(store, 1)
        path, fresh = "/job_state/counts", {"Cache-Control": "no-cache"}
        found = get(app, path, OPERATOR, **fresh).json
        values += [(value, name) for name, value in found.items()]
    (rows,) = tables(section("reference/http", "Counts"), "key")
    types = {n: kinds for n, kinds in types_of(*values).items() if "." not in n}
    assert documented_types(rows) == types


def test_keys_of_a_line_of_a_log(redis_url: str) -> None:
    """The table has each key of a line, with its types."""
    app = operated_app(redis_url)
    path = f"/job_state/{take_minutes(redis_url)}/log"
    lines = get(app, path, OPERATOR).json["lines"]
    values = [(value, name) for line in lines for name, value in line.items()]
    (rows,) = tables(section("reference/http", "Log"), "key")
    assert documented_types(rows) == types_of(*values)


def test_keys_of_groups(redis_url: str, store: JobStore) -> None:
    """The table has each key of a group of failed jobs, with its types."""
    app = operated_app(redis_url)
    for type_ in "ValueError", None:
        error = JobError(type_, "wrong")
        put_job(store, RunMarathon, "error", error=error)
    path = "/job_state?all=1&status=error&group=error"
    found = get(app, path, OPERATOR).json["groups"]
    values = [(value, name) for group in found for name, value in group.items()]
    (rows,) = tables(section("reference/http", "Groups"), "key")
    assert documented_types(rows) == types_of(*values)


def test_metrics(store: JobStore) -> None:
    """The table has each metric that is exported, with its labels."""
    put_job(store, RunMarathon)
    rows = table("howto/metrics", "metric")
    assert {words(name)[0]: {*words(labels)} for name, labels, _ in rows} == {
        metric.name: {label for sample in metric.samples for label in sample.labels}
        for metric in JobStateCollector(store).collect()
    }


# The command pjobs


def pjobs(*arguments: str) -> str:
    """Return what a command prints, whatever its exit code."""
    command = [sys.executable, "-c", PJOBS, *arguments]
    environ = {**os.environ, "COLUMNS": "200"}
    done = subprocess.run(
        command, env=environ, capture_output=True, text=True, check=False
    )
    return done.stdout


def flags(text: str) -> set[str]:
    """Return the flags that a help explains."""
    lines = re.findall(r"^  (-.*?)(?:  |$)", text, re.MULTILINE)
    return {
        flag for line in lines for flag in re.findall(r"(?<!\S)--?[a-zA-Z-]+", line)
    }


def documented_flags(text: str, heading: str = "flag") -> set[str]:
    """Return the flags in the tables of a text."""
    found = [word for rows in tables(text, heading) for word in names(rows)]
    return {word.split(" ")[0] for word in found if word.startswith("-")}


#: The commands that read no store.
PLAIN = ("work", "dev")


@pytest.fixture(scope="module")
def helps(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The help of `pjobs` itself, under "", and of each of its commands."""
    ini = tmp_path_factory.mktemp("ini") / "app.ini"
    ini.write_text(INI)
    whole = pjobs("--help")
    (listed,) = re.findall(r"^commands:\n((?:  .*\n)+)", whole, re.MULTILINE)
    commands = re.findall(r"^  (\w+)", listed, re.MULTILINE)
    return {"": whole} | {name: pjobs(str(ini), name, "--help") for name in commands}


@pytest.mark.system
def test_commands_and_flags(helps: dict[str, str]) -> None:
    """The table of commands, and those of flags, have what the helps have."""
    text = page("reference/pjobs")
    commands = [
        name.split(" ")[0] for name in names(table("reference/pjobs", "command"))
    ]
    assert sorted(["", *commands]) == sorted(helps)
    head, _, _ = text.partition("\ninfo\n----\n")
    assert documented_flags(head, "argument") == flags(helps[""])
    common = documented_flags(head)
    for command in commands:
        own = documented_flags(section("reference/pjobs", command))
        expected = own if command in PLAIN else own | common
        assert expected == flags(helps[command]), command


@pytest.mark.system
def test_exit_codes(helps: dict[str, str]) -> None:
    """The tables have the codes that the helps name."""
    ours, of_work = tables(section("reference/pjobs", "Exit codes"), "code")
    for command, text in helps.items():
        _, _, codes = text.partition("exit codes:")
        found = re.findall(r"(?:^|;)\s*(\d+) ", codes)
        if command in ("", "dev"):
            assert found == []
        else:
            rows = of_work if command == "work" else ours
            assert found == [code for code, _ in rows], command


@pytest.mark.system
def test_json_of_the_command(redis_url: str, store: JobStore) -> None:
    """The tables have each key that commands write."""

    def keys(*arguments: str) -> set[str]:
        shown = pjobs("--url", redis_url, *arguments, "--json").splitlines()
        assert shown, arguments
        return {key for line in shown for key in json.loads(line)}

    job = put_job(store, RunMarathon, "success", log=["26 miles"]).uuid
    put_batch(store, Batch, ["queued", "success"])
    of_jobs, of_log, of_info, of_acts = tables(
        section("reference/pjobs", "JSON"), "key"
    )
    found = keys("list", "--members")
    assert keys("wait", job) | keys("watch", job) <= found
    assert set(names(of_jobs)) == found | keys("show", job)
    assert set(names(of_log)) == keys("log", job)
    assert set(names(of_info)) == keys("info")
    assert set(names(of_acts)) == (
        keys("cancel", "--everything", "--dry-run")
        | keys("cancel", put_job(store).uuid, job)
        | keys("clear", "--everything", "--yes")
    )


# Python


def test_public_modules() -> None:
    """Each module beside the wings has a page, which is made from its docstrings."""
    stems = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__", "errors"}
    modules = {"pyramid_jobstate", *(f"pyramid_jobstate.{stem}" for stem in stems)}
    pages = [name for name in PAGES if name.startswith("docs/reference/python/")]
    texts = "\n".join(PAGES[name] for name in pages)
    assert set(re.findall(r"^\.\. automodule:: (\S+)$", texts, re.M)) == modules
