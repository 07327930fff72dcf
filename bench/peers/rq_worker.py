"""What ``rq worker`` runs."""

from typing import Any

from rq import get_current_job

from .work import TASKS


def work(name: str, args: list[Any]) -> None:
    job = get_current_job()
    assert job is not None

    def report(done: int, total: int) -> None:
        job.meta["progress"] = {"done": done, "total": total}
        job.save_meta()

    TASKS[name](report, *args)
