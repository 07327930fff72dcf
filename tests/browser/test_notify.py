"""What a hidden page does when a job ends, in a real Chromium. Its notifications are
recorded, not shown: see test_windows.py.
"""

import json
from collections.abc import Iterator

import pytest
from playwright.sync_api import Page

from tests.browser.staging import Stage, answer, data
from tests.pollserver import Answer, PollServer, success, uuid_of, working
from tests.support import wait_for

MINUTE = 60_000
MARK = "\u25cf\u2060\xa0"

#: Records the notifications and the requests for permission.
RECORD = """
window.made = [];
window.prompts = 0;
window.Notification = class {
  static permission = "granted";
  static async requestPermission() {
    prompts += 1;
    return Notification.permission;
  }
  constructor(title, options) {
    made.push([title, options.tag]);
  }
};
"""

PAGE = (
    '<!doctype html><html lang="en"><meta charset="utf-8"><title>Jobs</title>'
    '<script src="/job-state.js"></script><script src="/harness.js"></script>{body}'
)


def element(number: int = 1, attributes: str = "notify") -> str:
    place = f"/job_state/{uuid_of(number)}"
    return f"<job-state id=job{number} src={place} period=50 {attributes}></job-state>"


class Away(Stage):
    """A page that the test hides."""

    def begin(self, *bodies: str) -> None:
        """Show elements whose jobs run."""
        for number in range(1, 10):
            self.server.answer(uuid_of(number), answer(uuid=uuid_of(number)))
        self.server.pages["/away"] = PAGE.format(body="".join(bodies) or element())
        self.page.goto(self.server.url + "/away")
        for each in self.page.locator("job-state").all():
            self.wait("working", each.get_attribute("id") or "")
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

    def end(self, *numbers: int, status: str = "success", **job: str) -> None:
        """Let jobs end, and the page learn of it."""
        before = self.page.evaluate("ended")
        for number in numbers or (1,):
            state = {"uuid": uuid_of(number), "finished_at": "2026-01-01T00:00:00Z"}
            self.server.answer(uuid_of(number), answer(status, **{**state, **job}))
        wait_for(lambda: self.pass_time() >= before + len(numbers or (1,)))

    def pass_time(self) -> int:
        """Let a minute pass, and return how many jobs have ended."""
        for _ in range(3):
            # A request is given up after half a minute.
            self.page.clock.run_for(MINUTE // 3 + 500)
            self.wait_for_answers(self.page.evaluate("asked.length"))
        return int(self.page.evaluate("ended"))

    def wait_for_answers(self, count: int) -> None:
        wait_for(lambda: self.page.evaluate("answered") >= count)

    @property
    def title(self) -> str:
        return self.page.title()

    @property
    def made(self) -> list[list[str]]:
        """The titles and tags of the notifications so far."""
        return list(self.page.evaluate("made"))


@pytest.fixture
def away(page: Page, poll_server: PollServer) -> Iterator[Away]:
    """A page that may notify."""
    page.add_init_script(RECORD)
    page.clock.install()
    with Away(page, poll_server) as away:
        yield away


# Once a minute


@pytest.mark.promise("hidden-page-asks-less")
def test_hidden_page_asks_once_a_minute(timed):
    """A hidden page asks for the jobs of interest alone, learns of their ends, and asks
    for the others when it shows. While the server fails, it asks no more often.
    """
    one, two, bad = map(uuid_of, range(3))
    timed.follow(one, working(), whileHidden=True, pollingPeriod=1000)
    timed.follow(two, working(), pollingPeriod=1000)
    timed.follow(bad, working(), baseUrl="/bad", whileHidden=True)
    for uuid in one, two, bad:
        timed.wait(uuid, "update")
    timed.hide()
    timed.server.answer(bad, Answer(503), below="/bad")

    def asked(uuid: str) -> int:
        urls = timed.page.evaluate("asked")
        return sum(uuid in url for url in urls)

    timed.advance(100)
    hidden, answers, start = asked(two), len(timed.told(one, "update")), asked(one)
    for minute in range(1, 4):
        timed.advance(MINUTE - 10_000)
        timed.page.evaluate("dispatchEvent(new Event('online'))")
        assert asked(one) <= start + minute - 1
        # The minute begins with the answer.
        while asked(one) < start + minute:
            timed.advance(1000)
        timed.wait_for_updates(one, answers + minute)
    assert asked(two) == hidden
    assert timed.wait(bad, "lost")["retryIn"] >= MINUTE
    timed.server.answer(one, success())
    before = asked(one)
    timed.advance(MINUTE - 10_000)
    while asked(one) == before:
        timed.advance(1000)
    timed.wait(one, "success")
    timed.hide(hidden=False)
    timed.advance(100)
    wait_for(lambda: asked(two) > hidden)


def test_hidden_page_closes_its_streams(away):
    """A hidden page has no stream: it polls, and streams again when it shows."""
    away.server.offers = True
    away.begin(element(1), element(2, ""))
    wait_for(lambda: len(away.server.open_streams) == 1)
    away.server.streams[0].send(json.dumps(data(uuid=uuid_of(1))))
    away.hide()
    wait_for(lambda: not away.server.open_streams)
    away.end()
    assert away.title == f"{MARK}Jobs"
    assert not away.server.open_streams
    assert uuid_of(2) not in away.server.requests()[-1].path
    away.return_to()
    wait_for(lambda: len(away.server.open_streams) == 1)


# The title


def test_title_is_marked_until_the_page_shows(away):
    """Any ends mark it once, even without permission to notify. Then it is restored."""
    away.page.add_init_script("Notification.permission = 'default'")
    away.begin(*map(element, range(1, 6)), "<img name=title>")
    ends = [("success", (1,)), ("error", (2,)), ("cancelled", (3,)), ("error", (4, 5))]
    for status, numbers in ends:
        away.hide()
        assert away.title == "Jobs"
        away.end(*numbers, status=status)
        assert away.title == f"{MARK}Jobs"
        away.return_to()
        assert away.title == "Jobs"
    assert away.made == []
    assert away.page.evaluate("prompts") == 0


def test_end_that_is_seen_or_no_news_is_not_told(away):
    """Nor is that of an element without the attribute, or of a script's poller."""
    away.begin(element(1), element(2, ""))
    script = "url => void JobState.startPolling({ url, whileHidden: true })"
    away.page.evaluate(script, f"/job_state/{uuid_of(2)}")
    away.end(1)
    away.hide()
    away.end(2)
    away.server.answer(uuid_of(3), answer("success", uuid=uuid_of(3)))
    away.page.evaluate(
        """(src) => {
            const late = document.createElement("job-state");
            late.setAttribute("notify", "");
            late.src = src;
            document.body.append(late);
        }""",
        f"/job_state/{uuid_of(3)}",
    )
    wait_for(lambda: away.page.evaluate("ended") == 3)
    assert (away.title, away.made) == ("Jobs", [])


# Notifications


def test_notification_says_what_became_of_the_job(away):
    """The application's own text tells of a success, and of nothing else. What
    templates write for an attribute without a value does not count as a text.
    """
    own = 'notify="Your report is ready"'
    cases = (
        ("success", "notify", "Run marathon: Done"),
        ("success", own, "Your report is ready"),
        ("error", own, "Run marathon: Failed"),
        ("success", "notify label-job=Bread label-success=Baked", "Bread: Baked"),
        ("success", 'notify="True"', "Run marathon: Done"),
    )
    shown = [element(n, attributes) for n, (_, attributes, _) in enumerate(cases, 1)]
    away.begin(*shown, element(9))
    away.hide()
    for number, (status, _, text) in enumerate(cases, 1):
        away.end(number, status=status)
        assert away.made[number - 1 :] == [[text, uuid_of(number)]]
    # What the server sends is cleaned, and shortened.
    away.end(9, status="error", title="<b>\u202e" + "x" * 300)
    assert away.made[-1][0] == f"<b>{'x' * 196}\u2026: Failed"


@pytest.mark.promise("callbacks-are-called-once")
def test_end_is_told_once(away):
    """One notification a job, however many elements show it. A second end is news."""
    away.begin(element(), element().replace("id=job1", "id=twin"))
    away.hide()
    away.end(status="error")
    wait_for(lambda: away.page.evaluate("ended") == 2)
    away.server.answer(uuid_of(1), answer())
    away.page.evaluate("job1.replaceWith(job1.cloneNode())")
    wait_for(lambda: away.page.evaluate("job1.state") == "working")
    away.end(finished_at="2026-01-01T00:01:00Z")
    titles = ["Run marathon: Failed", "Run marathon: Done"]
    assert away.made == [[title, uuid_of(1)] for title in titles]


WITHOUT = (
    "delete window.Notification; delete Object.getPrototypeOf(window).Notification",
    """window.Notification = class {
        static permission = "granted";
        constructor() { throw new TypeError("Illegal constructor"); }
    }""",
)


#: What is not allowed to notify.
REFUSING = (
    "undefined",
    "{requestPermission: () => Promise.reject(new Error('no'))}",
    "{requestPermission: () => Promise.resolve('denied')}",
    "{requestPermission(callback) {}}",
)


def test_browser_may_lack_notifications(away):
    """A browser that cannot notify from a page still marks the title. askToNotify()
    prompts, and resolves to whether the viewer agrees; it never fails.
    """
    away.begin(*map(element, range(1, 3)))
    assert away.page.evaluate("prompts") == 0
    assert away.page.evaluate("JobState.askToNotify()") is True
    assert away.page.evaluate("prompts") == 1
    for number, spoil in enumerate(WITHOUT, 1):
        away.page.evaluate(f"() => {{{spoil}}}")
        away.hide()
        away.end(number)
        assert away.title == f"{MARK}Jobs"
        away.return_to()
    for notification in REFUSING:
        away.page.evaluate(f"() => {{ window.Notification = {notification}; }}")
        assert away.page.evaluate("JobState.askToNotify()") is False, notification
