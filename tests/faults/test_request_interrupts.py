"""Jobs with a request that are interrupted anywhere: see tests/requestinterrupts.py."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import ROOT, unmeasured


def run(redis_url: str, folder: Path, *arguments: str) -> None:
    how, kind, *numbers = arguments
    module = "tests.requestinterrupts"
    done = subprocess.run(
        [sys.executable, "-m", module, how, kind, redis_url, str(folder), *numbers],
        cwd=ROOT,
        env=unmeasured(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-5000:]


@pytest.mark.parametrize(
    ("how", "kind", "count", "seed"),
    [
        ("steps", "sqlite", 9, 0),
        ("steps", "zodb", 9, 0),
        pytest.param("steps", "sqlite", 1, 0, marks=pytest.mark.long),
        pytest.param("steps", "zodb", 1, 0, marks=pytest.mark.long),
        pytest.param("times", "sqlite", 300, 1, marks=pytest.mark.long),
        pytest.param("times", "zeo", 300, 1, marks=pytest.mark.long),
    ],
)
def test_interrupt_anywhere(
    redis_url: str, tmp_path: Path, how: str, kind: str, count: int, seed: int
) -> None:
    """Wherever a job is interrupted, it reads success only if it has committed. What it
    was to send runs only if it has, and is never left queued. Its thread goes on.
    """
    run(redis_url, tmp_path, how, kind, str(count), str(seed))
