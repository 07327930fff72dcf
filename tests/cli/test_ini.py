"""Ini files: found and read as pserve does, with short errors that name the culprit."""

from pathlib import Path

import plaster
import pytest
from pyramid.scripts.common import get_config_loader

from pyramid_jobstate.cli.faults import Refused
from pyramid_jobstate.cli.ini import Ini

APP = "[app:main]\nuse = call:nothing:main\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(folder: Path, text: str) -> str:
    (folder / "a.ini").write_text(text)
    return "a.ini"


@pytest.mark.parametrize("given", ["a.ini", "a.ini#main", "file+ini://a.ini", "/a.ini"])
def test_the_path_becomes_absolute(folder: Path, given: str) -> None:
    """A child process in another directory finds the same ini."""
    write(folder, APP)
    if given.startswith("/"):
        given = f"{folder}{given}"
    ini = Ini.parse(given, ["a=b", "c=d=e"])
    assert ini.path == str(folder / "a.ini")
    assert ini.uri.startswith(f"file+ini://{folder}/a.ini")
    assert ini.uri.endswith("#main") == given.endswith("#main")
    assert ini.variables == {"a": "b", "c": "d=e"}
    assert ini.variables == {"a": "b", "c": "d=e"}


def test_a_child_process_reads_the_same_ini(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ini and its variables travel in one variable of the environment."""
    ini = Ini.parse(write(folder, APP), ["a=b"])
    (name,) = [key for key in ini.environ() if "JOBSTATE_INI" in key]
    monkeypatch.setenv(name, ini.environ()[name])
    assert Ini.from_environ() == ini
    monkeypatch.delenv(name)
    with pytest.raises(Refused, match="Start this with `pjobs INI work`"):
        Ini.from_environ()


def test_loader_is_looked_for_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However often an ini is read, plaster looks through the installed distributions
    once, and what has changed in the file is seen.
    """
    found: list[str] = []

    def find(uri: str) -> plaster.ILoader:
        found.append(uri)
        return get_config_loader(uri)

    monkeypatch.setattr("pyramid_jobstate.cli.ini.get_config_loader", find)
    ini = Ini.parse(write(folder, APP), [])
    write(folder, f"{APP}a = 1\n[pjobs]\nthreads = 2\n")
    assert ini.section("pjobs") == {"threads": "2"}
    assert [settings["a"] for settings in ini.app_settings()] == ["1"]
    assert found == [ini.uri]


def test_settings_use_variables(folder: Path) -> None:
    """Sections may use the variables, `here` and `__script__`."""
    text = f"{APP}url = redis://%(host)s\nfolder = %(here)s\nname = %(__script__)s\n"
    ini = Ini.parse(write(folder, text), ["host=example.com"])
    (settings,) = ini.app_settings()
    assert settings["url"] == "redis://example.com"
    assert settings["folder"] == str(folder)
    assert settings["name"] == "pjobs"
    assert ini.section("pjobs") == {}
    assert ini.has_section("app:main") and not ini.has_section("pjobs")


@pytest.mark.parametrize(
    "text",
    [
        "[pipeline:main]\npipeline = filter site\n[app:site]\nx = 1\n",
        "[application:main]\nx = 1\n",
        "[composite:main]\nuse = egg:Paste#urlmap\n/a = a\n[app:a]\nx = 1\n",
        "[filter-app:main]\nnext = a\n[app:a]\nx = 1\n",
    ],
)
def test_settings_of_the_application_itself(folder: Path, text: str) -> None:
    """The settings are those of the applications, however they are composed."""
    found = Ini.parse(write(folder, text), []).app_settings()
    assert "1" in [settings.get("x") for settings in found]


def test_settings_of_a_file_that_is_used(folder: Path) -> None:
    """An application may take its settings from another file, which may use it."""
    (folder / "base.ini").write_text("[app:main]\nuse = config:a.ini\nx = 1\n")
    ini = Ini.parse(write(folder, "[app:main]\nuse = config:base.ini#main\n"), [])
    assert [settings.get("x") for settings in ini.app_settings()] == [None, "1"]


def test_settings_of_files_that_are_composed(folder: Path) -> None:
    """Files named in a pipeline count, also where each uses the other; a section that
    nobody uses may lack a variable.
    """
    (folder / "base.ini").write_text(
        "[app:main]\nuse = config:./a.ini#y\nx = 1\n[app:other]\nx = %(none)s\n"
    )
    text = f"[pipeline:main]\npipeline = f config:base.ini\n[app:y]\n{APP}x = 2\n"
    text = text.replace(f"{APP}", "") + "[app:unused]\nx = %(nothing)s\n"
    ini = Ini.parse(write(folder, text), [])
    assert {settings.get("x") for settings in ini.app_settings()} == {"1", "2"}


def test_a_uri_that_is_not_a_file(folder: Path) -> None:
    """An egg names an application without settings of its own."""
    ini = Ini.parse("egg:pyramid_jobstate#main", [])
    assert ini.uri == "egg://pyramid_jobstate#main"
    assert ini.app_settings() == []


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("missing.ini", "missing.ini does not exist."),
        (".", ". is a folder, not an ini file."),
        ("plain", "plain is not an ini file. Could not determine the loader scheme"),
        ("a.py", "a.py is not an ini file. Could not find a matching loader"),
        ("file+ini://missing.ini", "missing.ini does not exist."),
        ("a.ini#other", "a.ini has no section [app:other] or [pipeline:other]."),
    ],
)
def test_an_ini_that_cannot_be_found(folder: Path, given: str, message: str) -> None:
    """The error names what is missing."""
    write(folder, APP)
    (folder / "a.py").touch()
    with pytest.raises(Refused) as caught:
        Ini.parse(given, [])
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no section [app:main] or [pipeline:main]."),
        ("url = secret\n", "line 1 stands before any [section]."),
        (f"{APP}secret\n", "line 3 is not `name = value`."),
        (f"{APP}a = 1\na = 2\n", "option 'a' in section 'app:main' already exists"),
        (f"{APP}url = secret%(host)s\n", "[app:main] url uses %(host)s, which has no "),
        (f"{APP}url = secret%\n", "[app:main] url has a % that is neither %% nor"),
        (f"{APP}url = \xfc\n", "is not encoded in UTF-8."),
    ],
)
def test_an_ini_that_cannot_be_read(folder: Path, text: str, message: str) -> None:
    """The error names the place, and does not quote values, which may be passwords."""
    (folder / "a.ini").write_text(text, "latin-1")
    with pytest.raises(Refused) as caught:
        Ini.parse("a.ini", []).app_settings()
    assert str(caught.value).startswith(str(folder / "a.ini"))
    assert message in str(caught.value)
    assert "secret" not in str(caught.value)


def test_an_ini_that_has_gone(folder: Path) -> None:
    """An ini that disappears while a command runs is an error that names it."""
    ini = Ini.parse(write(folder, APP), [])
    (folder / "a.ini").unlink()
    with pytest.raises(Refused, match=r"a\.ini cannot be read: No such file"):
        ini.app_settings()
