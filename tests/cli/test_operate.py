"""How commands for operators find their store, and how they fail: one line on stderr,
and an exit code.
"""

import contextlib
import io
import os
import re
import signal
import socketserver
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from pyramid_jobstate import JobState, JobStore
from pyramid_jobstate.cli import act, main
from pyramid_jobstate.cli.output import NO_RICH, prepare_streams
from pyramid_jobstate.embedded import EmbeddedServer
from tests.cliapp import PJOBS, Folder, free_port
from tests.listed import create
from tests.operated import HARMLESS, HOSTILE, Operator, Start, end, finished, put, run
from tests.support import UUID, load_job, wait_for
from tests.terminal import terminal

COMMANDS = ("info", "list", "show", "log", "watch", "wait", "cancel", "rerun", "clear")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_the_exit_codes(pjobs: Operator, command: str) -> None:
    """The help of each command has its flags and the exit codes, and hides the URL."""
    ran = pjobs(command, "--help")
    assert ran.code == 0
    text = "\n".join(ran.out)
    assert f"usage: pjobs --url URL {command}" in text
    assert "--json" in text and "exit codes:" in text and "124 timed out" in text


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ("list --kindd x", "unrecognized arguments: --kindd x"),
        ("list --kin x", "unrecognized arguments: --kin x"),
        (
            "list --status done",
            "argument --status: invalid choice: 'done' (choose from",
        ),
        ("list --limit 0", "argument --limit: the limit 0 is not a positive whole"),
        ("list --owner alice", """alice is not JSON. Put a text as '"alice"' (see"""),
        ("show", "the following arguments are required: ID"),
        ("show xyz", "argument ID: the id xyz is not made of 0-9, a-f and -"),
        ("wait", "the following arguments are required: ID"),
        ("wait 4f6c --timeout soon", "the duration soon is not a duration such as 90"),
        ("cancel", "Give ids, filters, or --everything to cancel all unfinished"),
        (
            "cancel --limit 5",
            "Give ids, filters, or --everything to cancel all unfinished",
        ),
        ("cancel 4f6c --kind K", "Give either ids, or filters with or without --lim"),
        ("cancel 4f6c --everything", "Give either ids, or filters with or without"),
        ("cancel 4f6c --limit 5", "Give either ids, or filters with or without"),
        ("cancel --everything --kind K", "--everything: it stands for no filter."),
        ("cancel --status error", "argument --status: invalid choice: 'error'"),
        ("cancel --older-than=1h", "unrecognized arguments: --older-than=1h"),
        ("cancel --kind K", "Pass --yes, since nobody can be asked without a term"),
        ("clear", "Give filters, or --everything to delete all ended jobs."),
        ("clear 4f6c", "unrecognized arguments: 4f6c"),
        ("clear --status queued", "argument --status: invalid choice: 'queued'"),
        ("rerun 4f6c", "With --url, rerun needs --broker module:name."),
        ("rerun 4f6c --broker m", "the broker m is not a name such as shop.jobs:brok"),
        ("retry", "invalid choice: 'retry' (choose from work, dev, info, list, "),
        ("work", "work needs an ini instead of --url"),
        ("--kind K", "unrecognized arguments: --kind K (see `pjobs --url URL info"),
    ],
)
def test_mistakes_are_usage_errors(pjobs: Operator, arguments: str, error: str) -> None:
    """A mistake in the command line is named in one line: exit code 2."""
    ran = pjobs(*arguments.split())
    assert ran.code == 2
    assert ran.out == []
    (line,) = ran.err
    assert line.startswith("pjobs: ")
    assert error in line


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["--url"], "argument --url: expected one argument"),
        (["--url", "http://me:secret@h/", "list"], "its scheme must be one of redis,"),
        (["--url=redis://me:secret@h/x", "list"], "its path is not a database number"),
        (["--url=redis+cluster://me:secret@h/5", "list"], "--url: The URL of the"),
        (["--url=redis+cluster://h?db=5", "list"], "no other database than 0"),
        (["redis://me:secret@h/0", "list"], "Put --url before the URL of a Redis serv"),
        (["redis+cluster://me:secret@h", "list"], "Put --url before the URL"),
        (["a.ini", "--url", "redis://h", "list"], "invalid choice: 'a.ini'"),
        (["--url=redis://h", "--namespace=", "list"], "--namespace '' is empty."),
        (["--url=redis://h", "--namespace=a}", "list"], "--namespace 'a}' has a brace"),
        (["--namespace", "n", "a.ini", "list"], "--namespace needs --url"),
        (["missing.ini", "list"], "missing.ini does not exist."),
        ([".", "list"], ". is a folder, not an ini file."),
    ],
)
def test_places_that_are_none(
    pjobs: Operator, arguments: list[str], error: str
) -> None:
    """A place that cannot be one is a usage error which shows no password."""
    ran = pjobs.main(*arguments)
    assert ran.code == 2
    (line,) = ran.err
    assert error in line
    assert "secret" not in line


