"""The README's chapter "Deploy" is true: its files work together, on a host that is a
folder with free ports.
"""

import configparser
import contextlib
import gzip
import http.client
import json
import os
import re
import signal
import subprocess
import time

import dramatiq.cli
import pytest
import redis
from dramatiq.middleware import ShutdownNotifications

from pyramid_jobstate import JobStore
from tests.deployed import (
    HOME,
    UNITS,
    WEB,
    WORKER,
    Browser,
    Host,
    files,
    metric,
    nginx,
    option,
    program,
    send,
    status,
)
from tests.readme import README, snippets
from tests.support import wait_for

GUNICORN = f"{UNITS}/{WEB}, with gunicorn"


@pytest.mark.parametrize("server", ["waitress", "gunicorn"])
def test_polls_through_nginx(host: Host, server: str) -> None:
    """Through the README's nginx, to either web server, the URLs of a job are those of
    the outside, an ETag saves its body even if compressed, and a cancel works.
    """
    exec_start = None
    if server == "gunicorn":
        exec_start = option("ExecStart", host.files[GUNICORN])
    with host.redis(), host.web(exec_start), nginx(host) as browser:
        assert browser("/job_state").json == {"items": [], "cursor": None}
        sent = browser("/run?n=3").json["url"]
        assert sent.startswith("https://example.com/job_state/")
        path = sent.removeprefix("https://example.com")
        for encoding in "identity", "gzip":
            polled = browser(path, accept_encoding=encoding)
            assert polled.status == 200
            body = polled.body
            if encoding == "gzip":
                assert polled.headers["Content-Encoding"] == "gzip"
                body = gzip.decompress(body)
            assert json.loads(body)["job"]["url"] == sent
            assert polled.headers["Cache-Control"] == "private, no-cache"
            etag = polled.headers["ETag"]
            again = browser(path, if_none_match=etag, accept_encoding=encoding)
            assert (again.status, again.body) == (304, b"")
        script = browser("/job_state/static/job-state.js")
        assert (script.status, b"startPolling" in script.body) == (200, True)
        assert browser(f"{path}cancel", "POST").status == 400
        cancelled = browser(f"{path}cancel", "POST", x_requested_with="a script")
        assert cancelled.status == 202
        assert cancelled.json["job"]["status"] == "cancelled"
        assert Browser(host)(path).status == 403


def test_plain_http_is_redirected(host: Host) -> None:
    """Port 80 redirects to the same address with https."""
    with nginx(host):
        connection = http.client.HTTPConnection("127.0.0.1", host.http_port, timeout=20)
        with contextlib.closing(connection):
            connection.request("GET", "/run?n=1", headers={"Host": "example.com"})
            response = connection.getresponse()
            assert response.status == 301
            assert response.headers["Location"] == "https://example.com/run?n=1"


def test_headers_of_strangers_are_not_trusted(host: Host) -> None:
    """Only a proxy at 127.0.0.1 may name the scheme of a request."""
    host.set("server:main", trusted_proxy="192.0.2.1")
    with host.redis(), host.web(), nginx(host) as browser:
        assert browser("/run?n=1").json["url"].startswith("http://example.com/")


def test_server_of_the_readme_keeps_everything(host: Host) -> None:
    """The server has a password, evicts nothing, and has its data after a restart."""
    with host.redis() as client:
        for name, value in {
            "maxmemory-policy": "noeviction",
            "appendonly": "yes",
            "maxmemory": str(512 * 1024**2),
        }.items():
            assert client.config_get(name) == {name: value}
        store = JobStore(
            host.redis_url.replace(":a-long-random-password-of-yours@", "")
        )
        with pytest.raises(redis.RedisError, match=r"(?i)authenticat"):
            store.list()
        client.set("kept", 1)
    with host.redis() as client:
        assert client.get("kept") == b"1"


def test_units_are_valid(host: Host) -> None:
    """Systemd accepts the units, with and without gunicorn."""
    verify = program("systemd-analyze", "systemd")
    web, worker = host.files[f"{UNITS}/{WEB}"], host.files[f"{UNITS}/{WORKER}"]
    units = {WEB: web, WORKER: worker, "myapp-gunicorn.service": gunicorn_unit(host)}
    paths = [str(host.write(name, text)) for name, text in units.items()]
    checked = subprocess.run(
        [verify, "verify", "--man=no", *paths], capture_output=True, text=True
    )
    assert checked.returncode == 0, checked.stderr
    # Other units of the machine may have faults of their own.
    assert "myapp" not in checked.stderr


def gunicorn_unit(host: Host) -> str:
    """Return the unit of the web server with the lines for gunicorn in it."""
    text = host.files[f"{UNITS}/{WEB}"]
    for line in host.files[GUNICORN].splitlines()[1:]:
        name = line.partition("=")[0]
        text = re.sub(rf"^{name}=.*\n", "", text, flags=re.MULTILINE)
        text = text.replace("[Service]\n", f"[Service]\n{line}\n")
    return text


def test_units_leave_time_to_stop() -> None:
    """A unit's timeout leaves time for the jobs, and for what comes after them."""
    ini = configparser.ConfigParser(interpolation=None)
    ini.read_string(files()[f"{HOME}/production.ini"])
    seconds = ini.getint("pjobs", "worker_shutdown_timeout") / 1000
    unit = files()[f"{UNITS}/{WORKER}"]
    assert float(option("TimeoutStopSec", unit)) >= seconds + 20


