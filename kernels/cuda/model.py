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
    shape: Product,
    tile: tuple[int, int, int],
    thread: tuple[int, int],
    usage: Usage,
    profile: TargetProfile,
    multiply_adds: tuple[float, int] | None = None,
) -> float:
    """Cycles of a kernel that makes tiles of bm x bn with bk steps at a time, each thread tm x tn of them.

    An SM takes the blocks that it holds at once together and is as slow as the slowest of: its multiply-adds, the start
    of all instructions, its shared memory, its share of L2. What is not hidden of a fetch's latency is added. Blocks
    come in waves over the SMs, and those at an edge cost as much as full ones.

    multiply_adds : how many an SM does in a cycle, and in one instruction of a warp; those of the CUDA cores if None.
    """
    (bm, bn, bk), (tm, tn) = tile, thread
    core, gpu = profile.core, gpu_of(profile)
    resident = blocks_per_sm(usage, gpu)
    if not resident:
        return math.inf
    blocks = math.ceil(shape.m / bm) * math.ceil(shape.n / bn)
    at_once = min(resident, math.ceil(blocks / profile.cores))
    waves = math.ceil(blocks / (profile.cores * at_once))
    steps = math.ceil(shape.k / bk) * bk
    warps = usage.threads / gpu.warp_size
    rate, each = multiply_adds or (core.fma_per_cycle * profile.lanes, gpu.warp_size)
    arithmetic = bm * bn / rate
    loads = warps * (tm + tn) / profile.lanes  # 16 bytes a thread, from rows that a warp shares
    fetches = (bm / (profile.lanes if shape.contiguous else 1) + bn / profile.lanes) / gpu.warp_size
    started = (bm * bn / each + loads + fetches * _INSTRUCTIONS_PER_FETCH) / gpu.schedulers_per_sm
    l2 = 4 * (bm + bn) / (profile.memory.l2_gb_per_s * 1e3 / core.frequency_mhz)
    return waves * steps * (at_once * max(arithmetic, started, loads, l2) + L2_LATENCY_CYCLES / bk / at_once)


#: Of the order that microbenchmarks give for L2 on these cards (Jia et al. 2018: 193 on V100; later cards 200 to 300).
L2_LATENCY_CYCLES = 250.0
#: Assumption, from reading the generated code: finding a pixel from its number takes divisions, that is multiplications
#: and shifts, then come border conditions, load and store.
_INSTRUCTIONS_PER_FETCH = 24
