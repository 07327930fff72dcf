"""The ES module job-state.mjs, made of job-state.js.

After a change of job-state.js, write it anew::

    python -m tests.esmodule
"""

from tests.pollserver import STATIC

MODULE = STATIC / "job-state.mjs"

NOTE = (
    "// Made of job-state.js by `python -m tests.esmodule`. Change that file instead.\n"
)

#: A classic script learns from its tag where it lies.
ADDRESS = 'script.getAttribute("src")'

#: Without `labels`, which importers could not set. The default export has them.
EXPORTS = """
export default window.JobState;
export const {
  follow, startPolling, askToNotify, setLabels, JobStateElement,
} = window.JobState;
"""


def make_module() -> str:
    script = (STATIC / "job-state.js").read_text("utf-8")
    head, address, tail = script.partition(ADDRESS)
    if not address or ADDRESS in tail:
        raise ValueError(f"job-state.js does not have {ADDRESS} exactly once")
    return f"{NOTE}{head}import.meta.url{tail}{EXPORTS}"


if __name__ == "__main__":
    MODULE.write_text(make_module(), "utf-8")
