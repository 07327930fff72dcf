"""The same work done by others: celery-progress with Celery and Django, and RQ.

Each has its own worker process, started as its manual says, and writes into the same
server. The extra `benchmarks` installs them; those not installed are left out.
"""
