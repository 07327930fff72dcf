"""Other resources that take part in a transaction."""

from collections.abc import Callable
from typing import Any


class Manager:
    """A third party's data manager that fails, or does worse, in one phase."""

    transaction_manager = None

    def __init__(self, key: str, phase: str, what: Callable[[], Any]) -> None:
        self.key = key
        setattr(self, phase, lambda transaction: what())

    def sortKey(self) -> str:  # noqa: N802, the interface's name
        return self.key

    def nothing(self, transaction: Any) -> None:
        pass

    abort = tpc_begin = commit = tpc_vote = tpc_finish = tpc_abort = nothing


def fail(error: type[Exception] = ZeroDivisionError) -> None:
    raise error("The database is full.")
