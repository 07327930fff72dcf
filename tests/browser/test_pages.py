"""The pages in a real Chromium: live rows, new jobs, acts and their results."""

import logging
import re
import time
from datetime import timedelta, timezone
from typing import Any

import pytest
from playwright.sync_api import expect

from pyramid_jobstate import Batch, Counts, JobError, JobState, JobStore, Progress
from pyramid_jobstate.asgi import asgi_app
from pyramid_jobstate.testing import pass_time, put_batch, put_job
from tests import streams
from tests.browser.paged import ImportSheet, Pages, Runner, fill
from tests.browser.polling import HOUR
from tests.browser.sites import protected
from tests.catalogs import Texts, write_catalog
from tests.jobs import RunMarathon
from tests.support import key_of, load_job, wait_for, write
from tests.web.operating import OPERATOR
from tests.web.paging import TRACEBACK, paged_config
from tests.webapp import Root


def put(store: JobStore, *statuses: str) -> list[str]:
    """Put a job of Alice's in each status, and return their uuids."""
    return [put_job(store, RunMarathon, s, owner="alice").uuid for s in statuses]


def stumble(job_state: JobState) -> None:
    raise ValueError("Blister")


def button(pages: Pages, name: str) -> Any:
    return pages.page.get_by_role("button", name=name)


# The list


def test_rows_are_live(pages, store, runner):
    """A row follows its job's state, attempt and end, and what can be done with it. A
    batch has no attempts.
    """
    runner.alarm.ring()
    job = runner.start(max_retries=1)
    (other,) = put(store, "success")
    batch = put_batch(store, Batch, ["queued"]).uuid
    pages.visit()
    row = pages.row(job)
    expect(pages.row(batch).locator(".jobstate-number")).to_have_text("")
    expect(row.locator("[part=status]")).to_have_text("Running")
    expect(row.locator(".jobstate-ended time")).to_have_count(0)
    row.get_by_role("checkbox").check()
    expect(button(pages, "Delete")).to_be_disabled()
    runner.tell(job, stumble)
    expect(row.locator(".jobstate-number")).to_have_text("2")
    runner.finish(job)
    expect(row.locator("[part=status]")).to_have_text("Done")
    expect(row.locator(".jobstate-ended time")).to_have_text(re.compile(r"\d:\d\d:"))
    expect(button(pages, "Delete")).to_be_enabled()
    expect(button(pages, "Cancel")).to_be_disabled()
    pages.expect_uuids(job, batch, other)


def test_rows_are_streamed(page, redis_url, runner):
    """Under ASGI, the rows join a stream."""
    job = runner.start()
    config = paged_config(redis_url)
    config.include("pyramid_jobstate")
    page.set_extra_http_headers({"X-User": OPERATOR})
    with streams.serving(asgi_app(config.make_wsgi_app())) as port:
        page.goto(f"http://127.0.0.1:{port}/job_state")
        element = page.locator("job-state")
        wait_for(lambda: element.evaluate("e => e.transport") == "stream")
        runner.finish(job)
        expect(element.locator("[part=status]")).to_have_text("Done")
        page.goto("about:blank")


def test_new_jobs_wait_until_they_are_asked_for(pages, store):
    """The page says how many there are, and counts them. Until they are asked for, its
    rows stay where they are.
    """
    pages.page.clock.install()
    old = put(store, "success", "success")[::-1]
    pages.visit()
    new = put(store, "queued", "working", "success")
    expect(pages.one("new")).to_be_hidden()
    pages.page.clock.fast_forward(10_000)
    expect(pages.one("new")).to_have_text("3 new jobs · Show")
    expect(pages.page.locator("[data-count=all]")).to_have_text("5")
    expect(pages.page.locator("[data-count=queued]")).to_have_text("1")
    expect(button(pages, "Run again")).to_have_count(0)
    assert pages.uuids == old
    pages.one("new").click()
    expect(pages.page.locator("tr[data-uuid]")).to_have_count(5)
    assert set(pages.uuids) == {*old, *new}


