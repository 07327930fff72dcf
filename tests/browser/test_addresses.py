"""Where the script asks for jobs and for its style sheet, whatever is in the page, and
how it is called, in a real Chromium.
"""

from __future__ import annotations

from urllib.parse import urlsplit

from tests.browser.polling import Polling
from tests.pollserver import STATIC, Answer, PollServer, state, success, working

SOURCE = (STATIC / "job-state.js").read_text("utf-8")

#: How pages put an element, which fetches its style sheet.
APPEND = "document.body.append(new JobState.JobStateElement())"


def tag(attributes: str) -> str:
    return f"<script {attributes}></script>"


# Where jobs are


def test_base_url_says_where_jobs_are(polling: Polling) -> None:
    """The script's tag has the base URL of bare uuids, which the option overrides. A
    URL is asked for as it is, with its slash and query, relative to the page.
    """
    polling.open("/page?base=/app/jobs/")
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
    "/app/jobs/static/job-state.js": "/app/jobs",
    "/app/jobs/static/job-state.js?v=1": "/app/jobs",
    "/app/jobs/static/job-state-3f2a91.js#top": "/app/jobs",
    "/app/jobs/static/job-state.min.js?v=/static/": "/app/jobs",
    # A bundle, and copies elsewhere
    "/app/static/bundle.js": "/job_state",
    "/static/job-state.js": "/job_state",
    "/app/job-state.js": "/job_state",
}


def test_jobs_are_looked_up_where_the_script_lies(polling: Polling) -> None:
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
    "src=/job-state.js#top": "/job-state.css",
    "src=/job-state.js?x=a data-styles=/s/b.css": "/s/b.css",
    "src=/job-state.js data-styles=s/b.css": "/app/s/b.css",
    "src=/job-state.js data-styles": "/job-state.css",
    "src=/job-state.js data-styles=http://": "/job-state.css",
}


def test_address_of_the_style_sheet(polling: Polling) -> None:
    """The sheet has the script's query, or is the one that data-styles names, relative
    to the page's base.
    """
    for attributes, sheet in SHEETS.items():
        path = urlsplit(sheet).path[1:]
        polling.server.answer(path, Answer(body=""), below="")
        before = len(polling.server.requests(below=f"/{path}"))
        polling.open_with("<base href=/app/>", tag(attributes))
        polling.page.evaluate(APPEND)
        polling.wait_for_more(f"/{path}", before)
        asked = polling.server.requests(below=f"/{path}")[-1].path
        assert asked == sheet, attributes


def test_script_without_an_address_uses_the_usual_ones(polling: Polling) -> None:
    """An inline script, and one from a blob: URL, finds jobs and styles. It defines one
    name.
    """
    polling.server.answer("static/job-state.css", Answer())
    polling.server.answer("job", success())
    load = """(source) => new Promise((resolve) => {
        const script = document.createElement("script");
        script.src = URL.createObjectURL(new Blob([source]));
        script.onload = resolve;
        document.head.append(script);
    })"""
    for count in range(2):
        polling.open("/empty")
        page = polling.page
        before = set(page.evaluate("Object.getOwnPropertyNames(window)"))
        if count:
            page.evaluate(load, SOURCE)
        else:
            page.add_script_tag(content=SOURCE)
        after = set(page.evaluate("Object.getOwnPropertyNames(window)"))
        assert after - before == {"JobState"}
        page.evaluate(APPEND)
        polling.wait_for_more("/job_state/static/job-state.css", count)
        outcome = page.evaluate("JobState.startPolling({ jobUuid: 'job' }).done")
        assert outcome["outcome"] == "success"


# Other sites


