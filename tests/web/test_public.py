"""What applications may import, and what they are handed."""

import copy
import dataclasses
import inspect
import pickle
import re

import pytest
from dramatiq import Middleware

import pyramid_jobstate
from pyramid_jobstate import asgi, embedded, fixtures, pages, resources, testing
from tests.esmodule import MODULE, make_module

#: The public modules.
MODULES = (pyramid_jobstate, asgi, embedded, fixtures, pages, resources, testing)

#: What users are handed.
HANDED = [
    found
    for module in MODULES
    for name in module.__all__
    if dataclasses.is_dataclass(found := getattr(module, name))
]


def test_public_names_and_members_are_documented():
    """Each can be imported, and has a docstring, and so a place in the reference."""
    for module in MODULES:
        assert module.__doc__
        for name in module.__all__:
            found = getattr(module, name)
            doc = inspect.getdoc(found)
            # A dataclass without one has its signature.
            assert doc and not doc.startswith(f"{name}("), name
            if not isinstance(found, type):
                continue
            hooks = dir(Middleware) if issubclass(found, Middleware) else []
            said = found.__doc__ or ""
            for member, value in vars(found).items():
                if not member.startswith("_") and member not in hooks:
                    is_said = re.search(rf"^ *(.*\W)?{member}\W", said, re.MULTILINE)
                    assert is_said or inspect.getdoc(value), f"{name}.{member}"


@pytest.mark.parametrize("handed", HANDED)
def test_what_users_are_handed_cannot_change(handed):
    """It has fields by name alone, so that it may get others, and is immutable."""
    fields = dataclasses.fields(handed)
    found = handed(*range(len(fields)))
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(found, fields[0].name, 1)
    with pytest.raises(TypeError, match="not iterable"):
        iter(found)
    assert not hasattr(found, "__dict__")
    assert copy.copy(found) == pickle.loads(pickle.dumps(found)) == found


def test_module_is_made_of_the_script():
    """It is what ``python -m tests.esmodule`` makes of job-state.js."""
    assert MODULE.read_text("utf-8") == make_module()
