"""Interrupt jobs with a request anywhere: ``python -m tests.requestinterrupts HOW KIND
REDIS_URL FOLDER COUNT SEED``.

HOW is "steps", at each COUNTth call or return of the package's web side and of the
transaction machinery, or "times", at COUNT random times, which a FileStorage does not
survive. KIND is "sqlite", "zodb" or "zeo".

It runs in its own process without coverage, whose tracer does not survive such an
interrupt.
"""

from __future__ import annotations

import collections
import contextlib
import faulthandler
import gc
import inspect
import logging
import random
import sys
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any

import sqlalchemy
import transaction
import ZEO
import zope.sqlalchemy
from dramatiq.middleware import Interrupt, Middleware
from dramatiq.middleware.threading import raise_thread_exception
from pyramid import threadlocal
from pyramid.request import Request

from pyramid_jobstate import RequestMiddleware
from tests.counters import SQL, Database, Zodb, make_app
from tests.jobs import job_actor, make_broker, store_of, working
from tests.support import wait_for
from tests.web.databases import Manager
from tests.web.visits import NOT_SENT

#: The sort keys of data managers before all, and just before a one-phase database.
FIRST, BEFORE_ONE_PHASE = "!", "~r"

#: Where "steps" interrupts: in these folders. ZODB itself cannot be interrupted at any
#: time: a FileStorage keeps its commit lock for good if the thread that waits for it is
#: interrupted, and closes itself if its tpc_finish is.
FOLDERS = tuple(
    str(Path(inspect.getfile(each)).parent)
    for each in (RequestMiddleware, transaction, zope.sqlalchemy)
)

#: Functions that Python calls when it frees something. It ignores what they raise, and
#: may crash if a profile function raises it.
FINALIZERS = {"<genexpr>", "_collection_gced", "complain", "_remove", "remove"}


class Steps(Middleware):
    """Interrupts a message whose option `step` is a number at that call or return."""

    def __init__(self) -> None:
        self.count = 0
        self.hit: set[str] = set()

    def before_process_message(self, broker: Any, message: Any) -> None:
        step = message.options.get("step")
        if step is None:
            return
        self.count = 0

        def profile(frame: FrameType, event: str, arg: Any) -> None:
            if event == "c_call" or frame.f_code.co_name in FINALIZERS:
                return
            if not (is_ours(frame) or is_ours(frame.f_back)):
                return
            self.count += 1
            if self.count == step:
                self.hit.add(message.message_id)
                raise Interrupt(f"at {event} of {frame.f_code.co_qualname}")

        sys.setprofile(profile)

    def after_process_message(
        self, broker: Any, message: Any, *, result: Any = None, exception: Any = None
    ) -> None:
        sys.setprofile(None)

    after_skip_message = after_process_message


