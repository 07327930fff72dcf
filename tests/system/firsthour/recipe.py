"""Does to a project what the README tells its reader to do.

The first line of a block of code is a comment that names the file and the place. The
other lines go there, and imports among them to the imports of the file.
"""

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from tests.readme import DOCUMENTS, snippets
from tests.system.firsthour.projects import PACKAGE, Project

#: The comment that begins a block, in Python, an ini file, a script or a template.
COMMENT = re.compile(r"(?:# |// |<!-- )(?P<path>[\w./-]+), (?P<place>.+?)(?: -->)?")

#: The names in a tutorial's application that replace those in the README.
OTHER_NAMES = {
    "mytemplate": "layout",
    "before the first </div>": "before the first {% block content %}",
    "models.MyModel(name=job_state.uuid, value=miles)": (
        "models.Page(name=job_state.uuid, data=str(miles), creator_id=1)"
    ),
}

#: The sections with other templates than the README's, by the kind of project.
TEMPLATES = {"zodb": "With ZODB and Chameleon", "mako": "With Mako"}


class Block(NamedTuple):
    """Lines that the README tells its reader to write.

    Attributes:
      path: The file, relative to the project.
      place: Where in the file, in the README's words.
      lines: The lines.
    """

    path: str
    place: str
    lines: tuple[str, ...]


def adapted(block: Block, texts: Mapping[str, str]) -> Block:
    """Return a block with other names, as a reader has them who has users already."""

    def replace(text: str) -> str:
        for old, new in texts.items():
            text = text.replace(old, new)
        return text

    session = ("jobstate.owner", "SignedCookieSessionFactory")
    kept = [x for x in block.lines if not any(text in x for text in session)]
    # What followed the imports may now come first.
    lines = replace("\n".join(kept).lstrip("\n")).split("\n")
    return Block(replace(block.path), replace(block.place), tuple(lines))


def section(title: str) -> str:
    """Return a section of the documents, without its subsections."""
    parts = re.split(r"^(.+)\n[-=~]{4,}\n", DOCUMENTS, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))[title]


def blocks(text: str) -> list[Block]:
    """Return the blocks of a section's text."""
    return [parse(block) for block in snippets(r"\S+", text)]


def commands(text: str) -> list[str]:
    """Return the shell commands that a section's text shows."""
    return re.findall(r"::\n\n  (\S.*)\n", text)


def parse(text: str) -> Block:
    """Return a block of code for PACKAGE. Its first line says where it belongs."""
    first, *lines = text.replace("myapp", PACKAGE).splitlines()
    comment = COMMENT.fullmatch(first)
    assert comment, f"This line does not say where the block belongs: {first}"
    return Block(comment["path"], comment["place"], tuple(lines))


def apply(project: Project, recipe: Iterable[Block]) -> None:
    """Write every block into a project. Each must fit there."""
    for block in recipe:
        path = project.folder / block.path
        if block.place == "a new file":
            assert not path.exists(), f"{block.path} exists"
            path.write_text("\n".join(block.lines) + "\n", "utf-8")
            continue
        lines = path.read_text("utf-8").splitlines()
        imports, rest = split_imports(block.lines)
        # The rest first: a new import above would move its place.
        start, end, indentation = find(lines, block)
        lines[start:end] = [f"{indentation}{x}" if x else x for x in rest]
        if imports:
            last = max(i for i, line in enumerate(lines[:start]) if is_import(line))
            lines[last + 1 : last + 1] = imports
        path.write_text("\n".join(lines) + "\n", "utf-8")


def find(lines: list[str], block: Block) -> tuple[int, int, str]:
    """Return the range of lines that a block replaces, and its indentation."""
    if block.place == "at the end":
        return len(lines), len(lines), ""
    if match := re.fullmatch(r"at the end of (\[.+\])", block.place):
        start = end = lines.index(match[1]) + 1
        for i, line in enumerate(lines[start:], start):
            if line.startswith("["):
                break
            # Comments after the last setting introduce the next section.
            if line.strip() and not line.startswith("#"):
                end = i + 1
        return end, end, ""
    pattern = r"(before the first|instead of the line with) (.+)"
    match = re.fullmatch(pattern, block.place)
    assert match, f"This place is unknown: {block.place}"
    found = [i for i, line in enumerate(lines) if match[2] in line]
    replaced = int(match[1].startswith("instead"))
    assert found[: 2 if replaced else 1] == found[:1] != [], block
    line = lines[found[0]]
    return found[0], found[0] + replaced, line[: len(line) - len(line.lstrip())]


def split_imports(lines: Iterable[str]) -> tuple[list[str], list[str]]:
    """Return the imports among the lines of a block, and its other lines."""
    imports = [line for line in lines if is_import(line)]
    rest = [line for line in lines if not is_import(line)]
    if imports:
        # Blank lines between the two stay only before a function or class.
        while rest and not rest[0]:
            del rest[0]
        if rest and rest[0].startswith(("@", "def ", "class ")):
            rest[:0] = ["", ""]
    return imports, rest


def is_import(line: str) -> bool:
    return line.startswith(("import ", "from "))


def quick_start(name: str) -> list[Block]:
    """Return the blocks that apply to the reader's kind of project."""
    everyone = blocks(section("Quick start"))
    if name == "sqlalchemy":
        return everyone
    if name in TEMPLATES:
        others = blocks(section(TEMPLATES[name]))
        return [x for x in everyone if not x.path.endswith(".jinja2")] + others
    if name == "plain":
        others = blocks(section("Without a database"))
        return [x for x in everyone if not x.path.endswith("/jobs.py")] + others
    # The wiki has templates of its own and users who log in.
    everyone = everyone + blocks(section("Users who log in"))
    return [adapted(block, OTHER_NAMES) for block in everyone]
