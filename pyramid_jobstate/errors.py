"""The errors that somebody may catch."""

from __future__ import annotations


class StoreUnavailable(Exception):
    """The store does not answer a web request.

    Parameters:
      container: The JobStates that asked it.
    """

    def __init__(self, container: object) -> None:
        super().__init__("The job state store does not answer.")
        self.container = container
