"""A batch of jobs, as the element and the poller show it in a real Chromium."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
from playwright.sync_api import Page, expect

from pyramid_jobstate import JobStore
from pyramid_jobstate.testing import put_job
from tests.browser.paged import Pages
from tests.browser.polling import Polling
from tests.browser.test_element import at, data
from tests.browser.test_themes import FREEZE, SOME, THEMES, Themes, contrast
from tests.jobs import RunMarathon
from tests.pollserver import Answer, PollServer
from tests.support import wait_for

STATUSES = ("queued", "working", "retrying", "success", "error", "cancelled")

#: The statuses of members in the order in which the element counts them.
ORDER = ("success", "error", "cancelled", "working", "queued", "retrying")

MEMBERS = "https://example.com/job_state/?batch=1"


def batch(
    status: str = "working",
    fraction: float | None = None,
    eta: float | None = None,
    unit: str = "jobs",
    counts: Any = None,
    **members: Any,
) -> dict[str, Any]:
    """The data of a batch with so many members of each status."""
    numbers = {name: members.get(name, 0) for name in STATUSES}
    total = sum(numbers.values())
    done = sum(numbers[name] for name in ("success", "error", "cancelled"))
    progress = {
        "done": done,
        "total": total,
        "unit": unit,
        "eta": eta,
        "fraction": done / total if fraction is None else fraction,
    }
    return data(
        status,
        title="Import",
        started_at=at(-90),
        finished_at=at(0) if status in ("success", "error", "cancelled") else None,
        progress=progress,
        counts=numbers if counts is None else counts,
        members=MEMBERS,
    )


USUAL = batch(fraction=0.984, eta=12.5, success=116, error=2, working=1, queued=1)
EACH = batch(
    fraction=0.8,
    success=40,
    error=20,
    cancelled=10,
    working=15,
    queued=13,
    retrying=2,
)
LONE = data(progress={"done": 1, "total": 4, "unit": "miles", "fraction": 0.25})

LOOK_AT_COUNTS = """() => {
  const { shadowRoot: root } = document.getElementById("job");
  return [...root.querySelectorAll("[part=counts] > *")]
    .filter((node) => node.checkVisibility())
    .map((node) => node.textContent);
}"""

#: The edges of the shares, in hundredths of the bar, from where the bar begins.
EDGES = """() => {
  const { shadowRoot: root } = document.getElementById("job");
  const style = getComputedStyle(root.querySelector("[part=bar]"));
  const names = ["success-end", "error-end", "cancelled-end", "done"];
  return names.map((name) => parseFloat(style.getPropertyValue(`--_${name}`)));
}"""

#: The colours of a page, the shares of a bar and its track, as custom properties.
COLOURS = (
    "background: #fff; --job-state-success: #0f0; --job-state-error: #f00; "
    "--job-state-muted: #333; --job-state-accent: #00f; --job-state-track: #ff0"
)
NAMES = {
    (0, 255, 0): "success",
    (255, 0, 0): "error",
    (51, 51, 51): "cancelled",
    (0, 0, 255): "working",
    (255, 255, 0): "track",
    (255, 255, 255): "page",
}


def answered(state: dict[str, Any]) -> Answer:
    """The answer of a server."""
    return Answer(body=json.dumps(state))


class Batches(Themes):
    """A page with an element that shows batches."""

    def counts(self) -> list[str]:
        """What the line of counts says."""
        said: list[str] = self.page.evaluate(LOOK_AT_COUNTS)
        return said

    def edges(self) -> list[float]:
        edges: list[float] = self.page.evaluate(EDGES)
        return edges

    def along(self, state: dict[str, Any]) -> list[tuple[str, float]]:
        """What is along the bar, from its left, and how much of it, in percent."""
        self.show(state)
        bar = self.measure().bars["job"]
        seen = [NAMES.get((int(r), int(g), int(b)), "") for r, g, b in bar]
        runs = [(name, len(list(run))) for name, run in itertools.groupby(seen)]
        return [(name, 100 * length / len(bar)) for name, length in runs if name]

    def height(self) -> float:
        height: float = self.page.evaluate("job.getBoundingClientRect().height")
        return height


@pytest.fixture
def stage(tab: Page, poll_server: PollServer) -> Iterator[Batches]:
    """A page for elements, which must not report errors or violate its policy."""
    tab.set_viewport_size({"width": 1000, "height": 700})
    yield from Batches(tab, poll_server).watched()


# Words


def test_batch_is_told_in_words(stage: Batches) -> None:
    """The element says how many jobs are over and failed, and what all of them are."""
    stage.open()
    seen = stage.show(USUAL)
    assert seen["percent"] == "98%"
    assert seen["status"] == "Running"
    assert seen["details"] == "· 118 of 120 \u2068jobs\u2069, 2 failed"
    assert seen["left"] == "about 15 sec left"
    assert stage.counts() == ["116 succeeded", "2 failed", "1 running", "1 waiting"]


def test_each_count_has_its_word(stage: Batches) -> None:
    """The counts begin with the jobs that are over, in the order of the bar. Failed and
    cancelled jobs are told beside the amount, too.
    """
    stage.open()
    seen = stage.show(EACH)
    assert seen["details"] == ("· 70 of 100 \u2068jobs\u2069, 20 failed, 10 cancelled")
    assert stage.counts() == [
        "40 succeeded",
        "20 failed",
        "10 cancelled",
        "15 running",
        "13 waiting",
        "2 trying again",
    ]


def test_batch_without_failures_names_none(stage: Batches) -> None:
    """Zeros are left out."""
    stage.open()
    assert stage.show(batch(success=3, queued=2))["details"].endswith("jobs\u2069")
    assert stage.counts() == ["3 succeeded", "2 waiting"]


def test_batch_that_has_succeeded_tells_of_its_failures(stage: Batches) -> None:
    """A batch that may have failures says in words and in its bar that it has some."""
    stage.open()
    seen = stage.show(batch("success", success=118, error=2))
    assert (seen["status"], seen["percent"]) == ("Done", "100%")
    assert seen["details"] == ("· 120 of 120 \u2068jobs\u2069, 2 failed · took 2 min")


def test_batch_has_no_rate(stage: Batches) -> None:
    """A batch may have been over in the meantime, so its times give no rate."""
    stage.open()
    assert stage.show(batch(success=50, queued=50))["details"] == (
        "· 50 of 100 \u2068jobs\u2069"
    )


def test_lone_job_has_no_counts(stage: Batches) -> None:
    """Nothing of a batch is left when the element shows another job."""
    stage.open()
    stage.show(USUAL)
    seen = stage.show(LONE)
    assert seen["counts"] is None
    assert seen["details"].startswith("· 1 of 4 \u2068miles\u2069")
    assert stage.counts() == []
    share = stage.page.locator("[part=share-success]")
    expect(share).to_be_hidden()


def test_empty_batch_is_done(stage: Batches) -> None:
    """A batch without members has a full bar and no counts."""
    stage.open()
    seen = stage.show(batch("success", fraction=1))
    assert seen["details"].startswith("· 0 of 0 \u2068jobs\u2069")
    assert seen["counts"] is None
    stage.set_root(COLOURS)
    [(name, size)] = stage.along(batch("success", fraction=1))
    assert name == "success"
    assert size == pytest.approx(100, abs=0.5)


# Labels

GERMAN = {
    "members": "Aufträge",
    "amount-of": "{done} von {total} {unit}",
    "amount-count": "{amount}; {count}",
    **{f"count-{name}": f"{name.upper()} ({{number}})" for name in STATUSES},
}


def test_words_of_batches_are_translated(stage: Batches) -> None:
    """Each word of a batch is a label, and the numbers are those of the language."""
    stage.open(lang="de")
    stage.page.evaluate("(labels) => JobState.setLabels('de', labels)", GERMAN)
    members: dict[str, Any] = dict(zip(ORDER, (1234, 20, 10, 15, 13, 2), strict=True))
    seen = stage.show(batch(**members))
    assert seen["details"] == (
        "· 1264 von 1294 \u2068Aufträge\u2069; ERROR (20); CANCELLED (10)"
    ).replace("1264", "1.264").replace("1294", "1.294")
    assert stage.counts() == [
        f"{name.upper()} ({f'{number:,}'.replace(',', '.')})"
        for name, number in members.items()
    ]


def test_labels_of_one_batch(stage: Batches) -> None:
    """Attributes change the words of one element, which stay text."""
    stage.open(
        "<job-state id=job label-members='<b>files</b>'"
        " label-count-error='<i>{number}</i> broken'></job-state>"
    )
    seen = stage.show(USUAL)
    assert seen["details"] == ("· 118 of 120 \u2068<b>files</b>\u2069, <i>2</i> broken")
    assert stage.counts()[1] == "<i>2</i> broken"
    stage.page.evaluate("job.setAttribute('label-count-error', '{number} bad')")
    wait_for(lambda: stage.counts()[1] == "2 bad")


def test_unit_of_an_application_stays(stage: Batches) -> None:
    """Only the unit that every batch has is a label."""
    stage.open("<job-state id=job label-members=files></job-state>")
    seen = stage.show(batch(unit="rows", success=1, queued=1))
    assert seen["details"] == "· 1 of 2 \u2068rows\u2069"
    lone = {"done": 1, "total": 4, "unit": "jobs", "fraction": None}
    assert "jobs" in stage.show(data(progress=lone))["details"]


# The bar


@pytest.mark.parametrize("direction", ["ltr", "rtl"])
def test_bar_is_parted_by_how_members_ended(stage: Batches, direction: str) -> None:
    """The shares have the size of the counts and the colours of the states, the rest of
    what is done that of work, and the page shows between them.
    """
    stage.open(f"<div dir={direction}><job-state id=job></job-state></div>")
    stage.set_root(COLOURS)
    state = batch(fraction=0.8, success=40, error=20, cancelled=10, working=30)
    runs = stage.along(state)[:: 1 if direction == "ltr" else -1]
    assert [name for name, _ in runs] == [
        *("success", "page", "error", "page", "cancelled", "page", "working"),
        *("page", "track", "working"),
    ]
    sizes = [size for name, size in runs if name != "page"]
    assert sizes == pytest.approx([40, 20, 10, 10, 18, 1], abs=1.2)


@pytest.mark.parametrize(
    ("state", "edges"),
    [
        (batch(fraction=0.5, success=30, error=10, queued=60), [30, 40, 40, 50]),
        # The jobs that are over weigh less than the others.
        (batch(fraction=0.2, success=30, error=10, queued=60), [15, 20, 20, 20]),
        (batch("error", success=3, error=1), [75, 100, 100, 100]),
        (batch("cancelled", success=1, cancelled=3), [25, 25, 100, 100]),
        # The whole bar, even if the server says something else.
        (batch("success", fraction=0.1, success=1, error=1), [50, 100, 100, 100]),
        (batch("queued", queued=5), [0, 0, 0, 0]),
        (batch(fraction=0.3, working=5), [0, 0, 0, 30]),
    ],
)
def test_shares_fill_what_is_done(
    stage: Batches, state: dict[str, Any], edges: list[float]
) -> None:
    """The shares never reach beyond the fraction that is done."""
    stage.open()
    stage.show(state)
    assert stage.edges() == pytest.approx(edges)


@pytest.mark.parametrize("attributes", ["", "compact"])
@pytest.mark.parametrize("status", ["working", "error"])
def test_few_failures_are_seen(stage: Batches, status: str, attributes: str) -> None:
    """One failure of many jobs has a visible share, even at the end of a bar."""
    stage.open(f"<job-state id=job {attributes}></job-state>")
    stage.set_root(COLOURS)
    others: dict[str, Any] = {"queued": 1000} if status == "working" else {}
    runs = stage.along(batch(status, success=9999, error=1, **others))
    assert [name for name, _ in runs][:3] == ["success", "page", "error"]
    assert runs[2][1] > 0.5


def test_share_as_small_as_a_gap_is_seen(stage: Batches) -> None:
    """When little is done, a gap takes no more than half of the share after it."""
    stage.open()
    stage.set_root(f"{COLOURS}; --job-state-radius: 0")
    # Each share has two pixels, as a gap usually has.
    width = stage.page.locator("[part=bar]").evaluate("(bar) => bar.clientWidth")
    stage.show(batch(fraction=4 / width, success=1, error=1, queued=98))
    red, green, _ = stage.measure().bars["job"][3]
    assert red > green


def test_gap_without_shares_before_it_is_none(stage: Batches) -> None:
    """Shares of nothing leave no gaps."""
    stage.open()
    stage.set_root(COLOURS)
    runs = stage.along(batch(error=1, working=1, fraction=0.75))
    assert [name for name, _ in runs] == ["error", "page", "working", "page", *END]
    assert runs[0][1] == pytest.approx(50, abs=0.5)
    runs = stage.along(batch(success=1, queued=1))
    assert [name for name, _ in runs] == ["success", "page", *END]


#: What is ahead, and the dot at the end.
END = ["track", "working"]


@pytest.mark.parametrize("fraction", [None, "0.5"])
def test_batch_without_a_fraction_moves(stage: Batches, fraction: Any) -> None:
    """A batch that does not say how far it has come has a moving bar and counts."""
    stage.open()
    state = batch(success=1, working=1)
    state["job"]["progress"]["fraction"] = fraction
    seen = stage.show(state)
    assert seen["now"] is None
    assert stage.counts() == ["1 succeeded", "1 running"]
    fill = stage.page.locator("[part=fill]")
    assert fill.evaluate("(e) => getComputedStyle(e).animationName") == "slide"
    assert fill.evaluate("(e) => getComputedStyle(e).clipPath") == "none"


@pytest.mark.parametrize("motion", ["no-preference", "reduce"])
def test_shares_grow_smoothly(
    stage: Batches, motion: Literal["no-preference", "reduce"]
) -> None:
    """Shares move as the fill does, or not at all where motion is unwelcome."""
    stage.page.emulate_media(reduced_motion=motion)
    stage.open()
    stage.show(batch(success=1, error=1, working=9, fraction=0.3))
    stage.page.evaluate(FREEZE)
    moving = stage.page.evaluate(
        """async (data) => {
            const { shadowRoot: root } = job;
            job.data = data;
            for (let i = 0; i < 4; i++) await new Promise(requestAnimationFrame);
            return root.getAnimations()
                .filter((animation) => animation instanceof CSSTransition)
                .map(({ effect }) => effect.target.className)
                .sort();
        }""",
        batch(success=3, error=2, working=6, fraction=0.6),
    )
    assert set(moving) == (
        # The empty share of cancelled jobs moves along.
        {"bar", "fill", "share-success", "share-error", "share-cancelled"}
        if motion == "no-preference"
        else set()
    )


# The compact form


def test_compact_batch_is_short(stage: Batches) -> None:
    """In one line, as high as any, the unit and the line of counts are left out."""
    stage.open("<job-state id=job compact></job-state>")
    seen = stage.show(USUAL)
    assert seen["details"] == "· 118 of 120, 2 failed"
    assert seen["counts"] is None
    assert seen["spoken"] == "98%, 118 of 120, 2 failed, about 15 sec left"
    assert stage.height() == 40
    lone = stage.show(LONE)
    assert lone["details"].startswith("· 1 of 4 \u2068miles\u2069")
    # The attribute may come and go.
    stage.page.evaluate("job.removeAttribute('compact')")
    assert "jobs" in stage.show(USUAL)["details"]
    stage.page.evaluate("job.setAttribute('compact', '')")
    wait_for(lambda: stage.look()["details"] == "· 118 of 120, 2 failed")


#: Where parts of the element lie.
BOXES = """(names) => names.map((name) => job.shadowRoot
    .querySelector(`[part=${name}]`).getBoundingClientRect().toJSON())"""


def test_compact_batch_uses_the_room_of_a_message(stage: Batches) -> None:
    """Without a message, a row of 800 pixels shows every count in full."""
    stage.page.set_viewport_size({"width": 800, "height": 600})
    stage.open("<job-state id=job compact cancellable></job-state>")
    stage.show(batch(eta=65, success=1100, error=20, cancelled=10, working=3))
    # A wide font leaves less room for the time that follows them.
    foot, counts = stage.page.evaluate(BOXES, ["foot", "details"])
    assert counts["right"] <= foot["right"]
    state = batch(success=11, queued=3)
    state["job"]["message"] = "Reading"
    assert stage.show(state)["message"] == "Reading"
    foot, message = stage.page.evaluate(BOXES, ["foot", "message"])
    assert foot["right"] < message["left"]


# Screen readers


def test_bar_says_the_same_words(stage: Batches) -> None:
    """The text of the bar is what the status line says."""
    stage.open()
    bar = stage.page.get_by_role("progressbar", name="Import")
    stage.show(USUAL)
    expect(bar).to_have_attribute(
        "aria-valuetext",
        "98%, 118 of 120 \u2068jobs\u2069, 2 failed, about 15 sec left",
    )
    expect(bar).to_have_attribute("aria-valuenow", "98")
    spoken = stage.show(batch("error", success=3, error=1))["spoken"]
    assert spoken == "Failed, 4 of 4 \u2068jobs\u2069, 1 failed"


def test_counts_are_not_announced(stage: Batches) -> None:
    """Of a batch, too, only the start, each quarter and the end are announced: the end
    with its failures.
    """
    stage.open()
    stage.page.evaluate(
        """() => {
            window.said = [];
            const speaker = document.querySelector("[role=status]");
            new MutationObserver(() => said.push(speaker.textContent))
                .observe(speaker, { childList: true });
        }"""
    )

    def said(count: int) -> list[str]:
        wait_for(lambda: stage.page.evaluate("said.length") >= count)
        found: list[str] = stage.page.evaluate("said")
        return found

    stage.show(batch(success=1, queued=99))
    assert said(1) == ["Import: Running"]
    for number in range(2, 24):
        stage.show(batch(success=number, error=1, queued=99 - number))
    stage.show(batch(success=26, error=1, queued=73))
    assert said(2)[1:] == ["Import: 27%"]
    stage.show(batch("success", success=97, error=2, cancelled=1))
    assert said(3)[2:] == ["Import: Done, 2 failed, 1 cancelled."]
    inside = "job.shadowRoot.querySelectorAll('[role=status], [aria-live]').length"
    assert stage.page.evaluate(inside) == 0


def test_batch_out_of_sight_has_not_ended(stage: Batches) -> None:
    """If a batch is lost, its failures are not announced as if it had ended."""
    stage.server.answer("job", answered(batch(error=1, queued=1)), Answer(404))
    stage.open("<job-state id=job src=/job_state/job period=50></job-state>")
    stage.wait("lost")
    lost = "Import: Unavailable. The job does not exist, or has expired."
    wait_for(lambda: stage.spoken() == lost)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_in_batches(
    stage: Batches, node_modules: Path, scheme: Literal["light", "dark"]
) -> None:
    """Batches are accessible, including contrast, in light and dark."""
    stage.page.emulate_media(color_scheme=scheme)
    states = {"job": EACH, "usual": USUAL, "end": batch("error", success=1, error=1)}
    stage.open(
        "".join(
            f"<job-state id={name} cancellable></job-state>"
            f"<job-state id={name}-compact cancellable compact></job-state>"
            for name in states
        )
    )
    stage.set_root(THEMES["dark by itself" if scheme == "dark" else "light"])
    for name, state in states.items():
        stage.show(state, name)
        stage.show(state, f"{name}-compact")
    stage.page.evaluate((node_modules / "axe-core" / "axe.min.js").read_text("utf-8"))
    found = stage.page.evaluate("axe.run()")
    rules = {rule["id"] for rule in found["passes"]}
    assert {"color-contrast", "aria-progressbar-name"} <= rules
    assert [
        (rule["id"], [node["target"] for node in rule["nodes"]])
        for rule in found["violations"]
    ] == []


# What the server says is not trusted

HOSTILE: dict[str, tuple[str, list[str]]] = {
    "null": ("null", []),
    "text": ('"queued"', []),
    "number": ("7", []),
    "list": ("[1, 2, 3]", []),
    "true": ("true", []),
    "empty": ("{}", []),
    "partial": ('{"error": 2}', ["2 failed"]),
    "unknown": ('{"stalled": 1, "length": 4, "success": 3}', ["3 succeeded"]),
    "negative": ('{"success": -14, "error": 1}', ["1 failed"]),
    "texts": ('{"success": "<b>9</b>", "error": "5", "queued": 2}', ["2 waiting"]),
    "broken": ('{"success": 1.5, "error": 2}', ["2 failed"]),
    "infinite": ('{"success": 1e999, "error": -1e999, "queued": 1}', ["1 waiting"]),
    "huge": ('{"success": 1e300, "error": 9007199254740993}', []),
    "large": (
        '{"success": 9007199254740991, "error": 9007199254740991}',
        ["9,007,199,254,740,991 succeeded", "9,007,199,254,740,991 failed"],
    ),
    "nested": ('{"success": {"valueOf": 1}, "error": [3], "queued": null}', []),
    "__proto__": ('{"__proto__": {"error": 5}, "success": 1}', ["1 succeeded"]),
    "constructor": ('{"constructor": 5, "toString": 5, "hasOwnProperty": 5}', []),
}


@pytest.mark.parametrize(("counts", "said"), HOSTILE.values(), ids=HOSTILE)
def test_counts_that_are_none_are_left_out(
    stage: Batches, counts: str, said: list[str]
) -> None:
    """Of counts that no server should send, the element shows what it can."""
    stage.open()
    stage.show(EACH)
    text = json.dumps(batch(success=50, queued=50, counts="COUNTS"))
    stage.page.evaluate(
        "(text) => {job.data = JSON.parse(text)}", text.replace('"COUNTS"', counts)
    )
    wait_for(lambda: stage.counts() == said)
    seen = stage.look()
    assert seen["status"] == "Running"
    assert seen["percent"] == "50%"
    assert all(0 <= edge <= 50 for edge in stage.edges())
    assert stage.edges() == sorted(stage.edges())
    assert stage.page.evaluate("({}).error === undefined")


def test_numbers_that_json_lacks_are_left_out(stage: Batches) -> None:
    """A page may set data that no JSON could hold."""
    stage.open()
    stage.show(EACH)
    stage.page.evaluate(
        """(data) => {
            data.job.counts = Object.assign(Object.create({ error: 5 }), {
                success: NaN, cancelled: 3n, working: Symbol("x"), retrying: () => 1,
                queued: 1 });
            job.data = data;
        }""",
        EACH,
    )
    wait_for(lambda: stage.counts() == ["1 waiting"])


@pytest.mark.parametrize(
    "progress",
    [None, 7, "x", [], {}, {"done": None, "total": "x", "unit": ["jobs"]}],
    ids=repr,
)
def test_counts_without_progress_are_shown(stage: Batches, progress: Any) -> None:
    """Failures are told even if the amount is not."""
    stage.open()
    state = batch(success=1, error=2)
    state["job"]["progress"] = progress
    assert stage.show(state)["details"] == "· 2 failed"
    assert stage.counts() == ["1 succeeded", "2 failed"]


def test_amount_without_counts_is_shown(stage: Batches) -> None:
    """A batch without counts is shown as any other job is."""
    stage.open()
    stage.set_root(COLOURS)
    state = batch(success=1, error=1, queued=2)
    del state["job"]["counts"]
    name, size = stage.along(state)[0]
    assert name == "working"
    assert size == pytest.approx(50, abs=1)
    assert stage.look()["details"].startswith("· 2 of 4 \u2068jobs\u2069")


# Looks


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


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_shares_are_apart_with_forced_colours(
    stage: Batches, scheme: Literal["light", "dark"]
) -> None:
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


def test_marks_differ_by_shape(stage: Batches) -> None:
    """Without colours, each count has a mark of its own."""
    stage.open()
    same = "--job-state-{}: #000"
    names = ("accent", "success", "warning", "error", "muted")
    stage.set_root("; ".join(same.format(name) for name in names))
    stage.show(EACH)
    marks = stage.page.evaluate(MARKS)
    assert len(set(marks)) == len(marks) == 6


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


def test_page_can_style_the_counts(stage: Batches) -> None:
    """The line of counts, each count and each share are parts."""
    stage.open()
    stage.show(EACH)
    parts = ["counts", *(f"count-{name}" for name in STATUSES)]
    parts += [f"share-{name}" for name in ("success", "error", "cancelled")]
    assert (
        stage.page.evaluate(
            """(parts) => {
            const sheet = new CSSStyleSheet();
            const rule = (part) => `job-state::part(${part}) { opacity: .5 }`;
            sheet.replaceSync(parts.map(rule).join(" "));
            document.adoptedStyleSheets = [sheet];
            return parts.filter((part) => {
                const node = job.shadowRoot.querySelector(`[part=${part}]`);
                return getComputedStyle(node).opacity !== "0.5";
            });
        }""",
            parts,
        )
        == []
    )


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


# Following


def test_poller_hands_on_counts_and_members(polling: Polling) -> None:
    """A poller passes on what the server says of a batch, as it is."""
    end = batch("error", success=118, error=2)
    polling.follow("batch", answered(USUAL), answered(end), pollingPeriod=50)
    polling.wait("batch", "error")
    first, last = polling.told("batch", "update")
    assert first["job"]["counts"] == USUAL["job"]["counts"]
    assert last["job"]["counts"] == end["job"]["counts"]
    assert first["job"]["members"] == last["job"]["members"] == MEMBERS


def test_element_follows_a_batch_to_its_end(stage: Batches) -> None:
    """A batch that ends is over for the element, even if a job of it runs again."""
    running = batch(success=1, working=1)
    ended = batch("error", success=1, error=1)
    stage.server.answer("job", *map(answered, (running, ended, running)))
    stage.open("<job-state id=job src=/job_state/job period=50></job-state>")
    stage.wait("error")
    assert stage.counts() == ["1 succeeded", "1 failed"]
    # Another element has the time for several answers.
    stage.server.answer("other", *[answered(running)] * 4, answered(ended))
    stage.page.evaluate(
        """() => {
            const other = document.createElement("job-state");
            Object.assign(other, { id: "other", src: "/job_state/other", period: 50 });
            document.body.append(other);
        }"""
    )
    stage.wait("error", "other")
    assert stage.look()["state"] == "error"
    assert len(stage.server.seen("job")) == 2