def test_another_origin_is_asked_if_allowed(
    polling: Polling, elsewhere: PollServer
) -> None:
    """With crossOrigin, the job may be elsewhere, and cookies are sent there. A script
    from elsewhere looks for jobs on the page's own site.
    """
    headers = {
        "Access-Control-Allow-Origin": polling.server.url,
        "Access-Control-Allow-Credentials": "true",
    }
    elsewhere.answer("job", Answer(body=state("success"), headers=headers))
    polling.page.context.add_cookies(
        [{"name": "session", "value": "alice", "url": elsewhere.url}]
    )
    polling.open("/page?connect=" + elsewhere.url)
    polling.follow("job", baseUrl=f"{elsewhere.url}/job_state", crossOrigin=True)
    assert polling.wait("job", "done")["outcome"] == "success"
    assert elsewhere.seen("job")[0].headers["cookie"] == "session=alice"

    polling.server.answer("job", success())
    polling.page.goto(polling.server.url + "/empty")
    polling.page.add_script_tag(url=elsewhere.url + "/app/static/job-state.js")
    done = polling.page.evaluate("JobState.startPolling({ jobUuid: 'job' }).done")
    assert done["outcome"] == "success"
    assert len(polling.server.seen("job")) == len(elsewhere.seen("job")) == 1


def test_base_of_another_site_is_not_followed(
    polling: Polling, elsewhere: PollServer
) -> None:
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
    assert elsewhere.requests() == elsewhere.requests("POST") == []

    polling.server.answer("job", success(), below="/app/jobs")
    polling.open_with("<base href=/app/>", tag("src=/job-state.js"))
    polling.follow("job", jobUuid=None, url="jobs/job")
    polling.wait("job", "success")


def test_base_after_the_script_moves_no_sheet(
    polling: Polling, elsewhere: PollServer
) -> None:
    """A <base> of another site after a deferred script does not get any request."""
    sheets = {"": "/app/static", "data-styles=static/job-state.css": "/static"}
    for styles, below in sheets.items():
        for server in (elsewhere, polling.server):
            server.answer("job-state.css", Answer(), below=below)
            server.answer("job", success(), below="/app")
        script = tag(f"defer src=/app/static/job-state.js {styles}")
        polling.open_with("", f"{script}<base href={elsewhere.url}/>")
        polling.page.evaluate(APPEND)
        polling.wait_for_more(f"{below}/job-state.css", 0)
        polling.follow("job")
        polling.wait("job", "success")
    assert elsewhere.requests(below="/") == []


# Markup injected before the script

FORGED = (
    "<img name=currentScript {0}>" * 2,
    "<form name=currentScript {0}></form>",
    "<iframe name=currentScript {0}></iframe>",
    "<object id=currentScript {0}></object>",
)


def test_only_a_script_says_where_jobs_are(polling: Polling) -> None:
    """An element named currentScript changes neither the base URL nor the styles, nor
    does an SVG script.
    """
    script = tag("src=/app/static/job-state.js data-base-url=/app")
    attributes = "data-base-url=/forged data-styles=/forged/x.css"
    attributes += f" src={polling.server.url}/forged/x"
    polling.server.answer("job", success(), below="/app")
    polling.server.answer("static/job-state.css", Answer(body=""), below="/app")
    for count, forged in enumerate(FORGED):
        polling.open_with(forged.format(attributes), script)
        polling.page.evaluate(APPEND)
        polling.wait_for_more("/app/static", count)
        polling.follow("job")
        polling.wait("job", "success")
    svg = "<script href=/job-state.js data-base-url=/forged></script>"
    polling.open_with("", f"<svg>{svg}</svg>")
    polling.follow("job", success())
    polling.wait("job", "success")
    asked = {request.path for request in polling.server.requests(below="/forged")}
    assert asked <= {"/forged/x"}  # by the forged element itself


#: What the script uses of the page.
NAMES = (
    *("hidden", "visibilityState", "baseURI", "location", "body", "self", "origin"),
    *("addEventListener", "removeEventListener", "fetch", "JobState", "setTimeout"),
    *("HTMLScriptElement", "customElements", "EventSource", "performance", "open"),
)


