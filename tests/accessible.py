"""axe-core on the pages of a browser, and the ring around what has the focus."""

from __future__ import annotations

import base64
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
    """Yield what axe-core finds wrong with a page in each colour scheme: the scheme,
    the rule and an element.
    """
    page.evaluate((node_modules / "axe-core" / "axe.min.js").read_text("utf-8"))
    for scheme in SCHEMES:
        page.emulate_media(color_scheme=scheme)
        passes, violations = page.evaluate(AXE)
        assert passes
        for rule, html in violations:
            yield scheme, rule, html


#: Where the focus is, and which part of the window shows it and its ring.
FOCUS = """() => {
  let node = document.activeElement;
  while (node.shadowRoot?.activeElement) node = node.shadowRoot.activeElement;
  window.focused = node;
  const { left, top, right, bottom } = node.getBoundingClientRect();
  const x = Math.max(0, left - 6);
  const y = Math.max(0, top - 6);
  const width = Math.min(innerWidth, right + 6) - x;
  const height = Math.min(innerHeight, bottom + 6) - y;
  return [2 * (right - left + bottom - top), { x, y, width, height }];
}"""

#: How many pixels of two pictures have a contrast of at least 3:1.
CHANGED = """async (pictures) => {
  const linear = (n) => (n <= 10 ? n / 3294.6 : ((n / 255 + 0.055) / 1.055) ** 2.4);
  const [ones, others] = await Promise.all(pictures.map(async (picture) => {
    const bytes = Uint8Array.from(atob(picture), (c) => c.charCodeAt(0));
    const bitmap = await createImageBitmap(new Blob([bytes], { type: "image/png" }));
    const context = new OffscreenCanvas(bitmap.width, bitmap.height).getContext("2d");
    context.drawImage(bitmap, 0, 0);
    const { data } = context.getImageData(0, 0, bitmap.width, bitmap.height);
    // The luminance of WCAG 2
    return Array.from({ length: data.length / 4 }, (_, i) => 0.05
      + 0.2126 * linear(data[4 * i])
      + 0.7152 * linear(data[4 * i + 1])
      + 0.0722 * linear(data[4 * i + 2]));
  }));
  const ratios = ones.map((one, i) => one / others[i]);
  return ratios.filter((ratio) => Math.max(ratio, 1 / ratio) >= 3).length;
}"""


def ring_width(page: Page) -> float:
    """Return the width of the ring around what has the focus, in pixels: how much of
    the picture changes there, by 3:1 or more, while the focus is away.
    """
    around, clip = page.evaluate(FOCUS)
    with_ring = page.screenshot(clip=clip)
    page.evaluate("focused.blur()")
    without = page.screenshot(clip=clip)
    page.evaluate("focused.focus()")
    pictures = [base64.b64encode(picture).decode() for picture in (with_ring, without)]
    changed: float = page.evaluate(CHANGED, pictures)
    return changed / around
