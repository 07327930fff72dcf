"""The broker through which jobs run again, which may be named where Pyramid is not."""

from __future__ import annotations

import contextlib
import functools
import importlib
import logging
import os
import re
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from redis.exceptions import RedisError

from ..errors import ActorError
from ..store.jobstore import JobStore
from ..store.lists import AmbiguousKind
from ..store.places import refusal
from .terminal import CouldNot, Refused, log_to_stderr, without_passwords

if TYPE_CHECKING:
    from dramatiq import Broker

#: Why a command that needs the broker of the application cannot run.
NO_BROKER = (
    "The application has no broker. Set jobstate.broker in the ini, or call "
    "dramatiq.set_broker() before the actors are declared."
)

OTHER_STORE = "Name that store with --url and --namespace."


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

    from ..worker.ledger import global_broker, ledger_of

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
      AmbiguousKind: A class and an actor have the name that the filters give.
      redis.exceptions.RedisError: The store does not answer.
    """
    from ..worker.reruns import BROKER_IS_AWAY

    try:
        yield
    except (AmbiguousKind, CouldNot, RedisError):
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
