"""What a hidden page does when a job ends, in a real Chromium."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, Page

from tests.browser.polling import COUNT_ANSWERS, Polling
from tests.browser.test_element import Stage, answer, data
from tests.pollserver import Answer, PollServer, state, success, uuid_of, working
from tests.support import wait_for
from tests.tabs import opened

MINUTE = 60_000
MARK = "\u25cf\u2060\xa0"

# Records the notifications and the requests for permission.
RECORD = """
window.made = [];
window.prompts = 0;
window.Notification = class extends Notification {
  constructor(title, options) {
    super(title, options);
    made.push([title, options.tag]);
  }
  static requestPermission() {
    prompts += 1;
    return super.requestPermission();
  }
};
"""

PAGE = (
    '<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>'
    '<script src="/job-state.js"></script><script src="/harness.js"></script>{body}'
)


def element(number: int = 1, attributes: str = "notify") -> str:
    place = f"/job_state/{uuid_of(number)}"
    return f"<job-state id=job{number} src={place} period=50 {attributes}></job-state>"


class Away(Stage):
    """A page that the test hides."""

    def begin(self, *bodies: str, title: str = "Jobs") -> None:
        """Show elements whose jobs run."""
        for number in range(1, 4):
            self.server.answer(uuid_of(number), answer(uuid=uuid_of(number)))
        self.server.pages["/away"] = PAGE.format(
            body="".join(bodies) or element(), title=title
        )
        self.page.clock.install()
        self.page.goto(self.server.url + "/away")
        ids = self.page.evaluate(
            "[...document.querySelectorAll('job-state')].map(({ id }) => id)"
        )
        for name in ids:
            self.wait("working", name)
        self.page.evaluate(
            """() => {
                window.ended = 0;
                for (const name of ["success", "error"]) {
                    document.addEventListener(`job-state:${name}`, () => ended++);
                }
            }"""
        )

    def hide(self) -> None:
        self.page.evaluate("setHidden(true)")

    def return_to(self) -> None:
        self.page.evaluate("setHidden(false)")

    def end(self, status: str = "success", number: int = 1, **job: Any) -> None:
        """Let a job end, and the page learn of it."""
        before = self.page.evaluate("ended")
        job = {"uuid": uuid_of(number), "finished_at": "2026-01-01T00:00:00Z", **job}
        self.server.answer(uuid_of(number), answer(status, **job))
        wait_for(lambda: self.pass_time() > before)

    def pass_time(self) -> int:
        """Let a minute pass, and return how many jobs have ended."""
        for _ in range(3):
            # A request is given up after half a minute.
            self.page.clock.run_for(MINUTE // 3 + 500)
            self.wait_for_answers()
        ended: int = self.page.evaluate("ended")
        return ended

    def wait_for_answers(self) -> None:
        """Wait until the page has read the answers to what it has asked by now."""
        count = self.page.evaluate("fetched")
        wait_for(lambda: self.page.evaluate("answered") >= count)

    @property
    def title(self) -> str:
        return self.page.title()

    @property
    def made(self) -> list[list[str]]:
        """The titles and tags of the notifications so far."""
        made: list[list[str]] = self.page.evaluate("made")
        return made


@pytest.fixture
def context(windowed: Browser) -> Iterator[BrowserContext]:
    # Chromium's headless shell has no notifications.
    with windowed.new_context() as context:
        context.add_init_script(RECORD + COUNT_ANSWERS)
        yield context


@pytest.fixture
def away(context: BrowserContext, poll_server: PollServer) -> Iterator[Away]:
    """A page that may notify."""
    context.grant_permissions(["notifications"])
    yield from Away(context.new_page(), poll_server).watched()


@pytest.fixture
def unasked(context: BrowserContext, poll_server: PollServer) -> Iterator[Away]:
    """A page that may not notify."""
    yield from Away(context.new_page(), poll_server).watched()


# Once a minute


def test_hidden_page_asks_once_a_minute(timed: Polling) -> None:
    """A hidden page asks for the jobs of interest alone, and at once when it shows."""
    one, two = uuid_of(1), uuid_of(2)
    timed.follow(one, Answer(body=state()), whileHidden=True, pollingPeriod=1000)
    timed.follow(two, Answer(body=state()), pollingPeriod=1000)
    timed.wait(one, "update")
    timed.wait(two, "update")
    timed.page.evaluate("setHidden(true)")

    def asked(uuid: str) -> int:
        urls = timed.page.evaluate("asked")
        return sum(uuid in url for url in urls)

    def answered(count: int) -> None:
        wait_for(lambda: len(timed.told(one, "update")) >= count)

    timed.page.clock.run_for(100)
    hidden, answers = asked(two), len(timed.told(one, "update"))
    start = asked(one)
    for minute in range(1, 6):
        timed.page.clock.run_for(MINUTE - 10_000)
        assert asked(one) <= start + minute - 1
        # The minute begins with the answer.
        most = start + minute
        while asked(one) < most:
            timed.page.clock.run_for(1000)
        assert asked(one) == start + minute
        answered(answers + minute)
    assert asked(two) == hidden
    timed.server.answer(one, success())
    timed.page.evaluate("setHidden(false)")
    timed.page.clock.run_for(100)
    timed.wait(one, "success")
    wait_for(lambda: asked(two) > hidden)


def test_hidden_page_learns_of_the_end(timed: Polling) -> None:
    """A poller that asks in a hidden page calls its callbacks there."""
    timed.follow("job", working(), whileHidden=True, pollingPeriod=1000)
    timed.wait("job", "update")
    timed.page.evaluate("setHidden(true)")
    timed.page.clock.run_for(100)
    wait_for(lambda: len(timed.told("job", "update")) >= 2)
    timed.server.answer("job", success())
    timed.page.clock.run_for(MINUTE)
    timed.wait("job", "success")


def test_hidden_page_backs_off(timed: Polling) -> None:
    """While the server fails, a hidden page does not ask more often than else."""
    timed.follow("job", working(), whileHidden=True, pollingPeriod=50)
    timed.wait("job", "update")
    timed.server.answer("job", Answer(503))
    timed.page.evaluate("setHidden(true)")
    timed.page.clock.run_for(100)
    reason = timed.wait("job", "lost")
    assert reason["retryIn"] >= MINUTE


def test_page_that_was_left_asks_nothing(timed: Polling) -> None:
    """A page in the back/forward cache sleeps, whatever it is interested in."""
    timed.follow("job", working(), whileHidden=True, pollingPeriod=1000)
    timed.wait("job", "update")
    timed.page.evaluate("setHidden(true); dispatchEvent(new Event('pagehide'))")
    timed.page.clock.run_for(100)
    asked = timed.asked("job")
    timed.page.clock.run_for(10 * MINUTE)
    assert timed.asked("job") == asked


@pytest.mark.parametrize("event", ["online", "visibilitychange", "pageshow"])
def test_hidden_page_keeps_to_its_minute(timed: Polling, event: str) -> None:
    """Whatever a browser or another script tells it meanwhile."""
    timed.follow("job", *[working()] * 100, pollingPeriod=1000, whileHidden=True)
    timed.wait("job", "update")
    timed.page.evaluate("setHidden(true)")
    timed.page.clock.run_for(1000)
    before = timed.asked("job")
    for _ in range(40):
        timed.page.evaluate(f"dispatchEvent(new Event('{event}'))")
        timed.page.clock.run_for(1000)
    assert timed.asked("job") <= before + 1


def test_element_that_leaves_a_hidden_page_stops_no_other(away: Away) -> None:
    """The one that left was the only one that wanted to be told. The others go on when
    the page shows.
    """
    away.begin(element(1), element(1, "").replace("job1", "row"), element(2, ""))
    away.hide()
    away.pass_time()
    away.page.evaluate("document.getElementById('job1').remove()")
    away.pass_time()
    away.return_to()
    away.server.answer(uuid_of(2), answer("success", uuid=uuid_of(2)))
    away.end()
    wait_for(lambda: away.pass_time() == 2)


def test_page_whose_events_are_swallowed_goes_on(away: Away) -> None:
    """Scripts that keep a tab "always active" hide its changes from others."""
    stop = "(event) => event.stopImmediatePropagation()"
    away.page.add_init_script(f"addEventListener('visibilitychange', {stop}, true)")
    away.begin(element(1, ""))
    away.hide()
    for _ in range(3):
        away.pass_time()
    away.return_to()
    away.end()


@pytest.mark.parametrize(
    "change",
    [
        "job1.setAttribute('csrf-token', 'new')",
        "job1.setAttribute('period', '60')",
        "job1.setAttribute('notify', 'Ready')",
        "{ const { parentNode } = job1; job1.remove();"
        " setTimeout(() => parentNode.append(job1), 100) }",
    ],
)
def test_element_that_follows_anew_still_tells_of_the_end(
    away: Away, change: str
) -> None:
    """The page had shown that the job runs."""
    away.begin()
    away.hide()
    before = away.page.evaluate("ended")
    away.server.answer(
        uuid_of(1), answer("success", uuid=uuid_of(1), finished_at="2026-01-01")
    )
    away.page.evaluate(f"const job1 = document.getElementById('job1'); {change}")
    wait_for(lambda: away.pass_time() > before)
    assert away.title == f"{MARK}Jobs"
    assert len(away.made) == 1


@pytest.mark.parametrize("text", ["notify", "True", " "])
def test_value_that_says_nothing_is_no_text(away: Away, text: str) -> None:
    """Some templates write an attribute without a value so."""
    away.begin(element(1, f'notify="{text}"'))
    away.hide()
    away.end()
    assert [title for title, _ in away.made] == ["Run marathon: Done"]


def test_mark_is_removed_from_within_the_title(unasked: Away) -> None:
    """The application has written its own mark before it meanwhile."""
    unasked.begin()
    unasked.hide()
    unasked.end()
    unasked.page.evaluate("document.title = '(2) ' + document.title")
    unasked.page.evaluate("dispatchEvent(new Event('visibilitychange'))")
    assert unasked.title == f"(2) {MARK}Jobs"
    unasked.return_to()
    assert unasked.title == "(2) Jobs"


def test_labels_that_are_none_swallow_no_end(away: Away) -> None:
    away.begin(element(1, ""))
    away.page.evaluate("JobState.labels = 'x'")
    away.end()
    away.page.evaluate("JobState.labels = {}")
    away.pass_time()
    assert [p for p in away.problems if "cannot be drawn" not in p] == []
    away.problems.clear()


def test_hidden_page_closes_its_streams(away: Away) -> None:
    """A hidden page has no stream: it polls, and streams again when it shows."""
    away.server.offers = True
    away.begin(element(1), element(2, ""))
    wait_for(lambda: len(away.server.open_streams) == 1)
    away.server.streams[0].send(json.dumps(data(uuid=uuid_of(1))))
    away.hide()
    wait_for(lambda: not away.server.open_streams)
    before = len(away.server.seen(uuid_of(1)))
    wait_for(lambda: away.pass_time() or len(away.server.seen(uuid_of(1))) > before + 2)
    assert len(away.server.streams) == 1
    away.end()
    assert away.title == f"{MARK}Jobs"
    assert not away.server.open_streams
    alone = away.server.requests()[-1]
    assert uuid_of(2) not in alone.path
    away.return_to()
    wait_for(lambda: len(away.server.open_streams) == 1)


def test_hidden_tab(windowed: Browser, poll_server: PollServer) -> None:
    """In a tab that is really hidden, the title says that the job has ended."""
    poll_server.answer(uuid_of(1), answer())
    poll_server.pages["/away"] = PAGE.format(body=element(), title="Jobs")
    with opened(windowed) as tab:
        tab.open(poll_server.url + "/away")
        wait_for(lambda: tab.evaluate("job1.getAttribute('state')") == "working")
        held = answer("success")
        held.hold = threading.Event()
        before = len(poll_server.seen(uuid_of(1)))
        poll_server.answer(uuid_of(1), held)
        wait_for(lambda: len(poll_server.seen(uuid_of(1))) > before)
        tab.hide()
        held.hold.set()
        wait_for(lambda: tab.evaluate("document.title") == f"{MARK}Jobs")
        tab.show()
        assert tab.evaluate("document.title") == "Jobs"


# The title


@pytest.mark.parametrize("status", ["success", "error", "cancelled"])
def test_title_is_marked_until_the_page_shows(unasked: Away, status: str) -> None:
    """The title is marked for any end, even without permission to notify."""
    unasked.begin()
    unasked.hide()
    assert unasked.title == "Jobs"
    unasked.end(status)
    assert unasked.title == f"{MARK}Jobs"
    unasked.return_to()
    assert unasked.title == "Jobs"
    unasked.hide()
    assert unasked.title == "Jobs"


@pytest.mark.parametrize(
    ("change", "title"),
    [
        ("'Other'", "Other"),
        ("document.title + ' (2)'", "Jobs (2)"),
        ("'\u25cf Other'", "\u25cf Other"),
        ("'\u25cf\xa0Other'", "\u25cf\xa0Other"),
        ("''", ""),
    ],
)
def test_title_of_the_application_is_kept(
    unasked: Away, change: str, title: str
) -> None:
    """What the application writes meanwhile stays, without the mark."""
    unasked.begin()
    unasked.hide()
    unasked.end()
    unasked.page.evaluate(f"document.title = {change}")
    unasked.return_to()
    assert unasked.title == title


@pytest.mark.parametrize("title", ["", "\u25cf Jobs", "&lt;b&gt; &amp; co", "a  b"])
def test_title_is_restored_exactly(unasked: Away, title: str) -> None:
    """The title is what it was, be it empty or marked by the application."""
    unasked.begin(title=title)
    before = unasked.title
    unasked.hide()
    unasked.end()
    assert unasked.title == MARK + before
    unasked.return_to()
    assert unasked.title == before


def test_several_ends_mark_the_title_once(unasked: Away) -> None:
    """Jobs that end one after another leave one mark, which follows a new title."""
    unasked.begin(*map(element, (1, 2, 3)))
    unasked.hide()
    unasked.end(number=1)
    unasked.end(number=2)
    assert unasked.title == f"{MARK}Jobs"
    unasked.page.evaluate("document.title = 'Other'")
    unasked.end("error", 3)
    assert unasked.title == f"{MARK}Other"
    unasked.return_to()
    assert unasked.title == "Other"


def test_title_is_no_element_of_that_name(unasked: Away) -> None:
    """An image named "title" changes nothing."""
    unasked.begin(element(), "<img name=title>")
    unasked.hide()
    unasked.end()
    assert unasked.title == f"{MARK}Jobs"
    unasked.return_to()
    assert unasked.title == "Jobs"


def test_visible_page_needs_no_mark(away: Away) -> None:
    """Who sees the end is told nothing else of it."""
    away.begin()
    away.end()
    assert (away.title, away.made) == ("Jobs", [])


def test_element_without_the_attribute_is_silent(away: Away) -> None:
    """Without the attribute, a hidden page learns of the end when it shows."""
    away.begin(element(1, ""), element(2))
    away.hide()
    away.end(number=2)
    away.server.answer(uuid_of(1), answer("success", uuid=uuid_of(1)))
    away.return_to()
    away.wait("success", "job1")
    assert (away.title, len(away.made)) == ("Jobs", 1)


def test_poller_of_a_hidden_page_does_not_mark_it(away: Away) -> None:
    """Where a script polls in a hidden page, its elements without the attribute are
    silent all the same.
    """
    away.begin(element(1, ""))
    away.page.evaluate(
        "url => void JobState.startPolling({ url, whileHidden: true })",
        f"/job_state/{uuid_of(1)}",
    )
    away.hide()
    away.end()
    assert (away.title, away.made) == ("Jobs", [])


def test_job_that_was_over_is_no_news(away: Away) -> None:
    """A page that opens in a hidden tab does not tell of jobs that ended before."""
    away.begin()
    away.hide()
    away.server.answer(uuid_of(2), answer("success", uuid=uuid_of(2)))
    away.page.evaluate(
        """(src) => {
            const late = document.createElement("job-state");
            late.setAttribute("notify", "");
            late.src = src;
            document.body.append(late);
        }""",
        f"/job_state/{uuid_of(2)}",
    )
    wait_for(lambda: away.page.evaluate("ended") == 1)
    assert (away.title, away.made) == ("Jobs", [])


# Notifications


@pytest.mark.parametrize(
    ("status", "attributes", "text"),
    [
        ("success", "notify", "Run marathon: Done"),
        ("success", 'notify="Your report is ready"', "Your report is ready"),
        ("error", 'notify="Your report is ready"', "Run marathon: Failed"),
        ("cancelled", 'notify="Your report is ready"', "Run marathon: Cancelled"),
        ("success", "notify label-job=Bread label-success=Baked", "Bread: Baked"),
    ],
)
def test_notification_says_what_became_of_the_job(
    away: Away, status: str, attributes: str, text: str
) -> None:
    """The application's own text tells of a success, and of nothing else."""
    away.begin(element(attributes=attributes))
    away.hide()
    away.end(status)
    assert away.made == [[text, uuid_of(1)]]


