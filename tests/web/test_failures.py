"""Failed jobs that are grouped by why they failed: the JSON, and the page."""

import time
from typing import Any

import pytest
from webtest import TestApp

from pyramid_jobstate import JobError, JobState, JobStore, Page
from tests.jobs import RunMarathon
from tests.store.jobs import Diary
from tests.web.operating import KEEPER, OPERATOR, Letter, LockedDiary, put
from tests.web.paging import put_batch, query_of
from tests.webapp import ADMIN, get

PATH = "/job_state/?status=error&group=error"


class Sheet(JobState):
    """A kind of job that tells its viewers what was wrong, but not who did it."""

    def public_error(self, exception_type: str, message: str) -> str:
        return message.partition(" by ")[0]


def fail(
    store: JobStore, *texts: str, type_: str | None = "ValueError", **options: Any
) -> list[str]:
    """Put a job that failed with each text, and return their uuids, newest first."""
    usual = {"cls": Sheet, "status": "error", **options}
    errors = [JobError(type_, text) for text in texts]
    return [put(store, "alice", error=error, **usual)[0] for error in errors][::-1]


def groups(app: TestApp, query: str = "&all=1", user: str = OPERATOR) -> list[Any]:
    """Return the groups that a user's request gets."""
    answer = get(app, PATH + query, user).json
    assert answer["more"] is False
    return list(answer["groups"])


def reasons(app: TestApp, query: str = "&all=1", user: str = OPERATOR) -> list[Any]:
    """Return the type, the text and the number of jobs of each group."""
    found = groups(app, query, user)
    return [(each["type"], each["text"], each["count"]) for each in found]


@pytest.mark.promise("failures-are-grouped")
def test_equal_failures_are_counted_together(paged, store):
    """Groups have the class, the common text and their jobs, the newest first."""
    first = fail(store, "Row 3 lacks a date")
    fail(store, "Row 4 lacks a name", "Row 4 lacks a date")
    fail(store, "Row 4 lacks a date", type_="myapp.BadRow")
    last = fail(store, "Row 12 lacks a date", "Row 5 lacks a date")
    put(store, "alice", cls=Sheet, status="success")
    row, name = "Row … lacks a date", "Row … lacks a name"
    assert reasons(paged) == [
        ("ValueError", row, 4),
        ("myapp.BadRow", row, 1),
        ("ValueError", name, 1),
    ]
    group = groups(paged)[0]
    assert (group["uuids"][:2], group["uuids"][3:]) == (last, first)
    for name, (uuid, *_) in ("newest", last), ("oldest", first):
        state = get(paged, f"/job_state/{uuid}", OPERATOR).json
        assert group[name] == state["job"]["finished_at"]


#: Texts, and what equal ones have in common.
FORMS = {
    "Line 17: bib 1,204.5 at 9:30:01": "Line …: bib … at …",
    "'utf-8' can't decode byte 0xfF": "… can't decode byte …",
    "I can't open \"a 'b'\" or `c` or “d ‘e’”": "I can't open … or … or …",
    "the dogs' bowl, the cat's bowl": "the dogs' bowl, the cat's bowl",
    "'it can't be' b'\\xff'": "… …",
    "«Zeile» „drei“, ‘it can’t be’ of the dogs’": "… …, … of the dogs’",
    "»drei« ‚Das war’s‘ „vier” und ‘fünf": "… … … und ‘fünf",
    "<Row object at 0x7f3aBC>": "<Row object at …>",
    "of 4f6c0000-aaaa-4aaa-8aaa-aaaaaaaaaaaf.": "of ….",
    "an open 'quote and \"another": "an open 'quote and \"another",
    "Row … \n\t lacks\u2003٤ ": "Row … lacks …",
    "": "",
    "no " * 166 + "no": "no " * 166 + "no",
    "no " * 166 + "now": "no " * 166 + "n…",
}


def test_digits_and_quoted_parts_make_no_difference(paged, store):
    """They are taken out of the text, and its white space and length are reduced."""
    for text, form in FORMS.items():
        store.client.flushdb()
        fail(store, text)
        assert reasons(paged) == [("ValueError", form, 1)], text