def test_jobs_that_move_up_are_not_new(pages, store):
    """If waiting jobs are cancelled, those of the next page come before a running one,
    which the page shows above them.
    """
    pages.page.clock.install()
    put(store, "working")
    waiting = put(store, *["queued"] * 60)
    pages.visit()
    for uuid in waiting[-11:]:
        assert load_job(store, uuid).cancel()
    with pages.page.expect_response("**/job_state/?all=1"):
        pages.page.clock.fast_forward(10_000)
    expect(pages.page.locator("[data-count=cancelled]")).to_have_text("11")
    expect(pages.one("new")).to_be_hidden()


def test_row_drops_the_reason_of_an_earlier_try(pages, store):
    """A job that is tried again may have failed again when the page looks."""
    first, second = (
        put_job(
            store,
            RunMarathon,
            "retrying",
            owner="alice",
            error=JobError("ValueError", text),
            attempt=attempt,
            delay=9999,
        ).uuid
        for attempt, text in ((1, "Blister"), (2, "Cramp"))
    )
    pages.visit()
    row = pages.row(first)
    expect(row).to_contain_text("Blister")
    later: Any = store.client.hgetall(key_of(store, second))
    store.client.hset(key_of(store, first), mapping=later)
    expect(row.locator(".jobstate-number")).to_have_text("2")
    expect(row).not_to_contain_text("Blister")


# Acts on jobs of a list


def test_selected_jobs_are_deleted(pages, store):
    """A click with Shift selects a range. The question says how many, and Esc answers
    no. Then the rows are gone, and the page says how many, and has the focus there.
    """
    jobs = put(store, *["success"] * 5)[::-1]
    pages.visit()
    boxes = pages.page.locator("tbody").get_by_role("checkbox")
    boxes.nth(1).click()
    boxes.nth(3).click(modifiers=["Shift"])
    expect(pages.one("selected")).to_have_text("3 selected")
    delete = button(pages, "Delete")
    delete.click()
    expect(
        pages.page.get_by_role("dialog", name="Delete 3 jobs? This cannot be undone.")
    ).to_be_visible()
    expect(pages.one("no")).to_be_focused()
    expect(pages.one("no")).to_have_text("Keep them")
    expect(pages.one("yes")).to_have_css("background-color", "rgb(179, 38, 30)")
    pages.page.keyboard.press("Escape")
    expect(pages.one("dialog")).to_be_hidden()
    expect(delete).to_be_focused()
    assert pages.changes == []
    pages.confirm("Delete", "Delete 3 jobs? This cannot be undone.")
    pages.expect_said("3 jobs deleted.")
    pages.expect_uuids(jobs[0], jobs[4])
    assert len(pages.changes) == 3
    assert store.load(jobs[1]) is None


def test_hasty_click_does_not_confirm(pages, store):
    """A double click on the button that asks may end on the one that confirms, which
    takes a single click, half a second after the question at the earliest.
    """
    page = pages.page
    page.clock.install(time=0)
    (job,) = put(store, "success")
    pages.visit()
    page.clock.pause_at(HOUR)
    pages.one("all").check()
    button(pages, "Delete").click()
    expect(pages.one("yes")).to_be_visible()
    box = pages.one("yes").bounding_box()
    assert box

    def click() -> None:
        page.mouse.click(box["x"] + 9, box["y"] + 9)

    click()
    page.clock.run_for(499)
    click()
    page.clock.run_for(1)
    page.mouse.down(click_count=2)
    page.mouse.up(click_count=2)
    expect(pages.one("dialog")).to_be_visible()
    assert pages.changes == []
    click()
    wait_for(lambda: store.load(job) is None)


def test_act_is_for_the_jobs_that_it_fits(pages, store, marathons):
    """Others selected do not count. The dialog says what was refused, and why."""
    failed = marathons.fail("alice", "bob")
    put(store, "error", "queued", "working", "success")
    pages.visit()
    pages.one("all").check()
    expect(pages.one("selected")).to_have_text("6 selected")
    pages.confirm("Run again", "Run 3 jobs again?")
    text = "2 jobs run again. 1 refused. The job cannot run again."
    expect(pages.one("result")).to_have_text(text)
    expect(pages.one("close")).to_be_focused()
    pages.forgive("status of 410")
    pages.page.keyboard.press("Escape")
    pages.expect_said(text)
    assert {load_job(store, job).status for job in failed} == {"queued"}
    assert len(pages.changes) == 3
    pages.one("all").check()
    pages.confirm("Cancel", "Cancel 4 jobs?")
    pages.expect_said("Asked 4 jobs to stop.")
    assert len(pages.changes) == 7


