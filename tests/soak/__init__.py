"""A soak in bad weather: ``python -m tests.soak``, ten minutes at the most.

Worker processes are killed and frozen, the store goes away and comes back, messages are
delivered again, and hundreds of pollers watch over HTTP. What the jobs did they wrote
into a journal themselves; in the end everything that anybody saw is held against it.

All of it runs on this machine and talks to 127.0.0.1 only.
"""
