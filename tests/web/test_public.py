"""What applications may import, and what they are handed."""

import copy
import dataclasses
import inspect
import pickle
from types import ModuleType
from typing import Any

import pytest

import pyramid_jobstate
from pyramid_jobstate import (
    Bucket,
    BulkResult,
    Counts,
    Failures,
    JobError,
    Page,
    Phase,
    Progress,
    Try,
    asgi,
    embedded,
    fixtures,
    pages,
    resources,
    testing,
)

#: The public modules.
MODULES = (pyramid_jobstate, asgi, embedded, fixtures, pages, resources, testing)


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_public_names_are_documented(module: ModuleType) -> None:
    """Each public name can be imported, and has a docstring of its own."""
    assert module.__doc__
    for name in module.__all__:
        doc = inspect.getdoc(getattr(module, name))
        # A dataclass without one has its signature.
        assert doc and not doc.startswith(f"{name}("), name


@pytest.mark.parametrize(
    "handed",
    [
        Bucket, BulkResult, Counts, Failures, JobError, Page, Phase, Progress, Try,
        testing.Sent,
    ],
)  # fmt: skip
def test_what_users_are_handed_cannot_change(handed: Any) -> None:
    """It has fields by name alone, so that it may get others, and is immutable."""
    fields = dataclasses.fields(handed)
    found = handed(*range(len(fields)))
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(found, fields[0].name, 1)
    with pytest.raises(TypeError, match="not iterable"):
        iter(found)
    assert not hasattr(found, "__dict__")
    assert copy.copy(found) == pickle.loads(pickle.dumps(found)) == found
