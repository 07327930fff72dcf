"""Texts that try to be more than text, on the pages in Chromium."""

from __future__ import annotations

import itertools
import json

import pytest
from playwright.sync_api import expect

from pyramid_jobstate import JobError, JobState, JobStore
from pyramid_jobstate.testing import put_job
from tests.browser.paged import Pages
from tests.web.operating import Marathons

# fmt: off
#: What ends an attribute, an element, a comment, a script, or an expression.
OPENERS = (
    "", "\"", "'", "`", "\">", "'>", "/>", "-->", "]]>", "*/", "</td>", "</a>",
    "</job-state>", "</template>", "</title>", "</textarea>", "</noscript>",
    "</script>", "</style>", "</svg>", "</dialog>", "</option></select>", "}}", "%}",
    "${", "\u2028", "\u202e", "\ufeff", "&quot;&gt;", "&#34;&#62;", "\\u003c\\u002f",
    "%22%3E", "\U0001f3c3",
)

#: What acts once it is out.
PAYLOADS = (
    "<script>alert(1)</script>", "<script src=/job_state/static/x.js></script>",
    "<img src=x onerror=alert(1)>", "<svg onload=alert(1)>",
    "<svg><animate onbegin=alert(1) attributeName=x dur=1s>",
    "<svg><script>alert(1)</script></svg>",
    "<math><mtext><style><img src=x onerror=alert(1)></style></mtext></math>",
    "<iframe srcdoc='<script>parent.alert(1)</script>'></iframe>",
    "<iframe src=javascript:alert(1)></iframe>",
    "<object data=data:text/html,x></object>", "<embed src=//evil.example>",
    "<base href=//evil.example/>", "<link rel=stylesheet href=//evil.example/x.css>",
    "<meta http-equiv=refresh content='0;url=//evil.example'>",
    "<style>*{display:none}</style>", "<form action=//evil.example><button>x",
    "<form name=querySelector><input name=dataset>",
    "<img name=currentScript><img name=body>", "<a href=javascript:alert(1)>x</a>",
    "<details open ontoggle=alert(1)>", "<input autofocus onfocus=alert(1)>",
    "<video><source onerror=alert(1)>", "<body onload=alert(1)>",
    "<table><tr><td background=//evil.example>",
    "<job-state src=//evil.example></job-state>",
    "<slot name=x></slot><template shadowrootmode=open><b>x</b></template>",
    "<b data-metric=x data-jobstate=page data-page='{}' data-act=delete>x</b>",
    "<noscript><p title='</noscript><img src=x onerror=alert(1)>'>",
    "<!--<img src='--><img src=x onerror=alert(1)//'>",
    "<![CDATA[<img src=x onerror=alert(1)>]]>",
    "<?xml version='1.0'?><x xmlns='http://www.w3.org/1999/xhtml'/>",
    " onmouseover=alert(1) style=position:fixed x=",
    " autofocus onfocus=alert(1) tabindex=1 x=", "javascript:alert(1)//",
    "data:text/html,<script>alert(1)</script>",
    "{{ 7 * 7 }}{{ request.registry.settings }}",
    "{% for x in [1] %}x{% endfor %}{% include 'layout.jinja2' %}",
    "{# x #}<%= 7*7 %><% import os %>", "${7*7}#{7*7}*{7*7}[[7*7]]",
    "{number}{done}{time}{reason}{__proto__}", "__proto__", "constructor", "toString",
    "hasOwnProperty", "\"});alert(1);({\"a\":\"", "'+alert(1)+'", "\\\"+alert(1)+\\\"",
    "\\x3cscript\\x3ealert(1)\\x3c/script\\x3e",
    "&lt;script&gt;alert(1)&lt;/script&gt;", "&#60;img src=x onerror=alert(1)&#62;",
    "&amp;lt;b&amp;gt; &nbsp; &copy; &notin", "%3Cscript%3Ealert(1)%3C/script%3E",
    "?a=1&b=2#<c>", "../../../../etc/passwd", "//evil.example/%2e%2e",
    "שלום <b>x</b> مرحبا", "zero\u200bwidth\u2060\u00ad and combining ñ́̀̂",
    "\U0001f3c3\u200d\u2640\ufe0f \U0001f1e9\U0001f1ea", "a\nb\tc", "$& $1 $' $`",
    "%s %(x)s %d %n", "NaN Infinity null undefined true", "' OR 1=1 --",
    "=cmd|' /C calc'!A0", "<<script>alert(1)//<</script>",
    "<ScRiPt >alert(1)</ScRiPt >", "<img\tsrc=x\nonerror=alert(1)>",
)
# fmt: on

TEXTS = [a + b for a, b in itertools.product(OPENERS, PAYLOADS)]

#: Each opener and each payload once or more.
SAMPLE = [OPENERS[n % len(OPENERS)] + payload for n, payload in enumerate(PAYLOADS)]


class Hostile(JobState):
    """A kind of job whose title, error and parameters are up to others."""

    kind = "<script>alert('kind')</script>\"'>"
    public_params = ("text",)

    @property
    def title(self) -> str:
        return str(self.get_job_param("text"))

    def public_error(self, exception_type: str, message: str) -> str:
        return message


#: Each text of a list: the title in its link and its tooltip, the owner, the message.
LISTED = """rows => rows.map((row) => {
  const root = row.querySelector("job-state").shadowRoot;
  const text = (selector, from = row) => from.querySelector(selector).textContent;
  return [
    text("th a"),
    row.querySelector("th a").title,
    text(".jobstate-whose"),
    text("[part=title]", root),
    text("[part=message]", root),
  ];
})"""

