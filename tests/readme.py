"""The README and the documentation, whose snippets the tests run."""

import re
import textwrap

from tests.support import ROOT

PAGES = {
    path.relative_to(ROOT).with_suffix("").as_posix(): path.read_text("utf-8")
    for path in [ROOT / "README.rst", *sorted(ROOT.glob("docs/**/*.rst"))]
}

README = PAGES["README"]

#: The README and all pages of the documentation.
DOCUMENTS = "\n".join(PAGES.values())


def page(name: str) -> str:
    """Return a page of the documentation, such as "howto/send"."""
    return PAGES[f"docs/{name}"]


def snippets(language: str, text: str = DOCUMENTS) -> list[str]:
    """Return the code blocks of a text in the languages that match an expression."""
    pattern = rf"^\.\. code-block:: (?:{language})\n\n((?:(?:  .*)?\n)+)"
    found = re.findall(pattern, text, re.MULTILINE)
    return [textwrap.dedent(block).strip("\n") + "\n" for block in found]
