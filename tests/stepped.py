"""Processes that take turns, one round trip to the server at a time, in an order that a
seed decides. Any of them may die at any round trip, and replies may be lost.

Each process is a thread of the test.
"""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

from redis.connection import AbstractConnection
from redis.exceptions import ConnectionError as Lost

from tests.trips import Killed, met

_here = threading.local()


#: What may happen to a process at a round trip: it dies, it stands still for a while
#: before it goes on, or it does not get the reply.
FATES = ("die before", "die after", "sleep", "sleep", "lose", "lose")


class Process:
    """A process.

    Attributes:
      is_over: Whether it has ended, in whatever way.
      error: What it raised, if anything.
      wakes_at: Until when it stands still, by the monotonic clock.
    """

    def __init__(self, world: World, main: Callable[[], None]) -> None:
        self.is_dead = False
        self.is_over = False
        self.error: BaseException | None = None
        self.wakes_at = 0.0
        self._world = world
        self._main = main
        self._go = threading.Semaphore(0)
        self._paused = threading.Semaphore(0)
        threading.Thread(target=self._run, daemon=True).start()

    def step(self) -> None:
        """Let it go on until its next round trip."""
        self._go.release()
        assert self._paused.acquire(timeout=30), "A process hangs."

    def pause(self, seconds: float = 0) -> None:
        """Wait for its turn, which comes after so many seconds."""
        if self.is_dead:
            raise Killed
        self.wakes_at = time.monotonic() + seconds
        self._paused.release()
        self._go.acquire()

    def begin(self) -> str:
        """Wait for its turn. Return what happens to the round trip."""
        self.pause()
        fate = self._world.fate()
        if fate == "die before":
            self.die()
        if fate == "sleep":
            self.pause(0.1)
        return fate

    def die(self) -> None:
        self.is_dead = True
        raise Killed

    def _run(self) -> None:
        _here.process = self
        self._go.acquire()
        try:
            self._main()
        except Killed:
            self.is_dead = True
        except BaseException as e:
            self.error = e
        self.is_over = True
        self._paused.release()


class World:
    """Processes, and what happens to them.

    Parameters:
      seed: Decides everything.
      faults: The share of round trips that are the last of their process, or whose
        reply is lost.

    Attributes:
      seen: How often each fate came.
    """

    def __init__(self, seed: int, faults: float) -> None:
        self.rng = random.Random(seed)
        self.faults = faults
        self.seen: Counter[str] = Counter()
        self.processes: list[Process] = []

    def start(self, main: Callable[[], None]) -> None:
        self.processes.append(Process(self, main))

    def step(self) -> bool:
        """Let one process go on. Return False if none is left."""
        live = [process for process in self.processes if not process.is_over]
        if not live:
            return False
        awake = [each for each in live if each.wakes_at <= time.monotonic()]
        if awake:
            self.rng.choice(awake).step()
        else:
            time.sleep(0.01)
        return True

    def fate(self) -> str:
        fate = "pass"
        if self.rng.random() < self.faults:
            fate = self.rng.choice(FATES)
        self.seen[fate] += 1
        return fate


@contextlib.contextmanager
def aside() -> Iterator[None]:
    """Let a process look at the server without waiting for its turn."""
    process = getattr(_here, "process", None)
    _here.process = None
    try:
        yield
    finally:
        _here.process = process


@contextlib.contextmanager
def stepped() -> Iterator[None]:
    """Have the round trips of processes take turns. Other threads are left alone."""
    read = AbstractConnection.read_response
    fates: dict[Any, str] = {}

    def meet(connection: Any, go: Callable[[], Any]) -> Any:
        fates[connection] = _here.process.begin()
        return go()

    def read_response(self: Any, *args: Any, **kwargs: Any) -> Any:
        fate = fates.pop(self, "pass")
        reply = read(self, *args, **kwargs)
        if fate in ("die after", "lose"):
            # Nobody else must read the other replies of a pipeline.
            self.disconnect()
        if fate == "die after":
            _here.process.die()
        if fate == "lose":
            raise Lost("The reply was lost.")
        return reply

    with (
        met(meet, lambda: getattr(_here, "process", None) is not None),
        mock.patch.object(AbstractConnection, "read_response", read_response),
    ):
        yield
