"""axe-core on the pages of a browser."""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from playwright.sync_api import Page

#: Runs axe-core, and says how many rules the page keeps and which it breaks where.
#: Playwright would need seconds for all that axe-core has to say.
AXE = """async () => {
  const { passes, violations } = await axe.run();
  return [passes.length, violations.map(({ id, nodes }) => [id, nodes[0].html])];
}"""

#: Within a script: a function that returns a colour's channels and its opacity.
RGBA = """
  const canvas = new OffscreenCanvas(1, 1);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  const rgba = (color) => {
    context.clearRect(0, 0, 1, 1);
    context.fillStyle = color;
    context.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = context.getImageData(0, 0, 1, 1).data;
    return [r, g, b, a / 255];
  };
"""

Scheme = Literal["light", "dark"]

SCHEMES: tuple[Scheme, ...] = ("light", "dark")


def complaints(page: Page, node_modules: Path) -> Iterator[tuple[Scheme, str, str]]:
    """Yield what axe-core finds wrong: the colour scheme, the rule and an element."""
    page.evaluate((node_modules / "axe-core" / "axe.min.js").read_text("utf-8"))
    for scheme in SCHEMES:
        page.emulate_media(color_scheme=scheme)
        passes, violations = page.evaluate(AXE)
        assert passes
        for rule, html in violations:
            yield scheme, rule, html
