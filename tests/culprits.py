"""Tests that must not pass: see system/test_command.py."""

import ctypes
import os
import socket
import threading
import time

import pytest

if "CULPRITS_HANG" in os.environ:
    threading.Event().wait()


@pytest.mark.timeout(2)
def test_that_hangs() -> None:
    """It takes a mutex twice in C, with the lock of the interpreter held."""
    mutex = ctypes.create_string_buffer(64)
    for _ in range(2):
        ctypes.PyDLL(None).pthread_mutex_lock(mutex)


def test_that_leaves_a_thread() -> None:
    """It takes longer than it may."""
    threading.Thread(target=time.sleep, args=(8,), name="abandoned").start()


def test_that_leaves_a_socket() -> None:
    """Nobody closes it, and nobody has it."""
    kept: list[object] = [socket.socket()]
    kept.append(kept)


def test_that_leaves_nothing() -> None:
    """It runs all the same."""
