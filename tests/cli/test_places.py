"""Where `pjobs` finds its jobs, how it is called, and how it fails: one line on stderr,
and an exit code.
"""

import contextlib
import re
import shlex
import socket
from pathlib import Path
from unittest import mock

import dramatiq.broker
import pytest

from pyramid_jobstate import JobError, JobState, JobStore
from pyramid_jobstate.testing import pass_time
from tests.cliapp import BROKERLESS
from tests.operated import put, with_ini
from tests.relay import Relay
from tests.support import UUID
from tests.webapp import NOWHERE

COMMANDS = ("info", "list", "show", "log", "watch", "wait", "cancel", "rerun", "clear")


def test_each_command_has_its_help(pjobs):
    """Each help has its flags and the exit codes. That of `pjobs` has the commands."""
    for command in COMMANDS:
        text = "\n".join(pjobs(command, "--help").printed())
        assert f"usage: pjobs --url URL {command}" in text
        assert "--json" in text and "exit codes:" in text and "124 timed out" in text
    text = "\n".join(pjobs.main("--help").printed())
    assert "pjobs INI [name=value ...] [COMMAND" in text
    assert all(f"\n  {name} " in text for name in (*COMMANDS, "work", "dev"))


def test_mistakes_are_usage_errors(pjobs, store):
    """A mistake in the command line is named in one line: exit code 2."""
    aim = "Give ids, filters, or --everything to cancel all unfinished"
    either = "Give either ids, or filters with or without --limit."
    for arguments, error in (
        ("list --kin x", "unrecognized arguments: --kin x"),
        ("list --status done", "argument --status: invalid choice: 'done' (choose fro"),
        ("list --status failed", "cancelled). Did you mean 'error'? (see `pjobs"),
        ("rerun --status FAILED", "(choose from error). Did you mean 'error'? (see"),
        ("clear --status soon", "(choose from success, error, cancelled) (see `pjobs"),
        ("show", "the following arguments are required: ID"),
        ("cancel", aim),
        ("cancel --limit 5", aim),
        ("cancel 4f6c --everything", either),
        ("cancel 4f6c --limit 5", either),
        ("cancel --everything --kind K", "--everything: it stands for no filter."),
        ("cancel --status error", "argument --status: invalid choice: 'error'"),
        ("clear", "Give filters, or --everything to delete all ended jobs."),
        ("clear 4f6c", "unrecognized arguments: 4f6c"),
        ("rerun 4f6c", "With --url, rerun needs --broker module:name."),
        ("rerun 4f6c --broker m", "the broker m is not a name such as shop.jobs:brok"),
        ("retry", "invalid choice: 'retry' (choose from work, dev, info, workers, "),
        ("work", "work needs an ini instead of --url"),
        ("--kind K", "unrecognized arguments: --kind K (see `pjobs --url URL info"),
    ):
        assert error in pjobs(*arguments.split()).error(2)


def test_values_are_checked(pjobs, store):
    """Owners are JSON, limits numbers, durations those of settings, ids hexadecimal."""
    no_owner = " is neither a text nor a number"
    no_limit = " is not a positive whole number"
    no_duration = " is not a duration such as 90"
    no_id = " is not made of 0-9, a-f and -"
    for words, value, error in (
        ("list --owner=", "alice", """ is not JSON. Put a text as '"alice"' (see"""),
        ("list --owner=", "NaN", no_owner),
        ("list --owner=", '["alice"]', no_owner),
        ("list --owner=", "[" * 100_000, " is not JSON"),
        *(("list --limit=", n, no_limit) for n in ("0", "-1", "1.5", "", "１")),
        *(("wait 4f6c --timeout=", n, no_duration) for n in ("0", "soon", "٣s")),
        *(("show ", n, no_id) for n in ("4f6c*", "a" * 37)),
    ):
        assert f"{value}{error}" in pjobs(*f"{words}{value}".split()).error(2)
    for name in "90", "15m", "0.5":
        assert pjobs("clear", "--older-than", name, "--dry-run").code == 0


