"""The README's chapter about `pjobs` for operators is true: its commands run, with its
output.
"""

import json
import os
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import dramatiq
import pytest
import redis
from dramatiq.brokers.redis import RedisBroker

from pyramid_jobstate import JobStateMiddleware, JobStore
from tests.cliapp import PJOBS
from tests.operated import Start, end, finished, run
from tests.readme import README, snippets
from tests.support import key_of, load_job, wait_for
from tests.terminal import terminal

#: Runs a command line.
SHELL = "import os, sys; os.execvp('bash', ['bash', '-c', sys.argv[1]])"

APP = """
import dramatiq
from pyramid.config import Configurator


@dramatiq.actor
def import_results(file, *, job_state):
    raise AssertionError


def main(global_conf, **settings):
    with Configurator(settings=settings) as config:
        config.include("pyramid_jobstate")
        return config.make_wsgi_app()
"""

INI = """
[app:main]
use = call:shop:main
jobstate.broker = {url}
"""

#: What the store keeps of the failure of a job.
FAILURE = {
    "traceback": """\
Traceback (most recent call last):
  File "/srv/shop/imports.py", line 42, in import_results
    raise ValueError(f"Row {number} lacks a date")
ValueError: Row 17 lacks a date
""",
}

#: Stands for jq, which may be missing.
JQ = "import json, sys\nfor line in sys.stdin: print(json.loads(line)['status'])\n"

