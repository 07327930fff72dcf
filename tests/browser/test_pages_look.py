"""What the pages look like in Chromium, and whether everybody can use them."""

from __future__ import annotations

import importlib
import itertools
import re
import time
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from pyramid_jobstate import JobError, JobStore, Progress
from pyramid_jobstate.testing import put_job
from tests.accessible import RGBA, SCHEMES, complaints, ring_width
from tests.browser.looks import Colour, contrast, over
from tests.browser.paged import IS_WIDER, ImportSheet, Pages, fill
from tests.browser.test_batches import USUAL
from tests.jobs import RunMarathon
from tests.web.paging import paged_config

WIDTHS = (1280, 390)

#: The application's own elements, around the content of a page.
LAYOUT = """<!doctype html>
<html lang="en"><head><title>{{ title }}</title>{{ head }}</head>
<body>
<header><h1>Shop</h1><p>A <a href="/">shop</a> with <code>jobs</code></p></header>
<main>{{ main }}</main>
<footer>
  <h2>More</h2><h3>Even more</h3><ul><li>One</li></ul><ol><li>Two</li></ol>
  <dl><dt>Three</dt><dd>3</dd></dl><pre>x</pre>
  <form><label>Name <input></label><select><option>A</option></select>
  <input type="checkbox"><button>Go</button></form>
  <table><thead><tr><th>A</th></tr></thead><tbody><tr><td>1</td></tr></tbody></table>
  <figure><svg><path d="M0 0h1"/></svg><figcaption>Fig.</figcaption></figure>
  <dialog open>Hello</dialog><p hidden>Secret</p>
</footer>
</body></html>
"""

#: The computed style of each of the application's own elements.
STYLES = """() => [
  ...document.querySelectorAll(":root, body, main, body > header *, footer *"),
]
  .map((node) => [node.tagName, ...[...getComputedStyle(node)]
    // Sizes follow the content in between.
    .filter((name) => !/size|height|width|origin|inset|^(top|bottom)$/.test(name))
    .map((name) => `${name}: ${getComputedStyle(node)[name]}`)])"""

#: What has the focus, in a few words.
FOCUSED = """() => {
  const node = document.activeElement;
  return node.dataset.jobstate || node.dataset.act || node.name || node.type
    || node.textContent.trim().split(/\\s/)[0] || node.tagName;
}"""


#: Layouts: the style of a body, of what it holds beside the page, and of what holds the
#: page. In the last ones, a page has always been as wide as it can be.
SHAPES = {
    "row": ("display: flex", "", ""),
    "centred": ("display: flex; flex-direction: column; align-items: center", "", ""),
    "grid": ("display: grid; grid: auto / auto auto; justify-content: start", "", ""),
    "cells": ("display: table", "display: table-cell", "display: table-cell"),
    "float": ("", "", "float: left"),
    "inline": ("", "", "display: inline-block"),
    "block": ("", "", ""),
    "side": ("display: flex", "flex: none; width: 40vw", "flex: 1"),
}

#: Lays a page out, and returns the width of its content, and how wide that could be.
LAY_OUT = """(styles) => {
  const nav = document.createElement("nav");
  nav.textContent = "Menu";
  const { body } = document;
  const main = body.querySelector("main");
  body.className = "";
  main.before(nav);
  for (const node of [body, nav, main]) node.style.cssText = styles.shift();
  const beside = nav.getBoundingClientRect();
  const isBeside = main.getBoundingClientRect().top < beside.bottom;
  const width = innerWidth - 16 - (isBeside && beside.width);
  return [main.querySelector(".jobstate").getBoundingClientRect().width, width];
}"""

#: For each element: the word for its state, whether it is shown in full, and whether a
#: bar of some width is.
ROWS = """(elements) => elements.map(({ shadowRoot }) => {
  const find = (part) => shadowRoot.querySelector(`[part=${part}]`);
  const box = (part) => find(part).getBoundingClientRect();
  const isWhole = box("status").right <= box("foot").right + 0.5;
  const hasBar = box("bar").width >= 90 && box("bar").height >= 3;
  const isSeen = find("bar").checkVisibility({ visibilityProperty: true });
  return [find("status").textContent, isWhole, hasBar && isSeen];
})"""

