"""Measurements of the package beside its peers; ``tools/benchmark.py`` prints them."""
