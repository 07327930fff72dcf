"""Pages with more jobs than one request takes, in a real Chromium. How long the answers
of the server take is counted by the page's clock, which the tests advance.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from playwright.sync_api import Page

from tests.browser.polling import HOUR, Polling, follow_all, polling_from
from tests.pollserver import Answer, PollServer, uuid_of, working
from tests.support import wait_for

#: Each answer comes `latency` milliseconds after the request, and never if the request
#: is for a job that `hangs`.
SLOW = """
window.latency = 0;
window.hangs = [];
window.onTheWire = 0;
window.polls = [];
const quickFetch = window.fetch;
window.fetch = async (url, init) => {
  if (!String(url).includes("/job_state")) return quickFetch(url, init);
  const poll = { url, began: performance.now(), ended: null };
  polls.push(poll);
  onTheWire += 1;
  let response, text;
  try {
    response = await quickFetch(url, init);
    text = await response.text();
  } finally {
    onTheWire -= 1;
  }
  await new Promise((resolve, reject) => {
    init.signal.addEventListener("abort", reject);
    if (!hangs.some((uuid) => url.includes(uuid))) setTimeout(resolve, latency);
  }).finally(() => { poll.ended = performance.now(); });
  response.text = async () => text;
  return response;
};
null;
"""

ELEMENTS = """(uuids) => document.body.append(...uuids.map((uuid) => {
  const element = document.createElement("job-state");
  element.src = `/job_state/${uuid}`;
  return element;
}))"""

STATES = "[...document.querySelectorAll('job-state')].map((element) => element.state)"


class Crowd(Polling):
    """A page with many jobs, whose clock stands still unless it is advanced."""

    def answer_many(self, count: int, latency: int) -> list[str]:
        """Answer requests for so many jobs, and return their uuids."""
        self.page.evaluate("(ms) => { latency = ms; }", latency)
        names = [uuid_of(n) for n in range(count)]
        for name in names:
            self.server.answer(name, working())
        return names

    def begin(self, count: int, latency: int) -> list[str]:
        """Follow so many jobs, and return their uuids."""
        names = self.answer_many(count, latency)
        follow_all(self, names, pollingPeriod=1000)
        return names

    def let(
        self,
        milliseconds: int,
        until: Callable[[], bool] = lambda: False,
        step: int = 50,
    ) -> None:
        """Let time pass, at most until a condition holds."""
        for _ in range(0, milliseconds, step):
            wait_for(lambda: self.page.evaluate("onTheWire") == 0)
            if until():
                return
            self.page.clock.run_for(step)
        wait_for(lambda: self.page.evaluate("onTheWire") == 0)

    def polls(self, name: str = "") -> list[dict[str, Any]]:
        """When the polls for a job began and ended, by the page's clock."""
        polls: list[dict[str, Any]] = self.page.evaluate(
            "(name) => polls.filter(({ url }) => url.includes(name))", name
        )
        return polls

    def longest_pause(self, name: str) -> float:
        """The longest time from one answer to the next for a job."""
        times = [poll["ended"] for poll in self.polls(name) if poll["ended"]]
        return max(late - soon for soon, late in itertools.pairwise(times))

    def callbacks(self) -> dict[str, list[str]]:
        """The callbacks of each job that were called so far."""
        calls = self.page.evaluate("calls.map((call) => [call.name, call.callback])")
        names = self.page.evaluate("Object.keys(pollers)")
        return {name: [c for of, c in calls if of == name] for name in names}

    def updates(self) -> dict[str, int]:
        return {name: seen.count("update") for name, seen in self.callbacks().items()}


@pytest.fixture
def crowd(page: Page, poll_server: PollServer) -> Iterator[Crowd]:
    page.clock.install(time=0)
    for _ in polling_from(page, poll_server):
        crowd = Crowd(page, poll_server)
        page.clock.pause_at(HOUR)
        page.evaluate(SLOW)
        yield crowd


def test_elements_are_loaded_and_then_streamed(crowd: Crowd) -> None:
    """Each element of a large page is polled once, and then all are streamed, before
    the second period is over.
    """
    crowd.server.offers = True
    names = crowd.answer_many(201, 350)
    crowd.page.evaluate(ELEMENTS, names)
    crowd.let(2000, lambda: len(crowd.page.evaluate("sources")) == 3)
    assert set(crowd.page.evaluate(STATES)) == {"working"}
    wait_for(lambda: len(crowd.server.open_streams) == 3)
    streamed = [uuid for stream in crowd.server.streams for uuid in stream.jobs]
    assert sorted(streamed) == names
    asked = [uuid for request in crowd.server.requests() for uuid in request.jobs]
    assert asked == names


@pytest.mark.system
def test_jobs_take_turns_where_answers_are_slow(crowd: Crowd) -> None:
    """When the requests for all jobs take longer than their period, each job has every
    fifth answer at least. The requests follow one another. A job that is added has its
    answer before any other has two more.
    """
    names = crowd.begin(350, 400)
    crowd.let(8000)
    for name in names[::9]:
        assert crowd.longest_pause(name) <= 5 * 400
    for earlier, later in itertools.pairwise(crowd.polls()):
        assert later["began"] >= earlier["ended"]
    before = crowd.updates()
    added = uuid_of(350)
    crowd.follow(added, working(), pollingPeriod=1000)
    crowd.let(5000, lambda: bool(crowd.told(added)))
    after = crowd.updates()
    assert after[added] == 1
    assert max(after[name] - before[name] for name in names) == 1


@pytest.mark.system
def test_jobs_that_hang_do_not_hold_up_the_others(crowd: Crowd) -> None:
    """If the first of several requests is never answered, the others follow as soon as
    it is given up, and before it is tried again.
    """
    crowd.page.evaluate("Math.random = () => 1; null")
    crowd.page.evaluate("(name) => { hangs = [name]; }", uuid_of(0))
    names = crowd.begin(201, 100)
    crowd.let(31_500, step=100)
    callbacks = crowd.callbacks()
    assert callbacks[names[0]] == ["lost"]
    for name in names[67:]:
        assert callbacks[name] == ["lost", "update"]
    crowd.let(35_000, step=100)
    updates = crowd.updates()
    assert updates[names[0]] == 0
    assert min(updates[name] for name in names[67:]) >= 3


@pytest.mark.system
def test_outage_is_told_at_once_and_asked_about_ever_less(crowd: Crowd) -> None:
    """However many requests a page needs, it asks a server that fails only once, then
    for other jobs each time, and after pauses that double.
    """
    crowd.page.evaluate("Math.random = () => 1; null")
    crowd.server.answer_batches(*[Answer(503)] * 6)
    names = crowd.begin(201, 100)
    firsts = [names[0], names[67], names[134]]
    crowd.let(150, step=10)
    told = [[r["retryIn"] for r in crowd.told(name, "lost")] for name in firsts]
    assert told == [[2000], [1000], [1000]]
    crowd.let(70_000, step=100)
    polls = crowd.polls()
    pauses = [late["began"] - soon["ended"] for soon, late in itertools.pairwise(polls)]
    for pause, least in zip(pauses, (1, 2, 4, 8, 16, 30), strict=False):
        assert least * 1000 <= pause <= least * 1000 + 200
    for poll, name in zip(polls, firsts * 2, strict=False):
        assert name in poll["url"]
    for callbacks in crowd.callbacks().values():
        assert callbacks[:2] == ["lost", "update"]