#: The colours of the chart's bars and of its legend, of its surface and of the page.
CHART = (
    "() => {"
    + RGBA
    + """
  const find = (selector) => document.querySelector(selector);
  const legend = (name) => find(`.jobstate-chart span.jobstate-${name}`);
  return [
    rgba(getComputedStyle(document.body).backgroundColor),
    rgba(getComputedStyle(find(".jobstate-chart")).backgroundColor),
    ["success", "cancelled", "error"].map((name) => [
      rgba(getComputedStyle(find(`path.jobstate-${name}`)).fill),
      rgba(getComputedStyle(legend(name), "::before").backgroundColor),
    ]),
  ];
}"""
)


def press(page: Page, *keys: str) -> str:
    """Press keys, and return what has the focus then."""
    for key in keys:
        page.keyboard.press(key)
    found: str = page.evaluate(FOCUSED)
    return found


def put_failed(store: JobStore) -> str:
    """Put a job that has failed, with everything that its page may show."""
    failure = JobError("Blister", "after 26 miles")
    return put_job(
        store,
        RunMarathon,
        "error",
        actor="run_marathon",
        owner="alice",
        params={"miles": 26, "shoes": "blue"},
        metrics={"miles_run": 2, "pace": "5:03"},
        log=["Mile 1", "Mile 2"],
        error=failure,
        traceback="Traceback:\n  a line\nBlister: after 26 miles\n",
    ).uuid


@pytest.mark.system
@pytest.mark.usefixtures("marathons")
@pytest.mark.parametrize("width", WIDTHS)
def test_pages_are_accessible(
    pages: Pages, store: JobStore, node_modules: Path, width: int
) -> None:
    """axe-core finds nothing to complain about on a list, a job or a dialog, light or
    dark, and no page is wider than its window. Pictures of them are kept.
    """
    page = pages.page
    # A colour in transition belongs to neither scheme.
    page.emulate_media(reduced_motion="reduce")
    page.set_viewport_size({"width": width, "height": 900})
    running = fill(store)[1]
    failed = put_failed(store)
    found = {}

    def check(name: str) -> None:
        for scheme, rule, html in complaints(page, node_modules):
            found[name, scheme, rule] = html
        assert page.evaluate(IS_WIDER) is False, name
        for scheme in SCHEMES:
            page.emulate_media(color_scheme=scheme)
            pages.picture(f"pages-{name}-{scheme}-{width}")

    pages.visit()
    check("list")
    pages.one("all").check()
    page.get_by_role("button", name="Delete").click()
    check("dialog")
    page.keyboard.press("Escape")
    pages.visit(f"/job_state/{failed}")
    check("job")
    pages.visit(f"/job_state/{running}")
    check("running")
    pages.visit("/job_state/?owner=nobody&id=x")
    check("empty")
    assert found == {}


@pytest.mark.system
def test_pages_can_be_printed(pages: Pages, store: JobStore) -> None:
    """On paper the pages are light, have all lines of a log, and nothing to press."""
    page = pages.page
    job = fill(store)[5]
    for name, path in ("list", "/job_state"), ("job", f"/job_state/{job}"):
        pages.visit(path)
        page.emulate_media(media="print", color_scheme="dark")
        pressed = page.locator("button:visible, input:visible, select:visible")
        assert pressed.count() == 0
        expect(page.locator("h1")).to_be_visible()
        expect(page.locator("job-state").first).to_be_visible()
        expect(page.locator("body")).to_have_css("color", "rgb(26, 29, 33)")
        expect(page.locator("body")).to_have_css(
            "background-color", "rgb(255, 255, 255)"
        )
        expect(page.locator(":root")).to_have_css("color-scheme", "light")
        pages.picture(f"pages-{name}-print")
    page.emulate_media(media="screen")
    lines = ["A long line of the log " * 8] * 20
    job = put_job(store, ImportSheet, "working", log=lines).uuid
    pages.page.set_viewport_size({"width": 390, "height": 800})
    pages.visit(f"/job_state/{job}")
    log = pages.page.locator("[part=log]")
    hidden = "log => log.scrollHeight - log.clientHeight"
    assert log.evaluate(hidden) > 0
    pages.page.emulate_media(media="print")
    assert log.evaluate(hidden) == 0


