"""The element on pages of any colours and font size: contrast, hues and sizes."""

from __future__ import annotations

import base64
import functools
import itertools
from collections.abc import Iterator, Mapping
from typing import Literal, NamedTuple

import pytest
from playwright.sync_api import Page, Route

from tests.accessible import RGBA
from tests.browser.test_element import SETTLE, STATES, Stage, answer, progress
from tests.pollserver import STATIC, Answer, PollServer

#: The style of the root element of each page.
THEMES = {
    "light": "background: #fff; color: #1b1b1a",
    "unstyled": "",
    "dark scheme": "color-scheme: dark",
    "dark by itself": "color-scheme: light; background: #16181d; color: #e6e6e6",
    # The colours, size and weight of the cookiecutter's pages
    "red": "background: #bc2131; color: #fff; font: 300 14px/1.43 sans-serif",
    "yellow": "background: #ffd43b; color: #222",
    "grey": "background: #8a8a8a; color: #000",
    # Text that only just has 4.5:1
    "faint": "background: #fff; color: #767676",
    "faint on dark": "background: #000; color: #757575",
    "blue on pink": "background: #ffd9ec; color: #1f2fb0",
    "translucent": "background: #efe9dc; color: rgb(0 0 0 / 80%)",
}

#: Those that differ most from each other, for every run of the tests.
SOME = ("light", "dark scheme", "red", "faint")
PAGES = [
    theme if theme in SOME else pytest.param(theme, marks=pytest.mark.long)
    for theme in THEMES
]

ALL = {
    **STATES,
    "barely": {
        **STATES["working"],
        "job": {**STATES["working"]["job"], "progress": progress(1, 100)},
    },
}
NAMES = [*ALL, "loading", "lost", "reconnecting"]

