"""Updates jobs as the recorder of a worker does, in batches every 100 ms:

    python -m bench.push_writer SECONDS RATE

with uuids on the standard input and the rate in updates of each job in a second. Prints
how many it has made. Each update holds the time at which it was made.
"""

from __future__ import annotations

import json
import os
import sys
import time

from pyramid_jobstate import JobStore
from pyramid_jobstate.job.record import JobInfo, Update
from pyramid_jobstate.store.jobstore import records_of

INFO = JobInfo("JobState", "run_marathon", 1, None, '{"miles":26}')
TOKEN = "0" * 12
INTERVAL = 0.1


def fields(count: int) -> dict[str, str]:
    return {
        "progress": json.dumps([count, 1000, "rows", 12.5]),
        "message": '"Running"',
        "m:told": repr(time.time()),
        "m:rows": str(count),
        "m:rejected": str(count // 7),
        "m:file": '"marathon.csv"',
        "m:rate": "1234.5",
    }


def owner_of(uuid: str) -> str:
    """Return the owner of a job. No owner may have more than 20 streams."""
    return f"user-{uuid[:4]}"


def begin(store: JobStore, uuids: list[str]) -> None:
    """Begin a run of each job."""
    for start in range(0, len(uuids), 500):
        records_of(store).write(
            [
                Update(
                    uuid,
                    TOKEN,
                    1,
                    INFO._replace(owner=json.dumps(owner_of(uuid))),
                    fields(0),
                    begins=True,
                )
                for uuid in uuids[start : start + 500]
            ]
        )


def main(seconds: float, rate: float) -> None:
    uuids = sys.stdin.read().split()
    store = JobStore(os.environ["JOBSTATE_REDIS_URL"])
    begun = time.monotonic()
    made, seq = 0, 1
    while (tick := time.monotonic()) < begun + seconds:
        due = int(len(uuids) * rate * (tick - begun + INTERVAL)) - made
        count = min(due, len(uuids))
        if count > 0:
            seq += 1
            batch = [uuids[(made + i) % len(uuids)] for i in range(count)]
            records_of(store).write(
                [Update(u, TOKEN, seq, INFO, fields(seq)) for u in batch]
            )
            made += count
        time.sleep(max(0.0, tick + INTERVAL - time.monotonic()))
    print(made)


if __name__ == "__main__":
    main(float(sys.argv[1]), float(sys.argv[2]))
