"""Magnitude: the weights that make a unit and those that read it.

The sum of |w|^p over the unit's slices of all weights of its group, producers and consumers (group magnitude: Fang, Ma,
Song, Mi and Wang, "DepGraph: Towards Any Structural Pruning", CVPR 2023, sec. 3.3), then the layer-adaptive score of
``hwprune.importance.gather``. Biases and normalization parameters count only where a group has nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hwprune.graph.channels import ChannelGraph, Group
from hwprune.importance.gather import layer_adaptive, per_position, per_unit


@dataclass(frozen=True)
class Magnitude:
    """``power`` 1: absolute values; 2: squares."""

    power: int
    needs_data: bool = False

    @property
    def name(self) -> str:
        return f"l{self.power}"

    def score(self, graph: ChannelGraph, batches=None, *, seed: int = 0) -> dict[str, np.ndarray]:
        parameters = dict(graph.traced.module.named_parameters(remove_duplicate=False))
        return {group.id: layer_adaptive(self._of(group, parameters)) for group in graph.choices}

    def _of(self, group: Group, parameters: dict) -> np.ndarray:
        own = [s for s in group.params if s.name in parameters]
        weights = [s for s in own if parameters[s.name].dim() > 1] or own
        total = np.zeros(group.width)
        for s in weights:
            total += per_unit(per_position(parameters[s.name].detach().abs() ** self.power, s.dim), s)
        return total
