"""The README, whose snippets the tests run."""

import re
import textwrap

from tests.support import ROOT

README = "\n".join(path.read_text("utf-8") for path in sorted(ROOT.glob("README*.rst")))


def snippets(language: str) -> list[str]:
    """Return the README's code blocks in a language."""
    pattern = rf"^\.\. code-block:: {re.escape(language)}\n\n((?:(?:  .*)?\n)+)"
    found = re.findall(pattern, README, re.MULTILINE)
    return [textwrap.dedent(block).strip("\n") + "\n" for block in found]
