"""The jobs. The web process imports this module to send them, and the worker imports it
to run them.
"""

import itertools
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import dramatiq
from dramatiq.brokers.redis import RedisBroker
from pyramid.request import Request
from sqlalchemy import delete, insert, select

from demo import results, sample
from demo.models import Note, Result, Upload, session_factory
from pyramid_jobstate import Batch, JobState, JobStateMiddleware, RequestMiddleware

#: The Redis server of the broker and the job states.
REDIS_URL = os.environ.get("JOBSTATE_REDIS_URL", "redis://localhost:6379/0")

#: How many strides, of a yard each, make a mile.
STRIDES = 1760

#: How many rows an import writes in one transaction.
CHUNK = 250

broker = RedisBroker(url=REDIS_URL)
broker.add_middleware(JobStateMiddleware())
broker.add_middleware(RequestMiddleware())  # for the hooks
dramatiq.set_broker(broker)


class RunMarathon(JobState):
    """A run that takes long enough to be watched."""

    public_params = ("miles",)

    @property
    def title(self) -> str:
        return f"Run of {self.get_job_param('miles', 0):g} miles"


class LeavesNote(JobState):
    """An import that leaves a note in its owner's inbox when it ends.

    These are its hooks. A worker calls one of them once the end is stored, in a
    transaction that commits when the hook returns.
    """

    def on_success(self, request: Request) -> None:
        self.leave_note(request, f"{self.title} is done.")

    def on_error(self, request: Request) -> None:
        self.leave_note(request, f"{self.title} has failed.")

    def leave_note(self, request: Request, text: str) -> None:
        # A hook may run twice, so it looks for its own note. An import that runs again
        # has a new end, and leaves a new note.
        end = {"uuid": self.uuid, "finished_at": self.finished_at}
        if request.dbsession.get(Note, end) is None:
            request.dbsession.add(Note(**end, owner=self.owner, text=text))


class ImportFile(JobState):
    """A CSV file on its way into the database, by itself or as one of many."""

    public_params = ("filename",)

    @property
    def title(self) -> str:
        return f"Import of {self.get_job_param('filename')}"

    def public_error(self, exception_type: str, message: str) -> str:
        # BadFile is written for the file's owner. The text of any other exception may
        # hold secrets.
        if exception_type == f"{results.__name__}.{results.BadFile.__qualname__}":
            return message
        return "The import failed through no fault of the file."


class ImportResults(LeavesNote, ImportFile):
    """A file that is imported by itself."""


class ImportAll(LeavesNote, Batch):
    """Many files on their way into the database, a job each. One note is enough for
    them: an :class:`ImportFile` leaves none.
    """


def pacer(per_second: float | None) -> Callable[[int], None]:
    """Return a function that waits until it is time for step `n`, so that people can
    watch. With None it does not wait.
    """
    if per_second is None:
        return lambda n: None
    start = time.monotonic()

    def wait(n: int) -> None:
        early = start + n / per_second - time.monotonic()
        # A short sleep takes longer than it is told to.
        if early > 0.01:
            time.sleep(early)

    return wait


@dramatiq.actor(job_state=RunMarathon, time_limit=3_600_000)
def run_marathon(
    miles: float, miles_a_second: float | None, *, job_state: JobState
) -> None:
    """Run `miles`, and report every stride.

    At a sprint that makes some ten thousand calls a second, and a few hundred thousand
    flat out. The recorder sends only the latest values, ten times a second.
    """
    strides = round(miles * STRIDES)
    wait = pacer(miles_a_second and miles_a_second * STRIDES)
    clock = 0.0
    job_state.set_message("And they\u2019re off")
    for stride in job_state.track(range(1, strides + 1), unit="strides"):
        mile = stride / STRIDES
        seconds_a_mile = pace_at(stride / strides)
        clock += seconds_a_mile / STRIDES
        job_state.set_progress_metrics(
            miles_run=mile,
            clock=as_clock(clock),
            pace=as_pace(seconds_a_mile),
            strides=stride,
        )
        if stride % STRIDES == 0:
            job_state.append_log(f"Mile {mile:.0f} at {as_clock(clock)}")
        if stride == strides // 2:
            job_state.set_message("Half way")
        elif stride == strides * 8 // 10:
            job_state.set_message("This is where it gets hard")
        wait(stride)
    job_state.set_message(f"{miles:g} miles in {as_clock(clock)}")