def test_notification_is_text(away: Away) -> None:
    """What the server sends is cleaned, and shortened."""
    away.begin()
    away.hide()
    away.end("error", title="<b>\u202e" + "x" * 300)
    ((text, _),) = away.made
    assert text == f"<b>{'x' * 196}\u2026: Failed"


def test_job_of_several_elements_notifies_once(away: Away) -> None:
    """One notification a job, however many elements show it."""
    twin = element().replace("id=job1", "id=twin")
    away.begin(element(), twin, element(2))
    away.hide()
    away.end(number=1)
    wait_for(lambda: away.page.evaluate("ended") == 2)
    away.end(number=2)
    assert away.made == [
        ["Run marathon: Done", uuid_of(1)],
        ["Run marathon: Done", uuid_of(2)],
    ]


def test_job_that_runs_again_notifies_again(away: Away) -> None:
    """A second end of a job is news."""
    away.begin()
    away.hide()
    away.end("error")
    away.server.answer(uuid_of(1), answer())
    away.page.evaluate("job1.replaceWith(job1.cloneNode())")
    wait_for(lambda: away.page.evaluate("job1.state") == "working")
    away.end(finished_at="2026-01-01T00:01:00Z")
    assert [text for text, _ in away.made] == [
        "Run marathon: Failed",
        "Run marathon: Done",
    ]


