"""What elements look like in Chromium: on pages of any colours and font size, with
forced colours, on paper, and to a screen reader's tools.
"""

from __future__ import annotations

import gzip
import itertools
import re
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import pytest
from playwright.sync_api import Page, Route, expect

from tests.browser.looks import (
    EMPTY,
    FREEZE,
    LAYERS,
    NAMES,
    PARTIAL,
    SOME,
    THEMES,
    contrast,
)
from tests.browser.staging import ELEMENT, HEAD, SETTLE, STATES, answer, data, progress
from tests.browser.test_batches import COLOURS, EACH, STATUSES, USUAL, Batches, batch
from tests.pollserver import STATIC, PollServer

PAGES = [
    theme if theme in SOME else pytest.param(theme, marks=pytest.mark.long)
    for theme in THEMES
]

Scheme = Literal["light", "dark"]


@pytest.fixture
def stage(tab: Page, poll_server: PollServer) -> Iterator[Batches]:
    """A page for elements, which must not report errors or violate its policy."""
    yield from Batches(tab, poll_server).watched()


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


# What every run checks


def test_page_can_style_the_element(stage: Batches) -> None:
    """Custom properties set the colours and the height of the bar; otherwise the
    colours follow the page's text. Each part can be styled.
    """
    stage.page.emulate_media(color_scheme="dark")
    stage.open()
    light = stage.show(data())["color"]
    stage.set_root("color-scheme: light dark")
    assert stage.look()["color"] != light
    stage.set(
        """e.style.setProperty("--job-state-accent", "rgb(1, 2, 3)");
        e.style.setProperty("--job-state-bar-height", "12px");"""
    )
    assert stage.show(data())["color"] == "rgb(1, 2, 3)"
    box = stage.page.locator("[part=bar]").bounding_box()
    assert box is not None
    assert box["height"] == 12
    stage.show(EACH)
    parts = ["counts", *(f"count-{name}" for name in STATUSES)]
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
    """Nothing moves for users who prefer reduced motion; with very many elements, the
    bars jump rather than keep the browser busy. Else shares move as the fill does.
    """
    stage.open()
    stage.show(STATES["unknown"])
    moving = "job.shadowRoot.getAnimations().length"
    assert stage.page.evaluate(moving) > 0
    parts = """async (data) => {
        job.data = data;
        for (let i = 0; i < 4; i++) await new Promise(requestAnimationFrame);
        return job.shadowRoot.getAnimations()
            .filter((animation) => animation instanceof CSSTransition)
            .map(({ effect }) => effect.target.className);
    }"""
    later = batch(success=3, error=2, working=6, fraction=0.6)
    stage.show(batch(success=1, error=1, working=9, fraction=0.3))
    stage.page.evaluate(FREEZE)
    # The empty share of cancelled jobs moves along.
    shares = {f"share-{name}" for name in ("success", "error", "cancelled")}
    assert set(stage.page.evaluate(parts, later)) == {"bar", "fill", *shares}
    stage.page.emulate_media(reduced_motion="reduce")
    for state in STATES["unknown"], USUAL, later:
        stage.show(state)
        assert stage.page.evaluate(moving) == 0
    lively = "job.shadowRoot.querySelector('.lively') !== null"
    for count, expected in (29, True), (30, False):
        stage.open(ELEMENT + "<job-state></job-state>" * count)
        stage.show(STATES["working"])
        assert stage.page.evaluate(lively) is expected


def test_element_is_printed_whole(stage: Batches) -> None:
    """On paper, the log has all its lines, and the bar its colours. With forced
    colours, the fill still differs from the track.
    """
    stage.open("<job-state id=job log></job-state>")
    stage.show(data(log=[f"line {n}" for n in range(20)], progress=progress(1, 4)))
    log = stage.page.locator("[part=log]")
    hidden = "log => log.scrollHeight - log.clientHeight"
    assert log.evaluate(hidden) > 0
    stage.page.emulate_media(media="print")
    assert log.evaluate(hidden) == 0
    parts = [stage.page.locator(f"[part={part}]") for part in ("bar", "fill")]
    for part in parts:
        expect(part).to_have_css("print-color-adjust", "exact")
    stage.page.emulate_media(media="screen", forced_colors="active")
    colour = "(e) => getComputedStyle(e).backgroundColor"
    assert len({part.evaluate(colour) for part in parts}) == 2


