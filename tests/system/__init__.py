"""Whole processes, other servers, and faults."""
