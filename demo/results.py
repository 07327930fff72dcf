"""Reading and checking CSV files with the results of a race."""

import csv
import io
import re
from collections.abc import Iterator
from typing import Any

#: The size limit of a file, in bytes.
MAX_BYTES = 5 * 1024 * 1024

#: The columns that a file must have, in any order. More are allowed.
COLUMNS = ("bib", "name", "country", "finish")

COUNTRY = re.compile(r"[A-Z]{3}")
EMAIL = re.compile(r"[^@\s]+@[^@\s]+\.[^@\s]+")
FINISH = re.compile(r"(\d{1,2}):([0-5]\d):([0-5]\d)", re.ASCII)


class BadFile(Exception):
    """The file cannot be imported. The text tells whoever uploaded it why."""


class BadRow(Exception):
    """The row cannot be imported. The text says why, in a few words."""


def check(content: bytes) -> int:
    """Return how many rows the file has.

    Raises:
      BadFile: The file cannot be read to its end.
    """
    return sum(1 for _ in read(content))


def read(content: bytes) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield the line number of each row, and its fields by column. A row with too few
    or too many fields yields an empty dict.

    Raises:
      BadFile: The file is not CSV in UTF-8, or a column is missing.
    """
    # The "sig" drops the byte order mark that spreadsheets write.
    text = io.TextIOWrapper(io.BytesIO(content), encoding="utf-8-sig", newline="")
    reader = csv.reader(text, strict=True)
    try:
        columns = [name.strip().lower() for name in next(reader, [])]
        if missing := [name for name in COLUMNS if name not in columns]:
            raise BadFile(
                f"The first line must name the columns {', '.join(COLUMNS)}. "
                f"Missing: {', '.join(missing)}."
            )
        for row in reader:
            if len(row) == len(columns):
                yield reader.line_num, dict(zip(columns, row, strict=True))
            else:
                yield reader.line_num, {}
    except UnicodeDecodeError:
        raise BadFile("The file is not text in UTF-8.") from None
    except csv.Error:
        raise BadFile(f"Line {reader.line_num} of the file is not valid CSV.") from None


def parse(row: dict[str, str]) -> dict[str, Any]:
    """Return the columns of a :class:`demo.models.Result`.

    Raises:
      BadRow: A field is missing or makes no sense.
    """
    if not row:
        raise BadRow("the number of fields is wrong")
    bib, name, country, finish = (row[column].strip() for column in COLUMNS)
    email = row.get("email", "").strip()
    if not (bib.isascii() and bib.isdigit() and len(bib) <= 6):
        raise BadRow(f"“{bib:.20}” is not a bib number")
    if not name:
        raise BadRow("the name is missing")
    if not COUNTRY.fullmatch(country):
        raise BadRow(f"“{country:.20}” is not a country code")
    if email and not EMAIL.fullmatch(email):
        raise BadRow(f"“{email:.40}” is not an email address")
    if not (match := FINISH.fullmatch(finish)):
        raise BadRow(f"“{finish:.20}” is not a finish time")
    hours, minutes, seconds = map(int, match.groups())
    return {
        "bib": int(bib),
        "name": name,
        "country": country,
        "email": email or None,
        "seconds": hours * 3600 + minutes * 60 + seconds,
    }