def test_places_that_are_none(pjobs):
    """A place that cannot be one is a usage error which shows no password."""
    for arguments, error in (
        (["--url"], "argument --url: expected one argument"),
        (["--url", "http://me:secret@h/", "list"], "its scheme must be one of redis,"),
        (["--url=redis+cluster://me:secret@h/5", "list"], "--url: The URL of the"),
        (["redis://me:secret@h/0", "list"], "Put --url before the URL of a Redis serv"),
        (["a.ini", "--url", "redis://h", "list"], "invalid choice: 'a.ini'"),
        (["--url=redis://h", "--namespace=", "list"], "--namespace '' is empty."),
        (["--namespace", "n", "a.ini", "list"], "--namespace needs --url"),
        (["--namespace", "n", "list", "a.ini"], "--namespace needs --url"),
        (
            ["x=redis://:secret@h", "list", "a.ini"],
            "precede the variable x=redis://…@h",
        ),
        (["x=1/a.ini", "list"], "x=1/a.ini does not exist."),
        ([], "the following arguments are required: INI"),
        (["list"], "an INI must precede the command list, as in `pjobs INI list`"),
        (["a.ini", "x=1", "--json", "list"], "unrecognized arguments: list (see `pjob"),
        (["a.ini", "lsit"], "invalid choice: 'lsit' (choose from "),
        (["-1", "list", "info"], "invalid choice: 'list info' (choose from "),
    ):
        line = pjobs.main(*arguments).error(2)
        assert error in line
        assert "secret" not in line


def test_command_before_the_ini_is_told_the_order(pjobs, tmp_path, monkeypatch):
    """The error says that the ini comes first, and shows the right command line, even
    beside a folder with the name of the command.
    """
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path)
    for words, better in (
        ("work development.ini", "development.ini work"),
        ("dev 'a.ini#site' x=1 y=2", "'a.ini#site' x=1 y=2 dev"),
        ("work --processes 2 a.ini x=1", "a.ini x=1 work --processes 2"),
        ("list --kind 'a b' 'my dir/a.ini'", "'my dir/a.ini' list --kind 'a b'"),
        ("show 4f6c", "INI show 4f6c"),
        ("list redis://:secret@h/0", "INI list redis://…@h/0"),
    ):
        command = words.split()[0]
        assert pjobs.main(*shlex.split(words)).error(2) == (
            f"pjobs: an INI must precede the command {command}, as in `pjobs {better}` "
            "(see `pjobs --help`)"
        )


def test_url_may_follow_the_command(pjobs, store):
    """--url may follow the command. --namespace is the prefix of the keys."""
    job, other = put(store), put(store.replace(namespace="shop"))
    ran = pjobs.main("list", f"--url={pjobs.url}", "--json")
    assert job.uuid in ran.printed()[0]
    (line,) = pjobs("--namespace", "shop", "list").out
    assert line.startswith(other.uuid)


def test_store_that_is_away(pjobs):
    """A store that does not answer is said in one line without the password: 1."""
    for words in ["info"], ["list"], ["show", UUID], ["watch"], ["cancel", UUID]:
        ran = pjobs.main("--url", "redis://:secret@127.0.0.1:1/3", *words)
        error = "Error 111 connecting to 127.0.0.1:1. Connection refused."
        text = f"pjobs: The store at 127.0.0.1:1/3 does not answer: {error}"
        assert (ran.code, ran.err) == (1, [text])
    line = pjobs.main("--url", "redis+cluster://:secret@127.0.0.1:1", "list").error(1)
    assert line.startswith("pjobs: --url: Redis Cluster cannot be connected.")
    assert "secret" not in line


class Impostor(Relay):
    """Gives one answer to each command, of which several may come at once."""

    answer = b""

    def _refusal(self, client: socket.socket, request: bytes) -> bytes:
        return self.answer * len(re.findall(rb"^\*\d+\r\n", request, re.MULTILINE))


