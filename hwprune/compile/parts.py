"""Large batches in parts: the whole network runs over a few images at a time, so that activations stay in a near cache.

Layer by layer, a batch of 16 images sends each activation to main memory and fetches it from there again; in parts only the
constants are read more often. How many parts are best is reckoned from bytes and the profile's bandwidths, and what a network
makes of a part is compared with what it makes of the whole: some mix images, and those run whole.
"""

from __future__ import annotations

import torch
from torch import nn

from hwprune.compile.lower import Network, lower
from hwprune.errors import CompileError, TraceError
from hwprune.float64 import tensors
from hwprune.graph.trace import Traced, evaluating, trace
from hwprune.kernels.schedule import divisors
from hwprune.library import VECTOR_BYTES
from hwprune.target import TargetProfile

#: What parts must save of the time that bytes take, at least: less is within the error of the reckoning.
_WORTH = 0.1

#: Of the largest value: a part's results and the whole's may differ by the rounding of sums in another order.
_ROUNDING = 1e-4


def trace_in_parts(module: nn.Module, example: torch.Tensor, profile: TargetProfile) -> tuple[Traced, int]:
    """``module`` traced for one of the parts in which the batch of ``example`` runs best on ``profile``, and how many they are.

    One part, the batch as it is, where the network mixes images or cannot be lowered. Raises TraceError.
    """
    traced = trace(module, example)
    if profile.gpu is not None or example.dim() == 0 or example.shape[0] == 1:
        return traced, 1
    try:
        parts = best_parts(lower(traced, profile), profile)
        if parts == 1:
            return traced, 1
        part = trace(module, example[: example.shape[0] // parts].clone())
    except (CompileError, TraceError):
        return traced, 1
    return (part, parts) if _same(module, example, parts) else (traced, 1)


def lower_batch(module: nn.Module, example: torch.Tensor, profile: TargetProfile) -> Network:
    """``module`` lowered for the batch of ``example``, in the parts in which it runs best. Raises as ``trace`` and ``lower`` do."""
    traced, parts = trace_in_parts(module, example, profile)
    return lower(traced, profile, parts)


def best_parts(network: Network, profile: TargetProfile) -> int:
    """The number of parts with the least time for bytes to come from where they lie; only such that all parts are aligned."""
    shape = network.traced.shape
    ends = [shape(name) for name in (*network.inputs, *network.output_nodes)]
    batch = ends[0][0] if ends[0] else 1
    if any(not s or s[0] != batch for s in ends):
        return 1
    sizes = [4 * torch.Size(s).numel() for s in ends]
    possible = [p for p in divisors(batch) if all(size % (p * VECTOR_BYTES) == 0 for size in sizes)]
    costs = {p: _bytes_us(network, p, profile) for p in possible}
    best = min(costs, key=lambda p: (costs[p], p), default=1)
    return best if costs and 1 in costs and costs[best] < (1 - _WORTH) * costs[1] else 1


def _bytes_us(network: Network, parts: int, profile: TargetProfile) -> float:
    """Microseconds that constants and activations take to come and go, and kernels to start, if the batch runs in ``parts``."""
    workloads = network.workloads()
    weights = network.weight_bytes()
    moved = [sum(t.size_bytes for t in w.inputs if t.role != "weight") + w.output.size_bytes for w in workloads]
    near = max(moved, default=0) / parts
    constants = parts * weights / _bytes_per_us(weights + near, profile)
    activations = sum(size / _bytes_per_us(size / parts, profile) for size in moved)
    return constants + activations + parts * len(workloads) * profile.overhead.kernel_us


def _bytes_per_us(size_bytes: float, profile: TargetProfile) -> float:
    """Of all threads, from the nearest level that holds so much and something else beside it."""
    memory, threads = profile.memory, profile.threads
    if size_bytes <= threads * memory.l2_bytes:
        return 1e3 * threads * memory.l2_gb_per_s
    if size_bytes <= memory.l3_bytes / 2:
        return 1e3 * (memory.l3_gb_per_s or threads * memory.l2_gb_per_s / 2)
    return 1e3 * memory.dram_gb_per_s


def _same(module: nn.Module, example: torch.Tensor, parts: int) -> bool:
    """Whether ``module`` makes of all images what it makes of one part after the other."""
    x = torch.randn(example.shape, generator=torch.Generator().manual_seed(0)) if example.is_floating_point() else example
    with evaluating(module), torch.no_grad():
        try:
            whole = tensors(module(x.clone()))
            pieces = [tensors(module(piece.clone())) for piece in x.chunk(parts)]
        except Exception:  # the module is the user's: whatever it raises for a smaller batch, it does not take one
            return False
    if any(len(piece) != len(whole) for piece in pieces):
        return False
    joined = [torch.cat(same) for same in zip(*pieces)]
    return all(a.shape == b.shape and (a - b).abs().max() <= _ROUNDING * b.abs().max() for a, b in zip(joined, whole))