def test_hostile_texts_take_no_time(paged, store):
    """The longest texts that a class may return are grouped in linear time."""
    each = [*("'", " 'a", " b'", "'a", " b'a", "'a'b", '"', "“", "`", "1.", "1", "0x")]
    each += ["deadbeef-abcd-", *"„«»", " ‘a", "‘a’b", "’a", " ‚a", "‚a’b"]
    for part in [*each, *(f" '{part}" for part in each)]:
        fail(store, part * (64 * 1024 // len(part.encode())))
    begun = time.process_time()
    reasons(paged)
    assert time.process_time() - begun < 3


def test_exceptions_are_for_viewers_who_may_read_them(paged, store):
    """Others read the public reason. Jobs that nobody may view count for nobody."""
    fail(store, "Row 3 is wrong by Bob", "Row 4 is wrong by Ann")
    for cls in Letter, LockedDiary:
        fail(store, "Row 3 is wrong by Bob", cls=cls)
    fail(store, "The job could not be sent.", type_=None)
    fail(store, "")
    unsent, public = (
        (None, "The job could not be sent.", 1),
        (None, "Row … is wrong", 2),
    )
    bob, ann = "Row … is wrong by Bob", "Row … is wrong by Ann"
    own = [(None, "", 1), unsent, ("ValueError", bob, 1), public]
    assert reasons(paged, "", "alice") == own
    assert reasons(paged, user=ADMIN)[2:] == [(None, "The job failed.", 2), public]
    all_ = [
        ("ValueError", "", 1),
        unsent,
        ("ValueError", bob, 3),
        ("ValueError", ann, 1),
    ]
    assert reasons(paged) == all_
    assert reasons(paged, "", KEEPER) == []


def test_groups_are_those_of_the_list(paged, store):
    """They have the jobs that the list has with the same parameters."""
    fail(store, "Row 3")
    fail(store, "Row 3", cls=Diary)
    put(store, "bob", cls=Sheet, status="error")
    put_batch(store, "error", "error", "success", owner="carol")
    batch = (None, "Some of its jobs failed.", 1)
    row, wrong = ("ValueError", "Row …"), ("ValueError", "wrong")
    assert reasons(paged) == [batch, (*wrong, 1), (*row, 2)]
    assert reasons(paged, "&owner=alice") == [(*row, 2)]
    assert reasons(paged, "&owner=alice&kind=Diary") == [(*row, 1)]
    # The members stand for their batch.
    assert reasons(paged, "&owner=carol&members=1") == [(*wrong, 2)]
    for query in "&all=1", "&owner=bob":
        assert get(paged, PATH + query, "alice").status_code == 403
    assert groups(paged, "&_LOCALE_=de", "nobody") == []


def test_only_the_newest_are_examined(paged, store, visit, monkeypatch):
    """The newest thousand are, and the answer says that older ones are not."""
    fail(store, *["Row 3"] * 3)
    two = store.list(limit=2)
    asked = []

    def list_(*args: Any, **options: Any) -> Page:
        asked.append(args[-2:])
        return two

    monkeypatch.setattr(JobStore, "list", list_)
    answer = get(paged, f"{PATH}&all=1", OPERATOR).json
    assert answer["more"] is True
    assert asked == [(200, None), *[(200, two.cursor)] * 4]
    note = "Older failed jobs are not counted."
    assert visit(PATH).texts("table + .jobstate-note") == [note]


# The page


def test_page_has_a_row_for_each_group(store, visit):
    """A row says how many jobs failed, why and when, and leads to the newest one."""
    page = visit(PATH)
    assert page.texts(".jobstate-none") == ["No jobs."] and not page.has("table")
    fail(store, *["Row 7 <b>lacks</b> a date"] * 3)
    (last,) = fail(store, "", type_="myapp.BadRow")
    put(store, "bob", cls=Diary, status="error")
    page = visit(f"{PATH}&owner=alice&kind=class:Sheet&_LOCALE_=en")
    row = "ValueError: Row … <b>lacks</b> a date"
    assert page.texts("tbody th") == ["myapp.BadRow", row]
    assert page.texts("tbody .jobstate-number") == ["1", "3"]
    assert len(page.all("tbody .jobstate-when time")) == 3
    assert page.texts(".jobstate-owner") == ["Kind: class:Sheet", "Owner: alice"]
    (link, _) = page.all("tbody a")
    assert link["href"] == f"http://localhost/job_state/{last}/"
    back = {"kind": "class:Sheet", "owner": "alice", "status": "error"}
    assert query_of(page.link("Failed jobs")) == {**back, "_LOCALE_": "en"}
    # Those who may not read the exception read that a job failed.
    assert visit(PATH, "alice").texts("tbody th")[0] == "Failed"


def test_failed_jobs_lead_to_their_groups(store, visit):
    """The list of failed jobs leads to their groups, in which members count."""
    batch, _ = put_batch(store, "error")
    failed = visit("/job_state?owner=alice&status=error&limit=5&_LOCALE_=en")
    assert failed.uuids == [batch]
    link = failed.link("Group by reason")
    wanted = {"owner": "alice", "status": "error", "group": "error", "members": "1"}
    assert query_of(link) == {**wanted, "_LOCALE_": "en"}
    reasons = visit(link.removeprefix("http://localhost"))
    assert reasons.texts("tbody th") == ["ValueError: wrong"]
    for query in "owner=alice", "owner=alice&status=success", "owner=bob&status=error":
        assert not visit(f"/job_state?{query}").has(".jobstate-by-reason")


@pytest.mark.promise("failures-are-grouped")
def test_group_is_run_again(store, visit):
    """Its button has the URLs of those of its jobs that the viewer may run again."""
    mine = fail(store, "Row 3", "Row 4", cls=Letter)
    put(store, "alice", cls=RunMarathon, status="error", error=JobError(None, "Row 3"))
    put_batch(store, "error", owner="alice")
    both = visit(PATH)
    assert both.texts("tbody button") == ["Run 1 job again", "Run 2 jobs again"]
    assert [len(urls) for urls in both.data["groups"]] == [0, 1, 2]
    page = visit(PATH, "alice")
    (button,) = page.all("tbody button")
    assert button.get_text() == "Run 2 jobs again"
    urls = page.data["groups"][int(str(button["data-group"]))]
    assert urls == [f"http://localhost/job_state/{uuid}/" for uuid in mine]


class Clockless(JobState):
    """A kind of job whose code fails."""

    @property
    def finished_at(self) -> Any:
        raise LookupError("no clock")


def test_job_whose_code_fails_leaves_the_others(paged, store):
    """It is missing from the groups."""
    fail(store, "Row 3", "Row 4")
    fail(store, "Row 5", cls=Clockless)
    assert reasons(paged) == [("ValueError", "Row …", 2)]
