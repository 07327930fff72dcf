"""What the pages look like in Chromium, and whether everybody can use them."""

import importlib
import re

import pytest
from playwright.sync_api import Page, expect

from pyramid_jobstate import JobError
from pyramid_jobstate.testing import put_job
from tests.accessible import SCHEMES, complaints
from tests.browser.paged import IS_WIDER, ImportSheet, fill
from tests.catalogs import write_catalog
from tests.jobs import RunMarathon
from tests.web.paging import TRACEBACK, paged_config

#: The application's own elements, around the content of a page.
LAYOUT = """<!doctype html>
<html lang="en"><head><title>{{ title }}</title>{{ head }}</head>
<body>
<header><h1>Shop</h1><p>A <a href="/">shop</a> with <code>jobs</code></p></header>
<main>{{ main }}</main>
<footer>
  <h2>More</h2><ul><li>One</li></ul><dl><dt>Three</dt><dd>3</dd></dl><pre>x</pre>
  <form><label>Name <input></label><select><option>A</option></select>
  <input type="checkbox"><button>Go</button></form>
  <table><thead><tr><th>A</th></tr></thead><tbody><tr><td>1</td></tr></tbody></table>
  <figure><svg><path d="M0 0h1"/></svg></figure><dialog open>Hello</dialog>
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


#: Where the text of a node ends on the right.
TEXT_END = """(node) => {
  const range = document.createRange();
  range.selectNodeContents(node);
  return range.getBoundingClientRect().right;
}"""

#: Whether the end of one of some texts is not shown.
ARE_CUT = """(nodes) => nodes.some((node) =>
  node.scrollWidth > node.clientWidth || node.scrollHeight > node.clientHeight + 1)"""

#: Replace our own layout by the style sheet of another.
WEAR = """(text) => {
  document.body.className = "";
  const sheet = new CSSStyleSheet();
  sheet.replaceSync(text);
  document.adoptedStyleSheets = [sheet];
}"""


def press(page: Page, *keys: str) -> str:
    """Press keys, and return what has the focus then."""
    for key in keys:
        page.keyboard.press(key)
    return str(page.evaluate(FOCUSED))


@pytest.mark.system
@pytest.mark.usefixtures("marathons")
@pytest.mark.parametrize("width", [1280, 390])
def test_pages_are_accessible(pages, store, node_modules, width):
    """axe-core finds nothing to complain about on a list, groups, a job or a dialog,
    light or dark, and no page is wider than its window. Pictures of them are kept.
    """
    page = pages.page
    # A colour in transition belongs to neither scheme.
    page.emulate_media(reduced_motion="reduce")
    page.set_viewport_size({"width": width, "height": 900})
    running = fill(store)[1]
    failed = put_job(
        store,
        RunMarathon,
        "error",
        actor="run_marathon",
        params={"miles": 26, "shoes": "blue"},
        metrics={"miles_run": 2, "pace": "5:03"},
        log=["Mile 1", "Mile 2"],
        error=JobError("ValueError", "wrong"),
        traceback=TRACEBACK,
    ).uuid
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
    texts = page.locator(".jobstate-reason, job-state [part=foot]")
    assert texts.evaluate_all(ARE_CUT) is False
    pages.one("all").check()
    page.get_by_role("button", name="Delete").click()
    check("dialog")
    page.keyboard.press("Escape")
    pages.visit(f"/job_state/{failed}")
    check("job")
    page.locator("summary").first.click()
    check("traceback")
    # A phone wraps its lines.
    wide = "node => node.scrollWidth > node.clientWidth"
    assert page.locator(".jobstate-traceback").evaluate(wide) is False
    pages.visit(f"/job_state/{running}")
    check("running")
    pages.visit("/job_state/?owner=nobody&id=x")
    check("empty")
    pages.visit("/job_state/?status=error&group=error")
    assert pages.page.locator("tbody tr").count() == 2
    check("groups")
    assert found == {}


@pytest.mark.system
def test_pages_can_be_printed(pages, store):
    """On paper the pages are light, have all lines of a log and of a traceback, and
    nothing to press.
    """
    page = pages.page
    fill(store)
    error = JobError("ValueError", "wrong")
    failed = put_job(store, ImportSheet, "error", error=error, traceback=TRACEBACK).uuid
    lines = ["A long line of the log " * 8] * 20
    job = put_job(store, ImportSheet, "working", log=lines).uuid
    for name, path in (
        ("list", "/job_state"),
        ("failed", f"/job_state/{failed}"),
        ("job", f"/job_state/{job}"),
    ):
        pages.visit(path)
        page.emulate_media(media="print", color_scheme="dark")
        pressed = page.locator("button:visible, input:visible, select:visible")
        assert pressed.count() == 0
        expect(page.locator("h1")).to_be_visible()
        expect(page.locator("job-state").first).to_be_visible()
        expect(page.locator("body")).to_have_css("color", "rgb(26, 29, 33)")
        white = "rgb(255, 255, 255)"
        expect(page.locator("body")).to_have_css("background-color", white)
        for lines_of in page.locator("pre").all():
            expect(lines_of).to_be_visible()
        pages.picture(f"pages-{name}-print")
    log = page.locator("[part=log]")
    assert log.evaluate("log => log.scrollHeight - log.clientHeight") == 0


def test_phone_shows_jobs_first(pages, store):
    """On a phone, a job is seen without scrolling: the filters and the chart are
    folded. Filters that are set are open, and so is everything on a wide page.
    """
    fill(store)
    page = pages.page
    page.set_viewport_size({"width": 390, "height": 600})
    pages.visit()
    kind, times = page.get_by_label("Kind"), page.locator(".jobstate-times")
    expect(page.locator("tr[data-uuid] job-state").first).to_be_in_viewport(ratio=1)
    expect(kind).to_be_hidden()
    expect(times).to_be_hidden()
    page.get_by_text("Filter").click()
    page.get_by_text("Ended in the last 24 hours").first.click()
    expect(kind).to_be_visible()
    shown = times.all_inner_texts()[0]
    assert re.fullmatch(r"(\d+:\d\d\s[AP]M\s+){4}now", shown), shown
    # The bars are not mirrored where text begins at the right.
    page.evaluate("document.querySelector('.jobstate').dir = 'rtl'")
    bars = page.locator(".jobstate-chart svg").bounding_box()
    now = times.locator("span").bounding_box()
    assert now and bars
    assert now["x"] > bars["x"] + bars["width"] / 2
    pages.visit("/job_state/?all=1&kind=ImportSheet")
    expect(kind).to_be_visible()
    page.set_viewport_size({"width": 1280, "height": 600})
    pages.visit()
    expect(kind).to_be_visible()
    expect(times).to_be_visible()
    expect(page.locator("summary").first).to_be_hidden()


def test_long_words_from_right_to_left_fit_a_phone(pages, redis_url, store, tmp_path):
    """A button that is longer than its line wraps. A value or message of another
    direction stands on the page's side.
    """
    write_catalog(tmp_path, "pyramid_jobstate", "he", {"Cancel": "לבטל " * 20})
    config = paged_config(redis_url)
    config.add_translation_dirs(str(tmp_path))
    pages.serve(config)
    sheet = {"filename": "boston.csv"}
    job = put_job(store, ImportSheet, "working", params=sheet, message="Half way")
    pages.page.set_viewport_size({"width": 360, "height": 900})
    pages.visit(f"/job_state/{job.uuid}?_LOCALE_=he")
    assert pages.page.evaluate(IS_WIDER) is False
    name, value = (pages.page.locator(f".jobstate-facts {tag}") for tag in ("dt", "dd"))
    expect(value).to_have_text("boston.csv")
    message = pages.page.locator("[part=message]")
    ends = [node.evaluate(TEXT_END) for node in (name, value, message)]
    assert ends == pytest.approx([ends[0]] * 3, abs=1)


def test_everything_is_done_by_keyboard(pages, store):
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
    # The first row: its box and its link. Then that of a job that has ended.
    row = ["checkbox", "Run", "alice"]
    assert [press(page, "Tab") for _ in range(4)] == [*row, "checkbox"]
    page.keyboard.press("Space")
    assert press(page, *["Shift+Tab"] * 4) == "delete"
    assert press(page, "Enter") == "no"
    assert press(page, "Escape") == "delete"
    assert press(page, "Enter", "Enter") == "delete"
    assert pages.changes == []
    assert press(page, "Enter", "Tab") == "yes"
    page.keyboard.press("Space")
    pages.expect_said("1 job deleted.")
    assert job not in pages.uuids
    # The link of a row leads to its job, whose page is done by keyboard, too.
    assert press(page, "Tab", "Tab", "Tab", "Tab") == "Run"
    page.keyboard.press("Enter")
    page.wait_for_url("**/job_state/*-*/")
    pages.settle()
    assert press(page, "Tab", "Tab") == "ask-where"
    assert press(page, "Tab") == "cancel"
    assert press(page, "Enter", "Tab") == "yes"
    page.keyboard.press("Enter")
    pages.expect_said("Asked 1 job to stop.")


@pytest.mark.system
def test_layout_of_the_application_is_left_alone(
    pages, redis_url, store, tmp_path, monkeypatch
):
    """Only the pages' content is styled, and takes the layout's font and colours."""
    name = f"layout_of_{tmp_path.name.replace('-', '_')}"
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").touch()
    (tmp_path / name / "jobs.jinja2").write_text(LAYOUT)
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    settings = {"jobstate.pages_layout": f"{name}:jobs.jinja2"}
    config = paged_config(redis_url, settings=settings)
    config.include("pyramid_jinja2")
    pages.serve(config)
    page = pages.page
    fill(store)
    pages.visit()
    styled = page.evaluate(STYLES)
    font = "getComputedStyle(document.querySelector('{}')).fontFamily"
    assert page.evaluate(font.format(".jobstate h1")) == page.evaluate(
        font.format("body")
    )
    expect(page.locator(".jobstate-rows")).to_have_css("table-layout", "fixed")
    page.locator("link[rel=stylesheet]").evaluate("(link) => {link.disabled = true}")
    expect(page.locator(".jobstate-rows")).to_have_css("table-layout", "auto")
    assert page.evaluate(STYLES) == styled
    assert len(styled) > 25


#: What Pyramid's cookiecutter has around a page: its own colours, beside those that
#: Bootstrap gives to some elements.
COOKIECUTTER = """
  code { padding: 2px 4px; color: #c7254e; background-color: #f9f2f4; }
  pre { padding: 9.5px; color: #333; background: #f5f5f5; border: 1px solid #ccc; }
  body { font: 300 14px/1.43 sans-serif; color: #ffffff; background: #bc2131; }
  h1, h2, h3, p { font-weight: 300; }
"""

#: Style sheets of layouts.
SHEETS = {
    "cookiecutter": COOKIECUTTER,
    "light": "body { background: #fff; color: #1b1b1a }",
    "dark": "body { background: #16181d; color: #e6e6e6 }",
    "grey": "body { background: #8a8a8a; color: #000 }",
    "dark-scheme": ":root { color-scheme: dark; background: Canvas }",
    "surfaces": "body { --job-state-surface: #333; background: #111; color: #eee }",
}


@pytest.mark.system
@pytest.mark.parametrize("name", SHEETS)
def test_texts_stand_out_in_any_layout(pages, store, node_modules, name):
    """Those of a list, a question, a timeline and a failure do."""
    page = pages.page
    page.emulate_media(reduced_motion="reduce")
    fill(store)
    error = JobError("ValueError", "wrong")
    job = put_job(store, RunMarathon, "error", error=error, traceback=TRACEBACK).uuid

    def check(picture: str) -> None:
        pages.picture(f"pages-{name}-{picture}")
        assert list(complaints(page, node_modules)) == []

    pages.visit(f"/job_state/{job}")
    page.evaluate(WEAR, SHEETS[name])
    check("job")
    pages.visit()
    page.evaluate(WEAR, SHEETS[name])
    check("list")
    pages.one("all").check()
    page.get_by_role("button", name="Delete").click()
    expect(pages.one("yes")).to_be_visible()
    check("question")


#: Where each colour that a layout sets is seen.
COLOURS = {
    "accent": ("path.jobstate-success", "fill"),
    "error": ("path.jobstate-error", "fill"),
    "edge": ("path.jobstate-cancelled", "fill"),
    "muted": (".jobstate-rows thead th", "color"),
    "line": (".jobstate-rows", "border-top-color"),
    "surface": (".jobstate-rows", "background-color"),
}


def test_colours_of_a_layout_win(pages, redis_url, store):
    """A layout sets each colour with a custom property, of pages and elements alike."""
    # Another test's application may remember its chart.
    pages.serve(paged_config(redis_url))
    fill(store)
    pages.visit()
    wanted = {name: f"rgb({n}, 99, 7)" for n, name in enumerate(COLOURS)}
    style = "".join(f"--job-state-{name}: {text};" for name, text in wanted.items())
    pages.page.evaluate(
        """(style) => {
            document.body.className = "";
            document.documentElement.style.cssText = style;
        }""",
        style,
    )
    for name, (place, what) in COLOURS.items():
        found = pages.page.locator(place).first
        expect(found).to_have_css(what, wanted[name])
    foot = pages.page.locator("job-state [part=foot]").first
    expect(foot).to_have_css("color", wanted["muted"])
