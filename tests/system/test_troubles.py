"""The page "Troubleshooting" is true: what it quotes is logged or shown, most of it in
real runs here.
"""

import ast
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
from tests.deployed import WEB, WORKER, Host, files, get, metric, nginx, send, status
from tests.readme import DOCUMENTS, page
from tests.support import PACKAGE, UUID, frozen_process, load_job, wait_for

CHAPTER = page("howto/troubleshoot")

#: The beginnings of commands and settings, which are not quotations.
OTHERS = re.compile(r"(redis-cli|proutes|dramatiq|pjobs) |[\w.]+ = ")

#: An application's own broker without RequestMiddleware, and an actor that needs it.
BROKERED = """
import dramatiq
from dramatiq.brokers.redis import RedisBroker
from pyramid_jobstate import JobStateMiddleware

broker = RedisBroker(url={url!r})
broker.add_middleware(JobStateMiddleware())
dramatiq.set_broker(broker)


@dramatiq.actor(max_retries=0)
def needy(*, request, job_state):
    pass
"""


#: Dramatiq's default broker, if its address happens to be that of the application's.
DEFAULT = """
import dramatiq
from dramatiq.brokers.redis import RedisBroker

broker = RedisBroker(url={url!r})
dramatiq.set_broker(broker)
"""


@pytest.fixture
def host(host: Host) -> Host:
    """Override: a host whose worker is one process with two threads."""
    host.set("pjobs", processes="1", threads="2")
    return host


def quotations() -> list[str]:
    """Return the chapter's literal texts that have a space, except commands."""
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
    "away": [
        "The job state store does not answer.",
        "Requests for jobs get a 503 response until it does: …",
        "Connection refused.",
        "The broker cannot be reached",
        "connect() failed",
    ],
    "refused": [
        "You may not do this with the job.",
        "view_job was refused on …",
        "Job states are stored in … and served at …",
        "The job does not exist.",
    ],
    "unanswered": [
        "invalid username-password pair or user is disabled.",
        "Authentication required.",
        "TimeoutError: Timeout",
    ],
    "full": [
        "The job state store refused a request, which gets a 503 response: "
        "OutOfMemoryError: command not allowed when used memory > 'maxmemory'",
        "The job state store does not accept updates.",
        "Worker process is ready for action.",
    ],
    "workers": [
        "Job states are stored in … and served at …",
        "Received message for undefined actor",
        "exited unexpectedly (code -9)",
    ],
    "mistaken": [
        "TypeError: run_marathon() missing 2 required keyword-only arguments: "
        "'request' and 'job_state'"
    ],
    "own_broker": ["missing 1 required keyword-only argument: 'request'"],
}

#: Further texts of the chapter that are not the package's: lines of a configuration.
CONFIGURATION = ["appendonly yes"]


def away(host: Host) -> str:
    with host.web(), host.unit(WORKER) as worker:
        code, found = get(host, f"/job_state/{UUID}")
        assert code == 503
        assert worker.wait(20) == 3
        found += host.log(WEB) + host.log(WORKER)
    with nginx(host) as browser:
        assert browser("/").status == 502
        return found + host.log("nginx")


def refused(host: Host) -> str:
    with host.redis(), host.web():
        code, found = get(host, f"/job_state/{send(host, 1).uuid}")
        assert code == 403
        assert get(host, "/job_state") == (200, '{"items":[],"cursor":null}')
        # Any other 404 comes from elsewhere.
        assert "The job does not exist." not in get(host, f"/x/{UUID}")[1]
        found += get(host, f"/job_state/{UUID}")[1] + host.log(WEB)
        assert "ACLDenied" in found
        assert "for principals ['system.Everyone']" in found
        return found


def unanswered(host: Host) -> str:
    found = ""
    with host.redis() as client:
        for user in ":wrong@", "":
            url = re.sub(r"(?<=//).*@", user, host.redis_url)
            with pytest.raises(redis.AuthenticationError) as info:
                JobStore(url).load(UUID)
            found += str(info.value)
        with host.web():
            with frozen_process(client.info()["process_id"]):
                assert get(host, f"/job_state/{UUID}")[0] == 503
            return found + host.log(WEB)


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


