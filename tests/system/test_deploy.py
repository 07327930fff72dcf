"""The README's chapter "Deploy" is true: its files work together, on a host that is a
folder with free ports.
"""

import configparser
import gzip
import json
import re
import signal
import subprocess
from concurrent.futures import ThreadPoolExecutor

import dramatiq.cli
import pytest
import redis
from dramatiq.middleware import ShutdownNotifications

from pyramid_jobstate import JobStore
from tests.deployed import (
    HOME,
    PUSH,
    UNITS,
    WEB,
    WORKER,
    Browser,
    files,
    get,
    metric,
    nginx,
    option,
    program,
    send,
    status,
)
from tests.processes import fetch
from tests.readme import page, snippets
from tests.support import wait_for


@pytest.mark.parametrize("server", ["waitress", "gunicorn"])
def test_polls_through_nginx(host, server):
    """Through nginx, the URLs of a job are those of the outside, and ETags work."""
    unit = files()[f"{UNITS}/{WEB}"] if server == "waitress" else variant(server)
    exec_start = option("ExecStart", host.replaced(unit))
    with host.redis(), host.web(exec_start), nginx(host) as browser:
        assert browser("/job_state").json == {"items": [], "cursor": None}
        sent = browser("/run?n=3").json["url"]
        assert sent.startswith("https://example.com/job_state/")
        path = sent.removeprefix("https://example.com")
        for encoding in "identity", "gzip":
            polled = browser(path, accept_encoding=encoding)
            body = polled.body
            if encoding == "gzip":
                assert polled.headers["Content-Encoding"] == "gzip"
                body = gzip.decompress(body)
            assert json.loads(body)["job"]["url"] == sent
            assert polled.headers["Cache-Control"] == "private, no-store"
            etag = polled.headers["ETag"]
            again = browser(path, if_none_match=etag, accept_encoding=encoding)
            assert (again.status, again.body) == (304, b"")
        script = browser("/job_state/static/job-state.js")
        assert (script.status, b"startPolling" in script.body) == (200, True)
        cancelled = browser(f"{path}cancel", "POST", x_requested_with="a script")
        assert cancelled.status == 202
        assert cancelled.json["job"]["status"] == "cancelled"
        assert Browser(host)(path).status == 403


def test_scheme_is_that_of_the_outside(host):
    """Port 80 redirects to https. Only a proxy at 127.0.0.1 may name the scheme."""
    host.set("server:main", trusted_proxy="192.0.2.1")
    with host.redis(), host.web(), nginx(host) as browser:
        assert browser("/run?n=1").json["url"].startswith("http://example.com/")
        answer = fetch(host.http_port, "/run?n=1", Host="example.com")
        assert answer.status == 301
        assert answer.headers["Location"] == "https://example.com/run?n=1"


def test_server_of_the_readme_keeps_everything(host):
    """The server has a password, evicts nothing, and has its data after a restart."""
    with host.redis() as client:
        for name, value in {
            "maxmemory-policy": "noeviction",
            "appendonly": "yes",
            "maxmemory": str(512 * 1024**2),
        }.items():
            assert client.config_get(name) == {name: value}
        url = host.redis_url.replace(":a-long-random-password-of-yours@", "")
        with pytest.raises(redis.RedisError, match=r"(?i)authenticat"):
            JobStore(url).list()
        client.set("kept", 1)
    with host.redis() as client:
        assert client.get("kept") == b"1"


def variant(name: str) -> str:
    """Return the unit of the web server with the README's lines for another one."""
    text = files()[f"{UNITS}/{WEB}"]
    for line in files()[f"{UNITS}/{WEB}, with {name}"].splitlines()[1:]:
        option = line.partition("=")[0]
        text = re.sub(rf"^{option}=.*\n", "", text, flags=re.MULTILINE)
        text = text.replace("[Service]\n", f"[Service]\n{line}\n")
    return text


