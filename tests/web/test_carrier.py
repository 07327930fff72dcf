"""The way of a stream's bytes from the hub's thread to a server's loop."""

from __future__ import annotations

import asyncio
import gc
import weakref

from pyramid_jobstate.web.push.carrier import LoopQueue


def test_queue_does_not_keep_its_loop() -> None:
    """What is given for a loop that has gone is dropped, and nothing keeps the loop."""
    loop = asyncio.new_event_loop()
    queue = LoopQueue(loop)
    loop.close()
    queue.deliver()
    reference = weakref.ref(loop)
    del loop
    gc.collect()
    assert reference() is None
    queue.deliver()
