"""The README's recipe: how it is read, and how much it asks of its reader."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.system.firsthour.conftest import MakeProject
from tests.system.firsthour.recipe import Block, apply, parse, quick_start, write

#: The most lines that the recipe may add to a generated project: to the one with
#: SQLAlchemy, and to either of the two.
MOST_SQLALCHEMY = 24
MOST_EITHER = 28

FILE = """\
import os
from a import b

[app:main]
x = 1

# y = 2
[other]

###
# next
###

def main():
    include(1)
    include(2)
    return 3
"""


@pytest.fixture
def example(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_text(FILE)
    return path


def written(example: Path, place: str, *lines: str) -> str:
    write(example.parent, Block(example.name, place, lines))
    return example.read_text()


def test_block_says_its_file_and_place() -> None:
    """The comment above a block names the file and the place, in each language."""
    assert parse("# a/b.py, a new file\nmyapp") == (
        "a/b.py",
        "a new file",
        ("tutorial",),
    )
    assert parse("<!-- a.pt, before the first </div> -->\n<p>") == (
        "a.pt",
        "before the first </div>",
        ("<p>",),
    )
    with pytest.raises(AssertionError, match="does not say where"):
        parse("import os\n")


def test_block_at_the_end(example: Path) -> None:
    """A block at the end follows the file; its imports join those of the file."""
    text = written(example, "at the end", "import c", "", "", "def f():", "    pass")

    assert text == (
        FILE.replace("import b\n", "import b\nimport c\n") + "\n\ndef f():\n    pass\n"
    )


def test_block_before_a_line_takes_its_indentation(example: Path) -> None:
    """A block before a line is indented like that line, but for its imports."""
    text = written(example, "before the first include", "import c", "", "y(", "    z)")

    assert text == FILE.replace("import b\n", "import b\nimport c\n").replace(
        "    include(1)", "    y(\n        z)\n    include(1)"
    )


def test_block_at_the_end_of_a_section(example: Path) -> None:
    """A block at the end of a section follows the section's last setting."""
    text = written(example, "at the end of [app:main]", "y = 3")

    assert text == FILE.replace("x = 1\n", "x = 1\ny = 3\n")


def test_block_instead_of_a_line(example: Path) -> None:
    """A block in place of a line replaces it, and is indented like that line."""
    assert written(example, "instead of the line with return", "x = 1", "pass") == (
        FILE.replace("    return 3", "    x = 1\n    pass")
    )


def test_new_file(tmp_path: Path) -> None:
    """A new file has exactly the lines of its block."""
    write(tmp_path, Block("new.py", "a new file", ("import os", "", "x = 1")))

    assert (tmp_path / "new.py").read_text() == "import os\n\nx = 1\n"


@pytest.mark.parametrize(
    ("path", "place", "error"),
    [
        ("file", "a new file", "file exists"),
        ("other", "at the end", "other does not exist"),
        ("file", "before the first nothing", "file has no line with nothing"),
        ("file", "instead of the line with include", "several lines with include"),
        ("file", "at the end of [none]", r"file has no \[none\]"),
        ("file", "somewhere", "This place is unknown: somewhere"),
    ],
)
def test_block_that_does_not_fit_is_refused(
    example: Path, path: str, place: str, error: str
) -> None:
    """A block that does not fit the project is an error, not a guess."""
    with pytest.raises(AssertionError, match=error):
        write(example.parent, Block(path, place, ("x",)))
    assert example.read_text() == FILE


def test_recipe_is_short(
    make_project: MakeProject, record_property: Callable[[str, object], None]
) -> None:
    """From a generated project to a live bar with a worker, a cancel button and rights
    it takes no more lines than promised.
    """
    added = {}
    for name in ("sqlalchemy", "zodb"):
        project = make_project(name)
        apply(project, quick_start(name))
        added[name] = project.added()

    counts = {name: len(lines) for name, lines in added.items()}
    # Lines that the README prints once for both count once.
    texts = [Counter(line.text.strip() for line in lines) for lines in added.values()]
    counts["either"] = (texts[0] | texts[1]).total()
    for name, count in counts.items():
        record_property(f"added lines, {name}", count)
    print("Lines that the recipe adds:", counts)
    assert counts["sqlalchemy"] <= MOST_SQLALCHEMY
    assert counts["either"] <= MOST_EITHER