def test_the_url_may_follow_the_command(pjobs: Operator, store: JobStore) -> None:
    """`pjobs list --url URL` is understood, too."""
    (uuid,) = create(store, 1)
    ran = pjobs.main("list", f"--url={pjobs.url}", "--json")
    assert ran.code == 0
    assert uuid in ran.out[0]


def test_namespaces_are_apart(pjobs: Operator, store: JobStore) -> None:
    """--namespace names the prefix of the keys."""
    create(store, 1)
    (uuid,) = create(store.replace(namespace="shop"), 1)
    (line,) = pjobs("--namespace", "shop", "list").out
    assert line.startswith(uuid)


@pytest.mark.parametrize("command", [c for c in COMMANDS if c not in ("wait", "rerun")])
def test_a_store_that_is_away(pjobs: Operator, command: str) -> None:
    """A store that does not answer is said in one line without the password: 1."""
    port = free_port()
    url = f"redis://:secret@127.0.0.1:{port}/3"
    ids = [UUID] if command in ("show", "log", "cancel") else []
    filters = ["--everything", "--dry-run"] if command == "clear" else []
    ran = pjobs.main("--url", url, command, *ids, *filters)
    assert ran.code == 1
    assert ran.err == [
        f"pjobs: The store at 127.0.0.1:{port}/3 does not answer: Error 111 connecting "
        f"to 127.0.0.1:{port}. Connection refused."
    ]


def test_a_cluster_that_is_away(pjobs: Operator) -> None:
    """The client of a Cluster connects at once, and fails in the same way."""
    ran = pjobs.main(
        "--url", f"redis+cluster://:secret@127.0.0.1:{free_port()}", "list"
    )
    assert ran.code == 1
    (line,) = ran.err
    assert line.startswith("pjobs: --url: Redis Cluster cannot be connected.")
    assert "secret" not in line


def test_a_node_of_a_cluster(pjobs: Operator) -> None:
    """The error for the URL of a single server that is a node of a Cluster has the
    right scheme.
    """
    arguments = ["--cluster-enabled", "yes"]
    with (
        EmbeddedServer(arguments=arguments) as other,
        EmbeddedServer(arguments=arguments) as server,
        redis.Redis.from_url(other.url) as holder,
        redis.Redis.from_url(server.url) as client,
    ):
        holder.execute_command("CLUSTER ADDSLOTSRANGE", 0, 16383)
        client.execute_command("CLUSTER MEET", "127.0.0.1", other.port)

        def is_elsewhere() -> bool:
            with pytest.raises(redis.ResponseError) as caught:
                client.get(UUID)
            return isinstance(caught.value, redis.exceptions.MovedError)

        wait_for(is_elsewhere)
        for words in (["list"], ["show", UUID], ["wait", UUID]):
            ran = pjobs.main("--url", server.url, *words)
            place = server.url.removeprefix("redis://")
            error = (
                f"pjobs: The store at {place} is a node of a Cluster: add +cluster to "
                "the scheme of its URL, as in redis+cluster://."
            )
            assert ran == (1, [], [error])


