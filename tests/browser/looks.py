"""What elements look like on pages of any colours: pixels, colours and contrasts."""

from __future__ import annotations

import base64
import functools
from typing import NamedTuple

from playwright.sync_api import Page

from tests.accessible import RGBA
from tests.browser.staging import SETTLE, STATES, Stage, answer, data, progress
from tests.pollserver import Answer

#: The style of the root element of each page.
THEMES = {
    "light": "background: #fff; color: #1b1b1a",
    "dark scheme": "color-scheme: dark",
    "dark by itself": "color-scheme: light; background: #16181d; color: #e6e6e6",
    # The colours, size and weight of the cookiecutter's pages
    "red": "background: #bc2131; color: #fff; font: 300 14px/1.43 sans-serif",
    "grey": "background: #8a8a8a; color: #000",
    # Text that only just has 4.5:1
    "faint": "background: #fff; color: #767676",
    "translucent": "background: #efe9dc; color: rgb(0 0 0 / 80%)",
}


ALL = {**STATES, "barely": data(progress=progress(1, 100), message="On the bridge")}
NAMES = [*ALL, "loading", "lost", "reconnecting"]

#: States that show a share of the work; the bar's end is still ahead.
PARTIAL = ("working", "retrying", "stalled", "cancelling", "reconnecting")
#: States in which the whole bar is ahead.
EMPTY = ("queued", "loading")
#: States that show no bar: without progress, the job has ended.
BARLESS = {"cancelled", "error", "lost"}

#: For each text, icon, border: its colour and the backgrounds and opacities around it.
LAYERS = (
    "() => {"
    + RGBA
    + """
  const around = (node) => {
    const outer = node.parentNode;
    return outer instanceof ShadowRoot ? outer.host : outer;
  };
  const seen = [];
  for (const element of document.querySelectorAll("job-state")) {
    for (const node of element.shadowRoot.querySelectorAll("[part], li")) {
      const name = node.getAttribute("part") || "line";
      const style = getComputedStyle(node);
      const add = (kind, color) => {
        const layers = [];
        for (let at = node; at instanceof Element; at = around(at)) {
          const { backgroundColor, opacity } = getComputedStyle(at);
          layers.unshift([rgba(backgroundColor), Number(opacity)]);
        }
        seen.push({ id: element.id, name, kind, color: rgba(color), layers });
      };
      if (!node.checkVisibility()) continue;
      const isText = (child) => child.nodeType === 3 && child.data.trim();
      if ([...node.childNodes].some(isText)) add("text", style.color);
      if (name === "sign") add("icon", style.stroke);
      if (name === "cancel") add("border", style.borderTopColor);
    }
  }
  return seen;
}"""
)

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

#: For each text that a page shows below a place: its background, which is its most
#: frequent colour, and of all others the one that differs most.
PAINTED = """async ([picture, place]) => {
  const bytes = Uint8Array.from(atob(picture), (c) => c.charCodeAt(0));
  const bitmap = await createImageBitmap(new Blob([bytes], { type: "image/png" }));
  const canvas = new OffscreenCanvas(bitmap.width, bitmap.height);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(bitmap, 0, 0);
  const scale = bitmap.width / document.documentElement.clientWidth;
  const range = document.createRange();
  const seen = {};
  const walker = document.createTreeWalker(document.querySelector(place), 4);
  while (walker.nextNode()) {
    const { currentNode: node } = walker;
    const { parentElement: around, data } = node;
    if (!data.trim() || !around.checkVisibility()) continue;
    if (around.closest(":disabled, job-state")) continue;
    range.selectNodeContents(node);
    const [{ x, y, width, height }] = range.getClientRects();
    const size = [width, height].map((each) => Math.max(1, Math.floor(each * scale)));
    const from = [x * scale, (y + scrollY) * scale];
    const { data: all } = context.getImageData(...from, ...size);
    const counts = new Map();
    for (let i = 0; i < all.length; i += 4) {
      const key = all.slice(i, i + 3).join(" ");
      counts.set(key, (counts.get(key) ?? 0) + 1);
    }
    const name = `${around.closest("[class]").className} ${data.trim()}`;
    const sorted = [...counts].sort((a, b) => b[1] - a[1]);
    seen[name] = sorted.slice(0, 500).map(([key]) => key);
  }
  return seen;
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


def over(top: list[float], opacity: float, below: Colour) -> Colour:
    """The visible colour where a translucent one covers another."""
    alpha = top[3] * opacity
    r, g, b = (alpha * t + (1 - alpha) * u for t, u in zip(top, below, strict=False))
    return r, g, b


class Looks(NamedTuple):
    """What the page and its elements look like."""

    page: Colour
    #: By state, kind and part: the contrast with what is behind it.
    contrasts: dict[tuple[str, str, str], float]
    #: By state: the pixels along the middle of the bar.
    bars: dict[str, list[Colour]]

    def below(self, limit: float, *kinds: str) -> dict[tuple[str, str, str], float]:
        """The contrasts that are too low."""
        return {
            key: round(ratio, 2)
            for key, ratio in self.contrasts.items()
            if key[1] in kinds and ratio < limit
        }

    def stands_out(self, name: str, share: float) -> float:
        """The contrast of a place on the bar with the page."""
        bar = self.bars[name]
        return contrast(bar[int(share * len(bar))], self.page)


class Themes(Stage):
    """A page with an element in each state."""

    def open_all(self, theme: str) -> None:
        self.server.answer("away", answer(progress=progress(12, 26)), Answer(503))
        src = {"lost": "src=/job_state/none", "reconnecting": "src=/job_state/away"}
        element = "<job-state id={} period=50 cancellable log {}></job-state>"
        self.open("".join(element.format(n, src.get(n, "")) for n in NAMES))
        self.set_root(theme)
        give = "([name, data]) => { document.getElementById(name).data = data; }"
        self.page.evaluate(f"(all) => Object.entries(all).forEach({give})", ALL)
        self.wait("lost", "lost")
        self.wait("reconnecting", "reconnecting")
        self.page.evaluate(SETTLE)

    def set_root(self, style: str) -> None:
        self.page.evaluate("(s) => {document.documentElement.style.cssText = s}", style)

    def measure(self) -> Looks:
        self.page.evaluate(FREEZE)
        picture = self.page.screenshot(full_page=True)
        seen = self.page.evaluate(PIXELS, base64.b64encode(picture).decode())
        (page,) = pixels(seen["page"])
        contrasts: dict[tuple[str, str, str], float] = {}
        for layer in self.page.evaluate(LAYERS):
            behind, opacity = page, 1.0
            for background, own in layer["layers"]:
                opacity *= own
                behind = over(background, opacity, behind)
            front = over(layer["color"], opacity, behind)
            key = (layer["id"], layer["kind"], layer["name"])
            contrasts[key] = min(contrast(front, behind), contrasts.get(key, 21))
        bars = {name: pixels(row) for name, row in seen["bars"].items()}
        return Looks(page, contrasts, bars)


def painted(page: Page, place: str) -> dict[str, float]:
    """The contrasts of the texts below a place, as they are painted."""
    picture = base64.b64encode(page.screenshot(full_page=True)).decode()
    found = page.evaluate(PAINTED, [picture, place])
    contrasts = {}
    for name, rows in found.items():
        (behind, *others) = [pixels(f"{row} 255")[0] for row in rows]
        contrasts[name] = max((contrast(c, behind) for c in others), default=1.0)
    return contrasts
