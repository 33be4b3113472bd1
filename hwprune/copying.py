"""Copies of modules, also of those that keep a weight which they compute.

What ``nn.utils.weight_norm`` and ``spectral_norm`` compute before each call is a result, which ``copy.deepcopy``
refuses, and of the old size once the tensors behind it are sliced.
"""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from hwprune.graph.trace import evaluating


def copied(module: nn.Module) -> nn.Module:
    """A deep copy; results among the attributes are copied as plain tensors."""
    kept = [v for m in module.modules() for v in vars(m).values() if isinstance(v, torch.Tensor) and not v.is_leaf]
    return copy.deepcopy(module, {id(v): v.detach().clone() for v in kept})


def compute_weights(module: nn.Module) -> None:
    """Compute anew, in place, the weights that modules keep beside the tensors that they come from."""
    with evaluating(module), torch.no_grad():
        for m in module.modules():
            for hook in m._forward_pre_hooks.values():
                if isinstance(hook, (WeightNorm, SpectralNorm)):
                    hook(m, ())
