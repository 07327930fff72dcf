"""The command line of `pjobs`: its help, and what it refuses before a worker starts."""

import os
import subprocess
import sys
from pathlib import Path

import dramatiq
import pytest
from dramatiq.brokers.rabbitmq import RabbitmqBroker
from dramatiq.brokers.redis import RedisBroker
from dramatiq.brokers.stub import StubBroker

from pyramid_jobstate.cli import main, work
from pyramid_jobstate.cli.faults import Refused
from pyramid_jobstate.cli.ini import Ini
from tests.cliapp import free_port
from tests.support import ROOT

BOOT = "from pyramid_jobstate.cli.work import boot; boot()"
INI = "[app:main]\nuse = call:nothing:main\n"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory, with an ini."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.ini").write_text(INI)
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "texts"),
    [
        ("--help", ["pjobs INI [name=value ...] [COMMAND", "\n  work ", "\n  wait "]),
        ("a.ini --help", ["pjobs INI [name=value ...] [COMMAND"]),
        ("a.ini x=1 work --help", ["a.ini work", "--processes N", "exit codes: 0"]),
        ("a.ini dev --help", ["a.ini dev", "pserve --reload"]),
    ],
)
def test_help(
    arguments: str, texts: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Each level has a help of its own."""
    with pytest.raises(SystemExit) as caught:
        main(arguments.split())
    assert caught.value.code == 0
    output = capsys.readouterr().out
    assert all(text in output for text in texts)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "required: INI"),
        ("work", "an INI must precede the command work"),
        ("a.ini --frob", "unrecognized arguments: --frob (see `pjobs a.ini info --h"),
        ("a.ini x=1 --json list", "unrecognized arguments: list (see `pjobs a.ini i"),
        ("a.ini wrok", "invalid choice: 'wrok' (choose from "),
        ("a.ini x work", "invalid choice: 'x' (choose from "),
        ("b.ini work", "pjobs: b.ini does not exist."),
        ("a.ini work --processes two", "'two' is not a whole number from 1 to"),
        ("a.ini work --processes 0", "'0' is not a whole number from 1 to"),
        ("a.ini work -t 0", "-t/--threads: '0' is not a whole number from 1 to"),
        ("a.ini work -t -1", "-t/--threads: '-1' is not a whole number from 1 to"),
        ("a.ini work --procesess 2", "unrecognized arguments: --procesess 2"),
        ("a.ini work module", "unrecognized arguments: module"),
        ("a.ini dev --threads 2", "unrecognized arguments: --threads 2"),
        ("a.ini dev", "a.ini has no section [server:main]."),
    ],
)
def test_mistakes_are_named(
    arguments: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A mistake in the command line ends it with exit code 2 and at most two lines."""
    try:
        code: object = main(arguments.split())
    except SystemExit as e:
        code = e.code
    assert code == 2
    errors = capsys.readouterr().err
    assert message in errors
    assert len(errors.splitlines()) <= 2


@pytest.mark.parametrize("command", ["work", "dev"])
def test_mistakes_in_the_ini_are_named(
    folder: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A wrong name in [pjobs] is an error of every command that reads it."""
    (folder / "a.ini").write_text(f"{INI}[server:main]\n[pjobs]\nprocs = 2\n")
    assert main(["a.ini", command]) == 2
    assert "a.ini: 'procs' in [pjobs] is not a long flag" in capsys.readouterr().err


def test_a_flag_of_a_newer_dramatiq_is_passed_on(
    folder: Path,
) -> None:
    """A flag that only the installed Dramatiq knows is left to Dramatiq."""
    script = folder / "dramatiq"
    script.write_text("#!/bin/sh\necho '  --future N, -F N  something new'\n")
    script.chmod(0o755)
    code = "from pyramid_jobstate.cli import main; import sys\n"
    code += f"sys.executable = {str(folder / 'python')!r}\n"
    code += "main(['a.ini', 'work', '--future=2', '-p', '1'])\n"
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.stdout == "  --future N, -F N  something new\n"
    assert done.returncode == 0


def test_a_script_is_found_beside_python_or_on_the_path(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The environment's own script wins, even if it is not on PATH."""
    assert work.find_script("dramatiq") == str(
        Path(sys.executable).with_name("dramatiq")
    )
    (folder / "stray").touch(0o755)
    monkeypatch.setenv("PATH", str(folder))
    assert work.find_script("stray") == str(folder / "stray")
    with pytest.raises(Refused, match="The command missing is not installed in "):
        work.find_script("missing")


def test_a_broker_that_answers(set_broker, redis_url: str) -> None:
    """A broker that answers, or of a kind that is not known, is taken."""
    for broker in [RedisBroker(url=redis_url), dramatiq.Broker()]:
        set_broker(broker)
        work.check_broker()
        assert dramatiq.get_broker() is broker


class Connected(RabbitmqBroker):
    """A broker whose server answers."""

    def __init__(self) -> None:
        super().__init__(url="amqp://127.0.0.1")
        self.acts: list[str] = []

    @property
    def connection(self) -> None:
        self.acts.append("connect")

    @connection.deleter
    def connection(self) -> None:
        self.acts.append("close")


def test_a_rabbitmq_broker_that_answers(set_broker) -> None:
    """The connection that finds out whether RabbitMQ answers is closed."""
    broker = Connected()
    set_broker(broker)
    work.check_broker()
    assert broker.acts == ["connect", "close"]


def test_a_broker_for_tests_is_refused(set_broker) -> None:
    """A broker in memory would never receive what another process sends."""
    set_broker(StubBroker())
    with pytest.raises(Refused, match="as tests need it"):
        work.check_broker()


def test_no_broker_of_anyones(set_broker) -> None:
    """No broker, and the one that Dramatiq makes by itself, are refused."""
    set_broker(None)
    with pytest.raises(Refused, match="has no broker"):
        work.check_broker()
    assert dramatiq.broker.global_broker is None
    dramatiq.actor(actor_name="early")(lambda: None)
    with pytest.raises(Refused, match="has no broker"):
        work.check_broker()
    assert "early" in dramatiq.get_broker().actors


@pytest.mark.parametrize("scheme", ["redis", "amqp"])
def test_a_broker_out_of_reach(set_broker, scheme: str) -> None:
    """The error for a broker that does not answer leaves out its password."""
    url = f"{scheme}://user:secret@127.0.0.1:{free_port()}/0"
    set_broker((RedisBroker if scheme == "redis" else RabbitmqBroker)(url=url))
    with pytest.raises(Exception, match="refused") as caught:
        work.check_broker()
    assert "secret" not in str(caught.value)


def test_a_host_that_is_unknown(set_broker) -> None:
    """A host without an address is out of reach, too."""
    set_broker(RabbitmqBroker(url="amqp://guest:secret@unknown.invalid/"))
    with pytest.raises(work._Unreachable) as caught:
        work.check_broker()
    assert "secret" not in str(caught.value)


def test_the_place_of_a_failed_import(folder: Path) -> None:
    """The error names the application's own line, or else the library's."""
    (folder / "broken.py").write_text("\nimport missing_one\n")
    for name, place in [
        ("call:broken:main", f"{folder}/broken.py, line 2: ModuleNotFoundError: No"),
        ("call:missing_one:main", "/paste/deploy/"),
    ]:
        (folder / "a.ini").write_text(f"[app:main]\nuse = {name}\n")
        done = subprocess.run(
            [
                sys.executable,
                "-c",
                BOOT,
            ],
            env={
                **Ini.parse("a.ini", []).environ(),
                "PYTHONPATH": f"{ROOT}:{folder}",
            },
            capture_output=True,
            text=True,
        )
        assert done.returncode == 2
        assert place in done.stderr
        assert len(done.stderr.splitlines()) == 1
