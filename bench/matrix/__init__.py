"""Smoke runs of the package: ``python -m bench.matrix``."""
