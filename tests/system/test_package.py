"""How the package is laid out, and what its wheel contains."""

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import dramatiq
import pytest
from dramatiq.brokers.redis import RedisBroker

from pyramid_jobstate import JobStateMiddleware, JobStore
from tests.support import PACKAGE, ROOT, load_job, wait_for
from tests.workerprocess import PATIENCE

#: Dramatiq's objects in a middleware, by the names of our parameters.
THEIRS = {"actor", "broker", "message", "middleware", "step", "worker"}

#: A worker that reports where the package is and which modules of Pyramid are loaded.
WORKER = """
import os, sys

import dramatiq
from dramatiq.brokers.redis import RedisBroker

from pyramid_jobstate import JobState, JobStateMiddleware

broker = RedisBroker(url=os.environ["BROKER_URL"])
broker.add_middleware(JobStateMiddleware())
dramatiq.set_broker(broker)


@dramatiq.actor
def tell(*, job_state: JobState) -> None:
    job_state.set_progress_metric("place", pyramid_jobstate.__file__)
    loaded = [name for name in sys.modules if name.partition(".")[0] == "pyramid"]
    job_state.set_progress_metric("loaded", loaded)
"""


def test_nothing_private_of_dramatiq_is_used() -> None:
    """Only the public interface of brokers is used, so that any broker works."""
    for path in PACKAGE.rglob("*.py"):
        if path.parent.name not in ("worker", "web"):
            continue
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if not isinstance(node, ast.Attribute) or not node.attr.startswith("_"):
                continue
            # Python's own names, such as __name__, are nobody's.
            if not node.attr.startswith("__"):
                parts = [*ast.walk(node.value)]
                names = {getattr(part, "id", "") for part in parts}
                names |= {getattr(part, "attr", "") for part in parts}
                assert not names & THEIRS, f"{path}: {ast.unparse(node)}"


@pytest.fixture
def wheel_python(tmp_path: Path) -> Path:
    """The Python of a new environment that holds the package's wheel, and borrows its
    dependencies from this environment.
    """
    home = tmp_path / "wheel"
    # The build leaves files beside its sources.
    sources = home / "sources"
    shutil.copytree(PACKAGE, sources / PACKAGE.name)
    for path in ROOT.iterdir():
        if path.is_file():
            shutil.copy(path, sources)

    def run(*command: str | Path) -> None:
        done = subprocess.run(
            [*map(str, command)], cwd=sources, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr

    build = (sys.executable, "-m", "build", "--wheel", "--no-isolation")
    run(*build, "--outdir", home)
    run(sys.executable, "-m", "venv", "--without-pip", home / "venv")
    python = home / "venv" / "bin" / "python"
    (wheel,) = home.glob("*.whl")
    pip = (sys.executable, "-m", "pip", "--python", python, "install", "--no-deps")
    run(*pip, "--no-index", wheel)
    (site,) = (home / "venv").glob("lib/python*/site-packages")
    # Comes after the environment's own directory, so that the wheel's package wins.
    ours = next(path for path in sys.path if path.endswith("site-packages"))
    (site / "others.pth").write_text(ours)
    return python


def test_wheel_has_all_that_a_worker_needs(
    wheel_python: Path, redis_url: str, tmp_path: Path
) -> None:
    """The wheel installs `pjobs`, and a worker with it runs and records a job without
    loading Pyramid.
    """
    script = wheel_python.with_name("pjobs")
    done = subprocess.run([script, "--help"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "\n  work " in done.stdout
    (tmp_path / "wheelworker.py").write_text(WORKER)
    broker = RedisBroker(url=redis_url)
    broker.add_middleware(JobStateMiddleware())

    @dramatiq.actor(broker=broker, job_state=True)
    def tell() -> None: ...

    store = JobStore(redis_url)
    command = [wheel_python, "-m", "dramatiq", "wheelworker"]
    environ = {"BROKER_URL": redis_url, "PATH": os.environ["PATH"]}
    with (tmp_path / "log").open("w+") as log:
        worker = subprocess.Popen(
            [*map(str, command), "--processes", "1", "--threads", "1"],
            cwd=tmp_path,
            env=environ,
            stderr=log,
        )
        try:
            uuid = tell.send().message_id
            wait_for(lambda: (job := store.load(uuid)) and job.is_success, PATIENCE)
        finally:
            worker.terminate()
            worker.wait(PATIENCE)
    told = load_job(store, uuid).progress_metrics
    assert told["loaded"] == []
    assert Path(told["place"]).is_relative_to(wheel_python.parents[1])
