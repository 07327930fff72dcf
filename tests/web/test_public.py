"""What applications may import, and what they are handed."""

import copy
import dataclasses
import inspect
import pickle
import re
from types import ModuleType
from typing import Any

import pytest
from dramatiq import Middleware

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


def test_public_members_are_documented() -> None:
    """Each public member of a public class has a docstring, and so a place in the
    reference. Dramatiq calls the hooks of a middleware, and has theirs.
    """
    for module in MODULES:
        for name in module.__all__:
            cls = getattr(module, name)
            if not isinstance(cls, type):
                continue
            hooks = dir(Middleware) if issubclass(cls, Middleware) else []
            said = cls.__doc__ or ""
            for member, found in vars(cls).items():
                if not member.startswith("_") and member not in hooks:
                    is_said = re.search(rf"^ *(.*\W)?{member}\W", said, re.MULTILINE)
                    assert is_said or inspect.getdoc(found), f"{name}.{member}"


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