@pytest.mark.system
@pytest.mark.parametrize(("width", "height"), [(1280, 41), (390, 80)])
def test_rows_are_compact(
    pages: Pages, store: JobStore, width: int, height: int
) -> None:
    """A row is 40 pixels high, whatever its job says, and on phones has two lines. The
    columns are aligned.
    """
    long = "word " * 300 + "x" * 3000
    fill(store)
    put_job(store, ImportSheet, owner=long, params={"filename": long}, message=long)
    pages.page.set_viewport_size({"width": width, "height": 900})
    pages.visit()
    assert pages.page.evaluate(IS_WIDER) is False
    boxes = pages.page.locator("tbody tr").evaluate_all(
        """rows => rows.map((row) => [
            row.getBoundingClientRect().height,
            row.querySelector("job-state").getBoundingClientRect().left,
            row.querySelector("job-state").shadowRoot.querySelector("[part=foot]")
              .getBoundingClientRect().left,
        ])"""
    )
    assert len(boxes) == 19
    assert {box[0] <= height for box in boxes} == {True}
    assert len({box[1] for box in boxes}) == 1
    if width == 1280:
        assert {box[0] >= 40 for box in boxes} == {True}
        assert len({box[2] for box in boxes}) == 1


@pytest.mark.system
@pytest.mark.parametrize("width", [920, 760, 390])
def test_status_of_a_row_is_read_in_full(
    pages: Pages, store: JobStore, width: int
) -> None:
    """In a narrow window, a row shows all of the word for its job's state, and a bar
    while the job is not done. On phones there is room even for the longest of them.
    """
    fill(store)
    put_job(store, RunMarathon, "stalled", progress=Progress(9, 26, "miles"))
    pages.page.set_viewport_size({"width": width, "height": 900})
    # About noon, so that no job starts tomorrow. In these names, west is positive.
    zone = {"timezoneId": f"Etc/GMT{time.gmtime().tm_hour - 12:+d}"}
    session = pages.page.context.new_cdp_session(pages.page)
    session.send("Emulation.setTimezoneOverride", zone)
    pages.visit()
    found = {}

    def look() -> None:
        for word, *seen in pages.page.locator("job-state").evaluate_all(ROWS):
            # A job that waits says how long, or until when.
            found[re.sub(r"^(Waiting|Starts) .*", r"\1", word)] = seen

    look()
    for state, status in ("reconnecting", 503), ("lost", 404):
        pages.refuse = {"GET": status}.get
        unfinished = pages.page.locator(f"job-state[state={state}]")
        expect(unfinished).to_have_count(11)
        look()
        pages.picture(f"pages-list-{state}-{width}")
    pages.forgive("status of 404", "status of 503")
    lost = "Connection lost, trying again…"
    words = {
        "Waiting": False,
        "Starts": False,
        "Running": True,
        "Trying again": True,
        "No sign of life": True,
        "Cancelling…": True,
        "Done": False,
        "Failed": True,
        "Cancelled": False,
        lost: True,
        "Unavailable": False,
    }
    if width > 390:
        del found[lost], words[lost]
    assert found == {word: [True, has_bar] for word, has_bar in words.items()}


@pytest.mark.system
@pytest.mark.parametrize("width", [700, 390])
def test_rows_can_be_read_without_the_script(
    pages: Pages, store: JobStore, width: int
) -> None:
    """If the scripts cannot be loaded, each row is as high as its text."""
    fill(store)
    put_job(store, RunMarathon, "working", message="Waiting for the database " * 9)
    page = pages.page
    page.set_viewport_size({"width": width, "height": 900})
    page.route("**/*.js", lambda route: route.fulfill(status=404))
    page.goto(f"{pages.url}/job_state")
    heights = page.locator("job-state").evaluate_all(
        "elements => elements.map((e) => [e.clientHeight, e.scrollHeight])"
    )
    assert len(heights) == 19
    assert [pair for pair in heights if pair[0] < pair[1]] == []
    assert page.evaluate(IS_WIDER) is False
    pages.picture(f"pages-no-script-{width}")
    pages.forgive("status of 404")


