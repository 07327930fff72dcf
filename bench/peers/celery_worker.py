"""``python -m celery -A bench.peers.celery_worker worker``."""

from typing import Any

from celery import Celery, Task
from celery_progress.backend import ProgressRecorder

from .work import BROKER, STATE, TASKS

app = Celery(broker=BROKER, backend=STATE)


@app.task(bind=True, name="work")
def work(self: Task, name: str, args: list[Any]) -> None:
    TASKS[name](ProgressRecorder(self).set_progress, *args)
