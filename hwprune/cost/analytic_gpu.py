"""Analytic cost model of a GPU: the same roofline, with tiles that blocks of threads make and SMs that take blocks.

A block makes ``rows x vectors`` results and is as slow as the slower of its multiply-adds and its fetches from L2; an SM
takes its blocks one after the other at its full rate (blocks that it holds at once share it), so a kernel takes as long
as the SM with the most blocks. The best tile is taken, from single vectors, whose threads share the reduction, up to
those of large matrix products. Between kernels only L2 keeps anything.

Where the profile allows TF32 or float16, products of enough rows, columns and steps run at the peak of the tensor cores.
"""

from __future__ import annotations

import math
from functools import cached_property
from typing import Sequence

import numpy as np

from hwprune.cost.analytic import AnalyticModel
from hwprune.target import TargetProfile
from hwprune.workload import Workload

#: (pixels, channel vectors) of a block; the largest are those of 128 x 128 results with four lanes.
_TILES = np.array([(m, v) for m in (1, 4, 16, 32, 64, 128) for v in (1, 4, 8, 16, 32)])


#: Rows and columns that a warp multiplies at once, and steps of the reduction: smaller products stay on the CUDA cores.
_LEAST = 16


class GpuAnalyticModel(AnalyticModel):
    """CostModel of a GPU that nobody has measured. See the module docstring."""

    #: vector multiply-adds that an SM starts in a cycle; those of the CUDA cores if None
    _fma_per_cycle: float | None = None

    def latencies_us(self, workloads: Sequence[Workload]) -> np.ndarray:
        found = super().latencies_us(workloads)
        for number, workload in enumerate(workloads):
            if self._on_tensor_cores is not None and _multiplies_matrices(workload):
                found[number] = self._on_tensor_cores.latencies_us([workload])[0]
        return found

    @cached_property
    def _on_tensor_cores(self) -> "AnalyticModel | None":
        """The model of what runs on the tensor cores; None where the profile allows nothing to."""
        gpu, core = self.profile.gpu, self.profile.core
        peaks = {"tf32": gpu.tf32_tflops, "fp16": gpu.fp16_tflops}
        allowed = [peak for name, peak in peaks.items() if name in gpu.precision]
        if not allowed:
            return None
        model = _TensorCores(self.profile, self.threads)
        model._fma_per_cycle = max(allowed) * 1e6 / 2 / (self.profile.cores * core.frequency_mhz * self.profile.lanes)
        return model

    def _tile_cycles(self, batch, rows, columns, vectors, reduction) -> np.ndarray:
        core, lanes = self.profile.core, self.profile.lanes
        tile_pixels, tile_vectors = (t[None, :] for t in _TILES.T)
        pixels = batch * rows * columns
        blocks = np.ceil(pixels[:, None] / tile_pixels) * np.ceil(vectors[:, None] / tile_vectors)
        arithmetic = tile_pixels * tile_vectors / (self._fma_per_cycle or core.fma_per_cycle)
        bytes_per_cycle = self.profile.memory.l2_gb_per_s * 1e3 / core.frequency_mhz
        fetches = 4 * (tile_pixels + tile_vectors * lanes) / bytes_per_cycle
        return (np.ceil(blocks / self.threads) * np.maximum(arithmetic, fetches)).min(axis=1) * reduction

    def _memory_us(self, bytes_moved: np.ndarray) -> np.ndarray:
        memory = self.profile.memory
        dram, l2 = memory.dram_gb_per_s * 1e3, memory.l2_gb_per_s * 1e3 * self.threads
        return bytes_moved / np.where(bytes_moved <= memory.l2_bytes, max(l2, dram), dram)


class _TensorCores(GpuAnalyticModel):
    _on_tensor_cores = None


def _multiplies_matrices(workload: Workload) -> bool:
    anchor = workload.anchor
    if anchor is None or anchor.op not in ("conv2d", "dense") or anchor.get("groups", 1) != 1:
        return False
    *rows, columns = workload.output.shape
    steps = math.prod(workload.inputs[anchor.args[1]].shape[1:-1])
    return min(math.prod(rows), columns, steps) >= _LEAST


def analytic_model(profile: TargetProfile) -> AnalyticModel:
    """The analytic model of the profile's kind of machine."""
    return AnalyticModel(profile) if profile.gpu is None else GpuAnalyticModel(profile)
