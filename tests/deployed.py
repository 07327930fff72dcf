"""The application that the README deploys, made of the README's own files.

Its paths, ports and certificate are replaced. Nothing else is.
"""

import configparser
import contextlib
import http.client
import json
import os
import re
import shlex
import shutil
import signal
import ssl
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import redis

from pyramid_jobstate import JobState, JobStore, embedded
from tests.cliapp import LOGGING, PJOBS
from tests.processes import Answer, Process, fetch
from tests.readme import snippets
from tests.support import ROOT, free_ports, lack, listens, load_job, wait_for

#: The seconds that a server or a worker may take to start on a busy machine.
PATIENCE = 60.0

#: Where the README has the application.
HOME = "/srv/myapp"

#: The commands that the environment of the application shares with this one.
COMMANDS = "pserve proutes gunicorn granian hypercorn uvicorn dramatiq"

WEB, WORKER, PUSH = (f"myapp-{name}.service" for name in ("web", "worker", "push"))

UNITS = "/etc/systemd/system"

SITE = "/etc/nginx/sites-available/myapp"

#: What Debian's nginx.conf has around a site. Compression changes the ETags.
NGINX = """
daemon off;
{user}
pid {folder}/nginx.pid;
error_log stderr;
events {{}}
http {{
    log_format upstreams "$upstream_addr $status $http_accept";
    access_log {folder}/access.log upstreams;
    gzip on;
    gzip_min_length 1;
    gzip_types application/json;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    include {folder}/site;
}}
"""

CERTIFICATE = (
    "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes "
    "-subj /CN=example.com -days 2"
)


#: What an installed application has, and PasteDeploy reads.
METADATA = {
    "PKG-INFO": "Metadata-Version: 2.1\nName: myapp\nVersion: 0\n",
    "entry_points.txt": "[paste.app_factory]\nmain = myapp:main\n",
}

APPLICATION = """\
import pathlib
import time

from pyramid.config import Configurator
from pyramid.session import SignedCookieSessionFactory

from . import jobs


def run(request):
    states = request.job_states
    name, count = request.params.get("actor", "run_marathon"), int(request.params["n"])
    job_state = states.send(getattr(jobs, name), count)
    return {"url": request.resource_url(job_state)}


def slow(request):
    pathlib.Path("slow").touch()
    time.sleep(1)
    return {}


def main(global_config, **settings):
    with Configurator(settings=settings) as config:
        config.add_settings({"tm.manager_hook": "pyramid_tm.explicit_manager"})
        config.set_session_factory(SignedCookieSessionFactory("secret", timeout=None))
        config.include("pyramid_tm")
        config.include("pyramid_retry")
        config.include("pyramid_jobstate")
        for view in run, slow:
            config.add_route(view.__name__, f"/{view.__name__}")
            config.add_view(view, route_name=view.__name__, renderer="json")
        return config.make_wsgi_app()
"""

JOBS = """\
import os
import time

import dramatiq
from pyramid_jobstate import JobState


class RunMarathon(JobState):
    pass


@dramatiq.actor
def run_marathon(miles, *, request, job_state: RunMarathon):
    job_state.set_progress_metrics(pid=os.getpid(), url=request.application_url)
    for mile in job_state.track(range(miles), unit="miles"):
        time.sleep(0.05)


@dramatiq.actor(queue_name="mail")
def send_mails(count, *, job_state: RunMarathon):
    pass


@dramatiq.actor(notify_shutdown=True, min_backoff=100_000)
def run_patiently(miles, *, job_state: RunMarathon):
    for mile in job_state.track(range(miles), unit="miles"):
        time.sleep(0.05)
"""


def files() -> dict[str, str]:
    """Return the README's files for a host, by the paths in their first lines."""
    found = {}
    for text in snippets("text|ini|nginx|sh"):
        if match := re.match(r"# (/.+)\n", text):
            assert match[1] not in found
            found[match[1]] = text
    return found


def option(name: str, text: str) -> str:
    """Return the value that a line of a unit gives to an option."""
    (value,) = re.findall(rf"^{name}=(.*)$", text, re.MULTILINE)
    return str(value)


