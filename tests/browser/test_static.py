"""The script and its style sheet in real Pyramid applications and a real Chromium:
below prefixes, as a module, with CSRF checks.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page
from pyramid.csrf import get_csrf_token
from pyramid.response import Response
from pyramid.static import QueryStringConstantCacheBuster

from pyramid_jobstate import JobStore, Progress
from pyramid_jobstate.testing import put_job
from tests.browser.sites import Site, protected
from tests.jobs import RunMarathon
from tests.pollserver import STATIC
from tests.webapp import make_config, mounted_root

SCRIPT = "pyramid_jobstate:static/job-state.js"
MODULE = "pyramid_jobstate:static/job-state.mjs"


@pytest.fixture
def site(page: Page) -> Iterator[Site]:
    """A site whose page must not report errors or violate its strict policy."""
    site = Site(page)
    yield site
    site.close()
    assert site.problems == []


def tag(request: Any, attributes: str = "") -> str:
    return f'<script src="{request.static_url(SCRIPT)}" {attributes}></script>'


def element(request: Any, job_uuid: str, attributes: str = "") -> str:
    url = request.resource_url(request.job_states[job_uuid])
    return f'<job-state src="{url}" {attributes}></job-state>'


def test_page_below_a_prefix_has_nothing_to_configure(
    site: Site, redis_url: str, store: JobStore
) -> None:
    """A bare uuid is found and the element styled, wherever the package is mounted."""
    job = put_job(store, RunMarathon, "success", owner="alice").uuid
    site.below = "/café/static"
    site.markup = lambda request: tag(request) + element(request, job)
    settings = {"jobstate.path": "static"}
    site.open(make_config(redis_url, settings=settings), "team")
    assert site.follow(jobUuid=job) == "success"
    site.wait_for_element()
    base = "/caf%C3%A9/static/team/static"
    assert site.polls() == {base}
    assert f"{base}/static/job-state.css" in site.asked


@pytest.mark.system
def test_modules_follow_jobs(site: Site, redis_url: str, store: JobStore) -> None:
    """The script polls at /job_state if it is imported, since it does not know its tag,
    or below baseUrl. A module that follows a tag with `defer` uses that one's script
    and base URL.
    """
    job = put_job(store, RunMarathon, "success", owner="alice").uuid
    config = make_config(redis_url, root_factory=mounted_root)
    follow = f'JobState.startPolling({{ jobUuid: "{job}" }}).done'
    sources = {
        "import": f'import "/job_state/static/job-state.js"; window.end = {follow};',
        "follow": f"window.end = {follow};",
    }
    for name, source in sources.items():
        answer = Response(source, content_type="text/javascript")
        config.add_route(name, f"/{name}.js")
        config.add_view(lambda request, answer=answer: answer, route_name=name)
    site.markup = lambda request: (
        '<script type="module" src="/import.js" data-base-url="/forged"></script>'
        + element(request, job)
    )
    site.open(config)
    assert site.page.evaluate("end")["outcome"] == "success"
    assert site.follow(jobUuid=job, baseUrl="/jobs") == "success"
    site.wait_for_element()
    assert site.polls() == {"/job_state", "/jobs"}
    assert "/job_state/static/job-state.css" in site.asked
    site.asked.clear()
    site.markup = lambda request: (
        tag(
            request,
            f'defer data-base-url="{request.resource_url(request.root["jobs"])}"',
        )
        + '<script type="module" src="/follow.js"></script>'
    )
    site.page.reload()
    assert site.page.evaluate("end")["outcome"] == "success"
    assert site.polls() == {"/jobs"}


def test_module_finds_jobs_and_styles_beside_itself(
    site: Site, redis_url: str, store: JobStore
) -> None:
    """A module that is imported below a prefix needs no baseUrl. Its query is that of
    the style sheet.
    """
    job = put_job(store, RunMarathon, "success", owner="alice").uuid

    def source(request: Any) -> Response:
        url = request.static_path(MODULE)
        follow = f'window.end = follow({{ jobUuid: "{job}" }}).done'
        text = f'import {{ follow }} from "{url}"; {follow};'
        return Response(text, content_type="text/javascript")

    config = make_config(redis_url)
    config.add_cache_buster(
        "pyramid_jobstate:static", QueryStringConstantCacheBuster("7")
    )
    config.add_route("source", "/source.js")
    config.add_view(source, route_name="source")
    site.below = "/café"
    site.markup = lambda request: (
        f'<script type="module" src="{request.route_path("source")}"></script>'
        + element(request, job)
    )
    site.open(config, "team")
    assert site.page.evaluate("end")["outcome"] == "success"
    site.wait_for_element()
    base = "/caf%C3%A9/team/job_state"
    assert site.polls() == {base}
    assert f"{base}/static/job-state.mjs?x=7" in site.asked
    assert f"{base}/static/job-state.css?x=7" in site.asked


@pytest.mark.system
@pytest.mark.parametrize("header", ["X-CSRF-Token", "X-XSRF-TOKEN"])
def test_element_sends_the_application_s_csrf_header(
    site: Site, redis_url: str, store: JobStore, header: str
) -> None:
    """The attribute csrf-header names the header that Pyramid checks."""
    running = put_job(store, RunMarathon, owner="alice").uuid
    more = "cancellable" + (f" csrf-header={header}" if "XSRF" in header else "")
    site.markup = lambda request: (
        tag(request)
        + element(request, running, f"{more} csrf-token={get_csrf_token(request)}")
    )
    site.open(protected(make_config(redis_url), header=header))
    site.wait_for_element("working")
    site.page.locator("[part=cancel]").click()
    site.wait_for_element("cancelling")


#: An object's own names, without those of its inside.
NAMES = """(object) => Object.getOwnPropertyNames(object)
  .filter((name) => !/^_|Callback$|^constructor$/.test(name))"""

#: The options at which a poller looks.
OPTIONS = """(jobUuid) => {
  const names = new Set();
  const get = (options, name) => (names.add(name), options[name]);
  JobState.follow(new Proxy({ jobUuid }, { get }));
  return [...names];
}"""


def declarations() -> dict[str, str]:
    """Return what job-state.d.ts declares in JobState, by name, without comments."""
    text = (STATIC / "job-state.d.ts").read_text("utf-8")
    text = re.sub(r"/\*.*?\*/|//[^\n]*", "", text, flags=re.S).partition("\n}\n")[0]
    start = re.compile(r"^  (?=(?:function|const|let|class|type|interface) )", re.M)
    _, *parts = start.split(text)
    return {re.split(r"\W+", part, maxsplit=2)[1]: part for part in parts}


def test_types_are_those_of_the_script(
    site: Site, redis_url: str, store: JobStore
) -> None:
    """job-state.d.ts declares the names that the script and the JSON of a job have."""
    member = re.compile(r"^ +(?:readonly )?(\w+)[?(:]", re.M)
    declared = declarations()
    members = {name: {*member.findall(part)} for name, part in declared.items()}
    job = put_job(store, RunMarathon, progress=Progress(1, 2), owner="alice").uuid
    site.markup = lambda request: tag(request) + element(request, job)
    site.open(make_config(redis_url))
    site.wait_for_element("working")

    def names(expression: str) -> set[str]:
        return set(site.page.evaluate(f"({NAMES})({expression})"))

    types = ("type ", "interface ")
    values = {name for name, part in declared.items() if not part.startswith(types)}
    assert names("JobState") == values
    assert site.page.evaluate("JobState.startPolling === JobState.follow")
    found = "document.querySelector('job-state')"
    shown = names(found) | names("JobState.JobStateElement.prototype")
    assert shown == members["JobStateElement"]
    assert names(f"{found}.data") == members["JobData"]
    assert names(f"{found}.data.job") == members["Job"] - {"counts", "members"}
    assert names(f"{found}.data.job.progress") == members["Progress"]
    poller = f"JobState.follow({{ jobUuid: '{job}' }})"
    assert names(poller) == members["Poller"]
    options = members["PollingOptions"] | members["JobAddress"]
    # A poller looks at this one in a hidden tab.
    options.remove("whileHidden")
    assert set(site.page.evaluate(OPTIONS, job)) == options


def test_types_name_what_an_element_takes(
    site: Site, redis_url: str, store: JobStore
) -> None:
    """job-state.d.ts names the element's attributes, parts and custom properties."""
    job = put_job(store, RunMarathon, owner="alice").uuid
    site.markup = lambda request: tag(request) + element(request, job)
    site.open(make_config(redis_url))
    site.wait_for_element("working")
    declared = declarations()
    attributes = re.findall(
        r'^    "?([\w-]+)"?\?:', declared["ElementAttributes"], re.M
    )
    observed = site.page.evaluate("JobState.JobStateElement.observedAttributes")
    assert {*attributes} == {n for n in observed if not n.startswith("label-")}
    parts = site.page.evaluate(
        """[...document.querySelector("job-state").shadowRoot.querySelectorAll("[part]")]
        .map((node) => node.part.value)"""
    )
    named = re.findall(r'"([\w-]+)"', declared["Part"])
    assert {*named} == {part for part in parts if not part.startswith("count-")}
    sheet = (STATIC / "job-state.css").read_text("utf-8")
    properties = re.findall(r'"([\w-]+)"', declared["CustomProperty"])
    assert {*properties} == {*re.findall(r"--job-state-[\w-]+", sheet)}


