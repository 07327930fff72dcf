"""The script and its types in a real Pyramid application and a real Chromium."""

import re
import shutil
import subprocess
from typing import Any

import pytest
from playwright.sync_api import expect
from pyramid.config import Configurator

from pyramid_jobstate import Progress
from pyramid_jobstate.testing import put_job
from tests.browser.sites import Site
from tests.jobs import RunMarathon
from tests.pollserver import STATIC
from tests.webapp import make_config

SCRIPT = "pyramid_jobstate:static/job-state.js"


def tag(request: Any) -> str:
    return f'<script src="{request.static_url(SCRIPT)}"></script>'


def show(site: Site, job: str, config: Configurator, prefix: str | None = None) -> None:
    """Open a page with an element, and wait until it shows its job."""

    def markup(request: Any) -> str:
        url = request.resource_url(request.job_states[job])
        return f'{tag(request)}<job-state src="{url}"></job-state>'

    site.markup = markup
    site.open(config, prefix)
    expect(site.page.locator("job-state[state=working]")).to_be_attached()


def test_page_below_a_prefix_has_nothing_to_configure(site, redis_url, store):
    """A bare uuid is found and the element styled, wherever the package is mounted."""
    job = put_job(store, RunMarathon, owner="alice").uuid
    settings = {"jobstate.path": "static"}
    show(site, job, make_config(redis_url, settings=settings), "café")
    follow = """(jobUuid) =>
        new Promise((update) => JobState.follow({ jobUuid, update }))"""
    assert site.page.evaluate(follow, job)["job"]["uuid"] == job
    expect(site.page.locator("[part=bar]")).to_have_css("height", "6px")
    base = "/caf%C3%A9/static"
    polled = {url.rstrip("/") for url in site.asked if job in url}
    assert polled == {f"{site.url}{base}/{job}"}
    assert f"{site.url}{base}/static/job-state.css" in site.asked


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


def test_types_are_those_of_the_script(site, redis_url, store):
    """job-state.d.ts declares the names that the script and the JSON of a job have, and
    the element's attributes, parts and custom properties.
    """
    member = re.compile(r"^ +(?:readonly )?(\w+)[?(:]", re.M)
    declared = declarations()
    members = {name: {*member.findall(part)} for name, part in declared.items()}
    job = put_job(store, RunMarathon, progress=Progress(1, 2), owner="alice").uuid
    show(site, job, make_config(redis_url))

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
    attribute = re.compile(r'^    "?([\w-]+)"?\?:', re.M)
    attributes = {*attribute.findall(declared["ElementAttributes"])}
    observed = site.page.evaluate("JobState.JobStateElement.observedAttributes")
    assert attributes == {n for n in observed if not n.startswith("label-")}
    parts = "[...{}.shadowRoot.querySelectorAll('[part]')].map((n) => n.part.value)"
    real = {p for p in site.page.evaluate(parts.format(found)) if "count-" not in p}
    assert real == {*re.findall(r'"([\w-]+)"', declared["Part"])}
    sheet = (STATIC / "job-state.css").read_text("utf-8")
    properties = {*re.findall(r'"([\w-]+)"', declared["CustomProperty"])}
    assert properties == {*re.findall(r"--job-state-[\w-]+", sheet)}


def test_module_exports_what_the_global_has(site, redis_url):
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
def test_types_compile(node_modules, tmp_path, resolution):
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
