"""What others do for the same: celery-progress with Celery and Django, and RQ.

Each has a worker process of its own, as its manual starts it, and writes into the same
server. They come with the extra `benchmarks`; who is not installed is left out.
"""
