"""`pjobs … log`: the lines of a job, and with `-f` each new one once."""

import json
import subprocess
from typing import IO

import pytest
import redis

from pyramid_jobstate import JobState, JobStore
from pyramid_jobstate.cli.log import Lines
from tests.operated import HARMLESS, HOSTILE, Operator, Start, end, finished, put
from tests.support import key_of, load_job


def write(client: redis.Redis, store: JobStore, uuid: str, log: list[str]) -> None:
    client.hset(key_of(store, uuid), "log", json.dumps(log))


def follow(
    start: Start, url: str, store: JobStore
) -> tuple[JobState, "subprocess.Popen[str]", IO[str]]:
    """Return a job with one line, and a `log -f` of it that has printed that, with its
    output.
    """
    job = put(store, log=["one"])
    process = start("--url", url, "log", "-f", job.uuid)
    assert process.stdout is not None
    assert process.stdout.readline() == "one\n"
    return job, process, process.stdout


def test_the_lines_of_a_job(pjobs: Operator, store: JobStore) -> None:
    """Each line is printed as it is, but harmless; JSON keeps it."""
    job = put(store, log=["one", HOSTILE])
    assert pjobs("log", job.uuid) == (0, ["one", HARMLESS], [])
    found = [json.loads(line) for line in pjobs("log", job.uuid, "--json").out]
    assert found == [
        {"uuid": job.uuid, "attempt": 1, "line": line} for line in ("one", HOSTILE)
    ]


def test_nothing_logged(pjobs: Operator, store: JobStore) -> None:
    """A job without a log has no lines."""
    assert pjobs("log", put(store, "queued").uuid) == (0, [], [])


def test_new_lines_are_followed_to_the_end(
    start: Start, redis_url: str, store: JobStore, client: redis.Redis
) -> None:
    """`log -f` prints the lines so far, each new one once, and ends with the job."""
    job, process, lines = follow(start, redis_url, store)
    write(client, store, job.uuid, ["one", "one"])
    assert lines.readline() == "one\n"
    write(client, store, job.uuid, ["one", "one", HOSTILE, "end"])
    assert lines.readline() == HARMLESS + "\n"
    assert lines.readline() == "end\n"
    end(store, job, "error")
    assert finished(process) == (0, [], [])


def test_the_last_lines_of_an_ended_job(pjobs: Operator, store: JobStore) -> None:
    """`log -f` of a job that is over prints its lines and ends."""
    job = put(store, "success", log=["one", "two"])
    assert pjobs("log", "--follow", job.uuid) == (0, ["one", "two"], [])


def test_a_record_that_goes(
    start: Start, redis_url: str, store: JobStore, client: redis.Redis
) -> None:
    """If the record expires, the log ends with 1."""
    job, process, _ = follow(start, redis_url, store)
    client.delete(key_of(store, job.uuid))
    ran = finished(process)
    assert ran == (1, [], [f"pjobs: The record of {job.uuid} is gone."])


def test_a_log_that_overflows_between_two_looks(
    start: Start, redis_url: str, store: JobStore, client: redis.Redis
) -> None:
    """If none of the last lines is known, stderr says that some may be missing."""
    job, process, _ = follow(start, redis_url, store)
    assert process.stderr is not None
    write(client, store, job.uuid, [str(i) for i in range(20)])
    line = process.stderr.readline()
    assert line == f"pjobs: Lines of {job.uuid} may be missing here.\n"
    end(store, job)
    assert finished(process) == (0, [str(i) for i in range(20)], [])


@pytest.mark.parametrize(
    ("before", "after", "new", "missed"),
    [
        ([], ["a"], ["a"], False),
        (["a"], ["a"], [], False),
        (["a"], ["a", "a"], ["a"], False),
        (["a"], ["b"], ["b"], False),
        # Only a full log drops its first line.
        (["a", "b"], ["b", "c"], ["b", "c"], False),
        (["a"] * 20, ["a"] * 20, [], False),
        (["x", *"a" * 19], ["a"] * 20, ["a"], False),
        ([*"ab" * 10], [*"b", *"ab" * 9, "a"], ["a"], False),
        ([*"abcdefghijklmnopqrst"], [*"tuvwxyzABCDEFGHIJKLM"], None, False),
        ([*"abcdefghijklmnopqrst"], [*"uvwxyzABCDEFGHIJKLMN"], None, True),
        ([], ["a"] * 20, ["a"] * 20, True),
    ],
)
def test_new_lines_are_told(
    store: JobStore,
    client: redis.Redis,
    before: list[str],
    after: list[str],
    new: list[str] | None,
    missed: bool,
) -> None:
    """The new lines are the fewest that explain the log, of which 20 lines are kept."""
    job = put(store, log=before)
    lines = Lines()
    assert lines.new(job) == (before, False)
    write(client, store, job.uuid, after)
    if new is None:
        new = [line for line in after if line not in before]
    assert lines.new(load_job(store, job.uuid)) == (new, missed)


def test_each_attempt_has_a_new_log(store: JobStore, client: redis.Redis) -> None:
    """The log of another attempt is new, even if it begins alike."""
    job = put(store, log=["one"])
    lines = Lines()
    lines.new(job)
    client.hset(key_of(store, job.uuid), "attempt", 2)
    assert lines.new(load_job(store, job.uuid)) == (["one"], False)
