"""The mutants in ``bench`` fit the code."""

from bench.mutants import faults, load


def test_each_mutant_changes_one_place():
    """The pattern of each mutant matches once, and what replaces it compiles."""
    assert list(faults(load())) == []
