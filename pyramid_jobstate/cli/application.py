"""The application of an ini, made as pserve makes it."""

from __future__ import annotations

import configparser
import contextlib
import re
import sys
import sysconfig
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pyramid.config import global_registries
from pyramid.exceptions import ConfigurationError
from pyramid.paster import get_app, setup_logging

from ..store.jobstore import JobStore
from ..web.interfaces import IJobStore
from ..worker.brokers import STUB, masked
from .ini import Ini, explained
from .terminal import CouldNot, Refused, log_to_stderr, one_line, without_passwords

#: Names of settings whose values no error may show.
SECRET = re.compile("secret|passw|token|key|credential", re.IGNORECASE)

OURS = str(Path(__file__).parent.parent)


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


def cause_of(error: BaseException) -> BaseException:
    """Return the exception that stopped the start of an application: Pyramid wraps what
    an action raises.
    """
    cause: BaseException = getattr(error, "evalue", error)
    return cause


def misconfigured(error: BaseException, ini: Ini) -> str | None:
    """Return what an error says of the configuration of an application, with the line
    that is wrong if Pyramid knows it, or None if the error has another cause. The text
    is one line that shows no secret.
    """
    cause = cause_of(error)
    if not isinstance(cause, ConfigurationError):
        return None
    info: Any = getattr(error, "info", None)
    is_placed = info is not None and info.file
    text = f"{info.file}, line {info.line}: {cause}" if is_placed else str(cause)
    return one_line(_without_secrets(text, ini))


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
        text = misconfigured(e, ini)
        if text is None:
            cause = cause_of(e)
            text = f"{place_of(e)}{type(cause).__name__}: {cause}"
            text = _without_secrets(text, ini)
        text = f"The application of {ini.path} does not start: {text}"
    else:
        return
    # Raised outside the handler, which would chain the original exception.
    raise CouldNot(text)


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