REFUSALS = {
    200: ("The server answered 200.", 1),
    400: ("The CSRF header or token is wrong.", 1),
    403: ("2 refused. You may not do this.", 2),
    409: ("2 refused. The job has changed in the meantime.", 2),
    503: ("The server cannot do this now. Try again later.", 1),
    302: ("The server redirects, perhaps to a login page.", 1),
    0: ("The server cannot be reached.", 1),
}


def test_failures_are_said(pages, store):
    """The dialog says why, in words, and nothing more is sent that would be in vain."""
    put(store, "success", "success")
    pages.visit()
    for status, (text, count) in REFUSALS.items():
        pages.changes.clear()
        pages.one("all").check()
        pages.refuse = {"DELETE": status}.get
        pages.confirm("Delete", "Delete 2 jobs? This cannot be undone.")
        expect(pages.one("result")).to_have_text(text)
        expect(pages.one("close")).to_be_focused()
        assert len(pages.changes) == count
        pages.forgive(f"status of {status}", "net::ERR")
        pages.page.keyboard.press("Enter")
        pages.expect_said(text)
        assert len(pages.uuids) == 2


@pytest.mark.system
def test_all_that_match_are_cancelled(pages, store):
    """Those on other pages are, by the thousand, but not those of another status."""
    put(store, *["queued"] * 1020)
    (done,) = put(store, "success")
    pages.visit("/job_state/?all=1&status=queued")
    pages.one("matching").check()
    pages.confirm("Cancel", "Cancel 1,020 jobs?")
    pages.expect_said("Asked 1,020 jobs to stop.")
    assert store.counts() == Counts(success=1, cancelled=1020)
    assert load_job(store, done).status == "success"


def test_question_is_about_what_matches_by_then(pages, store, runner):
    """The question counts the jobs anew. What ends, or is sent, after it stays."""
    running = runner.start()
    put(store, "success")
    pages.visit("/job_state/?all=1&kind=RunMarathon")
    put(store, "success", "error")
    pages.one("matching").check()
    button(pages, "Delete").click()
    expect(pages.one("question")).to_have_text("Delete 3 jobs? This cannot be undone.")
    runner.finish(running)
    (later,) = put(store, "success")
    pages.one("yes").click()
    pages.expect_said("3 jobs deleted.")
    expect(pages.page.locator("tr[data-uuid]")).to_have_count(2)
    assert set(pages.uuids) == {later, running}


def test_acts_follow_what_is_permitted(pages, redis_url, runner):
    """When a job ends, the page offers what a viewer may do then, and nothing else."""

    class Keepers(Root):
        __acl__ = (
            ("Allow", OPERATOR, ("view_job", "list_jobs", "cancel_job", "rerun_job")),
        )

    pages.serve(paged_config(redis_url, root_factory=Keepers))
    job = runner.start()
    pages.visit()
    pages.row(job).get_by_role("checkbox").check()
    buttons = pages.page.locator("[data-act]:visible")
    expect(buttons).to_have_text(["Cancel"])
    runner.fail(job, ValueError("Blister"))
    expect(buttons).to_have_text(["Cancel", "Run again"])
    expect(button(pages, "Run again")).to_be_enabled()
    expect(button(pages, "Cancel")).to_be_disabled()


@pytest.mark.promise("unsafe-requests-need-a-token")
def test_acts_pass_csrf_checks(pages, redis_url, store):
    """The token goes into the application's header or, without one, into a field."""
    headers: tuple[str | None, ...] = ("X-Own", None)
    for header in headers:
        job, other = put(store, "success", "success")
        pages.serve(protected(paged_config(redis_url), header=header))
        pages.visit(f"/job_state/{job}")
        pages.confirm("Delete", "Delete this job? This cannot be undone.")
        pages.expect_said("1 job deleted.")
        # The page of a job that is gone gives way to the list.
        pages.page.wait_for_url(f"{pages.url}/job_state/?all=1")
        pages.expect_uuids(other)
        pages.one("matching").check()
        pages.confirm("Delete", "Delete 1 job? This cannot be undone.")
        pages.expect_said("1 job deleted.")
        assert store.load(other) is None


