"""Measures what is promised about speed (``python -m bench``), and what else the
tests themselves do not: see ``bench.soak``, ``bench.matrix`` and ``bench.mutants``.

Each figure is a ratio of two things that were timed side by side, in turns, on the same
machine: absolute times say more about the machine than about the package. Each module
makes one table.
"""
