"""Measurements of the package beside its peers: ``./run -m benchmarks SUBJECT``.

A subject is a module of this package. ``SIZES`` says what it is measured at, and
``cases(device, sizes)`` yields the candidates of each size. A subject with ``SCALING``, the sizes
of ``--scaling``, also takes ``peers=False``, which leaves ours alone.
"""
