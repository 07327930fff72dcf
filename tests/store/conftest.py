"""Batches for the tests of the store."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from pyramid_jobstate import JobStore
from tests.store.bed import Bed


@pytest.fixture
def make_bed(store: JobStore) -> Iterator[Callable[..., Bed]]:
    """Sends a batch, in the usual store or another."""
    with contextlib.ExitStack() as stack:

        def make(count: int = 3, store: JobStore = store, **options: Any) -> Bed:
            bed = Bed(store, count, **options)
            return stack.enter_context(contextlib.closing(bed))

        yield make


@pytest.fixture
def bed(make_bed: Callable[..., Bed]) -> Bed:
    """A batch of three members."""
    return make_bed()
