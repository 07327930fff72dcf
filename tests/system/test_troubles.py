"""The README's chapter "When it does not work" is true: what it quotes is logged or
shown, most of it in real runs here.
"""

import ast
import contextlib
import http.client
import os
import re
import signal
import subprocess
from collections.abc import Callable

import dramatiq
import pytest
import redis
from dramatiq.brokers.redis import RedisBroker

from pyramid_jobstate import JobStore
from tests.deployed import (
    WEB,
    WORKER,
    Host,
    answers,
    files,
    metric,
    nginx,
    send,
    status,
)
from tests.readme import README
from tests.support import PACKAGE, UUID, frozen_process, load_job, wait_for

CHAPTER = README.partition("When it does not work\n---")[2]
CHAPTER = CHAPTER.partition("Use it in other applications\n---")[0]

#: The beginnings of commands and settings, which are not quotations.
OTHERS = re.compile(r"(redis-cli|proutes|dramatiq|pjobs) |[\w.]+ = ")

#: An application's own broker, and an actor that needs a request.
BROKERED = """
import dramatiq
from dramatiq.brokers.redis import RedisBroker
from pyramid_jobstate import JobStateMiddleware, RequestMiddleware

broker = RedisBroker(url={url!r})
broker.add_middleware(JobStateMiddleware())
{more}
dramatiq.set_broker(broker)


@dramatiq.actor(max_retries=0)
def needy(*, request, job_state):
    pass
"""


#: A policy that ignores ACLs.
REFUSING = """
class Policy:
    def authenticated_userid(self, request):
        return None

    def permits(self, request, context, permission):
        return False


def includeme(config):
    config.set_security_policy(Policy())
"""


@pytest.fixture
def host(host: Host) -> Host:
    """Override: a host whose worker is one process with two threads."""
    host.set("pjobs", processes="1", threads="2")
    return host


def quotations() -> list[str]:
    """Return the literal texts of the chapter that contain a space, but for commands
    and settings.
    """
    # The snippets contain no double backquotes.
    found = [" ".join(text.split()) for text in re.findall(r"``(.+?)``", CHAPTER, re.S)]
    return [text for text in found if " " in text and not OTHERS.match(text)]


