"""The parts of a traceback: the application's own frames, and those of libraries."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from typing import NamedTuple

from ...worker.current import MAX_TEXT


class Part(NamedTuple):
    """A part of a traceback.

    Attributes:
      text: The part as it is.
      number: How many frames it has if it is to be folded, else 0.
      names: Their libraries.
    """

    text: str
    number: int = 0
    names: str = ""


#: What precedes the frames of an exception. In a group it has a margin.
_HEADER = re.compile(
    r"(?: +[|+] )?(?:Exception Group )?Traceback \(most recent call last\):\n"
)

#: The lines below the first one of a frame: its source, marks, and a note on recursion.
#: A blank line of the source has no indentation.
_BELOW = (
    r"(?:MARGIN    .*(?:\n|\Z)"
    r"|MARGIN  \[Previous line repeated (?P<more>[0-9]{1,9}) more times?\](?:\n|\Z)"
    r"|[ |]*\n(?=MARGIN    ))*"
)

#: A frame.
_FRAME = re.compile(
    r'(?P<margin>(?: +\| )?)  File "(?P<path>.+?)", line \d+(?:, in .*)?(?:\n|\Z)'
    + _BELOW.replace("MARGIN", "(?P=margin)")
)

#: The rest of a frame whose beginning was cut off.
_REST = re.compile(r".*\n" + _BELOW.replace("MARGIN", r"(?: +\| )?"))

#: The beginnings of the paths of libraries on the worker's machine. Each group is the
#: name of a library. Where none matches, the rest of the path is a module of the
#: standard library.
_LIBRARY = re.compile(
    r"""
    .*[/\\](?:site|dist)-packages[/\\](?P<installed>[^/\\]+)
    | .*[/\\](?P<own>pyramid_jobstate)[/\\](?:cli|job|store|web|worker)[/\\]
    | .*[/\\]lib(?:64)?[/\\]python\d\.\d+t?[/\\]
    | .*[/\\]Python\d+[/\\]Lib[/\\]
    | <frozen\ (?P<frozen>\w+)
    """,
    re.VERBOSE,
)


def parts_of(text: str, message: str, package: str) -> list[Part]:
    """Return the parts of a traceback, whose texts make up the whole of it. Runs of
    frames of libraries are to be folded, unless no frame is the application's.

    Parameters:
      text: The end of a traceback, which may be cut off anywhere.
      message: The text of its exception, which may look like frames.
      package: The package of the application, or one within it. Its frames are its own
        even if it is installed among the libraries.
    """
    pieces = [*_pieces(text, message, package.partition(".")[0])]
    if not any(piece.number and not piece.library for piece in pieces):
        return [Part(text)]
    parts = []
    for is_library, group in itertools.groupby(pieces, lambda each: bool(each.library)):
        found = [*group]
        names = ", ".join(dict.fromkeys(each.library for each in found))
        number = sum(each.number for each in found) if is_library else 0
        parts.append(Part("".join(each.text for each in found), number, names))
    return parts


class _Piece(NamedTuple):
    """A frame, or a line of something else.

    Attributes:
      text: Its lines.
      library: The library of the frame, or "" if it is the application's.
      number: How often the frame stands there, or 0 for lines without a frame.
    """

    text: str
    library: str = ""
    number: int = 0


def _pieces(text: str, message: str, package: str) -> Iterator[_Piece]:
    """Yield the pieces of a traceback."""
    # The message has no frames, whatever it says. Only the beginning is known of a long
    # one, and all that is left of the traceback may be its rest.
    first = max(0, text.rfind(message))
    last = first + len(message) if message in text else 0
    if len(message) >= MAX_TEXT:
        last = len(text)
    at = 0
    # Frames follow a header, up to the exception. That of the beginning may be cut off.
    may_follow = True
    if not (_HEADER.match(text) or _FRAME.match(text)):
        rest = _REST.match(text, 0, first)
        at = rest.end() if rest else 0
        yield _Piece(text[:at])
    while at < len(text):
        end = text.find("\n", at) + 1 or len(text)
        is_header = frame = None
        if not first <= at < last:
            is_header = _HEADER.match(text, at)
            frame = _FRAME.match(text, at) if may_follow else None
        if frame:
            end = frame.end()
            library = _library_of(frame["path"], package)
            number = 1 + int(frame["more"] or 0)
            yield _Piece(text[at:end], library, number)
        else:
            yield _Piece(text[at:end])
            may_follow = bool(is_header)
        at = end


def _library_of(path: str, package: str) -> str:
    """Return the name of the library that a file belongs to, or "" for one of the
    application's.
    """
    match = _LIBRARY.match(path)
    if match is None:
        return ""
    if match.lastgroup is None:
        *folders, file = re.split(r"[/\\]", path[match.end() :])
        return ".".join(folders) or file.removesuffix(".py")
    name = match[match.lastgroup].removesuffix(".py")
    return "" if name == package else name
