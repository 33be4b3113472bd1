"""How far a compiled network's output is from torch's."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn


def difference(got: np.ndarray, module: nn.Module, x: torch.Tensor) -> float:
    """Largest difference to the output of ``module`` in eval mode, relative to its largest value."""
    with torch.inference_mode():
        expected = module.eval()(x).numpy()
    return float(np.abs(got - expected).max() / np.abs(expected).max())