def test_server_that_is_no_redis(pjobs):
    """The error says that a server is not Redis, or that it is a node of a Cluster."""
    add = "add +cluster to the scheme of its URL, as in redis+cluster://."
    for answer, words, error in (
        (b"HTTP/1.1 400 \x1b[2J\r\n\r\n", ["list"], "not Redis: "),
        (b":5\r\n", ["wait", UUID], "not Redis: it do"),
        (b"-MOVED 1 127.0.0.1:7000\r\n", ["show", UUID], f"a node of a Cluster: {add}"),
    ):
        with contextlib.closing(Impostor(pjobs.url)) as server:
            server.answer = answer
            ran = pjobs.main("--url", f"{server.url}?protocol=2", *words)
        place = server.url.removeprefix("redis://")
        assert (ran.code, ran.out) == (1, [])
        assert ran.err[-1].startswith(f"pjobs: The store at {place} is {error}")
        assert "\x1b" not in ran.err[-1]


def test_error_of_ours_keeps_its_traceback(pjobs, store):
    """An exception that no server has caused is not hidden."""
    fail = mock.Mock(side_effect=ZeroDivisionError)
    uuid = put(store).uuid
    for url, name in (pjobs.url, "failures"), (NOWHERE, "load_many"):
        with mock.patch.object(JobStore, name, fail), pytest.raises(ZeroDivisionError):
            pjobs.main("--url", url, "show", uuid)


KIND = """
print("printed at import")
log.info("logged at import")


class Saunter(JobState):
    kind = "{kind}"


class Hike(Saunter):
    kind = "{kind} uphill"
"""


class Saunter(JobState):
    """A kind that the application knows."""

    kind = "Saunter of the tests"


def test_application_of_an_ini(pjobs, folder, store, monkeypatch):
    """With an ini, the store, kinds and log are the application's, and stdout ours."""
    monkeypatch.setenv("LOGNAME", "ops")
    source = folder.module.read_text() + KIND.format(kind=folder.path)
    middleware = "JobStateMiddleware(namespace='shop')"
    folder.module.write_text(source.replace("JobStateMiddleware()", middleware))
    folder.write_ini(
        **{
            "class = StreamHandler": "class = FileHandler",
            "args = (sys.stderr,)": "args = ('app.log',)",
            "level = WARNING": "level = INFO",
            "greeting": "jobstate.namespace = shop\njobstate.expire_in = 2h\ngreeting",
        }
    )
    job = put(store.replace(namespace="shop"), "queued", cls=Saunter)
    ran = with_ini(pjobs, folder, "show", job.uuid)
    assert (ran.code, ran.err) == (0, ["printed at import"])
    assert "kind: Saunter of the tests" in ran.out
    assert "printed at import" not in ran.out
    ran = pjobs.main(str(folder.ini), "word=hi")
    assert ran.code == 0
    assert ran.out[0].endswith("| 2 h: success 0  error 0")
    kinds = [line.split("  ")[0] for line in ran.out[1:]]
    assert kinds[0] == "Saunter of the tests"
    assert {str(folder.path), f"{folder.path} uphill"} <= {*kinds}
    ran = pjobs.main(str(folder.ini), "word=hi", "cancel", job.uuid)
    assert (ran.code, ran.out) == (0, [f"{job.uuid} cancelled"])
    log = (folder.path / "app.log").read_text()
    assert f"ops (pjobs) cancelled the job {job.uuid}." in log


def test_url_knows_no_setting(pjobs, folder, store):
    """With --url, jobstate.stalled_after is unknown. With the ini it counts."""
    folder.write_ini(greeting="jobstate.stalled_after = 1m\ngreeting")
    put(store)
    for seconds, status in (14, "working"), (2, "stalled"):
        pass_time(store, seconds)
        assert status in pjobs("list").printed()[0]
    assert "working" in with_ini(pjobs, folder, "list").printed()[0]