class Times(Middleware):
    """Interrupts a message with the option `after`, a share of the usual time that a
    message takes, when that has passed, unless it has been processed by then.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.hit: set[str] = set()
        self.running: dict[str, int] = {}
        self.usual = 0.0
        self.begun = 0.0
        # What each thread processes.
        self.current = threading.local()

    def before_process_message(self, broker: Any, message: Any) -> None:
        after = message.options.get("after")
        self.begun = time.monotonic()
        self.current.message = message
        if after is not None:
            # An interrupt leaves SQLAlchemy's frames in a cycle, and one of them may
            # have a cursor of SQLite that locks the file.
            gc.collect()
            self.running[message.message_id] = threading.get_ident()
            due = after * self.usual
            timer = threading.Timer(due, self.interrupt, (message.message_id,))
            timer.daemon = True
            timer.start()

    def guard(self, actor: Any) -> None:
        """Stop interrupting an actor once it has returned: an interrupt would end
        Dramatiq's thread.
        """
        fn = actor.fn

        def guarded(*args: Any, **kwargs: Any) -> None:
            message = self.current.message
            try:
                fn(*args, **kwargs)
            finally:
                with self.lock:
                    self.running.pop(message.message_id, None)
                if message.options.get("is_measured"):
                    self.usual = time.monotonic() - self.begun

        actor.fn = guarded

    def interrupt(self, message_id: str) -> None:
        with self.lock:
            thread = self.running.pop(message_id, None)
            if thread is not None:
                self.hit.add(message_id)
                raise_thread_exception(thread, Interrupt)


def is_ours(frame: FrameType | None) -> bool:
    return frame is not None and frame.f_code.co_filename.startswith(FOLDERS)


class Scene:
    """An application whose jobs leave a mark and send a job.

    Attributes:
      begun: How many frames Pyramid's threadlocals had in each run.
      reached: The jobs whose database may have committed.
      children: The jobs that each job was to send.
      ran: The jobs that have run, but for those that send others.
    """

    def __init__(
        self, kind: str, redis_url: str, folder: Path, interrupter: Any
    ) -> None:
        if kind == "zeo":
            address, _ = ZEO.server(str(folder / "counters.fs"))
            uri = f"zeo://127.0.0.1:{address[1]}?wait_timeout=30"
            self.database: Database = Zodb(uri)
        elif kind == "zodb":
            self.database = Zodb(f"file://{folder / 'counters.fs'}")
        else:
            # An interrupt within SQLAlchemy's pool takes one of its places for good.
            url = f"sqlite:///{folder / 'counters.sqlite'}"
            self.database = SQL(url, poolclass=sqlalchemy.NullPool)
        self.broker = make_broker(redis_url)
        make_app(self.broker, redis_url, self.database, "thread")
        self.broker.add_middleware(interrupter)
        self.interrupter = interrupter
        self.begun: list[int] = []
        self.reached: set[str] = set()
        self.children: dict[str, list[str]] = {}
        self.ran: collections.Counter[str] = collections.Counter()
        key, phase = (
            (BEFORE_ONE_PHASE, "tpc_vote")
            if self.database.has_one_phase
            else (FIRST, "tpc_finish")
        )

        @job_actor(broker=self.broker, max_retries=0)
        def follow(*, job_state: Any) -> None:
            self.ran[job_state.uuid] += 1

        @job_actor(broker=self.broker, max_retries=0)
        def save(*, request: Request, job_state: Any) -> None:
            self.begun.append(len(threadlocal.manager.stack))
            uuid = job_state.uuid
            request.tm.get().join(Manager(key, phase, lambda: self.reached.add(uuid)))
            self.database.mark(request, uuid)
            for _ in range(2):
                child = request.job_states.send(follow)
                self.children.setdefault(uuid, []).append(child.uuid)

        self.save = save
        if isinstance(interrupter, Times):
            interrupter.guard(save)

    def send(self, **options: Any) -> str:
        return self.save.send_with_options(**options).message_id

    def status(self, uuid: str) -> str:
        state = store_of(self.broker).load(uuid)
        return "unknown" if state is None else state.status

    def wait_for(self, uuid: str) -> None:
        wait_for(lambda: self.status(uuid) in ("success", "error"))

    def wait_for_silence(self) -> None:
        """Wait until the broker has no messages."""
        names = ("dramatiq:default", "dramatiq:default.msgs")
        wait_for(lambda: not any(map(self.broker.client.exists, names)), 60)

    def check(self, uuid: str) -> None:
        """Check what a job has left."""
        status, marks = self.status(uuid), self.database.marks(uuid)
        job = store_of(self.broker).load(uuid)
        what = f"{uuid}: {status} ({job and job.error}), {marks} marks"
        if status == "success":
            assert marks == 1, what
        else:
            assert status == "error" and uuid in self.interrupter.hit, what
            assert marks in (0, 1), what
            assert marks == 0 or uuid in self.reached, what
        for child in self.children.get(uuid, ()):
            found, runs = self.status(child), self.ran[child]
            what += f", child {found}, which ran {runs} times"
            if found == "error":
                state = store_of(self.broker).load(child)
                assert state is not None and state.error is not None, what
                assert state.error.message == NOT_SENT, what
                assert runs == 0 and uuid in self.interrupter.hit, what
            elif found == "unknown":
                assert runs == 0 and marks == 0, what
            else:
                assert (found, runs, marks) == ("success", 1, 1), what


def interrupt_steps(scene: Scene, steps: Steps, stride: int) -> list[str]:
    """Interrupt one job after the other, each `stride` steps later than the one
    before.
    """
    with working(scene.broker, threads=1):
        scene.wait_for(scene.send(step=0))
        count = steps.count
        assert count > 100
        sent = []
        for step in range(1, count + 1, stride):
            sent.append(scene.send(step=step))
            # What an interrupt has left must not harm the next job.
            sent.append(scene.send())
            scene.wait_for(sent[-1])
            assert scene.status(sent[-1]) == "success", scene.status(sent[-2])
        scene.wait_for_silence()
    print(f"{len(steps.hit)} of {count} steps")
    assert len(steps.hit) > len(sent) / 2 * 0.9
    return sent


def interrupt_times(scene: Scene, times: Times, count: int, seed: int) -> list[str]:
    """Interrupt jobs at random times."""
    dice = random.Random(seed)
    with working(scene.broker, threads=1):
        for _ in range(3):
            scene.wait_for(scene.send(is_measured=True))
    # With a ZODB, jobs at the same time would conflict.
    with working(scene.broker, threads=2 if scene.database.has_one_phase else 1):
        sent = [scene.send(after=dice.random() * 1.3) for _ in range(count)]
        for uuid in sent:
            scene.wait_for(uuid)
        scene.wait_for_silence()
    print(f"{len(times.hit)} of {count} jobs")
    assert len(times.hit) > count / 4
    return sent


def main(
    how: str, kind: str, redis_url: str, folder: str, count: str, seed: str
) -> None:
    faulthandler.dump_traceback_later(100, exit=True)
    log = Log()
    logging.basicConfig(handlers=[log])
    if how == "steps":
        steps = Steps()
        scene = Scene(kind, redis_url, Path(folder), steps)
        sent = interrupt_steps(scene, steps, int(count))
    else:
        # An interrupt may leave the lock of logging locked.
        vars(logging)["_lock"] = vars(log)["lock"] = NoLock()
        # The timers must not wait for the jobs' threads.
        sys.setswitchinterval(1e-4)
        times = Times()
        scene = Scene(kind, redis_url, Path(folder), times)
        sent = interrupt_times(scene, times, int(count), int(seed))
    for uuid in sent:
        scene.check(uuid)
    found = collections.Counter(
        (scene.status(uuid), scene.database.marks(uuid)) for uuid in sent
    )
    print(found)
    children = collections.Counter(
        scene.status(child) for uuid in sent for child in scene.children.get(uuid, ())
    )
    print(children)
    # Nothing of an interrupted job was left in the thread.
    assert set(scene.begun) == {1}
    print(log.errors)
    assert not log.errors


class NoLock(contextlib.nullcontext[None]):
    """Locks nothing."""

    def acquire(self) -> bool:
        return True

    def release(self) -> None:
        pass


class Log(logging.Handler):
    """Counts the errors, other than interrupts, that the package has logged or raised.
    Some databases complain of an interrupt with errors of their own.
    """

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.errors: collections.Counter[str] = collections.Counter()

    def emit(self, record: logging.LogRecord) -> None:
        _, error, place = record.exc_info or (None, None, None)
        while place is not None and place.tb_next is not None:
            place = place.tb_next
        file = place.tb_frame.f_code.co_filename if place else record.pathname
        if "pyramid_jobstate" in file and not isinstance(error, Interrupt):
            self.errors[repr(error) if error else record.getMessage()[:50]] += 1


if __name__ == "__main__":
    main(*sys.argv[1:])
