"""Whether a compiled network computes what torch computes."""

from __future__ import annotations

import torch
from torch import nn

from hwprune.arrays import relative_error
from hwprune.graph.trace import evaluating
from hwprune.runtime import Program

#: Type of a network's values -> largest difference to torch's outputs, relative to their largest value, that is promised. In
#: float16 that depends on how deep the network is, and how it magnifies what is rounded off: ResNet-18 with random weights is off by
#: 0.7 %, MobileNetV2 by 4 %.
TOLERANCE = {"float32": 1e-4, "float16": 0.05}


def output_error(program: Program, module: nn.Module, example: torch.Tensor, seed: int = 0) -> float:
    """Largest difference of the outputs to those of ``module`` in eval mode, each relative to its largest value.

    example : the input, where it holds integers; in place of other inputs standard normal values are taken.
    """
    x = example
    if example.is_floating_point():
        x = torch.randn(example.shape, generator=torch.Generator().manual_seed(seed))
    with evaluating(module), torch.inference_mode():
        leaves = torch.utils._pytree.tree_leaves(module(x.to(example.dtype)))
    expected = [t.float().numpy() for t in leaves if isinstance(t, torch.Tensor)]
    got = program(x.numpy())
    return max(relative_error(a, b) for a, b in zip(got if isinstance(got, tuple) else (got,), expected))
