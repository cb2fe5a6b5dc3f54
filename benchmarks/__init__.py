"""Measurements of the package beside its peers: ``./run -m benchmarks SUBJECT``."""