def test_everything_is_done_by_keyboard(pages: Pages, store: JobStore) -> None:
    """Each control of a list is reached with Tab, in the order of reading, and each act
    can be asked for, declined and confirmed. The focus returns to the button that
    asked, and goes to the result.
    """
    job = put_job(store, RunMarathon, "success", owner="alice").uuid
    put_job(store, RunMarathon, "working", owner="alice")
    page = pages.page
    pages.visit()
    tabs = page.locator(".jobstate-tabs a").count()
    expected = ["kind", "owner", "id", "submit", "all", "matching"]
    assert [press(page, "Tab") for _ in range(tabs + 6)][tabs:] == expected
    # The first row: its box and its link. Then the element of a job that runs.
    assert press(page, "Tab") == "checkbox"
    assert press(page, "Tab") == "Run"
    assert press(page, "Tab") == "checkbox"
    page.keyboard.press("Space")
    assert press(page, "Shift+Tab", "Shift+Tab", "Shift+Tab") == "delete"

    assert press(page, "Enter") == "no"
    assert press(page, "Escape") == "delete"
    assert press(page, "Enter", "Enter") == "delete"
    assert pages.changes == []
    assert press(page, "Enter", "Tab") == "yes"
    page.keyboard.press("Space")

    pages.expect_said("1 job deleted.")
    assert job not in pages.uuids
    assert press(page, "Tab") == "all"

    # The link of a row leads to its job, whose page is done by keyboard, too.
    assert press(page, "Tab", "Tab", "Tab") == "Run"
    page.keyboard.press("Enter")
    page.wait_for_url("**/job_state/*-*/")
    pages.settle()
    assert press(page, "Tab") == "All"
    assert press(page, "Tab") == "cancel"
    assert press(page, "Tab") == "copy"
    assert press(page, "Shift+Tab", "Enter") == "no"
    assert press(page, "Tab") == "yes"
    page.keyboard.press("Enter")
    pages.expect_said("Asked 1 job to stop.")


@pytest.mark.system
@pytest.mark.usefixtures("marathons")
def test_focus_is_seen(pages: Pages, store: JobStore) -> None:
    """Whatever has the focus has a ring two pixels wide: on a list, in its dialog and
    on the page of a job, light or dark, also in a layout that sets no colours.
    """
    page = pages.page
    job = put_failed(store)
    put_job(store, RunMarathon, "success", owner="alice")
    rings: dict[tuple[object, ...], float] = {}

    def tab(name: str) -> int:
        """Move the focus through a page, and return how many places it has been at."""
        before = len(rings)
        focused = press(page, "Tab")
        while not page.evaluate("document.activeElement === document.body"):
            rings[name, len(rings), focused] = ring_width(page)
            assert len(rings) < 99
            focused = press(page, "Tab")
        return len(rings) - before

    pages.visit()
    tabs = page.locator(".jobstate-tabs a").count()
    assert tab("list") == tabs + 10
    pages.one("all").check()
    page.get_by_role("button", name="Delete").press("Enter")
    rings["dialog", "no"] = ring_width(page)
    assert tab("dialog") == 1
    page.emulate_media(color_scheme="dark")
    pages.visit(f"/job_state/{job}")
    assert tab("job") == 6
    page.emulate_media(color_scheme="light")
    pages.visit(f"/job_state/{job}")
    page.evaluate("() => {document.body.className = ''}")
    assert tab("job in a shop") == 6
    assert {where: ring for where, ring in rings.items() if ring < 1.9} == {}


