"""The graph analyzer: which channels must be pruned together, and which cannot be pruned and why.

``trace`` exports the user's network once; ``channels`` propagates atom ids through it with one rule per operator
family (``rules/``) and gathers what is connected into pruning groups.
"""

from hwprune.graph.atoms import Reason
from hwprune.graph.channels import AxisSlice, ChannelGraph, FrozenAxis, Group, analyze
from hwprune.graph.trace import SourceRef, Traced, trace

__all__ = ["AxisSlice", "ChannelGraph", "FrozenAxis", "Group", "Reason", "SourceRef", "Traced", "analyze", "trace"]
