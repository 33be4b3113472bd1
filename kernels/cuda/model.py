"""What a tiling of a product costs on a GPU, as far as the profile tells: ranks candidates, times nothing."""

from __future__ import annotations

import math

from hwprune.errors import Infeasible
from hwprune.kernels.cuda.product import Product
from hwprune.kernels.schedule import Config
from hwprune.occupancy import Usage, blocks_per_sm, excess, gpu_of
from hwprune.target import TargetProfile


def within(usage: Usage, profile: TargetProfile, config: Config) -> None:
    """Infeasible where a block takes more than the card has."""
    found = excess(usage, gpu_of(profile))
    if found:
        raise Infeasible(f"{config.to_text()}: {found}")


def product_cycles(
    shape: Product, tile: tuple[int, int, int], usage: Usage, profile: TargetProfile, loads_per_fma: float, fma_per_cycle: float | None = None
) -> float:
    """Cycles of a kernel that makes tiles of bm x bn with bk steps at a time.

    An SM takes the blocks that it holds at once together: their multiply-adds at its rate, their fetches from L2 at
    its rate, and never faster than its warps hide the latency of either. Blocks come in waves over the SMs.
    """
    bm, bn, bk = tile
    core, gpu = profile.core, gpu_of(profile)
    resident = blocks_per_sm(usage, gpu)
    if not resident:
        return math.inf
    blocks = math.ceil(shape.m / bm) * math.ceil(shape.n / bn)
    at_once = min(resident, math.ceil(blocks / profile.cores))
    waves = math.ceil(blocks / (profile.cores * at_once))
    steps = math.ceil(shape.k / bk) * bk
    rate = (fma_per_cycle or core.fma_per_cycle * profile.lanes)
    # shared memory gives a warp one row of its banks a cycle, so a load costs an SM what `rate / warp` multiply-adds do
    arithmetic = at_once * bm * bn * steps / rate * max(1.0, loads_per_fma * rate / gpu.warp_size / profile.lanes)
    bytes_per_cycle = profile.memory.l2_gb_per_s * 1e3 / core.frequency_mhz
    fetches = at_once * 4 * (bm + bn) * steps / bytes_per_cycle
    return waves * (max(arithmetic, fetches) + steps / bk * _latency_cycles(usage, profile, at_once))


def _latency_cycles(usage: Usage, profile: TargetProfile, at_once: int) -> float:
    """Cycles of one fetch that no other block of the SM hides; about 300 from L2 (assumption), shared by the blocks."""
    return _L2_LATENCY_CYCLES / at_once


#: Of the order that microbenchmarks give for L2 on these cards (Jia et al. 2018: 193 on V100; later cards 200 to 300).
_L2_LATENCY_CYCLES = 250.0
