"""The ES module is the script."""

from tests.esmodule import MODULE, make_module


def test_module_is_made_of_the_script() -> None:
    """It is what ``python -m tests.esmodule`` makes of job-state.js."""
    assert MODULE.read_text("utf-8") == make_module()
