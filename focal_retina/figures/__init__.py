"""Pictures as PNG files, each with the numbers that it shows: a file a figure.

Matplotlib's ``Figure`` is used without pyplot, so no picture needs a display.
"""
