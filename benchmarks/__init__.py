"""Measurements of the package beside its peers: ``./run -m benchmarks SUBJECT``.

A subject is a module of this package. ``SIZES`` says what it is measured at, ``SCALING``, where it
stands, the sizes of ``--scaling``, and ``cases(device, sizes)`` yields the candidates at each size.
"""
