"""BatchNorm statistics of a pruned network.

Removing channels shifts what the next layer sees, and the running statistics of the dense network no longer describe
it. Averaging them anew over some batches recovers much of the accuracy before any training (Li et al., "EagleEye: Fast
Sub-net Evaluation for Efficient Neural Network Pruning", ECCV 2020, section 3.3).
"""

from __future__ import annotations

from typing import Iterable

import torch
from torch import Tensor, nn

from hwprune.train.evaluate import mode


def batchnorms(model: nn.Module) -> list[nn.Module]:
    """The BatchNorm modules of ``model`` that keep running statistics."""
    return [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]


def recalibrate(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> int:
    """Replace the running statistics of every BatchNorm by their plain average over ``batches``.

    Parameters
    ----------
    model : changed in place; only its BatchNorm buffers change.
    batches : (x, y) pairs; y is not used. 10 to 50 batches of training data are enough.

    Returns
    -------
    The number of batches used; 0 when the network has no BatchNorm.
    """
    norms = batchnorms(model)
    if not norms:
        return 0
    momenta = [norm.momentum for norm in norms]
    count = 0
    # Only the BatchNorms are in train mode: dropout would distort the statistics that inference sees.
    with mode(model, False), torch.no_grad():
        try:
            for norm in norms:
                norm.reset_running_stats()
                norm.momentum = None  # torch: cumulative average instead of an exponential one
                norm.training = True
            for x, _ in batches:
                model(x)
                count += 1
        finally:
            for norm, momentum in zip(norms, momenta):
                norm.momentum = momentum
    return count
