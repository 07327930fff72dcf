"""Where jobs are that this process runs."""

from __future__ import annotations

import os


def memory_used() -> int | None:
    """Return the bytes of memory that this process uses, or None: only Linux says."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return None
