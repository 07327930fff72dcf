"""`pjobs` for operators as a process: the README's chapter about it is true, and pipes
and signals do what they do with other commands.
"""

import contextlib
import fcntl
import linecache
import logging
import os
import re
import subprocess
import sys
import termios
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import dramatiq
import pytest

from pyramid_jobstate import JobState
from pyramid_jobstate.testing import pass_time
from tests.cliapp import PATIENCE, PJOBS
from tests.jobs import Gate, RunMarathon, job_actor
from tests.processes import hear
from tests.readme import page, snippets
from tests.running import Run, Runs, running
from tests.support import wait_for, write
from tests.terminal import Terminal

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

#: The application that has failed, as the README's traceback has it.
IMPORTS = "/srv/shop/imports.py"
SOURCE = [
    *["\n"] * 39,
    "def import_results(file, *, job_state):\n",
    "    for number in rows_of(file, job_state):\n",
    '        raise ValueError(f"Row {number} lacks a date")\n',
]

#: Stands for jq, which may be missing.
JQ = "import json, sys\nfor line in sys.stdin: print(json.loads(line)['status'])\n"

#: What differs from run to run, and what the README has in its place.
TIMES = (
    (r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d[+-]\d\d:\d\d", "DATE"),
    (r"\d\d:\d\d:\d\d", "TIME"),
    # On a busy machine it takes minutes.
    (r"\b(\d+ min )?\d+ s\b|\b\d+ min\b", "SPAN"),
    # A worker that starts before its first actor of ours is not listed.
    (r"(?m)^(\S+:\d+ )?Thread-\d+ \d+ MB$", "WORKER"),
)

#: The uuids in the documentation, by their beginnings.
UUIDS = {
    uuid[:4]: uuid
    for uuid in re.findall(r"[0-9a-f]{8}(?:-\w+){4}", page("howto/operate"))
}
UUIDS |= {name[:4]: name + UUIDS["4f6c"][8:] for name in ("9a410c7d", "c3d2a9f0")}


def take_terminal() -> None:
    """Have Ctrl-C reach the processes of the terminal's session, and end them."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    hear()


@contextlib.contextmanager
def shell(
    command: str, environ: dict[str, str]
) -> Iterator[tuple[Terminal, subprocess.Popen[bytes]]]:
    """Run a command line on a terminal of its own, and end it at last."""
    terminal = Terminal(40, 120)
    kept = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES")}
    slave = terminal.slave
    process = subprocess.Popen(
        ["bash", "-c", command],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        env={**kept, "TERM": "xterm-256color", **environ},
        start_new_session=True,
        preexec_fn=take_terminal,
    )
    os.close(slave)
    try:
        yield terminal, process
    finally:
        process.terminate()
        process.wait(PATIENCE)
        terminal.close()


class ImportResults(JobState):
    """The README's kind of job."""

    public_params = ("file",)
    log_level = "INFO"


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


def without_libraries(lines: Sequence[str]) -> list[str]:
    """Return lines with no frames of a traceback but the application's."""
    kept, is_ours = [], True
    for line in lines:
        # Of a long path, the line ends after this word.
        if line.split()[:1] == ["File"]:
            is_ours = IMPORTS in line
        if is_ours and line.strip() != "…":
            kept.append(line)
    return kept


def without_times(lines: Sequence[str]) -> list[str]:
    text = "\n".join(line.rstrip() for line in lines).strip("\n")
    for pattern, name in TIMES:
        text = re.sub(pattern, name, text)
    return text.split("\n")


class Shop(Runs):
    """The README's jobs in a worker with two threads.

    Attributes:
      lull: Holds a thread, once it is free.
    """

    def __init__(self, broker: dramatiq.Broker) -> None:
        super().__init__(broker)
        linecache.cache[IMPORTS] = (0, None, SOURCE, IMPORTS)

        def rows_of(file: str, job_state: JobState) -> Iterator[int]:
            with contextlib.suppress(LookupError):
                self.all[job_state.uuid].live(job_state)
                return
            yield 17

        names: dict[str, Any] = {"rows_of": rows_of}
        exec(compile("".join(SOURCE), IMPORTS, "exec"), names)
        self.import_results = job_actor(
            broker=broker, job_state=ImportResults, max_retries=0, throws=ValueError
        )(names["import_results"])
        self.gate = Gate()
        self.lull = dramatiq.actor(broker=broker, actor_name="lull")(self.gate.wait)

    def work(self, uuid: str, actor: Any, *args: Any, owner: Any) -> Run:
        """Return a job with a uuid, which runs."""
        message = actor.message_with_options(args=args, job_owner=owner)
        return self.begin(message.copy(message_id=uuid))


@pytest.fixture
def shop(redis_url: str) -> Iterator[Shop]:
    """The README's jobs."""
    with running(redis_url, threads=2, cls=Shop) as shop:
        assert isinstance(shop, Shop)
        store, marathon = shop.store, shop.actor(RunMarathon)
        done = shop.work(UUIDS["c3d2"], marathon, 26, owner=7)
        pass_time(store, 125)
        done.end()
        failing = shop.work(
            UUIDS["4f6c"], shop.import_results, "results.csv", owner="alice"
        )
        failing.do(lambda job: job.append_log("16 rows read"))
        failing.do(lambda job: job.set_progress(16, 20, "rows"))
        pass_time(store, 9)
        failing.end(LookupError())
        shop.work(UUIDS["71b8"], marathon, 26, owner=7)
        pass_time(store, 1)
        run = shop.work(UUIDS["9a41"], shop.import_results, "x.csv", owner="alice")
        run.do(lambda job: job.set_progress(2000, 20000, "rows", "Reading"))
        warn = logging.getLogger("shop.imports").warning
        run.do(lambda job: warn("Row 12 has no name"))
        write(store, run.uuid, progress='[2000, 20000, "rows", 68]')
        yield shop
        shop.gate.open()


@pytest.fixture
def folder(tmp_path: Path, redis_url: str, shop: Shop) -> Path:
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
        path.chmod(0o755)
    return tmp_path


def test_commands_of_the_readme(folder, redis_url, shop):
    """Each command of the chapter gives the output that it shows, one after another."""
    environ: dict[str, Any] = {
        "PATH": f"{folder}/bin:{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join([str(folder), *sys.path]),
    }
    found = examples()
    assert len(found) == 15
    for command, lines in found:
        line = command.replace("redis://localhost:6379/0", redis_url)
        if " rerun " in command:
            # Nobody is to run it.
            shop.lull.send()
            shop.gate.wait_for_job()
        with shell(f"cd {folder}; {line}", environ) as (terminal, process):

            def wait_to_see(text: str, terminal: Terminal = terminal) -> None:
                wait_for(lambda: text in terminal.text(), PATIENCE)

            if " watch" in command:
                wait_to_see("RunMarathon")
                terminal.type("\x03")
            if " wait " in command:
                wait_to_see("Reading")
                pass_time(shop.store, 3)
                shop.all[UUIDS["9a41"]].end()
            if lines and lines[0].endswith(" y"):
                wait_to_see("[y/N]")
                terminal.type("y\n")
            code = process.wait(PATIENCE)
            assert code == (130 if " watch" in command else code)
        seen = [row for row in terminal.lines() if row != "^C"]
        seen, lines = without_libraries(seen), without_libraries(lines)
        assert without_times(seen) == without_times(lines), command