def test_style_sheet_is_linked_where_none_can_be_constructed(stage: Batches) -> None:
    """If no sheet can be constructed or fetched, the element links job-state.css."""
    stage.server.answer("job", answer())
    for spoil in (
        "delete Document.prototype.adoptedStyleSheets;"
        "window.CSSStyleSheet = function () { throw new TypeError(); };",
        "const reallyFetch = fetch; window.fetch = (url, ...rest) =>"
        " String(url).includes('.css') ? Promise.reject(new TypeError())"
        " : reallyFetch(url, ...rest);",
    ):
        stage.server.pages["/spoil.js"] = spoil
        body = "<job-state id=job src=/job_state/job></job-state>"
        page = HEAD.format(lang="en", body=body)
        page = page.replace("<script", "<script src=/spoil.js></script><script", 1)
        stage.server.pages["/element"] = page
        stage.page.goto(stage.server.url + "/element")
        bar = stage.page.locator("[part=bar]")
        expect(bar).to_be_visible()
        expect(bar).to_have_css("height", "6px")
        assert stage.page.locator("link[rel=stylesheet]").count() == 1


# Contrast


@pytest.mark.system
@pytest.mark.parametrize("theme", PAGES)
@pytest.mark.usefixtures("any_browser")
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
    # The end of the bar shows how much there is to do.
    ends = {
        name: max(contrast(pixel, looks.page) for pixel in looks.bars[name][-8:])
        for name in (*PARTIAL, *EMPTY, "barely")
    }
    assert {name: ratio for name, ratio in ends.items() if ratio < 3} == {}


