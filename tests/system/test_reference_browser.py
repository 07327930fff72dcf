"""The pages on the element and on JavaScript name what the script has, and no more."""

import contextlib
import re
from collections.abc import Iterable

from tests.pollserver import STATIC, PollServer
from tests.readme import page as document

#: The names that an element has in a page.
ELEMENT = """() => {
  const { observedAttributes, prototype } = JobState.JobStateElement;
  const element = document.body.appendChild(document.createElement("job-state"));
  const parts = [...element.shadowRoot.querySelectorAll("[part]")];
  const own = [...Object.getOwnPropertyNames(prototype), ...Object.keys(element)];
  return {
    attributes: observedAttributes,
    parts: parts.flatMap((node) => [...node.part]),
    members: own.filter((name) => !/^_|Callback$|^constructor$/.test(name)),
  };
}"""

#: Reads or writes an attribute of the element itself.
OWN_ATTRIBUTE = r"\bthis\.(?:get|has|set)Attribute\(\"([\w-]+)\""


def read(name: str) -> str:
    """Return a file of the package's, without its block comments."""
    return re.sub(r"/\*.*?\*/", "", (STATIC / name).read_text("utf-8"), flags=re.S)


def tables(name: str) -> dict[str, dict[str, str]]:
    """Return the rows of the tables of a page, by sections: a name, and the first line
    that is said of it.
    """
    _, *parts = re.split(r"^(.+)\n-{3,}\n", document(name), flags=re.MULTILINE)
    row = re.compile(r"^``([^`]+)``(?: +(.*))?$", re.MULTILINE)
    table = re.compile(r"^={9,} =+\n(.*?)^={9,} =+$", re.MULTILINE | re.DOTALL)
    return {
        title: {
            found[1]: found[2] or ""
            for body in table.findall(text)
            for found in row.finditer(body)
        }
        for title, text in zip(parts[::2], parts[1::2], strict=True)
    }


def plain(names: Iterable[str]) -> list[str]:
    """Return sorted names without parameters."""
    return sorted(re.split(r"[(<]", name)[0] for name in names)


def types() -> dict[str, str]:
    """Return the declarations of job-state.d.ts, by the keyword and the name."""
    pattern = r"^  ((?:function|let|const|class|type|interface) \w+)"
    _, *parts = re.split(pattern, read("job-state.d.ts"), flags=re.MULTILINE)
    return dict(zip(parts[::2], parts[1::2], strict=True))


def fields(*names: str) -> list[str]:
    """Return the names of the members of declarations, each once."""
    member = re.compile(r"[{;]\s+(?:readonly )?(\w+)(?:\(\))?\??:", re.MULTILINE)
    declared = {key.split()[1]: text for key, text in types().items()}
    return sorted({each for name in names for each in member.findall(declared[name])})


def test_reference_of_the_element_is_complete(page):
    """The tables name each attribute, property, event, state, part, custom property and
    label with its English words, and nothing else.
    """
    script = read("job-state.js")
    with contextlib.closing(PollServer()) as server:
        page.goto(f"{server.url}/empty")
        page.add_script_tag(url="/job-state.js")
        real = page.evaluate(ELEMENT)
    said = tables("reference/element")
    words = script.partition("const ENGLISH = {\n")[2].partition("\n};")[0]
    labels = dict(re.findall(r'^  "?([\w-]+)"?: "(.*)",$', words, re.MULTILINE))
    assert said["Labels"] == labels

    attributes = {*real["attributes"], *re.findall(OWN_ATTRIBUTE, script)}
    own_labels = {f"label-{name}" for name in labels}
    assert own_labels <= attributes
    assert sorted(said["Attributes"]) == sorted(attributes - own_labels | {"label-…"})
    near = {"data-metric"}
    near |= {f"data-{name}" for name in re.findall(r"node\.dataset\.(\w+)", script)}
    near |= {*re.findall(r'node\.getAttribute\("(\w+)"\);', script)}
    assert sorted(said["Content and metrics"]) == sorted(near)

    assert plain(said["Properties and methods"]) == sorted(real["members"])
    events = re.findall(r'"(job-state:\w+)":', read("job-state.d.ts"))
    assert sorted(said["Events"]) == sorted(events)
    declared = types()
    states = re.findall(r'"(\w+)"', declared["type State"].replace('Job["status"]', ""))
    status = declared["interface Job"].partition("status:")[2].partition(";")[0]
    assert sorted(said["States"]) == sorted([*states, *re.findall(r'"(\w+)"', status)])
    assert sorted(said["Parts"]) == sorted(real["parts"])
    sheets = read("job-state.css") + read("job-state-pages.css")
    used = {*re.findall(r"--job-state-[a-z-]+", sheets)}
    assert sorted(said["Custom properties"]) == sorted(used)


def test_reference_of_javascript_is_complete():
    """The tables name each export, option, type, and member of the handle, of reasons
    and of outcomes that job-state.d.ts declares, and nothing else.
    """
    said = tables("reference/javascript")
    script = read("job-state.js")
    declared = [key.split() for key in types()]
    kinds = ("type", "interface")
    values = [name for kind, name in declared if kind not in kinds]
    assert plain(said["The global and the module"]) == sorted(values)
    others = [name for kind, name in declared if kind in kinds]
    assert plain(said["Types"]) == sorted(others)

    (names,) = re.findall(r"const \{([^}]*)\} = script\.dataset", script)
    dashed = re.sub(r"([A-Z])", lambda match: f"-{match[1].lower()}", names)
    tag = [f"data-{name}" for name in re.findall(r"[\w-]+", dashed)]
    assert sorted(said["The script tag"]) == sorted(tag)
    assert sorted(said["Options"]) == fields("PollingOptions", "JobAddress")
    assert plain(said["The handle"]) == fields("Poller")
    codes = re.findall(r'"(\w+)"', types()["interface Failure"])
    reasons = {*fields("Failure", "Reason")}
    assert sorted(said["Reasons"]) == sorted({*reasons, *codes})
    assert sorted(said["Outcomes"]) == fields("Outcome")