def test_rerun_with_an_ini(pjobs, folder, store):
    """With an ini, jobs run again through the application's broker and no other."""
    job = put(store, "error", actor="mail", error=JobError("E", "x"))
    line = with_ini(pjobs, folder, "rerun", "--broker", "m:b", job.uuid).error(2)
    assert line.startswith("pjobs: --broker needs --url")
    ran = with_ini(pjobs, folder, "rerun", job.uuid)
    assert ran == (0, [f"{job.uuid} queued"], [])
    folder.module.write_text(BROKERLESS)
    line = with_ini(pjobs, folder, "rerun", job.uuid).error(2)
    assert line.startswith("pjobs: The application has no broker.")
    assert dramatiq.broker.global_broker is None


def test_log_to_the_terminal(pjobs, folder, store):
    """Of what the ini logs to the terminal, errors remain, in one line each."""
    folder.write_ini(**{"level = WARNING": "level = DEBUG"})
    with folder.module.open("a") as module:
        print("log.warning('quiet'); log.error('first\\nsecond \\x1b[2J')", file=module)
        print("log.error('third', exc_info=ValueError('wrong'))", file=module)
    ran = with_ini(pjobs, folder, "list")
    lines = ["pjobs: first second \\x1b[2J", "pjobs: third ValueError: wrong"]
    assert ran == (0, [], lines)


def test_application_that_does_not_start(pjobs, folder):
    """An application that fails is told in one line, without a secret: 1."""
    view = 'config.add_view(send, route_name="send")'
    source = folder.module.read_text().replace(view, "")
    secrets = "api_secret = s3cr3t\ndb = pg://a:b s3cr3t@db\n"
    folder.write_ini(**{"greeting =": f"{secrets}greeting ="})
    shown = "raise ValueError('no pg://me:hush@db/x, pg://a:b s3cr3t@db\\n s3cr3t')"
    for old, new, error in (
        ("import logging", "import missing_one", "line 2: ModuleNotFoundError: No"),
        ("greeting = None", "raise SystemExit(0)", "line 17: SystemExit: 0"),
        ("greeting = None", shown, "ValueError: no pg://…@db/x, pg://…@db …"),
        ('config.include("pyramid_jobstate")', "pass", "does not include pyramid_"),
    ):
        folder.module.write_text(source.replace(old, new))
        line = with_ini(pjobs, folder, "list").error(1)
        assert line.startswith("pjobs: The application of ")
        assert error in line
        assert "s3cr3t" not in line and "hush" not in line


COMPOSITE = """
[composite:main]
use = call:cliapp:make
x = a
y = b

[app:a]
use = call:cliapp:main
jobstate.redis_url = {url}

[app:b]
use = call:cliapp:main
jobstate.redis_url = {url}
jobstate.namespace = other
"""

MAKE = """
def make(loader, global_conf, **paths):
    return [loader.get_app(name) for name in paths.values()]
"""


def test_several_applications(pjobs, folder, store):
    """If an ini makes applications with different stores, one must be named."""
    folder.module.write_text(BROKERLESS + MAKE)
    folder.ini.write_text(COMPOSITE.format(url=folder.url))
    job = put(store.replace(namespace="other"))
    text = "makes applications with different stores: <JobStore 'jobstate' at "
    assert text in with_ini(pjobs, folder, "list").error(2)
    folder.ini = Path(f"{folder.ini}#b")
    assert with_ini(pjobs, folder, "list").printed()[0].startswith(job.uuid)


def test_ini_that_is_wrong(pjobs, folder):
    """A wrong setting, or a broker whose jobs no other process sees, is an error."""
    for settings, code, error in (
        ("jobstate.stalled = 3", 1, "The setting jobstate.stalled is unknown."),
        ("jobstate.path = redis://:hush@h/x", 1, "setting jobstate.path = "),
        ("greeting = %(nothing)s", 2, "uses %(nothing)s, which has no value."),
    ):
        folder.write_ini(**{"greeting = %(word)s": settings})
        line = with_ini(pjobs, folder, "list").error(code)
        assert error in line and "hush" not in line
    folder.module.write_text(BROKERLESS)
    folder.write_ini(**{"jobstate.redis_url": "jobstate.broker = stub\nx"})
    line = with_ini(pjobs, folder, "list").error(2)
    assert "jobstate.broker is stub, whose jobs only" in line
