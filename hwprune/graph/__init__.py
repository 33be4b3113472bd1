"""The graph analyzer: which channels must be pruned together, and which cannot be pruned and why.

``trace`` exports the user's network once; ``channels`` propagates atom ids through it with one rule per operator
family (``rules/``) and gathers what is connected into pruning groups.
"""
