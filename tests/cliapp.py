"""A small application in a folder, and the command `pjobs` that runs it."""

import sys
import time
from collections.abc import Sequence
from pathlib import Path

import dramatiq
from dramatiq.brokers.redis import RedisBroker

from pyramid_jobstate import JobState, JobStateMiddleware, JobStore
from tests.processes import Process
from tests.support import ROOT, free_ports, load_job

#: Seconds that a command may take on a busy machine.
PATIENCE = 40.0

#: What the console script runs.
PJOBS = "import sys; from pyramid_jobstate.cli import main; sys.exit(main())"

#: The application. VERSION is what its jobs report.
APP = """
import logging
import os
import time

import dramatiq
from dramatiq.brokers.redis import RedisBroker
from pyramid.config import Configurator
from pyramid.response import Response

from pyramid_jobstate import JobState, JobStateMiddleware, JobStore

log = logging.getLogger(__name__)
broker = RedisBroker(url="{url}")
broker.add_middleware(JobStateMiddleware())
dramatiq.set_broker(broker)
greeting = None


@dramatiq.actor(max_retries=3, min_backoff=100, notify_shutdown=True)
def nap(seconds, *, job_state):
    job_state.set_progress_metrics(
        version="{version}", pid=os.getpid(), parent=os.getppid(), greeting=greeting
    )
    log.warning("A nap begins.")
    time.sleep(seconds)


@dramatiq.actor(queue_name="mail")
def mail(*, job_state):
    pass


def send(request):
    job_state = request.job_states.send_immediately(nap, float(request.params["s"]))
    return Response(f"{version} {{job_state.uuid}}")


def main(global_conf, **settings):
    global greeting
    greeting = settings.get("greeting")
    with Configurator(settings=settings) as config:
        config.include("pyramid_jobstate")
        config.add_route("send", "/send")
        config.add_view(send, route_name="send")
        return config.make_wsgi_app()
"""

#: An application without a broker of its own.
BROKERLESS = """
from pyramid.config import Configurator


def main(global_conf, **settings):
    with Configurator(settings=settings) as config:
        config.include("pyramid_jobstate")
        return config.make_wsgi_app()
"""

INI = """
[app:main]
use = call:cliapp:main
jobstate.redis_url = {url}
greeting = %(word)s

[server:main]
use = egg:waitress#main
listen = 127.0.0.1:{port}

[pjobs]
{flags}
"""

#: What it says of the log.
LOGGING = """
[loggers]
keys = root

[handlers]
keys = console

[formatters]
keys = plain

[logger_root]
level = WARNING
handlers = console

[handler_console]
class = StreamHandler
args = (sys.stderr,)
formatter = plain

[formatter_plain]
format = from the ini: %(levelname)s %(name)s %(message)s
"""


class Folder:
    """A folder with the application and its ini.

    Attributes:
      ini: The path of the ini.
      module: The path of the application's module.
      url: The URL of its Redis server.
    """

    def __init__(self, path: Path, url: str) -> None:
        self.path = path
        (self.port,) = free_ports(1)
        self.ini = path / "cli.ini"
        self.module = path / "cliapp.py"
        self.use(url)

    def use(self, url: str) -> None:
        self.url = url
        self.write_app("one")
        self.write_ini()

    def write_app(self, version: str) -> None:
        """Write the application in one step, of which a watcher hears once."""
        new = self.path / "new"
        new.write_text(APP.format(url=self.url, version=version))
        new.replace(self.module)

    def write_ini(self, flags: str = "threads = 2", **replaced: str) -> None:
        text = INI.format(url=self.url, port=self.port, flags=flags) + LOGGING
        for old, new in replaced.items():
            text = text.replace(old, new)
        self.ini.write_text(text)

    def start(
        self,
        *arguments: str,
        output: int | None = None,
        prefix: Sequence[str] = (),
        **environ: str,
    ) -> Process:
        """Start a `pjobs`. Its environment's scripts are not on PATH.

        Parameters:
          prefix: A command that runs it.
        """
        return Process(
            [*prefix, sys.executable, "-c", PJOBS, *arguments],
            self.path / f"{time.monotonic_ns()}.log",
            self.path,
            {
                "PATH": "/usr/bin:/bin",
                "PYTHONPATH": str(ROOT),
                "PYTHONDONTWRITEBYTECODE": "1",  # see Host
                **environ,
            },
            output=output,
            patience=PATIENCE,
        )

    def send(self, name: str, *args: object, queue: str = "default") -> str:
        """Send a message to an actor of the application, and return its job's uuid."""
        broker = RedisBroker(url=self.url)
        broker.add_middleware(JobStateMiddleware())
        actor = dramatiq.actor(
            broker=broker, actor_name=name, queue_name=queue, job_state=True
        )
        return actor(lambda *_: None).send(*args).message_id

    def load(self, uuid: str) -> JobState:
        return load_job(JobStore(self.url), uuid)
