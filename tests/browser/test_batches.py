"""A batch of jobs, as the element shows it in a real Chromium."""

import itertools
import json
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from tests.browser.batches import EACH, STATUSES, USUAL, batch
from tests.browser.looks import measure
from tests.browser.staging import ELEMENT, Stage, data
from tests.pollserver import Answer, PollServer
from tests.support import wait_for

LONE = data(progress={"done": 1, "total": 4, "unit": "miles", "fraction": 0.25})


def answered(state: dict[str, Any]) -> Answer:
    """The answer of a server."""
    return Answer(body=json.dumps(state))


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


class Batches(Stage):
    """A page with an element that shows batches."""

    def counts(self) -> list[str]:
        """What the line of counts says."""
        return list(self.page.evaluate(LOOK_AT_COUNTS))

    def edges(self) -> list[float]:
        return list(self.page.evaluate(EDGES))

    def along(self, state: dict[str, Any]) -> list[tuple[str, float]]:
        """What is along the bar, from its left, and how much of it, in percent."""
        self.show(state)
        bar = measure(self.page).bars["job"]
        seen = [NAMES.get((int(r), int(g), int(b)), "") for r, g, b in bar]
        runs = [(name, len(list(run))) for name, run in itertools.groupby(seen)]
        return [(name, 100 * length / len(bar)) for name, length in runs if name]


@pytest.fixture
def stage(tab: Page, poll_server: PollServer) -> Iterator[Batches]:
    """A page for elements."""
    tab.set_viewport_size({"width": 1000, "height": 700})
    with Batches(tab, poll_server) as stage:
        yield stage


# Words


def test_batch_is_told_in_words(stage):
    """The element says how many jobs are over and failed, and what all of them are, in
    the order of the bar and without zeros. The text of the bar says the same.
    """
    stage.open()
    seen = stage.show(USUAL)
    assert (seen["percent"], seen["now"], seen["status"]) == ("98%", "98", "Running")
    assert seen["details"] == "· 118 of 120 \u2068jobs\u2069, 2 failed"
    assert seen["left"] == "about 15 sec left"
    assert stage.counts() == ["116 succeeded", "2 failed", "1 running", "1 waiting"]
    assert seen["spoken"] == (
        "98%, 118 of 120 \u2068jobs\u2069, 2 failed, about 15 sec left"
    )
    seen = stage.show(EACH)
    assert seen["details"] == "· 70 of 100 \u2068jobs\u2069, 20 failed, 10 cancelled"
    assert stage.counts() == [
        *("40 succeeded", "20 failed", "10 cancelled", "15 running", "13 waiting"),
        "2 trying again",
    ]
    # A batch that may have failures says that it has some.
    seen = stage.show(batch("success", success=118, error=2))
    assert (seen["status"], seen["percent"]) == ("Done", "100%")
    assert seen["details"] == "· 120 of 120 \u2068jobs\u2069, 2 failed · took 2 min"


def test_lone_job_has_no_counts(stage):
    """Nothing of a batch stays. An empty batch has a full bar and no counts."""
    stage.open()
    stage.set_root(COLOURS)
    stage.show(USUAL)
    seen = stage.show(LONE)
    assert seen["counts"] is None
    assert seen["details"].startswith("· 1 of 4 \u2068miles\u2069")
    expect(stage.page.locator("[part=share-success]")).to_be_hidden()
    [(name, size)] = stage.along(batch("success", fraction=1))
    assert name == "success"
    assert size == pytest.approx(100, abs=0.5)
    assert stage.look()["counts"] is None


GERMAN = {
    "members": "Aufträge",
    "amount-of": "{done} von {total} {unit}",
    "amount-count": "{amount}; {count}",
    **{f"count-{name}": f"{name.upper()} ({{number}})" for name in STATUSES},
}


def test_words_of_batches_are_labels(stage):
    """Each word of a batch is translated, with the numbers of the language. Attributes
    change those of one element, which stay text, but not the unit of an application.
    """
    stage.open(lang="de")
    stage.page.evaluate("(labels) => JobState.setLabels('de', labels)", GERMAN)
    seen = stage.show(batch(success=1234, error=20, cancelled=10, queued=15))
    assert seen["details"] == (
        "· 1.264 von 1.279 \u2068Aufträge\u2069; ERROR (20); CANCELLED (10)"
    )
    words = ["SUCCESS (1.234)", "ERROR (20)", "CANCELLED (10)", "QUEUED (15)"]
    assert stage.counts() == words
    stage.open(
        "<job-state id=job label-members='<b>files</b>'"
        " label-count-error='<i>{number}</i> broken'></job-state>"
    )
    seen = stage.show(USUAL)
    assert seen["details"] == "· 118 of 120 \u2068<b>files</b>\u2069, <i>2</i> broken"
    assert stage.counts()[1] == "<i>2</i> broken"
    seen = stage.show(batch(unit="rows", success=1, queued=1))
    assert seen["details"] == "· 1 of 2 \u2068rows\u2069"


