"""Where the script asks for jobs and for its style sheet, whatever is in the page, and
how it is called, in a real Chromium.
"""

import itertools
from urllib.parse import urlsplit

from tests.pollserver import STATIC, Answer, success, working
from tests.support import wait_for

SOURCE = (STATIC / "job-state.js").read_text("utf-8")

#: How pages put an element, which fetches its style sheet.
APPEND = "document.body.append(new JobState.JobStateElement())"


def tag(attributes: str) -> str:
    return f"<script {attributes}></script>"


# Where jobs are


def test_base_url_says_where_jobs_are(polling):
    """The script's tag has the base URL of bare uuids, which the option overrides. A
    URL is asked for as it is, with its slash and query, relative to the page.
    """
    polling.open_with("", tag("src=/job-state.js data-base-url=/app/jobs/"))
    polling.server.answer("job", success(), below="/app/jobs")
    polling.follow("job")
    polling.follow("other", success(), baseUrl="/other")
    polling.server.answer("", success(), below="/jobs/job")
    polling.follow("own", jobUuid=None, url="jobs/job/?of=alice")
    polling.wait_for_all("success", 3)
    [request] = polling.server.seen("", below="/jobs/job")
    assert request.path == "/jobs/job/?of=alice"


#: The place of the script, and where it looks for jobs.
SCRIPTS = {
    "/app/jobs/static/job-state.js?v=1": "/app/jobs",
    "/app/jobs/static/job-state-3f2a91.js#top": "/app/jobs",
    # A bundle, and copies elsewhere
    "/app/static/bundle.js": "/job_state",
    "/static/job-state.js": "/job_state",
    "/app/job-state.js": "/job_state",
}


def test_jobs_are_looked_up_where_the_script_lies(polling):
    """Without data-base-url, the script's own URL says where the jobs are."""
    for path, below in SCRIPTS.items():
        polling.server.pages[urlsplit(path).path] = SOURCE
        polling.server.answer("job", success(), below=below)
        before = len(polling.server.seen("job", below=below))
        polling.open_with("", tag(f"src={path}"))
        polling.follow("job")
        polling.wait("job", "success")
        assert len(polling.server.seen("job", below=below)) == before + 1, path


SHEETS = {
    "src=/job-state.js?x=a&y": "/job-state.css?x=a&y",
    "src=/job-state.js?x=a data-styles=/s/b.css": "/s/b.css",
    "src=/job-state.js data-styles=s/b.css": "/app/s/b.css",
    "src=/job-state.js data-styles=http://": "/job-state.css",
}


def test_address_of_the_style_sheet(polling):
    """It has the script's query, or is the one of data-styles, relative to the base."""
    for attributes, sheet in SHEETS.items():
        path = urlsplit(sheet).path[1:]
        polling.server.answer(path, Answer(body=""), below="")
        before = len(polling.server.requests(below=f"/{path}"))
        polling.open_with("<base href=/app/>", tag(attributes))
        polling.page.evaluate(APPEND)
        polling.wait_for_more(f"/{path}", before)
        asked = polling.server.requests(below=f"/{path}")[-1].path
        assert asked == sheet, attributes


def test_script_without_an_address_uses_the_usual_ones(polling):
    """An inline script finds jobs and styles. It defines one name."""
    polling.server.answer("static/job-state.css", Answer())
    polling.server.answer("job", success())
    polling.open("/empty")
    names = "Object.getOwnPropertyNames(window)"
    before = set(polling.page.evaluate(names))
    polling.page.add_script_tag(content=SOURCE)
    assert set(polling.page.evaluate(names)) - before == {"JobState"}
    polling.page.evaluate(APPEND)
    polling.wait_for_more("/job_state/static/job-state.css", 0)
    done = polling.page.evaluate("JobState.startPolling({ jobUuid: 'job' }).done")
    assert done["outcome"] == "success"


#: Loads a module, and says whether it exports what the page has already.
IMPORT = """async (url) => {
    const module = await import(url);
    const found = [module.default, module.follow, module.JobStateElement];
    const { follow } = JobState;
    const expected = [JobState, follow, customElements.get("job-state")];
    return found.every((value, i) => value === expected[i]);
}"""


