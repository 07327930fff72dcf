"""`pjobs INI work` and `dev`: what becomes of the ini and of the flags, without the
processes.
"""

import importlib
import importlib.metadata
import os
import re
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import dramatiq
import dramatiq.broker
import pytest
from dramatiq.cli import make_argument_parser

from pyramid_jobstate.embedded import EmbeddedServer
from tests.cliapp import BROKERLESS, Folder
from tests.operated import Operator, with_ini

#: An application that needs no store, and notes its settings.
APP = """
import dramatiq
from dramatiq.brokers.rabbitmq import RabbitmqBroker
from dramatiq.brokers.redis import RedisBroker
from dramatiq.brokers.stub import StubBroker
from pyramid.exceptions import ConfigurationError

seen = []


def main(global_conf, **settings):
    seen.append(settings)
    {}
    return object()
"""

INI = "[app:main]\nuse = call:cliapp:main\n"


class Command(NamedTuple):
    """The command that a process has become, and its environment."""

    words: list[str]
    environ: dict[str, str]

    @property
    def flags(self) -> list[str]:
        return self.words[2:]


Become = Callable[..., Command]
Boot = Callable[..., tuple[object, list[str]]]
Wanted = Callable[[str], list[Any]]


class Became(BaseException):
    """The process has become a command, or would have started one."""


