"""Catalogs of GNU gettext. ``python -m tests.catalogs`` writes the package's template
for translators, locale/pyramid_jobstate.pot.
"""

from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

from babel.messages import Catalog
from babel.messages.mofile import write_mo
from babel.messages.pofile import write_po

from tests.support import PACKAGE

#: The template for translators.
POT = PACKAGE / "locale" / "pyramid_jobstate.pot"

#: The headers that would differ each time.
MADE = (b'"POT-Creation-Date: ', b'"Generated-By: ')

#: Translations by message ids. A plural has a tuple of each.
Texts = Mapping[Any, str | tuple[str, ...]]


def write_catalog(
    folder: Path, domain: str, language: str, texts: Texts, rule: str = ""
) -> None:
    """Write a catalog into a translation directory, as ``pybabel compile`` does.

    Parameters:
      rule: Its header Plural-Forms, if that is not what Babel gives to the language.
    """
    catalog = Catalog(language.replace("-", "_"))
    if rule:
        catalog.mime_headers = [("Plural-Forms", rule)]
    for text, translation in texts.items():
        catalog.add(text, translation)
    path = folder / language / "LC_MESSAGES" / f"{domain}.mo"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        write_mo(file, catalog)


def template() -> bytes:
    """Return the template for translators: each message id once, without a text, in the
    order of the ids. Nothing in it tells when or with what it was made.
    """
    # Only the tool needs these, and not those who write catalogs.
    from pyramid_jobstate.web.pages import words

    catalog = Catalog(
        project="pyramid_jobstate",
        header_comment="# The texts of pyramid_jobstate, for translators.",
        fuzzy=False,
    )
    for table in words.TABLES:
        for text in table.values():
            catalog.add(str(text))
    for text in words.SENTENCES:
        catalog.add(str(text))
    for texts in words.PLURALS.values():
        catalog.add(texts)
    written = BytesIO()
    write_po(written, catalog, width=0, sort_output=True)
    lines = written.getvalue().splitlines(keepends=True)
    return b"".join(line for line in lines if not line.startswith(MADE))


if __name__ == "__main__":
    POT.write_bytes(template())
