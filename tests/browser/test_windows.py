"""Pages that are really hidden, left and collected, in a Chromium with windows."""

import json

import pytest

from tests import chromium
from tests.browser.polling import about
from tests.browser.staging import ELEMENT, HEAD, answer, data
from tests.pollserver import working
from tests.support import wait_for
from tests.tabs import opened

pytestmark = pytest.mark.system

#: Makes elements that follow a job and have data, and removes them.
MAKE = """(async (data) => {
  window.made = [];
  for (let n = 0; n < 1000; n++) {
    let element = document.createElement("job-state");
    element.src = "/job_state/job";
    document.body.append(element);
    element.data = data;
    element.remove();
    made.push(new WeakRef(element));
    element = null;
    if (n % 100 === 0) await new Promise((resolve) => setTimeout(resolve));
  }
})"""


def test_elements_removed_while_hidden_are_forgotten(windowed, poll_server):
    """A hidden tab keeps none of a thousand elements that were added and removed."""
    poll_server.answer("job", answer())
    poll_server.pages["/element"] = HEAD.format(lang="en", body=ELEMENT)
    with opened(windowed) as tab:
        tab.open(poll_server.url + "/element")
        tab.turn("minimized", "hidden")
        tab.evaluate(f"{MAKE}({json.dumps(data())})")

        def are_collected() -> bool:
            tab.send("HeapProfiler.collectGarbage")
            left = "made.filter((reference) => reference.deref()).length"
            return tab.evaluate(left) == 0

        wait_for(are_collected)


@pytest.mark.promise("hidden-page-asks-less")
def test_tab_that_is_really_hidden_closes_its_stream(windowed, poll_server):
    """A tab in a minimized window has no stream until it is shown again."""
    poll_server.offers = True
    poll_server.answer("job", working(n=0))
    with opened(windowed) as tab:
        tab.open(poll_server.url + "/page")
        tab.evaluate("follow('job', { pollingPeriod: 3600000 })")
        wait_for(lambda: poll_server.open_streams)
        tab.turn("minimized", "hidden")
        wait_for(lambda: not poll_server.open_streams)
        assert len(poll_server.seen("job")) == 1
        tab.turn("normal", "visible")
        wait_for(lambda: poll_server.open_streams)
        assert len(poll_server.streams) == 2
        assert len(poll_server.seen("job")) == 2


def test_page_from_the_back_forward_cache_streams_again(browser, poll_server):
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