# The bar


def test_bar_is_parted_by_how_members_ended(stage):
    """The shares have the size of the counts and the colours of the states, the rest of
    what is done that of work. The page shows between them, and a dot marks the end.
    """
    state = batch(fraction=0.8, success=40, error=20, cancelled=10, working=30)
    for direction in "ltr", "rtl":
        stage.open(f"<div dir={direction}>{ELEMENT}</div>")
        stage.set_root(COLOURS)
        runs = stage.along(state)[:: 1 if direction == "ltr" else -1]
        assert [name for name, _ in runs] == [
            *("success", "page", "error", "page", "cancelled", "page", "working"),
            *("page", "track", "working"),
        ]
        sizes = [size for name, size in runs if name != "page"]
        assert sizes == pytest.approx([40, 20, 10, 10, 18, 1], abs=1.2)


SHARES: tuple[tuple[dict[str, Any], list[float]], ...] = (
    (batch(fraction=0.5, success=30, error=10, queued=60), [30, 40, 40, 50]),
    # The jobs that are over weigh less than the others.
    (batch(fraction=0.2, success=30, error=10, queued=60), [15, 20, 20, 20]),
    (batch("cancelled", success=1, cancelled=3), [25, 25, 100, 100]),
    # The whole bar, even if the server says something else.
    (batch("success", fraction=0.1, success=1, error=1), [50, 100, 100, 100]),
    (batch("queued", queued=5), [0, 0, 0, 0]),
)


def test_shares_fill_what_is_done(stage):
    """They never reach beyond the fraction. Without a fraction, the bar moves."""
    stage.open()
    for state, edges in SHARES:
        stage.show(state)
        assert stage.edges() == pytest.approx(edges)
    state = batch(success=1, working=1)
    state["job"]["progress"]["fraction"] = None
    assert stage.show(state)["now"] is None
    assert stage.counts() == ["1 succeeded", "1 running"]
    expect(stage.page.locator("[part=fill]")).to_have_css("animation-name", "slide")


def test_few_failures_are_seen(stage):
    """One failure of many jobs has a visible share, even at the end of a bar."""
    stage.open()
    stage.set_root(COLOURS)
    for status, queued in ("working", 1000), ("error", 0):
        runs = stage.along(batch(status, success=9999, error=1, queued=queued))
        assert [name for name, _ in runs][:3] == ["success", "page", "error"]
        assert runs[2][1] > 0.5


# The compact form


def test_compact_batch_is_short(stage):
    """In one line, as high as any, the unit and the line of counts are left out, as are
    the log and the result of a job. The attribute may come and go.
    """
    stage.open("<job-state id=job compact cancellable log></job-state>")
    seen = stage.show(USUAL)
    assert seen["details"] == "· 118 of 120, 2 failed"
    assert seen["counts"] is None
    assert seen["spoken"] == "98%, 118 of 120, 2 failed, about 15 sec left"
    done = data("success", log=["Ran"], result={"url": "https://a.test/"})
    stage.show(done)
    for part in "log", "result":
        expect(stage.page.locator(f"[part={part}]")).to_be_hidden()
    height = "job.getBoundingClientRect().height"
    assert stage.page.evaluate(height) == 40
    stage.set("e.removeAttribute('compact')")
    assert "jobs" in stage.show(USUAL)["details"]
    stage.set("e.setAttribute('compact', '')")
    wait_for(lambda: stage.look()["details"] == "· 118 of 120, 2 failed")


# Screen readers


def test_counts_are_not_announced(stage):
    """Of a batch, only the start, quarters, and the end with failures are announced."""
    stage.open()
    stage.listen()
    stage.show(batch(success=1, queued=99))
    assert stage.said(1) == ["Import: Running"]
    for number in range(2, 24, 4):
        stage.show(batch(success=number, error=1, queued=99 - number))
    stage.show(batch(success=26, error=1, queued=73))
    assert stage.said(2)[1:] == ["Import: 27%"]
    stage.show(batch("success", success=97, error=2, cancelled=1))
    assert stage.said(3)[2:] == ["Import: Done, 2 failed, 1 cancelled."]


# Following


def test_element_follows_a_batch_to_its_end(stage):
    """The events have what the server says of a batch."""
    running, ended = batch(success=1, working=1), batch("error", success=1, error=1)
    stage.server.answer("job", *map(answered, (running, ended)))
    stage.open()
    stage.set(
        """window.told = [];
        e.addEventListener("job-state:update", ({ detail: { job } }) =>
            told.push([job.counts, job.members]));
        e.period = 50; e.src = "/job_state/job";"""
    )
    stage.wait("error")
    assert stage.counts() == ["1 succeeded", "1 failed"]
    assert stage.page.evaluate("told") == [
        [state["job"]["counts"], state["job"]["members"]] for state in (running, ended)
    ]