def test_script_and_module_share_what_a_page_has(polling):
    """A page may load both, in any order and more than once. The first one defines the
    element and the global, which the others use.
    """
    script, module = tag("src=/job-state.js"), tag("type=module src=/job-state.mjs?a")
    deferred = tag("defer src=/job-state.js")
    for first, other in (script, module), (module, deferred), (module, module):
        polling.open_with("", first + other)
        for query in "", "?a", "?b":
            url = f"{polling.server.url}/job-state.mjs{query}"
            assert polling.page.evaluate(IMPORT, url), (first, other)


# Other sites


def test_script_from_elsewhere_asks_the_site_of_the_page(polling, elsewhere):
    """The styles of a script or module come from where it lies, and its jobs from the
    page's own site.
    """
    below = "/app/static"
    shared = {"Access-Control-Allow-Origin": "*"}
    javascript = {**shared, "Content-Type": "text/javascript"}
    module = (STATIC / "job-state.mjs").read_text("utf-8")
    elsewhere.answer("job-state.mjs", Answer(200, module, javascript), below=below)
    elsewhere.answer("job-state.css", Answer(headers=shared), below=below)
    polling.server.answer("job", success())
    for name, kind in ("js", "text/javascript"), ("mjs", "module"):
        polling.page.goto(polling.server.url + "/empty")
        script = f"{elsewhere.url}{below}/job-state.{name}?{name}"
        polling.page.add_script_tag(url=script, type=kind)
        done = polling.page.evaluate("JobState.follow({ jobUuid: 'job' }).done")
        assert done["outcome"] == "success"
        polling.page.evaluate(APPEND)
    sheet = f"{below}/job-state.css"
    wait_for(lambda: len(elsewhere.requests(below=sheet)) == 2)
    asked = {request.path for request in elsewhere.requests(below=sheet)}
    assert asked == {f"{sheet}?js", f"{sheet}?mjs"}
    assert len(polling.server.seen("job")) == 2


def test_base_of_another_site_is_not_followed(polling, elsewhere):
    """With <base> pointing elsewhere, jobs and tokens still go to the page's site, also
    if another origin were allowed. That of the same site is followed.
    """
    elsewhere.answer("job", success())
    polling.server.answer("job/cancel", Answer(202, "{}"), method="POST")
    script = tag(f"src={polling.server.url}/job-state.js")
    polling.open_with(f"<base href={elsewhere.url}/>", script)
    for crossing in False, True:
        name = f"job-{crossing}"
        options = {"crossOrigin": crossing, "csrfToken": "secret"}
        polling.follow(name, working(), jobUuid="job", **options)
        polling.wait(name, "update")
        assert polling.cancel(name) is True
    # A deferred script comes before a <base> that stands below it.
    polling.server.answer("job-state.css", Answer(), below="/app/static")
    script = tag("defer src=/app/static/job-state.js")
    polling.open_with("", f"{script}<base href={elsewhere.url}/>")
    polling.page.evaluate(APPEND)
    polling.wait_for_more("/app/static/job-state.css", 0)
    assert elsewhere.requests(below="/") == elsewhere.requests("POST") == []
    polling.server.answer("job", success(), below="/app/jobs")
    polling.open_with("<base href=/app/>", tag("src=/job-state.js"))
    polling.follow("job", jobUuid=None, url="jobs/job")
    polling.wait("job", "success")


# Markup injected before the script

FORGED = (
    "<img name=currentScript {0}>" * 2,
    "<form name=currentScript {0}></form>",
    "<iframe name=currentScript {0}></iframe>",
)


def test_nothing_but_its_own_tag_says_where_a_script_lies(polling, elsewhere):
    """Neither elements of a name nor a <base> changes the base URL or the styles. The
    tag of a module changes nothing, either.
    """
    attributes = "data-base-url=/forged data-styles=/forged/x.css"
    place = f"{polling.server.url}/app/static/job-state"
    scripts = (
        tag(f"src={place}.js data-base-url=/app"),
        tag(f"type=module src={place}.mjs {attributes}"),
    )
    forged = f"{attributes} src={polling.server.url}/forged/x"
    markups = (
        *(element.format(forged) for element in FORGED),
        f"<a name=JobState id=JobState href={elsewhere.url}></a>" * 2,
        f"<base href={elsewhere.url}/app/static/>",
    )
    polling.server.answer("job", success(), below="/app")
    polling.server.answer("static/job-state.css", Answer(), below="/app")
    for count, (script, markup) in enumerate(itertools.product(scripts, markups)):
        polling.open_with(markup, script)
        polling.page.evaluate(APPEND)
        polling.wait_for_more("/app/static", count)
        polling.follow("job")
        polling.wait("job", "success")
    asked = {request.path for request in polling.server.requests(below="/forged")}
    assert asked <= {"/forged/x"}  # by the forged element itself
    assert elsewhere.requests(below="/") == []


