"""What measures the package and its tests, beside the tests themselves.

``python -m bench`` measures what is promised about speed; each module here makes one
table. Each figure is a ratio of two things that were timed side by side, in turns, on
the same machine: absolute times say more about the machine than about the package.
The folders measure other things: ``bench.soak``, ``bench.matrix``, ``bench.mutants``.
"""
