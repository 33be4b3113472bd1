"""hwprune: hardware-aware structured pruning, measured on the target it is for."""
__version__ = "0.1.0"
