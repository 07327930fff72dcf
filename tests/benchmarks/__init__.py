"""Measures what is promised of the speed: ``python -m tests.benchmarks``.

Each figure is a ratio of two things that were done side by side, turn by turn, on the
same machine: absolute times say more about that than about us. One module has one
table.
"""