def test_units_are_valid(host):
    """Systemd accepts the units, also with the lines for gunicorn and uvicorn."""
    verify = program("systemd-analyze", "systemd")
    units = {name: files()[f"{UNITS}/{name}"] for name in (WEB, WORKER, PUSH)}
    units |= {f"myapp-{n}.service": variant(n) for n in ("gunicorn", "uvicorn")}
    paths = [host.write(name, host.replaced(text)) for name, text in units.items()]
    checked = subprocess.run(
        [verify, "verify", "--man=no", *map(str, paths)], capture_output=True, text=True
    )
    assert checked.returncode == 0, checked.stderr
    # Other units of the machine may have faults of their own.
    assert "myapp" not in checked.stderr


def test_units_leave_time_to_stop():
    """A unit's timeout leaves time for the jobs, and for what comes after them."""
    ini = configparser.ConfigParser(interpolation=None)
    ini.read_string(files()[f"{HOME}/production.ini"])
    seconds = ini.getint("pjobs", "worker_shutdown_timeout") / 1000
    unit = files()[f"{UNITS}/{WORKER}"]
    assert float(option("TimeoutStopSec", unit)) >= seconds + 20
    # Else systemd would send the signal to every process of the unit, Dramatiq would
    # pass it on to its processes, and so kill them.
    assert option("KillMode", unit) == "mixed"
    args = dramatiq.cli.make_argument_parser().parse_args(["module"])
    assert args.worker_shutdown_timeout == 10 * 60 * 1000
    assert "(10 minutes if unset)" in page("howto/deploy")
    assert "notify_shutdown" in ShutdownNotifications().actor_options


def test_workers_finish_a_job_when_stopped(host):
    """A stopped worker ends its job; one sent meanwhile waits for the next workers."""
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


def test_job_that_takes_too_long_is_left(host):
    """Workers end in time though a job still runs, which may go back to its queue."""
    host.set("pjobs", worker_shutdown_timeout="1000", processes="1")
    with host.redis(), host.web(), host.worker() as process:
        left, put_back = send(host, 1000), send(host, 1000, "run_patiently")
        wait_for(lambda: status(host, left) == status(host, put_back) == "working")
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
        assert (status(host, left), status(host, put_back)) == ("working", "retrying")


def test_reload_restarts_workers(host):
    """ExecReload keeps the process id, finishes the running job, and loads new code."""
    reload_command = option("ExecReload", host.files[f"{UNITS}/{WORKER}"])
    with host.redis(), host.web(), host.worker() as process:
        job = send(host, 20)
        wait_for(lambda: status(host, job) == "working")
        jobs = host.folder / "installed/myapp/jobs.py"
        jobs.write_text(jobs.read_text() + "print('new code', flush=True)\n")
        command = reload_command.replace("$MAINPID", str(process.pid))
        subprocess.run(command.split(), check=True)
        wait_for(lambda: "new code" in host.log(WORKER))
        assert status(host, job) == "success"
        assert process.poll() is None
        last = send(host, 1)
        wait_for(lambda: status(host, last) == "success")
        # The setting jobstate.base_url
        assert metric(host, last, "url") == "https://example.com"


def test_web_server_finishes_a_request_when_stopped(host):
    """The unit's KillSignal lets waitress answer the request that it works on."""
    with host.redis(), host.web() as process, ThreadPoolExecutor(1) as pool:
        answer = pool.submit(get, host, "/slow")
        wait_for((host.folder / "slow").exists)
        unit = host.files[f"{UNITS}/{WEB}"]
        process.send_signal(signal.Signals[option("KillSignal", unit)])
        assert answer.result()[0] == 200
        process.wait(float(option("TimeoutStopSec", unit)))


def test_shell_commands_name_the_units():
    """Each shell snippet parses, and its systemctl commands name known units."""
    for text in snippets("sh"):
        subprocess.run(["sh", "-n", "-c", text], check=True)
    names = {path.rpartition("/")[2] for path in files() if path.endswith(".service")}
    others = {"valkey-server.service", "nginx.service"}
    shell = "\n".join(snippets("sh"))
    commands = re.findall(
        r"systemctl (?:enable --now|restart|reload) (.+)$", shell, re.M
    )
    assert len(commands) == shell.count("systemctl") >= 5
    units = {f"{name}.service" for command in commands for name in command.split()}
    assert names <= units <= names | others
