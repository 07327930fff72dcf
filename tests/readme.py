"""The README, whose snippets the tests run."""

import re
import textwrap

from tests.support import ROOT

README = (ROOT / "README.rst").read_text("utf-8")


def snippets(language: str) -> list[str]:
    """Return the README's code blocks in a language."""
    pattern = rf"^\.\. code-block:: {re.escape(language)}\n\n((?:(?:  .*)?\n)+)"
    found = re.findall(pattern, README, re.MULTILINE)
    return [textwrap.dedent(block).strip("\n") + "\n" for block in found]
