"""Latency cost models. ``base`` has the protocol; one model a file."""
