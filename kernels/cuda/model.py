"""What a tiling of a product costs on a GPU, as far as the profile tells: ranks candidates, times nothing."""

from __future__ import annotations

import math
from dataclasses import dataclass

from hwprune.errors import Infeasible
from hwprune.kernels.schedule import Config
from hwprune.occupancy import Usage, blocks_per_sm, excess, gpu_of
from hwprune.target import TargetProfile


def within(usage: Usage, profile: TargetProfile, config: Config) -> None:
    """Infeasible where a block takes more than the card has."""
    found = excess(usage, gpu_of(profile))
    if found:
        raise Infeasible(f"{config.to_text()}: {found}")


@dataclass(frozen=True)
class Step:
    """What one block does for one step of k.

    arithmetic : cycles of an SM. instructions : that its warps start. shared_bytes, l2_bytes : that it moves.
    chain : cycles that a block takes at least, however little there is to do. ahead : steps of the tile's depth for which
    fetches are under way.
    """

    arithmetic: float
    instructions: float
    l2_bytes: float
    shared_bytes: float = 0.0
    chain: float = 0.0
    ahead: int = 1


def product_cycles(
    shape: tuple[int, int, int], tile: tuple[int, int, int], step: Step, usage: Usage, profile: TargetProfile
) -> float:
    """Cycles of a kernel that makes a product of ``shape`` (m, n, k) by tiles of bm x bn, with bk steps of k at a time.

    An SM takes the blocks that it holds at once together and is as slow as the slowest of: its multiply-adds, the start
    of all instructions, its shared memory, its share of L2. What is not hidden of a fetch's latency is added. Blocks
    come in waves over the SMs, and those at an edge cost as much as full ones.
    """
    (m, n, k), (bm, bn, bk) = shape, tile
    core, gpu = profile.core, gpu_of(profile)
    resident = blocks_per_sm(usage, gpu)
    if not resident:
        return math.inf
    blocks = math.ceil(m / bm) * math.ceil(n / bn)
    at_once = min(resident, math.ceil(blocks / profile.cores))
    waves = math.ceil(blocks / (profile.cores * at_once))
    steps = math.ceil(k / bk) * bk
    started = step.instructions / gpu.schedulers_per_sm
    l2 = step.l2_bytes / (profile.memory.l2_gb_per_s * 1e3 / core.frequency_mhz)
    busy = max(step.arithmetic, started, step.shared_bytes / _SHARED_BYTES_PER_CYCLE, l2)
    return waves * steps * (max(at_once * busy, step.chain) + L2_LATENCY_CYCLES / bk / at_once / step.ahead)


#: Of the order that microbenchmarks give for L2 on these cards (Jia et al. 2018: 193 on V100; later cards 200 to 300).
L2_LATENCY_CYCLES = 250.0
#: 32 banks of 4 bytes (CUDA C++ Programming Guide, shared memory of compute capability 5.x and later).
_SHARED_BYTES_PER_CYCLE = 128