class Host:
    """A folder that stands for the host, with free ports.

    Parameters:
      folder: An empty folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.redis_port, self.web_port, self.push_port, *rest = free_ports(5)
        self.http_port, self.https_port = rest
        self.environ = {
            # Not the folder itself, in which the servers find asgi.py by themselves.
            "PYTHONPATH": os.pathsep.join([f"{folder}/installed", str(ROOT)]),
            # Python tells versions of a module apart by their second and length: one
            # that is soon written anew could run as it was.
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        self.files = {path: self.replaced(text) for path, text in files().items()}
        (asgi,) = [t for t in snippets("python") if t.startswith(f"# {HOME}/asgi.py\n")]
        self.write("asgi.py", asgi)
        for name, text in METADATA.items():
            self.write(f"installed/myapp.egg-info/{name}", text)
        self.write("installed/myapp/__init__.py", APPLICATION)
        self.write("installed/myapp/jobs.py", JOBS)
        pjobs = self.write("venv/bin/pjobs", f"#!{sys.executable}\n{PJOBS}\n")
        pjobs.chmod(0o755)
        for name in COMMANDS.split():
            script = Path(sysconfig.get_path("scripts"), name)
            pjobs.with_name(name).symlink_to(script)
        (ours,) = [text for text in snippets("ini") if "[logger_pyramid" in text]
        self.ini = configparser.ConfigParser(interpolation=None)
        log = LOGGING.replace("= root", "= root, pyramid_jobstate", 1)
        log = log.replace("WARNING", "INFO")
        self.ini.read_string(self.files[f"{HOME}/production.ini"] + log + ours)
        # Whose jobs these are: the README's chapters on permissions say more.
        self.set(jobstate__owner="session")

    def replaced(self, text: str) -> str:
        """Return a text of the README with the paths and ports of this host."""
        ports = {6379: self.redis_port, 6543: self.web_port, 6544: self.push_port}
        pattern = rf"\b({'|'.join(map(str, ports))})\b"
        text = re.sub(pattern, lambda match: str(ports[int(match[1])]), text)
        for old, new in {
            HOME: str(self.folder),
            "listen 80;": f"listen 127.0.0.1:{self.http_port};",
            "listen 443 ssl;": f"listen 127.0.0.1:{self.https_port} ssl;",
            "/etc/ssl/private/": f"{self.folder}/",
            "/etc/ssl/": f"{self.folder}/",
        }.items():
            text = text.replace(old, new)
        return text

    def write(self, name: str, text: str) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
        return path

    def set(self, section: str = "app:main", **settings: str) -> None:
        """Write the ini of the README with other settings. In their names, a double
        underscore stands for a dot.
        """
        for name, value in settings.items():
            self.ini[section][name.replace("__", ".")] = value
        with (self.folder / "production.ini").open("w") as file:
            self.ini.write(file)

    @property
    def redis_url(self) -> str:
        return self.ini["app:main"]["jobstate.broker"]

    @contextlib.contextmanager
    def redis(self) -> Iterator[redis.Redis]:
        """Run a server with the README's configuration, and yield a client of it."""
        (path,) = [path for path in self.files if path.startswith("/etc/valkey")]
        config = self.write("valkey.conf", self.files[path])
        place = ["--port", str(self.redis_port), "--dir", str(self.folder)]
        command = [embedded.find_binary(), str(config), *place]
        with (
            self.running(command, "redis", signal.SIGTERM) as process,
            redis.Redis.from_url(self.redis_url) as client,
        ):
            process.wait_for_line("Ready to accept connections")
            yield client

    @contextlib.contextmanager
    def unit(self, name: str, exec_start: str | None = None) -> Iterator[Process]:
        """Run a unit's command as systemd would. It is stopped by the unit's signal."""
        text = self.files[f"/etc/systemd/system/{name}"]
        command = shlex.split(exec_start or option("ExecStart", text))
        kill_signal = signal.Signals[option("KillSignal", text)]
        with self.running(command, name, kill_signal, PATIENCE) as process:
            yield process

    @contextlib.contextmanager
    def web(self, exec_start: str | None = None, unit: str = WEB) -> Iterator[Process]:
        """Run the web server, or the ASGI server beside it, and wait until it
        listens.
        """
        port = self.web_port if unit == WEB else self.push_port
        with self.unit(unit, exec_start) as process:
            process.wait_until(lambda: listens(port))
            yield process

    @contextlib.contextmanager
    def worker(self, exec_start: str | None = None) -> Iterator[Process]:
        """Run the workers, and wait until one is ready."""
        with self.unit(WORKER, exec_start) as process:
            process.wait_for_line("ready for action")
            yield process

    @contextlib.contextmanager
    def running(
        self, command: list[str], name: str, kill_signal: int, patience: float = 20
    ) -> Iterator[Process]:
        """Run a command in a session of its own, which ends with the block."""
        log = self.folder / f"{name}.log"
        with Process(
            command, log, self.folder, self.environ, patience=patience
        ) as process:
            yield process
            process.send_signal(kill_signal)
            process.wait(20)

    def log(self, name: str) -> str:
        """Return what a unit has printed, or a server."""
        return (self.folder / f"{name}.log").read_text("utf-8", "replace")


