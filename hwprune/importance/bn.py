"""BatchNorm scale: |gamma| of the batch normalizations that a unit passes.

Liu, Li, Shen, Huang, Yan and Zhang, "Learning Efficient Convolutional Networks through Network Slimming", ICCV 2017.
Summed over the group's BatchNorms, then the layer-adaptive score of ``hwprune.importance.gather``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import nn

from hwprune.errors import UsageError
from hwprune.graph.blocks import Block
from hwprune.graph.channels import ChannelGraph
from hwprune.importance.gather import layer_adaptive, per_position, per_unit


@dataclass(frozen=True)
class BatchNormScale:
    name: str = "bn"
    needs_data: bool = False

    def score(self, graph: ChannelGraph, batches=None, *, seed: int = 0) -> dict[str, np.ndarray]:
        """UsageError where a group passes no BatchNorm with a scale: there is nothing to score it by."""
        module = graph.traced.module
        scales = {
            f"{name}.weight" if name else "weight": m.weight
            for name, m in module.named_modules(remove_duplicate=False)
            if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.weight is not None
        }
        scores, missing = {}, []
        for group in graph.choices:
            own = [s for s in group.params if s.name in scales]
            if own:
                total = sum(per_unit(per_position(scales[s.name].abs(), s.dim), s) for s in own)
                scores[group.id] = layer_adaptive(total)
            elif isinstance(group, Block):
                scores[group.id] = np.zeros(group.width)  # a residual branch is worth what its groups are
            else:
                missing.append(group.id)
        if missing:
            named = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
            raise UsageError(f"--importance bn: no BatchNorm scale in {named}; freeze these groups or use l2 or taylor")
        return scores