#: States that show a share of the work; the bar's end is still ahead.
PARTIAL = ("working", "retrying", "stalled", "cancelling", "reconnecting")
#: States in which the whole bar is ahead.
EMPTY = ("queued", "cancelled", "error", "loading", "lost")

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
    const y = box.top + scrollY + box.height / 2;
    bars[element.id] = row(Math.round(box.left), Math.floor(y), Math.round(box.width));
  }
  return { page: row(0, 0, 1), bars };
}"""

#: The size of each part's box and font.
SIZES = """() => {
  const sizes = {};
  const { shadowRoot } = document.getElementById("job");
  for (const node of shadowRoot.querySelectorAll("[part]")) {
    if (!node.checkVisibility()) continue;
    const { height } = node.getBoundingClientRect();
    const font = parseFloat(getComputedStyle(node).fontSize);
    sizes[node.getAttribute("part")] = { height, font };
  }
  return sizes;
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
        self.open(
            "".join(
                f"<job-state id={n} period=50 cancellable log {src.get(n, '')}>"
                "</job-state>"
                for n in NAMES
            )
        )
        self.set_root(theme)
        self.page.evaluate(
            """(all) => {
                for (const [name, data] of Object.entries(all)) {
                    document.getElementById(name).data = data;
                }
            }""",
            ALL,
        )
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


@pytest.fixture
def stage(tab: Page, poll_server: PollServer) -> Iterator[Themes]:
    """A page for elements, which must not report errors or violate its policy."""
    yield from Themes(tab, poll_server).watched()


@pytest.fixture(params=["today's browser", "older browser"])
def any_browser(request: pytest.FixtureRequest, tab: Page) -> Iterator[None]:
    """A browser that can derive colours from the text's, and one that cannot."""

    def fall_back(route: Route) -> None:
        sheet = (STATIC / "job-state.css").read_text("utf-8")
        assert "@supports (color: color(from" in sheet
        older = sheet.replace("@supports (color: color(from", "@supports (color: none(")
        route.fulfill(body=older, content_type="text/css")

    if request.param == "older browser":
        tab.route("**/job-state.css", fall_back)
    yield
    tab.unroute("**/job-state.css")


# Contrast


@pytest.mark.parametrize("theme", PAGES)
@pytest.mark.usefixtures("any_browser")
def test_contrast_is_enough_on_any_page(stage: Themes, theme: str) -> None:
    """In each state all text has 4.5:1 against its background, icon and button border
    have 3:1, and so has the bar: its fill against the page and against what follows it.
    """
    stage.open_all(THEMES[theme])
    looks = stage.measure()
    states = {state for state, *_ in looks.contrasts}
    assert states == set(NAMES)
    assert len(looks.contrasts) > 5 * len(NAMES)
    assert looks.below(4.5, "text") == {}
    assert looks.below(3, "icon", "border") == {}

    fills = {name: looks.stands_out(name, 0.05) for name in PARTIAL}
    fills["success"] = min(looks.stands_out("success", n / 100) for n in range(2, 98))
    fills["unknown"] = max(looks.stands_out("unknown", n / 100) for n in range(100))
    assert {name: ratio for name, ratio in fills.items() if ratio < 3} == {}
    for name in PARTIAL:
        fill, rest = looks.bars[name][5], looks.bars[name][6:-12]
        gap = max(contrast(fill, pixel) for pixel in rest)
        assert gap >= 3, (name, gap)
    # The end of the bar shows how much there is to do.
    ends = {
        name: max(contrast(pixel, looks.page) for pixel in looks.bars[name][-8:])
        for name in (*PARTIAL, *EMPTY, "barely")
    }
    assert {name: ratio for name, ratio in ends.items() if ratio < 3} == {}


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast_is_enough_with_forced_colours(
    stage: Themes, scheme: Literal["light", "dark"]
) -> None:
    """With forced colours, what the page's own colours would have given counts for
    nothing: texts, icons, bars and the button stand out from the forced background.
    """
    stage.page.emulate_media(
        color_scheme=scheme, forced_colors="active", reduced_motion="reduce"
    )
    stage.open_all(THEMES["red" if scheme == "light" else "light"])
    looks = stage.measure()
    assert contrast(looks.page, (255, 255, 255)) == (1 if scheme == "light" else 21)
    assert looks.below(4.5, "text") == {}
    assert looks.below(3, "icon", "border") == {}
    fills = {name: looks.stands_out(name, 0.05) for name in (*PARTIAL, "success")}
    fills["unknown"] = max(looks.stands_out("unknown", n / 100) for n in range(100))
    assert {name: ratio for name, ratio in fills.items() if ratio < 3} == {}
    for name in PARTIAL:
        assert contrast(looks.bars[name][5], looks.bars[name][-12]) >= 3, name


@pytest.mark.parametrize("theme", PAGES)
def test_button_stands_out_under_pointer_and_focus(stage: Themes, theme: str) -> None:
    """Under the pointer, the button's label keeps 4.5:1 and its border 3:1, and so does
    the focus ring.
    """
    stage.open("<job-state id=working cancellable></job-state>")
    stage.set_root(THEMES[theme])
    stage.show(STATES["working"], "working")
    button = stage.page.locator("[part=cancel]")
    button.hover()
    looks = stage.measure()
    assert looks.below(4.5, "text") == {}
    assert looks.below(3, "border") == {}
    stage.page.mouse.move(0, 0)
    stage.page.keyboard.press("Tab")
    assert button.evaluate("(e) => e.matches(':focus-visible')")
    width, colour = button.evaluate(
        """(e) => {
            const { outlineWidth, outlineColor } = getComputedStyle(e);
            e.style.borderColor = outlineColor;
            return [parseFloat(outlineWidth), outlineColor];
        }"""
    )
    assert width >= 2, colour
    assert stage.measure().below(3, "border") == {}


def test_colours_are_as_far_from_the_page_as_its_text_allows(stage: Themes) -> None:
    """Whatever the text's colour, bars and icons differ from it by less than 1.5:1.

    So on any background against which the text has 4.5:1, they have 3:1.
    """
    names = ["queued", "working", "stalled", "success", "error"]
    stage.open("".join(f"<job-state id={n}></job-state>" for n in names))
    for name in names:
        stage.show(STATES[name], name)
    levels = (0, 30, 90, 128, 200, 255)
    texts: list[Colour] = list(itertools.product(levels, levels, levels))
    seen = stage.page.evaluate(
        """([names, texts]) => {
            const canvas = new OffscreenCanvas(1, 1);
            const context = canvas.getContext("2d", { willReadFrequently: true });
            const styles = names.map((name) => {
                const root = document.getElementById(name).shadowRoot;
                return getComputedStyle(root.querySelector(".icon"));
            });
            return texts.map((text) => {
                document.documentElement.style.color = `rgb(${text})`;
                return styles.map(({ stroke }) => {
                    context.fillStyle = stroke;
                    context.fillRect(0, 0, 1, 1);
                    return [...context.getImageData(0, 0, 1, 1).data].slice(0, 3);
                });
            });
        }""",
        [names, texts],
    )
    far = [
        (text, name, colour)
        for text, colours in zip(texts, seen, strict=True)
        for name, colour in zip(names, map(tuple, colours), strict=True)
        if contrast(text, colour) > 1.5
    ]
    assert far == []
    # Not by being the text's colour
    black = dict(zip(names, seen[0], strict=True))
    white = dict(zip(names, seen[-1], strict=True))
    for shown in (black, white):
        assert len({tuple(colour) for colour in shown.values()}) == len(names)
        assert max(shown["working"]) == shown["working"][2]
        assert max(shown["success"]) == shown["success"][1]
        assert max(shown["error"]) == shown["error"][0]


def test_text_has_the_colour_of_the_page(stage: Themes) -> None:
    """Every text inherits the page's colour."""
    stage.open_all("color: rgb(1, 2, 3)")
    looks = stage.page.evaluate(LAYERS)
    texts = [layer["color"] for layer in looks if layer["kind"] == "text"]
    assert len(texts) > 3 * len(NAMES)
    assert [colour for colour in texts if colour != [1, 2, 3, 1]] == []


# Custom properties

STATE_COLOURS = {
    "accent": ("working", "unknown"),
    "success": ("success",),
    "warning": ("retrying", "stalled", "cancelling", "reconnecting"),
    "error": ("error", "lost"),
    "muted": ("queued", "cancelled", "loading"),
}


@pytest.mark.usefixtures("any_browser")
def test_colours_of_an_application_win(stage: Themes) -> None:
    """The custom properties colour the icon, the fill, the word and the details, on any
    page.
    """
    wanted = {name: f"rgb({n}, 99, 7)" for n, name in enumerate(STATE_COLOURS)}
    properties = "".join(f"--job-state-{k}: {v};" for k, v in wanted.items())
    stage.open_all(f"{THEMES['red']}; {properties} --job-state-track: rgb(9, 9, 9)")
    stage.page.evaluate(FREEZE)
    for name, states in STATE_COLOURS.items():
        for state in states:
            seen = stage.page.evaluate(
                """(id) => {
                    const root = document.getElementById(id).shadowRoot;
                    const style = (at, pseudo) =>
                        getComputedStyle(root.querySelector(at), pseudo);
                    return [
                        style(".icon").color,
                        style(".fill").backgroundColor,
                        style(".status").color,
                        style(".details").color,
                        style(".bar", "::before").backgroundColor,
                    ];
                }""",
                state,
            )
            colour = wanted[name]
            expected = [colour, colour, colour, wanted["muted"], "rgb(9, 9, 9)"]
            assert seen == expected, state


# Sizes


@pytest.mark.parametrize("where", ["html", "body"])
def test_sizes_follow_the_font(stage: Themes, where: str) -> None:
    """Twice the page's font size makes texts, icon, button and bar twice as large."""
    stage.open("<job-state id=job cancellable log></job-state>")
    state = STATES["working"]
    stage.show({**state, "job": {**state["job"], "log": ["On", "and on"]}})
    stage.page.set_viewport_size({"width": 1400, "height": 900})

    def sizes(size: str) -> Mapping[str, dict[str, float]]:
        stage.page.evaluate(
            "([name, size]) => {document.querySelector(name).style.fontSize = size}",
            [where, size],
        )
        stage.page.evaluate(SETTLE)
        stage.page.evaluate(FREEZE)
        seen: dict[str, dict[str, float]] = stage.page.evaluate(SIZES)
        return seen

    small, large = sizes("16px"), sizes("32px")
    assert small.keys() == large.keys()
    assert {
        "title",
        "percent",
        "cancel",
        "bar",
        "status",
        "left",
        "log",
    } <= small.keys()
    # Borders, which stay hairlines, and rounded line heights
    for name, size in small.items():
        assert large[name]["font"] == pytest.approx(2 * size["font"]), name
        twice = 2 * size["height"]
        assert large[name]["height"] == pytest.approx(twice, abs=4, rel=0.03), name
    assert large["bar"]["height"] == 2 * small["bar"]["height"]


def test_sheet_has_no_lengths_in_pixels_but_hairlines() -> None:
    """Only lines of one pixel have a size of their own."""
    sheet = (STATIC / "job-state.css").read_text("utf-8")
    words = sheet.replace(";", " ").replace(",", " ").replace(")", " ").split()
    assert {word for word in words if word.endswith("px")} <= {"1px", "-1px"}


# The bar


@pytest.mark.parametrize("direction", ["ltr", "rtl"])
def test_fill_and_track_are_apart(stage: Themes, direction: str) -> None:
    """The page shows between fill and track, and a dot marks the end."""
    stage.open(f"<div dir={direction}><job-state id=job></job-state></div>")
    stage.set_root(
        "background: #fff; --job-state-accent: #f00; --job-state-track: #00f"
    )
    names = {(255, 0, 0): "fill", (0, 0, 255): "track", (255, 255, 255): "page"}

    def along(done: int) -> list[str]:
        state = STATES["working"]
        job = {**state["job"], "progress": progress(done, 100)}
        stage.show({**state, "job": job})
        pixels = stage.measure().bars["job"]
        seen = [names.get((int(r), int(g), int(b)), "") for r, g, b in pixels]
        runs = [name for name, _ in itertools.groupby(filter(None, seen))]
        return runs if direction == "ltr" else runs[::-1]

    assert along(0) == ["track", "fill"]
    assert along(1) == ["fill", "page", "track", "fill"]
    assert along(50) == ["fill", "page", "track", "fill"]
    assert along(99)[:2] == ["fill", "page"]
    assert along(100) == ["fill"]


@pytest.mark.parametrize("theme", ["light", "red", "dark scheme"])
def test_bar_without_motion_shows_that_work_goes_on(stage: Themes, theme: str) -> None:
    """With reduced motion, a bar without a share has stripes, which have 3:1."""
    stage.page.emulate_media(reduced_motion="reduce")
    stage.open("<job-state id=job></job-state>")
    stage.set_root(THEMES[theme])
    stage.show(STATES["unknown"])
    looks = stage.measure()
    seen = [contrast(pixel, looks.page) >= 3 for pixel in looks.bars["job"]]
    assert len(list(itertools.groupby(seen))) > 40
    assert sum(seen) == pytest.approx(len(seen) / 2, rel=0.2)