#: Each text of a job.
SHOWN = """() => {
  const texts = (selector, from = document) =>
    [...from.querySelectorAll(selector)].map((node) => node.textContent);
  return {
    title: texts("h1"),
    owner: texts(".jobstate-owner span"),
    names: texts("[data-jobstate=metrics] dt"),
    values: texts("[data-jobstate=metrics] dd"),
    log: texts("li", document.getElementById("jobstate-job").shadowRoot),
    params: texts("section:not([data-jobstate]) dd"),
  };
}"""


def seen(text: str) -> str:
    """Return a text as the element shows it, without characters that reorder others."""
    return text.replace("\u202e", "")


def check_list(pages: Pages, store: JobStore, texts: list[str]) -> None:
    """Check that a list shows texts everywhere."""
    for text in reversed(texts):
        put_job(store, Hostile, owner=text, params={"text": text}, message=text)
    pages.visit(f"/job_state/?all=1&limit={len(texts)}")
    shown = pages.page.locator("tbody tr").evaluate_all(LISTED)
    for text, found in zip(texts, shown, strict=True):
        assert found == [text, text, text, seen(text), seen(text)]
    pages.one("all").check()
    check_harm(pages, len(texts))


def check_job(pages: Pages, store: JobStore, texts: list[str]) -> None:
    """Check that the page of a job shows texts everywhere."""
    job = put_job(
        store,
        Hostile,
        owner=texts[0],
        params={"text": texts[0], **{text: text for text in texts}},
        metrics={text: text for text in texts},
        log=texts[:20],
    ).uuid
    pages.visit(f"/job_state/{job}")
    shown = pages.page.evaluate(SHOWN)
    assert shown["title"] == shown["owner"] == [texts[0]]
    assert dict(zip(shown["names"], shown["values"], strict=True)) == {
        text: seen(text) for text in texts
    }
    assert shown["log"] == [seen(text) for text in texts[:20]]
    assert set(shown["params"]) == set(texts)
    check_harm(pages, 0)


def check_harm(pages: Pages, rows: int) -> None:
    """Check that a page has the elements that it should, and asked nobody else."""
    assert pages.page.locator("script").count() == 2
    assert pages.page.locator("tbody tr").count() == rows
    foreign = "img, iframe, object, embed, base, meta[http-equiv], style, math, video"
    assert pages.page.locator(foreign).count() == 0
    assert [url for url in pages.asked if not url.startswith("/")] == []
    assert pages.page.locator("[data-jobstate=page]").count() == 1


@pytest.fixture
def hostile(pages: Pages) -> Pages:
    """The application with pages, where an alert is a problem."""

    def hear(dialog: object) -> None:
        pages.problems.append(str(dialog))

    pages.page.on("dialog", hear)
    return pages


@pytest.mark.parametrize(
    "step", [5, pytest.param(1, marks=pytest.mark.system)], ids=["some", "all"]
)
def test_hostile_texts_stay_text(hostile: Pages, store: JobStore, step: int) -> None:
    """Titles, owners, messages, kinds, parameters, metrics and log lines are text on
    both pages, and do nothing. So is what a page says after an act, whoever has left it
    to be said.
    """
    texts = SAMPLE[::step]
    check_list(hostile, store, texts)
    options = hostile.page.locator("option")
    expect(options.nth(1)).to_have_text(Hostile.kind)
    hostile.page.evaluate(
        "(text) => sessionStorage.setItem('job-state-pages', text)",
        json.dumps({"text": "".join(SAMPLE), "time": 1e15}),
    )
    hostile.page.reload()
    assert hostile.one("said").text_content() == "".join(SAMPLE)
    check_harm(hostile, len(texts))
    check_job(hostile, store, texts)


@pytest.mark.system
def test_hostile_failures_stay_text(
    hostile: Pages, store: JobStore, marathons: Marathons
) -> None:
    """Exceptions, tracebacks, and public errors are text, too."""
    text = "\n".join(TEXTS[:: len(TEXTS) // 30])
    (job,) = marathons.fail("alice", kwargs={"shoes": text})
    hostile.visit(f"/job_state/{job}")
    expect(hostile.page.locator(".jobstate-exception")).to_contain_text("alert(1)")
    shown = hostile.page.locator(".jobstate-exception").text_content() or ""
    assert text[:800] in shown
    check_harm(hostile, 0)

    for text in SAMPLE[:10]:
        error = JobError(text, text)
        put_job(store, Hostile, "error", params={"text": "x"}, error=error)
    hostile.visit(f"/job_state/?all=1&status=error&kind={Hostile.kind}")
    notices = hostile.page.locator("[part=notice]")
    expect(notices).to_have_count(10)
    assert sorted(notices.all_text_contents()) == sorted(map(seen, SAMPLE[:10]))
    check_harm(hostile, 10)


@pytest.mark.long
@pytest.mark.timeout(600)
def test_all_hostile_texts_stay_text(hostile: Pages, store: JobStore) -> None:
    """The same with each opener before each payload."""
    assert len(TEXTS) > 2200
    for start in range(0, len(TEXTS), 100):
        hostile.page.goto("about:blank")
        store.client.flushall()
        check_list(hostile, store, TEXTS[start : start + 100])
        check_job(hostile, store, TEXTS[start : start + 100])
