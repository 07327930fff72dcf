"""What elements look like in Chromium: on pages of any colours and font size, with
forced colours, on paper, and to a screen reader's tools.
"""

import gzip
import re
import subprocess
from functools import partial

import pytest
from playwright.sync_api import expect

from tests.accessible import complaints
from tests.browser.batches import EACH, STATUSES, USUAL, batch
from tests.browser.looks import contrast, measure
from tests.browser.staging import (
    ELEMENT,
    HEAD,
    STATES,
    answer,
    data,
    progress,
)
from tests.pollserver import STATIC, Answer
from tests.support import wait_for

# What every run checks


#: The custom property that colours each state.
COLOURS = {
    "working": "accent",
    "success": "success",
    "error": "error",
    **dict.fromkeys(("retrying", "stalled", "cancelling"), "warning"),
    **dict.fromkeys(("queued", "cancelled"), "muted"),
}

#: The colours of the icon, the word, the details, the fill and the track.
SEEN = """() => {
  const style = (part, pseudo) =>
    getComputedStyle(job.shadowRoot.querySelector(`[part=${part}]`), pseudo);
  const texts = ["icon", "status", "details"].map((part) => style(part).color);
  const shapes = [style("fill"), style("bar", "::before")];
  return [...texts, ...shapes.map((shape) => shape.backgroundColor)];
}"""


def test_page_can_style_the_element(stage):
    """Custom properties set the colours and the bar's height and corners; otherwise
    colours and sizes follow the page's text. Each part can be styled.
    """
    stage.page.emulate_media(color_scheme="dark", reduced_motion="reduce")
    stage.open()
    light = stage.show(data())["color"]
    stage.set_root("color-scheme: light dark; font-size: 32px")
    assert stage.look()["color"] != light
    bar, fill = (stage.page.locator(f"[part={name}]") for name in ("bar", "fill"))
    expect(bar).to_have_css("height", "12px")
    expect(stage.page.locator("[part=title]")).to_have_css("font-size", "32px")
    wanted = {name: f"rgb({n}, 99, 7)" for n, name in enumerate(COLOURS.values())}
    properties = "".join(f"--job-state-{k}: {v};" for k, v in wanted.items())
    track = "rgb(9, 9, 9)"
    properties += f"--job-state-track: {track}; --job-state-bar-height: 20px;"
    stage.set_root(f"{properties} --job-state-radius: 3px")
    for state, name in COLOURS.items():
        stage.show(STATES[state])
        own = wanted[name]
        colours = [own, own, wanted["muted"], own, track]
        assert stage.page.evaluate(SEEN) == colours, state
    expect(bar).to_have_css("height", "20px")
    for part in bar, fill:
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


def test_motion_is_not_forced_on_anybody(stage):
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


@pytest.mark.promise("content-security-policy-holds")
def test_style_sheet_is_linked_where_none_can_be_constructed(stage):
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


@pytest.mark.promise("content-security-policy-holds")
def test_element_keeps_its_style_in_other_documents(stage):
    """A frame or another window may adopt it, as a picture-in-picture window does, and
    give it back.
    """
    stage.open(f"{ELEMENT}<iframe></iframe>")
    page = stage.page
    page.evaluate("() => { window.kept = job; window.other = open('/empty'); }")
    wait_for(lambda: page.evaluate("other.document.URL") == f"{stage.server.url}/empty")

    def is_styled(place: str) -> bool:
        bar = "kept.shadowRoot.querySelector('[part=bar]')"
        height = page.evaluate(f"{place}.getComputedStyle({bar}).height")
        return bool(height == "6px")

    for place in "frames[0]", "window", "other", "frames[0]", "other", "window":
        page.evaluate(f"() => {{ {place}.document.body.append(kept); }}")
        wait_for(partial(is_styled, place))
    assert stage.asked.count(f"{stage.server.url}/job-state.css") == 1
    page.evaluate("other.close()")


# Contrast

#: The style of the root element of each page.
THEMES = {
    "light": "background: #fff; color: #1b1b1a",
    "dark scheme": "color-scheme: dark; background: Canvas",
    "dark by itself": "color-scheme: light; background: #16181d; color: #e6e6e6",
    # The colours, size and weight of the cookiecutter's pages
    "red": "background: #bc2131; color: #fff; font: 300 14px/1.43 sans-serif",
    "grey": "background: #8a8a8a; color: #000",
    # Text that only just has 4.5:1
    "faint": "background: #fff; color: #767676",
    "translucent": "background: #efe9dc; color: rgb(0 0 0 / 80%)",
}

ALL = {
    **STATES,
    "barely": data(progress=progress(1, 100), message="On the bridge"),
    "each": EACH,
    "usual": USUAL,
    "end": batch("error", success=1, error=1),
}

#: States that show a share of the work; the bar's end is still ahead.
PARTIAL = ("working", "retrying", "stalled", "cancelling", "reconnecting")

#: Places on the bar of a batch, in each of its shares.
SHARES = (0.2, 0.5, 0.65, 0.75)


@pytest.mark.promise("element-shows-each-status")
@pytest.mark.system
@pytest.mark.parametrize("theme", THEMES)
def test_everybody_can_read_it_on_any_page(stage, node_modules, theme):
    """In each state all text has 4.5:1 against its background, and axe-core finds
    nothing else. The bar has 3:1: its fill against the page and against what follows
    it, the shares of a batch, and the end, which shows how much there is to do.
    """
    stage.server.answer("away", answer(progress=progress(12, 26)), Answer(503))
    element = "<job-state id={} period=50 cancellable log {}></job-state>"
    places = dict.fromkeys([*ALL, "loading"], "")
    places |= {f"{name}-compact": "compact" for name in ALL}
    places |= {"lost": "src=/job_state/none", "reconnecting": "src=/job_state/away"}
    stage.open("".join(element.format(*each) for each in places.items()))
    stage.set_root(THEMES[theme])
    for name, state in ALL.items():
        stage.show(state, name)
        stage.show(state, f"{name}-compact")
    for name in "lost", "reconnecting":
        stage.wait(name, name)
    assert list(complaints(stage.page, node_modules)) == []
    looks = measure(stage.page)
    fills = {name: looks.stands_out(name, 0.05) for name in PARTIAL}
    fills |= {f"each at {n}": looks.stands_out("each", n) for n in SHARES}
    fills["success"] = min(looks.stands_out("success", n / 100) for n in range(2, 98))
    fills["unknown"] = max(looks.stands_out("unknown", n / 100) for n in range(100))
    for name in PARTIAL:
        fill, rest = looks.bars[name][5], looks.bars[name][6:-12]
        fills[f"{name} and rest"] = max(contrast(fill, pixel) for pixel in rest)
    for name in (*PARTIAL, "queued", "loading", "barely"):
        end = looks.bars[name][-8:]
        fills[f"end of {name}"] = max(contrast(pixel, looks.page) for pixel in end)
    assert {name: ratio for name, ratio in fills.items() if ratio < 3} == {}


# The script


@pytest.mark.system
def test_script_is_light_and_of_2018(node_modules):
    """Without comments it compresses to 16 KiB at most, and ES2018 can parse it."""
    script = STATIC / "job-state.js"
    source = re.sub(r"/\*.*?\*/", "", script.read_text("utf-8"), flags=re.S)
    source = re.sub(r"(?m)(^|\s)//.*$", "", source)
    assert len(gzip.compress(source.encode(), 9)) <= 16 * 1024
    acorn = node_modules / ".bin" / "acorn"
    command = [str(acorn), "--ecma2018", "--silent", str(script)]
    assert subprocess.run(command, check=False).returncode == 0
