"""The reference is true and complete: its tables have what the package has, and nothing
else. The settings are in test_readme.py.
"""

import itertools
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from pyramid.request import Request

from pyramid_jobstate import Batch, JobError, JobState
from pyramid_jobstate.prometheus import JobStateCollector
from pyramid_jobstate.testing import pass_time, put_batch, put_job
from tests.cliapp import PJOBS
from tests.jobs import RunMarathon, working
from tests.readme import PAGES, page
from tests.running import running
from tests.support import PACKAGE, ROOT, wait_for, write
from tests.web.minutes import take_minutes
from tests.web.operating import OPERATOR, operated_app
from tests.web.paging import Visit, paged_app
from tests.webapp import ADMIN, NOWHERE, ask, get, make_app, make_config


def main(global_config: Any) -> Any:
    """Return an application, as an ini file makes it."""
    return make_app(make_config(NOWHERE)).app


#: The rows of a table, each with its cells.
Rows = list[list[str]]

#: An application with our routes, as an ini file makes it.
INI = """
[app:main]
paste.app_factory = tests.web.test_reference:main
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


def documented_requests() -> dict[str, str]:
    """Return the permission that each request needs, by its method and path."""
    rows = table("reference/http", "request")
    return {words(request)[0]: words(permission)[0] for request, permission, _ in rows}


def test_permissions(redis_url, store, marathons):
    """Each documented request asks for its documented permission, and no other."""
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


def test_parameters_of_acts(redis_url):
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
def test_routes(tmp_path):
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


def test_statuses(app, store, redis_url):
    """The tables and the glossary have each status, and say how it reads."""
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


def keys_of(value: dict[str, Any], place: str = "") -> Iterator[tuple[str, str]]:
    """Yield the name of each key in JSON, and the type of its value."""
    for key, item in value.items():
        yield place + key, TYPES[type(item)]
        if isinstance(item, dict) and key != "params":
            yield from keys_of(item, f"{place}{key}.")


def types_of(*values: dict[str, Any]) -> dict[str, set[str]]:
    """Return the types of each key in JSON, by name."""
    found: dict[str, set[str]] = {}
    for value in values:
        for name, type_ in keys_of(value):
            found.setdefault(name, set()).add(type_)
    return found


def documented_types(rows: Rows) -> dict[str, set[str]]:
    """Return the types that a table gives to the keys of JSON."""
    return {words(name)[0]: {*types.split(" or ")} for name, types, _ in rows}


@pytest.mark.promise("state-is-stable-json")
def test_keys_of_the_json(app, store):
    """The tables have each key of a state, or of that of a batch, with its types."""

    def state(uuid: str) -> dict[str, Any]:
        found = get(app, f"/job_state/{uuid}", "alice").json
        return {"job_state": found["job_state"], "job": found["job"]}

    cases: list[tuple[str, dict[str, Any], dict[str, str]]] = [
        ("queued", {}, {"queued": "", "updated": ""}),
        ("queued", {"delay": 60}, {}),
        ("working", {"message": "Reading"}, {"progress": "[1,null,null,null]"}),
        ("working", {}, {"progress": "[1,null,null,null]", "updated": "1"}),
        ("error", {"error": JobError("ValueError", "wrong")}, {}),
        ("success", {"params": {"miles": 26}}, {}),
    ]
    phase = '[0.25,0.5,["Reading"]]'
    for progress in "[1,null,null,null]", '[1,4,"rows",3.5]':
        report = {"progress": progress, "phase": phase, "usual": "[1,2,3]"}
        cases.append(("working", {}, report))
    states = []
    for status, options, fields in cases:
        uuid = put_job(store, Made, status, owner="alice", **options).uuid
        if fields:
            write(store, uuid, **fields)
        states.append(state(uuid))
    found = types_of(*states)
    ours, batches = tables(page("reference/states"), "key")
    assert documented_types(ours) == found
    batch = put_batch(store, Batch, ["success", "error", "queued"], owner="alice")
    more = types_of(state(batch.uuid))
    assert documented_types(batches) == {
        name: types for name, types in more.items() if name not in found
    }


def test_keys_of_what_operators_read(redis_url, store, marathons):
    """The tables have each key of what only operators read, with its types."""
    app = operated_app(redis_url)

    def read(path: str) -> Any:
        return get(app, f"/job_state{path}", OPERATOR, Cache_Control="no-cache").json

    counts = [read("/counts")]
    error = JobError("ValueError", "wrong")
    cases: list[dict[str, Any]] = [
        {"status": "error", "error": error, "traceback": "ValueError: wrong"},
        {"status": "cancelled", "error": JobError(None, "The job was cancelled.")},
        {"status": "working"},
        {"status": "queued"},
        {"status": "error", "error": JobError(None, "wrong"), "actor": "run_marathon"},
    ]
    # A worker has run one of them.
    uuids = marathons.fail("alice")
    for more in cases:
        uuids.append(put_job(store, RunMarathon, **more).uuid)
        store.ask_where(uuids[-1])
    inspections = [read(f"/{uuid}/inspect") for uuid in uuids]
    with running(redis_url) as runs:
        uuid = runs.start().uuid
        store.ask_where(uuid)
        places = [read(f"/{uuid}/inspect")["where"]]
        wait_for(lambda: (where := store.where(uuid)) and where.taken_at)
        places.append(read(f"/{uuid}/inspect")["where"])
    with working(marathons.broker):
        wait_for(store.workers)
        workers = read("/workers")["workers"]
    # It runs outside a worker that was told of its actor before it booted.
    assert places[1]["worker"] is None
    places.append({**places[0], "worker": workers[0]["id"]})
    pass_time(store, 1)
    answers: dict[str, list[dict[str, Any]]] = {
        "Inspect": inspections,
        "Where a job is": places,
        "Workers": workers,
        "Counts": [*counts, read("/counts")],
        "Log": read(f"/{take_minutes(redis_url)}/log")["lines"],
        "Groups": read("?all=1&status=error&group=error")["groups"],
    }
    for title, values in answers.items():
        (rows,) = tables(section("reference/http", title), "key")
        apart = ("where.", "versions.", "counts.", "queues.")
        types = types_of(*values)
        types = {n: kinds for n, kinds in types.items() if not n.startswith(apart)}
        documented = documented_types(rows)
        if title == "Workers":
            documented = {n: kinds - {"null"} for n, kinds in documented.items()}
        assert documented == types, title
        for name, _, text in rows:
            if name == "``tries``":
                assert set(words(text)) == inspections[0]["tries"][0].keys()


def test_metrics(store):
    """The table has each metric that is exported, with its labels."""
    put_job(store, RunMarathon)
    rows = table("howto/metrics", "metric")
    assert {words(name)[0]: {*words(labels)} for name, labels, _ in rows} == {
        metric.name: {label for sample in metric.samples for label in sample.labels}
        for metric in JobStateCollector(store).collect()
    }


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


@pytest.mark.system
def test_commands_flags_and_exit_codes(tmp_path):
    """The tables have what the helps of `pjobs` and of its commands have."""
    ini = tmp_path / "app.ini"
    ini.write_text(INI)
    whole = pjobs("--help")
    (listed,) = re.findall(r"^commands:\n((?:  .*\n)+)", whole, re.MULTILINE)
    commands = re.findall(r"^  (\w+)", listed, re.MULTILINE)
    documented = names(table("reference/pjobs", "command"))
    assert sorted(name.split(" ")[0] for name in documented) == sorted(commands)
    head, _, _ = page("reference/pjobs").partition("\ninfo\n----\n")
    assert documented_flags(head, "argument") == flags(whole)
    common = documented_flags(head)
    ours, of_work = tables(section("reference/pjobs", "Exit codes"), "code")
    for command in commands:
        text = pjobs(str(ini), command, "--help")
        own = documented_flags(section("reference/pjobs", command))
        # These read no store.
        expected = own if command in ("work", "dev") else own | common
        assert expected == flags(text), command
        _, _, codes = text.partition("exit codes:")
        rows = [] if command == "dev" else of_work if command == "work" else ours
        found = re.findall(r"(?:^|;)\s*(\d+) ", codes)
        assert found == [code for code, _ in rows], command


@pytest.mark.system
def test_json_of_the_command(redis_url, store):
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


def test_public_modules():
    """Each module beside the wings has a page, which is made from its docstrings."""
    stems = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__", "errors"}
    modules = {"pyramid_jobstate", *(f"pyramid_jobstate.{stem}" for stem in stems)}
    pages = [name for name in PAGES if name.startswith("docs/reference/python/")]
    texts = "\n".join(PAGES[name] for name in pages)
    assert set(re.findall(r"^\.\. automodule:: (\S+)$", texts, re.M)) == modules
