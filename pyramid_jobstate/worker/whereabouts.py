"""Where the jobs of this process are: the stacks of their threads and tasks."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import operator
import os
import sys
import threading
import traceback
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain
from typing import Any

from dramatiq.asyncio import EventLoopThread

from ..store.connection import LOST, ConnectionsInUse
from ..store.jobstore import JobStore, records_of
from .current import CurrentJob

log = logging.getLogger("pyramid_jobstate")

#: The bytes that are kept of a stack: its innermost frames.
MAX_STACK = 64 * 1024

#: The characters that are kept of a thread's name.
MAX_NAME = 200

#: The seconds that an event loop may take to run what it is given.
LOOP_SECONDS = 0.5

#: How often to read a stack that keeps changing, and the most frames to show.
READS, MOST_FRAMES = 5, 1000

#: Returns the innermost frame of each thread by its identifier. It is documented, for
#: debugging tools such as this, in spite of its name. Before Python 3.12 it holds the
#: lock of the list of threads while it allocates. If a collection at that moment frees
#: a `threading.local`, or lets a thread end, it waits for that lock, and the process
#: stands still for good (CPython's gh-106883).
current_frames = sys._current_frames  # noqa: SLF001

#: What to call for these frames, by whether the garbage collector is on.
IS_ON = (gc.isenabled,)
STEPS: Mapping[bool, tuple[Callable[[], Any], ...]] = {
    True: (gc.disable, current_frames, gc.enable),
    False: (current_frames,),
}

#: A frame, and the line that it executes.
Place = tuple[types.FrameType, int]

#: The functions in which a thread waits for a coroutine, each with what returns its
#: loop, given the first parameter. uvloop's run_until_complete() has no frame.
WAITING: Mapping[types.CodeType, Callable[[Any], asyncio.AbstractEventLoop]] = {
    EventLoopThread.run_coroutine.__code__: operator.attrgetter("loop"),
    asyncio.BaseEventLoop.run_until_complete.__code__: lambda loop: loop,
    asyncio.Runner.run.__code__: asyncio.Runner.get_loop,
}

#: The frame of what can be awaited, and what it awaits in turn, by type.
AWAITED: Mapping[type, Callable[[Any], tuple[types.FrameType | None, object]]] = {
    types.CoroutineType: operator.attrgetter("cr_frame", "cr_await"),
    types.GeneratorType: operator.attrgetter("gi_frame", "gi_yieldfrom"),
    types.AsyncGeneratorType: operator.attrgetter("ag_frame", "ag_await"),
}

#: The types of what __await__() of a coroutine returns, and of what the methods of an
#: asynchronous generator and anext() return. Only the garbage collector knows what they
#: wrap: their first referent.
WRAPPERS = {
    "coroutine_wrapper",
    "async_generator_asend",
    "async_generator_athrow",
    "anext_awaitable",
}


class Answers:
    """Tells those who ask where jobs are. Costs nothing until somebody asks.

    Parameters:
      store: The store.
      jobs: The jobs that this process runs, by message id.
    """

    def __init__(self, store: JobStore, jobs: Mapping[str, CurrentJob]) -> None:
        self._store = store
        self._jobs = jobs
        self._asked: set[CurrentJob] = set()

    def give(self, uuids: Iterable[str]) -> None:
        """Say where some jobs are, as far as they run here. Does not wait for it."""
        # Other threads change the jobs meanwhile.
        found = {job for uuid in uuids if (job := self._jobs.get(uuid)) is not None}
        new = found - self._asked
        if new:
            self._asked |= new
            # Apart from the recorder: a loop may be slow, and sources be on a disk.
            thread = threading.Thread(target=self._answer, args=(new,), daemon=True)
            try:
                thread.start()
            except RuntimeError:
                # There are too many, or the interpreter is about to exit.
                self._asked -= new

    def _answer(self, jobs: set[CurrentJob]) -> None:
        blocked: set[asyncio.AbstractEventLoop] = set()
        for job in jobs:
            try:
                self._say(job, blocked)
            except (*LOST, ConnectionsInUse):
                # After a while, the asker reads that nobody answers.
                self._asked -= jobs
                return
            except Exception:
                log.exception("The stack of job %s could not be told.", job.uuid)

    def _say(self, job: CurrentJob, blocked: set[asyncio.AbstractEventLoop]) -> None:
        unsaved = job.unsaved
        try:
            found = read_stack(job, blocked)
        finally:
            # Once the answer is stored, the job may be asked again.
            self._asked.discard(job)
        # Its thread may have gone on to another job.
        if found is None or unsaved is None or self._jobs.get(job.uuid) is not job:
            return
        thread, stack = found
        memory = memory_used()
        says = {
            "worker": unsaved.info.worker or "",
            "thread": thread,
            "memory": "" if memory is None else str(memory),
            "stack": stack,
        }
        records_of(self._store).answer_where(job.uuid, unsaved.run.token, says)


def read_stack(
    job: CurrentJob, blocked: set[asyncio.AbstractEventLoop]
) -> tuple[str, str] | None:
    """Return the name of the thread that is at work on a job, and its stack as text,
    without the values of variables; or None if no thread is at work on it.

    Parameters:
      blocked: The loops that have not answered. They are not waited for again.
    """
    found = _places_in(job)
    if found is None:
        return None
    ident, places = found
    for i, (frame, _) in enumerate(places):
        if frame.f_code in WAITING:
            ident, inner = _places_awaited(frame, ident, blocked)
            places = inner + places[i:] if inner else places
            break
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    # Without a limit, that of sys.tracebacklimit would count from the outermost.
    shown = traceback.StackSummary.extract(reversed(places), limit=-MOST_FRAMES)
    # Names may have been made of file names that are not UTF-8.
    name, text = (
        each.encode("utf-8", "replace")
        for each in (names.get(ident, "")[:MAX_NAME], "".join(shown.format()))
    )
    return name.decode(), text[-MAX_STACK:].decode("utf-8", "ignore")


def _places_in(job: CurrentJob) -> tuple[int | None, list[Place]] | None:
    """Return which thread is in the broker's call that processes the message of a job,
    and the places from its innermost call outwards, up to that; or None if none is.
    """
    for _ in range(READS):
        for ident, frame in _frames().items():
            if places := _places_from(frame, job.frame):
                return ident, places
        # It has returned from a call meanwhile.
    # A greenlet that waits is in no thread's stack. That of gevent names its thread.
    greenlet = None if job.greenlet is None else job.greenlet()
    if greenlet is None:
        return None
    places = _places_from(greenlet.gr_frame, job.frame)
    return (id(greenlet), places) if places else None


def _frames() -> dict[int, types.FrameType]:
    """Return the innermost frame of each thread by its identifier."""
    was_on = gc.isenabled()
    # Called from C alone, so that meanwhile no other thread runs, forks, or turns the
    # collector on or off, and no interrupt comes.
    steps = chain.from_iterable(map(STEPS.__getitem__, map(operator.call, IS_ON)))
    try:
        # No variable has them: its frame, this one, is among them.
        return next(filter(None, list(map(operator.call, steps))))
    except BaseException:
        # An audit hook refuses it.
        if was_on:
            gc.enable()
        raise


def _places_from(
    frame: types.FrameType | None, outer: types.FrameType | None = None
) -> list[Place]:
    """Return the places from a frame outwards, up to an outer one and without it; none
    if that does not enclose the frame.
    """
    places: list[Place] = []
    while frame is not None and frame is not outer:
        places.append((frame, frame.f_lineno))
        frame = frame.f_back
    return places if frame is outer else []


def _places_awaited(
    frame: types.FrameType,
    ident: int | None,
    blocked: set[asyncio.AbstractEventLoop],
) -> tuple[int | None, list[Place]]:
    """Return which thread runs the coroutine for which a frame waits, and its places
    from the innermost outwards; none if the thread of the frame runs it just now.

    Parameters:
      frame: That of a function in WAITING.
      ident: Its thread.
      blocked: As of :func:`read_stack`.
    """
    # The parameters of those functions are what has the loop, and what is awaited.
    variables = frame.f_locals
    owner, awaited = (variables[name] for name in frame.f_code.co_varnames[:2])
    if isinstance(variables, dict):
        # Before Python 3.13 the frame keeps this copy, and with it what the function
        # deletes: a future, which would keep the frames of a failed coroutine.
        variables.clear()
    is_elsewhere = isinstance(owner, EventLoopThread)
    if is_elsewhere:
        ident = owner.ident
    coroutine = awaited.get_coro() if isinstance(awaited, asyncio.Task) else awaited
    found: list[Place] = []
    is_done = threading.Event()

    def look() -> None:
        # The loop runs nothing else now, so the coroutine is suspended.
        found.extend(_places_of(coroutine))
        is_done.set()

    # The loop may have been closed meanwhile.
    with contextlib.suppress(RuntimeError):
        loop = WAITING[frame.f_code](owner)
        loop.call_soon_threadsafe(look)
        if is_done.wait(0 if loop in blocked else LOOP_SECONDS):
            return ident, found[::-1]
        blocked.add(loop)
    # Something blocks the loop.
    return ident, _places_from(_frames().get(ident or 0)) if is_elsewhere else []


def _places_of(awaited: Any) -> Iterator[Place]:
    """Yield the places of a suspended coroutine from the outermost inwards. A task's
    own stack has only the first of them.
    """
    # Other objects are not asked for attributes: they may run code of the application.
    while (kind := type(awaited)) in AWAITED or kind.__name__ in WRAPPERS:
        if kind in AWAITED:
            frame, awaited = AWAITED[kind](awaited)
            if frame is not None:
                yield frame, frame.f_lineno
        else:
            awaited = next(iter(gc.get_referents(awaited)), None)


def memory_used() -> int | None:
    """Return the bytes of memory that this process uses, or None: only Linux says."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return None