#: What the script uses of the page.
NAMES = (
    *("hidden", "visibilityState", "baseURI", "location", "body", "self", "origin"),
    *("addEventListener", "fetch", "JobState", "setTimeout", "documentElement"),
    *("HTMLScriptElement", "customElements", "EventSource", "performance"),
    *("createElement", "querySelectorAll", "getRootNode", "adoptedStyleSheets"),
)


def test_script_minds_no_element_of_a_name(timed):
    """Those named as what it uses neither shadow that nor keep a hidden tab awake."""
    timed.server.offers = True
    element = "<job-state id=shown src=/job_state/shown></job-state>"
    timed.server.answer("shown", success())
    for markup in "<img name={0}>", "<iframe name={0}></iframe>":
        markups = "".join(markup.format(name) for name in NAMES)
        timed.open_with(markups + element)
        # Longer than a busy browser needs to hide the tab.
        answers = working(), success()
        timed.follow("job", *answers, jobUuid=None, url="job_state/job")
        timed.wait("job", "update")
        wait_for(lambda: timed.server.open_streams)
        timed.page.wait_for_selector("job-state[state=success]")
        timed.hide()
        asked = timed.asks("job")
        timed.advance(60_000)
        assert timed.asks("job") == asked
        timed.hide(hidden=False)
        timed.advance(50)
        timed.wait("job", "success")


# Wrong arguments

PERIOD = "pollingPeriod must be a positive number of milliseconds"
ELSEWHERE = "is of another origin, which needs crossOrigin: true"
UNSENDABLE = "csrfHeader or csrfToken cannot be sent"
WRONG = {
    "": "an object of options is needed",
    "{}": "give either jobUuid or url",
    "{jobUuid: 'a', url: '/a'}": "give either jobUuid or url",
    "{jobUuid: 7}": "jobUuid must be a string",
    "{jobUuid: '..'}": "jobUuid is not a uuid",
    "{jobUuid: 'a', baseUrl: 7}": "baseUrl must be a string",
    "{jobUuid: 'a', baseUrl: 'http://a.test'}": f"baseUrl {ELSEWHERE}",
    "{url: 'http://a.test/job'}": f"url {ELSEWHERE}",
    "{url: 'http://'}": "url must be an http(s) URL",
    "{url: 'javascript:0'}": "url must be an http(s) URL",
    "{jobUuid: 'a', pollingPeriod: 0}": PERIOD,
    "{jobUuid: 'a', pollingPeriod: '500'}": PERIOD,
    "{jobUuid: 'a', pollingPeriod: Infinity}": PERIOD,
    "{jobUuid: 'a', update: 'x'}": "update must be a function",
    "{jobUuid: 'a', csrfToken: 7}": "csrfToken must be a string",
    "{jobUuid: 'a', csrfHeader: 'X Token'}": UNSENDABLE,
    "{jobUuid: 'a', csrfHeader: 'Cookie'}": UNSENDABLE,
    "{jobUuid: 'a', csrfToken: 'a\\nb'}": UNSENDABLE,
}


CATCH = """() => {{
    try {{ JobState.follow({}); }}
    catch (error) {{ return error instanceof TypeError && error.message; }}
}}"""


def test_wrong_arguments_are_type_errors(polling):
    """They name the call. A base URL of another origin in the tag raises one, too."""
    found = {o: polling.page.evaluate(CATCH.format(o)) for o in WRONG}
    assert found == {o: f"JobState.follow: {w}" for o, w in WRONG.items()}
    assert polling.server.seen("a") == []
    polling.open_with("", tag("src=/job-state.js data-base-url=http://a.test/jobs"))
    message = polling.page.evaluate(CATCH.format("{ jobUuid: 'job' }"))
    assert message == f"JobState.follow: baseUrl {ELSEWHERE}"
