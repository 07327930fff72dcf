"""Watchers that follow a job by a stream where the server offers one."""

from __future__ import annotations

import asyncio
import json
import time

from .client import EVENTS, Answer, Event
from .pollers import Poller
from .sights import FINISHED, Job, Stream, ending_of

#: The seconds within which the first event of a stream comes, and after which a stream
#: that is told nothing is wrong.
FIRST = 5.0
SILENCE = 30.0

#: The seconds for which an event is awaited before the follower looks at the clock.
GLANCE = 0.5


class Follower(Poller):
    """Follows one job after the other as ``job-state.js`` does: by a poll, and by a
    stream if the answer offers one. When the stream ends or fails, it polls again.
    """

    last_id = ""
    is_told = False

    async def watch(self, job: Job) -> None:
        self.last_id, self.is_told = "", False
        await super().watch(job)

    async def go_on(self, answer: Answer) -> None:
        """Follow the job by a stream."""
        if answer.headers.get("jobstate-stream") != "1" or self.is_over:
            return
        if self.is_told and self.has_seen_end:
            # After a 204, an EventSource does not come again. If the job does, it may.
            return
        # The server closes a connection that rests.
        self.connection.close()
        stream = Stream(time.time())
        head = await self.ask("", Accept=EVENTS, Last_Event_ID=self.last_id)
        self.count(head)
        if head is not None and head.is_stream:
            stream.opened = time.time()
            self.job.streams.append(stream)
            await self.follow(stream)
            self.connection.close()

    def count(self, head: Answer | None) -> None:
        """Take note of the answer to a request for a stream."""
        streams = self.watched.streams
        if head is None:
            streams["none"] += 1
        elif head.is_stream:
            streams["open"] += 1
        elif head.status == 200:
            # All streams of the owner are taken, so that the answer is that to a poll.
            streams["refused"] += 1
            self.see(time.time(), json.loads(head.body))
        else:
            streams[str(head.status)] += 1
            self.is_told = head.status == 204
            if head.status == 204 and not self.has_seen_end:
                self.blame(f"gave 204 after {self.sights[-1]}")
            elif head.status not in (204, 503):
                self.blame(f"gave {head.status} for a stream")

    async def follow(self, stream: Stream) -> None:
        """Read a stream until it ends or this is over."""
        async with asyncio.TaskGroup() as group:
            try:
                await self.read(stream, group)
            except EOFError:
                self.watched.events["end"] += 1
            except OSError as e:
                self.blame(f"has a stream that broke off: {e}")
            stream.until = time.time()

    async def read(self, stream: Stream, group: asyncio.TaskGroup) -> None:
        heard, patience = stream.opened, FIRST
        cancel: asyncio.Task[None] | None = None
        while not self.is_over:
            if self.is_cancel_due and cancel is None:
                # What arrives meanwhile is read at once, and not when it is answered.
                cancel = group.create_task(self.cancel())
            event = await self.connection.next_event(GLANCE)
            if event is not None:
                heard, patience = event.at, SILENCE
                if not self.hear(stream, event):
                    return
            elif time.time() - heard > patience:
                self.blame(f"has a stream that was told nothing for {patience:g} s")
                return

    def hear(self, stream: Stream, event: Event) -> bool:
        """Take note of an event. Return whether to go on."""
        self.watched.events[event.name] += 1
        if event.id:
            self.last_id = event.id
        if event.name == "message":
            state = json.loads(event.data)
            self.see(event.at, state)
            # A poll shall not answer that all is as it was before the stream.
            self.etag = ""
            if state["job"]["status"] in FINISHED:
                stream.endings.append(ending_of(event.at, state))
        elif event.name == "away":
            stream.away.append(event.at)
        return event.name != "gone"
