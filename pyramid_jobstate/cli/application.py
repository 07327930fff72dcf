"""The application of an ini, made as pserve makes it, and the broker of its jobs."""

from __future__ import annotations

import configparser
import contextlib
import functools
import importlib
import logging
import os
import re
import sys
import sysconfig
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pyramid.config import global_registries
from pyramid.exceptions import ConfigurationError
from pyramid.paster import get_app, setup_logging
from redis.exceptions import RedisError

from ..errors import ActorError
from ..store import JobStore, refusal
from ..web import IJobStore
from ..worker import STUB, masked
from .ini import Ini, explained
from .terminal import CouldNot, Refused, log_to_stderr, without_passwords

if TYPE_CHECKING:
    from dramatiq import Broker

#: Names of settings whose values no error may show.
SECRET = re.compile("secret|passw|token|key|credential", re.IGNORECASE)

OURS = str(Path(__file__).parent.parent)

#: Why a command that needs the broker of the application cannot run.
NO_BROKER = (
    "The application has no broker. Set jobstate.broker in the ini, or call "
    "dramatiq.set_broker() before the actors are declared."
)

OTHER_STORE = "Name that store with --url and --namespace."


def open_application(path: str, variables: Sequence[str]) -> tuple[JobStore, object]:
    """Return the store of an ini's jobs, and the application. What it logs goes to
    the files that the ini names, and errors to stderr.

    Raises:
      Refused: The ini is wrong.
      CouldNot: The application does not start, or has no store.
    """
    if re.match(r"(rediss?(\+cluster)?|unix):", path, re.IGNORECASE):
        raise Refused("Put --url before the URL of a Redis server.")
    ini = Ini.parse(path, variables)
    # Whatever it prints is not the command's output.
    with contextlib.redirect_stdout(sys.stderr), _starting(ini):
        setup_logging(ini.uri, ini.defaults)
        log_to_stderr()
        application: object = get_app(ini.uri, options=ini.defaults)
        # It may have set up its logging by itself.
        log_to_stderr()
    return _store_of(ini), application


def place_of(error: BaseException) -> str:
    """Return the place where an error was raised: the last one in the application or,
    if the application is installed or did not get to run, in a library.
    """
    paths = sysconfig.get_paths()
    standard, site = paths["stdlib"], paths["purelib"]
    own, installed = "", ""
    for frame in traceback.extract_tb(error.__traceback__):
        place = f"{frame.filename}, line {frame.lineno}: "
        if place.startswith(site):
            installed = place
        elif not place.startswith(("<", standard, OURS)):
            own = place
    return own or installed


def _store_of(ini: Ini) -> JobStore:
    """Return the store of the applications that this process has made."""
    stores: dict[str, JobStore] = {}
    for registry in global_registries:
        store = registry.queryUtility(IJobStore)
        if store is None:
            continue
        settings = registry.settings
        broker = str(settings.get("jobstate.broker", "")).strip()
        if broker == STUB and settings.get("jobstate.redis_url") is None:
            raise Refused(
                f"{ini.path}: jobstate.broker is {STUB}, whose jobs only the process "
                "that sends them can read. Set it to a URL."
            )
        stores[repr(store)] = store
    if len(stores) > 1:
        raise Refused(
            f"{ini.path} makes applications with different stores: "
            f"{', '.join(sorted(stores))}. Name one of them: {ini.path}#name."
        )
    for store in stores.values():
        return store
    raise CouldNot(f"The application of {ini.path} does not include pyramid_jobstate.")


@contextlib.contextmanager
def _starting(ini: Ini) -> Iterator[None]:
    """Turn whatever the application raises into one line that shows no secret."""
    try:
        yield
    except configparser.Error:
        with explained(ini.path):
            raise
    except (Exception, SystemExit) as e:
        # Pyramid wraps what an action raises.
        cause = getattr(e, "evalue", e)
        text = str(cause)
        if not isinstance(cause, ConfigurationError):
            text = f"{place_of(e)}{type(cause).__name__}: {text}"
        text = f"The application of {ini.path} does not start: {text}"
    else:
        return
    # Raised outside the handler, which would chain the original exception.
    raise CouldNot(_without_secrets(text, ini))


