"""What tests in several folders share: servers, a browser, jobs, applications."""

from __future__ import annotations

import faulthandler
import json
import logging
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dramatiq.broker
import pytest
import redis
from webtest import TestApp

from pyramid_jobstate import JobStore, embedded
from pyramid_jobstate.embedded import EmbeddedServer
from pyramid_jobstate.testing import release_broker
from tests import chromium, leaks
from tests.faulty import FaultyProxy, faulty
from tests.jobs import messages
from tests.support import lack
from tests.web.operating import Marathons
from tests.webapp import make_app, make_config, mounted_root, renewed

if TYPE_CHECKING:
    # tests/interop runs without Playwright.
    from playwright.sync_api import Browser, ConsoleMessage, Page


#: Where the stacks of a process that hangs are written: its standard error.
WATCHED = pytest.StashKey[int]()


def pytest_configure(config: pytest.Config) -> None:
    """Give each of several processes its own ports, so that a server that a test stops
    and starts again then finds its port still free.
    """
    config.stash[WATCHED] = os.dup(2)
    config.pluginmanager.register(leaks)
    worker = os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")
    count = os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")
    embedded.PORTS = embedded.PORTS[int(worker) :: int(count)]


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(
    config: pytest.Config, items: list[pytest.Item]
) -> None:
    """Mark the tests by what they start, and leave out the long ones unless -m or their
    name asks for them. Those that share the browser run in one process, which begins
    with them.
    """
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent / "system"):
            item.add_marker("system")
        for name in ("browser", "cluster", "rabbitmq"):
            if name in getattr(item, "fixturenames", ()):
                item.add_marker(name)
        if item.get_closest_marker("browser"):
            item.add_marker(pytest.mark.xdist_group("browser"))
    is_named = any("::" in argument for argument in config.args)
    if "long" not in config.option.markexpr and not is_named:
        long = [item for item in items if item.get_closest_marker("long")]
        items[:] = [item for item in items if item not in long]
        config.hook.pytest_deselected(items=long)
    items.sort(key=lambda item: item.get_closest_marker("browser") is None)


def watch(config: pytest.Config, seconds: float) -> None:
    """Watch this process from now on. pytest-timeout ends what takes too long with a
    signal, which ends nothing in a process that hangs in C, and it does not watch what
    comes before the tests. After half that time more, a thread that needs no lock of
    Python writes the stacks of all threads, and ends the process.
    """
    file = config.stash[WATCHED]
    faulthandler.dump_traceback_later(1.5 * seconds, file=file, exit=True)


def pytest_collectstart(collector: pytest.Collector) -> None:
    """Watch the collection of a module: what it imports may hang."""
    watch(collector.config, float(collector.config.getini("timeout")))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_node_collection_finished(node: Any) -> None:
    """Note that a process has all tests."""
    node.has_tests = True


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object) -> None:
    """End the run if a process dies before that, where others would, too."""
    if error and not hasattr(node, "has_tests"):
        pytest.exit("A process died as it collected the tests: see above.", 1)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Watch a test. If its process ends, it fails, and the others go on in another
    process.
    """
    marker = item.get_closest_marker("timeout")
    seconds = marker.args[0] if marker else item.config.getini("timeout")
    watch(item.config, float(seconds))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item) -> None:
    """Begin anew: pytest has ended that if the test has failed."""
    pytest_runtest_setup(item)


def pytest_runtest_logfinish() -> None:
    """End that."""
    faulthandler.cancel_dump_traceback_later()


pytest_collection_finish = pytest_runtest_logfinish


def pytest_unconfigure() -> None:
    """Watch the end of the process, too: a thread may never return."""
    faulthandler.dump_traceback_later(60, exit=True)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Note the seconds of CPU that a test and its processes take, if asked to."""
    before = sum(os.times()[:4])
    try:
        return (yield)
    finally:
        if folder := os.environ.get("TESTS_CPU"):
            note = json.dumps([item.nodeid, sum(os.times()[:4]) - before])
            with Path(folder, str(os.getpid())).open("a", encoding="utf-8") as file:
                print(note, file=file)


