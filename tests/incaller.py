"""A broker that runs each job within the call that sends it, as some test setups do."""

from typing import Any

from dramatiq.broker import MessageProxy
from dramatiq.brokers.stub import StubBroker


class InCallerBroker(StubBroker):
    """A broker that runs a job where it is sent. It tells the middleware as little as
    it can: that it processes a message and that it acknowledged or rejected it.

    Parameters:
      fail_fast: Whether to raise the job's exception in the sender, without telling
        the middleware.
      tells_all: Whether to tell the middleware all that Dramatiq's own brokers do.
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
        try:
            self._process(proxy)
        finally:
            signal = "nack" if proxy.failed else "ack"
            if self.tells_all:
                self.emit_before(signal, proxy)
            self.emit_after(signal, proxy)
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