def test_attribute_may_come_later(away: Away) -> None:
    """A script may add the attribute, or change it, while the job runs."""
    away.begin(element(attributes=""))
    away.page.evaluate("job1.setAttribute('notify', 'At last')")
    before = len(away.server.seen(uuid_of(1)))
    wait_for(lambda: len(away.server.seen(uuid_of(1))) > before + 1)
    away.hide()
    away.end()
    assert away.made == [["At last", uuid_of(1)]]


def test_nothing_is_made_without_permission(unasked: Away) -> None:
    """Without permission, the page shows no notification and never prompts."""
    unasked.begin()
    unasked.hide()
    unasked.end()
    assert unasked.made == []
    assert unasked.page.evaluate("prompts") == 0


@pytest.mark.parametrize(
    "browser_without",
    [
        "delete window.Notification; delete Object.getPrototypeOf(window).Notification",
        "window.Notification = undefined",
        """window.Notification = class {
            static permission = "granted";
            constructor() { throw new TypeError("Illegal constructor"); }
        }""",
    ],
)
def test_browser_without_notifications(away: Away, browser_without: str) -> None:
    """A browser that cannot notify from a page still marks the title."""
    away.begin()
    away.page.evaluate(f"() => {{{browser_without}}}")
    away.hide()
    away.end()
    assert away.title == f"{MARK}Jobs"


