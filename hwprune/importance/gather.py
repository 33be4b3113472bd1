"""What the criteria share: sums over the slices of units, and a scale on which groups compare."""

from __future__ import annotations

import numpy as np
import torch

from hwprune.graph.channels import AxisSlice


def per_position(tensor: torch.Tensor, dim: int) -> np.ndarray:
    """Sums of a tensor over all axes but ``dim``, float64 ``[tensor.shape[dim]]``."""
    return tensor.detach().double().transpose(0, dim).flatten(1).sum(1).cpu().numpy() if tensor.dim() > 1 else (
        tensor.detach().double().cpu().numpy()
    )  # fmt: skip


def per_unit(positions: np.ndarray, axis: AxisSlice) -> np.ndarray:
    """Sums over the positions that go with each unit, ``[width]``."""
    return positions[axis.index].sum(axis=1)


def layer_adaptive(magnitudes: np.ndarray) -> np.ndarray:
    """Each unit's share of what is left once all smaller units of its group are gone, in (0, 1].

    The LAMP score (Lee, Park, Mo, Ahn and Shin, "Layer-adaptive Sparsity for the Magnitude-based Pruning", ICLR 2021,
    eq. 2) with units for weights. It needs no scale per layer, and the largest unit of each group scores 1: giving
    away half of a group costs about ln 2, whatever its width, and emptying one is never cheap.
    """
    order = np.argsort(-magnitudes, kind="stable")
    left = np.cumsum(magnitudes[order])
    scores = np.zeros(len(magnitudes))
    scores[order] = np.divide(magnitudes[order], left, out=np.zeros(len(left)), where=left > 0)
    return scores
