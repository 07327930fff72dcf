"""A soak test with failures: ``python -m bench.soak``, ten minutes at most.

Worker processes are killed and frozen, the store goes away and comes back, messages are
redelivered, and hundreds of watchers poll over HTTP or follow streams. The jobs
themselves write what they do into a journal; in the end, everything that anyone saw is
checked against it, and how late streams showed the ends of jobs is measured.
All of it runs on this machine and talks only to 127.0.0.1.
"""