@pytest.mark.system
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast_is_enough_with_forced_colours(
    stage: Batches, scheme: Literal["light", "dark"]
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


@pytest.mark.system
@pytest.mark.parametrize("theme", PAGES)
def test_button_stands_out_under_pointer_and_focus(stage: Batches, theme: str) -> None:
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


@pytest.mark.system
def test_text_has_the_colour_of_the_page(stage: Batches) -> None:
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


@pytest.mark.system
@pytest.mark.usefixtures("any_browser")
def test_colours_of_an_application_win(stage: Batches) -> None:
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


@pytest.mark.system
@pytest.mark.parametrize("where", ["html", "body"])
def test_sizes_follow_the_font(stage: Batches, where: str) -> None:
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


@pytest.mark.system
def test_sheet_has_no_lengths_in_pixels_but_hairlines() -> None:
    """Only lines of one pixel have a size of their own."""
    sheet = (STATIC / "job-state.css").read_text("utf-8")
    words = sheet.replace(";", " ").replace(",", " ").replace(")", " ").split()
    assert {word for word in words if word.endswith("px")} <= {"1px", "-1px"}


# The bar


@pytest.mark.system
@pytest.mark.parametrize("direction", ["ltr", "rtl"])
def test_fill_and_track_are_apart(stage: Batches, direction: str) -> None:
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


@pytest.mark.system
@pytest.mark.parametrize("theme", ["light", "red", "dark scheme"])
def test_bar_without_motion_shows_that_work_goes_on(stage: Batches, theme: str) -> None:
    """With reduced motion, a bar without a share has stripes, which have 3:1."""
    stage.page.emulate_media(reduced_motion="reduce")
    stage.open("<job-state id=job></job-state>")
    stage.set_root(THEMES[theme])
    stage.show(STATES["unknown"])
    looks = stage.measure()
    seen = [contrast(pixel, looks.page) >= 3 for pixel in looks.bars["job"]]
    assert len(list(itertools.groupby(seen))) > 40
    assert sum(seen) == pytest.approx(len(seen) / 2, rel=0.2)


# Batches


@pytest.mark.system
@pytest.mark.parametrize("theme", SOME)
def test_shares_stand_out_on_any_page(stage: Batches, theme: str) -> None:
    """Each share has 3:1 against the page, which shows in the gap before the next one,
    and the counts can be read.
    """
    stage.open()
    stage.set_root(THEMES[theme])
    stage.show(EACH)
    looks = stage.measure()
    assert looks.below(4.5, "text") == {}
    assert ("job", "text", "count-success") in looks.contrasts
    bar = looks.bars["job"]
    shares = {n: looks.stands_out("job", n / 100) for n in (20, 50, 65, 75)}
    assert {n: ratio for n, ratio in shares.items() if ratio < 3} == {}
    for share, end in itertools.pairwise([0, *stage.edges()]):
        if end > share:
            place = int(end * len(bar) / 100)
            gap = bar[place - 4 : place + 6]
            assert min(contrast(pixel, looks.page) for pixel in gap) < 1.5, end


@pytest.mark.system
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_shares_are_apart_with_forced_colours(stage: Batches, scheme: Scheme) -> None:
    """With forced colours, shares and marks stand out from the forced background."""
    stage.page.emulate_media(color_scheme=scheme, forced_colors="active")
    stage.open()
    stage.show(EACH)
    looks = stage.measure()
    assert looks.below(4.5, "text") == {}
    ratios = {n: looks.stands_out("job", n / 100) for n in (20, 50, 65)}
    bar = looks.bars["job"]
    work = bar[int(0.72 * len(bar)) : int(0.78 * len(bar))]
    assert {n: ratio for n, ratio in ratios.items() if ratio < 3} == {}
    # The work that goes on is striped.
    assert {contrast(pixel, looks.page) >= 3 for pixel in work} == {True, False}
    # The mark of waiting jobs is a ring.
    ring = "getComputedStyle(job.shadowRoot.querySelector('{}'), '::before').boxShadow"
    assert stage.page.evaluate(ring.format("[part=count-queued]")) != "none"
    success, failed = (bar[int(place * len(bar))] for place in (0.2, 0.5))
    assert success != failed


MARKS = """() => {
  const names = ["borderRadius", "transform", "backgroundImage", "boxShadow"];
  const nodes = [...job.shadowRoot.querySelectorAll("[part=counts] > *")];
  const styles = nodes.map((node) => getComputedStyle(node, "::before"));
  return styles.map((style) => names.map((name) => style[name]).join());
}"""


@pytest.mark.system
def test_marks_differ_by_shape(stage: Batches) -> None:
    """Without colours, each count has a mark of its own."""
    stage.open()
    same = "--job-state-{}: #000"
    names = ("accent", "success", "warning", "error", "muted")
    stage.set_root("; ".join(same.format(name) for name in names))
    stage.show(EACH)
    marks = stage.page.evaluate(MARKS)
    assert len(set(marks)) == len(marks) == 6


@pytest.mark.system
def test_counts_take_the_colours_of_the_states(stage: Batches) -> None:
    """The custom properties of the states colour marks and shares."""
    stage.open()
    stage.set_root(f"{COLOURS}; --job-state-warning: #f0f")
    stage.show(EACH)
    tones = stage.page.evaluate(
        """() => ["counts", "bar"].map((part) =>
            [...job.shadowRoot.querySelectorAll(`[part=${part}] > *`)].map((node) =>
                getComputedStyle(node).getPropertyValue("--_tone")))"""
    )
    over = ["#0f0", "#f00", "#333"]
    assert tones == [[*over, "#00f", "#333", "#f0f"], ["#00f", *over]]
    counts = stage.page.locator("[part=counts]")
    expect(counts).to_have_css("color", "rgb(51, 51, 51)")


@pytest.mark.system
def test_words_of_counts_have_a_direction_of_their_own(stage: Batches) -> None:
    """Words of another direction than the page's begin on their own side."""
    stage.open("<div dir=rtl><job-state id=job label-count-error='{number} שגיאות'>")
    stage.show(EACH)
    directions = {
        part: stage.page.locator(f"[part=count-{part}]").evaluate(
            "(node) => getComputedStyle(node).direction"
        )
        for part in ("success", "error")
    }
    assert directions == {"success": "ltr", "error": "rtl"}


@pytest.mark.system
@pytest.mark.parametrize("width", [320, 1000])
def test_course_of_a_batch_moves_nothing_below_it(stage: Batches, width: int) -> None:
    """While jobs succeed, and one or another is tried again, the element keeps its
    height, and no page is wider than its window.
    """
    stage.page.set_viewport_size({"width": width, "height": 700})
    stage.open("<job-state id=job cancellable></job-state>")
    heights = set()
    for n in range(8, 120, 7):
        state = batch(
            fraction=n / 120,
            eta=(120 - n) / 3,
            success=n - 2,
            error=2,
            working=4,
            retrying=n % 2,
            queued=120 - n,
        )
        stage.show(state)
        heights.add(stage.height())
    assert len(heights) == 1
    large: dict[str, Any] = dict.fromkeys(STATUSES, 10**15)
    stage.show(batch(fraction=0.5, **large))
    wider = "document.documentElement.scrollWidth > innerWidth"
    assert stage.page.evaluate(wider) is False


# Accessibility


@pytest.mark.system
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(stage: Batches, node_modules: Path, scheme: Scheme) -> None:
    """Elements in every state, and batches, are accessible, including contrast, in
    light and dark.
    """
    stage.page.emulate_media(color_scheme=scheme)
    ended = batch("error", success=1, error=1)
    states = {**STATES, "each": EACH, "usual": USUAL, "end": ended}
    names = [*states, *(f"{name}-compact" for name in states), "lost", "loading"]
    stage.open(
        "".join(
            f"<job-state id={n} cancellable log {n[-7:]}></job-state>" for n in names
        )
    )
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
    assert [
        (rule["id"], [node["target"] for node in rule["nodes"]])
        for rule in found["violations"]
    ] == []


# The script


@pytest.mark.system
def test_script_is_light_and_of_2018(node_modules: Path) -> None:
    """Compressed and without comments, the script takes no more than 16 KiB. ES2018
    browsers can parse it.
    """
    script = STATIC / "job-state.js"
    source = re.sub(r"/\*.*?\*/", "", script.read_text("utf-8"), flags=re.S)
    source = re.sub(r"(?m)(^|\s)//.*$", "", source)
    assert len(gzip.compress(source.encode(), 9)) <= 16 * 1024
    acorn = node_modules / ".bin" / "acorn"
    command = [str(acorn), "--ecma2018", "--silent", str(script)]
    assert subprocess.run(command, check=False).returncode == 0