def workers(host: Host) -> str:
    host.set(jobstate__stalled_after="1s")
    # With only one process, Dramatiq may end before it has written the line.
    host.set("pjobs", processes="2")
    with host.redis(), host.web():
        unknown = send(host, 1, "run_patiently")
        jobs = host.folder / "installed/myapp/jobs.py"
        jobs.write_text(jobs.read_text().replace("run_patiently", "run_otherwise"))
        with host.worker() as process:
            wait_for(lambda: status(host, unknown) == "error")
            wait_for(lambda: "undefined actor" in host.log(WORKER))
            job = send(host, 1000)
            wait_for(lambda: status(host, job) == "working")
            store = JobStore(host.redis_url, stalled_after=1)
            os.kill(metric(host, job, "pid"), signal.SIGKILL)
            assert process.wait(20) == 1
            wait_for(lambda: load_job(store, job.uuid).status == "stalled")
            return host.log(WORKER)


def mistaken(host: Host) -> str:
    host.write("default.py", DEFAULT.format(url=host.redis_url))
    with host.redis(), host.web():
        job = send(host, 1)
        command = f"{host.folder}/venv/bin/dramatiq default myapp.jobs -p 1"
        with host.worker(command):
            wait_for(lambda: "Retrying message" in host.log(WORKER))
            assert status(host, job) == "queued"
        return host.log(WORKER)


def own_broker(host: Host) -> str:
    host.write("brokered.py", BROKERED.format(url=host.redis_url))
    make: Callable[..., dramatiq.Broker] = RedisBroker  # RedisBroker is untyped
    broker = make(url=host.redis_url)
    broker.declare_queue("default")
    message: dramatiq.Message[None] = dramatiq.Message("default", "needy", (), {}, {})
    with host.redis(), host.worker(f"{host.folder}/venv/bin/dramatiq brokered -p 1"):
        broker.enqueue(message)
        wait_for(lambda: status(host, message.message_id) == "error")
        # The log goes through a pipe.
        wait_for(lambda: "TypeError: " in host.log(WORKER))
        return host.log(WORKER)


@pytest.mark.parametrize("name", RUNS)
def test_trouble_is_told(host, name):
    """Each trouble logs or answers what the README tells its reader to look for."""
    run: Callable[[Host], str] = globals()[name]
    logged = run(host)
    for text in RUNS[name]:
        assert text in quotations(), text
        pattern = ".*".join(map(re.escape, text.split("…")))
        assert re.search(pattern, logged), logged


def test_quotations_are_real():
    """All that the chapter quotes is the package's, or was seen in a run above."""
    seen = {text for found in RUNS.values() for text in found}
    known = texts()
    found = quotations()
    assert len(found) > 30
    for text in found:
        if text in seen or text in CONFIGURATION:
            continue
        pattern = re.compile(".*".join(map(re.escape, text.split("…"))))
        assert any(map(pattern.search, known)), text
    assert all(text in "".join(files().values()) for text in CONFIGURATION)


def test_titles_in_messages_exist():
    """The package's messages name titles of this chapter, and of the documentation."""
    said = " ".join(" ".join(texts()).split())
    for place, text in ("troubleshooting guide", CHAPTER), ("documentation", DOCUMENTS):
        named = re.findall(rf'[Ss]ee "([^"]+)" in the {place}', said)
        titles = re.findall(r"^(.+)\n[=~-]+$", text, re.MULTILINE)
        assert named and set(named) <= set(titles)


def test_what_the_readme_asks_exists(host):
    """The README's commands show what it says, such as a job that no worker takes."""
    (ask,) = re.findall(r"``redis-cli (llen [\w:]+)``", CHAPTER)
    (list_routes,) = re.findall(r"``(proutes [\w.]+)``", CHAPTER)
    host.set("pjobs", queues="mail")
    with host.redis() as client, host.web(), host.worker():
        job, later = send(host, 1), send(host, 1, "send_mails")
        wait_for(lambda: status(host, later) == "success")
        assert client.execute_command(*ask.split()) == 1
        client.delete("dramatiq:default", "dramatiq:default.msgs")
        assert status(host, job) == "queued"
        assert "evicted_keys" in client.info("stats")
        assert client.slowlog_get() is not None
    routes = subprocess.run(
        [f"{host.folder}/venv/bin/{list_routes.split()[0]}", *list_routes.split()[1:]],
        cwd=host.folder,
        env={**os.environ, **host.environ},
        capture_output=True,
        text=True,
    )
    assert "/job_state/{uuid}/cancel" in routes.stdout, routes.stderr