# The groups of failed jobs


@pytest.mark.promise("failures-are-grouped")
def test_group_runs_exactly_its_jobs_again(pages, store, marathons):
    """They are those that the page has counted, one after another: none of another
    group, and none that failed later. The page says what was refused, and loads anew.
    """
    mine = marathons.fail("alice", "bob")
    failed = load_job(store, mine[0]).error
    bare = put_job(store, RunMarathon, "error", error=failed).uuid
    (other,) = marathons.fail("alice", args=(26, "blue"))
    pages.visit("/job_state/?status=error&group=error")
    (later,) = marathons.fail("alice")
    expect(button(pages, "Run 1 job again")).to_be_visible()
    run = button(pages, "Run 3 jobs again")
    expect(run).to_have_accessible_description(
        "tests.web.operating.Blister: after … miles in red shoes"
    )
    pages.confirm("Run 3 jobs again", "Run 3 jobs again?")
    text = "2 jobs run again. 1 refused. The job cannot run again."
    expect(pages.one("result")).to_have_text(text)
    pages.forgive("status of 410")
    pages.page.keyboard.press("Enter")
    pages.expect_said(text)
    sent = [path.split("/")[2] for method, path in pages.changes]
    assert sorted(sent) == sorted([bare, *mine])
    assert {load_job(store, job).status for job in mine} == {"queued"}
    assert {load_job(store, job).status for job in (other, later)} == {"error"}
    expect(button(pages, "Run 2 jobs again")).to_be_visible()


# The page of a job


def test_job_runs_again(pages, marathons):
    """A job that failed runs again from its page, which shows how it ends."""
    (job,) = marathons.fail("alice")
    pages.visit(f"/job_state/{job}")
    traceback = pages.page.get_by_role("region", name="Traceback")
    expect(traceback).to_contain_text("Blister")
    pages.confirm("Run again", "Run this job again?")
    pages.expect_said("1 job runs again.")
    marathons.is_mended = True
    marathons.wait_for(job, "success")
    expect(pages.page.locator(".jobstate-timeline")).to_contain_text("Done")
    button(pages, "Delete").click()
    expect(pages.one("no")).to_have_text("Keep it")


def test_end_of_the_job_is_announced(pages, runner):
    """The page shows what can be done with a job that has ended, and stays: its
    element says the end, and the focus goes where it can. A question is not swept away.
    """
    job = runner.start()
    pages.visit(f"/job_state/{job}")
    button(pages, "Cancel").focus()
    runner.finish(job)
    expect(button(pages, "Delete")).to_be_focused()
    expect(pages.page.locator(".jobstate-timeline")).to_contain_text("Done")
    said = pages.page.locator("body > [role=status], body [aria-live=polite]")
    expect(said.filter(has_text="Run marathon: Done.")).to_have_count(1)
    job = runner.start()
    pages.visit(f"/job_state/{job}")
    button(pages, "Cancel").click()
    runner.finish(job)
    expect(pages.page.locator("#jobstate-job[state=success]")).to_be_attached()
    expect(pages.one("dialog")).to_be_visible()
    pages.one("no").click()
    expect(button(pages, "Delete")).to_be_visible()


