"""Catalogs of GNU gettext. ``python -m tests.catalogs`` writes the package's template
for translators, locale/pyramid_jobstate.pot.
"""

import gettext
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.support import PACKAGE

#: The template for translators.
POT = PACKAGE / "locale" / "pyramid_jobstate.pot"


def write_catalog(path: Path, texts: dict[str, str]) -> None:
    """Write texts as a binary catalog of GNU gettext.

    Parameters:
      texts: The translations by message ids. A NUL parts the forms of a plural.
    """
    pairs = sorted((k.encode(), v.encode()) for k, v in texts.items())
    count = len(pairs)
    numbers, data = [0x950412DE, 0, count, 28, 28 + 8 * count, 0, 0], b""
    for text in (*(k for k, _ in pairs), *(v for _, v in pairs)):
        numbers += [len(text), 28 + 16 * count + len(data)]
        data += text + b"\0"
    path.parent.mkdir(parents=True)
    path.write_bytes(struct.pack(f"{len(numbers)}I", *numbers) + data)
    with path.open("rb") as file:
        gettext.GNUTranslations(file)


def template() -> str:
    """Return the template for translators: each message id once, without a text."""
    entries = ['msgid ""\nmsgstr "Content-Type: text/plain; charset=UTF-8\\n"']
    entries += dict.fromkeys(_entries())
    return "\n\n".join(entries) + "\n"


def _entries() -> Iterator[str]:
    # Only the tool needs these, and not those who write catalogs.
    from pyramid_jobstate.web.pages import words

    tables = words.LABELS, words.WORDS, words.SCRIPT, words.SINGLE, words.UNCOUNTED
    for texts in (*(table.values() for table in tables), words.SENTENCES):
        for text in texts:
            comment = "" if text.default == text else f"#. Default: {text.default}\n"
            yield f'{comment}msgid {_quoted(text)}\nmsgstr ""'
    for one, other in words.PLURALS.values():
        ids = f"msgid {_quoted(one)}\nmsgid_plural {_quoted(other)}"
        yield f'{ids}\nmsgstr[0] ""\nmsgstr[1] ""'


def _quoted(text: Any) -> str:
    escaped = text.replace("\\", r"\\").replace('"', r"\"")
    return f'"{escaped}"'


if __name__ == "__main__":
    POT.parent.mkdir(exist_ok=True)
    POT.write_text(template(), "utf-8")
