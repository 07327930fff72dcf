"""A PostgreSQL server for the tests.

This module is also its supervisor, a process in its own session that waits on a pipe
whose other end only the tests hold. When they end, however they end, the pipe closes,
and the supervisor kills the server and removes its directory.
"""

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from tests.rabbitmq import free_ports
from tests.support import ROOT

#: Where Debian keeps the commands of each version.
DEBIAN = Path("/usr/lib/postgresql")

#: The user who runs the server if the tests are root, which it refuses.
UNPRIVILEGED = "nobody"

#: The role whose databases these are.
ROLE = "jobstate"

#: The server listens at its own socket only, and trusts the disk.
OPTIONS = {"listen_addresses": "", "fsync": "off", "synchronous_commit": "off"}


class Postgres:
    """A PostgreSQL server with an empty database, which listens at a socket in a
    directory of its own.

    Parameters:
      folder: The folder of its commands, such as :func:`find_folder` finds.
    """

    def __init__(self, folder: Path) -> None:
        self._directory = Path(tempfile.mkdtemp(prefix="jobstate-postgres-"))
        (self._port,) = free_ports(1)
        self._supervisor = subprocess.Popen(
            [
                *(sys.executable, "-m", "tests.postgres"),
                *(str(folder), str(self._directory), str(self._port)),
            ],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def __enter__(self) -> Self:
        assert self._supervisor.stdout is not None
        # It answers when the server does.
        if self._supervisor.stdout.readline() != "up\n":
            log = self._directory / "log"
            text = log.read_text(errors="replace") if log.exists() else "(no log)"
            self.close()
            raise RuntimeError(
                f"PostgreSQL does not start. Its log ends with:\n{text[-3000:]}"
            )
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def url(self) -> str:
        """The database's URL for SQLAlchemy."""
        where = f"host={self._directory}&port={self._port}"
        return f"postgresql+psycopg://{ROLE}@/postgres?{where}"

    def close(self) -> None:
        """Kill the server and remove its directory, for good."""
        with self._supervisor:
            assert self._supervisor.stdin is not None
            self._supervisor.stdin.close()


def find_folder() -> Path | None:
    """Return the folder of the newest server's commands, or None."""
    versions = [v for v in DEBIAN.glob("*") if (v / "bin" / "initdb").exists()]
    if versions:
        return max(versions, key=lambda version: float(version.name)) / "bin"
    found = shutil.which("initdb")
    return None if found is None else Path(found).parent


def user_options() -> Mapping[str, Any]:
    """Return the options that have a process run as a user whom PostgreSQL accepts."""
    if os.getuid() != 0:
        return {}
    user = pwd.getpwnam(UNPRIVILEGED)
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}


def serve(folder: str, directory: str, port: str) -> None:
    """Run the server until nobody holds the other end of the pipe."""
    options = user_options()
    if options:
        os.chown(directory, options["user"], options["group"])
    data = os.path.join(directory, "data")
    log = os.open(os.path.join(directory, "log"), os.O_CREAT | os.O_WRONLY)
    common: dict[str, Any] = {
        "cwd": directory,
        "stdin": subprocess.DEVNULL,
        "stdout": log,
        "stderr": log,
        **options,
    }
    initdb = [f"{folder}/initdb", "--no-sync", "--auth=trust", "--encoding=UTF8"]
    subprocess.run([*initdb, "-U", ROLE, "-D", data], check=True, **common)
    settings = [f"--{name}={value}" for name, value in OPTIONS.items()]
    command = [f"{folder}/postgres", "-D", data, "-k", directory, "-p", port, *settings]
    server = subprocess.Popen(command, process_group=0, **common)
    try:
        ready = [f"{folder}/pg_isready", "-q", "-h", directory, "-p", port, "-t", "1"]
        while server.poll() is None:
            if subprocess.run(ready).returncode == 0:
                print("up", flush=True)
                break
        sys.stdin.read()
    finally:
        with contextlib.suppress(ProcessLookupError):
            # It ends its sessions at once.
            server.send_signal(signal.SIGQUIT)
        server.wait()


def main() -> None:
    for signum in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, signal.SIG_IGN)
    _, folder, directory, port = sys.argv
    try:
        serve(folder, directory, port)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    main()