def test_timeline_follows_the_tries(pages, runner):
    """A try that failed appears with its failure, which is not written anew while it is
    read, and the page is not loaded again. Metrics come, and go with their try.
    """
    job = runner.start(max_retries=3, min_backoff=600_000)
    pages.visit(f"/job_state/{job}")
    timeline = pages.page.locator(".jobstate-timeline")
    expect(timeline).to_contain_text("Running")
    pages.page.evaluate("window.isTheSame = true")
    runner.tell(job, lambda job_state: job_state.set_progress_metric("<b>", "<i>"))
    metrics = pages.page.locator("[data-jobstate=timeline] + [data-jobstate=metrics]")
    expect(metrics.locator("dt")).to_have_text("<b>")
    expect(metrics.locator("dd")).to_have_text("<i>")
    runner.tell(job, stumble)
    expect(timeline).to_contain_text(
        re.compile(r"try 1.+ValueError.+due at.+Trying", re.S)
    )
    traceback = pages.page.get_by_role("region", name="Traceback")
    expect(traceback).to_contain_text("Blister")
    beside = pages.page.locator("#jobstate-job + [data-jobstate=failure]")
    expect(beside.get_by_role("button", name="Copy the traceback")).to_be_visible()
    folded = traceback.locator("details").first
    folded.locator("summary").click()
    traceback.focus()
    runner.alarm.ring()
    expect(timeline).to_contain_text(re.compile(r"try 1.+try 2.+Running", re.S))
    expect(metrics).to_have_count(0)
    expect(traceback).to_be_focused()
    expect(folded).to_have_attribute("open", "")
    assert pages.page.evaluate("window.isTheSame")


def test_worker_is_asked_where_the_job_is(pages, runner):
    """The page shows the answer when it comes, and each later one. The button goes with
    the job, and leaves the focus where it is of use.
    """
    job = runner.start()
    pages.visit(f"/job_state/{job}/")
    ask = button(pages, "Where is it now?")
    ask.focus()
    pages.page.keyboard.press("Enter")
    expect(pages.one("stack")).to_contain_text("in run_marathon")
    first = pages.one("where").locator("time").get_attribute("datetime")
    expect(ask).to_be_focused()
    expect(button(pages, "Copy the stack")).to_be_visible()
    pages.page.wait_for_timeout(1000)
    ask.click()
    newer = pages.one("where").locator(f"time:not([datetime='{first}'])")
    expect(newer).to_be_visible()
    runner.finish(job)
    expect(ask).to_be_hidden()
    expect(button(pages, "Delete")).to_be_focused()
    expect(pages.one("stack")).to_be_visible()
    assert pages.changes == [("POST", f"/job_state/{job}/stack")] * 2


def test_worker_may_not_answer(pages, store):
    """It may also answer late. The page waits for it for a while, also after a reload,
    unless the job has ended its try meanwhile.
    """
    (job,) = put(store, "working")
    pages.visit(f"/job_state/{job}/")
    button(pages, "Where is it now?").click()
    expect(pages.one("where")).to_have_text("Asking the worker…")
    pages.page.reload()
    expect(pages.one("where")).to_have_text("Asking the worker…")
    pass_time(store, 5)
    expect(pages.one("where")).to_contain_text("The worker did not answer")
    pages.refuse = lambda method: 403 if method == "POST" else None
    button(pages, "Where is it now?").click()
    pages.expect_said("You may not do this.")
    pages.forgive("status of 403")
    pages.refuse = lambda method: None
    now = time.time_ns() // 1_000_000
    # The page looks for the answer, as the job neither changes nor stalls.
    write(store, job, seen=now + 3_600_000)
    button(pages, "Where is it now?").click()
    expect(pages.one("where")).to_have_text("Asking the worker…")
    answer: Any = {"taken_at": now, "stack": "in a queue"}
    store.client.hset(f"{{jobstate:{job}}}:where", mapping=answer)
    expect(pages.one("stack")).to_contain_text("in a queue")
    pass_time(store, 1)
    button(pages, "Where is it now?").click()
    expect(pages.one("where")).to_have_text("Asking the worker…")
    write(store, job, status="retrying")
    expect(pages.one("where")).to_have_count(0)


class Sheets(JobState):
    log_level = "WARNING"