def test_a_wrong_password(pjobs: Operator, server: EmbeddedServer) -> None:
    """A password that is wrong or missing is said so at once, even by `wait`."""
    with redis.Redis.from_url(server.url) as client:
        client.config_set("requirepass", "right")
        place = server.url.removeprefix("redis://")
        for user in ("", ":secret@", "me:secret@"):
            ran = pjobs.main("--url", f"redis://{user}{place}", "wait", UUID)
            assert ran.code == 1
            assert ran.err == [
                f"pjobs: The store at {place} rejects the user or the password, or "
                "wants one."
            ]
        client.config_set("requirepass", "")


@contextlib.contextmanager
def answering(answer: bytes) -> Iterator[int]:
    """Run a server that gives each command the same answer, and return its port."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            while data := self.request.recv(65536):
                commands = re.findall(rb"(?<![^\n])\*\d+\r\n", data)
                self.request.sendall(answer * len(commands))

    server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads, server.block_on_close = True, False
    with server:
        thread = threading.Thread(target=server.serve_forever, args=[0.01])
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


def test_another_protocol(pjobs: Operator) -> None:
    """An error says that the server at a URL does not speak Redis's protocol."""
    with answering(b"HTTP/1.1 400 \x1b[2J\r\n\r\n") as port:
        ran = pjobs.main("--url", f"redis://:secret@127.0.0.1:{port}/0", "list")
    assert ran.code == 1
    (line,) = ran.err
    assert line.startswith(f"pjobs: The store at 127.0.0.1:{port}/0 is not Redis: ")


@pytest.mark.parametrize("answer", [b":5\r\n", b"+OK\r\n"])
@pytest.mark.parametrize("protocol", [2, 3])
def test_answers_that_make_no_sense(
    pjobs: Operator, answer: bytes, protocol: int
) -> None:
    """So does one for a server that speaks the protocol, and answers something else."""
    with answering(answer) as port:
        url = f"redis://127.0.0.1:{port}/0?protocol={protocol}"
        for words in (["info"], ["wait", UUID], ["cancel", "--everything", "--yes"]):
            ran = pjobs.main("--url", url, *words)
            assert ran.code == 1
            expected = f"pjobs: The store at 127.0.0.1:{port}/0 is not Redis: it does "
            assert ran.err[-1].startswith(expected)