def test_readme_knows_dramatiqs_default() -> None:
    """The README's 10 minutes are Dramatiq's, and its actor option exists."""
    args = dramatiq.cli.make_argument_parser().parse_args(["module"])
    assert args.worker_shutdown_timeout == 10 * 60 * 1000
    assert "(10 minutes if unset)" in README
    assert "notify_shutdown" in ShutdownNotifications().actor_options


def test_workers_finish_a_job_when_stopped(host: Host) -> None:
    """A job that runs when the unit of the workers is stopped runs to its end; one that
    is sent meanwhile waits for the next workers.
    """
    # The only thread is busy.
    host.set("pjobs", processes="1", threads="1")
    with host.redis(), host.web():
        with host.worker() as process:
            job = send(host, 40)
            wait_for(lambda: status(host, job) == "working")
            process.send_signal(signal.SIGTERM)
            wait_for(lambda: "Shutting down" in host.log(WORKER))
            waiting = send(host, 1)
            assert process.wait(20) == 0
        assert (status(host, job), status(host, waiting)) == ("success", "queued")
        with host.worker():
            wait_for(lambda: status(host, waiting) == "success")


def test_job_that_takes_too_long_is_left(host: Host) -> None:
    """Workers end in time though a job still runs. With notify_shutdown the job has
    gone back to its queue, and is `retrying`.
    """
    host.set("pjobs", worker_shutdown_timeout="1000", processes="1")
    with host.redis(), host.web(), host.worker() as process:
        left, put_back = send(host, 1000), send(host, 1000, "run_patiently")
        wait_for(lambda: status(host, left) == status(host, put_back) == "working")
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
        assert (status(host, left), status(host, put_back)) == ("working", "retrying")


def test_second_signal_kills_workers(host: Host) -> None:
    """Without KillMode=mixed, systemd would send the signal to every process of the
    unit, Dramatiq would pass it on to its processes, and so kill them.
    """
    assert option("KillMode", host.files[f"{UNITS}/{WORKER}"]) == "mixed"
    with host.redis(), host.web(), host.worker() as process:
        job = send(host, 1000)
        os.kill(metric(host, job, "pid"), signal.SIGTERM)
        wait_for(lambda: "Stopping worker process" in host.log(WORKER))
        process.send_signal(signal.SIGTERM)
        # Dramatiq's code for "killed". It may lose the last lines of its log.
        assert process.wait(20) == 1


def test_reload_restarts_workers(host: Host) -> None:
    """ExecReload keeps the process id, finishes the running job, and loads new code."""
    reload_command = option("ExecReload", host.files[f"{UNITS}/{WORKER}"])
    with host.redis(), host.web(), host.worker() as process:
        job = send(host, 20)
        wait_for(lambda: status(host, job) == "working")
        jobs = (host.folder / "myapp/jobs.py").read_text()
        host.write("myapp/jobs.py", jobs + "print('new code', flush=True)\n")
        command = reload_command.replace("$MAINPID", str(process.pid))
        subprocess.run(command.split(), check=True)
        wait_for(lambda: "new code" in host.log(WORKER))
        assert status(host, job) == "success"
        assert process.poll() is None
        last = send(host, 1)
        wait_for(lambda: status(host, last) == "success")
        # The setting jobstate.base_url
        assert metric(host, last, "url") == "https://example.com"


@pytest.mark.parametrize(
    "server", ["waitress", pytest.param("gunicorn", marks=pytest.mark.long)]
)
def test_web_server_finishes_a_request_when_stopped(host: Host, server: str) -> None:
    """The unit's KillSignal lets a web server answer the request that it works on."""
    unit, exec_start = host.files[f"{UNITS}/{WEB}"], None
    if server == "gunicorn":
        unit = gunicorn_unit(host)
        exec_start = option("ExecStart", unit)
    with host.redis(), host.web(exec_start) as process:
        connection = http.client.HTTPConnection("127.0.0.1", host.web_port, timeout=20)
        with contextlib.closing(connection):
            connection.request("GET", "/slow")
            started = host.folder / "slow"
            wait_for(started.exists)
            begun = time.monotonic()
            process.send_signal(signal.Signals[option("KillSignal", unit)])
            assert connection.getresponse().status == 200
        process.wait(20)
        assert time.monotonic() - begun < float(option("TimeoutStopSec", unit))


def test_commands_name_the_units() -> None:
    """The systemctl commands of the README name its units, and others that it needs."""
    names = {path.rpartition("/")[2] for path in files() if path.endswith(".service")}
    others = {"valkey-server.service", "nginx.service"}
    shell = "\n".join(snippets("sh"))
    commands = re.findall(
        r"systemctl (?:enable --now|restart|reload) (.+)$", shell, re.M
    )
    assert len(commands) == shell.count("systemctl") >= 5
    units = {f"{name}.service" for command in commands for name in command.split()}
    assert names <= units <= names | others


def test_shell_commands_are_shell() -> None:
    """Each shell snippet of the README is read by sh without an error."""
    for text in snippets("sh"):
        subprocess.run(["sh", "-n", "-c", text], check=True)
