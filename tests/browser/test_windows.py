"""Pages that are really hidden, left and collected, in a Chromium with windows."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser

from tests import chromium
from tests.browser.staging import HEAD, answer, at, data, progress
from tests.browser.test_notify import PAGE, element
from tests.browser.test_streams import about
from tests.pollserver import PollServer, held, release, uuid_of, working
from tests.support import wait_for
from tests.tabs import Tab, opened

pytestmark = pytest.mark.system

#: Removed elements, by each way that might keep them alive. The script puts them into
#: window.made and may give them `working` or `finished` data.
REMOVED = {
    "after data": "document.body.append(e); e.data = working; e.remove();",
    "before data": "document.body.append(e); e.remove(); e.data = working;",
    "following": "e.src = '/job_state/job'; document.body.append(e); e.remove();",
    "finished": "e.src = '/job_state/job'; document.body.append(e);"
    " e.data = finished; e.remove();",
}


MAKE = """(async () => {
  const working = %s, finished = %s;
  window.frames_ = 0;
  const reallyAsk = window.requestAnimationFrame;
  window.requestAnimationFrame = (draw) => { frames_ += 1; return reallyAsk(draw); };
  window.made = [];
  for (let n = 0; n < 1000; n++) {
    let e = document.createElement("job-state");
    %s
    made.push(new WeakRef(e));
    e = null;
    if (n %% 100 === 0) await new Promise((resolve) => setTimeout(resolve));
  }
})()"""

LEFT = "made.filter((reference) => reference.deref()).length"


def make_and_remove(how: str) -> str:
    finished = data("success", finished_at=at(0))
    return MAKE % (json.dumps(data()), json.dumps(finished), REMOVED[how])


@pytest.fixture
def hideable(windowed: Browser, poll_server: PollServer) -> Iterator[Tab]:
    """A tab with the script and one element that follows a job."""
    body = "<job-state id=job src=/job_state/job period=50></job-state>"
    poll_server.answer("job", answer(progress=progress(1, 4)))
    poll_server.pages["/element"] = HEAD.format(lang="en", body=body)
    with opened(windowed) as tab:
        tab.open(poll_server.url + "/element")
        wait_for(lambda: tab.evaluate("job.getAttribute('state')") == "working")
        yield tab


@pytest.mark.parametrize("how", REMOVED)
def test_elements_removed_while_hidden_are_forgotten(hideable: Tab, how: str) -> None:
    """A hidden tab keeps none of a thousand elements that were added and removed."""
    hideable.hide()
    hideable.evaluate(make_and_remove(how))

    def are_collected() -> bool:
        hideable.collect_garbage()
        return hideable.evaluate(LEFT) == 0

    wait_for(are_collected)
    assert hideable.evaluate("frames_") <= 1
    assert hideable.evaluate("document.visibilityState") == "hidden"


def test_elements_that_stay_are_drawn_when_the_tab_shows(hideable: Tab) -> None:
    """Changes made while the tab is hidden show as soon as the tab does."""
    hideable.hide()
    hideable.evaluate(
        f"""(() => {{
            const late = document.createElement("job-state");
            late.id = "late";
            document.body.append(late);
            late.data = {json.dumps(data(progress=progress(3, 4)))};
            document.body.append(job);
            job.data = {json.dumps(data(progress=progress(2, 4)))};
        }})()"""
    )
    hideable.evaluate("new Promise((resolve) => setTimeout(resolve, 100))")
    hideable.show()
    percent = "{}.shadowRoot.querySelector('[part=percent]').textContent"
    wait_for(lambda: hideable.evaluate(percent.format("late")) == "75%")
    styled = "late.shadowRoot.adoptedStyleSheets.length"
    assert hideable.evaluate(styled) == 1


def test_tab_that_is_really_hidden_closes_its_stream(
    windowed: Browser, poll_server: PollServer
) -> None:
    """A tab in a minimized window has no stream until it is shown again."""
    poll_server.offers = True
    poll_server.answer("job", working(n=0))
    with opened(windowed) as tab:
        tab.open(poll_server.url + "/page")
        tab.evaluate("follow('job', { pollingPeriod: 3600000 })")
        wait_for(lambda: poll_server.open_streams)
        tab.hide()
        wait_for(lambda: not poll_server.open_streams)
        assert len(poll_server.seen("job")) == 1
        tab.show()
        wait_for(lambda: poll_server.open_streams)
        assert len(poll_server.streams) == 2
        assert len(poll_server.seen("job")) == 2


def test_page_from_the_back_forward_cache_streams_again(
    browser: Browser, poll_server: PollServer
) -> None:
    """In the cache, a page has no stream; back from there it polls and streams."""
    poll_server.offers = True
    poll_server.answer("job", working(n=0))
    cached = chromium.launch(
        browser.browser_type, ignore_default_args=["--disable-back-forward-cache"]
    )
    try:
        with opened(cached) as tab:
            tab.open(poll_server.url + "/page")
            tab.evaluate("follow('job', { pollingPeriod: 3600000 })")
            wait_for(lambda: poll_server.open_streams)
            poll_server.streams[0].send(about("job", n=1))
            wait_for(lambda: tab.evaluate("calls.length") == 2)
            tab.open(poll_server.url + "/empty")
            wait_for(lambda: not poll_server.open_streams)
            tab.evaluate("history.back()")
            wait_for(lambda: tab.evaluate("location.pathname") == "/page")
            assert tab.evaluate("calls.length") >= 2  # the same page, not a new one
            wait_for(lambda: poll_server.open_streams)
            poll_server.streams[1].send(about("job", "success", n=2))
            wait_for(lambda: "done" in tab.evaluate("calls.map((c) => c.callback)"))
            assert len(poll_server.seen("job")) == 2
            assert "lost" not in tab.evaluate("calls.map((c) => c.callback)")
    finally:
        cached.close()


def test_browser_shows_notifications(
    windowed: Browser, poll_server: PollServer
) -> None:
    """The browser takes the notification of a job's end, where the viewer agrees."""
    poll_server.answer(uuid_of(1), answer(uuid=uuid_of(1)))
    poll_server.pages["/away"] = PAGE.format(body=element())
    with windowed.new_context(permissions=["notifications"]) as context:
        page = context.new_page()
        page.add_init_script(
            """window.made = [];
            window.Notification = class extends Notification {
                constructor(...options) { super(...options); made.push(this); }
            };"""
        )
        page.goto(poll_server.url + "/away")
        assert page.evaluate("JobState.askToNotify()") is True
        wait_for(lambda: page.evaluate("job1.state") == "working")
        end = held(json.dumps(data("success", uuid=uuid_of(1))))
        poll_server.answer(uuid_of(1), end)
        before = len(poll_server.seen(uuid_of(1)))
        wait_for(lambda: len(poll_server.seen(uuid_of(1))) > before)
        page.evaluate("setHidden(true)")
        release(end)
        wait_for(lambda: page.evaluate("made.length") == 1)
        seen = page.evaluate("[made[0].title, made[0].tag]")
        assert seen == ["Run marathon: Done", uuid_of(1)]