def _without_secrets(text: str, ini: Ini) -> str:
    """Return a text without the passwords of URLs and the values of settings whose
    names say that they are secret.
    """
    secrets: dict[str, str] = {}
    with contextlib.suppress(Refused):
        for settings in ini.app_settings():
            for name, value in settings.items():
                if re.search("://.*@", value):
                    secrets[value] = masked(value)
                elif SECRET.search(name) and len(value) > 5:
                    secrets[value] = "…"
    # A URL may contain the others.
    for value in sorted(secrets, key=len, reverse=True):
        text = text.replace(value, secrets[value])
    return without_passwords(text)


def broker_name(text: str) -> str:
    """Return the name of a broker, checked."""
    if not re.fullmatch(r"\w+(\.\w+)*:\w+(\.\w+)*", text):
        raise ValueError(f"{text} is not a name such as shop.jobs:broker")
    return text


def find_broker(store: JobStore, name: str | None) -> Broker:
    """Return the broker of the application that has been made, or a named one.

    Parameters:
      store: The store of the jobs, where the broker must keep them, too.
      name: ``module:name``, or None for the application's.

    Raises:
      Refused: That is not a broker, or not one through which these jobs can run again.
      CouldNot: The module cannot be imported.
    """
    import dramatiq.broker
    from dramatiq.brokers.stub import StubBroker

    from ..worker import global_broker, ledger_of

    found = global_broker() if name is None else _import(name)
    if found is None:
        raise Refused(NO_BROKER)
    what = "The application's broker" if name is None else f"--broker {name}"
    if not isinstance(found, dramatiq.Broker):
        raise Refused(f"{what} is a {type(found).__name__}, not a Dramatiq broker.")
    if isinstance(found, StubBroker):
        raise Refused(f"{what} is a StubBroker, whose messages no worker gets.")
    try:
        written = ledger_of(found).store_for(found)
    except (ActorError, TypeError) as e:
        raise Refused(str(e)) from None
    # A store that --url names is changed by another --url, not by a setting.
    advice = None if name is None else OTHER_STORE
    error = refusal(store, written, what[0].lower() + what[1:], advice)
    if error is not None:
        raise Refused(error)
    # It logs each attempt to connect as an error.
    logging.getLogger("pika").setLevel(logging.CRITICAL)
    return found


@contextlib.contextmanager
def sending() -> Iterator[None]:
    """Say in one line why a job cannot be sent.

    Raises:
      CouldNot: The broker, or the application's code, raised an exception.
      redis.exceptions.RedisError: The store does not answer.
    """
    from ..worker import BROKER_IS_AWAY

    try:
        yield
    except (CouldNot, RedisError):
        raise
    except Exception as e:
        what = "Sending failed"
        if isinstance(e, BROKER_IS_AWAY):
            what = "The broker does not answer"
        text = without_passwords(f"{type(e).__name__}: {e}".rstrip(".: "))
    else:
        return
    raise CouldNot(f"{what}: {text}.")


def _import(name: str) -> object:
    """Return an object from a module, which may be in the current folder."""
    module, _, path = name.partition(":")
    # As Dramatiq's own command does.
    sys.path.insert(0, os.getcwd())
    try:
        # Whatever it prints is not the command's output.
        with contextlib.redirect_stdout(sys.stderr):
            loaded = importlib.import_module(module)
        # It may have set up logging.
        log_to_stderr()
        found: object = functools.reduce(getattr, path.split("."), loaded)
    except (Exception, SystemExit) as e:
        text = without_passwords(f"{type(e).__name__}: {e}")
    else:
        return found
    raise CouldNot(f"--broker {name} cannot be imported: {text}")
