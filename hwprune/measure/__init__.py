"""Measuring: where numbers come from and where they are kept.

``worker`` is the process that builds and times, ``process`` talks to it, ``estimate`` turns samples into a latency,
``store`` keeps it, ``measurer`` decides what is still missing, ``probe`` reads this machine's own figures.
"""
