"""How jobs end: the job that ran, and the steps of its pipeline that never begin."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dramatiq import Message

from ..job import NOT_REACHED, NOT_SENT, End, JobInfo, Run
from .access import StoreAccess
from .actors import TrackedFunctions
from .current import CurrentJob, Tracked
from .message import attempts_before
from .unsaved import Unsaved

if TYPE_CHECKING:
    from dramatiq import Broker
    from dramatiq.broker import MessageProxy

#: The end of a pipeline step whose turn never comes.
UNREACHED = End("cancelled", NOT_REACHED)


class Ends:
    """Writes how jobs end.

    Parameters:
      access: The access to the store.
      functions: The functions of the tracked actors.
    """

    def __init__(self, access: StoreAccess, functions: TrackedFunctions) -> None:
        self._access = access
        self._functions = functions

    def end(
        self, broker: Broker, job: CurrentJob, tracked: Tracked, acknowledged: bool
    ) -> None:
        """Write how a job ended. Called when its message is settled.

        Parameters:
          tracked: The actor's function.
          acknowledged: Whether the message was acknowledged rather than rejected.
        """
        message, unsaved = job.message, job.unsaved
        end = job.verdict(acknowledged)
        if unsaved is None:
            info = tracked.info_of(message, attempts_before(message))
            self.drop(broker, message, info, end)
            return
        self._access.recorder_for(broker).end(unsaved, end)
        if (unsaved.lost or unsaved.is_fenced) and not unsaved.is_cancelled:
            # Another run decides about the later steps.
            return
        if end.status in ("error", "cancelled"):
            self._drop_steps_after(broker, message)
        elif end.status == "success" and not job.is_next_sent:
            # Dramatiq only logs what the broker raised.
            self._drop_steps_after(broker, message, End("error", NOT_SENT))

    def drop(
        self, broker: Broker, message: MessageProxy, info: JobInfo, end: End
    ) -> None:
        """Write how a job ended when its message was stopped before a run began."""
        is_lost = self.write_dropped(broker, message.message_id, info, end).lost
        if not is_lost and end.status != "retrying":
            self._drop_steps_after(broker, message)

    def _drop_steps_after(
        self,
        broker: Broker,
        message: MessageProxy | Message[Any],
        end: End = UNREACHED,
    ) -> None:
        """Write `end` for the next step of a message's pipeline, and UNREACHED for the
        steps after that.
        """
        while (target := message.options.get("pipe_target")) is not None:
            message = Message(**target)
            function = self._functions.find(message)
            if function is not None:
                info = function.info_of(message)
                self.write_dropped(broker, message.message_id, info, end)
            end = UNREACHED

    def write_dropped(
        self, broker: Broker, uuid: str, info: JobInfo, end: End
    ) -> Unsaved:
        """Write how a job ended that never began, as soon as the store answers."""
        unsaved = Unsaved(uuid, Run(), info, dropped=True)
        self._access.recorder_for(broker).end(unsaved, end)
        return unsaved