# The permission


def test_permission_is_asked_for_on_demand(away: Away) -> None:
    """askToNotify() prompts, and resolves to whether the viewer agrees."""
    away.begin()
    assert away.page.evaluate("prompts") == 0
    assert away.page.evaluate("JobState.askToNotify()") is True
    assert away.page.evaluate("prompts") == 1


@pytest.mark.parametrize(
    "notification",
    [
        "undefined",
        "{}",
        "{requestPermission() { throw new Error('no'); }}",
        "{requestPermission: () => Promise.reject(new Error('no'))}",
        "{requestPermission: () => Promise.resolve('denied')}",
        "{requestPermission: () => Promise.resolve('default')}",
        "{requestPermission(callback) {}}",
    ],
)
def test_permission_that_is_not_given(unasked: Away, notification: str) -> None:
    """A refusal, and a browser that cannot ask, are false and never an error."""
    unasked.begin()
    unasked.page.evaluate(f"() => {{ window.Notification = {notification}; }}")
    assert unasked.page.evaluate("JobState.askToNotify()") is False


def test_scripts_share_one_permission(page: Page, poll_server: PollServer) -> None:
    """A second copy of the script leaves the function of the first."""
    page.goto(poll_server.url + "/empty")
    page.add_script_tag(url="/job-state.js")
    page.evaluate("window.first = JobState.askToNotify")
    page.add_script_tag(url="/job-state.js")
    assert page.evaluate("first === JobState.askToNotify")
