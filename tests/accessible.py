"""axe-core on the pages of a browser."""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from playwright.sync_api import Page

#: Runs axe-core, and says which rules the page keeps and which it breaks where.
#: Playwright would need seconds for all that axe-core has to say.
AXE = """async () => {
  const { passes, violations } = await axe.run();
  const rules = passes.map(({ id }) => id);
  return [rules, violations.map(({ id, nodes }) => [id, nodes[0].html])];
}"""

Scheme = Literal["light", "dark"]

SCHEMES: tuple[Scheme, ...] = ("light", "dark")


def complaints(page: Page, node_modules: Path) -> Iterator[tuple[Scheme, str, str]]:
    """Yield what axe-core finds wrong: the colour scheme, the rule and an element."""
    page.evaluate((node_modules / "axe-core" / "axe.min.js").read_text("utf-8"))
    for scheme in SCHEMES:
        page.emulate_media(color_scheme=scheme)
        rules, violations = page.evaluate(AXE)
        assert "color-contrast" in rules
        for rule, html in violations:
            yield scheme, rule, html
