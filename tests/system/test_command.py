"""`python -m tests` says which test is to blame."""

import os
import re
import subprocess
import sys


def test_culprits_are_named():
    """A test that hangs in C fails, after the stacks of its process, and so does one
    that leaves a thread or a socket behind. The others run.
    """
    command = [sys.executable, "-m", "tests", "-n1", "tests/culprits.py"]
    found = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert "1 failed, 3 passed, 2 errors" in found.stdout
    assert "culprits.py::test_that_hangs" in found.stdout
    assert re.search(r"culprits\.py\", line \d+ in test_that_hangs", found.stderr)
    for what, name in ("thread", "abandoned"), ("socket", "unclosed"):
        heading = f"ERROR at teardown of test_that_leaves_a_{what} "
        _, _, after = found.stdout.partition(heading)
        assert re.search(f"leaves behind: .*{name}", after)


def test_module_that_hangs_ends_the_run():
    """It hangs as it is imported, in each process. No other process tries that, too."""
    settings = ["-n2", "-o", "timeout=2"]
    command = [sys.executable, "-m", "tests", *settings, "tests/culprits.py"]
    environ = {**os.environ, "CULPRITS_HANG": "1"}
    found = subprocess.run(
        command, env=environ, capture_output=True, text=True, timeout=60
    )
    assert found.returncode
    assert re.search(r"culprits\.py\", line \d+ in <module>", found.stderr)
    assert "replacing crashed worker" not in found.stdout
