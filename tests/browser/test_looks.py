"""What elements look like in Chromium: on pages of any colours and font size, with
forced colours, on paper, and to a screen reader's tools.
"""

from __future__ import annotations

import gzip
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
from playwright.sync_api import Page, expect

from tests.browser.batches import EACH, STATUSES, USUAL, Batches, batch
from tests.browser.looks import (
    BARLESS,
    EMPTY,
    FREEZE,
    LAYERS,
    NAMES,
    PARTIAL,
    THEMES,
    contrast,
)
from tests.browser.staging import ELEMENT, HEAD, SETTLE, STATES, answer, data
from tests.pollserver import STATIC, PollServer

Scheme = Literal["light", "dark"]


@pytest.fixture
def stage(tab: Page, poll_server: PollServer) -> Iterator[Batches]:
    """A page for elements."""
    with Batches(tab, poll_server) as stage:
        yield stage


# What every run checks


def test_page_can_style_the_element(stage: Batches) -> None:
    """Custom properties set the colours and the bar's height and corners; otherwise the
    colours follow the page's text. Each part can be styled.
    """
    stage.page.emulate_media(color_scheme="dark")
    stage.open()
    light = stage.show(data())["color"]
    stage.set_root("color-scheme: light dark")
    assert stage.look()["color"] != light
    stage.set(
        """e.style.setProperty("--job-state-accent", "rgb(1, 2, 3)");
        e.style.setProperty("--job-state-bar-height", "12px");
        e.style.setProperty("--job-state-radius", "3px");"""
    )
    assert stage.show(data())["color"] == "rgb(1, 2, 3)"
    box: Any = stage.page.locator("[part=bar]").bounding_box()
    assert box["height"] == 12
    for name in "bar", "fill":
        part = stage.page.locator(f"[part={name}]")
        expect(part).to_have_css("border-radius", "3px")
    stage.show(EACH)
    parts = ["job", "title", "status", "bar", "fill", "cancel", "result", "log"]
    parts += ["counts", *(f"count-{name}" for name in STATUSES)]
    parts += [f"share-{name}" for name in ("success", "error", "cancelled")]
    unstyled = """(parts) => {
        const sheet = new CSSStyleSheet();
        const rule = (part) => `job-state::part(${part}) { opacity: .5 }`;
        sheet.replaceSync(parts.map(rule).join(" "));
        document.adoptedStyleSheets = [sheet];
        return parts.filter((part) => {
            const node = job.shadowRoot.querySelector(`[part=${part}]`);
            return getComputedStyle(node).opacity !== "0.5";
        });
    }"""
    assert stage.page.evaluate(unstyled, parts) == []


def test_motion_is_not_forced_on_anybody(stage: Batches) -> None:
    """Nothing moves for users who prefer that. Bars of very many elements jump."""
    stage.open()
    stage.show(STATES["unknown"])
    moving = "job.shadowRoot.getAnimations().length"
    assert stage.page.evaluate(moving) > 0
    stage.page.emulate_media(reduced_motion="reduce")
    for state in STATES["unknown"], USUAL, batch(success=3, error=2, working=6):
        stage.show(state)
        assert stage.page.evaluate(moving) == 0
    lively = "job.shadowRoot.querySelector('.lively') !== null"
    for count, expected in (29, True), (30, False):
        stage.open(ELEMENT + "<job-state></job-state>" * count)
        stage.show(STATES["working"])
        assert stage.page.evaluate(lively) is expected


def test_style_sheet_is_linked_where_none_can_be_constructed(stage: Batches) -> None:
    """In a browser that cannot construct a sheet, the element links job-state.css."""
    stage.server.answer("job", answer())
    stage.server.pages["/older.js"] = (
        "delete Document.prototype.adoptedStyleSheets;"
        "window.CSSStyleSheet = function () { throw new TypeError(); };"
    )
    body = "<job-state id=job src=/job_state/job></job-state>"
    page = HEAD.format(lang="en", body=body)
    page = page.replace("<script", "<script src=/older.js></script><script", 1)
    stage.server.pages["/element"] = page
    stage.page.goto(stage.server.url + "/element")
    expect(stage.page.locator("[part=bar]")).to_have_css("height", "6px")
    assert stage.page.locator("link[rel=stylesheet]").count() == 1


# Contrast


@pytest.mark.system
@pytest.mark.parametrize("theme", THEMES)
def test_contrast_is_enough_on_any_page(stage: Batches, theme: str) -> None:
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
    assert looks.bars.keys() == {*NAMES} - BARLESS
    # The end of the bar shows how much there is to do.
    ends = {
        name: max(contrast(pixel, looks.page) for pixel in looks.bars[name][-8:])
        for name in (*PARTIAL, *EMPTY, "barely")
    }
    assert {name: ratio for name, ratio in ends.items() if ratio < 3} == {}


@pytest.mark.system
@pytest.mark.parametrize("theme", ["light", "red"])
def test_shares_stand_out_on_any_page(stage: Batches, theme: str) -> None:
    """Each share of a batch has 3:1 against the page, and the counts can be read."""
    stage.open()
    stage.set_root(THEMES[theme])
    stage.show(EACH)
    looks = stage.measure()
    assert looks.below(4.5, "text") == {}
    assert ("job", "text", "count-success") in looks.contrasts
    shares = {n: looks.stands_out("job", n / 100) for n in (20, 50, 65, 75)}
    assert {n: ratio for n, ratio in shares.items() if ratio < 3} == {}