def texts() -> list[str]:
    """Return the string literals of the package, with … for what is filled in."""
    found = []
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.JoinedStr):
                found.append("".join(map(part, node.values)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(part(node))
    script = (PACKAGE / "static/job-state.js").read_text("utf-8")
    return found + re.findall(r'"([^"\n]+)"', script)


def part(node: ast.expr) -> str:
    """Return a part of a string."""
    if isinstance(node, ast.Constant):
        return re.sub(r"%[rsd]", "…", str(node.value))
    return "…"


#: What each function below has made a real run log or answer, besides its own checks.
RUNS: dict[str, list[str]] = {
    "forbidden": [
        "You may not do this with the job.",
        "view_job was refused on …",
        "Job states are stored in … and served at …",
        "A job has the kind … but this process has not imported a JobState class of "
        "that kind",
    ],
    "nobody": [
        "The application has neither a security policy nor the setting jobstate.owner",
        "You may not do this with the job.",
    ],
    "refused_by_policy": ["view_job was refused on …"],
    "unknown": ["The job does not exist."],
    "away": [
        "The job state store does not answer.",
        "Requests for jobs get a 503 response until it does: …",
        "Connection refused.",
        "The broker cannot be reached",
    ],
    "wrong_password": ["invalid username-password pair or user is disabled."],
    "missing_password": ["Authentication required."],
    "slow": ["TimeoutError: Timeout"],
    "full": [
        "The job state store refused a request, which gets a 503 response: "
        "OutOfMemoryError: command not allowed when used memory > 'maxmemory'",
        "The job state store does not accept updates.",
        "Worker process is ready for action.",
    ],
    "undefined_actor": ["Received message for undefined actor"],
    "killed_worker": ["exited unexpectedly (code -9)"],
    "no_application": [
        "needs a request, but this process has made no Pyramid application"
    ],
    "no_middleware": ["missing 1 required keyword-only argument: 'request'"],
    "no_broker": ["The application has no broker."],
    "no_web_server": ["connect() failed"],
}

#: Further texts of the chapter that are not the package's: lines of a configuration.
CONFIGURATION = ["appendonly yes"]


def get(host: Host, path: str) -> tuple[int, str]:
    """Ask the web server, without a cookie."""
    connection = http.client.HTTPConnection("127.0.0.1", host.web_port, timeout=20)
    with contextlib.closing(connection):
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read().decode()


def forbidden(host: Host) -> str:
    with host.redis():
        with host.web():
            job = send(host, 1)
            code, body = get(host, f"/job_state/{job.uuid}")
            assert code == 403
            found = body + host.log(WEB)
            assert "ACLDenied" in found
            assert "for principals ['system.Everyone']" in found
            assert get(host, "/job_state") == (200, '{"items":[],"cursor":null}')
        # An application without the actor's module does not know the class.
        path = "myapp/__init__.py"
        text = (host.folder / path).read_text("utf-8")
        host.write(path, text.replace("from . import jobs\n", ""))
        with host.web():
            assert get(host, f"/job_state/{job.uuid}")[0] == 403
            return found + host.log(WEB)


def nobody(host: Host) -> str:
    host.set(jobstate__owner=None)
    with host.redis(), host.web():
        code, body = get(host, f"/job_state/{send(host, 1).uuid}")
        assert code == 403
        return body + host.log(WEB)


def refused_by_policy(host: Host) -> str:
    host.write("refusing.py", REFUSING)
    host.set(pyramid__includes="refusing")
    with host.redis(), host.web():
        assert get(host, f"/job_state/{send(host, 1).uuid}")[0] == 403
        assert "ACLDenied" not in host.log(WEB)
        return host.log(WEB)


def unknown(host: Host) -> str:
    with host.redis(), host.web():
        code, body = get(host, f"/job_state/{UUID}")
        assert code == 404
        assert "The job does not exist." not in get(host, f"/shop/job_state/{UUID}")[1]
        return body


def away(host: Host) -> str:
    with host.web(), host.unit(WORKER) as worker:
        code, body = get(host, f"/job_state/{UUID}")
        assert code == 503
        assert worker.wait(20) == 3
        return body + host.log(WEB) + host.log(WORKER)


def wrong_password(host: Host) -> str:
    return with_password(host, ":wrong@")


def missing_password(host: Host) -> str:
    return with_password(host, "")


def with_password(host: Host, user: str) -> str:
    with host.redis():
        url = re.sub(r"(?<=//).*@", user, host.redis_url)
        host.set(jobstate__broker=url)
        with host.web():
            assert get(host, f"/job_state/{UUID}")[0] == 503
            return host.log(WEB)


def slow(host: Host) -> str:
    with host.redis() as client, host.web():
        with frozen_process(client.info()["process_id"]):
            assert get(host, f"/job_state/{UUID}")[0] == 503
        return host.log(WEB)


def full(host: Host) -> str:
    with host.redis() as client, host.web(), host.worker():
        job = send(host, 60)
        wait_for(lambda: status(host, job) == "working")
        client.config_set("maxmemory", 1)
        assert get(host, "/run?n=1")[0] == 503
        with pytest.raises(redis.exceptions.OutOfMemoryError):
            load_job(JobStore(host.redis_url), job.uuid).cancel()
        assert get(host, f"/job_state/{UUID}")[0] == 404
        wait_for(lambda: "does not accept updates" in host.log(WORKER))
        found = host.log(WEB) + host.log(WORKER)
        client.config_set("maxmemory", 0)
        wait_for(lambda: status(host, job) == "success")
        progress = load_job(JobStore(host.redis_url), job.uuid).progress
        assert progress is not None
        assert progress.done == 60
        return found


def undefined_actor(host: Host) -> str:
    with host.redis():
        with host.web():
            job = send(host, 1, "run_patiently")
        path = "myapp/jobs.py"
        text = (host.folder / path).read_text("utf-8")
        host.write(path, text.replace("run_patiently", "run_otherwise"))
        with host.worker():
            wait_for(lambda: status(host, job) == "error")
            wait_for(lambda: "undefined actor" in host.log(WORKER))
            return host.log(WORKER)


def killed_worker(host: Host) -> str:
    host.set(jobstate__stalled_after="1s")
    # With only one process, Dramatiq may end before it has written the line.
    host.set("pjobs", processes="2")
    with host.redis(), host.web(), host.worker() as process:
        job = send(host, 1000)
        wait_for(lambda: status(host, job) == "working")
        store = JobStore(host.redis_url, stalled_after=1)
        os.kill(metric(host, job, "pid"), signal.SIGKILL)
        assert process.wait(20) == 1
        wait_for(lambda: load_job(store, job.uuid).status == "stalled")
        return host.log(WORKER)


def no_application(host: Host) -> str:
    return of_own_broker(host, "broker.add_middleware(RequestMiddleware())")


def no_middleware(host: Host) -> str:
    return of_own_broker(host, "")


def of_own_broker(host: Host, more: str) -> str:
    host.write("brokered.py", BROKERED.format(url=host.redis_url, more=more))
    with host.redis(), host.worker(f"{host.folder}/venv/bin/dramatiq brokered -p 1"):
        uuid = send_needy(host)
        wait_for(lambda: status(host, uuid) == "error")
        # The log goes through a pipe.
        error = "RuntimeError: " if more else "TypeError: "
        wait_for(lambda: error in host.log(WORKER))
        return host.log(WORKER)


def send_needy(host: Host) -> str:
    """Send a message without the web server, and return its id."""
    make: Callable[..., dramatiq.Broker] = RedisBroker  # RedisBroker is untyped
    broker = make(url=host.redis_url)
    broker.declare_queue("default")
    message: dramatiq.Message[None] = dramatiq.Message("default", "needy", (), {}, {})
    broker.enqueue(message)
    return message.message_id


def no_broker(host: Host) -> str:
    host.set(jobstate__broker=None, jobstate__redis_url=host.redis_url)
    with host.unit(WORKER) as worker:
        assert worker.wait(20) == 2
        return host.log(WORKER)


def no_web_server(host: Host) -> str:
    with nginx(host) as browser:
        assert browser("/").status == 502
        return host.log("nginx")


@pytest.mark.parametrize("name", RUNS)
def test_trouble_is_told(host: Host, name: str) -> None:
    """Each trouble has the effect that the README describes. A log or an answer
    contains what the reader is told to look for.
    """
    run: Callable[[Host], str] = globals()[name]
    logged = run(host)
    for text in RUNS[name]:
        assert text in quotations(), text
        pattern = ".*".join(map(re.escape, text.split("…")))
        assert re.search(pattern, logged), logged


def test_quotations_are_real() -> None:
    """Everything that the chapter quotes is a text of the package, or has been seen in
    a run above.
    """
    seen = {text for found in RUNS.values() for text in found}
    known = texts()
    found = quotations()
    assert len(found) > 30
    for text in found:
        if text in seen or text in CONFIGURATION:
            continue
        pattern = re.compile(".*".join(map(re.escape, text.split("…"))))
        assert any(map(pattern.search, known)), text
    configuration = "".join(files().values())
    assert all(text in configuration for text in CONFIGURATION)


def test_messages_wait_for_a_worker_of_their_queue(host: Host) -> None:
    """A job stays queued while the workers listen to other queues, and its message
    is in the list that the README asks for. It stays queued without its message.
    """
    (command,) = re.findall(r"``redis-cli (llen [\w:]+)``", CHAPTER)
    host.set("pjobs", queues="mail")
    with host.redis() as client, host.web(), host.worker():
        job = send(host, 1)
        later = send(host, 1, "send_mails")
        wait_for(lambda: status(host, later) == "success")
        assert client.execute_command(*command.split()) == 1
        assert status(host, job) == "queued"
        client.delete("dramatiq:default", "dramatiq:default.msgs")
        assert client.execute_command(*command.split()) == 0
        assert status(host, job) == "queued"


def test_job_that_was_never_sent_is_stalled(host: Host) -> None:
    """A job whose web server was killed between the commit and the send is stalled, and
    has not started. Workers never get it.
    """
    with host.redis() as client:
        with host.web() as process:
            with pytest.raises((http.client.HTTPException, OSError)):
                get(host, "/run_and_die?n=1")
            assert process.wait(20) == -signal.SIGKILL
        store = JobStore(host.redis_url, stalled_after=0.1)
        (job,) = store.list().items
        wait_for(lambda: load_job(store, job.uuid).status == "stalled")
        assert job.started_at is None
        assert client.llen("dramatiq:default") == 0


def test_routes_can_be_listed(host: Host) -> None:
    """The README's command lists the routes to jobs."""
    (command,) = re.findall(r"``(proutes [\w.]+)``", CHAPTER)
    done = subprocess.run(
        [f"{host.folder}/venv/bin/{command.split()[0]}", *command.split()[1:]],
        cwd=host.folder,
        env=host.environ,
        capture_output=True,
        text=True,
    )
    assert "/job_state/{uuid}/cancel" in done.stdout, done.stderr


def test_names_of_statistics_exist(host: Host) -> None:
    """Redis reports what the README tells the reader to look at."""
    with host.redis() as client:
        assert answers(client)
        assert "evicted_keys" in client.info("stats")
        assert client.slowlog_get() is not None