def test_an_error_of_ours_keeps_its_traceback(
    pjobs: Operator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An exception that a server has not caused is not hidden, nor one for which it
    cannot be asked.
    """

    def fail(*args: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("pyramid_jobstate.cli.showing.find", fail)
    for url in (pjobs.url, f"redis://127.0.0.1:{free_port()}/0"):
        with pytest.raises(ZeroDivisionError):
            pjobs.main("--url", url, "show", UUID)


def test_a_store_that_refuses(
    pjobs: Operator, store: JobStore, client: redis.Redis
) -> None:
    """What the server refuses is said with its reason."""
    client.execute_command("ACL", "SETUSER", "ann", "on", "nopass", "~*", "+@all")
    client.execute_command("ACL", "SETUSER", "ann", "-zrevrangebyscore")
    url = pjobs.url.replace("redis://", "redis://ann:x@")
    ran = pjobs.main("--url", url, "show", "4f6c")
    client.execute_command("ACL", "DELUSER", "ann")
    assert ran.code == 1
    assert "refuses: User ann has no permissions" in ran.err[0]


def test_rich_is_named_where_it_is_missing(redis_url: str, store: JobStore) -> None:
    """On a terminal without rich, a command that draws says how to install it, before
    it connects; JSON and plain lines need no rich.
    """
    code = f"import sys; sys.modules['rich'] = None; {PJOBS}"
    nowhere = f"redis://127.0.0.1:{free_port()}/0"
    with terminal("--url", nowhere, "list", code=code, columns=200) as shown:
        assert shown.end() == 1
        assert shown.text() == f"pjobs: {NO_RICH}"
    put(store)
    for extra, kind in ((["--json"], "xterm"), ([], "dumb")):
        arguments = ("--url", redis_url, "list", *extra)
        with terminal(*arguments, code=code, columns=900, TERM=kind) as shown:
            assert shown.end() == 0
            assert "run_marathon" in shown.text() or " RunMarathon " in shown.text()
    assert len(run("--url", redis_url, "list", code=code).out) == 1


def test_a_pipe_that_closes(redis_url: str, store: JobStore) -> None:
    """`| head -1` gets its line, and nothing is said about the rest."""
    create(store, 200)
    command = '"$0" -c "$1" --url "$2" list --json --limit 200 | head -1'
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command, sys.executable, PJOBS, redis_url],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.count("\n") == 1
    assert done.stderr == ""
    assert done.returncode == 141


@pytest.mark.parametrize(
    ("redirections", "code", "error"),
    [
        (">/dev/full", 1, "pjobs: The output cannot be written: No space left on dev"),
        (">&-", 1, "pjobs: The output cannot be written: Bad file descriptor."),
        (">&- 2>&-", 1, ""),
    ],
)
def test_output_that_goes_nowhere(
    redis_url: str, store: JobStore, redirections: str, code: int, error: str
) -> None:
    """A full disk and a closed stdout are errors in one line."""
    create(store, 1)
    command = f'"$0" -c "$1" --url "$2" list {redirections}'
    done = subprocess.run(
        ["bash", "-c", command, sys.executable, PJOBS, redis_url],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code
    assert done.stderr.startswith(error)
    assert done.stderr.count("\n") == bool(error)


def test_a_locale_without_the_characters(redis_url: str, store: JobStore) -> None:
    """What the encoding of stdout lacks is escaped."""
    put(store, message="Größe ☃")
    environ = {**os.environ, "PYTHONIOENCODING": "latin-1"}
    command = [sys.executable, "-c", PJOBS, "--url", redis_url, "list"]
    done = subprocess.run(command, env=environ, capture_output=True, check=True)
    assert done.stdout.endswith("Größe \\u2603\n".encode("latin-1"))


@pytest.mark.parametrize(
    ("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)]
)
def test_signals_end_a_command_quietly(
    start: Start, redis_url: str, store: JobStore, signum: int, code: int
) -> None:
    """Ctrl-C and SIGTERM have their exit codes, print nothing, and cancel no job."""
    job = put(store)
    process = start("--url", redis_url, "wait", job.uuid)
    assert process.stdout is not None
    assert "working" in process.stdout.readline()
    process.send_signal(signum)
    ran = finished(process)
    assert ran == (code, [], [])
    assert not load_job(store, job.uuid).cancel_requested


def test_nohup(start: Start, redis_url: str, store: JobStore) -> None:
    """Under nohup, a command outlives its terminal."""
    job = put(store)
    ignores = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN); "
    process = start("--url", redis_url, "wait", job.uuid, code=ignores + PJOBS)
    assert process.stdout is not None
    assert "working" in process.stdout.readline()
    process.send_signal(signal.SIGHUP)
    end(store, job)
    assert finished(process).code == 0


def test_output_that_is_no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that calls main() may have put another object in place of stdout."""
    with monkeypatch.context() as patch:
        shown = io.StringIO()
        patch.setattr("sys.stdout", shown)
        prepare_streams()
        print("☃")
    assert shown.getvalue() == "☃\n"


def test_errors_that_nobody_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    """A closed stderr changes no exit code."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as closed, monkeypatch.context() as patch:
        patch.setattr("sys.stderr", closed)
        assert main(["missing.ini", "list"]) == 2
        os.dup2(os.open(os.devnull, os.O_WRONLY), writer)


class Fragile(JobState):
    """A kind whose class fails for some records."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        if self.message:
            raise ValueError(self.message)


def test_what_is_logged_is_one_line(pjobs: Operator, store: JobStore) -> None:
    """A class that fails costs its own jobs only, and one clean line on stderr."""
    bad = store.load(UUID)
    assert bad is None
    put(store, cls=Fragile, message=None)
    with pytest.raises(ValueError, match="success"):
        put(store, cls=Fragile, message=HOSTILE)
    ran = pjobs("list")
    assert ran.code == 0
    assert len(ran.out) == 1
    (line,) = ran.err
    assert line.startswith("pjobs: The application's code for ")
    assert "which is left out." in line
    shown = HARMLESS.replace(r"\n", " ").replace(r"\u2028", " ")
    assert line.endswith(f"ValueError: {shown}")


def test_an_operator_without_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """The log names the user, or the command alone if the user has no name."""
    monkeypatch.setenv("LOGNAME", "ops")
    assert act.operator() == "ops (pjobs)"
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 2**31 - 5)
    assert act.operator() == "pjobs"


