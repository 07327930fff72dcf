"""A broker that runs each job within the call that sends it, as some do for tests."""

import contextlib
from collections.abc import Iterator
from typing import Any

from dramatiq.broker import MessageProxy
from dramatiq.brokers.stub import StubBroker


class InCallerBroker(StubBroker):
    """Runs a job where it is sent, and tells the middleware as little as it can: that
    it processes a message, and has acknowledged or rejected it.

    Parameters:
      fail_fast: Whether the sender is raised what the job raises. The middleware is
        not told of that.
      tells_all: Whether it tells the middleware what Dramatiq's own brokers do, too.
    """

    def __init__(
        self, middleware: Any, *, fail_fast: bool = True, tells_all: bool = False
    ) -> None:
        super().__init__(middleware)
        self.fail_fast = fail_fast
        self.tells_all = tells_all

    def enqueue(self, message: Any, *, delay: int | None = None) -> Any:
        if self.tells_all:
            self.emit_before("enqueue", message, delay)
        proxy = MessageProxy(message)
        with self._acknowledging(proxy):
            self._process(proxy)
        if self.tells_all:
            self.emit_after("enqueue", message, delay)
        return proxy

    def _process(self, message: MessageProxy) -> None:
        try:
            self.emit_before("process_message", message)
            result = self.get_actor(message.actor_name)(*message.args, **message.kwargs)
        except BaseException as e:
            if self.fail_fast:
                raise
            self.emit_after("process_message", message, exception=e)
        else:
            self.emit_after("process_message", message, result=result)

    @contextlib.contextmanager
    def _acknowledging(self, message: MessageProxy) -> Iterator[None]:
        try:
            yield
        finally:
            signal = "nack" if message.failed else "ack"
            if self.tells_all:
                self.emit_before(signal, message)
            self.emit_after(signal, message)
