"""Random order: the control that any other criterion must beat."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hwprune.graph.channels import ChannelGraph
from hwprune.importance.gather import layer_adaptive


@dataclass(frozen=True)
class Random:
    name: str = "random"
    needs_data: bool = False

    def score(self, graph: ChannelGraph, batches=None, *, seed: int = 0) -> dict[str, np.ndarray]:
        """Layer-adaptive scores of uniform magnitudes: widths cost what they do elsewhere, only the order is random."""
        generator = np.random.default_rng(seed)
        return {group.id: layer_adaptive(generator.uniform(0.1, 1.0, group.width)) for group in graph.choices}
