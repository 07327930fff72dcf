"""The uploaded files, on disk from before their job is sent until the folder goes."""

import uuid
from pathlib import Path
from typing import BinaryIO

from demo.models import data_dir

#: The most that a file may have, in bytes.
MAX_BYTES = 5 * 1024 * 1024


class TooLarge(Exception):
    """The file has more than MAX_BYTES."""


def path_of(upload: str) -> Path:
    """Return where an upload is kept.

    Raises:
      ValueError: `upload` is no uuid, such as a path that leads elsewhere.
    """
    name = f"{uuid.UUID(upload)}.csv"
    return data_dir() / "uploads" / name


def save(file: BinaryIO) -> str:
    """Keep the file and return its id, chosen at random: the name that it had on
    the user's machine is never a name on ours.

    Raises:
      TooLarge: It is not kept.
    """
    content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise TooLarge
    upload = str(uuid.uuid4())
    path_of(upload).write_bytes(content)
    return upload
