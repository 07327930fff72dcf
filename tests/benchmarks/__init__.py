"""Measures what is promised about speed: ``python -m tests.benchmarks``.

Each figure is a ratio of two things that were timed side by side, in turns, on the same
machine: absolute times say more about the machine than about the package. Each module
makes one table.
"""
