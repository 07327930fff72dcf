"""What elements look like: the pixels and contrasts of their bars."""

import base64
import functools
from typing import NamedTuple

from playwright.sync_api import Page

#: Let transitions end, and stop animations half way.
FREEZE = """() => {
  const elements = [...document.querySelectorAll("job-state")];
  // Those of the document leave out the ones in shadow roots.
  for (const animation of elements.flatMap((e) => e.shadowRoot.getAnimations())) {
    if (animation instanceof CSSTransition) animation.finish();
    else {
      animation.pause();
      animation.currentTime = animation.effect.getComputedTiming().duration / 2;
    }
  }
}"""

#: The pixels of a picture: of its corner, and along the middle of each bar.
PIXELS = """async (picture) => {
  const bytes = Uint8Array.from(atob(picture), (c) => c.charCodeAt(0));
  const bitmap = await createImageBitmap(new Blob([bytes], { type: "image/png" }));
  const canvas = new OffscreenCanvas(bitmap.width, bitmap.height);
  const context = canvas.getContext("2d");
  context.drawImage(bitmap, 0, 0);
  // As a text: Playwright needs a second for as many numbers.
  const row = (x, y, width) => context.getImageData(x, y, width, 1).data.join(" ");
  const bars = {};
  for (const element of document.querySelectorAll("job-state")) {
    const box = element.shadowRoot.querySelector("[part=bar]").getBoundingClientRect();
    if (!box.width) continue;
    const y = box.top + scrollY + box.height / 2;
    bars[element.id] = row(Math.round(box.left), Math.floor(y), Math.round(box.width));
  }
  return { page: row(0, 0, 1), bars };
}"""

Colour = tuple[float, float, float]


@functools.cache
def luminance(colour: Colour) -> float:
    """The relative luminance of WCAG 2."""
    linear = [
        c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4
        for c in (channel / 255 for channel in colour)
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def pixels(row: str) -> list[Colour]:
    """The colours of a row of pixels, given as red, green, blue and alpha."""
    values = list(map(int, row.split()))
    return list(zip(values[0::4], values[1::4], values[2::4], strict=True))


def contrast(one: Colour, other: Colour) -> float:
    """The contrast ratio of WCAG 2, from 1 to 21."""
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


class Looks(NamedTuple):
    """What the page and its elements look like."""

    page: Colour
    #: By state: the pixels along the middle of the bar.
    bars: dict[str, list[Colour]]

    def stands_out(self, name: str, share: float) -> float:
        """The contrast of a place on the bar with the page."""
        bar = self.bars[name]
        return contrast(bar[int(share * len(bar))], self.page)


def measure(page: Page) -> Looks:
    """Look at a page whose animations stop half way."""
    page.evaluate(FREEZE)
    picture = page.screenshot(full_page=True)
    seen = page.evaluate(PIXELS, base64.b64encode(picture).decode())
    (background,) = pixels(seen["page"])
    return Looks(background, {name: pixels(row) for name, row in seen["bars"].items()})
