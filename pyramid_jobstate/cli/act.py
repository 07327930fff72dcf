"""What commands that change jobs share: what they say of each job, and the log of who
did what.
"""

from __future__ import annotations

import getpass
import logging
from collections.abc import Callable, Sequence

from ..job import JobState
from ..store import JobStore
from .faults import COULD_NOT, DONE, CouldNot, say
from .ids import find
from .output import Output

log = logging.getLogger("pyramid_jobstate")


class Results:
    """What was done to each job.

    Parameters:
      output: What takes it.
      what: What is done to jobs, such as "cancelled".
      is_dry_run: Whether it is only said.

    Attributes:
      code: The exit code so far.
    """

    def __init__(self, output: Output, what: str, *, is_dry_run: bool) -> None:
        self._output = output
        self._what = what
        self._is_dry_run = is_dry_run
        self.code = DONE

    def of_each(
        self,
        store: JobStore,
        names: Sequence[str],
        act: Callable[[JobState], None],
        usual: str,
    ) -> int:
        """Act on each of some jobs, and return the exit code.

        Parameters:
          store: The store of the jobs.
          names: Their ids, or the beginnings of these. Several may name one job.
          act: Acts on a job, or raises CouldNot with the reason.
          usual: The status to name if the record is gone right after that.

        Raises:
          redis.exceptions.RedisError: The store does not answer.
        """
        acted: set[str] = set()
        for name in dict.fromkeys(names):
            uuid = name
            try:
                job = find(store, name)
                uuid = job.uuid
                if uuid in acted:
                    continue
                acted.add(uuid)
                act(job)
            except CouldNot as e:
                self.refused(uuid, str(e))
                continue
            (job_now,) = store.load_many([uuid])
            self.done(uuid, usual if job_now is None else job_now.status)
        return self.code

    def done(self, uuid: str, status: str) -> None:
        """Say that it was done, or would be.

        Parameters:
          uuid: The job.
          status: Its status now.
        """
        would = f"would be {self._what}, is " if self._is_dry_run else ""
        self._output.tell(
            f"{uuid} {would}{status}",
            uuid=uuid,
            done=not self._is_dry_run,
            dry_run=self._is_dry_run,
            status=status,
        )
        if not self._is_dry_run:
            note(self._what, uuid)

    def refused(self, name: str, reason: str) -> None:
        """Say that it could not be done.

        Parameters:
          name: The uuid, or what the user gave for it.
          reason: Why, as a sentence that names the job.
        """
        self.code = COULD_NOT
        say(reason)
        if self._output.is_json:
            self._output.tell(
                "", uuid=name, done=False, dry_run=self._is_dry_run, error=reason
            )


def note(what: str, uuid: str, is_certain: bool = True) -> None:
    """Log what was done to a job.

    Parameters:
      what: What is done to jobs, such as "cancelled".
      uuid: The job.
      is_certain: Whether it was done, or only may have been.
    """
    if is_certain:
        log.info("%s %s the job %s.", operator(), what, uuid)
    else:
        line = "%s may have %s the job %s: the store did not answer."
        log.info(line, operator(), what, uuid)


def operator() -> str:
    """Return who uses this command, for the log."""
    try:
        return f"{getpass.getuser()} (pjobs)"
    except (KeyError, OSError):
        # The user has no name, as in some containers.
        return "pjobs"
