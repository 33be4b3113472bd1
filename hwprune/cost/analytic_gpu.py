"""Analytic cost model of a GPU: the same roofline, with tiles that blocks of threads make and SMs that take blocks.

A block makes ``rows x vectors`` results and is as slow as the slower of its multiply-adds and its fetches from L2; an SM
takes its blocks one after the other at its full rate (blocks that it holds at once share it), so a kernel takes as long
as the SM with the most blocks. The best tile is taken, from single vectors, whose threads share the reduction, up to
those of large matrix products. Between kernels only L2 keeps anything.
"""

from __future__ import annotations

import numpy as np

from hwprune.cost.analytic import AnalyticModel
from hwprune.target import TargetProfile

#: (pixels, channel vectors) of a block; the largest are those of 128 x 128 results with four lanes.
_TILES = np.array([(m, v) for m in (1, 4, 16, 32, 64, 128) for v in (1, 4, 8, 16, 32)])


class GpuAnalyticModel(AnalyticModel):
    """CostModel of a GPU that nobody has measured. See the module docstring."""

    def _tile_cycles(self, batch, rows, columns, vectors, reduction) -> np.ndarray:
        core, lanes = self.profile.core, self.profile.lanes
        tile_pixels, tile_vectors = (t[None, :] for t in _TILES.T)
        pixels = batch * rows * columns
        blocks = np.ceil(pixels[:, None] / tile_pixels) * np.ceil(vectors[:, None] / tile_vectors)
        arithmetic = tile_pixels * tile_vectors / core.fma_per_cycle
        bytes_per_cycle = self.profile.memory.l2_gb_per_s * 1e3 / core.frequency_mhz
        fetches = 4 * (tile_pixels + tile_vectors * lanes) / bytes_per_cycle
        return (np.ceil(blocks / self.threads) * np.maximum(arithmetic, fetches)).min(axis=1) * reduction

    def _memory_us(self, bytes_moved: np.ndarray) -> np.ndarray:
        memory = self.profile.memory
        dram, l2 = memory.dram_gb_per_s * 1e3, memory.l2_gb_per_s * 1e3 * self.threads
        return bytes_moved / np.where(bytes_moved <= memory.l2_bytes, max(l2, dram), dram)


def analytic_model(profile: TargetProfile) -> AnalyticModel:
    """The analytic model of the profile's kind of machine."""
    return AnalyticModel(profile) if profile.gpu is None else GpuAnalyticModel(profile)
