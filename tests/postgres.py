"""A PostgreSQL server for the tests."""

import contextlib
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.rabbitmq import free_ports, supervised
from tests.support import wait_for

#: Where Debian keeps the commands of each version.
DEBIAN = Path("/usr/lib/postgresql")

#: The user who runs the server if the tests are root, which it refuses.
UNPRIVILEGED = "nobody"

#: The role whose databases these are.
ROLE = "jobstate"

#: The server listens at its own socket only, and trusts the disk.
OPTIONS = ("--listen_addresses=", "--fsync=off", "--synchronous_commit=off")


def find_folder() -> Path | None:
    """Return the folder of the newest server's commands, or None."""
    versions = [v for v in DEBIAN.glob("*") if (v / "bin" / "initdb").exists()]
    if versions:
        return max(versions, key=lambda version: float(version.name)) / "bin"
    found = shutil.which("initdb")
    return None if found is None else Path(found).parent


@contextlib.contextmanager
def postgres(folder: Path) -> Iterator[str]:
    """Run a server with an empty database, at a socket in a directory of its own. Yield
    its URL for SQLAlchemy.

    Parameters:
      folder: The folder of its commands, such as :func:`find_folder` finds.
    """
    directory = tempfile.mkdtemp(prefix="jobstate-postgres-")
    (port,) = free_ports(1)
    options: dict[str, Any] = {"cwd": directory}
    if os.getuid() == 0:
        user = pwd.getpwnam(UNPRIVILEGED)
        options |= {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
        os.chown(directory, user.pw_uid, user.pw_gid)
    data = f"{directory}/data"
    initdb = [f"{folder}/initdb", "--no-sync", "--auth=trust", "--encoding=UTF8"]
    subprocess.run(
        [*initdb, "-U", ROLE, "-D", data], check=True, capture_output=True, **options
    )
    place = ["-D", data, "-k", directory, "-p", str(port)]
    server = supervised(
        [f"{folder}/postgres", *place, *OPTIONS],
        Path(directory, "log"),
        "QUIT",
        directory,
        **options,
    )
    ready = [f"{folder}/pg_isready", "-q", "-h", directory, "-p", str(port)]
    try:
        wait_for(lambda: subprocess.run(ready).returncode == 0)
        yield f"postgresql+psycopg://{ROLE}@/postgres?host={directory}&port={port}"
    finally:
        server.communicate()