def test_log_is_followed(pages, redis_url):
    """New lines come as text, each once, though the record says nothing new. The box
    stays at its end, unless the viewer reads above; and the end of the job brings the
    last line. A moment without a network does no harm.
    """
    log = logging.getLogger("tests.sheets")
    with Runner(redis_url, Sheets) as runner:
        job = runner.start()
        pages.visit(f"/job_state/{job}")
        pages.page.evaluate("window.isTheSame = true")
        section, lines = pages.one("log"), pages.one("lines").locator("li")
        expect(section).to_be_hidden()
        runner.tell(job, lambda job_state: log.warning("<b>one</b>"))
        expect(section.get_by_role("region", name="Log")).to_be_visible()
        expect(lines).to_have_count(1)
        expect(lines.locator("span")).to_have_text("<b>one</b>")
        expect(lines.locator("b")).to_have_text("WARNING")
        expect(lines.locator("time")).to_have_text(re.compile(r"\d:\d\d:\d\d"))
        with pages.page.expect_event("requestfailed", lambda sent: "log?" in sent.url):
            pages.page.context.set_offline(True)
        pages.page.context.set_offline(False)
        pages.forgive("net::ERR")

        def fill_box(job_state: JobState) -> None:
            for number in range(60):
                log.warning("line %d", number)

        runner.tell(job, fill_box)
        expect(lines).to_have_count(61)
        box = section.get_by_role("region")
        gap = "node => node.scrollHeight - node.scrollTop - node.clientHeight"
        assert box.evaluate(gap) < 2
        box.evaluate("node => node.scrollTop = 0")
        runner.tell(job, lambda job_state: job_state.append_log("<i>own</i>"))
        expect(lines).to_have_count(62)
        assert box.evaluate("node => node.scrollTop") == 0
        runner.tell(job, lambda job_state: log.warning("the end"))
        runner.finish(job)
        expect(lines).to_have_count(63)
        expect(lines.last).to_contain_text("the end")
        numbers = lines.evaluate_all("all => all.map(each => each.dataset.number)")
        assert numbers == [str(number) for number in range(1, 64)]
        assert pages.page.evaluate("window.isTheSame")


#: What ends a paste in a terminal, and acts on it; and how it is copied.
ACTING = "a\tb\x1b[201~\x07\x7f\x9b2J\nrm -rf ~\n\u202ecba \u200d\U000e0041\ufdd0\n"
TAMED = (
    "a\tb\\x1b[201~\\x07\\x7f\\x9b2J\nrm -rf ~\n\\u202ecba \u200d\\U000e0041\\ufdd0\n"
)


def test_traceback_is_read_and_copied(pages, store):
    """The keyboard opens what is folded. The button and the viewer's own keys copy the
    whole, and what may act on a terminal as `pjobs` shows it.
    """
    error = JobError("ValueError", "wrong")
    shown = TRACEBACK + ACTING
    job = put_job(store, RunMarathon, "error", error=error, traceback=shown).uuid
    page = pages.page
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    pages.visit(f"/job_state/{job}")
    traceback = page.get_by_role("region", name="Traceback")
    line = traceback.get_by_text("in process_message")
    expect(line).to_be_hidden()
    button(pages, "Copy the traceback").click()
    expect(button(pages, "Copied")).to_be_focused()
    assert page.evaluate("navigator.clipboard.readText()") == TRACEBACK + TAMED
    for _ in "region", "summary":
        page.keyboard.press("Tab")
    expect(traceback.locator("summary").first).to_be_focused()
    page.keyboard.press("Enter")
    expect(line).to_be_visible()
    # With what the layout has around the page.
    page.evaluate("document.body.prepend('Shop')")
    for key in "ac":
        page.keyboard.press(f"ControlOrMeta+{key}")
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied.startswith("Shop")
    assert TAMED.rstrip() in copied
    assert "".join(traceback.locator("pre").all_text_contents()) == shown


# Beside them


