"""What requests say beside their path."""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pyramid.i18n import make_localizer
from pyramid.interfaces import IDefaultCSRFOptions, ILocalizer, ITranslationDirectories
from pyramid.request import Request
from webob import BaseRequest

from ..job.values import is_owner, parse_duration

#: A parameter of Pyramid's own, which names the language of the answer.
LOCALE = "_LOCALE_"

#: The types of the bodies that forms send. They may hold the token of a CSRF check.
FORMS = ("application/x-www-form-urlencoded", "multipart/form-data")

#: The most bytes of such a form. To parse a megabyte takes a second.
MAX_FORM = 8192

#: The characters of a number in a query. int() and float() understand more.
NUMBER = re.compile(r"[0-9.eE+-]+")


class BadRequest(Exception):
    """Raised for a request that gets a 400 response. The text says what is wrong."""


def require_header(request: Request) -> None:
    """Require the header X-Requested-With of a request that changes jobs.

    Raises:
      BadRequest: It is missing.
    """
    # A page of another site can send this header only after a CORS preflight.
    if "X-Requested-With" not in request.headers:
        raise BadRequest("The header X-Requested-With is missing.")


def read_query(request: Request, *names: str) -> Mapping[str, str]:
    """Return the parameters of a request.

    Parameters:
      names: The parameters that it may have.

    Raises:
      BadRequest: It has another one, or one twice.
    """
    query: Mapping[str, str] = request.GET
    values: dict[str, str] = {}
    for name, value in query.items():
        if name not in names and name != LOCALE:
            known = (
                f"Known parameters: {', '.join(names)}." if names else "It has none."
            )
            raise BadRequest(f"{name!r} is not a parameter of this request. {known}")
        if name in values:
            raise BadRequest(f"{name} is given more than once.")
        values[name] = value
    return values


def check_text(request: Request) -> None:
    """Check that the query and the cookies of a request can be decoded. Code of the
    application may read them, such as a locale negotiator.

    Raises:
      BadRequest: They cannot.
    """
    environ, part = request.environ, "parameter"
    try:
        # Both are decoded when they are first read.
        if environ.get("QUERY_STRING"):
            _ = request.GET
        part = "cookie"
        if "\\" in environ.get("HTTP_COOKIE", ""):
            # Only a quoted cookie can have other bytes.
            _ = [*request.cookies]
    except UnicodeDecodeError as e:
        raise BadRequest(f"A {part} is not UTF-8.") from e


def drop_body(request: Request) -> BaseRequest:
    """Take the body from a request, and return a request that still has it.

    Code of the application may look for fields in it, such as a locale negotiator or a
    security policy: WebOb would read it to its end, or raise an exception.
    """
    whole = BaseRequest(request.environ.copy())
    request.body = b""
    request.environ["CONTENT_TYPE"] = ""
    return whole


def read_form(request: BaseRequest) -> Sequence[str]:
    """Read the form in a body, if there is one, and return the names of its fields.

    Raises:
      BadRequest: It is too long, or not a form in UTF-8.
    """
    if request.content_type not in ("", *FORMS):
        return []
    if not request.is_body_seekable and (request.content_length or 0) <= MAX_FORM:
        # A body in chunks does not say how long it is.
        request.body = request.body_file.read(MAX_FORM + 1)
    if (request.content_length or 0) > MAX_FORM:
        raise BadRequest(f"The form in the body has more than {MAX_FORM:,} bytes.")
    try:
        return [*request.POST]
    except DeprecationWarning as e:
        # WebOb raises this for any other charset.
        raise BadRequest("The form in the body must be in UTF-8.") from e
    except Exception as e:
        # For malformed forms there is hardly an exception that it does not raise.
        raise BadRequest("The body is not a valid form.") from e


def refuse_body(request: BaseRequest, *names: str) -> None:
    """Refuse a body that may hold parameters: without them, the query matches more jobs
    than were meant.

    Parameters:
      names: The names of the parameters.

    Raises:
      BadRequest: The body is a form with one of them, or not a short form in UTF-8.
    """
    if request.content_type in FORMS:
        for name in read_form(request):
            if name in names:
                raise BadRequest(f"{name} belongs in the query, not in the body.")
    elif request.content_length or request.body_file.read(1):
        raise BadRequest("The body must be empty. Parameters belong in the query.")


def csrf_options(request: Request) -> Any:
    """Return the options of the application's CSRF check, or None if it checks nothing
    by default.
    """
    options = request.registry.queryUtility(IDefaultCSRFOptions)
    return options if options is not None and options.require_csrf else None


def read_flag(query: Mapping[str, str], name: str) -> bool:
    """Return whether a parameter is 1 rather than missing.

    Raises:
      BadRequest: It has another value.
    """
    if query.get(name, "1") != "1":
        raise BadRequest(f"{name} can only be 1, not {query[name]!r}.")
    return name in query


def read_number(query: Mapping[str, str], name: str, default: int) -> int:
    """Return a parameter that is a whole number.

    Raises:
      BadRequest: It is not.
    """
    number = query.get(name, str(default))
    if not re.fullmatch(r"[0-9]{1,9}", number):
        raise BadRequest(f"{name} must be a number, not {number!r}.")
    return int(number)


def read_duration(query: Mapping[str, str], name: str) -> float | None:
    """Return the seconds of a parameter, or None if it is missing.

    Raises:
      BadRequest: It is not a duration.
    """
    if name not in query:
        return None
    try:
        return parse_duration(query[name])
    except ValueError as e:
        raise BadRequest(f"{name} = {query[name]!r} {e}.") from e


def parse_owner(text: str, example: object) -> str | float:
    """Return the owner that a query names.

    Parameters:
      text: The owner in the query.
      example: The owner of the request. If it is a number, `text` is read as one.
    """
    is_number = is_owner(example) and isinstance(example, (int, float))
    if is_number and NUMBER.fullmatch(text):
        with contextlib.suppress(ValueError):
            number = int(text) if isinstance(example, int) else float(text)
            return number if is_owner(number) else text
    return text


def localizer_of(request: Request) -> Any:
    """Return what translates for a request: into its language, if the application has a
    catalog for that ("de" also serves "de_AT"), or else into the default one.

    A request may name anything, and Pyramid keeps a localizer for each name.
    """
    if "localizer" in vars(request) or type(request).localizer is not Request.localizer:
        # The application has made its own.
        return request.localizer
    registry = request.registry
    directories = registry.queryUtility(ITranslationDirectories, default=())
    default = (registry.settings or {}).get("default_locale_name", "en")
    # Texts without a translation are English.
    known = {"en", default, *locales_in(tuple(directories))}
    asked = request.locale_name
    name = next((n for n in (asked, asked.partition("_")[0]) if n in known), default)
    localizer = registry.queryUtility(ILocalizer, name=name)
    if localizer is None:
        localizer = make_localizer(name, directories)
        registry.registerUtility(localizer, ILocalizer, name=name)
    return localizer


@functools.lru_cache(64)
def locales_in(directories: tuple[str, ...]) -> frozenset[str]:
    """Return the locales for which translation directories have catalogs."""
    return frozenset(
        catalog.parents[1].name
        for directory in directories
        for catalog in Path(directory).glob("*/LC_MESSAGES/*.mo")
    )
