"""Schedule rules for NVIDIA GPUs, in the order in which they are asked."""

from __future__ import annotations

from hwprune.kernels.cuda import gemm, pointwise, pool, split, tensor
from hwprune.kernels.schedule import Rule

RULES: tuple[Rule, ...] = (split, tensor, gemm, pool, pointwise)