def pace_at(fraction: float) -> float:
    """Return the runner's seconds per mile at this point of the course: fast down the
    first hills, slow up the last ones, and a little faster with the finish in sight.
    """
    course = ((0, 425), (0.3, 440), (0.6, 448), (0.8, 492), (0.92, 475), (1, 430))
    for (start, a), (end, b) in itertools.pairwise(course):
        if fraction <= end:
            return a + (b - a) * (fraction - start) / (end - start)
    return course[-1][1]


def as_clock(seconds: float) -> str:
    """Return a time as h:mm:ss."""
    return f"{int(seconds) // 3600}:{as_pace(seconds % 3600):0>5}"


def as_pace(seconds: float) -> str:
    """Return a time as m:ss."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02}"


@dramatiq.actor(job_state=ImportResults, throws=results.BadFile, max_retries=3)
def import_results(
    upload_id: int, filename: str, rows_a_second: float | None, *, job_state: JobState
) -> None:
    """Read an upload, and write its rows into the database.

    Parameters:
      upload_id: The id of the :class:`Upload`.
      filename: The name to show.
      rows_a_second: The speed limit, or None.

    Raises:
      BadFile: The file cannot be imported. Nothing was written, and a retry would not
        help.
    """
    import_upload(upload_id, rows_a_second, job_state)


# These jobs have a queue of their own, and give way to all others: a marathon that is
# started after 120 files need not wait for them.
@dramatiq.actor(
    job_state=ImportFile,
    throws=results.BadFile,
    max_retries=3,
    queue_name="files",
    priority=1,
)
def import_file(
    upload_id: int, filename: str, rows_a_second: float | None, *, job_state: JobState
) -> None:
    """Import one of many files, like :func:`import_results`. If it was cut off on its
    way, the complete file takes its place, and the job succeeds when it runs again.
    """
    with session_factory().begin() as session:
        upload = session.get_one(Upload, upload_id)
        # Each line of the timekeepers' files ends in a newline, the last one too.
        is_complete = upload.content.endswith(b"\n")
        line = upload.content.count(b"\n") + 1
        if not is_complete:
            upload.content = sample.make_file(filename)
    if not is_complete:
        raise results.BadFile(
            f"The file ends in the middle of line {line}. The timekeeper has sent it "
            "again: run this import once more."
        )
    import_upload(upload_id, rows_a_second, job_state)


def import_upload(
    upload_id: int, rows_a_second: float | None, job_state: JobState
) -> None:
    """Do the work of an import."""
    job_state.set_message("Checking the file")
    with session_factory().begin() as session:
        query = select(Upload.content).where(Upload.id == upload_id)
        content = session.execute(query).scalar_one()
    total = results.check(content)
    # The same message may run twice: remove what an earlier run wrote.
    with session_factory().begin() as session:
        session.execute(delete(Result).where(Result.upload_id == upload_id))

    job_state.set_message("Writing the rows")
    job_state.set_progress_metrics(rows_written=0, rows_rejected=0)
    rows = good_rows(results.read(content), job_state, total, pacer(rows_a_second))
    for chunk in chunks(rows, CHUNK):
        with session_factory().begin() as session:
            session.execute(
                insert(Result), [{"upload_id": upload_id, **row} for row in chunk]
            )
        job_state.increment_progress_metric("rows_written", len(chunk))
    job_state.set_message("All rows have been read")


def good_rows(
    rows: Iterator[tuple[int, dict[str, str]]],
    job_state: JobState,
    total: int,
    wait: Callable[[int], None],
) -> Iterator[dict[str, Any]]:
    """Yield the rows to write, and report the rejected ones."""
    bibs: set[int] = set()
    tracked = job_state.track(rows, total, unit="rows")
    for n, (line, row) in enumerate(tracked, start=1):
        try:
            result = results.parse(row)
            if result["bib"] in bibs:
                raise results.BadRow(f"bib {result['bib']} is taken")
        except results.BadRow as e:
            job_state.append_log(f"Line {line:,}: {e}")
            job_state.increment_progress_metric("rows_rejected")
        else:
            bibs.add(result["bib"])
            yield result
        job_state.set_progress_metrics(line=line, runner=row.get("name", ""))
        wait(n)


def chunks(items: Iterator[Any], size: int) -> Iterator[list[Any]]:
    """Yield the items in lists of `size`; the last one may be shorter."""
    chunk = []
    for item in items:
        chunk.append(item)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk
