"""A test that hangs in C, with the lock of the interpreter held: no signal ends it."""

import ctypes

import pytest


@pytest.mark.timeout(2)
def test_that_hangs() -> None:
    """A thread that takes a mutex twice waits for itself."""
    mutex = ctypes.create_string_buffer(64)
    for _ in range(2):
        ctypes.PyDLL(None).pthread_mutex_lock(mutex)


def test_that_is_next() -> None:
    """It runs all the same."""