def test_module_exports_what_the_global_has(site: Site, redis_url: str) -> None:
    """It exports each by its name, but for `labels`, which importers could not set, and
    all by default. So do its types, which have all types, too.
    """
    site.markup = tag
    site.open(make_config(redis_url))
    names = site.page.evaluate(
        """async (url) => {
            const all = { ...JobState, default: JobState };
            const exported = Object.entries(await import(url));
            return exported.map(([name, value]) => value === all[name] && name);
        }""",
        f"{site.url}/job_state/static/job-state.mjs",
    )
    found = site.page.evaluate("Object.keys(JobState)")
    assert {*names} == {"default", *found} - {"labels"}
    text = (STATIC / "job-state.d.mts").read_text("utf-8")
    exported = re.findall(r"^export import (\w+) = JobState\.(\w+);$", text, re.M)
    assert [one for one, other in exported if one != other] == []
    assert {one for one, _ in exported} == declarations().keys() - {"labels"}


#: TypeScript of applications. Each line below `@ts-expect-error` must be refused.
CLASSIC = """/// <reference path="./job-state.d.ts" />
JobState.follow({ jobUuid: "a", lost: ({ code, final }) => code });
JobState.labels = { working: "Baking" };
// @ts-expect-error
JobState.follow({ jobUuid: 1 });
document.querySelector("job-state")!.cancel();
"""
IMPORTING = """import JobState, { JobStateElement } from "./job-state.mjs";
import { follow, setLabels } from "./job-state.mjs";
import type { ElementAttributes, JobData, Part } from "./job-state.mjs";
interface Metrics { miles_run: number }
const { done } = follow<Metrics>({ url: "/a", update: (data) => data.miles_run + 1 });
done.then((end) => end.outcome === "success" && end.data.miles_run.toFixed());
// @ts-expect-error
follow({ jobUuid: "a", pollingPerod: 500 });
setLabels("de", { "count-error": "{number} fehlgeschlagen" });
JobState.labels = window.JobState.labels;
const attributes: ElementAttributes = { src: "/a", "label-working": "Baking" };
// @ts-expect-error
const wrong: ElementAttributes = { "label-baking": "Baking" };
const part: Part = "count-queued";
const title = (data: JobData): string => data.job.title;
new JobStateElement().addEventListener("job-state:lost", ({ detail }) => detail.code);
"""


@pytest.mark.system
@pytest.mark.parametrize("resolution", ["nodenext", "bundler"])
def test_types_compile(node_modules: Path, tmp_path: Path, resolution: str) -> None:
    """TypeScript knows the global and the exports, and refuses what is not there."""
    for path in STATIC.glob("job-state.d.*"):
        shutil.copy(path, tmp_path)
    (tmp_path / "classic.ts").write_text(CLASSIC)
    (tmp_path / "importing.mts").write_text(IMPORTING)
    options = "--noEmit --strict --target es2020 --lib es2020,dom --module"
    module = "nodenext" if resolution == "nodenext" else "esnext"
    command = [str(node_modules / ".bin" / "tsc"), *options.split(), module]
    command += ["--moduleResolution", resolution, "classic.ts", "importing.mts"]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.returncode) == ("", 0)
