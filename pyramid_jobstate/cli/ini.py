"""The ini file that a command runs with, read as pserve reads it."""

from __future__ import annotations

import configparser
import contextlib
import functools
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Self

import plaster
from pyramid.scripts.common import get_config_loader, parse_vars

from .terminal import Refused

#: The variable of the environment that tells child processes of the ini.
VARIABLE = "PYRAMID_JOBSTATE_INI"

#: The prefixes of sections that hold an application's settings.
APPS = ("app:", "application:", "filter-app:")

#: The kinds of sections that define an application in PasteDeploy.
KINDS = ("app", "application", "composite", "composit", "pipeline", "filter-app")


class Ini(NamedTuple):
    """An ini file with the variables that were given for it.

    Attributes:
      uri: Where it is, for plaster. The path is absolute.
      path: The path, for errors.
      variables: The variables, such as ``{"http_port": "8080"}``.
    """

    uri: str
    path: str
    variables: Mapping[str, str]

    @classmethod
    def parse(cls, text: str, assignments: Sequence[str]) -> Self:
        """Return the ini that a command line names.

        Parameters:
          text: A path, with or without ``#section``, or a URI of plaster's.
          assignments: The variables, as ``name=value``.

        Raises:
          Refused: The file does not exist or cannot be read.
        """
        if os.path.isdir(text):
            raise Refused(f"{text} is a folder, not an ini file.")
        with explained(text):
            uri = plaster.parse_uri(text)
            if uri.scheme.startswith("file+") and not os.path.exists(uri.path):
                raise Refused(f"{uri.path} does not exist.")
            if os.path.isfile(uri.path):
                uri.path = os.path.abspath(uri.path)
        ini = cls(str(uri), uri.path, parse_vars(assignments))
        ini.check()
        return ini

    @classmethod
    def from_environ(cls) -> Self:
        """Return the ini that a parent process named in the environment."""
        if VARIABLE not in os.environ:
            raise Refused("Start this with `pjobs INI work`.")
        return cls(*json.loads(os.environ[VARIABLE]))

    @property
    def defaults(self) -> dict[str, str]:
        """What the ini may use as ``%(name)s``, besides ``here`` and ``__file__``."""
        return {"__script__": "pjobs", **self.variables}

    def environ(self) -> dict[str, str]:
        """Return the environment that names this ini to a child process."""
        content = json.dumps([self.uri, self.path, self.variables])
        return {**os.environ, VARIABLE: content}

    def check(self) -> None:
        """Raise Refused if the ini cannot be read or has no application."""
        with explained(self.path):
            sections = _loader(self.uri).get_sections()
        name = self._name()
        is_defined = any(f"{kind}:{name}" in sections for kind in KINDS)
        if os.path.isfile(self.path) and not is_defined:
            raise Refused(
                f"{self.path} has no section [app:{name}] or [pipeline:{name}]."
            )

    def section(self, name: str) -> Mapping[str, str]:
        """Return the settings in a section, empty if the ini lacks it.

        Raises:
          Refused: A value cannot be read.
        """
        with explained(self.path):
            settings: Mapping[str, str] = _loader(self.uri).get_settings(
                name, self.defaults
            )
        return settings

    def has_section(self, name: str) -> bool:
        with explained(self.path):
            return name in _loader(self.uri).get_sections()

    def app_settings(self) -> list[Mapping[str, str]]:
        """Return the settings of each application in the ini, without importing any:
        several may be composed into one. Those of a file that one of them uses follow.
        """
        return list(_app_settings(self, set()))

    def is_main(self, section: str) -> bool:
        """Return whether a section has the name of the application."""
        return section.partition(":")[2] == self._name()

    def _name(self) -> str:
        fragment: str = plaster.parse_uri(self.uri).fragment
        return fragment or "main"


@functools.cache
def _loader(uri: str) -> plaster.ILoader:
    """Return plaster's loader of an ini. To find one, plaster reads the metadata of
    every distribution that is installed.
    """
    return get_config_loader(uri)


def _app_settings(ini: Ini, seen: set[str]) -> Iterator[Mapping[str, str]]:
    """Yield the settings of each application, and those in the files that they use.
    What cannot be read is left out, except in the section of the application itself.

    Parameters:
      seen: The paths of the files so far.
    """
    seen.add(ini.path)
    with explained(ini.path):
        sections = _loader(ini.uri).get_sections()
    for name in sections:
        try:
            settings = ini.section(name)
        except Refused:
            if ini.is_main(name) and len(seen) == 1:
                raise
            continue
        if name.startswith(APPS):
            yield settings
        for place in re.findall(r"\bconfig:([^\s#]+)", " ".join(settings.values())):
            path = os.path.normpath(os.path.join(os.path.dirname(ini.path), place))
            if path not in seen and os.path.exists(path):
                yield from _app_settings(Ini(path, path, ini.variables), seen)


@contextlib.contextmanager
def explained(path: str) -> Iterator[None]:
    """Turn errors in an ini into short ones that quote no value: any value may hold a
    password.
    """
    try:
        yield
    except plaster.PlasterError as e:
        raise Refused(f"{path} is not an ini file. {_message(e)}") from None
    except OSError as e:
        raise Refused(f"{path} cannot be read: {e.strerror}.") from None
    except UnicodeDecodeError:
        raise Refused(f"{path} is not encoded in UTF-8.") from None
    except configparser.InterpolationMissingOptionError as e:
        raise Refused(
            f"{path}: [{e.section}] {e.option} uses %({e.reference})s, which has no "
            f"value. Pass one: pjobs INI {e.reference}=... COMMAND"
        ) from None
    except configparser.InterpolationError as e:
        raise Refused(
            f"{path}: [{e.section}] {e.option} has a % that is neither %% nor the "
            "start of %(name)s."
        ) from None
    except configparser.MissingSectionHeaderError as e:
        raise Refused(f"{path}: line {e.lineno} stands before any [section].") from None
    except configparser.ParsingError as e:
        number, _ = e.errors[0]
        raise Refused(f"{path}: line {number} is not `name = value`.") from None
    except configparser.Error as e:
        raise Refused(f"{path}: {_message(e)}") from None


def _message(error: Exception) -> str:
    text: Any = getattr(error, "message", error)
    return " ".join(str(text).split())
