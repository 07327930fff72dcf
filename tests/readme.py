"""The README, whose snippets the tests run."""

import re
import textwrap

from tests.support import ROOT

README = "\n".join(path.read_text("utf-8") for path in sorted(ROOT.glob("README*.rst")))


def snippets(language: str, text: str = README) -> list[str]:
    """Return the code blocks of a text in the languages that match an expression."""
    pattern = rf"^\.\. code-block:: (?:{language})\n\n((?:(?:  .*)?\n)+)"
    found = re.findall(pattern, text, re.MULTILINE)
    return [textwrap.dedent(block).strip("\n") + "\n" for block in found]