@pytest.mark.system
def test_layout_of_the_application_is_left_alone(
    pages: Pages,
    redis_url: str,
    store: JobStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In the layout of an application, the style sheet changes nothing but the content
    of the pages, which takes the layout's font and colours.
    """
    name = f"layout_of_{tmp_path.name.replace('-', '_')}"
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").touch()
    (tmp_path / name / "jobs.jinja2").write_text(LAYOUT)
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    config = paged_config(
        redis_url, settings={"jobstate.pages_layout": f"{name}:jobs.jinja2"}
    )
    config.include("pyramid_jinja2")
    pages.serve(config)
    page = pages.page
    fill(store)

    pages.visit()

    styled = page.evaluate(STYLES)
    size = "getComputedStyle(document.querySelector('.jobstate h1')).fontFamily"
    assert page.evaluate(size) == page.evaluate(
        "getComputedStyle(document.body).fontFamily"
    )
    expect(page.locator(".jobstate-rows")).to_have_css("table-layout", "fixed")
    page.locator("link[rel=stylesheet]").evaluate("(link) => {link.disabled = true}")
    expect(page.locator(".jobstate-rows")).to_have_css("table-layout", "auto")
    assert page.evaluate(STYLES) == styled
    assert len(styled) > 30


@pytest.mark.system
@pytest.mark.parametrize(
    "background",
    [
        *(pytest.param(c, marks=pytest.mark.long) for c in ("#fff", "#16181d")),
        "#bc2131",
    ],
)
def test_contrast_is_enough_in_any_layout(
    pages: Pages, store: JobStore, node_modules: Path, background: str
) -> None:
    """The content of the pages takes the colours around it, and keeps the contrast of
    their text.
    """
    fill(store)
    pages.visit()
    color = "#111" if background == "#fff" else "#fff"
    # What is left of our own layout is its class.
    pages.page.evaluate(
        """([background, color]) => {
            document.body.className = "";
            Object.assign(document.documentElement.style, { background, color });
        }""",
        [background, color],
    )
    found = list(complaints(pages.page, node_modules))
    assert found == []


@pytest.mark.system
@pytest.mark.parametrize("width", [1280, 1000, 390])
def test_pages_have_room_in_any_layout(
    pages: Pages, store: JobStore, width: int
) -> None:
    """In a layout that is as wide as its content, the pages have as much room as they
    need and the window offers. They are never wider than the window.
    """
    page = pages.page
    job = fill(store)[6]
    page.set_viewport_size({"width": width, "height": 900})
    found = {}
    for path in "/job_state", f"/job_state/{job}":
        for name, styles in SHAPES.items():
            pages.visit(path)
            shown, possible = page.evaluate(LAY_OUT, styles)
            expected = possible if name in ("block", "side") else min(possible, 900)
            if shown < expected - 1 or page.evaluate(IS_WIDER):
                found[path, name] = shown, possible
    assert found == {}


@pytest.mark.system
@pytest.mark.parametrize(
    "style",
    [
        "own",
        "background: #fff; color: #111",
        "background: #16181d; color: #fff",
        "background: #bc2131; color: #fff",
        "background: #8a8a8a; color: #000",
    ],
)
def test_parts_of_the_chart_are_told_apart(
    pages: Pages, store: JobStore, style: str
) -> None:
    """Jobs that were done, were cancelled or failed differ in colour, light and dark,
    also in a layout that sets none. Each colour stands out, and is that of the legend.
    """
    fill(store)
    pages.visit()
    if style != "own":
        pages.page.evaluate(
            "(s) => [document.body.className, document.body.style.cssText] = ['', s]",
            style,
        )
    for scheme in SCHEMES:
        pages.page.emulate_media(color_scheme=scheme)
        page, surface, keys = pages.page.evaluate(CHART)
        below: Colour = over(surface, 1, page[:3])
        seen = [[over(color, 1, below) for color in pair] for pair in keys]
        assert [bar for bar, legend in seen] == [legend for bar, legend in seen]
        colours = [bar for bar, _ in seen]
        assert [c for c in colours if contrast(c, below) < 3] == []
        for one, other in itertools.combinations(colours, 2):
            gap = max(abs(a - b) for a, b in zip(one, other, strict=True))
            assert gap >= 50, (scheme, one, other)


@pytest.mark.system
def test_timeline_turns_round(pages: Pages, store: JobStore) -> None:
    """From right to left, the arrows of a timeline point to the left. On phones, its
    steps are stacked, without arrows.
    """
    script = """getComputedStyle(
        document.querySelector(".jobstate-timeline li + li"), "::before").content"""
    page = pages.page
    pages.visit(f"/job_state/{fill(store)[6]}")
    expect(page.locator("html[dir]")).to_have_count(1)
    found = {}
    for width in WIDTHS:
        page.set_viewport_size({"width": width, "height": 900})
        for direction in "ltr", "rtl":
            page.evaluate("(dir) => {document.documentElement.dir = dir}", direction)
            found[width, direction] = page.evaluate(script)
    assert found == {
        (1280, "ltr"): '"\u25b8" / ""',
        (1280, "rtl"): '"\u25c2" / ""',
        (390, "ltr"): '"" / ""',
        (390, "rtl"): '"" / ""',
    }


@pytest.mark.system
def test_counts_have_a_line_of_their_own_on_the_page_of_a_job(
    pages: Pages, store: JobStore
) -> None:
    """On the page of a job, the counts are below the status and as wide as the bar."""
    uuid = put_job(store, RunMarathon, "success").uuid
    pages.visit(f"/job_state/{uuid}")
    foot, bar, counts = pages.page.evaluate(
        """async (data) => {
            const element = document.querySelector("job-state");
            element.data = data;
            const { shadowRoot: root } = element;
            const part = (name) => root.querySelector(`[part=${name}]`);
            while (part("counts").hidden) await new Promise(requestAnimationFrame);
            return ["foot", "bar", "counts"].map((name) =>
                part(name).getBoundingClientRect().toJSON());
        }""",
        USUAL,
    )
    assert counts["top"] >= foot["bottom"]
    assert (counts["left"], counts["right"]) == (bar["left"], bar["right"])