#: What differs from run to run, and what the README has in its place.
TIMES = (
    (r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d[+-]\d\d:\d\d", "DATE"),
    (r"\d\d:\d\d:\d\d", "TIME"),
)


def examples() -> list[tuple[str, list[str]]]:
    """Return the commands of the README, each with its output."""
    found: list[tuple[str, list[str]]] = []
    for text in snippets("console"):
        for line in text.splitlines():
            if line.startswith("$ "):
                found.append((line[2:], []))
            elif line:
                found[-1][1].append(line)
    return found


def without_times(lines: Sequence[str]) -> list[str]:
    text = "\n".join(line.rstrip() for line in lines).strip("\n")
    for pattern, name in TIMES:
        text = re.sub(pattern, name, text)
    return text.split("\n")


def put(client: redis.Redis, uuid: str, ago: float, **fields: str | int) -> None:
    """Store a job that was queued some seconds ago."""
    seconds, _ = client.time()
    queued = int((seconds - ago) * 1000)
    usual: dict[Any, Any] = {
        "attempt": 1,
        "run": "0" * 12,
        "seq": 1,
        "queued": queued,
        "started": queued + 1000,
        "updated": queued + 1000,
        "seen": 10**14,
    }
    took = fields.pop("took", None)
    if took is not None:
        usual["updated"] = usual["finished"] = usual["started"] + int(took) * 1000
    usual.update(fields)
    client.hset(f"jobstate:{uuid}", mapping=usual)
    part = "active" if took is None else "ended"
    client.zadd("jobstate:kinds", {str(fields["kind"]): queued * 10**6})
    for name in ("all", f"kind:{fields['kind']}"):
        client.zadd(f"jobstate:{part}:{name}", {uuid: queued * 1000})


def fail(client: redis.Redis, uuid: str) -> None:
    """Store the failure of a job, as its worker would."""
    message = {
        "queue_name": "default",
        "actor_name": "import_results",
        "args": ["results.csv"],
        "kwargs": {},
        "options": {},
        "message_id": uuid,
        "message_timestamp": 0,
    }
    store = JobStore(client)
    times: Any = client.hmget(key_of(store, uuid), "started", "finished")
    attempt = [*map(int, times), ["ValueError", "Row 17 lacks a date"]]
    fields: dict[Any, Any] = {
        **FAILURE,
        "message": json.dumps(message),
        "try:1": json.dumps(attempt),
    }
    client.hset(store._calls.failure_key(uuid), mapping=fields)


@pytest.fixture
def folder(tmp_path: Path, redis_url: str, client: redis.Redis) -> Iterator[Path]:
    """A folder with the application, its jobs and the README's commands."""
    (tmp_path / "shop.py").write_text(APP)
    (tmp_path / "production.ini").write_text(INI.format(url=redis_url))
    scripts = {
        "bin/pjobs": f"#!{sys.executable}\n{PJOBS}\n",
        "bin/jq": f"#!{sys.executable}\n{JQ}",
        "publish": "#!/bin/sh\necho Published.\n",
    }
    (tmp_path / "bin").mkdir()
    for name, text in scripts.items():
        path = tmp_path / name
        path.write_text(text)
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    imports: dict[str, str | int] = {
        "kind": "ImportResults",
        "actor": "import_results",
        "owner": '"alice"',
    }
    marathon: dict[str, str | int] = {"kind": "RunMarathon", "owner": "7"}
    uuids = {uuid[:4]: uuid for uuid in re.findall(r"[0-9a-f]{8}(?:-\w+){4}", README)}
    put(
        client,
        uuids["4f6c"],
        20,
        **imports,
        status="error",
        took=9,
        error='["ValueError", "Row 17 lacks a date"]',
        progress='[16, 20, "rows", null]',
        params='{"file": "results.csv"}',
        log='["16 rows read"]',
    )
    fail(client, uuids["4f6c"])
    put(client, uuids["71b8"], 10, **marathon, status="working")
    ended = "c3d2a9f0" + uuids["4f6c"][8:]
    put(client, ended, 200, **marathon, status="success", took=125)
    put(
        client,
        "9a410c7d" + uuids["4f6c"][8:],
        1,
        **imports,
        status="working",
        progress='[2000, 20000, "rows", 68]',
        message='"Reading"',
    )
    yield tmp_path
    shutil.rmtree(tmp_path / "bin")


def test_commands_of_the_readme(
    folder: Path, redis_url: str, client: redis.Redis
) -> None:
    """Each command of the chapter gives the output that it shows, one after another."""
    store = JobStore(client)
    environ: dict[str, Any] = {
        "PATH": f"{folder}/bin:{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join([str(folder), *sys.path]),
    }
    found = examples()
    assert len(found) == 13
    for command, lines in found:
        line = command.replace("redis://localhost:6379/0", redis_url)
        arguments = f"cd {folder}; {line}"
        with terminal(arguments, code=SHELL, columns=120, **environ) as shown:
            if " watch" in command:
                shown.wait_for("RunMarathon")
                shown.type("\x03")
            if " wait " in command:
                shown.wait_for("Reading")
                key = key_of(store, "9a410c7d-2a77-4d0a-9b1e-6a0f6c1d2e3f")
                client.hset(key, "started", int((client.time()[0] - 9) * 1000))
                end(store, load_job(store, key.partition(":")[2]))
            if lines and lines[0].endswith(" y"):
                shown.wait_for(r"\[y/N\]")
                shown.type("y\n")
            shown.end()
            seen = [row for row in shown.lines() if row != "^C"]
        assert without_times(seen) == without_times(lines), command


#: A worker whose job reports, can be cancelled, and fails if it is told to.
WORKER = """
import time

import dramatiq
from dramatiq.brokers.redis import RedisBroker

from pyramid_jobstate import JobStateMiddleware

broker = RedisBroker(url={url!r})
broker.add_middleware(JobStateMiddleware())
dramatiq.set_broker(broker)


@dramatiq.actor(max_retries=0)
def count(total, fails, *, job_state):
    for number in job_state.track(range(total), unit="rows", message="Counting"):
        job_state.append_log(f"row {{number}}")
        time.sleep(0.5)
    if fails:
        raise ValueError("miscounted")
"""


def test_jobs_of_a_real_worker(tmp_path: Path, redis_url: str, start: Start) -> None:
    """A job that a worker runs is waited for and followed from its start to its end,
    and one that is cancelled ends so.
    """
    (tmp_path / "counting.py").write_text(WORKER.format(url=redis_url))
    broker = RedisBroker(url=redis_url)
    broker.add_middleware(JobStateMiddleware())
    count = dramatiq.actor(broker=broker, actor_name="count", job_state=True)(
        lambda *_: None
    )
    counted, failing, endless = [
        count.send(*args).message_id for args in ((3, False), (3, True), (999, False))
    ]
    store = JobStore(redis_url)
    where = ("--url", redis_url)
    waits = [start(*where, "wait", uuid) for uuid in (counted, failing, endless)]
    follower = start(*where, "log", "-f", counted)
    for wait in waits:
        assert wait.stdout is not None
        assert wait.stdout.readline().endswith(" queued\n")
    command = [sys.executable, "-m", "dramatiq", "counting", "-p", "1", "-t", "3"]
    with subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as worker:
        try:
            wait_for(lambda: load_job(store, endless).status == "working")
            assert run(*where, "cancel", endless).out == [f"{endless} cancelling"]
            done = [finished(wait) for wait in waits]
        finally:
            worker.terminate()
    assert [ran.code for ran in done] == [0, 3, 4]
    progress = re.compile(r" working \d+% \d of 3 rows: Counting$")
    assert any(map(progress.search, done[0].out))
    assert re.search(r" success after \d s$", done[0].out[-1])
    assert re.search(r" error after \d s: ValueError: miscounted$", done[1].out[-1])
    assert " cancelled after " in done[2].out[-1]
    assert finished(follower) == (0, [f"row {i}" for i in range(3)], [])
