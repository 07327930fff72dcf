"""What an update costs the job that makes it.

AT_MOST stands for a goal of 150 ns. The version of 27 November 2026 was measured at
0.80 of it; on another machine, it took as long as 1.56 steps of tqdm, the median of
three runs. So the goal was 1.95 steps.
"""

from __future__ import annotations

import io
import json
import logging
import time
import uuid

import redis
from tqdm import tqdm

from pyramid_jobstate import JobState, JobStore
from pyramid_jobstate.embedded import EmbeddedServer
from pyramid_jobstate.job.capture import new_journal
from pyramid_jobstate.job.record import End, NewJob, Update
from pyramid_jobstate.job.state import current_state, run_of
from pyramid_jobstate.store.jobstore import records_of

from .jobs import OWNER, running_job
from .push_writer import INFO
from .timing import Row, Table, side_by_side

#: The steps of tqdm that a `set_progress` may take.
AT_MOST = 1.95


def measure(server: EmbeddedServer) -> Table:
    with (
        running_job(JobStore(server.url)) as job_state,
        redis.Redis.from_url(server.url) as client,
    ):
        return Table(
            "An update, in a tight loop",
            [
                _set(job_state, client),
                _progress(job_state),
                _track(job_state),
                _log(job_state),
                _life(server, client),
            ],
        )


def _set(job_state: JobState, client: redis.Redis) -> Row:
    def set_metric(count: int) -> None:
        for i in range(count):
            job_state.set_progress_metric("miles_run", i)

    def hset(count: int) -> None:
        for i in range(count):
            client.hset("benchmark", "miles_run", i)

    ours, theirs = side_by_side((200_000, set_metric), (500, hset))
    return Row(
        "`HSET` by redis-py / `set_progress_metric`",
        theirs.over(ours),
        at_least=200,
        note=f"{theirs} / {ours}",
    )


def _progress(job_state: JobState) -> Row:
    def set_progress(count: int) -> None:
        for i in range(count):
            job_state.set_progress(i, count, "rows", "Reading")

    ours, theirs = side_by_side(
        (200_000, set_progress), (200_000, _bar), clock=time.thread_time
    )
    return Row(
        "`set_progress` with a total, a unit and a message / a step of tqdm",
        ours.over(theirs),
        at_most=AT_MOST,
        note=f"{ours} / {theirs} of CPU",
    )


def _life(server: EmbeddedServer, client: redis.Redis) -> Row:
    store = JobStore(server.url, namespace="life")
    info = INFO._replace(owner=json.dumps(OWNER))

    def live(count: int) -> None:
        for _ in range(count):
            job = str(uuid.uuid4())
            records_of(store).create(NewJob(job, info))
            records_of(store).confirm(job)
            records_of(store).write([Update(job, "run", 0, info, begins=True)])
            records_of(store).write([Update(job, "run", 1, info, end=End("success"))])

    def ping(count: int) -> None:
        for _ in range(count):
            client.ping()

    ours, theirs = side_by_side((100, live), (700, ping))
    return Row(
        "all that the store is told of a job without updates / 7 times `PING`",
        ours.over(theirs) / 7,
        note=f"{ours} / 7 · {theirs}",
    )


def _track(job_state: JobState) -> Row:
    def track(count: int) -> None:
        for _ in job_state.track(range(count)):
            pass

    ours, theirs = side_by_side((200_000, track), (200_000, _bar))
    return Row(
        "a step of `track` / a step of tqdm",
        ours.over(theirs),
        at_most=4,
        note=f"{ours} / {theirs}",
    )


class Logging(JobState):
    log_level = "WARNING"


def _log(job_state: JobState) -> Row:
    """Compare what is captured with the same without a job, for a handler that does
    nothing.
    """
    logger, plain = logging.getLogger(__name__), logging.getLogRecordFactory()
    logger.propagate = False
    logger.addHandler(logging.NullHandler())
    run_of(job_state).journal = new_journal(Logging, logging.WARNING, 1)
    capturing = logging.getLogRecordFactory()

    def log(count: int) -> None:
        for i in range(count):
            logger.warning("%d of %d rows", i, count)

    def captured(count: int) -> None:
        token = current_state.set(job_state)
        log(count)
        current_state.reset(token)

    def before(count: int) -> None:
        logging.setLogRecordFactory(plain)
        log(count)
        logging.setLogRecordFactory(capturing)

    things = [(20_000, do) for do in (captured, log, before)]
    ours, others, theirs = side_by_side(*things, clock=time.thread_time)
    logging.setLogRecordFactory(plain)
    return Row(
        "a record of `logging` that is captured / the same without",
        ours.over(theirs),
        at_most=2,
        note=f"{ours} / {theirs}; {others} outside such a job",
    )


def _bar(count: int) -> None:
    for _ in tqdm(range(count), file=io.StringIO()):
        pass
