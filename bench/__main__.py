"""Print all tables, or those named, and fail if a figure misses its target.

``python -m bench [updates] [loop] [poll] …``; any other name lists them all.
"""

import sys

from pyramid_jobstate.embedded import EmbeddedServer

from . import (
    batches,
    browser,
    cost,
    flush,
    freshness,
    lists,
    loop,
    many_jobs,
    memory,
    pages,
    peer_polls,
    peer_updates,
    poll,
    push,
    traffic,
    updates,
)
from .timing import show

TABLES = {
    "cost": cost,
    "batches": batches,
    "updates": updates,
    "flush": flush,
    "loop": loop,
    "poll": poll,
    "lists": lists,
    "pages": pages,
    "memory": memory,
    "many_jobs": many_jobs,
    "peer_updates": peer_updates,
    "peer_polls": peer_polls,
    "freshness": freshness,
    "push": push,
    "traffic": traffic,
    "browser": browser,
}


def main(names: list[str]) -> int:
    unknown = set(names) - set(TABLES)
    if unknown:
        print(f"Unknown: {', '.join(unknown)}. The tables are: {', '.join(TABLES)}.")
        return 2
    with EmbeddedServer() as server:
        fine = show(TABLES[name].measure(server) for name in names or TABLES)
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