# Custom properties and sizes

STATE_COLOURS = {
    "accent": ("working", "unknown"),
    "success": ("success",),
    "warning": ("retrying", "stalled", "cancelling", "reconnecting"),
    "error": ("error", "lost"),
    "muted": ("queued", "cancelled", "loading"),
}


@pytest.mark.system
def test_colours_of_an_application_win(stage: Batches) -> None:
    """Every text has the page's colour, and what the custom properties colour is as
    they say, on any page: the icon, the fill, the word and the details.
    """
    stage.open_all("color: rgb(1, 2, 3)")
    looks = stage.page.evaluate(LAYERS)
    texts = [layer["color"] for layer in looks if layer["kind"] == "text"]
    assert len(texts) > 3 * len(NAMES)
    assert [colour for colour in texts if colour != [1, 2, 3, 1]] == []
    wanted = {name: f"rgb({n}, 99, 7)" for n, name in enumerate(STATE_COLOURS)}
    properties = "".join(f"--job-state-{k}: {v};" for k, v in wanted.items())
    stage.set_root(f"{THEMES['red']}; {properties} --job-state-track: rgb(9, 9, 9)")
    stage.page.evaluate(SETTLE)
    stage.page.evaluate(FREEZE)
    for name, states in STATE_COLOURS.items():
        for state in states:
            seen = stage.page.evaluate(
                """(id) => {
                    const root = document.getElementById(id).shadowRoot;
                    const style = (at, pseudo) =>
                        getComputedStyle(root.querySelector(at), pseudo);
                    return [
                        style("[part=icon]").color,
                        style("[part=fill]").backgroundColor,
                        style("[part=status]").color,
                        style("[part=details]").color,
                        style("[part=bar]", "::before").backgroundColor,
                    ];
                }""",
                state,
            )
            colour = wanted[name]
            assert seen == [colour] * 3 + [wanted["muted"], "rgb(9, 9, 9)"], state


#: The size of each part's box and font.
SIZES = """() => {
  const sizes = {};
  for (const node of job.shadowRoot.querySelectorAll("[part]")) {
    if (!node.checkVisibility()) continue;
    const { height } = node.getBoundingClientRect();
    const font = parseFloat(getComputedStyle(node).fontSize);
    sizes[node.getAttribute("part")] = { height, font };
  }
  return sizes;
}"""


@pytest.mark.system
def test_sizes_follow_the_font(stage: Batches) -> None:
    """Twice the page's font size makes texts, icon, button and bar twice as large."""
    stage.open("<job-state id=job cancellable log></job-state>")
    state = STATES["working"]
    stage.show({**state, "job": {**state["job"], "log": ["On", "and on"]}})
    stage.page.set_viewport_size({"width": 1400, "height": 900})

    def sizes(size: str) -> dict[str, dict[str, float]]:
        stage.set_root(f"font-size: {size}")
        stage.page.evaluate(SETTLE)
        stage.page.evaluate(FREEZE)
        return dict(stage.page.evaluate(SIZES))

    small, large = sizes("16px"), sizes("32px")
    assert {"title", "cancel", "bar", "status", "left", "log"} <= small.keys()
    # Borders, which stay hairlines, and rounded line heights
    for name, size in small.items():
        assert large[name]["font"] == pytest.approx(2 * size["font"]), name
        twice = 2 * size["height"]
        assert large[name]["height"] == pytest.approx(twice, abs=4, rel=0.03), name
    assert large["bar"]["height"] == 2 * small["bar"]["height"]


# Accessibility


@pytest.mark.system
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(stage: Batches, node_modules: Path, scheme: Scheme) -> None:
    """Elements in every state and batches are accessible, in light and in dark."""
    stage.page.emulate_media(color_scheme=scheme)
    ended = batch("error", success=1, error=1)
    states = {**STATES, "each": EACH, "usual": USUAL, "end": ended}
    names = [*states, *(f"{name}-compact" for name in states), "lost", "loading"]
    element = "<job-state id={} cancellable log {}></job-state>"
    stage.open("".join(element.format(name, name[-7:]) for name in names))
    stage.set_root(THEMES["dark by itself" if scheme == "dark" else "light"])
    for name, state in states.items():
        stage.show(state, name)
        stage.show(state, f"{name}-compact")
    stage.set("e.src = '/job_state/none'", "lost")
    stage.wait("lost", "lost")
    stage.page.evaluate((node_modules / "axe-core" / "axe.min.js").read_text("utf-8"))
    found = stage.page.evaluate("axe.run()")
    rules = {rule["id"] for rule in found["passes"]}
    assert {"color-contrast", "aria-progressbar-name", "button-name"} <= rules
    assert found["violations"] == []


# The script


@pytest.mark.system
def test_script_is_light_and_of_2018(node_modules: Path) -> None:
    """Without comments it compresses to 16 KiB at most, and ES2018 can parse it."""
    script = STATIC / "job-state.js"
    source = re.sub(r"/\*.*?\*/", "", script.read_text("utf-8"), flags=re.S)
    source = re.sub(r"(?m)(^|\s)//.*$", "", source)
    assert len(gzip.compress(source.encode(), 9)) <= 16 * 1024
    acorn = node_modules / ".bin" / "acorn"
    command = [str(acorn), "--ecma2018", "--silent", str(script)]
    assert subprocess.run(command, check=False).returncode == 0