def test_times_are_the_viewer_s(browser, redis_url, store):
    """Times of today are shown in the viewer's zone, and others with their date."""
    (job,) = put(store, "queued")
    sent = load_job(store, job).queued_at
    assert sent is not None
    with (
        browser.new_context(timezone_id="Asia/Tokyo") as context,
        Pages(context.new_page(), paged_config(redis_url)) as pages,
    ):
        node = pages.page.locator("td time")
        local = sent.astimezone(timezone(timedelta(hours=9)))
        for days, start in (0, ""), (40, r".*\b[A-Z][a-z]+.*\b"):
            pages.page.clock.set_fixed_time(sent + timedelta(days=days))
            pages.page.goto(f"{pages.url}/job_state")
            clock = rf"{start}0?{local.hour % 12 or 12}:{local:%M}\b"
            expect(node).to_have_text(re.compile(f"^{clock}"))
            pages.page.goto(f"{pages.url}/job_state/{job}")
            step = pages.page.locator(".jobstate-timeline time").first
            expect(step).to_have_text(re.compile(f"^{clock}"))
        pages.page.goto(f"{pages.url}/job_state")
        clock = rf"{sent.hour % 12 or 12}:{sent:%M}\s{sent:%p} UTC"
        title = rf"^{sent:%b} {sent.day}, {sent.year}, {clock}$"
        expect(node).to_have_attribute("title", re.compile(title))


def test_script_speaks_the_language_of_the_words(browser, redis_url, store, tmp_path):
    """Times, numbers and plurals are in the language of the words, whatever that of the
    browser is, and English without a catalog.
    """
    selected = "${number} selected"
    texts: Texts = {
        (selected, selected): ("jedno", "kilka: ${number}", "wiele${more}"),
        "${done} of ${total} ${unit}": "${done} z ${total} ${unit}",
    }
    write_catalog(tmp_path, "pyramid_jobstate", "pl", texts)
    write_catalog(tmp_path, "pyramid_jobstate", "th", {"Jobs": "งาน"})
    config = paged_config(redis_url)
    config.add_translation_dirs(str(tmp_path))
    for _ in range(5):
        job = put_job(store, RunMarathon, progress=Progress(1234.5, 50000))
    assert job.queued_at is not None
    with (
        browser.new_context(locale="de-DE") as context,
        Pages(context.new_page(), config) as pages,
    ):
        # The times are of the year before.
        pages.page.clock.set_fixed_time(job.queued_at + timedelta(days=400))
        for locale, amount, time, counts in (
            (
                "pl",
                "1234,5 z 50 000",
                r"^\d+ \S+ \d+, \d+:\d+$",
                "jedno kilka: wiele{more}",
            ),
            ("de", "1,234.5 of 50,000", r"^[A-Z]\S+ \d+, \d+, .*[AP]M$", "1 2 5"),
            # On the server and in the script a year is one of our calendar.
            ("th", "1,234.5 of 50,000", rf"\b{job.queued_at:%Y}\b", "1 2 5"),
        ):
            pages.page.goto(f"{pages.url}/job_state?_LOCALE_={locale}")
            row = pages.row(job.uuid)
            expect(row.locator("[part=details]")).to_contain_text(amount)
            expect(row.locator("time")).to_have_text(re.compile(time))
            boxes = pages.page.locator("tbody").get_by_role("checkbox")
            for number, text in zip((1, 2, 5), counts.split(), strict=True):
                for box in range(number):
                    boxes.nth(box).check()
                expect(pages.one("selected")).to_contain_text(text)


@pytest.mark.promise("pages-are-read-without-script")
def test_pages_are_plain_without_javascript(browser, redis_url, store):
    """Without JavaScript the pages are read, and followed by links. They say what needs
    JavaScript, and show no button that does nothing.
    """
    jobs = fill(store)
    with (
        browser.new_context(java_script_enabled=False) as context,
        Pages(context.new_page(), paged_config(redis_url)) as pages,
    ):
        page = pages.page
        page.goto(f"{pages.url}/job_state")
        note = page.locator("noscript p")
        expect(note).to_have_text("Live updates and actions need JavaScript.")
        expect(note).to_be_visible()
        expect(pages.row(jobs[1]).locator("job-state")).to_contain_text("Running")
        assert page.locator("button:visible").all_text_contents() == ["Show"]
        expect(page.get_by_role("checkbox")).to_have_count(0)
        page.get_by_label("Kind").select_option(ImportSheet.kind)
        page.get_by_role("button", name="Show").click()
        expect(page.locator("tr[data-uuid]")).to_have_count(len(jobs))
        page.get_by_role("link", name="Failed").click()
        page.locator("tbody a").first.click()
        expect(page.locator("job-state")).to_contain_text("Failed")
        expect(page.locator("button:visible")).to_have_count(0)