def test_poller_minds_no_element_of_a_name(timed: Polling) -> None:
    """Elements named after what the script uses do not shadow it, nor do they keep a
    hidden tab awake.
    """
    timed.server.offers = True
    markups = "<img name={0}>", "<iframe name={0}></iframe>", "<a id={0}></a>" * 2
    for count, markup in enumerate(markups, 1):
        timed.open_with("".join(markup.format(name) for name in NAMES))
        # Longer than a busy browser needs to hide the tab.
        answers = working(), success()
        timed.follow("job", *answers, jobUuid=None, url="job_state/job")
        timed.wait("job", "update")
        timed.wait_for_streams(count)
        timed.hide()
        asked = timed.asked("job")
        timed.advance(60_000)
        assert timed.asked("job") == asked
        timed.hide(hidden=False)
        timed.advance(50)
        timed.wait("job", "success")


# Wrong arguments

PERIOD = "pollingPeriod must be a positive number of milliseconds"
ELSEWHERE = "is of another origin, which needs crossOrigin: true"
UNSENDABLE = "csrfHeader or csrfToken cannot be sent"
WRONG = {
    "": "an object of options is needed",
    "null": "an object of options is needed",
    "{}": "give either jobUuid or url",
    "{jobUuid: 'a', url: '/a'}": "give either jobUuid or url",
    "{jobUuid: 7}": "jobUuid must be a string",
    "{jobUuid: ''}": "jobUuid is not a uuid",
    "{jobUuid: '..'}": "jobUuid is not a uuid",
    "{jobUuid: 'a', baseUrl: 7}": "baseUrl must be a string",
    "{jobUuid: 'a', baseUrl: 'http://a.test'}": f"baseUrl {ELSEWHERE}",
    "{url: 'http://a.test/job'}": f"url {ELSEWHERE}",
    "{jobUuid: 'a', baseUrl: 'ftp://x'}": "baseUrl must be an http(s) URL",
    "{url: 'http://'}": "url must be an http(s) URL",
    "{url: 'javascript:0'}": "url must be an http(s) URL",
    "{jobUuid: 'a', pollingPeriod: 0}": PERIOD,
    "{jobUuid: 'a', pollingPeriod: '500'}": PERIOD,
    "{jobUuid: 'a', pollingPeriod: NaN}": PERIOD,
    "{jobUuid: 'a', pollingPeriod: Infinity}": PERIOD,
    "{jobUuid: 'a', update: 'x'}": "update must be a function",
    "{jobUuid: 'a', success: {}}": "success must be a function",
    "{jobUuid: 'a', error: 1}": "error must be a function",
    "{jobUuid: 'a', lost: true}": "lost must be a function",
    "{jobUuid: 'a', csrfToken: 7}": "csrfToken must be a string",
    "{jobUuid: 'a', csrfHeader: 7}": "csrfHeader must be a string",
    "{jobUuid: 'a', csrfHeader: 'X Token'}": UNSENDABLE,
    "{jobUuid: 'a', csrfHeader: 'X-Tökèn'}": UNSENDABLE,
    "{jobUuid: 'a', csrfHeader: 'X-Token\\n'}": UNSENDABLE,
    "{jobUuid: 'a', csrfHeader: 'Cookie'}": UNSENDABLE,
    "{jobUuid: 'a', csrfHeader: 'sec-token'}": UNSENDABLE,
    "{jobUuid: 'a', csrfToken: 'a\\nb'}": UNSENDABLE,
    "{jobUuid: 'a', csrfToken: '…'}": UNSENDABLE,
}

CATCH = """() => {{
    try {{ JobState.startPolling({}); }}
    catch (error) {{ return error instanceof TypeError && error.message; }}
}}"""


def test_wrong_arguments_are_type_errors(polling: Polling) -> None:
    """A wrong argument raises a TypeError that names the call, and so does a base URL
    of another origin in the tag.
    """
    found = {o: polling.page.evaluate(CATCH.format(o)) for o in WRONG}
    assert found == {o: f"JobState.startPolling: {w}" for o, w in WRONG.items()}
    assert polling.server.seen("a") == []
    polling.open("/page?base=http://a.test/jobs")
    message = polling.page.evaluate(CATCH.format("{ jobUuid: 'job' }"))
    assert message == f"JobState.startPolling: baseUrl {ELSEWHERE}"
