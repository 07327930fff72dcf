"""Texts that try to be more than text, on the pages in Chromium."""

import json
from typing import Any

import pytest
from playwright.sync_api import expect

from pyramid_jobstate import JobError, JobState
from pyramid_jobstate.testing import put_job
from tests.browser.paged import Pages

# fmt: off
# fmt: on

#: What ends an attribute, an element, a comment or an expression, and acts then.
TEXTS = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "'><svg onload=alert(1)>",
    "</td></a><iframe srcdoc='<script>parent.alert(1)</script>'></iframe>",
    "</job-state><job-state src=//evil.example></job-state>",
    "</template><slot name=x></slot><template shadowrootmode=open><b>x</b></template>",
    "</title></noscript><base href=//evil.example/>",
    "-->]]>*/<meta http-equiv=refresh content='0;url=//evil.example'>",
    "</option></select><style>*{display:none}</style>",
    "<form name=querySelector><input name=dataset autofocus onfocus=alert(1)>",
    "<img name=currentScript><img name=body>",
    "<b data-metric=x data-jobstate=page data-page='{}' data-act=delete>x</b>",
    '" onmouseover=alert(1) style=position:fixed x=',
    "javascript:alert(1)//",
    "{{ 7 * 7 }}{{ request.registry.settings }}${7*7}#{7*7}*{7*7}[[7*7]]",
    "{number}{done}{time}{reason}{__proto__}",
    "__proto__",
    "constructor",
    '"});alert(1);({"a":"',
    "&lt;script&gt;alert(1)&lt;/script&gt;&#60;img src=x onerror=alert(1)&#62;",
    "\u202eשלום <b>x</b> مرحبا zero\u200bwidth\u2060\u00ad ñ́̀̂ \U0001f3c3\u200d",
    "a\nb\tc $& $1 $' $` %s %(x)s %d",
)


class Hostile(JobState):
    """A kind of job whose title, error and parameters are up to others."""

    kind = "<script>alert('kind')</script>\"'>"
    public_params = ("text",)

    @property
    def title(self) -> str:
        return str(self.get_job_param("text"))

    def public_error(self, exception_type: str, message: str) -> str:
        return message


#: Each text of a list: the title in its link and its tooltip, the owner, what the
#: element shows.
LISTED = """rows => rows.map((row) => {
  const root = row.querySelector("job-state").shadowRoot;
  const text = (selector, from = row) => from.querySelector(selector).textContent;
  return [
    text("th a"),
    row.querySelector("th a").title,
    text(".jobstate-whose"),
    text("[part=title]", root),
    text("[part=message]", root) || text("[part=notice]", root),
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


def check_harm(pages: Pages, rows: int) -> None:
    """Check that a page has the elements that it should, and asked nobody else."""
    assert pages.page.locator("script").count() == 2
    assert pages.page.locator("tr[data-uuid]").count() == rows
    foreign = "img, iframe, object, base, meta[http-equiv], style, math"
    assert pages.page.locator(foreign).count() == 0
    assert [url for url in pages.asked if not url.startswith(pages.url)] == []
    assert pages.page.locator("[data-jobstate=page]").count() == 1


@pytest.mark.promise("texts-are-inert")
def test_hostile_texts_stay_text(pages, store):
    """Titles, owners, messages, errors, kinds, parameters, metrics and log lines are
    text on both pages, and do nothing. So is what a page says after an act, whoever has
    left it to be said.
    """
    pages.page.on("dialog", lambda dialog: pages.problems.append(str(dialog)))
    for number, text in enumerate(TEXTS):
        what = {"error": JobError(text, text)} if number % 4 else {"message": text}
        status = "error" if number % 4 else "working"
        put_job(store, Hostile, status, owner=text, params={"text": text}, **what)
    pages.visit(f"/job_state/?all=1&limit={len(TEXTS)}")
    shown = pages.page.locator("tr[data-uuid]").evaluate_all(LISTED)
    listed = [[text, text, text, seen(text), seen(text)] for text in TEXTS]
    assert sorted(shown) == sorted(listed)
    pages.one("all").check()
    check_harm(pages, len(TEXTS))
    expect(pages.page.locator("option").nth(1)).to_have_text(Hostile.kind)
    pages.page.evaluate(
        "(text) => sessionStorage.setItem('job-state-pages', text)",
        json.dumps({"text": "".join(TEXTS), "time": 1e15}),
    )
    pages.page.reload()
    assert pages.one("said").text_content() == "".join(TEXTS)
    check_harm(pages, len(TEXTS))
    texts = {text: text for text in TEXTS}
    given: Any = {"params": {"text": TEXTS[0], **texts}, "metrics": texts}
    job = put_job(store, Hostile, owner=TEXTS[0], log=TEXTS[-20:], **given).uuid
    pages.visit(f"/job_state/{job}")
    page = pages.page.evaluate(SHOWN)
    assert page["title"] == page["owner"] == [TEXTS[0]]
    metrics = dict(zip(page["names"], page["values"], strict=True))
    assert metrics == {text: seen(text) for text in TEXTS}
    assert page["log"] == [seen(text) for text in TEXTS[-20:]]
    assert set(page["params"]) == set(TEXTS)
    check_harm(pages, 0)