@pytest.fixture(scope="session")
def redis_server() -> Iterator[EmbeddedServer]:
    """The server that all tests share. Tests that harm theirs take `server`."""
    with EmbeddedServer() as server:
        yield server


@pytest.fixture
def redis_url(redis_server: EmbeddedServer) -> str:
    """The URL of an empty database."""
    with redis.Redis.from_url(redis_server.url) as client:
        client.flushall()
    return redis_server.url


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    """A client of the empty database at `redis_url`."""
    with redis.Redis.from_url(redis_url) as client:
        yield client


@pytest.fixture
def store(client: redis.Redis) -> JobStore:
    """A store in the empty database at `redis_url`."""
    return JobStore(client)


@pytest.fixture
def proxy(redis_url: str) -> Iterator[FaultyProxy]:
    """A proxy to the store, which may lose requests and replies."""
    with faulty(redis_url) as proxy:
        yield proxy


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """Returns what the package has logged since the last call, at INFO and above."""
    caplog.set_level(logging.INFO, "pyramid_jobstate")

    def lines() -> list[str]:
        found = messages(caplog, "pyramid_jobstate", logging.INFO)
        caplog.clear()
        return found

    return lines


@pytest.fixture(scope="session")
def shared_app(redis_server: EmbeddedServer) -> TestApp:
    """What `app` renews: making an application takes as long as many tests."""
    return make_app(make_config(redis_server.url, root_factory=mounted_root))


@pytest.fixture
def app(shared_app: TestApp, redis_url: str) -> TestApp:
    """An application whose jobs are at the default path and at two others."""
    return renewed(shared_app)


@pytest.fixture
def no_broker() -> Iterator[None]:
    """Dramatiq has no global broker at first. What the setting jobstate.broker does to
    this process is undone after the test.
    """
    before = dramatiq.broker.global_broker
    dramatiq.broker.global_broker = None
    yield
    release_broker()
    dramatiq.broker.global_broker = before


@pytest.fixture
def set_broker(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], None]:
    """Sets Dramatiq's global broker for the test. At first it has none."""
    monkeypatch.setattr(dramatiq.broker, "global_broker", None)
    return lambda broker: monkeypatch.setattr(dramatiq.broker, "global_broker", broker)


@pytest.fixture
def marathons(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> Marathons:
    """Dramatiq's global broker, with an actor that fails until the test mends it."""
    marathons = Marathons(redis_url)
    monkeypatch.setattr(dramatiq.broker, "global_broker", marathons.broker)
    return marathons


@pytest.fixture
def server() -> Iterator[EmbeddedServer]:
    """A server for this test alone, which may stop, kill or freeze it."""
    with EmbeddedServer() as server:
        yield server


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A headless Chromium."""
    yield from chromium.running()


@pytest.fixture
def console_errors() -> list[str]:
    """The errors that the test's `page` has reported so far."""
    return []


@pytest.fixture
def page(browser: Browser, console_errors: list[str]) -> Iterator[Page]:
    """A page in a browser context of its own: no cookies, nothing cached."""

    def note(message: ConsoleMessage) -> None:
        if message.type == "error":
            console_errors.append(message.text)

    with browser.new_context() as context:
        page = context.new_page()
        page.on("pageerror", lambda error: console_errors.append(str(error)))
        page.on("console", note)
        yield page


@pytest.fixture(scope="session")
def node_modules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory that holds these packages, newly installed if need be."""
    packages = {"axe-core": "4", "acorn": "8", "typescript": "5"}
    npm = shutil.which("npm") or lack("npm is missing, which brings axe-core")
    root = subprocess.run([npm, "root"], capture_output=True, text=True, check=True)
    found = Path(root.stdout.strip())
    if all((found / name).is_dir() for name in packages):
        return found
    home = tmp_path_factory.mktemp("node")
    wanted = [f"{name}@{version}" for name, version in packages.items()]
    command = [npm, "install", "--no-audit", "--no-fund", *wanted]
    done = subprocess.run([*command, "--prefix", home], capture_output=True, text=True)
    if done.returncode:
        lack(f"npm could not install {wanted}: {done.stderr[-200:]}")
    return home / "node_modules"
