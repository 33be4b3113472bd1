"""First-order Taylor: how much the loss changes when a unit goes, to first order.

Molchanov, Mallya, Tyree, Frosio and Kautz, "Importance Estimation for Neural Network Pruning", CVPR 2019: the score of
a set of weights is |sum of w * dL/dw|. Here the set is what removing a unit zeroes: all slices that read it, over the
whole group at once (those that make it, where nothing reads it). Accumulated as absolute values over batches and
averaged, so a score is in units of the loss (nats of cross-entropy) and compares across groups as it is.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch.func import functional_call

from hwprune.errors import DataError, UsageError
from hwprune.graph.channels import ChannelGraph
from hwprune.graph.trace import evaluating
from hwprune.importance.gather import per_position, per_unit


@dataclass(frozen=True)
class Taylor:
    name: str = "taylor"
    needs_data: bool = True

    def score(self, graph: ChannelGraph, batches, *, seed: int = 0) -> dict[str, np.ndarray]:
        """Batches are (input, class labels ``[N]`` int64). The module is not changed; BatchNorm is in eval mode.

        Raises
        ------
        UsageError : no batches, or a network whose output is not one tensor of class scores.
        DataError : a loss that is not finite.
        """
        if batches is None:
            raise UsageError("--importance taylor needs data; give --data, or use l1 or l2, which need none")
        totals = {group.id: np.zeros(group.width) for group in graph.choices}
        count = 0
        with evaluating(graph.traced.module):
            for x, labels in batches:
                products = _products(graph, x, labels)
                for group in graph.choices:
                    totals[group.id] += np.abs(_change(group, products))
                count += 1
        if count == 0:
            raise UsageError("--importance taylor was given no batches; the training set must not be empty")
        return {group_id: total / count for group_id, total in totals.items()}


def _change(group, products: dict[str, torch.Tensor]) -> np.ndarray:
    slices = [s for s in group.params if (s.name, s.dim) in (group.consumers or group.producers)]
    return sum(per_unit(per_position(products[s.name], s.dim), s) for s in slices if s.name in products)


def _products(graph: ChannelGraph, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
    """w * dL/dw of every parameter that some group reads or makes."""
    module = graph.traced.module
    wanted = {name for group in graph.choices for name, _ in (group.consumers or group.producers)}
    leaves: dict[int, torch.Tensor] = {}
    named = {}
    for name, p in module.named_parameters(remove_duplicate=False):
        if name in wanted:  # tied parameters share one leaf, as they share one gradient
            named[name] = leaves.setdefault(id(p), p.detach().clone().requires_grad_(True))
    with torch.enable_grad():
        output = functional_call(module, named, (x,), tie_weights=True)
        if not isinstance(output, torch.Tensor) or output.dim() < 2:
            raise UsageError("--importance taylor needs a network whose output is one tensor of class scores; use l2")
        loss = torch.nn.functional.cross_entropy(output, labels)
        if not torch.isfinite(loss):
            raise DataError(f"the loss on a batch is {loss.item()}; check the data's normalization and the weights")
        gradients = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    by_leaf = {key: (leaf, g) for (key, leaf), g in zip(leaves.items(), gradients)}
    parameters = dict(module.named_parameters(remove_duplicate=False))
    products = {}
    for name in named:
        leaf, gradient = by_leaf[id(parameters[name])]
        products[name] = torch.zeros_like(leaf) if gradient is None else leaf.detach() * gradient
    return products