def program(name: str, package: str) -> str:
    """Return the path of a program, or skip the test."""
    # Debian's /usr/sbin is not on everybody's PATH.
    path = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin"
    found = shutil.which(name, path=path)
    return found or lack(f"{name} is missing (Debian: apt-get install {package})")


class Browser:
    """Asks a host's nginx, as example.com. Keeps the last cookie."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.cookie = ""

    @contextlib.contextmanager
    def open(
        self, path: str, method: str = "GET", **headers: str
    ) -> Iterator[http.client.HTTPResponse]:
        """Yield the response to a request, whose body may come yet."""
        context = ssl.create_default_context(
            cafile=self.host.folder / "example.com.pem"
        )
        # Nothing resolves the name: the request says whom it means.
        context.check_hostname = False
        connection = http.client.HTTPSConnection(
            "127.0.0.1", self.host.https_port, context=context, timeout=20
        )
        with contextlib.closing(connection):
            sent = {"Host": "example.com", "Cookie": self.cookie}
            sent |= {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method, path, headers=sent)
            with connection.getresponse() as response:
                yield response

    def __call__(self, path: str, method: str = "GET", **headers: str) -> Answer:
        with self.open(path, method, **headers) as response:
            self.cookie = response.headers.get("Set-Cookie", self.cookie)
            return Answer(response.status, response.headers, response.read())


@contextlib.contextmanager
def nginx(host: Host, site: str | None = None) -> Iterator[Browser]:
    """Check the README's site, or another one, with `nginx -t`, and run it."""
    command = program("nginx", "nginx")
    host.write("site", site or host.files[SITE])
    user = "user root;" if os.getuid() == 0 else ""
    host.write("nginx.conf", NGINX.format(folder=host.folder, user=user))
    names = "-keyout example.com.key -out example.com.pem"
    subprocess.run(
        [program("openssl", "openssl"), *CERTIFICATE.split(), *names.split()],
        cwd=host.folder,
        check=True,
        capture_output=True,
    )
    line = [command, "-p", str(host.folder), "-c", str(host.folder / "nginx.conf")]
    checked = subprocess.run([*line, "-t"], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr
    assert "[warn]" not in checked.stderr
    browser = Browser(host)
    with host.running(line, "nginx", signal.SIGQUIT) as process:
        process.wait_until(lambda: listens(host.https_port))
        yield browser


def get(host: Host, path: str) -> tuple[int, str]:
    """Ask the web server, without a cookie."""
    answer = fetch(host.web_port, path)
    return answer.status, answer.body.decode()


def send(host: Host, miles: int, actor: str = "run_marathon") -> JobState:
    status, body = get(host, f"/run?actor={actor}&n={miles}")
    assert status == 200, host.log(WEB)
    return load_job(JobStore(host.redis_url), json.loads(body)["url"].split("/")[-2])


def metric(host: Host, job: JobState, name: str) -> Any:
    """Return what a job has reported, once it has."""
    store = JobStore(host.redis_url)
    return wait_for(lambda: load_job(store, job.uuid).get_progress_metric(name))


def status(host: Host, job: JobState | str) -> str | None:
    """Return the status of a job, or None before it has a record."""
    uuid = job if isinstance(job, str) else job.uuid
    job_state = JobStore(host.redis_url).load(uuid)
    return None if job_state is None else job_state.status