@pytest.fixture
def folder(tmp_path: Path, redis_url: str) -> Folder:
    """An application with the tests' shared Redis server."""
    return Folder(tmp_path, redis_url)


def with_ini(folder: Folder, *arguments: str, **environ: str) -> "tuple[int, str, str]":
    command = [sys.executable, "-c", PJOBS, str(folder.ini), "word=hi", *arguments]
    done = subprocess.run(
        command,
        cwd=folder.path,
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


KIND = """
from pyramid_jobstate import JobState

print("printed at import")
log.info("logged at import")


class Amble(JobState):
    title = "A walk"
"""


def test_the_application_of_an_ini(folder: Folder, store: JobStore) -> None:
    """With an ini, the application's store and kinds are known, whatever it prints is
    kept from stdout, and the log of a file tells who cancelled what.
    """
    folder.module.write_text(folder.module.read_text() + KIND)
    text = folder.ini.read_text()
    folder.ini.write_text(
        text.replace("class = StreamHandler", "class = FileHandler")
        .replace("args = (sys.stderr,)", "args = ('app.log',)")
        .replace("level = WARNING", "level = INFO")
        .replace("jobstate.redis_url", "jobstate.namespace = shop\njobstate.redis_url")
    )
    folder.module.write_text(
        folder.module.read_text().replace(
            "JobStateMiddleware()", "JobStateMiddleware(namespace='shop')"
        )
    )
    job = put(store.replace(namespace="shop"), cls=Amble)
    code, out, err = with_ini(folder, "show", job.uuid, LOGNAME="ops")
    assert (code, err) == (0, "printed at import\n")
    assert "title: A walk" in out.splitlines()
    assert "printed" not in out

    code, out, err = with_ini(folder, "cancel", job.uuid, LOGNAME="ops")
    assert (code, out) == (0, f"{job.uuid} cancelling\n")
    log = (folder.path / "app.log").read_text()
    assert f"ops (pjobs) cancelled the job {job.uuid}." in log


class Amble(JobState):
    """A kind of the application's."""


def test_what_an_ini_logs_to_the_terminal(folder: Folder, store: JobStore) -> None:
    """Of what the ini logs to the terminal, errors remain, in one line each."""
    folder.write_ini(**{"level = WARNING": "level = DEBUG"})
    more = "\nlog.warning('quiet')\nlog.error('first\\nsecond \\x1b[2J')\n"
    folder.module.write_text(folder.module.read_text() + more)
    code, out, err = with_ini(folder, "list")
    assert (code, out) == (0, "")
    assert err == "pjobs: first second \\x1b[2J\n"


@pytest.mark.parametrize(
    ("old", "new", "code", "error"),
    [
        ("import logging", "import missing_one", 1, "line 2: ModuleNotFoundError: No"),
        ("greeting = None", "1 / 0", 1, "ZeroDivisionError: division by zero"),
        ("greeting = None", "raise SystemExit(0)", 1, "line 17: SystemExit: 0"),
        ("greeting = None", "raise SystemExit('bye')", 1, "line 17: SystemExit: bye"),
        (
            "greeting = None",
            "raise ValueError('no pg://me:hush@db/x, pg://a:b s3cr3t@db\\n s3cr3t')",
            1,
            "ValueError: no pg://…@db/x, pg://…@db …",
        ),
        ('config.include("pyramid_jobstate")', "pass", 1, "does not include pyramid_"),
    ],
)
def test_an_application_that_does_not_start(
    folder: Folder, old: str, new: str, code: int, error: str
) -> None:
    """An application that fails is told in one line, without a secret: 1."""
    folder.module.write_text(
        folder.module.read_text()
        .replace(old, new)
        .replace('config.add_view(send, route_name="send")', "")
    )
    secrets = "api_secret = s3cr3t\ndb = pg://a:b s3cr3t@db\n"
    folder.write_ini(**{"greeting =": f"{secrets}greeting ="})
    found, out, err = with_ini(folder, "list")
    assert (found, out) == (code, "")
    assert err.startswith("pjobs: The application of ")
    assert error in err
    assert err.count("\n") == 1
    assert "s3cr3t" not in err and "hush" not in err


@pytest.mark.parametrize(
    ("settings", "code", "error"),
    [
        ("jobstate.stalled = 3", 1, "The setting jobstate.stalled is unknown."),
        ("jobstate.path = redis://:hush@h/x", 1, "setting jobstate.path = "),
        ("greeting = %(nothing)s", 2, "uses %(nothing)s, which has no value."),
        ("greeting", 2, "is not `name = value`."),
    ],
)
def test_an_ini_that_is_wrong(
    folder: Folder, settings: str, code: int, error: str
) -> None:
    """A wrong setting is told in one line."""
    folder.write_ini(**{"greeting = %(word)s": settings})
    found, out, err = with_ini(folder, "list")
    assert (found, out) == (code, "")
    assert error in err
    assert err.count("\n") == 1
    assert "hush" not in err


STUB = """
from pyramid.config import Configurator


def main(global_conf, **settings):
    with Configurator(settings=settings) as config:
        config.include("pyramid_jobstate")
        return config.make_wsgi_app()
"""


def test_a_stub_broker_has_no_jobs_to_read(folder: Folder) -> None:
    """With `jobstate.broker = stub`, jobs live in the process that sends them."""
    folder.module.write_text(STUB)
    folder.write_ini(**{"jobstate.redis_url": "jobstate.broker = stub\nx"})
    code, _, err = with_ini(folder, "list")
    assert code == 2
    assert "jobstate.broker is stub, whose jobs only" in err


COMPOSITE = """
[composite:main]
use = call:both:make
/a = a
/b = b

[app:a]
use = call:cliapp:main
jobstate.redis_url = {url}

[app:b]
use = call:cliapp:main
jobstate.redis_url = {url}
jobstate.namespace = other
"""


def test_applications_with_different_stores(folder: Folder, store: JobStore) -> None:
    """If an ini makes applications with different stores, one must be named."""
    folder.module.write_text(STUB)
    text = COMPOSITE.format(url=folder.url).replace("call:both:make", "call:both:make")
    (folder.path / "both.py").write_text(
        "def make(loader, global_conf, **paths):\n"
        "    return [loader.get_app(name) for name in paths.values()]\n"
    )
    folder.ini.write_text(text)
    (uuid,) = create(store.replace(namespace="other"), 1)
    code, _, err = with_ini(folder, "list")
    assert code == 2
    assert "makes applications with different stores: <JobStore 'jobstate' at " in err
    folder.ini = Path(f"{folder.ini}#b")
    code, out, _ = with_ini(folder, "list")
    assert code == 0
    assert out.startswith(uuid)