@pytest.fixture
def pjobs(
    redis_url: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Operator:
    """Runs commands, whose output passes by sys.stderr."""
    return Operator(redis_url, capfd, monkeypatch)


@pytest.fixture
def become(pjobs: Operator, monkeypatch: pytest.MonkeyPatch) -> Become:
    """Returns the command that a `pjobs` becomes."""
    execve = mock.Mock(side_effect=Became)
    monkeypatch.setattr(os, "execve", execve)

    def become(*arguments: str) -> Command:
        with pytest.raises(Became):
            pjobs.main(*arguments)
        path, words, environ = execve.call_args.args
        assert path == words[0]
        return Command(words, environ)

    return become


@pytest.fixture
def boot(
    become: Become, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Boot:
    """Boots a worker process as Dramatiq does, and returns its exit code and stderr."""

    def boot(command: Command) -> tuple[object, list[str]]:
        sys.modules.pop("cliapp", None)
        dramatiq.broker.global_broker = None
        module, _, name = command.words[1].partition(":")
        code: object = None
        with monkeypatch.context() as patch:
            for key in command.environ.keys() - os.environ.keys():
                patch.setenv(key, command.environ[key])
            capfd.readouterr()
            try:
                getattr(importlib.import_module(module), name)()
            except SystemExit as e:
                code = e.code
        return code, capfd.readouterr().err.splitlines()

    return boot


def test_help_of_the_processes(pjobs, folder):
    """`work` and `dev` have their own help, and `work` every flag of Dramatiq's."""
    words = ("cli.ini", "x=1", "word=hi")
    text = "\n".join(pjobs.main(*words, "work", "--help").printed())
    assert "cli.ini work" in text and "exit codes: 0" in text
    flag = re.compile(r"(?<![\w-])--?[a-zA-Z][a-z-]*")
    theirs = {*flag.findall(make_argument_parser().format_help())} - {"--version"}
    assert {"--processes", "--watch-use-polling", "-t"} <= theirs
    assert theirs <= {*flag.findall(text)}
    text = "\n".join(pjobs.main(*words, "dev", "--help").printed())
    assert "pserve --reload" in text


def test_mistakes_in_flags_are_named(pjobs, folder):
    """A mistake in the command line ends it with exit code 2 and at most two lines."""
    from_1 = "is not a whole number from 1 to"
    for arguments, message in (
        ("b.ini work", "pjobs: b.ini does not exist."),
        ("cli.ini word=hi work --processes two", f"'two' {from_1}"),
        ("cli.ini word=hi work -t -1", f"-t/--threads: '-1' {from_1}"),
        ("cli.ini word=hi work --procesess 2", "unrecognized arguments: --procesess 2"),
        ("cli.ini word=hi work module", "unrecognized arguments: module"),
        ("cli.ini word=hi dev --threads 2", "unrecognized arguments: --threads 2"),
    ):
        ran = pjobs.main(*arguments.split())
        assert (ran.code, len(ran.err) <= 2) == (2, True), arguments
        assert message in ran.err[-1]


def test_command_line_wins_over_the_ini(folder, become):
    """A flag, in its long or short form, replaces the ini's; the others stay. A
    variable of its name hides a setting: neither becomes a flag.
    """
    folder.write_ini("processes = 1\nthreads = 2\nqueues = default other")
    given = (str(folder.ini), "word=hi", "work")
    command = become(*given, "--threads", "1", "--log-file", "work.log")
    assert Path(command.words[0]).name == "dramatiq"
    assert command.flags[:4] == ["--threads", "1", "--log-file", "work.log"]
    assert command.flags[4:] == ["--processes", "1", "--queues", "default", "other"]
    command = become(*given, "-p3")
    assert command.flags == ["-p3", "--threads", "2", "--queues", "default", "other"]
    folder.write_ini("processes = 1\nthreads = 2")
    assert become(*given[:2], "threads=3", "work").flags == ["--processes", "1"]


def test_values_of_the_ini_become_flags(folder, become):
    """Each kind of value becomes arguments. Python's files are watched by default."""
    given = (str(folder.ini), "word=hi", "work")
    for setting, flags in (
        ("worker_shutdown_timeout = 0", ["--worker-shutdown-timeout", "0"]),
        ("queues = default\n  mail", ["--queues", "default", "mail"]),
        ("pid-file = /run/a b", ["--pid-file=/run/a b"]),
        ("watch-include = *.a *.b", ["--watch-include=*.a", "--watch-include=*.b"]),
        ("use-spawn = yes", ["--use-spawn"]),
        ("skip-logging = false", []),
        ("verbose = 2", ["--verbose", "--verbose"]),
        ("path =", []),
        ("watch = /srv", ["--watch=/srv", "--watch-include=**/*.py"]),
        ("watch =", []),
    ):
        folder.write_ini(setting)
        assert become(*given).flags == flags, setting
    folder.write_ini()
    watching = ["--watch", ".", "-i", "*.jinja2"]
    assert become(*given, *watching).flags == [*watching, "--threads", "2"]


def test_mistakes_in_the_ini_name_the_setting(pjobs, folder):
    """A wrong name or value is an error that names it, its section and the file."""
    for setting, message in (
        ("procesess = 2", "'procesess' in [pjobs] is not a long flag of Dramatiq's. "),
        ("p = 2", "'p' in [pjobs] is not a long flag"),
        ("processes = ٣", "is '٣', not a whole number from 1 to "),
        ("threads = 0", "threads in [pjobs] is '0', not a whole number from "),
        ("worker_shutdown_timeout = -1", "is '-1', not a whole number from 0 to "),
        ("use_spawn = tru", "use_spawn in [pjobs] is 'tru', neither true nor false."),
    ):
        folder.write_ini(setting)
        for command in "work", "dev":
            line = pjobs.main(str(folder.ini), "word=hi", command).error(2)
            assert line.startswith(f"pjobs: {folder.ini}: ")
            assert message in line


def test_script_is_beside_python_or_on_the_path(pjobs, folder, become, monkeypatch):
    """The environment's own script wins. It may have flags that are unknown here."""
    given = (str(folder.ini), "word=hi", "work", "-p1")
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    assert become(*given).words[0] == str(Path(sys.executable).with_name("dramatiq"))
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    monkeypatch.setattr(sysconfig, "get_path", lambda name: "/nowhere")
    text = "pjobs: The command dramatiq is not installed in /nowhere."
    assert pjobs.main(*given)[::2] == (2, [text])
    script = folder.path / "dramatiq"
    script.write_text("#!/bin/sh\necho '  --future N, -F N  something new'\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder.path), prepend=":")
    command = become(*given, "--future=2")
    assert command.words[0] == str(script)
    assert command.flags[:2] == ["-p1", "--future=2"]
    assert pjobs.main(*given, "--past").code == 2


def test_worker_process_finds_the_ini(
    folder, become, boot, tmp_path_factory, monkeypatch
):
    """A worker makes the application of the ini, in any folder, with its variables."""
    folder.module.write_text(APP.format("dramatiq.set_broker(dramatiq.Broker())"))
    values = "url = redis://%(host)s\nplace = %(here)s\nname = %(__script__)s\n"
    folder.ini.write_text(f"{INI}{values}")
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    monkeypatch.chdir(folder.path)
    for given in "cli.ini", "cli.ini#main", "file+ini://cli.ini", str(folder.ini):
        command = become(given, "host=a=b", "c=d", "work")
        with monkeypatch.context() as patch:
            patch.chdir(elsewhere)
            assert boot(command) == (None, [])
        assert sys.modules["cliapp"].seen == [
            {"url": "redis://a=b", "place": str(folder.path), "name": "pjobs"}
        ], given
    found = boot(command._replace(environ={}))
    assert found == (2, ["pjobs: Start this with `pjobs INI work`."])


def test_application_is_checked(folder, become, boot):
    """The exit code and stderr tell what the application raises, and at which line. A
    worker does not start without a broker, or with one that is out of reach or in the
    memory of one process. Passwords stay out of the reason. What the application says
    for want of a broker stands alone.
    """
    folder.ini.write_text(INI)
    command = become(str(folder.ini), "work")
    own = f"pjobs: {folder.module}, line 13: ModuleNotFoundError: No"
    none, away = "pjobs: The application has no broker. Set", "pjobs: The broker cannot"
    set_broker = "dramatiq.set_broker({})".format
    hostile, cleaned = r"no\nway redis://:secret@h \x1b", r"no way redis://…@h \x1b"
    for body, code, text in (
        ("import missing_one", 2, own),
        ("1 / 0", 1, "ZeroDivisionError: division by zero"),
        ("raise SystemExit(0)", 1, "SystemExit: 0"),
        ("raise SystemExit(7)", 7, ""),
        ("greeting = (", 1, "SyntaxError: '(' was never closed"),
        ("dramatiq.get_broker()", 2, none),
        (f"raise ConfigurationError('{hostile}')", 2, f"pjobs: {cleaned}"),
        (set_broker("StubBroker()"), 2, "as tests need it"),
        (set_broker(f"RedisBroker(url={folder.url!r})"), None, ""),
        (set_broker("RedisBroker(url='redis://:secret@127.0.0.1:1')"), 3, away),
        (set_broker("RabbitmqBroker(url='amqp://u:secret@127.0.0.1:1')"), 3, away),
    ):
        folder.module.write_text(APP.format(body))
        found, lines = boot(command)
        output = "\n".join(lines)
        assert found == code, (body, output)
        assert text in output, body
        assert "secret" not in output
        assert ("Traceback" in output) == (code == 1)


def test_wrong_configuration(folder, become, boot):
    """A setting that is wrong, misspelt or missing is told in one line, and so is what
    the application configures wrongly, with its place. No other cause is suspected.
    """
    own = folder.module.read_text()
    for setting, source, text in (
        ("broker = redis//h/0", BROKERLESS, "The setting jobstate.broker = '…' is "),
        ("broker = redis://h:x", BROKERLESS, "The setting jobstate.broker is invalid."),
        ("brokr = redis://h", BROKERLESS, "The setting jobstate.brokr is unknown. Di"),
        ("max_uuids = 5", BROKERLESS, "pyramid_jobstate does not know where job state"),
        ("ownr = session", own, "The setting jobstate.ownr is unknown. Did you mean "),
        (
            f"redis_url = {folder.url}",
            own.replace('route_name="send"', 'route_name="sent"'),
            f"{folder.module}, line 45: No route named sent found for view registrat",
        ),
    ):
        folder.module.write_text(source)
        folder.ini.write_text(f"{INI}jobstate.{setting}\n")
        code, lines = boot(become(str(folder.ini), "work"))
        assert (code, len(lines)) == (2, 1), (setting, lines)
        assert lines[0].startswith(f"pjobs: {text}"), setting


def test_ini_that_cannot_be_found(pjobs, folder):
    """The error names what is missing, or what the system says of the file."""
    (folder.path / "plain").write_text(INI)
    (folder.path / "bad.ini").symlink_to("/proc/self/mem")
    for given, message in (
        ("missing.ini", "missing.ini does not exist."),
        (".", ". is a folder, not an ini file."),
        ("plain", "plain is not an ini file. Could not determine the loader scheme"),
        ("toml://a.toml", "a.toml is not an ini file. Could not find a matching"),
        ("bad.ini", "bad.ini cannot be read: Input/output error."),
        ("file+ini://missing.ini", "missing.ini does not exist."),
        ("cli.ini#other", "cli.ini has no section [app:other] or [pipeline:other]."),
    ):
        assert message in pjobs.main(given, "work").error(2)


def test_ini_that_cannot_be_read(pjobs, folder):
    """The error names the place, and does not quote values, which may be passwords."""
    server = "[server:main]\nport = 8080\n"
    for text, message in (
        ("url = secret\n", "line 1 stands before any [section]."),
        (f"{INI}secret\n", "line 3 is not `name = value`."),
        (f"{INI}a = 1\na = 2\n", "option 'a' in section 'app:main' already exists"),
        (f"{INI}url = secret%(host)s\n", "[app:main] url uses %(host)s, which has no "),
        (f"{INI}url = secret%\n", "[app:main] url has a % that is neither %% nor"),
        (f"{INI}url = \xfc\n", "is not encoded in UTF-8."),
        (INI, "has no section [server:main]."),
    ):
        folder.ini.write_text(text if text == INI else text + server, "latin-1")
        line = pjobs.main(str(folder.ini), "dev").error(2)
        assert message in line
        assert str(folder.ini) in line and "secret" not in line


@pytest.fixture
def wanted(
    pjobs: Operator,
    folder: Folder,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Wanted:
    """Returns the servers that `dev` starts for an ini: host, port and databases."""
    found: list[Any] = []

    def start(server: EmbeddedServer) -> None:
        found.append((server.host, server.port, server.databases))

    monkeypatch.setattr(EmbeddedServer, "start", start)
    monkeypatch.setattr(EmbeddedServer, "stop", lambda server: None)
    monkeypatch.setattr(subprocess, "Popen", mock.Mock(side_effect=Became))

    def wanted(ini: str) -> list[Any]:
        folder.ini.write_text(f"{ini}\n[server:main]\nport = 8080\n")
        found.clear()
        with pytest.raises(Became):
            with_ini(pjobs, folder, "dev")
        return [*found]

    return wanted


def test_servers_start_at_local_urls_only(wanted, redis_url, capfd):
    """A server starts at each local URL without a password where nothing answers."""
    local, near = "127.0.0.1", "redis://localhost:{}".format
    cases: list[tuple[str, str | None, list[tuple[str, int, int]]]] = [
        ("redis://[::1]:1/3", None, [("::1", 1, 16)]),
        ("redis://LOCALHOST:1/2", "redis://127.0.0.1:1/20", [(local, 1, 21)]),
        (near(2), near(1), [(local, 1, 16), (local, 2, 16)]),
        (redis_url, None, []),
        ("redis://:secret@localhost:1", None, []),
        ("redis://example.com:1", None, []),
        ("rediss://localhost:1", None, []),
    ]
    for url, broker, servers in cases:
        settings = f"{INI}jobstate.redis_url = {url}\n"
        if broker is not None:
            settings += f"jobstate.broker = {broker}\n"
        assert wanted(settings) == servers, url
    assert "The ini sets neither" not in capfd.readouterr().err
    assert wanted(INI) == []
    assert "The ini sets neither jobstate.broker nor" in capfd.readouterr().err


def test_settings_are_the_applications(wanted, folder):
    """The settings are those of the applications, however they are composed."""
    setting = "jobstate.redis_url = redis://localhost:{}\n".format
    base = f"[app:main]\nuse = config:./cli.ini#y\n{setting(7)}"
    (folder.path / "base.ini").write_text(base)
    composite = "[composite:main]\nuse = egg:Paste#urlmap\n/a = a\n/b = b\n"
    pipeline = "[pipeline:main]\npipeline = f config:base.ini\n"
    for text, ports in (
        (f"[pipeline:main]\npipeline = filter site\n[app:site]\n{setting(1)}", [1]),
        (f"{composite}[app:a]\n{setting(1)}[app:b]\n{setting(2)}", [1, 2]),
        (f"[filter-app:main]\nnext = a\n[app:a]\n{setting(1)}", [1]),
        (f"{pipeline}[app:y]\n{setting(2)}", [2, 7]),
    ):
        assert sorted(port for _, port, _ in wanted(text)) == ports, text
