"""What a hidden page does when a job ends, in a real Chromium. Its notifications are
recorded, not shown: see test_windows.py.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from playwright.sync_api import Page

from tests.browser.polling import COUNT_ANSWERS, Polling
from tests.browser.staging import Stage, answer, data
from tests.pollserver import Answer, PollServer, state, success, uuid_of, working
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
            self.wait_for_answers(self.page.evaluate("fetched"))
        ended: int = self.page.evaluate("ended")
        return ended

    def wait_for_answers(self, count: int) -> None:
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
def away(page: Page, poll_server: PollServer) -> Iterator[Away]:
    """A page that may notify."""
    page.add_init_script(RECORD + COUNT_ANSWERS)
    page.clock.install()
    yield from Away(page, poll_server).watched()


# Once a minute


def test_hidden_page_asks_once_a_minute(timed: Polling) -> None:
    """A hidden page asks for the jobs of interest alone, learns of their ends, and asks
    for the others when it shows. While the server fails, it asks no more often.
    """
    one, two, bad = map(uuid_of, range(3))
    timed.follow(one, Answer(body=state()), whileHidden=True, pollingPeriod=1000)
    timed.follow(two, Answer(body=state()), pollingPeriod=1000)
    timed.follow(bad, working(), baseUrl="/bad", whileHidden=True)
    for uuid in one, two, bad:
        timed.wait(uuid, "update")
    timed.server.answer(bad, Answer(503), below="/bad")
    timed.hide()

    def asked(uuid: str) -> int:
        urls = timed.page.evaluate("asked")
        return sum(uuid in url for url in urls)

    timed.advance(100)
    hidden, answers = asked(two), len(timed.told(one, "update"))
    start = asked(one)
    for minute in range(1, 4):
        timed.advance(MINUTE - 10_000)
        assert asked(one) <= start + minute - 1
        # The minute begins with the answer.
        most = start + minute
        while asked(one) < most:
            timed.advance(1000)
        assert asked(one) == start + minute
        timed.wait_for_updates(one, answers + minute)
    assert asked(two) == hidden
    assert timed.wait(bad, "lost")["retryIn"] >= MINUTE
    timed.server.answer(one, success())
    timed.advance(MINUTE)
    timed.wait(one, "success")
    timed.hide(hidden=False)
    timed.advance(100)
    wait_for(lambda: asked(two) > hidden)


def test_hidden_page_keeps_to_its_minute(timed: Polling) -> None:
    """Whatever a browser or another script tells it meanwhile."""
    timed.follow("job", *[working()] * 100, pollingPeriod=1000, whileHidden=True)
    timed.wait("job", "update")
    timed.hide()
    timed.advance(1000)
    before = timed.asked("job")
    for _ in range(8):
        for event in "online", "visibilitychange", "pageshow":
            timed.page.evaluate(f"dispatchEvent(new Event('{event}'))")
        timed.advance(5000)
    assert timed.asked("job") <= before + 1


def test_element_that_leaves_a_hidden_page_stops_no_other(away: Away) -> None:
    """The one that left was the only one that wanted to be told. The others go on when
    the page shows, even if another script has kept its events from them.
    """
    stop = "(event) => event.stopImmediatePropagation()"
    away.page.add_init_script(f"addEventListener('visibilitychange', {stop}, true)")
    away.begin(element(1), element(1, "").replace("job1", "row"), element(2, ""))
    away.hide()
    away.pass_time()
    away.page.evaluate("document.getElementById('job1').remove()")
    away.pass_time()
    away.return_to()
    away.end(1, 2)


def test_hidden_page_closes_its_streams(away: Away) -> None:
    """A hidden page has no stream: it polls, and streams again when it shows."""
    away.server.offers = True
    away.begin(element(1), element(2, ""))
    wait_for(lambda: len(away.server.open_streams) == 1)
    away.server.streams[0].send(json.dumps(data(uuid=uuid_of(1))))
    away.hide()
    wait_for(lambda: not away.server.open_streams)
    before = len(away.server.seen(uuid_of(1)))
    wait_for(lambda: away.pass_time() or len(away.server.seen(uuid_of(1))) > before + 1)
    assert len(away.server.streams) == 1
    away.end()
    assert away.title == f"{MARK}Jobs"
    assert not away.server.open_streams
    assert uuid_of(2) not in away.server.requests()[-1].path
    away.return_to()
    wait_for(lambda: len(away.server.open_streams) == 1)


# The title


def test_title_is_marked_until_the_page_shows(away: Away) -> None:
    """The title is marked once for any ends, even without permission to notify, and is
    then what it was. An image named "title" changes nothing.
    """
    away.page.add_init_script("Notification.permission = 'default'")
    away.begin(*map(element, range(1, 6)), "<img name=title>")
    titles = ["Jobs", "", "\u25cf Jobs", "<b> & co"]
    ends = [("success", (1,)), ("error", (2,)), ("cancelled", (3,)), ("error", (4, 5))]
    for title, (status, numbers) in zip(titles, ends, strict=True):
        away.page.evaluate(
            "(title) => Reflect.set(Document.prototype, 'title', title, document)",
            title,
        )
        away.hide()
        assert away.title == title
        away.end(*numbers, status=status)
        assert away.title == MARK + title
        away.return_to()
        assert away.title == title
    away.hide()
    assert away.title == titles[-1]
    assert away.made == []
    assert away.page.evaluate("prompts") == 0


def test_title_of_the_application_is_kept(away: Away) -> None:
    """What the application writes meanwhile stays, without the mark, which follows a
    new title and may be within it.
    """
    away.begin(*map(element, range(1, 9)))
    for number, (change, title) in enumerate(
        {
            "'Other'": "Other",
            "document.title + ' (2)'": f"{MARK}Jobs (2)",
            "'(3) ' + document.title": f"(3) {MARK}Jobs",
            "'\u25cf Other'": "\u25cf Other",
            "'\u25cf\xa0Other'": "\u25cf\xa0Other",
            "''": "",
        }.items(),
        1,
    ):
        away.page.evaluate("document.title = 'Jobs'")
        away.hide()
        away.end(number)
        away.page.evaluate(f"document.title = {change}")
        away.page.evaluate("dispatchEvent(new Event('visibilitychange'))")
        assert away.title == title
        if number == 1:
            away.end(8)
            assert away.title == f"{MARK}Other"
        away.return_to()
        assert away.title == title.replace(MARK, "")


def test_end_that_is_seen_or_no_news_is_not_told(away: Away) -> None:
    """A visible page, a job that was over before, an element without the attribute, and
    the poller of a script are silent.
    """
    away.begin(element(1), element(2, ""))
    away.page.evaluate(
        "url => void JobState.startPolling({ url, whileHidden: true })",
        f"/job_state/{uuid_of(2)}",
    )
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


def test_notification_says_what_became_of_the_job(away: Away) -> None:
    """The application's own text tells of a success, and of nothing else. What
    templates write for an attribute without a value does not count as a text.
    """
    own = 'notify="Your report is ready"'
    cases = (
        ("success", "notify", "Run marathon: Done"),
        ("success", own, "Your report is ready"),
        ("error", own, "Run marathon: Failed"),
        ("cancelled", own, "Run marathon: Cancelled"),
        ("success", "notify label-job=Bread label-success=Baked", "Bread: Baked"),
        *(
            ("success", f'notify="{text}"', "Run marathon: Done")
            for text in ("notify", "True", " ")
        ),
    )
    away.begin(
        *(element(n, attributes) for n, (_, attributes, _) in enumerate(cases, 1))
    )
    away.hide()
    for number, (status, _, text) in enumerate(cases, 1):
        away.end(number, status=status)
        assert away.made[number - 1 :] == [[text, uuid_of(number)]]


def test_notification_is_text(away: Away) -> None:
    """What the server sends is cleaned, and shortened."""
    away.begin()
    away.hide()
    away.end(status="error", title="<b>\u202e" + "x" * 300)
    ((text, _),) = away.made
    assert text == f"<b>{'x' * 196}\u2026: Failed"


def test_end_is_told_once(away: Away) -> None:
    """One notification a job, however many elements show it. A second end is news."""
    twin = element().replace("id=job1", "id=twin")
    away.begin(element(), twin, element(2))
    away.hide()
    away.end(status="error")
    wait_for(lambda: away.page.evaluate("ended") == 2)
    away.end(2)
    away.server.answer(uuid_of(1), answer())
    away.page.evaluate("job1.replaceWith(job1.cloneNode())")
    wait_for(lambda: away.page.evaluate("job1.state") == "working")
    away.end(finished_at="2026-01-01T00:01:00Z")
    assert away.made == [
        ["Run marathon: Failed", uuid_of(1)],
        ["Run marathon: Done", uuid_of(2)],
        ["Run marathon: Done", uuid_of(1)],
    ]


CHANGES = (
    "setAttribute('csrf-token', 'new')",
    "setAttribute('period', '60')",
    "setAttribute('notify', 'Ready')",
    "remove(); setTimeout(() => document.body.append(e), 100)",
)


def test_element_that_follows_anew_still_tells_of_the_end(away: Away) -> None:
    """The page had shown that the job runs. The attribute, too, may come later."""
    away.begin(*map(element, range(1, 5)), element(5, ""))
    away.page.evaluate("job5.setAttribute('notify', 'At last')")
    before = len(away.server.seen(uuid_of(5)))
    wait_for(lambda: len(away.server.seen(uuid_of(5))) > before + 1)
    away.hide()
    for number in range(1, 6):
        uuid = uuid_of(number)
        ended = answer("success", uuid=uuid, finished_at="2026-01-01")
        away.server.answer(uuid, ended)
    for number, change in enumerate(CHANGES, 1):
        find = f"const e = document.getElementById('job{number}');"
        away.page.evaluate(f"() => {{ {find} e.{change} }}")
    wait_for(lambda: away.pass_time() == 5)
    assert away.title == f"{MARK}Jobs"
    assert sorted(tag for _, tag in away.made) == [*map(uuid_of, range(1, 6))]
    assert ["At last", uuid_of(5)] in away.made


WITHOUT = (
    "delete window.Notification; delete Object.getPrototypeOf(window).Notification",
    "window.Notification = undefined",
    """window.Notification = class {
        static permission = "granted";
        constructor() { throw new TypeError("Illegal constructor"); }
    }""",
)

#: What is not allowed to notify.
REFUSING = (
    "undefined",
    "{}",
    "{requestPermission() { throw new Error('no'); }}",
    "{requestPermission: () => Promise.reject(new Error('no'))}",
    "{requestPermission: () => Promise.resolve('denied')}",
    "{requestPermission: () => Promise.resolve('default')}",
    "{requestPermission(callback) {}}",
)


def test_browser_may_lack_notifications(away: Away) -> None:
    """A browser that cannot notify from a page still marks the title. askToNotify()
    prompts, and resolves to whether the viewer agrees; it never fails.
    """
    away.begin(*map(element, range(1, 4)))
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


def test_labels_that_are_none_swallow_no_end(away: Away) -> None:
    """The end of a job is told to the page even if its element cannot be drawn."""
    away.begin(element(1, ""))
    away.page.evaluate("JobState.labels = 'x'")
    away.end()
    away.page.evaluate("JobState.labels = {}")
    away.pass_time()
    assert [p for p in away.problems if "cannot be drawn" not in p] == []
    away.problems.clear()
